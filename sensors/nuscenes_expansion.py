"""The map expansion of nuScenes, `maps/expansion/<location>.json`: lanes and how they connect, and areas as polygons.

Centrelines are chains of paths of three arcs or straights each (Dubins paths); points lie about a metre apart. Version
1.3 or later; an earlier one has no lanes that connect.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from sensors.errors import InputError
from sensors.nuscenes_map import PX_PER_M, outlines_of

VERSION = (1, 3)
STEP_M = 1.0
# layer of ours: (layer of the file, only its records for which this field is true)
AREAS = {
    "intersection": ("road_segment", "is_intersection"),
    "carpark": ("carpark_area", ""),
    "roadblock": ("road_block", ""),
    "crossing": ("ped_crossing", ""),
    "walkway": ("walkway", ""),
}
CURVES = {"L": 1.0, "S": 0.0, "R": -1.0}  # the sign of the curvature of a part
LEAST_WIDTH_M, MOST_WIDTH_M = 2.0, 6.0
Polygon = tuple[np.ndarray, tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class ExpansionLane:
    """centreline_xyyaw float64 [V, 3] in the direction of travel; connector: a way through a junction, without marks.

    after, before  tokens of the lanes that it leads to, and that lead to it;  width_m: area over length, within bounds
    """

    token: str
    centreline_xyyaw: np.ndarray
    outline: np.ndarray
    width_m: float
    connector: bool
    after: tuple[str, ...]
    before: tuple[str, ...]


@dataclass(frozen=True)
class MapExpansion:
    """areas: by layer of AREAS and "drivable", polygons: (outline [V, 2], holes [V, 2]), in the world frame, metres."""

    lanes: dict[str, ExpansionLane]
    areas: dict[str, tuple[Polygon, ...]]

    def drivable(self, low_m: np.ndarray, high_m: np.ndarray) -> list[tuple[np.ndarray, list[np.ndarray]]]:
        """As `sensors.nuscenes_map.drivable_area`: outlines and holes within a rectangle; polygons that touch are one,
        to the pixel of the rasters."""
        begin = np.floor(np.asarray(low_m) * PX_PER_M).astype(int)
        width, height = (np.ceil(np.asarray(high_m) * PX_PER_M).astype(int) - begin).tolist()
        window = np.zeros((max(height, 1), max(width, 1)), np.uint8)
        for outline, holes in self.areas["drivable"]:
            if _touches(outline, low_m, high_m):
                # Row 0 is the highest: pixel centres lie half a pixel inside, as in the rasters.
                lines = [(line * PX_PER_M - begin) * (1, -1) + (-0.5, height - 0.5) for line in (outline, *holes)]
                one = np.zeros_like(window)
                cv2.fillPoly(one, [np.round(line).astype(np.int32) for line in lines], 1)
                window |= one
        return outlines_of(window, int(begin[0]), -int(begin[1]) - height)

    def within(self, layer: str, low_m: np.ndarray, high_m: np.ndarray) -> list[Polygon]:
        """The polygons of a layer that may touch a rectangle."""
        return [polygon for polygon in self.areas[layer] if _touches(polygon[0], low_m, high_m)]

    def lanes_within(self, low_m: np.ndarray, high_m: np.ndarray) -> list[ExpansionLane]:
        """The lanes whose centreline may touch a rectangle."""
        return [lane for lane in self.lanes.values() if _touches(lane.centreline_xyyaw[:, :2], low_m, high_m)]


def expansion_path(dataroot: Path, location: str) -> Path:
    return Path(dataroot) / "maps" / "expansion" / f"{Path(location).name}.json"


@lru_cache(maxsize=4)  # as many locations as nuScenes has, and a map takes seconds to read
def read_expansion(path: Path) -> MapExpansion:
    """The map of a location; one of another version, or that is damaged, is an InputError."""
    expected, fix = "a nuScenes map expansion", "Download the map expansion pack, version 1.3 or later."
    try:
        content = json.loads(path.read_bytes())
        version = tuple(int(part) for part in str(content.get("version", "1.0")).split("."))
    except OSError as error:
        raise InputError(path, "file", error.strerror, expected, fix) from error
    except (ValueError, AttributeError) as error:
        raise InputError(path, "content", f"{type(error).__name__}: {error}", expected, fix) from error
    if version < VERSION:
        raise InputError(path, "version", content.get("version", "none"), "1.3 or later", fix)
    try:
        return _Reader(content).map()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(path, "content", f"{type(error).__name__}: {error}", expected, fix) from error


class _Reader:
    def __init__(self, content: dict):
        self._content = content
        self._nodes = {node["token"]: (float(node["x"]), float(node["y"])) for node in content["node"]}
        self._polygons = {polygon["token"]: polygon for polygon in content["polygon"]}

    def map(self) -> MapExpansion:
        content = self._content
        areas = {
            layer: tuple(self._polygon(row["polygon_token"]) for row in content[name] if not field or row[field])
            for layer, (name, field) in AREAS.items()
        }
        drivable = (token for row in content["drivable_area"] for token in row["polygon_tokens"])
        areas["drivable"] = tuple(map(self._polygon, drivable))
        rows = [(row, False) for row in content["lane"]] + [(row, True) for row in content["lane_connector"]]
        paths = content["arcline_path_3"]
        lanes = {row["token"]: self._lane(row, connector) for row, connector in rows if paths.get(row["token"])}
        return MapExpansion(lanes, areas)

    def _lane(self, row: dict, connector: bool) -> ExpansionLane:
        token = row["token"]
        line = discretised(self._content["arcline_path_3"][token], STEP_M)
        outline, _ = self._polygon(row["polygon_token"])
        length_m = float(np.hypot(*np.diff(line[:, :2], axis=0).T).sum())
        width_m = float(np.clip(_area(outline) / max(length_m, 1e-3), LEAST_WIDTH_M, MOST_WIDTH_M))
        links = self._content["connectivity"].get(token, {"incoming": (), "outgoing": ()})
        ends = (tuple(links[side]) for side in ("outgoing", "incoming"))
        return ExpansionLane(token, line, outline, width_m, connector, *ends)

    def _polygon(self, token: str) -> Polygon:
        polygon = self._polygons[token]
        holes = (self._line(hole["node_tokens"]) for hole in polygon["holes"])
        return self._line(polygon["exterior_node_tokens"]), tuple(hole for hole in holes if len(hole))

    def _line(self, tokens: list[str]) -> np.ndarray:
        line = np.array([self._nodes[token] for token in tokens], np.float64).reshape(-1, 2)
        if not np.isfinite(line).all():
            raise ValueError("a node that is not finite")
        return line


def discretised(paths: list[dict], step_m: float) -> np.ndarray:
    """x, y, yaw [V, 3] along a chain of paths, each in as many equal steps as the devkit's `discretize` takes; where
    one path ends and the next begins there are two points, as there."""
    return np.concatenate([_along(path, step_m) for path in paths])


def _along(path: dict, step_m: float) -> np.ndarray:
    """Exact points of the three parts: curvature k and length s make a chord of s sinc(k s / 2) along yaw + k s / 2."""
    lengths, curvature = np.array(path["segment_length"], np.float64), 1.0 / float(path["radius"])
    total = float(lengths.sum())
    count = int(max(np.ceil(total / step_m) + 1.5, 2))
    at = np.linspace(0.0, total, count)
    poses = np.tile(np.array(path["start_pose"], np.float64), (count, 1))
    for letter, length, begin in zip(path["shape"], lengths, np.cumsum(lengths) - lengths, strict=True):
        s, k = np.clip(at - begin, 0.0, length), CURVES[letter] * curvature
        chord, course = s * np.sinc(k * s / (2 * np.pi)), poses[:, 2] + k * s / 2
        poses += np.stack([chord * np.cos(course), chord * np.sin(course), k * s], axis=1)
    poses[:, 2] = (poses[:, 2] + np.pi) % (2 * np.pi) - np.pi
    return poses


def _area(outline: np.ndarray) -> float:
    x, y = outline.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _touches(line: np.ndarray, low_m: np.ndarray, high_m: np.ndarray) -> bool:
    return bool((line.min(axis=0) <= high_m).all() and (line.max(axis=0) >= low_m).all())
