"""What a drive through a recorded scene is judged against and drawn on: areas, the way to go, the human's drive.

A simulated scene brings its lanes, areas and route along (`sensors.nuscenes_extension`). Any other has what the map of
its location says (`sim.expansion_lanes`), and for a route the way that was driven; without a map expansion there are no
lanes, and what needs them is not available.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np

from sensors.frames import wrap, xy_yaw
from sensors.nuscenes_map import PX_PER_M, outlines_of
from sensors.recorded_drive import RecordedDrive
from sim.expansion_lanes import AROUND_M, mapped_surroundings
from sim.geometry import OpenLine, corners
from sim.surroundings import BEYOND_M, Lane, Surroundings
from sim.vehicle import VehicleParams

LEAST_STEP_M = 0.5  # between two points of the way: standing still is no direction
BEFORE_END_M = 2.0  # of the recorded drive lies the goal, which is none if the drive is shorter than
LEAST_WAY_M = 5.0
INNER, RED = ":", "ru"  # how the ids of ways through junctions begin; letters of red
FACES_RAD, AHEAD_M, ASIDE_M, TURNS_RAD = 0.35, 8.0, 14.0, 0.5
JOINED_M = 1.0  # nearer than this, a way through a junction goes on from another
JOINT_M = 0.25  # beside the outlines of the drivable area, as in a town


@dataclass(frozen=True)
class LogSurroundings:
    """around: Surroundings; record: the way that was driven, and straight on; record_m [K]: the keyframes along it;
    lit: (index of a way through a junction in around.lanes, number of its signal) of those on the route."""

    drive: RecordedDrive
    around: Surroundings
    record: OpenLine
    record_m: np.ndarray
    lit: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, drive: RecordedDrive, params: VehicleParams) -> "LogSurroundings":
        track = xy_yaw(drive.T_world_from_ego)
        record, record_m = _record(track)
        extension = drive.extension
        common = {
            "suite": drive.source,
            "car": params,
            "human_time_us": drive.time_us,
            "human_xyyaw": track,
        }
        if extension is None:
            goal_m = float(record_m[-1]) - BEFORE_END_M if record_m[-1] > LEAST_WAY_M else 0.0
            lanes, areas = mapped_surroundings(drive.expansion(), drive.map_path, track)
            around = Surroundings(lanes=lanes, areas=areas, route_m=record.points, goal_m=goal_m, **common)
            return cls(drive, around, record, record_m)
        lanes = (Lane(e.id, e.centreline_m, e.width_m, e.limit_mps, e.on_route) for e in extension.lanes)
        around = Surroundings(
            town=extension.town,
            weather=extension.weather,
            lights="recorded" if len(extension.signals_xyyaw) else "none",
            lanes=tuple(lanes),
            areas=extension.areas,
            route_m=extension.route_m,
            goal_m=extension.goal_m,
            **common,
        )
        return cls(drive, around, record, record_m, _lit(around.lanes, extension.signals_xyyaw))

    def red_lanes(self, time_us: int) -> list[int]:
        """Indices in around.lanes of the ways through junctions on the route that were red at an instant."""
        if not self.lit:
            return []
        letters = self.drive.extension.lights_at(time_us)
        return [lane for lane, signal in self.lit if letters and letters[signal] in RED]

    @cached_property
    def lines(self) -> tuple[tuple[str, np.ndarray], ...]:
        """(kind, xy [V, 2]) to draw: "road_edge", and "route"."""
        edges = [line for outline, holes in self.ground.outlines for line in (outline, *holes)]
        return (*(("road_edge", np.concatenate([xy, xy[:1]])) for xy in edges), ("route", self.around.route_m))

    @cached_property
    def ground(self) -> "Drivable":
        return Drivable.of(self.around, self.drive)

    def cue_at(self, along_m: float) -> tuple[str, str]:
        """(command, instruction) that the recorded driver had at this place of the way."""
        if self.drive.extension is None:
            return "follow", ""
        return self.drive.extension.cue_at(int(np.interp(along_m, self.record_m, self.drive.time_us)))


@dataclass(frozen=True)
class Drivable:
    """A raster of where wheels may be: the drivable area, JOINT_M beside it, and where the recorded car itself was."""

    mask: np.ndarray
    low_m: np.ndarray

    @classmethod
    def of(cls, around: Surroundings, drive: RecordedDrive) -> "Drivable":
        track, car = xy_yaw(drive.T_world_from_ego), around.car
        low = np.floor(track[:, :2].min(axis=0) - AROUND_M)
        width, height = np.ceil((track[:, :2].max(axis=0) + AROUND_M - low) * PX_PER_M).astype(int)
        mask = np.zeros((height, width), np.uint8)

        def paint(outline: np.ndarray) -> None:
            fixed = [np.rint(((outline - low) * PX_PER_M - 0.5) * 16).astype(np.int32)]
            cv2.fillPoly(mask, fixed, 1, cv2.LINE_8, 4)

        for layer, outline in around.areas:
            if layer == "drivable":
                paint(outline)
        mask = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(JOINT_M * PX_PER_M) + 1,) * 2))
        centre = track[:, :2] + car.centre_m * np.stack([np.cos(track[:, 2]), np.sin(track[:, 2])], axis=-1)
        size = np.broadcast_to([car.length_m, car.width_m], (len(track), 2))
        boxes = corners(np.column_stack([centre, track[:, 2], size]))
        for pair in pairwise(boxes):
            paint(cv2.convexHull(np.concatenate(pair).astype(np.float32))[:, 0])
        return cls(mask, low)

    @cached_property
    def outlines(self) -> list[tuple[np.ndarray, list[np.ndarray]]]:
        """The parts of the drivable area, and the holes in each, [V, 2] m."""
        return outlines_of_raster(self.mask, self.low_m)

    def at(self, points_m: np.ndarray) -> np.ndarray:
        """Whether points [N, 2] are drivable, bool [N]; outside the raster nothing is."""
        column, row = np.floor((points_m - self.low_m) * PX_PER_M).astype(int).T
        height, width = self.mask.shape
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        return inside & (self.mask[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)] > 0)


def _lit(lanes: tuple[Lane, ...], signals_xyyaw: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(index of a lane, number of its signal) of the ways through junctions on the route, first those that begin at a
    stop line, then those that go on from these."""
    found = {k: signal for k, lane in enumerate(lanes) if (signal := _signal_of(lane, signals_xyyaw)) is not None}
    for k in list(found):
        ends_m, signal = lanes[k].centreline_m[-1], found[k]
        goes_on = (
            j
            for j, lane in enumerate(lanes)
            if lane.on_route and lane.id.startswith(INNER) and np.hypot(*(lane.centreline_m[0] - ends_m)) < JOINED_M
        )
        for j in goes_on:
            found.setdefault(j, signal)
    return tuple(found.items())


def _signal_of(lane: Lane, signals_xyyaw: np.ndarray) -> int | None:
    """The signal that a way through a junction on the route begins at, if any: one stands beside its approach, ahead of
    the stop line, on the right for all, or on the left for who turns left (`sim.town_map.Signal`)."""
    if not (lane.on_route and lane.id.startswith(INNER) and len(lane.centreline_m) > 1 and len(signals_xyyaw)):
        return None
    step = np.diff(lane.centreline_m, axis=0)
    heading = np.arctan2(step[[0, -1], 1], step[[0, -1], 0])
    c, s = np.cos(heading[0]), np.sin(heading[0])
    ahead, left = np.array([[c, s], [-s, c]]) @ (signals_xyyaw[:, :2] - lane.centreline_m[0]).T
    near = (np.abs(wrap(signals_xyyaw[:, 2] - heading[0])) < FACES_RAD) & (ahead > 0) & (ahead < AHEAD_M)
    near &= np.abs(left) < ASIDE_M
    turns_left = wrap(heading[1] - heading[0]) > TURNS_RAD
    chosen = near & (left > 0) if turns_left and (near & (left > 0)).any() else near & (left < 0)
    return int(np.argmin(np.where(chosen, np.abs(left), np.inf))) if chosen.any() else None


def outlines_of_raster(mask: np.ndarray, low_m: np.ndarray) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Outlines [V, 2] m of what is not 0 in a raster whose rows run from south to north, and of the holes in it."""
    low = np.rint(low_m * PX_PER_M).astype(int)  # the rows of a map's raster run the other way
    return outlines_of(np.ascontiguousarray(mask[::-1]), low[0], -(low[1] + len(mask)))


def _record(track: np.ndarray) -> tuple[OpenLine, np.ndarray]:
    """The way of a track [K, 3] and BEYOND_M straight on, and how far along it each of its instants is [K]."""
    kept = [0]
    for k in range(1, len(track)):
        if np.hypot(*(track[k] - track[kept[-1]])[:2]) >= LEAST_STEP_M:
            kept.append(k)
    xy, heading = track[kept, :2], track[kept[-1], 2]
    line = OpenLine(np.concatenate([xy, xy[-1:] + BEYOND_M * np.array([[np.cos(heading), np.sin(heading)]])]))
    return line, np.interp(np.arange(len(track)), kept, line.s_m[:-1])
