"""Listens to a car's topics for some seconds and says what is wrong with them: `vla ros check` starts it.

    python -m vla_drive_ros.check_node --seconds 5 --calibration car.json

The judging is `sensors.ros2_check`; here is only what needs ROS.
"""

import argparse
import sys
import time
from pathlib import Path

import rclpy
from nav_msgs.msg import Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu, JointState
from std_msgs.msg import String

from policies.ros_check import car_calibration, check_arguments, tell
from sensors.errors import InputError
from sensors.ros2_check import judge, wanted
from sensors.ros2_observed import Observation, Offer
from sensors.ros2_topics import LATCHED, TF_STATIC
from vla_drive_ros.interface import CLOCK

try:
    from tf2_msgs.msg import TFMessage
except ImportError:  # not among the wheels; every ROS install has it
    TFMessage = None

CLASSES = {kind.__name__: kind for kind in (CameraInfo, CompressedImage, Image, Imu, JointState, Odometry, String)}
DISCOVERY_S = 2.0
DEPTH = 200  # messages that may wait while a picture is decoded


class CheckNode(Node):
    def __init__(self):
        super().__init__("check_node")
        self.observation = Observation({})

    def listen(self, raw: bool) -> None:
        """From now on; where there is a /clock, stamps are compared with that."""
        if self.count_publishers(CLOCK):
            self.set_parameters([Parameter("use_sim_time", value=True)])
        for topic in wanted(raw):
            self._listen(CLASSES[topic.type.rpartition("/")[2]], topic.name)
        if TFMessage is not None:
            self._listen(TFMessage, TF_STATIC)

    def _listen(self, kind: type, topic: str) -> None:
        """As the driver asks for it."""
        qos = QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.BEST_EFFORT)
        if topic in LATCHED:
            qos = QoSProfile(depth=DEPTH, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(kind, topic, lambda message: self._hear(topic, message), qos)

    def _hear(self, topic: str, message: object) -> None:
        now_us = self.get_clock().now().nanoseconds // 1000
        if now_us:  # no /clock has been heard yet
            self.observation.hear(topic, now_us, message)

    def look(self) -> None:
        """Take note of who publishes what."""
        for name, _ in self.get_topic_names_and_types():
            offers = tuple(_offer(each) for each in self.get_publishers_info_by_topic(name))
            if offers:
                self.observation.offers[name] = offers


def _offer(endpoint) -> Offer:
    best_effort = endpoint.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    latched = endpoint.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
    words = "best effort" if best_effort else "reliable", "transient local" if latched else "volatile"
    return Offer(endpoint.topic_type, *words)


def observe(seconds: float, raw: bool) -> Observation:
    """What is seen of the topics in so many seconds, after some for finding each other."""
    rclpy.init()
    node, executor = CheckNode(), SingleThreadedExecutor()
    executor.add_node(node)

    def spin(until_s: float) -> None:
        while time.monotonic() < until_s:
            executor.spin_once(timeout_sec=0.05)

    spin(time.monotonic() + DISCOVERY_S)
    node.listen(raw)
    spin(time.monotonic() + seconds)
    node.look()
    observation = node.observation
    observation.seconds = seconds
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown()
    return observation


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="check_node")
    parser.add_argument("--calibration", type=Path, help="the car's calibration file")
    check_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        calibration = car_calibration(options.calibration)
    except InputError as error:
        print(f"check_node: error: {error}", file=sys.stderr)
        return 2
    return tell(judge(observe(options.seconds, options.raw), calibration, options.raw), options.json)


if __name__ == "__main__":
    sys.exit(main())
