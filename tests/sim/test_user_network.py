"""A user's own network: without lights and pedestrians, with blind alleys and closed roads; and broken ones."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sensors.errors import InputError
from sim.road_network import network_path, read_network
from sim.scenarios import Scenario
from sim.town_route import Route
from sim.town_world import TownWorld

TEE = Path(__file__).parent / "tee.net.xml"  # three arms, each ends blind; no buses on m_w, no bicycles on s_m


def scenario(town: Path, **change) -> Scenario:
    return Scenario(
        "own", str(town), **({"seed": 1, "vehicles": 30, "walkers": 10, "route_m": (100.0, 700.0)} | change)
    )


@pytest.fixture
def world():
    made = TownWorld()
    yield made
    made.close()


@pytest.mark.parametrize("zipped", [False, True])
def test_one_drives_in_it(world: TownWorld, tmp_path: Path, zipped: bool) -> None:
    path = TEE
    if zipped:
        path = tmp_path / "my.town.net.xml.gz"
        path.write_bytes(gzip.compress(TEE.read_bytes()))
    world.reset(scenario(path))
    assert world.route.edges[0].endswith("_m")
    assert world.lights == {}
    assert {actor.category for actor in world.actors} > {"vehicle.car"}
    assert not any(actor.category.startswith("human") for actor in world.actors)
    assert world.traffic.now.present.sum() > 20
    kinds = {actor.id: actor.category for actor in world.actors}
    for _ in range(250):
        world.step(0.5 if world.ego.speed_mps < 8 else 0.0, 0.0)
        where = {name: world.traffic.lane_of(name) for name in kinds}
        assert not any(where[name] == "m_w_0" and kinds[name].split(".")[1] in ("bus", "truck") for name in kinds)
        assert not any(where[name] == "s_m_0" and kinds[name] == "vehicle.bicycle" for name in kinds)
    assert world.place.progress_m > 100
    assert world.traffic.now.present.sum() < len(kinds), "who comes to a blind end leaves the town"


def test_where_a_route_ends_blind_others_are_found(world: TownWorld) -> None:
    network = read_network(TEE)
    with pytest.raises(InputError, match="destination: came w_m, expected an edge that can be reached from m_s"):
        network.route("m_s", "w_m")
    with pytest.raises(InputError, match=r"edge: came w_n, expected a road of the network.*Did you mean w_m"):
        network.route("w_n", "m_s")
    assert network.endless == frozenset()
    assert network.random_walk(np.random.default_rng(0), "m_s", 100.0) == ("m_s",)
    for seed in range(8):
        world.reset(scenario(TEE, seed=seed, vehicles=0))
        assert len(world.route.edges) == 2


def test_blind_alleys_are_not_entered_by_chance() -> None:
    network = read_network(network_path("grid"))
    assert network.endless == set(network.edges)


def test_no_bicycle_rides_on_a_motorway() -> None:
    network = read_network(network_path("ring"))
    fast = {edge for edge, lanes in network.edges.items() if network.lanes[lanes[0]].speed_limit_mps > 20}
    assert fast
    rng = np.random.default_rng(0)
    walks = [network.random_walk(rng, "arm0-corner0", 3000.0, "bicycle") for _ in range(20)]
    assert fast.isdisjoint(edge for walk in walks for edge in walk)
    assert not fast.isdisjoint(network.random_walk(rng, "arm0-corner0", 30_000.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"route_m": (900.0, 1000.0)}, "route: came none found in tee.net.xml, expected a network with a route of 900"),
        ({"hazard": "merge"}, "for the hazard merge"),
    ],
)
def test_reset_rejects_what_it_does_not_offer(world: TownWorld, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        world.reset(scenario(TEE, **change))


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (("e_n", "m_s"), r"edges\[0\]: came e_n.*Did you mean e_m"),
        (("e_m", "m_n"), r"edges\[1\]: came m_n.*Did you mean"),
        (("e_m", "m_e"), "expected an edge that follows e_m"),
    ],
)
def test_reset_rejects_a_start_or_a_way_off_the_network(world: TownWorld, way: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        world.reset(scenario(TEE), way=way)


def test_route_rejects_no_edges() -> None:
    with pytest.raises(InputError, match="edges: came none"):
        Route(read_network(TEE), ())


def cut_attribute(text: str) -> str:
    return text.replace('speed="13.90" ', "")


def word_for_a_number(text: str) -> str:
    return text.replace('speed="13.90"', 'speed="fast"')


def end_nowhere(text: str) -> str:
    return text.replace('from="e" to="m"', 'from="e" to="nowhere"')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_attribute, r"network: came an element without what it needs \(TypeError"),
        (word_for_a_number, "could not convert string to float: 'fast'"),
        (end_nowhere, "network: came SUMO refuses it.*netconvert"),
        (lambda text: text[: len(text) // 2], "XML file that netconvert made"),
    ],
)
def test_a_broken_network_is_told_and_the_next_one_runs(
    world: TownWorld, tmp_path: Path, spoil: Callable[[str], str], message: str
) -> None:
    path = tmp_path / "broken.net.xml"
    path.write_text(spoil(TEE.read_text()))
    with pytest.raises(InputError, match=message):
        world.reset(scenario(path))
    world.reset(scenario(TEE))
    world.step(0.0, 0.0)
    with pytest.raises(InputError, match=message):
        world.reset(scenario(path))
