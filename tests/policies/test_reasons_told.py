"""Reasons from a recording to the training and from a policy to its plan."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from policies.data import TrainingSet
from policies.protocol import NOTHING
from policies.recipes import load_recipe
from policies.train import Trainer
from policies.vla_policy import VlaPolicy
from sensors.nuscenes_extension import FOLDER, SceneExtension
from sensors.nuscenes_source import NuscenesSource
from sensors.reasons import parse_reason
from vla.action_tokens import ActionTokenizer
from vla.checkpoint import save
from vla.sentences import sentences_of

SMALL = {
    "image_width": 64,
    "image_height": 32,
    "encoder_width": 32,
    "encoder_heads": 2,
    "encoder_hidden": 32,
    "scene_tokens": 4,
    "width": 32,
    "layers": 2,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 16,
    "dense_hidden": 32,
    "experts": 4,
    "expert_hidden": 16,
    "instruction_tokens": 8,
}
SAID = ("give way: vehicle from the left, 9 m", "drive: curve")
INSTRUCTION = "Change to the lane on your left."


def told(source: NuscenesSource, scene: str) -> SceneExtension:
    """What a town would know of a scene: an instruction, and a reason that changes half-way."""
    times_us, none = source.frame_times_us(scene), np.zeros(0, np.int64)
    from_us = times_us[[0, len(times_us) // 2]]
    future_s = 0.5 * np.arange(1, 9)
    plans = np.stack([np.stack([4.0 * future_s, 0.1 * future_s, 0.02 * future_s], axis=1)] * 2)
    places = np.zeros((2, 2)), (), (), np.zeros((0, 3)), none, ()
    cues = times_us[:1], ("lane_left",), (INSTRUCTION,)
    return SceneExtension(
        "course",
        "course",
        "clear",
        int(scene.removeprefix("scene-")),
        1.0,
        *places,
        *cues,
        from_us,
        SAID,
        future_s,
        plans,
        none,
        (),
    ).validate()


@pytest.fixture(scope="module")
def recipe(course_dataroot, tmp_path_factory):
    dataroot = shutil.copytree(course_dataroot, tmp_path_factory.mktemp("told") / "course")
    source = NuscenesSource(dataroot, "v1.0-mini")
    for scene in source.scenes:
        (dataroot / FOLDER).mkdir(exist_ok=True)
        (dataroot / FOLDER / f"{scene}.json").write_bytes(told(source, scene).to_json())
    changes = [f"model.{name}={value}" for name, value in SMALL.items()]
    changes += ["train.steps=2", "train.batch_size=4", "data.val_scenes=1", f"data.dataroot={dataroot}"]
    return load_recipe("tiny", changes)


@pytest.fixture(scope="module")
def trainer(recipe, tmp_path_factory):
    trainer = Trainer(recipe, tmp_path_factory.mktemp("run"))
    trainer.records = [trainer._one_step() for _ in range(2)]
    return trainer


def test_examples_have_the_reason_of_their_instant_mirrored_with_them(recipe):
    source = NuscenesSource(recipe.data.dataroot, "v1.0-mini", steps=1)
    known = TrainingSet([(source, source.scenes[:1])], ActionTokenizer(recipe.model), recipe.model)
    assert known.has_reasons
    assert (known[0].clip.instruction, known[0].reason) == (INSTRUCTION, SAID[0])
    assert {known[k].reason for k in range(len(known))} == set(SAID)
    always = replace(recipe, train=replace(recipe.train, mirror=1.0))
    mirrored = known.varied(0, np.random.default_rng(0), always)
    assert mirrored.reason == "give way: vehicle from the right, 9 m"
    assert mirrored.clip.instruction == "Change to the lane on your right."
    assert mirrored.clip.command == "lane_right"


def test_training_scores_reasons_and_validation_asks_for_them(trainer):
    for record in trainer.records:
        assert record["loss_reason"] > 0
        assert 0 <= record["accuracy_reason"] <= 1
    figures = trainer.validate(trainer.result)
    assert 0 <= figures["val.reason_cause"] <= figures["val.reason_action"] <= 1
    assert figures["val.reasons"] == figures["val.keyframes"]


def test_recordings_that_know_no_reasons_are_trained_on_without(recipe, course_dataroot, tmp_path):
    plain = replace(recipe, data=replace(recipe.data, dataroot=str(course_dataroot)))
    trainer = Trainer(plain, tmp_path)
    assert "loss_reason" not in trainer._one_step()
    assert "val.reasons" not in trainer.validate(trainer.result)


def test_a_policy_says_why_and_drives_the_same_if_it_does_not(trainer, recipe, tmp_path):
    save(tmp_path / "checkpoint", trainer.model)
    source = NuscenesSource(recipe.data.dataroot, "v1.0-mini", steps=recipe.model.steps, image_size=(64, 32))
    clip = source.clip(source.scenes[0], 3)
    plans = [VlaPolicy(tmp_path / "checkpoint", reason=asked).plan(clip, NOTHING) for asked in (True, False)]
    parse_reason(plans[0].reason)
    assert plans[1].reason == ""
    assert np.array_equal(plans[0].xyyaw_in_ego, plans[1].xyyaw_in_ego)
    assert "tell" in plans[0].latency_ms
    assert "tell" not in plans[1].latency_ms
    text = sentences_of(recipe.model).reason_graph.words[: sentences_of(recipe.model).text.size]
    with torch.no_grad():
        trainer.model.head.weight[text] = float("nan")
    save(tmp_path / "damaged", trainer.model)
    plan = VlaPolicy(tmp_path / "damaged").plan(clip, NOTHING)
    assert (plan.reason, plan.fallback) == ("", False)
    assert np.array_equal(plan.xyyaw_in_ego, plans[1].xyyaw_in_ego)
