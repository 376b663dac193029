"""Draws made here and ahead by another process; broken files."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from test_train import SMALL, assert_equal, small_recipe, weights

from policies import loader
from policies.data import TrainingSet
from policies.loader import Draws, Feed, Made, readable
from policies.train import train
from sensors.errors import InputError
from sensors.nuscenes_source import NuscenesSource
from vla.action_tokens import ActionTokenizer
from vla.parallel import Replicas

VARIED = ["data.balance=0.5", "data.crop=0.3", "data.time_jitter_ms=20", "train.mirror=0.5", "train.camera_dropout=0.2"]


def examples_of(dataroot: Path, recipe) -> TrainingSet:
    source = NuscenesSource(dataroot, "v1.0-mini", None, recipe.model.steps, (64, 32))
    return TrainingSet([(source, source.scenes)], ActionTokenizer(recipe.model), recipe.model)


def assert_same(some: list[Made], others: list[Made]) -> None:
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        for field in fields(a.batch):
            assert torch.equal(getattr(a.batch, field.name), getattr(b.batch, field.name)), field.name
        assert torch.equal(a.tokens, b.tokens)
        assert a.broken == b.broken


class FailsAtSix(Draws):
    """As it is found in another process, which imports this file."""

    def __getitem__(self, draw: int):
        return InputError("draw", "number", 6, "any other") if draw == 6 else super().__getitem__(draw)


@pytest.mark.timeout(120)
def test_draws_made_ahead_are_those_made_here_bit_for_bit(course_dataroot):
    here = small_recipe(course_dataroot, *VARIED, "train.accumulate=2")
    ahead = small_recipe(course_dataroot, *VARIED, "train.accumulate=2", "train.loader_workers=1")
    examples, before = examples_of(course_dataroot, here), torch.random.get_rng_state()
    made, feed = Draws(examples, here, Replicas()), Feed(Draws(examples, ahead, Replicas()))
    feed._draws = FailsAtSix(examples, ahead, Replicas())
    for draw in (3, 4, 5):
        assert_same(feed.parts(draw), made[draw])
    assert len(made[3]) == 2
    with pytest.raises(InputError, match="draw: number: came 6, expected any other"):
        feed.parts(6)
    assert_same(feed.parts(7), made[7])
    assert torch.equal(torch.random.get_rng_state(), before)
    whole = small_recipe(course_dataroot, *VARIED)
    halves = [Draws(examples, whole, Replicas(rank, 2))[3][0] for rank in range(2)]
    assert_same(made[3], halves)  # of two replicas, each makes what one alone makes in that place


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_is_the_same_whoever_loads_and_begins_anew_at_another_draw(course_dataroot, tmp_path):
    for more, workers in ((0, 1), (2, 1), (1, 2)):
        recipe = small_recipe(course_dataroot, *VARIED, "train.steps=4", f"train.loader_workers={more}")
        train(recipe, tmp_path / f"{more}-{workers}", progress=False, workers=workers)
    assert_equal(weights(tmp_path / "0-1"), weights(tmp_path / "2-1"))
    shared = weights(tmp_path / "1-2")
    for name, value in weights(tmp_path / "0-1").items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-4)
    recipe = small_recipe(course_dataroot, *VARIED, "train.loader_workers=2")
    examples = examples_of(course_dataroot, recipe)
    feed, made = Feed(Draws(examples, recipe, Replicas())), Draws(examples, recipe, Replicas())
    for draw in (5, 6, 2, 3, 9):
        assert_same(feed.parts(draw), made[draw])


def children_of(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_that_load_end_with_a_training_that_is_killed(course_dataroot, tmp_path):
    command = [sys.executable, "-m", "policies.cli", "train", "tiny", *SMALL, f"data.dataroot={course_dataroot}"]
    command += ["train.steps=100000", "train.loader_workers=2", "--out", str(tmp_path / "run"), "--quiet"]
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    log = tmp_path / "run" / "train.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    loaders = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(loaders) >= 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in loaders):
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.05)


def test_another_example_takes_the_place_of_a_broken_one_until_too_many_are(course_dataroot, tmp_path, monkeypatch):
    dataroot = shutil.copytree(course_dataroot, tmp_path / "course")
    path = sorted((dataroot / "samples" / "CAM_BACK").glob("*.jpg"))[2]
    path.write_bytes(path.read_bytes()[:200])
    recipe = small_recipe(dataroot, "train.batch_size=16")
    examples = examples_of(dataroot, recipe)
    whole = readable(examples, range(len(examples)))
    assert len(whole) == len(examples) - 1
    monkeypatch.setattr(loader, "MOST_BROKEN", 1.5 / len(examples))
    feed, again = Feed(Draws(examples, recipe, Replicas())), Draws(examples, recipe, Replicas())
    skipped = 0
    for draw in range(4):
        [made] = feed.parts(draw)
        assert_same([made], again[draw])
        assert made.tokens.shape[0] == 16
        assert all(file == str(path) for _, file in made.broken)
        assert feed.skipped == len(made.broken)
        skipped += feed.skipped
    assert skipped > 0
    monkeypatch.undo()
    feed, share = Feed(Draws(examples, recipe, Replicas())), f"came 1 of {len(examples)} examples"
    broken = next(draw for draw in range(4) if again[draw][0].broken)
    with pytest.raises(InputError, match=rf"files: {share} .*{path.name}, expected at most 1%"):
        feed.parts(broken)


def test_a_spawned_loader_is_told_little(course_dataroot):
    """A pipe holds 64 KiB; who spawns waits until what is more than that has been read."""
    recipe = small_recipe(course_dataroot, *VARIED)
    draws = Draws(examples_of(course_dataroot, recipe), recipe, Replicas())
    told = loader._Told(draws)
    words = pickle.dumps(told)
    assert len(words) < 1_000
    assert_same(pickle.loads(words)[3], draws[3])
