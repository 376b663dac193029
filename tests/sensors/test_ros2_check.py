"""A healthy car has no findings but good ones; each fault has its own, with what came and how to mend it."""

from collections.abc import Callable

import numpy as np
import pytest
import ros_message_stand_ins as fake

from sensors import frames
from sensors.camera import Camera
from sensors.nuscenes_source import CAMERAS
from sensors.ros2_calibration import Calibration
from sensors.ros2_check import ERROR, GOOD, HEADING_RAD, WARNING, Finding, judge, table, wanted
from sensors.ros2_messages import steering_fields
from sensors.ros2_observed import Observation, Offer
from sensors.ros2_topics import (
    COMMAND,
    IMU,
    INPUTS,
    ODOMETRY,
    STEERING,
    TF_STATIC,
    image_topic,
    info_topic,
    optical_frame,
    raw_image_topic,
)

NOW_US = 1_700_000_000_000_000
OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
K = np.array([[20.0, 0, 15.5], [0, 20.0, 11.5], [0, 0, 1]])
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
JPEG = fake.jpeg(PIXELS)
Change = Callable[[object], None]


def place(heading_rad: float) -> np.ndarray:
    T = frames.matrix_from_xy_yaw(1.5, 0.0, heading_rad)
    T[:3, :3], T[2, 3] = T[:3, :3] @ OPTICAL, 1.6
    return T


def calibration(**changes: np.ndarray) -> Calibration:
    poses = {name: place(heading) for name, heading in zip(CAMERAS, HEADING_RAD, strict=True)} | changes
    return Calibration({name: optical_frame(name) for name in CAMERAS}, poses, np.eye(3))


class Car:
    """Three seconds of a healthy car, message by message; a test breaks one thing of it."""

    def __init__(self):
        self.offers = {topic.name: [Offer(topic.type, "reliable", "volatile")] for topic in INPUTS}
        self.offers[COMMAND] = [Offer("std_msgs/msg/String", "reliable", "transient local")]
        self.offers["/route/instruction"] = list(self.offers[COMMAND])
        self.sent: list[list] = []  # [topic, received_us, message]
        for k in range(300):
            time_us = NOW_US + 10_000 * k
            self.send(IMU, time_us, fake.imu(time_us))
            if k % 2 == 0:
                pose = frames.matrix_from_xy_yaw(5e-2 * k, 0, 0)
                self.send(ODOMETRY, time_us, fake.odometry(time_us, pose, 5.0))
                self.send(STEERING, time_us, fake.message(steering_fields(time_us, 0.1)))
        for k in range(36):
            for n, name in enumerate(CAMERAS):
                time_us, frame = NOW_US + 83_333 * k + 4_000 * n, optical_frame(name)
                self.send(info_topic(name), time_us, fake.info(Camera(name, 32, 24, K, np.eye(4)), time_us, frame))
                self.send(image_topic(name), time_us, fake.image(time_us, frame, JPEG))
        self.send(COMMAND, NOW_US, fake.Message(data="left"))

    def send(self, topic: str, time_us: int, message: object) -> None:
        self.sent.append([topic, time_us + 20_000, message])

    def change(self, topic: str, change: Change) -> None:
        for each in self.sent:
            if each[0] == topic:
                change(each[2])

    def drop(self, topic: str, keep: Callable[[int], bool] = lambda k: False) -> None:
        of_topic = [each for each in self.sent if each[0] == topic]
        kept = {id(each) for k, each in enumerate(of_topic) if keep(k)}
        self.sent = [each for each in self.sent if each[0] != topic or id(each) in kept]

    def judged(self, known: Calibration | None = None, raw: bool = False) -> list[Finding]:
        observation = Observation({name: tuple(offers) for name, offers in self.offers.items() if offers})
        for topic, received_us, message in sorted(self.sent, key=lambda each: each[1]):
            observation.hear(topic, received_us, message)
        observation.seconds = 3.0
        return judge(observation, known or calibration(), raw)


def bad(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.severity != GOOD]


def test_a_healthy_car_is_good():
    found = Car().judged()
    assert bad(found) == []
    assert {finding.where for finding in found} == {topic.name for topic in INPUTS}
    assert any("12.0 Hz" in line for line in table(found))


FRONT, BACK, INFO = image_topic("CAM_FRONT"), image_topic("CAM_BACK"), info_topic("CAM_FRONT")


def stamp(sec: int, nanosec: int = 0) -> Change:
    return lambda message: vars(message.header.stamp).update(sec=sec, nanosec=nanosec)


def frame(frame_id: str) -> Change:
    return lambda message: vars(message.header).update(frame_id=frame_id)


def update(**changes: object) -> Change:
    return lambda message: vars(message).update(changes)


def later(car: Car, us: int) -> None:
    for each in car.sent:
        each[1] += us


def offer(topic: str, *offers: Offer) -> Callable[[Car], None]:
    return lambda car: car.offers.update({topic: list(offers)})


def renamed(car: Car) -> None:
    car.offers["/front_camera/compressed"] = car.offers.pop(FRONT)
    car.drop(FRONT)


def only_raw(car: Car) -> None:
    car.offers[raw_image_topic("CAM_FRONT")] = [Offer("sensor_msgs/msg/Image")]
    car.offers.pop(FRONT)
    car.drop(FRONT)


def fast_twist(message) -> None:
    message.twist.twist.linear.x = 18.0  # km/h


def unmeasured(message) -> None:
    message.twist.covariance = [-1.0] + [0.0] * 35


def inertial(x: float, y: float, z: float) -> Change:
    return lambda message: vars(message.linear_acceleration).update(x=x, y=y, z=z)


COMPRESSED, BEST_EFFORT = "sensor_msgs/msg/CompressedImage", ("best effort", "volatile")
FAULTS = {  # name: (what is broken, severity, where, what, part of what came or of the fix)
    "no topic": (renamed, ERROR, FRONT, "topic", "/front_camera/compressed"),
    "raw only": (only_raw, ERROR, FRONT, "topic", "image_transport: raw"),
    "no IMU": (lambda car: (car.offers.pop(IMU), car.drop(IMU)), WARNING, IMU, "topic", "nobody"),
    "type": (offer(FRONT, Offer("sensor_msgs/msg/Image")), ERROR, FRONT, "type", "sensor_msgs/msg/Image"),
    "two": (offer(FRONT, Offer(COMPRESSED), Offer(COMPRESSED)), ERROR, FRONT, "publishers", "2"),
    "QoS": (offer(COMMAND, Offer("std_msgs/msg/String", *BEST_EFFORT)), ERROR, COMMAND, "QoS", "best effort"),
    "silent": (lambda car: car.drop(BACK), ERROR, BACK, "messages", "none in 3.0 s"),
    "no CameraInfo": (lambda car: car.drop(INFO), ERROR, INFO, "messages", "none"),
    "slow": (lambda car: car.drop(BACK, lambda k: k % 2 == 0), WARNING, BACK, "rate", "6.0 Hz"),
    "too slow": (lambda car: car.drop(BACK, lambda k: k % 6 == 0), ERROR, BACK, "rate", "2.0 Hz"),
    "gap": (lambda car: car.drop(BACK, lambda k: not 10 < k < 14), WARNING, BACK, "longest gap", "0.33 s"),
    "late": (lambda car: later(car, 300_000), ERROR, FRONT, "header.stamp", "320 ms old"),
    "ahead": (lambda car: later(car, -200_000), ERROR, ODOMETRY, "header.stamp", "180 ms ahead"),
    "zero stamp": (lambda car: car.change(BACK, stamp(0)), ERROR, BACK, "header.stamp", "0 s 0 ns"),
    "one stamp": (lambda car: car.change(BACK, stamp(1_700_000_001)), ERROR, BACK, "header.stamp", "repeat"),
    "frame": (lambda car: car.change(FRONT, frame("cam")), ERROR, FRONT, "header.frame_id", "'cam'"),
    "no frame": (lambda car: car.change(INFO, frame("")), ERROR, INFO, "header.frame_id", "''"),
    "other camera": (
        lambda car: car.change(INFO, frame("cam_back_optical_frame")),
        ERROR,
        INFO,
        "header.frame_id",
        "CAM_BACK",
    ),
    "png": (lambda car: car.change(FRONT, update(format="png")), ERROR, FRONT, "format", "png"),
    "cut off": (lambda car: car.change(FRONT, update(data=JPEG[:-30])), ERROR, FRONT, "image", "without the end"),
    "other size": (lambda car: car.change(INFO, update(width=64)), ERROR, FRONT, "image size", "32 x 24"),
    "K empty": (lambda car: car.change(INFO, update(k=[0.0] * 9)), ERROR, INFO, "K", "0.0"),
    "distortion": (
        lambda car: car.change(INFO, update(distortion_model="x")),
        ERROR,
        INFO,
        "distortion_model, d",
        "'x'",
    ),
    "child": (lambda car: car.change(ODOMETRY, update(child_frame_id="imu")), ERROR, ODOMETRY, "child_frame_id", "imu"),
    "world": (lambda car: car.change(ODOMETRY, frame("")), ERROR, ODOMETRY, "header.frame_id", "''"),
    "km/h": (lambda car: car.change(ODOMETRY, fast_twist), ERROR, ODOMETRY, "twist", "15 m by the poses"),
    "no twist": (lambda car: car.change(ODOMETRY, unmeasured), WARNING, ODOMETRY, "twist", "not measured"),
    "no gravity": (lambda car: car.change(IMU, inertial(0, 0, 0)), ERROR, IMU, "linear_acceleration", "0.00 m/s2"),
    "in g": (lambda car: car.change(IMU, inertial(0, 0, 1)), ERROR, IMU, "linear_acceleration", "not g"),
    "axes": (lambda car: car.change(IMU, inertial(0, 0, -9.8)), ERROR, IMU, "axes", "R_ego_from_imu"),
    "NaN": (lambda car: car.change(IMU, inertial(0, np.nan, 9.8)), ERROR, IMU, "linear_acceleration", "nan"),
    "degrees": (lambda car: car.change(STEERING, update(position=[12.0])), ERROR, STEERING, "position", "12.0"),
    "words": (lambda car: car.change(COMMAND, update(data="lefd")), ERROR, COMMAND, "data", "Did you mean left"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found(name):
    break_it, severity, where, what, words = FAULTS[name]
    car = Car()
    break_it(car)
    found = [f for f in bad(car.judged()) if (f.severity, f.where, f.what) == (severity, where, what)]
    assert found, bad(car.judged())
    assert any(words in f"{f.came} {f.fix}" for f in found), found
    assert all(f.expected and f.fix for f in found), found


def test_cameras_that_do_not_fire_together_are_told():
    car = Car()
    car.sent = [each for each in car.sent if each[0] != BACK]
    for k in range(30):
        time_us = NOW_US + 100_000 * k
        car.send(BACK, time_us, fake.image(time_us, "cam_back_optical_frame", JPEG))
    for name in CAMERAS:
        car.drop(image_topic(name), lambda k: k % 2 == 0)
    (finding,) = [f for f in bad(car.judged()) if f.what == "synchrony"]
    assert "CAM_BACK is most often missing" in finding.came


def test_pictures_may_be_expected_raw():
    car = Car()
    for name in CAMERAS:
        car.offers[raw_image_topic(name)] = [Offer("sensor_msgs/msg/Image")]
        car.offers.pop(image_topic(name))
    for each in car.sent:
        if each[0].endswith("/compressed"):
            time_us = each[1] - 20_000
            each[0] = each[0].removesuffix("/compressed")
            each[2] = fake.raw_image(time_us, each[2].header.frame_id, PIXELS)
    assert bad(car.judged(raw=True)) == []
    car.change(raw_image_topic("CAM_BACK"), update(encoding="yuv422"))
    (finding,) = bad(car.judged(raw=True))
    assert (finding.what, finding.severity) == ("encoding", ERROR)
    assert "rgb8" in finding.expected
    assert {topic.type for topic in wanted(True)} > {"sensor_msgs/msg/Image"}


@pytest.mark.parametrize(
    ("pose", "words"),
    [
        (place(np.pi), "swapped"),
        (np.linalg.inv(place(0.0)), "optical axis"),
        (frames.matrix(np.array([1.5, 0, 1600.0]), place(0.0)[:3, :3]), "Metres"),
        (place(0.0) @ np.diag([-1.0, -1.0, 1.0, 1.0]), "upside down"),
    ],
)
def test_a_camera_that_cannot_sit_there_is_told(pose, words):
    found = bad(Car().judged(calibration(CAM_FRONT=pose)))
    assert {finding.where for finding in found} == {"calibration of CAM_FRONT"}
    assert any(words in f"{finding.came} {finding.fix}" for finding in found)


def transform(parent: str, child: str, T: np.ndarray) -> object:
    w, x, y, z = frames.quaternion_from_rotation(T[:3, :3])
    place_m = dict(zip("xyz", T[:3, 3], strict=True))
    fields = {"translation": place_m, "rotation": {"w": w, "x": x, "y": y, "z": z}}
    return fake.message({"header": {"frame_id": parent}, "child_frame_id": child, "transform": fields})


@pytest.mark.parametrize(("moved_m", "count"), [(0.0, 0), (0.004, 0), (0.05, 1)])
def test_tf_and_the_calibration_must_agree(moved_m, count):
    car, mount = Car(), frames.matrix_from_xy_yaw(1.0, 0.0, 0.0)
    T = frames.inverse(mount) @ place(0.0)
    T[0, 3] += moved_m
    both = [transform("base_link", "roof", mount), transform("roof", "cam_front_optical_frame", T)]
    car.send(TF_STATIC, NOW_US, fake.Message(transforms=both))
    assert len(bad(car.judged())) == count


def test_without_a_calibration_it_is_asked_for():
    observation = Observation({})
    found = judge(observation, None)
    assert [f.fix for f in found if f.where == "calibration"] == [
        "Give the car's file with --calibration; launch/README.md shows one."
    ]
    assert {f.where for f in found if f.what == "topic"} == {t.name for t in INPUTS if t.need != "optional"}
