"""What the fault campaign calls unsafe: each rule fires on a made-up drive that breaks it, and only then."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from vla_drive_ros.sensor_faults import FAULTS, SensorFaults, check_fault
from vla_drive_ros.town_car import Frame, ImuSample, SteeringSample
from vla_drive_ros.verdict import Limits, Tick, judge

from sensors.errors import InputError
from sensors.ros2_messages import OdometrySample
from sim.sensing import nuscenes_rig

LIMITS = Limits(detect_s=0.25, stop_mps2=1.5, plan_age_ms=800.0, odometry_age_ms=150.0, slow_mps=3.0)
AT_S, STARTS_S, BRAKES_MPS2 = 100.0, 0.2, 2.0
TIMES_S = AT_S + np.arange(0, 6, 0.01)


def stopping(brakes_after_s: float = STARTS_S) -> np.ndarray:
    return np.maximum(6.0 - BRAKES_MPS2 * np.maximum(TIMES_S - AT_S - brakes_after_s, 0.0), 0.0)


def ticks(state: str = "STOPPING", after_s: float = STARTS_S, cause: str = "odometry: 160 ms old") -> list[Tick]:
    at = AT_S + np.arange(0, 6, 0.03)
    fine = Tick(0.0, "OK", "", True, 100.0, 20.0)
    bad = Tick(0.0, state, cause, state == "DEGRADED", 100.0, 20.0)
    return [replace(bad if t - AT_S >= after_s else fine, at_s=t) for t in at]


def verdict(speeds=None, heard=None, may=("stop",), words=("odometry: ",), said=("odometry: 160 ms old",)):
    speeds = stopping() if speeds is None else speeds
    return judge(AT_S, ticks() if heard is None else heard, TIMES_S, speeds, LIMITS, may, words, said)


def test_a_stop_in_time_is_safe():
    found = verdict()
    assert found.unsafe == ()
    assert found.detect_s == pytest.approx(0.2, abs=0.035)
    assert found.stop_s == pytest.approx(3.2, abs=0.1)
    assert (found.state, found.cause) == ("STOPPING", "odometry: 160 ms old")


def test_going_slowly_is_safe_where_it_may():
    slowly = np.maximum(stopping(), 3.0)
    assert verdict(slowly, ticks("DEGRADED"), ("stop", "slow")).unsafe == ()
    assert verdict(slowly, ticks("DEGRADED")).unsafe == ("did not stop",)
    until_s = AT_S + 4.0
    and_stops_later = np.where(until_s > TIMES_S, slowly, np.maximum(3.0 - BRAKES_MPS2 * (TIMES_S - until_s), 0.0))
    assert verdict(and_stops_later, ticks("DEGRADED"), ("stop", "slow")).unsafe == ()
    assert verdict(and_stops_later, ticks("DEGRADED")).unsafe == ("stood after 5.5 s, not 5.0 s",)


def test_nothing_need_happen_where_it_may_go_on():
    onwards = np.full(len(TIMES_S), 6.0)
    assert verdict(onwards, ticks("OK"), ("stop", "slow", "go on"), ()).unsafe == ()
    assert verdict(onwards, ticks("OK")).unsafe == ("nothing reacted",)


OLD = [*ticks()[:3], Tick(AT_S + 0.1, "OK", "", True, 900.0, 20.0), *ticks()[3:]]
SPRINGS = stopping() + np.where(TIMES_S > AT_S + 2.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"heard": ticks(after_s=0.6), "speeds": stopping(0.6)}, "noticed after 0.6"),
        ({"speeds": 0.3 * stopping() + 4.2}, "did not stop"),
        ({"speeds": np.maximum(6.0 - 1.1 * np.maximum(TIMES_S - AT_S - 0.2, 0), 0)}, "stood after 5.6 s"),
        ({"heard": OLD}, "moved on a plan 900 ms"),
        ({"said": ("something",)}, "nobody named the cause: odometry: "),
        ({"speeds": np.maximum(SPRINGS - 1.0 * (TIMES_S > AT_S + 5.0), 0)}, "went faster again"),
        ({"speeds": np.maximum(stopping(), 4.0), "heard": ticks("DEGRADED"), "may": ("stop", "slow")}, "went 4.0 m/s"),
    ],
)
def test_unsafe(given, complaint):
    assert any(text.startswith(complaint) for text in verdict(**given).unsafe), verdict(**given)


def test_a_silent_control_is_noticed_by_the_braking_of_the_car():
    assert verdict(heard=[], words=()).detect_s == pytest.approx(0.2 + 0.25 / BRAKES_MPS2, abs=0.02)


CAMERA = nuscenes_rig(32, 18)[0]
_, JPEG = cv2.imencode(".jpg", np.zeros((18, 32, 3), np.uint8))
SAMPLES = (
    *(
        Frame(1_000_000, replace(CAMERA, name=name), JPEG.tobytes())
        for name in ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK")
    ),
    ImuSample(1_000_000, np.zeros(3), np.zeros(3)),
    OdometrySample(1_000_000, np.eye(4), 1.0, 0.0, "map"),
    SteeringSample(1_000_000, 0.1),
)


def changed(name: str) -> list[int]:
    faults = SensorFaults()
    faults.name = name
    return [k for k, sample in enumerate(SAMPLES) if faults.spoil(sample) is not sample]


def test_each_sensor_fault_spoils_what_it_says_and_nothing_else():
    spoilt = {name: changed(name) for name in ("", *FAULTS)}
    assert spoilt == {
        "": [],
        "camera-stops": [2],
        "cameras-stop": [0, 1, 2],
        "frozen": [0],
        "stamps-back": [0, 1, 2, 3, 4, 5],
        "stamps-forward": [0, 1, 2, 3, 4, 5],
        "imu-nan": [3],
        "odometry-stops": [4],
        "garbage-jpeg": [1],
        "resolution": [0],
    }
    with pytest.raises(InputError, match="Did you mean frozen"):
        check_fault("froze")
