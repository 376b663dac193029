"""What the vehicle carries: a six-camera rig like nuScenes', when its cameras fire, and its IMU."""

from collections.abc import Sequence

import numpy as np

from sensors.camera import Camera
from sensors.errors import InputError
from sensors.frames import matrix
from sensors.imu import GRAVITY_MPS2, ImuWindow
from sim.vehicle import EgoState

NATIVE_WIDTH, NATIVE_HEIGHT = 1600, 900
# Channel: x, y, z of the camera in the ego frame (m), yaw of its optical axis (deg), focal length (px at 1600 x 900),
# and how long before `now` it fires (us). The cameras fire in rotation, clockwise, as a spinning lidar would sweep.
RIG = {
    "CAM_FRONT": (1.70, 0.0, 1.51, 0.0, 1266.0, 36_000),
    "CAM_FRONT_RIGHT": (1.55, -0.50, 1.50, -55.0, 1260.0, 28_000),
    "CAM_BACK_RIGHT": (1.03, -0.48, 1.56, -110.0, 1260.0, 20_000),
    "CAM_BACK": (0.03, 0.0, 1.57, 180.0, 809.0, 12_000),
    "CAM_BACK_LEFT": (1.03, 0.48, 1.57, 110.0, 1260.0, 4_000),
    "CAM_FRONT_LEFT": (1.55, 0.50, 1.50, 55.0, 1260.0, 44_000),
}
EXPOSURE_BEFORE_US = np.array([values[-1] for values in RIG.values()], dtype=np.int64)
OPTICAL_FROM_BODY = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])  # x right, y down, z forward


def nuscenes_rig(width: int, height: int) -> tuple[Camera, ...]:
    """The six cameras at this image size, calibration kept true: cropped centrally to the aspect, then resized."""
    if width < 1 or height < 1:
        raise InputError("nuscenes_rig", "width, height", f"{width} x {height}", "at least 1 x 1 px")
    keep_w = min(NATIVE_WIDTH, round(NATIVE_HEIGHT * width / height))
    keep_h = min(NATIVE_HEIGHT, round(NATIVE_WIDTH * height / width))
    rig = []
    for name, (x, y, z, yaw_deg, focal_px, _) in RIG.items():
        yaw = np.radians(yaw_deg)
        turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1.0]])
        K = np.array([[focal_px, 0, NATIVE_WIDTH / 2 - 0.5], [0, focal_px, NATIVE_HEIGHT / 2 - 0.5], [0, 0, 1.0]])
        camera = Camera(name, NATIVE_WIDTH, NATIVE_HEIGHT, K, matrix([x, y, z], turn @ OPTICAL_FROM_BODY.T))
        _, camera = camera.crop((NATIVE_WIDTH - keep_w) // 2, (NATIVE_HEIGHT - keep_h) // 2, keep_w, keep_h)
        rig.append(camera.resize(width, height)[1].validate("nuscenes_rig"))
    return tuple(rig)


def imu_of_motion(time_us: np.ndarray, states: Sequence[EgoState]) -> ImuWindow:
    """What an ideal IMU at the ego origin reads at the ends of the M - 1 intervals between M states.

    On level ground, with a and k constant over an interval:  f = (a, v^2 k, g),  w = (0, 0, v k),  a = dv / dt. Tyres
    that slip by s = v_y / v add (-v k v_y, d(v_y) / dt) to it.
    """
    motion = np.array([(s.speed_mps, s.curvature_1pm) for s in states])
    speed, end, curvature = motion[:, 0], motion[1:, 0], motion[1:, 1]
    dt_s = (time_us[1:] - time_us[:-1]) * 1e-6
    force, turning = np.empty((len(end), 3)), np.zeros((len(end), 3))
    force[:, 0] = (end - speed[:-1]) / dt_s
    force[:, 1] = end**2 * curvature
    force[:, 2] = GRAVITY_MPS2
    turning[:, 2] = end * curvature
    if states[-1].response is not None:
        aside = speed * [s.slip for s in states]
        force[:, 0] -= turning[:, 2] * aside[1:]
        force[:, 1] += np.diff(aside) / dt_s
    return ImuWindow(time_us[1:].copy(), force, turning)
