"""The ego's way through a network: lanes that lead on, lines to follow, commands and instructions."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from sensors.errors import InputError
from sim import town_words
from sim.geometry import OpenLine
from sim.road_network import Link, NetLane, RoadNetwork, road_names

SPACING_M = 1.0
SMOOTH_STEPS = 2  # lines are averaged over this many neighbours to each side: links and lanes meet with a kink
COMFORTABLE_LATERAL_MPS2, COMFORTABLE_ACCEL_MPS2 = 2.0, 1.5
ANNOUNCED_M = 50.0  # before a junction its command is given
LINE_M = 220.0  # lines reach this far beyond the lane they start from
GOAL_FROM_END_M = 12.0  # the destination lies this far before the end of the last edge


@dataclass(frozen=True)
class Followed:
    """A line to follow: from the beginning of a road lane through the lanes that follow it.

    lanes      ids in order, inner ones too; starts_m: where each begins on the line
    speed_mps  comfortable speed at the line's points: the legal limit, less in curves and before them
    ends_well  the last lane leads on or holds the goal; if not, one must change lanes before the end
    """

    line: OpenLine
    lanes: tuple[str, ...]
    starts_m: np.ndarray
    speed_mps: np.ndarray
    links: tuple[tuple[float, Link], ...]  # where each link begins: its stop line
    ends_well: bool

    def lane_at(self, s_m: float) -> str:
        return self.lanes[max(int(self.starts_m.searchsorted(s_m, side="right")) - 1, 0)]


@dataclass(frozen=True)
class Route:
    """edges from start to goal; start_m on the first one's lanes; the goal is just before the end of the last one."""

    network: RoadNetwork
    edges: tuple[str, ...]
    start_m: float = 0.0
    _lines: dict[str, Followed] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        if not self.edges:
            raise InputError("route", "edges", "none", "one or more roads of the network")
        for k, edge in enumerate(self.edges):
            if edge not in self.network.edges:
                raise InputError("route", f"edges[{k}]", edge, *road_names(edge, self.network.edges))
        for k, (a, b) in enumerate(zip(self.edges[:-1], self.edges[1:], strict=True)):
            if b not in self.network.followers.get(a, ()):
                raise InputError("route", f"edges[{k + 1}]", b, f"an edge that follows {a}")

    @cached_property
    def position(self) -> dict[str, int]:
        """Lane id (road lanes and inner ones) -> index of its edge, or of the edge before it, on the route.

        A route passes an edge once: `RoadNetwork.route` makes shortest ways.
        """
        out = {}
        for k, edge in enumerate(self.edges):
            for lane in self.network.edges[edge]:
                out[lane] = k
                for link in self.network.links.get(lane, ()):
                    if k + 1 < len(self.edges) and self.network.lanes[link.to_lane].edge == self.edges[k + 1]:
                        out |= dict.fromkeys(link.inner, k)
        return out

    @cached_property
    def shifts(self) -> tuple[dict[str, int], ...]:
        """For each edge: lane -> how many lanes to the left (right if negative) lies the nearest that leads on.

        Of the lanes with a link to the next edge those are good whose next lane needs the fewest changes; from the end.
        """
        out: list[dict[str, int]] = []
        following: dict[str, int] = {}
        for k in range(len(self.edges) - 1, -1, -1):
            lanes = self.network.edges[self.edges[k]]
            if k == len(self.edges) - 1:
                following = dict.fromkeys(lanes, 0)
            else:
                cost = {}
                for lane in lanes:
                    ahead = [abs(following[link.to_lane]) for link in self._links_on(lane, k)]
                    if ahead:
                        cost[lane] = min(ahead)
                good = [lane for lane in cost if cost[lane] == min(cost.values())]
                numbers = {lane: n for n, lane in enumerate(lanes)}
                following = {
                    lane: min((numbers[g] - numbers[lane] for g in good), key=lambda shift: (abs(shift), shift))
                    for lane in lanes
                }
            out.append(following)
        return tuple(reversed(out))

    def link_from(self, lane: str) -> Link | None:
        """The link by which a road lane leads on along the route, the one that then needs the fewest changes."""
        k = self.position.get(lane)
        if k is None or k + 1 >= len(self.edges):
            return None
        return min(
            self._links_on(lane, k),
            key=lambda link: (abs(self.shifts[k + 1][link.to_lane]), link.to_lane),
            default=None,
        )

    def followed(self, lane: str) -> Followed:
        """The line from the beginning of this road lane on; an inner lane's is that of the lane it comes from."""
        if lane not in self.position:
            raise InputError("route", "lane", lane, "a lane of the route")
        if lane not in self.network.link_into and lane in self._lines:
            return self._lines[lane]
        start = self.network.link_into[lane].from_lane if lane in self.network.link_into else lane
        if start not in self._lines:
            self._lines[start] = self._follow(start)
        return self._lines[start]

    def beside(self, lane: str, left: int) -> str | None:
        """The lane that is this many to the left in the same edge, None beyond the edge's lanes or in a junction."""
        edge = self.network.lanes[lane].edge
        lanes = self.network.edges.get(edge, ())
        if lane not in lanes:
            return None
        k = lanes.index(lane) + left
        return lanes[k] if 0 <= k < len(lanes) else None

    @cached_property
    def before_m(self) -> np.ndarray:
        """Length [E + 1] of the way before each edge, junctions included, and of the whole."""
        total = [0.0]
        for k, edge in enumerate(self.edges):
            lane = self.network.lanes[self.network.edges[edge][0]]
            total.append(total[-1] + lane.length_m + (self._junction_m(k) if k + 1 < len(self.edges) else 0.0))
        return np.array(total)

    @property
    def length_m(self) -> float:
        return float(self.before_m[-1] - self.start_m) - GOAL_FROM_END_M

    def progress_m(self, lane: str, share: float) -> float:
        """How far along the way a position of the route is, from the start, at this share of a lane's length.

        Lanes of one edge count alike, and so do the ways through a junction.
        """
        k, share = self.position[lane], min(max(share, 0.0), 1.0)
        road_m = self.network.edge_length_m(self.edges[k])
        if lane not in self.network.link_into:
            return float(self.before_m[k] + share * road_m - self.start_m)
        inner = self.network.link_into[lane].inner
        lengths = [self.network.lanes[name].length_m for name in inner]
        at = inner.index(lane)
        through = (sum(lengths[:at]) + share * lengths[at]) / sum(lengths)
        return float(self.before_m[k] + road_m + through * self._junction_m(k) - self.start_m)

    def _links_on(self, lane: str, k: int) -> list[Link]:
        links = self.network.links.get(lane, ())
        return [link for link in links if self.network.lanes[link.to_lane].edge == self.edges[k + 1]]

    def _junction_m(self, k: int) -> float:
        for lane in self.network.edges[self.edges[k]]:
            for link in self._links_on(lane, k):
                return sum(self.network.lanes[inner].length_m for inner in link.inner)
        return 0.0

    def _follow(self, lane: str) -> Followed:
        lanes, links = [lane], []
        pieces, at = [self.network.lanes[lane]], 0.0  # at: length beyond the first lane
        while at < LINE_M:
            k = self.position[lanes[-1]]
            link = self.link_from(lanes[-1]) if self.shifts[k][lanes[-1]] == 0 else None
            if link is None:
                break
            links.append(link)
            for name in (*link.inner, link.to_lane):
                lanes.append(name)
                pieces.append(self.network.lanes[name])
                at += pieces[-1].length_m
        line, starts_m = smooth_line(pieces)
        road = [k for k, piece in enumerate(pieces) if piece.kind == "road"]
        # In a junction the limit of the road before it holds; the curve itself slows one down.
        latest = np.maximum(np.searchsorted(starts_m[road], line.s_m, side="right") - 1, 0)
        limit = np.array([pieces[k].speed_limit_mps for k in road])[latest]
        at = dict(zip(lanes, starts_m, strict=True))
        stops = tuple((float(at[link.inner[0] if link.inner else link.to_lane]), link) for link in links)
        ends_well = self.shifts[self.position[lanes[-1]]][lanes[-1]] == 0
        return Followed(line, tuple(lanes), starts_m, comfortable_speed_mps(line, limit), stops, ends_well)


def smooth_line(pieces: list[NetLane]) -> tuple[OpenLine, np.ndarray]:
    """One line through lanes that follow each other, points SPACING_M apart and averaged over their neighbours, and the
    arc lengths [len(pieces)] at which they begin."""
    points = np.concatenate([piece.line.points for piece in pieces])
    step = np.hypot(*np.diff(points, axis=0).T)
    first = np.cumsum([0] + [len(piece.line.points) for piece in pieces[:-1]])
    starts_m = np.concatenate([[0.0], np.cumsum(step)])[first]
    raw = OpenLine(points[np.append(True, step > 0)])
    count = max(2, round(raw.length_m / SPACING_M) + 1)
    at_m = np.linspace(0.0, raw.length_m, count)
    even = raw.at(at_m)[0]
    for _ in range(2):
        for reach in range(1, SMOOTH_STEPS + 1):
            if count > 2 * reach:
                even[reach:-reach] = (even[: -2 * reach] + even[reach:-reach] + even[2 * reach :]) / 3
    line = OpenLine(even)
    return line, np.interp(starts_m, at_m, line.s_m)


def comfortable_speed_mps(
    line: OpenLine,
    limit_mps: np.ndarray,
    lateral_mps2: float = COMFORTABLE_LATERAL_MPS2,
    braking_mps2: float = COMFORTABLE_ACCEL_MPS2,
) -> np.ndarray:
    """v^2 |k| <= a_lat and, ahead of what is slower, v'^2 <= v^2 + 2 a ds, at the points [P] of a line."""
    square = np.minimum(limit_mps**2, lateral_mps2 / np.maximum(np.abs(line.curvature_1pm), 1e-9))
    gain = 2 * braking_mps2 * np.diff(line.s_m, append=line.s_m[-1])
    # square[k] = min over j >= k of square[j] + the gain from k to j: a running minimum from the end
    ramp = np.concatenate([[0.0], np.cumsum(gain)[:-1]])
    return np.sqrt(np.minimum(np.minimum.accumulate((square + ramp)[::-1])[::-1] - ramp, square))


def next_turn(route: Route, lane: str, s_m: float, bends: bool = False) -> tuple[float, Link] | None:
    """The next link at which one could go another way, and how far ahead it begins (negative in it); with `bends` also
    one at which two roads meet in a bend and there is no other way."""
    followed = route.followed(lane)
    for at_m, link in followed.links:
        length = sum(route.network.lanes[inner].length_m for inner in link.inner)
        if at_m + length > s_m and (_is_choice(route, link) or (bends and link.direction in town_words.SIDES)):
            return at_m - s_m, link
    return None


def _is_choice(route: Route, link: Link) -> bool:
    return len(route.network.followers[route.network.lanes[link.from_lane].edge]) > 1


def lane_shift(route: Route, lane: str, s_m: float) -> int:
    """How many lanes to the left (right if negative) the ego must change before it can go on along the route."""
    here = route.followed(lane).lane_at(s_m)
    return route.shifts[route.position[here]].get(here, 0)


def command(route: Route, lane: str, s_m: float) -> str:
    """One of sensors.clip.ROUTE_COMMANDS for an ego at s_m of the line of `lane`."""
    shift = lane_shift(route, lane, s_m)
    if shift:
        return "lane_left" if shift > 0 else "lane_right"
    turn = next_turn(route, lane, s_m)
    if turn is None or turn[0] > ANNOUNCED_M or turn[1].direction == "back":
        return "follow"
    return turn[1].direction


def instruction(route: Route, lane: str, s_m: float) -> str:
    """The same in words, with what is at the junction and how far it is; they also tell of bends."""
    shift = lane_shift(route, lane, s_m)
    if shift:
        return town_words.change_lane("left" if shift > 0 else "right")
    turn = next_turn(route, lane, s_m, bends=True)
    if turn is None:
        return town_words.FOLLOW
    distance_m, link = turn
    network = route.network
    from_edge, to_edge = (network.lanes[name].edge for name in (link.from_lane, link.to_lane))
    entry = _entry(route, lane, s_m)
    if entry is not None and entry[0] <= distance_m:
        return town_words.enter_roundabout(entry[0], _exit_number(route, entry[1]))
    if from_edge in network.roundabout_edges:
        leaves = to_edge not in network.roundabout_edges
        return town_words.LEAVE_ROUNDABOUT if leaves else town_words.STAY_IN_ROUNDABOUT
    return town_words.turn(distance_m, link.direction, bool(link.light), network.degree(link))


def _entry(route: Route, lane: str, s_m: float) -> tuple[float, str] | None:
    """How far ahead the next roundabout is entered, on which of its edges."""
    rounds = route.network.roundabout_edges
    for at_m, link in route.followed(lane).links:
        from_edge, to_edge = (route.network.lanes[name].edge for name in (link.from_lane, link.to_lane))
        through_m = sum(route.network.lanes[inner].length_m for inner in link.inner)
        if at_m + through_m > s_m and from_edge not in rounds and to_edge in rounds:
            return at_m - s_m, to_edge
    return None


def _exit_number(route: Route, entered: str) -> int:
    """Which exit of the roundabout, entered on this edge, the route takes."""
    network, number = route.network, 0
    for edge in route.edges[route.edges.index(entered) :]:
        if edge not in network.roundabout_edges:
            break
        number += any(follower not in network.roundabout_edges for follower in network.followers[edge])
    return number
