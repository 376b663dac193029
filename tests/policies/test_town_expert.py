"""The town's privileged driver: it keeps the rules, masters a hazard, and says why."""

import numpy as np
import pytest

from policies.protocol import NOTHING, Privileged
from policies.town_expert import TownExpert
from sensors.errors import InputError
from sim.scenarios import get_scenario
from sim.town_world import TownWorld
from sim.tracker import PlanTracker


@pytest.fixture
def world():
    made = TownWorld()
    yield made
    made.close()


def drive(world: TownWorld, name: str, seconds: float) -> tuple[list[str], list[str]]:
    """Kinds of events and reasons of an episode, until it ends."""
    world.reset(get_scenario(name))
    expert, tracker, kinds, reasons = TownExpert(), PlanTracker(), [], []
    for step in range(round(seconds * 10)):
        pose, speed = world.ego.T_world_from_ego, world.ego.speed_mps
        if step % 5 == 0:
            plan = expert.plan(None, Privileged(world=world)).validate(name)
            reasons.append(plan.reason)
            tracker.follow(plan, pose, world.time_us, speed)
        command = tracker.command(pose, world.time_us, speed)
        kinds += [event.kind for event in world.step(command.accel_mps2, command.curvature_1pm)]
        if {"route_completed", "collision", "off_road"}.intersection(kinds):
            break
    return kinds, reasons


def test_a_short_route_is_completed_by_the_rules_and_explained(world: TownWorld) -> None:
    kinds, reasons = drive(world, "town-smoke/0", 120.0)
    assert kinds == ["route_completed"]
    starts = {reason.split(":")[0] for reason in reasons}
    assert "drive" in starts
    assert starts <= {"drive", "follow", "stop", "give way", "wait", "brake"}


def test_a_pedestrian_who_steps_out_is_seen_and_not_hit(world: TownWorld) -> None:
    kinds, reasons = drive(world, "hazard-jaywalker/0", 30.0)
    assert "collision" not in kinds
    assert any("pedestrian" in reason for reason in reasons)
    assert world.place.progress_m > 20.0


def test_plan_starts_where_the_ego_is_and_is_the_same_twice(world: TownWorld) -> None:
    world.reset(get_scenario("town-smoke/1"))
    plans = [TownExpert().plan(None, Privileged(world=world)) for _ in range(2)]
    assert np.array_equal(plans[0].xyyaw_in_ego, plans[1].xyyaw_in_ego)
    assert np.abs(plans[0].xyyaw_in_ego[0]).max() < 2.0


def test_expert_rejects_a_drive_without_a_town() -> None:
    with pytest.raises(InputError, match="a town"):
        TownExpert().plan(None, NOTHING)
