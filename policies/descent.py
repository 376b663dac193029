"""How a training goes down: its rate at each step, gradients clipped as a whole or by part, averaged weights."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vla.parallel import Replicas

PARTS = {  # of a driving model, by the first word of a parameter's name; all others are the backbone
    "vision": ("encoder", "scene", "deep"),
    "text": ("embedding", "instruction_order"),
    "heads": ("heads",),
}
AVERAGE_WARMUP = 10  # steps: the first weights are forgotten faster, they are noise


def part_of(name: str) -> str:
    """Which part of a driving model a parameter belongs to: vision, text, heads, or the backbone.

    The backbone is what makes tokens into a plan: decoder, output head, action queries, and the projectors of IMU,
    vehicle and calibration. The table of embeddings is the text's, though commands and actions are read from it too.
    """
    first = name.partition(".")[0]
    return next((part for part, firsts in PARTS.items() if first in firsts), "backbone")


def learning_rate(schedule: str, peak: float, step: int, steps: int, warmup: int, decay_share: float) -> float:
    """The rate of a step: peak x min(1, (step + 1) / warmup) x what is left by the schedule at step of steps

    constant   1
    cosine     (1 + cos(pi step / steps)) / 2
    wsd        1 until the last decay_share of the steps; then 1 - sqrt(share of those that is done)
               (warm-up, stable, decay; Haegele et al. 2024, eq. 2)
    """
    left = 1.0
    if schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * step / steps))
    elif schedule == "wsd":
        decay_from = steps * (1 - decay_share)
        left = 1 - math.sqrt(max(0.0, step - decay_from) / (steps - decay_from)) if step > decay_from else 1.0
    return peak * min(1.0, (step + 1) / max(1, warmup)) * left


class Clipping:
    """Gradients of named parameters, clipped by their norm: all by that of all or, `by_part`, each part by its own.

    By part, a part whose gradients explode (images at the start, text that is rare) does not stop the others.
    `replicas` know the norms of gradients of which this process may hold a piece only.
    """

    def __init__(
        self,
        trained: dict[str, nn.Parameter],
        part: Callable[[str], str],
        limit: float,
        by_part: bool,
        replicas: Replicas | None = None,
    ):
        self.trained, self.limit, self.by_part, self.replicas = trained, limit, by_part, replicas or Replicas()
        self.parts: dict[str, list[str]] = {}
        for name in trained:
            self.parts.setdefault(part(name), []).append(name)

    def norms(self) -> dict[str, float]:
        """`gradient_norm` of all, and of each part where there are several, before clipping."""
        each = self.replicas.norms({name: p.grad for name, p in self.trained.items() if p.grad is not None})
        total = {"gradient_norm": list(each)}
        if len(self.parts) > 1:
            total |= {f"gradient_norm_{part}": [n for n in names if n in each] for part, names in self.parts.items()}
        return {
            key: float(torch.linalg.vector_norm(torch.stack([each[name] for name in names])))
            for key, names in total.items()
            if names
        }

    def clip(self, norms: dict[str, float]) -> None:
        """Scale the gradients in place; `norms` are theirs, from `norms`."""
        groups = {"gradient_norm": list(self.trained)}
        if self.by_part and len(self.parts) > 1:
            groups = {f"gradient_norm_{part}": names for part, names in self.parts.items()}
        for key, names in groups.items():
            if key in norms:
                parameters = [self.trained[name] for name in names]
                torch.nn.utils.clip_grads_with_norm_(parameters, self.limit, torch.tensor(norms[key]))


class Average:
    """A model whose weights are the moving average of another's over its steps,

        average += (1 - d) (weights - average),   d = min(decay, (1 + n) / (AVERAGE_WARMUP + n)) after n steps

    which drives better than the last ones: they still jump from batch to batch.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after the step that has this number, from 0."""
        rate = 1 - min(self.decay, (1 + step) / (AVERAGE_WARMUP + step))
        new = model.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(new[name], rate)
            else:
                average.copy_(new[name])


def named_sum(total: dict[str, Tensor], more: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """`total` and `share` of `more`, by name."""
    return {name: total.get(name, 0.0) + share * torch.as_tensor(value) for name, value in more.items()}
