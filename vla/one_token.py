"""One token more of one sequence, on a CPU, in NumPy: what `Backbone.run` makes of it, in a fraction of the time.

A plan is said token by token, and each takes some hundred products with one vector. torch is longer told of such a
product of a small model than it takes to do it; NumPy is told in a microsecond or two. `Backbone.run` is the readable
twin, and what is used for all that is larger, or otherwise.
"""

import math
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from vla.attention import NORM_EPS
from vla.backbone import Backbone, Block
from vla.cache import Cache, LayerCache
from vla.moe import MoE, SwiGLU, grouped_linear

MOST_WIDTH = 384  # of a backbone; of a wider one the products take longer than their telling


class TokenSteps:
    """Takes tokens that follow what a cache holds, one by one, and adds them to it; who may take them, says `of`."""

    def __init__(self, backbone: Backbone, cache: Cache):
        self._layers = [_Layer(layer, kept) for layer, kept in zip(backbone.layers, cache.layers, strict=True)]
        self._norm = _array(backbone.norm.weight)

    @classmethod
    def of(cls, backbone: Backbone, cache: Cache) -> "TokenSteps | None":
        """None where `Backbone.run` has to do it: for a batch, on a GPU, in other numbers, for what is to be learned
        from, where experts are elsewhere, and for a wide model."""
        like = cache.layers[0].keys.data
        plain = cache.shape.batch == 1 and like.dtype == torch.float32 and like.device.type == "cpu"
        plain = plain and backbone.config.width <= MOST_WIDTH and backbone.numbers is nullcontext
        plain = plain and not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
        return cls(backbone, cache) if plain and all(map(_is_plain, backbone.layers)) else None

    def __call__(self, x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
        """The hidden state [1, 1, D] of the last of tokens [1, L, D]; cos_sin of them as `vla.attention.rope` has it.
        Room in the cache is the caller's care."""
        cos, sin = (_array(each)[:, 0] for each in cos_sin)
        with np.errstate(all="ignore"):  # what is not finite is so in the end, and whoever chooses by it sees it
            for token, *angles in zip(_array(x)[0], cos, sin, strict=True):
                for layer in self._layers:
                    token = layer.step(token, *angles)
            return torch.from_numpy(_normed(token, self._norm)).view(1, 1, -1)


class _Layer:
    """A block's weights as arrays, and the room for its keys and values."""

    def __init__(self, block: Block, cache: LayerCache):
        attention = block.attention
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        self.attention_norm, self.mlp_norm = _array(block.attention_norm.weight), _array(block.mlp_norm.weight)
        self.qkv, self.out = _array(attention.qkv.weight), _array(attention.out.weight)
        q_gain, k_gain = _array(attention.q_norm.weight), _array(attention.k_norm.weight)
        self.gain = np.stack([q_gain] * self.heads + [k_gain] * self.kv_heads)
        self.mlp = _Mixture(block.mlp) if block.routed else _Gated.of(block.mlp)
        self.cache, self.keys, self.values = cache, _array(cache.keys.data)[0], _array(cache.values.data)[0]

    def step(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        """x [D], angles [d]."""
        h, g, d = self.heads, self.kv_heads, self.head_dim
        qkv = (self.qkv @ _normed(x, self.attention_norm)).reshape(h + 2 * g, d)
        qk = qkv[: h + g]
        qk = qk * (self.gain / np.sqrt((qk * qk).sum(axis=1, keepdims=True) / d + NORM_EPS))
        half = d // 2
        qk = qk * cos + np.concatenate([qk[:, half:], qk[:, :half]], axis=1) * sin
        at = self.cache.length
        self.keys[:, at], self.values[:, at] = qk[h:], qkv[h + g :]
        self.cache.length = end = at + 1
        scores = qk[:h].reshape(g, h // g, d) @ self.keys[:, :end].swapaxes(1, 2) * d**-0.5
        share = np.exp(scores - scores.max(axis=-1, keepdims=True))
        seen = (share / share.sum(axis=-1, keepdims=True)) @ self.values[:, :end]
        x = x + self.out @ seen.reshape(h * d)
        return x + self.mlp(_normed(x, self.mlp_norm))


class _Gated:
    """`vla.moe.SwiGLU` of a vector."""

    def __init__(self, gate_up: np.ndarray, down: np.ndarray):
        self.gate_up, self.down, self.hidden = gate_up, down, down.shape[1]

    @classmethod
    def of(cls, module: SwiGLU) -> "_Gated":
        return cls(_array(module.gate_up.weight), _array(module.down.weight))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        gate_up = self.gate_up @ x
        gate = gate_up[: self.hidden]
        return self.down @ (gate / (1 + np.exp(-gate)) * gate_up[self.hidden :])


class _Mixture:
    """`vla.moe.MoE` of a vector."""

    def __init__(self, module: MoE):
        self.k, self.softmax, self.normalise = module.k, module.softmax, module.normalise
        self.router, self.bias = _array(module.router.weight), _array(module.bias)
        self.experts = [_Gated(*each) for each in zip(_array(module.gate_up), _array(module.down), strict=True)]
        self.shared = None if module.shared is None else _Gated.of(module.shared)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        logits = self.router @ x
        if self.softmax:
            scores = np.exp(logits - logits.max())
            preference = scores = scores / scores.sum()
        else:
            scores = 1 / (1 + np.exp(-logits))
            preference = scores + self.bias
        chosen = np.argsort(preference)[: -self.k - 1 : -1]
        weights = scores[chosen]
        if self.normalise:
            weights = weights / weights.sum()
        y = 0.0 if self.shared is None else self.shared(x)
        for weight, expert in zip(weights, chosen, strict=True):
            y = y + weight * self.experts[expert](x)
        return y


def _normed(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return x * (gain * (1 / math.sqrt(float(x @ x) / len(x) + NORM_EPS)))  # plain numbers: told in less


def _array(tensor: Tensor) -> np.ndarray:
    """The same memory."""
    return tensor.detach().numpy()


def _is_plain(block: Block) -> bool:
    """Whether nothing of it has been put in another's place, see `vla.precision` and `vla.expert_parallel`."""
    mlp, linears = block.mlp, [block.attention.qkv, block.attention.out]
    if block.routed:
        linears += [mlp.router, *([] if mlp.shared is None else [mlp.shared.gate_up, mlp.shared.down])]
        if mlp.up_product is not grouped_linear or mlp.exchange is not None:
            return False
    else:
        linears += [mlp.gate_up, mlp.down]
    return all(type(linear) is nn.Linear for linear in linears)
