"""Open loop: the plan made at an instant against where the ego really was afterwards.

    d_k = |plan(k 0.5 s) - truth(k 0.5 s)|,  k = 1..6        ade_T = mean of d over (0, T],  fde_T = d at T

Both tracks are interpolated linearly at exact 0.5 s steps, so that jitter of the keyframes does not enter. Each metric
is the mean over every keyframe with a full 3 s future inside the log. This is none of the published nuScenes
conventions, which differ among themselves.
"""

import numpy as np

from sim.rollout_log import EpisodeLog

STEPS_S = np.arange(1, 7) * 0.5
TOLERANCE_S = 1e-6  # time stamps are whole microseconds; plan times are floating-point multiples of a step


def plan_errors(
    plan_time_s: np.ndarray, plan_xy_m: np.ndarray, truth_time_s: np.ndarray, truth_xy_m: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distances float64 [6] in m at 0.5, 1.0, ... 3.0 s after the plan was made, and which bool [6] are valid.

    plan_time_s [K], plan_xy_m [K, 2] and truth_time_s [M], truth_xy_m [M, 2]: one clock whose zero is the instant of
    the plan, one frame. A step that either track does not span is not valid (NaN); nothing is extrapolated.
    """
    plan, plan_valid = _at_steps(plan_time_s, plan_xy_m)
    truth, truth_valid = _at_steps(truth_time_s, truth_xy_m)
    valid = plan_valid & truth_valid
    return np.where(valid, np.hypot(*(plan - truth).T), np.nan), valid


def keyframe_errors(log: EpisodeLog) -> tuple[np.ndarray, bool]:
    """Distances float64 [M, 6] of the M keyframes with a full 3 s future, and whether there are any.

    Not valid either where one of these keyframes has no plan over 3 s: a mean over the rest would hide the failure.
    """
    if log.kind != "replay":
        return np.zeros((0, 6)), False
    errors = []
    for frame in range(len(log)):
        truth_time_s = (log.time_us - log.time_us[frame]) / 1e6
        if truth_time_s[-1] < STEPS_S[-1] - TOLERANCE_S:
            break
        plan_time_s, plan_xyyaw = log.plan_at(frame)
        distance_m, valid = plan_errors(
            plan_time_s, plan_xyyaw[:, :2], truth_time_s[frame:], log.ego_xyyaw_in_world[frame:, :2]
        )
        if not valid.all():
            return np.zeros((0, 6)), False
        errors.append(distance_m)
    return np.reshape(errors, (-1, 6)), bool(errors)


def ade_3s_m(log: EpisodeLog) -> tuple[float, bool]:
    """Mean distance over 0.5 .. 3 s, mean over keyframes."""
    return _mean(log, slice(None))


def fde_3s_m(log: EpisodeLog) -> tuple[float, bool]:
    """Distance at 3 s, mean over keyframes."""
    return _mean(log, slice(5, 6))


def ade_1s_m(log: EpisodeLog) -> tuple[float, bool]:
    """Mean distance over 0.5 .. 1 s, mean over the same keyframes as the 3 s metrics."""
    return _mean(log, slice(2))


def _mean(log: EpisodeLog, steps: slice) -> tuple[float, bool]:
    errors, valid = keyframe_errors(log)
    return (float(errors[:, steps].mean()), True) if valid else (float("nan"), False)


def _at_steps(time_s: np.ndarray, xy_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(time_s):
        return np.full((len(STEPS_S), 2), np.nan), np.zeros(len(STEPS_S), bool)
    first_s, last_s = time_s[0] - TOLERANCE_S, time_s[-1] + TOLERANCE_S
    valid = (first_s <= STEPS_S) & (last_s >= STEPS_S)
    return np.stack([np.interp(STEPS_S, time_s, xy_m[:, c]) for c in (0, 1)], axis=1), valid
