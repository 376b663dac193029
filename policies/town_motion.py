"""How a car moves along a path for the next seconds: its speed by what limits it, its steering by pure pursuit."""

import math
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from policies.town_view import Limit
from sim.geometry import OpenLine
from sim.vehicle import EgoState

DT_S = 0.1
LOOKAHEAD_S, MIN_LOOKAHEAD_M, MAX_LOOKAHEAD_M = 0.6, 3.0, 12.0
MAX_CURVATURE_1PM = 0.2
MAX_ACCEL_MPS2, COMFORTABLE_BRAKING_MPS2, HARDEST_BRAKING_MPS2 = 1.8, 2.5, -6.0
GENTLE_MPS2 = -1.3
HEADWAY_S, STANDSTILL_GAP_M = 1.2, 2.5
SPEED_HORIZON_S = 0.5
AT_IT_M, ROLLS_MPS = 0.05, 1.0  # who stops at a line rolls out; faster than this it is in the way all of a sudden


def motion(
    ego: EgoState, path: OpenLine, s_m: float, speeds: np.ndarray, limits: Sequence[Limit], seconds: float
) -> tuple[np.ndarray, Limit | None, float]:
    """Poses, speed and distance [seconds / DT_S, 5] after each DT_S, for an ego at s_m of a path.

    speeds: comfortable ones at the path's points [P]. Also returns the limit that binds now, None if it is the
    comfortable speed, and that speed.
    """
    x, y, yaw, speed, driven = ego.x_m, ego.y_m, ego.yaw_rad, ego.speed_mps, 0.0
    # Plain numbers and lists: many steps one after the other, each of a few operations.
    s_list, xs, ys = path.s_m.tolist(), *path.points.T.tolist()
    fastest = speeds.tolist()
    rows = []
    for step in range(round(seconds / DT_S)):
        (wanted,) = _between(s_list, s_m + driven + speed * SPEED_HORIZON_S, fastest)
        accel = min((wanted - speed) / SPEED_HORIZON_S, MAX_ACCEL_MPS2)
        binds = None
        for limit in limits:
            bound = acceleration(speed, limit, limit.gap_m + limit.speed_mps * step * DT_S - driven)
            if bound < accel:
                accel, binds = bound, limit
        if step == 0:
            now = binds, wanted
        faster = max(speed + max(accel, HARDEST_BRAKING_MPS2) * DT_S, 0.0)
        arc = 0.5 * (speed + faster) * DT_S
        reach = min(max(LOOKAHEAD_S * speed, MIN_LOOKAHEAD_M), MAX_LOOKAHEAD_M)
        to_x, to_y = _between(s_list, s_m + driven + reach, xs, ys)
        curvature = _pursuit(to_x - x, to_y - y, yaw)
        middle = yaw + 0.5 * curvature * arc
        x, y, yaw = x + arc * math.cos(middle), y + arc * math.sin(middle), yaw + curvature * arc
        speed, driven = faster, driven + arc
        rows.append((x, y, yaw, speed, driven))
    return np.array(rows), *now


def acceleration(speed_mps: float, limit: Limit, gap_m: float) -> float:
    """What a limit that is now this far ahead of the bumper leaves (intelligent driver model, Treiber et al. 2000).

    a (1 - (g*/g)^2) with g* = g0 + v T + v dv / (2 sqrt(a b)). Before a line there is no g0 and no v T: braking is
    constant once it takes more than comfortable, and one creeps up to it before.
    """
    if limit.standstill:
        if gap_m < AT_IT_M:
            return HARDEST_BRAKING_MPS2 if speed_mps > ROLLS_MPS else -2.0
        needed = speed_mps**2 / (2 * gap_m)
        return -needed if needed > 0.55 * COMFORTABLE_BRAKING_MPS2 or gap_m < 2.0 else math.inf
    approach = speed_mps * (speed_mps - limit.speed_mps) / (2 * math.sqrt(MAX_ACCEL_MPS2 * COMFORTABLE_BRAKING_MPS2))
    wanted_m = STANDSTILL_GAP_M + max(0.0, speed_mps * HEADWAY_S + approach)
    accel = MAX_ACCEL_MPS2 * (1 - (wanted_m / max(gap_m, 0.1)) ** 2)
    return max(accel, GENTLE_MPS2) if limit.gentle else accel


def _between(s_m: list[float], at_m: float, *columns: list[float]) -> tuple[float, ...]:
    """Columns that belong to increasing positions, at one of them or between two; beyond an end it is the end."""
    k = min(max(bisect_right(s_m, at_m) - 1, 0), len(s_m) - 2)
    share = min(max((at_m - s_m[k]) / (s_m[k + 1] - s_m[k]), 0.0), 1.0)
    return tuple(column[k] + share * (column[k + 1] - column[k]) for column in columns)


def _pursuit(x_m: float, y_m: float, yaw_rad: float) -> float:
    """Curvature 2 y / d^2 towards a point this far away, y to the left of the heading (Coulter 1992)."""
    left = math.cos(yaw_rad) * y_m - math.sin(yaw_rad) * x_m
    return min(max(2 * left / max(x_m * x_m + y_m * y_m, 1.0), -MAX_CURVATURE_1PM), MAX_CURVATURE_1PM)
