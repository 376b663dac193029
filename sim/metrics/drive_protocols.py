"""What was driven, in the terms of each closed-loop protocol: plain figures, nuPlan, CARLA, Bench2Drive, HUGSIM,
NeuroNCAP, AlpaSim. Each function takes a prepared log of a drive and returns {metric: (value, valid)}.

What a protocol takes from a recorded expert and a course does not have, its route stands for: the goal for the
expert's progress (nuPlan) and for the recorded path (AlpaSim, HUGSIM). NeuroNCAP's "nothing is done" is that the ego
meets whom it met at the speed it began with. An episode ends with the first collision or departure from the road,
where CARLA would drive on: what follows is not driven, and not completed.
"""

from functools import cached_property

import numpy as np

from sim.metrics import closed_loop, neural_sims
from sim.metrics.closed_loop import NOT_AVAILABLE, Score
from sim.metrics.log_view import LogView
from sim.metrics.pdm import DT_S, HEADING, VX, comfort
from sim.metrics.pdm_scene import CENTRE, Areas, angle_to, boxes_touch
from sim.metrics.pdm_scores import (
    AHEAD_RAD,
    BEHIND_RAD,
    TTC_STEPS,
    TTC_STOPPED_MPS,
    Contacts,
    Judged,
    first_contacts,
    judge,
    no_collision,
)

CHECKPOINTS = {"carla": 4, "bench2drive": 20}  # of the minimum speed along a route
MOVED_MPS = 0.5  # traffic is who was ever faster: parked cars set no pace
LATE_SHARE = 0.95  # of the route, from which on the last checkpoint counts
HUGSIM_LEFT_PATH_M, HUGSIM_STEP_S, HUGSIM_MOST_STEPS = 10.0, 0.5, 400
CAR_REACH_M = 20.0  # between the centres of two boxes that touch, with room for lorries
GROUND_LATTICE = (8, 4)  # points of ground looked at under the ego's box


class Drive:
    """A prepared log of a drive and what several protocols share; `mapped`: lanes and drivable area are known."""

    def __init__(self, view: LogView):
        self.view, self.log = view, view.log
        self.states = view.states[None, :, :7]
        self.judged: Judged = judge(self.states, view.track_scene, view.footprint)
        self.areas: Areas | None = self.judged.areas
        self.mapped = self.judged.lanes_known
        self.contacts: Contacts = first_contacts(self.judged)
        steps = np.hypot(*np.diff(view.centre_xyh[:, :2], axis=0).T)
        self.step_m = np.append(0.0, steps)
        self.routed = view.way_m is not None and self.log.goal_m > 0
        self.even = bool(np.allclose(np.diff(self.log.time_s), DT_S, atol=2e-3))  # nuPlan's filters need 10 Hz

    @cached_property
    def goal_share(self) -> np.ndarray:
        """float64 [F]: how much of the way to the goal has been driven, the most so far; 1 if it began beyond."""
        along = np.maximum.accumulate(self.view.along_m)
        to_go_m = self.log.goal_m - along[0]
        return np.clip((along - along[0]) / to_go_m, 0.0, 1.0) if to_go_m > 0 else np.ones(len(along))

    @property
    def collided(self) -> bool:
        return "collision" in self.log.event

    @property
    def at_fault(self) -> Score:
        """1 if the ego is to blame for a collision, as nuPlan sees it."""
        value, valid = no_collision(self.judged)
        seen = bool(len(self.contacts.actor)) or not self.collided  # a touch between two frames cannot be judged
        return (float(value[0] < 1.0), True) if valid[0] and seen else NOT_AVAILABLE


def plain(drive: Drive) -> dict[str, Score]:
    """Figures in words that anyone knows."""
    log = drive.log
    metres = drive.step_m.sum()
    fault, known = drive.at_fault
    incidents = fault + float("off_road" in log.event)
    calm = comfort(drive.states, "strict") if drive.even and len(log) >= 15 else None
    return {
        "route_completion": (float(drive.goal_share[-1]), True) if drive.routed else NOT_AVAILABLE,
        "at_fault_collision_rate": drive.at_fault,
        "red_light_rate": red_light_rate(drive),
        "comfort_rate": NOT_AVAILABLE if calm is None else (float(all(ok[0] for ok in calm.values())), True),
        "incidents_per_km": (float(1000 * incidents / metres), True) if known and metres > 1 else NOT_AVAILABLE,
    }


def red_lights_run(drive: Drive) -> int | None:
    """How many red lights the world saw run; None where lights are unknown."""
    log = drive.log
    if log.lights == "unknown":
        return None
    return int((log.event == "red_light").sum())


def red_light_rate(drive: Drive) -> Score:
    """1 where a red light was run. Not available where nothing is known of lights, or where there are none to run."""
    run = red_lights_run(drive)
    return NOT_AVAILABLE if run is None or drive.log.lights == "none" else (float(run > 0), True)


def nuplan(drive: Drive) -> dict[str, Score]:
    log, view = drive.log, drive.view
    if not (drive.mapped and drive.routed and drive.even and len(log) >= 15):
        return {"nuplan.score": NOT_AVAILABLE}
    value, valid = no_collision(drive.judged)
    oncoming = drive.areas.oncoming[0] & ~drive.areas.centre_in_intersection[0]
    ego_m = float(view.along_m[-1] - view.along_m[0])
    scores = {
        "NC": (float(value[0]), bool(valid[0])),
        # The world ends an episode as the car leaves the road; that it then was not yet 0.3 m out excuses nothing.
        "DAC": (0.0, True) if "off_road" in log.event else closed_loop.nuplan_drivable_area(_outside_m(drive)),
        "DDC": closed_loop.nuplan_driving_direction(np.where(oncoming, drive.step_m, 0.0), DT_S),
        "TTC": closed_loop.nuplan_ttc(_least_ttc_s(drive)),
        "speed_limit": closed_loop.nuplan_speed_limit(log.speed_mps, view.limit_mps, DT_S),
        "C": (float(all(ok[0] for ok in comfort(drive.states, "strict").values())), True),
        **closed_loop.nuplan_progress(ego_m, log.goal_m),
    }
    return {"nuplan.score": closed_loop.nuplan(scores)}


def _outside_m(drive: Drive) -> np.ndarray:
    """How far each corner [F, 4] is outside the drivable area."""
    corners = drive.judged.points[0, :, :CENTRE]
    outside = np.zeros(corners.shape[:2])
    for k in np.flatnonzero(drive.areas.non_drivable[0]):
        outside[k] = drive.view.distance_to_drivable(corners[k])
    return outside


def _least_ttc_s(drive: Drive) -> float:
    """Least time to collision, both going straight on, looked at .3, .6 and .9 s ahead; inf if none within these."""
    actors, states, view = drive.judged.actors, drive.states[0], drive.view
    if not len(actors.ids):
        return float("inf")
    areas = drive.areas
    tight = areas.multi_lane[0] | areas.non_drivable[0] | areas.rear_axle_in_intersection[0]
    reach = 12.0 + 2 * states[:, VX].max()
    gap = actors.xyh[:, : len(states), :2] - states[None, :, :2]
    a, k = np.nonzero((np.hypot(gap[..., 0], gap[..., 1]) < reach) & actors.present[:, : len(states)])
    ego, pose, centre = states[k], actors.xyh[a, k], view.centre_xyh[k, :2]
    angle = angle_to(ego, pose[:, :2])
    asked = (angle < AHEAD_RAD) | (tight[k] & ~(angle > BEHIND_RAD))
    asked &= np.abs(ego[:, VX]) >= TTC_STOPPED_MPS
    own = ego[:, VX, None] * np.stack([np.cos(ego[:, HEADING]), np.sin(ego[:, HEADING])], axis=-1)
    its = actors.speed_mps[a, k, None] * np.stack([np.cos(pose[:, 2]), np.sin(pose[:, 2])], axis=-1)
    half = np.broadcast_to([view.footprint.length_m / 2, view.footprint.width_m / 2], (len(a), 2))
    for step in TTC_STEPS[1:]:
        ahead_s = step * DT_S
        there = pose[:, :2] + its * ahead_s
        size = actors.size_lw_m[a] / 2
        touch = boxes_touch(centre + own * ahead_s, ego[:, HEADING], half, there, pose[:, 2], size)
        if (touch & asked).any():
            return ahead_s
    return float("inf")


def carla_route(drive: Drive, checkpoints: int) -> closed_loop.Route | None:
    """The route as CARLA records it; None where the log has none. A simulated world has what its log tells of."""
    log = drive.log
    if not (drive.routed and drive.mapped):
        return None
    counts = {"pedestrian": 0, "vehicle": 0, "static": 0}
    for actor in log.event_actor[log.event == "collision"]:
        rows = np.flatnonzero(log.actor_id == actor)
        category = str(log.actor_category[rows[0]]) if len(rows) else ""
        counts[
            "pedestrian"
            if category.startswith("human.")
            else "vehicle"
            if category.startswith("vehicle.")
            else "static"
        ] += 1
    red = red_lights_run(drive)
    # The world tells of every stop line passed wrongly, lights and signs alike.
    signs = None if red is None else max(int((log.event == "stop_line").sum()) - red, 0)
    oncoming = drive.areas.oncoming[0]
    return closed_loop.Route(
        completion_pct=100 * float(drive.goal_share[-1]),
        **counts,
        red_light=red,
        stop_sign=signs,
        scenario_timeout=int("blocked" in log.event),
        emergency_vehicle=0,
        off_lane_pct=100 * float(drive.step_m[oncoming].sum() / max(drive.step_m.sum(), 1e-9)),
        min_speed_pct=tuple(v for v in _speed_checks(drive, checkpoints) if v < 100),
        ended_early=log.ended_by in ("collision", "off_road", "blocked", "route_left"),
    )


def _speed_checks(drive: Drive, checkpoints: int) -> list[float]:
    """The ego's mean speed in per cent of the traffic's, on each piece of the route that was driven to its end."""
    log, actors = drive.log, drive.view.actors
    frames = len(log)
    vehicle = np.array([str(c).startswith("vehicle.") for c in drive.view.categories], dtype=bool)
    moves = vehicle & ((actors.speed_mps * actors.present).max(axis=1, initial=0.0) > MOVED_MPS)
    present = actors.present[moves, :frames]
    seen = present.sum(axis=0)
    pace = (actors.speed_mps[moves, :frames] * present).sum(axis=0) / np.maximum(seen, 1)
    piece = np.minimum((drive.goal_share * checkpoints).astype(int), checkpoints - 1)
    done = int(drive.goal_share[-1] * checkpoints + 1 - LATE_SHARE if drive.goal_share[-1] > LATE_SHARE else piece[-1])
    checks = []
    for c in range(min(done, checkpoints)):
        rows = (piece == c) & (seen > 0)
        slow = pace[rows].mean() if rows.any() else 0.0
        checks.append(100.0 if slow == 0 else round(float(100 * log.speed_mps[rows].mean() / slow), 2))
    return checks


def carla(drive: Drive) -> dict[str, Score]:
    route = carla_route(drive, CHECKPOINTS["carla"])
    names = ("carla_2_0.driving_score", "carla_2_1.driving_score")
    if route is None:
        return dict.fromkeys(names, NOT_AVAILABLE)
    return dict(zip(names, (closed_loop.carla_2_0(route), closed_loop.carla_2_1(route)), strict=True))


def bench2drive(drive: Drive) -> dict[str, Score]:
    route = carla_route(drive, CHECKPOINTS["bench2drive"])
    names = ("driving_score", "success_rate", "efficiency")
    if route is None:
        scores = dict.fromkeys(names, NOT_AVAILABLE)
    else:
        scores = closed_loop.bench2drive_mean([route], asked_for=1)
        checks = [v for v in _speed_checks(drive, CHECKPOINTS["bench2drive"]) if v <= 1000]
        scores["efficiency"] = (float(np.mean(checks)), True) if checks else NOT_AVAILABLE
    states = drive.states[0]
    for variant in ("compat", "strict"):
        motion = (states[:, 4], states[:, VX] * states[:, 6], states[:, 6], variant)
        scores[f"comfort_{variant}"] = closed_loop.bench2drive_comfort(*motion) if drive.even else NOT_AVAILABLE
    return {f"bench2drive.{name}": score for name, score in scores.items()}


def neuroncap(drive: Drive) -> dict[str, Score]:
    log = drive.log
    rows = np.flatnonzero(log.event == "collision")
    if not len(rows):
        return {"neuroncap.score": neural_sims.neuroncap(None, 1.0)}
    row, actors = rows[0], drive.view.actors
    frame, actor = log.event_frame[row], str(log.event_actor[row])
    impact = float(log.event_speed_mps[row])
    if actor not in actors.ids or not np.isfinite(impact):
        return {"neuroncap.score": NOT_AVAILABLE}
    a = actors.ids.index(actor)
    yaw, its_yaw = log.ego_xyyaw_in_world[frame, 2], actors.xyh[a, frame, 2]
    own = log.speed_mps[0] * np.array([np.cos(yaw), np.sin(yaw)])
    its = actors.speed_mps[a, frame] * np.array([np.cos(its_yaw), np.sin(its_yaw)])
    return {"neuroncap.score": neural_sims.neuroncap(impact, float(np.hypot(*(own - its))))}


def alpasim(drive: Drive) -> dict[str, Score]:
    log, view = drive.log, drive.view
    if not drive.routed or drive.areas is None:
        return {"alpasim.score": NOT_AVAILABLE}
    contacts, at_fault = drive.contacts, np.zeros(len(log), dtype=bool)
    blamed = contacts.front | contacts.lateral | contacts.hit_stopped
    at_fault[contacts.instant[blamed]] = True
    if drive.collided and not len(contacts.actor):
        return {"alpasim.score": NOT_AVAILABLE}
    rollout = neural_sims.AlpasimRollout(
        drive.goal_share, at_fault, drive.areas.non_drivable[0], view.off_way_m, log.goal_m
    )
    return {"alpasim.score": neural_sims.alpasim(rollout)}


def hugsim(drive: Drive) -> dict[str, Score]:
    log, view = drive.log, drive.view
    names = {"hugsim.hd": "compat", "hugsim.hd_strict": "strict"}
    if not drive.routed or view.layers is None:
        return dict.fromkeys(names, NOT_AVAILABLE)
    left = np.flatnonzero(view.off_way_m > HUGSIM_LEFT_PATH_M)
    last = int(left[0]) if len(left) else len(log) - 1
    frames, poses = np.unique(log.plan_frame, return_counts=True)
    frames = frames[poses > 1]  # at the end of a recording the recorded driver's plans are of one
    last = min(last, int(frames[HUGSIM_MOST_STEPS - 1])) if len(frames) > HUGSIM_MOST_STEPS else last
    steps = [_hugsim_step(view, int(frame)) for frame in frames if frame <= last]
    route = view.way_m[: max(int(np.searchsorted(view.passed_m, log.goal_m)), 2)]
    completion = neural_sims.hugsim_route_completion(log.ego_xyyaw_in_world[: last + 1, :2], route)
    scored = [neural_sims.hugsim_step_variants(step, tuple(names.values())) for step in steps]
    return {
        name: neural_sims.hugsim([each[variant]["s"] for each in scored], completion) for name, variant in names.items()
    }


def _hugsim_step(view: LogView, frame: int) -> neural_sims.HugsimStep:
    """One plan at 0.5 s steps among cars as they then were; ground is known wherever the map says so."""
    log, size = view.log, (view.footprint.length_m, view.footprint.width_m)
    time_s, xyyaw = log.plan_at(frame)
    centres = xyyaw.copy()
    centres[:, :2] += log.ego_centre_m * np.stack([np.cos(xyyaw[:, 2]), np.sin(xyyaw[:, 2])], axis=-1)
    at_us = log.time_us[frame] + (np.append(0.0, time_s) * 1e6).astype(np.int64)
    known = np.searchsorted(log.scene_time_us, at_us[at_us <= log.scene_time_us[-1]] - 1000)
    actors, cars = view.actors, []
    vehicle = np.array([str(c).startswith("vehicle.") for c in view.categories], dtype=bool)
    poses = np.concatenate([view.centre_xyh[frame][None], centres])
    # TTC looks one second further along the plan: whoever is beyond that touches nothing.
    reach_m = CAR_REACH_M + np.hypot(*np.diff(poses[:, :2], axis=0).T).max() / HUGSIM_STEP_S
    for i, n in enumerate(known):
        now = vehicle & actors.present[:, n]
        now &= np.hypot(*(actors.xyh[:, n, :2] - poses[i, :2]).T) < reach_m
        cars.append(np.column_stack([actors.xyh[now, n], actors.size_lw_m[now]]))
    grid = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n - 0.5 for n in GROUND_LATTICE), indexing="ij"), axis=-1)
    local = grid.reshape(-1, 2) * size
    cos, sin = np.cos(poses[:, 2, None]), np.sin(poses[:, 2, None])
    ground = np.stack(
        [
            poses[:, 0, None] + local[:, 0] * cos - local[:, 1] * sin,
            poses[:, 1, None] + local[:, 0] * sin + local[:, 1] * cos,
        ],
        axis=-1,
    ).reshape(-1, 2)
    return neural_sims.HugsimStep(poses[0], size, centres, cars, ground[view.drivable(ground)])
