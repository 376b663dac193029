"""Car, driver and control in processes of their own over DDS: a whole drive, and faults in it. Run with -m ros."""

import os

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e '.[ros]'")

from vla_drive_ros.campaign import FAULTS, Campaign
from vla_drive_ros.closed_loop import check_length, closed_loop_figures, complete_sets
from vla_drive_ros.sensor_faults import FAULTS as SENSOR_FAULTS

pytestmark = [
    pytest.mark.ros,
    pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning"),  # lark, which the message wheels load
]
DOMAIN = 1 + os.getpid() % 100


def test_synchroniser_finds_complete_sets_though_pictures_are_lost():
    assert complete_sets(60.0) >= 0.99
    assert complete_sets(20.0, lost=0.0) == 1.0
    assert complete_sets(20.0, lost=0.5) < 0.9  # it is a measurement


@pytest.mark.timeout(900)
def test_drives_over_topics_as_it_does_without_them(tmp_path):
    figures = closed_loop_figures(tmp_path, DOMAIN, print)
    check_length(figures)
    assert abs(figures["score.carla.difference"]) <= 5
    assert abs(figures["score.plain.difference"]) <= 5
    assert figures["drive.apart_m.max"] < 1.0
    assert figures["latency_ms.p50"] < 400  # the policy that ships, on two cores that also draw the town


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["odometry-stops", "policy-blocked", "control-sigterm", "e-stop"])
def test_fault_is_survived(name, tmp_path):
    rows = Campaign(tmp_path, DOMAIN, 0, print).run([name], 1)
    assert [row["unsafe"] for row in rows] == [()]


def test_every_sensor_fault_is_in_the_campaign():
    assert set(SENSOR_FAULTS) < set(FAULTS)
