"""A SUMO network (net.xml, also gzipped) as lanes, links, junctions and crossings, and the search for a route in it.

Edges are directed roads between junctions; a road edge has lanes, numbered from the right. A link leads from a lane to
a lane of the next edge, through inner lanes of the junction. Positions along lanes are of our own polylines, from 0 to
the polyline's length. Coordinates are the network's: x east, y north, metres.
"""

import gzip
import heapq
import xml.etree.ElementTree as ET
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from sensors.errors import InputError, nearest
from sensors.frames import wrap
from sim.geometry import OpenLine
from sim.town_words import DEGREES, SIDES

TOWNS_FOLDER = Path(__file__).parent / "towns"
SUFFIX = ".net.xml.gz"
MEET_M, MEET_STEP_M, MEET_BEYOND_M = 1.0, 0.5, 10.0  # ways this near to each other have met
TURN_M = 3.0  # from a junction: there the heading of a road is taken
MIN_STEP_M = 0.05  # neighbours closer than this are one point
CAR, WALKER = "passenger", "pedestrian"
CLASSES = (CAR, WALKER, "truck", "bus", "bicycle", "motorcycle")  # SUMO's names of who may use a lane
TOO_FAST_TO_CYCLE_MPS = 17.0


@dataclass(frozen=True)
class NetLane:
    """One lane.

    kind      "road", "inner" (through a junction), "walk" (sidewalk), "crossing" or "area" (where sidewalks meet)
    index     number from the right within its edge; neighbours of the same kind are beside it
    outline_m [P, 2] polygon of an area, None for others
    open_to   those of CLASSES that may use it
    """

    id: str
    edge: str
    index: int
    kind: str
    line: OpenLine
    width_m: float
    speed_limit_mps: float
    outline_m: np.ndarray | None = None
    open_to: frozenset[str] = frozenset(CLASSES)

    @property
    def length_m(self) -> float:
        return self.line.length_m


@dataclass(frozen=True)
class Link:
    """A way from one road lane to the next through a junction.

    inner      ids of the inner lanes in order, empty where the lanes meet directly
    direction  "straight", "left", "right" or "back"
    light      id of the traffic light, "" without one; its state's letter is at `light_index`
    index      number of the link in its junction's `yields_to`
    stop_sign  one must come to rest before it
    """

    from_lane: str
    to_lane: str
    inner: tuple[str, ...]
    direction: str
    light: str
    light_index: int
    junction: str
    index: int
    stop_sign: bool


@dataclass(frozen=True)
class Junction:
    """outline_m [P, 2]; yields_to[i]: the links that link i gives way to; foes[i]: those whose way it crosses."""

    id: str
    kind: str
    outline_m: np.ndarray
    yields_to: tuple[frozenset[int], ...]
    foes: tuple[frozenset[int], ...]


@dataclass(frozen=True)
class RoadNetwork:
    """lanes by id; edges: ids of an edge's lanes that cars use, from the right; links by lane they start from.

    followers: edge -> edges one can drive on to; crossings and sidewalks are lanes of that kind.
    """

    path: Path
    lanes: dict[str, NetLane]
    edges: dict[str, tuple[str, ...]]
    links: dict[str, tuple[Link, ...]]
    junctions: dict[str, Junction]
    roundabout_edges: frozenset[str]
    programs: dict[str, tuple[str, ...]]  # traffic light -> states of its phases, a letter a link
    junction_of_edge: dict[str, str] = field(repr=False)  # where a road edge ends
    start_of_edge: dict[str, str] = field(repr=False)  # where it begins

    @cached_property
    def followers(self) -> dict[str, tuple[str, ...]]:
        out: dict[str, list[str]] = {edge: [] for edge in self.edges}
        for lane, links in self.links.items():
            mine = out[self.lanes[lane].edge]
            mine += [e for link in links if (e := self.lanes[link.to_lane].edge) not in mine]
        return {edge: tuple(sorted(to)) for edge, to in out.items()}

    @cached_property
    def link_into(self) -> dict[str, Link]:
        """Inner lane -> the link that it is part of."""
        return {lane: link for links in self.links.values() for link in links for lane in link.inner}

    @cached_property
    def links_of_junction(self) -> dict[str, tuple[Link, ...]]:
        out: dict[str, list[Link]] = defaultdict(list)
        for links in self.links.values():
            for link in links:
                out[link.junction].append(link)
        return {junction: tuple(links) for junction, links in out.items()}

    @cached_property
    def endless(self) -> frozenset[str]:
        """Edges from which one can drive on for ever: what is left when blind alleys are peeled off."""
        left = set(self.edges)
        while blind := {edge for edge in left if left.isdisjoint(self.followers[edge])}:
            left -= blind
        return frozenset(left)

    @cached_property
    def _ways_on(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """For each of CLASSES: edge -> edges to drive on to, blind alleys only where there is nothing else."""
        out: dict[str, dict[str, tuple[str, ...]]] = {}
        for sumo_class in CLASSES:
            may = {edge for edge in self.edges if self.open_to(edge, sumo_class)}
            on = {edge: tuple(e for e in to if e in may) for edge, to in self.followers.items()}
            out[sumo_class] = {edge: tuple(e for e in to if e in self.endless) or to for edge, to in on.items()}
        return out

    def open_to(self, edge: str, sumo_class: str) -> bool:
        """Whether some lane of a road is open to one of CLASSES; nobody cycles on a motorway."""
        lanes = [self.lanes[name] for name in self.edges[edge]]
        fast = sumo_class == "bicycle" and lanes[0].speed_limit_mps > TOO_FAST_TO_CYCLE_MPS
        return not fast and any(sumo_class in lane.open_to for lane in lanes)

    def meet_m(self, ours: Link, theirs: Link) -> tuple[float, float]:
        """How far beyond their stop lines the ways of two links of a junction come together: their first near points,
        or where they are nearest to each other."""
        key = (ours.junction, ours.index, theirs.index)
        if key not in self._meetings:
            points = [self._way_through(link) for link in (ours, theirs)]
            away = np.hypot(*(points[0][:, None] - points[1][None]).transpose(2, 0, 1))
            near = np.argwhere(away <= max(MEET_M, away.min() + 0.1))
            self._meetings[key] = tuple(float(k) * MEET_STEP_M for k in near[np.argmin(near.sum(axis=1))])
        return self._meetings[key]

    @cached_property
    def _meetings(self) -> dict[tuple[str, int, int], tuple[float, float]]:
        return {}

    def _way_through(self, link: Link) -> np.ndarray:
        """Points [P, 2], MEET_STEP_M apart, of the way through a junction and on to MEET_BEYOND_M beyond it."""
        parts = []
        for name in (*link.inner, link.to_lane):
            line = self.lanes[name].line
            end_m = min(line.length_m, MEET_BEYOND_M) if name == link.to_lane else line.length_m
            parts.append(line.at(np.arange(0.0, end_m, MEET_STEP_M))[0])
        points = np.concatenate(parts)
        along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
        at = np.arange(0.0, along[-1], MEET_STEP_M)
        return np.stack([np.interp(at, along, points[:, k]) for k in range(2)], axis=-1)

    def turn_rad(self, link: Link) -> float:
        """By how much the way through a junction turns, positive to the left."""
        before, beyond = self.lanes[link.from_lane].line, self.lanes[link.to_lane].line
        came_rad, goes_rad = before.at(max(before.length_m - TURN_M, 0.0))[1], beyond.at(TURN_M)[1]
        return float(wrap(goes_rad - came_rad))

    def degree(self, link: Link) -> str:
        """One of sim.town_words.DEGREES for the outer of several ways from a road to one side, "" for any other."""
        turn_rad: dict[str, float] = {}
        for lane in self.edges[self.lanes[link.from_lane].edge]:
            for each in self.links.get(lane, ()):
                if each.direction == link.direction:
                    turn_rad.setdefault(self.lanes[each.to_lane].edge, abs(self.turn_rad(each)))
        ways = sorted(turn_rad, key=lambda edge: (turn_rad[edge], edge))
        outer = dict(zip((ways[0], ways[-1]), DEGREES, strict=True)) if len(ways) > 1 else {}
        return outer.get(self.lanes[link.to_lane].edge, "") if link.direction in SIDES else ""

    def edge_length_m(self, edge: str) -> float:
        return self.lanes[self.edges[edge][0]].length_m

    def of_kind(self, *kinds: str) -> Iterator[NetLane]:
        return (lane for lane in self.lanes.values() if lane.kind in kinds)

    def route(self, from_edge: str, to_edge: str) -> tuple[str, ...]:
        """Edges of the quickest way, both ends included; where there is none it is an InputError."""
        for name in (from_edge, to_edge):
            if name not in self.edges:
                raise InputError(self.path, "edge", name, *road_names(name, self.edges))
        way = self.find_route(from_edge, to_edge)
        if not way:
            raise InputError(self.path, "destination", to_edge, f"an edge that can be reached from {from_edge}")
        return way

    def find_route(self, from_edge: str, to_edge: str) -> tuple[str, ...]:
        """The quickest way (Dijkstra 1959), empty where there is none."""
        best, heap, before = {from_edge: 0.0}, [(0.0, from_edge)], {}
        while heap:
            cost, edge = heapq.heappop(heap)
            if edge == to_edge:
                way = [edge]
                while way[-1] != from_edge:
                    way.append(before[way[-1]])
                return tuple(reversed(way))
            if cost > best[edge]:
                continue
            for follower in self.followers[edge]:
                lane = self.lanes[self.edges[follower][0]]
                further = cost + lane.length_m / lane.speed_limit_mps + 4.0  # a junction costs some seconds
                if further < best.get(follower, np.inf):
                    best[follower], before[follower] = further, edge
                    heapq.heappush(heap, (further, follower))
        return ()

    def random_walk(
        self, rng: np.random.Generator, start: str, length_m: float, sumo_class: str = CAR
    ) -> tuple[str, ...]:
        """Edges from `start` on, at least this long, turning at random; shorter only where nothing leads on.

        Blind alleys are entered only where there is no other way.
        """
        way, total = [start], self.edge_length_m(start)
        on = self._ways_on[sumo_class]
        while total < length_m and on[way[-1]]:
            choice = on[way[-1]]
            way.append(choice[int(rng.integers(len(choice)))])
            total += self.edge_length_m(way[-1])
        return tuple(way)


def road_names(came: str, edges: Iterable[str]) -> tuple[str, str]:
    """What was expected in place of the name of a road, and the nearest."""
    return f"a road of the network, such as {', '.join(sorted(edges)[:5])}", nearest(came, edges)


def shipped_towns() -> tuple[str, ...]:
    """Names of the networks that come with the package."""
    return tuple(sorted(path.name[: -len(SUFFIX)] for path in TOWNS_FOLDER.glob("*" + SUFFIX)))


def network_path(town: str | Path) -> Path:
    """The file of a shipped town by its name, or of one's own network by its path."""
    if str(town) in shipped_towns():
        return TOWNS_FOLDER / f"{town}{SUFFIX}"
    path = Path(town)
    if not path.name.endswith((".net.xml", SUFFIX)):
        expected = f"one of {', '.join(shipped_towns())}, or a file NAME.net.xml"
        raise InputError("town", "name", town, expected, nearest(town, shipped_towns()))
    if not path.is_file():
        raise InputError("town", "network", f"no file {path}", "a SUMO network NAME.net.xml or NAME.net.xml.gz")
    return path


def read_network(path: Path) -> RoadNetwork:
    """The network of a file; what is not a network with roads for cars is an InputError."""
    try:
        data = path.read_bytes()
        root = ET.fromstring(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (ET.ParseError, gzip.BadGzipFile, EOFError, zlib.error, OSError) as error:
        raise InputError(path, "network", str(error), "an XML file that netconvert made") from error
    if root.tag != "net":
        raise InputError(path, "root element", root.tag, "net", "Make one with netconvert or netgenerate.")
    try:
        return _network(path, root)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        came = f"an element without what it needs ({type(error).__name__}: {error})"
        raise InputError(path, "network", came, "a network that netconvert made, unchanged") from error


def _network(path: Path, root: ET.Element) -> RoadNetwork:
    lanes, edges, ends, starts = {}, {}, {}, {}
    for element in root.iter("edge"):
        made = [lane for each in element.iter("lane") if (lane := _lane(element, each)) is not None]
        lanes |= {lane.id: lane for lane in made}
        roads = sorted((lane for lane in made if lane.kind == "road"), key=lambda lane: lane.index)
        if roads:
            edges[element.get("id")] = tuple(lane.id for lane in roads)
            starts[element.get("id")], ends[element.get("id")] = element.get("from"), element.get("to")
    if not edges:
        raise InputError(path, "roads", "none for cars", "at least one edge that allows passenger cars")
    junctions = {}
    for element in root.iter("junction"):
        if element.get("type") == "internal" or len((element.get("shape") or "").split()) < 3:
            continue
        requests = sorted(element.iter("request"), key=lambda request: int(request.get("index")))
        junctions[element.get("id")] = Junction(
            element.get("id"),
            element.get("type"),
            _points(element.get("shape")),
            tuple(_bits(request.get("response")) for request in requests),
            tuple(_bits(request.get("foes")) for request in requests),
        )
    links = _links(root, lanes, ends)
    rounds = frozenset(edge for each in root.iter("roundabout") for edge in each.get("edges").split())
    slow = frozenset(e for e in rounds if e in edges and lanes[edges[e][0]].speed_limit_mps < 15)  # not a ring motorway
    programs = {
        each.get("id"): tuple(phase.get("state") for phase in each.iter("phase")) for each in root.iter("tlLogic")
    }
    return RoadNetwork(path, lanes, edges, links, junctions, slow, programs, ends, starts)


def _points(text: str) -> np.ndarray:
    return np.array([[float(v) for v in pair.split(",")[:2]] for pair in text.split()])


def _bits(text: str) -> frozenset[int]:
    return frozenset(k for k, bit in enumerate(reversed(text)) if bit == "1")


def _lane(edge: ET.Element, element: ET.Element) -> NetLane | None:
    """A lane, or None for one that neither cars nor walkers use."""
    allow, disallow = ((element.get(name) or "").split() for name in ("allow", "disallow"))
    everybody = "all" in allow or not (allow or "all" in disallow)
    allowed = frozenset(name for name in CLASSES if name in allow or (everybody and name not in disallow))
    function = edge.get("function", "normal")
    kinds = {"internal": "inner", "crossing": "crossing", "walkingarea": "area"}
    kind = kinds.get(function) or ("road" if CAR in allowed else "walk" if WALKER in allowed else "")
    if not kind or (kind == "inner" and CAR not in allowed):
        return None
    points = _points(element.get("shape"))
    outline = points if kind == "area" else None
    apart = np.append(True, np.hypot(*np.diff(points, axis=0).T) > MIN_STEP_M)
    kept = points[apart]
    if len(kept) < 2:  # an inner lane of no length, where lanes meet directly
        kept = np.array([points[0], points[0] + [MIN_STEP_M, 0.0]])
    width, speed = float(element.get("width", 3.2)), float(element.get("speed"))
    return NetLane(
        element.get("id"),
        edge.get("id"),
        int(element.get("index")),
        kind,
        OpenLine(kept),
        width,
        speed,
        outline,
        allowed,
    )


def _links(root: ET.Element, lanes: dict[str, NetLane], ends: dict[str, str]) -> dict[str, tuple[Link, ...]]:
    onward: dict[str, str] = {}  # inner lane -> next inner lane of the same link
    for each in root.iter("connection"):
        if each.get("from").startswith(":") and each.get("via"):
            onward[f"{each.get('from')}_{each.get('fromLane')}"] = each.get("via")
    inner_index = {
        lane: k
        for junction in root.iter("junction")
        if junction.get("type") != "internal"
        for k, lane in enumerate((junction.get("intLanes") or "").split())
    }
    names = {"s": "straight", "l": "left", "L": "left", "r": "right", "R": "right", "t": "back"}
    out: dict[str, list[Link]] = defaultdict(list)
    for each in root.iter("connection"):
        start = f"{each.get('from')}_{each.get('fromLane')}"
        end = f"{each.get('to')}_{each.get('toLane')}"
        if start not in lanes or end not in lanes or {lanes[start].kind, lanes[end].kind} != {"road"}:
            continue
        way = [each.get("via")] if each.get("via") in lanes else []
        while way and onward.get(way[-1]) in lanes:
            way.append(onward[way[-1]])
        index = max((inner_index.get(lane, -1) for lane in way), default=-1)
        out[start].append(
            Link(
                start,
                end,
                tuple(way),
                names.get(each.get("dir"), "straight"),
                each.get("tl", ""),
                int(each.get("linkIndex", -1)),
                ends[each.get("from")],
                index,
                each.get("state") in ("s", "w"),
            )
        )
    return {lane: tuple(links) for lane, links in out.items()}
