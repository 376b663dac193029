"""nuScenes' open loop from a log whose keyframes lie unevenly, as recorded ones do."""

import numpy as np
import pytest

from sensors.clip import Boxes
from sim.metrics.log_view import LogView
from sim.metrics.replay_protocols import nuscenes
from sim.rollout_log import EpisodeRecorder

SPEED_MPS, PLAN_TIME_S = 8.0, np.arange(1, 9) * 0.5


def replayed(gaps_s, beside_m=0.0):
    """A car that goes straight on at one speed, and at every keyframe plans to, or to be that far beside."""
    recorder = EpisodeRecorder("s", "replay", "p", 0)
    for time_s in np.concatenate([[0.0], np.cumsum(gaps_s)]):
        x = SPEED_MPS * time_s
        recorder.frame(round(1e6 * time_s), (x, 0.0, 0.0), SPEED_MPS, None, Boxes.empty())
        ahead = x + SPEED_MPS * PLAN_TIME_S
        recorder.plan(PLAN_TIME_S, np.stack([ahead, np.full(8, beside_m), np.zeros(8)], axis=1))
    return nuscenes(LogView(recorder.finish("end of log")))


@pytest.mark.parametrize("beside_m", [0.0, 0.5])
def test_a_plan_is_compared_at_the_instant_of_each_keyframe(beside_m):
    """Whoever plans what is driven is right, however early or late a keyframe comes."""
    gaps_s = np.random.default_rng(0).uniform(0.4, 0.6, 20)
    for seconds in (1, 2, 3):
        value, valid, weight = replayed(gaps_s, beside_m)[f"nuscenes.stp3.l2_{seconds}s_m"]
        assert valid
        assert weight == 15  # samples with a whole 3 s of recording
        # The first half second leads from the car to the plan.
        assert value == pytest.approx(beside_m, abs=0.06 if beside_m else 1e-5)


def test_keyframes_too_far_apart_have_no_score():
    assert not replayed(np.full(9, 0.8))["nuscenes.uniad.l2_3s_m"][1]


def test_where_nobody_was_annotated_nothing_is_said_of_collisions():
    figures = replayed(np.full(12, 0.5))
    collisions = {name: figure for name, figure in figures.items() if "_col_" in name}
    assert collisions
    assert not any(valid or weight for _, valid, weight in collisions.values())
    assert figures["nuscenes.uniad.l2_3s_m"][1]
