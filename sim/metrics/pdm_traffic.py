"""The traffic of EPDMS: other vehicles answer to the plan by IDM, people and things are replayed.

    v' = a (1 - (v / v0)^4 - (s* / s)^2) in [-b, a],  s* = s0 + v T + v (v - v_lead) / (2 sqrt(a b)),  Euler, 0.1 s

Vehicles within 100 m of the ego drive along rails. What leads is the nearest of what lies in the way, as wide as the
vehicle; everyone moves at once, by where all were a step before.

    what               compat                                      strict
    rail               the lane that holds the vehicle's centre;   the way that it really took, and no further along it
                       of several, the one that it is along        than it then was
    v0                 the lane's limit, else 10 m/s               10 m/s, or its own speed if that is more
    at its end         vehicles stop: NAVSIM hands the agents no   -
                       lights, and without them they plan no way
    in the way         other such vehicles and the ego, each with  everyone, as long as they are, the ego where it is
                       1.5 s of its way ahead of it, the ego's
                       box centred on its rear axle
    other vehicles     stand where they were if parked off the     replayed
                       lanes; else they vanish

Letters: Q plans, A actors of a scene, N vehicles on rails in all scenes, B bodies (all actors, and the ego of each
plan), R pairs of a vehicle and a body, W points ahead. Source: NAVSIM v2.2 `traffic_agents_policies`, nuPlan's
`idm_agents`. There a swept footprint follows the lane's bends and vehicles move one after the other; here it is a box
as long, and they move together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sensors.frames import wrap
from sim.metrics.pdm import DT_S, HEADING, PACIFICA, VX, Footprint
from sim.metrics.pdm_proposals import Paths, box_outlines, parallel_paths
from sim.metrics.pdm_scene import STATES, Actors, PdmScene, boxes_touch, polygon_distance, project_on_line
from sim.surroundings import Lane

V0_MPS, MIN_GAP_M, HEADWAY_S, MAX_ACCEL_MPS2, MAX_DECEL_MPS2, EXPONENT = 10.0, 1.0, 1.5, 1.0, 2.0, 4
RADIUS_M, SNAP_M, STANDS_MPS = 100.0, 3.0, 0.1
AHEAD_M, SPACING_M = 45.0, 1.5  # how far along its rail a vehicle looks, and how closely
LEAST_RAIL_M, BEYOND_M = 0.5, 20.0  # strict: who moves less is replayed; the way is taken to go straight on so far


@dataclass(frozen=True)
class _Bodies:
    """Everyone of every plan, as replayed: plan [B], pose [B, 41, 3], speed_mps and present [B, 41], size_lw_m [B, 2].

    Of each plan its actors come first, then the ego; first [Q] is the number of each plan's first one.
    """

    plan: np.ndarray
    pose: np.ndarray
    speed_mps: np.ndarray
    present: np.ndarray
    size_lw_m: np.ndarray
    is_ego: np.ndarray
    is_vehicle: np.ndarray
    first: np.ndarray


@dataclass(frozen=True)
class _Rails:
    """N vehicles on rails: which body each is, its rail from where it is now, how far it may go, and v0 [N].

    furthest_m [N, 42] holds it back at each instant and one more, to_go_m [N] is where its rail ends; inf: nowhere.
    """

    body: np.ndarray
    paths: Paths
    to_go_m: np.ndarray
    furthest_m: np.ndarray
    v0_mps: np.ndarray


def react(
    scenes: Sequence[PdmScene],
    vehicles: Sequence[np.ndarray],
    egos: np.ndarray,
    lanes: Sequence[Lane],
    variant: str = "compat",
    vehicle: Footprint = PACIFICA,
) -> list[PdmScene]:
    """The scenes of Q plans with 41 instants of actors who answer to the simulated states [Q, 41, 7] of the ego.

    `vehicles` tells of each scene which of its actors are vehicles, bool [A]; `lanes` are those of the scenes' maps.
    """
    bodies = _bodies(scenes, vehicles, egos, vehicle, variant)
    start = bodies.pose[:, 0]
    ego = start[bodies.is_ego][bodies.plan]
    candidates = np.flatnonzero(bodies.is_vehicle & bodies.present[:, 0] & _within(start, ego, RADIUS_M))
    rails = _own_ways(bodies, candidates) if variant == "strict" else _lane_rails(bodies, candidates, scenes, lanes)
    s_m, speed = _drive(bodies, rails, variant)
    pose, present, speeds = bodies.pose.copy(), bodies.present.copy(), bodies.speed_mps.copy()
    if len(rails.body):
        pose[rails.body, 1:], speeds[rails.body, 1:] = rails.paths.at(s_m)[:, 1:], speed[:, 1:]
        present[rails.body] = True
    if variant == "compat":
        _leave_behind(bodies, rails, scenes, pose, present)
    answered = []
    for q, scene in enumerate(scenes):
        rows = slice(bodies.first[q], bodies.first[q] + len(scene.actors.ids))
        columns = pose[rows], present[rows], scene.actors.size_lw_m, speeds[rows], scene.actors.is_agent
        answered.append(replace(scene, actors=Actors(scene.actors.ids, *columns)))
    return answered


def _bodies(scenes, vehicles, egos: np.ndarray, vehicle: Footprint, variant: str) -> _Bodies:
    parts: dict[str, list[np.ndarray]] = {name: [] for name in _Bodies.__dataclass_fields__}
    ego_size = np.array([[vehicle.length_m, vehicle.width_m]])
    count = 0
    for q, (scene, is_vehicle) in enumerate(zip(scenes, vehicles, strict=True)):
        actors, ego = scene.actors, egos[q, :, :3].copy()
        if variant == "strict":
            ego[:, :2] += vehicle.centre_ahead_m * np.stack([np.cos(ego[:, 2]), np.sin(ego[:, 2])], axis=-1)
        parts["first"].append(np.array([count]))
        parts["plan"].append(np.full(len(actors.ids) + 1, q))
        parts["pose"] += [actors.xyh[:, :STATES], ego[None]]
        parts["speed_mps"] += [actors.speed_mps[:, :STATES], np.abs(egos[q, None, :, VX])]
        parts["present"] += [actors.present[:, :STATES], np.ones((1, STATES), dtype=bool)]
        parts["size_lw_m"] += [actors.size_lw_m, ego_size]
        parts["is_ego"].append(np.arange(len(actors.ids) + 1) == len(actors.ids))
        parts["is_vehicle"] += [is_vehicle, np.array([False])]
        count += len(actors.ids) + 1
    return _Bodies(**{name: np.concatenate(part) for name, part in parts.items()})


def _within(a: np.ndarray, b: np.ndarray, metres: float) -> np.ndarray:
    return np.hypot(*(a[:, :2] - b[:, :2]).T) <= metres


def _own_ways(bodies: _Bodies, candidates: np.ndarray) -> _Rails:
    """The way that each took, for those who are there all the time and move at all."""
    lines, kept, furthest = [], [], []
    for b in candidates[bodies.present[candidates].all(axis=1)]:
        pose = bodies.pose[b].copy()
        pose[:, HEADING] = np.unwrap(pose[:, HEADING])
        step = np.hypot(*np.diff(pose[:, :2], axis=0).T)
        if step.sum() < LEAST_RAIL_M:
            continue
        beyond = pose[-1] + BEYOND_M * np.array([np.cos(pose[-1, 2]), np.sin(pose[-1, 2]), 0.0])
        lines.append(np.vstack([pose[np.append(True, step > 1e-6)], beyond]))
        furthest.append(np.cumsum([0.0, *np.where(step > 1e-6, step, 0.0), step[-1]]))
        kept.append(b)
    v0 = np.maximum(bodies.speed_mps[kept, 0], V0_MPS)
    return _rails(kept, lines, np.full(len(kept), np.inf), np.reshape(furthest, (-1, STATES + 1)), v0)


def _lane_rails(bodies: _Bodies, candidates: np.ndarray, scenes, lanes: Sequence[Lane]) -> _Rails:
    """The rest of the lane that each is on; whose box, moved onto it, touches the ego or an earlier one, has none."""
    outlines = [outline for name, _, outline in scenes[0].layers.outlines if name == "lane"]
    at = bodies.pose[candidates, 0]
    best, turned = np.full(len(candidates), -1), np.full(len(candidates), np.inf)
    along, snapped, lines = np.zeros(len(candidates)), at.copy(), {}
    for k, outline in enumerate(outlines):
        inside = np.flatnonzero(outline.holds(at[:, 0], at[:, 1]))
        if not len(inside):
            continue
        line = parallel_paths(_laps(lanes[k].centreline_m))[0]
        lines[k] = Paths.of([line])
        s, aside = project_on_line(at[inside, :2], line[:, :2])
        pose = lines[k].at(s[None])[0]
        turn = np.abs(wrap(pose[:, HEADING] - at[inside, HEADING]))
        better = (turn < turned[inside]) & (aside <= SNAP_M)
        chosen = inside[better]
        best[chosen], turned[chosen], along[chosen], snapped[chosen] = k, turn[better], s[better], pose[better]
    rows = [n for n in np.flatnonzero(best >= 0)]
    boxes = np.column_stack([snapped, bodies.size_lw_m[candidates]])
    taken: dict[int, list[np.ndarray]] = {}
    kept = []
    for n in rows:
        q = int(bodies.plan[candidates[n]])
        own = bodies.first[q + 1] - 1 if q + 1 < len(bodies.first) else len(bodies.plan) - 1
        earlier = np.array([np.append(bodies.pose[own, 0], bodies.size_lw_m[own]), *taken.get(q, ())])
        if not _touches(boxes[n], earlier):
            taken.setdefault(q, []).append(boxes[n])
            kept.append(n)
    limits = np.array([lanes[best[n]].limit_mps for n in kept])
    ends = np.array([lines[best[n]].end_m[0] for n in kept])
    pieces = [_piece(lines[best[n]], along[n]) for n in kept]
    v0 = np.where(np.isfinite(limits), limits, V0_MPS)
    free = np.full((len(kept), STATES + 1), np.inf)
    return _rails(candidates[kept], pieces, ends - along[kept], free, v0)


def _rails(kept, lines, to_go_m, furthest_m, v0_mps) -> _Rails:
    nowhere = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])  # of nobody
    paths = Paths.of(lines or [nowhere])
    return _Rails(np.asarray(kept, dtype=np.int64), paths, to_go_m, furthest_m, v0_mps)


def _laps(centreline: np.ndarray) -> np.ndarray:
    """A lane that is a loop has no end: two laps of it."""
    closed = len(centreline) > 3 and np.array_equal(centreline[0], centreline[-1])
    return np.concatenate([centreline, centreline[1:]]) if closed else centreline


def _piece(path: Paths, start_m: float) -> np.ndarray:
    """Vertices [V, 3] of a single path from an arc length on, as far as one gets in 4 s and looks."""
    xyh, along = path.line(0)
    start_m = min(start_m, path.end_m[0] - 1e-3)
    end_m = min(start_m + 2 * AHEAD_M + BEYOND_M, path.end_m[0])
    inner = (along > start_m + 1e-6) & (along < end_m - 1e-6)
    ends = [[np.interp(s, along, xyh[:, c]) for c in range(3)] for s in (start_m, end_m)]
    return np.vstack([ends[:1], xyh[inner], ends[1:]])


def _touches(box: np.ndarray, others: np.ndarray) -> bool:
    """Whether a box [5] (x, y, heading, length, width) touches any of others [N, 5]."""
    mine = np.broadcast_to(box, others.shape)
    boxes = ((b[:, :2], b[:, 2], b[:, 3:] / 2) for b in (mine, others))
    return bool(boxes_touch(*next(boxes), *next(boxes)).any())


def _drive(bodies: _Bodies, rails: _Rails, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """Arc lengths and speeds [N, 41] along the rails."""
    count, reach = len(rails.body), HEADWAY_S if variant == "compat" else 0.0
    s, v = np.zeros((count, STATES)), np.zeros((count, STATES))
    if not count:
        return s, v
    v[:, 0] = np.minimum(bodies.speed_mps[rails.body, 0], rails.furthest_m[:, 1] / DT_S)
    at_m = np.arange(0.0, AHEAD_M, SPACING_M)
    ahead = rails.paths.at(np.broadcast_to(at_m, (count, len(at_m))))[..., :2]
    seen = at_m <= rails.paths.end_m[:, None]
    i, j = _pairs(bodies, rails, ahead, variant)
    on_rail = np.full(len(bodies.plan), -1)
    on_rail[rails.body] = np.arange(count)
    for k in range(STATES - 1):
        pose, speed, size = bodies.pose[:, k].copy(), bodies.speed_mps[:, k].copy(), bodies.size_lw_m.copy()
        pose[rails.body], speed[rails.body] = rails.paths.at(s[:, k, None])[:, 0], v[:, k]
        longer = np.where(on_rail >= 0, reach * speed, 0.0)  # with the way that it covers in its headway
        size[:, 0] += longer
        pose[:, :2] += longer[:, None] / 2 * np.stack([np.cos(pose[:, 2]), np.sin(pose[:, 2])], axis=-1)
        there = bodies.present[j, k] | (on_rail[j] >= 0)
        gap, lead = _leaders(i[there], j[there], rails, pose, speed, size, ahead, seen & (at_m >= s[:, k, None]))
        free = np.isinf(gap)
        gap = np.where(free, rails.to_go_m - s[:, k] - bodies.size_lw_m[rails.body, 0] / 2, gap)
        accel = _idm(v[:, k], rails.v0_mps, gap, np.where(free, 0.0, lead))
        s[:, k + 1] = s[:, k] + DT_S * v[:, k]
        most = np.maximum(rails.furthest_m[:, k + 2] - s[:, k + 1], 0.0) / DT_S
        v[:, k + 1] = np.clip(v[:, k] + DT_S * accel, 0.0, most)
    return s, v


def _pairs(bodies: _Bodies, rails: _Rails, ahead: np.ndarray, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """Vehicles on rails and bodies that can get into their way within 4 s."""
    everyone = bodies.is_ego if variant == "compat" else np.ones(len(bodies.plan), dtype=bool)
    seen = everyone.copy()
    seen[rails.body] = True
    travel = np.where(seen, np.abs(bodies.speed_mps).max(axis=1) * (STATES * DT_S + HEADWAY_S) + 8.0, 0.0)
    radius = np.hypot(*bodies.size_lw_m.T) / 2 + travel
    firsts, seconds = [], []
    for q in np.unique(bodies.plan[rails.body]):
        mine = np.flatnonzero(bodies.plan[rails.body] == q)
        others = np.flatnonzero((bodies.plan == q) & seen)
        apart = np.hypot(*(ahead[mine][:, :, None] - bodies.pose[others, 0, :2]).transpose(3, 0, 1, 2)).min(axis=1)
        near = apart <= radius[others] + bodies.size_lw_m[rails.body[mine], 1, None]
        near &= rails.body[mine, None] != others
        m, o = np.nonzero(near)
        firsts.append(mine[m])
        seconds.append(others[o])
    return np.concatenate(firsts), np.concatenate(seconds)


def _leaders(i, j, rails: _Rails, pose, speed, size, ahead, seen) -> tuple[np.ndarray, np.ndarray]:
    """Gap [N] to the nearest body that lies in the way of each vehicle (inf if none), and that one's speed along it."""
    gap, lead = np.full(len(rails.body), np.inf), np.zeros(len(rails.body))
    offset = ahead[i] - pose[j, None, :2]  # [R, W, 2]
    cos, sin = np.cos(pose[j, 2, None]), np.sin(pose[j, 2, None])
    along = np.abs(offset[..., 0] * cos + offset[..., 1] * sin) - size[j, 0, None] / 2
    across = np.abs(offset[..., 1] * cos - offset[..., 0] * sin) - size[j, 1, None] / 2
    away = np.maximum(along, 0.0) ** 2 + np.maximum(across, 0.0) ** 2
    width = size[rails.body, 1]
    hit = np.flatnonzero(((away <= (width[i, None] / 2) ** 2) & seen[i]).any(axis=1))
    i, j = i[hit], j[hit]
    own = rails.body[i]
    distance = polygon_distance(box_outlines(pose[own], size[own]), box_outlines(pose[j], size[j]))
    touch = boxes_touch(pose[own, :2], pose[own, 2], size[own] / 2, pose[j, :2], pose[j, 2], size[j] / 2)
    distance = np.where(touch, 0.0, distance)
    order = np.lexsort((distance, i))
    nearest = order[np.append(True, np.diff(i[order]) > 0)] if len(order) else order
    gap[i[nearest]] = distance[nearest]
    lead[i[nearest]] = speed[j[nearest]] * np.cos(pose[j[nearest], 2] - pose[own[nearest], 2])
    return gap, lead


def _idm(v: np.ndarray, v0: np.ndarray, gap_m: np.ndarray, v_lead: np.ndarray) -> np.ndarray:
    wanted = MIN_GAP_M + v * HEADWAY_S + v * (v - v_lead) / (2 * np.sqrt(MAX_ACCEL_MPS2 * MAX_DECEL_MPS2))
    pull = 1 - (v / v0) ** EXPONENT - (wanted / np.maximum(gap_m, MIN_GAP_M)) ** 2
    return np.clip(MAX_ACCEL_MPS2 * pull, -MAX_DECEL_MPS2, MAX_ACCEL_MPS2)


def _leave_behind(bodies: _Bodies, rails: _Rails, scenes, pose: np.ndarray, present: np.ndarray) -> None:
    """NAVSIM's vehicles without a rail, from the first step on: parked ones stand where they were, others vanish."""
    without = bodies.is_vehicle.copy()
    without[rails.body] = False
    rows = np.flatnonzero(without)
    at = bodies.pose[rows, 0]
    stands = bodies.present[rows, 0] & (bodies.speed_mps[rows, 0] < STANDS_MPS)
    for name, _, outline in scenes[0].layers.outlines:
        if name in ("lane", "intersection"):
            stands &= ~outline.holds(at[:, 0], at[:, 1])
    pose[rows, 1:] = at[:, None]
    present[rows, 1:] = stands[:, None]
