"""What a running decoder remembers: keys and values of every layer, and where their tokens stand.

    the past       cache = Cache(...); backbone(x, layout, cache)
    one step more  cache.begin(step); backbone(x_of_the_step, its_layout, cache)

Appending a step gives the same keys, values and outputs as doing everything again, since nothing that lasts depends on
what follows. Letters as in `vla.attention`.
"""

from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sensors.errors import InputError
from vla.attention import Horizon, Layout

INT8_MAX = 127


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 [..., d], scale [..., 1]): x = int8 * scale, to half a scale; each vector has its own."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / INT8_MAX
    return (x / scale).round().to(torch.int8), scale


class _Store:
    """Vectors [B, g, L_max, d] of one kind (keys or values), filled from the left; as int8 with scales where asked."""

    def __init__(self, shape: tuple[int, ...], like: Tensor, int8: bool):
        self.data = like.new_zeros(shape, dtype=torch.int8 if int8 else like.dtype)
        self.scale = like.new_zeros(*shape[:-1], 1) if int8 else None

    def put(self, x: Tensor, start: int, end: int) -> Tensor:
        """Store x [B, g, L, d] at start .. end; returns everything before `end`."""
        if self.scale is None:
            self.data.narrow(2, start, end - start).copy_(x)
            return self.data.narrow(2, 0, end)
        self.data[:, :, start:end], self.scale[:, :, start:end] = quantise(x)
        return self.data[:, :, :end].to(x.dtype) * self.scale[:, :, :end]

    def keep(self, index: Tensor | slice) -> None:
        for stored in (self.data,) if self.scale is None else (self.data, self.scale):
            kept = stored[:, :, index].clone()  # a slice of it would be written over while it is read
            stored.narrow(2, 0, kept.shape[2]).copy_(kept)

    def repeated(self, count: int) -> "_Store":
        other = copy(self)
        other.data = self.data.repeat(count, 1, 1, 1)
        other.scale = None if self.scale is None else self.scale.repeat(count, 1, 1, 1)
        return other


class LayerCache:
    """Keys and values of one layer."""

    def __init__(self, shape: tuple[int, ...], like: Tensor, int8: bool):
        self.keys, self.values = _Store(shape, like, int8), _Store(shape, like, int8)
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Everything up to and with the new ones [B, g, L, d]."""
        start, self.length = self.length, self.length + keys.shape[2]
        return self.keys.put(keys, start, self.length), self.values.put(values, start, self.length)

    def repeated(self, count: int) -> "LayerCache":
        other = copy(self)
        other.keys, other.values = self.keys.repeated(count), self.values.repeated(count)
        return other


@dataclass(frozen=True)
class CacheShape:
    """Room for `tokens` tokens of each of `batch` sequences, in `layers` layers."""

    layers: int
    batch: int
    kv_heads: int
    tokens: int
    head_dim: int


class Cache:
    """One `LayerCache` per layer; `layout` says where the tokens stand that they hold."""

    def __init__(self, shape: CacheShape, like: Tensor, horizon: Horizon | None = None, int8: bool = False):
        self.shape, self.horizon = shape, horizon
        room = (shape.batch, shape.kv_heads, shape.tokens, shape.head_dim)
        self.layers = [LayerCache(room, like, int8) for _ in range(shape.layers)]
        self.layout = Layout.causal(0, device=like.device)

    def __len__(self) -> int:
        return self.layers[0].length

    @property
    def bytes(self) -> int:
        """Memory of keys, values and scales."""
        stores = [store for layer in self.layers for store in (layer.keys, layer.values)]
        tensors = [t for store in stores for t in (store.data, store.scale) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)

    def reserve(self, layout: Layout) -> Layout:
        """Note where the next tokens will stand; returns all, old and new. Too many for the room are an InputError."""
        if len(self.layout) + len(layout) > self.shape.tokens:
            came = f"{len(layout)} tokens after {len(self.layout)}"
            fix = "Make the cache larger, or its horizon shorter."
            raise InputError("cache", "tokens", came, f"at most {self.shape.tokens} in all", fix)
        self.layout = Layout.joined(self.layout, layout)
        return self.layout

    def truncate(self, tokens: int) -> None:
        """Forget all but the first `tokens`."""
        self.layout = self.layout[:tokens]
        for layer in self.layers:
            layer.length = tokens

    def keep(self, which: Tensor) -> None:
        """Forget all tokens for which bool [M] is false; the others close up."""
        index = which.nonzero()[:, 0]
        self.layout, count = self.layout[index], len(index)
        first = int(index[0]) if count else 0
        if count and int(index[-1]) - first + 1 == count:  # one run, as a car that drives on keeps: copied at once
            index = slice(first, first + count)
        for layer in self.layers:
            layer.keys.keep(index)
            layer.values.keep(index)
            layer.length = count

    def begin(self, step: int) -> None:
        """Before the tokens of `step`: forget what does not last, and what the horizon no longer holds."""
        which = self.layout.lasting
        if self.horizon is not None:
            which = which & self.horizon.holds(self.layout.step, step)
        if not which.all():
            self.keep(which)

    def repeated(self, count: int) -> "Cache":
        """A copy for `count` continuations of each sequence: their common past is computed once."""
        other = copy(self)
        other.shape = replace(self.shape, batch=self.shape.batch * count)
        other.layers = [layer.repeated(count) for layer in self.layers]
        return other
