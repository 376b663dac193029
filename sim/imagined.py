"""One instant of a town as it might be, to be looked at, planned in and labelled; it never goes on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from sim.traffic_sumo import Snapshot, SumoTraffic
from sim.vehicle import EgoState
from sim.world import Actor


@dataclass(frozen=True)
class Wish:
    """What a passenger asks for, whatever the route says.

    kind   one of town_words.WISHES, said in these words; of: whom it is about, one of town_words.WISHED_KINDS, or ""
    """

    kind: str
    words: str
    of: str = ""

    @property
    def hides_command(self) -> bool:
        """Whether nobody but the words tells: the route's command would give it away, or contradict it."""
        return self.kind not in ("slow", "stop behind")


@dataclass(frozen=True)
class Imagined:
    """What is otherwise than it is.

    ego     where it would be, at which speed
    edges   of the way it would take, from the road it is on; none: its own
    lights  state letters of some of the traffic lights
    gone    instances of actors who would not be there
    guests  who would, at their `pose` and `speed_mps`; braking: instances of those whose brake lights shine
    ways    of guests who come to a junction, by id: the lane that each is on, its edge and the one it goes to
    wish    what the passenger asks for
    """

    ego: EgoState
    edges: tuple[str, ...] = ()
    lights: Mapping[str, str] = field(default_factory=dict)
    gone: frozenset[int] = frozenset()
    guests: tuple[Actor, ...] = ()
    braking: frozenset[int] = frozenset()
    ways: Mapping[str, tuple[str, tuple[str, str]]] = field(default_factory=dict)
    wish: Wish | None = None


class StillTraffic:
    """What `SumoTraffic` says of one instant, with some gone and guests behind all others; it has no step."""

    def __init__(self, traffic: SumoTraffic, imagined: Imagined):
        self._traffic, self._ways = traffic, imagined.ways
        self.actors = traffic.actors + imagined.guests
        kept = np.array([actor.instance not in imagined.gone for actor in traffic.actors], bool)
        self.before, self.now = (self._with(snapshot, kept, imagined) for snapshot in (traffic.before, traffic.now))

    @staticmethod
    def _with(snapshot: Snapshot, kept: np.ndarray, imagined: Imagined) -> Snapshot:
        guests = imagined.guests
        poses = np.array([guest.pose for guest in guests]).reshape(-1, 3)
        return replace(
            snapshot,
            poses_m=np.concatenate([snapshot.poses_m, poses]),
            speed_mps=np.append(snapshot.speed_mps, [guest.speed_mps for guest in guests]),
            present=np.append(snapshot.present & kept, np.ones(len(guests), bool)),
            lights=snapshot.lights | dict(imagined.lights),
        )

    def lane_of(self, actor: str) -> str:
        """As `SumoTraffic` has it; of a guest without a way "", whom no rule of right of way concerns."""
        return self._ways[actor][0] if actor in self._ways else self._traffic.lane_of(actor)

    def next_edges(self, actor: str) -> tuple[str, ...]:
        """As `SumoTraffic` has it."""
        return self._ways[actor][1] if actor in self._ways else self._traffic.next_edges(actor)
