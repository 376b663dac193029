"""Suites: their weather, and hazards where they can happen."""

from collections import Counter
from dataclasses import replace

import pytest

from sensors.errors import InputError
from sim.hazards import HAZARDS
from sim.scenarios import HAZARD_TOWNS, WEATHER_SHARES, Scenario, get_scenario, suite_length
from sim.town_world import TownWorld
from sim.weather import WEATHERS


def test_the_weather_of_a_suite_is_distributed_as_documented() -> None:
    assert set(WEATHER_SHARES) == set(WEATHERS)
    assert sum(WEATHER_SHARES.values()) == pytest.approx(1.0)
    drawn = Counter(get_scenario(f"town-train/{k}").weather for k in range(2000))
    assert all(abs(drawn[name] / 2000 - share) < 0.03 for name, share in WEATHER_SHARES.items())
    for suite in ("town-val", "town-test"):
        assert {get_scenario(f"{suite}/{k}").weather for k in range(suite_length(suite))} == set(WEATHERS)


def test_weather_changes_nobody_s_way() -> None:
    world = TownWorld()
    seen = []
    for weather in ("clear", "night-rain"):
        world.reset(replace(get_scenario("town-val/3"), weather=weather))
        for _ in range(30):
            world.step(1.0, 0.0)
        seen.append(world.traffic.now.poses_m.tobytes())
    world.close()
    assert seen[0] == seen[1]


def test_the_first_scenarios_of_each_hazard_have_a_place_for_it_in_every_town() -> None:
    assert list(HAZARD_TOWNS) == list(HAZARDS)
    world = TownWorld()
    for hazard, towns in HAZARD_TOWNS.items():
        for k in range(len(towns)):
            world.reset(get_scenario(f"hazard-{hazard}/{k}"))
            parts = [actor.id for actor in world.actors if not actor.id.startswith(("vehicle-", "walker-"))]
            assert parts, f"nobody makes the hazard {hazard}"
            assert all(world.traffic.is_there(part) for part in parts)
            others = [actor.id for actor in world.actors if actor.id not in parts]
            roads = {world.traffic.lane_of(other).rpartition("_")[0] for other in others}
            assert world.route.edges[0] not in roads, "somebody else is where the hazard is to happen"
    world.close()


def test_a_hazard_asked_for_in_a_town_without_a_place_for_it_is_said() -> None:
    world = TownWorld()
    with pytest.raises(InputError, match="for the hazard roundabout"):
        world.reset(Scenario("x", "grid", 1, hazard="roundabout"))
    with pytest.raises(InputError, match="Did you mean cut-in"):
        world.reset(Scenario("x", "grid", 1, hazard="cutin"))
    world.close()
