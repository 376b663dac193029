"""The ROS 2 nodes of launch/ as programs: what to start them with. Nothing here, nor below, imports them."""

import importlib.util
import os
import sys
from pathlib import Path

from sensors.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "vla_drive_ros"


def node_command(module: str, *words: object) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of a module of the package; an InputError where ROS 2 or the package is not there."""
    if importlib.util.find_spec("rclpy") is None:
        fix = "pip install -c constraints.txt -e '.[ros]', or source the set-up of a ROS 2 installation."
        raise InputError("vla ros", "rclpy", "nothing", "ROS 2 for Python", fix)
    paths = [str(path) for path in (ROOT, ROOT / "launch" / "ros2") if (path / "launch").is_dir() or path != ROOT]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [environment.get("PYTHONPATH")])])
    return [sys.executable, "-m", f"{PACKAGE}.{module}", *map(str, words)], environment
