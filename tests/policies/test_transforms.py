import numpy as np
import pytest

from policies.transforms import (
    future_in_ego,
    plan_from_tokens,
    reaches,
    speed_at_now,
    speed_from_poses,
    yaw_rate_at_now,
)
from sensors import frames
from sensors.camera import Camera
from sensors.clip import Clip, Future, VehicleState
from sensors.imu import ImuWindow
from vla.action_tokens import ActionTokenizer
from vla.config import ModelConfig

NOW_US = 1_533_151_603_547_590


def moving_clip(speed_mps: float, steps: int = 2, repeated: int = 0, **changes) -> Clip:
    """A clip of a car that drives straight along its yaw of 0.6 rad; the first `repeated` steps have no past."""
    camera = Camera("CAM_FRONT", 8, 4, np.array([[5.0, 0, 4], [0, 5.0, 2], [0, 0, 1]]), np.eye(4))
    time_us = NOW_US - 20_000 - 500_000 * np.arange(steps - 1, -1, -1)[:, None]
    ago_s = (NOW_US - time_us) * 1e-6
    poses = frames.matrix_from_xy_yaw(-speed_mps * ago_s * np.cos(0.6), -speed_mps * ago_s * np.sin(0.6), 0.6)
    poses[:repeated] = poses[repeated]
    now = frames.matrix_from_xy_yaw(0.0, 0.0, 0.6)
    images, mask = np.zeros((steps, 1, 4, 8, 3), np.uint8), np.ones((steps, 1), bool)
    return Clip(NOW_US, now, (camera,), images, mask, time_us, poses, **changes).validate()


@pytest.mark.parametrize("speed_mps", [0.0, 3.0, -1.5, 20.0])
@pytest.mark.parametrize("repeated", [0, 1])
def test_speed_from_poses(speed_mps, repeated):
    # With no past but the step itself, its capture 20 ms before now is what is left to go by.
    assert speed_from_poses(moving_clip(speed_mps, 3, repeated)) == pytest.approx(speed_mps, abs=1e-6)


def test_speed_prefers_the_bus():
    assert speed_at_now(moving_clip(5.0, vehicle=VehicleState(speed_mps=7.0))) == 7.0
    assert speed_at_now(moving_clip(5.0)) == pytest.approx(5.0)


def test_yaw_rate_falls_back_on_the_gyro():
    times = NOW_US - np.arange(30, -1, -1, dtype=np.int64) * 10_000
    gyro = np.zeros((31, 3))
    gyro[:, 2] = np.where(times > NOW_US - 200_000, 0.3, 9.0)
    assert yaw_rate_at_now(moving_clip(5.0, imu=ImuWindow(times, np.zeros((31, 3)), gyro))) == pytest.approx(0.3)
    assert yaw_rate_at_now(moving_clip(5.0)) == 0.0
    assert yaw_rate_at_now(moving_clip(5.0, vehicle=VehicleState(yaw_rate_radps=0.1))) == 0.1


def test_future_in_ego_and_reaches():
    clip = moving_clip(4.0)
    time_us = NOW_US + np.array([490_000, 1_030_000, 1_510_000])
    ahead = 4.0 * (time_us - NOW_US) * 1e-6
    future = Future(time_us, frames.matrix_from_xy_yaw(ahead * np.cos(0.6), ahead * np.sin(0.6), 0.6))
    found = future_in_ego(clip, future, np.array([0.5, 1.0, 1.5]))
    np.testing.assert_allclose(found, [[2, 0, 0], [4, 0, 0], [6, 0, 0]], atol=1e-9)
    assert reaches(NOW_US, time_us, 1.5)
    assert not reaches(NOW_US, time_us, 1.52)
    assert not reaches(NOW_US, time_us[:0], 0.5)
    with pytest.raises(ValueError, match="outside the track"):
        future_in_ego(clip, future, np.array([2.0]))


def test_tokens_of_a_label_give_the_plan_back():
    tokenizer, clip = ActionTokenizer(ModelConfig.tiny()), moving_clip(6.0)
    turn = 6.0 * np.arange(1, 9) * 0.5 / 30.0
    driven = np.stack([30 * np.sin(turn), 30 * (1 - np.cos(turn)), turn], axis=1)
    plan = plan_from_tokens(tokenizer.encode(*tokenizer.labels(driven, speed_at_now(clip))), clip, tokenizer).validate()
    assert np.linalg.norm(plan.xyyaw_in_ego[:, :2] - driven[:, :2], axis=1).max() < 0.7
    assert len(plan.tokens) == 16
    np.testing.assert_allclose(plan.time_s, np.arange(1, 9) * 0.5)
