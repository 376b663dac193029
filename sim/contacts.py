"""When two footprints touch, and whose fault it is."""

import math
from dataclasses import dataclass

import numpy as np

from sim.geometry import overlap
from sim.vehicle import EgoState, VehicleParams
from sim.world import Actor, Event

STANDS_MPS = 0.3
BUMPER_M = 0.2  # what touches this part of the footprint was hit with the front


@dataclass
class Contacts:
    """Remembers who touches the ego already, so that a collision is told once, when it begins.

    Whose fault it is as nuPlan has it (Karnchanachari et al. 2024): the other's if the ego stood; else the ego's if the
    other stood; the other's if it came from behind; the ego's if it hit with its front; and if flanks touched, the
    ego's only if it was not within its lane.
    """

    params: VehicleParams
    _touching: frozenset[str] = frozenset()

    def begun(
        self,
        times_us: np.ndarray,
        egos: tuple[EgoState, ...],
        actors: tuple[Actor, ...],
        boxes: np.ndarray,
        speeds: np.ndarray,
        in_lane: bool,
    ) -> list[Event]:
        """Overlaps at M instants with boxes [M, A, 5] of who is near, at speeds [A], each told when it begins."""
        begun, touching = [], self._touching
        if not actors:
            self._touching = frozenset()
            return begun
        hits = overlap(self._footprints(egos)[:, None], boxes)
        for m in np.flatnonzero(hits.any(axis=1)):
            now = frozenset(actors[a].id for a in np.flatnonzero(hits[m]))
            for a in np.flatnonzero(hits[m]):
                if actors[a].id not in touching:
                    how = actors[a].id, boxes[m, a], float(speeds[a]), in_lane
                    begun.append(self._collision(int(times_us[m]), egos[m], *how))
            touching = touching | now
        self._touching = frozenset(actors[a].id for a in np.flatnonzero(hits[-1]))
        return begun

    def _footprints(self, egos: tuple[EgoState, ...]) -> np.ndarray:
        """EgoState.footprint of M states at once [M, 5]."""
        x, y, yaw = np.array([(ego.x_m, ego.y_m, ego.yaw_rad) for ego in egos]).T
        length, width = np.full((2, len(egos)), [[self.params.length_m], [self.params.width_m]])
        centre_m = self.params.centre_m
        return np.stack([x + centre_m * np.cos(yaw), y + centre_m * np.sin(yaw), yaw, length, width], axis=-1)

    def _collision(
        self, time_us: int, ego: EgoState, actor: str, box: np.ndarray, speed_mps: float, in_lane: bool
    ) -> Event:
        forward = np.array([math.cos(ego.yaw_rad), math.sin(ego.yaw_rad)])
        along = float((box[:2] - (ego.x_m, ego.y_m)) @ forward) - self.params.centre_m
        between = speed_mps * np.array([math.cos(box[2]), math.sin(box[2])]) - forward * ego.speed_mps
        x, y = (ego.x_m, ego.y_m) + (self.params.front_m - BUMPER_M / 2) * forward
        bumper = np.array([x, y, ego.yaw_rad, BUMPER_M, self.params.width_m])
        if ego.speed_mps < STANDS_MPS:
            fault = "other"
        elif speed_mps < STANDS_MPS:
            fault = "ego"
        elif along < -self.params.length_m / 2 and float(between @ forward) > 0:
            fault = "other"
        else:
            fault = "other" if in_lane and not overlap(bumper, box) else "ego"
        return Event("collision", time_us, actor, float(np.linalg.norm(between)), fault)


def wheels(ego: EgoState, params: VehicleParams, inside_m: float) -> np.ndarray:
    """Where the four wheels touch the ground [4, 2], so far inside the car's flanks."""
    c, s, half = math.cos(ego.yaw_rad), math.sin(ego.yaw_rad), params.width_m / 2 - inside_m
    at = ((x, y) for x in (0.0, params.wheelbase_m) for y in (half, -half))
    return np.array([(ego.x_m + c * x - s * y, ego.y_m + s * x + c * y) for x, y in at])
