"""The training loop: one process, resumable to the bit.

A run directory holds `recipe.json`, `train.jsonl` (one line a step), and `checkpoint/`, replaced atomically every
`train.checkpoint_every` steps. Started again in the same directory with the same recipe, training goes on from there
and ends with the same weights as an uninterrupted run: the order of the data depends only on (seed, epoch), the weights
and the optimizer's moments are stored exactly.
"""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from policies.data import TrainingSet
from policies.recipes import Recipe
from policies.runs import Run, git_commit, package_version, write_json
from policies.transforms import future_in_ego, plan_from_tokens, to_batch
from sensors.collate import Batch
from sensors.errors import InputError
from sensors.nuscenes_source import NuscenesSource
from sim.report.page import write_report
from vla.action_tokens import ActionTokenizer
from vla.checkpoint import exists, load, save
from vla.model import DrivingModel

OPTIMIZER_BETAS = (0.9, 0.95)


class Trainer:
    """Model, optimizer and data of one recipe; `run` trains to the recipe's last step."""

    def __init__(self, recipe: Recipe, path: Path):
        self.recipe, self.path, self.step = recipe, path, 0
        size = (recipe.model.image_width, recipe.model.image_height)
        source = NuscenesSource(recipe.data.dataroot, recipe.data.version, steps=recipe.model.steps, image_size=size)
        if len(source.scenes) <= recipe.data.val_scenes:
            came, least = f"{len(source.scenes)} scenes", recipe.data.val_scenes + 1
            raise InputError(recipe.data.dataroot, "scenes", came, f"at least {least}, {least - 1} of them held out")
        split = len(source.scenes) - recipe.data.val_scenes
        self.tokenizer = ActionTokenizer(recipe.model)
        self.train_set = TrainingSet(source, source.scenes[:split], self.tokenizer)
        self.val_set = TrainingSet(source, source.scenes[split:], self.tokenizer)
        self.model = DrivingModel(recipe.model, recipe.seed)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.train.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=recipe.train.learning_rate,
            betas=OPTIMIZER_BETAS,
        )
        self._names = {id(p): name for name, p in self.model.named_parameters()}

    @property
    def checkpoint_path(self) -> Path:
        return self.path / "checkpoint"

    def resume(self) -> bool:
        """Take up the run directory's checkpoint, if it has one; another recipe than the run's is an InputError."""
        recorded = self.path / "recipe.json"
        recipe = json.loads(json.dumps(self.recipe.to_dict()))
        if recorded.exists() and json.loads(recorded.read_text()) != recipe:
            raise InputError(recorded, "recipe", "another recipe", "the one given now", "Use a new --out folder.")
        write_json(recorded, recipe)
        log = self.path / "train.jsonl"
        if not exists(self.checkpoint_path):
            log.unlink(missing_ok=True)
            return False
        loaded = load(self.checkpoint_path, self.recipe.model)
        self.model.load_state_dict(loaded.model.state_dict())
        self.step = loaded.state["step"]
        self._load_moments(loaded.state_tensors)
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        log.write_text("".join(lines[: self.step]))  # steps after the checkpoint are done again
        return True

    def run(self, progress: bool = True) -> None:
        config = self.recipe.train
        self.model.train()
        bar = tqdm(total=config.steps, initial=self.step, disable=not progress, unit="step", desc="train")
        with (self.path / "train.jsonl").open("a") as log, bar:
            while self.step < config.steps:
                record = self._one_step()
                log.write(json.dumps(record) + "\n")
                bar.update()
                bar.set_postfix(loss=f"{record['loss']:.3f}", loader=f"{record['loader_share']:.0%}")
                if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                    log.flush()
                    self.save()

    def save(self) -> None:
        state = {"step": self.step, "recipe": self.recipe.name, "seed": self.recipe.seed}
        extra = {"version": package_version(), "git_commit": git_commit()}
        save(self.checkpoint_path, self.model, self._moments(), state, extra)

    def validate(self, batch_size: int = 8) -> dict[str, float]:
        """Loss and plan error on the held-out scenes, decoding greedily as at run time."""
        self.model.eval()
        losses, errors = [], []
        with torch.inference_mode():
            for start in range(0, len(self.val_set), batch_size):
                chosen = range(start, min(start + batch_size, len(self.val_set)))
                clips, tokens = zip(*(self.val_set[k] for k in chosen), strict=True)
                batch = to_batch(clips, self.recipe.model)
                loss, _ = self.model.loss(batch, torch.from_numpy(np.stack(tokens)))
                losses += [loss.item()] * len(clips)
                decoded = self.model.decode(batch).tokens.numpy()
                for k, clip, row in zip(chosen, clips, decoded, strict=True):
                    truth = future_in_ego(clip, self.val_set.recorded(k)[1], self.val_set.time_s)
                    plan = plan_from_tokens(row, clip, self.tokenizer).xyyaw_in_ego
                    errors.append(np.linalg.norm((plan - truth)[:, :2], axis=1))
        within = self.val_set.time_s <= 3.0
        ade = float(np.mean([error[within].mean() for error in errors]))
        return {"val.loss": float(np.mean(losses)), "val.ade_3s_m": ade, "val.keyframes": len(losses)}

    def _one_step(self) -> dict:
        config, start = self.recipe.train, time.perf_counter()
        rng = np.random.default_rng([self.recipe.seed, self.step, 0])
        examples = [self.train_set.varied(k, rng, config.mirror, config.camera_dropout) for k in self._indices()]
        clips, tokens = zip(*examples, strict=True)
        batch = self._hide_motion(to_batch(clips, self.recipe.model))
        loaded = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        loss, scalars = self.model.loss(batch, torch.from_numpy(np.stack(tokens)))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        if not torch.isfinite(norm):
            raise InputError(self.path, f"step {self.step}", f"gradient norm {norm}", "finite", "Lower learning_rate.")
        self.optimizer.step()
        busiest = self.model.rebalance()
        self.step += 1
        took = time.perf_counter() - start
        return {
            "step": self.step,
            "loss": loss.item(),
            **{name: float(value) for name, value in scalars.items()},
            "gradient_norm": float(norm),
            "busiest_expert": busiest,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "step_s": round(took, 4),
            "loader_share": round((loaded - start) / took, 4),
        }

    def _hide_motion(self, batch: Batch) -> Batch:
        """The batch with `motion_dropout` of its clips told only their speed of their motion, by (seed, step)."""
        rng = np.random.default_rng([self.recipe.seed, self.step, 1])
        shown = torch.from_numpy(rng.random(len(batch.command_id)) >= self.recipe.train.motion_dropout)[:, None]
        speed = torch.arange(batch.vehicle_mask.shape[1]) == 0
        last = torch.arange(batch.image_mask.shape[1]) == batch.image_mask.shape[1] - 1
        return replace(
            batch,
            vehicle_mask=batch.vehicle_mask & (shown | speed),
            imu_mask=batch.imu_mask & shown,
            image_mask=batch.image_mask & (shown | last)[..., None],
        )

    def _indices(self) -> list[int]:
        """Examples of this step: consecutive places in an endless sequence of shuffled epochs."""
        n, size = len(self.train_set), self.recipe.train.batch_size
        places = range(self.step * size, (self.step + 1) * size)
        orders = {e: np.random.default_rng([self.recipe.seed, e]).permutation(n) for e in {p // n for p in places}}
        return [int(orders[place // n][place % n]) for place in places]

    def _learning_rate(self) -> float:
        config = self.recipe.train
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.step / config.steps))

    def _moments(self) -> dict[str, torch.Tensor]:
        return {
            f"{self._names[id(p)]}:{key}": value
            for p, state in self.optimizer.state.items()
            for key, value in state.items()
        }

    def _load_moments(self, tensors: dict[str, torch.Tensor]) -> None:
        for parameter in self.model.parameters():
            name = self._names[id(parameter)]
            self.optimizer.state[parameter] = {k: tensors[f"{name}:{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}


def train(recipe: Recipe, out: Path, progress: bool = True) -> Path:
    """Train a recipe in a run directory, new or begun, to its last step; returns the path of its report."""
    run = Run.create("train", out, recipe.to_dict(), [recipe.seed], resume=True)
    trainer = Trainer(recipe, out)
    if trainer.resume():
        print(f"resuming at step {trainer.step} of {recipe.train.steps}")
    trainer.run(progress)
    records = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    run.summary["curves"] = {
        name: [[record["step"], record[name]] for record in records]
        for name in ("loss", "gradient_norm", "learning_rate", "busiest_expert", "loader_share")
    }
    last = records[-50:]
    run.summary["metrics"] = {
        "train.loss": float(np.mean([record["loss"] for record in last])),
        "train.step_s": float(np.median([record["step_s"] for record in records])),
        "train.minutes": sum(record["step_s"] for record in records) / 60,
        "train.examples": len(trainer.train_set),
        **trainer.validate(),
    }
    run.summary["scenes"] = {"asked": 1, "finished": 1, "failed": 0}
    run.save()
    return write_report(out)
