"""What more than one process changes: `vla bench scale`. Losses must not change, time should.

    rel_loss_diff.NAME           largest difference of the losses of 20 steps to those of one process, over the loss
                                 dp2: two replicas; fsdp2: every weight in two shards; ep2: experts on two workers;
                                 not quick, of four workers: fsdp4_ep2, in shards and experts over two
    speedup.rollout_2_workers    episodes a second of two processes over those of one
    overhead.ray                 time of two workers of a Ray cluster of this machine over that of two processes, - 1

Episodes are of the town's expert without cameras. Starting of processes is left out: each has driven before.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from policies.distributed import LOCAL, sharing
from policies.recipes import Recipe, load_recipe
from policies.record import record
from policies.rollout import drive_one
from policies.runs import Run
from policies.shoot import Recording
from policies.town_expert import TownExpert
from policies.train import Workers, train
from sensors.errors import InputError
from sim.scenarios import get_scenario
from vla.sharding import Division

ARRANGEMENTS = {
    "dp2": Workers(2),
    "fsdp2": Workers(2, Division(shard=True)),
    "ep2": Workers(2, Division(experts=2)),
    "fsdp4_ep2": Workers(4, Division(shard=True, experts=2)),
}
MODEL = {"image_width": 64, "image_height": 32, "encoder_width": 32, "encoder_heads": 2, "encoder_hidden": 32} | {
    "encoder_layers": 1, "fusion_layers": 1, "scene_tokens": 4, "width": 32, "layers": 3, "heads": 2, "kv_heads": 1
} | {"head_dim": 16, "dense_hidden": 32, "experts": 4, "expert_hidden": 16}  # fmt: skip
STEPS, BATCH = 20, 4
SCENES, KEYFRAMES, SIZE = 3, 12, (64, 32)
WARM, WARM_S, LONGEST_S = 4, 2.0, 30.0
Say = Callable[[str], None]


def scale_figures(quick: bool, say: Say) -> dict[str, float]:
    """All figures, or with `quick` those of two workers; `say` is told what is done and left out."""
    with tempfile.TemporaryDirectory() as folder:
        return _losses(Path(folder), quick, say) | _rollouts(Path(folder), quick, say)


def _losses(folder: Path, quick: bool, say: Say) -> dict[str, float]:
    run = Run.create("record", folder / "course", {}, [1000])
    recording = Recording(folder / "course", "v1.0-mini", image_size=SIZE, keyframes=KEYFRAMES)
    record(run, recording, SCENES * KEYFRAMES, 1000, progress=False)
    overrides = [f"model.{name}={value}" for name, value in MODEL.items()]
    overrides += [f"train.steps={STEPS}", f"train.batch_size={BATCH}", "train.warmup_steps=2", "data.val_scenes=1"]
    recipe = load_recipe("tiny", [*overrides, f"data.dataroot={folder / 'course'}"])
    alone, figures = _curve(recipe, folder / "one", Workers()), {}
    for name, workers in ARRANGEMENTS.items():
        if quick and workers.count > 2:
            continue
        shared = _curve(recipe, folder / name, workers)
        figures[f"rel_loss_diff.{name}"] = max(abs(a - b) / abs(b) for a, b in zip(shared, alone, strict=True))
        say(f"{name}: loss {alone[0]:.4f} to {alone[-1]:.4f}, at most {figures[f'rel_loss_diff.{name}']:.1e} apart")
    return figures


def _curve(recipe: Recipe, path: Path, workers: Workers) -> list[float]:
    train(recipe, path, progress=False, workers=workers)
    return [json.loads(line)["loss"] for line in (path / "train.jsonl").read_text().splitlines()]


def _rollouts(folder: Path, quick: bool, say: Say) -> dict[str, float]:
    if len(os.sched_getaffinity(0)) < 2:
        say("left out, rollouts: this process may use one core only")
        return {}
    episodes = 24 if quick else 40  # of fewer, one worker is often left with the longest
    took = {}
    for name, workers, address in (("one", 1, None), ("processes", 2, None), ("ray", 2, LOCAL)):
        try:
            with sharing(workers, address) as executor:
                _drive(folder / name / "warm", executor, WARM, WARM_S)
                took[name] = _drive(folder / name, executor, episodes, LONGEST_S)
        except InputError as error:
            say(f"left out, {name}: {error}")
    say(", ".join(f"{name} {seconds:.1f} s" for name, seconds in took.items()) + f" for {episodes} episodes")
    figures = {"speedup.rollout_2_workers": took["one"] / took["processes"]}
    return figures | ({"overhead.ray": took["ray"] / took["processes"] - 1} if "ray" in took else {})


def _drive(path: Path, executor: Executor | None, episodes: int, seconds: float) -> float:
    """Seconds that the episodes take together; one that fails is a RuntimeError."""
    (path / "episodes").mkdir(parents=True, exist_ok=True)
    jobs = [(TownExpert(), get_scenario(f"town-train/{k}"), seconds, SIZE, "cv", path, 0) for k in range(episodes)]
    begun = time.perf_counter()
    if executor is None:
        rows = [drive_one(*job) for job in jobs]
    else:
        rows = [call.result() for call in [executor.submit(drive_one, *job) for job in jobs]]
    took = time.perf_counter() - begun
    failed = [row["error"] for row in rows if row["error"]]
    if failed:
        raise RuntimeError(f"an episode failed: {failed[0]}")
    return took
