"""The ROS 2 nodes of the verb `vla ros`, as plain processes: a car, the simulated car, a replay."""

import argparse
import os
from pathlib import Path

from policies.ros_nodes import node_command

POLICIES = ("constant-velocity", "repeat", "vla")
EXAMPLES = """
  vla ros sim --policy vla --engage                        the town, driver and control in three processes
  vla ros drive --calibration car.json --checkpoint runs/tiny/checkpoint --policy vla      shadow mode on a car
  vla ros drive --calibration car.json --policy repeat --route-file route.json --control   it may move once engaged
  vla ros ask engage                                       also: disengage, reset, emergency-stop, release
  vla ros replay --dataroot data/nuscenes --scene scene-0061"""


def add_node_verbs(what: argparse._SubParsersAction) -> None:
    """Declare drive, sim, replay and ask."""
    sub = what.add_parser("drive", help="the driver on a car that publishes the topics of launch/README.md")
    sub.set_defaults(run=_start)
    sub.add_argument("--calibration", type=Path, required=True, metavar="FILE", help="where cameras and IMU sit")
    sub.add_argument("--control", action="store_true", help="start control as well: it moves the car once engaged")
    _driver_arguments(sub)

    sub = what.add_parser("sim", help="the town as a car, the driver and control; it stands until engaged")
    sub.set_defaults(run=_start)
    sub.add_argument("--scenario", default="town-smoke/0", help="SUITE/NUMBER (default town-smoke/0)")
    sub.add_argument("--empty", action="store_true", help="nobody else in the town")
    sub.add_argument("--engage", action="store_true", help="engage as soon as control agrees")
    sub.add_argument("--out", type=Path, metavar="RUN", help="run directory of the drive, for vla score and report")
    _driver_arguments(sub, "vla")

    sub = what.add_parser("replay", help="a recorded scene as topics, and the driver in shadow mode")
    sub.set_defaults(run=_start)
    sub.add_argument("--dataroot", type=Path, required=True, help="nuScenes dataroot")
    sub.add_argument("--version", default="v1.0-mini", help="table folder (default v1.0-mini)")
    sub.add_argument("--scene", default="", help="which one (default the first)")
    sub.add_argument("--rate", type=float, default=1.0, help="1: at recorded times; above: that many times faster")
    _driver_arguments(sub)

    sub = what.add_parser("ask", help="ask the control node that runs for something")
    sub.set_defaults(run=_ask)
    sub.add_argument("wish", choices=("engage", "disengage", "reset", "emergency-stop", "release"))


def _driver_arguments(sub: argparse.ArgumentParser, policy: str = POLICIES[0]) -> None:
    sub.add_argument("--policy", choices=POLICIES, default=policy, help=f"who drives (default {policy})")
    words = "folder that vla train wrote, for --policy vla (default the policy that ships)"
    sub.add_argument("--checkpoint", type=Path, help=words)
    sub.add_argument("--route-file", type=Path, metavar="FILE", help="a drive that was recorded, for --policy repeat")
    words = "a parameter of a node, as in launch/ros2/config; may be repeated"
    sub.add_argument("--set", action="append", default=[], metavar="NODE.NAME=VALUE", help=words)


def _start(options: argparse.Namespace) -> int:
    words = [options.what]
    for name, value in vars(options).items():
        if name in ("verb", "what", "run", "set") or value in (None, False, ""):
            continue
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [value])
    return _become("start", *words, *(word for value in options.set for word in ("--set", value)))


def _ask(options: argparse.Namespace) -> int:
    return _become("start", "ask", options.wish)


def _become(module: str, *words: object) -> int:
    """Go on as that program: signals and exit status are its own."""
    command, environment = node_command(module, *words)
    os.execve(command[0], command, environment)
