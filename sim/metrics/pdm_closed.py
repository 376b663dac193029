"""PDM-Closed (Dauner et al. 2023): the rule-based planner whose progress EP is measured against.

    3 paths (centre line, 1 m to its right, 1 m to its left)
    x 5 speeds (.2, .4, .6, .8, 1 of the limit)             = 15 proposals, path-major
    -> IDM along each path -> rollout -> sub-scores -> the best one is the reference

Letters: P = 15 proposals, L = 3 paths, T instants 0.1 s apart, A actors, V vertices, S segments, C candidates.
Source: NAVSIM `pdm_planner/proposal/*`, `abstract_pdm_closed_planner.py`; IDM as in `batch_idm_policy.py`.
"""

from dataclasses import dataclass, replace

import numpy as np

from sensors.frames import wrap
from sim.metrics.pdm import DT_S, HEADING, PACIFICA, VX, Footprint, check_variant, rollout
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
from sim.metrics.pdm_scores import MULTIPLIERS, Judged, Score, product, progress, sub_scores, total

OFFSETS_M = (0.0, -1.0, 1.0)
SPEED_SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
FALLBACK_LIMIT_MPS = 15.0
MIN_GAP_M, HEADWAY_S, MAX_ACCEL_MPS2, MAX_DECEL_MPS2, EXPONENT = 1.0, 1.5, 1.5, 3.0, 10
FORECAST_INSTANTS, FORECAST_HOLD = 51, 2
_PATH = np.repeat(np.arange(len(OFFSETS_M)), len(SPEED_SHARES))  # path of each proposal
_SHARE = np.tile(SPEED_SHARES, len(OFFSETS_M))


@dataclass(frozen=True)
class PdmClosed:
    """The 15 proposals and the best of them.

    proposals float64 [P, 41, 3]  reference poses along the paths
    states    float64 [P, 41, 7]  as simulated from the ego's state
    score     float64 [P]         total, without what a first plan cannot have
    best      int                 the first proposal of the highest score
    """

    proposals: np.ndarray
    states: np.ndarray
    score: np.ndarray
    best: int

    @property
    def reference(self) -> np.ndarray:
        """States [41, 7] of the best proposal."""
        return self.states[self.best]


@dataclass(frozen=True)
class _InTheWay:
    """What touches the corridors of the paths at one instant: C actors (one row for each path they block) and lights.

    path [C], poses [C, 3], sizes_lw_m [C, 2], along_m [C], velocity_mps [C, 2]
    lights: triples (path, polygon [V, 2], along_m)
    """

    path: np.ndarray
    poses: np.ndarray
    sizes_lw_m: np.ndarray
    along_m: np.ndarray
    velocity_mps: np.ndarray
    lights: list[tuple[int, np.ndarray, float]]


def constant_velocity(actors: Actors, instants: int = FORECAST_INSTANTS, hold: int = FORECAST_HOLD) -> Actors:
    """What PDM-Closed foresees: actors present at t = 0, agents going straight on; `hold` instants share one pose."""
    seen = actors.take(actors.present[:, 0])
    time_s = (np.arange(instants) // hold * hold) * DT_S
    speed = np.where(seen.is_agent, seen.speed_mps[:, 0], 0.0)
    xyh = np.repeat(seen.xyh[:, :1], instants, axis=1)
    xyh[..., 0] += np.cos(xyh[..., 2]) * speed[:, None] * time_s
    xyh[..., 1] += np.sin(xyh[..., 2]) * speed[:, None] * time_s
    present = np.ones((len(seen.ids), instants), dtype=bool)
    return replace(seen, xyh=xyh, present=present, speed_mps=np.repeat(seen.speed_mps[:, :1], instants, axis=1))


def parallel_paths(centreline: np.ndarray) -> np.ndarray:
    """Paths [L, V, 3] (x, y, heading unwrapped) beside a centre line [V, 2]; at a vertex, the mean of both segments."""
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


def _corridor(path: np.ndarray, progress: np.ndarray, start_m: float, end_m: float, width_m: float):
    """Segments of a path between two arc lengths as boxes (centre [S, 2], heading [S], half [S, 2]), square ends."""
    inner = progress[(progress > start_m) & (progress < end_m)]
    s = np.concatenate([[start_m], inner, [max(end_m, start_m + 1e-6)]])
    xy = np.stack([np.interp(s, progress, path[:, i]) for i in range(2)], axis=-1)
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


def _in_the_way(scene: PdmScene, paths, progress, start_m, reach_m: float, vehicle: Footprint) -> list[_InTheWay]:
    """What blocks the paths within reach, at instants 0, 2, 4, ... (0.2 s apart)."""
    actors, instants = scene.actors, np.arange(0, STATES, FORECAST_HOLD)
    rows, lights = [], [[] for _ in instants]
    for lane, path in enumerate(paths):
        end_m = min(start_m[lane] + reach_m, progress[lane][-1])
        corridor = _corridor(path, progress[lane], start_m[lane], end_m, vehicle.width_m)
        if not len(corridor[0]):
            continue
        t, a = np.nonzero(_actors_in_corridor(actors, instants, corridor).T)
        along = project_on_line(actors.xyh[a, instants[t], :2], path[:, :2])[0]
        rows.append((t, a, np.full(len(t), lane), along))
        for at, polygon in _lights_in_corridor(scene.red_lights, instants, corridor):
            along_m = float(project_on_line(_centroid(polygon), path[:, :2])[0])
            for i in at:
                lights[i].append((lane, polygon, along_m))
    t, a, lane, along = (
        (np.concatenate(column) for column in zip(*rows, strict=True)) if rows else np.zeros((4, 0), int)
    )
    poses = actors.xyh[a, instants[t]]
    speed = np.where(actors.is_agent[a], actors.speed_mps[a, 0], 0.0)
    velocity = speed[:, None] * np.stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])], axis=-1)
    columns = (lane, poses, actors.size_lw_m[a], along, velocity)
    return [_InTheWay(*(c[t == i] for c in columns), lights[i]) for i in range(len(instants))]


def _lights_in_corridor(red_lights, instants: np.ndarray, corridor) -> list[tuple[list[int], np.ndarray]]:
    """Red polygons that touch the corridor, each with the indices of the instants at which it is red."""
    lit: dict[int, tuple[list[int], np.ndarray]] = {}  # a light that stays red is one array, tested once
    for i, k in enumerate(instants):
        for polygon in red_lights[k]:
            lit.setdefault(id(polygon), ([], polygon))[0].append(i)
    blocks = _outlines(np.column_stack(corridor[:2]), 2 * corridor[2])
    return [(at, polygon) for at, polygon in lit.values() if rectangles_touch_polygon(blocks, polygon).any()]


def _outlines(pose: np.ndarray, size_lw_m: np.ndarray) -> np.ndarray:
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


def _leader(blocked: _InTheWay, s: np.ndarray, pose: np.ndarray, vehicle: Footprint):
    """Gap and speed [P] of what is nearest to cars at poses [P, 3] of all further along their paths; inf, 0 if none."""
    states = np.zeros((len(s), 7))
    states[:, :3] = pose
    points = ego_points(states, vehicle)
    corners, centre = points[:, :CENTRE], points[:, CENTRE]
    gap, speed = np.full(len(s), np.inf), np.zeros(len(s))
    between = np.hypot(*(centre[:, None] - blocked.poses[:, :2]).transpose(2, 0, 1))
    between[(blocked.along_m <= s[:, None]) | (blocked.path != _PATH[:, None])] = np.inf
    if np.isfinite(between).any():
        # Centres cannot be closer to the outlines than the radii say: only these can be the nearest.
        slack = np.hypot(*blocked.sizes_lw_m.T) / 2 + np.hypot(vehicle.length_m, vehicle.width_m) / 2
        n, c = np.nonzero((between - slack <= between.min(axis=1, keepdims=True)) & np.isfinite(between))
        lead = blocked.poses[c]
        distance = polygon_distance(corners[n], _outlines(lead, blocked.sizes_lw_m[c]))
        half = np.broadcast_to([vehicle.length_m / 2, vehicle.width_m / 2], (len(n), 2))
        touch = boxes_touch(centre[n], pose[n, 2], half, lead[:, :2], lead[:, 2], blocked.sizes_lw_m[c] / 2)
        exact = np.full(between.shape, np.inf)
        exact[n, c] = np.where(touch, 0.0, distance)
        nearest = exact.argmin(axis=1)
        gap = exact[np.arange(len(s)), nearest]
        towards = (
            np.cos(pose[:, 2]) * blocked.velocity_mps[nearest, 0]
            + np.sin(pose[:, 2]) * blocked.velocity_mps[nearest, 1]
        )
        speed = np.where(np.isfinite(gap), towards, 0.0)
    for lane, polygon, along_m in blocked.lights:
        own = np.flatnonzero((lane == _PATH) & (along_m > s))
        distance = polygon_distance(corners[own], np.broadcast_to(polygon, (len(own), *polygon.shape)))
        distance = np.where(rectangles_touch_polygon(corners[own], polygon), 0.0, distance)
        nearer = own[distance < gap[own]]
        gap[nearer], speed[nearer] = distance[distance < gap[own]], 0.0
    return gap, speed


def proposals(
    ego: np.ndarray,
    scene: PdmScene,
    speed_limit_mps: float | None,
    variant: str = "compat",
    vehicle: Footprint = PACIFICA,
) -> np.ndarray:
    """Reference poses [P, 41, 3]: IDM at five speeds along three paths, from the ego's state [7].

    The leader is looked up every 0.2 s. compat: at the first step there is none yet and NAVSIM's empty record reads
    as a leader at arc length 0, so that every proposal brakes for 0.1 s; strict looks before the first step.
    """
    paths = parallel_paths(scene.centreline)
    progress = [np.append(0.0, np.cumsum(np.hypot(*np.diff(path[:, :2], axis=0).T))) for path in paths]
    lines = list(zip(paths, progress, strict=True))
    start_m = [float(project_on_line(ego[:2], path[:, :2])[0]) for path in paths]
    target = _SHARE * (FALLBACK_LIMIT_MPS if speed_limit_mps is None else speed_limit_mps)
    blocked = _in_the_way(scene, paths, progress, start_m, target.max() * (STATES - 1) * DT_S, vehicle)
    s = np.zeros((STATES, len(target)))
    s[0], v = np.asarray(start_m)[_PATH], np.full(len(target), ego[VX])
    length = np.array([p[-1] for p in progress])[_PATH]
    place, speed, rear = np.zeros(len(target)), np.zeros(len(target)), np.zeros(len(target))
    for k in range(1, STATES):
        if k % FORECAST_HOLD == 0 or (k == 1 and variant == "strict"):
            now = blocked[k // FORECAST_HOLD]
            gap, speed = np.full(len(target), np.inf), np.zeros(len(target))
            if len(now.along_m) or now.lights:
                pose = [_poses(path, along, s[k - 1, i == _PATH]) for i, (path, along) in enumerate(lines)]
                gap, speed = _leader(now, s[k - 1], np.concatenate(pose), vehicle)
            free = np.isinf(gap)  # then the end of the path leads
            place = np.where(free, length, s[k - 1] + gap)
            rear = np.where(free, vehicle.length_m / 2, 0.0)
        s[k] = s[k - 1] + DT_S * v
        v = v + DT_S * idm_acceleration(v, target, place - s[k - 1] - rear, speed)
    return np.concatenate([_poses(path, along, s[:, i == _PATH].T) for i, (path, along) in enumerate(lines)])


def _poses(path: np.ndarray, progress: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Poses [..., 3] of a path at arc lengths [...], held inside it."""
    s = np.clip(s, 1e-5, progress[-1])
    pose = np.stack([np.interp(s, progress, path[:, i]) for i in range(3)], axis=-1)
    pose[..., HEADING] = wrap(pose[..., HEADING])
    return pose


def pdm_closed(
    ego: np.ndarray,
    scene: PdmScene,
    speed_limit_mps: float | None = None,
    version: str = "v2",
    variant: str = "compat",
    vehicle: Footprint = PACIFICA,
) -> PdmClosed:
    """PDM-Closed from the ego's state [7]: it sees the actors of t = 0 and the lights, and picks its best proposal.

    The scene must hold map and centre line (ValueError otherwise: the reference is then not available). Unknown
    lights do not stop it. Its own choice counts HC as 1 and leaves EC out, as in NAVSIM: it has no history.
    """
    check_variant(variant)
    if scene.layers is None or scene.centreline is None:
        raise ValueError("PDM-Closed needs a map and a centre line")
    foreseen = foresee(ego, scene, vehicle)
    poses = proposals(ego, foreseen, speed_limit_mps, variant, vehicle)
    states = rollout(poses, ego[VX], initial=ego, variant=variant, vehicle=vehicle)
    score = proposal_scores(states, foreseen, version, variant, vehicle)
    return PdmClosed(poses, states, score, int(np.argmax(score)))


def foresee(ego: np.ndarray, scene: PdmScene, vehicle: Footprint = PACIFICA) -> PdmScene:
    """The scene as PDM-Closed sees it from the ego's state [7]: constant velocities, less whom it touches."""
    lights = scene.red_lights if scene.red_lights is not None else [()] * STATES
    actors = constant_velocity(scene.actors)
    return replace(scene, actors=actors.take(~_touching(ego, actors, vehicle)), red_lights=lights)


def proposal_scores(
    states: np.ndarray,
    foreseen: PdmScene,
    version: str,
    variant: str,
    vehicle: Footprint = PACIFICA,
    judged: Judged | None = None,
) -> np.ndarray:
    """Score [P] of simulated proposals [P, 41, 7] by PDM-Closed's own lights; the first of the best is its choice."""
    scores: dict[str, Score] = sub_scores(states, foreseen, version, variant, vehicle=vehicle, judged=judged)
    if version == "v2":
        scores["HC"] = (np.ones(len(states)), np.ones(len(states), dtype=bool))
    if not foreseen.layers.lanes_known:  # a contact that nobody can judge does not count against a proposal
        scores = {name: (np.where(valid, value, 1.0), np.ones_like(valid)) for name, (value, valid) in scores.items()}
        ends = project_on_line(ego_points(states[:, [0, -1]], vehicle)[:, :, CENTRE], foreseen.centreline)[0]
        advance_m = np.maximum(ends[:, 1] - ends[:, 0], 0.0)
        scores["EP"] = (progress(advance_m, product(scores, MULTIPLIERS[version])[0], version), scores["NC"][1])
    return total(scores, version, without=("EC",))[0]


def _touching(ego: np.ndarray, actors: Actors, vehicle: Footprint) -> np.ndarray:
    """Actors that the ego overlaps at t = 0, bool [A]; they are left out of planning."""
    count = len(actors.ids)
    centre = np.broadcast_to(ego_points(ego, vehicle)[CENTRE], (count, 2))
    half = np.broadcast_to([vehicle.length_m / 2, vehicle.width_m / 2], (count, 2))
    pose = actors.xyh[:, 0]
    return boxes_touch(centre, np.full(count, ego[HEADING]), half, pose[:, :2], pose[:, 2], actors.size_lw_m / 2)
