from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.metrics.driving import (
    collided,
    distance_m,
    left_road,
    max_abs_accel_mps2,
    max_abs_jerk_mps3,
    mean_speed_mps,
    time_on_course_s,
)
from sim.metrics.open_loop import ade_1s_m, ade_3s_m, fde_3s_m, keyframe_errors, plan_errors
from sim.metrics.protocols import PROTOCOLS, episode_figures
from sim.metrics.protocols import summarize as summarize_rows
from sim.rollout_log import EpisodeLog, EpisodeRecorder

FEW = settings(deadline=None, derandomize=True, max_examples=25)
HALF_S = np.arange(1, 7) * 0.5


def drive(speeds: np.ndarray, events: dict[int, str] | None = None, error: str = "") -> EpisodeLog:
    """Along x at 10 Hz, speeds [F] m/s."""
    recorder, x = EpisodeRecorder("d", "drive", "p", 0), 0.0
    for k, speed in enumerate(speeds):
        recorder.frame(5_000_000 + 100_000 * k, (x, 0, 0), speed, events=[events[k]] if k in (events or {}) else ())
        x += speed * 0.1
    return recorder.finish("time", error)


def replay(track: np.ndarray, step_s: float = 0.5, error_m: float = 0.0, plan_end: int = 6) -> EpisodeLog:
    """Ego on track [F, 2] every step_s; each plan is the true continuation at constant last velocity, plus error_m."""
    recorder = EpisodeRecorder("r", "replay", "p", 0)
    time_s = np.arange(len(track)) * step_s
    for k, xy in enumerate(track):
        recorder.frame(9_000_000 + round(time_s[k] * 1e6), (*xy, 0.0), 5.0)
        at = time_s[k] + HALF_S[:plan_end]
        truth = np.stack([np.interp(at, time_s, track[:, c]) for c in (0, 1)], axis=1)
        truth[:, 1] += error_m
        recorder.plan(HALF_S[:plan_end], np.column_stack([truth, np.zeros(plan_end)]))
    return recorder.finish("end of log")


def summarize(logs: list[EpisodeLog], seed: int = 0) -> dict[str, float]:
    """The plain figures of the kinds of log that there are."""
    names = [name for name in ("drive", "replay") if any(log.kind == name for log in logs)]
    metrics = [metric for name in names for metric in PROTOCOLS[name].names]
    rows = [None if log.error else episode_figures(log, names) for log in logs]
    return summarize_rows(rows, metrics, seed)


def straight(frames: int, step_m: float = 2.5) -> np.ndarray:
    return np.stack([step_m * np.arange(frames), np.zeros(frames)], axis=1)


def plan_errors_twin(plan_time_s, plan_xy, truth_time_s, truth_xy) -> list[float]:
    """The definition, one step and one coordinate at a time."""

    def at(times, values, when):
        for k in range(len(times) - 1):
            if times[k] <= when <= times[k + 1]:
                return values[k] + (values[k + 1] - values[k]) * (when - times[k]) / (times[k + 1] - times[k])
        return float("nan")

    errors = []
    for k in range(1, 7):
        dx, dy = (at(plan_time_s, plan_xy[:, c], k / 2) - at(truth_time_s, truth_xy[:, c], k / 2) for c in (0, 1))
        errors.append((dx * dx + dy * dy) ** 0.5)
    return errors


@FEW
@given(st.integers(0, 2**32 - 1))
def test_plan_errors_agree_with_the_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    plan_time_s, truth_time_s = (np.cumsum(rng.uniform(0.05, 0.6, 9)) for _ in range(2))
    plan_xy, truth_xy = rng.normal(0, 9, (2, 9, 2))
    distance, valid = plan_errors(plan_time_s, plan_xy, truth_time_s, truth_xy)
    twin = plan_errors_twin(plan_time_s, plan_xy, truth_time_s, truth_xy)
    assert np.allclose(distance, twin, atol=1e-9, equal_nan=True)
    assert np.array_equal(valid, ~np.isnan(twin))


def test_plan_errors_are_those_of_the_official_devkit() -> None:
    devkit = pytest.importorskip("nuscenes.eval.prediction.metrics")
    plan, truth = np.random.default_rng(2).normal(0, 9, (2, 6, 2))
    distance, _ = plan_errors(HALF_S, plan, HALF_S, truth)
    one_mode = plan[None, None], truth[None, None], np.ones((1, 1))
    assert distance.mean() == pytest.approx(float(devkit.min_ade_k(*one_mode)[0, 0]), abs=1e-12)
    assert distance[-1] == pytest.approx(float(devkit.min_fde_k(*one_mode)[0, 0]), abs=1e-12)


@FEW
@given(st.floats(-3, 3), st.floats(-500, 500), st.floats(-500, 500))
def test_plan_errors_do_not_see_a_rigid_motion(yaw: float, x: float, y: float) -> None:
    rng = np.random.default_rng(1)
    plan, truth = rng.normal(0, 9, (2, 7, 2))
    time_s = np.arange(7) * 0.5
    R = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    before, _ = plan_errors(time_s, plan, time_s, truth)
    after, _ = plan_errors(time_s, plan @ R.T + (x, y), time_s, truth @ R.T + (x, y))
    assert np.allclose(before, after, atol=1e-9)


def test_plan_errors_of_float_steps_reach_three_seconds() -> None:
    time_s = np.cumsum(np.full(30, 0.1))  # 2.9999999999999996 at the end
    assert time_s[-1] != 3.0
    _, valid = plan_errors(time_s, np.zeros((30, 2)), time_s, np.zeros((30, 2)))
    assert valid.all()


def test_plan_errors_do_not_extrapolate() -> None:
    distance, valid = plan_errors(HALF_S[:4], np.zeros((4, 2)), np.arange(7) * 0.5, np.ones((7, 2)))
    assert valid.tolist() == [True] * 4 + [False] * 2
    assert np.allclose(distance[:4], np.sqrt(2))
    assert not plan_errors(np.zeros(0), np.zeros((0, 2)), HALF_S, np.zeros((6, 2)))[1].any()


def test_open_loop_of_a_known_error() -> None:
    log = replay(straight(10), error_m=1.5)
    errors, valid = keyframe_errors(log)
    assert valid
    assert errors.shape == (4, 6)  # frames 0..3 have 3 s ahead of them
    for metric in (ade_3s_m, fde_3s_m, ade_1s_m):
        value, valid = metric(log)
        assert valid
        assert value == pytest.approx(1.5)


def test_open_loop_of_a_growing_error() -> None:
    recorder, time_s = EpisodeRecorder("r", "replay", "p", 0), np.arange(8) * 0.5
    for k in range(8):
        recorder.frame(round(time_s[k] * 1e6), (0, 0, 0), 0.0)
        recorder.plan(HALF_S, np.stack([HALF_S, 0 * HALF_S, 0 * HALF_S], axis=1))  # off by 1 m a second
    log = recorder.finish("end of log")
    assert ade_3s_m(log) == (pytest.approx(1.75), True)
    assert fde_3s_m(log) == (pytest.approx(3.0), True)
    assert ade_1s_m(log) == (pytest.approx(0.75), True)


def test_open_loop_interpolates_jittered_keyframes() -> None:
    """Constant speed, uneven keyframes: an exact plan has no error, which index-by-index comparison would not give."""
    times_us = np.cumsum([0, 500_435, 399_259, 550_202, 498_372, 599_961, 400_343, 500_988, 499_311])
    recorder = EpisodeRecorder("r", "replay", "p", 0)
    for at in times_us:
        recorder.frame(int(at), (at * 8e-6, 0, 0), 8.0)
        recorder.plan(HALF_S, np.stack([at * 8e-6 + 8 * HALF_S, 0 * HALF_S, 0 * HALF_S], axis=1))
    value, valid = ade_3s_m(recorder.finish("end of log"))
    assert valid
    assert value == pytest.approx(0, abs=1e-9)


def test_open_loop_is_not_valid_without_a_full_future_or_a_full_plan() -> None:
    assert ade_3s_m(replay(straight(7)))[1]
    assert not ade_3s_m(replay(straight(6)))[1]  # 2.5 s
    assert not ade_3s_m(replay(straight(10), plan_end=5))[1]
    assert not ade_3s_m(drive(np.full(60, 5.0)))[1]


def test_driving_figures_of_a_known_drive() -> None:
    log = drive(np.full(31, 8.0), {12: "off_road", 20: "collision"})
    assert time_on_course_s(log) == (pytest.approx(1.2), True)
    assert distance_m(log) == (pytest.approx(24.0), True)
    assert mean_speed_mps(log) == (pytest.approx(8.0), True)
    assert (collided(log), left_road(log)) == ((1.0, True), (1.0, True))
    clean = drive(np.full(31, 8.0))
    assert time_on_course_s(clean) == (pytest.approx(3.0), True)
    assert (collided(clean), left_road(clean)) == ((0.0, True), (0.0, True))


def test_accel_and_jerk_of_a_ramp() -> None:
    ramp = drive(np.concatenate([np.full(5, 3.0), 3.0 + 0.2 * np.arange(1, 6)]))
    assert max_abs_accel_mps2(ramp) == (pytest.approx(2.0), True)
    assert max_abs_jerk_mps3(ramp) == (pytest.approx(20.0), True)


def test_driving_figures_are_not_valid_where_the_log_has_too_little() -> None:
    short, none = drive(np.ones(1)), drive(np.ones(0))
    assert time_on_course_s(short) == (0.0, True)
    assert not mean_speed_mps(short)[1]
    assert not max_abs_accel_mps2(short)[1]
    assert not max_abs_jerk_mps3(drive(np.ones(2)))[1]
    for metric in (time_on_course_s, distance_m, collided, left_road, mean_speed_mps):
        assert not metric(none)[1]
        assert not metric(replay(straight(3)))[1]


def test_summary_counts_failures_and_averages_none() -> None:
    good = [drive(np.full(11, 8.0)), drive(np.full(21, 8.0), {10: "collision"})]
    failed = drive(np.full(501, 8.0), error="ValueError: x")
    flat = summarize([*good, failed])
    assert (flat["n_episodes"], flat["n_failed"], flat["time_on_course_s.n"]) == (3, 1, 2)
    assert flat["time_on_course_s"] == pytest.approx(1.0)
    assert flat["distance_m"] == pytest.approx(12.0)
    assert flat["collision_rate"] == 0.5
    assert {key: value for key, value in flat.items() if key != "n_episodes" and key != "n_failed"} == {
        key: value for key, value in summarize(good).items() if key != "n_episodes" and key != "n_failed"
    }


def test_summary_of_nothing_has_no_mean() -> None:
    assert summarize([]) == {"n_episodes": 0, "n_failed": 0}
    flat = summarize([drive(np.ones(5), error="x")])
    assert flat["distance_m.n"] == 0
    assert "distance_m" not in flat
    assert flat["n_failed"] == 1


def test_summary_weighs_open_loop_by_keyframes() -> None:
    one, many = replay(straight(7), error_m=4.0), replay(straight(9), error_m=0.0)  # 1 and 3 keyframes
    flat = summarize([one, many])
    assert (flat["n_keyframes"], flat["ade_3s_m.n"]) == (4, 2)
    assert flat["ade_3s_m"] == pytest.approx(1.0)
    other = summarize([replay(straight(7)), replay(straight(9), error_m=4.0)])
    assert other["ade_3s_m"] == pytest.approx(3.0)
    assert (other["ade_3s_m.ci95_low"], other["ade_3s_m.ci95_high"]) == pytest.approx((0.0, 4.0))  # either one twice


def test_interval_is_the_bootstrap_and_repeats() -> None:
    speeds = np.random.default_rng(3).uniform(2, 12, 40)
    logs = [drive(np.full(11, speed)) for speed in speeds]
    flat = summarize(logs)
    assert flat == summarize(logs)
    low, mean, high = (flat[f"mean_speed_mps{end}"] for end in (".ci95_low", "", ".ci95_high"))
    assert mean == pytest.approx(speeds.mean())
    normal = 1.96 * speeds.std(ddof=1) / np.sqrt(40)  # of a mean of 40, the bootstrap is close to the normal interval
    assert mean - low == pytest.approx(normal, rel=0.15)
    assert high - mean == pytest.approx(normal, rel=0.15)
    assert summarize(logs, seed=1)["mean_speed_mps.ci95_low"] != low


def test_the_interval_of_one_episode_has_no_width() -> None:
    flat = summarize([drive(np.full(11, 5.0))])
    assert flat["distance_m.n"] == 1
    assert flat["distance_m.ci95_low"] == flat["distance_m"] == flat["distance_m.ci95_high"] == pytest.approx(5.0)


def test_renaming_the_episode_changes_nothing() -> None:
    log = drive(np.full(11, 5.0), {3: "collision"})
    assert summarize([log]) == summarize([replace(log, name="other", policy="q", seed=9)])
