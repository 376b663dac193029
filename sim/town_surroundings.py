"""What a drive through a town is judged against and drawn on: lanes, areas and lines near the route, the route itself,
and which of the lanes are red.

Everything further than REACH_M from the route is left out: the ego leaves the route long before it gets there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from sensors.nuscenes_map import PX_PER_M, outlines_of
from sim.geometry import OpenLine
from sim.road_network import NetLane, RoadNetwork
from sim.surroundings import BEYOND_M, Lane, Surroundings, with_holes
from sim.town_map import JOINT_M, Signal, TownMap, band, road_outlines, town_map
from sim.town_route import GOAL_FROM_END_M, smooth_line
from sim.town_rules import RED
from sim.town_world import START_M, TownWorld

REACH_M, BORDER_M = 80.0, 10.0
OUTLINE_PX = 1.0  # to which the outline of the drivable area is thinned: slanted edges of a raster are stairs
CHANGE_FROM, CHANGE_TO = 0.15, 0.7  # shares of a lane between which the route's line moves over to the next one
DRAWN = {"r": "red", "u": "red", "y": "amber", "Y": "amber", "g": "green", "G": "green"}


@dataclass(frozen=True)
class TownSurroundings:
    """What of a town lies near the route of a world just reset; `red_lanes` and `stop_lines` as it is now.

    around  Surroundings
    lines   tuple of (kind, xy [V, 2]): "road_edge", "divider", "crossing", "route"
    signals that stand near the route
    """

    world: TownWorld
    around: Surroundings
    lines: tuple[tuple[str, np.ndarray], ...]
    signals: tuple[Signal, ...]
    _lit: tuple[tuple[int, str, int], ...]  # (index of the lane in around.lanes, light, index of its letter)
    _stops: tuple[tuple[np.ndarray, str, int], ...]  # (ends [2, 2] of a stop line, light, index of its letter)

    @classmethod
    def of(cls, world: TownWorld) -> "TownSurroundings":
        network, route = world.network, world.route
        route_m, goal_m = route_line(world)
        near = _Near(route_m)
        lanes = [lane for lane in network.of_kind("road", "inner") if near.has(lane.line.points)]
        lanes = [lane for lane in lanes if lane.kind == "road" or lane.id in network.link_into]
        into = network.link_into
        lit = [
            (k, into[lane.id].light, into[lane.id].light_index)
            for k, lane in enumerate(lanes)
            if lane.kind == "inner" and into[lane.id].light and lane.id in route.position
        ]
        around = Surroundings(
            suite=world.scenario.name.rpartition("/")[0] or world.scenario.name,
            town=network.path.name.partition(".")[0],
            weather=world.scenario.weather,
            car=world.params,
            lights="recorded" if network.programs else "none",
            lanes=tuple(_lane(world, lane) for lane in lanes),
            areas=tuple(_areas(world.town_map, near)),
            route_m=route_m,
            goal_m=goal_m,
        )
        lines = [("route", route_m), *_lines(world, near)]
        signals = tuple(s for s in world.town_map.signals if near.has(np.array([(s.x_m, s.y_m)])))
        return cls(world, around, tuple(lines), signals, tuple(lit), tuple(_stops(world, lanes)))

    def red_lanes(self) -> list[int]:
        """Indices in around.lanes of the ways through junctions on the route whose light is red now."""
        lights = self.world.lights
        return [k for k, light, index in self._lit if lights[light][index] in RED]

    def stop_lines(self) -> list[tuple[str, np.ndarray]]:
        """("red", "amber" or "green", ends [2, 2]) of each stop line with a light, as the lights are now."""
        lights = self.world.lights
        letters = ((ends, lights[light][index]) for ends, light, index in self._stops)
        return [(DRAWN[letter], ends) for ends, letter in letters if letter in DRAWN]


class _Near:
    """Tells what comes within REACH_M of a line."""

    def __init__(self, route_m: np.ndarray):
        self.low, self.high = route_m.min(axis=0) - REACH_M, route_m.max(axis=0) + REACH_M
        self._points = route_m[::5]

    def has(self, xy: np.ndarray) -> bool:
        """Whether a polyline [V, 2] does, looked at every 10 m."""
        step = np.hypot(*np.diff(xy, axis=0).T)
        at = np.append(np.arange(0.0, step.sum(), 10.0), step.sum())
        passed = np.append(0.0, np.cumsum(step))
        xy = np.stack([np.interp(at, passed, xy[:, c]) for c in (0, 1)], axis=1)
        inside = xy[((xy > self.low) & (xy < self.high)).all(axis=1)]
        return bool((np.hypot(*(inside[:, None] - self._points).T) < REACH_M).any())


def route_line(world: TownWorld) -> tuple[np.ndarray, float]:
    """The line [R, 2] from the ego's start along its route to BEYOND_M past the goal, and the goal's arc length on it.

    Where the route asks for a change of lanes the line moves over on that lane; past the goal it goes straight on.
    """
    network, route = world.network, world.route
    pieces, lane = [], network.lanes[world.place.first_lane]
    for k in range(len(route.edges)):
        goal = k == len(route.edges) - 1
        there = route.beside(lane.id, 0 if goal else route.shifts[k][lane.id])
        pieces.append(_moving_over(lane, network.lanes[there]))
        if not goal:
            link = route.link_from(there)
            pieces += [network.lanes[inner] for inner in link.inner]
            lane = network.lanes[link.to_lane]
    last, beyond_m = len(pieces) - 1, 0.0
    while beyond_m < BEYOND_M and network.links.get(lane.id):
        links = network.links[lane.id]
        link = next((link for link in links if link.direction == "straight"), links[0])
        pieces += [network.lanes[name] for name in (*link.inner, link.to_lane)]
        lane = pieces[-1]
        beyond_m += lane.length_m
    line, starts_m = smooth_line(pieces)
    end_m = float(starts_m[last + 1]) if last + 1 < len(pieces) else line.length_m
    of_last_m = (end_m - float(starts_m[last])) / pieces[last].length_m  # smoothing cuts corners
    start_m, goal_m = START_M, end_m - GOAL_FROM_END_M * of_last_m
    wanted_m = goal_m + BEYOND_M
    at_m = np.arange(start_m, min(wanted_m, line.length_m), 1.0)
    xy, heading = line.at(at_m)
    if wanted_m > line.length_m:
        ahead = np.arange(1.0, wanted_m - at_m[-1], 1.0)[:, None]
        xy = np.concatenate([xy, xy[-1] + ahead * [np.cos(heading[-1]), np.sin(heading[-1])]])
    return xy, goal_m - start_m


def _moving_over(lane: NetLane, there: NetLane) -> NetLane:
    """The lane, but that its line moves over to another of the same edge."""
    if lane is there:
        return lane
    share = np.linspace(0.0, 1.0, max(int(lane.length_m / 2), 8))
    over = 0.5 - 0.5 * np.cos(np.pi * np.clip((share - CHANGE_FROM) / (CHANGE_TO - CHANGE_FROM), 0.0, 1.0))
    a, b = (each.line.at(share * each.length_m)[0] for each in (lane, there))
    return replace(there, line=OpenLine(a + over[:, None] * (b - a)))


def _lane(world: TownWorld, lane: NetLane) -> Lane:
    network = world.network
    legal = lane if lane.kind == "road" else network.lanes[network.link_into[lane.id].from_lane]
    return Lane(lane.id, lane.line.points, lane.width_m, legal.speed_limit_mps, lane.id in world.route.position)


def _areas(town: TownMap, near: _Near) -> Iterator[tuple[str, np.ndarray]]:
    network = town.network
    low_px, high_px = (np.floor(end * PX_PER_M).astype(int) for end in (near.low, near.high))
    mask = _road_mask(network, low_px, high_px)
    for outline, holes in outlines_of(mask, low_px[0], -high_px[1], OUTLINE_PX):
        if near.has(outline):
            yield "drivable", with_holes(outline, [hole for hole in holes if near.has(hole)])
    for junction in network.junctions.values():
        if junction.id in network.links_of_junction and near.has(junction.outline_m):
            yield "intersection", junction.outline_m
    for kind, layer in (("crossing", "crossing"), ("walk", "walkway")):
        for lane in network.of_kind(kind):
            if near.has(lane.line.points):
                yield layer, band(lane, lane.width_m / 2, -lane.width_m / 2)
    for lane in network.of_kind("area"):
        if len(lane.outline_m) > 2 and near.has(lane.outline_m):
            yield "walkway", lane.outline_m


def drivable_mask(path: Path) -> np.ndarray:
    """uint8 [H, W], 255 where one may drive, 0.1 m a pixel, row 0 in the north: nuScenes' map raster of a network."""
    network = town_map(path).network
    ends = np.concatenate([outline for _, outline in road_outlines(network)])
    return _road_mask(network, np.zeros(2, int), np.ceil(ends.max(axis=0) + BORDER_M).astype(int) * PX_PER_M)


def _road_mask(network: RoadNetwork, low_px: np.ndarray, high_px: np.ndarray) -> np.ndarray:
    """The window of that raster between two corners [2] (east, north); as `TownMap.drivable` has it, lanes and
    junctions, and JOINT_M beside them."""
    width, height = high_px - low_px
    mask = np.zeros((height, width), np.uint8)
    for _, outline in road_outlines(network):
        pixels = (outline * PX_PER_M - (low_px[0], high_px[1])) * (1, -1) - 0.5
        if (pixels.max(axis=0) < 0).any() or (pixels.min(axis=0) > (width, height)).any():
            continue
        fixed = [np.rint(pixels * 16).astype(np.int32)]
        cv2.fillPoly(mask, fixed, 255, cv2.LINE_8, 4)
        cv2.polylines(mask, fixed, True, 255, round(2 * JOINT_M * PX_PER_M), cv2.LINE_8, 4)
    return mask


def _lines(world: TownWorld, near: _Near) -> Iterator[tuple[str, np.ndarray]]:
    """Edges of roads, dividers between their lanes, and crossings."""
    network = world.network
    for names in network.edges.values():
        for k, name in enumerate(names):
            lane = network.lanes[name]
            if not near.has(lane.line.points):
                continue
            if k == 0:
                yield "road_edge", lane.line.offset(-lane.width_m / 2)
            yield "road_edge" if k == len(names) - 1 else "divider", lane.line.offset(lane.width_m / 2)
    for lane in network.of_kind("crossing"):
        if near.has(lane.line.points):
            outline = band(lane, lane.width_m / 2, -lane.width_m / 2)
            yield "crossing", np.concatenate([outline, outline[:1]])


def _stops(world: TownWorld, lanes: list[NetLane]) -> Iterator[tuple[np.ndarray, str, int]]:
    """Stop lines with a light; of several links from one lane the route's own counts."""
    network = world.network
    for lane in lanes:
        links = [link for link in network.links.get(lane.id, ()) if link.light]
        if links:
            chosen = next((link for link in links if link == world.route.link_from(lane.id)), links[0])
            (x, y), heading = lane.line.at(lane.length_m)
            side = lane.width_m / 2 * np.array([-np.sin(heading), np.cos(heading)])
            yield np.stack([side, -side]) + np.array([x, y]), chosen.light, chosen.light_index
