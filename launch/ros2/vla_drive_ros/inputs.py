"""The driver's inputs: messages to a `ClipAssembler`, behind a lock, with what was refused and why. No ROS in here."""

import threading
from collections import Counter
from dataclasses import dataclass, replace

from sensors.camera import Camera
from sensors.clip import Clip
from sensors.errors import InputError
from sensors.nuscenes_source import CAMERAS
from sensors.ros2_calibration import Calibration
from sensors.ros2_messages import (
    camera_from_info,
    command_from_message,
    image_from_message,
    imu_from_message,
    odometry_from_message,
    steering_from_message,
    time_us_from_stamp,
)
from sensors.ros2_source import ClipAssembler, Limits, StaleInput

OTHERS = ("imu", "odometry", "steering")  # streams beside the cameras


@dataclass(frozen=True)
class StreamReport:
    """One stream: messages per second since the report before, age of the latest, all that was refused so far."""

    rate_hz: float
    age_ms: float | None
    refused: dict[str, int]
    fault: str


class Inputs:
    """Takes messages from several threads; decodes outside the lock, so that cameras decode side by side. Command and
    instruction are those given until others are heard.

    Nothing is assembled before every camera's CameraInfo has come. A CameraInfo that disagrees with the first one is a
    fault that stays until the node is configured anew.
    """

    def __init__(
        self,
        calibration: Calibration,
        limits: Limits,
        steps: int,
        image_size: tuple[int, int],
        command: str = "follow",
        instruction: str = "",
    ):
        self._calibration, self._limits, self._steps = calibration, limits.validate(len(CAMERAS)), steps
        self._image_size = image_size
        self._lock = threading.Lock()
        self._cameras: dict[str, Camera] = {}
        self._fault: dict[str, str] = {}
        self._refused: dict[str, Counter] = {name: Counter() for name in (*CAMERAS, *OTHERS)}
        self._words = {"command": command, "instruction": instruction}
        self._world_frame = ""
        self._reported: dict[str, tuple[int, int]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget every sample; calibrations and faults stay."""
        with self._lock:
            self._assembler: ClipAssembler | None = None
            self._reported.clear()
            self._assemble_when_calibrated()

    def _assemble_when_calibrated(self) -> None:
        if len(self._cameras) == len(CAMERAS):
            cameras = tuple(self._cameras[name].resize(*self._image_size)[1] for name in CAMERAS)
            self._assembler = ClipAssembler(cameras, self._steps, self._limits)

    def take_info(self, name: str, message) -> None:
        frame_id = self._calibration.frame_ids[name]
        try:
            if message.header.frame_id != frame_id:
                expected = f"{frame_id}, as in the calibration file"
                raise InputError(f"CameraInfo of {name}", "header.frame_id", message.header.frame_id, expected)
            camera = camera_from_info(message, name, self._calibration.T_ego_from_cam[name])
        except InputError as error:
            with self._lock:
                self._fault.setdefault(name, str(error))
            return
        with self._lock:
            known = self._cameras.setdefault(name, camera)
            if known is camera:
                self._assemble_when_calibrated()
            elif _calibration_of(known) != _calibration_of(camera):
                self._fault.setdefault(name, f"CameraInfo of {name} changed. Configure the node anew.")

    def take_image(self, name: str, message, now_us: int, steady_us: int) -> None:
        with self._lock:
            camera = self._cameras.get(name)
        try:
            if camera is None:
                raise InputError(f"image of {name}", "CameraInfo", "none yet", "one before the first image")
            frame_id = self._calibration.frame_ids[name]
            if message.header.frame_id != frame_id:
                raise InputError(f"image of {name}", "header.frame_id", message.header.frame_id, frame_id)
            time_us = time_us_from_stamp(message.header.stamp, f"image of {name}")
            image = image_from_message(message, camera, self._image_size)
        except InputError as error:
            return self._refuse(name, error)
        with self._lock:
            if self._assembler is not None:
                self._assembler.images[name].add(time_us, image, now_us, steady_us)

    def take_imu(self, message, now_us: int, steady_us: int) -> None:
        try:
            time_us, *sample = imu_from_message(message, self._calibration.R_ego_from_imu)
        except InputError as error:
            return self._refuse("imu", error)
        with self._lock:
            if self._assembler is not None:
                self._assembler.imu.add(time_us, sample, now_us, steady_us)

    def take_odometry(self, message, now_us: int, steady_us: int) -> None:
        try:
            sample = odometry_from_message(message)
        except InputError as error:
            return self._refuse("odometry", error)
        with self._lock:
            if self._world_frame not in ("", sample.frame_id):
                self._fault.setdefault("odometry", f"odometry changed from {self._world_frame} to {sample.frame_id}")
            self._world_frame = sample.frame_id
            if self._assembler is not None:
                self._assembler.odometry.add(sample.time_us, sample, now_us, steady_us)

    def take_steering(self, message, now_us: int, steady_us: int) -> None:
        try:
            time_us, steering_rad = steering_from_message(message)
        except InputError as error:
            return self._refuse("steering", error)
        with self._lock:
            if self._assembler is not None:
                self._assembler.steering.add(time_us, steering_rad, now_us, steady_us)

    def take_command(self, message) -> None:
        """One that nobody knows takes back the one before: what was to be done then may be wrong now."""
        with self._lock:
            try:
                self._words["command"] = command_from_message(message)
                self._fault.pop("command", None)
            except InputError as error:
                self._fault["command"] = str(error)

    def take_instruction(self, message) -> None:
        with self._lock:
            self._words["instruction"] = message.data

    def _refuse(self, name: str, error: InputError) -> None:
        with self._lock:
            self._refused[name][error.field] += 1

    def clip(self, now_us: int, steady_us: int) -> tuple[Clip, str]:
        """The clip and the frame its poses are in; StaleInput, which says why, where there can be none."""
        with self._lock:
            if self._fault:
                raise StaleInput("; ".join(self._fault.values()))
            if self._assembler is None:
                raise StaleInput(f"no CameraInfo of {', '.join(n for n in CAMERAS if n not in self._cameras)} yet")
            return replace(self._assembler.clip(now_us, steady_us), **self._words), self._world_frame

    def report(self, now_us: int, steady_us: int) -> dict[str, StreamReport]:
        """Each camera and OTHERS; rates are over the time since the report before."""
        with self._lock:
            return {name: self._report(name, now_us, steady_us) for name in self._refused}

    def _report(self, name: str, now_us: int, steady_us: int) -> StreamReport:
        refused, fault = dict(self._refused[name]), self._fault.get(name, "")
        if self._assembler is None:
            return StreamReport(0.0, None, refused, fault)
        assembler = self._assembler
        stream = assembler.images[name] if name in assembler.images else getattr(assembler, name)
        accepted, since_us = self._reported.get(name, (0, steady_us))
        self._reported[name] = stream.accepted, steady_us
        seconds = (steady_us - since_us) * 1e-6
        rate_hz = (stream.accepted - accepted) / seconds if seconds > 0 else 0.0
        refused |= {"stamp not increasing": stream.not_increasing, "stamp ahead of the clock": stream.ahead}
        age_us = stream.age_us(now_us, steady_us)
        return StreamReport(rate_hz, None if age_us is None else age_us / 1000, refused, fault)


def _calibration_of(camera: Camera) -> tuple:
    return camera.width, camera.height, camera.K.tobytes(), camera.distortion, camera.coefficients
