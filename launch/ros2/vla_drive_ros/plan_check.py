"""Whether a plan can be driven: model output is checked here before it is published, and again before it is followed.

Between the knots of a plan (the car now, then K instants) speeds, accelerations and the rest follow by differences:

    v_k = ds_k / dt_k         a_k = dv / dt          j_k = da / dt       ds: from knot to knot
    c_k = d(yaw_k) / ds_k     steering_k = atan(wheelbase c_k)           steering rate = d(steering) / dt

A plan's knots lie 0.5 s apart, so these are means over half a second, and the limits are those of a car that can do no
more, not those of comfort. Where the car hardly moves, its heading says nothing of curvature.

A plan that only wants to be too fast, for the car or for its own bends, is none of these: its path is good. It is
followed more slowly (`paced`):

    v_k <= min(v_max, sqrt(a_lateral / |c|) of the intervals beside)                       the bends
    v_k^2 <= v_k+1^2 + 2 b ds,  v_k+1^2 <= v_k^2 + 2 a ds                     braking before them, speeding up after
    dt_k >= ds / max((v_k-1 + v_k) / 2, sqrt(b ds) / 2)                       as long as that takes
"""

from dataclasses import dataclass

import numpy as np

from sensors.errors import InputError
from sensors.frames import wrap
from sim.vehicle import VehicleParams

MIN_STEP_M = 0.5  # between knots, for a curvature to be told from them


@dataclass(frozen=True)
class PlanLimits:
    """What no plan may exceed; accelerations along the path."""

    speed_mps: float = 20.0
    accel_mps2: float = 4.0
    braking_mps2: float = 8.0
    jerk_mps3: float = 20.0
    curvature_1pm: float = 1.1 * VehicleParams().max_curvature_1pm
    steering_rate_radps: float = 1.5


@dataclass(frozen=True)
class Pace:
    """How fast a plan is followed at most, and how gently it gets slower before a bend and faster after it."""

    speed_mps: float = 10.0
    lateral_accel_mps2: float = 3.0
    braking_mps2: float = 2.0
    accel_mps2: float = 2.5


def check_plan(time_s: np.ndarray, xyyaw: np.ndarray, now_xyyaw: np.ndarray, speed_mps: float, limits: PlanLimits):
    """An InputError that names the first limit that a plan breaks.

    time_s [K] after now; xyyaw [K, 3] and now_xyyaw [3] in one frame; speed_mps of the car now
    """
    K = len(time_s)
    for name, value, shape in (("time_s", time_s, (K,)), ("xyyaw", xyyaw, (K, 3)), ("now_xyyaw", now_xyyaw, (3,))):
        if not K or value.shape != shape or not np.isfinite(value).all():
            raise InputError("plan", name, f"shape {value.shape} or not finite", f"{shape} finite numbers with K >= 1")
    if not np.isfinite(speed_mps):
        raise InputError("plan", "speed_mps", speed_mps, "a finite number")
    dt_s = np.diff(time_s, prepend=0.0)
    if dt_s.min() <= 0:
        raise InputError("plan", "time_s", time_s, "increasing times after now")
    knots = np.concatenate([now_xyyaw[None], xyyaw])
    steps_m = np.linalg.norm(np.diff(knots[:, :2], axis=0), axis=1)
    speeds = np.concatenate([[speed_mps], steps_m / dt_s])
    # A mean over an interval is the speed in its middle.
    middles_s = np.concatenate([[0.0], time_s - dt_s / 2])
    accels = np.diff(speeds) / np.diff(middles_s)
    curvatures = _curvatures(knots, steps_m)
    steering_rad = np.arctan(VehicleParams().wheelbase_m * curvatures)
    moves = (steps_m[1:] >= MIN_STEP_M) & (steps_m[:-1] >= MIN_STEP_M)
    rates = np.where(moves, np.diff(steering_rad) / np.diff(middles_s[1:]), 0.0)
    jerks = np.diff(accels) / np.diff(middles_s)[1:]
    for name, values, low, high in (
        ("speed, m/s", speeds[1:], 0.0, limits.speed_mps),
        ("acceleration, m/s2", accels, -limits.braking_mps2, limits.accel_mps2),
        ("jerk, m/s3", jerks, *_both(limits.jerk_mps3)),
        ("curvature, 1/m", curvatures, *_both(limits.curvature_1pm)),
        ("steering rate, rad/s", rates, *_both(limits.steering_rate_radps)),
    ):
        beyond = np.flatnonzero((values < low) | (values > high))
        if len(beyond):
            came = f"{values[beyond[0]]:.2f} at {time_s[min(beyond[0], K - 1)]:.1f} s"
            raise InputError("plan", name, came, f"{low:.2f} to {high:.2f}")


def paced(
    time_s: np.ndarray, xyyaw: np.ndarray, speeds_mps: np.ndarray, now_xyyaw: np.ndarray, speed_mps: float, pace: Pace
) -> tuple[np.ndarray, np.ndarray]:
    """(time_s [K], speeds_mps [K]) at which the path of a checked plan keeps its pace: both as they came where it did.

    speeds_mps [K] at its knots, speed_mps of the car now, which braking alone can change: where it is too fast already
    the first interval asks for more than braking_mps2, and the car brakes as hard as it may.
    """
    knots = np.concatenate([now_xyyaw[None], xyyaw])
    steps_m = np.linalg.norm(np.diff(knots[:, :2], axis=0), axis=1)
    bends = np.sqrt(pace.lateral_accel_mps2 / np.maximum(np.abs(_curvatures(knots, steps_m)), 1e-9))
    bends = np.minimum(pace.speed_mps, bends)
    caps = np.minimum(bends, np.append(bends[1:], np.inf))
    if (speeds_mps <= caps).all():
        return time_s, speeds_mps
    slower = np.append(max(speed_mps, 0.0), np.minimum(speeds_mps, caps))
    for k in range(len(time_s)):
        slower[k + 1] = min(slower[k + 1], np.sqrt(slower[k] ** 2 + 2 * pace.accel_mps2 * steps_m[k]))
    for k in range(len(time_s) - 1, 0, -1):
        slower[k] = min(slower[k], np.sqrt(slower[k + 1] ** 2 + 2 * pace.braking_mps2 * steps_m[k]))
    least = np.minimum(bends, np.sqrt(pace.braking_mps2 * steps_m)) / 2  # from a standstill to the next one
    means = np.maximum((slower[:-1] + slower[1:]) / 2, least)
    needs_s = np.divide(steps_m, means, out=np.zeros_like(means), where=means > 0)
    return np.cumsum(np.maximum(np.diff(time_s, prepend=0.0), needs_s)), slower[1:]


def _curvatures(knots: np.ndarray, steps_m: np.ndarray) -> np.ndarray:
    """Mean curvatures [K] between knots [K + 1, 3]; 0 where the car hardly moves."""
    return np.where(steps_m >= MIN_STEP_M, wrap(np.diff(knots[:, 2])) / np.maximum(steps_m, MIN_STEP_M), 0.0)


def _both(limit: float) -> tuple[float, float]:
    return -limit, limit
