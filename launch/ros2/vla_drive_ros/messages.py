"""Arrays to ROS messages; the way back is `sensors.ros2_source`."""

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry, Path
from sensor_msgs.msg import CameraInfo, CompressedImage, Imu
from std_msgs.msg import Header

from policies.protocol import Plan
from sensors import frames
from sensors.camera import Camera
from sensors.ros2_messages import info_fields, stamp_from_time_us
from sensors.ros2_topics import optical_frame

NOT_MEASURED = -1.0  # first element of a covariance, sensor_msgs/Imu


def time_of(time_us: int) -> Time:
    sec, nanosec = stamp_from_time_us(time_us)
    return Time(sec=sec, nanosec=nanosec)


def header(time_us: int, frame_id: str) -> Header:
    return Header(stamp=time_of(time_us), frame_id=frame_id)


def set_pose(pose, T: np.ndarray) -> None:
    """Write T [4, 4] into a geometry_msgs/Pose."""
    pose.position.x, pose.position.y, pose.position.z = T[:3, 3].tolist()
    q = frames.quaternion_from_rotation(T[:3, :3]).tolist()
    pose.orientation.w, pose.orientation.x, pose.orientation.y, pose.orientation.z = q


def path(plan: Plan, now_us: int, T_world_from_ego_now: np.ndarray, frame_id: str) -> Path:
    """The plan in the world frame; each pose carries the instant at which the rear axle shall be there."""
    message = Path(header=header(now_us, frame_id))
    T = T_world_from_ego_now @ frames.matrix_from_xy_yaw(*plan.xyyaw_in_ego.T)
    for time_us, T_k in zip(now_us + np.round(plan.time_s * 1e6).astype(np.int64), T, strict=True):
        pose = PoseStamped(header=header(time_us, frame_id))
        set_pose(pose.pose, T_k)
        message.poses.append(pose)
    return message


def image(time_us: int, camera: str, jpeg: bytes) -> CompressedImage:
    return CompressedImage(header=header(time_us, optical_frame(camera)), format="jpeg", data=jpeg)


def camera_info(time_us: int, camera: Camera) -> CameraInfo:
    return CameraInfo(header=header(time_us, optical_frame(camera.name)), **info_fields(camera))


def imu(time_us: int, accel_mps2: np.ndarray, gyro_radps: np.ndarray) -> Imu:
    message = Imu(header=header(time_us, "base_link"))
    a, g = message.linear_acceleration, message.angular_velocity
    a.x, a.y, a.z = accel_mps2.tolist()
    g.x, g.y, g.z = gyro_radps.tolist()
    message.orientation_covariance[0] = NOT_MEASURED
    return message


def odometry(time_us: int, T_world_from_ego: np.ndarray, speed_mps: float, yaw_rate_radps: float) -> Odometry:
    message = Odometry(header=header(time_us, "map"), child_frame_id="base_link")
    set_pose(message.pose.pose, T_world_from_ego)
    message.twist.twist.linear.x, message.twist.twist.angular.z = speed_mps, yaw_rate_radps
    return message


def status(level: bytes, name: str, text: str, values: dict[str, object]) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=f"{v:.1f}" if isinstance(v, float) else str(v)) for key, v in values.items()]
    return DiagnosticStatus(level=level, name=name, message=text, hardware_id="vla_drive", values=pairs)
