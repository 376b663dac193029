"""The simulated trajectory behind PDMS and EPDMS: LQR tracker, kinematic bicycle, comfort.

A plan is not scored as drawn but as a car would drive it. Letters: P proposals, K = M + 1 states 0.1 s apart (41 for
4 s), C columns of a state.

    reference [P, K, 3] --profiles--> v, curvature [P, M] --LQR--> (a_cmd, steering rate) --bicycle--> states [P, K, 7]

A state is (x, y, heading, vx, ax, steer, yaw_rate) of the rear axle: m, m, rad, m/s, m/s2, rad, rad/s. A recorded
one may have an eighth column, the measured lateral acceleration ay, which only compat reads.

`variant` is "compat" (NAVSIM to the last digit, its faults included) or "strict" (what physics says):

    what                 compat                                         strict
    reference velocity   accelerations are penalised                    their differences (jerk) are, as in nuPlan
    centre acceleration  (ax + d (w^2 + w'), 0), d rear axle to centre  (ax - d w^2, v w + d w')
    history comfort      14 or 15 past samples, as the time stamps jitter  every 0.1 s back from the present

Source: NAVSIM v2.2, `pdm_planner/simulation/*` and `scoring/pdm_comfort_metrics.py`.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sensors.errors import InputError
from sensors.frames import wrap

DT_S = 0.1
X, Y, HEADING, VX, AX, STEER, YAW_RATE, AY = range(8)  # AY only in recorded states: a simulated one has none
COMFORT = ("lon_acc", "lat_acc", "jerk", "lon_jerk", "yaw_acc", "yaw_rate")
COMFORT_BOUNDS = {  # open intervals: m/s2, m/s2, m/s3, m/s3, rad/s2, rad/s
    "lon_acc": (-4.05, 2.40),
    "lat_acc": (-4.89, 4.89),
    "jerk": (-8.37, 8.37),
    "lon_jerk": (-4.13, 4.13),
    "yaw_acc": (-1.93, 1.93),
    "yaw_rate": (-0.95, 0.95),
}
EXTENDED_COMFORT_LIMITS = {"acc": 0.7, "jerk": 0.5, "yaw_rate": 0.1, "yaw_acc": 0.1}  # RMS between two plans

_HORIZON = 10  # tracker look-ahead, steps
_JERK_PENALTY, _CURVATURE_RATE_PENALTY, _CURVATURE_PENALTY = 1e-4, 1e-2, 1e-10
_STOP_SPEED_MPS, _STOP_GAIN = 0.2, 0.5
_ACCEL_LAG_S, _STEER_LAG_S, _MAX_STEER_RAD = 0.2, 0.05, np.pi / 3


@dataclass(frozen=True)
class Footprint:
    """The scored vehicle, in metres; the state is at the rear axle, `centre_ahead_m` behind the centre of the box."""

    length_m: float
    width_m: float
    wheelbase_m: float
    centre_ahead_m: float


PACIFICA = Footprint(length_m=5.176, width_m=2.297, wheelbase_m=3.089, centre_ahead_m=1.461)


def check_variant(variant: str) -> None:
    """InputError unless `variant` is "compat" or "strict"."""
    if variant not in ("compat", "strict"):
        raise InputError("score", "variant", repr(variant), "'compat' or 'strict'")


def finite(where: str, field: str, value: object, expected: str, *shape: int | None) -> np.ndarray:
    """`value`, lists too, as float64 of a shape [..., *shape] (None: any size), or an InputError: never NaN."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(where, field, f"{type(value).__name__} of no single shape of numbers", expected) from None
    tail = array.shape[array.ndim - len(shape) :] if array.ndim >= len(shape) else None
    if tail is None or any(n is not None and n != m for n, m in zip(shape, tail, strict=True)):
        raise InputError(where, field, f"shape {array.shape}", expected)
    if not np.isfinite(array).all():
        raise InputError(where, field, "NaN or infinity", expected)
    return array


def resample_plan(plan_xyh: np.ndarray, plan_time_s: np.ndarray, at_s: np.ndarray | None = None) -> np.ndarray:
    """Reference poses [..., K, 3] at `at_s` (0, 0.1, ..., 4.0) of a plan [..., Q, 3] at increasing times [Q].

    The plan starts with the present pose. Positions are linear in time, headings linear along the shorter turn; a
    plan that ends before 4 s is an InputError, it is never prolonged.
    """
    at_s = np.arange(41) * DT_S if at_s is None else at_s
    if plan_time_s[0] > at_s[0] + 1e-9 or plan_time_s[-1] < at_s[-1] - 1e-9:
        covered = f"[{plan_time_s[0]}, {plan_time_s[-1]}] s"
        raise InputError("plan", "time", covered, f"a plan that covers [{at_s[0]}, {at_s[-1]}] s")
    k = np.clip(np.searchsorted(plan_time_s, at_s, side="right") - 1, 0, len(plan_time_s) - 2)
    fraction = ((at_s - plan_time_s[k]) / (plan_time_s[k + 1] - plan_time_s[k]))[:, None]
    step = plan_xyh[..., k + 1, :] - plan_xyh[..., k, :]
    step[..., 2] = wrap(step[..., 2])
    return plan_xyh[..., k, :] + fraction * step


@lru_cache(maxsize=16)
def _profile_matrices(steps: int, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """Integration matrix C [M, M] and velocity fit W [M, M] with v = W d, d the displacements along the headings.

    C maps [f_0, f'_0, ..., f'_{M-2}] to f_i = f_0 + dt sum_{j<i} f'_j. The rows of the fit, [cos; sin] (x) dt C_i,
    have orthonormal factors, so A^T A = dt^2 C^T C whatever the headings: W = C (A^T A + penalty R^T R)^-1 (dt C)^T.
    """
    integrate = np.tril(np.full((steps, steps), DT_S))
    integrate[:, 0] = 1.0
    rows = np.arange(steps - 2)
    penalised = np.zeros((steps - 2, steps))
    if variant == "strict":
        penalised[rows, rows + 1], penalised[rows, rows + 2] = -1.0, 1.0
    else:  # NAVSIM writes the lower band over the upper one; only the last row keeps its +1
        penalised[rows, rows + 1], penalised[-1, -1] = -1.0, 1.0
    A = DT_S * integrate
    fit = integrate @ np.linalg.solve(A.T @ A + _JERK_PENALTY * penalised.T @ penalised, A.T)
    integrate.setflags(write=False)
    fit.setflags(write=False)
    return integrate, fit


def reference_profiles(reference_xyh: np.ndarray, variant: str = "compat") -> tuple[np.ndarray, np.ndarray]:
    """Velocity and curvature [P, M] (m/s, 1/m) that explain the displacements of reference poses [P, M + 1, 3].

    Velocity: min |y - A x|^2 + 1e-4 |R x|^2 over x = [v_0, a_0, ...]; curvature: min |wrap(dheading) - A x|^2 +
    x^T Q x over x = [k_0, k'_0, ...] with A = diag(v) dt C and Q = diag(1e-10, 1e-2, ...).
    """
    step = np.diff(reference_xyh, axis=1)
    heading = reference_xyh[:, :-1, 2]
    integrate, fit = _profile_matrices(step.shape[1], variant)
    v = (np.cos(heading) * step[..., 0] + np.sin(heading) * step[..., 1]) @ fit.T
    A = v[:, :, None] * (DT_S * integrate)
    penalty = np.full(step.shape[1], _CURVATURE_RATE_PENALTY)
    penalty[0] = _CURVATURE_PENALTY
    A_T = np.swapaxes(A, 1, 2)
    x = np.linalg.solve(A_T @ A + np.diag(penalty), A_T @ wrap(step[..., 2])[..., None])
    return v, x[..., 0] @ integrate.T


def _steering_rate(v, accel, lateral_m, heading_error_rad, steer, curvature, wheelbase_m):
    """One-step LQR over the look-ahead: rate [P] that minimises |e_N|^2_Q + u^2, Q = diag(1, 10, 0).

    e_y' = v e_h, e_h' = v (steer / L - curvature), steer' = u (Euler, v_i = v + i dt a); the recursion is unrolled:
    e_h,i = e_h + sum_{j<i} w_j (steer / L - curvature_j), e_y,N = e_y + sum_i w_i e_h,i, with w_i = v_i dt.
    """
    i_dt = np.arange(_HORIZON) * DT_S
    w = (v[:, None] + i_dt * accel[:, None]) * DT_S
    turned = np.cumsum(w * (steer[:, None] / wheelbase_m - curvature), axis=1)
    response = np.cumsum(w * (i_dt / wheelbase_m), axis=1)  # of the heading error to u = 1
    later = w[:, 1:]
    e_y = lateral_m + heading_error_rad * w.sum(axis=1) + (later * turned[:, :-1]).sum(axis=1)
    e_h = wrap(heading_error_rad + turned[:, -1])
    b_y, b_h = (later * response[:, :-1]).sum(axis=1), response[:, -1]
    return -(b_y * e_y + 10.0 * b_h * e_h) / (b_y * b_y + 10.0 * b_h * b_h + 1.0)


def rollout(
    reference_xyh: np.ndarray,
    v0_mps: float | np.ndarray,
    *,
    initial: np.ndarray | None = None,
    variant: str = "compat",
    vehicle: Footprint = PACIFICA,
) -> np.ndarray:
    """States [K, 7] or [P, K, 7] of the car that tracks reference poses [K, 3] or [P, K, 3], 0.1 s apart.

    It starts on the first pose at `v0_mps` (scalar or [P]), wheels straight and without acceleration, or at `initial`
    ([7] or [P, 7], which then also holds the speed). Headings come out in [-pi, pi).
    """
    check_variant(variant)
    reference = finite("rollout", "reference", reference_xyh, "poses [K, 3] or [P, K, 3] with K >= 4", None, 3)
    if reference.ndim not in (2, 3) or reference.shape[-2] < 4:
        raise InputError("rollout", "reference", f"shape {reference.shape}", "[K, 3] or [P, K, 3] with K >= 4")
    batch = reference.reshape(-1, *reference.shape[-2:])
    count, samples = batch.shape[:2]
    v_ref, curvature = reference_profiles(batch, variant)
    curvature = np.concatenate([curvature, np.repeat(curvature[:, -1:], _HORIZON, axis=1)], axis=1)
    states = np.zeros((count, samples, 7))
    speed = finite("rollout", "v0_mps", v0_mps, f"one speed, or one for each of {count} references")
    if speed.ndim > 1 or speed.size not in (1, count):
        raise InputError("rollout", "v0_mps", f"shape {speed.shape}", f"one speed, or [{count}]")
    states[:, 0, :3], states[:, 0, VX] = batch[:, 0], speed
    if initial is not None:
        states[:, 0] = finite("rollout", "initial", initial, f"a state [7], or [{count}, 7]", 7)
    cos_ref, sin_ref = np.cos(batch[..., 2]), np.sin(batch[..., 2])
    x, y, heading, v, a, steer, _ = np.moveaxis(states[:, 0].copy(), -1, 0)
    for k in range(samples - 1):
        target = v_ref[:, min(k + _HORIZON, samples - 2)]
        stop = (target <= _STOP_SPEED_MPS) & (v <= _STOP_SPEED_MPS)
        a_cmd = np.where(stop, -_STOP_GAIN, -10.0 / 11.0) * (v - target)  # B q / (B^2 q + r), B = N dt = 1
        lateral = (y - batch[:, k, 1]) * cos_ref[:, k] - (x - batch[:, k, 0]) * sin_ref[:, k]
        bend = curvature[:, k : k + _HORIZON]
        rate = _steering_rate(v, a_cmd, lateral, wrap(heading - batch[:, k, 2]), steer, bend, vehicle.wheelbase_m)
        a = a + DT_S / (DT_S + _ACCEL_LAG_S) * (a_cmd - a)
        x, y = x + v * np.cos(heading) * DT_S, y + v * np.sin(heading) * DT_S
        heading = wrap(heading + v * np.tan(steer) / vehicle.wheelbase_m * DT_S)
        steer = steer + DT_S / (DT_S + _STEER_LAG_S) * np.where(stop, 0.0, rate) * DT_S
        v, steer = v + a * DT_S, np.clip(steer, -_MAX_STEER_RAD, _MAX_STEER_RAD)
        yaw_rate = v * np.tan(steer) / vehicle.wheelbase_m
        states[:, k + 1] = np.stack([x, y, heading, v, a, steer, yaw_rate], axis=-1)
    return states.reshape(*reference.shape[:-1], 7)


@lru_cache(maxsize=64)
def savgol_matrix(samples: int, window: int, order: int, derivative: int = 0, step: float = 1.0) -> np.ndarray:
    """Savitzky-Golay filter as a matrix S [n, n]: S y is scipy's savgol_filter(y, ..., mode="interp").

    Row i is the least-squares polynomial of the window around i, evaluated (or differentiated) at i; an even window
    reaches one sample further ahead and is evaluated half a sample late; at both ends the outermost full window is
    used. ValueError if the window is longer than the series or not longer than the order.
    """
    if not order < window <= samples:
        raise ValueError(f"window {window} must exceed the order {order} and fit into {samples} samples")
    half = window // 2
    offsets = np.arange(window) - (window - 1) / 2  # centred, so that the fit is well conditioned
    fit = np.linalg.pinv(offsets[:, None] ** np.arange(order + 1))  # [order + 1, window]: window -> coefficients
    powers = np.arange(derivative, order + 1)
    factor = np.array([np.prod(np.arange(p - derivative + 1, p + 1)) for p in powers]) / step**derivative
    matrix = np.zeros((samples, samples))
    for i in range(samples):
        if i < half:
            start, at = 0, i - (window - 1) / 2
        elif i >= samples - half:
            start, at = samples - window, i - (samples - window) - (window - 1) / 2
        else:
            start, at = i - (window - 1) // 2, 0.0
        matrix[i, start : start + window] = (factor * at ** (powers - derivative)) @ fit[powers]
    matrix.setflags(write=False)
    return matrix


def _smooth(values: np.ndarray, window: int, order: int, derivative: int = 0) -> np.ndarray:
    """Filtered series [..., K], rounded to 8 decimals as the reference does before it compares."""
    samples = values.shape[-1]
    matrix = savgol_matrix(samples, min(window, samples), order, derivative, DT_S)
    return np.round(values @ matrix.T, 8)


def _unwrapped(heading: np.ndarray) -> np.ndarray:
    turns = np.cumsum(np.round(np.diff(heading, axis=-1) / (2 * np.pi)), axis=-1)
    return heading - 2 * np.pi * np.concatenate([np.zeros((*heading.shape[:-1], 1)), turns], axis=-1)


def accelerations(
    states: np.ndarray, variant: str = "compat", at: str = "centre", vehicle: Footprint = PACIFICA
) -> tuple[np.ndarray, np.ndarray]:
    """Longitudinal and lateral acceleration [..., K], m/s2, not smoothed, `at` the "centre" or the "rear_axle".

    strict: a rigid body that does not slip, rear axle (ax, v w), centre (ax - d w^2, v w + d w'). compat: the rear
    axle has no lateral part unless recorded, and the shift to the centre is (d (w^2 + w'), 0), nuPlan's
    `get_acceleration_shifted`.
    """
    ax, yaw_rate = states[..., AX], states[..., YAW_RATE]
    d = {"centre": vehicle.centre_ahead_m, "rear_axle": 0.0}[at]
    if variant == "strict":
        yaw_acc = np.gradient(yaw_rate, DT_S, axis=-1)
        return ax - d * yaw_rate**2, states[..., VX] * yaw_rate + d * yaw_acc
    ay = states[..., AY] if states.shape[-1] > AY else np.zeros_like(ax)
    yaw_acc = np.zeros_like(yaw_rate)  # the bicycle starts with none and then takes backward differences
    yaw_acc[..., 1:] = np.diff(yaw_rate, axis=-1) / DT_S
    return ax + d * (yaw_rate**2 + yaw_acc), ay


def comfort_signals(states: np.ndarray, variant: str = "compat", at: str = "centre") -> dict[str, np.ndarray]:
    """The six smoothed series [..., K] that `comfort` holds against COMFORT_BOUNDS; K >= 4, else an InputError."""
    check_variant(variant)
    expected = "states [..., K, 7], or 8 with a lateral acceleration, K >= 4"
    states = finite("comfort", "states", states, expected, None, None)
    if states.shape[-1] not in (7, 8) or states.shape[-2] < 4:
        raise InputError("comfort", "states", f"shape {states.shape}", expected)
    lon, lat = accelerations(states, variant, at)
    magnitude = np.hypot(*accelerations(states, variant, "rear_axle"))
    heading = _unwrapped(states[..., HEADING])
    lon = _smooth(lon, 8, 2)
    return {
        "lon_acc": lon,
        "lat_acc": _smooth(lat, 8, 2),
        "jerk": _smooth(_smooth(magnitude, 8, 2), 15, 2, 1),
        "lon_jerk": _smooth(lon, 15, 2, 1),
        "yaw_acc": _smooth(heading, 5, 3, 2),
        "yaw_rate": _smooth(heading, 5, 2, 1),
    }


def comfort(states: np.ndarray, variant: str = "compat", at: str = "centre") -> dict[str, np.ndarray | bool]:
    """Six named booleans (bool, or bool [P] for states [P, K, 7]): every sample lies strictly inside its bounds.

    `at` is where longitudinal and lateral acceleration are taken: "centre" in EPDMS, "rear_axle" in PDMS.
    """
    inside = {}
    for name, series in comfort_signals(states, variant, at).items():
        low, high = COMFORT_BOUNDS[name]
        ok = ((series > low) & (series < high)).all(axis=-1)
        inside[name] = bool(ok) if ok.ndim == 0 else ok
    return inside


def resample_history(time_us: np.ndarray, states: np.ndarray, variant: str = "compat") -> np.ndarray:
    """Past states [H', C] 0.1 s apart from recorded ones [H, C] at int64 times [H]; the last is the present.

    compat: arange(start, end, 0.1 s) without its last sample, whatever the distance that leaves to the present.
    strict: present - 0.1 s, - 0.2 s, ... back to the start, so that they continue the simulated states evenly.
    """
    check_variant(variant)
    start, end = int(time_us[0]), int(time_us[-1])
    if len(time_us) < 2 or (np.diff(time_us) <= 0).any():
        raise InputError("history", "time", time_us, "at least two states at increasing times")
    step = 100_000
    at_us = np.arange(start, end, step)[:-1] if variant == "compat" else np.arange(end - step, start - 1, -step)[::-1]
    recorded = np.array(states, dtype=np.float64)
    recorded[:, HEADING] = np.unwrap(recorded[:, HEADING])
    columns = [np.interp(at_us - start, time_us - start, column) for column in recorded.T]
    return np.stack(columns, axis=-1)


def history_comfort(
    states: np.ndarray, history_time_us: np.ndarray | None, history: np.ndarray | None, variant: str = "compat"
) -> tuple[np.ndarray, np.ndarray]:
    """HC (value, valid) [P] of states [P, K, 7] behind the recorded past; not available without one."""
    if history is None or history_time_us is None:
        return np.full(len(states), np.nan), np.zeros(len(states), dtype=bool)
    past = resample_history(history_time_us, history, variant)
    padded = np.zeros((len(states), len(past) + states.shape[1], past.shape[1]))
    padded[:, : len(past)] = past
    padded[:, len(past) :, : states.shape[-1]] = states
    value = np.all(list(comfort(padded, variant).values()), axis=0)
    return value.astype(np.float64), np.ones(len(states), dtype=bool)


def extended_comfort(
    states: np.ndarray, earlier: np.ndarray, apart_s: float, variant: str = "compat"
) -> tuple[float, bool]:
    """EC (value, valid): states [K, 7] of this plan against those of the plan `apart_s` ago, where they overlap.

    1 if the RMS differences of acceleration magnitude, its jerk, yaw rate and yaw acceleration are all within
    EXTENDED_COMFORT_LIMITS; not available unless 0 < apart_s < 0.55 s.
    """
    check_variant(variant)
    shift = round(apart_s / DT_S)
    if not 0.0 < apart_s < 0.55 or shift < 1:
        return float("nan"), False
    series = []
    for overlap in (states[:-shift], earlier[shift:]):
        acc = _smooth(np.hypot(*accelerations(overlap, variant, "rear_axle")), 8, 2)
        heading = _unwrapped(overlap[..., HEADING])
        series.append((acc, _smooth(acc, 15, 2, 1), _smooth(heading, 5, 2, 1), _smooth(heading, 5, 2, 2)))
    rms = [float(np.sqrt(np.mean((a - b) ** 2))) for a, b in zip(*series, strict=True)]
    return float(all(r <= limit for r, limit in zip(rms, EXTENDED_COMFORT_LIMITS.values(), strict=True))), True
