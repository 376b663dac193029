"""The town as a car: control periods in, timed sensor samples out, and the log of the drive. No ROS in here.

Until the first command that would move it, the car stands at the start and the town waits: samples of a car that stands
go on, the episode has not begun. So a drive over topics begins as one without them does.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from policies.rollout import quiet_env, record_afterwards
from sensors import frames
from sensors.camera import Camera
from sensors.imu import GRAVITY_MPS2
from sensors.nuscenes_source import CAMERAS
from sensors.ros2_messages import OdometrySample
from sensors.ros2_topics import WORLD_FRAME
from sim.rollout_log import EpisodeLog, EpisodeRecorder
from sim.scenarios import Scenario
from sim.scene import Moment
from sim.sensing import EXPOSURE_BEFORE_US, imu_of_motion
from sim.stage import begin, why_ended
from sim.tracker import PlanTracker
from sim.world import PERIOD_US

JPEG_QUALITY = 90


@dataclass(frozen=True)
class Frame:
    """One picture as it is sent."""

    time_us: int
    camera: Camera
    jpeg: bytes


@dataclass(frozen=True)
class ImuSample:
    time_us: int
    accel_mps2: np.ndarray
    gyro_radps: np.ndarray


@dataclass(frozen=True)
class SteeringSample:
    time_us: int
    steering_rad: float


Sample = ImuSample | OdometrySample | SteeringSample


class TownCar:
    """One episode. `period` first, then the pictures of that period by what it returned, in any thread.

    cameras, cue: (route command, instruction) now, ended_by: "" while it lasts
    """

    def __init__(self, scenario: Scenario, image_size: tuple[int, int], renderer: str, policy_name: str):
        self._env = quiet_env(image_size, None, scenario, renderer)
        observation, self._stage = begin(self._env, scenario)
        self._draw = self._env.unwrapped.draw
        self.cameras: tuple[Camera, ...] = self._env.unwrapped.cameras
        self.wheelbase_m = self._stage.world.params.wheelbase_m
        self.ended_by = ""
        self._waited_us = 0  # how much later the stamps are than the world's time
        self._start_us = int(observation["now_us"])
        self._seen = 0
        stage = self._stage
        self._recorder = EpisodeRecorder(stage.name, "drive", policy_name, stage.seed, stage.lines, stage.around)
        self._plan: tuple[np.ndarray, np.ndarray, str] | None = None

    @property
    def time_us(self) -> int:
        """The stamp of now: the end of the last period."""
        return self._stage.world.time_us + self._waited_us

    @property
    def begun(self) -> bool:
        return self._stage.world.time_us > self._start_us

    @property
    def cue(self) -> tuple[str, str]:
        return self._stage.cue()

    def plan(self, times_us: np.ndarray, xyyaw_in_world: np.ndarray, why: str) -> None:
        """A plan that the driver published, by stamps; the log has the newest one at its next frame."""
        self._plan = times_us - self._waited_us, xyyaw_in_world, why

    def period(self, accel_mps2: float, steering_rad: float) -> tuple[list[Sample], Moment, np.ndarray]:
        """Drive one period: (samples in order of time, what the cameras see, int64 [6] their stamps)."""
        if self.ended_by or (not self.begun and accel_mps2 <= 0):
            self._waited_us += PERIOD_US
        else:
            action = accel_mps2, float(np.tan(steering_rad)) / self.wheelbase_m
            self._record(action)
            _, _, terminated, truncated, _ = self._env.step(np.array(action))
            if terminated or truncated:
                new = self._stage.world.events[self._seen :]
                self.ended_by = why_ended([event.kind for event in new], terminated)
        return self._samples(), self._env.unwrapped.moment(), self.time_us - EXPOSURE_BEFORE_US

    def pictures(self, moment: Moment, times_us: np.ndarray) -> list[Frame]:
        """What `period` saw, drawn and compressed."""
        images = self._draw(moment)
        named = {camera.name: k for k, camera in enumerate(self.cameras)}
        found = []
        for name in CAMERAS:
            k = named[name]
            _, jpeg = cv2.imencode(".jpg", images[k][..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
            found.append(Frame(int(times_us[k]), self.cameras[k], jpeg.tobytes()))
        return sorted(found, key=lambda frame: frame.time_us)

    def finish(self, keep: Callable[[EpisodeLog], None]) -> None:
        """Hand over the log, with what the others do afterwards, and end the simulation."""
        self._record(None)
        record_afterwards(self._recorder, self._stage, PlanTracker())
        keep(self._recorder.finish(self.ended_by or "stopped"))
        self._env.close()

    def _record(self, action: tuple[float, float] | None) -> None:
        """The present instant, and what is done from it on."""
        stage, world = self._stage, self._stage.world
        events = [(event.kind, event.actor, event.speed_mps, event.fault) for event in world.events[self._seen :]]
        self._seen = len(world.events)
        about = (stage.boxes(world.time_us), events, stage.red_lanes(), stage.cue())
        pose = frames.xy_yaw(world.ego.T_world_from_ego)
        self._recorder.frame(world.time_us, pose, world.ego.speed_mps, action, *about)
        if self._plan is not None:
            times_us, xyyaw, why = self._plan
            ahead = times_us > world.time_us
            if ahead.any():
                self._recorder.plan((times_us[ahead] - world.time_us) * 1e-6, xyyaw[ahead], (), why)
            self._plan = None

    def _samples(self) -> list[Sample]:
        """IMU of the last period at 100 Hz, odometry and steering at 50; a car that waits has driven none of it."""
        world, stands = self._stage.world, self.ended_by or not self.begun
        states = [world.ego] * len(world.track) if stands else world.track
        imu = imu_of_motion(world.track_time_us, states)
        found: list[Sample] = []
        for k, state in enumerate(states[1:]):
            time_us, speed = int(imu.time_us[k]) + self._waited_us, 0.0 if stands else state.speed_mps
            accel = np.array([0.0, 0.0, GRAVITY_MPS2]) if stands else imu.accel_mps2[k]
            found.append(ImuSample(time_us, accel, 0.0 * accel if stands else imu.gyro_radps[k]))
            if k % 2:  # up to the end of the period
                pose, yaw_rate = state.T_world_from_ego, 0.0 if stands else state.yaw_rate_radps
                found.append(OdometrySample(time_us, pose, speed, yaw_rate, WORLD_FRAME))
                found.append(SteeringSample(time_us, state.steering_rad(world.params)))
        return found
