"""Layouts of RViz and Foxglove: valid, complete, and of topics that the interface has, with their types."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import yaml
from vla_drive_ros import interface

from sensors.nuscenes_source import CAMERAS
from sensors.ros2_topics import EGO_FRAME, INPUTS, WORLD_FRAME, image_topic, info_topic

ROOT = Path(__file__).resolve().parents[2]
VIEWERS = ROOT / "launch" / "ros2" / "viewers"
SHOWS = {  # what a display of RViz shows
    "Image": "sensor_msgs/msg/CompressedImage",
    "MarkerArray": "visualization_msgs/msg/MarkerArray",
    "Odometry": "nav_msgs/msg/Odometry",
    "Path": "nav_msgs/msg/Path",
}
TYPES = {
    **{topic.name: topic.type for topic in (*INPUTS, *interface.CONTROL_INPUTS)},
    **{interface.of_node(interface.DRIVER, topic.name): topic.type for topic in interface.OUTPUTS},
    **{interface.of_node(interface.CONTROL, topic.name): topic.type for topic in interface.CONTROL_OUTPUTS},
}


def foxglove() -> dict:
    return json.loads((VIEWERS / "foxglove.json").read_text(encoding="utf-8"))


def panels(layout: dict | str) -> Iterator[str]:
    if isinstance(layout, str):
        yield layout
        return
    assert layout["direction"] in ("row", "column")
    assert 0 < layout["splitPercentage"] < 100
    yield from panels(layout["first"])
    yield from panels(layout["second"])


def topics_in(value: object) -> Iterator[str]:
    """Every text or key that begins like a topic, without the path into its message."""
    for each in (
        (*value.keys(), *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from topics_in(each)
        if isinstance(each, str) and each.startswith("/"):
            yield re.match(r"[\w/]+", each).group()


def test_foxglove_shows_each_panel_once_and_only_topics_there_are():
    content = foxglove()
    shown = list(panels(content["layout"]))
    assert sorted(shown) == sorted(content["configById"])
    assert all(re.fullmatch(r"(Image|3D|Plot|DiagnosticSummary|RawMessages)!\w+", name) for name in shown)
    named = set(topics_in(content["configById"]))
    assert named <= TYPES.keys()
    assert named >= {topic(name) for name in CAMERAS for topic in (image_topic, info_topic)}
    assert content["configById"]["3D!road"]["followTf"] == EGO_FRAME


def test_rviz_shows_topics_there_are_with_their_types():
    content = yaml.safe_load((VIEWERS / "vla_drive.rviz").read_text(encoding="utf-8"))
    manager = content["Visualization Manager"]
    assert manager["Global Options"]["Fixed Frame"] == WORLD_FRAME
    assert manager["Views"]["Current"]["Target Frame"] == EGO_FRAME
    shown = {}
    for display in manager["Displays"]:
        package, kind = display["Class"].split("/")
        assert package == "rviz_default_plugins"
        if kind in SHOWS:
            topic = display["Topic"]
            shown[topic["Value"]] = kind
            assert TYPES[topic["Value"]] == SHOWS[kind]
            offered = next((each.qos for each in INPUTS if each.name == topic["Value"]), "reliable, 1")
            assert topic["Reliability Policy"] == ("Best Effort" if offered == "sensor data" else "Reliable")
            assert topic["Durability Policy"] == "Volatile"
    assert {image_topic(name) for name in CAMERAS} <= shown.keys()
    assert sorted(set(shown.values())) == sorted(SHOWS)


def test_wheel_and_ament_package_install_the_same_files():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    setup = (ROOT / "launch" / "ros2" / "setup.py").read_text(encoding="utf-8")
    for folder in ("launch", "viewers"):
        (pattern,) = settings["data-files"][f"share/vla_drive_ros/{folder}"]
        files = {path for path in (ROOT / "launch" / "ros2" / folder).iterdir() if path.is_file()}
        assert files
        assert set(path for path in ROOT.glob(pattern) if path.is_file()) == files
        assert f'(f"share/{{NAME}}/{folder}", files("{folder}"))' in setup
