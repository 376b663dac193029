"""What more than one process changes: `vla bench scale`. Losses must not change, time should.

    rel_loss_diff.NAME           largest difference of the losses of 20 steps to those of one process, over the loss
                                 dp2: two replicas; fsdp2: every weight in two shards; ep2: experts on two workers;
                                 not quick, of four workers: fsdp4_ep2, in shards and experts over two
    speedup.rollout_2_workers    episodes a second of two processes over those of one
    overhead.ray                 time of two workers of a Ray cluster of this machine over that of two processes, - 1
                                 not quick, over many runs of three seconds, on two processes and on Ray:
    scores_differ.NAME           of 200 episodes, how many have another log or another score than on one process
    memory_growth_mb.driver.NAME what the process that hands out 1,000 episodes grows by after the first 100

Episodes are of the town's expert without cameras. Starting of processes is left out: each has driven before.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from policies.distributed import LOCAL, sharing
from policies.recipes import Recipe, load_recipe
from policies.record import record
from policies.rollout import drive, drive_one
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
MANY, SCORED, SHORT_S = 1000, 200, 3.0
Say = Callable[[str], None]


def scale_figures(quick: bool, say: Say) -> dict[str, float]:
    """All figures, or with `quick` those of two workers; `say` is told what is done and left out."""
    with tempfile.TemporaryDirectory() as folder:
        figures = _losses(Path(folder), quick, say) | _rollouts(Path(folder), quick, say)
        return figures if quick else figures | many_episodes(Path(folder), MANY, SCORED, say)


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


# Many episodes -------------------------------------------------------------------------------------


@dataclass
class _Weighed(Run):
    """A run that notes how large this process is after each episode, in megabytes."""

    megabytes: list[float] = field(default_factory=list)

    def add(self, row: dict) -> None:
        super().add(row)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.megabytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)


def many_episodes(folder: Path, many: int, scored: int, say: Say) -> dict[str, float]:
    """scores_differ and memory_growth_mb.driver of `many` episodes; the first `scored` of them are compared."""
    alone, _ = _drive_many(folder / "alone", scored, scored, 1, None)
    figures = {}
    for name, address in (("2_workers", None), ("ray", LOCAL)):
        try:
            shared, megabytes = _drive_many(folder / f"many-{name}", many, scored, 2, address)
        except InputError as error:
            say(f"left out, {name}: {error}")
            continue
        figures[f"scores_differ.{name}"] = float(sum(a != b for a, b in zip(shared, alone, strict=True)))
        first = megabytes[many // 10]
        figures[f"memory_growth_mb.driver.{name}"] = megabytes[-1] - first
        say(f"{name}: {many} episodes, this process from {first:.0f} to {megabytes[-1]:.0f} MB")
    return figures


def _drive_many(
    path: Path, episodes: int, scored: int, workers: int, address: str | None
) -> tuple[list[tuple], list[float]]:
    """What came of the first `scored` episodes, logs as their digests; megabytes of this process after each of all."""
    starts = [get_scenario(f"town-train/{k}") for k in range(episodes)]
    run = _Weighed.create("drive", path, {}, [])
    drive(run, [TownExpert()], starts, SHORT_S, SIZE, 0, progress=False, workers=workers, address=address)
    if not run.whole:
        raise RuntimeError(f"{path.name}: {run.headline()}")
    run.summary["episodes"] = rows = run.summary["episodes"][:scored]
    run.score([TownExpert.name])
    logs = [hashlib.sha256((path / row["log"]).read_bytes()).hexdigest() for row in rows]
    return [(row["name"], row["scores"], log) for row, log in zip(rows, logs, strict=True)], run.megabytes
