"""From pixels to scene tokens: a small encoder within each image, then fusion over cameras and time.

    patches of one image  <-> patches of the same image      local encoder, weights shared by all cameras and steps
    S queries of step t    -> patches of all cameras of steps <= t

so the scene tokens of a past step never change when a new step arrives. Letters as in `sensors.collate.Batch`;
S scene tokens per step, D encoder width.
"""

import torch
from torch import Tensor, nn

from sensors.collate import Batch
from vla.attention import CrossAttention, SelfAttention, attention_bias
from vla.config import ModelConfig
from vla.embeddings import PatchStem, RayEmbedding, TimeEmbedding
from vla.moe import SwiGLU


class LocalLayer(nn.Module):
    """Pre-norm transformer layer over the patches of one image [B T N, P, D]."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, heads, heads, width // heads, qk_norm=False)
        self.mlp_norm, self.mlp = nn.RMSNorm(width, eps=1e-6), SwiGLU(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class FusionLayer(nn.Module):
    """Pre-norm layer in which scene tokens [B, T S, D] read patches [B, M, D]."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(width, eps=1e-6), CrossAttention(width, heads)
        self.mlp_norm, self.mlp = nn.RMSNorm(width, eps=1e-6), SwiGLU(width, hidden)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), memory, bias)
        return x + self.mlp(self.mlp_norm(x))


class SceneEncoder(nn.Module):
    """Batch to scene tokens [B, T, S, D]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, heads, hidden = config.encoder_width, config.encoder_heads, config.encoder_hidden
        self.stem, self.ray, self.time = PatchStem(config), RayEmbedding(width), TimeEmbedding(width)
        self.local = nn.ModuleList(LocalLayer(width, heads, hidden) for _ in range(config.encoder_layers))
        self.memory_norm = nn.RMSNorm(width, eps=1e-6)
        self.nothing = nn.Parameter(torch.empty(1, width))  # a key that is always there, also when no camera is
        self.queries = nn.Parameter(torch.empty(config.scene_tokens, width))
        self.fusion = nn.ModuleList(FusionLayer(width, heads, hidden) for _ in range(config.fusion_layers))

    def forward(self, batch: Batch) -> Tensor:
        x = self.stem(batch.images) + self.time(batch.time_s)[..., None, :]
        x = x + self.ray(batch.T_ego_now_from_cam, batch.rays_in_cam, batch.ray_mask)
        B, T, N, P, D = x.shape
        x = x.reshape(B * T * N, P, D)
        for layer in self.local:
            x = layer(x)
        memory = torch.cat([self.nothing.expand(B, 1, D), x.view(B, T * N * P, D)], dim=1)
        memory = self.memory_norm(memory)
        scene = (self.queries + self.time(self.step_time_s(batch))[..., None, :]).view(B, -1, D)
        bias = self.fusion_bias(batch, scene.dtype)
        for layer in self.fusion:
            scene = layer(scene, memory, bias)
        return scene.view(B, T, -1, D)

    def step_time_s(self, batch: Batch) -> Tensor:
        """[B, T]: mean capture time of the cameras that delivered; of all, as scheduled, where none did."""
        seen = batch.image_mask | ~batch.image_mask.any(dim=-1, keepdim=True)
        return (batch.time_s * seen).sum(dim=-1) / seen.sum(dim=-1)

    def fusion_bias(self, batch: Batch, dtype: torch.dtype) -> Tensor:
        """[B, 1, T S, 1 + T N P]: steps up to the query's own, cameras that delivered, patches that have a ray."""
        seen = batch.image_mask[..., None] & batch.ray_mask[:, None]
        B, T, N, P = seen.shape
        S = len(self.queries)
        step = torch.arange(T, device=seen.device)
        past = (step[:, None] >= step).repeat_interleave(S, dim=0).repeat_interleave(N * P, dim=1)
        allowed = past & seen.reshape(B, 1, 1, T * N * P)
        return attention_bias(nn.functional.pad(allowed, (1, 0), value=True), dtype)
