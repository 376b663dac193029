"""A car that a vla policy drives: what it remembers, when it begins anew, and what it does when the model fails."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from policies.cli_parts import make_policy
from policies.noise import noise_clip
from policies.protocol import NOTHING, check_policy
from policies.replay import replay_scene, surroundings_of
from policies.runs import Run
from policies.transforms import plan_from_tokens, stop_plan, to_batch
from policies.vla_policy import GOES_MPS, MORE_PATIENCE_S, PATIENCE_S, STANDS_MPS, VlaPolicy
from sensors.clip import VehicleState
from sensors.errors import InputError
from sensors.nuscenes_source import NuscenesSource
from sim.report.summary import problems
from sim.tracker import FALLBACK
from vla.action_tokens import ActionTokenizer
from vla.attention import Horizon
from vla.checkpoint import save
from vla.config import ModelConfig
from vla.model import DrivingModel
from vla.stream import Stream, at_once

SMALL = ModelConfig(
    image_width=64,
    image_height=32,
    steps=3,
    encoder_width=32,
    encoder_heads=2,
    encoder_hidden=32,
    scene_tokens=8,
    fusion_reach="step",
    action_decoding="parallel",
    width=32,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=16,
    dense_hidden=32,
    experts=4,
    expert_hidden=16,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "checkpoint"
    save(path, DrivingModel(SMALL, seed=3))
    return path


@pytest.fixture(scope="module")
def drive(course_dataroot):
    """The clips of a recorded scene."""
    source = NuscenesSource(str(course_dataroot), "v1.0-mini", steps=SMALL.steps, image_size=(64, 32))
    return [source.clip(source.scenes[0], frame) for frame in range(8)]


@pytest.fixture
def steps_read(monkeypatch):
    """How many steps each tick of a stream was given."""
    seen, tick = [], Stream.tick

    def counted(self, batch, *arguments, **options):
        seen.append(batch.image_mask.shape[1])
        return tick(self, batch, *arguments, **options)

    monkeypatch.setattr(Stream, "tick", counted)
    return seen


def same(plan, other):
    assert plan.tokens == other.tokens
    assert plan.logprob == pytest.approx(other.logprob, abs=1e-4)
    np.testing.assert_allclose(plan.xyyaw_in_ego, other.xyyaw_in_ego, atol=1e-4)


def test_a_streamed_plan_is_the_plan_of_the_whole(checkpoint, drive, steps_read):
    policy = VlaPolicy(checkpoint)
    plans = [policy.plan(clip, NOTHING) for clip in drive]
    assert steps_read == [3] + [1] * 7, "each clip was continued from the one before it"
    for frame in (0, 4, 7):  # all the stream has seen, at once: the steps of the first clip, and one of each other
        known = replace(SMALL, steps=SMALL.steps + frame)
        model = DrivingModel(known, seed=3).eval()
        batch = to_batch([_joined(drive[: frame + 1])], known)
        with torch.no_grad():
            x, layout = model.sequence(batch, torch.zeros(1, known.action_tokens).long()), model.layout()
            hidden = model.backbone(x, layout, horizon=Horizon(SMALL.steps), last=known.action_tokens)[0]
            logits = [model.head.weight[model.slots[k % 2]] @ h for k, h in enumerate(hidden)]
        tokens = tuple(int(row.argmax()) + model.slots[k % 2].start for k, row in enumerate(logits))
        logprob = sum(float(row.log_softmax(-1).max()) for row in logits)
        again = plan_from_tokens(np.array(tokens), drive[frame], ActionTokenizer(SMALL))
        same(plans[frame], replace(again, logprob=logprob))
    whole = at_once(DrivingModel(SMALL, seed=3).eval(), to_batch(drive[:1], SMALL)).decode
    assert plans[0].tokens == tuple(whole.tokens[0].tolist())
    assert set(plans[-1].latency_ms) == {"see", "think", "say", "tell"}
    assert all(span > 0 for span in plans[-1].latency_ms.values())
    check_policy(policy, [(clip, NOTHING) for clip in drive[:3]])


def _joined(clips):
    """One clip of all steps of consecutive clips: those of the first, and the last of each other."""
    names = ("images", "image_mask", "time_us", "T_world_from_ego")
    steps = {n: np.concatenate([getattr(clips[0], n), *(getattr(c, n)[-1:] for c in clips[1:])]) for n in names}
    return replace(clips[-1], **steps)


def test_a_gap_or_another_spacing_begins_anew(checkpoint, drive, steps_read):
    policy = VlaPolicy(checkpoint)
    for frame in (0, 1, 2, 4, 5):  # 3 was missed
        plan = policy.plan(drive[frame], NOTHING)
    assert steps_read == [3, 1, 1, 3, 1]
    policy.plan(drive[5], NOTHING)  # asked twice: its own past is no newer than itself
    assert steps_read[-1] == 3
    policy.reset(0)
    policy.plan(drive[5], NOTHING)
    assert steps_read[-1] == 3, "a drive knows nothing of the one before"
    fresh = VlaPolicy(checkpoint)
    fresh.plan(drive[4], NOTHING)
    same(plan, fresh.plan(drive[5], NOTHING))


def test_planning_more_often_than_clips_step(checkpoint, drive, steps_read):
    policy = VlaPolicy(checkpoint)
    shifted = [replace(c, time_us=c.time_us, images=np.roll(c.images, 1, axis=3)) for c in drive]  # half a step later
    for clip, between in zip(drive[:4], shifted[:4], strict=True):
        policy.plan(clip, NOTHING)
        policy.plan(between, NOTHING)
    assert steps_read == [3, 3] + [1] * 6, "two streams take turns"


def test_a_long_stream_begins_anew(checkpoint, drive, steps_read, monkeypatch):
    monkeypatch.setattr("policies.vla_policy.LONGEST_STREAM", 4)
    policy = VlaPolicy(checkpoint)
    for clip in drive[:4]:
        policy.plan(clip, NOTHING)
    assert steps_read == [3, 1, 3, 1]


def test_logits_that_are_no_numbers_give_a_labelled_stop(checkpoint, drive):
    for broken in (VlaPolicy(checkpoint), VlaPolicy(checkpoint, best_of=4)):
        with torch.no_grad():
            broken._model.backbone.norm.weight.fill_(float("nan"))
        plan = broken.plan(drive[0], NOTHING).validate()
        assert plan.fallback
        assert plan.reason.startswith(FALLBACK)
        assert not plan.tokens
        assert plan.logprob is None
        with torch.no_grad():
            broken._model.backbone.norm.weight.fill_(1.0)
        assert not broken.plan(drive[1], NOTHING).validate().fallback, "nothing of the failure is remembered"
        with pytest.raises(InputError, match="fallback"):
            replace(plan, fallback=False).validate()


def test_fallbacks_are_counted_and_stand_in_the_headline(checkpoint, course_dataroot, tmp_path):
    source = NuscenesSource(str(course_dataroot), "v1.0-mini", steps=SMALL.steps, image_size=(64, 32))
    policy, scene, run = VlaPolicy(checkpoint), source.scenes[0], Run.create("replay", tmp_path / "run", {}, [0])
    with torch.no_grad():
        policy._model.backbone.norm.weight.fill_(float("nan"))
    with run.episode("broken", "vla", 0) as episode:
        episode.log = replay_scene(policy, source, scene, surroundings_of(source, scene), False)
    frames = len(source.frame_times_us(scene))
    assert run.summary["episodes"][0]["fallbacks"] == frames
    assert f"{frames} plans were FALLBACKS" in run.headline()
    assert any(f"{frames} plans were fallbacks" in words for words in problems(run.summary))


def test_a_stop_is_comfortable_and_keeps_the_bend():
    clip = replace(noise_clip(SMALL, 0), vehicle=VehicleState(6.0, 0.3, float("nan")))
    plan = stop_plan(clip, "because").validate()
    assert plan.speed_mps[0] == 5.0
    assert plan.speed_mps[-1] == 0.0
    moved = np.linalg.norm(plan.xyyaw_in_ego[-1, :2])
    assert moved == pytest.approx(6.0**2 / (2 * 2.0), abs=0.2)
    assert plan.xyyaw_in_ego[-1, 2] == pytest.approx(0.3 / 6.0 * 9.0)
    standing = stop_plan(replace(clip, vehicle=VehicleState(0.0, 0.3, 0.0)), "because").validate()
    assert not standing.xyyaw_in_ego.any()


def test_best_of_many_is_at_least_as_likely_and_repeatable(tmp_path, drive):
    save(tmp_path / "one", DrivingModel(replace(SMALL, action_decoding="autoregressive"), seed=3))
    policy, usual = VlaPolicy(tmp_path / "one", best_of=16), VlaPolicy(tmp_path / "one", best_of=1)
    check_policy(policy, [(clip, NOTHING) for clip in drive[:3]])
    plan = policy.plan(drive[3], NOTHING)
    assert plan.logprob <= 0
    assert len(plan.tokens) == 16
    assert usual.plan(drive[3], NOTHING).tokens == usual.plan(drive[3], NOTHING).tokens
    with pytest.raises(InputError, match="best_of"):
        VlaPolicy(tmp_path / "one", best_of=0)
    with pytest.raises(InputError, match="constant-velocity draws no plans"):
        make_policy("constant-velocity", None, best_of=2)


def test_a_look_back_is_a_look_but_none_is_refused(checkpoint, drive):
    blind_now = drive[4].with_masked(np.tile(np.arange(3)[:, None] == 2, 6))
    VlaPolicy(checkpoint).plan(blind_now, NOTHING).validate()
    with pytest.raises(InputError, match="every camera masked"):
        VlaPolicy(checkpoint).plan(drive[4].with_masked(np.ones((3, 6), bool)), NOTHING)


class Waits:
    """A policy that says what it is told to say; `impatient`: whether each of its plans was drawn."""

    def __init__(self, checkpoint, clip, **given):
        self.policy, self.said, self.impatient = VlaPolicy(checkpoint, **given), "give way: vehicle ahead, 3 m", []
        self.policy._sentences = SimpleNamespace(reason_text=lambda tokens: self.said)
        self._clip, self._how = clip, self.policy._how
        self.policy._how = self._noted

    def _noted(self, blind, impatient):
        how = self._how(blind, impatient)
        self.impatient.append(how.get("temperature", 0.0) > 0)
        return how

    def plan(self, at_s, speed_mps=0.0):
        vehicle = replace(self._clip.vehicle, speed_mps=speed_mps)
        clip = replace(self._clip, now_us=self._clip.now_us + round(1e6 * at_s), vehicle=vehicle)
        return self.policy.plan(clip, NOTHING)


def test_who_has_stood_and_given_way_for_long_draws_the_plan(checkpoint, drive):
    waits = Waits(checkpoint, drive[0])
    likeliest = waits.plan(0.0)
    for at_s in (0.5, PATIENCE_S - 0.1, PATIENCE_S + 0.1, PATIENCE_S + 0.6):
        drawn = waits.plan(at_s)
    assert waits.impatient == [False, False, False, True, True]
    assert not np.array_equal(drawn.tokens, likeliest.tokens)
    again = Waits(checkpoint, drive[0])
    for at_s in (0.0, PATIENCE_S + 0.1):
        first_drawn = again.plan(at_s)
    waits.policy.reset(0)
    waits.plan(0.0)
    assert np.array_equal(waits.plan(PATIENCE_S + 0.1).tokens, first_drawn.tokens)  # by the seed of the drive


@pytest.mark.parametrize(
    ("said", "speed_mps", "over"),
    [("stop: red light, 1 m", 0.0, False), ("stop: pedestrian, 4 m", 0.0, True), (None, STANDS_MPS + 0.1, False)],
)
def test_patience_is_longer_for_people_and_has_no_end_before_a_light_nor_while_one_moves(
    checkpoint, drive, said, speed_mps, over
):
    waits = Waits(checkpoint, drive[0])
    waits.said = said or waits.said
    for at_s in np.arange(0.0, MORE_PATIENCE_S + 0.4, 0.5):
        waits.plan(at_s, speed_mps)
    assert not any(waits.impatient)
    waits.plan(MORE_PATIENCE_S + 0.6, speed_mps)
    assert waits.impatient[-1] == over


def test_another_reason_counts_when_said_twice_running(checkpoint, drive):
    give_way, walks = "give way: vehicle ahead, 3 m", "stop: pedestrian, 0 m"
    for sentences, over in (([give_way, walks] * 3, True), ([give_way, walks, walks] * 2, False)):
        waits = Waits(checkpoint, drive[0])
        for k, waits.said in enumerate(sentences):
            waits.plan(0.5 * k)
        assert waits.impatient[-1] == over


def test_who_must_not_draw_has_patience_for_ever(checkpoint, drive):
    waits = Waits(checkpoint, drive[0], patience_s=math.inf)
    for at_s in np.arange(0.0, 5 * PATIENCE_S, 0.5):
        waits.plan(at_s)
    assert not any(waits.impatient)


def test_another_wait_begins_anew(checkpoint, drive):
    waits = Waits(checkpoint, drive[0])
    waits.plan(0.0)
    waits.plan(1.0, speed_mps=2.0)
    waits.plan(PATIENCE_S, speed_mps=0.0)
    waits.plan(PATIENCE_S + 1.0)
    assert not any(waits.impatient)


def test_impatience_lasts_until_one_goes(checkpoint, drive):
    waits = Waits(checkpoint, drive[0])
    waits.plan(0.0)
    waits.plan(PATIENCE_S + 0.5)
    waits.said = "drive: curve"
    waits.plan(PATIENCE_S + 1.0, GOES_MPS - 0.1)  # what was drawn begins: the likeliest plan would take it back
    waits.plan(PATIENCE_S + 1.5, GOES_MPS + 0.1)
    waits.said = "give way: vehicle ahead, 3 m"
    waits.plan(PATIENCE_S + 2.0)
    assert waits.impatient == [False, True, True, True, False]
