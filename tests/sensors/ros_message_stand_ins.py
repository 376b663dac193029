"""ROS 2 messages as plain objects with the fields of their types, for tests without ROS."""

from types import SimpleNamespace as Message

import cv2
import numpy as np

from sensors.camera import Camera
from sensors.ros2_messages import (
    OdometrySample,
    camera_info_fields,
    header_fields,
    image_fields,
    imu_fields,
    odometry_fields,
)

COVARIANCE = (0.0,) * 9
DEFAULTS = {  # what is in every message of a type, by a field that tells the type
    "k": {"roi": {"x_offset": 0, "y_offset": 0, "width": 0, "height": 0}, "binning_x": 0, "binning_y": 0},
    "linear_acceleration": {"linear_acceleration_covariance": COVARIANCE, "angular_velocity_covariance": COVARIANCE},
}


def message(fields: dict) -> Message:
    """The object with these fields, and with the defaults of its type for the others."""
    for mark, defaults in DEFAULTS.items():
        fields = {**defaults, **fields} if mark in fields else fields
    return Message(**{name: message(value) if isinstance(value, dict) else value for name, value in fields.items()})


def image(time_us: int, frame_id: str, data: bytes, form: str = "jpeg") -> Message:
    return message({**image_fields(time_us, frame_id, data), "format": form})


def raw_image(time_us: int, frame_id: str, pixels: np.ndarray, encoding: str = "rgb8", padding: int = 0) -> Message:
    """pixels uint8 [H, W, C], with so many bytes after each row."""
    height, width, channels = pixels.shape
    data = np.pad(pixels.reshape(height, width * channels), ((0, 0), (0, padding)), constant_values=7)
    about = {"height": height, "width": width, "encoding": encoding, "step": width * channels + padding}
    return message({"header": header_fields(time_us, frame_id), **about, "data": data.tobytes()})


def jpeg(rgb: np.ndarray) -> bytes:
    good, data = cv2.imencode(".jpg", rgb[..., ::-1])
    assert good
    return data.tobytes()


def info(camera: Camera, time_us: int = 1, frame_id: str = "") -> Message:
    return message(camera_info_fields(time_us, frame_id, camera))


def imu(time_us: int, accel_mps2=(0, 0, 9.81), gyro_radps=(0, 0, 0)) -> Message:
    return message(imu_fields(time_us, "base_link", accel_mps2, gyro_radps))


def odometry(time_us: int, T: np.ndarray, speed_mps=0.0, yaw_rate_radps=0.0, frame_id: str = "map") -> Message:
    return message(odometry_fields(OdometrySample(time_us, T, speed_mps, yaw_rate_radps, frame_id)))
