"""Hazards one can name: what makes one moment of a scenario hard, played by road users who press on whatever one does.

A hazard says which routes it can happen on, who takes part, and what they do before each step. A driver who looks and
brakes in time can master every one.

    cut-in             a car from the next lane pulls in close ahead
    jaywalker          a pedestrian crosses between junctions
    hard-braking-lead  the car ahead brakes to a standstill for no reason, and drives on later
    occluded-crossing  a pedestrian steps out from behind a truck parked at the kerb
    red-light-runner   a car crosses at red
    blocked-lane       a car has broken down at the right edge of the ego's lane
    unprotected-left   a left turn at a light, and an oncoming car that arrives at the same time
    merge              on to a motorway, and a car on it that arrives at the same time
    roundabout         into a roundabout, and a car that comes round from the entry before, and out again
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from sensors.frames import wrap
from sim.road_network import Link, NetLane
from sim.town_route import Followed, Route
from sim.traffic_sumo import KINDS, PRESSES_ON, RUNS_RED, Extra, SumoTraffic
from sim.vehicle import EgoState

START_GAP_M = 16.0  # from the ego's start to the front bumper of who starts ahead of it
ROOM_M = 80.0  # length of the edge on which it happens
BROKEN_DOWN_M, ASIDE_M = 50.0, 1.0  # where on it a car has broken down, and how far right of its middle
KERB_M = 60.0  # where on it a pedestrian crosses
WALK_MPS = 1.4
REACT_S = 2.0  # a pedestrian who steps out leaves the driver at least this long
FRONT_M, EGO_ACCEL_MPS2 = 3.4, 1.8  # of the ego: from its rear axle to its front bumper; how it speeds up
COMMITTED_S = 2.5
PASSED_M = 8.0  # the ego is through once its front bumper is this far beyond the point where two ways meet


class Hazard:
    """Nothing in particular."""

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
        return (Extra("broken-down", "car", self.route.edges, self.lane.index, BROKEN_DOWN_M),)

    def act(self, traffic: SumoTraffic, ego: EgoState, progress_m: float, time_s: float) -> None:
        """Its driver has got it to the right edge of the lane: one may pass without leaving one's half of the road."""
        (x, y), heading = self.lane.line.at(BROKEN_DOWN_M - KINDS["car"].size_lwh_m[0])
        if traffic.is_there("broken-down"):
            x, y = x + ASIDE_M * np.sin(heading), y - ASIDE_M * np.cos(heading)
            traffic.put("broken-down", float(x), float(y), float(heading))


class Jaywalker(Hazard):
    """The pedestrian waits at the kerb and goes when the ego is as far as it takes to walk to the ego's lane."""

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
        from_m = self.start_m + progress_m + FRONT_M
        aside_m = first.width_m * (self.lane.index - first.index + 0.5) + 0.9
        if self._walked_m is None and from_m < KERB_M:
            arrives_s = _arrives_s(self.route.followed(self.lane.id), from_m, KERB_M - from_m, ego.speed_mps)
            if arrives_s < max(REACT_S, aside_m / WALK_MPS + 0.4):
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


class Meeting(Hazard):
    """Somebody on another way through the ego's first junction arrives where the two ways meet when the ego does.

    It waits `hold_m` before its own stop line and starts when it will take as long to the point where the ways meet as
    a driver of the ego who does not react. It goes on at about `speed_mps`, which it no longer changes in the last
    COMMITTED_S, and gives way to nobody.
    """

    actor, hold_m, speed_mps, manners = "", 2.0, 9.0, PRESSES_ON
    need_light = True

    def __init__(self, route: Route, lane: str, start_m: float):
        super().__init__(route, lane, start_m)
        self._speed_mps, self._driven_m = 0.0, 0.0

    def fits(self) -> bool:
        return self.lane.length_m > self.start_m + 40.0 and self._ways is not None

    def is_ours(self, link: Link) -> bool:
        """Whether the hazard can happen on this way of the ego's."""
        raise NotImplementedError

    def is_theirs(self, link: Link, turn: float) -> bool:
        """Whether it can come this way, which meets the ego's; turn: between the two roads, in radians."""
        raise NotImplementedError

    @cached_property
    def _ways(self) -> tuple[Link, Link, float, float] | None:
        """The ego's link, the other's, and how far from the two stop lines their ways meet; None if there is none."""
        network, ours = self.route.network, self.route.link_from(self.lane.id)
        if ours is None or bool(ours.light) != self.need_light or not self.is_ours(ours):
            return None
        junction = network.junctions.get(ours.junction)
        foes = junction.foes[ours.index] if junction and 0 <= ours.index < len(junction.foes) else ()
        for theirs in network.links_of_junction[ours.junction]:
            lane = network.lanes[theirs.from_lane]
            turn = wrap(lane.line.heading_rad[-1] - self.lane.line.heading_rad[-1])
            if theirs.index in foes and self.is_theirs(theirs, float(turn)) and self._start_of(theirs) is not None:
                return (ours, theirs, *network.meet_m(ours, theirs))
        return None

    def _start_of(self, theirs: Link) -> tuple[NetLane, float] | None:
        """The lane before whose stop line the other waits, and how far that line is from where `theirs` begins."""
        network = self.route.network
        lane, goes_on = network.lanes[theirs.from_lane], network.followers[network.lanes[theirs.to_lane].edge]
        return (lane, 0.0) if lane.length_m > self.hold_m + 8.0 and goes_on else None

    def extras(self) -> tuple[Extra, ...]:
        network, theirs = self.route.network, self._ways[1]
        lane, _ = self._start_of(theirs)
        before, after = (network.lanes[name].edge for name in (theirs.from_lane, theirs.to_lane))
        way = tuple(dict.fromkeys((lane.edge, before, after, network.followers[after][0])))
        return (Extra(self.actor, "car", way, lane.index, lane.length_m - self.hold_m),)

    def act(self, traffic: SumoTraffic, ego: EgoState, progress_m: float, time_s: float) -> None:
        if not traffic.is_there(self.actor):
            return
        ours, theirs, ours_m, theirs_m = self._ways
        followed = self.route.followed(self.lane.id)
        away_m = followed.links[0][0] + ours_m - self.start_m - progress_m - FRONT_M
        green = not ours.light or traffic.now.lights[ours.light][ours.light_index] in "gG"
        self._driven_m += 0.1 * traffic.speed_of(self.actor)
        left_m = self.hold_m + self._start_of(theirs)[1] + theirs_m - self._driven_m
        if away_m < -PASSED_M:
            traffic.drive_at(self.actor, None)
            return
        if green and away_m > 0.0 and (not self._speed_mps or left_m > COMMITTED_S * self.speed_mps):
            arrives_s = _arrives_s(followed, self.start_m + progress_m + FRONT_M, away_m, ego.speed_mps)
            if not self._speed_mps and arrives_s < self._takes_s(left_m):
                self._speed_mps = self.speed_mps
            elif self._speed_mps:
                self._speed_mps = float(np.clip(left_m / arrives_s, 0.35 * self.speed_mps, 1.2 * self.speed_mps))
        if self._speed_mps:
            traffic.drive_at(self.actor, self._speed_mps, self.manners)

    def _takes_s(self, distance_m: float) -> float:
        """From standstill, at the car's acceleration up to speed_mps."""
        accel = KINDS["car"].accel_mps2
        up_m = self.speed_mps**2 / (2 * accel)
        if distance_m < up_m:
            return float(np.sqrt(2 * distance_m / accel))
        return self.speed_mps / accel + (distance_m - up_m) / self.speed_mps


def _arrives_s(followed: Followed, from_m: float, distance_m: float, speed_mps: float) -> float:
    """How long a driver takes who speeds up to the comfortable speed of the way and does not react to anybody."""
    ahead_m = np.arange(0.25, max(distance_m, 0.5), 0.5)
    comfortable = np.interp(from_m + ahead_m, followed.line.s_m, followed.speed_mps)
    return float((0.5 / np.minimum(np.sqrt(speed_mps**2 + 2 * EGO_ACCEL_MPS2 * ahead_m), comfortable)).sum())


class RedLightRunner(Meeting):
    actor, hold_m, manners = "runs-red", 10.0, RUNS_RED

    def is_ours(self, link: Link) -> bool:
        return link.direction == "straight"

    def is_theirs(self, link: Link, turn: float) -> bool:
        return link.direction == "straight" and abs(np.cos(turn)) < 0.5


class UnprotectedLeft(Meeting):
    actor = "oncoming"

    def is_ours(self, link: Link) -> bool:
        return link.direction == "left"

    def is_theirs(self, link: Link, turn: float) -> bool:
        network, ours = self.route.network, self.route.link_from(self.lane.id)
        gives_way = link.index in network.junctions[link.junction].yields_to[ours.index]
        return gives_way and link.direction == "straight" and np.cos(turn) < -0.7


class Merge(Meeting):
    actor, hold_m, speed_mps, need_light = "on-motorway", 190.0, 17.0, False

    def is_ours(self, link: Link) -> bool:
        lanes = self.route.network.lanes
        return lanes[link.to_lane].speed_limit_mps > 20.0 > self.lane.speed_limit_mps

    def is_theirs(self, link: Link, turn: float) -> bool:
        return self.route.network.lanes[link.from_lane].speed_limit_mps > 20.0


class Roundabout(Meeting):
    """The other comes in by the entry before the ego's, and goes on past it."""

    actor, hold_m, speed_mps, need_light = "goes-round", 2.0, 6.0, False

    def is_ours(self, link: Link) -> bool:
        rounds, edge = self.route.network.roundabout_edges, self.route.network.lanes[link.to_lane].edge
        return self.lane.edge not in rounds and edge in rounds and self.route.edges[-1] not in rounds

    def is_theirs(self, link: Link, turn: float) -> bool:
        rounds, lanes = self.route.network.roundabout_edges, self.route.network.lanes
        return lanes[link.from_lane].edge in rounds and lanes[link.to_lane].edge in rounds

    def _start_of(self, theirs: Link) -> tuple[NetLane, float] | None:
        network = self.route.network
        for links in network.links.values():
            for link in links:
                lane = network.lanes[link.from_lane]
                if link.to_lane == theirs.from_lane and lane.edge not in network.roundabout_edges:
                    through = (*link.inner, link.to_lane)
                    return lane, sum(network.lanes[name].length_m for name in through)
        return None


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
