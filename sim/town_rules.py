"""What can go wrong in a town, and what can go right: events with the instant they begin.

collision        two footprints overlap, at the speed between them; whose fault it is says `sim.contacts`
off_road         a wheel has left lanes and junctions
wrong_way        no lane under the rear axle leads the ego's way (within 90 degrees), for a while, outside junctions
stop_line        the front bumper passes a stop line at red, or one of a stop sign without having stood still
red_light        so does the rear axle, the light still being red
speeding         faster than SPEEDING of the limit for SPEEDING_S
blocked          has not got on for BLOCKED_S
route_left       more than ROUTE_LEFT_M beside the route
route_completed  the goal is reached
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from sim.contacts import STANDS_MPS, Contacts, wheels
from sim.road_network import Link
from sim.town_map import TownMap
from sim.vehicle import EgoState, VehicleParams
from sim.world import PERIOD_US, Actor, Event

TOWN_EVENTS = (
    "collision",
    "off_road",
    "wrong_way",
    "stop_line",
    "red_light",
    "speeding",
    "blocked",
    "route_left",
    "route_completed",
)
STOPPED_WITHIN_M = 6.0
SPEEDING, SPEEDING_S = 1.1, 1.0
WRONG_WAY_S = 0.5  # lanes and junctions meet with gaps, in which the nearest lane may be another
BLOCKED_S, BLOCKED_M = 120.0, 2.0
ROUTE_LEFT_M = 9.0
LANE_M, JUNCTION_M = 0.2, 1.0  # beyond the lane's edge and still in the lane, on a road and through a junction
WHEEL_M = 0.1  # wheels stand this far inside the car's flanks
RED = "ru"
HZ = 1_000_000 // PERIOD_US


@dataclass(frozen=True)
class Place:
    """Where the ego's rear axle is on its route.

    lane          the route's lane it is on or nearest to, inner ones too
    s_m           on the line that starts with `first_lane`; lateral_m left of it, heading_error_rad against it
    progress_m    from the start along the route
    limit_mps     legal limit here
    stop_lines    (distance from the front bumper, negative behind it, link) of the links ahead and just passed
    """

    lane: str
    first_lane: str
    s_m: float
    lateral_m: float
    heading_error_rad: float
    progress_m: float
    limit_mps: float
    stop_lines: tuple[tuple[float, Link], ...]


@dataclass
class Rules:
    """Remembers what is going on already, so that an event is told once, when it begins."""

    town: TownMap
    params: VehicleParams
    length_m: float
    _going_on: set[str] = field(default_factory=set)
    _front: dict[str, float] = field(default_factory=dict)
    _ran: set[str] = field(default_factory=set)
    _stood_before: set[str] = field(default_factory=set)
    _fast: int = 0  # periods for which it has been going on
    _wrong: int = 0
    _furthest: tuple[float, int] = (0.0, 0)  # progress, and the periods since
    _contacts: Contacts = field(init=False)

    def __post_init__(self) -> None:
        self._contacts = Contacts(self.params)

    def collisions(
        self,
        times_us: np.ndarray,
        egos: tuple[EgoState, ...],
        actors: tuple[Actor, ...],
        boxes: np.ndarray,
        speeds: np.ndarray,
        in_lane: bool,
    ) -> list[Event]:
        """See `Contacts.begun`."""
        return self._contacts.begun(times_us, egos, actors, boxes, speeds, in_lane)

    def in_lane(self, place: Place) -> bool:
        """Whether the whole footprint is within its lane, or nearly; through a junction the front swings out more."""
        lane, turn = self.town.network.lanes[place.lane], math.sin(place.heading_error_rad)
        ends = (place.lateral_m + self.params.front_m * turn, place.lateral_m - self.params.rear_overhang_m * turn)
        room_m = (lane.width_m - self.params.width_m) / 2 + (LANE_M if lane.kind == "road" else JUNCTION_M)
        return max(map(abs, ends)) <= room_m

    def others(self, time_us: int, ego: EgoState, place: Place, lights: dict[str, str]) -> list[Event]:
        """All other events that begin at the end of a period."""
        kinds = [*self._at_lines(ego, place, lights)]
        self._fast = self._fast + 1 if ego.speed_mps > SPEEDING * place.limit_mps else 0
        self._wrong = self._wrong + 1 if self._wrong_way(ego) else 0
        at_m, since = self._furthest
        moved = abs(place.progress_m - at_m) > BLOCKED_M
        self._furthest = (place.progress_m, 0) if moved else (at_m, since + 1)
        states = {
            "off_road": not self.town.drivable(wheels(ego, self.params, WHEEL_M)).all(),
            "wrong_way": self._wrong >= WRONG_WAY_S * HZ,
            "speeding": self._fast >= SPEEDING_S * HZ,
            "blocked": self._furthest[1] >= BLOCKED_S * HZ,
            "route_left": abs(place.lateral_m) > ROUTE_LEFT_M,
            "route_completed": place.progress_m >= self.length_m,
        }
        kinds += [kind for kind, true in states.items() if true and kind not in self._going_on]
        self._going_on = {kind for kind, true in states.items() if true}
        return [Event(kind, time_us, "", ego.speed_mps) for kind in kinds]

    def _wrong_way(self, ego: EgoState) -> bool:
        names = self.town.under(ego.x_m, ego.y_m)
        network = self.town.network
        if not names or any(name in network.junctions for name in names):
            return False
        headings = (network.lanes[name].line.nearest(ego.x_m, ego.y_m)[2] for name in names)
        return all(math.cos(heading - ego.yaw_rad) < 0 for heading in headings)

    def _at_lines(self, ego: EgoState, place: Place, lights: dict[str, str]) -> Iterator[str]:
        """By edges, since one may pass a line while changing lanes."""
        edges = [self.town.network.lanes[link.from_lane].edge for _, link in place.stop_lines]
        for edge, (distance, link) in zip(edges, place.stop_lines, strict=True):
            if ego.speed_mps < STANDS_MPS and 0 <= distance < STOPPED_WITHIN_M:
                self._stood_before.add(edge)
            red = bool(link.light) and lights[link.light][link.light_index] in RED
            if self._front.get(edge, 0.0) > 0 >= distance:
                if red:
                    self._ran.add(edge)
                if red or (link.stop_sign and edge not in self._stood_before):
                    yield "stop_line"
            if edge in self._ran and distance <= -self.params.front_m:
                self._ran.remove(edge)
                if red:
                    yield "red_light"
        self._front = {edge: distance for edge, (distance, _) in zip(edges, place.stop_lines, strict=True)}
