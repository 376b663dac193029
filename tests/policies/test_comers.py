"""Who might come to the next junction on a way that crosses the ego's. One simulation a process: a file of its own."""

import numpy as np

from policies.imagine import imagine
from policies.protocol import Privileged
from policies.town_expert import TownExpert
from sim.geometry import overlap
from sim.scenarios import get_scenario
from sim.stage import begin
from sim.town_env import TownEnv


def test_who_comes_to_a_junction_crosses_the_way_of_the_ego() -> None:
    made = TownEnv("town-val/1", (64, 36), cameras=False)
    begin(made, get_scenario("town-val/1"))
    try:
        for _ in range(100):
            made.step(np.array([1.0 if made.world.ego.speed_mps < 7 else 0.0, 0.0]))
        world, network, seen = made.world, made.world.network, 0
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
            TownExpert().plan(None, Privileged(world=there))
        assert seen > 5
    finally:
        made.close()
