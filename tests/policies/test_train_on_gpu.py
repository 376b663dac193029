"""What a CPU trains a GPU trains too: `-m gpu`, where there is one."""

import json

import pytest
import torch
from test_train import small_recipe

from policies.cli import main
from policies.train import Trainer, train
from vla.checkpoint import load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NEAR = 2e-4  # relative, of a loss in float32 whose sums are taken in another order


def losses(recipe, path, steps=5):
    trainer = Trainer(recipe, path)
    trainer.model.train()
    return [trainer._one_step()["loss"] for _ in range(steps)]


def test_the_first_losses_are_those_of_a_cpu(course_dataroot, tmp_path):
    torch.backends.cuda.matmul.allow_tf32 = False
    on_cpu, on_gpu = (
        losses(small_recipe(course_dataroot, "train.dtype=fp32", f"train.device={device}"), tmp_path / device)
        for device in ("cpu", "cuda")
    )
    assert on_gpu == pytest.approx(on_cpu, rel=NEAR)


def test_bf16_learns_and_its_checkpoint_drives_on_a_cpu(course_dataroot, tmp_path):
    more = "train.steps=40", "train.learning_rate=3e-3", "train.device=cuda", "train.dtype=auto", "train.ema=0.9"
    train(small_recipe(course_dataroot, *more), tmp_path / "run", progress=False)
    records = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert sum(r["loss"] for r in records[-5:]) < 0.8 * sum(r["loss"] for r in records[:5])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["numbers"]["dtype"]["name"] == "bf16"
    model = load(tmp_path / "run" / "checkpoint").model
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
    drive = ["drive", "--policy", "vla", "--checkpoint", str(tmp_path / "run" / "checkpoint"), "--episodes", "1"]
    assert main([*drive, "--clips", "0", "--quiet", "--out", str(tmp_path / "drive")]) == 0


def test_it_goes_on_from_a_checkpoint(course_dataroot, tmp_path):
    recipe = small_recipe(course_dataroot, "train.device=cuda", "train.steps=6", "train.checkpoint_every=3")
    trainer = Trainer(recipe, tmp_path)
    trainer.resume()
    trainer.model.train()
    for _ in range(3):
        trainer._one_step()
    trainer.save()
    expected = [trainer._one_step()["loss"] for _ in range(3)]
    resumed = Trainer(recipe, tmp_path)
    assert resumed.resume()
    resumed.model.train()
    assert [resumed._one_step()["loss"] for _ in range(3)] == pytest.approx(expected, rel=NEAR)
