"""The decoder that all tokens share: Qwen3-MoE style blocks under one block-causal mask.

    x + Attention(norm(x)), then x + MLP(norm(x)), dense in the first layers, routed in the others

Who sees whom is `vla.attention.Layout` and `visible`. Letters: B batch, L tokens, D width, V vocabulary.
"""

from collections.abc import Callable, MutableSequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from sensors.errors import InputError
from vla.attention import CAUSAL, NORM_EPS, Horizon, Layout, SelfAttention, attention_bias, rope, visible
from vla.cache import Cache, CacheShape, LayerCache
from vla.config import BackboneConfig
from vla.moe import MoE, Routing, SwiGLU


class Block(nn.Module):
    """One layer."""

    def __init__(self, config: BackboneConfig, routed: bool):
        super().__init__()
        c, width = config, config.width
        self.routed = routed
        self.attention_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.attention = SelfAttention(width, c.heads, c.kv_heads, c.head_dim, qk_norm=True)
        self.mlp_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = MoE(c) if routed else SwiGLU(width, c.dense_hidden)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | str | None,
        cos_sin: tuple[Tensor, Tensor],
        cache: LayerCache | None,
        routings: MutableSequence[Routing] | None,
        generator: torch.Generator | None,
        last: int | None = None,
        counted: bool = True,
    ) -> Tensor:
        if last == 0:  # only keys and values are wanted
            self.attention.remember(self.attention_norm(x), cos_sin, cache)
            return x[:, :0]
        attended = self.attention(self.attention_norm(x), bias, cos_sin, cache, last)
        x = (x if last is None else x[:, x.shape[1] - last :]) + attended
        normed = self.mlp_norm(x)
        return x + (self.mlp(normed, routings, generator, counted) if self.routed else self.mlp(normed))

    def again(self, bias, cos_sin, cache, routings, generator, last=None, counted=True) -> tuple:
        """What `forward` takes after x when `vla.recompute` runs it once more, made before the first time: the same
        experts dropped; who was chosen is known already."""
        if generator is not None:
            generator = torch.Generator().set_state(generator.get_state())
        return bias, cos_sin, cache, None, generator, last, False


class Backbone(nn.Module):
    """Embedded tokens x [B, L, D] to hidden states [B, L, D].

    x [B, L, (1 + n) D] carries what DeepStack adds after each of the first n layers behind the tokens themselves.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config, routed=i >= config.dense_layers) for i in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=NORM_EPS)
        self.numbers: Callable = nullcontext  # around all layers; `vla.precision` may want another

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: all but those of the experts that are not chosen for it."""
        total = sum(parameter.numel() for parameter in self.parameters())
        idle = 1 - self.config.experts_per_token / self.config.experts
        routed = [layer.mlp for layer in self.layers if layer.routed]
        return total - round(idle * sum(mlp.gate_up.numel() + mlp.down.numel() for mlp in routed))

    def cache(self, batch: int, tokens: int, like: Tensor, horizon: Horizon | None = None, int8: bool = False) -> Cache:
        """Room for `tokens` tokens of each of `batch` sequences, of the type and on the device of `like`."""
        c = self.config
        return Cache(CacheShape(c.layers, batch, c.kv_heads, tokens, c.head_dim), like, horizon, int8)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        cache: Cache | None = None,
        routings: MutableSequence[Routing] | None = None,
        horizon: Horizon | None = None,
        generator: torch.Generator | None = None,
        last: int | None = None,
    ) -> Tensor:
        """With a cache, x is what follows it, and is added to it. `horizon`: what a cache with one would forget.

        `routings`, where given, gets what each routed layer chose; `generator` is for expert dropout in training.
        last: hidden states of the last so many tokens only, [B, last, D]; the last layer computes no others.
        """
        keys = layout if cache is None else cache.reserve(layout)
        horizon = cache.horizon if cache is not None else horizon
        allowed = visible(layout, keys, horizon)
        bias = None if allowed.all() else attention_bias(allowed, x.dtype)
        if bias is not None and len(layout) == len(keys) and torch.equal(allowed, torch.ones_like(allowed).tril()):
            bias = CAUSAL
        last_bias = attention_bias(allowed[len(layout) - last :], x.dtype) if last and bias is not None else None
        return self.run(x, self.angles(layout), bias, cache, routings, generator, last, last_bias)

    def angles(self, layout: Layout) -> tuple[Tensor, Tensor]:
        """Rotary cos and sin of a layout, for `run`."""
        return rope(layout, self.config.head_dim, self.config.rope_base, self.config.order_pairs)

    def run(
        self,
        x: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        bias: Tensor | str | None = None,
        cache: Cache | None = None,
        routings: MutableSequence[Routing] | None = None,
        generator: torch.Generator | None = None,
        last: int | None = None,
        last_bias: Tensor | str | None = None,
    ) -> Tensor:
        """`forward` for who knows angles and mask already, as a decoding loop does; cache room is the caller's care."""
        x, *deep = x.split(self.config.width, dim=-1)
        final = len(self.layers) - 1
        with self.numbers():
            for i, layer in enumerate(self.layers):
                asked, mask = (last, last_bias) if last is not None and i == final else (None, bias)
                x = layer(x, mask, cos_sin, None if cache is None else cache.layers[i], routings, generator, asked)
                x = x + deep[i] if i < len(deep) else x
        return self.norm(x)

    def remember(self, x: Tensor, layout: Layout, cache: Cache) -> None:
        """Add x to the cache for those who come later; nothing is made of it now."""
        self.forward(x, layout, cache, last=0)


class LanguageModel(nn.Module):
    """Backbone with a table of tokens below and a head above it; the part of the brain that Qwen3-MoE is."""

    def __init__(self, config: BackboneConfig, vocabulary: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.backbone = Backbone(config.validate())
        self.head = nn.Linear(config.width, vocabulary, bias=False)

    def forward(
        self, tokens: Tensor, cache: Cache | None = None, routings: MutableSequence[Routing] | None = None
    ) -> Tensor:
        """Logits [B, L, V] of what follows each of tokens int64 [B, L], which follow the cache."""
        if tokens.min() < 0 or tokens.max() >= len(self.embedding.weight):
            came = f"{int(tokens.min())} .. {int(tokens.max())}"
            expected, fix = f"0 .. {len(self.embedding.weight) - 1}", "Are they of another vocabulary layout?"
            raise InputError("language model", "tokens", came, expected, fix)
        start = 0 if cache is None else len(cache)
        layout = Layout.causal(tokens.shape[1], start, tokens.device)
        return self.head(self.backbone(self.embedding(tokens), layout, cache, routings))
