"""Variations of a clip that keep its calibration true: what changes in the pictures changes in the geometry too."""

from dataclasses import replace

import cv2
import numpy as np

from sensors.camera import Camera
from sensors.clip import Clip, VehicleState
from sensors.imu import ImuWindow

SIDES = (("left", "right"), ("LEFT", "RIGHT"))
GAIN, BIAS = 0.25, 20.0  # photometric: contrast by up to a quarter, brightness by up to 20 of 255

# Reflections: the ego and world frames in the x-z plane (y changes sign), a camera in its y-z plane (x changes sign).
MIRROR_EGO = np.diag([1.0, -1.0, 1.0, 1.0])
MIRROR_CAM = np.diag([-1.0, 1.0, 1.0, 1.0])


def mirror(clip: Clip) -> Clip:
    """The clip as a mirror on the car's left-right axis shows it: its own inverse.

    With M the reflection of world and ego, C that of a camera: T' = M T M for ego poses, M T C for mountings, images
    flipped, cx' = width - 1 - cx, Brown-Conrady's p2 changes sign. Rotation rates are axial vectors: roll and yaw rate
    change sign, pitch rate does not.
    """
    return replace(
        clip,
        T_world_from_ego_now=MIRROR_EGO @ clip.T_world_from_ego_now @ MIRROR_EGO,
        cameras=tuple(_mirror_camera(camera) for camera in clip.cameras),
        images=np.ascontiguousarray(clip.images[:, :, :, ::-1]),
        T_world_from_ego=MIRROR_EGO @ clip.T_world_from_ego @ MIRROR_EGO,
        imu=ImuWindow(clip.imu.time_us, clip.imu.accel_mps2 * (1, -1, 1), clip.imu.gyro_radps * (-1, 1, -1)),
        vehicle=VehicleState(clip.vehicle.speed_mps, -clip.vehicle.yaw_rate_radps, -clip.vehicle.steering_rad),
        command=swap_sides(clip.command),
        instruction=swap_sides(clip.instruction),
    )


def mirror_poses(xyyaw_in_ego: np.ndarray) -> np.ndarray:
    """Poses x, y, yaw [K, 3] in the ego frame, as they belong to the mirrored clip."""
    return xyyaw_in_ego * (1.0, -1.0, -1.0)


def photometric(clip: Clip, rng: np.random.Generator) -> Clip:
    """Contrast and brightness changed by one random gain and bias per camera, the same at all steps."""
    N = len(clip.cameras)
    gain = 1 + rng.uniform(-GAIN, GAIN, N)
    bias = rng.uniform(-BIAS, BIAS, N)
    # 256 values a camera: a table is 20 times cheaper than arithmetic on every pixel.
    tables = np.clip((np.arange(256) - 127.5) * gain[:, None] + 127.5 + bias[:, None], 0, 255).round().astype(np.uint8)
    images = np.stack([cv2.LUT(clip.images[:, n].reshape(-1), tables[n]) for n in range(N)])
    images = images.reshape(N, *clip.images[:, 0].shape).swapaxes(0, 1)
    images[~clip.image_mask] = 0
    return replace(clip, images=images)


def drop_cameras(clip: Clip, rng: np.random.Generator, share: float) -> Clip:
    """Each camera but the first (the one ahead) is masked with probability `share`, at all steps."""
    dropped = rng.random(len(clip.cameras)) < share
    dropped[0] = False
    return clip.with_masked(np.broadcast_to(dropped, clip.image_mask.shape))


def _mirror_camera(camera: Camera) -> Camera:
    K = camera.K.copy()
    K[0, 2] = camera.width - 1 - K[0, 2]
    coefficients = camera.coefficients
    if camera.distortion == "brown_conrady":
        k1, k2, p1, p2, k3 = coefficients
        coefficients = (k1, k2, p1, -p2, k3)
    T_ego_from_cam = MIRROR_EGO @ camera.T_ego_from_cam @ MIRROR_CAM
    name = swap_sides(camera.name)
    return replace(camera, name=name, K=K, T_ego_from_cam=T_ego_from_cam, coefficients=coefficients)


def swap_sides(text: str) -> str:
    """A name, an instruction or a reason, with left and right exchanged: as it belongs to the mirrored clip."""
    for left, right in SIDES:
        text = text.replace(left, "\0").replace(right, left).replace("\0", right)
    return text
