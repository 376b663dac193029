"""What a drive is worth: properties of the reward, and outcomes of real and of changed logs."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.baselines import ConstantVelocity
from policies.expert import PurePursuit
from policies.grpo_recipe import RewardConfig
from policies.rewards import GATES, Outcome, outcome_of, progress, reward
from policies.rollout import drive_episode, quiet_env

SHARE, METRES = st.floats(0, 1), st.floats(0, 500)
FINE = Outcome(False, False, False, False, 40.0, 1.0)
WEIGHTS = RewardConfig(0.8, 0.2)
FEW = settings(deadline=None, derandomize=True, max_examples=50)


@pytest.fixture(scope="module")
def expert_log():
    return drive_episode(PurePursuit(), quiet_env((32, 32), 6.0), 3)


@FEW
@given(st.sets(st.sampled_from(GATES), min_size=1), METRES, SHARE, METRES)
def test_whoever_breaks_a_rule_gets_nothing(broken, moved_m, comfort, expert_m):
    outcome = Outcome(*(gate in broken for gate in GATES), moved_m, comfort)
    assert outcome.gated
    assert reward(outcome, expert_m, WEIGHTS) == 0.0


@FEW
@given(METRES, SHARE, METRES, METRES, SHARE)
def test_without_a_breach_more_progress_and_more_comfort_are_never_worth_less(moved_m, comfort, expert_m, more_m, more):
    base = replace(FINE, moved_m=moved_m, comfort=comfort)
    better = replace(base, moved_m=moved_m + more_m, comfort=comfort + more * (1 - comfort))
    worth = reward(base, expert_m, WEIGHTS)
    assert 0.0 <= worth <= reward(better, expert_m, WEIGHTS) <= 1.0
    assert reward(base, expert_m, RewardConfig(8.0, 2.0)) == pytest.approx(worth)


def test_golden_rewards():
    assert reward(FINE, 40.0, WEIGHTS) == 1.0
    assert reward(replace(FINE, moved_m=80.0), 40.0, WEIGHTS) == 1.0  # no faster than the expert is worth more
    assert reward(replace(FINE, moved_m=20.0), 40.0, WEIGHTS) == pytest.approx(0.6)
    assert reward(replace(FINE, moved_m=20.0, comfort=0.5), 40.0, WEIGHTS) == pytest.approx(0.5)
    assert reward(replace(FINE, moved_m=20.0, comfort=0.0), 40.0, RewardConfig(1.0, 0.0)) == pytest.approx(0.5)


def test_to_stand_is_worth_little_but_before_a_red_light_where_the_expert_stands_too():
    stands = replace(FINE, moved_m=0.0)
    assert 0.0 < reward(stands, 40.0, WEIGHTS) < 0.25
    assert reward(stands, 0.5, WEIGHTS) == 1.0


def test_the_expert_of_the_course_is_worth_all_of_the_progress(expert_log):
    outcome = outcome_of(expert_log)
    assert not outcome.gated
    assert progress(outcome, outcome.moved_m) == 1.0
    driven_m = np.hypot(*np.diff(expert_log.ego_xyyaw_in_world[:, :2], axis=0).T).sum()
    assert outcome.moved_m == pytest.approx(driven_m, rel=0.05)
    assert 0.0 <= outcome.comfort <= 1.0
    assert outcome_of(expert_log, invalid=True).gated


def test_who_drives_straight_on_leaves_the_road():
    outcome = outcome_of(drive_episode(ConstantVelocity(), quiet_env((32, 32), 15.0), 1))
    assert outcome.left_road
    assert not outcome.red_light


@pytest.mark.parametrize(
    ("event", "gate"),
    [("red_light", "red_light"), ("wrong_way", "left_road"), ("collision", "at_fault"), ("speeding", None)],
)
def test_events_gate(expert_log, event, gate):
    one = {"event": np.array([event]), "event_frame": np.array([5]), "event_actor": np.array(["nobody known"])}
    one |= {"event_speed_mps": np.array([5.0]), "event_fault": np.array([""])}
    outcome = outcome_of(replace(expert_log, **one))
    assert [name for name in GATES if getattr(outcome, name)] == ([gate] if gate else [])


def test_a_hectic_drive_is_less_comfortable(expert_log):
    time_s = expert_log.time_s
    hectic = replace(expert_log, speed_mps=8.0 + 3.0 * np.sign(np.sin(2 * np.pi * time_s / 1.5)))
    assert outcome_of(hectic).comfort < 0.5
    assert outcome_of(replace(expert_log, speed_mps=np.full(len(time_s), 8.0))).comfort >= outcome_of(hectic).comfort
