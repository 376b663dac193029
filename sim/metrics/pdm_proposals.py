"""The proposals of PDM-Closed (Dauner et al. 2023), for many plans at once.

    3 paths (centre line, 1 m to its right, 1 m to its left)
    x 5 speeds (.2, .4, .6, .8, 1 of the limit), IDM along each    = 15 proposals, path-major

Letters: Q plans, G = 3 Q paths, P = 15 proposals of each plan, J = 5 of each path, T instants 0.1 s apart, A actors,
V vertices, S segments, C things in the way. Path g is the g % 3-th of plan g // 3.
Source: NAVSIM `pdm_planner/proposal/*`, `abstract_pdm_closed_planner.py`; IDM as in `batch_idm_policy.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensors.frames import wrap
from sim.metrics.pdm import DT_S, HEADING, PACIFICA, VX, Footprint
from sim.metrics.pdm_scene import (
    CENTRE,
    STATES,
    Actors,
    PdmScene,
    boxes_touch,
    ego_points,
    polygon_distance,
    project_on_line,
    rectangles_touch_polygon,
)

OFFSETS_M = (0.0, -1.0, 1.0)
SPEED_SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
FALLBACK_LIMIT_MPS = 15.0
MIN_GAP_M, HEADWAY_S, MAX_ACCEL_MPS2, MAX_DECEL_MPS2, EXPONENT = 1.0, 1.5, 1.5, 3.0, 10
FORECAST_HOLD = 2  # instants that share one forecast: the leader is looked up every 0.2 s
INSTANTS = np.arange(0, STATES, FORECAST_HOLD)


@dataclass(frozen=True)
class Paths:
    """G lines of different length side by side.

    xyh     float64 [G, V, 3]  heading unwrapped; anything beyond the end
    along_m float64 [G, V]     arc length; inf beyond the end
    end_m   float64 [G]
    """

    xyh: np.ndarray
    along_m: np.ndarray
    end_m: np.ndarray

    @classmethod
    def of(cls, lines: Sequence[np.ndarray]) -> "Paths":
        """From lines [V, 3] each."""
        most = max(len(line) for line in lines)
        xyh, along = np.zeros((len(lines), most, 3)), np.full((len(lines), most), np.inf)
        for g, line in enumerate(lines):
            xyh[g, : len(line)] = line
            along[g, : len(line)] = np.append(0.0, np.cumsum(np.hypot(*np.diff(line[:, :2], axis=0).T)))
        return cls(xyh, along, np.where(np.isfinite(along), along, 0.0).max(axis=1))

    def line(self, g: int) -> tuple[np.ndarray, np.ndarray]:
        """Vertices [V', 3] and their arc lengths [V'] of one of them."""
        count = int(np.isfinite(self.along_m[g]).sum())
        return self.xyh[g, :count], self.along_m[g, :count]

    def at(self, s_m: np.ndarray) -> np.ndarray:
        """Poses [G, N, 3] at arc lengths [G, N], held inside each path."""
        s = np.clip(s_m, 1e-5, self.end_m[:, None])
        last = np.isfinite(self.along_m).sum(axis=1)[:, None] - 2
        k = np.minimum((self.along_m[:, None] <= s[..., None]).sum(axis=-1) - 1, last)
        row = np.arange(len(s))[:, None]
        start_m, start, end = self.along_m[row, k], self.xyh[row, k], self.xyh[row, k + 1]
        share = (s - start_m) / (self.along_m[row, k + 1] - start_m)
        pose = start + share[..., None] * (end - start)
        pose[..., HEADING] = wrap(pose[..., HEADING])
        return pose


@dataclass(frozen=True)
class _InTheWay:
    """What touches the corridors of the paths at one instant: C things, actors and red lights.

    path [C], along_m [C], centre_m [C, 2] and radius_m [C] of a circle around each, velocity_mps [C, 2],
    pose [C, 3], size_lw_m [C, 2]; light [C]: index of its polygon, -1 for an actor
    """

    path: np.ndarray
    along_m: np.ndarray
    centre_m: np.ndarray
    radius_m: np.ndarray
    velocity_mps: np.ndarray
    pose: np.ndarray
    size_lw_m: np.ndarray
    light: np.ndarray

    def take(self, index: np.ndarray) -> "_InTheWay":
        return _InTheWay(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def parallel_paths(centreline: np.ndarray) -> np.ndarray:
    """Paths [3, V, 3] (x, y, heading unwrapped) beside a centre line [V, 2]; at a vertex, the mean of both segments."""
    keep = np.append(True, (np.diff(centreline, axis=0) != 0).any(axis=1))
    line = centreline[keep]
    if len(line) < 2:
        raise ValueError("the centre line has no length")
    direction = np.unwrap(np.arctan2(*np.diff(line, axis=0).T[::-1]))
    heading = np.concatenate([direction[:1], (direction[:-1] + direction[1:]) / 2, direction[-1:]])
    left = np.stack([-np.sin(heading), np.cos(heading)], axis=-1)
    return np.stack([np.column_stack([line + offset * left, heading]) for offset in OFFSETS_M])


def idm_acceleration(v: np.ndarray, target: np.ndarray, gap_m: np.ndarray, v_lead: np.ndarray) -> np.ndarray:
    """IDM: a (1 - (v / v0)^10 - (s* / s)^2) in [-b, a], s* = s0 + v T + v (v - v_lead) / (2 sqrt(a b)), s >= s0."""
    wanted = MIN_GAP_M + v * HEADWAY_S + v * (v - v_lead) / (2 * np.sqrt(MAX_ACCEL_MPS2 * MAX_DECEL_MPS2))
    pull = 1 - (v / target) ** EXPONENT - (wanted / np.maximum(gap_m, MIN_GAP_M)) ** 2
    return np.clip(MAX_ACCEL_MPS2 * pull, -MAX_DECEL_MPS2, MAX_ACCEL_MPS2)


def proposals(
    egos: np.ndarray,
    scenes: Sequence[PdmScene],
    speed_limit_mps: np.ndarray | float | None,
    variant: str = "compat",
    vehicle: Footprint = PACIFICA,
) -> np.ndarray:
    """Reference poses [Q, 15, 41, 3]: IDM at five speeds along three paths, from the states [Q, 7] of the ego in Q
    scenes as PDM-Closed foresees them. One speed limit, or one for each [Q]; None and NaN stand for an unknown one.

    The leader is looked up every 0.2 s. compat: at the first step there is none yet and NAVSIM's empty record reads
    as a leader at arc length 0, so that every proposal brakes for 0.1 s; strict looks before the first step.
    """
    lines = [path for scene in scenes for path in parallel_paths(scene.centreline)]
    paths = Paths.of(lines)
    limit = np.broadcast_to(np.nan if speed_limit_mps is None else speed_limit_mps, len(scenes))
    limit = np.repeat(np.where(np.isnan(limit), FALLBACK_LIMIT_MPS, limit), len(OFFSETS_M))
    target = limit[:, None] * SPEED_SHARES  # [G, J]
    start_m = np.array([float(project_on_line(egos[g // 3, :2], path[:, :2])[0]) for g, path in enumerate(lines)])
    blocked, lights = _in_the_way(scenes, paths, start_m, limit * (STATES - 1) * DT_S, vehicle)
    s = np.zeros((STATES, *target.shape))
    s[0], v = start_m[:, None], np.repeat(egos[:, VX], len(OFFSETS_M))[:, None] + np.zeros(target.shape)
    place, speed, rear = np.zeros(v.shape), np.zeros(v.shape), np.zeros(v.shape)
    for k in range(1, STATES):
        if k % FORECAST_HOLD == 0 or (k == 1 and variant == "strict"):
            gap, speed = _leader(blocked[k // FORECAST_HOLD], lights, paths, s[k - 1], vehicle)
            free = np.isinf(gap)  # then the end of the path leads
            place = np.where(free, paths.end_m[:, None], s[k - 1] + gap)
            rear = np.where(free, vehicle.length_m / 2, 0.0)
        s[k] = s[k - 1] + DT_S * v
        v = v + DT_S * idm_acceleration(v, target, place - s[k - 1] - rear, speed)
    poses = paths.at(np.moveaxis(s, 0, -1).reshape(len(lines), -1))
    return poses.reshape(len(scenes), -1, STATES, 3)


def _in_the_way(
    scenes, paths: Paths, start_m: np.ndarray, reach_m: np.ndarray, vehicle: Footprint
) -> tuple[list[_InTheWay], list[np.ndarray]]:
    """What blocks the paths within reach at each of INSTANTS, and the polygons of the lights among it."""
    numbers: dict[int, int] = {}  # a light that stays red is one array in all scenes
    polygons: list[np.ndarray] = []
    rows, when = [], []
    for q, scene in enumerate(scenes):
        red = _red_at(scene.red_lights)
        for g in range(3 * q, 3 * q + 3):
            path, along = paths.line(g)
            end_m = min(start_m[g] + reach_m[g], paths.end_m[g])
            corridor = _corridor(path, along, start_m[g], end_m, vehicle.width_m)
            if not len(corridor[0]):
                continue
            t, a = np.nonzero(_actors_in_corridor(scene.actors, INSTANTS, corridor).T)
            rows.append(_actor_rows(scene.actors, a, INSTANTS[t], g, path))
            when.append(t)
            for at, polygon in _lights_in_corridor(red, corridor):
                if id(polygon) not in numbers:
                    numbers[id(polygon)] = len(polygons)
                    polygons.append(polygon)
                rows.append(_light_rows(polygon, len(at), g, path, numbers[id(polygon)]))
                when.append(np.array(at))
    if not rows:
        empty = _actor_rows(Actors.empty(), np.zeros(0, int), np.zeros(0, int), 0, paths.line(0)[0])
        return [empty] * len(INSTANTS), []
    when = np.concatenate(when)
    columns = (np.concatenate([getattr(row, name) for row in rows]) for name in _InTheWay.__dataclass_fields__)
    everything = _InTheWay(*columns)
    return [everything.take(when == i) for i in range(len(INSTANTS))], polygons


def _actor_rows(actors: Actors, a: np.ndarray, instant: np.ndarray, g: int, path: np.ndarray) -> _InTheWay:
    pose, size = actors.xyh[a, instant], actors.size_lw_m[a]
    speed = np.where(actors.is_agent[a], actors.speed_mps[a, 0], 0.0)
    velocity = speed[:, None] * np.stack([np.cos(pose[:, 2]), np.sin(pose[:, 2])], axis=-1)
    along = project_on_line(pose[:, :2], path[:, :2])[0]
    radius = np.hypot(*size.T) / 2
    return _InTheWay(np.full(len(a), g), along, pose[:, :2], radius, velocity, pose, size, np.full(len(a), -1))


def _light_rows(polygon: np.ndarray, count: int, g: int, path: np.ndarray, number: int) -> _InTheWay:
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    along = float(project_on_line(_centroid(polygon), path[:, :2])[0])
    circle = np.tile((low + high) / 2, (count, 1)), np.full(count, np.hypot(*(high - low)) / 2)
    nothing = np.zeros((count, 2)), np.zeros((count, 3)), np.ones((count, 2))
    return _InTheWay(np.full(count, g), np.full(count, along), *circle, *nothing, np.full(count, number))


def _red_at(red_lights) -> list[tuple[list[int], np.ndarray]]:
    """Each red polygon with the indices of the INSTANTS at which it is red."""
    lit: dict[int, tuple[list[int], np.ndarray]] = {}
    for i, k in enumerate(INSTANTS):
        for polygon in red_lights[k]:
            lit.setdefault(id(polygon), ([], polygon))[0].append(i)
    return list(lit.values())


def _corridor(path: np.ndarray, along: np.ndarray, start_m: float, end_m: float, width_m: float):
    """Segments of a path between two arc lengths as boxes (centre [S, 2], heading [S], half [S, 2]), square ends."""
    inner = along[(along > start_m) & (along < end_m)]
    s = np.concatenate([[start_m], inner, [max(end_m, start_m + 1e-6)]])
    xy = np.stack([np.interp(s, along, path[:, i]) for i in range(2)], axis=-1)
    step = np.diff(xy, axis=0)
    length = np.hypot(*step.T)
    use = length > 0
    half = np.stack([length / 2, np.full(len(length), width_m / 2)], axis=-1)[use]
    centre, heading = ((xy[:-1] + xy[1:]) / 2)[use], np.arctan2(step[:, 1], step[:, 0])[use]
    for end, way in ((0, -1), (-1, 1)) if len(half) else ():
        centre[end] += way * width_m / 4 * np.array([np.cos(heading[end]), np.sin(heading[end])])
        half[end, 0] += width_m / 4
    return centre, heading, half


def _actors_in_corridor(actors: Actors, instants: np.ndarray, corridor) -> np.ndarray:
    """Which actors touch the corridor at which instants, bool [A, len(instants)]."""
    centre, heading, half = corridor
    pose = actors.xyh[:, instants]
    hit = np.zeros(pose.shape[:2], dtype=bool)
    radius = np.hypot(*actors.size_lw_m.T) / 2
    low, high = centre.min(axis=0), centre.max(axis=0)
    margin = (radius + np.hypot(*half.T).max())[:, None, None]
    near = ((pose[..., :2] > low - margin) & (pose[..., :2] < high + margin)).all(axis=-1) & actors.present[:, instants]
    a, t = np.nonzero(near)
    xy = pose[a, t, :2]
    squared = ((xy[:, None] - centre) ** 2).sum(axis=-1)
    close, s = np.nonzero(squared <= (radius[a, None] + np.hypot(*half.T)) ** 2)
    a, t = a[close], t[close]
    touch = boxes_touch(pose[a, t, :2], pose[a, t, 2], actors.size_lw_m[a] / 2, centre[s], heading[s], half[s])
    hit[a[touch], t[touch]] = True
    return hit


def _lights_in_corridor(red: list[tuple[list[int], np.ndarray]], corridor) -> list[tuple[list[int], np.ndarray]]:
    """Those of the red polygons that touch the corridor."""
    if not red:
        return []
    blocks = box_outlines(np.column_stack(corridor[:2]), 2 * corridor[2])
    low, high = blocks.min(axis=(0, 1)), blocks.max(axis=(0, 1))
    near = [(at, p) for at, p in red if (p.max(axis=0) >= low).all() and (p.min(axis=0) <= high).all()]
    return [(at, polygon) for at, polygon in near if rectangles_touch_polygon(blocks, polygon).any()]


def box_outlines(pose: np.ndarray, size_lw_m: np.ndarray) -> np.ndarray:
    """Corners [N, 4, 2] of boxes at poses [N, 3]."""
    local = np.array([[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]]) * size_lw_m[:, None]
    cos, sin = np.cos(pose[:, 2, None]), np.sin(pose[:, 2, None])
    x, y = local[..., 0], local[..., 1]
    return np.stack([pose[:, 0, None] + x * cos - y * sin, pose[:, 1, None] + x * sin + y * cos], axis=-1)


def _centroid(polygon: np.ndarray) -> np.ndarray:
    """Centre of area [2] of a polygon [V, 2]."""
    origin = polygon[0]  # near the polygon, so that large coordinates do not cancel
    p, q = polygon - origin, np.roll(polygon, -1, axis=0) - origin
    cross = p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]
    return origin + ((p + q) * cross[:, None]).sum(axis=0) / (3 * cross.sum())


def _leader(now: _InTheWay, lights: list[np.ndarray], paths: Paths, s: np.ndarray, vehicle: Footprint):
    """Gap and speed [G, J] of what is nearest to the cars at arc lengths s [G, J] of all further along their paths;
    inf and 0 where there is nothing."""
    gap, speed = np.full(s.size, np.inf), np.zeros(s.size)
    c, j = np.nonzero(now.along_m[:, None] > s[now.path])
    if not len(c):
        return gap.reshape(s.shape), speed.reshape(s.shape)
    states = np.zeros((*s.shape, 7))
    states[..., :3] = paths.at(s)
    states, car = states.reshape(-1, 7), now.path[c] * s.shape[1] + j
    points = ego_points(states, vehicle)
    between = np.hypot(*(points[car, CENTRE] - now.centre_m[c]).T)
    # Outlines are at least the circles apart; a centre lies in its actor, and some vertex of a light in its circle.
    least = between - now.radius_m[c] - np.hypot(vehicle.length_m, vehicle.width_m) / 2
    most = np.full(s.size, np.inf)
    np.minimum.at(most, car, between + np.where(now.light[c] < 0, 0.0, now.radius_m[c]))
    kept = np.flatnonzero(least <= most[car])
    c, car = c[kept], car[kept]
    distance = np.zeros(len(c))
    corners, light = points[car, :CENTRE], now.light[c]
    own = np.flatnonzero(light < 0)
    pose, size = now.pose[c[own]], now.size_lw_m[c[own]]
    half = np.broadcast_to([vehicle.length_m / 2, vehicle.width_m / 2], (len(own), 2))
    touch = boxes_touch(points[car[own], CENTRE], states[car[own], HEADING], half, pose[:, :2], pose[:, 2], size / 2)
    distance[own] = np.where(touch, 0.0, polygon_distance(corners[own], box_outlines(pose, size)))
    for number in np.unique(light[light >= 0]):
        own, polygon = np.flatnonzero(light == number), lights[number]
        apart = polygon_distance(corners[own], np.broadcast_to(polygon, (len(own), *polygon.shape)))
        distance[own] = np.where(rectangles_touch_polygon(corners[own], polygon), 0.0, apart)
    order = np.lexsort((light >= 0, distance, car))
    nearest = order[np.append(True, np.diff(car[order]) > 0)]
    c, car = c[nearest], car[nearest]
    gap[car] = distance[nearest]
    heading = states[car, HEADING]
    speed[car] = np.cos(heading) * now.velocity_mps[c, 0] + np.sin(heading) * now.velocity_mps[c, 1]
    return gap.reshape(s.shape), speed.reshape(s.shape)
