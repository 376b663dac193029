"""From pixels to scene tokens: a small encoder within each image, then fusion over cameras and time.

    patches and/or codes of an image, each with its ray and its time
    patches of one image   <-> patches of the same image     local encoder, weights shared by all cameras and steps
    S queries of step t    -> patches of all cameras of steps <= t  (or of t alone)

so the scene tokens of a past step never change when a new step arrives. Letters as in `sensors.collate.Batch`;
S scene tokens per step, D encoder width, I images that cameras delivered, h w rows and columns of an image's codes.
"""

import itertools
import math
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor, nn

from sensors.collate import Batch, by_step
from sensors.errors import InputError
from vla.attention import CrossAttention, Layout, SelfAttention, attention_bias, rope
from vla.config import ModelConfig
from vla.image_tokens import ImageTokenizer
from vla.moe import SwiGLU
from vla.projectors import (
    DIRECTION_FREQUENCIES,
    METRE_FREQUENCIES,
    PROJECTORS,
    QUERY_KINDS,
    Fourier,
    TimeEmbedding,
    Unshuffle,
)

STEM_FEATURES = 8  # at least so many after each halving of an image
PATCH_ROPE_BASE = 100.0  # grids are a few dozen patches wide
UNSHUFFLED = 2  # an image projector that makes fewer tokens leaves one for each square of this side


@dataclass(frozen=True)
class CodedBatch(Batch):
    """A batch with the codes of its images, by a frozen `vla.image_tokens.ImageTokenizer`.

    codes int64 [B, T, N, h, w]; of an image that is masked they may be anything
    """

    STEPWISE: ClassVar[tuple[str, ...]] = (*Batch.STEPWISE, "codes")
    codes: Tensor


def with_codes(batch: Batch, tokenizer: ImageTokenizer) -> CodedBatch:
    """The batch with its images' codes, each camera's as one film."""
    films = batch.images.transpose(1, 2)
    codes = tokenizer.encode(films.flatten(0, 1)).unflatten(0, films.shape[:2]).transpose(1, 2)
    return CodedBatch(**{field.name: getattr(batch, field.name) for field in fields(batch)}, codes=codes)


class ConvStem(nn.Module):
    """images uint8 [I, H, W, 3] to [I, P, D]: convolutions that each halve the image, down to one vector a patch.

    A lamp is a spot of a few pixels anywhere in a patch: convolutions find it wherever it lies (Xiao et al. 2021).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, halvings = config.encoder_width, config.patch_px.bit_length() - 1
        features = [3, *(max(width >> k, STEM_FEATURES) for k in range(halvings - 1, -1, -1))]
        features[1] //= 2 if halvings > 2 else 1
        self.halvings = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in itertools.pairwise(features))

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).to(self.halvings[0].weight.dtype).div_(127.5).sub_(1.0)
        for halve in self.halvings[:-1]:  # memory for pictures is dear: nothing is made twice that no gradient needs
            x = nn.functional.silu(halve(x), inplace=not torch.is_grad_enabled())
        return self.halvings[-1](x).flatten(2).transpose(1, 2)


class CodeStem(nn.Module):
    """codes int64 [I, h, w] to [I, P, D]: a vector a code, then the square of codes that a patch holds to one."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        rows, columns = config.code_grid
        features, factor = config.encoder_width // 4, config.patch_px // config.code_px
        self.embedding = nn.Embedding(config.image_codes, features)
        self.square = Unshuffle(features, config.encoder_width, rows, columns, factor)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes.flatten(1))
        return self.square(x, x.new_ones(x.shape[:2], dtype=torch.bool))


class RayEmbedding(nn.Module):
    """Where a patch looks from and to, in the ego frame of now: Pluecker ray (d, c x d) and camera centre c.

    Made of the full calibration (intrinsics, distortion, extrinsics) and of the car's own motion since the capture; it
    is all that tells one camera from another.
    """

    def __init__(self, width: int):
        super().__init__()
        self.direction = Fourier(DIRECTION_FREQUENCIES)
        self.metres = Fourier(METRE_FREQUENCIES)
        self.ray = nn.Linear(3 * self.direction.features + 3 * self.metres.features, width)
        self.centre = nn.Linear(3 * self.metres.features, width, bias=False)

    def forward(self, T_ego_now_from_cam: Tensor, rays_in_cam: Tensor, ray_mask: Tensor) -> Tensor:
        """[I, 4, 4], [I, P, 3], [I, P] to [I, P, D], one row per image."""
        R, centre = T_ego_now_from_cam[:, :3, :3], T_ego_now_from_cam[:, None, :3, 3]
        with torch.autocast(rays_in_cam.device.type, enabled=False):  # 8 bits of a direction are a degree
            direction = rays_in_cam @ R.transpose(-1, -2)
        moment = torch.linalg.cross(centre.expand_as(direction), direction)
        ray = self.ray(torch.cat([self.direction(direction), self.metres(moment)], dim=-1))
        return ray * ray_mask[..., None] + self.centre(self.metres(centre))

    def toward(self, directions: Tensor) -> Tensor:
        """Unit vectors of the ego frame [S, 3] to [S, D]: what a ray through the ego origin would be embedded as."""
        return self.ray(torch.cat([self.direction(directions), self.metres(torch.zeros_like(directions))], dim=-1))


class LocalLayer(nn.Module):
    """Pre-norm transformer layer over the patches of one image [I, P, D]."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, heads, heads, width // heads, qk_norm=False)
        self.mlp_norm, self.mlp = nn.RMSNorm(width, eps=1e-6), SwiGLU(width, hidden)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor] | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), None, cos_sin)
        return x + self.mlp(self.mlp_norm(x))


def patch_angles(rows: int, columns: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Rotary cos and sin of a grid, row by row: half of each head's pairs turns with the row, half with the column.

    What a patch pays to another then depends on how far it lies that way, not on where both are.
    """
    row, column = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
    zero = torch.zeros_like(row)
    return rope(Layout(row, zero, column, zero.bool()), head_dim, PATCH_ROPE_BASE, order_pairs=head_dim // 4)


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
    """Batch to scene tokens [B, T, S, D].

    With DeepStack (Meng et al. 2024) [B, T, S, (1 + n) D]: behind each token what it finds in the patches before the
    first, second ... n-th local layer, which is still sharp; the first layers of the backbone add it.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        c, width, heads, hidden = config, config.encoder_width, config.encoder_heads, config.encoder_hidden
        self.stem = ConvStem(c) if c.image_input != "codes" else None
        self.code_stem = CodeStem(c) if c.image_input != "patches" else None
        self.ray, self.time = RayEmbedding(width), TimeEmbedding(width)
        self.content_norm = nn.RMSNorm(width, eps=1e-6)  # or the ray would drown what is seen along it
        self.identity = nn.Embedding(c.cameras, width) if c.camera_identity_dropout < 1 else None
        self.identity_dropout = c.camera_identity_dropout
        self.local = nn.ModuleList(LocalLayer(width, heads, hidden) for _ in range(c.encoder_layers))
        rows, columns = c.patch_grid
        self.angles = patch_angles(rows, columns, width // heads) if c.patch_rope else None
        self.projector = _image_projector(c)
        self.memory_norm = nn.RMSNorm(width, eps=1e-6)
        self.nothing = nn.Parameter(torch.empty(1, width))  # a key that is always there, also when no camera is
        self.queries = nn.Parameter(torch.empty(c.scene_tokens, width))
        self.register_buffer("anchors", anchor_directions(c.scene_tokens), persistent=False)
        self.each_step = c.fusion_reach == "step"
        self.fusion = nn.ModuleList(FusionLayer(width, heads, hidden) for _ in range(c.fusion_layers))
        self.deep_norm = nn.RMSNorm(width, eps=1e-6) if c.deepstack else None
        self.deep = nn.ModuleList(CrossAttention(width, heads) for _ in range(c.deepstack))

    def forward(
        self, batch: Batch, generator: torch.Generator | None = None, kept: list[Tensor] | None = None
    ) -> Tensor:
        """generator: draws, in training, which clips are not told which camera is which, where the config asks it.
        kept: is given what is read of the newest images, [B, N, M, D]."""
        B, T, N = batch.image_mask.shape
        if self.each_step and T > 1:
            scene = self.forward(by_step(batch), generator, kept).view(B, T, len(self.queries), -1)
            if kept is not None:
                kept[-1] = kept[-1].unflatten(0, (B, T))[:, -1]
            return scene
        *shallow, memory = [self.memory_norm(depth) for depth in self.depths(batch, self.told(B, generator))]
        if kept is not None:
            kept.append(memory[:, 1:].unflatten(1, (T, N, -1))[:, -1])
        queries = self.ray.toward(self.anchors) + self.queries
        scene = (queries + self.time(self.step_time_s(batch))[..., None, :]).view(B, -1, queries.shape[-1])
        bias = self.fusion_bias(batch, memory.shape[1] - 1, scene.dtype)
        for layer in self.fusion:
            scene = layer(scene, memory, bias)
        if shallow:
            asking = self.deep_norm(scene)
            found = [attention(asking, depth, bias) for attention, depth in zip(self.deep, shallow, strict=True)]
            scene = torch.cat([scene, *found], dim=-1)
        return scene.view(B, T, len(self.queries), -1)

    def told(self, clips: int, generator: torch.Generator | None) -> Tensor | None:
        """bool [B]: clips that are told which camera is which; None if none ever is."""
        if self.identity is None:
            return None
        if not (self.training and self.identity_dropout):
            return torch.ones(clips, dtype=torch.bool, device=self.queries.device)
        if generator is None:
            fix = "camera_identity_dropout draws from it."
            raise InputError("training", "generator", "none", "a torch.Generator", fix)
        return (torch.rand(clips, generator=generator) >= self.identity_dropout).to(self.queries.device)

    def depths(self, batch: Batch, told: Tensor | None) -> list[Tensor]:
        """What there is to read [B, 1 + T N M, D], M tokens an image: shallow ones for DeepStack, then the encoded.

        The first is `nothing`; what no camera delivered costs nothing, and is zeros.
        """
        B, T, N = batch.image_mask.shape
        delivered = None if batch.image_mask.all() else batch.image_mask.nonzero(as_tuple=True)
        P, D = batch.rays_in_cam.shape[2], self.queries.shape[1]
        M = P if self.projector is None else self.projector.tokens(P)
        if delivered is None:
            full = [one.to(self.queries.dtype) for one in self.patches(batch, None, told)]
        else:
            empty = self.queries.new_zeros(B, T, N, M, D)
            images = self.patches(batch, delivered, told) if len(delivered[0]) else [None] * (len(self.deep) + 1)
            full = [empty if one is None else empty.index_put(delivered, one.to(empty.dtype)) for one in images]
        return [torch.cat([self.nothing.expand(B, 1, D), one.view(B, T * N * M, D)], dim=1) for one in full]

    def patches(
        self, batch: Batch, delivered: tuple[Tensor, Tensor, Tensor] | None, told: Tensor | None
    ) -> list[Tensor]:
        """Tokens [I, M, D] of images, as in `depths`; delivered: clip, step, camera, each int64 [I]; None: all."""
        B, T = batch.image_mask.shape[:2]

        def of(x: Tensor) -> Tensor:  # [B, T, N, ...] to [I, ...]; without a copy where everything is there
            return x.flatten(0, 2) if delivered is None else x[delivered]

        def at_every_step(x: Tensor) -> Tensor:
            return of(x[:, None].expand(B, T, *x.shape[1:]))

        x = self.time(of(batch.time_s))[:, None].to(self.nothing.dtype)  # also where products are in another type
        if self.stem is not None:
            x = self.content_norm(self.stem(of(batch.images)).to(x.dtype)) + x
        if self.code_stem is not None:
            x = self.content_norm(self.code_stem(of(batch.codes)).to(x.dtype)) + x
        if told is not None:
            names = self.identity.weight * told[:, None, None]
            x = x + at_every_step(names)[:, None]
        rays, ray_mask = at_every_step(batch.rays_in_cam), at_every_step(batch.ray_mask)
        x = x + self.ray(of(batch.T_ego_now_from_cam), rays, ray_mask)
        cos_sin = None if self.angles is None else tuple(part.to(x.device) for part in self.angles)
        depths = []
        for layer in self.local:
            depths.append(x)
            x = layer(x, cos_sin)
        depths = [*depths[: len(self.deep)], x]
        return depths if self.projector is None else [self.projector(one, ray_mask) for one in depths]

    def step_time_s(self, batch: Batch) -> Tensor:
        """[B, T]: mean capture time of the cameras that delivered; of all, as scheduled, where none did."""
        seen = batch.image_mask | ~batch.image_mask.any(dim=-1, keepdim=True)
        return (batch.time_s * seen).sum(dim=-1) / seen.sum(dim=-1)

    def fusion_bias(self, batch: Batch, tokens: int, dtype: torch.dtype) -> Tensor | None:
        """[B, 1, T S, 1 + T N M]: steps up to the query's own, cameras that delivered, patches that have a ray.

        None where that is everything. tokens: T N M. What a projector makes of patches has dealt with those that have
        no ray.
        """
        B, T, N = batch.image_mask.shape
        seen, each = batch.image_mask[..., None], tokens // T
        seen = seen & batch.ray_mask[:, None] if self.projector is None else seen.expand(B, T, N, each // N)
        if T == 1 and seen.all():
            return None
        step = torch.arange(T, device=seen.device)
        past = (step[:, None] >= step).repeat_interleave(len(self.queries), dim=0).repeat_interleave(each, dim=1)
        allowed = past & seen.reshape(B, 1, 1, tokens)
        if allowed.all():
            return None
        return attention_bias(nn.functional.pad(allowed, (1, 0), value=True), dtype)


def _image_projector(config: ModelConfig) -> nn.Module | None:
    """What stands between an image's patches and those who read them; None: nothing."""
    kind, width = config.image_projector, config.encoder_width
    if kind == "none":
        return None
    if kind == "unshuffle":
        return PROJECTORS[kind](width, width, *config.patch_grid, UNSHUFFLED)
    return PROJECTORS[kind](width, width, **({"count": config.patches // UNSHUFFLED**2} if kind in QUERY_KINDS else {}))


def check_codes(batch: Batch, config: ModelConfig) -> None:
    """An InputError if a batch has not the codes that a model of this config reads."""
    fix = f"The config says image_input {config.image_input}."
    if not isinstance(batch, CodedBatch):
        raise InputError("batch", "codes", "none", "a CodedBatch: codes of a frozen image tokenizer", fix)
    shape = (*batch.image_mask.shape, *config.code_grid)
    if tuple(batch.codes.shape) != shape or batch.codes.dtype != torch.int64:
        came = f"{batch.codes.dtype} {tuple(batch.codes.shape)}"
        raise InputError("batch", "codes", came, f"int64 {shape}, [B, T, N, h, w]", f"{fix} Is code_px right?")
    seen = batch.codes[batch.image_mask]
    if seen.numel() and not 0 <= int(seen.min()) <= int(seen.max()) < config.image_codes:
        came, expected = f"{int(seen.min())} .. {int(seen.max())}", f"0 .. {config.image_codes - 1}"
        raise InputError("batch", "codes", came, expected, "Change image_codes, or give that tokenizer's codes.")
