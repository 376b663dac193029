"""From clips to one batch of tensors: the last place where time is in microseconds and poses are in the world frame.

Differences are taken in int64 and float64 first, then rounded to float32: a float32 holds neither microseconds since
1970 nor map coordinates to the centimetre.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch

from sensors.camera import Camera
from sensors.clip import ROUTE_COMMANDS, Clip
from sensors.errors import InputError

IMU_GAP_US = 50_000  # samples farther apart than this have nothing known between them


@dataclass(frozen=True)
class Batch:
    """B clips. P patches per image (row by row), J IMU samples on a fixed grid that ends at now; otherwise as `Clip`.

    images               uint8   [B, T, N, H, W, 3] RGB, zeros where masked
    image_mask           bool    [B, T, N]
    time_s               float32 [B, T, N]       capture time minus now, <= 0
    T_ego_now_from_cam   float32 [B, T, N, 4, 4] camera at its capture, in the ego frame of now
                                                 (both, with `each_step`, of the step's own now)
    rays_in_cam          float32 [B, N, P, 3]    unit rays through patch centres; zeros where the camera has no ray
    ray_mask             bool    [B, N, P]
    imu                  float32 [B, J, 6]       accel_mps2, gyro_radps; zeros where masked
    imu_mask             bool    [B, J]
    imu_time_s           float32 [B, J]          minus now, <= 0
    vehicle              float32 [B, 3]          speed_mps, yaw_rate_radps, steering_rad; zeros where masked
    vehicle_mask         bool    [B, 3]
    command_id           int64   [B]             index into ROUTE_COMMANDS
    instruction          int64   [B, I]          its tokens in the model's vocabulary; I may be 0

    STEPWISE names the fields that have T steps; a subclass with more fields adds to it.
    """

    STEPWISE: ClassVar[tuple[str, ...]] = ("images", "image_mask", "time_s", "T_ego_now_from_cam")

    images: torch.Tensor
    image_mask: torch.Tensor
    time_s: torch.Tensor
    T_ego_now_from_cam: torch.Tensor
    rays_in_cam: torch.Tensor
    ray_mask: torch.Tensor
    imu: torch.Tensor
    imu_mask: torch.Tensor
    imu_time_s: torch.Tensor
    vehicle: torch.Tensor
    vehicle_mask: torch.Tensor
    command_id: torch.Tensor
    instruction: torch.Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; asynchronous where its memory is pinned."""
        return type(self)(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory (torch's DataLoader calls this when asked to pin)."""
        return type(self)(*(getattr(self, field.name).pin_memory() for field in fields(self)))


def collate(
    clips: Sequence[Clip],
    patch_px: int = 16,
    imu_samples: int = 100,
    imu_rate_hz: int = 100,
    each_step: bool = False,
    instruct: Callable[[str], Sequence[int]] | None = None,
) -> Batch:
    """One batch of valid clips (`Clip.validate` is the caller's), for a model of that patch and IMU window.

    each_step: a step's images are told as its own now saw them, which is the newest capture of the step (or when that
    was due). Then nothing about a step changes when later ones arrive, and a running car may keep what it made of it.
    instruct: makes the tokens of an instruction, as many of each; None: for a model that reads none.
    Clips that do not agree in T, N, H, W, or whose images are not whole patches, are an InputError.
    """
    if not clips:
        raise InputError("collate", "clips", "none", "at least one clip")
    for i, clip in enumerate(clips):
        if clip.images.shape != clips[0].images.shape:
            came = f"images {clip.images.shape}"
            raise InputError("collate", f"clips[{i}]", came, f"{clips[0].images.shape} [T, N, H, W, 3] like clips[0]")
    height, width = clips[0].images.shape[2:4]
    if height % patch_px or width % patch_px:
        came = f"{width} x {height} px"
        raise InputError("collate", "images", came, f"multiples of the patch, {patch_px} px", "Resize in the source.")
    rays = np.stack([[_camera_rays(camera, patch_px) for camera in clip.cameras] for clip in clips])
    ray_mask = np.isfinite(rays).all(axis=-1)
    imu, imu_mask, imu_time_s = zip(*(_imu_grid(clip, imu_samples, imu_rate_hz) for clip in clips), strict=True)
    now_us, T_world_from_ego_now = zip(*(_nows(clip, each_step) for clip in clips), strict=True)
    vehicle = np.array([[c.vehicle.speed_mps, c.vehicle.yaw_rate_radps, c.vehicle.steering_rad] for c in clips])
    vehicle_mask = ~np.isnan(vehicle)
    return Batch(
        images=torch.from_numpy(np.stack([clip.images for clip in clips])),
        image_mask=torch.from_numpy(np.stack([clip.image_mask for clip in clips])),
        time_s=_float32((np.stack([clip.time_us for clip in clips]) - np.stack(now_us)) * 1e-6),
        T_ego_now_from_cam=_float32(np.stack([*map(_T_ego_now_from_cam, clips, T_world_from_ego_now)])),
        rays_in_cam=_float32(np.where(ray_mask[..., None], rays, 0.0)),
        ray_mask=torch.from_numpy(ray_mask),
        imu=_float32(np.stack(imu)),
        imu_mask=torch.from_numpy(np.stack(imu_mask)),
        imu_time_s=_float32(np.stack(imu_time_s)),
        vehicle=_float32(np.where(vehicle_mask, vehicle, 0.0)),
        vehicle_mask=torch.from_numpy(vehicle_mask),
        command_id=torch.tensor([ROUTE_COMMANDS.index(clip.command) for clip in clips]),
        instruction=torch.tensor([instruct(clip.instruction) if instruct else () for clip in clips], dtype=torch.int64),
    )


def join_steps(batches: Sequence[Batch]) -> Batch:
    """One batch of T steps from batches of one step each, oldest first, every step as its own now saw it.

    Whatever speaks of now only (IMU, vehicle, command, instruction) and the rays of the cameras are those of the last.
    """
    if not batches:
        raise InputError("join_steps", "batches", "none", "at least one")
    joined = {name: torch.cat([getattr(batch, name) for batch in batches], dim=1) for name in batches[0].STEPWISE}
    return replace(batches[-1], **joined)


def by_step(batch: Batch) -> Batch:
    """B clips of T steps as B T clips of one step; clip b's steps follow each other."""
    T = batch.image_mask.shape[1]
    return type(batch)(
        *(
            getattr(batch, field.name).flatten(0, 1).unsqueeze(1)
            if field.name in batch.STEPWISE
            else getattr(batch, field.name).repeat_interleave(T, dim=0)
            for field in fields(batch)
        )
    )


def _float32(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


def _nows(clip: Clip, each_step: bool) -> tuple[np.ndarray, np.ndarray]:
    """(now_us [T, 1], T_world_from_ego_now [T, 1, 4, 4]): the clip's, T times, or each step's own."""
    T = len(clip.time_us)
    if not each_step:
        return np.full((T, 1), clip.now_us), np.tile(clip.T_world_from_ego_now, (T, 1, 1, 1))
    step, newest = np.arange(T), clip.time_us.argmax(axis=1)
    return clip.time_us[step, newest, None], clip.T_world_from_ego[step, newest, None]


def _T_ego_now_from_cam(clip: Clip, T_world_from_ego_now: np.ndarray) -> np.ndarray:
    """float64 [T, N, 4, 4]: inverse(T_world_from_ego_now) @ T_world_from_ego @ T_ego_from_cam."""
    T_ego_from_cam = np.stack([camera.T_ego_from_cam for camera in clip.cameras])
    return np.linalg.solve(T_world_from_ego_now, clip.T_world_from_ego @ T_ego_from_cam)


def _camera_rays(camera: Camera, patch_px: int) -> np.ndarray:
    return _patch_rays(
        camera.width, camera.height, camera.K.tobytes(), camera.distortion, tuple(camera.coefficients), patch_px
    )


@lru_cache(maxsize=256)
def _patch_rays(width: int, height: int, K: bytes, distortion: str, coefficients: tuple, patch_px: int) -> np.ndarray:
    """Unit rays float64 [P, 3] in the camera frame through patch centres, row by row; NaN where there is none.

    Undistorting is Newton's method, so the rays of one calibration (its values are the key) are computed once.
    """
    camera = Camera("", width, height, np.frombuffer(K).reshape(3, 3), np.eye(4), distortion, coefficients)
    v, u = np.mgrid[: height // patch_px, : width // patch_px] * patch_px + (patch_px - 1) / 2
    rays = camera.unproject(np.stack([u, v], axis=-1).reshape(-1, 2))
    rays.flags.writeable = False
    return rays


def _imu_grid(clip: Clip, samples: int, rate_hz: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values [J, 6], mask [J], time_s [J]): linear interpolation at now - (J - 1 - j) / rate_hz.

    Nothing is extrapolated and no gap is bridged: grid points outside the window or between samples more than
    IMU_GAP_US apart are masked.
    """
    grid_us = -(np.arange(samples - 1, -1, -1, dtype=np.int64) * 1_000_000 // rate_hz)
    values, mask = np.zeros((samples, 6)), np.zeros(samples, bool)
    time_us = clip.imu.time_us - clip.now_us
    if len(time_us):
        right = np.searchsorted(time_us, grid_us)
        left = np.maximum(np.where(time_us[np.minimum(right, len(time_us) - 1)] == grid_us, right, right - 1), 0)
        right = np.minimum(right, len(time_us) - 1)
        inside = (grid_us >= time_us[0]) & (grid_us <= time_us[-1])
        mask = inside & (time_us[right] - time_us[left] <= IMU_GAP_US)
        measured = np.concatenate([clip.imu.accel_mps2, clip.imu.gyro_radps], axis=1)
        for column in range(6):
            values[mask, column] = np.interp(grid_us[mask], time_us, measured[:, column])
    return values, mask, grid_us * 1e-6
