"""Recorded scenes of any source as a nuScenes dataroot, which the official devkit and every verb of ours read.

Images are the files as they are; one that is missing stays so. What a source does not know is said: no map, no CAN bus.
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from sensors.errors import InputError
from sensors.frames import interpolate_at
from sensors.nuscenes_can import can_is_refused
from sensors.nuscenes_recorder import SceneRecorder
from sensors.nuscenes_source import RecordedSource
from sensors.nuscenes_writer import SCENE_NAME, NuscenesWriter
from sensors.ros2_drive import UNKNOWN_MAP

Say = Callable[[str], None]


def write_nuscenes(source: RecordedSource, out: Path, version: str, say: Say = lambda text: None) -> None:
    """Append all scenes of a source to `<out>/<version>`. A scene keeps its name if nuScenes could have it and it is
    free."""
    writer = NuscenesWriter(out, version)
    for scene in source.scenes:
        keeps = SCENE_NAME.fullmatch(scene) and not can_is_refused(scene) and scene not in writer.scenes
        name, recorded = scene if keeps else writer.free_scene_name(), source.scene(scene)
        spelling = {}
        for keyframe in recorded.keyframes:
            spelling[keyframe.T_world_from_ego_now[:3, :3].tobytes()] = keyframe.q_wxyz_now
            spelling |= {c.T_world_from_ego[:3, :3].tobytes(): c.q_wxyz for c in keyframe.captures.values()}
        cameras = tuple(recorded.cameras.values())
        about = recorded.description or scene, cameras, recorded.location or "unknown", _mask(source, scene)
        with writer.scene(name, *about, spelling) as recorder:
            lacks = _record(source, scene, recorder)
        say(f"{scene}: {name}{', without ' + ', '.join(lacks) if lacks else ''}")


def _record(source: RecordedSource, scene: str, recorder: SceneRecorder) -> list[str]:
    """All keyframes of a scene; what there was not, in words."""
    recorded, missing = source.scene(scene), 0
    for k, keyframe in enumerate(recorded.keyframes):
        captures = [keyframe.captures.get(name) for name in recorded.cameras]
        if None in captures:
            name = list(recorded.cameras)[captures.index(None)]
            where, expected = f"{source.name} {scene} frame {k}", "a time for every camera, even if its file is missing"
            raise InputError(where, f"images of {name}", "nothing", expected, "Leave the scene out.")
        images = [source.jpeg(scene, capture) for capture in captures]
        missing += images.count(None)
        time_us, poses = np.array([c.time_us for c in captures]), np.stack([c.T_world_from_ego for c in captures])
        recorder.keyframe(keyframe.now_us, images, time_us, poses, keyframe.T_world_from_ego_now, keyframe.boxes)
    lacks = [f"{missing} images"] if missing else []
    lacks += [] if source.map_path(scene) else ["a map"]
    return lacks if _record_bus(source, scene, recorder) else [*lacks, "a CAN bus"]


def _record_bus(source: RecordedSource, scene: str, recorder: SceneRecorder) -> bool:
    """Whether there is a bus to be written, with speed and yaw rate at the same times."""
    bus, recorded = source.bus(scene), source.scene(scene)
    (time_us, speed_mps), (yaw_us, yaw_rate_radps), (steering_us, steering_rad) = (
        bus.speed_mps,
        bus.yaw_rate_radps,
        bus.steering_rad,
    )
    if not len(time_us) or not len(steering_us) or not np.array_equal(time_us, yaw_us):
        return False
    track_us, track = recorded.now_us, recorded.T_world_from_ego_now
    within = np.clip(time_us, track_us[0], track_us[-1]).tolist()
    poses = np.stack([interpolate_at(track_us, track, t) for t in within])
    recorder.can(bus.imu, time_us, poses, speed_mps, yaw_rate_radps, steering_rad, steering_us)
    return True


def _mask(source: RecordedSource, scene: str) -> np.ndarray:
    """Where one may drive, uint8 [H, W]."""
    path = source.map_path(scene)
    if path is None:
        return UNKNOWN_MAP
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise InputError(path, "map", "no picture that decodes", "a PNG of the drivable area")
    return mask
