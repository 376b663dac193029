"""From measured numbers to tokens: Fourier features, the `Projector` protocol with five kinds, and their uses.

    linear     W x + b, a token an input
    mlp        W2 gelu(W1 x + b1) + b2, a token an input
    unshuffle  r x r neighbours of a grid become one token: nothing is lost, there are r^2 fewer
    resampler  M queries read the inputs and each other in one attention (Perceiver, Alayrac et al. 2022, Flamingo)
    q_former   M queries talk among themselves, then read the inputs (Li et al. 2023, BLIP-2)

A config names the kind for the IMU window, the vehicle's state, calibration and the features of images.
Letters: B batch, L inputs, C their width, M tokens out, D width of the backbone; N P J as in `sensors.collate.Batch`.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from sensors.collate import Batch
from sensors.errors import InputError
from vla.attention import CrossAttention, SelfAttention, attention_bias
from vla.config import ModelConfig
from vla.moe import SwiGLU

METRE_FREQUENCIES = tuple(0.05 * 2.0**k for k in range(7))  # rad/m: wavelengths of 126 m down to 2 m
DIRECTION_FREQUENCIES = tuple(math.pi * 2.0**k for k in range(-1, 4))  # unit vectors; the last tells 2 degrees apart
TIME_FREQUENCIES = tuple(2 * math.pi * 2.0**k for k in range(-4, 3))  # rad/s: periods of 16 s down to 0.25 s
SIGNAL_FREQUENCIES = tuple(math.pi * 2.0**k for k in range(-2, 6))  # vehicle signals, scaled to about one
IMU_MEAN = (0.0, 0.0, 9.80665, 0.0, 0.0, 0.0)  # a car at rest on level ground reads zero after this
IMU_SCALE = (5.0, 5.0, 5.0, 0.5, 0.5, 0.5)  # m/s2, rad/s
VEHICLE_SCALE = (20.0, 1.0, 0.6)  # m/s, rad/s, rad
QUERY_KINDS = ("resampler", "q_former")


class Fourier(nn.Module):
    """x [..., C] to [..., C * F], F = 2 n for n frequencies.

        fourier(x) = [sin(f1 x), ... sin(fn x), cos(f1 x), ... cos(fn x)]

    makes a linear layer able to tell near values apart at every scale of f (Tancik et al. 2020).
    """

    def __init__(self, frequencies: tuple[float, ...]):
        super().__init__()
        self.features = 2 * len(frequencies)
        # cos(z) = sin(z + pi / 2): one pass makes both, without gluing thousands of short rows together.
        phases = [0.0] * len(frequencies) + [math.pi / 2] * len(frequencies)
        self.register_buffer("frequencies", torch.tensor(frequencies * 2), persistent=False)
        self.register_buffer("phases", torch.tensor(phases), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.phases, x[..., None], self.frequencies).sin_().flatten(-2)


class TimeEmbedding(nn.Module):
    """Seconds relative to now [...] to [..., D]."""

    def __init__(self, width: int):
        super().__init__()
        self.fourier = Fourier(TIME_FREQUENCIES)
        self.linear = nn.Linear(self.fourier.features, width)

    def forward(self, time_s: Tensor) -> Tensor:
        return self.linear(self.fourier(time_s[..., None]))


class Projector(Protocol):
    """Callable on features [B, L, C] with mask bool [B, L] (True: known); gives tokens [B, M, D].

    tokens(L) says M. What is masked changes no token. With nothing known at all the tokens are the projector's own.
    """

    def tokens(self, inputs: int) -> int: ...

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor: ...


class TokenWise(nn.Module):
    """The same small network for every input; `missing` [D] stands for one that is masked."""

    def __init__(self, features: int, width: int, hidden: int = 0):
        super().__init__()
        layers = [nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, width)] if hidden else []
        self.net = nn.Sequential(*(layers or [nn.Linear(features, width)]))
        self.missing = nn.Parameter(torch.zeros(width))

    def tokens(self, inputs: int) -> int:
        return inputs

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask[..., None], self.net(x.masked_fill(~mask[..., None], 0.0)), self.missing)


class Unshuffle(nn.Module):
    """A grid of rows x columns features, row by row; each square of r x r becomes one vector, then one token.

    An input that is masked counts as zeros beside a flag that says so.
    """

    def __init__(self, features: int, width: int, rows: int, columns: int, factor: int):
        super().__init__()
        if rows % factor or columns % factor:
            raise InputError("projector", "factor", factor, f"a divisor of the grid, {rows} x {columns}")
        self.rows, self.columns, self.factor = rows, columns, factor
        self.net = nn.Linear((features + 1) * factor**2, width)

    def tokens(self, inputs: int) -> int:
        return inputs // self.factor**2

    def squares(self, x: Tensor) -> Tensor:
        """[B, L, C] to [B, L / r^2, r^2 C], every number kept."""
        r = self.factor
        grid = x.unflatten(1, (self.rows // r, r, self.columns // r, r))
        return grid.movedim(3, 2).flatten(3, 5).flatten(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if x.shape[1] != self.rows * self.columns:
            raise InputError("projector", "inputs", x.shape[1], f"{self.rows} x {self.columns}")
        known = mask[..., None].to(x.dtype)
        return self.net(self.squares(torch.cat([x.masked_fill(~mask[..., None], 0.0), known], dim=-1)))


class _Reader(nn.Module):
    """Queries read a memory; then each thinks for itself. `talks`: they read each other first."""

    def __init__(self, width: int, heads: int, hidden: int, talks: bool):
        super().__init__()
        self.talk_norm = nn.RMSNorm(width, eps=1e-6) if talks else None
        self.talk = SelfAttention(width, heads, heads, width // heads, qk_norm=False) if talks else None
        self.read_norm, self.read = nn.RMSNorm(width, eps=1e-6), CrossAttention(width, heads)
        self.mlp_norm, self.mlp = nn.RMSNorm(width, eps=1e-6), SwiGLU(width, hidden)

    def forward(self, x: Tensor, memory: Tensor, known: Tensor) -> Tensor:
        if self.talk is not None:
            x = x + self.talk(self.talk_norm(x))
        normed = self.read_norm(x)
        if self.talk is None:  # one attention over the inputs and the queries themselves
            memory = torch.cat([memory, normed], dim=1)
            known = nn.functional.pad(known, (0, x.shape[1]), value=True)
        x = x + self.read(normed, memory, attention_bias(known[:, None, None], x.dtype))
        return x + self.mlp(self.mlp_norm(x))


class Queries(nn.Module):
    """`count` learned queries read any number of inputs in `layers` layers. `nothing` is always there to be read."""

    def __init__(self, features: int, width: int, count: int, heads: int, layers: int, talks: bool):
        super().__init__()
        if width % heads:
            raise InputError("projector", "heads", heads, f"a divisor of width = {width}")
        self.count = count
        self.input, self.input_norm = nn.Linear(features, width), nn.RMSNorm(width, eps=1e-6)
        self.queries, self.nothing = nn.Parameter(torch.empty(count, width)), nn.Parameter(torch.empty(1, width))
        self.layers = nn.ModuleList(_Reader(width, heads, 2 * width, talks) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        nn.init.normal_(self.queries, std=0.1)
        nn.init.normal_(self.nothing, std=0.1)

    def tokens(self, inputs: int) -> int:
        return self.count

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        memory = self.input_norm(self.input(x.masked_fill(~mask[..., None], 0.0)))
        memory = torch.cat([self.nothing.expand(len(x), 1, -1), memory], dim=1)
        known = nn.functional.pad(mask, (1, 0), value=True)
        tokens = self.queries.expand(len(x), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, memory, known)
        return self.norm(tokens)


PROJECTORS: dict[str, Callable[..., nn.Module]] = {
    "linear": lambda features, width: TokenWise(features, width),
    "mlp": lambda features, width: TokenWise(features, width, hidden=width),
    "unshuffle": Unshuffle,
    "resampler": lambda features, width, count, heads=4, layers=2: Queries(
        features, width, count, heads, layers, talks=False
    ),
    "q_former": lambda features, width, count, heads=4, layers=2: Queries(
        features, width, count, heads, layers, talks=True
    ),
}


class ImuProjector(nn.Module):
    """imu [B, J, 6], mask [B, J], time_s [B, J] to tokens [B, imu_tokens, D].

    With a kind that gives a token an input, each token is made of its own part of the window, known samples beside a
    flag; with queries, each reads all samples and their times.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.tokens, kind = config.imu_tokens, config.imu_projector
        self.by_sample = kind in QUERY_KINDS
        if self.by_sample:
            self.time = Fourier(TIME_FREQUENCIES)
            self.net = PROJECTORS[kind](6 + self.time.features, config.width, count=self.tokens)
        else:
            self.time = TimeEmbedding(config.width)
            self.net = PROJECTORS[kind](7 * config.imu_samples // config.imu_tokens, config.width)
        self.register_buffer("mean", torch.tensor(IMU_MEAN), persistent=False)
        self.register_buffer("scale", torch.tensor(IMU_SCALE), persistent=False)

    def forward(self, imu: Tensor, mask: Tensor, time_s: Tensor) -> Tensor:
        x, seen = (imu - self.mean) / self.scale, mask[..., None].to(imu.dtype)
        if self.by_sample:
            return self.net(torch.cat([x, self.time(time_s[..., None])], dim=-1), mask)
        part = len(x), self.tokens, -1
        tokens = self.net(torch.cat([x * seen, seen], dim=-1).view(part), mask.view(part).any(dim=-1))
        return tokens + self.time(time_s.view(part).mean(dim=-1))


class VehicleProjector(nn.Module):
    """vehicle [B, 3], mask [B, 3] to one token a signal [B, 3, D], each by a projector of its own."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.fourier, queries = Fourier(SIGNAL_FREQUENCIES), config.vehicle_projector in QUERY_KINDS
        make, count = PROJECTORS[config.vehicle_projector], {"count": 1} if queries else {}
        self.signals = nn.ModuleList(make(self.fourier.features, config.width, **count) for _ in VEHICLE_SCALE)
        self.register_buffer("scale", torch.tensor(VEHICLE_SCALE), persistent=False)

    def forward(self, vehicle: Tensor, mask: Tensor) -> Tensor:
        x = self.fourier((vehicle / self.scale)[..., None])
        parts = zip(self.signals, x.split(1, dim=1), mask.split(1, dim=1), strict=True)
        return torch.cat([signal(features, known) for signal, features, known in parts], dim=1)


class CalibrationProjector(nn.Module):
    """Where the cameras stand now and which way they look: a batch to tokens [B, N, D].

    A camera is its centre and the directions of five of its rays, of the corners and the middle, in the ego frame of
    now. One that did not deliver now is not known.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        rows, columns = config.image_height // config.patch_px, config.image_width // config.patch_px
        last = rows * columns - 1
        self.looked_at = [0, columns - 1, rows // 2 * columns + columns // 2, last - columns + 1, last]
        self.metres, self.direction = Fourier(METRE_FREQUENCIES), Fourier(DIRECTION_FREQUENCIES)
        features = 3 * self.metres.features + len(self.looked_at) * (3 * self.direction.features + 1)
        count = {"count": config.cameras} if config.calibration_projector in QUERY_KINDS else {}
        self.net = PROJECTORS[config.calibration_projector](features, config.width, **count)

    def forward(self, batch: Batch) -> Tensor:
        T, known = batch.T_ego_now_from_cam[:, -1], batch.ray_mask[:, :, self.looked_at, None]
        rays = batch.rays_in_cam[:, :, self.looked_at] @ T[..., :3, :3].transpose(-1, -2)
        parts = self.metres(T[..., :3, 3]), (self.direction(rays) * known).flatten(2), known.flatten(2).to(rays.dtype)
        return self.net(torch.cat(parts, dim=-1), batch.image_mask[:, -1])
