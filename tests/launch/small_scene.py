"""A scene small enough to write in a test: a car that drives straight on, seen by six cameras."""

from pathlib import Path

import numpy as np

from sensors import frames
from sensors.camera import Camera
from sensors.clip import Boxes
from sensors.imu import ImuWindow
from sensors.nuscenes_source import CAMERAS
from sensors.nuscenes_writer import NuscenesWriter

START_US, SPEED_MPS = 1_700_000_000_000_000, 5.0
WIDTH, HEIGHT = 64, 48
OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # a camera that looks along ego x


def make_cameras() -> tuple[Camera, ...]:
    K = np.array([[40.0, 0, 31.5], [0, 40.0, 23.5], [0, 0, 1]])
    turns = (0, -60, -120, 180, 120, 60)
    poses = [frames.matrix_from_xy_yaw(1.5, 0.0, np.radians(turn)) for turn in turns]
    for pose in poses:
        pose[:3, :3], pose[2, 3] = pose[:3, :3] @ OPTICAL, 1.6
    return tuple(Camera(name, WIDTH, HEIGHT, K, pose) for name, pose in zip(CAMERAS, poses, strict=True))


def pose_at(time_us) -> np.ndarray:
    """The car of the scene drives straight along world x at SPEED_MPS."""
    return frames.matrix_from_xy_yaw((np.asarray(time_us) - START_US) * 1e-6 * SPEED_MPS + 100.0, 200.0, 0.0)


def write_scene(root: Path, seconds: float, period_us: int = 100_000) -> Path:
    """A dataroot with one scene: six small cameras that fire 4 ms apart, IMU at 100 Hz, CAN at 50 Hz."""
    cameras, count = make_cameras(), round(seconds * 1e6 / period_us)
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (len(cameras), HEIGHT, WIDTH, 3), dtype=np.uint8)
    with NuscenesWriter(root, "v1.0-test").scene(
        "scene-0001", "straight on", cameras, "nowhere", np.full((8, 8), 255, np.uint8)
    ) as recorder:
        for k in range(count):
            now_us = START_US + k * period_us
            time_us = now_us - 4000 * np.arange(len(cameras))[::-1]
            picture = np.roll(texture, k, axis=2)  # a camera that repeats its picture while the car drives is refused
            recorder.keyframe(now_us, picture, time_us, pose_at(time_us), pose_at(now_us), Boxes.empty())
        imu_us = np.arange(START_US, START_US + count * period_us, 10_000)
        accel = np.tile([0.0, 0.0, 9.81], (len(imu_us), 1))
        imu = ImuWindow(imu_us, accel, np.zeros_like(accel))
        can_us = imu_us[::2]
        speed = np.full(len(can_us), SPEED_MPS)
        recorder.can(imu, can_us, pose_at(can_us), speed, np.zeros(len(can_us)), np.zeros(len(can_us)))
    return root
