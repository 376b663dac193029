"""What was seen of a car's topics, live or in a bag: the facts that `sensors.ros2_check` judges. No ROS in here."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from sensors import frames
from sensors.camera import Camera
from sensors.errors import InputError
from sensors.nuscenes_source import CAMERAS
from sensors.ros2_bag import Bag
from sensors.ros2_calibration import Calibration, calibration_from, json_object, same_calibration
from sensors.ros2_messages import (
    camera_from_info,
    command_from_message,
    image_from_message,
    imu_from_message,
    odometry_from_message,
    steering_from_message,
    time_us_from_stamp,
)
from sensors.ros2_topics import (
    CALIBRATION,
    COMMAND,
    IMU,
    INPUTS,
    ODOMETRY,
    STEERING,
    TF_STATIC,
    image_topic,
    info_topic,
    raw_image_topic,
)

CAMERA_OF = {topic(name): name for name in CAMERAS for topic in (image_topic, raw_image_topic, info_topic)}
LOOKED_AT = (*(topic.name for topic in INPUTS), *(raw_image_topic(name) for name in CAMERAS), TF_STATIC, CALIBRATION)
DECODED = 3  # pictures of a camera that are decoded; more would hold up the others
NOWHERE = np.eye(4)


@dataclass(frozen=True)
class Offer:
    """One publisher of a topic: its type, and its reliability and durability in words, "" where they are not known."""

    type: str
    reliability: str = ""
    durability: str = ""


@dataclass
class Seen:
    """The messages of one topic. `stamps_us` and `received_us` have an entry a message that has a good stamp.

    complaints  how many messages were not usable, by (field, what came, what was expected, fix)
    frames      of headers, by how often; `children` of the frames that odometry speaks of
    """

    count: int = 0
    stamps_us: list[int] = field(default_factory=list)
    received_us: list[int] = field(default_factory=list)
    arrivals_us: list[int] = field(default_factory=list)
    complaints: Counter = field(default_factory=Counter)
    frames: Counter = field(default_factory=Counter)
    children: Counter = field(default_factory=Counter)
    values: list = field(default_factory=list)


class Observation:
    """Fed with `offered` and `hear`, it holds for each topic what was seen of it.

    offers      every topic of the car, whether the driver wants it or not, with its publishers
    seen        the messages of LOOKED_AT
    cameras     of each camera's CameraInfo, the first that was usable (its place is not known from it)
    static      T_parent_from_child [4, 4] of /tf_static by (parent, child)
    calibration what a recording says itself, None where it says nothing
    seconds     how long messages were listened to
    """

    def __init__(self, offers: dict[str, tuple[Offer, ...]]):
        self.offers, self.seconds = offers, 0.0
        self.seen: dict[str, Seen] = {topic: Seen() for topic in LOOKED_AT}
        self.cameras: dict[str, Camera] = {}
        self.static: dict[tuple[str, str], np.ndarray] = {}
        self.calibration: Calibration | None = None

    def hear(self, topic: str, received_us: int, message: object) -> None:
        """Take note of one message; what is wrong with it is a complaint, never an exception."""
        seen = self.seen[topic]
        seen.count += 1
        seen.arrivals_us.append(received_us)
        try:
            if topic in (TF_STATIC, CALIBRATION):
                return self._about_frames(topic, message)
            if topic != COMMAND and hasattr(message, "header"):
                seen.frames[message.header.frame_id] += 1
                seen.stamps_us.append(time_us_from_stamp(message.header.stamp, topic))
                seen.received_us.append(received_us)
            self._read(topic, message, seen)
        except InputError as error:
            seen.complaints[error.field, error.came[:80], error.expected, error.fix] += 1

    def _about_frames(self, topic: str, message: object) -> None:
        if topic == CALIBRATION:
            self.calibration = calibration_from(json_object(message.data, topic, "data"), topic, CAMERAS)
            return
        for each in message.transforms:
            T = pose_of(each.transform.translation, each.transform.rotation, TF_STATIC)
            self.static[each.header.frame_id, each.child_frame_id] = T

    def _read(self, topic: str, message: object, seen: Seen) -> None:
        name = CAMERA_OF.get(topic)
        if name is not None and topic == info_topic(name):
            camera = camera_from_info(message, name, NOWHERE)
            known = self.cameras.setdefault(name, camera)
            if not same_calibration(known, camera):
                raise InputError(topic, "width, height, k, d", "another calibration than before", "always the same")
        elif name is not None:
            camera = self.cameras.get(name)
            if camera is not None and len(seen.values) < DECODED:
                image_from_message(message, camera)
                seen.values.append(None)
        elif topic == IMU:
            seen.values.append(np.stack(imu_from_message(message, np.eye(3))[1:]))
        elif topic == ODOMETRY:
            seen.children[message.child_frame_id] += 1
            seen.values.append(odometry_from_message(message))
        elif topic == STEERING:
            seen.values.append(steering_from_message(message)[1])
        elif topic == COMMAND:
            command_from_message(message)


def pose_of(translation: object, rotation: object, where: object) -> np.ndarray:
    """T [4, 4] of a geometry_msgs/Transform's parts; numbers that are not finite are an InputError."""
    at_m = np.array([translation.x, translation.y, translation.z], np.float64)
    if not np.isfinite(at_m).all():
        raise InputError(where, "translation", at_m.tolist(), "finite numbers")
    q_wxyz = np.array([rotation.w, rotation.x, rotation.y, rotation.z])
    return frames.matrix(at_m, frames.rotation_from_quaternion(q_wxyz, where))


def observe_bag(bag: Bag) -> Observation:
    """All of a bag; a message was received when it was recorded."""
    offers: dict[str, tuple[Offer, ...]] = {}
    for each in bag.stored:
        offers[each.topic] = (*offers.get(each.topic, ()), Offer(each.type, *each.qos))
    observation, times_us = Observation(offers), []
    for topic, time_us, message in bag.messages(set(LOOKED_AT)):
        observation.hear(topic, time_us, message)
        times_us.append(time_us)
    observation.seconds = (max(times_us) - min(times_us)) * 1e-6 if times_us else 0.0
    return observation
