"""A nuScenes scene as a list of what to publish when. No ROS in here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sensors import frames
from sensors.camera import Camera
from sensors.nuscenes_can import Bus, read_bus
from sensors.nuscenes_index import NuscenesIndex, RecordedScene
from sensors.nuscenes_source import BUS_MESSAGES, CAMERAS
from sensors.ros2_calibration import Calibration
from sensors.ros2_messages import OdometrySample
from sensors.ros2_topics import optical_frame

ODOMETRY_PERIOD_US = 20_000
DIFFERENCE_US = 100_000  # each way, for speed and yaw rate where no bus was recorded


@dataclass(frozen=True)
class Picture:
    time_us: int
    camera: Camera
    path: Path


@dataclass(frozen=True)
class ImuSample:
    time_us: int
    accel_mps2: np.ndarray
    gyro_radps: np.ndarray


Event = Picture | ImuSample | OdometrySample


def calibration_of(scene: RecordedScene) -> Calibration:
    """The calibration file's content; nuScenes' IMU messages are in ego axes already."""
    frame_ids = {name: optical_frame(name) for name in CAMERAS}
    return Calibration(frame_ids, {name: scene.cameras[name].T_ego_from_cam for name in CAMERAS}, np.eye(3))


def events(index: NuscenesIndex, scene: RecordedScene) -> list[Event]:
    """All of a scene in order of time: key-frame images that exist, the IMU, and odometry at 50 Hz and at every instant
    whose pose is recorded. At one instant, odometry comes first."""
    bus = read_bus(*(index.can_path(scene.name, message) for message in BUS_MESSAGES))
    found: list[Event] = [*_odometry(scene, bus), *_pictures(index, scene)]
    samples = bus.imu.window(found[0].time_us - 1, max(event.time_us for event in found))
    found += map(ImuSample, samples.time_us.tolist(), samples.accel_mps2, samples.gyro_radps)
    return sorted(found, key=lambda event: event.time_us)


def _pictures(index: NuscenesIndex, scene: RecordedScene) -> Iterator[Picture]:
    for keyframe in scene.keyframes:
        for name in CAMERAS:
            capture = keyframe.captures.get(name)
            if capture is not None and index.path(capture.filename).is_file():
                yield Picture(capture.time_us, scene.cameras[name], index.path(capture.filename))


def _odometry(scene: RecordedScene, bus: Bus) -> Iterator[OdometrySample]:
    known = {k.now_us: k.T_world_from_ego_now for k in scene.keyframes}
    known |= {
        capture.time_us: capture.T_world_from_ego
        for keyframe in scene.keyframes
        for name, capture in keyframe.captures.items()
        if name in CAMERAS
    }
    track_us = np.array(sorted(known), np.int64)
    track = np.stack([known[t] for t in track_us.tolist()])
    for time_us in np.union1d(track_us, np.arange(track_us[0], track_us[-1], ODOMETRY_PERIOD_US)).tolist():
        T, vehicle = frames.interpolate_at(track_us, track, time_us), bus.vehicle_at(time_us)
        speed_mps, yaw_rate_radps = _motion(track_us, track, time_us)
        if np.isfinite(vehicle.speed_mps):
            speed_mps, yaw_rate_radps = vehicle.speed_mps, vehicle.yaw_rate_radps
        yield OdometrySample(time_us, T, speed_mps, yaw_rate_radps, "map")


def _motion(track_us: np.ndarray, track: np.ndarray, time_us: int) -> tuple[float, float]:
    """Speed along ego x and yaw rate, by central difference; 0 for a scene of one instant."""
    ends_us = [int(np.clip(time_us + d, track_us[0], track_us[-1])) for d in (-DIFFERENCE_US, DIFFERENCE_US)]
    span_s = (ends_us[1] - ends_us[0]) * 1e-6
    if not span_s:
        return 0.0, 0.0
    T_0, T_1 = (frames.interpolate_at(track_us, track, t) for t in ends_us)
    moved = frames.inverse(T_0) @ T_1
    return float(moved[0, 3] / span_s), float(frames.yaw(moved) / span_s)
