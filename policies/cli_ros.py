"""The verb `vla ros`: bags of a car, written and read without ROS, and the nodes that drive it."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from policies.bags import BAG_VERSION, record_bag, teach, unpack_bag
from policies.cli_nodes import EXAMPLES, add_node_verbs
from policies.cli_parts import bag_arguments
from policies.ros_check import check_arguments, check_bag, check_live, tell

EPILOGS = {
    "ros": """examples:
  vla ros record --dataroot data/nuscenes --scene scene-0061 --out bags/scene-0061    a scene as a bag
  vla replay bags/scene-0061 --policy constant-velocity                               plan on it, as on a dataroot
  vla ros check                                                                       the topics of this car, live
  vla ros check bags/scene-0061 --json                                                the same of a bag
  vla ros unpack bags/scene-0061 --out data/from-bags                                 as a scene in nuScenes format
  vla ros teach bags/drive --out route.json                                           the way driven, to be repeated"""
    + EXAMPLES
}


def add_ros_verb(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare it and what it does; `verb` makes one subcommand from (name, function, help)."""
    words = "a car's topics and bags; the nodes that drive it"
    what = verb("ros", None, words).add_subparsers(dest="what", required=True, metavar="WHAT")
    add_node_verbs(what)

    sub = what.add_parser("record", help="write a recorded scene as an MCAP bag, without ROS")
    sub.set_defaults(run=_record)
    sub.add_argument("--dataroot", type=Path, required=True, help="nuScenes dataroot")
    sub.add_argument("--version", default="v1.0-mini", help="table folder (default v1.0-mini)")
    sub.add_argument("--scene", help="which one (default the first)")
    sub.add_argument("--out", type=Path, required=True, metavar="BAG", help="a folder that is not there yet")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = what.add_parser(
        "check", help="say what is wrong with the topics of a car, live or in a bag, and how to mend it"
    )
    sub.set_defaults(run=_check)
    bag_arguments(sub, optional=True)
    check_arguments(sub)

    sub = what.add_parser("unpack", help="append a bag to a dataroot in nuScenes format, without ROS")
    sub.set_defaults(run=_unpack)
    bag_arguments(sub)
    sub.add_argument("--out", type=Path, required=True, metavar="DATAROOT", help=f"table folder {BAG_VERSION}")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = what.add_parser("teach", help="write the way of a recorded drive as a route for --policy repeat")
    sub.set_defaults(run=_teach)
    sub.add_argument("driven", type=Path, metavar="BAG|RUN", help="a car's bag, or a run of vla drive or vla ros sim")
    sub.add_argument("--episode", default="", metavar="NAME", help="of a run (default the first)")
    sub.add_argument("--max-speed", type=float, default=6.0, help="never faster than this, m/s (default 6)")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="the route, a JSON file")


def _check(options: argparse.Namespace) -> int:
    """Exit status 1 if there is an error, as the findings say."""
    if options.bag is not None:
        return tell(check_bag(options.bag, options.calibration, options.raw), options.json)
    flags = [f"--{name}" for name in ("raw", "json") if getattr(options, name)]
    return check_live(options.seconds, options.calibration, flags)


def _record(options: argparse.Namespace) -> int:
    count = record_bag(options.dataroot, options.version, options.scene, options.out, not options.quiet)
    print(f"{count} messages\nbag: {options.out}")
    return 0


def _unpack(options: argparse.Namespace) -> int:
    made = unpack_bag(options.bag, options.calibration, options.out, not options.quiet)
    print(*made.drive.problems(), sep="\n", end="\n" if made.drive.refused else "")
    print(f"{len(made.drive.instants)} keyframes: {made.scene} of {made.dataroot}, version {BAG_VERSION}")
    return 1 if made.drive.refused else 0


def _teach(options: argparse.Namespace) -> int:
    route = teach(options.driven, options.episode, options.max_speed, options.out)
    length_m = np.hypot(*np.diff(route.xy_m, axis=0).T).sum()
    print(f"{length_m:.0f} m, at most {route.max_speed_mps:g} m/s\nroute: {options.out}")
    return 0
