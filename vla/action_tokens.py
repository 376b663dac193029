"""Plans as tokens: a path becomes (acceleration, curvature) per interval, and those become bins.

Unicycle with constant acceleration a and curvature c over an interval of dt (the car stops, it never reverses):

    s = v dt + a dt^2 / 2      (v^2 / (-2 a) if it stops on the way)        v' = max(v + a dt, 0)
    d = c s                    x' = x + s sinc(d/2) cos(yaw + d/2)          yaw' = yaw + d
                               y' = y + s sinc(d/2) sin(yaw + d/2)          sinc(z) = sin(z) / z: the chord of an arc

Bin centres are equally spaced in asinh(value / fine), so they are `fine`-scale dense at zero and coarse at the limits;
zero is always a centre, exactly, and so are both limits. A value belongs to the nearest centre; beyond the limits that
is the last one.
"""

from functools import lru_cache

import numpy as np

from sensors.errors import InputError
from vla.config import ModelConfig

SMOOTH_M = 0.05  # labels: metres of distance error that a step of 1 m/s2 between two intervals is worth
STANDSTILL_MPS = 0.1  # labels: curvature fades to zero below this speed
STANDSTILL_M = 0.05  # labels: a path with less than this left has stopped


def integrate(v0_mps, accel_mps2, curvature_1pm, dt_s: float):
    """(x, y, yaw, speed), each [..., K], at dt, 2 dt ... K dt from speed v0 [...] and controls [..., K].

    The start is the origin of the ego frame, heading along x. A negative v0 counts as zero. Exact arcs.
    """
    accel, curvature = np.broadcast_arrays(np.asarray(accel_mps2, np.float64), np.asarray(curvature_1pm, np.float64))
    speed_0 = np.broadcast_to(np.maximum(np.asarray(v0_mps, np.float64), 0.0), accel.shape[:-1])
    # The speed after k intervals is the running sum of a dt, held at zero from below.
    steps = np.concatenate([speed_0[..., None], accel * dt_s], axis=-1)
    total = np.cumsum(steps, axis=-1)
    speed = total - np.minimum(np.minimum.accumulate(total, axis=-1), 0.0)
    before, after = speed[..., :-1], speed[..., 1:]
    stops = before + accel * dt_s < 0
    braking = np.where(stops, accel, -1.0)  # -1: any divisor that is not zero where the result is not used
    arc = np.where(stops, -(before**2) / (2 * braking), (before + after) / 2 * dt_s)
    turn = curvature * arc
    yaw = np.cumsum(turn, axis=-1)
    middle = yaw - turn / 2
    chord = arc * np.sinc(turn / (2 * np.pi))
    return np.cumsum(chord * np.cos(middle), -1), np.cumsum(chord * np.sin(middle), -1), yaw, after


def bin_centres(low: float, high: float, fine: float, bins: int) -> np.ndarray:
    """float64 [bins], increasing, from `low` < 0 over an exact 0 to `high` > 0."""
    u_low, u_high = np.arcsinh(-low / fine), np.arcsinh(high / fine)
    negative = int(np.clip(round((bins - 1) * u_low / (u_low + u_high)), 1, bins - 2))
    below = -np.sinh(u_low * np.arange(negative, 0, -1) / negative) * fine
    above = np.sinh(u_high * np.arange(1, bins - negative) / (bins - 1 - negative)) * fine
    return np.concatenate([below, [0.0], above])


def unicycle_labels(xy_yaw: np.ndarray, v0_mps: float, dt_s: float) -> tuple[np.ndarray, np.ndarray]:
    """(acceleration [K], curvature [K]) that drive along poses xy_yaw [K, 3] of the ego frame at dt ... K dt.

    The inverse of `integrate`, regularised: accelerations are a least-squares fit of the distances travelled with a
    price on their change (noise in v0 or in the poses would otherwise ring through all intervals), and the curvature
    turn / arc fades to zero at a standstill, where the heading says nothing.
    """
    poses = np.asarray(xy_yaw, np.float64)
    if poses.ndim != 2 or poses.shape[1:] != (3,) or not np.isfinite(poses).all() or not np.isfinite(v0_mps):
        came = f"shape {poses.shape}, v0 = {v0_mps}"
        raise InputError("action labels", "xy_yaw, v0_mps", came, "finite poses [K, 3] and speed")
    poses = np.concatenate([np.zeros((1, 3)), poses])
    delta = np.diff(poses, axis=0)
    turn = (delta[:, 2] + np.pi) % (2 * np.pi) - np.pi
    middle = poses[:-1, 2] + turn / 2
    chord = delta[:, 0] * np.cos(middle) + delta[:, 1] * np.sin(middle)
    arc = chord / np.sinc(turn / (2 * np.pi))
    curvature = turn * arc / (arc**2 + (STANDSTILL_MPS * dt_s) ** 2)
    v0, steps = max(float(v0_mps), 0.0), len(arc)
    time_s = dt_s * np.arange(1, steps + 1)
    accel = _smoothed_inverse(steps, dt_s) @ (np.cumsum(arc) - v0 * time_s)
    rest = np.cumsum(np.abs(arc)[::-1])[::-1]
    speed = v0
    for k in range(steps):
        # A car that stands still needs no braking, and one that has arrived does not creep on.
        standing = -speed / dt_s
        accel[k] = standing if rest[k] < STANDSTILL_M else max(accel[k], standing)
        speed += accel[k] * dt_s
    return accel, curvature


class ActionTokenizer:
    """Labels of a path, tokens of labels, and back. accel_mps2 [A] and curvature_1pm [C] are the bin centres."""

    def __init__(self, config: ModelConfig):
        c = config
        self.steps, self.dt_s = c.plan_steps, c.plan_dt_s
        self.accel_offset, self.curvature_offset = (slot.start for slot in c.action_slots)
        self.accel_mps2 = bin_centres(c.accel_min_mps2, c.accel_max_mps2, c.accel_fine_mps2, c.accel_bins)
        limit = c.curvature_max_1pm
        self.curvature_1pm = bin_centres(-limit, limit, c.curvature_fine_1pm, c.curvature_bins)

    def labels(self, xy_yaw: np.ndarray, v0_mps: float) -> tuple[np.ndarray, np.ndarray]:
        """(acceleration [K], curvature [K]) that drive along poses xy_yaw [K, 3] of the ego frame at dt ... K dt."""
        if np.shape(xy_yaw) != (self.steps, 3):
            raise InputError("action labels", "xy_yaw", f"shape {np.shape(xy_yaw)}", f"[{self.steps}, 3]")
        return unicycle_labels(xy_yaw, v0_mps, self.dt_s)

    def encode(self, accel_mps2: np.ndarray, curvature_1pm: np.ndarray) -> np.ndarray:
        """Tokens int64 [..., 2K], acceleration and curvature in turn, of controls [..., K]; NaN is an InputError."""
        accel, curvature = np.asarray(accel_mps2, np.float64), np.asarray(curvature_1pm, np.float64)
        if accel.shape != curvature.shape or accel.shape[-1:] != (self.steps,):
            came = f"shapes {accel.shape} and {curvature.shape}"
            raise InputError("action encode", "accel_mps2, curvature_1pm", came, f"both [..., {self.steps}]")
        if not (np.isfinite(accel).all() and np.isfinite(curvature).all()):
            raise InputError("action encode", "accel_mps2, curvature_1pm", "NaN or infinity", "finite controls")
        tokens = np.empty((*accel.shape[:-1], 2 * self.steps), np.int64)
        tokens[..., 0::2] = _nearest(self.accel_mps2, accel) + self.accel_offset
        tokens[..., 1::2] = _nearest(self.curvature_1pm, curvature) + self.curvature_offset
        return tokens

    def decode(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(acceleration [..., K], curvature [..., K]) of tokens [..., 2K]; one out of its place is an InputError."""
        tokens = np.asarray(tokens)
        if tokens.shape[-1:] != (2 * self.steps,):
            raise InputError("action decode", "tokens", f"shape {tokens.shape}", f"[..., {2 * self.steps}]")
        pairs = []
        for first, offset, centres in (
            (0, self.accel_offset, self.accel_mps2),
            (1, self.curvature_offset, self.curvature_1pm),
        ):
            index = tokens[..., first::2] - offset
            if index.size and (index.min() < 0 or index.max() >= len(centres)):
                came = f"{np.unique(tokens[..., first::2])}"
                expected = f"{offset} .. {offset + len(centres) - 1} at {('even', 'odd')[first]} positions"
                raise InputError("action decode", "tokens", came, expected)
            pairs.append(centres[index])
        return pairs[0], pairs[1]


def _nearest(centres: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.searchsorted((centres[1:] + centres[:-1]) / 2, values)


@lru_cache(maxsize=8)
def _smoothed_inverse(steps: int, dt_s: float) -> np.ndarray:
    """[K, K] that maps distances beyond v0 t to the accelerations a of  min |W a - d|^2 + SMOOTH_M^2 |diff a|^2."""
    k, j = np.mgrid[:steps, :steps]
    W = np.where(j <= k, dt_s**2 * (k - j + 0.5), 0.0)  # distance at the end of interval k of 1 m/s2 in interval j
    D = np.diff(np.eye(steps), axis=0) * SMOOTH_M
    return np.linalg.solve(W.T @ W + D.T @ D, W.T)
