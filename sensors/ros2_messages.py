"""ROS 2 messages to arrays and back: pure functions. Nothing here imports rclpy: a message is anything with the fields
of its type (sensor_msgs/CompressedImage, Image, CameraInfo, Imu, JointState; nav_msgs/Odometry; std_msgs/String), and
the way back gives nested dicts of fields, for whoever has the classes. Either way numbers stay what they are, to the
last bit; time is in whole microseconds.

Images are raw (not rectified) and come with the K and D of their CameraInfo. `base_link` is the ego frame: centre of
the rear axle on the ground. Odometry's twist is in its child frame, as REP-105 has it.
"""

from dataclasses import dataclass

import numpy as np

from sensors import frames
from sensors.camera import Camera
from sensors.clip import ROUTE_COMMANDS
from sensors.errors import InputError, unknown_name
from sensors.nuscenes_source import picture
from sensors.ros2_topics import EGO_FRAME

LARGEST_SEC = 2**31 - 1  # builtin_interfaces/Time holds seconds in an int32
NO_CAMERA = np.full((3, 3), np.nan)
NOT_MEASURED = -1.0  # the covariance of what nobody measured, sensor_msgs/Imu
SPEED_VARIANCE, YAW_RATE_VARIANCE = 0, 35  # where a covariance [6, 6] holds them
LARGEST_STEERING_RAD = 1.5  # of road wheels; a report in degrees, or of the steering wheel, goes beyond it
ENCODINGS = {"rgb8": "rgb", "bgr8": "bgr", "rgba8": "rgba", "bgra8": "bgra"}
RGB = {order: [order.index(colour) for colour in "rgb"] for order in ENCODINGS.values()}


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


def image_from_message(message, camera: Camera, size: tuple[int, int] | None = None) -> np.ndarray:
    """RGB uint8 [H, W, 3] of an Image or a CompressedImage."""
    return (image_from_raw if hasattr(message, "encoding") else image_from_compressed)(message, camera, size)


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


def image_from_raw(message, camera: Camera, size: tuple[int, int] | None = None) -> np.ndarray:
    """RGB uint8 [H, W, 3] of an Image of the camera's size with 8 bits a channel, else InputError; `size` as above."""
    where = f"image of {camera.name}"
    order = ENCODINGS.get(message.encoding)
    if order is None:
        fix = "Set the camera driver's output encoding, or send it compressed."
        raise InputError(where, "encoding", repr(message.encoding), f"one of {', '.join(ENCODINGS)}", fix)
    if (message.width, message.height) != (camera.width, camera.height):
        came, expected = f"{message.width} x {message.height} px", f"{camera.width} x {camera.height} px"
        raise InputError(where, "image size", came, f"{expected}, as its calibration says")
    row, rows = message.width * len(order), message.height
    if message.step < row or len(message.data) != message.step * rows:
        came = f"{len(message.data)} bytes in rows of {message.step}"
        raise InputError(where, "step, data", came, f"{rows} rows of at least {row} bytes")
    pixels = np.frombuffer(bytes(message.data), np.uint8).reshape(rows, message.step)[:, :row]
    image = pixels.reshape(rows, message.width, len(order))[..., RGB[order]]
    return np.ascontiguousarray(image) if size is None else camera.resize(*size, np.ascontiguousarray(image))[0]


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


def steering_from_message(message) -> tuple[int, float]:
    """(time_us, steering_rad) of a JointState whose first joint is the steering: angle of the road wheels, positive to
    the left."""
    time_us = time_us_from_stamp(message.header.stamp, "steering")
    angles = np.array(message.position, np.float64)
    if not len(angles) or not abs(angles[0]) <= LARGEST_STEERING_RAD:  # written so that NaN fails too
        expected = f"an angle of the road wheels within {LARGEST_STEERING_RAD} rad"
        raise InputError("steering", "position", angles.tolist(), expected)
    return time_us, float(angles[0])


def command_from_message(message) -> str:
    """The route command in a String; another word is an InputError with the nearest."""
    if message.data not in ROUTE_COMMANDS:
        raise unknown_name("route command", "data", repr(message.data), ROUTE_COMMANDS)
    return message.data


@dataclass(frozen=True)
class OdometrySample:
    """Pose [4, 4] of the ego in the frame called `frame_id`, forward speed and yaw rate (NaN: not measured), at
    `time_us`. q_wxyz: the rotation as it came, since a matrix made of it does not give back its last bits; () where the
    pose never was a message."""

    time_us: int
    T_world_from_ego: np.ndarray
    speed_mps: float
    yaw_rate_radps: float
    frame_id: str
    q_wxyz: tuple[float, ...] = ()


def odometry_from_message(message) -> OdometrySample:
    """The pose and motion in an Odometry; a quaternion that is no rotation or a number not finite is an InputError.

    A covariance of -1 says of a speed or yaw rate that nobody measured it, as sensor_msgs/Imu has it.
    """
    time_us = time_us_from_stamp(message.header.stamp, "odometry")
    at, q, twist = message.pose.pose.position, message.pose.pose.orientation, message.twist.twist
    position_m = np.array([at.x, at.y, at.z], np.float64)
    motion = np.array([twist.linear.x, twist.angular.z], np.float64)
    if not np.isfinite(position_m).all() or not np.isfinite(motion).all():
        raise InputError("odometry", "pose, twist", [*position_m, *motion], "finite numbers")
    covariance = message.twist.covariance
    motion[[covariance[k] == NOT_MEASURED for k in (SPEED_VARIANCE, YAW_RATE_VARIANCE)]] = np.nan
    q_wxyz = (q.w, q.x, q.y, q.z)
    R = frames.rotation_from_quaternion(np.array(q_wxyz), "odometry", "orientation")
    T_world_from_ego = frames.matrix(position_m, R)
    return OdometrySample(time_us, T_world_from_ego, *motion.tolist(), message.header.frame_id, q_wxyz)


# Arrays to fields of messages --------------------------------------------------------------------


def header_fields(time_us: int, frame_id: str) -> dict:
    return {"stamp": dict(zip(("sec", "nanosec"), stamp_from_time_us(time_us), strict=True)), "frame_id": frame_id}


def pose_fields(T: np.ndarray, q_wxyz: tuple[float, ...] = ()) -> dict:
    """Of a geometry_msgs/Pose; `q_wxyz` is T's rotation where it is known."""
    w, x, y, z = map(float, q_wxyz or frames.quaternion_from_rotation(T[:3, :3]))
    return {"position": vector_fields(T[:3, 3]), "orientation": {"x": x, "y": y, "z": z, "w": w}}


def vector_fields(values: np.ndarray) -> dict:
    return dict(zip("xyz", map(float, values), strict=True))


def image_fields(time_us: int, frame_id: str, jpeg: bytes) -> dict:
    return {"header": header_fields(time_us, frame_id), "format": "jpeg", "data": jpeg}


def camera_info_fields(time_us: int, frame_id: str, camera: Camera) -> dict:
    return {"header": header_fields(time_us, frame_id), **info_fields(camera)}


def imu_fields(time_us: int, frame_id: str, accel_mps2: np.ndarray, gyro_radps: np.ndarray) -> dict:
    return {
        "header": header_fields(time_us, frame_id),
        "orientation_covariance": [NOT_MEASURED, *[0.0] * 8],
        "linear_acceleration": vector_fields(accel_mps2),
        "angular_velocity": vector_fields(gyro_radps),
    }


def odometry_fields(sample: OdometrySample) -> dict:
    motion, covariance = {SPEED_VARIANCE: sample.speed_mps, YAW_RATE_VARIANCE: sample.yaw_rate_radps}, [0.0] * 36
    for k, value in motion.items():
        covariance[k] = NOT_MEASURED if np.isnan(value) else 0.0
    speed_mps, yaw_rate_radps = (0.0 if np.isnan(value) else value for value in motion.values())
    twist = {"linear": vector_fields((speed_mps, 0, 0)), "angular": vector_fields((0, 0, yaw_rate_radps))}
    return {
        "header": header_fields(sample.time_us, sample.frame_id),
        "child_frame_id": EGO_FRAME,
        "pose": {"pose": pose_fields(sample.T_world_from_ego, sample.q_wxyz)},
        "twist": {"twist": twist, "covariance": covariance},
    }


def steering_fields(time_us: int, steering_rad: float) -> dict:
    return {"header": header_fields(time_us, EGO_FRAME), "name": ["steering"], "position": [steering_rad]}
