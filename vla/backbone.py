"""The decoder that all tokens share: Qwen3-MoE style blocks under one block-causal mask.

Every token carries a block number. It is its rotary position, and the whole mask:

    a query of block q sees keys of blocks <= q      (both ways inside a block, causal across blocks)

Tokens of time step t have block t, the plan token T, action token i T + 1 + i.
"""

import torch
from torch import Tensor, nn

from vla.attention import LayerCache, SelfAttention, attention_bias, rope
from vla.config import ModelConfig
from vla.moe import MoE, SwiGLU


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), dense or routed."""

    def __init__(self, config: ModelConfig, routed: bool):
        super().__init__()
        c, width = config, config.width
        self.routed = routed
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, c.heads, c.kv_heads, c.head_dim, qk_norm=True)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        if routed:
            self.mlp = MoE(width, c.experts, c.experts_per_token, c.expert_hidden, c.shared_experts)
        else:
            self.mlp = SwiGLU(width, c.dense_hidden)

    def forward(
        self, x: Tensor, bias: Tensor | None, cos_sin: tuple[Tensor, Tensor], cache: LayerCache | None
    ) -> tuple[Tensor, Tensor | None]:
        """(x, router z-loss or None)."""
        x = x + self.attention(self.attention_norm(x), bias, cos_sin, cache)
        if not self.routed:
            return x + self.mlp(self.mlp_norm(x)), None
        y, z_loss = self.mlp(self.mlp_norm(x))
        return x + y, z_loss


class Cache:
    """What a decode has seen: keys and values per layer, and the block number of each position."""

    def __init__(self, layers: list[LayerCache], tokens_max: int, device: torch.device):
        self.layers = layers
        self.blocks = torch.zeros(tokens_max, dtype=torch.long, device=device)
        self.length = 0

    def append(self, blocks: Tensor) -> Tensor:
        """Block numbers [M] of all positions, the new ones [L] included."""
        end = self.length + len(blocks)
        self.blocks[self.length : end] = blocks
        self.length = end
        return self.blocks[:end]


class Backbone(nn.Module):
    """Embedded tokens x [B, L, D] with block numbers [L] to (hidden [B, L, D], mean router z-loss)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.kv_heads, self.head_dim = config.kv_heads, config.head_dim
        self.layers = nn.ModuleList(Block(config, routed=i > 0) for i in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)

    def cache(self, batch: int, tokens_max: int, like: Tensor) -> Cache:
        """Room for `tokens_max` tokens of each of `batch` sequences, of the type and on the device of `like`."""
        layers = [LayerCache(batch, self.kv_heads, tokens_max, self.head_dim, like) for _ in self.layers]
        return Cache(layers, tokens_max, like.device)

    def forward(self, x: Tensor, blocks: Tensor, cache: Cache | None = None) -> tuple[Tensor, Tensor]:
        """With a cache, x is what follows it, in order of blocks."""
        keys = blocks if cache is None else cache.append(blocks)
        # A single token that follows everything in the cache sees all of it: no mask.
        bias = None if len(blocks) == 1 else attention_bias(blocks[:, None] >= keys, x.dtype)
        cos_sin = rope(blocks, self.head_dim)
        z_losses = [x.new_zeros(())]
        for i, layer in enumerate(self.layers):
            x, z_loss = layer(x, bias, cos_sin, None if cache is None else cache.layers[i])
            if z_loss is not None:
                z_losses.append(z_loss)
        return self.norm(x), torch.stack(z_losses).sum() / max(len(z_losses) - 1, 1)
