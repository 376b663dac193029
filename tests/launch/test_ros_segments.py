"""Shared memory that a killed node leaves is cleared; that of a living one stays."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e '.[ros]'")

from vla_drive_ros.supervisor import SHARED_MEMORY, clear_segments

# lark, which the message wheels load
pytestmark = [
    pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning"),
    pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="no shared memory in the file system"),
]
NODE = """
import sys, rclpy
rclpy.init(domain_id=77)
node = rclpy.create_node("segments")
print("up", flush=True)
sys.stdin.read()
"""


def segments() -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob("fastdds_*") if len(path.name) == len("fastdds_") + 16}


def test_what_a_killed_node_left_is_cleared_and_a_living_ones_stays():
    before = segments()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", NODE], env=dict(os.environ), **pipes) as node:
        try:
            assert node.stdout.readline() == "up\n"
            own = segments() - before
            assert own, "Fast DDS made no segment"
            assert not own & set(clear_segments())
            assert own <= segments()
        finally:
            node.kill()
    clear_segments()
    assert not own & segments()
