"""What a car did after a fault, and whether that was safe. No ROS in here."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STANDS_MPS = 0.1
LESS_SLOW_MPS = 0.3  # a car that stops or goes slowly may be faster by this for a moment
REACTS_S = 0.5  # until the brakes act, by the latest


@dataclass(frozen=True)
class Tick:
    """One tick of control as it was heard: when (steady, s), its state and cause, ages of what it was made from."""

    at_s: float
    state: str
    cause: str
    moving: bool
    plan_age_ms: float
    odometry_age_ms: float


@dataclass(frozen=True)
class Limits:
    """What a drive after a fault is held against; decelerations are the least."""

    detect_s: float
    stop_mps2: float
    plan_age_ms: float
    odometry_age_ms: float
    slow_mps: float


@dataclass(frozen=True)
class Verdict:
    """detect_s: until control, or the car itself, reacted; NaN where nothing did. unsafe: what went wrong, in words."""

    detect_s: float
    stop_s: float
    state: str
    cause: str
    unsafe: tuple[str, ...]


def judge(
    at_s: float,
    ticks: Sequence[Tick],
    times_s: np.ndarray,
    speeds_mps: np.ndarray,
    limits: Limits,
    may: Sequence[str],
    words: Sequence[str],
    said: Sequence[str],
) -> Verdict:
    """The verdict on a fault at `at_s`; everything handed over is what came from then on.

    may: of "stop", "slow" and "go on", what the car may do. words: one of them must be in `said`, all that control and
    diagnostics said.
    """
    unsafe = []
    for tick in ticks:
        if tick.moving and (tick.plan_age_ms > limits.plan_age_ms or tick.odometry_age_ms > limits.odometry_age_ms):
            unsafe.append(f"moved on a plan {tick.plan_age_ms:.0f} ms, a pose {tick.odometry_age_ms:.0f} ms old")
            break
    reacted = [tick for tick in ticks if tick.state != "OK"]
    first_s = float(speeds_mps[0]) if len(speeds_mps) else float("nan")
    brakes = times_s[speeds_mps < first_s - 0.25]  # the car's own gateway, where control itself is silent
    detect_s = min([tick.at_s for tick in reacted[:1]] + brakes[:1].tolist(), default=float("nan")) - at_s
    detect_s = max(detect_s, 0.0) if np.isfinite(detect_s) else detect_s
    stands = np.flatnonzero(speeds_mps < STANDS_MPS)
    stop_s = float(times_s[stands[0]]) - at_s if len(stands) else float("nan")
    state, cause = (reacted[0].state, reacted[0].cause) if reacted else ("OK", "")
    if not np.isfinite(detect_s):
        if "go on" not in may:
            unsafe.append("nothing reacted")
    else:
        if detect_s > limits.detect_s and "go on" not in may:
            unsafe.append(f"noticed after {detect_s:.2f} s, limit {limits.detect_s:.2f} s")
        unsafe += _motion(at_s + detect_s, times_s, speeds_mps, limits, may, stop_s)
        if words and not any(word in text for word in words for text in said):
            unsafe.append(f"nobody named the cause: {' or '.join(words)}")
    return Verdict(detect_s, stop_s, state, cause, tuple(unsafe))


def _motion(
    from_s: float, times_s: np.ndarray, speeds_mps: np.ndarray, limits: Limits, may: Sequence[str], stop_s: float
) -> list[str]:
    """What is wrong with the speeds since the fault was noticed."""
    rest = speeds_mps[times_s >= from_s + REACTS_S]
    if np.isfinite(stop_s) and len(rest) and (rest - np.minimum.accumulate(rest)).max() > LESS_SLOW_MPS:
        return ["went faster again while it stopped"]
    if "go on" in may:
        return []
    if "slow" in may:  # and it may come to a stop whenever it likes
        slow_s = (speeds_mps[0] - limits.slow_mps) / limits.stop_mps2 + 2 * REACTS_S
        later = speeds_mps[times_s >= from_s + max(slow_s, REACTS_S)]
        too_fast = len(later) and later.max() > limits.slow_mps + LESS_SLOW_MPS
        return [f"went {later.max():.1f} m/s, not {limits.slow_mps:.1f} m/s"] if too_fast else []
    if not np.isfinite(stop_s):
        return ["did not stop"]
    late_s = speeds_mps[0] / limits.stop_mps2 + 2 * REACTS_S
    return [f"stood after {stop_s:.1f} s, not {late_s:.1f} s"] if stop_s > late_s else []
