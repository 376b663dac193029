"""vla ros check on live topics: real publishers over DDS on loopback. Run with -m ros; needs the [ros] extra."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import ros_message_stand_ins as fake
from small_scene import make_cameras

from policies.cli import main
from policies.ros_check import check_bag
from sensors.ros2_check import GOOD
from sensors.ros2_messages import OdometrySample, camera_info_fields, image_fields, imu_fields, odometry_fields
from sensors.ros2_topics import COMMAND, IMU, ODOMETRY, image_topic, info_topic, optical_frame

ROOT = Path(__file__).resolve().parents[2]
LISTEN_S = 4.0


def test_without_ros_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["ros", "check"]) == 2
    assert "source the set-up" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--seconds", "0"), ("--seconds", "nan"), ("--calibration", "nowhere.json")])
def test_live_check_rejects(arguments, capsys):
    assert main(["ros", "check", *arguments]) == 2
    assert arguments[1].partition(".")[0] in capsys.readouterr().err


def test_a_bag_of_a_scene_is_checked_without_ros(tmp_path, keyframe_scene, capsys):
    pytest.importorskip("rosbags", reason="rosbags is not installed: pip install -e '.[bags]'")
    assert (
        main(
            [
                "ros",
                "record",
                "--quiet",
                "--dataroot",
                str(keyframe_scene),
                "--version",
                "v1.0-test",
                "--out",
                str(tmp_path / "bag"),
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert main(["ros", "check", str(tmp_path / "bag"), "--json"]) == 1  # keyframes come at 2 Hz, too slow to drive on
    said = json.loads(capsys.readouterr().out)
    assert {finding["what"] for finding in said["findings"]} == {"rate", ""}
    assert said["errors"] == 6
    assert {finding.where for finding in check_bag(tmp_path / "bag", None, False) if finding.severity == GOOD} >= {
        IMU,
        ODOMETRY,
    }
    assert main(["ros", "check", str(tmp_path / "bag")]) == 1
    assert "6 errors, 0 warnings" in capsys.readouterr().out


@contextmanager
def car_on_air(domain: int) -> Iterator[dict]:
    """All of a car by real publishers, but for a picture that is sent as something else, words that are not latched, a
    camera that names another's frame, and pictures of a format that nobody reads."""
    rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e '.[ros]'")
    sensor_msgs = pytest.importorskip("sensor_msgs.msg")
    nav_msgs, std_msgs = pytest.importorskip("nav_msgs.msg"), pytest.importorskip("std_msgs.msg")
    from vla_drive_ros.messages import filled

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = rclpy.create_node("car", context=context)
    cameras, jpeg = {camera.name: camera for camera in make_cameras()}, fake.jpeg(np.zeros((48, 64, 3), np.uint8))
    publishers = {
        IMU: node.create_publisher(sensor_msgs.Imu, IMU, 10),
        ODOMETRY: node.create_publisher(nav_msgs.Odometry, ODOMETRY, 10),
        COMMAND: node.create_publisher(std_msgs.String, COMMAND, 10),
    }
    for name in cameras:
        kind = sensor_msgs.Image if name == "CAM_BACK" else sensor_msgs.CompressedImage
        publishers[image_topic(name)] = node.create_publisher(kind, image_topic(name), 10)
        publishers[info_topic(name)] = node.create_publisher(sensor_msgs.CameraInfo, info_topic(name), 10)
    done = threading.Event()

    def drive() -> None:
        while not done.wait(0.05):
            now_us = node.get_clock().now().nanoseconds // 1000
            sample = OdometrySample(now_us, np.eye(4), 0.0, 0.0, "map")
            publishers[IMU].publish(
                filled(sensor_msgs.Imu(), imu_fields(now_us, "imu", np.array([0, 0, 9.8]), np.zeros(3)))
            )
            publishers[ODOMETRY].publish(filled(nav_msgs.Odometry(), odometry_fields(sample)))
            for name, camera in cameras.items():
                frame = optical_frame("CAM_FRONT" if name == "CAM_BACK_LEFT" else name)
                info = filled(sensor_msgs.CameraInfo(), camera_info_fields(now_us, frame, camera))
                publishers[info_topic(name)].publish(info)
                if name != "CAM_BACK":
                    fields = {**image_fields(now_us, frame, jpeg), "format": "png" if name == "CAM_FRONT" else "jpeg"}
                    publishers[image_topic(name)].publish(filled(sensor_msgs.CompressedImage(), fields))

    sender = threading.Thread(target=drive)
    sender.start()
    try:
        yield cameras
    finally:
        done.set()
        sender.join()
        node.destroy_node()
        rclpy.shutdown(context=context)


@pytest.mark.ros
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")
def test_live_publishers_are_judged(tmp_path):
    domain = 120 + os.getpid() % 80
    environment = {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    with car_on_air(domain) as cameras:
        file = tmp_path / "car.json"
        poses = {
            n: {"frame_id": optical_frame(n), "T_ego_from_cam": c.T_ego_from_cam.tolist()} for n, c in cameras.items()
        }
        file.write_text(json.dumps({"cameras": poses, "imu": {"R_ego_from_imu": np.eye(3).tolist()}}))
        words = "import sys, pathlib; from policies.ros_check import check_live as check; "
        words += f"sys.exit(check({LISTEN_S}, pathlib.Path(sys.argv[1]), ['--json']))"
        command = [sys.executable, "-c", words, str(file)]
        told = subprocess.run(
            command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, timeout=240
        )
    assert told.returncode == 1, told.stderr
    found = {(f["severity"], f["where"], f["what"]) for f in json.loads(told.stdout)["findings"]}
    assert {
        ("error", image_topic("CAM_BACK"), "type"),
        ("error", image_topic("CAM_BACK"), "messages"),
        ("error", COMMAND, "QoS"),
        ("error", image_topic("CAM_FRONT"), "format"),
        ("error", image_topic("CAM_BACK_LEFT"), "header.frame_id"),
        ("error", info_topic("CAM_BACK_LEFT"), "header.frame_id"),
    } <= found
    timely = {"rate", "longest gap", "header.stamp", "synchrony"}  # as well as this machine can
    rest = {each for each in found if each[0] == "error" and each[2] not in timely}
    assert {where for _, where, _ in rest} <= {
        *(image_topic(name) for name in ("CAM_BACK", "CAM_FRONT", "CAM_BACK_LEFT")),
        info_topic("CAM_BACK_LEFT"),
        COMMAND,
    }
