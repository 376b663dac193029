"""A plan, and the tracker that turns it into (acceleration, curvature) until the next one comes."""

from dataclasses import dataclass, field

import numpy as np

from sensors import frames
from sensors.errors import InputError

PLAN_TIME_S = np.arange(1, 9) * 0.5  # the instants of a plan, unless it says otherwise
MAX_PLAN_SPEED_MPS = 70.0
FALLBACK = "fallback: "  # how the reason of a plan begins that is one, also in logs

PREVIEW_S = 0.5  # how far ahead in time the speed is tracked
LOOKAHEAD_S, MIN_LOOKAHEAD_M = 0.6, 3.0
STOP_ACCEL_MPS2 = -3.0  # once the plan has run out, and to hold a stop
SAMPLES_PER_S = 20
MIN_DISTANCE_M = 1e-3


@dataclass(frozen=True)
class Plan:
    """Where the rear axle shall be, in the ego frame of the clip's `now`.

    time_s        float64 [K]     after now, increasing, > 0
    xyyaw_in_ego  float64 [K, 3]  m, m, rad
    speed_mps     float64 [K]
    tokens        the action tokens it was decoded from, if any
    reason        why, in words; may be empty; begins with FALLBACK where this is one
    logprob       log-probability of the tokens under the policy, if it has one
    fallback      True: not what the policy made of the clip, but what is done when it made nothing of it
    latency_ms    stage -> milliseconds
    """

    time_s: np.ndarray
    xyyaw_in_ego: np.ndarray
    speed_mps: np.ndarray
    tokens: tuple[int, ...] = ()
    reason: str = ""
    logprob: float | None = None
    fallback: bool = False
    latency_ms: dict[str, float] = field(default_factory=dict)

    def validate(self, where: object = "plan") -> "Plan":
        """Self, or an InputError: a plan that is not finite, not in order of time or not drivable is never followed."""
        if self.fallback != self.reason.startswith(FALLBACK):
            raise InputError(where, "reason", repr(self.reason), f"{FALLBACK!r} before that of a fallback, no other")
        K = len(self.time_s)
        for name, shape in (("time_s", (K,)), ("xyyaw_in_ego", (K, 3)), ("speed_mps", (K,))):
            value = getattr(self, name)
            if not K or value.shape != shape:
                raise InputError(where, name, f"shape {value.shape}", f"{shape} with K >= 1")
            if not np.isfinite(value).all():
                raise InputError(where, name, value, "finite numbers")
        if (np.diff(self.time_s, prepend=0.0) <= 0).any():
            raise InputError(where, "time_s", self.time_s, "increasing times after now")
        step_mps = np.linalg.norm(np.diff(self.xyyaw_in_ego[:, :2], axis=0, prepend=0.0), axis=1) / np.diff(
            self.time_s, prepend=0.0
        )
        if step_mps.max() > MAX_PLAN_SPEED_MPS:
            raise InputError(where, "xyyaw_in_ego", f"{step_mps.max():.1f} m/s", f"at most {MAX_PLAN_SPEED_MPS} m/s")
        return self

    def in_world(self, T_world_from_ego_now: np.ndarray) -> np.ndarray:
        """The poses as x, y, yaw [K, 3] in the world frame."""
        return frames.xy_yaw(T_world_from_ego_now @ frames.matrix_from_xy_yaw(*self.xyyaw_in_ego.T))


@dataclass(frozen=True)
class Command:
    """accel_mps2 along ego x; curvature_1pm of the rear axle's path, positive to the left."""

    accel_mps2: float
    curvature_1pm: float


class PlanTracker:
    """Follows one plan at a time until the next is given.

    Lateral: pure pursuit (Coulter 1992), curvature = 2 y / d^2 of the point at the look-ahead distance, y left in ego.
    Longitudinal: the constant acceleration that reaches the plan's speed PREVIEW_S from now, corrected by how far the
    car is behind the plan. A plan that has run out is answered by a stop: old output is never stretched.
    """

    def __init__(self):
        self._path = None

    def follow(self, plan: Plan, T_world_from_ego_now: np.ndarray, now_us: int, speed_mps: float) -> None:
        """Take over a plan made at `now_us` by a car at that pose and speed."""
        knots = np.concatenate([frames.xy_yaw(T_world_from_ego_now)[None], plan.in_world(T_world_from_ego_now)])
        time_s = np.concatenate([[0.0], plan.time_s])
        speeds = np.concatenate([[max(speed_mps, 0.0)], np.maximum(plan.speed_mps, 0.0)])
        at = np.linspace(0, time_s[-1], max(2, int(time_s[-1] * SAMPLES_PER_S) + 1))
        self._time_s, self._speed_mps = at, np.interp(at, time_s, speeds)
        self._path = hermite(time_s, knots, speeds, at)
        self._arc_m = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(self._path, axis=0), axis=1))])
        self._end_direction = np.array([np.cos(knots[-1, 2]), np.sin(knots[-1, 2])])
        self._start_us = now_us

    def command(self, T_world_from_ego: np.ndarray, now_us: int, speed_mps: float) -> Command:
        """What to do at `now_us`; a stop where there is no plan or it has run out."""
        if self._path is None or (now_us - self._start_us) * 1e-6 > self._time_s[-1]:
            return Command(STOP_ACCEL_MPS2, 0.0)
        age_s = (now_us - self._start_us) * 1e-6
        nearest, curvature = self._pursue(T_world_from_ego, speed_mps)
        ahead_s = min(age_s + PREVIEW_S, self._time_s[-1])
        want_mps = np.interp(ahead_s, self._time_s, self._speed_mps)
        behind_m = np.interp(age_s, self._time_s, self._arc_m) - self._arc_m[nearest]
        accel = (want_mps - speed_mps) / PREVIEW_S + 0.3 * behind_m
        if want_mps < 0.1 and speed_mps < 0.3:
            accel = STOP_ACCEL_MPS2
        return Command(float(accel), float(curvature))

    def curvature_1pm(self, T_world_from_ego: np.ndarray, speed_mps: float) -> float:
        """How to stay on the path of the latest plan, whatever its time says; straight on where there was none."""
        return 0.0 if self._path is None else float(self._pursue(T_world_from_ego, speed_mps)[1])

    def _pursue(self, T_world_from_ego: np.ndarray, speed_mps: float) -> tuple[int, float]:
        """(index of the nearest point of the path, curvature of the arc to the one at the look-ahead distance)."""
        position = T_world_from_ego[:2, 3]
        nearest = int(np.argmin(np.sum((self._path - position) ** 2, axis=1)))
        reach_m = self._arc_m[nearest] + max(MIN_LOOKAHEAD_M, LOOKAHEAD_S * speed_mps)
        target = self._point_at(reach_m)
        x, y = frames.inverse(T_world_from_ego)[:2, :2] @ (target - position)
        return nearest, 2 * y / max(x * x + y * y, MIN_DISTANCE_M**2) if x > 0 else 0.0

    def _point_at(self, reach_m: float) -> np.ndarray:
        """Point [2] of the path at an arc length; beyond its end the last direction goes on."""
        if reach_m <= self._arc_m[-1]:
            return np.array([np.interp(reach_m, self._arc_m, self._path[:, c]) for c in range(2)])
        return self._path[-1] + self._end_direction * (reach_m - self._arc_m[-1])


def hermite(time_s: np.ndarray, knots_xyyaw: np.ndarray, speed_mps: np.ndarray, at_s: np.ndarray) -> np.ndarray:
    """Points [M, 2] at times [M] of the cubic Hermite curve through knots [K, 3] with velocity speed * (cos, sin)(yaw).

    On a circular arc driven at constant speed its error is below 1 mm where a chord's is 0.2 m (R 15 m, 0.5 s, 10 m/s).
    """
    k = np.clip(np.searchsorted(time_s, at_s, side="right") - 1, 0, len(time_s) - 2)
    span = (time_s[k + 1] - time_s[k])[:, None]
    u = (at_s - time_s[k])[:, None] / span
    velocity = speed_mps[:, None] * np.stack([np.cos(knots_xyyaw[:, 2]), np.sin(knots_xyyaw[:, 2])], axis=1)
    p0, p1 = knots_xyyaw[k, :2], knots_xyyaw[k + 1, :2]
    m0, m1 = velocity[k] * span, velocity[k + 1] * span
    return (1 + 2 * u) * (1 - u) ** 2 * p0 + u * (1 - u) ** 2 * m0 + u * u * (3 - 2 * u) * p1 + u * u * (u - 1) * m1
