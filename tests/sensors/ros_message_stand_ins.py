"""ROS 2 messages as plain objects with the fields of their types, for tests without ROS."""

from types import SimpleNamespace as Message

import cv2
import numpy as np

from sensors import frames
from sensors.camera import Camera
from sensors.ros2_messages import info_fields, stamp_from_time_us


def header(time_us: int, frame_id: str) -> Message:
    sec, nanosec = stamp_from_time_us(time_us)
    return Message(stamp=Message(sec=sec, nanosec=nanosec), frame_id=frame_id)


def vector(values) -> Message:
    x, y, z = map(float, values)
    return Message(x=x, y=y, z=z)


def image(time_us: int, frame_id: str, data: bytes, form: str = "jpeg") -> Message:
    return Message(header=header(time_us, frame_id), format=form, data=data)


def jpeg(rgb: np.ndarray) -> bytes:
    good, data = cv2.imencode(".jpg", rgb[..., ::-1])
    assert good
    return data.tobytes()


def info(camera: Camera, time_us: int = 1, frame_id: str = "") -> Message:
    roi = Message(x_offset=0, y_offset=0, width=0, height=0)
    return Message(header=header(time_us, frame_id), **info_fields(camera), roi=roi, binning_x=0, binning_y=0)


def imu(time_us: int, accel_mps2=(0, 0, 9.81), gyro_radps=(0, 0, 0)) -> Message:
    return Message(
        header=header(time_us, "base_link"),
        linear_acceleration=vector(accel_mps2),
        angular_velocity=vector(gyro_radps),
        linear_acceleration_covariance=[0.0] * 9,
        angular_velocity_covariance=[0.0] * 9,
    )


def odometry(time_us: int, T: np.ndarray, speed_mps=0.0, yaw_rate_radps=0.0, frame_id: str = "map") -> Message:
    w, x, y, z = frames.quaternion_from_rotation(T[:3, :3]).tolist()
    pose = Message(position=vector(T[:3, 3]), orientation=Message(w=w, x=x, y=y, z=z))
    twist = Message(linear=vector((speed_mps, 0, 0)), angular=vector((0, 0, yaw_rate_radps)))
    return Message(header=header(time_us, frame_id), pose=Message(pose=pose), twist=Message(twist=twist))
