"""One scene from the linked columns of `sensors.nuscenes_linking`: objects of what is asked for, made when it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sensors.camera import Camera
from sensors.clip import Boxes
from sensors.columns import Columns
from sensors.errors import InputError
from sensors.frames import matrix, rotation_from_quaternion

NOMINAL_PERIOD_US = 500_000  # of keyframes, for a scene of a single one


@dataclass(frozen=True)
class Capture:
    """One record of one sensor: when, where the car was (`q_wxyz`: the rotation as the table spells it, which a matrix
    does not give back to the last bit), and the file that holds it."""

    channel: str
    token: str
    time_us: int
    T_world_from_ego: np.ndarray
    filename: str
    width: int
    height: int
    q_wxyz: tuple[float, ...]


@dataclass(frozen=True)
class Keyframe:
    """One sample. `now_us` is the latest of the instants at which LIDAR_TOP, a camera or the sample itself has an ego
    pose; `T_world_from_ego_now` is that pose.

    In nuScenes that is the sample's own time stamp (LIDAR_TOP's), except where the last camera, CAM_BACK_LEFT, fires up
    to 1 ms after it. A recording without lidar stores the pose of the sample as the ego_pose of the sample's token.
    """

    token: str
    now_us: int
    T_world_from_ego_now: np.ndarray
    captures: dict[str, Capture]
    boxes: Boxes
    q_wxyz_now: tuple[float, ...]


class Track(Sequence[Capture]):
    """All captures of one sensor in one scene, key frames and the sweeps between them, in order of time.

    time_us  int64 [M], increasing;  is_keyframe  bool [M]
    """

    def __init__(self, columns: Columns, track: int):
        self._columns, self._track = columns, track
        self._rows = range(*map(int, columns["track.first_capture"][track : track + 2]))
        rows = slice(self._rows.start, self._rows.stop)
        self.time_us, self.is_keyframe = columns["capture.time_us"][rows], columns["capture.is_keyframe"][rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, k):
        rows = self._rows[k]
        if isinstance(rows, range):
            return tuple(_captures(self._columns, np.array(rows, np.int64)))
        return _captures(self._columns, np.array([rows]))[0]

    def filenames(self) -> list[str]:
        """Of every capture."""
        patterns = self._columns.strings("pattern")
        rows = slice(self._rows.start, self._rows.stop)
        names = {k: patterns[k] for k in np.unique(self._columns["capture.pattern"][rows]).tolist()}
        columns = (self._columns["capture.pattern"][rows].tolist(), self.time_us.tolist())
        return [names[k].replace("\0", str(time_us)) for k, time_us in zip(*columns, strict=True)]

    @property
    def T_world_from_ego(self) -> np.ndarray:
        """float64 [M, 4, 4] at every capture."""
        return _transforms(self._columns["capture.pose"][self._rows.start : self._rows.stop])


class _Keyframes(Sequence[Keyframe]):
    """Keyframes of a scene, made when they are asked for."""

    def __init__(self, columns: Columns, rows: range):
        self._columns, self._rows = columns, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, k):
        rows = self._rows[k]
        return tuple(map(self._made, rows)) if isinstance(rows, range) else self._made(rows)

    @property
    def boxes(self) -> int:
        first, last = self._columns["keyframe.first_box"][[self._rows.start, self._rows.stop]]
        return int(last - first)

    def _made(self, row: int) -> Keyframe:
        columns = self._columns
        begin, end = map(int, columns["keyframe.first_capture"][row : row + 2])
        captures = {c.channel: c for c in _captures(columns, columns["keyframe.captures"][begin:end])}
        pose = columns["keyframe.now_pose"][row]
        T_now, q_wxyz_now = _transforms(pose), tuple(pose[:4].tolist())
        token, now_us = columns.strings("keyframe.token")[row], int(columns["keyframe.now_us"][row])
        return Keyframe(token, now_us, T_now, captures, _boxes(columns, row), q_wxyz_now)


@dataclass(frozen=True)
class RecordedScene:
    """A scene; `keyframes` makes each when it is asked for, so take what is needed of one and keep no more.

    now_us                int64 [K]          of every keyframe
    T_world_from_ego_now  float64 [K, 4, 4]  of every keyframe
    cameras, tracks       by channel
    """

    name: str
    description: str
    location: str
    keyframes: Sequence[Keyframe]
    now_us: np.ndarray
    T_world_from_ego_now: np.ndarray
    cameras: dict[str, Camera]
    tracks: dict[str, Track]

    @cached_property
    def period_us(self) -> int:
        """Of the keyframes, the median."""
        return int(np.median(np.diff(self.now_us))) if len(self.now_us) > 1 else NOMINAL_PERIOD_US

    @property
    def annotations(self) -> int:
        """How many boxes there are in all keyframes."""
        return self.keyframes.boxes


def channels_of(columns: Columns, scene: int) -> tuple[str, ...]:
    """The sensors of a scene, in the order of its tracks."""
    names = columns.about["channels"]
    return tuple(names[channel] for channel in columns["track.channel"][_tracks(columns, scene)].tolist())


def read_scene(columns: Columns, scene: int, calibrations: Path) -> RecordedScene:
    """The scene of a row; a camera that is not valid is an InputError at the file of `calibrations`."""
    name, description, location, _ = columns.about["scenes"][scene]
    first, last = map(int, columns["scene.first_keyframe"][scene : scene + 2])
    tracks = _tracks(columns, scene)
    numbers = dict(zip(channels_of(columns, scene), range(tracks.start, tracks.stop), strict=True))
    is_camera = columns["calibration.is_camera"][columns["track.calibration"][tracks]].tolist()
    cameras = [channel for channel, yes in zip(numbers, is_camera, strict=True) if yes]
    return RecordedScene(
        name=name,
        description=description,
        location=location,
        keyframes=_Keyframes(columns, range(first, last)),
        now_us=columns["keyframe.now_us"][first:last],
        T_world_from_ego_now=_transforms(columns["keyframe.now_pose"][first:last]),
        cameras={channel: _camera(columns, channel, numbers[channel], calibrations) for channel in cameras},
        tracks={channel: Track(columns, number) for channel, number in numbers.items()},
    )


def _tracks(columns: Columns, scene: int) -> slice:
    return slice(*map(int, columns["scene.first_track"][scene : scene + 2]))


def _camera(columns: Columns, channel: str, track: int, calibrations: Path) -> Camera:
    row = int(columns["track.calibration"][track])
    token, K = columns.strings("calibration.token")[row], columns["calibration.K"][row].reshape(3, 3).copy()
    if np.isnan(K).any():
        field = f"camera_intrinsic of {token} ({channel})"
        raise InputError(calibrations, field, "[]", "a 3x3 matrix", "A camera without calibration can't be used.")
    model, coefficients = columns.about["distortions"].get(token, ("none", ()))
    width, height = columns["track.size"][track].tolist()
    T_ego_from_cam = _transforms(columns["calibration.pose"][row])
    camera = Camera(channel, width, height, K, T_ego_from_cam, model, tuple(coefficients))
    return camera.validate(f"{calibrations} {token}")


def _transforms(poses: np.ndarray) -> np.ndarray:
    """T [..., 4, 4] of quaternions and translations [..., 7]."""
    return matrix(poses[..., 4:], rotation_from_quaternion(poses[..., :4]))


def _captures(columns: Columns, rows: np.ndarray) -> list[Capture]:
    tracks = np.searchsorted(columns["track.first_capture"], rows, side="right") - 1
    tokens, patterns, channels = columns.strings("capture.token"), columns.strings("pattern"), columns.about["channels"]
    poses = columns["capture.pose"][rows]
    made = zip(
        rows.tolist(),
        columns["track.channel"][tracks].tolist(),
        columns["capture.time_us"][rows].tolist(),
        _transforms(poses),
        columns["capture.pattern"][rows].tolist(),
        columns["track.size"][tracks].tolist(),
        map(tuple, poses[:, :4].tolist()),
        strict=True,
    )
    return [
        Capture(channels[channel], tokens[row], time_us, T, patterns[pattern].replace("\0", str(time_us)), *size, q)
        for row, channel, time_us, T, pattern, size, q in made
    ]


def _boxes(columns: Columns, keyframe: int) -> Boxes:
    rows = slice(*map(int, columns["keyframe.first_box"][keyframe : keyframe + 2]))
    instances = columns["box.instance"][rows].tolist()
    if not instances:
        return Boxes.empty()
    ids, categories = columns.strings("instance.token"), columns.about["categories"]
    return Boxes(
        tuple(ids[k] for k in instances),
        tuple(categories[k] for k in columns["instance.category"][instances].tolist()),
        _transforms(columns["box.pose"][rows]),
        columns["box.size_lwh_m"][rows].copy(),
        columns["box.velocity_in_world_mps"][rows].copy(),
    )
