"""Attention: grouped queries, normalised queries and keys, rotary positions, and the cache of a decode.

Letters: B batch, L tokens, M memory tokens, D width, h query heads, g key heads (h a multiple of g), d head size.
"""

import torch
from torch import Tensor, nn

ROPE_BASE = 10_000.0


def rope(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin [L, d] of integer positions [L] (Su et al. 2021; halves rotated, as Qwen3 and Llama do)."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[:, None].float() * ROPE_BASE**-exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, L, heads, d] turned by its position's angles."""
    cos, sin = cos_sin
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def attention_bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where bool `allowed`, -inf elsewhere: made once, instead of by every layer from the bool mask."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))


class LayerCache:
    """Keys and values of one layer [B, g, L_max, d], filled from the left."""

    def __init__(self, batch: int, kv_heads: int, tokens_max: int, head_dim: int, like: Tensor):
        self.keys = like.new_empty(batch, kv_heads, tokens_max, head_dim)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Everything up to and with the new ones [B, g, L, d] (views)."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class SelfAttention(nn.Module):
    """x [B, L, D] attends to itself and to what the cache holds.

    `qk_norm` as in Qwen3. The encoder goes without: it is shallow, and over its many short heads the norm costs more
    than the attention.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, qk_norm: bool):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * head_dim, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.out = nn.Linear(heads * head_dim, width, bias=False)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        cos_sin: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """bias [L, M] from `attention_bias`, or None: all to all. cos_sin from `rope`, or None: a set, no order."""
        B, L, _ = x.shape
        qkv = self.qkv(x).view(B, L, -1, self.head_dim)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        q, k = self.q_norm(q), self.k_norm(k)
        if cos_sin is not None:
            q, k = rotate(q, cos_sin), rotate(k, cos_sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(k, v)
        grouped = self.heads != self.kv_heads
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=grouped)
        return self.out(y.transpose(1, 2).reshape(B, L, -1))


class CrossAttention(nn.Module):
    """x [B, L, D] attends to memory [B, M, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """bias [B, 1, L, M] from `attention_bias`; every row needs one key that is allowed."""
        B, L, _ = x.shape
        q = self.q(x).view(B, L, self.heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(memory).view(B, -1, 2 * self.heads, self.head_dim).transpose(1, 2).chunk(2, dim=1)
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(y.transpose(1, 2).reshape(B, L, -1))
