"""Attention: who sees whom, rotary positions, grouped queries with normalised queries and keys.

Letters: B batch, L tokens, M memory tokens, D width, h query heads, g key heads (h a multiple of g), d head size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6
CAUSAL = "causal"  # in place of a bias: each token sees itself and those before it, which needs no matrix


@dataclass(frozen=True)
class Layout:
    """Where each of L tokens stands; every field [L].

    step int64     time step that the token belongs to
    phase int64    place in what its step says: 0 for all that is perceived, then 1, 2 ... for what is said one by one
    order int64    place among the tokens of the same step and phase, for those that have an order (else 0)
    lasting bool   whether later steps may see it; what a step says of its own plan they may not
    """

    step: Tensor
    phase: Tensor
    order: Tensor
    lasting: Tensor

    @classmethod
    def causal(cls, tokens: int, start: int = 0, device: torch.device | str = "cpu") -> "Layout":
        """Plain text: each token is a step of its own, numbered from `start`."""
        step = torch.arange(start, start + tokens, device=device)
        zero = torch.zeros_like(step)
        return cls(step, zero, zero, torch.ones_like(step, dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.step)

    def __getitem__(self, part: slice | Tensor) -> "Layout":
        return Layout(self.step[part], self.phase[part], self.order[part], self.lasting[part])

    def to(self, device: torch.device | str) -> "Layout":
        return Layout(*(value.to(device) for value in (self.step, self.phase, self.order, self.lasting)))

    @staticmethod
    def joined(*parts: "Layout") -> "Layout":
        """The parts, one after the other."""
        names = ("step", "phase", "order", "lasting")
        return Layout(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Horizon:
    """How long a step is remembered: `steps` (itself counts), every `keyframe_every`th one `keyframe_steps`."""

    steps: int
    keyframe_every: int = 1
    keyframe_steps: int = 0

    def holds(self, step: Tensor | int, now: Tensor | int) -> Tensor | bool:
        """Whether what happened at `step` is still known at `now`."""
        age = now - step
        return (age < self.steps) | ((step % self.keyframe_every == 0) & (age < self.keyframe_steps))


def visible(queries: Layout, keys: Layout, horizon: Horizon | None = None) -> Tensor:
    """bool [L, M]: which keys a query sees.

        of earlier steps   what lasts (as long as the horizon holds)
        of its own step    phases up to its own, so all that is perceived sees each other, and what is said follows

    A lasting token sees only lasting ones: what is remembered does not depend on what is forgotten.
    """
    q_step, k_step = queries.step[:, None], keys.step
    past = keys.lasting & (k_step < q_step)
    if horizon is not None:
        past &= horizon.holds(k_step, q_step)
    own = (k_step == q_step) & (keys.phase <= queries.phase[:, None]) & (keys.lasting | ~queries.lasting[:, None])
    return past | own


def rope(layout: Layout, head_dim: int, base: float, order_pairs: int = 0) -> tuple[Tensor, Tensor]:
    """cos and signed sin [L, 1, d] for `rotate` (Su et al. 2021; halves rotated, as Qwen3 and Llama do).

    Pair i of n turns by base^(-i/n) per step of time (step + phase); the last `order_pairs` have frequencies of their
    own, and turn with `order` instead.
    """
    time_pairs = head_dim // 2 - order_pairs
    angles = _angles(layout.step + layout.phase, time_pairs, base)
    if order_pairs:
        angles = torch.cat([angles, _angles(layout.order, order_pairs, base)], dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def _angles(positions: Tensor, pairs: int, base: float) -> Tensor:
    exponents = torch.arange(0, 2 * pairs, 2, device=positions.device, dtype=torch.float32) / (2 * pairs)
    return positions[:, None].float() * (1.0 / base**exponents)


def rotate(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, L, heads, d] = (a, b) turned by its position's angles: (a cos - b sin, b cos + a sin)."""
    cos, sin = cos_sin
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def attention_bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where bool `allowed`, -inf elsewhere: made once, instead of by every layer from the bool mask."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, **how: bool) -> Tensor:
    """torch's attention of q [B, h, L, d] to k and v [B, g, M, d].

    On a CPU in float32, also under autocast: its backward in bf16 takes four times as long, where the products around
    it win half of theirs.
    """
    if q.device.type == "cuda" or not torch.is_autocast_enabled(q.device.type):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, **how)
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=bias, **how)


class SelfAttention(nn.Module):
    """x [B, L, D] attends to itself and to what the cache holds.

    `qk_norm` as in Qwen3. The encoder goes without: it is shallow, and over its many short heads the norm costs more
    than the attention.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, qk_norm: bool):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * head_dim, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, eps=NORM_EPS) if qk_norm else None
        self.k_norm = nn.RMSNorm(head_dim, eps=NORM_EPS) if qk_norm else None
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | str | Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        cos_sin: tuple[Tensor, Tensor] | None = None,
        cache=None,
        last: int | None = None,
    ) -> Tensor:
        """bias [L, M] from `attention_bias`, CAUSAL, or None: all to all; or who attends in its stead, as a
        `vla.ring_attention.Ring`. cos_sin from `rope`, or None: no order.

        cache: a `vla.cache.LayerCache`, whose `append` returns everything up to and with the new keys and values.
        last: only the last so many tokens ask (bias [last, M]); all are keys.
        """
        B, L, _ = x.shape
        h, g, d = self.heads, self.kv_heads, self.head_dim
        q, k, v = self._project(x, cos_sin)
        if cache is not None:
            k, v = cache.append(k, v)
        if last is not None:
            q, L = q[:, L - last :], last
        if callable(bias):
            y = bias(q.transpose(1, 2), k, v).transpose(1, 2)
        elif bias is None and h != g:  # queries that share a key head are rows of one product
            rows = q.view(B, L, g, h // g, d).transpose(1, 2).reshape(B, g, L * h // g, d)
            y = attend(rows, k, v).view(B, g, L, h // g, d).transpose(1, 2)
        else:
            mask = {"is_causal": True} if bias is CAUSAL else {"bias": bias}
            y = attend(q.transpose(1, 2), k, v, enable_gqa=h != g, **mask).transpose(1, 2)
        return self.out(y.reshape(B, L, h * d))

    def remember(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], cache) -> None:
        """Append the keys and values of x [B, L, D] to the cache; nobody asks."""
        cache.append(*self._project(x, cos_sin)[1:])

    def weights(self, x: Tensor, bias: Tensor | None, cos_sin: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """[B, h, L, L] how much each token attends to each, softmax(q k / sqrt(d) + bias); `forward` never makes it."""
        q, k, _ = self._project(x, cos_sin)
        k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
        scores = q.transpose(1, 2) @ k.transpose(2, 3) * self.head_dim**-0.5
        return (scores if bias is None else scores + bias).softmax(dim=-1)

    def _project(self, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, L, h, d], keys and values [B, g, L, d], normalised and turned."""
        h, g, d = self.heads, self.kv_heads, self.head_dim
        qk, v = self.qkv(x).view(*x.shape[:2], h + 2 * g, d).split([h + g, g], dim=2)
        if self.q_norm is not None:  # queries and keys in one pass
            gain = torch.cat([self.q_norm.weight.expand(h, d), self.k_norm.weight.expand(g, d)])
            qk = F.rms_norm(qk, (d,), eps=NORM_EPS) * gain
        if cos_sin is not None:
            qk = rotate(qk, cos_sin)
        q, k = qk.split([h, g], dim=2)
        return q, k.transpose(1, 2), v.transpose(1, 2)


class CrossAttention(nn.Module):
    """x [B, L, D] attends to memory [B, M, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor | None) -> Tensor:
        """bias [B, 1, L, M] from `attention_bias`, or None: all to all; every row needs one key that is allowed."""
        B, L, _ = x.shape
        q = self.q(x).view(B, L, self.heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(memory).view(B, -1, 2 * self.heads, self.head_dim).transpose(1, 2).chunk(2, dim=1)
        y = attend(q, k, v, bias)
        return self.out(y.transpose(1, 2).reshape(B, L, -1))
