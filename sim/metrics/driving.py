"""Driving: plain figures of closed-loop episodes, and the mean of a run with its interval.

Each figure is a function of one log that returns (value, valid): what a log cannot support is not valid, never 0.
"""

import numpy as np

from sim.metrics.open_loop import ade_1s_m, ade_3s_m, fde_3s_m
from sim.rollout_log import EpisodeLog

OFF_COURSE = ("collision", "off_road")


def time_on_course_s(log: EpisodeLog) -> tuple[float, bool]:
    """Time until the first collision or departure from the road, or until the episode ended."""
    if not _driven(log):
        return float("nan"), False
    frames = log.event_frame[np.isin(log.event, OFF_COURSE)]
    return float(log.time_s[frames[0] if len(frames) else -1]), True


def distance_m(log: EpisodeLog) -> tuple[float, bool]:
    """Length of the whole ego track."""
    if not _driven(log):
        return float("nan"), False
    return float(np.hypot(*np.diff(log.ego_xyyaw_in_world[:, :2], axis=0).T).sum()), True


def collided(log: EpisodeLog) -> tuple[float, bool]:
    """1 where the log has a collision, else 0; its mean is the rate."""
    return float("collision" in log.event), _driven(log)


def left_road(log: EpisodeLog) -> tuple[float, bool]:
    """1 where the ego left the road, else 0; its mean is the rate."""
    return float("off_road" in log.event), _driven(log)


def mean_speed_mps(log: EpisodeLog) -> tuple[float, bool]:
    """Distance over duration."""
    metres, valid = distance_m(log)
    if not valid or len(log) < 2:
        return float("nan"), False
    return metres / float(log.time_s[-1]), True


def max_abs_accel_mps2(log: EpisodeLog) -> tuple[float, bool]:
    """Largest magnitude of dv/dt between two frames: a plain difference, unlike nuPlan's smoothed one."""
    return _largest_derivative(log, 1)


def max_abs_jerk_mps3(log: EpisodeLog) -> tuple[float, bool]:
    """Largest magnitude of d2v/dt2 over three frames."""
    return _largest_derivative(log, 2)


METRICS = {
    "drive": {
        "time_on_course_s": time_on_course_s,
        "distance_m": distance_m,
        "collision_rate": collided,
        "off_road_rate": left_road,
        "mean_speed_mps": mean_speed_mps,
        "max_abs_accel_mps2": max_abs_accel_mps2,
        "max_abs_jerk_mps3": max_abs_jerk_mps3,
    },
    "replay": {"ade_3s_m": ade_3s_m, "fde_3s_m": fde_3s_m, "ade_1s_m": ade_1s_m},
}


def mean_with_interval(
    name: str, values: np.ndarray, weights: np.ndarray, rng: np.random.Generator, resamples: int
) -> dict[str, float]:
    """Flat: `name.n` (always), and where n > 0 `name` (the weighted mean), `name.ci95_low`, `name.ci95_high`.

    The interval is the percentile bootstrap over the values (Efron 1979). Of a single value every resample is the
    value itself: its interval has no width, which says that nothing is known of the spread.
    """
    n = len(values)
    flat: dict[str, float] = {f"{name}.n": n}
    if n:
        flat[name] = float(np.average(values, weights=weights))
    if n and resamples:
        draws = rng.integers(0, n, (resamples, n))
        means = (values * weights)[draws].sum(axis=1) / weights[draws].sum(axis=1)
        low, high = np.percentile(means, (2.5, 97.5))
        flat |= {f"{name}.ci95_low": float(low), f"{name}.ci95_high": float(high)}
    return flat


def _driven(log: EpisodeLog) -> bool:
    return log.kind == "drive" and len(log) > 0


def _largest_derivative(log: EpisodeLog, order: int) -> tuple[float, bool]:
    if not _driven(log) or len(log) <= order:
        return float("nan"), False
    values, time_s = log.speed_mps, log.time_s
    for _ in range(order):
        values, time_s = np.diff(values) / np.diff(time_s), (time_s[1:] + time_s[:-1]) / 2
    return float(np.abs(values).max()), True
