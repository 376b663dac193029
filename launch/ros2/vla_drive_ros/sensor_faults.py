"""What may go wrong with the sensors of the simulated car, by name. No ROS in here.

camera-stops       CAM_BACK sends nothing
cameras-stop       no camera sends anything
frozen             CAM_FRONT sends the same picture again and again, with fresh stamps
stamps-back        every stamp lies a second back
stamps-forward     every stamp lies a second ahead
imu-nan            the IMU measures NaN
odometry-stops     no pose any more
garbage-jpeg       CAM_FRONT_LEFT sends bytes that are no picture
resolution         CAM_FRONT sends pictures of another size
"""

from dataclasses import replace

import cv2
import numpy as np

from sensors.errors import unknown_name
from sensors.ros2_messages import OdometrySample
from vla_drive_ros.town_car import Frame, ImuSample, Sample

JUMP_US = 1_000_000
FAULTS = (
    "camera-stops",
    "cameras-stop",
    "frozen",
    "stamps-back",
    "stamps-forward",
    "imu-nan",
    "odometry-stops",
    "garbage-jpeg",
    "resolution",
)


def check_fault(name: str) -> str:
    """The name, which may be empty; an unknown one is an InputError that names the nearest."""
    if name and name not in FAULTS:
        raise unknown_name("parameter", "fault", name, FAULTS)
    return name


class SensorFaults:
    """Spoils samples while `name` says how."""

    def __init__(self):
        self.name = ""
        self._kept: bytes | None = None

    def spoil(self, sample: Sample | Frame) -> Sample | Frame | None:
        """What is sent in place of a sample; None for nothing."""
        if self.name in ("stamps-back", "stamps-forward"):
            return replace(sample, time_us=sample.time_us + (JUMP_US if self.name == "stamps-forward" else -JUMP_US))
        if isinstance(sample, Frame):
            return self._frame(sample)
        if isinstance(sample, ImuSample) and self.name == "imu-nan":
            return replace(sample, accel_mps2=np.full(3, np.nan))
        if isinstance(sample, OdometrySample) and self.name == "odometry-stops":
            return None
        return sample

    def _frame(self, frame: Frame) -> Frame | None:
        camera = frame.camera.name
        if self.name == "cameras-stop" or (self.name == "camera-stops" and camera == "CAM_BACK"):
            return None
        if camera == "CAM_FRONT":
            self._kept = self._kept if self.name == "frozen" and self._kept else frame.jpeg
            if self.name == "frozen":
                return replace(frame, jpeg=self._kept)
            if self.name == "resolution":
                image = cv2.imdecode(np.frombuffer(frame.jpeg, np.uint8), cv2.IMREAD_COLOR)
                return replace(frame, jpeg=cv2.imencode(".jpg", image[::2, ::2])[1].tobytes())
        if camera == "CAM_FRONT_LEFT" and self.name == "garbage-jpeg":
            return replace(frame, jpeg=b"no picture" * 100)
        return frame
