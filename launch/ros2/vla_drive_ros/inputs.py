"""The driver's inputs: messages to a `ClipAssembler`, behind a lock, with what was refused and why. No ROS in here."""

import threading
import zlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sensors.camera import Camera
from sensors.clip import Clip
from sensors.errors import InputError
from sensors.nuscenes_source import CAMERAS
from sensors.ros2_calibration import Calibration, same_calibration
from sensors.ros2_messages import (
    camera_from_info,
    command_from_message,
    image_from_message,
    imu_from_message,
    odometry_from_message,
    steering_from_message,
    time_us_from_stamp,
)
from sensors.ros2_source import ClipAssembler, Limits, StaleInput, Stream

REPEATS_AFTER_M = 0.2  # a car that moved this far sees something else
TOLD_US = 1_000_000  # why messages are refused is told this long
OTHERS = ("imu", "odometry", "steering")  # streams beside the cameras


@dataclass(frozen=True)
class StreamReport:
    """One stream: messages per second since the report before, age of the latest, all that was refused so far."""

    rate_hz: float
    age_ms: float | None
    refused: dict[str, int]
    fault: str


class Decoder:
    """Pictures of one camera on a thread of its own, in order; of those that wait the newest two are kept."""

    def __init__(self, name: str, decode: Callable[..., None]):
        self._waiting: deque[tuple] = deque(maxlen=2)
        self._decode, self._some, self._ended = decode, threading.Semaphore(0), False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, *message) -> None:
        self._waiting.append(message)
        self._some.release()

    def end(self) -> None:
        self._ended = True
        self._some.release()
        self._thread.join()

    def _run(self) -> None:
        while self._some.acquire() and not self._ended:
            if self._waiting:  # it may have been pushed out by newer ones
                self._decode(*self._waiting.popleft())


class Inputs:
    """Takes messages from several threads; decodes outside the lock, so that cameras decode side by side. Command and
    instruction are those given until others are heard.

    Nothing is assembled before every camera's CameraInfo has come. A CameraInfo that disagrees with the first one is a
    fault that stays until the node is configured anew. A picture that repeats the one before, byte by byte, while the
    car has moved on comes from a camera that hangs, whatever its stamp says, and is refused.
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
        self._refusal: dict[str, tuple[int, str]] = {}  # the latest: when (steady), why
        self._spoilt: set[str] = set()  # cameras whose latest picture was refused for what it is
        self._pictures: dict[str, tuple[int, np.ndarray]] = {}  # checksum, and where the car was when it first came
        self.reset()

    def reset(self) -> None:
        """Forget every sample; calibrations and faults stay."""
        with self._lock:
            self._assembler: ClipAssembler | None = None
            self._reported.clear()
            self._pictures.clear()
            self._spoilt.clear()
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
            elif not same_calibration(known, camera):
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
            self._check_new(name, message.data, now_us, steady_us)
        except InputError as error:
            return self._refuse(name, error, steady_us)
        with self._lock:
            self._spoilt.discard(name)
            if self._assembler is not None:
                self._add(name, self._assembler.images[name], time_us, image, now_us, steady_us)

    def take_imu(self, message, now_us: int, steady_us: int) -> None:
        try:
            time_us, *sample = imu_from_message(message, self._calibration.R_ego_from_imu)
        except InputError as error:
            return self._refuse("imu", error, steady_us)
        with self._lock:
            if self._assembler is not None:
                self._add("imu", self._assembler.imu, time_us, sample, now_us, steady_us)

    def take_odometry(self, message, now_us: int, steady_us: int) -> None:
        try:
            sample = odometry_from_message(message)
        except InputError as error:
            return self._refuse("odometry", error, steady_us)
        with self._lock:
            if self._world_frame not in ("", sample.frame_id):
                self._fault.setdefault("odometry", f"odometry changed from {self._world_frame} to {sample.frame_id}")
            self._world_frame = sample.frame_id
            if self._assembler is not None:
                self._add("odometry", self._assembler.odometry, sample.time_us, sample, now_us, steady_us)

    def take_steering(self, message, now_us: int, steady_us: int) -> None:
        try:
            time_us, steering_rad = steering_from_message(message)
        except InputError as error:
            return self._refuse("steering", error, steady_us)
        with self._lock:
            if self._assembler is not None:
                self._add("steering", self._assembler.steering, time_us, steering_rad, now_us, steady_us)

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

    def _add(self, name: str, stream: Stream, time_us: int, value, now_us: int, steady_us: int) -> None:
        if not stream.add(time_us, value, now_us, steady_us):
            self._refusal[name] = (
                steady_us,
                f"stamp {(time_us - now_us) / 1000:+.0f} ms off the clock or not increasing",
            )

    def _check_new(self, name: str, data: bytes, now_us: int, steady_us: int) -> None:
        """Not while nobody knows where the car is: it may come to rest meanwhile, and then sees the same for long."""
        checksum = zlib.crc32(data)
        with self._lock:
            odometry = None if self._assembler is None else self._assembler.odometry
            if odometry is None or not odometry.fresh(self._limits.odometry_age_us, now_us, steady_us):
                self._pictures.pop(name, None)
                return
            at_m = odometry.values[-1].T_world_from_ego[:2, 3]
            before, was_m = self._pictures.get(name, (None, at_m))
            if checksum != before:
                self._pictures[name] = checksum, at_m
            elif np.hypot(*(at_m - was_m)) > REPEATS_AFTER_M:
                came = f"the picture before, though the car moved {np.hypot(*(at_m - was_m)):.1f} m"
                raise InputError(f"image of {name}", "data", came, "a new picture")

    def _refuse(self, name: str, error: InputError, steady_us: int) -> None:
        with self._lock:
            self._refused[name][error.field] += 1
            self._spoilt |= {name} & set(CAMERAS)
            self._refusal[name] = steady_us, f"{error.field}: came {error.came[:60]}"

    def health(self, now_us: int, steady_us: int, silent_us: int) -> tuple[list[str], list[str]]:
        """(faults, degradations) of the inputs now, each in words that begin with the input's name.

        One camera may lose a picture; that all of them do at once is no chance, and is told after `silent_us`. A
        picture that had to be refused is no chance either: it is told at once, until the camera sends a good one.
        """
        with self._lock:
            if self._fault:
                return list(self._fault.values()), []
            if self._assembler is None:
                lacking = ", ".join(n for n in CAMERAS if n not in self._cameras)
                return [f"no CameraInfo of {lacking} yet"], []
            clock, limits, faults, slight = (now_us, steady_us), self._limits, [], []
            for name, stream in self._assembler.images.items():
                slight += self._stale(name, stream, limits.camera_age_us, *clock)
            if len(CAMERAS) - len(slight) < limits.min_cameras:
                faults, slight = slight, []
            elif not any(stream.fresh(silent_us, *clock) for stream in self._assembler.images.values()):
                faults.append(f"CAM_*: all silent for more than {silent_us / 1000:.0f} ms")
            slight += self._stale("imu", self._assembler.imu, limits.imu_age_us, *clock)
            faults += self._stale("odometry", self._assembler.odometry, limits.odometry_age_us, *clock)
            return faults, slight

    def _stale(self, name: str, stream: Stream, limit_us: int, now_us: int, steady_us: int) -> list[str]:
        if stream.fresh(limit_us, now_us, steady_us):
            return [f"{name}: {self._refusal[name][1]}"] if name in self._spoilt else []
        age_us = stream.age_us(now_us, steady_us)
        words = "none yet" if age_us is None else f"{age_us / 1000:.0f} ms old, limit {limit_us / 1000:.0f} ms"
        refused_us, why = self._refusal.get(name, (0, ""))
        return [f"{name}: {words}" + (f" ({why})" if why and steady_us - refused_us < TOLD_US else "")]

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
