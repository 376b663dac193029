"""A nuScenes scene as the messages of a car: what to send when. No ROS in here, only topics and fields.

Poses and motion are those of the tables and the CAN bus to the last bit at every instant that has a pose, so that who
hears it makes the clips that `sensors.nuscenes_source` makes. What the scene does not know is not made up: without a
CAN bus no speed is measured, and without an extension nothing is asked for.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np

from sensors import frames
from sensors.nuscenes_can import Bus, read_bus
from sensors.nuscenes_extension import SceneExtension, read_extension
from sensors.nuscenes_index import NuscenesIndex
from sensors.nuscenes_scene import RecordedScene
from sensors.nuscenes_source import CAMERAS, read_bytes
from sensors.ros2_calibration import Calibration
from sensors.ros2_messages import (
    OdometrySample,
    camera_info_fields,
    header_fields,
    image_fields,
    imu_fields,
    odometry_fields,
    steering_fields,
)
from sensors.ros2_topics import (
    CALIBRATION,
    COMMAND,
    EGO_FRAME,
    IMU,
    INSTRUCTION,
    KEYFRAME,
    ODOMETRY,
    SCENE,
    STEERING,
    WORLD_FRAME,
    image_topic,
    info_topic,
    optical_frame,
)

ODOMETRY_PERIOD_US = 20_000
BEFORE_US = 1_000_000  # of IMU and steering before the first pose: what the first clip may look back at


@dataclass(frozen=True)
class Sent:
    """One message: its instant, its topic, and what makes its fields (a picture is read when it is wanted)."""

    time_us: int
    topic: str
    fields: Callable[[], dict]


def calibration_of(scene: RecordedScene) -> Calibration:
    """The calibration file's content; nuScenes' IMU messages are in ego axes already."""
    frame_ids = {name: optical_frame(name) for name in CAMERAS}
    return Calibration(frame_ids, {name: scene.cameras[name].T_ego_from_cam for name in CAMERAS}, np.eye(3))


def messages_of(index: NuscenesIndex, scene: RecordedScene) -> list[Sent]:
    """A scene in order of time: calibration, what the route asks for, odometry at 50 Hz and at every instant with
    a recorded pose, cameras with the images that exist, IMU, steering, and last the instants of the keyframes."""
    bus = read_bus(index.dataroot, scene.name)
    odometry = list(_odometry(scene, bus))
    start_us = odometry[0].time_us
    sent = [Sent(start_us, CALIBRATION, partial(_text, json.dumps(calibration_of(scene).content())))]
    extension = read_extension(index.dataroot, scene.name)
    about = {"name": scene.name, "description": scene.description, "location": scene.location}
    about |= {"extension": None if extension is None else json.loads(extension.to_json())}
    sent += [Sent(start_us, SCENE, partial(_text, json.dumps(about))), *_words(extension, start_us)]
    sent += [Sent(sample.time_us, ODOMETRY, partial(odometry_fields, sample)) for sample in odometry]
    sent += _pictures(index, scene)
    known = bus.imu.window(start_us - BEFORE_US, odometry[-1].time_us)
    imu = zip(known.time_us.tolist(), known.accel_mps2, known.gyro_radps, strict=True)
    sent += [Sent(time_us, IMU, partial(imu_fields, time_us, EGO_FRAME, *values)) for time_us, *values in imu]
    steering = zip(*(column.tolist() for column in bus.steering_rad), strict=True)
    sent += [
        Sent(time_us, STEERING, partial(steering_fields, time_us, angle))
        for time_us, angle in steering
        if start_us - BEFORE_US < time_us <= odometry[-1].time_us
    ]
    now_us = [keyframe.now_us for keyframe in scene.keyframes]
    sent += [Sent(time_us, KEYFRAME, partial(header_fields, time_us, EGO_FRAME)) for time_us in now_us]
    return sorted(sent, key=attrgetter("time_us"))


def _words(extension: SceneExtension | None, start_us: int) -> Iterator[Sent]:
    """Command and instruction when they change; the first holds from the start on."""
    if extension is None or not len(extension.cue_time_us):
        return
    times_us = np.maximum(extension.cue_time_us, start_us)
    for topic, words in ((COMMAND, extension.commands), (INSTRUCTION, extension.instructions)):
        for k, (time_us, text) in enumerate(zip(times_us.tolist(), words, strict=True)):
            if k == 0 or text != words[k - 1]:
                yield Sent(time_us, topic, partial(_text, text))


def _text(text: str) -> dict:
    return {"data": text}


def _pictures(index: NuscenesIndex, scene: RecordedScene) -> Iterator[Sent]:
    """CameraInfo of every capture, and its picture where there is a file."""
    for name in CAMERAS:
        camera, frame = scene.cameras[name], optical_frame(name)
        for capture in (keyframe.captures[name] for keyframe in scene.keyframes if name in keyframe.captures):
            time_us, path = capture.time_us, index.path(capture.filename)
            yield Sent(time_us, info_topic(name), partial(camera_info_fields, time_us, frame, camera))
            if path.is_file():
                yield Sent(time_us, image_topic(name), partial(_picture, time_us, frame, path))


def _picture(time_us: int, frame: str, path: Path) -> dict:
    return image_fields(time_us, frame, read_bytes(path))


def _odometry(scene: RecordedScene, bus: Bus) -> Iterator[OdometrySample]:
    known = {k.now_us: (k.T_world_from_ego_now, k.q_wxyz_now) for k in scene.keyframes}
    known |= {
        capture.time_us: (capture.T_world_from_ego, capture.q_wxyz)
        for keyframe in scene.keyframes
        for name, capture in keyframe.captures.items()
        if name in CAMERAS
    }
    track_us = np.array(sorted(known), np.int64)
    track = np.stack([known[t][0] for t in track_us.tolist()])
    for time_us in np.union1d(track_us, np.arange(track_us[0], track_us[-1], ODOMETRY_PERIOD_US)).tolist():
        T, q_wxyz = known.get(time_us) or (frames.interpolate_at(track_us, track, time_us), ())
        vehicle = bus.vehicle_at(time_us)
        yield OdometrySample(time_us, T, vehicle.speed_mps, vehicle.yaw_rate_radps, WORLD_FRAME, q_wxyz)
