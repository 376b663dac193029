"""Vectors to codes and back: three quantisers of one kind.

A quantiser maps vectors z [..., D] to indices [...] of `codes` codes and to the codes' vectors z_q [..., D]. Its
forward gives z_q with a gradient, so that an encoder before it learns, and named losses that keep the codebook alive:

    ibq   every code gets a gradient, through softmax(z C^T) (Shi et al. 2024, arXiv 2412.02692)
    fsq   no codebook: each number is bounded and rounded to a few levels (Mentzer et al. 2023, arXiv 2309.15505)
    ema   the nearest code; codes follow the mean of what they stand for (van den Oord et al. 2017, arXiv 1711.00937)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensors.errors import InputError

COMMITMENT = 0.25
ENTROPY_WEIGHT = 0.05  # of ibq: sharp for one vector, even over the batch
EMA_DECAY, EMA_EPS = 0.99, 1e-5
DEAD_SHARE = 0.1  # of an even share of the batch: below it for long, a code is dead


@dataclass(frozen=True)
class Quantized:
    """vectors [..., D] with a gradient to the encoder; indices int64 [...]; losses: named scalars to add up."""

    vectors: Tensor
    indices: Tensor
    losses: dict[str, Tensor]


class Quantizer(nn.Module):
    """`codes` codes of `width` numbers; `used` [codes] is a running mean of how often each is chosen, 1 if evenly."""

    def __init__(self, codes: int, width: int):
        super().__init__()
        self.codes, self.width = codes, width
        self.register_buffer("used", torch.ones(codes))

    def lookup(self, indices: Tensor) -> Tensor:
        """Vectors [..., D] of indices [...]."""
        raise NotImplementedError

    def resample(self, z: Tensor, generator: torch.Generator) -> int:
        """Put dead codes where vectors of z [N, D] lie; how many there were. Nothing to do without a codebook."""
        return 0

    @torch.no_grad()
    def _count(self, indices: Tensor) -> None:
        if self.training:
            share = torch.bincount(indices.flatten(), minlength=self.codes).float() * (self.codes / indices.numel())
            self.used.lerp_(share, 1 - EMA_DECAY)

    def _dead(self) -> Tensor:
        return torch.nonzero(self.used < DEAD_SHARE)[:, 0]


class IndexBackprop(Quantizer):
    """softmax(z C^T) picks a code; the one-hot choice passes its gradient to the softmax, and so to z and all of C."""

    def __init__(self, codes: int, width: int):
        super().__init__(codes, width)
        self.codebook = nn.Parameter(torch.randn(codes, width))

    def lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.codebook)

    def forward(self, z: Tensor) -> Quantized:
        flat = z.reshape(-1, self.width)
        # -|z - c|^2 / 2 up to a term that all codes share: the largest is the nearest
        logits = flat @ self.codebook.T - 0.5 * self.codebook.square().sum(dim=1)
        soft = logits.softmax(dim=-1)
        indices = logits.argmax(dim=-1)
        hard = F.one_hot(indices, self.codes).to(soft.dtype)
        vectors = (hard + soft - soft.detach()) @ self.codebook
        nearest = self.codebook[indices]
        mean = soft.mean(dim=0)
        own = -(soft * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
        losses = {
            "commitment": COMMITMENT * F.mse_loss(flat, nearest.detach()) + F.mse_loss(nearest, flat.detach()),
            "entropy": ENTROPY_WEIGHT * (own + (mean * (mean + 1e-9).log()).sum()),
        }
        self._count(indices)
        return Quantized(vectors.view(z.shape), indices.view(z.shape[:-1]), losses)

    @torch.no_grad()
    def resample(self, z: Tensor, generator: torch.Generator) -> int:
        dead = self._dead()
        chosen = torch.randint(len(z), (len(dead),), generator=generator)
        self.codebook[dead] = z[chosen].to(self.codebook.dtype)
        self.used[dead] = 1.0
        return len(dead)


class FiniteScalar(Quantizer):
    """Number i of a vector is bounded to levels[i] values, evenly spaced in [-1, 1]; the index counts them together."""

    def __init__(self, levels: tuple[int, ...]):
        super().__init__(math.prod(levels), len(levels))
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        strides = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    def lookup(self, indices: Tensor) -> Tensor:
        digits = indices[..., None] // self.strides % self.levels
        return digits * (2.0 / (self.levels - 1)) - 1.0

    def forward(self, z: Tensor) -> Quantized:
        bounded = z.tanh()
        digits = ((bounded + 1) / 2 * (self.levels - 1)).round()
        vectors = bounded + (digits * (2.0 / (self.levels - 1)) - 1.0 - bounded).detach()
        indices = (digits.long() * self.strides).sum(dim=-1)
        self._count(indices)
        return Quantized(vectors, indices, {})


class MovingAverage(Quantizer):
    """The nearest code; no gradient to the codebook, which follows the vectors' running means."""

    def __init__(self, codes: int, width: int):
        super().__init__(codes, width)
        start = torch.randn(codes, width)
        self.register_buffer("codebook", start)
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", start.clone())

    def lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.codebook)

    def forward(self, z: Tensor) -> Quantized:
        flat = z.reshape(-1, self.width)
        with torch.no_grad():
            indices = (flat @ self.codebook.T - 0.5 * self.codebook.square().sum(dim=1)).argmax(dim=-1)
        nearest = self.codebook[indices]
        if self.training:
            self._follow(flat.detach(), indices)
        self._count(indices)
        vectors = flat + (nearest - flat).detach()
        losses = {"commitment": COMMITMENT * F.mse_loss(flat, nearest)}
        return Quantized(vectors.view(z.shape), indices.view(z.shape[:-1]), losses)

    @torch.no_grad()
    def _follow(self, z: Tensor, indices: Tensor) -> None:
        counts = torch.bincount(indices, minlength=self.codes).to(z.dtype)
        self.counts.lerp_(counts, 1 - EMA_DECAY)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, indices, z), 1 - EMA_DECAY)
        total = self.counts.sum()
        smooth = (self.counts + EMA_EPS) * total / (total + self.codes * EMA_EPS)
        self.codebook.copy_(self.sums / smooth[:, None])

    @torch.no_grad()
    def resample(self, z: Tensor, generator: torch.Generator) -> int:
        dead = self._dead()
        chosen = z[torch.randint(len(z), (len(dead),), generator=generator)]
        self.codebook[dead] = chosen
        self.counts[dead] = self.counts.mean()
        self.sums[dead] = chosen * self.counts[dead, None]
        self.used[dead] = 1.0
        return len(dead)


QUANTIZERS: dict[str, Callable[[int, int], Quantizer]] = {
    "ibq": IndexBackprop,
    "fsq": lambda codes, width: FiniteScalar(fsq_levels(codes, width)),
    "ema": MovingAverage,
}


def fsq_levels(codes: int, width: int) -> tuple[int, ...]:
    """Levels, at most 16 a number, whose product is `codes`, as even as they can be; else an InputError."""
    best: tuple[int, ...] | None = None

    def search(left: int, count: int, least: int, chosen: tuple[int, ...]) -> None:
        nonlocal best
        if count == 1:
            if least <= left <= 16 and (best is None or left - chosen[0] < best[-1] - best[0]):
                best = (*chosen, left)
            return
        for level in range(least, 17):
            if left % level == 0:
                search(left // level, count - 1, level, (*chosen, level))

    if width > 1:
        search(codes, width, 2, ())
    if best is None:
        expected = f"a product of {width} whole numbers from 2 to 16"
        raise InputError("image tokenizer", "codes", codes, expected, "512 = 8 x 8 x 8 with code_width 3, for example.")
    return best
