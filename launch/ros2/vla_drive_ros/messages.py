"""Arrays to ROS messages, by their fields; the way back is `sensors.ros2_messages`."""

from typing import TypeVar

import numpy as np
from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, PoseStamped
from nav_msgs.msg import Path
from std_msgs.msg import ColorRGBA, Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from visualization_msgs.msg import Marker, MarkerArray

from policies.protocol import Plan
from sensors import frames
from sensors.ros2_messages import header_fields, pose_fields, stamp_from_time_us, time_us_from_stamp
from vla_drive_ros.controller import ControlCommand
from vla_drive_ros.interface import STEERING_JOINT, TRACTION_JOINT

Message = TypeVar("Message")


def filled(message: Message, fields: dict) -> Message:
    """The message with these fields, nested dicts for messages in it; the others stay as they are."""
    for name, value in fields.items():
        if isinstance(value, dict):
            filled(getattr(message, name), value)
        else:
            setattr(message, name, value)
    return message


def time_of(time_us: int) -> Time:
    sec, nanosec = stamp_from_time_us(time_us)
    return Time(sec=sec, nanosec=nanosec)


def header(time_us: int, frame_id: str) -> Header:
    return filled(Header(), header_fields(time_us, frame_id))


def path(plan: Plan, now_us: int, T_world_from_ego_now: np.ndarray, frame_id: str) -> Path:
    """The plan in the world frame; each pose carries the instant at which the rear axle shall be there."""
    message = filled(Path(), {"header": header_fields(now_us, frame_id)})
    T = T_world_from_ego_now @ frames.matrix_from_xy_yaw(*plan.xyyaw_in_ego.T)
    for time_us, T_k in zip(now_us + np.round(plan.time_s * 1e6).astype(np.int64), T, strict=True):
        fields = {"header": header_fields(time_us, frame_id), "pose": pose_fields(T_k)}
        message.poses.append(filled(PoseStamped(), fields))
    return message


def status(level: bytes, name: str, text: str, values: dict[str, object]) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=f"{v:.1f}" if isinstance(v, float) else str(v)) for key, v in values.items()]
    return DiagnosticStatus(level=level, name=name, message=text, hardware_id="vla_drive", values=pairs)


def diagnostics(time_us: int, statuses: list[DiagnosticStatus]) -> DiagnosticArray:
    return DiagnosticArray(header=header(time_us, ""), status=statuses)


def path_knots(message: Path) -> tuple[int, np.ndarray, np.ndarray]:
    """(time_us of the plan, times_us [K], xyyaw [K, 3]) of what `path` made."""
    times_us = np.array([time_us_from_stamp(pose.header.stamp, "pose of a path") for pose in message.poses], np.int64)
    poses = [pose.pose for pose in message.poses]
    yaw = [2 * np.arctan2(p.orientation.z, p.orientation.w) for p in poses]  # of a turn about z
    xyyaw = np.array([(p.position.x, p.position.y, a) for p, a in zip(poses, yaw, strict=True)]).reshape(-1, 3)
    return time_us_from_stamp(message.header.stamp, "path"), times_us, xyyaw


def markers(message: Path, words: str) -> MarkerArray:
    """A plan as a line on the ground, and the reason as text above its first pose; both fade by themselves."""
    green, white = ColorRGBA(r=0.1, g=0.8, b=0.3, a=0.9), ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)
    common = {"header": message.header, "ns": "plan", "lifetime": Duration(sec=1)}
    line = Marker(**common, id=0, type=Marker.LINE_STRIP, color=green)
    line.scale.x = 0.3
    line.points = [Point(x=p.x, y=p.y, z=0.1) for p in (pose.pose.position for pose in message.poses)]
    text = Marker(**common, id=1, type=Marker.TEXT_VIEW_FACING, color=white, text=words or " ")
    text.scale.z, text.pose = 0.6, PoseStamped(pose=message.poses[0].pose).pose
    text.pose.position.z = 2.0
    return MarkerArray(markers=[line, text])


def joint_command(command: ControlCommand) -> JointTrajectory:
    """The command as one point: angle and rate of the steering, speed and acceleration of the traction."""
    point = JointTrajectoryPoint(
        positions=[command.steering_rad, 0.0],
        velocities=[command.steering_rate_radps, command.speed_mps],
        accelerations=[0.0, command.accel_mps2],
    )
    names = [STEERING_JOINT, TRACTION_JOINT]
    return JointTrajectory(header=header(command.time_us, "base_link"), joint_names=names, points=[point])


def autoware_control(command: ControlCommand, kind: type):
    """The command as an autoware_control_msgs/Control, whose class is `kind`."""
    message = kind(stamp=time_of(command.time_us))
    message.lateral.stamp = message.longitudinal.stamp = message.stamp
    message.lateral.steering_tire_angle = command.steering_rad
    message.lateral.steering_tire_rotation_rate = command.steering_rate_radps
    message.lateral.is_defined_steering_tire_rotation_rate = True
    message.longitudinal.velocity, message.longitudinal.acceleration = command.speed_mps, command.accel_mps2
    message.longitudinal.is_defined_acceleration = True
    return message


def ackermann(command: ControlCommand, kind: type):
    """The command as an ackermann_msgs/AckermannDriveStamped, whose class is `kind`."""
    message = kind(header=header(command.time_us, "base_link"))
    drive = message.drive
    drive.steering_angle, drive.steering_angle_velocity = command.steering_rad, command.steering_rate_radps
    drive.speed, drive.acceleration = command.speed_mps, command.accel_mps2
    return message
