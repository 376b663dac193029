"""What a training would cost, before it is begun: parameters, memory, tokens, time. Nothing is written.

Time is measured in two steps of the training itself, where its data is there, else of its model on noise. What many
GPUs would take, which are not here, is `policies.plan`'s to say.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from policies.descent import part_of
from policies.freezing import freeze
from policies.noise import noise_clip
from policies.prepared import is_prepared
from policies.recipes import Recipe
from policies.train import Trainer
from policies.train_log import duration, short
from policies.transforms import to_batch
from sensors.shards import is_pack
from vla.auxiliary import AuxiliaryLosses
from vla.cost import activations, arithmetic, on_paper
from vla.model import DrivingModel
from vla.precision import compute_dtype

FLOAT, ADAMW = 4, 8  # bytes of a parameter or a gradient, and of its two moments
HALF = 2  # of a copy that autocast makes for the products
MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True)
class Cost:
    """parts: parameters, learn: those that are not frozen; flop: of all steps together; memory: bytes of each replica;
    dataset: examples of each situation, None without a dataroot; step_s: None if the training does not fit here;
    on_noise: without loading, and without losses beside the plan's."""

    parts: dict[str, int]
    learn: int
    active: int
    flop: int
    memory: dict[str, int]
    tokens_a_step: int
    steps: int
    dataset: dict[str, int] | None
    step_s: float | None
    on_noise: bool

    def lines(self) -> list[str]:
        """As the terminal shows it."""
        parts = [f"{name} {short(count)}" for name, count in self.parts.items()]
        kept = [f"{name} {short(size, 'B')}" for name, size in self.memory.items()]
        active = f"{short(self.active)} of the backbone active for a token"
        lines = [
            f"parameters  {short(sum(self.parts.values()))}: {', '.join(parts)}; {active}; {short(self.learn)} learn",
            f"memory      {short(sum(self.memory.values()), 'B')}: {', '.join(kept)}",
            f"tokens      {short(self.tokens_a_step)} a step, {short(self.tokens_a_step * self.steps)} in all",
            f"arithmetic  {self.flop / self.steps:.3g} FLOP a step, {self.flop:.3g} in all, without auxiliary losses",
        ]
        if self.dataset is None:
            lines.append("dataset     not here")
        else:
            lines.append(f"dataset     {sum(self.dataset.values()):,} examples in {len(self.dataset)} situations")
            lines += [f"            {count:9,}  {name}" for name, count in self.dataset.items()]
        if self.step_s is None:
            lines.append("time        not measured: train.device has not so much memory free here")
        else:
            how = "on noise, without loading and auxiliary losses" if self.on_noise else "loading included"
            total = duration(self.step_s * self.steps)
            lines.append(f"time        {self.step_s:.3f} s a step ({how}), {total} for {self.steps} steps")
        return lines


def dry_run(recipe: Recipe, workers: int = 1) -> Cost:
    """The cost of a recipe for each of `workers` replicas, with two steps of one of them measured here."""
    model = on_paper(recipe.model)
    freeze(model, recipe.train.freeze, recipe.name)
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        parts[part_of(name)] = parts.get(part_of(name), 0) + parameter.numel()
    if recipe.losses.any and not recipe.losses.codes:
        heads = AuxiliaryLosses(recipe.losses, recipe.model, None, recipe.seed)
        parts["heads"] = sum(p.numel() for p in heads.parameters())
    count, config = sum(parts.values()), recipe.train
    learn = count - sum(p.numel() for p in model.parameters() if not p.requires_grad)
    memory = {"weights": FLOAT * count, "gradients": FLOAT * learn, "optimizer": ADAMW * learn}
    if config.ema:
        memory["average"] = FLOAT * count
    dtype = compute_dtype(config.dtype, torch.device(config.device)).name
    if dtype == "bf16":
        memory["weights in bf16"] = HALF * count
    at_once = max(1, config.batch_size // config.accumulate // workers)
    memory["activations (estimated)"] = at_once * activations(recipe.model, recipe.losses, dtype).total
    dataroot = recipe.data.dataroot
    there = is_pack(dataroot) or is_prepared(dataroot) or (Path(dataroot) / recipe.data.version).is_dir()
    fits = sum(memory.values()) < _free_bytes(config.device)
    dataset = step_s = None
    if there and fits:
        trainer = Trainer(recipe, Path(os.devnull))
        dataset = trainer.train_set.situations()
        step_s = min(trainer._one_step()["step_s"] for _ in range(2))
    elif fits:
        step_s = min(_noise_steps(recipe, dtype))
    c = recipe.model
    reasons = bool(c.reason_places) and (dataset is None or trainer.train_set.has_reasons)
    tokens = len(model.layout("meta", reasons)) * config.batch_size
    active, flop = model.backbone.active_parameters, arithmetic(c, model) * config.batch_size * config.steps
    return Cost(parts, learn, active, flop, memory, tokens, config.steps, dataset, step_s, not there)


def _noise_steps(recipe: Recipe, dtype: str) -> list[float]:
    """Seconds of two steps on noise; dtype: of the products, as `compute_dtype` has it."""
    config, device, took = recipe.train, torch.device(recipe.train.device), []
    model = DrivingModel(recipe.model, recipe.seed).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    size = config.batch_size // config.accumulate
    batch = to_batch([noise_clip(recipe.model, k) for k in range(size)], recipe.model).to(device)
    first = torch.tensor([slot.start for slot in recipe.model.action_slots], device=device)
    tokens = first.repeat(size, recipe.model.action_tokens // 2)
    for _ in range(2):
        start = time.perf_counter()
        for _ in range(config.accumulate):
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
                loss, _ = model.loss(batch, tokens, generator=torch.Generator().manual_seed(0))
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()  # a GPU has only been asked so far
        took.append(time.perf_counter() - start)
    return took


def _free_bytes(device: str) -> int:
    if device == "cuda":
        if not torch.cuda.is_available():
            return 0
        return torch.cuda.mem_get_info()[0]
    lines = MEMORY.read_text().splitlines() if MEMORY.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 1 << 62)
