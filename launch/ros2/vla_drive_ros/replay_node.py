"""A recorded nuScenes scene as the topics of a car, at recorded times or faster, with /clock beside them.

Messages keep their recorded stamps, so whoever listens sets use_sim_time. Images go out as the JPEG files they are.
"""

import sys
import time
from pathlib import Path as FilePath

from nav_msgs.msg import Odometry
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import CameraInfo, CompressedImage, Imu, JointState
from std_msgs.msg import String

from policies.runs import write_json
from sensors.errors import InputError
from sensors.nuscenes_index import NuscenesIndex
from sensors.nuscenes_source import CAMERAS
from sensors.ros2_recording import calibration_of, messages_of
from sensors.ros2_topics import INPUTS, Topic, image_topic, info_topic
from vla_drive_ros import interface, messages
from vla_drive_ros.process import Loop, Stop, declare, run

TICK_S = 0.01
CLASSES = (CameraInfo, CompressedImage, Imu, JointState, Odometry, String)
CLASSES_OF = {topic.name: kind for topic in INPUTS for kind in CLASSES if topic.type.endswith(f"/{kind.__name__}")}


class ReplayNode(Node):
    def __init__(self, stop: Stop):
        super().__init__(interface.REPLAY)
        declare(self, interface.REPLAY_PARAMETERS)
        dataroot = self._value("dataroot")
        if not dataroot:
            raise InputError("parameter", "dataroot", "nothing", "a nuScenes dataroot")
        index = NuscenesIndex(dataroot, self._value("version"))
        scene = index.scene(self._value("scene") or index.scenes[0])
        lacking = [name for name in CAMERAS if name not in scene.cameras]
        if lacking:
            raise InputError(dataroot, f"cameras of {scene.name}", f"no {', '.join(lacking)}", "all six")
        if self._value("calibration_file"):
            write_json(FilePath(self._value("calibration_file")), calibration_of(scene).content())
        _muted(self._value("muted"))
        self.add_on_set_parameters_callback(_check)
        sent = messages_of(index, scene)
        self._events, self._next = [each for each in sent if each.topic in CLASSES_OF], 0
        self._rate, self._stop = self._value("rate"), stop
        self._offered = {topic.name: self._offer(topic) for topic in INPUTS}
        self._clock_publisher = self.create_publisher(ClockMessage, interface.CLOCK, 10)
        self.get_logger().info(f"{scene.name}: {len(self._events)} messages, {self._length_s():.1f} s")
        self._start = time.monotonic() + self._value("start_delay_s")
        self._loop = Loop("player", TICK_S, self._tick, stop)

    def finish(self, why: str, hurry) -> None:
        self._loop.end()
        self.get_logger().info(f"{why}: {self._next} of {len(self._events)} messages published")

    def _length_s(self) -> float:
        return (self._events[-1].time_us - self._events[0].time_us) * 1e-6

    def _tick(self) -> None:
        """Publish all that is due."""
        elapsed_s = time.monotonic() - self._start
        if elapsed_s < 0 or self._next == len(self._events):
            return
        due_us = self._events[0].time_us + int(elapsed_s * self._rate * 1e6)
        muted = {topic(name) for name in _muted(self._value("muted")) for topic in (image_topic, info_topic)}
        self._clock_publisher.publish(ClockMessage(clock=messages.time_of(due_us)))
        while self._next < len(self._events) and self._events[self._next].time_us <= due_us:
            event = self._events[self._next]
            if event.topic not in muted:
                message = messages.filled(CLASSES_OF[event.topic](), event.fields())
                self._offered[event.topic].publish(message)
            self._next += 1
        if self._next == len(self._events):
            self._stop("end of the scene")

    def _offer(self, topic: Topic) -> Publisher:
        """CameraInfo and words are latched, more than the driver asks for, since they come once or seldom."""
        kind, qos = CLASSES_OF[topic.name], QoSProfile(depth=100)
        if kind in (CameraInfo, String):
            qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        return self.create_publisher(kind, topic.name, qos)

    def _value(self, name: str):
        return self.get_parameter(name).value


def _muted(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in CAMERAS]
    if unknown:
        raise InputError("parameter", "muted", ", ".join(unknown), f"names out of {', '.join(CAMERAS)}")
    return names


def _check(parameters: list) -> SetParametersResult:
    """Answer to a change while it plays: a camera that does not exist is refused, and what was set before stays."""
    try:
        for parameter in parameters:
            if parameter.name == "muted":
                _muted(parameter.value)
    except InputError as error:
        return SetParametersResult(successful=False, reason=str(error))
    return SetParametersResult(successful=True)


def main() -> None:
    sys.exit(run(ReplayNode))


if __name__ == "__main__":
    main()
