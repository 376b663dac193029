"""The ROS package is not installed in the tests: its folder is put on the path, as colcon's set-up would do."""

import sys
from pathlib import Path

import pytest
from small_scene import write_scene

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(ROOT / "launch" / "ros2"),
    str(ROOT / "tests" / "sensors"),
]  # the latter for the messages' stand-ins


@pytest.fixture(scope="session")
def fast_scene(tmp_path_factory) -> Path:
    """Cameras at 10 Hz for 25 s: what a car sends."""
    return write_scene(tmp_path_factory.mktemp("fast"), 25.0)


@pytest.fixture(scope="session")
def keyframe_scene(tmp_path_factory) -> Path:
    """Key frames at 2 Hz for 4 s, as nuScenes has them."""
    return write_scene(tmp_path_factory.mktemp("slow"), 4.0, 500_000)
