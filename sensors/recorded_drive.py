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
from sensors.nuscenes_expansion import MapExpansion, expansion_path, read_expansion
from sensors.nuscenes_extension import SceneExtension
from sensors.nuscenes_scene import Track
from sensors.nuscenes_source import CAMERAS, NuscenesSource

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
    map_path, expansion_path   the raster of where one may drive, and lanes and areas; at least one of them is there
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
    map_path: Path | None
    expansion_path: Path | None
    extension: SceneExtension | None

    @property
    def seconds(self) -> float:
        return float(self.time_us[-1] - self.time_us[0]) * 1e-6

    @property
    def has_images(self) -> bool:
        """Whether every camera took some that are there."""
        return all(len(shots) for shots in self.shots)

    def expansion(self) -> MapExpansion | None:
        """Lanes and areas of the place, None where nobody drew them; kept as a path, as it is large and shared."""
        return None if self.expansion_path is None else read_expansion(self.expansion_path)

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
    time_us, poses = recorded.now_us, recorded.T_world_from_ego_now
    seconds = float(time_us[-1] - time_us[0]) * 1e-6
    if seconds < LEAST_S:
        came, fix = f"{len(time_us)} over {seconds:.1f} s", "Choose another --scene."
        raise InputError(where, "keyframes with an ego pose", came, f"at least {LEAST_S:g} s to drive in", fix)
    map_path = source.index.map_path(scene)
    drawn = source.expansion(scene) is not None
    if map_path is None and not drawn:
        fix = "Add maps/ of the nuScenes download; open loop does without."
        raise InputError(where, "map", "no raster of this location", "the drivable area as a PNG", fix)
    tracks = [recorded.tracks[name] for name in CAMERAS]
    vehicle = source.vehicle(scene, int(time_us[0]))
    return RecordedDrive(
        name=scene,
        source=source.name,
        time_us=np.array(time_us),
        T_world_from_ego=np.array(poses),
        boxes=tuple(keyframe.boxes for keyframe in recorded.keyframes),
        speed_mps=vehicle.speed_mps if np.isfinite(vehicle.speed_mps) else _speed_mps(time_us, poses),
        yaw_rate_radps=float(np.nan_to_num(vehicle.yaw_rate_radps)),
        cameras=tuple(recorded.cameras[name] for name in CAMERAS),
        shots=tuple(_shots(source, track) for track in tracks),
        exposure_before_us=np.array([_before_us(track, time_us) for track in tracks], np.int64),
        map_path=map_path,
        expansion_path=expansion_path(source.index.dataroot, recorded.location) if drawn else None,
        extension=source.extension(scene),
    )


def _shots(source: NuscenesSource, track: Track) -> Shots:
    """The images of a camera whose files are there, at keyframes and between them."""
    paths = [source.index.path(filename) for filename in track.filenames()]
    there = np.array([path.is_file() for path in paths], bool)
    chosen = tuple(path for path, is_there in zip(paths, there, strict=True) if is_there)
    return Shots(np.array(track.time_us)[there], track.T_world_from_ego[there], chosen)


def _before_us(track: Track, now_us: np.ndarray) -> int:
    """How long before a keyframe a camera fires, by the median."""
    taken_us = np.array(track.time_us)[np.array(track.is_keyframe)]
    last = np.clip(np.searchsorted(taken_us, now_us, side="right") - 1, 0, None)
    return int(np.clip(np.median(now_us - taken_us[last]), 0, MOST_BEFORE_US)) if len(taken_us) else 0


def _speed_mps(time_us: np.ndarray, poses: np.ndarray) -> float:
    """At the first of some poses, from there to the second."""
    moved = poses[0, :3, :3].T @ (poses[1, :3, 3] - poses[0, :3, 3])
    return max(float(moved[0]) / (float(time_us[1] - time_us[0]) * 1e-6), 0.0)
