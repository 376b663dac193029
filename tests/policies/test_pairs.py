"""When two plans tell two versions of an instant apart."""

import numpy as np
import pytest
from lamp_reader import straight_plan

from policies.pairs import driven_m, share_figures, tells_lead, tells_obstacle, tells_red, tells_ways, wilson
from policies.probes import Probes
from policies.rollout import drive_episode, quiet_env
from policies.town_expert import TownExpert
from sim.scenarios import get_scenario
from sim.tracker import PLAN_TIME_S, Plan


def aside_plan(driven: float, aside_m: float) -> Plan:
    """Past something: out in the first quarter, and on beside it."""
    share = PLAN_TIME_S / PLAN_TIME_S[-1]
    y = aside_m * np.minimum(4 * share, 1.0)
    return Plan(PLAN_TIME_S, np.stack([driven * share, y, 0 * share], axis=1), np.full(len(share), 5.0))


def test_the_way_of_a_plan_is_as_long_as_it_is() -> None:
    assert driven_m(straight_plan(12.5)) == pytest.approx(12.5)
    circle = np.stack([np.sin(PLAN_TIME_S), 1 - np.cos(PLAN_TIME_S), PLAN_TIME_S], axis=1)
    assert driven_m(Plan(PLAN_TIME_S, circle, np.ones(8))) == pytest.approx(4.0, rel=0.02)


@pytest.mark.parametrize(
    ("green_m", "red_m", "line_m", "told"),
    [
        (24.0, 14.0, 15.0, True),  # stops at the line
        (24.0, 16.5, 15.0, False),  # runs it
        (24.0, 11.0, 8.0, True),  # too late for the line, but brakes hard
        (24.0, 13.0, 8.0, False),
        (14.0, 12.0, 15.0, False),  # does not go on at green either
        (14.0, 14.0, 15.0, False),
        (5.0, 24.0, 15.0, False),  # the wrong way round
    ],
)
def test_red_is_told_from_green(green_m: float, red_m: float, line_m: float, told: bool) -> None:
    assert tells_red(straight_plan(green_m), straight_plan(red_m), line_m) is told


def test_a_lead_is_told_from_none() -> None:
    assert tells_lead(straight_plan(30.0), straight_plan(26.9))
    assert not tells_lead(straight_plan(30.0), straight_plan(27.1))
    assert not tells_lead(straight_plan(20.0), straight_plan(30.0))


@pytest.mark.parametrize(
    ("present", "told"),
    [
        (straight_plan(16.0), True),  # brakes
        (straight_plan(18.0), False),  # not enough
        (straight_plan(24.0), False),
        (aside_plan(24.0, 1.2), True),  # passes
        (aside_plan(24.0, 0.8), False),
        (aside_plan(16.9, 0.0), False),  # neither reaches it with its axle nor brakes enough
    ],
)
def test_an_obstacle_is_told_from_none(present: Plan, told: bool) -> None:
    assert tells_obstacle(straight_plan(24.0), present, 13.0, 3.4) is told


def test_stopping_before_an_obstacle_counts_if_it_is_for_the_obstacle() -> None:
    assert tells_obstacle(straight_plan(17.0), straight_plan(14.0), 14.5, 3.4)
    assert not tells_obstacle(straight_plan(15.0), straight_plan(14.0), 14.5, 3.4)


def test_ways_are_told_apart_only_if_both_plans_turn() -> None:
    left, ahead, right = (straight_plan(20.0, yaw) for yaw in (1.3, 0.1, -1.2))
    ways = 1.5, 0.0
    assert tells_ways(left, ahead, ways)
    assert not tells_ways(left, left, ways)
    assert not tells_ways(ahead, ahead, ways)
    assert not tells_ways(ahead, left, ways)
    assert tells_ways(left, right, (1.5, -1.5))
    assert tells_ways(straight_plan(20.0, 3.1), ahead, (-3.1, 0.0)), "headings go round"


def test_who_sees_no_difference_passes_nothing() -> None:
    for length in (0.0, 3.0, 14.0, 30.0):
        plan = straight_plan(length, 0.7)
        assert not tells_red(plan, plan, 10.0)
        assert not tells_lead(plan, plan)
        assert not tells_obstacle(plan, plan, 12.0, 3.4)
        assert not tells_ways(plan, plan, (1.4, 0.0))


def test_wilson_is_the_published_interval() -> None:
    low, high = wilson(8, 10)  # 0.490 to 0.943: Newcombe 1998, by hand from the equation
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert wilson(0, 5)[0] == 0.0
    assert wilson(5, 5)[1] == pytest.approx(1.0)
    assert wilson(5, 5)[0] < 0.6


def test_nothing_asked_has_a_count_and_no_share() -> None:
    assert share_figures("pair.lead", []) == {"pair.lead.n": 0}
    flat = share_figures("pair.lead", [True, False, True, True])
    assert (flat["pair.lead"], flat["pair.lead.n"]) == (0.75, 4)
    assert flat["pair.lead.ci95_low"] < 0.75 < flat["pair.lead.ci95_high"]


class Finder(TownExpert):
    """The expert, who notes where it could be asked."""

    def plan(self, clip, privileged):
        for probe in self.probes.at(privileged.world):
            self.found.append((probe, privileged.world.ego.speed_mps))
        return super().plan(clip, privileged)


def test_pairs_are_found_that_a_careful_driver_passes() -> None:
    scenario, finder = get_scenario("town-val/2"), Finder()
    finder.probes, finder.found = Probes(scenario.seed), []
    env = quiet_env((32, 32), None, scenario, seen=False)
    drive_episode(finder, env, scenario)
    env.close()
    kinds = [probe.kind for probe, _ in finder.found]
    assert set(kinds) == {"red_light", "lead", "obstacle", "turn"}
    stops, goes = straight_plan(2.0), straight_plan(26.0)
    for probe, speed_mps in finder.found:
        differ = [name for name in ("otherwise", "cue") if len({str(getattr(v, name)) for v in probe.versions}) > 1]
        assert differ == (["cue"] if probe.kind == "turn" else ["otherwise"])
        everybody = {actor.instance for actor in env.unwrapped.world.actors}
        about = [everybody - version.otherwise.without for version in probe.versions]
        assert [len(who) for who in about] == [0, 1 if probe.kind == "lead" else 0]
        if probe.kind == "turn":
            assert speed_mps >= 2.0
            continue
        assert probe.passed(goes, stops)
        assert not probe.passed(goes, goes)
        assert not probe.passed(stops, goes)
