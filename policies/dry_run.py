"""What a training would cost, before it is begun: parameters, memory, tokens, time. Nothing is written.

Activations are counted from the shapes that layers keep for their gradients; a test holds the count against what torch
really keeps. Time is measured in two steps of the training itself, where its data is there, else of its model on noise.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from policies.descent import part_of
from policies.freezing import freeze
from policies.noise import noise_clip
from policies.recipes import Recipe
from policies.train import Trainer
from policies.train_log import duration
from policies.transforms import to_batch
from sensors.surroundings import cell_centres
from vla.auxiliary import AuxiliaryLosses
from vla.config import ModelConfig
from vla.model import DrivingModel
from vla.precision import compute_dtype

FLOAT, ADAMW = 4, 8  # bytes of a parameter or a gradient, and of its two moments
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
        parts = [f"{name} {_short(count)}" for name, count in self.parts.items()]
        kept = [f"{name} {_short(size, 'B')}" for name, size in self.memory.items()]
        active = f"{_short(self.active)} of the backbone active for a token"
        lines = [
            f"parameters  {_short(sum(self.parts.values()))}: {', '.join(parts)}; {active}; {_short(self.learn)} learn",
            f"memory      {_short(sum(self.memory.values()), 'B')}: {', '.join(kept)}",
            f"tokens      {_short(self.tokens_a_step)} a step, {_short(self.tokens_a_step * self.steps)} in all",
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
    with torch.device("meta"):
        model = DrivingModel(recipe.model, recipe.seed)
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
    size = 2 if compute_dtype(config.dtype, torch.device(config.device)).name == "bf16" else FLOAT
    at_once = max(1, config.batch_size // config.accumulate // workers)
    memory["activations (estimated)"] = size * at_once * activations(recipe)
    there = (Path(recipe.data.dataroot) / recipe.data.version).is_dir()
    fits = sum(memory.values()) < _free_bytes(config.device)
    dataset = step_s = None
    if there and fits:
        trainer = Trainer(recipe, Path(os.devnull))
        dataset = trainer.train_set.situations()
        step_s = min(trainer._one_step()["step_s"] for _ in range(2))
    elif fits:
        step_s = min(_noise_steps(recipe))
    c = recipe.model
    reasons = bool(c.reason_places) and (dataset is None or trainer.train_set.has_reasons)
    tokens = len(model.layout("meta", reasons)) * config.batch_size
    active, flop = model.backbone.active_parameters, arithmetic(c, model) * config.batch_size * config.steps
    return Cost(parts, learn, active, flop, memory, tokens, config.steps, dataset, step_s, not there)


def _noise_steps(recipe: Recipe) -> list[float]:
    """Seconds of two steps on noise."""
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
            model.loss(batch, tokens, generator=torch.Generator().manual_seed(0))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        took.append(time.perf_counter() - start)
    return took


def arithmetic(c: ModelConfig, model: DrivingModel) -> int:
    """FLOP of a training step for one clip that has all its images: 6 for each weight that a token or patch meets (2 to
    multiply and add, twice that for the gradients of inputs and weights) and for each pair of numbers in attention.

    A little less where weights are frozen; losses that only train come on top.
    """
    tokens = c.steps * c.scene_tokens + c.now_tokens + c.action_tokens + c.reason_places
    W, images, scene = c.encoder_width, c.steps * c.cameras, c.steps * c.scene_tokens
    patches = images * c.patches
    reach = c.cameras * c.patches * (1 if c.fusion_reach == "step" else c.steps)
    layer = 4 * W * W + 3 * W * c.encoder_hidden  # attention and gated hidden layer
    read = 2 * W * W  # keys and values
    met = tokens * (model.backbone.active_parameters + 2 * tokens * c.layers * c.heads * c.head_dim)
    met += c.encoder_layers * patches * (layer + 2 * c.patches * W)
    met += c.fusion_layers * (scene * (layer - read + 2 * reach * W) + patches * read)
    for k, halve in enumerate(model.encoder.stem.halvings if model.encoder.stem is not None else (), 1):
        met += images * halve.weight.numel() * (c.image_width >> k) * (c.image_height >> k)
    return 6 * met


def activations(recipe: Recipe) -> int:
    """Numbers that one clip's gradients need kept: inputs of products, norms and gates, of every token and patch."""
    c, layers = recipe.model, 0
    heads, groups, D = c.heads * c.head_dim, c.kv_heads * c.head_dim, c.width
    attention = 4 * D + (heads + 2 * groups) + 2 * (heads + groups) + 2 * heads
    for layer in range(c.layers):
        experts = c.experts_per_token * (4 * c.expert_hidden + 2 * D) + c.shared_experts * 4 * c.expert_hidden
        layers += attention + (experts if layer >= c.dense_layers else 4 * c.dense_hidden)
    tokens = c.steps * c.scene_tokens + c.now_tokens + c.action_tokens + c.reason_places
    W, H, images = c.encoder_width, c.encoder_hidden, c.steps * c.cameras
    reader = 9 * W + 4 * H  # of a layer that reads, or of one among patches
    patches, scene = images * c.patches, c.steps * c.scene_tokens
    total = tokens * layers + patches * (c.encoder_layers * reader + 6 * W + _stem(c))
    total += c.fusion_layers * (scene * reader + patches * 2 * W)
    if recipe.losses.surroundings:
        total += cell_centres()[..., 0].size * reader
    return total


def _stem(c: ModelConfig) -> int:
    """Numbers that a patch's convolutions keep: what each halves, before and after its gate."""
    side, halvings = c.patch_px, c.patch_px.bit_length() - 1
    kept = 3 * side * side
    for k in range(1, halvings):
        kept += 2 * (side >> k) ** 2 * (c.encoder_width >> (halvings - k))
    return kept


def _free_bytes(device: str) -> int:
    if device == "cuda":
        if not torch.cuda.is_available():
            return 0
        return torch.cuda.mem_get_info()[0]
    lines = MEMORY.read_text().splitlines() if MEMORY.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 1 << 62)


def _short(count: int, unit: str = "") -> str:
    """With three figures: 1.23M, 45.6 GB."""
    for factor, letter in ((1e9, "G" if unit else "B"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g}{' ' if unit else ''}{letter}{unit}"
    return f"{count} {unit}".strip()
