"""What is installed, what is missing, which device and renderer would run, and what a dataroot holds and lacks."""

import importlib.util
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from sensors.errors import InputError
from sensors.nuscenes_index import NuscenesIndex, SceneInventory
from sensors.nuscenes_source import NuscenesSource, require_usable
from sim.gl_device import gl_name
from vla.precision import compute_dtype
from vla.te_layers import engine, why_not

LOOKED_AT = (400, 225)  # px at which images are decoded to see whether they are whole
CORE = ("numpy", "torch", "opencv-python-headless", "gymnasium", "safetensors", "PyYAML", "tqdm", "Jinja2", "av")
CORE += ("threadpoolctl", "moderngl")
INSTALL = "missing; install with: pip install -c constraints.txt -e ."
EXTRAS = (
    ("dev", "pytest", "run the tests"),
    ("dev", "nuscenes-devkit", "check recordings against the official reader"),
    ("ros", "ros-kilted-rclpy", "run the ROS 2 nodes without a ROS 2 installation"),
    ("bags", "rosbags", "read and write a car's MCAP bags without ROS"),
    ("viz", "rerun-sdk", "look at runs in rerun"),
    ("bench", "box2d", "compare with Gymnasium's CarRacing in vla bench sim"),
    ("fp8", "transformer-engine", "FP8 on NVIDIA GPUs"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report; state "MISS" means that every verb needs it, "lack" that some can do without."""

    topic: str
    text: str
    state: str = "ok"


def examine(dataroot: Path | None, dataset_version: str) -> list[Finding]:
    """All findings, the machine's first, then the dataroot's if one is given."""
    findings = [
        Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Finding("cores", f"{len(os.sched_getaffinity(0))} usable, torch uses {torch.get_num_threads()} threads"),
    ]
    for name in CORE:
        found = _version(name)
        findings.append(Finding(name, found or INSTALL, "ok" if found else "MISS"))
    for extra, name, purpose in EXTRAS:
        found = _version(name)
        text = found or f"not installed; [{extra}] adds it, to {purpose}"
        findings.append(Finding(name, text, "ok" if found else "lack"))
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU (no CUDA device)"
    findings.append(Finding("device", cuda))
    findings += [_renderer(), _numbers()]
    rclpy = importlib.util.find_spec("rclpy") is not None
    text = "rclpy is there" if rclpy else "no rclpy; source a ROS 2 set-up, or install [ros]"
    findings.append(Finding("ROS 2", text, "ok" if rclpy else "lack"))
    return findings + (_dataroot(dataroot, dataset_version) if dataroot else [])


def _renderer() -> Finding:
    """The renderers there are here; "auto" takes the first."""
    try:
        return Finding("renderer", f"gl by {gl_name()}; cv by OpenCV")
    except InputError as error:
        return Finding("renderer", f"cv by OpenCV; {error.came}. {error.fix}", "lack")


def _numbers() -> Finding:
    """What a training takes that leaves it open (`train.precision` and `train.dtype` auto)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, missing = compute_dtype("auto", device), why_not(engine(), "current", device)
    return Finding("products", f"{dtype.name}: {dtype.why}; FP8: {missing or 'Transformer Engine is there'}")


def _dataroot(dataroot: Path, dataset_version: str) -> list[Finding]:
    """How it opens, and one finding a scene; images that are absent are not a defect of the set-up, but are said.

    Of every scene the first keyframe's images are decoded and the map is read, as a run would; all else is counted.
    """
    index = NuscenesIndex(dataroot, dataset_version)
    words = f"{len(index.scenes)} scenes" + (
        f"; tables are read again each time, as {index.unkept}" if index.unkept else ""
    )
    tables, stock = Finding("tables", words, "lack" if index.unkept else "ok"), index.inventory()
    unusable = {scene.name: why for scene in stock if (why := _unusable(index, scene))}
    usable = tuple(scene.name for scene in stock if not scene.problem and scene.name not in unusable)
    source = NuscenesSource(dataroot, dataset_version, usable, steps=1, image_size=LOOKED_AT)
    faults = unusable | {name: _faults(source, name) for name in usable}
    return [tables, *(_scene(scene, faults.get(scene.name, [])) for scene in stock)]


def _unusable(index: NuscenesIndex, scene: SceneInventory) -> list[str]:
    """Why no run takes the scene, where its inventory does not know."""
    if scene.problem:
        return []
    try:
        require_usable(index, scene.name)
    except InputError as error:
        return [str(error)]
    return []


def _faults(source: NuscenesSource, scene: str) -> list[str]:
    """What a run on a scene would end with though its files are there."""
    found = []
    for look in (lambda: source.clip(scene, 0), lambda: source.expansion(scene)):
        try:
            look()
        except InputError as error:
            found.append(str(error))
    return found


def _scene(scene: SceneInventory, faults: list[str]) -> Finding:
    if scene.problem:
        return Finding(scene.name, f"can't be used: {scene.problem}", "lack")
    absent = {channel: count for channel, count in scene.images_missing.items() if count}
    parts = [f"{scene.keyframes} keyframes", f"{scene.annotations} boxes", f"{scene.images} images"]
    parts += [f"{sum(absent.values())} images missing ({', '.join(sorted(absent))})"] if absent else []
    parts += [f"{scene.sweeps_present} sweeps"] if scene.sweeps_present else []
    parts += [f"{scene.sweeps_missing} sweeps missing"] if scene.sweeps_missing else []
    parts += [f"first missing: {scene.first_missing[0]}"] if scene.first_missing else []
    parts += [f"{scene.repeated_sweeps} sweeps left out, whose time stamps repeat"] if scene.repeated_sweeps else []
    parts += [_bus(scene)]
    parts += [] if scene.map_present else ["no map raster"]
    parts += ["map expansion"] if scene.lanes_present else []
    parts += faults
    lacks = scene.first_missing or not scene.can_present or scene.can_refused or faults
    return Finding(scene.name, "; ".join(parts), "lack" if lacks else "ok")


def _bus(scene: SceneInventory) -> str:
    if scene.can_refused:
        return "CAN bus not used, as nuScenes refuses it for this scene"
    return f"CAN bus {', '.join(scene.can_present)}" if scene.can_present else "no CAN bus"


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
