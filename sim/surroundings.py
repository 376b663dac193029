"""What an episode is judged against, whatever happens in it: the car's size, lanes, areas, route, the human's drive.

Stored once in the log. Letters: M lanes, W vertices of all lanes, P areas, U vertices of all areas, R route vertices,
H instants of a recorded drive. A world that does not know something leaves it empty, and what needs it is then not
available; whether there are traffic lights is said in words, since "none seen" and "nobody looked" are not the same.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from sensors.nuscenes_map import PX_PER_M
from sim.geometry import ClosedLine
from sim.roads import Road
from sim.vehicle import VehicleParams
from sim.world import World

# unknown: the recording does not say. none: the world has no lights. recorded: the log says which lane is red when.
LIGHTS = ("unknown", "none", "recorded")
NUMBERS = ("ego_length_m", "ego_width_m", "ego_wheelbase_m", "ego_centre_m", "goal_m")
# column: (dtype, letter of its rows, shape of a row), as in the log; `*_index` tells whose vertex it is
COLUMNS = {
    "lane_id": ("U", "M", ()),
    "lane_width_m": ("float64", "M", ()),
    "lane_limit_mps": ("float64", "M", ()),
    "lane_on_route": ("bool", "M", ()),
    "lane_index": ("int64", "W", ()),
    "lane_xy_in_world_m": ("float64", "W", (2,)),
    "area_layer": ("U", "P", ()),
    "area_index": ("int64", "U", ()),
    "area_xy_in_world_m": ("float64", "U", (2,)),
    "route_xy_in_world_m": ("float64", "R", (2,)),
    "human_time_us": ("int64", "H", ()),
    "human_xyyaw_in_world": ("float64", "H", (3,)),
}
LAYERS = ("drivable", "intersection", "carpark", "roadblock", "crossing", "walkway")
WORDS = ("suite", "town", "weather", "lights")
# A route that everyone can finish: the slowest traffic on a course drives at 0.6 of the lane's comfortable speed.
GOAL_SHARE = 0.6
BEYOND_M = 110.0  # the route's line goes on past the goal, since plans are scored to the end
MAP_MARGIN_M = 10.0
DRIVABLE = ("asphalt", "shoulder")  # surfaces
MOST_OF_A_LAP = 0.9  # a goal any further would lie where the route began


@dataclass(frozen=True)
class Lane:
    """centreline float64 [W, 2] in the direction of travel, a loop if its ends are equal; limit NaN where unknown."""

    id: str
    centreline_m: np.ndarray
    width_m: float
    limit_mps: float = float("nan")
    on_route: bool = True


@dataclass(frozen=True)
class Surroundings:
    """See the module.

    suite         what the scenes belong to, for example "course" or "nuscenes v1.0-mini"; runs compare within one
    town, weather their names, "" where they have none
    car           size of the ego
    lights        one of LIGHTS
    lanes         tuple of Lane; () where unknown
    areas         tuple of (layer, polygon [U, 2]); a hole is cut into its polygon by a bridge (`with_holes`)
    route_m       float64 [R, 2] the way to go, from the start to beyond the goal; empty where none was asked for
    goal_m        arc length of the goal on it
    human_time_us, human_xyyaw  int64 [H], float64 [H, 3]  the recorded drive, where there is one
    """

    suite: str = ""
    town: str = ""
    weather: str = ""
    car: VehicleParams = field(default_factory=VehicleParams)
    lights: str = "unknown"
    lanes: tuple[Lane, ...] = ()
    areas: tuple[tuple[str, np.ndarray], ...] = ()
    route_m: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    goal_m: float = 0.0
    human_time_us: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    human_xyyaw: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))

    def to_columns(self) -> dict:
        """WORDS, NUMBERS and COLUMNS as the log keeps them."""
        lines, polygons = [lane.centreline_m for lane in self.lanes], [polygon for _, polygon in self.areas]
        car = self.car
        numbers = (car.length_m, car.width_m, car.wheelbase_m, car.centre_m, self.goal_m)
        return {
            **{name: getattr(self, name) for name in WORDS},
            **dict(zip(NUMBERS, map(float, numbers), strict=True)),
            "lane_id": [lane.id for lane in self.lanes],
            "lane_width_m": [lane.width_m for lane in self.lanes],
            "lane_limit_mps": [lane.limit_mps for lane in self.lanes],
            "lane_on_route": [lane.on_route for lane in self.lanes],
            "lane_index": np.repeat(np.arange(len(lines)), [len(line) for line in lines]),
            "lane_xy_in_world_m": np.concatenate([np.zeros((0, 2)), *lines]),
            "area_layer": [layer for layer, _ in self.areas],
            "area_index": np.repeat(np.arange(len(polygons)), [len(polygon) for polygon in polygons]),
            "area_xy_in_world_m": np.concatenate([np.zeros((0, 2)), *polygons]),
            "route_xy_in_world_m": self.route_m,
            "human_time_us": self.human_time_us,
            "human_xyyaw_in_world": self.human_xyyaw,
        }

    @classmethod
    def from_columns(cls, columns: dict) -> "Surroundings":
        """The inverse of `to_columns`; the limits of the car, which no score asks for, are the default ones."""
        length, width, wheelbase, centre, goal_m = (columns[name] for name in NUMBERS)
        names = ("lane_width_m", "lane_limit_mps", "lane_on_route")
        lines = split_lines(columns["lane_index"], columns["lane_xy_in_world_m"], len(columns["lane_id"]))
        lanes = zip(columns["lane_id"].tolist(), lines, *(columns[name].tolist() for name in names), strict=True)
        polygons = split_lines(columns["area_index"], columns["area_xy_in_world_m"], len(columns["area_layer"]))
        return cls(
            *(columns[name] for name in ("suite", "town", "weather")),
            VehicleParams(length, width, wheelbase_m=wheelbase, rear_overhang_m=length / 2 - centre),
            columns["lights"],
            tuple(Lane(*lane) for lane in lanes),
            tuple(zip(columns["area_layer"].tolist(), polygons, strict=True)),
            columns["route_xy_in_world_m"],
            goal_m,
            columns["human_time_us"],
            columns["human_xyyaw_in_world"],
        )


def split_lines(index: np.ndarray, xy: np.ndarray, count: int) -> list[np.ndarray]:
    """The vertices of each of `count` lines that a not decreasing index tells apart."""
    return np.split(xy, np.searchsorted(index, np.arange(1, count))) if count else []


def of_course(world: World, seconds: float) -> Surroundings:
    """The surroundings of a course just reset, for an episode of this length.

    The goal is as far as the lane's comfortable speed takes one in GOAL_SHARE of the time, at most most of a lap.
    """
    lanes = tuple(
        Lane(lane.id, _closed(lane.line.points), lane.width_m, lane.speed_limit_mps, name == world.road.ego_lane)
        for name, lane in world.road.lanes.items()
    )
    lane, half = world.ego_lane, world.road.half_width_m
    start_m, driven_m, reach_m = world.lane_state().s_m, 0.0, 0.0
    for step in range(round(seconds * 10)):
        reach_m += 0.1 * float(lane.comfortable_speed_mps(start_m + reach_m))
        driven_m = reach_m if step < GOAL_SHARE * seconds * 10 else driven_m
    goal_m = min(driven_m, MOST_OF_A_LAP * lane.line.length_m)
    # As far as the fastest lawful driver gets, and by whole metres so that both ends are on the line.
    at_m = start_m + np.arange(0.0, lane.speed_limit_mps * seconds + BEYOND_M, 1.0)
    return Surroundings(
        suite="course",
        weather="clear",
        car=world.params,
        lights="none",
        lanes=lanes,
        areas=(("drivable", _road_ring(world.road.centre, half)),),
        route_m=lane.line.at(at_m)[0],
        goal_m=goal_m,
    )


def course_lines(road: Road) -> list[tuple[str, np.ndarray]]:
    """The lanes' edges and centrelines as closed lines: (kind, xy [V, 2]), "lane_edge" or "centre"."""
    lines = []
    for lane in road.lanes.values():
        lines.append(("centre", _closed(lane.line.points)))
        lines += [("lane_edge", _closed(lane.line.offset(side * lane.width_m))) for side in (-0.5, 0.5)]
    return lines


def with_holes(outline: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    """One polygon [V', 2] of an outline [V, 2] and its holes, each joined to the outline's first point by a bridge.

    A bridge is crossed there and back, so by the even-odd rule inside and outside stay what they were.
    """
    parts = [outline, outline[:1]]
    for hole in holes:
        parts += [hole, hole[:1], outline[:1]]
    return np.concatenate(parts) if holes else outline


def lane_polygon(centreline_m: np.ndarray, width_m: float) -> np.ndarray:
    """Outline [V, 2] of a lane from its centreline; a loop becomes a ring."""
    if np.array_equal(centreline_m[0], centreline_m[-1]) and len(centreline_m) > 3:
        return _road_ring(ClosedLine(centreline_m[:-1]), width_m / 2)
    step = np.diff(centreline_m, axis=0)
    direction = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
    heading = np.concatenate([direction[:1], (direction[:-1] + direction[1:]) / 2, direction[-1:]])
    left = width_m / 2 * np.stack([-np.sin(heading), np.cos(heading)], axis=-1)
    return np.concatenate([centreline_m + left, (centreline_m - left)[::-1]])


def _closed(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, points[:1]])


def _road_ring(line: ClosedLine, half_m: float) -> np.ndarray:
    return with_holes(line.offset(half_m), [line.offset(-half_m)])


def drivable_mask_of_course(road: Road) -> np.ndarray:
    """uint8 [H, W], 255 where one may drive, 0.1 m a pixel, row 0 in the north: nuScenes' map raster."""
    outlines = [surface.outline_m for surface in road.surfaces if surface.kind in DRIVABLE]
    width, height = np.ceil(np.concatenate(outlines).max(axis=0) + MAP_MARGIN_M).astype(int) * PX_PER_M
    mask = np.zeros((height, width), np.uint8)
    for outline in outlines:
        pixels = outline * (PX_PER_M, -PX_PER_M) + (-0.5, height - 0.5)
        cv2.fillPoly(mask, [np.rint(pixels * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
    return mask
