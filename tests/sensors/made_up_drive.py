"""A small made-up drive, and how to record it; light, since tests run it in processes of their own."""

import cv2
import numpy as np

from sensors.camera import Camera
from sensors.clip import Boxes
from sensors.frames import matrix, matrix_from_xy_yaw
from sensors.imu import ImuWindow
from sensors.nuscenes_source import CAMERAS
from sensors.nuscenes_writer import NuscenesWriter

VERSION = "v1.0-test-rig"
START_US = 1_700_000_000_000_000
WIDTH, HEIGHT = 48, 32


def rig(distortion="none", coefficients=()):
    """Six cameras around the car, like nuScenes' own."""
    axes = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # optical axes in an ego that looks along x
    cameras = []
    for n, name in enumerate(CAMERAS):
        R = matrix_from_xy_yaw(0.0, 0.0, -n * np.pi / 3)[:3, :3] @ axes
        K = np.array([[31.7 + n / 7, 0.0, 23.4], [0.0, 30.9, 15.6], [0.0, 0.0, 1.0]])
        T_ego_from_cam = matrix(np.array([1.1 + 0.1 * n, 0.3, 1.5]), R)
        cameras.append(Camera(name, WIDTH, HEIGHT, K, T_ego_from_cam, distortion, coefficients))
    return tuple(cameras)


def ego(time_us):
    """A gentle left curve."""
    s = (np.asarray(time_us) - START_US) / 1e6
    return matrix_from_xy_yaw(20 + 8 * s, 30 + 0.5 * s**2, 0.1 * s)


def boxes(k):
    """A moving car, and a pedestrian that is gone at keyframe 1."""
    poses = [matrix_from_xy_yaw(40 + 0.9 * k, 31.3, 0.3 + 0.01 * k), matrix_from_xy_yaw(33.3, 25.1, -2.0)]
    sizes = [[4.4, 1.9, 1.6], [0.6, 0.7, 1.8]]
    names, categories = ("car-1", "walker"), ("vehicle.car", "human.pedestrian.adult")
    count = 1 if k == 1 else 2
    velocity = np.full((count, 2), np.nan)
    return Boxes(names[:count], categories[:count], np.array(poses[:count]), np.array(sizes[:count]), velocity)


def keyframe(k, start_us=START_US):
    """Arguments of SceneRecorder.keyframe: 2 Hz, cameras up to 40 ms before the sample."""
    rng = np.random.default_rng(k)
    now_us = start_us + 500_000 * k
    coarse = rng.integers(0, 256, (6, 4, 6, 3), dtype=np.uint8)
    images = np.stack([cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR) for image in coarse])
    time_us = now_us - np.array([37_000, 29_000, 21_000, 12_000, 0, 40_001])
    return now_us, images, time_us, ego(time_us), ego(now_us), boxes(k)


def bus(keyframes):
    """Arguments of SceneRecorder.can: 100 Hz IMU, 50 Hz state."""
    rng = np.random.default_rng(1)
    imu_us = START_US + np.arange(0, 500_000 * keyframes, 10_000)
    imu = ImuWindow(imu_us, rng.normal(size=(len(imu_us), 3)), rng.normal(size=(len(imu_us), 3)))
    time_us = START_US + np.arange(0, 500_000 * keyframes, 20_000)
    signals = rng.normal(size=(3, len(time_us)))
    return imu, time_us, ego(time_us), *signals


def mask():
    drivable = np.zeros((600, 800), np.uint8)
    drivable[200:400] = 255
    return drivable


def record(dataroot, name, keyframes=3, cameras=None, can=True):
    """scene-0001 begins at START_US, every later scene a minute after the one before."""
    start_us = START_US + 60_000_000 * (int(name[-4:]) - 1) if name[-4:].isdecimal() else START_US
    with NuscenesWriter(dataroot, VERSION).scene(name, "a left curve", cameras or rig(), "testtown", mask()) as scene:
        for k in range(keyframes):
            scene.keyframe(*keyframe(k, start_us))
        if can:
            scene.can(*bus(keyframes))
