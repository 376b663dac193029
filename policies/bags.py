"""Bags of a car beside dataroots: a recorded scene as a bag, a bag as a dataroot; and the way driven in a bag or a run,
for the policy that repeats it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from policies.repeat import TaughtRoute
from policies.runs import write_json
from policies.scores import open_run
from sensors.errors import InputError, unknown_name
from sensors.nuscenes_index import NuscenesIndex
from sensors.nuscenes_source import CAMERAS
from sensors.nuscenes_writer import NuscenesWriter
from sensors.ros2_bag import Bag, write_bag
from sensors.ros2_drive import Drive, read_drive, unpack
from sensors.ros2_messages import odometry_from_message
from sensors.ros2_recording import messages_of
from sensors.ros2_topics import ODOMETRY
from sim.report.summary import inside
from sim.rollout_log import read_episode

BAG_VERSION = "v1.0-bag"  # the table folder of a dataroot that bags were unpacked into


def record_bag(dataroot: Path, version: str, scene: str | None, out: Path, progress: bool = True) -> int:
    """Write a scene (the first, unless one is named) as a bag; returns the number of messages."""
    index = NuscenesIndex(dataroot, version)
    recorded = index.scene(scene or index.scenes[0])
    lacking = [name for name in CAMERAS if name not in recorded.cameras]
    if lacking:
        raise InputError(dataroot, f"cameras of {recorded.name}", f"no {', '.join(lacking)}", "all six")
    sent = messages_of(index, recorded)
    with write_bag(out) as send:
        for each in tqdm(sent, disable=not progress, unit="message", desc=recorded.name):
            send(each.topic, each.time_us, each.fields())
    return len(sent)


@dataclass(frozen=True)
class Unpacked:
    """A drive out of a bag, and the scene of the dataroot that it became."""

    drive: Drive
    dataroot: Path
    scene: str


def unpack_bag(bag_path: Path, calibration: Path | None, dataroot: Path, progress: bool = True) -> Unpacked:
    """Append a bag to a dataroot, table folder BAG_VERSION, as one scene."""
    with Bag(bag_path) as bag:
        drive = read_drive(bag, calibration)
        with tqdm(total=len(drive.instants), disable=not progress, unit="keyframe", desc="unpack") as bar:
            scene = unpack(bag, drive, NuscenesWriter(dataroot, BAG_VERSION), bar.update)
    return Unpacked(drive, dataroot, scene)


@contextmanager
def unpacked(bag_path: Path, calibration: Path | None, progress: bool = True) -> Iterator[Unpacked]:
    """The same in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="vla-bag-") as folder:
        yield unpack_bag(bag_path, calibration, Path(folder), progress)


def teach(driven: Path, episode: str, max_speed_mps: float, out: Path) -> TaughtRoute:
    """Write the way that was driven, in a bag's odometry or an episode of a run (the first, unless one is named), as a
    route for the policy repeat: in the frame of that odometry, in which the car that repeats it must know its place."""
    if (driven / "summary.json").is_file():
        xy_m = _driven_in_run(driven, episode)
    else:
        with Bag(driven) as bag:
            poses = [odometry_from_message(m).T_world_from_ego[:2, 3] for _, _, m in bag.messages({ODOMETRY})]
        xy_m = np.array(poses).reshape(-1, 2)
    if not len(xy_m):
        raise InputError(driven, ODOMETRY, "no messages", "a drive whose odometry was recorded")
    route = TaughtRoute.of_track(xy_m, max_speed_mps)
    write_json(out, route.to_json())
    return route


def _driven_in_run(path: Path, episode: str) -> np.ndarray:
    logs = {row["name"]: row["log"] for row in open_run(path).summary["episodes"] if row["log"]}
    if episode and episode not in logs:
        raise unknown_name(str(path), "--episode", episode, logs)
    return read_episode(inside(path, logs[episode or next(iter(logs))])).ego_xyyaw_in_world[:, :2]
