"""A drive out of a bag: what its messages say, all but the pixels, and the dataroot in nuScenes format that it becomes.

Keyframes are the instants that the recording names; where it names none, sets of pictures half a second apart around
those of the first camera, as the synchroniser makes them, each at the first pose that is not earlier. Pictures that
came as JPEG stay the bytes they are. What a message says wrong is left out, counted and told.
"""

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sensors import frames
from sensors.camera import Camera
from sensors.clip import Boxes
from sensors.errors import InputError
from sensors.imu import ImuWindow
from sensors.nuscenes_can import can_is_refused
from sensors.nuscenes_extension import SceneExtension, extension_from_json
from sensors.nuscenes_source import CAMERAS
from sensors.nuscenes_writer import SCENE_NAME, NuscenesWriter
from sensors.ros2_bag import Bag
from sensors.ros2_calibration import Calibration, calibration_from, json_object, read_calibration, same_calibration
from sensors.ros2_messages import (
    OdometrySample,
    camera_from_info,
    command_from_message,
    image_from_message,
    imu_from_message,
    odometry_from_message,
    steering_from_message,
    time_us_from_stamp,
)
from sensors.ros2_source import OFF_STRIDE_US, STRIDE_US, Limits
from sensors.ros2_topics import (
    CALIBRATION,
    COMMAND,
    IMU,
    INSTRUCTION,
    KEYFRAME,
    ODOMETRY,
    SCENE,
    STEERING,
    image_topic,
    info_topic,
    raw_image_topic,
)

UNKNOWN_MAP = np.zeros((8, 8), np.uint8)  # nothing is said to be drivable
NAMED = 3  # of what was refused, the first so many kinds are told


@dataclass(frozen=True)
class Instant:
    """A keyframe: when, and of each camera when it fired (or was to) and whether there is a picture."""

    now_us: int
    fired_us: dict[str, int]
    pictured: frozenset[str]


@dataclass(frozen=True)
class Drive:
    """`recorded_us`: microsecond of the log at which the picture of (camera, stamp) lies, and its topic."""

    name: str
    description: str
    location: str
    extension: SceneExtension | None
    cameras: tuple[Camera, ...]
    instants: tuple[Instant, ...]
    odometry: tuple[OdometrySample, ...]
    imu: ImuWindow
    steering: tuple[tuple[int, float], ...]
    recorded_us: dict[tuple[str, int], tuple[str, int]]
    refused: dict[str, list[str]]

    def problems(self) -> list[str]:
        """What was left out, a line a topic."""
        return [
            f"{topic}: {len(words)} message{'s' * (len(words) > 1)} left out: {'; '.join(dict.fromkeys(words[:NAMED]))}"
            for topic, words in self.refused.items()
        ]


class _Reader:
    """Takes the messages of one bag, one after another."""

    def __init__(self, bag: Bag, calibration: Calibration | None):
        self.bag, self.calibration = bag, calibration
        self.infos: dict[str, object] = {}
        self.fired_us: dict[str, set[int]] = {name: set() for name in CAMERAS}
        self.recorded_us: dict[tuple[str, int], tuple[str, int]] = {}
        self.samples: dict[str, list[tuple]] = defaultdict(list)
        self.words: list[tuple[int, str, str]] = []
        self.about: dict = {}
        self.refused: dict[str, list[str]] = defaultdict(list)
        self._take: dict[str, Callable[[int, object], None]] = {
            IMU: lambda _, m: self._sample(IMU, *imu_from_message(m, self.calibration.R_ego_from_imu)),
            ODOMETRY: lambda _, m: self._sample(ODOMETRY, (sample := odometry_from_message(m)).time_us, sample),
            STEERING: lambda _, m: self._sample(STEERING, *steering_from_message(m)),
            KEYFRAME: lambda _, m: self._sample(KEYFRAME, time_us_from_stamp(m.stamp, "keyframe")),
            COMMAND: lambda t, m: self.words.append((t, COMMAND, command_from_message(m))),
            INSTRUCTION: lambda t, m: self.words.append((t, INSTRUCTION, m.data)),
            SCENE: lambda _, m: self.about.update(json_object(m.data, bag.path, SCENE)),
        }
        for name in CAMERAS:
            self._take[info_topic(name)] = lambda _, m, name=name: self._info(name, m)
            for topic in (image_topic(name), raw_image_topic(name)):
                self._take[topic] = lambda t, m, name=name, topic=topic: self._image(name, topic, t, m)

    def read(self) -> None:
        self.calibration = self.calibration or self._own_calibration()
        for topic, time_us, message in self.bag.messages(set(self._take)):
            try:
                self._take[topic](time_us, message)
            except InputError as error:
                self.refused[topic].append(f"{error.field}: came {error.came}, expected {error.expected}")

    def _own_calibration(self) -> Calibration:
        for _, _, message in self.bag.messages({CALIBRATION}):
            return calibration_from(json_object(message.data, self.bag.path, CALIBRATION), self.bag.path, CAMERAS)
        fix = "Give the car's calibration file with --calibration; launch/README.md shows one."
        raise InputError(self.bag.path, CALIBRATION, "no such topic", "where the cameras sit", fix)

    def _sample(self, topic: str, time_us: int, *values: object) -> None:
        known = self.samples[topic]
        if known and time_us <= known[-1][0]:
            raise InputError(topic, "header.stamp", f"{time_us} us after {known[-1][0]} us", "increasing time")
        known.append((time_us, *values))

    def _frame(self, name: str, message: object) -> int:
        """The stamp of a camera's message, if its frame is the calibration's."""
        expected, came = self.calibration.frame_ids[name], message.header.frame_id
        if came != expected:
            raise InputError(name, "header.frame_id", came or "nothing", f"{expected}, as in the calibration")
        return time_us_from_stamp(message.header.stamp, name)

    def _info(self, name: str, message: object) -> None:
        time_us = self._frame(name, message)
        camera = camera_from_info(message, name, self.calibration.T_ego_from_cam[name])
        known = self.infos.setdefault(name, camera)
        if not same_calibration(known, camera):
            raise InputError(name, "width, height, k, d", "another calibration than before", "one for the whole drive")
        self.fired_us[name].add(time_us)

    def _image(self, name: str, topic: str, recorded_us: int, message: object) -> None:
        time_us = self._frame(name, message)
        self.fired_us[name].add(time_us)
        self.recorded_us.setdefault((name, time_us), (topic, recorded_us))


def read_drive(bag: Bag, calibration_file: Path | None = None) -> Drive:
    """All of a bag. Where it has no /calibration, the car's file must be given; a bag without odometry, without one
    camera's CameraInfo or without a single set of pictures is an InputError."""
    reader = _Reader(bag, None if calibration_file is None else read_calibration(calibration_file, CAMERAS))
    reader.read()
    refused, samples = dict(reader.refused), reader.samples
    told = {topic: f", {len(words)} refused: {words[0]}" for topic, words in refused.items()}
    fix = f"vla ros check {bag.path} says what is wrong with it."
    if not samples[ODOMETRY]:
        raise InputError(bag.path, ODOMETRY, f"no usable message{told.get(ODOMETRY, '')}", "the pose of the car", fix)
    for name in CAMERAS:
        if name not in reader.infos:
            topic = info_topic(name)
            raise InputError(bag.path, topic, f"no usable message{told.get(topic, '')}", "size, K and D", fix)
    odometry = tuple(sample for _, sample in samples[ODOMETRY])
    instants = tuple(_instants(reader, [sample.time_us for sample in odometry]))
    if not instants:
        raise InputError(bag.path, "keyframes", "none", "a set of pictures with a pose", fix)
    imu = samples[IMU]
    window = ImuWindow.empty()
    if imu:
        time_us, accel_mps2, gyro_radps = zip(*imu, strict=True)
        window = ImuWindow(np.array(time_us, np.int64), np.stack(accel_mps2), np.stack(gyro_radps))
    about, cameras = reader.about, tuple(reader.infos[name] for name in CAMERAS)
    name, extension = str(about.get("name", bag.path.stem)), about.get("extension")
    own = _extension_of(name, odometry[0].time_us, reader.words)
    made = own if extension is None else extension_from_json(json.dumps(extension), f"{bag.path} {SCENE}")
    words = name, str(about.get("description", "")), str(about.get("location", "unknown"))
    steering = tuple(samples[STEERING])
    return Drive(*words, made, cameras, instants, odometry, window, steering, reader.recorded_us, refused)


def _extension_of(name: str, start_us: int, words: list[tuple[int, str, str]]) -> SceneExtension | None:
    """Commands and instructions as they were heard; None where there were none."""
    if not words:
        return None
    none_us, state = np.zeros(0, np.int64), {COMMAND: "follow", INSTRUCTION: ""}
    cues = {start_us: tuple(state.values())}
    for time_us, topic, text in words:
        state[topic] = text
        cues[max(time_us, start_us)] = tuple(state.values())
    commands, instructions = zip(*cues.values(), strict=True)
    return SceneExtension(
        **{"scenario": name, "town": name, "weather": "", "seed": 0, "goal_m": 0.0},
        **{"route_m": np.zeros((0, 2)), "lanes": (), "areas": (), "signals_xyyaw": np.zeros((0, 3))},
        **{"lights_time_us": none_us, "lights": (), "plan_time_us": none_us, "reasons": ()},
        **{"plan_after_s": np.zeros(0), "plans": np.zeros((0, 0, 3)), "event_time_us": none_us, "events": ()},
        **{"cue_time_us": np.array(list(cues), np.int64), "commands": commands, "instructions": instructions},
    )


def _instants(reader: _Reader, odometry_us: list[int]) -> Iterator[Instant]:
    """The keyframes; an instant for which no pose is known makes none."""
    fired_us = {name: sorted(times_us) for name, times_us in reader.fired_us.items()}
    sets = _named_sets if reader.samples[KEYFRAME] else _own_sets
    for now_us, fired in sets(reader, fired_us, odometry_us):
        times_us = {name: fired.get(name, max(fired.values())) for name in CAMERAS}
        if all(_has_pose(odometry_us, time_us) for time_us in (now_us, *times_us.values())):
            pictured = frozenset(name for name in fired if (name, fired[name]) in reader.recorded_us)
            yield Instant(now_us, times_us, pictured)


def _named_sets(reader: _Reader, fired_us: dict[str, list[int]], _: list[int]) -> Iterator[tuple[int, dict[str, int]]]:
    """(now_us, when each camera fired) of the instants that the recording names: the latest after the one before."""
    before_us = 0
    for (now_us,) in reader.samples[KEYFRAME]:
        fired = {}
        for name, times_us in fired_us.items():
            k = bisect_right(times_us, now_us) - 1
            if k >= 0 and times_us[k] > before_us:
                fired[name] = times_us[k]
        if fired:
            yield now_us, fired
        before_us = now_us


def _own_sets(
    reader: _Reader, fired_us: dict[str, list[int]], odometry_us: list[int]
) -> Iterator[tuple[int, dict[str, int]]]:
    """The same where none are named: about every STRIDE_US a picture of the first camera that has any."""
    shown = {name: [t for t in fired_us[name] if (name, t) in reader.recorded_us] for name in CAMERAS}
    reference = next((times_us for times_us in shown.values() if times_us), [])
    due_us = before_us = 0
    for k, time_us in enumerate(reference):
        nearer = k + 1 < len(reference) and abs(reference[k + 1] - due_us) < abs(time_us - due_us)
        if time_us < due_us - OFF_STRIDE_US or nearer:
            continue
        fired = {name: at for name, times_us in shown.items() if (at := _nearest(times_us, time_us)) is not None}
        latest = bisect_left(odometry_us, max(fired.values()))
        if latest < len(odometry_us) and min(fired.values()) > before_us:
            yield odometry_us[latest], fired
            due_us, before_us = time_us + STRIDE_US, max(fired.values())


def _nearest(times_us: list[int], at_us: int) -> int | None:
    k = bisect_left(times_us, at_us)
    near = [t for t in times_us[max(k - 1, 0) : k + 1] if abs(t - at_us) <= Limits.tolerance_us]
    return min(near, key=lambda t: abs(t - at_us), default=None)


def _has_pose(odometry_us: list[int], time_us: int) -> bool:
    """Whether a pose is known at an instant, or between two that are near enough to each other."""
    k = bisect_left(odometry_us, time_us)
    if k < len(odometry_us) and odometry_us[k] == time_us:
        return True
    return 0 < k < len(odometry_us) and odometry_us[k] - odometry_us[k - 1] <= Limits.odometry_age_us


# To nuScenes format ------------------------------------------------------------------------------


def unpack(bag: Bag, drive: Drive, writer: NuscenesWriter, tell: Callable[[], None] = lambda: None) -> str:
    """Append the drive to a dataroot as one scene, whole or not at all; returns its name. `tell` is called a keyframe.

    Where one may drive is not known, so the map is empty; nor who stood around, so there are no boxes.
    """
    good = SCENE_NAME.fullmatch(drive.name) and not can_is_refused(drive.name)
    name = drive.name if good and drive.name not in writer.scenes else writer.free_scene_name()
    track_us = np.array([sample.time_us for sample in drive.odometry], np.int64)
    track = np.stack([sample.T_world_from_ego for sample in drive.odometry])
    spelling = {sample.T_world_from_ego[:3, :3].tobytes(): sample.q_wxyz for sample in drive.odometry}
    about = drive.description or bag.path.name, drive.cameras, drive.location, UNKNOWN_MAP
    with writer.scene(name, *about, spelling) as recorder:
        for instant in drive.instants:
            times_us = np.array([instant.fired_us[camera.name] for camera in drive.cameras], np.int64)
            poses = np.stack([frames.interpolate_at(track_us, track, t) for t in times_us.tolist()])
            pictures = [_picture(bag, drive, camera, instant) for camera in drive.cameras]
            pose = frames.interpolate_at(track_us, track, instant.now_us)
            recorder.keyframe(instant.now_us, pictures, times_us, poses, pose, Boxes.empty())
            tell()
        _record_bus(recorder, drive, track_us, track)
        if drive.extension is not None:
            recorder.extension(drive.extension)
    return name


def _picture(bag: Bag, drive: Drive, camera: Camera, instant: Instant) -> np.ndarray | bytes | None:
    """The bytes of the JPEG, or the pixels of a raw image; None where there is none."""
    if camera.name not in instant.pictured:
        return None
    stamp_us = instant.fired_us[camera.name]
    topic, recorded_us = drive.recorded_us[camera.name, stamp_us]
    for _, _, message in bag.messages({topic}, recorded_us):
        if time_us_from_stamp(message.header.stamp, topic) == stamp_us:
            pixels = image_from_message(message, camera)  # also where only the bytes are kept: it checks them
            return pixels if hasattr(message, "encoding") else bytes(message.data)
    raise RuntimeError(f"{bag.path} no longer has the picture of {camera.name} at {stamp_us} us")


def _record_bus(recorder, drive: Drive, track_us: np.ndarray, track: np.ndarray) -> None:
    """IMU, steering, and speed and yaw rate where both were measured."""
    motion = np.array([(sample.speed_mps, sample.yaw_rate_radps) for sample in drive.odometry])
    known = np.isfinite(motion).all(axis=1)
    steering_us = np.array([time_us for time_us, _ in drive.steering], np.int64)
    steering_rad = np.array([angle for _, angle in drive.steering], np.float64)
    if known.any() or len(drive.imu) or len(steering_us):
        recorder.can(drive.imu, track_us[known], track[known], *motion[known].T, steering_rad, steering_us)
