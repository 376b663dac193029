"""What the protocols read of a log, prepared once: ego states, actors in columns of time, the map, the way to go.

Letters: F frames, N instants of the actors (frames and what follows the end), A actors, V vertices. Distances along the
way are found from frame to frame, so that a loop that is driven twice is told apart.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sensors.frames import wrap
from sim.metrics.pdm import DT_S, PACIFICA, Footprint
from sim.metrics.pdm_scene import AREAS, Actors, MapLayers, Outline, PdmScene, project_on_line, resample_actors
from sim.rollout_log import EpisodeLog
from sim.surroundings import lane_polygon

AGENTS = ("vehicle.", "human.")  # what moves by itself; barriers, cones and the like do not
INSTANTS = 51  # of the actors that one plan is judged against: 5 s
BEHIND_M, AHEAD_M = 15.0, 90.0  # the piece of the way that one plan is judged on; IDM looks 4 s ahead at the limit
BEYOND_M = 110.0  # a recorded drive is taken to go straight on so far
LEAST_STEP_M = 0.5  # between vertices of the way that is made of a recorded drive: standing still is no direction
SEARCH_BACK_M, SEARCH_AHEAD_M = 10.0, 30.0


@dataclass(frozen=True)
class LogView:
    """One log with an ego track of at least two frames; everything else is made when first asked for."""

    log: EpisodeLog

    @cached_property
    def footprint(self) -> Footprint:
        log = self.log
        return Footprint(log.ego_length_m, log.ego_width_m, log.ego_wheelbase_m, log.ego_centre_m)

    def vehicle(self, variant: str) -> Footprint:
        """Whose size counts: the Pacifica's of the reference (compat), or the one that drove (strict)."""
        return PACIFICA if variant == "compat" else self.footprint

    @cached_property
    def states(self) -> np.ndarray:
        """float64 [F, 8]: x, y, heading, v, a, steer, yaw rate, lateral acceleration at the rear axle, by differences.

        A derivative at a frame looks back, as a car's own sensors would; the first frame takes that of the second.
        """
        log = self.log
        dt = np.diff(log.time_s)
        rate = np.append(0.0, wrap(np.diff(log.ego_xyyaw_in_world[:, 2])) / dt)
        accel = np.append(0.0, np.diff(log.speed_mps) / dt)
        rate[0], accel[0] = rate[1], accel[1]
        speed = log.speed_mps
        curvature = np.where(np.abs(speed) > 0.5, rate / np.where(np.abs(speed) > 0.5, speed, 1.0), 0.0)
        steer = np.arctan(curvature * log.ego_wheelbase_m)
        return np.column_stack([log.ego_xyyaw_in_world, speed, accel, steer, rate, speed * rate])

    @cached_property
    def centre_xyh(self) -> np.ndarray:
        """float64 [F, 3]: centre of the ego's box and heading."""
        xyh = self.log.ego_xyyaw_in_world.copy()
        xyh[:, :2] += self.log.ego_centre_m * np.stack([np.cos(xyh[:, 2]), np.sin(xyh[:, 2])], axis=-1)
        return xyh

    @cached_property
    def actors(self) -> Actors:
        """All actors at the N instants. Speeds that were not recorded are those between two frames, 0 of a single one.

        Sizes are those at the first sight.
        """
        log = self.log
        ids, first, row = np.unique(log.actor_id, return_index=True, return_inverse=True)
        count, instants = len(ids), len(log.scene_time_us)
        xyh, speed = np.zeros((count, instants, 3)), np.zeros((count, instants))
        present = np.zeros((count, instants), dtype=bool)
        xyh[row, log.actor_frame], speed[row, log.actor_frame] = log.actor_xyyaw_in_world, log.actor_speed_mps
        present[row, log.actor_frame] = True
        for a, n in np.argwhere(present & np.isnan(speed)):
            near = [m for m in (n - 1, n + 1) if 0 <= m < instants and present[a, m]]
            span_s = abs(float(log.scene_time_us[near[-1]] - log.scene_time_us[n])) * 1e-6 if near else 1.0
            speed[a, n] = np.hypot(*(xyh[a, near[-1]] - xyh[a, n])[:2]) / span_s if near else 0.0
        agent = np.array([category.startswith(AGENTS) for category in log.actor_category[first].tolist()], dtype=bool)
        return Actors(tuple(ids.tolist()), xyh, present, log.actor_size_lw_m[first], speed, agent)

    @cached_property
    def layers(self) -> MapLayers | None:
        around = self.log.surroundings
        if not around.areas and not around.lanes:
            return None
        areas = {layer: [xy for kind, xy in around.areas if kind == layer] for layer in AREAS}
        polygons = [lane_polygon(lane.centreline_m, lane.width_m) for lane in around.lanes]
        on_route = [lane.on_route for lane in around.lanes]
        return MapLayers(**areas, lane=polygons, lane_on_route=on_route, lanes_known=bool(around.lanes))

    @cached_property
    def categories(self) -> list[str]:
        """Of each of the actors, in their order."""
        return self.log.actor_category[np.unique(self.log.actor_id, return_index=True)[1]].tolist()

    @cached_property
    def _vehicle_ids(self) -> set[str]:
        kinds = zip(self.actors.ids, self.categories, strict=True)
        return {name for name, k in kinds if k.startswith("vehicle.") and not k.startswith("vehicle.bicycle")}

    def vehicles(self, scene: PdmScene) -> np.ndarray:
        """Which actors of a scene of this log are vehicles with an engine, bool [A]."""
        return np.array([name in self._vehicle_ids for name in scene.actors.ids], dtype=bool)

    @cached_property
    def track_scene(self) -> PdmScene:
        """The surroundings of the driven track: actors at the frames themselves."""
        frames, seen = len(self.log), self.actors
        columns = (seen.xyh[:, :frames], seen.present[:, :frames], seen.size_lw_m, seen.speed_mps[:, :frames])
        return PdmScene(Actors(seen.ids, *columns, seen.is_agent), self.layers, self.way_m)

    @cached_property
    def _drivable(self) -> list[Outline]:
        return [outline for name, _, outline in self.layers.outlines if name in AREAS]

    def drivable(self, points: np.ndarray) -> np.ndarray:
        """Whether points [N, 2] lie where one may drive, bool [N]."""
        return np.any([outline.holds(*points.T) for outline in self._drivable], axis=0)

    def distance_to_drivable(self, points: np.ndarray) -> np.ndarray:
        """How far points [N, 2] are outside the drivable area, 0 inside."""
        ends = [np.stack([o.x0, o.y0, o.x1, o.y1], axis=-1) for o in self._drivable]
        start, end = np.split(np.concatenate(ends), 2, axis=1)
        to, edge = points[:, None] - start, end - start
        share = np.clip((to * edge).sum(axis=-1) / np.maximum((edge**2).sum(axis=-1), 1e-300), 0.0, 1.0)
        nearest = np.linalg.norm(to - share[..., None] * edge, axis=-1).min(axis=1)
        return np.where(self.drivable(points), 0.0, nearest)

    @cached_property
    def way_m(self) -> np.ndarray | None:
        """float64 [V, 2]: the route, else the recorded drive and straight on; None where there is neither."""
        around = self.log.surroundings
        if len(around.route_m) >= 2:
            return around.route_m
        track = around.human_xyyaw
        if not len(track):
            return None
        kept = [track[0, :2]]
        for xy in track[1:, :2]:
            if np.hypot(*(xy - kept[-1])) >= LEAST_STEP_M:
                kept.append(xy)
        end = BEYOND_M * np.array([np.cos(track[-1, 2]), np.sin(track[-1, 2])])
        return np.array([*kept, kept[-1] + end])

    @cached_property
    def passed_m(self) -> np.ndarray:
        """float64 [V]: arc length at the vertices of the way."""
        return np.append(0.0, np.cumsum(np.hypot(*np.diff(self.way_m, axis=0).T)))

    @cached_property
    def along_m(self) -> np.ndarray:
        """float64 [F]: arc length on the way of the ego's rear axle, searched near the frame before (at first, all)."""
        track = self.log.ego_xyyaw_in_world[:, :2]
        found = np.empty(len(track))
        found[0] = last = float(project_on_line(track[0], self.way_m)[0])
        for k, xy in enumerate(track[1:], 1):
            start_m, piece = self._piece(last - SEARCH_BACK_M, last + SEARCH_AHEAD_M)
            found[k] = last = start_m + float(project_on_line(xy, piece)[0])
        return found

    @cached_property
    def off_way_m(self) -> np.ndarray:
        """float64 [F]: distance of the rear axle from the way, near where it is along it."""
        pieces = (self._piece(s - SEARCH_BACK_M, s + SEARCH_AHEAD_M)[1] for s in self.along_m)
        track = self.log.ego_xyyaw_in_world[:, :2]
        return np.array([float(project_on_line(xy, piece)[1]) for xy, piece in zip(track, pieces, strict=True)])

    def _piece(self, from_m: float, to_m: float) -> tuple[float, np.ndarray]:
        """Where the piece of the way between two arc lengths begins, and its vertices; two at least."""
        i = max(int(np.searchsorted(self.passed_m, from_m, side="right")) - 1, 0)
        j = min(int(np.searchsorted(self.passed_m, to_m)) + 1, len(self.passed_m))
        i = min(i, j - 2)
        return float(self.passed_m[i]), self.way_m[i:j]

    @cached_property
    def limit_mps(self) -> np.ndarray:
        """float64 [F]: the speed limit of the route's lane that is nearest to the rear axle; NaN where unknown."""
        lanes = [lane for lane in self.log.surroundings.lanes if lane.on_route]
        if not lanes:
            return np.full(len(self.log), np.nan)
        track = self.log.ego_xyyaw_in_world[:, :2]
        away_m = np.stack([project_on_line(track, lane.centreline_m)[1] for lane in lanes])
        return np.array([lane.limit_mps for lane in lanes])[away_m.argmin(axis=0)]

    def scene(self, frame: int) -> PdmScene:
        """The surroundings of a plan made at a frame, for as long as the log knows them."""
        log, way = self.log, self.way_m
        time_s = (log.scene_time_us - log.time_us[frame]) * 1e-6
        last = min(int(np.searchsorted(time_s, (INSTANTS - 1) * DT_S)) + 1, len(time_s))
        window = slice(frame, max(last, frame + 2))
        seen = self.actors
        near = seen.present[:, window].any(axis=1)
        seen = Actors(
            tuple(name for name, is_near in zip(seen.ids, near, strict=True) if is_near),
            seen.xyh[near, window],
            seen.present[near, window],
            seen.size_lw_m[near],
            seen.speed_mps[near, window],
            seen.is_agent[near],
        )
        along = None if way is None else self.along_m[frame]
        return PdmScene(
            resample_actors(seen, time_s[window], INSTANTS),
            self.layers,
            None if way is None else self._piece(along - BEHIND_M, along + AHEAD_M)[1],
            self._red_lights(frame, time_s[window]),
        )

    def _red_lights(self, frame: int, time_s: np.ndarray) -> list[list[np.ndarray]] | None:
        """Red lanes of the route at instants 0.1 s apart: those of the latest frame; None where lights are unknown."""
        log = self.log
        if log.lights == "unknown":
            return None
        instants = min(INSTANTS, int(np.floor(time_s[-1] / DT_S + 1e-6)) + 1)
        if not len(log.red_frame):
            return [[]] * instants
        frames = frame + np.searchsorted(time_s, np.arange(instants) * DT_S + 1e-6, side="right") - 1
        rows = [slice(*np.searchsorted(log.red_frame, (k, k + 1))) for k in frames]
        return [[self.layers.lane[lane] for lane in log.red_lane[row] if log.lane_on_route[lane]] for row in rows]
