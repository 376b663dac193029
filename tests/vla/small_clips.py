"""A small model, and clips of random content for it."""

import numpy as np

from sensors.camera import Camera
from sensors.clip import Clip, VehicleState
from sensors.collate import Batch, collate
from sensors.frames import matrix, matrix_from_xy_yaw
from sensors.imu import ImuWindow
from vla.config import ModelConfig
from vla.sentences import sentences_of

OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # R_ego_from_cam of a camera that looks ahead
SMALL = ModelConfig(
    image_width=64,
    image_height=32,
    cameras=3,
    encoder_width=32,
    encoder_heads=2,
    encoder_hidden=64,
    scene_tokens=8,
    imu_samples=20,
    imu_tokens=2,
    width=64,
    layers=3,
    heads=4,
    head_dim=16,
    dense_hidden=128,
    experts=4,
    expert_hidden=32,
    plan_steps=4,
    instruction_tokens=6,
)


def clip_of(config: ModelConfig, seed: int = 0) -> Clip:
    """A valid clip: the car drives ahead at 8 m/s, the cameras look around, one of them through a distorting lens."""
    rng = np.random.default_rng(seed)
    T, N, now_us = config.steps, config.cameras, 1_533_151_603_547_590
    cameras = []
    for n in range(N):
        T_ego_from_cam = matrix_from_xy_yaw(1.0, 0.0, 2 * np.pi * n / N) @ matrix(np.array([0.5, 0.1, 1.5]), OPTICAL)
        K = np.array([[50.0 + n, 0, config.image_width / 2], [0, 50.0, config.image_height / 2], [0, 0, 1]])
        lens = ("brown_conrady", (-0.1, 0.01, 1e-3, -1e-3, 0.0)) if n == 1 else ("none", ())
        cameras.append(Camera(f"CAM_{n}", config.image_width, config.image_height, K, T_ego_from_cam, *lens))
    time_us = now_us - np.array([[500_000 * (T - 1 - t) + 8_000 * n for n in range(N)] for t in range(T)])
    poses = matrix_from_xy_yaw(600.0 + 8.0 * (time_us - now_us) * 1e-6, 1600.0, 0.0)
    imu_us = now_us - 10_000 * np.arange(config.imu_samples + 5, -1, -1)
    noise = rng.normal(size=(2, len(imu_us), 3))
    return Clip(
        now_us=now_us,
        T_world_from_ego_now=matrix_from_xy_yaw(600.0, 1600.0, 0.0),
        cameras=tuple(cameras),
        images=rng.integers(0, 256, (T, N, config.image_height, config.image_width, 3), dtype=np.uint8),
        image_mask=np.ones((T, N), bool),
        time_us=time_us,
        T_world_from_ego=poses,
        imu=ImuWindow(imu_us, noise[0] + [0, 0, 9.8], 0.1 * noise[1]),
        vehicle=VehicleState(8.0 + seed, 0.01, float("nan")),
        command=config.commands[seed % len(config.commands)],
        instruction=("", "Turn left.", "Slow down, please.")[seed % 3],
    ).validate()


def collated(clips: list[Clip], config: ModelConfig) -> Batch:
    """The batch that a model of the config takes."""
    instruct = sentences_of(config).instruction if config.instruction_places else None
    return collate(clips, config.patch_px, config.imu_samples, config.imu_rate_hz, instruct=instruct)
