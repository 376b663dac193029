import json
import shutil

import pytest
import torch

from policies import loader
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
    report = check_tokenizer(tmp_path / "run" / "checkpoint", course_dataroot, "v1.0-mini", allow_seen=True)
    assert report.codes == 16
    assert report.images > 6
    asked = ["check-tokenizer", str(tmp_path / "run" / "checkpoint"), "--dataroot", str(course_dataroot)]
    assert main(asked) == 2
    assert "scenes: came scene-1000, scene-1001, which it learned from" in capsys.readouterr().err
    status = main([*asked, "--allow-seen"])
    out = capsys.readouterr().out
    assert "SEEN IN TRAINING" in out
    assert report.wrong, "after two steps"
    assert status == 1
    assert "NOT USABLE:\n  " + report.wrong[0] in out
    assert f"{report.psnr_db:10.4g}" in out


def test_a_tokenizer_is_no_policy_and_a_policy_no_tokenizer(course_dataroot, tmp_path):
    train_images(small_recipe(course_dataroot, "train.steps=1"), tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="unknown key"):
        load(tmp_path / "run" / "checkpoint")


def test_broken_images_are_passed_over_and_counted_until_too_many_are(course_dataroot, tmp_path, monkeypatch):
    dataroot = shutil.copytree(course_dataroot, tmp_path / "course")
    path = sorted((dataroot / "samples" / "CAM_BACK").glob("*.jpg"))[2]
    path.write_bytes(path.read_bytes()[:200])
    recipe = small_recipe(dataroot, "train.steps=1")
    with pytest.raises(InputError, match=rf"files: came 1 of 24 examples .*{path.name}, expected at most 1%"):
        train_images(recipe, tmp_path / "stops", progress=False)
    monkeypatch.setattr(loader, "MOST_BROKEN", 0.1)
    train_images(recipe, tmp_path / "goes-on", progress=False)
    metrics = json.loads((tmp_path / "goes-on" / "summary.json").read_text())["metrics"]
    assert (metrics["train.broken"], metrics["train.images"]) == (1, 23 * 6)


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
