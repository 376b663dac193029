"""One recorded scene as a whole: what a world that is made of it needs, and no clip tells.

Instants are the recording's own, in microseconds; poses are in its world frame, whose ground is taken to be z = 0, as
nuScenes' localisation has it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sensors.camera import Camera
from sensors.clip import Boxes, Future
from sensors.errors import InputError
from sensors.nuscenes_extension import SceneExtension
from sensors.nuscenes_source import NuscenesSource

MOST_BEFORE_US = 99_000  # a camera fires within the control period before a keyframe
LEAST_S = 2.0  # of recorded driving that is worth being driven again


@dataclass(frozen=True)
class RecordedActor:
    """Somebody's box at M instants; size_lwh_m is the first one's."""

    id: str
    category: str
    size_lwh_m: tuple[float, float, float]
    time_us: np.ndarray
    T_world_from_box: np.ndarray


@dataclass(frozen=True)
class Shots:
    """The S images of one camera whose files are there: time_us int64 [S], T_world_from_ego [S, 4, 4], paths."""

    time_us: np.ndarray
    T_world_from_ego: np.ndarray
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class RecordedDrive:
    """See the module. K keyframes, N cameras.

    name, source       of the scene, and of where it comes from
    time_us            int64 [K]; T_world_from_ego [K, 4, 4]: where the recorded car was then
    boxes              K Boxes: who was annotated then
    speed_mps, yaw_rate_radps   of the car at the first keyframe
    cameras            N, of the size that was recorded; shots: N Shots
    exposure_before_us int64 [N]: how long before a keyframe each camera fires, by the median
    map_path           the raster of where one may drive
    extension          of a simulated scene, else None
    """

    name: str
    source: str
    time_us: np.ndarray
    T_world_from_ego: np.ndarray
    boxes: tuple[Boxes, ...]
    speed_mps: float
    yaw_rate_radps: float
    cameras: tuple[Camera, ...]
    shots: tuple[Shots, ...]
    exposure_before_us: np.ndarray
    map_path: Path
    extension: SceneExtension | None

    @property
    def seconds(self) -> float:
        return float(self.time_us[-1] - self.time_us[0]) * 1e-6

    @property
    def has_images(self) -> bool:
        """Whether every camera took some that are there."""
        return all(len(shots) for shots in self.shots)

    def after(self, time_us: int) -> Future:
        """Where the recorded car went after an instant, at its keyframes; without boxes."""
        later = self.time_us > time_us
        return Future(self.time_us[later], self.T_world_from_ego[later])

    def actors(self) -> tuple[RecordedActor, ...]:
        """Everybody, in the order in which they are first seen."""
        rows: dict[str, list[tuple[int, int]]] = {}
        for k, boxes in enumerate(self.boxes):
            for i, name in enumerate(boxes.ids):
                rows.setdefault(name, []).append((k, i))
        return tuple(
            RecordedActor(
                name,
                self.boxes[at[0][0]].categories[at[0][1]],
                tuple(self.boxes[at[0][0]].size_lwh_m[at[0][1]].tolist()),
                np.array([self.time_us[k] for k, _ in at], np.int64),
                np.stack([self.boxes[k].T_world_from_box[i] for k, i in at]),
            )
            for name, at in rows.items()
        )


def recorded_drive(source: NuscenesSource, scene: str) -> RecordedDrive:
    """A scene of a source; one too short, or without a map, is an InputError."""
    recorded, where = source.index.scene(scene), f"{source.index.dataroot} {scene}"
    keyframes = tuple(recorded.keyframes)
    time_us = source.frame_times_us(scene)
    seconds = float(time_us[-1] - time_us[0]) * 1e-6
    if seconds < LEAST_S:
        came, fix = f"{len(keyframes)} over {seconds:.1f} s", "Choose another --scene."
        raise InputError(where, "keyframes with an ego pose", came, f"at least {LEAST_S:g} s to drive in", fix)
    map_path = source.index.map_path(scene)
    if map_path is None:
        fix = "Add maps/ of the nuScenes download; open loop does without."
        raise InputError(where, "map", "no raster of this location", "the drivable area as a PNG", fix)
    cameras = tuple(recorded.cameras[camera.name] for camera in source.clip(scene, 0).cameras)
    taken = [[k.captures[c.name] for k in keyframes if c.name in k.captures] for c in cameras]
    before_us = [
        np.median([k.now_us - k.captures[c.name].time_us for k in keyframes if c.name in k.captures]) for c in cameras
    ]
    there = [[c for c in captures if source.index.path(c.filename).is_file()] for captures in taken]
    poses = recorded.T_world_from_ego_now
    vehicle = source.vehicle(scene, int(time_us[0]))
    return RecordedDrive(
        name=scene,
        source=source.name,
        time_us=time_us,
        T_world_from_ego=poses,
        boxes=tuple(keyframe.boxes for keyframe in keyframes),
        speed_mps=vehicle.speed_mps if np.isfinite(vehicle.speed_mps) else _speed_mps(time_us, poses),
        yaw_rate_radps=float(np.nan_to_num(vehicle.yaw_rate_radps)),
        cameras=cameras,
        shots=tuple(
            Shots(
                np.array([c.time_us for c in captures], np.int64),
                np.array([c.T_world_from_ego for c in captures]).reshape(-1, 4, 4),
                tuple(source.index.path(c.filename) for c in captures),
            )
            for captures in there
        ),
        exposure_before_us=np.clip(before_us, 0, MOST_BEFORE_US).astype(np.int64),
        map_path=map_path,
        extension=source.extension(scene),
    )


def _speed_mps(time_us: np.ndarray, poses: np.ndarray) -> float:
    """At the first of some poses, from there to the second."""
    moved = poses[0, :3, :3].T @ (poses[1, :3, 3] - poses[0, :3, 3])
    return max(float(moved[0]) / (float(time_us[1] - time_us[0]) * 1e-6), 0.0)
