"""Plans and commands as messages and back, with the real message classes; those of Autoware are stand-ins."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e '.[ros]'")

from vla_drive_ros import messages
from vla_drive_ros.controller import ControlCommand
from vla_drive_ros.safety import State

from policies.protocol import Plan
from sensors import frames
from sim.tracker import PLAN_TIME_S

# lark, which the message wheels load
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")
COMMAND = ControlCommand(12_345_678, -1.5, 0.2, 0.1, 3.0, State.OK, "", False, 100_000, 10_000)


def test_a_plan_comes_back_from_its_path():
    xyyaw = np.stack([PLAN_TIME_S * 5, 0.1 * PLAN_TIME_S, np.linspace(-3.0, 3.0, 8)], axis=1)
    T = frames.matrix_from_xy_yaw(100.0, -20.0, 0.5)
    path = messages.path(Plan(PLAN_TIME_S, xyyaw, np.full(8, 5.0)), 10_000_000, T, "map")
    time_us, times_us, came = messages.path_knots(path)
    assert time_us == 10_000_000
    assert np.array_equal(times_us, 10_000_000 + (PLAN_TIME_S * 1e6).astype(np.int64))
    wanted = frames.xy_yaw(T @ frames.matrix_from_xy_yaw(*xyyaw.T))
    np.testing.assert_allclose(came[:, :2], wanted[:, :2], atol=1e-12)
    np.testing.assert_allclose(frames.wrap(came[:, 2] - wanted[:, 2]), 0.0, atol=1e-9)
    line, text = messages.markers(path, "drive: free road").markers
    assert len(line.points) == 8
    assert text.text == "drive: free road"


def test_a_command_is_the_same_in_every_message():
    joint = messages.joint_command(COMMAND)
    (point,) = joint.points
    assert joint.joint_names == ["steering", "traction"]
    assert (point.positions[0], point.velocities[0]) == (0.2, 0.1)
    assert (point.velocities[1], point.accelerations[1]) == (3.0, -1.5)
    assert (joint.header.stamp.sec, joint.header.stamp.nanosec) == (12, 345_678_000)

    def control(stamp):
        return SimpleNamespace(stamp=stamp, lateral=SimpleNamespace(), longitudinal=SimpleNamespace())

    autoware = messages.autoware_control(COMMAND, control)
    assert autoware.lateral.steering_tire_angle == 0.2
    assert autoware.lateral.steering_tire_rotation_rate == 0.1
    assert (autoware.longitudinal.velocity, autoware.longitudinal.acceleration) == (3.0, -1.5)
    assert autoware.lateral.stamp == autoware.longitudinal.stamp == joint.header.stamp
    ackermann = messages.ackermann(COMMAND, lambda header: SimpleNamespace(header=header, drive=SimpleNamespace()))
    assert vars(ackermann.drive) == {
        "steering_angle": 0.2,
        "steering_angle_velocity": 0.1,
        "speed": 3.0,
        "acceleration": -1.5,
    }
