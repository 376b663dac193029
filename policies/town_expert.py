"""The privileged driver of the town: it follows the route by the rules and says why it does what it does."""

from copy import copy
from dataclasses import replace

import numpy as np

from policies.protocol import Plan, Privileged
from policies.town_motion import DT_S, HARDEST_BRAKING_MPS2, SPEED_HORIZON_S, motion
from policies.town_view import (
    Limit,
    Others,
    Zebra,
    about_to_touch,
    at_lines,
    in_the_way,
    kind_of,
    on_crossings,
    on_the_road,
    right_of_way,
    zebras_on,
)
from policies.wishes import lane_wished, speeds_wished, stops_wished
from sensors.clip import Clip
from sensors.errors import InputError
from sensors.frames import wrap
from sensors.reasons import reason
from sim.geometry import OpenLine
from sim.town_world import TownWorld
from sim.tracker import PLAN_TIME_S

TOUCH_S = 2.6  # how far ahead predicted positions are trusted
CHANGE_S, MIN_CHANGE_M = 3.0, 9.0  # a lane change takes this long, at least this far
END_GAP_M = 14.0  # who must change lanes waits this far before the lane's end
SIDEWAYS_M = 100.0  # this far before it one falls in behind those in the next lane
STANDS_MPS, AT_LINE_M = 0.25, 5.0  # so it has stopped at a stop sign
CURVE_SHARE = 0.85  # a comfortable speed below this share of the limit is for a curve
PARKED_S, QUEUE_M = 5.0, 22.0  # standing this long, and not in a queue before a junction: it is parked
ROOM_TO_TURN_M = 9.0
STUCK_S = 4.0
PASS_ASIDE_M, PASS_RAMP_M, PASS_MPS, ONCOMING_SIGHT_M = 0.55, 9.0, 5.0, 90.0


class TownExpert:
    """Plans four seconds ahead along the route.

    Lateral: pure pursuit (Coulter 1992) on the lane's line; a lane change and the way round a parked car are smooth
    offsets of it. Longitudinal: the least of a comfortable speed and the intelligent driver model (Treiber et al. 2000)
    to every limit of policies.town_view. The plan's reason is the limit that binds, in the words of sensors.reasons.
    """

    name = "town-expert"
    privileged = True
    needs_images = False
    clip_steps = 1
    image_size = None

    def __init__(self):
        self.reset(0)

    def reset(self, seed: int) -> None:
        self._target = ""  # lane whose line is followed instead of the ego's own, during a lane change
        self._blend: tuple[str, float, float, float] | None = None  # lane, start s, length, offset at the start
        self._standing: dict[int, int] = {}  # actor -> since when
        self._passed, self._pass_lane = -1, ""  # parked actor that is being passed, and the lane whose line one leaves
        self._toward = 0  # 1 while it goes to the left, -1 to the right
        self._held_by = -1  # parked actor behind which one waits for oncoming traffic
        self._stood_before: set[str] = set()  # lanes at whose stop sign the ego has stood
        self._zebras: dict[str, tuple[Zebra, ...]] = {}  # lane whose line is followed -> crossings on it

    def copy(self) -> "TownExpert":
        """One that remembers the same, and goes its own way from here."""
        other = copy(self)
        other._standing, other._stood_before = dict(self._standing), set(self._stood_before)
        return other

    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        world = privileged.world
        if not isinstance(world, TownWorld):
            raise InputError("--policy town-expert", "world", type(world).__name__, "a town", "Use it with vla drive.")
        others = self.look(world)
        self._remember(world, others)
        changing = self._choose_lane(world, others)
        path, s_m, comfortable = self._path(world, others)
        speeds = speeds_wished(world, path, s_m, comfortable)
        zebras = self._zebras_ahead(world)
        limits = [
            *in_the_way(world, others, path, s_m),
            *at_lines(world, world.ego.speed_mps, self._stood_before),
            *right_of_way(world, others, world.ego.speed_mps, self._stuck(world)),
            *on_crossings(world, others, zebras, world.place.s_m + world.params.front_m, world.ego.speed_mps),
            *on_the_road(world, others, path, s_m, world.ego.speed_mps, zebras),
            *stops_wished(world, others, path, s_m),
            *changing,
        ]
        limits = [self._further_back(world, others, limit) for limit in limits]
        limits = [limit for limit in limits if limit.actor < 0 or others.index[limit.actor] != self._passed]
        for _ in range(3):
            rows, binds, wanted = motion(world.ego, path, s_m, speeds, limits, PLAN_TIME_S[-1])
            ahead = np.arange(2, round(TOUCH_S / DT_S), 2)
            touch = about_to_touch(world, others, rows[ahead - 1, :3], ahead * DT_S)
            if touch is None:
                break
            m, actor, frontal = touch
            gap = float(rows[ahead[m] - 1, 4]) - 1.5
            stops_in_m = world.ego.speed_mps**2 / (-2 * HARDEST_BRAKING_MPS2)
            if not frontal and stops_in_m > gap + 1.2:  # too late to stay out of its way, not to get out of it
                break
            if any(limit.actor == actor and limit.gap_m <= gap and limit.speed_mps == 0 for limit in limits):
                break
            limits.append(Limit(gap, 0.0, reason("brake", kind_of(world, others, actor), gap), actor, True))
        if speeds is not comfortable:  # a road that one is asked to drive slowly is no curve
            wanted = float(np.interp(s_m + SPEED_HORIZON_S * world.ego.speed_mps, path.s_m, comfortable))
        chosen = rows[np.round(PLAN_TIME_S / DT_S).astype(int) - 1]
        ego = world.ego
        c, s = np.cos(ego.yaw_rad), np.sin(ego.yaw_rad)
        to = chosen[:, :2] - (ego.x_m, ego.y_m)
        in_ego = np.column_stack(
            [c * to[:, 0] + s * to[:, 1], c * to[:, 1] - s * to[:, 0], wrap(chosen[:, 2] - ego.yaw_rad)]
        )
        return Plan(PLAN_TIME_S, in_ego, chosen[:, 3], reason=self._why(world, others, binds, wanted))

    def look(self, world: TownWorld) -> Others:
        """Whom it takes into account."""
        return Others.around(world)

    # Where to drive --------------------------------------------------------------------------------

    def _choose_lane(self, world: TownWorld, others: Others) -> list[Limit]:
        """Decide on a lane change; returns limits that come from having to wait for one."""
        route, place = world.route, world.place
        if self._target and (place.first_lane == self._target or route.beside(self._target, 0) is None):
            if abs(place.lateral_m) < 0.5 or place.first_lane != self._target:
                self._target = ""
        elif self._target and world.network.lanes[place.first_lane].edge != world.network.lanes[self._target].edge:
            self._target = ""
        followed = route.followed(place.first_lane)
        limits = []
        if not followed.ends_well:
            gap = followed.line.length_m - END_GAP_M - place.s_m - world.params.front_m
            needed = route.shifts[route.position[followed.lanes[-1]]][followed.lanes[-1]]
            limits.append(Limit(gap, 0.0, reason("wait", _no_room(needed), gap), standstill=True))
        shift = route.shifts[route.position[place.lane]].get(place.lane, 0)
        if shift and not self._target and place.lane == place.first_lane:
            left = int(np.sign(shift))
            if not self._try_lane(world, others, left):
                limits += self._behind_those_beside(world, others, left)
        if not shift and not self._target and place.lane == place.first_lane and lane_wished(world):
            self._try_lane(world, others, lane_wished(world))
        return limits if not self._target else []

    def _behind_those_beside(self, world: TownWorld, others: Others, left: int) -> list[Limit]:
        """Before the end of a lane one falls in behind those who are ahead in the lane that one must change to."""
        place, lane = world.place, world.route.beside(world.place.lane, left)
        room_m = world.network.lanes[place.lane].length_m - place.s_m - world.params.front_m
        if lane is None or room_m > SIDEWAYS_M:
            return []
        there, at_m, mine_m = self._in_lane(world, others, lane)
        front_m = mine_m + world.params.length_m / 2
        return [
            Limit(
                float(at_m[a] - others.size_m[a, 0] / 2 - front_m),
                float(others.speed_mps[a]),
                reason("wait", _no_room(left), room_m),
                int(a),
                gentle=True,
            )
            for a in np.flatnonzero(there & (at_m > mine_m))
        ]

    @staticmethod
    def _in_lane(world: TownWorld, others: Others, lane: str) -> tuple[np.ndarray, np.ndarray, float]:
        """Who drives in a lane [A], where on it their centres are [A], and where the ego's is."""
        line = world.network.lanes[lane].line
        at = line.project(others.poses[:, :2])
        there = (np.abs(at.lateral_m) < 2.2) & (np.cos(others.poses[:, 2] - at.heading_rad) > 0)
        there &= (at.s_m > 0.01) & (at.s_m < line.length_m - 0.01)
        mine_m = float(line.project(np.array([world.ego.x_m, world.ego.y_m])).s_m) + world.params.centre_m
        return there, at.s_m, mine_m

    def _try_lane(self, world: TownWorld, others: Others, left: int) -> bool:
        """Begin a change to the next lane if those who drive there leave room for it."""
        place, lane = world.place, world.route.beside(world.place.lane, left)
        if lane is None:
            return False
        if world.network.lanes[lane].length_m - place.s_m < MIN_CHANGE_M:
            return False
        speed = world.ego.speed_mps
        there, at_m, mine_m = self._in_lane(world, others, lane)
        gap = np.abs(at_m - mine_m) - others.size_m[:, 0] / 2 - world.params.length_m / 2
        behind = at_m < mine_m
        faster = np.where(behind, others.speed_mps - speed, speed - others.speed_mps)
        needed = 2.0 + 0.4 * np.where(behind, others.speed_mps, speed) + 2.0 * np.maximum(faster, 0.0)
        if (there & (gap < needed)).any():
            return False
        self._target, self._toward = lane, left
        return True

    def _path(self, world: TownWorld, others: Others) -> tuple[OpenLine, float, np.ndarray]:
        """The line to drive, the ego's place on it and the comfortable speeds at its points."""
        place, ego = world.place, world.ego
        lane = self._target or place.first_lane
        followed = world.route.followed(lane)
        at = followed.line.project(np.array([ego.x_m, ego.y_m]), place.s_m if lane == place.first_lane else None)
        s_m, offset = float(at.s_m), float(at.lateral_m)
        if self._blend is not None and self._blend[0] != lane:
            self._blend = None
        if self._blend is None and self._target:
            self._blend = (lane, s_m, max(CHANGE_S * ego.speed_mps, MIN_CHANGE_M), offset)
        line, aside = followed.line, np.zeros(len(followed.line.s_m))
        if self._blend is not None:
            _, start, length, first = self._blend
            aside += first * (1 - _smooth((line.s_m - start) / length))
            if s_m > start + length:
                self._blend = None
        aside += self._way_round(world, others, line, s_m, lane)
        low = max(int(np.searchsorted(line.s_m, s_m - 15.0)) - 1, 0)
        high = int(np.searchsorted(line.s_m, s_m + 110.0)) + 1
        high, low = max(high, low + 2), min(low, len(line.s_m) - 2)
        path = OpenLine((line.offset(aside) if aside.any() else line.points)[low:high])
        speeds = followed.speed_mps[low:high].copy()
        if self._passed >= 0:
            speeds = np.minimum(speeds, PASS_MPS)
        return path, float(path.project(np.array([ego.x_m, ego.y_m])).s_m), speeds

    def _further_back(self, world: TownWorld, others: Others, limit: Limit) -> Limit:
        """Behind who stands on the open road one stops with room to drive round it."""
        if limit.actor < 0 or limit.standstill or limit.speed_mps > 0.1 or others.walks[limit.actor]:
            return limit
        if self._held_by == others.index[limit.actor]:
            limit = replace(limit, reason=reason("wait", "oncoming vehicle", limit.gap_m))
        stood_s = (world.time_us - self._standing.get(int(others.index[limit.actor]), world.time_us)) * 1e-6
        end = self._to_junction_m(world)
        if stood_s < 1.0 or end - limit.gap_m < QUEUE_M + 5.0 or self._target or self._passed >= 0:
            return limit
        return replace(limit, gap_m=limit.gap_m - ROOM_TO_TURN_M)

    def _zebras_ahead(self, world: TownWorld) -> tuple[Zebra, ...]:
        """The crossings that the ego is on or comes to."""
        place = world.place
        if place.first_lane not in self._zebras:
            self._zebras[place.first_lane] = zebras_on(world, world.route.followed(place.first_lane).line)
        return tuple(z for z in self._zebras[place.first_lane] if -1.0 < z.leaves_m - place.s_m < 60.0)

    def _stuck(self, world: TownWorld) -> set[int]:
        return {actor for actor, since_us in self._standing.items() if world.time_us - since_us > STUCK_S * 1e6}

    def _remember(self, world: TownWorld, others: Others) -> None:
        still = {int(k) for k, v in zip(others.index, others.speed_mps, strict=True) if v < 0.1}
        self._standing = {k: self._standing.get(k, world.time_us) for k in still}
        if world.ego.speed_mps < STANDS_MPS:
            at_line = {link.from_lane for gap_m, link in world.place.stop_lines if 0 <= gap_m < AT_LINE_M}
            self._stood_before |= at_line

    def _why(self, world: TownWorld, others: Others, binds: Limit | None, wanted_mps: float) -> str:
        """What limits the speed; while nobody does: who is passed, the lane change, or what the road is like."""
        if binds is not None:
            return binds.reason
        for a in np.flatnonzero(others.index == self._passed):
            away_m = float(np.hypot(*(others.poses[a, :2] - (world.ego.x_m, world.ego.y_m))))
            return reason("pass", kind_of(world, others, a), away_m - world.params.front_m - others.size_m[a, 0] / 2)
        if self._target:
            return reason("change lane", "to the left" if self._toward > 0 else "to the right")
        return reason("drive", "curve" if wanted_mps < CURVE_SHARE * world.place.limit_mps else "free road")

    def _way_round(self, world: TownWorld, others: Others, line: OpenLine, s_m: float, lane: str) -> np.ndarray:
        """Offsets [P] to the left past a parked vehicle ahead, if there is one and nobody comes towards."""
        none = np.zeros(len(line.s_m))
        if not len(others.index):
            return none
        at = line.project(others.poses[:, :2])
        half = (others.size_m[:, 1] + world.params.width_m) / 2
        if self._passed < 0:
            self._may_pass(world, others, line, s_m, lane)
        here = np.flatnonzero(others.index == self._passed)
        if not len(here) or lane != self._pass_lane:
            self._passed = -1
            return none
        a = int(here[0])
        start, end = (float(at.s_m[a]) + side * others.size_m[a, 0] / 2 for side in (-1, 1))
        if s_m > end + PASS_RAMP_M or others.speed_mps[a] > 1.0:
            self._passed = -1
            return none
        out = float(at.lateral_m[a]) + half[a] + PASS_ASIDE_M
        rise = _smooth((line.s_m - (start - 3.0 - PASS_RAMP_M)) / PASS_RAMP_M)
        # The rear axle is back in its lane well after the bumper has passed.
        return out * rise * (1 - _smooth((line.s_m - (end + 3.0)) / PASS_RAMP_M))

    def _may_pass(self, world: TownWorld, others: Others, line: OpenLine, s_m: float, lane: str) -> None:
        """Begin to pass a parked vehicle right ahead, if there is one: by another lane, or on the road's other half."""
        self._held_by = -1
        at = line.project(others.poses[:, :2])
        front_m = s_m + world.params.front_m
        since = np.array([world.time_us - self._standing.get(int(k), world.time_us) for k in others.index]) * 1e-6
        half = (others.size_m[:, 1] + world.params.width_m) / 2
        parked = (np.abs(at.lateral_m) < half + 0.3) & (since > PARKED_S) & ~others.walks
        parked &= (at.s_m > front_m) & (at.s_m < front_m + 25.0) & (np.cos(others.poses[:, 2] - at.heading_rad) > 0.9)
        if not parked.any():
            return
        a = int(np.flatnonzero(parked)[np.argmin(at.s_m[parked])])
        ahead_of_it = (np.abs(at.lateral_m) < 1.5) & (at.s_m > at.s_m[a] + 0.1) & (at.s_m < at.s_m[a] + 16.0)
        if self._to_junction_m(world) + front_m - float(at.s_m[a]) < QUEUE_M or ahead_of_it.any():
            return  # it waits in a queue
        if any(self._try_lane(world, others, left) for left in (1, -1)):
            return
        if len(world.network.edges[world.network.lanes[lane].edge]) > 1:
            return  # there is a lane to change to, sooner or later
        if self._oncoming(others, line, s_m):
            self._held_by = int(others.index[a])
            return
        self._passed, self._pass_lane = int(others.index[a]), lane

    @staticmethod
    def _to_junction_m(world: TownWorld) -> float:
        """From the front bumper to the end of the road that the ego is on; none of it is left within a junction."""
        place, lane = world.place, world.network.lanes[world.place.lane]
        if lane.kind != "road":
            return 0.0
        begins_m = world.route.followed(place.first_lane)
        starts_m = float(begins_m.starts_m[begins_m.lanes.index(place.lane)])
        return starts_m + lane.length_m - place.s_m - world.params.front_m

    @staticmethod
    def _oncoming(others: Others, line: OpenLine, s_m: float) -> bool:
        at = line.project(others.poses[:, :2])
        towards = np.cos(others.poses[:, 2] - at.heading_rad) < -0.5
        beside = (at.lateral_m > 1.0) & (at.lateral_m < 6.0)
        ahead = (at.s_m > s_m - 3.0) & (at.s_m < s_m + ONCOMING_SIGHT_M)
        return bool((towards & beside & ahead & ~others.walks).any())


def _smooth(share: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, and a half cosine between."""
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(share, 0.0, 1.0))


def _no_room(left: int) -> str:
    return f"no room on the {'left' if left > 0 else 'right'}"
