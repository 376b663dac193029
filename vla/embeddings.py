"""From measured numbers to vectors: pixels, rays, time, IMU and vehicle state.

    fourier(x) = [sin(f1 x), ... sin(fn x), cos(f1 x), ... cos(fn x)]

makes a linear layer able to tell near values apart at every scale of f (Tancik et al. 2020).
Letters: B T N H W P J as in `sensors.collate.Batch`; I images that cameras delivered; D width; F Fourier features of
one number.
"""

import math

import torch
from torch import Tensor, nn

from vla.config import ModelConfig

SUB_PATCH = 4  # px; the stem looks at squares of this side first, then at the whole patch
DIRECTION_FREQUENCIES = tuple(math.pi * 2.0**k for k in range(-1, 4))  # unit vectors; the last tells 2 degrees apart
METRE_FREQUENCIES = tuple(0.05 * 2.0**k for k in range(7))  # rad/m: wavelengths of 126 m down to 2 m
TIME_FREQUENCIES = tuple(2 * math.pi * 2.0**k for k in range(-4, 3))  # rad/s: periods of 16 s down to 0.25 s
SIGNAL_FREQUENCIES = tuple(math.pi * 2.0**k for k in range(-2, 6))  # vehicle signals, scaled to about one
IMU_MEAN = (0.0, 0.0, 9.80665, 0.0, 0.0, 0.0)  # a car at rest on level ground reads zero after this
IMU_SCALE = (5.0, 5.0, 5.0, 0.5, 0.5, 0.5)  # m/s2, rad/s
VEHICLE_SCALE = (20.0, 1.0, 0.6)  # m/s, rad/s, rad


class Fourier(nn.Module):
    """x [..., C] to [..., C * F], F = 2 n for n frequencies."""

    def __init__(self, frequencies: tuple[float, ...]):
        super().__init__()
        self.features = 2 * len(frequencies)
        # cos(z) = sin(z + pi / 2): one pass makes both, without gluing thousands of short rows together.
        phases = [0.0] * len(frequencies) + [math.pi / 2] * len(frequencies)
        self.register_buffer("frequencies", torch.tensor(frequencies * 2), persistent=False)
        self.register_buffer("phases", torch.tensor(phases), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.phases, x[..., None], self.frequencies).sin_().flatten(-2)


class PatchStem(nn.Module):
    """images uint8 [I, H, W, 3] to [I, P, D]: squares of 4 px to vectors, then a patch's squares to one."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.patch_px, self.side = config.patch_px, config.patch_px // SUB_PATCH
        hidden = config.encoder_width // 4
        self.square = nn.Linear(SUB_PATCH * SUB_PATCH * 3, hidden)
        self.patch = nn.Linear(self.side * self.side * hidden, config.encoder_width)

    def forward(self, images: Tensor) -> Tensor:
        I, H, W, _ = images.shape
        rows, columns, side = H // self.patch_px, W // self.patch_px, self.side
        squares = images.reshape(I, rows, side, SUB_PATCH, columns, side, SUB_PATCH, 3)
        squares = squares.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, SUB_PATCH * SUB_PATCH * 3)
        x = nn.functional.silu(self.square(squares.to(self.square.weight.dtype) / 127.5 - 1.0))
        return self.patch(x.view(I, rows * columns, -1))


class TimeEmbedding(nn.Module):
    """Seconds relative to now [...] to [..., D]."""

    def __init__(self, width: int):
        super().__init__()
        self.fourier = Fourier(TIME_FREQUENCIES)
        self.linear = nn.Linear(self.fourier.features, width)

    def forward(self, time_s: Tensor) -> Tensor:
        return self.linear(self.fourier(time_s[..., None]))


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
        direction = rays_in_cam @ R.transpose(-1, -2)
        moment = torch.linalg.cross(centre.expand_as(direction), direction)
        ray = self.ray(torch.cat([self.direction(direction), self.metres(moment)], dim=-1))
        return ray * ray_mask[..., None] + self.centre(self.metres(centre))

    def toward(self, directions: Tensor) -> Tensor:
        """Unit vectors of the ego frame [S, 3] to [S, D]: what a ray through the ego origin would be embedded as."""
        return self.ray(torch.cat([self.direction(directions), self.metres(torch.zeros_like(directions))], dim=-1))


class ImuProjector(nn.Module):
    """imu [B, J, 6], mask [B, J], time [B, J] to tokens [B, imu_tokens, D]; each sees its part of the window."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.tokens = config.imu_tokens
        self.hidden = nn.Linear(7 * config.imu_samples // config.imu_tokens, config.width)
        self.token = nn.Linear(config.width, config.width)
        self.register_buffer("mean", torch.tensor(IMU_MEAN), persistent=False)
        self.register_buffer("scale", torch.tensor(IMU_SCALE), persistent=False)

    def forward(self, imu: Tensor, mask: Tensor) -> Tensor:
        seen = mask[..., None].to(imu.dtype)
        x = torch.cat([(imu - self.mean) / self.scale * seen, seen], dim=-1)
        return self.token(nn.functional.silu(self.hidden(x.view(len(x), self.tokens, -1))))


class VehicleProjector(nn.Module):
    """vehicle [B, 3], mask [B, 3] to one token per signal [B, 3, D]; a missing signal is its own learned token."""

    def __init__(self, width: int):
        super().__init__()
        self.fourier = Fourier(SIGNAL_FREQUENCIES)
        self.weight = nn.Parameter(torch.empty(3, width, self.fourier.features))
        self.known = nn.Parameter(torch.empty(3, width))
        self.missing = nn.Parameter(torch.empty(3, width))
        self.register_buffer("scale", torch.tensor(VEHICLE_SCALE), persistent=False)

    def forward(self, vehicle: Tensor, mask: Tensor) -> Tensor:
        x = self.fourier((vehicle / self.scale)[..., None])
        token = torch.einsum("bsf,sdf->bsd", x, self.weight) + self.known
        return torch.where(mask[..., None], token, self.missing)
