"""What a training would cost, said before it begins."""

from test_train import SMALL, small_recipe

from policies.cli import main
from policies.dry_run import dry_run
from policies.recipes import load_recipe
from vla.model import DrivingModel


def test_what_is_frozen_needs_no_moments():
    cost = dry_run(load_recipe("moe-10b", ["train.freeze=[backbone.,head.]"]))
    assert 0 < cost.learn < 0.2 * sum(cost.parts.values())
    assert cost.memory["optimizer"] == 2 * cost.memory["gradients"] == 8 * cost.learn
    assert cost.step_s is None


def test_the_cost_of_a_training_with_its_data(course_dataroot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = small_recipe(course_dataroot, "train.steps=500", "train.ema=0.9", "losses.surroundings=0.5")
    cost = dry_run(recipe)
    model = DrivingModel(recipe.model)
    assert sum(cost.parts.values()) - cost.parts["heads"] == sum(p.numel() for p in model.parameters())
    assert cost.memory["optimizer"] == 2 * cost.memory["average"] == 8 * sum(cost.parts.values())
    assert sum(cost.dataset.values()) > 0
    assert not cost.on_noise
    assert cost.step_s > 0
    assert not list(tmp_path.iterdir())


def test_the_cost_of_a_training_without_its_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "tiny", *SMALL, "data.dataroot=none", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "dataset     not here" in told
    assert "on noise" in told
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_not_measured():
    more = [f"model.{key}" for key in ("width=4096", "layers=32", "heads=32", "head_dim=128", "experts=64")]
    cost = dry_run(load_recipe("tiny", ["data.dataroot=none", *more, "model.expert_hidden=4096"]))
    assert sum(cost.parts.values()) > 50e9
    assert cost.active < 0.1 * sum(cost.parts.values())
    assert cost.step_s is None
    assert "not measured" in cost.lines()[-1]
