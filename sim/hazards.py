"""Hazards one can name: what makes one moment of a scenario hard, played by road users who do not keep the rules.

A hazard says which routes it can happen on, who takes part, and what they do before each step. A driver who looks and
brakes in time can master every one.

    cut-in             a car from the next lane pulls in close ahead
    jaywalker          a pedestrian crosses between junctions
    hard-braking-lead  the car ahead brakes to a standstill for no reason, and drives on later
    occluded-crossing  a pedestrian steps out from behind a truck parked at the kerb
    red-light-runner   a car crosses at red
    blocked-lane       a car has broken down in the ego's lane
    unprotected-left   a left turn across traffic that has right of way
    merge              on to a motorway
    roundabout         into a roundabout, and out again
"""

from collections.abc import Callable

import numpy as np

from sim.road_network import Link
from sim.town_route import Route
from sim.traffic_sumo import Extra, SumoTraffic
from sim.vehicle import EgoState

START_GAP_M = 16.0  # from the ego's start to the front bumper of who starts ahead of it
ROOM_M = 80.0  # length of the edge on which it happens
KERB_M = 60.0  # where on it a pedestrian crosses
WALK_MPS = 1.4
REACT_S = 2.8  # a pedestrian who steps out leaves the driver this long at the driver's present speed
RUN_MPS = 9.0


class Hazard:
    """Nothing in particular: a place on the route that is hard by itself."""

    def __init__(self, route: Route, lane: str, start_m: float):
        self.route, self.lane, self.start_m = route, route.network.lanes[lane], start_m

    def fits(self) -> bool:
        """Whether it can happen on this route, from this lane of its first edge."""
        return True

    def extras(self) -> tuple[Extra, ...]:
        """Who takes part."""
        return ()

    def act(self, traffic: SumoTraffic, ego: EgoState, progress_m: float, time_s: float) -> None:
        """What they do in the next step."""

    def _links(self) -> list[Link]:
        network, edges = self.route.network, self.route.edges
        lanes = [network.edges[edge] for edge in edges[:-1]]
        return [
            link
            for k, names in enumerate(lanes)
            for name in names
            for link in network.links.get(name, ())
            if network.lanes[link.to_lane].edge == edges[k + 1]
        ]

    def _number(self, lane: str) -> int:
        return self.route.network.lanes[lane].index


class CutIn(Hazard):
    def fits(self) -> bool:
        return self.lane.length_m > ROOM_M and self._beside() is not None

    def _beside(self) -> str | None:
        return self.route.beside(self.lane.id, 1) or self.route.beside(self.lane.id, -1)

    def extras(self) -> tuple[Extra, ...]:
        return (Extra("cuts-in", "car", self.route.edges, self._number(self._beside()), self.start_m + START_GAP_M),)

    def act(self, traffic: SumoTraffic, ego: EgoState, progress_m: float, time_s: float) -> None:
        if traffic.is_there("cuts-in") and time_s < 7.0:
            traffic.drive_at("cuts-in", min(1.2 * time_s, max(0.85 * ego.speed_mps, 3.0)))
            if time_s > 3.0:
                traffic.change_lane("cuts-in", self.lane.index)
        elif traffic.is_there("cuts-in") and time_s < 7.2:
            traffic.drive_at("cuts-in", None)


class HardBrakingLead(Hazard):
    def fits(self) -> bool:
        return self.lane.length_m > ROOM_M

    def extras(self) -> tuple[Extra, ...]:
        return (Extra("brakes", "car", self.route.edges, self.lane.index, self.start_m + START_GAP_M),)

    def act(self, traffic: SumoTraffic, ego: EgoState, progress_m: float, time_s: float) -> None:
        if not traffic.is_there("brakes"):
            return
        if time_s < 5.0:
            traffic.drive_at("brakes", 1.6 * time_s)
        elif time_s < 9.0:
            traffic.drive_at("brakes", max(8.0 - 7.0 * (time_s - 5.0), 0.0))
        elif time_s < 9.2:
            traffic.drive_at("brakes", None)


class BlockedLane(Hazard):
    def fits(self) -> bool:
        return self.lane.length_m > ROOM_M

    def extras(self) -> tuple[Extra, ...]:
        return (Extra("broken-down", "car", self.route.edges, self.lane.index, self.start_m + 34.0),)


class Jaywalker(Hazard):
    """The pedestrian waits at the kerb and goes when the ego is REACT_S away, or as long as it takes to its lane."""

    def __init__(self, route: Route, lane: str, start_m: float):
        super().__init__(route, lane, start_m)
        self._walked_m: float | None = None

    def fits(self) -> bool:
        return self.lane.length_m > ROOM_M + 10.0 and self._walk() is not None

    def _walk(self) -> str | None:
        name = f"{self.lane.edge}_0"
        return name if name in self.route.network.lanes and self.route.network.lanes[name].kind == "walk" else None

    def extras(self) -> tuple[Extra, ...]:
        return (Extra("steps-out", "walker", (self.lane.edge,), 0, KERB_M),)

    def act(self, traffic: SumoTraffic, ego: EgoState, progress_m: float, time_s: float) -> None:
        first = self.route.network.lanes[self.route.network.edges[self.lane.edge][0]]
        away_m = KERB_M - self.start_m - progress_m - 3.4
        aside_m = first.width_m * (self.lane.index - first.index + 0.5) + 0.9
        if self._walked_m is None and 0.0 < away_m < max(max(REACT_S, aside_m / WALK_MPS) * ego.speed_mps, 6.0):
            self._walked_m = 0.0
        xy, heading = first.line.at(KERB_M)
        across_m = len(self.route.network.edges[self.lane.edge]) * 2 * first.width_m + 2.5
        if self._walked_m is not None:
            self._walked_m = min(self._walked_m + 0.1 * WALK_MPS, across_m)
        out_m = first.width_m / 2 + 0.9 - (self._walked_m or 0.0)  # right of the lane's middle
        x, y = xy + out_m * np.array([np.sin(heading), -np.cos(heading)])
        if traffic.is_there("steps-out"):
            traffic.put("steps-out", float(x), float(y), float(heading) + np.pi / 2)


class OccludedCrossing(Jaywalker):
    """As the jaywalker, from behind a truck that is parked on the sidewalk."""

    def extras(self) -> tuple[Extra, ...]:
        return (*super().extras(), Extra("parked", "truck", self.route.edges, self.lane.index, self.start_m + 30.0))

    def act(self, traffic: SumoTraffic, ego: EgoState, progress_m: float, time_s: float) -> None:
        super().act(traffic, ego, progress_m, time_s)
        first = self.route.network.lanes[self.route.network.edges[self.lane.edge][0]]
        xy, heading = first.line.at(KERB_M - 1.2)
        x, y = xy + (first.width_m / 2 + 1.35) * np.array([np.sin(heading), -np.cos(heading)])
        if traffic.is_there("parked"):
            traffic.put("parked", float(x), float(y), float(heading))


class RedLightRunner(Hazard):
    """On a road that crosses the ego's first link with a light, a car waits, and goes when the two would meet."""

    def fits(self) -> bool:
        return self.lane.length_m > ROOM_M and self._pair() is not None

    def _pair(self) -> tuple[Link, Link] | None:
        network = self.route.network
        ours = self.route.link_from(self.lane.id)
        if ours is None or not ours.light or ours.direction != "straight":
            return None
        foes = network.junctions[ours.junction].foes[ours.index]
        for foe in network.links_of_junction[ours.junction]:
            edge = network.lanes[foe.from_lane].edge
            opposite = np.cos(network.lanes[foe.from_lane].line.heading_rad[-1] - self.lane.line.heading_rad[-1])
            if foe.index in foes and foe.direction == "straight" and abs(opposite) < 0.5:
                return (ours, foe) if network.edge_length_m(edge) > 40.0 else None
        return None

    def extras(self) -> tuple[Extra, ...]:
        network = self.route.network
        lane, after = (network.lanes[name] for name in (self._pair()[1].from_lane, self._pair()[1].to_lane))
        way = (lane.edge, after.edge, network.followers[after.edge][0])
        return (Extra("runs-red", "car", way, lane.index, lane.length_m - 30.0),)

    def act(self, traffic: SumoTraffic, ego: EgoState, progress_m: float, time_s: float) -> None:
        if not traffic.is_there("runs-red"):
            return
        ours, _ = self._pair()
        away_m = self.lane.length_m - self.start_m - progress_m
        green = traffic.now.lights[ours.light][ours.light_index] in "gG"
        meets = 0.0 < away_m < max(ego.speed_mps, 3.0) * 30.0 / RUN_MPS
        if green and meets and ego.speed_mps > 2.0:
            traffic.drive_at("runs-red", RUN_MPS)
        if away_m < -25.0:
            traffic.drive_at("runs-red", None)


class UnprotectedLeft(Hazard):
    def fits(self) -> bool:
        network = self.route.network
        return any(
            link.direction == "left" and link.light and network.junctions[link.junction].yields_to[link.index]
            for link in self._links()
        )


class Merge(Hazard):
    def fits(self) -> bool:
        limits = [self.route.network.lanes[self.route.network.edges[e][0]].speed_limit_mps for e in self.route.edges]
        return max(limits[1:]) > 20.0 > limits[0]


class Roundabout(Hazard):
    def fits(self) -> bool:
        rounds = self.route.network.roundabout_edges
        return self.route.edges[0] not in rounds and any(edge in rounds for edge in self.route.edges[1:-1])


HAZARDS: dict[str, Callable[[Route, str, float], Hazard]] = {
    "cut-in": CutIn,
    "jaywalker": Jaywalker,
    "hard-braking-lead": HardBrakingLead,
    "occluded-crossing": OccludedCrossing,
    "red-light-runner": RedLightRunner,
    "blocked-lane": BlockedLane,
    "unprotected-left": UnprotectedLeft,
    "merge": Merge,
    "roundabout": Roundabout,
}
