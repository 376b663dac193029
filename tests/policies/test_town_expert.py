"""The town's privileged driver: it keeps the rules, masters every hazard, and says why."""

from dataclasses import replace

import numpy as np
import pytest
from town_drives import Drive, Inattentive, drive, drive_all, table_row

from policies.protocol import NOTHING, Privileged
from policies.town_expert import TownExpert
from sensors.errors import InputError
from sensors.reasons import parse_reason
from sim.hazards import HAZARDS
from sim.scenarios import get_scenario
from sim.town_world import TownWorld

# A scenario of each hazard, when it is over without other traffic, and a reason for which the expert reacts to it.
ACTED = {
    "cut-in": (0, 8.0, "follow: car"),
    "jaywalker": (0, 10.0, "stop: pedestrian"),
    "hard-braking-lead": (0, 9.0, "follow: car"),
    "occluded-crossing": (0, 10.0, "stop: pedestrian"),
    "red-light-runner": (3, 17.0, "give way: vehicle"),
    "blocked-lane": (0, 14.0, "change lane"),
    "unprotected-left": (0, 15.0, "give way: vehicle"),
    "merge": (0, 19.0, "give way: vehicle"),
    "roundabout": (0, 16.0, "give way: vehicle"),
}


@pytest.fixture
def world():
    made = TownWorld()
    yield made
    made.close()


def test_a_short_route_is_completed_by_the_rules_and_explained(world: TownWorld) -> None:
    done = drive(world, get_scenario("town-smoke/0"))
    assert [event.kind for event in done.events] == ["route_completed"]
    said = [parse_reason(text) for text in done.reasons]
    assert {"drive", "stop"} <= {reason.action for reason in said}
    assert done.mean_mps > 2.5  # with what it waits at lights


def test_it_drives_as_well_when_it_plans_at_every_step(world: TownWorld) -> None:
    apart = drive(world, get_scenario("town-smoke/3"), 25.0)
    at_once = drive(world, get_scenario("town-smoke/3"), 25.0, every=1)
    assert at_once.kinds == set()
    assert at_once.progress_m > 0.9 * apart.progress_m > 50.0


@pytest.mark.parametrize("hazard", ACTED)
def test_a_hazard_is_one_and_is_mastered(world: TownWorld, hazard: str) -> None:
    number, seconds, why = ACTED[hazard]
    scenario = replace(get_scenario(f"hazard-{hazard}/{number}"), vehicles=0, walkers=0)
    assert drive(world, scenario, seconds, expert=Inattentive).hits(hazard=True)
    done = drive(world, scenario, seconds)
    assert done.kinds <= {"route_completed"}
    assert any(reason.startswith(why) for reason in done.reasons)


def test_every_hazard_is_tried() -> None:
    assert set(ACTED) == set(HAZARDS)


def test_plan_starts_where_the_ego_is_and_is_the_same_twice(world: TownWorld) -> None:
    world.reset(get_scenario("town-smoke/1"))
    plans = [TownExpert().plan(None, Privileged(world=world)) for _ in range(2)]
    assert np.array_equal(plans[0].xyyaw_in_ego, plans[1].xyyaw_in_ego)
    assert np.abs(plans[0].xyyaw_in_ego[0]).max() < 2.0


def test_expert_rejects_a_drive_without_a_town() -> None:
    with pytest.raises(InputError, match="a town"):
        TownExpert().plan(None, NOTHING)


# Figures; each prints its row of the table (pytest -m slow -s) -----------------------------------


def _share(drives: list[Drive], good) -> float:
    return sum(map(bool, map(good, drives))) / len(drives)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("suite", ["town-test", "town-val"])
def test_two_hundred_routes_it_has_never_seen(suite: str) -> None:
    drives = drive_all(f"{suite}/{k}" for k in range(200))
    print(table_row(drives))
    assert _share(drives, lambda d: "route_completed" in d.kinds) >= 0.98
    assert _share(drives, lambda d: "collision" in d.kinds) <= 0.01
    assert all("red_light" not in d.kinds for d in drives)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("hazard", HAZARDS)
def test_forty_of_each_hazard(hazard: str) -> None:
    names = [f"hazard-{hazard}/{k}" for k in range(40)]
    drives, unaware = drive_all(names), drive_all(names, Inattentive)
    happened = _share(unaware, lambda d: d.hits(hazard=True))
    print(table_row(drives), f" happens in {happened:.2f}")
    own = [any(e.kind == "collision" and e.fault == "ego" for e in d.events) for d in drives]
    solved = ["route_completed" in d.kinds and "red_light" not in d.kinds for d in drives]
    assert np.mean([s and not o for s, o in zip(solved, own, strict=True)]) >= 0.95
    assert happened >= 0.5
