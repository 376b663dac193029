"""Clips from a plain folder: images, and a JSON file that says what they are; for recordings of one's own.

    FOLDER/recording.json            one scene, or FOLDER/<scene>/recording.json: several
    {
      "location": "campus",                                        optional
      "cameras": {"CAM_FRONT": {"width": 1600, "height": 900, "K": [[f, 0, cx], [0, f, cy], [0, 0, 1]],
                                "T_ego_from_cam": [[...4], ...4],
                                "distortion": "none", "coefficients": []}, ...},  distortion optional, `sensors.camera`
      "frames": [{"time_us": 1700000000000000, "T_world_from_ego": [[...4], ...4],
                  "images": {"CAM_FRONT": {"file": "front/0.jpg", "time_us": 1699999999980000}, ...},
                  "speed_mps": 8.1, "yaw_rate_radps": 0.0, "steering_rad": 0.0,     optional, as are all below
                  "command": "left", "instruction": "turn left at the lights",
                  "boxes": [{"id": "7", "category": "vehicle.car", "T_world_from_box": [[...4], ...4],
                             "size_lwh_m": [4.5, 1.9, 1.6]}, ...]}, ...],
      "imu": {"time_us": [...], "accel_mps2": [[...3], ...], "gyro_radps": [[...3], ...]}
    }

Frames may stand in any order, two of one time are refused. An image lies at or before its frame; its `time_us` may be
left out, and is then the frame's. The car's pose at an image is interpolated between the frames. Axes and units are
those of `sensors.frames` and `sensors.imu`; files stay inside the folder. A file that is not there is a masked image.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from sensors.camera import Camera
from sensors.clip import ROUTE_COMMANDS, Boxes
from sensors.errors import InputError
from sensors.frames import interpolate_at, quaternion_from_rotation
from sensors.imu import ImuWindow
from sensors.nuscenes_can import Bus
from sensors.nuscenes_scene import Capture, Keyframe, RecordedScene
from sensors.nuscenes_source import RecordedSource, read_bytes
from sensors.nuscenes_tables import as_numbers, check_inside

RECORDING = "recording.json"
SIGNALS = ("speed_mps", "yaw_rate_radps", "steering_rad")
MAX_STEP_S = 1.5  # longest time between two boxes of one id that still gives a velocity, as for nuScenes
NUMBER = (int, float)
SHOWN = "an object as sensors/folder_source.py shows it"


class FolderSource(RecordedSource):
    """The scenes of a folder, all of them by default; everything but the images is read and checked here."""

    def __init__(
        self,
        folder: str | Path,
        scenes: tuple[str, ...] | None = None,
        steps: int = 2,
        image_size: tuple[int, int] | None = None,
        imu_window_us: int = 1_000_000,
        threads: int = 0,
    ):
        self.folder = Path(folder)
        found = dict(_scenes_in(self.folder))
        for name in scenes or ():
            if name not in found:
                raise InputError(self.folder, "scene", name, f"one of {', '.join(found)}")
        self._told = {name: read_recording(found[name]) for name in scenes or found}
        rigs = {tuple(told.cameras) for told in self._told.values()}
        if len(rigs) > 1:
            raise InputError(self.folder, "cameras", f"{len(rigs)} sets of names", "the same cameras in every scene")
        about = (steps, image_size, imu_window_us, threads)
        super().__init__(f"folder {self.folder.resolve().name}", tuple(self._told), *rigs, *about)

    def _cue(self, scene: str, frame: int, now_us: int) -> tuple[str, str]:
        return self._told[scene].cues[frame]

    def _recorded(self, scene: str) -> RecordedScene:
        told = self._told[scene]
        now_us = np.array([keyframe.now_us for keyframe in told.keyframes], np.int64)
        poses = np.stack([keyframe.T_world_from_ego_now for keyframe in told.keyframes])
        return RecordedScene(scene, "", told.location, told.keyframes, now_us, poses, told.cameras, {})

    def _read_bus(self, scene: str) -> Bus:
        return self._told[scene].bus

    def images(self, scene: str) -> tuple[int, int]:
        names = [capture.filename for k in self._told[scene].keyframes for capture in k.captures.values()]
        return sum(self._path(scene, name).is_file() for name in names), len(names)

    def _path(self, scene: str, filename: str) -> Path:
        where = self._told[scene].path
        path = where.parent / filename
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(where, "file", filename, f"a path inside {self.folder}", "Links may not lead out of it.")
        return path

    def _file(self, scene: str, filename: str) -> tuple[object, bytes | None]:
        path = self._path(scene, filename)
        return path, read_bytes(path) if path.is_file() else None


@dataclass(frozen=True)
class Recording:
    """One recording.json: cues are (command, instruction) by keyframe."""

    path: Path
    location: str
    cameras: dict[str, Camera]
    keyframes: tuple[Keyframe, ...]
    cues: tuple[tuple[str, str], ...]
    bus: Bus


def read_recording(path: Path) -> Recording:
    """What a recording.json says; anything missing, of another kind or out of order is an InputError that names it."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(path, "file", error.strerror, SHOWN) from error
    except ValueError as error:
        raise InputError(path, "content", f"no JSON: {error}", SHOWN) from error
    reader = _Reader(path)
    cameras = {name: reader.camera(name, value) for name, value in reader.get(content, "", "cameras", dict).items()}
    if not cameras:
        raise InputError(path, "cameras", "none", "at least one")
    frames = [
        (reader.get(frame, f"frames[{k}]", "time_us", int), f"frames[{k}]", frame)
        for k, frame in enumerate(reader.get(content, "", "frames", list))
    ]
    if not frames:
        raise InputError(path, "frames", "none", "at least one")
    frames.sort(key=lambda frame: frame[0])
    for (before_us, other, _), (time_us, at, _) in pairwise(frames):
        if time_us == before_us:
            raise InputError(path, f"{at}.time_us", f"{time_us}, the time of {other} too", "a time of its own")
    time_us = np.array([frame[0] for frame in frames], np.int64)
    poses = np.stack([reader.pose(frame, at, "T_world_from_ego") for _, at, frame in frames])
    boxes = _boxes(reader, frames, time_us)
    keyframes = tuple(
        Keyframe(
            at,
            now_us,
            poses[k],
            reader.captures(frame, at, now_us, cameras, (time_us, poses)),
            boxes[k],
            tuple(quaternion_from_rotation(poses[k, :3, :3]).tolist()),
        )
        for k, (now_us, at, frame) in enumerate(frames)
    )
    cues = tuple(reader.cue(frame, at) for _, at, frame in frames)
    signals = [reader.signal(frames, name) for name in SIGNALS]
    location = reader.get(content, "", "location", str, "")
    return Recording(path, location, cameras, keyframes, cues, Bus(reader.imu(content), *signals))


class _Reader:
    """Values of a recording.json, by their place in it."""

    def __init__(self, path: Path):
        self.path = path

    def get(self, value: object, at: str, name: str, kind: type | tuple[type, ...], default: object = None):
        """A field of an object; one that is missing, without a default, or of another type is an InputError."""
        if not isinstance(value, dict):
            raise InputError(self.path, at or "content", type(value).__name__, "an object")
        found = value.get(name, default)
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            came = "nothing" if found is None else repr(found)[:80]
            kinds = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
            raise InputError(self.path, f"{at}.{name}".lstrip("."), came, kinds)
        return found

    def numbers(self, value: object, at: str, name: str, *shape: int) -> np.ndarray:
        found = self.get(value, at, name, list)
        array = as_numbers([found], *shape)
        if array is None:
            expected = f"{' x '.join(map(str, shape))} finite numbers"
            raise InputError(self.path, f"{at}.{name}".lstrip("."), repr(found)[:80], expected)
        return array[0]

    def pose(self, value: object, at: str, name: str) -> np.ndarray:
        """float64 [4, 4], rigid."""
        T = self.numbers(value, at, name, 4, 4)
        R = T[:3, :3]
        if not np.allclose(R @ R.T, np.eye(3), atol=1e-6) or np.linalg.det(R) < 0 or (T[3] != (0, 0, 0, 1)).any():
            raise InputError(self.path, f"{at}.{name}", T.tolist(), "a rigid 4x4 transform, row by row")
        return T

    def camera(self, name: str, value: object) -> Camera:
        at = f"cameras.{name}"
        size = (self.get(value, at, side, int) for side in ("width", "height"))
        K, T_ego_from_cam = self.numbers(value, at, "K", 3, 3), self.pose(value, at, "T_ego_from_cam")
        coefficients = self.get(value, at, "coefficients", list, [])
        lens = self.get(value, at, "distortion", str, "none"), tuple(coefficients)
        return Camera(name, *size, K, T_ego_from_cam, *lens).validate(f"{self.path} cameras")

    def captures(
        self, frame: dict, at: str, now_us: int, cameras: dict[str, Camera], track: tuple[np.ndarray, np.ndarray]
    ) -> dict[str, Capture]:
        """The images of a frame by camera."""
        found, at = {}, f"{at}.images"
        for name, image in self.get(frame, at.removesuffix(".images"), "images", dict).items():
            if name not in cameras:
                raise InputError(self.path, at, name, f"one of {', '.join(cameras)}")
            filename = self.get(image, f"{at}.{name}", "file", str)
            check_inside(self.path, filename, self.path.parent)
            time_us = self.get(image, f"{at}.{name}", "time_us", int, now_us)
            if time_us > now_us:
                raise InputError(self.path, f"{at}.{name}.time_us", time_us, f"not later than the frame, {now_us}")
            T = interpolate_at(*track, max(time_us, int(track[0][0])))
            q_wxyz = tuple(quaternion_from_rotation(T[:3, :3]).tolist())
            token = f"{self.path.parent}/{filename}"
            size = cameras[name].width, cameras[name].height
            found[name] = Capture(name, token, time_us, T, filename, *size, q_wxyz)
        return found

    def cue(self, frame: dict, at: str) -> tuple[str, str]:
        command = self.get(frame, at, "command", str, "follow")
        if command not in ROUTE_COMMANDS:
            raise InputError(self.path, f"{at}.command", command, f"one of {', '.join(ROUTE_COMMANDS)}")
        return command, self.get(frame, at, "instruction", str, "")

    def signal(self, frames: list[tuple[int, str, dict]], name: str) -> tuple[np.ndarray, np.ndarray]:
        """(time_us [M], value [M]) of the frames that have it."""
        known = [(time_us, self.get(f, at, name, NUMBER)) for time_us, at, f in frames if f.get(name) is not None]
        return np.array([time_us for time_us, _ in known], np.int64), np.array([v for _, v in known], np.float64)

    def imu(self, content: dict) -> ImuWindow:
        if "imu" not in content:
            return ImuWindow.empty()
        value = self.get(content, "", "imu", dict)
        time_us = np.array(self.get(value, "imu", "time_us", list))
        if time_us.dtype.kind != "i" and len(time_us):
            raise InputError(self.path, "imu.time_us", time_us[:3].tolist(), "integers, microseconds")
        columns = (self.numbers(value, "imu", name, len(time_us), 3) for name in ("accel_mps2", "gyro_radps"))
        return ImuWindow(time_us.astype(np.int64), *columns).validate(f"{self.path} imu")


def _scenes_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, path of recording.json) of every scene; none is an InputError."""
    if (folder / RECORDING).is_file():
        yield folder.resolve().name, folder / RECORDING
        return
    paths = sorted(folder.glob(f"*/{RECORDING}"))
    if not paths:
        came = "no such folder" if not folder.is_dir() else f"no {RECORDING} in it or in a folder of it"
        raise InputError(folder, "folder", came, f"a folder with {RECORDING}; sensors/folder_source.py shows one")
    yield from ((path.parent.name, path) for path in paths)


def _boxes(reader: _Reader, frames: list[tuple[int, str, dict]], time_us: np.ndarray) -> list[Boxes]:
    """The boxes of every frame; velocities are differences between the boxes of the same id before and after it."""
    found = []
    for _, at, frame in frames:
        rows = [
            (
                reader.get(box, f"{at}.boxes[{i}]", "id", str),
                reader.get(box, f"{at}.boxes[{i}]", "category", str),
                reader.pose(box, f"{at}.boxes[{i}]", "T_world_from_box"),
                reader.numbers(box, f"{at}.boxes[{i}]", "size_lwh_m", 3),
            )
            for i, box in enumerate(reader.get(frame, at, "boxes", list, []))
        ]
        ids, categories, poses, sizes = zip(*rows, strict=True) if rows else ((), (), (), ())
        if len(set(ids)) != len(ids):
            raise InputError(reader.path, f"{at}.boxes", "an id twice", "a box for each id")
        velocity = np.full((len(rows), 2), np.nan)
        poses, sizes = np.array(poses).reshape(-1, 4, 4), np.array(sizes).reshape(-1, 3)
        found.append(Boxes(tuple(ids), tuple(categories), poses, sizes, velocity))
    seen: dict[str, list[tuple[int, int]]] = {}
    for k, boxes in enumerate(found):
        for i, name in enumerate(boxes.ids):
            seen.setdefault(name, []).append((k, i))
    for places in seen.values():
        at_m = [found[k].T_world_from_box[i, :2, 3] for k, i in places]
        for p, (k, i) in enumerate(places):
            first, last = max(p - 1, 0), min(p + 1, len(places) - 1)
            seconds = 1e-6 * float(time_us[places[last][0]] - time_us[places[first][0]])
            if 0 < seconds <= MAX_STEP_S * (last - first):
                found[k].velocity_in_world_mps[i] = (at_m[last] - at_m[first]) / seconds
    return found
