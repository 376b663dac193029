import json

import pytest
import torch

from policies.cli import main
from policies.recipes import TokenizerRecipe, load_recipe
from policies.train_images import ImageTrainer, check_tokenizer, train_images
from sensors.errors import InputError
from vla.checkpoint import load, load_image_tokenizer

SMALL = [
    "image_tokenizer.image_width=32",
    "image_tokenizer.image_height=16",
    "image_tokenizer.codes=16",
    "image_tokenizer.code_width=4",
    "image_tokenizer.channels=8",
    "train.batch_size=4",
    "train.resample_every=3",
    "data.val_scenes=1",
]


def small_recipe(dataroot, *more: str) -> TokenizerRecipe:
    return load_recipe("image-tokens", [*SMALL, f"data.dataroot={dataroot}", *more])


def test_an_interrupted_training_ends_with_the_same_weights(course_dataroot, tmp_path, monkeypatch):
    recipe = small_recipe(course_dataroot, "train.steps=8", "train.checkpoint_every=4")
    train_images(recipe, tmp_path / "whole", progress=False)
    one_step = ImageTrainer._one_step

    def dies(self):
        if self.step == 6:
            raise KeyboardInterrupt
        return one_step(self)

    monkeypatch.setattr(ImageTrainer, "_one_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train_images(recipe, tmp_path / "cut", progress=False)
    monkeypatch.setattr(ImageTrainer, "_one_step", one_step)
    train_images(recipe, tmp_path / "cut", progress=False)
    whole, cut = (load_image_tokenizer(tmp_path / name / "checkpoint").model.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    lines = (tmp_path / "cut" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))


def test_check_tokenizer_says_what_the_codebook_is_worth(course_dataroot, tmp_path, capsys):
    train_images(small_recipe(course_dataroot, "train.steps=2"), tmp_path / "run", progress=False)
    report = check_tokenizer(tmp_path / "run" / "checkpoint", course_dataroot, "v1.0-mini")
    assert report.codes == 16
    assert report.images > 6
    status = main(["check-tokenizer", str(tmp_path / "run" / "checkpoint"), "--dataroot", str(course_dataroot)])
    out = capsys.readouterr().out
    assert status == (0 if report.usable else 1)
    assert ("usable" in out) == report.usable
    assert f"{report.psnr_db:10.4g}" in out


def test_a_tokenizer_is_no_policy_and_a_policy_no_tokenizer(course_dataroot, tmp_path):
    train_images(small_recipe(course_dataroot, "train.steps=1"), tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="unknown key"):
        load(tmp_path / "run" / "checkpoint")


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("train.resample_every=0", "train.resample_every"),
        ("train.mirror=0.5", "train.mirror"),
        ("image_tokenizer.codes=1", "codes"),
        ("image_tokenizer.temporal_layers=1", "temporal_layers"),
        ("data.val_scenes=0", "val_scenes"),
    ],
)
def test_tokenizer_recipe_rejects(tmp_path, override, field):
    with pytest.raises(InputError, match=field):
        small_recipe(tmp_path, override)
