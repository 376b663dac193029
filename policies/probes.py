"""Where in a drive a minimal pair can be asked for, and its two versions.

Found from the world, never from what a policy does. A pair is worth asking only where a careful driver's plans for its
two versions differ by well more than the criterion asks (DISTINCT). In both versions nobody else is about, so that the
one thing that differs is the only reason to plan otherwise: a picture of crossing traffic under a green light asks two
questions at once. Each line, and each stretch of time, is asked at one instant, drawn from the seed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from policies.pairs import (
    GREEN_MORE_M,
    LEAD_NEARER_M,
    OBSTACLE_SHARE,
    tells_lead,
    tells_obstacle,
    tells_red,
    tells_ways,
)
from policies.town_motion import motion
from policies.town_view import Limit, Others, at_lines, in_the_way
from sensors.clip import Clip
from sensors.frames import wrap
from sim.road_network import Link
from sim.scene import Otherwise
from sim.town_route import comfortable_speed_mps, smooth_line
from sim.town_scene import lamps_of_state
from sim.town_words import turn
from sim.town_world import TownWorld
from sim.tracker import PLAN_TIME_S, Plan
from sim.traffic_sumo import KINDS, PEDESTRIAN, PEDESTRIAN_LWH_M
from sim.world import PAINTS, Actor

LIGHT_M = (6.0, 25.0)  # from the front bumper to the stop line
LEAD_M = (4.0, 20.0)  # from bumper to bumper
OBSTACLE_M = (10.0, 20.0)  # from the front bumper to the obstacle
TURN_M = (0.0, 10.0)  # from the front bumper to where the ways part
MOVES_MPS = 2.0  # who stands is not asked about the lead, an obstacle or a turn
STOPS_MPS2 = 3.5  # what would take harder braking is no fair question
DISTINCT = 1.5  # times what the criterion asks
DISTINCT_RAD = 0.6  # between the headings at the ends of two ways
HIT_M = 3.0  # so far beyond the beginning of an obstacle one gets without it
NEAREST_SHARE = 0.3  # of a range of distances is left to ask in, wherever one begins to
EVERY_S = (4.0, 8.0)  # between two questions of a kind that no line belongs to
IN_LANE_M, ALONG_RAD = 0.6, 0.15
PASTED_INSTANCE = 4_000
OBSTACLES = (
    (KINDS["car"].category, KINDS["car"].size_lwh_m),
    (KINDS["truck"].category, KINDS["truck"].size_lwh_m),
    (PEDESTRIAN, PEDESTRIAN_LWH_M),
)
DIRECTIONS = ("left", "straight", "right")


@dataclass(frozen=True)
class Version:
    """One side of a pair, in a word: what is drawn otherwise than it is, and the cue where it is not the route's."""

    words: str
    otherwise: Otherwise
    cue: tuple[str, str] | None = None

    def told(self, clip: Clip) -> tuple[str, str]:
        """(route command, instruction) of this version."""
        return self.cue or (clip.command, clip.instruction)


@dataclass(frozen=True)
class Probe:
    """A pair: its kind, its two versions, whether two plans tell them apart, and how far ahead what differs is."""

    kind: str
    versions: tuple[Version, Version]
    passed: Callable[[Plan, Plan], bool]
    gap_m: float


class Probes:
    """Says at each instant of an episode which pairs can be asked for there."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng([seed, 11])
        self._next_us: dict[str, int] = {}
        self._ask_at_m: dict[tuple[str, str], float] = {}  # kind and lane: how far before its end
        self._asked: set[tuple[str, str]] = set()

    def at(self, world: TownWorld) -> Iterator[Probe]:
        if not in_its_lane(world):
            return
        for gap_m, link in _lines(world):
            yield from self._before("red_light", LIGHT_M, gap_m, link, partial(_light, world, gap_m, link))
        if world.ego.speed_mps >= MOVES_MPS:
            yield from self._turns(world)
            yield from self._now_and_then("lead", world.time_us, partial(_lead, world))
            yield from self._now_and_then("obstacle", world.time_us, partial(_obstacle, world, self._rng))

    def _turns(self, world: TownWorld) -> Iterator[Probe]:
        for gap_m, link in _lines(world):
            yield from self._before("turn", TURN_M, gap_m, link, partial(_ways, world, gap_m, link, self._rng))

    def _before(
        self, kind: str, within_m: tuple[float, float], gap_m: float, link: Link, make: Callable[[], Probe | None]
    ) -> Iterator[Probe]:
        """Once before a line, at a distance that is drawn, or as soon after as it can be asked."""
        key, (low_m, high_m) = (kind, link.from_lane), within_m
        if key not in self._ask_at_m:
            self._ask_at_m[key] = float(self._rng.uniform(low_m + NEAREST_SHARE * (high_m - low_m), high_m))
        if key in self._asked or not low_m <= gap_m <= self._ask_at_m[key]:
            return
        probe = make()
        if probe is not None:
            self._asked.add(key)
            yield probe

    def _now_and_then(self, kind: str, now_us: int, make: Callable[[], Probe | None]) -> Iterator[Probe]:
        if now_us < self._next_us.get(kind, 0):
            return
        probe = make()
        if probe is not None:
            self._next_us[kind] = now_us + round(1e6 * self._rng.uniform(*EVERY_S))
            yield probe


def in_its_lane(world: TownWorld) -> bool:
    """Whether the ego drives along a road's lane; who turns or changes lanes is not asked."""
    place = world.place
    if world.network.lanes[place.lane].kind != "road":
        return False
    return abs(place.lateral_m) <= IN_LANE_M and abs(place.heading_error_rad) <= ALONG_RAD


def _lines(world: TownWorld) -> list[tuple[float, Link]]:
    """How far ahead the end of the ego's lane is, and how it leads on there."""
    place = world.place
    return [(gap_m, link) for gap_m, link in place.stop_lines if link.from_lane == place.lane and gap_m > 0.0]


def _light(world: TownWorld, gap_m: float, link: Link) -> Probe | None:
    """The light of this line green, and red."""
    green, red = (_state_of(world, link, letters) for letters in ("Gg", "r"))
    if green is None or red is None or not _can_stop(world, gap_m):
        return None
    stop = Limit(gap_m, 0.0, "", standstill=True)
    if _driven_m(world, []) - _driven_m(world, [stop]) < DISTINCT * GREEN_MORE_M:
        return None
    nobody = _everybody(world)
    versions = [
        Version(words, Otherwise(nobody, lamps_of_state(world.town_map, link.light, state)))
        for words, state in (("green", green), ("red", red))
    ]
    return Probe("red_light", tuple(versions), partial(tells_red, line_m=gap_m), gap_m)


def _lead(world: TownWorld) -> Probe | None:
    """The vehicle that the ego follows away, and there."""
    followed, others = world.route.followed(world.place.first_lane), Others.around(world)
    ahead = min(in_the_way(world, others, followed.line, world.place.s_m), key=lambda limit: limit.gap_m, default=None)
    if ahead is None or others.walks[ahead.actor] or not LEAD_M[0] <= ahead.gap_m <= LEAD_M[1]:
        return None
    lines = list(at_lines(world, world.ego.speed_mps, set()))
    if _driven_m(world, lines) - _driven_m(world, [*lines, ahead]) < DISTINCT * LEAD_NEARER_M:
        return None
    nobody, lead = _everybody(world), world.actors[others.index[ahead.actor]].instance
    versions = Version("away", Otherwise(nobody)), Version("there", Otherwise(nobody - {lead}))
    return Probe("lead", versions, tells_lead, ahead.gap_m)


def _obstacle(world: TownWorld, rng: np.random.Generator) -> Probe | None:
    """The lane free, and somebody standing in it."""
    place, front_m, gap_m = world.place, world.params.front_m, float(rng.uniform(*OBSTACLE_M))
    followed = world.route.followed(place.first_lane)
    what = OBSTACLES[int(rng.integers(len(OBSTACLES)))]
    on_foot = what[0] == PEDESTRIAN  # and on its way across
    at_m = place.s_m + front_m + gap_m + what[1][1 if on_foot else 0] / 2
    (x, y), heading = followed.line.at(at_m)
    if world.network.lanes[followed.lane_at(at_m)].kind != "road" or not _can_stop(world, gap_m):
        return None
    lines = list(at_lines(world, world.ego.speed_mps, set()))
    free_m, kept_m = _driven_m(world, lines), _driven_m(world, [*lines, Limit(gap_m, 0.0, "")])
    if free_m < gap_m + HIT_M or free_m - kept_m < DISTINCT * (1 - OBSTACLE_SHARE) * free_m:
        return None
    pose = float(x), float(y), float(heading) + (np.pi / 2 if on_foot else 0.0)
    paint = PAINTS[int(rng.integers(len(PAINTS)))]
    added, nobody = Actor("pasted", PASTED_INSTANCE, *what, paint, None, pose=pose), _everybody(world)
    versions = Version("free", Otherwise(nobody)), Version(what[0].split(".")[1], Otherwise(nobody, added=(added,)))
    return Probe("obstacle", versions, partial(tells_obstacle, gap_m=gap_m, front_m=front_m), gap_m)


def _ways(world: TownWorld, gap_m: float, link: Link, rng: np.random.Generator) -> Probe | None:
    """The route's way through a junction, and another one from the same lane, both open."""
    network = world.network
    if network.lanes[link.from_lane].edge in network.roundabout_edges:
        return None
    links = [each for each in network.links[link.from_lane] if each.direction in DIRECTIONS]
    others = [each for each in links if each.direction != link.direction and not each.stop_sign]
    if link not in links or link.stop_sign or not others:
        return None
    ways = link, others[int(rng.integers(len(others)))]
    yaw_rad = [_end_yaw_rad(world, way) for way in ways]
    if abs(wrap(yaw_rad[0] - yaw_rad[1])) < DISTINCT_RAD:
        return None
    lamps = {}
    if link.light:
        state = _state_of(world, link, "Gg", also=ways[1])
        if state is None:
            return None
        lamps = lamps_of_state(world.town_map, link.light, state)
    seen, far_m = Otherwise(_everybody(world), lamps), gap_m + world.params.front_m
    versions = [
        Version(way.direction, seen, (way.direction, turn(far_m, way.direction, bool(way.light), network.degree(way))))
        for way in ways
    ]
    return Probe("turn", tuple(versions), partial(tells_ways, yaw_rad=yaw_rad), gap_m)


def _everybody(world: TownWorld) -> frozenset[int]:
    return frozenset(actor.instance for actor in world.actors)


def _can_stop(world: TownWorld, before_m: float) -> bool:
    return world.ego.speed_mps**2 <= 2 * STOPS_MPS2 * (before_m - 1.0)


def _state_of(world: TownWorld, link: Link, letters: str, also: Link | None = None) -> str | None:
    """The first state in its light's programme that shows a link (and another one) one of these letters; the letters
    in their order. None if there is none."""
    indices = [each.light_index for each in (link, also) if each is not None]
    for first in range(len(letters)):
        for state in world.network.programs.get(link.light, ()):
            if state[indices[0]] == letters[first] and all(state[k] in letters for k in indices):
                return state
    return None


def _driven_m(world: TownWorld, limits: Sequence[Limit]) -> float:
    """How far a careful driver gets along the route within the time of a plan."""
    followed = world.route.followed(world.place.first_lane)
    rows, *_ = motion(world.ego, followed.line, world.place.s_m, followed.speed_mps, limits, PLAN_TIME_S[-1])
    return float(rows[-1, 4])


def _end_yaw_rad(world: TownWorld, way: Link) -> float:
    """The heading, in the ego frame of now, in which one that takes this way is at the end of a plan's time."""
    lanes = [world.network.lanes[name] for name in (way.from_lane, *way.inner, way.to_lane)]
    line, _ = smooth_line(lanes)
    speeds = comfortable_speed_mps(line, np.full(len(line.s_m), lanes[0].speed_limit_mps))
    at_m = float(line.project(np.array([world.ego.x_m, world.ego.y_m])).s_m)
    rows, *_ = motion(world.ego, line, at_m, speeds, [], PLAN_TIME_S[-1])
    return float(wrap(rows[-1, 2] - world.ego.yaw_rad))
