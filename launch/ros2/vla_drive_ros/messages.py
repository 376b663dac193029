"""Arrays to ROS messages, by their fields; the way back is `sensors.ros2_messages`."""

from typing import TypeVar

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path

from policies.protocol import Plan
from sensors import frames
from sensors.ros2_messages import header_fields, pose_fields, stamp_from_time_us

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
