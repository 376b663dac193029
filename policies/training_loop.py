"""What every training shares: one process or several replicas, a log of steps, checkpoints, resumed to the bit.

A run directory holds `recipe.json`, `train.jsonl` (one line a step), and `checkpoint/`, replaced atomically every
`train.checkpoint_every` steps. Started again in the same directory with the same recipe, training goes on from there
and ends with the same weights as an uninterrupted run: the order of the data depends only on (seed, epoch), the weights
and the optimizer's moments are stored exactly.
"""

import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from policies.recipes import DataConfig, Recipe, TokenizerRecipe
from policies.runs import git_commit, package_version, write_json
from sensors.errors import InputError
from vla.checkpoint import Loaded, exists, save
from vla.config import build
from vla.parallel import Replicas

OPTIMIZER_BETAS = (0.9, 0.95)


def split_scenes(scenes: tuple[str, ...], data: DataConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(scenes to learn from, the last `val_scenes`, which are held out); too few scenes are an InputError."""
    count = len(scenes) - data.val_scenes
    if count < 1:
        least = data.val_scenes + 1
        expected = f"at least {least}, {least - 1} of them held out"
        raise InputError(data.dataroot, "scenes", f"{len(scenes)} scenes", expected)
    return scenes[:count], scenes[count:]


class TrainingLoop:
    """Model and optimizer of one recipe; `run` trains to the recipe's last step.

    A subclass says what one step is (`_one_step`: trains, raises `step` by one, returns its record) and how its kind of
    checkpoint is read (`_load`); `examples` is how many there are to draw from. `heads`: trained beside the model for
    the sake of its losses; they are part of the training's state, not of the model that is kept. Of several replicas
    the first one writes.
    """

    def __init__(
        self,
        recipe: Recipe | TokenizerRecipe,
        path: Path,
        model: nn.Module,
        examples: int,
        heads: nn.Module | None = None,
        replicas: Replicas | None = None,
    ):
        self.recipe, self.path, self.model, self.examples, self.step = recipe, path, model, examples, 0
        self.replicas = replicas or Replicas()
        self.extra: dict = {}  # what else a checkpoint says of its making
        # What a resumed training needs beside model and moments; written and read in place.
        self._kept = {f"heads.{name}": p for name, p in heads.named_parameters()} if heads is not None else {}
        self._trained = dict(model.named_parameters()) | self._kept
        decayed = [p for p in self._trained.values() if p.ndim > 1]
        rest = [p for p in self._trained.values() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.train.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=recipe.train.learning_rate,
            betas=OPTIMIZER_BETAS,
            fused=True,  # one pass over each parameter: on a CPU a tenth of a small model's step
        )

    def _one_step(self) -> dict:
        raise NotImplementedError

    def _load(self, path: Path) -> Loaded:
        raise NotImplementedError

    @property
    def checkpoint_path(self) -> Path:
        return self.path / "checkpoint"

    def resume(self) -> bool:
        """Take up the run directory's checkpoint, if it has one; another recipe than the run's is an InputError."""
        recorded = self.path / "recipe.json"
        if recorded.exists() and build(type(self.recipe), json.loads(recorded.read_text()), recorded) != self.recipe:
            raise InputError(recorded, "recipe", "another recipe", "the one given now", "Use a new --out folder.")
        log, writes = self.path / "train.jsonl", self.replicas.rank == 0
        if writes:
            write_json(recorded, self.recipe.to_dict())
        if not exists(self.checkpoint_path):
            if writes:
                log.unlink(missing_ok=True)
            return False
        loaded = self._load(self.checkpoint_path)
        self.model.load_state_dict(loaded.model.state_dict())
        self.step = loaded.state["step"]
        self._load_state(loaded.state_tensors)
        if writes:
            lines = log.read_text().splitlines(keepends=True) if log.exists() else []
            log.write_text("".join(lines[: self.step]))  # steps after the checkpoint are done again
        return True

    def run(self, progress: bool = True) -> list[dict]:
        """Train to the last step; the records of all steps, also of those before a resumption."""
        config, writes = self.recipe.train, self.replicas.rank == 0
        self.model.train()
        bar = tqdm(total=config.steps, initial=self.step, disable=not progress, unit="step", desc="train")
        with (self.path / "train.jsonl" if writes else Path(os.devnull)).open("a") as log, bar:
            while self.step < config.steps:
                record = self._one_step()
                log.write(json.dumps(record) + "\n")
                bar.update()
                bar.set_postfix(loss=f"{record['loss']:.3f}", loader=f"{record['loader_share']:.0%}")
                if writes and (self.step % config.checkpoint_every == 0 or self.step == config.steps):
                    log.flush()
                    self.save()
        return [json.loads(line) for line in (self.path / "train.jsonl").read_text().splitlines()] if writes else []

    def save(self) -> None:
        state = {"step": self.step, "recipe": self.recipe.name, "seed": self.recipe.seed}
        extra = {"version": package_version(), "git_commit": git_commit()} | self.extra
        save(self.checkpoint_path, self.model, self._state(), state, extra)

    def _descend(self, loss: torch.Tensor) -> float:
        """One step down the gradient of a loss, at this step's rate; returns the gradient's norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.replicas.average(p.grad for p in self._trained.values() if p.grad is not None)
        norm = torch.nn.utils.clip_grad_norm_(self._trained.values(), self.recipe.train.clip_norm)
        if not torch.isfinite(norm):
            raise InputError(self.path, f"step {self.step}", f"gradient norm {norm}", "finite", "Lower learning_rate.")
        self.optimizer.step()
        return float(norm)

    def _indices(self) -> list[int]:
        """Examples of this step: consecutive places in an endless sequence of shuffled epochs."""
        n, size = self.examples, self.recipe.train.batch_size
        places = range(self.step * size, (self.step + 1) * size)
        orders = {e: np.random.default_rng([self.recipe.seed, e]).permutation(n) for e in {p // n for p in places}}
        return [int(orders[place // n][place % n]) for place in places]

    def _learning_rate(self) -> float:
        config = self.recipe.train
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.step / config.steps))

    def _state(self) -> dict[str, torch.Tensor]:
        moments = {
            f"{name}:{key}": value
            for name, p in self._trained.items()
            for key, value in self.optimizer.state.get(p, {}).items()
        }
        return moments | {name: tensor.detach() for name, tensor in self._kept.items()}

    def _load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._kept.items():
                tensor.copy_(tensors[name])
        for name, p in self._trained.items():
            if f"{name}:step" in tensors:
                self.optimizer.state[p] = {k: tensors[f"{name}:{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
