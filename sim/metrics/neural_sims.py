"""Protocols of simulators built from recordings: HUGSIM, NeuroNCAP, AlpaSim.

Pure functions from what happened to a score, each (value, valid). HUGSIM and AlpaSim count in 0 .. 1, NeuroNCAP in
stars. HUGSIM's faults, kept in "compat" and absent from "strict": it takes the lateral acceleration for zero, bounds
the longitudinal one by the lateral limit (4.89 m/s2) and the longitudinal jerk by that of the magnitude (8.37 m/s3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sensors.frames import wrap
from sim.metrics.closed_loop import NOT_AVAILABLE, Score, mean_score
from sim.metrics.pdm import COMFORT_BOUNDS, check_variant
from sim.metrics.pdm_scene import boxes_touch

HUGSIM_TTC_S, HUGSIM_POINTS = (0.5, 1.0), 100
NEURONCAP_SUBSTEPS = 10
ALPASIM_LEFT_PATH_M, ALPASIM_SHORT_M, ALPASIM_FULL_PROGRESS = 4.0, 5.0, 0.8


@dataclass(frozen=True)
class HugsimStep:
    """One control step of HUGSIM, all in one world frame. Letters: Q poses of the plan, O cars, G and H points.

    ego_xyyaw     float64 [3]      centre of the box
    ego_size_lw_m (length, width)
    plan          float64 [Q, 3]   planned centres and headings, `step_s` apart, the present pose not included
    cars          Q + 1 arrays [O, 5] (x, y, yaw, length, width): at present, and at each pose of the plan; fewer are
                  allowed at the end of a log, the last then stands for the rest
    ground_xy     float64 [G, 2] or None   points of drivable ground
    background_xy float64 [H, 2] or None   points of obstacles at the height of the ego's box
    """

    ego_xyyaw: np.ndarray
    ego_size_lw_m: tuple[float, float]
    plan: np.ndarray
    cars: Sequence[np.ndarray]
    ground_xy: np.ndarray | None
    background_xy: np.ndarray | None = None
    step_s: float = 0.5


def hugsim_step(step: HugsimStep, variant: str = "compat") -> dict[str, Score]:
    """NC, DAC, TTC, C and s = NC DAC (5 TTC + 2 C) / 7 of one planned trajectory; without a plan of two poses none.

    Where no background points are known, NC and TTC look at the cars alone (a town has no other obstacles).
    """
    return hugsim_step_variants(step, (variant,))[variant]


def hugsim_step_variants(step: HugsimStep, variants: Sequence[str]) -> dict[str, dict[str, Score]]:
    """`hugsim_step` in several variants, which differ in comfort only."""
    for variant in variants:
        check_variant(variant)
    if len(step.plan) < 2 or not len(step.cars):
        return {variant: dict.fromkeys(("NC", "DAC", "TTC", "C", "s"), NOT_AVAILABLE) for variant in variants}
    poses = np.concatenate([step.ego_xyyaw[None], step.plan])
    if np.hypot(*(poses[-1] - poses[0])[:2]) < 1.0:
        poses[:, 2] = poses[0, 2]  # headings of a plan that stands still are noise
    velocity = np.diff(poses[:, :2], axis=0) / step.step_s
    velocity = np.concatenate([velocity[:1], velocity])
    clear = [_hugsim_clear(step, poses)]
    for ahead_s in HUGSIM_TTC_S:
        moved = poses.copy()
        moved[:, :2] += velocity * ahead_s
        clear.append(_hugsim_clear(step, moved))
    nc, ttc, dac = float(clear[0]), float(all(clear[1:])), _hugsim_drivable(step, poses)
    scores = {}
    for variant in variants:
        c = float(_hugsim_comfortable(poses, step.step_s, variant))
        s = (nc * dac[0] * (5 * ttc + 2 * c) / 7, True) if dac[1] else NOT_AVAILABLE
        scores[variant] = {"NC": (nc, True), "DAC": dac, "TTC": (ttc, True), "C": (c, True), "s": s}
    return scores


def hugsim(steps: Sequence[Score], route_completion: float) -> Score:
    """HD score: mean of the steps' s, times the largest route completion (at most 1)."""
    value, valid = mean_score(steps)
    return float(value * min(route_completion, 1.0)), valid


def hugsim_route_completion(xy: np.ndarray, route_xy: np.ndarray) -> float:
    """max over positions [F, 2] of (index of the nearest of N route poses + 1) / (0.9 N)."""
    squared = ((xy[:, None] - route_xy) ** 2).sum(axis=-1)
    return float((squared.argmin(axis=1).max() + 1) / (0.9 * len(route_xy)))


def _hugsim_clear(step: HugsimStep, poses: np.ndarray) -> bool:
    length, width = step.ego_size_lw_m
    cars = [np.reshape(step.cars[min(i, len(step.cars) - 1)], (-1, 5)) for i in range(len(poses))]
    ego = np.repeat(poses, [len(rows) for rows in cars], axis=0)
    cars = np.concatenate(cars).astype(np.float64)
    half = np.broadcast_to([length / 2, width / 2], (len(cars), 2))
    if boxes_touch(ego[:, :2], ego[:, 2], half, cars[:, :2], cars[:, 2], cars[:, 3:5] / 2).any():
        return False
    for pose in () if step.background_xy is None else poses:
        local = _into_box(step.background_xy, pose)
        if (np.abs(local) < [length / 2, width / 2]).all(axis=1).sum() > HUGSIM_POINTS:
            return False
    return True


def _hugsim_drivable(step: HugsimStep, poses: np.ndarray) -> Score:
    """1, .5 or 0 by the least share of the 2 x 2 cells of the box that hold a point of the ground."""
    if step.ground_xy is None:
        return NOT_AVAILABLE
    length, width = step.ego_size_lw_m
    value = 1.0
    for pose in poses:
        local = _into_box(step.ground_xy, pose)
        local = local[(np.abs(local) < [length / 2, width / 2]).all(axis=1) & (local != 0).all(axis=1)]
        share = len(np.unique((local > 0) @ np.array([1, 2]))) / 4
        if share < 0.3:
            return 0.0, True
        value = 0.5 if share < 0.5 else value
    return value, True


def _into_box(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    d, cos, sin = points - pose[:2], np.cos(pose[2]), np.sin(pose[2])
    return np.stack([d[:, 0] * cos + d[:, 1] * sin, d[:, 1] * cos - d[:, 0] * sin], axis=-1)


def _hugsim_comfortable(poses: np.ndarray, step_s: float, variant: str) -> bool:
    """Finite differences of poses [Q, 3] within the bounds, closed; a plan of under four poses is comfortable."""
    if len(poses) < 4:
        return True
    speed = np.hypot(*np.diff(poses[:, :2], axis=0).T) / step_s
    acc = np.diff(speed) / step_s
    jerk = np.diff(acc) / step_s
    yaw_rate = wrap(np.diff(poses[:, 2])) / step_s
    yaw_acc = np.diff(yaw_rate) / step_s
    bounds = COMFORT_BOUNDS
    if variant == "strict":
        checks = [(acc, bounds["lon_acc"]), (speed * yaw_rate, bounds["lat_acc"]), (jerk, bounds["lon_jerk"])]
    else:
        checks = [(acc, (bounds["lon_acc"][0], bounds["lat_acc"][1])), (jerk, bounds["jerk"])]
    checks += [(yaw_acc, bounds["yaw_acc"]), (yaw_rate, bounds["yaw_rate"])]
    return all(bool(((low <= series) & (series <= high)).all()) for series, (low, high) in checks)


def first_impact(
    ego_xyyaw: np.ndarray,
    ego_speed_mps: np.ndarray,
    ego_size_lw_m: tuple[float, float],
    actor_xyyaw: np.ndarray,
    actor_size_lw_m: np.ndarray,
    frame_s: float = 0.5,
) -> tuple[float, int, int] | None:
    """First contact of the ego with any of A actors over F frames: (impact speed, frame, actor), or None.

    ego_xyyaw [F, 3] (centre of the box), ego_speed_mps [F], actor_xyyaw [A, F, 3] (NaN where absent), sizes [A, 2].
    Between two frames 10 sub-steps are looked at. Impact speed is |v_ego - v_actor|, the actor's velocity being that
    of its own displacement over the interval.
    """
    half_ego = np.asarray(ego_size_lw_m) / 2
    for f in range(len(ego_xyyaw)):
        earlier = max(f - 1, 0)
        fractions = np.arange(1, NEURONCAP_SUBSTEPS + 1) / NEURONCAP_SUBSTEPS if f else np.ones(1)
        later = f if f else min(1, len(ego_xyyaw) - 1)
        velocity = (actor_xyyaw[:, later, :2] - actor_xyyaw[:, later - 1 if later else 0, :2]) / frame_s
        for share in fractions:
            ego = _between(ego_xyyaw[earlier], ego_xyyaw[f], share)
            actors = _between(actor_xyyaw[:, earlier], actor_xyyaw[:, f], share)
            known = np.flatnonzero(np.isfinite(actors).all(axis=1))
            centre = np.broadcast_to(ego[:2], (len(known), 2))
            half = np.broadcast_to(half_ego, (len(known), 2))
            yaw = np.full(len(known), ego[2])
            at = actors[known]
            hit = known[boxes_touch(centre, yaw, half, at[:, :2], at[:, 2], actor_size_lw_m[known] / 2)]
            if len(hit):
                speed = ego_speed_mps[earlier] + share * (ego_speed_mps[f] - ego_speed_mps[earlier])
                own = speed * np.array([np.cos(ego[2]), np.sin(ego[2])])
                relative = np.hypot(*(own - np.nan_to_num(velocity[hit])).T)
                worst = int(relative.argmax())
                return float(relative[worst]), f, int(hit[worst])
    return None


def _between(start: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    step = end - start
    step[..., 2] = wrap(step[..., 2])
    return start + share * step


def neuroncap(impact_speed_mps: float | None, reference_speed_mps: float) -> Score:
    """Stars of one run: 5 without a collision (None), else 4 max(0, 1 - v_i / v_r).

    v_r is the impact speed if nothing is done; without a positive one a collision cannot be scored.
    """
    if impact_speed_mps is None:
        return 5.0, True
    if not reference_speed_mps > 0.0:
        return NOT_AVAILABLE
    return 4.0 * max(0.0, 1.0 - impact_speed_mps / reference_speed_mps), True


def neuroncap_mean(runs: Mapping[str, Mapping[str, Sequence[Score]]]) -> Score:
    """Mean over runs, then sequences, then categories of {category: {sequence: scores of runs}}."""
    return mean_score([mean_score([mean_score(r) for r in sequences.values()]) for sequences in runs.values()])


@dataclass(frozen=True)
class AlpasimRollout:
    """Rows of one rollout, F each, and the length of the recorded drive.

    progress_share   float64 [F]  progress along the recorded path over its length
    at_fault         bool [F]     collision with the front or a side of the ego's box
    off_road         bool [F]
    path_distance_m  float64 [F]  distance to the recorded path
    recorded_m       metres driven in the recording
    """

    progress_share: np.ndarray
    at_fault: np.ndarray
    off_road: np.ndarray
    path_distance_m: np.ndarray
    recorded_m: float


def alpasim(rollout: AlpasimRollout) -> Score:
    """Scene score: 0 after a collision at fault or off the road, else 1 for recordings under 5 m, else
    min(clip(progress, 0, 1) / 0.8, 1) at the last row; rows after the first that is 4 m off the path are dropped."""
    rows = len(rollout.progress_share)
    if not rows or not np.isfinite(rollout.recorded_m):
        return NOT_AVAILABLE
    left = np.flatnonzero(rollout.path_distance_m >= ALPASIM_LEFT_PATH_M)
    kept = slice(0, int(left[0]) + 1 if len(left) else rows)
    if rollout.at_fault[kept].any() or rollout.off_road[kept].any():
        return 0.0, True
    if rollout.recorded_m < ALPASIM_SHORT_M:
        return 1.0, True
    share = float(np.clip(rollout.progress_share[kept][-1], 0.0, 1.0))
    return min(share / ALPASIM_FULL_PROGRESS, 1.0), True
