"""What limits the speed of a careful driver in a town: the privileged view behind the expert.

Each function looks at the world along the ego's path and yields limits: something at a distance ahead of the front
bumper that one must not reach, how fast it goes itself, and why, in the words of sensors.reasons.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from sensors.frames import wrap
from sensors.reasons import reason
from sim.geometry import OpenLine, corners, overlap
from sim.road_network import Link, NetLane
from sim.town_world import TownWorld

SIGHT_M = 80.0
ASIDE_M = 0.35  # free space beside the ego's flanks
STOP_BEFORE_M = 1.0  # of a stop line
HARD_BRAKING_MPS2 = 4.5  # what others brake with at a red light
LATE_BRAKING_MPS2 = 3.0  # amber is passed if stopping would take more
ACCEL_MPS2 = 1.5  # with which one assumes to get through a junction
GAP_BEFORE_S, GAP_AFTER_S = 1.6, 1.2  # between the ego and who has right of way
MAX_GAIN_MPS2, GAINS_S = 2.6, 1.5
NOTICED_MPS2, NOTICED_S = 3.0, 0.5  # who gets faster before a red light will not stop if it would take more, later
WALKER_ASIDE_M, WALKER_AHEAD_M, IN_THE_LANE_M = 1.6, 1.5, 0.5
BEFORE_CROSSING_M, ON_CROSSING_M = 0.5, -1.2  # where one stops; further on the crossing one had better go on
WALKS_MPS, STEPS_ON_M = 0.25, 3.5  # who walks this near to a crossing, towards it, is about to step on it
ZEBRA_ASIDE_M, ZEBRA_BEFORE_S, ZEBRA_AFTER_S = 0.9, 0.8, 0.2
WAITS_MPS = 0.8
MEETING_M = 2.4  # half the length of the stretch in which two ways meet


@dataclass(frozen=True)
class Limit:
    """gap_m ahead of the front bumper; its speed_mps along the path; standstill: one may stop right at it.

    gentle: one slows down for it, but does not brake
    """

    gap_m: float
    speed_mps: float
    reason: str
    actor: int = -1
    standstill: bool = False
    gentle: bool = False


@dataclass(frozen=True)
class Others:
    """The A actors within SIGHT_M: index in world.actors, poses [A, 3], sizes [A, 2], and [A] of the others."""

    index: np.ndarray
    poses: np.ndarray
    speed_mps: np.ndarray
    gain_mps2: np.ndarray  # by how much it gets faster, 0 if it does not
    yaw_rate_radps: np.ndarray
    size_m: np.ndarray
    walks: np.ndarray

    @classmethod
    def around(cls, world: TownWorld) -> "Others":
        now, before = world.traffic.now, world.traffic.before
        away = np.hypot(now.poses_m[:, 0] - world.ego.x_m, now.poses_m[:, 1] - world.ego.y_m)
        index = np.flatnonzero((away < SIGHT_M) & now.present & before.present)
        turn = wrap(now.poses_m[index, 2] - before.poses_m[index, 2]) / 0.1
        turn = np.where(now.speed_mps[index] > 0.5, np.clip(turn, -0.6, 0.6), 0.0)
        gain = np.clip((now.speed_mps[index] - before.speed_mps[index]) / 0.1, 0.0, MAX_GAIN_MPS2)
        size = np.array([world.actors[k].size_lwh_m[:2] for k in index]).reshape(-1, 2)
        walks = np.array([world.actors[k].category.startswith("human") for k in index], bool)
        return cls(index, now.poses_m[index], now.speed_mps[index], gain, turn, size, walks)

    @property
    def boxes(self) -> np.ndarray:
        return np.concatenate([self.poses, self.size_m], axis=1)

    def boxes_after(self, seconds: np.ndarray, gains: bool = False) -> np.ndarray:
        """Boxes [M, A, 5] if everybody keeps speed and turn rate, or goes on getting faster for GAINS_S."""
        t = seconds[:, None]
        half_turn = 0.5 * self.yaw_rate_radps * t
        chord = self.speed_mps * t
        if gains:
            rises = np.minimum(t, GAINS_S)
            chord = chord + self.gain_mps2 * rises * (t - 0.5 * rises)
        chord = chord * np.sinc(half_turn / np.pi)
        yaw = self.poses[:, 2] + half_turn
        x, y = self.poses[:, 0] + chord * np.cos(yaw), self.poses[:, 1] + chord * np.sin(yaw)
        size = np.broadcast_to(self.size_m, (len(seconds), *self.size_m.shape))
        return np.concatenate([np.stack([x, y, self.poses[:, 2] + 2 * half_turn], axis=-1), size], axis=-1)


def in_the_way(world: TownWorld, others: Others, path: OpenLine, s_m: float) -> Iterator[Limit]:
    """Everyone who stands or drives in the corridor that the ego is about to sweep."""
    if not len(others.index):
        return
    boxes = others.boxes
    points = np.concatenate([corners(boxes), boxes[:, None, :2]], axis=1)  # [A, 5, 2]
    at = path.project(points)
    half = world.params.width_m / 2 + ASIDE_M
    low, high = at.lateral_m.min(axis=1), at.lateral_m.max(axis=1)
    front_m = s_m + world.params.front_m
    nearest = at.s_m.min(axis=1)
    along = others.speed_mps * np.cos(others.poses[:, 2] - at.heading_rad[:, 4])
    ends = (at.s_m[:, 4] <= 0.01) | (at.s_m[:, 4] >= path.length_m - 0.01)
    for a in np.flatnonzero((low < half) & (high > -half) & (at.s_m[:, 4] > front_m - 0.5) & ~ends):
        gap = float(nearest[a] - front_m)
        # An oncoming car will have come closer when the ego gets there; a crossing one gives no way.
        yield Limit(gap, max(float(along[a]), 0.0), reason("follow", kind_of(world, others, a), gap), int(a))


def kind_of(world: TownWorld, others: Others, a: int) -> str:
    """One of sensors.reasons.KINDS for the a-th of the others."""
    return world.actors[others.index[a]].category.split(".")[1]


def at_lines(world: TownWorld, speed_mps: float, stood_before: set[str]) -> Iterator[Limit]:
    """Red and amber lights, and stop signs, before their lines; `stood_before`: lanes whose sign is dealt with."""
    for gap_m, link in world.place.stop_lines:
        if gap_m < -0.3:
            continue
        room = max(gap_m - STOP_BEFORE_M, 0.05)
        if not link.light:
            if link.stop_sign and link.from_lane not in stood_before:
                yield Limit(gap_m - STOP_BEFORE_M, 0.0, reason("stop", "stop sign", gap_m), standstill=True)
            continue
        state = world.lights[link.light][link.light_index]
        can_stop = speed_mps**2 / (2 * room) < LATE_BRAKING_MPS2
        if state in "ru" or (state in "yY" and can_stop):
            colour = "amber light" if state in "yY" else "red light"
            yield Limit(gap_m - STOP_BEFORE_M, 0.0, reason("stop", colour, gap_m), standstill=True)


def right_of_way(world: TownWorld, others: Others, speed_mps: float, stuck: set[int]) -> Iterator[Limit]:
    """Vehicles that have right of way over the ego's next links, or are still in their way.

    stuck: indices in world.actors of those who have long stood still; who is in the junction drives on before them.
    """
    network = world.network
    for gap_m, link in world.place.stop_lines:
        junction = network.junctions.get(link.junction)
        if gap_m > 45.0 or junction is None or not 0 <= link.index < len(junction.foes):
            continue
        line_m = waits_m(world, gap_m, link)
        inside_m = sum(network.lanes[lane].length_m for lane in link.inner)
        for a in np.flatnonzero(~others.walks):
            came = _foe(world, int(others.index[a]), link)
            if came is None or (gap_m < 0 and int(others.index[a]) in stuck):
                continue
            foe, left_m = came
            if not _has_way(world, link, foe, left_m, float(others.speed_mps[a]), float(others.gain_mps2[a])):
                continue
            length_m = float(others.size_m[a, 0])
            foe_inside_m = sum(network.lanes[lane].length_m for lane in foe.inner)
            ours_m, theirs_m = network.meet_m(link, foe)
            before_m = gap_m + ours_m - MEETING_M
            if _stops(speed_mps, line_m):
                span = (line_m, gap_m + inside_m + world.params.length_m)
                theirs = (left_m, left_m + foe_inside_m + length_m)
            elif _stops(speed_mps, before_m):  # beyond the line, but not where the two ways meet
                span = (before_m, gap_m + ours_m + MEETING_M + world.params.length_m)
                theirs = (left_m + theirs_m - MEETING_M, left_m + theirs_m + MEETING_M + length_m)
            else:
                continue
            if _apart(world, foe, theirs, float(others.speed_mps[a]), left_m <= 0, span, speed_mps):
                continue
            yield Limit(span[0], 0.0, reason("give way", _side(world, others, a), span[0]), int(a), True)
            break


def waits_m(world: TownWorld, gap_m: float, link: Link) -> float:
    """How far ahead of the front bumper one waits for those who go first, if the stop line is `gap_m` ahead."""
    ours = world.lights[link.light][link.light_index] if link.light else "m"
    if len(link.inner) > 1 and (ours in "gG" or gap_m < 0):  # one may wait inside the junction
        return gap_m + world.network.lanes[link.inner[0]].length_m - 0.3
    return gap_m - STOP_BEFORE_M


def _stops(speed_mps: float, before_m: float) -> bool:
    """Whether one still stops this far ahead, if need be hard; a little beyond it, if one stands."""
    return before_m > -1.0 and speed_mps**2 <= 2 * HARD_BRAKING_MPS2 * max(before_m, 0.1)


def _has_way(world: TownWorld, link: Link, foe: Link, left_m: float, speed_mps: float, gain_mps2: float) -> bool:
    """Whether somebody on another link of the junction goes first, by the rules or because it will not stop."""
    yields_to = world.network.junctions[link.junction].yields_to
    if left_m <= 0:  # it is in the junction, and goes on unless it waits for us there
        return not (link.index in yields_to[foe.index] and speed_mps < WAITS_MPS)
    ours = world.lights[link.light][link.light_index] if link.light else "m"
    theirs = world.lights[foe.light][foe.light_index] if foe.light else "M"
    stops = _can_stop(speed_mps, gain_mps2, left_m)
    if theirs in "ruyY" and stops:
        return False
    return (theirs in "ru" and not stops) or (foe.index in yields_to[link.index] and ours != "G")


def _apart(
    world: TownWorld,
    foe: Link,
    theirs_m: tuple[float, float],
    their_mps: float,
    inside: bool,
    ours_m: tuple[float, float],
    our_mps: float,
) -> bool:
    """Whether one of two leaves the stretch in which they meet (from, to) before the other is there."""
    state = world.lights[foe.light][foe.light_index] if foe.light else "M"
    reach_s, clear_s = _travel_s(max(ours_m[0], 0.0), our_mps), _travel_s(ours_m[1], our_mps)
    if inside:
        return (theirs_m[1] + 2.0) / max(their_mps, 2.0) < reach_s - 0.3
    there_s = max(theirs_m[0], 0.0) / max(their_mps, 4.0 if state in "gG" else 1.5)
    return there_s > clear_s + GAP_BEFORE_S or theirs_m[1] / max(their_mps, 3.0) + GAP_AFTER_S < reach_s


def _can_stop(speed_mps: float, gain_mps2: float, left_m: float) -> bool:
    """Whether somebody will stop at a red light this far ahead."""
    if speed_mps < 2.0:
        return True
    if gain_mps2 > 0.5:
        return left_m > speed_mps**2 / (2 * NOTICED_MPS2) + NOTICED_S * speed_mps
    return left_m > speed_mps**2 / (2 * HARD_BRAKING_MPS2) + 0.5


def _foe(world: TownWorld, actor: int, link: Link) -> tuple[Link, float] | None:
    """The link of the same junction that a vehicle is on or about to take if it crosses ours, and how far it begins."""
    network, name = world.network, world.actors[actor].id
    lane = world.traffic.lane_of(name)
    if lane in network.link_into:
        foe = network.link_into[lane]
        if foe.junction != link.junction or foe.index not in network.junctions[foe.junction].foes[link.index]:
            return None
        at = network.lanes[lane].line.project(world.traffic.now.poses_m[actor, :2]).s_m
        return foe, -float(at) - sum(network.lanes[x].length_m for x in foe.inner[: foe.inner.index(lane)])
    if lane not in network.links or network.junction_of_edge[network.lanes[lane].edge] != link.junction:
        return None
    ahead = world.traffic.next_edges(name)[1:2]
    lanes = (lane, *network.edges[network.lanes[lane].edge])  # it may have to change lanes first
    for foe in (link for each in lanes for link in network.links.get(each, ())):
        if network.lanes[foe.to_lane].edge in ahead and foe.index in network.junctions[link.junction].foes[link.index]:
            line = network.lanes[lane].line
            left = line.length_m - float(line.project(world.traffic.now.poses_m[actor, :2]).s_m)
            return foe, left - world.actors[actor].size_lwh_m[0] / 2 + 0.01
    return None


def _side(world: TownWorld, others: Others, a: int) -> str:
    to = others.poses[a, :2] - (world.ego.x_m, world.ego.y_m)
    bearing = float(wrap(np.arctan2(to[1], to[0]) - world.ego.yaw_rad))
    where = "from the left" if bearing > 0.4 else "from the right" if bearing < -0.4 else "ahead"
    return f"vehicle {where}"


def _travel_s(distance_m: float, speed_mps: float) -> float:
    """Seconds for a distance, speeding up gently to what one dares in a junction."""
    top = max(speed_mps, 7.0)
    up_m = (top**2 - speed_mps**2) / (2 * ACCEL_MPS2)
    if distance_m <= up_m:
        return float((np.sqrt(speed_mps**2 + 2 * ACCEL_MPS2 * distance_m) - speed_mps) / ACCEL_MPS2)
    return float((top - speed_mps) / ACCEL_MPS2 + (distance_m - up_m) / top)


@dataclass(frozen=True)
class Zebra:
    """A crossing for pedestrians on a line: where the line enters and leaves it, and which point of it that is."""

    enters_m: float
    leaves_m: float
    lane: NetLane
    at_m: float


def zebras_on(world: TownWorld, line: OpenLine) -> tuple[Zebra, ...]:
    """The crossings on a line, in order."""
    found = []
    for lane in world.network.of_kind("crossing"):
        middle = lane.line.at(lane.length_m / 2)[0]
        near = np.flatnonzero(np.hypot(*(line.points - middle).T) < lane.length_m / 2 + lane.width_m)
        if not len(near):
            continue
        at = lane.line.project(line.points[near])
        on = (np.abs(at.lateral_m) < lane.width_m / 2) & (at.s_m > 0.01) & (at.s_m < lane.length_m - 0.01)
        for run in np.split(np.flatnonzero(on), np.flatnonzero(np.diff(near[on]) > 1) + 1):
            if len(run):
                enters, leaves = line.s_m[near[run[0]]], line.s_m[near[run[-1]]]
                found.append(Zebra(float(enters) - 0.5, float(leaves) + 0.5, lane, float(at.s_m[run].mean())))
    return tuple(sorted(found, key=lambda zebra: zebra.enters_m))


def on_crossings(
    world: TownWorld, others: Others, zebras: tuple[Zebra, ...], front_m: float, speed_mps: float
) -> Iterator[Limit]:
    """Pedestrians on a crossing, or about to step on it, who are in the ego's lane while the ego is on it."""
    walks = np.flatnonzero(others.walks & (others.speed_mps > WALKS_MPS))
    half = world.params.width_m / 2 + ZEBRA_ASIDE_M
    for zebra in zebras:
        gap = zebra.enters_m - front_m - BEFORE_CROSSING_M
        if not ON_CROSSING_M < gap < 45.0 or not len(walks):
            continue
        late = gap > 0 and speed_mps**2 > 2 * LATE_BRAKING_MPS2 * gap
        at = zebra.lane.line.project(others.poses[walks, :2])
        along = others.speed_mps[walks] * np.cos(others.poses[walks, 2] - at.heading_rad)
        before, beyond = at.s_m < 0.01, at.s_m > zebra.lane.length_m - 0.01
        outside_m = np.where(before | beyond, np.abs(at.lateral_m), 0.0)
        heads_in = np.where(before, along > 0.2, np.where(beyond, along < -0.2, True))
        there = np.where(before | beyond, outside_m < STEPS_ON_M, np.abs(at.lateral_m) < zebra.lane.width_m / 2 + 0.5)
        # To the ego's lane: how far it is along the crossing, positive while one walks towards it.
        towards = np.sign(along) * (zebra.at_m - at.s_m) + outside_m
        pace = np.maximum(np.abs(along), 1.0)
        comes_s, gone_s = (towards - half) / pace - ZEBRA_BEFORE_S, (towards + half) / pace + ZEBRA_AFTER_S
        arrives_s = _travel_s(max(gap, 0.0), speed_mps)
        clear_s = _travel_s(zebra.leaves_m - front_m + world.params.length_m, speed_mps)
        meet = there & heads_in & (gone_s > arrives_s) & (comes_s < clear_s)
        if late:  # one brakes hard for who is in the lane already; others see that one does not stop any more
            meet &= np.abs(towards) < half
        for k in np.flatnonzero(meet)[:1]:
            yield Limit(gap, 0.0, reason("stop", "pedestrian", gap), int(walks[k]), True)


def on_the_road(
    world: TownWorld, others: Others, path: OpenLine, s_m: float, speed_mps: float, zebras: tuple[Zebra, ...]
) -> Iterator[Limit]:
    """Pedestrians who walk, or stand, in the road where there is no crossing, and are in the ego's way."""
    walks = np.flatnonzero(others.walks)
    if not len(walks):
        return
    at = path.project(others.poses[walks, :2])
    front_m = s_m + world.params.front_m
    half = world.params.width_m / 2
    for k, a in enumerate(walks):
        ahead = float(at.s_m[k]) - front_m
        if not -0.5 < ahead < 45.0 or abs(float(at.lateral_m[k])) > 9.0 or at.s_m[k] >= path.length_m - 0.01:
            continue
        if any(_belongs_to(zebra, others.poses[a, :2]) for zebra in zebras):
            continue
        turn = float(others.poses[a, 2] - at.heading_rad[k])
        sideways, side = float(others.speed_mps[a]) * np.sin(turn), float(at.lateral_m[k])
        names = world.town_map.under(float(others.poses[a, 0]), float(others.poses[a, 1]))
        arrive_s = max(ahead, 0.0) / max(speed_mps, 2.0)
        when_there = side + sideways * np.array([0.0, 0.5 * arrive_s, arrive_s, arrive_s + 1.2])
        closing = side * sideways < 0
        near = half + (WALKER_ASIDE_M if closing else 0.5)
        crosses = (when_there.min() < near) and (when_there.max() > -near)
        if not crosses or not (names or abs(side) < near or (closing and abs(side) < half + 3.0)):
            continue
        if abs(side) < half + IN_THE_LANE_M or not _at_a_corner(world, others.poses[a]):
            yield Limit(ahead - WALKER_AHEAD_M, 0.0, reason("stop", "pedestrian", ahead), int(a), True)


def _at_a_corner(world: TownWorld, pose: np.ndarray) -> bool:
    """Whether somebody is where sidewalks meet: from there one walks on to a crossing, or along the other sidewalk."""
    point = (float(pose[0]), float(pose[1]))
    outlines = (lane.outline_m for lane in world.network.of_kind("area") if len(lane.outline_m) > 2)
    return any(cv2.pointPolygonTest(outline.astype(np.float32), point, False) >= 0 for outline in outlines)


def _belongs_to(zebra: Zebra, xy: np.ndarray) -> bool:
    at = zebra.lane.line.project(xy)
    within = 0.01 < at.s_m < zebra.lane.length_m - 0.01
    return bool(abs(at.lateral_m) < (zebra.lane.width_m / 2 + 0.5 if within else STEPS_ON_M))


def about_to_touch(
    world: TownWorld, others: Others, plan: np.ndarray, seconds: np.ndarray
) -> tuple[int, int, bool] | None:
    """Whom the ego, driving poses [M, 3] of its rear axle at these times, first comes too near to.

    Returns the instant at which the ego first reaches into the band that the other sweeps in all this time, the other,
    and whether the ego's front is what meets it.
    """
    if not len(others.index):
        return None
    forward = np.stack([np.cos(plan[:, 2]), np.sin(plan[:, 2])], axis=-1)
    mine = np.concatenate([plan[:, :2] + world.params.centre_m * forward, plan[:, 2:]], axis=1)
    size = np.broadcast_to([world.params.length_m + 0.6, world.params.width_m + 0.4], (len(plan), 2))
    mine = np.concatenate([mine, size], axis=1)
    faster = np.flatnonzero(others.gain_mps2 > 0.3)
    theirs = np.concatenate([others.boxes_after(seconds), others.boxes_after(seconds, gains=True)[:, faster]], axis=1)
    hits = overlap(mine[:, None], theirs)
    along = ((theirs[..., :2] - mine[:, None, :2]) * forward[:, None]).sum(-1)
    # Who comes from behind in the same direction sees the ego.
    hits &= (along > -0.5) | (np.cos(theirs[..., 2] - plan[:, None, 2]) < 0.7)
    if not hits.any():
        return None
    first = int(np.argmax(hits.any(axis=1)))
    actor = int(np.argmax(hits[first]))
    swept = overlap(mine[:, None], theirs[None, :, actor]).any(axis=1)
    frontal = bool(along[first, actor] > 0)
    return (
        int(np.argmax(swept)),
        actor if actor < len(others.index) else int(faster[actor - len(others.index)]),
        frontal,
    )
