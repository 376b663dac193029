"""A model that reads codes: trained from a recipe with its tokenizer, and driven with the one beside its checkpoint."""

import json

import pytest
import torch

import vla.image_tokens
from policies.protocol import Privileged
from policies.recipes import load_recipe
from policies.train import Trainer, train
from policies.vla_policy import VlaPolicy, tokenizer_beside
from sensors.errors import InputError
from sensors.nuscenes_source import NuscenesSource
from vla.checkpoint import load, load_image_tokenizer, save
from vla.image_tokens import ImageTokenizer, ImageTokenizerConfig

TOKENIZER = ImageTokenizerConfig(image_width=64, image_height=32, codes=32, channels=8)
READER = [
    "model.image_width=64",
    "model.image_height=32",
    "model.encoder_width=32",
    "model.encoder_heads=2",
    "model.encoder_hidden=32",
    "model.scene_tokens=4",
    "model.width=32",
    "model.layers=2",
    "model.heads=2",
    "model.kv_heads=1",
    "model.head_dim=16",
    "model.dense_hidden=32",
    "model.experts=4",
    "model.expert_hidden=16",
    "model.expert_dropout=0.2",
    "model.camera_identity_dropout=0.5",
    "model.image_codes=32",
    "data.val_scenes=1",
    "train.steps=2",
    "train.batch_size=4",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("codes") / "tokenizer"
    save(path, ImageTokenizer(TOKENIZER, 1))
    return path


def recipe_of(dataroot, tokenizer, image_input="codes"):
    changes = [f"model.image_input={image_input}", f"data.dataroot={dataroot}", f"data.image_tokenizer='{tokenizer}'"]
    return load_recipe("tiny", [*READER, *changes])


def test_training_refuses_a_codebook_that_is_worth_nothing(course_dataroot, tokenizer, tmp_path):
    with pytest.raises(InputError, match="codebook: came"):
        train(recipe_of(course_dataroot, tokenizer), tmp_path / "run", progress=False)


def test_a_model_that_reads_codes_is_trained_and_plans(course_dataroot, tokenizer, tmp_path, monkeypatch):
    for name in ("LEAST_USED", "LEAST_PERPLEXITY", "LEAST_PSNR_DB"):  # a real tokenizer takes minutes
        monkeypatch.setattr(vla.image_tokens, name, 0.0)
    train(recipe_of(course_dataroot, tokenizer), tmp_path / "run", progress=False)
    assert len((tmp_path / "run" / "train.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]["val.keyframes"] > 0
    checkpoint = tmp_path / "run" / "checkpoint"
    kept = load_image_tokenizer(tokenizer_beside(checkpoint)).model.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in ImageTokenizer(TOKENIZER, 1).state_dict().items())
    policy = VlaPolicy(checkpoint)
    source = NuscenesSource(str(course_dataroot), "v1.0-mini", steps=policy.clip_steps, image_size=policy.image_size)
    clip = source.clip(source.scenes[0], 0)
    assert policy.plan(clip, Privileged()).xyyaw_in_ego.shape == (8, 3)
    with pytest.raises(InputError, match="image_tokenizer"):
        VlaPolicy(checkpoint.rename(tmp_path / "alone"))


def test_scenes_that_the_codes_were_learned_from_cannot_be_held_out(course_dataroot, tmp_path, monkeypatch):
    for name in ("LEAST_USED", "LEAST_PERPLEXITY", "LEAST_PSNR_DB"):
        monkeypatch.setattr(vla.image_tokens, name, 0.0)
    learned = {"learned": [["scene-1002", "scene-1002", "course", -1]]}
    save(tmp_path / "tokenizer", ImageTokenizer(TOKENIZER, 1), extra=learned)
    with pytest.raises(InputError, match="held-out scenes: came scene-1002, learned from too"):
        train(recipe_of(course_dataroot, tmp_path / "tokenizer"), tmp_path / "run", progress=False)


def test_a_model_that_reads_pixels_may_be_asked_for_codes(course_dataroot, tokenizer, tmp_path, monkeypatch):
    for name in ("LEAST_USED", "LEAST_PERPLEXITY", "LEAST_PSNR_DB"):
        monkeypatch.setattr(vla.image_tokens, name, 0.0)
    changes = [f"data.dataroot={course_dataroot}", f"data.image_tokenizer='{tokenizer}'", "model.image_codes=0"]
    changes += ["model.steps=2", "train.motion_dropout=0", "losses.world=0.5", "losses.masked=0.5"]
    trainer = Trainer(load_recipe("tiny", [*READER, *changes]), tmp_path)
    record = trainer._one_step()
    assert record["loss_world"] > 0 < record["loss_masked"]
    assert 0 <= record["copied_world"] <= 1
    trainer.save()
    names = load(trainer.checkpoint_path).model.state_dict()
    assert not any("world" in name or "masked" in name for name in names)  # the policy carries no heads of training


@pytest.mark.parametrize(("image_input", "given"), [("codes", ""), ("patches", "runs/codes/checkpoint")])
def test_recipe_rejects_codes_without_a_tokenizer_and_the_reverse(image_input, given):
    with pytest.raises(InputError, match=r"data\.image_tokenizer"):
        recipe_of("data", given, image_input)
