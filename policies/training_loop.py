"""What every training shares: one process or several replicas, a log of steps, checkpoints, resumed to the bit.

A run directory holds `recipe.json`, `train.jsonl` (`policies.train_log`), and `checkpoint/`, replaced atomically every
`train.checkpoint_every` steps. Started again in the same directory with the same recipe, training goes on from there
and ends with the same weights as an uninterrupted run: the order of the data depends only on (seed, epoch), the weights
and the optimizer's moments are stored exactly. Of a model that is divided over workers (`vla.sharding`) these are in
`shards/`, written while training goes on; `checkpoint/` is then made at the end, for whoever drives with it.

The model of a checkpoint is what a policy is to have: where the recipe asks for averaged weights it holds those at any
time, and those that training goes on from are part of its state.
"""

import json
import math
import time
from collections.abc import Container, Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from policies.descent import Average, Clipping, learning_rate, named_sum
from policies.guard import Guard
from policies.loader import shuffled
from policies.recipes import AnyRecipe
from policies.runs import git_commit, package_version, write_json
from policies.train_log import StepLog, View, read_steps, told_if_full
from sensors.errors import InputError
from vla.checkpoint import Loaded, exists, save, state_of
from vla.config import build
from vla.expert_parallel import local
from vla.losses import Loss
from vla.manifest import MANIFEST, read_manifest
from vla.parallel import Replicas
from vla.sharded_checkpoint import ShardWriter, newest, read_shards, require_mesh

OPTIMIZER_BETAS = (0.9, 0.95)
WEIGHTS = "weights."  # of those in a checkpoint's state that training goes on from, where its model is an average
SHARDS = "shards"
MODEL = "model."  # of those in shards that a policy is to have


class TrainingLoop:
    """Model and optimizer of one recipe; `run` trains to the recipe's last step.

    A subclass says what a step learns from (`_parts`: micro-batches), what their loss is (`_loss`), what there is to do
    and to tell after a step (`_after`), and how its kind of checkpoint is read (`_load`); `examples` is how many there
    are to draw from. Whatever a step draws depends on `draw`, its number but for batches that are passed over.
    `heads`: trained beside the model for the sake of its losses; they are part of the training's state, not of the
    model that is kept. Of several replicas the first one writes. `reshard`: whether shards that another arrangement of
    workers wrote may be gone on from.
    """

    def __init__(
        self,
        recipe: AnyRecipe,
        path: Path,
        model: nn.Module,
        examples: int,
        heads: nn.Module | None = None,
        replicas: Replicas | None = None,
        reshard: bool = False,
    ):
        config = recipe.train
        self.recipe, self.path, self.model, self.examples, self.step = recipe, path, model, examples, 0
        self.replicas, self.guard = replicas or Replicas(), Guard()
        self.extra: dict = {}  # what else a checkpoint says of its making
        self.average = Average(model, config.ema) if config.ema else None
        self.replicas.divide(model)
        if self.average is not None:
            self.replicas.divide(self.average.model)
        self._reshard = reshard
        self._shards = ShardWriter(path / SHARDS, self.replicas) if self.replicas.divided else None
        # What a resumed training needs beside model and moments; written and read in place.
        self._kept = {f"heads.{name}": p for name, p in heads.named_parameters()} if heads is not None else {}
        self._learning = {name: p for name, p in model.named_parameters() if p.requires_grad} | self._kept
        self._trained = self.replicas.own(self._learning)
        decayed = [p for p in self._trained.values() if p.ndim > 1]
        rest = [p for p in self._trained.values() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=OPTIMIZER_BETAS,
            fused=True,  # one pass over each parameter: on a CPU a tenth of a small model's step
        )
        self.clipping = Clipping(
            self._trained, self._part_of, config.clip_norm, config.clip_by == "parts", self.replicas
        )

    def _parts(self) -> Sequence:
        """What this replica learns from in this step, as `train.accumulate` parts of one size."""
        raise NotImplementedError

    def _loss(self, part: object) -> Loss:
        raise NotImplementedError

    def _after(self, taken: bool) -> dict:
        """What there is to tell of a step, once it was taken or skipped."""
        raise NotImplementedError

    def _load(self, path: Path) -> Loaded:
        raise NotImplementedError

    def _blank(self) -> nn.Module:
        """A model of the recipe, whole; its weights are of no use."""
        raise NotImplementedError

    def _looked(self) -> dict:
        """What a look at held-out examples after a step finds, where it is time for one."""
        return {}

    def _part_of(self, name: str) -> str:
        """The part of the model that a parameter's gradient is measured with."""
        return "model"

    @property
    def checkpoint_path(self) -> Path:
        return self.path / "checkpoint"

    @property
    def pace(self) -> tuple[int, str]:
        """(how much a step learns from, what that is counted in)."""
        return self.recipe.train.batch_size, "clips"

    @property
    def writes(self) -> bool:
        return self.replicas.rank == 0

    @property
    def draw(self) -> int:
        """Number of this step's draw of examples, and of all else that is drawn for it."""
        return self.guard.draw(self.step)

    @property
    def result(self) -> nn.Module:
        """The model that a policy is to have."""
        return self.model if self.average is None else self.average.model

    def resume(self) -> bool:
        """Take up the run directory's checkpoint, if it has one; another recipe than the run's is an InputError."""
        recorded = require_recipe(self.recipe, self.path)
        if self.writes:
            with told_if_full(recorded):
                write_json(recorded, self.recipe.to_dict())
        return self._take_up()

    def run(self, progress: bool = True) -> list[dict]:
        """Train to the last step; the records of all steps, also of those before a resumption."""
        config, due = self.recipe.train, False
        self.model.train()
        if config.spike and not self._kept_steps():
            self.save()  # to go back to
        view = View(config.steps, *self.pace, progress)
        with closing(StepLog(self.path if self.writes else None, self.step, self.guard.events)) as log:
            while self.step < config.steps:
                record = self._one_step() | self._looked()
                log.write(record)
                view.show(record, len(self.guard.events))
                due = due or self.step % config.checkpoint_every == 0
                if self.guard.spiked:
                    self._rewind()
                    log.go_back(self.step, self.guard.events)
                    due = False
                elif self.step == config.steps or (due and not self.guard.high):  # never in what may become a spike
                    self.save()
                    due = False
        if self._shards is not None:
            self._shards.finish()
        return read_steps(self.path / "train.jsonl") if self.writes else []

    def _one_step(self) -> dict:
        """Learn from the next batch; returns the step's record."""
        start = time.perf_counter()
        parts = self._parts()
        loaded = time.perf_counter()
        figures, norms = self._gradients(parts), self.clipping.norms()
        at = {"loss": figures["loss"], **norms}
        taken = self.guard.finite(at, self.recipe.train.most_skipped, f"{self.path} step {self.step}")
        rate = self._rate()
        if taken:
            self._descend(norms, rate)
            self.guard.watch(self.step, figures["loss"], self.recipe.train.spike)
        told = self._after(taken)
        if taken and self.average is not None:
            self.average.update(self.model, self.step)
        self.step += 1
        took = time.perf_counter() - start
        record = {"step": self.step, **figures, **norms, **told, "learning_rate": rate, "step_s": round(took, 4)}
        record |= {"loader_share": round((loaded - start) / took, 4)} | ({} if taken else {"skipped": 1})
        return {name: value if math.isfinite(value) else None for name, value in record.items()}  # JSON has no NaN

    def save(self) -> None:
        """Write the checkpoint, if it is this replica that does; of a divided model, what is this one's of it."""
        if self._shards is not None:
            model = {MODEL + name: tensor for name, tensor in self.result.state_dict().items()}
            manifest = {"config": self.model.config.to_dict(), "mesh": self.replicas.arrangement, **self._about}
            tensors = model | self._state()
            self._shards.write(self.step, tensors, manifest | {"tensors": sorted(tensors)})
        elif self.writes:
            about = self._about
            save(self.checkpoint_path, self.result, self._state(), about["state"], about["extra"])

    def whole(self) -> nn.Module | None:
        """The model that a policy is to have, also where it is divided: then a copy, and on the first replica only. All
        replicas have to ask."""
        if not self.replicas.divided:
            return self.result
        weights = self.replicas.gather(self.result.state_dict())
        if not self.writes:
            return None
        model = self._blank()
        model.load_state_dict(weights)
        return model

    def export(self, model: nn.Module) -> None:
        """Write the whole of a divided model, for who drives with it."""
        if self.replicas.divided and self.writes:
            save(self.checkpoint_path, model, None, self._about["state"], self._about["extra"])

    @property
    def _about(self) -> dict:
        state = {"step": self.step, "recipe": self.recipe.name, "seed": self.recipe.seed}
        extra = {"version": package_version(), "git_commit": git_commit(), "ema": self.recipe.train.ema}
        return {"state": state | {"guard": self.guard.to_dict()}, "extra": extra | self.extra}

    def _kept_steps(self) -> dict[Path, int]:
        """The step of each checkpoint that there is."""
        shards, found = newest(self.path / SHARDS), {}
        if exists(self.checkpoint_path):
            found[self.checkpoint_path] = state_of(self.checkpoint_path)["step"]
        if shards is not None:
            found[shards] = read_manifest(shards / MANIFEST)["state"]["step"]
        return found

    def _take_up(self) -> bool:
        """Become as the newest checkpoint is, if there is one; of two of one step, as that of this one's own kind."""
        found = self._kept_steps()
        own = SHARDS if self.replicas.divided else self.path.name
        path = max(found, key=lambda path: (found[path], path.parent.name == own), default=None)
        if path is None:
            return False
        if path == self.checkpoint_path:
            self._take_up_whole()
        else:
            self._take_up_shards(path)
        return True

    def _take_up_whole(self) -> None:
        loaded = self._load(self.checkpoint_path)
        weights, tensors = loaded.model.state_dict(), loaded.state_tensors
        if self.average is not None:
            self.replicas.fill(self.average.model.state_dict(), weights)
            weights = {name: tensors[WEIGHTS + name] for name in weights}
        self.replicas.fill(self.model.state_dict(), weights)
        self.step, self.guard = loaded.state["step"], Guard(**loaded.state.get("guard", {}))
        with torch.no_grad():
            for name, tensor in self._kept.items():
                tensor.copy_(tensors[name])
        moments = self._blank_moments(tensors)
        self.replicas.fill(moments, {name: tensors[name].reshape(moments[name].shape) for name in moments})
        self._take_moments(moments)

    def _take_up_shards(self, path: Path) -> None:
        manifest = read_manifest(path / MANIFEST)
        if not self._reshard:
            require_mesh(path, manifest["mesh"], self.replicas.arrangement)
        into = {MODEL + name: tensor for name, tensor in self.result.state_dict().items()}
        if self.average is not None:
            into |= {WEIGHTS + name: tensor for name, tensor in self.model.state_dict().items()}
        moments = self._blank_moments(manifest["tensors"])
        read_shards(path, into | self._kept | moments, self.replicas)
        self.step, self.guard = manifest["state"]["step"], Guard(**manifest["state"]["guard"])
        self._take_moments(moments)

    def _rewind(self) -> None:
        """Go back to the last checkpoint, which is then told what to pass over."""
        spiked = self.guard
        spiked.require_hope(self.recipe.train.most_rewinds, f"{self.path} step {self.step}")
        if self._shards is not None:
            self._shards.finish()
        self._take_up()
        self.guard.after(spiked, self.step)
        self.replicas.average([torch.zeros(1)])  # all have read it
        self.save()

    def _gradients(self, parts: Sequence) -> dict[str, float]:
        """Make the batch's gradients from those of its parts; its loss and named figures."""
        self.optimizer.zero_grad(set_to_none=True)
        total: dict[str, Tensor] = {}
        for part in parts:
            loss, named = self._loss(part)
            (loss / len(parts)).backward()
            total = named_sum(total, {"loss": loss.detach(), **named}, 1 / len(parts))
        self.replicas.settle(self._learning, self._trained)
        values = torch.stack([value.float() for value in total.values()])
        self.replicas.average([values])
        return dict(zip(total, values.tolist(), strict=True))

    def _rate(self) -> float:
        c = self.recipe.train
        return learning_rate(c.schedule, c.learning_rate, self.step, c.steps, c.warmup_steps, c.decay_share)

    def _descend(self, norms: dict[str, float], rate: float) -> None:
        """One step down the gradients, which have these norms."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.clipping.clip(norms)
        self.optimizer.step()

    def _indices(self) -> list[int]:
        """Examples of this step."""
        return shuffled(self.examples, self.recipe.train.batch_size, self.recipe.seed, self.draw)

    def _state(self) -> dict[str, Tensor]:
        moments = {
            f"{name}:{key}": self.replicas.as_whole(name, value) if value.ndim else value
            for name, p in self._trained.items()
            for key, value in self.optimizer.state.get(p, {}).items()
        }
        weights = {} if self.average is None else {WEIGHTS + n: value for n, value in self.model.state_dict().items()}
        return moments | weights | {name: tensor.detach() for name, tensor in self._kept.items()}

    def _blank_moments(self, names: Container[str]) -> dict[str, Tensor]:
        """Room for the moments that a checkpoint with tensors of these names has."""
        blank = {}
        for name, p in self._trained.items():
            if f"{name}:step" in names:
                for key in ("exp_avg", "exp_avg_sq"):
                    blank[f"{name}:{key}"] = self.replicas.as_whole(name, torch.zeros_like(p.detach()))
                blank[f"{name}:step"] = torch.zeros(1)
        return blank

    def _take_moments(self, moments: dict[str, Tensor]) -> None:
        self.optimizer.state.clear()
        for name, p in self._trained.items():
            if f"{name}:step" in moments:
                state = {key: local(moments[f"{name}:{key}"]) for key in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[p] = {"step": moments[f"{name}:step"].reshape(()), **state}


def require_recipe(recipe: AnyRecipe, path: Path) -> Path:
    """The file in which a run directory keeps its recipe; an InputError if it is there and holds another one."""
    recorded = path / "recipe.json"
    if recorded.exists():
        _require_same(build(type(recipe), json.loads(recorded.read_text()), recorded), recipe, recorded)
    return recorded


def _require_same(recorded: AnyRecipe, given: AnyRecipe, where: Path) -> None:
    """An InputError that names a key in which two recipes differ, one of the architecture if there is one."""
    old, new = (_flat(recipe.to_dict()) for recipe in (recorded, given))
    shape = ("model.", "image_tokenizer.")
    for key in sorted(dict.fromkeys([*old, *new]), key=lambda key: not key.startswith(shape)):
        if old.get(key) != new.get(key):
            expected = f"{old.get(key)}, as this training was begun with"
            fix = "Use a new --out folder for another recipe."
            if key.startswith(shape):
                fix = "Its weights are of another architecture: use a new --out folder."
            raise InputError(where, f"another recipe: {key}", new.get(key), expected, fix)


def _flat(values: dict, prefix: str = "") -> dict:
    """By dotted keys."""
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
