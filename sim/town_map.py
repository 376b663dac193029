"""The ground of a town, from its network: what is painted on it, what one may drive on, where its signals stand."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import cv2
import numpy as np

from sim.road_network import Link, NetLane, RoadNetwork, read_network
from sim.roads import DASH_M, DASH_PERIOD_M, MARKING_M, Surface

STOP_LINE_M, ZEBRA_M = 0.4, 0.5
CELL_M = 16.0  # of the grid that finds polygons near a point
CLEARANCE_PX_M = 0.5  # raster of the distance from the nearest road or sidewalk
BORDER_M = 60.0  # of that raster, around the town
JOINT_M = 0.25  # lanes and junctions meet with gaps of up to twice this
SIGNAL_AHEAD_M, SIGNAL_ASIDE_M = 3.0, 1.3  # of the stop line's right end


@dataclass(frozen=True)
class Signal:
    """A head beside an approach, seen by those who drive along yaw; it shows letter `index` of the state of `light`."""

    x_m: float
    y_m: float
    yaw_rad: float
    light: str
    index: int


@dataclass(frozen=True)
class TownMap:
    """surfaces back to front; signals; and, for questions about points, polygons in a grid, a raster of distances."""

    network: RoadNetwork
    surfaces: tuple[Surface, ...]
    signals: tuple[Signal, ...]
    _cells: dict[tuple[int, int], list[tuple[str, np.ndarray]]]
    _clearance_m: np.ndarray
    _origin_m: np.ndarray

    @cached_property
    def signal_poses(self) -> np.ndarray:
        """x, y, yaw [K, 3] of the signals."""
        return np.array([(s.x_m, s.y_m, s.yaw_rad) for s in self.signals]).reshape(-1, 3)

    def under(self, x_m: float, y_m: float) -> tuple[str, ...]:
        """Ids of the road lanes, and of the junctions, that a point lies on; none: it is not on a road."""
        near = self._cells.get((int(x_m // CELL_M), int(y_m // CELL_M)), ())
        return tuple(name for name, outline in near if cv2.pointPolygonTest(outline, (x_m, y_m), False) >= 0)

    def drivable(self, points: np.ndarray) -> np.ndarray:
        """Whether points [..., 2] lie on a road lane or in a junction, or JOINT_M beside one, bool [...]."""
        points = np.asarray(points, np.float64)
        flat = [self._on_road(float(x), float(y)) for x, y in points.reshape(-1, 2)]
        return np.array(flat).reshape(points.shape[:-1])

    def _on_road(self, x_m: float, y_m: float) -> bool:
        near = self._cells.get((int(x_m // CELL_M), int(y_m // CELL_M)), ())
        return any(cv2.pointPolygonTest(outline, (x_m, y_m), True) >= -JOINT_M for _, outline in near)

    def distance_m(self, points: np.ndarray) -> np.ndarray:
        """Distance [...] of points [..., 2] from the nearest road or sidewalk, 0 on it, to CLEARANCE_PX_M."""
        cell = ((np.asarray(points, np.float64) - self._origin_m) / CLEARANCE_PX_M).astype(int)
        height, width = self._clearance_m.shape
        return self._clearance_m[np.clip(cell[..., 1], 0, height - 1), np.clip(cell[..., 0], 0, width - 1)]


@lru_cache(maxsize=8)
def town_map(path: Path) -> TownMap:
    """The map of a network file; read once."""
    network = read_network(path)
    surfaces = (*_paved(network), *_markings(network))
    walked = [s.outline_m for s in surfaces if s.kind in ("asphalt", "sidewalk")]
    all_points = np.concatenate(walked)
    origin = all_points.min(axis=0) - BORDER_M
    width, height = np.ceil((all_points.max(axis=0) + BORDER_M - origin) / CLEARANCE_PX_M).astype(int)
    free = np.full((height, width), 255, np.uint8)
    for outline in walked:
        cv2.fillPoly(free, [np.round((outline - origin) / CLEARANCE_PX_M).astype(np.int32)], 0)
    clearance = cv2.distanceTransform(free, cv2.DIST_L2, 5) * CLEARANCE_PX_M
    return TownMap(network, surfaces, _signals(network), _grid(network), clearance, origin)


def band(lane: NetLane, left_m: float, right_m: float, from_m: float = 0.0, to_m: float = np.inf) -> np.ndarray:
    """Outline [P, 2] of a band between two lateral offsets (left positive) along a stretch of a lane."""
    line = lane.line
    to_m = min(to_m, line.length_m)
    inner = line.s_m[(line.s_m > from_m + 1e-6) & (line.s_m < to_m - 1e-6)]
    xy, heading = line.at(np.concatenate([[from_m], inner, [to_m]]))
    normal = np.stack([-np.sin(heading), np.cos(heading)], axis=-1)
    return np.concatenate([xy + left_m * normal, (xy + right_m * normal)[::-1]])


def _paved(network: RoadNetwork) -> list[Surface]:
    half = {lane.id: lane.width_m / 2 for lane in network.lanes.values()}
    out = [Surface("asphalt", band(lane, half[lane.id], -half[lane.id])) for lane in network.of_kind("road")]
    out += [Surface("asphalt", junction.outline_m) for junction in network.junctions.values()]
    out += [Surface("sidewalk", band(lane, half[lane.id], -half[lane.id])) for lane in network.of_kind("walk")]
    return out + [Surface("sidewalk", lane.outline_m) for lane in network.of_kind("area") if len(lane.outline_m) > 2]


def _markings(network: RoadNetwork) -> list[Surface]:
    out = []

    def mark(*arguments):
        out.append(Surface("marking", band(*arguments)))

    for names in network.edges.values():
        for k, name in enumerate(names):
            lane = network.lanes[name]
            left, thin = lane.width_m / 2, MARKING_M / 2
            if k == 0:
                mark(lane, -left + 0.15 + thin, -left + 0.15 - thin)
            if k == len(names) - 1:
                mark(lane, left - 0.02, left - 0.02 - MARKING_M)
            else:
                for start in np.arange(1.0, lane.length_m - DASH_M, DASH_PERIOD_M):
                    mark(lane, left + thin, left - thin, start, start + DASH_M)
            if any(link.light or _gives_way(network, link) for link in network.links.get(name, ())):
                mark(lane, left - 0.15, -left + 0.15, max(lane.length_m - 0.1 - STOP_LINE_M, 0.0), lane.length_m - 0.1)
    for lane in network.of_kind("crossing"):
        for start in np.arange(0.25, lane.length_m - ZEBRA_M, 2 * ZEBRA_M):
            mark(lane, lane.width_m / 2 - 0.3, -lane.width_m / 2 + 0.3, start, start + ZEBRA_M)
    return out


def _gives_way(network: RoadNetwork, link: Link) -> bool:
    junction = network.junctions.get(link.junction)
    return junction is not None and 0 <= link.index < len(junction.yields_to) and bool(junction.yields_to[link.index])


def _signals(network: RoadNetwork) -> tuple[Signal, ...]:
    """One head right of each approach, for straight on; one to its left for left turns if they ever differ."""
    out = []
    for names in network.edges.values():
        links = [link for name in names for link in network.links.get(name, ()) if link.light]
        if not links:
            continue
        straight = [link for link in links if link.direction == "straight"] or links
        shown = [(straight[0], network.lanes[names[0]], -1.0)]
        for link in links:
            states = network.programs.get(link.light, ())
            differs = any(s[link.light_index] in "ry" and s[straight[0].light_index] in "gG" for s in states)
            if link.direction == "left" and differs:
                shown.append((link, network.lanes[names[-1]], 1.0))
                break
        for link, lane, side in shown:
            (x, y), heading = lane.line.at(lane.length_m)
            aside = side * (lane.width_m / 2 + (SIGNAL_ASIDE_M if side < 0 else 0.2))
            c, s = float(np.cos(heading)), float(np.sin(heading))
            x, y = x + SIGNAL_AHEAD_M * c - aside * s, y + SIGNAL_AHEAD_M * s + aside * c
            out.append(Signal(float(x), float(y), float(heading), link.light, link.light_index))
    return tuple(out)


def road_outlines(network: RoadNetwork) -> list[tuple[str, np.ndarray]]:
    """(id of a lane or junction, outline [P, 2]) of all that cars may drive on."""
    named = [(lane.id, band(lane, lane.width_m / 2, -lane.width_m / 2)) for lane in network.of_kind("road")]
    named += [(junction.id, junction.outline_m) for junction in network.junctions.values()]
    for lane in network.of_kind("inner"):  # some reach beyond their junction's outline
        if lane.id in network.link_into and network.link_into[lane.id].junction in network.junctions:
            named.append((network.link_into[lane.id].junction, band(lane, lane.width_m / 2, -lane.width_m / 2)))
    return named


def _grid(network: RoadNetwork) -> dict[tuple[int, int], list[tuple[str, np.ndarray]]]:
    cells: dict[tuple[int, int], list[tuple[str, np.ndarray]]] = defaultdict(list)
    for name, outline in road_outlines(network):
        ends = outline.min(axis=0) - JOINT_M, outline.max(axis=0) + JOINT_M
        low, high = (np.floor(v / CELL_M).astype(int) for v in ends)
        for column in range(low[0], high[0] + 1):
            for row in range(low[1], high[1] + 1):
                cells[column, row].append((name, outline.astype(np.float32)))
    return dict(cells)
