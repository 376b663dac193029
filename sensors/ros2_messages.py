"""ROS 2 messages to arrays and back: pure functions. Nothing here imports rclpy: a message is anything with the fields
of its type (sensor_msgs/CompressedImage, CameraInfo, Imu; nav_msgs/Odometry).

Images are raw (not rectified) and come with the K and D of their CameraInfo. `base_link` is the ego frame: centre of
the rear axle on the ground. Odometry's twist is in its child frame, as REP-105 has it.
"""

from dataclasses import dataclass

import numpy as np

from sensors import frames
from sensors.camera import Camera
from sensors.errors import InputError
from sensors.nuscenes_source import picture

LARGEST_SEC = 2**31 - 1  # builtin_interfaces/Time holds seconds in an int32
NO_CAMERA = np.full((3, 3), np.nan)


def time_us_from_stamp(stamp, where: object = "message") -> int:
    """Microseconds since the epoch of a builtin_interfaces/Time; nanoseconds are cut off, so order is kept.

    A zero stamp is an InputError: the driver of that sensor does not stamp its messages.
    """
    if not (0 <= stamp.sec <= LARGEST_SEC and 0 <= stamp.nanosec < 1_000_000_000) or not (stamp.sec or stamp.nanosec):
        raise InputError(where, "header.stamp", f"{stamp.sec} s {stamp.nanosec} ns", "a time after 0 s")
    return stamp.sec * 1_000_000 + stamp.nanosec // 1000


def stamp_from_time_us(time_us: int) -> tuple[int, int]:
    """(sec, nanosec) of a builtin_interfaces/Time; `time_us_from_stamp` gives back exactly `time_us`."""
    sec, micro = divmod(int(time_us), 1_000_000)
    if not 0 <= sec <= LARGEST_SEC:
        raise InputError("stamp", "time_us", time_us, f"0 to {LARGEST_SEC} s, what an int32 of seconds holds")
    return sec, micro * 1000


def image_from_compressed(message, camera: Camera, size: tuple[int, int] | None = None) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a CompressedImage that holds a whole JPEG of the camera's size, else InputError.

    size: (width, height) to resize it to, None: none.

    `format` is "jpeg" or, as image_transport writes it, "rgb8; jpeg compressed bgr8"; the JPEG itself says what its
    colours are, and the orientation tag is ignored, since the calibration speaks of the stored pixels.
    """
    where = f"image of {camera.name}"
    codec = message.format.rpartition(";")[2].split()[:1]
    if codec not in (["jpeg"], ["jpg"]):
        raise InputError(where, "format", repr(message.format), "jpeg", "Set the camera driver's image format to jpeg.")
    return picture(bytes(message.data), where, camera, size)


def camera_from_info(info, name: str, T_ego_from_cam: np.ndarray) -> Camera:
    """The camera that a CameraInfo describes, at its place on the car; R and P (rectification) are not used.

    plumb_bob with 0, 4 or 5 coefficients is none (all zero) or brown_conrady, equidistant with 4 is fisheye. Another
    model, binning, a region of interest or an empty K is an InputError.
    """
    where, roi = f"CameraInfo of {name}", info.roi
    window = (roi.x_offset, roi.y_offset, roi.width, roi.height)
    if window not in ((0, 0, 0, 0), (0, 0, info.width, info.height)) or max(info.binning_x, info.binning_y) > 1:
        came = f"roi {window}, binning {info.binning_x} x {info.binning_y}"
        raise InputError(where, "roi, binning", came, "the whole image at full resolution")
    model, D = info.distortion_model, tuple(float(d) for d in info.d)
    if not np.isfinite(D).all():
        raise InputError(where, "d", D, "finite numbers")
    if (model == "plumb_bob" and len(D) in (0, 4, 5)) or (model == "" and not D):
        distortion, coefficients = ("brown_conrady", (*D, 0.0)[:5]) if any(D) else ("none", ())
    elif model == "equidistant" and len(D) == 4:
        distortion, coefficients = "fisheye", D
    else:
        came = f"{model!r} with {len(D)} coefficients"
        raise InputError(where, "distortion_model, d", came, "plumb_bob with 0, 4 or 5 or equidistant with 4")
    K = np.array(info.k, np.float64)
    K = K.reshape(3, 3) if K.shape == (9,) else NO_CAMERA
    return Camera(name, info.width, info.height, K, T_ego_from_cam, distortion, coefficients).validate("CameraInfo of")


def info_fields(camera: Camera) -> dict:
    """width, height, k, d, distortion_model, r and p of the CameraInfo from which `camera_from_info` makes `camera`."""
    fisheye = camera.distortion == "fisheye"
    return {
        "width": camera.width,
        "height": camera.height,
        "k": camera.K.ravel().tolist(),
        "d": list(camera.coefficients) if camera.coefficients else [0.0] * 5,
        "distortion_model": "equidistant" if fisheye else "plumb_bob",
        "r": np.eye(3).ravel().tolist(),
        "p": np.pad(camera.K, ((0, 0), (0, 1))).ravel().tolist(),
    }


def imu_from_message(message, R_ego_from_imu: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """(time_us, accel_mps2 [3], gyro_radps [3]) in ego axes; gravity stays in, as REP-145 and `sensors.imu` have it."""
    time_us = time_us_from_stamp(message.header.stamp, "imu")
    values = []
    for field in ("linear_acceleration", "angular_velocity"):
        vector, covariance = getattr(message, field), getattr(message, f"{field}_covariance")
        value = np.array([vector.x, vector.y, vector.z], np.float64)
        if covariance[0] == -1 or not np.isfinite(value).all():
            came = "not measured (covariance -1)" if covariance[0] == -1 else value
            raise InputError("imu", field, came, "three finite numbers")
        values.append(R_ego_from_imu @ value)
    return time_us, *values


@dataclass(frozen=True)
class OdometrySample:
    """Pose [4, 4] of the ego in the frame called `frame_id`, forward speed and yaw rate, at `time_us`."""

    time_us: int
    T_world_from_ego: np.ndarray
    speed_mps: float
    yaw_rate_radps: float
    frame_id: str


def odometry_from_message(message) -> OdometrySample:
    """The pose and motion in an Odometry; a quaternion that is no rotation or a number not finite is an InputError."""
    time_us = time_us_from_stamp(message.header.stamp, "odometry")
    at, q, twist = message.pose.pose.position, message.pose.pose.orientation, message.twist.twist
    position_m = np.array([at.x, at.y, at.z], np.float64)
    motion = np.array([twist.linear.x, twist.angular.z], np.float64)
    if not np.isfinite(position_m).all() or not np.isfinite(motion).all():
        raise InputError("odometry", "pose, twist", [*position_m, *motion], "finite numbers")
    R = frames.rotation_from_quaternion(np.array([q.w, q.x, q.y, q.z]), "odometry", "orientation")
    return OdometrySample(time_us, frames.matrix(position_m, R), *motion.tolist(), message.header.frame_id)
