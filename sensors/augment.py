"""Variations of a clip. Most keep its calibration true: what changes in the pictures changes in the geometry too.

`misplace_cameras` and `shift_clocks` are the others: pictures stay and what is told of them is wrong by a little, as on
a car whose cameras were knocked, or whose clocks differ. A policy that has seen such clips takes what it is told for
what it is.
"""

from dataclasses import replace

import cv2
import numpy as np

from sensors import frames
from sensors.camera import Camera
from sensors.clip import FOVEA, Clip, VehicleState
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


def crop(clip: Clip, rng: np.random.Generator, most: float) -> Clip:
    """Of each camera a window anywhere in its images, smaller by up to the share `most` in width and height, the same
    at all steps, shown at the size that the images had; the camera is the one that sees so."""
    height, width = clip.images.shape[2:4]
    kept, places = 1 - most * rng.random(len(clip.cameras)), rng.random((len(clip.cameras), 2))
    images, cameras = np.zeros_like(clip.images), []
    for n, camera in enumerate(clip.cameras):
        w, h = max(1, round(width * kept[n])), max(1, round(height * kept[n]))
        x0, y0 = np.round(places[n] * (width - w, height - h)).astype(int)
        window = (int(x0), int(y0), w, h)
        for t in np.flatnonzero(clip.image_mask[:, n]):
            cropped, smaller = camera.crop(*window, clip.images[t, n])
            images[t, n] = smaller.resize(width, height, cropped)[0]
        cameras.append(camera.crop(*window)[1].resize(width, height)[1])
    return replace(clip, images=images, cameras=tuple(cameras))


def misplace_cameras(clip: Clip, rng: np.random.Generator, angle_rad: float, offset_m: float) -> Clip:
    """Each camera is told to be turned and moved from where it is: T_ego_from_cam E, with E's three angles and three
    offsets drawn from normal distributions of these standard deviations. Images stay, so what is told is wrong."""
    errors = {}
    for body in _bodies(clip):
        if body not in errors:
            angles, offset = angle_rad * rng.standard_normal(3), offset_m * rng.standard_normal(3)
            errors[body] = frames.matrix(offset, cv2.Rodrigues(angles)[0])
    told = (camera.T_ego_from_cam @ errors[body] for camera, body in zip(clip.cameras, _bodies(clip), strict=True))
    cameras = (replace(c, T_ego_from_cam=T_ego_from_cam) for c, T_ego_from_cam in zip(clip.cameras, told, strict=True))
    return replace(clip, cameras=tuple(cameras))


def shift_clocks(clip: Clip, rng: np.random.Generator, most_us: float) -> Clip:
    """Each camera's clock is wrong by one offset of up to `most_us`, the same at all steps: it tells other times and,
    consistently, the poses that the car had at those. Images stay, so they show the world of another instant.

    The poses lie on the way through all those that the clip knows, and before the first of them on its continuation as
    it began (reflected in its first pose, exact for a constant twist). No time becomes later than now, and none earlier
    than that continuation reaches.
    """
    times = np.append(clip.time_us.ravel(), clip.now_us)
    poses = np.concatenate([clip.T_world_from_ego.reshape(-1, 4, 4), clip.T_world_from_ego_now[None]])
    track_us, first = np.unique(times, return_index=True)
    track, span_us = poses[first], int(track_us[-1] - track_us[0])
    draws = {body: rng.uniform(-most_us, most_us) for body in dict.fromkeys(_bodies(clip))}
    wanted_us = np.round([draws[body] for body in _bodies(clip)]).astype(np.int64)
    shift_us = np.clip(wanted_us, -span_us, clip.now_us - clip.time_us.max(axis=0))
    time_us, moved = clip.time_us + shift_us, np.empty_like(clip.T_world_from_ego)
    for place in np.ndindex(time_us.shape):
        moved[place] = _continued(track_us, track, int(time_us[place]))
    return replace(clip, time_us=time_us, T_world_from_ego=moved)


def _continued(track_us: np.ndarray, track: np.ndarray, at_us: int) -> np.ndarray:
    """Pose [4, 4] on a track or, before it, on its continuation by as much as it is long."""
    if at_us >= track_us[0]:
        return frames.interpolate_at(track_us, track, at_us)
    ahead = frames.interpolate_at(track_us, track, int(2 * track_us[0] - at_us))
    return track[0] @ frames.inverse(frames.inverse(track[0]) @ ahead)


def _bodies(clip: Clip) -> list[str]:
    """Names of the cameras as things on the car: a fovea is part of another one."""
    return [camera.name.removesuffix(FOVEA) for camera in clip.cameras]


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
