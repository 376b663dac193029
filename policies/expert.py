"""The privileged driver: pure pursuit along the lane, intelligent-driver-model speed. It records the training data."""

import numpy as np

from policies.protocol import Plan, Privileged
from policies.transforms import speed_at_now
from sensors import frames
from sensors.clip import Clip
from sensors.errors import InputError
from sim.tracker import PLAN_TIME_S

DT_S = 0.1
SPACING_M, RANGE_M = 0.5, 90.0
LOOKAHEAD_S, MIN_LOOKAHEAD_M, MAX_LOOKAHEAD_M = 0.6, 3.5, 12.0
MAX_CURVATURE_1PM = 0.19
MAX_ACCEL_MPS2, COMFORTABLE_BRAKING_MPS2, HARDEST_BRAKING_MPS2 = 1.5, 2.5, -6.0
HEADWAY_S, STANDSTILL_GAP_M = 1.4, 3.0
SPEED_HORIZON_S = 0.5


class PurePursuit:
    """Simulates itself four seconds ahead in its lane; needs the world, so it drives in simulation only.

    Lateral: curvature = 2 y / d^2 of the lane point at the look-ahead distance (Coulter 1992). Longitudinal: the lane's
    comfortable speed half a second ahead, and the intelligent driver model's braking (Treiber et al. 2000) behind a
    leader that is assumed to keep its speed.
    """

    name = "pure-pursuit"
    privileged = True
    needs_images = False
    clip_steps = 1
    image_size = None

    def reset(self, seed: int) -> None:
        pass

    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        world = privileged.world
        if world is None:
            raise InputError("--policy pure-pursuit", "world", "none", "a simulated world", "Use it with vla drive.")
        at_m = np.arange(0.0, RANGE_M, SPACING_M)
        xy, _, speeds = world.lane_ahead(at_m)
        in_world = np.column_stack([xy, np.full(len(xy), clip.T_world_from_ego_now[2, 3])])
        path = frames.apply(frames.inverse(clip.T_world_from_ego_now), in_world)[:, :2]
        leader = world.leader()
        gap_m, leader_mps = (leader.gap_m, leader.speed_mps) if leader else (np.inf, 0.0)
        pose, speed, driven_m = np.zeros(3), max(speed_at_now(clip), 0.0), 0.0
        rows = []
        for step in range(round(PLAN_TIME_S[-1] / DT_S)):
            wanted = np.interp(driven_m + speed * SPEED_HORIZON_S, at_m, speeds)
            accel = min((wanted - speed) / SPEED_HORIZON_S, MAX_ACCEL_MPS2)
            accel = min(accel, self._following(speed, gap_m + leader_mps * step * DT_S - driven_m, leader_mps))
            curvature = self._curvature(pose, path, speed)
            faster = max(speed + max(accel, HARDEST_BRAKING_MPS2) * DT_S, 0.0)
            arc = 0.5 * (speed + faster) * DT_S
            middle = pose[2] + 0.5 * curvature * arc
            pose = pose + np.array([arc * np.cos(middle), arc * np.sin(middle), curvature * arc])
            speed, driven_m = faster, driven_m + arc
            rows.append((*pose, speed))
        chosen = np.array(rows)[np.round(PLAN_TIME_S / DT_S).astype(int) - 1]
        return Plan(PLAN_TIME_S, chosen[:, :3], chosen[:, 3])

    @staticmethod
    def _curvature(pose: np.ndarray, path: np.ndarray, speed_mps: float) -> float:
        reach = np.clip(LOOKAHEAD_S * speed_mps, MIN_LOOKAHEAD_M, MAX_LOOKAHEAD_M)
        nearest = int(np.argmin(np.sum((path - pose[:2]) ** 2, axis=1)))
        target = path[min(nearest + round(reach / SPACING_M), len(path) - 1)] - pose[:2]
        y = -np.sin(pose[2]) * target[0] + np.cos(pose[2]) * target[1]
        return float(np.clip(2 * y / (target @ target), -MAX_CURVATURE_1PM, MAX_CURVATURE_1PM))

    @staticmethod
    def _following(speed_mps: float, gap_m: float, leader_mps: float) -> float:
        """a (1 - (g*/g)^2) with g* = g0 + v T + v dv / (2 sqrt(a b)); no leader, no limit."""
        if not np.isfinite(gap_m):
            return np.inf
        approach = speed_mps * (speed_mps - leader_mps) / (2 * np.sqrt(MAX_ACCEL_MPS2 * COMFORTABLE_BRAKING_MPS2))
        wanted_m = STANDSTILL_GAP_M + max(0.0, speed_mps * HEADWAY_S + approach)
        return float(MAX_ACCEL_MPS2 * (1 - (wanted_m / max(gap_m, 0.1)) ** 2))
