"""Clips that show nothing: noise through cameras that look all round, for measurements that need no data."""

import numpy as np

from sensors.camera import Camera
from sensors.clip import Clip, VehicleState
from sensors.frames import matrix, matrix_from_xy_yaw
from sensors.imu import ImuWindow
from vla.config import ModelConfig

OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # R_ego_from_cam of one that looks ahead
STEP_US, SPEED_MPS = 500_000, 8.0


def noise_clip(config: ModelConfig, seed: int) -> Clip:
    """A valid clip of the config's shapes: the car drives straight ahead at SPEED_MPS."""
    rng, N, T = np.random.default_rng(seed), config.cameras - config.fovea, config.steps
    width, height, now_us = config.image_width, config.image_height, STEP_US * T
    K = np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1.0]])
    mounted = matrix(np.array([0.5, 0, 1.5]), OPTICAL)
    cameras = [
        Camera(f"CAM_{n}", width, height, K, matrix_from_xy_yaw(1.0, 0.0, 2 * np.pi * n / N) @ mounted, "none", ())
        for n in range(N)
    ]
    time_us = np.repeat(now_us - STEP_US * np.arange(T - 1, -1, -1)[:, None], N, axis=1)
    imu_us = now_us - 10_000 * np.arange(config.imu_samples, -1, -1)
    return Clip(
        now_us=now_us,
        T_world_from_ego_now=np.eye(4),
        cameras=tuple(cameras),
        images=rng.integers(0, 256, (T, N, height, width, 3), dtype=np.uint8),
        image_mask=np.ones((T, N), bool),
        time_us=time_us,
        T_world_from_ego=matrix_from_xy_yaw(SPEED_MPS * (time_us - now_us) * 1e-6, 0.0, 0.0),
        imu=ImuWindow(imu_us, np.tile([0.0, 0.0, 9.8], (len(imu_us), 1)), np.zeros((len(imu_us), 3))),
        vehicle=VehicleState(SPEED_MPS, 0.0, float("nan")),
        command=config.commands[seed % len(config.commands)],
    ).validate()
