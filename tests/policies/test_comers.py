"""Who might come to the next junction on a way that crosses the ego's. One simulation a process: a file of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from policies.imagine import STOPS_MPS2, imagine
from policies.protocol import Plan, Privileged
from policies.town_expert import TownExpert
from sim.geometry import overlap
from sim.imagined import Imagined
from sim.scenarios import get_scenario
from sim.stage import begin
from sim.town_env import TownEnv
from sim.town_world import TownWorld


@contextmanager
def driven(name: str, steps: int) -> Iterator[TownWorld]:
    """The town of a scenario after so many steps straight on."""
    made = TownEnv(name, (64, 36), cameras=False)
    begin(made, get_scenario(name))
    try:
        for _ in range(steps):
            made.step(np.array([1.0 if made.world.ego.speed_mps < 7 else 0.0, 0.0]))
        yield made.world
    finally:
        made.close()


def test_who_comes_to_a_junction_crosses_the_way_of_the_ego() -> None:
    with driven("town-val/1", 100) as world:
        network, seen = world.network, 0
        for k in range(20):
            might = imagine(world, np.random.default_rng(k))
            there = world.imagined(might)
            _, ours = there.place.stop_lines[0]  # it may take another way than the route
            crossed = network.junctions[ours.junction].foes[ours.index]
            for name, (lane, edges) in might.ways.items():
                seen += 1
                assert there.traffic.lane_of(name) == lane
                assert there.traffic.next_edges(name) == edges
                links = [link for link in network.links[lane] if network.lanes[link.to_lane].edge == edges[1]]
                assert any(link.index in crossed and link.junction == ours.junction for link in links)
                comer = next(guest for guest in might.guests if guest.id == name)
                at = network.lanes[lane].line.project(np.array(comer.pose[:2]))
                assert abs(float(at.lateral_m)) < 0.1
                box = np.array([*comer.pose, *comer.size_lwh_m[:2]])
                assert not overlap(box, [there.ego.footprint(there.params)]).any()
            plan_in(world, might)
        assert seen > 5


def test_the_expert_gives_way_to_who_comes() -> None:
    with driven("town-smoke/0", 120) as world:
        gave_way = 0
        everybody = frozenset(actor.instance for actor in world.actors)
        for k in range(80):
            might = replace(imagine(world, np.random.default_rng(k)), gone=everybody)
            plan = plan_in(world, might)
            if might.ways and plan.reason.startswith("give way"):
                gave_way += 1
                nobody = tuple(guest for guest in might.guests if guest.id not in might.ways)
                alone = plan_in(world, replace(might, guests=nobody, ways={}))
                assert not alone.reason.startswith("give way")
                assert alone.xyyaw_in_ego[-1, 0] > plan.xyyaw_in_ego[-1, 0]
        assert gave_way > 2


def test_a_junction_is_cleared_before_who_comes_and_can_stop() -> None:
    with driven("town-smoke/0", 154) as world:  # beyond where a turn left waits for who comes
        drives_on = gives_way = 0
        for k in range(60):
            might = imagine(world, np.random.default_rng(k))
            comers = [guest for guest in might.guests if guest.id in might.ways]
            for comer in comers:
                lane = world.network.lanes[might.ways[comer.id][0]]
                at_m = float(lane.line.project(np.array(comer.pose[:2])).s_m)
                left_m = lane.length_m - at_m - comer.size_lwh_m[0] / 2
                assert comer.speed_mps**2 <= 2 * STOPS_MPS2 * max(left_m, 0.0) + 0.1
            if comers:
                reason = plan_in(world, might).reason
                drives_on += reason.startswith("drive")
                gives_way += reason.startswith("give way")
        assert drives_on > 20
        assert gives_way < drives_on / 2


def plan_in(world: TownWorld, might: Imagined) -> Plan:
    return TownExpert().plan(None, Privileged(world=world.imagined(might)))
