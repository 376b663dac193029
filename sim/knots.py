"""Where SUMO's vehicles wait for each other for ever, somebody gives way, as people do."""

import libsumo
import numpy as np

from sim.road_network import RoadNetwork

LAWFUL = 31  # SUMO's default speed mode
FOES_IN_JUNCTION_IGNORED = 32  # a bit of it
PATIENCE_S = 40.0  # longer than the phases of a light that let others go
SQUEEZE_MPS = 2.0
WAY_M = 2500.0


class Knots:
    """`untie` now and then.

    In a junction, of those who have stood for PATIENCE_S who has stood longest squeezes through, slowly; not where the
    ego is in the junction too, since it may be the one whom they let pass. On a road, who cannot get over to the lane
    that he needs (two who must exchange lanes stand beside each other) goes where his own lane leads.
    """

    def __init__(self, network: RoadNetwork, rng: np.random.Generator, kept: frozenset[str]):
        """kept: vehicles that stand because they are meant to."""
        self._network, self._rng, self._kept = network, rng, kept
        self._squeezing: set[str] = set()

    def untie(self, vehicles: frozenset[str], ego: str) -> None:
        """Look at these vehicles."""
        longest: dict[str, tuple[float, str]] = {}
        for name in sorted(vehicles - self._kept):
            junction = _junction_of(name)
            if name in self._squeezing and not junction:
                self._squeezing.remove(name)
                libsumo.vehicle.setSpeedMode(name, LAWFUL)
                libsumo.vehicle.setSpeed(name, -1.0)
            stood_s = libsumo.vehicle.getWaitingTime(name)
            if stood_s > PATIENCE_S and junction and name not in self._squeezing:
                longest[junction] = max(longest.get(junction, (0.0, "")), (stood_s, name))
            elif stood_s > PATIENCE_S and not junction:
                self._go_where_the_lane_leads(name)
        longest.pop(_junction_of(ego), None)
        for _, name in longest.values():
            self._squeezing.add(name)
            libsumo.vehicle.setSpeedMode(name, LAWFUL | FOES_IN_JUNCTION_IGNORED)
            libsumo.vehicle.setSpeed(name, SQUEEZE_MPS)

    def _go_where_the_lane_leads(self, name: str) -> None:
        way, at = libsumo.vehicle.getRoute(name), libsumo.vehicle.getRouteIndex(name)
        links = self._network.links.get(libsumo.vehicle.getLaneID(name), ())
        leads = sorted({self._network.lanes[link.to_lane].edge for link in links})
        sumo_class = libsumo.vehicle.getVehicleClass(name)
        leads = [edge for edge in leads if self._network.open_to(edge, sumo_class)]
        if leads and at >= 0 and at + 1 < len(way) and way[at + 1] not in leads:
            onward = leads[int(self._rng.integers(len(leads)))]
            libsumo.vehicle.setRoute(name, [way[at], *self._network.random_walk(self._rng, onward, WAY_M, sumo_class)])


def _junction_of(vehicle: str) -> str:
    """The junction that a vehicle is in, ":" before its name; "" on a road."""
    road = libsumo.vehicle.getRoadID(vehicle)
    return road.rpartition("_")[0] if road.startswith(":") else ""
