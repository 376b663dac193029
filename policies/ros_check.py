"""`vla ros check`: what is wrong with a car's topics, live or in a bag, as a table or as JSON."""

import argparse
import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from policies.ros_nodes import node_command
from sensors.errors import InputError
from sensors.nuscenes_source import CAMERAS
from sensors.ros2_bag import Bag
from sensors.ros2_calibration import Calibration, read_calibration
from sensors.ros2_check import ERROR, WARNING, Finding, judge, table
from sensors.ros2_observed import observe_bag

LISTEN_S, LONGEST_S = 5.0, 3600.0


def check_arguments(parser: argparse.ArgumentParser) -> None:
    """What a check of live topics and one of a bag share; the calibration file is an option of both."""
    parser.add_argument("--raw", action="store_true", help="pictures are sent as Image (image_transport: raw)")
    words = f"how long to listen, without a bag (default {LISTEN_S:g})"
    parser.add_argument("--seconds", type=float, default=LISTEN_S, metavar="S", help=words)
    parser.add_argument("--json", action="store_true", help="print JSON")


def car_calibration(path: Path | None) -> Calibration | None:
    return None if path is None else read_calibration(path, CAMERAS)


def check_bag(path: Path, calibration: Path | None, raw: bool) -> list[Finding]:
    known = car_calibration(calibration)
    with Bag(path) as bag:
        return judge(observe_bag(bag), known, raw)


def check_live(seconds: float, calibration: Path | None, options: Sequence[str]) -> int:
    """The exit status of the node that listens to the topics of this computer's ROS, which prints its findings."""
    if not 0.1 <= seconds <= LONGEST_S:
        raise InputError("vla ros check", "--seconds", seconds, f"0.1 to {LONGEST_S:.0f}")
    car_calibration(calibration)  # refused before anything is started
    given = [] if calibration is None else ["--calibration", calibration]
    command, environment = node_command("check_node", "--seconds", seconds, *given, *options)
    return subprocess.run(command, env=environment, check=False).returncode


def tell(found: list[Finding], as_json: bool) -> int:
    """Print the findings; the exit status: 1 if any is an error."""
    count = Counter(finding.severity for finding in found)
    if as_json:
        numbers = {"errors": count[ERROR], "warnings": count[WARNING]}
        print(json.dumps({**numbers, "findings": [asdict(each) for each in found]}, indent=1))
    else:
        print(*table(found), f"{count[ERROR]} errors, {count[WARNING]} warnings", sep="\n")
    return 1 if count[ERROR] else 0
