"""From pixels to scene tokens: a small encoder within each image, then fusion over cameras and time.

    patches of one image  <-> patches of the same image      local encoder, weights shared by all cameras and steps
    S queries of step t    -> patches of all cameras of steps <= t  (or of t alone)

so the scene tokens of a past step never change when a new step arrives. Letters as in `sensors.collate.Batch`;
S scene tokens per step, D encoder width, I images that cameras delivered.
"""

import math

import torch
from torch import Tensor, nn

from sensors.collate import Batch, by_step
from vla.attention import CrossAttention, SelfAttention, attention_bias
from vla.config import ModelConfig
from vla.embeddings import PatchStem, RayEmbedding, TimeEmbedding
from vla.moe import SwiGLU


class LocalLayer(nn.Module):
    """Pre-norm transformer layer over the patches of one image [I, P, D]."""

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

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), memory, bias)
        return x + self.mlp(self.mlp_norm(x))


def anchor_directions(count: int) -> Tensor:
    """Unit vectors [S, 3] of the ego frame, spread all round, from 35 degrees down to 5 degrees up.

    Scene token s starts out as the query for what is seen in direction s. With queries that mean nothing, attention
    over hundreds of patches starts out as the average of them all, and learns to look only after thousands of steps.
    """
    k = torch.arange(count, dtype=torch.float64) + 0.5
    azimuth = 2 * math.pi * k * (math.sqrt(5) - 1) / 2  # golden angle: no two alike, evenly spread for any count
    elevation = torch.deg2rad(-35 + 40 * k / count)
    return torch.stack(
        [azimuth.cos() * elevation.cos(), azimuth.sin() * elevation.cos(), elevation.sin()], dim=-1
    ).float()


class SceneEncoder(nn.Module):
    """Batch to scene tokens [B, T, S, D]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, heads, hidden = config.encoder_width, config.encoder_heads, config.encoder_hidden
        self.stem, self.ray, self.time = PatchStem(config), RayEmbedding(width), TimeEmbedding(width)
        self.content_norm = nn.RMSNorm(width, eps=1e-6)  # or the ray would drown what is seen along it
        self.local = nn.ModuleList(LocalLayer(width, heads, hidden) for _ in range(config.encoder_layers))
        self.memory_norm = nn.RMSNorm(width, eps=1e-6)
        self.nothing = nn.Parameter(torch.empty(1, width))  # a key that is always there, also when no camera is
        self.queries = nn.Parameter(torch.empty(config.scene_tokens, width))
        self.register_buffer("anchors", anchor_directions(config.scene_tokens), persistent=False)
        self.each_step = config.fusion_reach == "step"
        self.fusion = nn.ModuleList(FusionLayer(width, heads, hidden) for _ in range(config.fusion_layers))

    def forward(self, batch: Batch) -> Tensor:
        B, T, N = batch.image_mask.shape
        if self.each_step and T > 1:
            return self.forward(by_step(batch)).view(B, T, len(self.queries), -1)
        P, D = batch.rays_in_cam.shape[2], self.queries.shape[1]
        patches = self.queries.new_zeros(B, T, N, P, D)
        b, t, n = batch.image_mask.nonzero(as_tuple=True)  # what no camera delivered costs nothing
        if len(b):
            patches = patches.index_put((b, t, n), self.patches(batch, b, t, n))
        memory = torch.cat([self.nothing.expand(B, 1, D), patches.view(B, T * N * P, D)], dim=1)
        memory = self.memory_norm(memory)
        queries = self.ray.toward(self.anchors) + self.queries
        scene = (queries + self.time(self.step_time_s(batch))[..., None, :]).view(B, -1, D)
        bias = self.fusion_bias(batch, scene.dtype)
        for layer in self.fusion:
            scene = layer(scene, memory, bias)
        return scene.view(B, T, -1, D)

    def patches(self, batch: Batch, b: Tensor, t: Tensor, n: Tensor) -> Tensor:
        """Encoded patches [I, P, D] of the images at clips b, steps t, cameras n, each int64 [I]."""
        x = self.content_norm(self.stem(batch.images[b, t, n])) + self.time(batch.time_s[b, t, n])[:, None]
        x = x + self.ray(batch.T_ego_now_from_cam[b, t, n], batch.rays_in_cam[b, n], batch.ray_mask[b, n])
        for layer in self.local:
            x = layer(x)
        return x

    def step_time_s(self, batch: Batch) -> Tensor:
        """[B, T]: mean capture time of the cameras that delivered; of all, as scheduled, where none did."""
        seen = batch.image_mask | ~batch.image_mask.any(dim=-1, keepdim=True)
        return (batch.time_s * seen).sum(dim=-1) / seen.sum(dim=-1)

    def fusion_bias(self, batch: Batch, dtype: torch.dtype) -> Tensor | None:
        """[B, 1, T S, 1 + T N P]: steps up to the query's own, cameras that delivered, patches that have a ray.

        None where that is everything.
        """
        seen = batch.image_mask[..., None] & batch.ray_mask[:, None]
        B, T, N, P = seen.shape
        S = len(self.queries)
        step = torch.arange(T, device=seen.device)
        past = (step[:, None] >= step).repeat_interleave(S, dim=0).repeat_interleave(N * P, dim=1)
        allowed = past & seen.reshape(B, 1, 1, T * N * P)
        if allowed.all():
            return None
        return attention_bias(nn.functional.pad(allowed, (1, 0), value=True), dtype)
