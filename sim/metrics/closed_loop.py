"""Closed-loop protocols of classic simulators: CARLA leaderboard 2.0 and 2.1, Bench2Drive, nuPlan.

Pure functions from what happened to a score, each (value, valid): where an input was not recorded (None), the score
is not available. CARLA counts in per cent, nuPlan in 0 .. 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim.metrics.pdm import COMFORT_BOUNDS, check_variant, savgol_matrix

Score = tuple[float, bool]
NOT_AVAILABLE: Score = (float("nan"), False)

CARLA_2_0 = {
    "pedestrian": 0.5,
    "vehicle": 0.6,
    "static": 0.65,
    "red_light": 0.7,
    "stop_sign": 0.8,
    "scenario_timeout": 0.7,
    "emergency_vehicle": 0.7,
}
CARLA_2_1 = {
    "pedestrian": 1.0,
    "vehicle": 0.7,
    "static": 0.6,
    "red_light": 0.4,
    "stop_sign": 0.25,
    "scenario_timeout": 0.4,
    "emergency_vehicle": 0.4,
}
BENCH2DRIVE_ROUTES, BENCH2DRIVE_SEGMENT = 220, 20
NUPLAN_WEIGHTS = {"EP": 5, "TTC": 5, "speed_limit": 4, "C": 2}
NUPLAN_MIN_PROGRESS, NUPLAN_MIN_TTC_S, NUPLAN_OFF_ROAD_M = 0.2, 0.95, 0.3
NUPLAN_OVERSPEED_MPS, NUPLAN_EXPERT_PROGRESS_M = 2.23, 2.0


@dataclass(frozen=True)
class Route:
    """What a CARLA-style route recorded; None where the simulator cannot tell (for example stop signs).

    completion_pct and off_lane_pct (share of the route driven outside its lanes) are 0 .. 100; the counts are of
    infractions; min_speed_pct holds one speed, in per cent of the traffic's, for each check that was failed.
    """

    completion_pct: float
    pedestrian: int | None = 0
    vehicle: int | None = 0
    static: int | None = 0
    red_light: int | None = 0
    stop_sign: int | None = 0
    scenario_timeout: int | None = 0
    emergency_vehicle: int | None = 0
    off_lane_pct: float | None = 0.0
    min_speed_pct: tuple[float, ...] | None = ()
    ended_early: bool = False

    def counts(self) -> dict[str, int | None]:
        return {name: getattr(self, name) for name in CARLA_2_0}


def carla_2_0(route: Route) -> Score:
    """Driving score of a route: completion times the product of coefficients^count, (1 - off-lane share) and, for each
    slow check at v %, 1 - 0.3 (1 - v / 100)."""
    if route.min_speed_pct is None:
        return NOT_AVAILABLE
    score, valid = bench2drive(route)
    slow = np.prod([1.0 - 0.3 * (1.0 - v / 100.0) for v in route.min_speed_pct])
    return float(score * slow), valid


def bench2drive(route: Route) -> Score:
    """Driving score of a route in Bench2Drive: CARLA 2.0 without the minimum speed."""
    counts = route.counts()
    if None in counts.values() or route.off_lane_pct is None:
        return NOT_AVAILABLE
    penalty = np.prod([CARLA_2_0[name] ** count for name, count in counts.items()])
    return float(max(route.completion_pct * penalty * (1.0 - route.off_lane_pct / 100.0), 0.0)), True


def carla_2_1(route: Route) -> Score:
    """Driving score of a route: completion times (1 - off-lane share) / (1 + sum of coefficients)."""
    counts = route.counts()
    if None in counts.values() or route.off_lane_pct is None or route.min_speed_pct is None:
        return NOT_AVAILABLE
    load = sum(CARLA_2_1[name] * count for name, count in counts.items())
    load += sum(0.4 * (1.0 - v / 100.0) for v in route.min_speed_pct)
    return float(max(route.completion_pct * (1.0 - route.off_lane_pct / 100.0) / (1.0 + load), 0.0)), True


def mean_score(scores: Sequence[Score]) -> Score:
    """Mean over routes or scenes; not available if there is none or one of them is not."""
    if not scores or not all(valid for _, valid in scores):
        return NOT_AVAILABLE
    return float(np.mean([value for value, _ in scores])), True


def bench2drive_mean(routes: Sequence[Route], asked_for: int = BENCH2DRIVE_ROUTES) -> dict[str, Score]:
    """driving_score and success_rate over the routes asked for: one that is missing counts 0.

    A route succeeds if it was completed and nothing but a minimum speed was infringed. `efficiency` is the mean speed
    in per cent of the traffic's over the routes that had a check, without values above 1000, as in the reference.
    """
    scores = [bench2drive(route) for route in routes]
    if len(routes) > asked_for or not routes or not all(valid for _, valid in scores):
        return dict.fromkeys(("driving_score", "success_rate", "efficiency"), NOT_AVAILABLE)
    clean = [r.completion_pct >= 100 and not r.ended_early and not any(r.counts().values()) for r in routes]
    clean = [c and r.off_lane_pct == 0 for c, r in zip(clean, routes, strict=True)]
    speeds = [[v for v in r.min_speed_pct or () if v <= 1000] for r in routes]
    means = [float(np.mean(s)) for s in speeds if s]
    known = bool(means) and all(r.min_speed_pct is not None for r in routes)
    return {
        "driving_score": (sum(value for value, _ in scores) / asked_for, True),
        "success_rate": (sum(clean) / asked_for, True),
        "efficiency": (float(np.mean(means)), True) if known else NOT_AVAILABLE,
    }


def bench2drive_comfort(lon_acc: np.ndarray, lat_acc: np.ndarray, yaw_rate: np.ndarray, variant="compat") -> Score:
    """Share of the full segments of 20 steps (0.1 s) that keep the bounds of nuPlan; up to 20 steps are one segment.

    Everything is smoothed with a window of 7 and a parabola. compat: the "yaw acceleration" of the reference is the
    yaw rate again, and the rate is unwrapped like an angle; strict differentiates it.
    """
    check_variant(variant)
    samples = len(lon_acc)
    size = min(samples, BENCH2DRIVE_SEGMENT)
    if size < 3:
        return NOT_AVAILABLE
    smooth = savgol_matrix(size, min(7, size), 2).T
    slope = savgol_matrix(size, min(7, size), 2, 1, 0.1).T
    count = samples // size
    lon, lat, rate = (np.reshape(a[: count * size], (count, size)) for a in (lon_acc, lat_acc, yaw_rate))
    rate = np.unwrap(rate, axis=1) if variant == "compat" else rate
    magnitude = np.hypot(lon, lat) @ smooth
    series = {
        "lon_acc": lon @ smooth,
        "lat_acc": lat @ smooth,
        "jerk": magnitude @ slope,
        "lon_jerk": lon @ smooth @ slope,
        "yaw_acc": rate @ smooth if variant == "compat" else rate @ slope,
        "yaw_rate": rate @ smooth,
    }
    inside = [
        ((series[name] > low) & (series[name] < high)).all(axis=1) for name, (low, high) in COMFORT_BOUNDS.items()
    ]
    return float(np.all(inside, axis=0).mean()), True


def nuplan(scores: Mapping[str, Score]) -> Score:
    """nuPlan's closed-loop score: NC DAC MP DDC (5 EP + 5 TTC + 4 speed_limit + 2 C) / 16."""
    names = ("NC", "DAC", "MP", "DDC", *NUPLAN_WEIGHTS)
    if not all(scores[name][1] for name in names):
        return NOT_AVAILABLE
    weighted = sum(weight * scores[name][0] for name, weight in NUPLAN_WEIGHTS.items())
    product = np.prod([scores[name][0] for name in names[:4]])
    return float(product * weighted / sum(NUPLAN_WEIGHTS.values())), True


def nuplan_progress(ego_m: float, expert_m: float | None) -> dict[str, Score]:
    """EP, progress along the expert's route relative to its own (both raised to 2 m; 0 if driven back more than 2 m),
    and MP, 1 if EP is at least 0.2."""
    if expert_m is None:
        return {"EP": NOT_AVAILABLE, "MP": NOT_AVAILABLE}
    floor = NUPLAN_EXPERT_PROGRESS_M
    ratio = 0.0 if ego_m < -floor else min(1.0, max(ego_m, floor) / max(expert_m, floor))
    return {"EP": (ratio, True), "MP": (float(ratio >= NUPLAN_MIN_PROGRESS), True)}


def nuplan_drivable_area(corner_outside_m: np.ndarray | None) -> Score:
    """DAC: 1 if no corner is ever more than 0.3 m outside the drivable area (distances of any shape, 0 inside)."""
    if corner_outside_m is None or not np.size(corner_outside_m):
        return NOT_AVAILABLE
    return float(np.max(corner_outside_m) <= NUPLAN_OFF_ROAD_M), True


def nuplan_driving_direction(oncoming_m: np.ndarray | None, step_s: float) -> Score:
    """DDC: 1, .5 or 0 as the most that is driven against traffic within 1 s is < 2, < 6 or more metres.

    oncoming_m [F] holds the metres of each step, 0 where the ego goes with the traffic.
    """
    if oncoming_m is None or not len(oncoming_m):
        return NOT_AVAILABLE
    steps = round(1.0 / step_s)
    padded = np.concatenate([np.zeros(steps), oncoming_m])
    worst = np.lib.stride_tricks.sliding_window_view(padded, steps + 1).sum(axis=1).max()
    return 1.0 if worst < 2.0 else 0.5 if worst < 6.0 else 0.0, True


def nuplan_ttc(least_s: float | None) -> Score:
    """TTC: 1 if the least time to collision within the next 3 s (inf if none) is never under 0.95 s."""
    return NOT_AVAILABLE if least_s is None else (float(least_s >= NUPLAN_MIN_TTC_S), True)


def nuplan_speed_limit(speed_mps: np.ndarray, limit_mps: np.ndarray, step_s: float) -> Score:
    """Speed limit: max(0, 1 - sum(excess) dt / (2.23 m/s * duration)); NaN limits count as none, all NaN as unknown."""
    if len(speed_mps) < 2 or np.isnan(limit_mps).all():
        return NOT_AVAILABLE
    excess = np.clip(np.nan_to_num(speed_mps - limit_mps, nan=0.0), 0.0, None)
    duration = (len(speed_mps) - 1) * step_s
    return float(max(0.0, 1.0 - excess.sum() * step_s / (NUPLAN_OVERSPEED_MPS * duration))), True
