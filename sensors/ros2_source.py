"""Streams of ROS 2 samples to clips: a synchroniser that knows nothing of ROS.

It follows `sensors.nuscenes_source`: the newest step is a set of captures around one of the reference camera, earlier
steps lie STRIDE_US apart. What did not come, came too late or cannot be placed is masked: zeros, image_mask False, the
scheduled time. Nothing is extrapolated; the clip's instant is that of the latest odometry.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

from sensors import frames
from sensors.camera import Camera
from sensors.clip import Clip, VehicleState
from sensors.errors import InputError
from sensors.imu import ImuWindow
from sensors.nuscenes_can import STALE_US

STRIDE_US = 500_000  # between steps, as between the keyframes of nuScenes
OFF_STRIDE_US = STRIDE_US // 4  # how far a step may be off it; the keyframes of nuScenes lie 0.4 to 0.6 s apart
IMAGES, SAMPLES = 128, 4096  # kept of one stream at most, whatever their stamps say


@dataclass(frozen=True)
class Limits:
    """When an input is too old, too far off or too far ahead to be used.

    tolerance_us     pictures of one step lie this near to the reference camera's; below OFF_STRIDE_US, so that no
                     picture belongs to two steps
    camera_age_us    of a picture in the newest step; also how long a camera may be silent
    odometry_age_us  of the latest pose; also the longest gap between two poses that is bridged
    imu_age_us       of the latest IMU sample; without one the window is empty
    ahead_us         how far a stamp may lie ahead of the clock (clocks that are not quite in step)
    min_cameras      cameras that the newest step must show
    """

    tolerance_us: int = 60_000
    camera_age_us: int = 250_000
    odometry_age_us: int = 200_000
    imu_age_us: int = 200_000
    ahead_us: int = 50_000
    min_cameras: int = 5

    def validate(self, cameras: int) -> "Limits":
        for name in ("camera_age_us", "odometry_age_us", "imu_age_us", "ahead_us"):
            if not 0 < getattr(self, name) <= 10_000_000:
                raise InputError("limits", name, getattr(self, name), "1 to 10,000,000 us")
        if not 0 < self.tolerance_us < OFF_STRIDE_US:
            raise InputError("limits", "tolerance_us", self.tolerance_us, f"1 to {OFF_STRIDE_US - 1} us")
        if not 1 <= self.min_cameras <= cameras:
            raise InputError("limits", "min_cameras", self.min_cameras, f"1 to {cameras}")
        return self


class StaleInput(RuntimeError):
    """No clip may be made now; the message says of which inputs."""


class Stream:
    """Samples of one topic by stamp. Stamps that repeat, go back or lie ahead of the clock are refused and counted.

    Two clocks: `now_us` is what stamps are compared with; `steady_us` never jumps or stops, so that a sensor and a
    clock that stop together (a paused simulation, a dead time server) are noticed as well.
    """

    def __init__(self, keep_us: int, capacity: int, ahead_us: int):
        self.keep_us, self.capacity, self.ahead_us = keep_us, capacity, ahead_us
        self.times_us: list[int] = []
        self.values: list = []
        self.accepted = self.not_increasing = self.ahead = 0
        self._received_us = 0

    def add(self, time_us: int, value, now_us: int, steady_us: int) -> bool:
        """Keep the sample if its stamp is in order; drop what is older than keep_us."""
        if time_us > now_us + self.ahead_us:
            self.ahead += 1
            return False
        if self.times_us and time_us <= self.times_us[-1]:
            self.not_increasing += 1
            return False
        self.accepted += 1
        self._received_us = steady_us
        self.times_us.append(time_us)
        self.values.append(value)
        old = max(bisect_left(self.times_us, time_us - self.keep_us), len(self.times_us) - self.capacity)
        del self.times_us[:old], self.values[:old]
        return True

    def age_us(self, now_us: int, steady_us: int) -> int | None:
        """Age of the latest sample by the clock that finds it older; None where there is none."""
        return max(now_us - self.times_us[-1], steady_us - self._received_us) if self.times_us else None

    def fresh(self, limit_us: int, now_us: int, steady_us: int) -> bool:
        age_us = self.age_us(now_us, steady_us)
        return age_us is not None and age_us <= limit_us

    def nearest(self, at_us: int, tolerance_us: int, until_us: int) -> int | None:
        """Index of the sample nearest to `at_us`, within the tolerance and not later than `until_us`."""
        end = bisect_right(self.times_us, until_us)
        k = bisect_left(self.times_us, at_us, 0, end)
        near = [i for i in (k - 1, k) if 0 <= i < end and abs(self.times_us[i] - at_us) <= tolerance_us]
        return min(near, key=lambda i: abs(self.times_us[i] - at_us), default=None)


class ClipAssembler:
    """Streams of images, IMU and odometry to clips of `steps` steps; the cameras share one size, that of the images.

    Of the captures of the reference camera that are young enough, the newest around which the most cameras have a
    picture makes the newest step. The reference is the first camera, or the next one that is alive. Not thread-safe.
    """

    def __init__(self, cameras: tuple[Camera, ...], steps: int, limits: Limits, imu_window_us: int = 1_000_000):
        self.cameras, self.steps, self.limits = cameras, steps, limits.validate(len(cameras))
        self.imu_window_us = imu_window_us
        history_us = (steps - 1) * STRIDE_US + limits.camera_age_us + 2 * OFF_STRIDE_US
        self.images = {camera.name: Stream(history_us, IMAGES, limits.ahead_us) for camera in cameras}
        self.odometry = Stream(history_us + limits.odometry_age_us, SAMPLES, limits.ahead_us)
        self.imu = Stream(imu_window_us + limits.odometry_age_us, SAMPLES, limits.ahead_us)
        self.steering = Stream(STALE_US + limits.odometry_age_us, SAMPLES, limits.ahead_us)

    def clip(self, now_us: int, steady_us: int) -> Clip:
        """The clip at the instant of the latest odometry; StaleInput where an input that it needs is too old."""
        limits, clock = self.limits, (now_us, steady_us)
        if not self.odometry.fresh(limits.odometry_age_us, *clock):
            age_us = self.odometry.age_us(*clock)
            came = "none yet" if age_us is None else f"{age_us / 1000:.0f} ms old"
            raise StaleInput(f"odometry: {came}, limit {limits.odometry_age_us / 1000:.0f} ms")
        clip_us, latest = self.odometry.times_us[-1], self.odometry.values[-1]
        instant_us, newest = self._newest_set(clip_us, *clock)
        seen = sum(found is not None for found in newest)
        if seen < limits.min_cameras:
            raise StaleInput(f"cameras: {seen} of {len(newest)} fresh, at least {limits.min_cameras} needed")
        chosen = [self._set_at(instant_us - back * STRIDE_US, clip_us) for back in range(self.steps - 1, 0, -1)]
        images, mask, time_us, T_world_from_ego = self._stack([*chosen, (instant_us, newest)])
        T_now, steering_rad = latest.T_world_from_ego, self._steering_at(clip_us, *clock)
        vehicle = VehicleState(latest.speed_mps, latest.yaw_rate_radps, steering_rad)
        imu = self._imu_window(clip_us) if self.imu.fresh(limits.imu_age_us, *clock) else ImuWindow.empty()
        return Clip(clip_us, T_now, self.cameras, images, mask, time_us, T_world_from_ego, imu, vehicle)

    def _newest_set(self, clip_us: int, now_us: int, steady_us: int) -> tuple[int, list[int | None]]:
        """(instant, index of each camera's capture or None) of the newest step."""
        limits, limit_us = self.limits, self.limits.camera_age_us
        streams = list(self.images.values())
        alive = [stream.fresh(limit_us, now_us, steady_us) for stream in streams]

        def young(stream: Stream, found: int | None) -> bool:
            return found is not None and now_us - stream.times_us[found] <= limit_us

        best: tuple[int, list[int | None]] = (clip_us, [None] * len(streams))
        for reference in (stream for stream, lives in zip(streams, alive, strict=True) if lives):
            for instant_us in reversed(reference.times_us):
                if now_us - instant_us > limit_us:
                    break
                if self._pose_at(instant_us) is None:  # later than the clip, or before the first pose
                    continue
                found = [self._find(stream, instant_us, clip_us, limits.tolerance_us) for stream in streams]
                found = [k if a and young(s, k) else None for s, a, k in zip(streams, alive, found, strict=True)]
                if found.count(None) < best[1].count(None):
                    best = instant_us, found
            if best[1].count(None) < len(streams):
                break
        return best

    def _set_at(self, target_us: int, clip_us: int) -> tuple[int, list[int | None]]:
        """The same for an earlier step: around the reference camera's capture nearest to the target."""
        streams = list(self.images.values())
        reference = self._find(streams[0], target_us, clip_us, OFF_STRIDE_US)
        instant_us = target_us if reference is None else streams[0].times_us[reference]
        return instant_us, [self._find(stream, instant_us, clip_us, self.limits.tolerance_us) for stream in streams]

    def _find(self, stream: Stream, instant_us: int, clip_us: int, tolerance_us: int) -> int | None:
        """Index of the capture nearest to the instant, if it is near enough and its pose is known."""
        found = stream.nearest(instant_us, tolerance_us, clip_us)
        return None if found is None or self._pose_at(stream.times_us[found]) is None else found

    def _pose_at(self, time_us: int) -> np.ndarray | None:
        """Ego pose [4, 4] interpolated between two samples; None outside the track or in a gap of it."""
        times_us = self.odometry.times_us
        k = bisect_right(times_us, time_us) - 1
        if k >= 0 and times_us[k] == time_us:
            return self.odometry.values[k].T_world_from_ego
        if k < 0 or k + 1 == len(times_us) or times_us[k + 1] - times_us[k] > self.limits.odometry_age_us:
            return None
        ends = np.stack([sample.T_world_from_ego for sample in self.odometry.values[k : k + 2]])
        return frames.interpolate_at(np.array(times_us[k : k + 2]), ends, time_us)

    def _stack(self, chosen: list[tuple[int, list[int | None]]]) -> tuple[np.ndarray, ...]:
        """(images, image_mask, time_us, T_world_from_ego) of the steps. Where no pose is known the next step's is
        repeated, as before the start of a recorded scene."""
        T, N, (width, height) = self.steps, len(self.cameras), (self.cameras[0].width, self.cameras[0].height)
        images, mask = np.zeros((T, N, height, width, 3), np.uint8), np.zeros((T, N), bool)
        time_us, poses = np.zeros((T, N), np.int64), np.zeros((T, N, 4, 4))
        for t in range(T - 1, -1, -1):
            instant_us, found = chosen[t]
            for n, (stream, k) in enumerate(zip(self.images.values(), found, strict=True)):
                if k is not None:
                    images[t, n], mask[t, n] = stream.values[k], True
                time_us[t, n] = instant_us if k is None else stream.times_us[k]
                pose = self._pose_at(time_us[t, n])
                poses[t, n] = poses[t + 1, n] if pose is None else pose
        return images, mask, time_us, poses

    def _steering_at(self, clip_us: int, now_us: int, steady_us: int) -> float:
        """The latest report at or before the clip, NaN if it is older than a bus signal may be."""
        k = bisect_right(self.steering.times_us, clip_us) - 1
        fresh = k >= 0 and clip_us - self.steering.times_us[k] <= STALE_US
        return self.steering.values[k] if fresh and self.steering.fresh(STALE_US, now_us, steady_us) else float("nan")

    def _imu_window(self, clip_us: int) -> ImuWindow:
        i, j = (bisect_right(self.imu.times_us, t) for t in (clip_us - self.imu_window_us, clip_us))
        samples = np.array(self.imu.values[i:j]).reshape(j - i, 2, 3)
        return ImuWindow(np.array(self.imu.times_us[i:j], np.int64), samples[:, 0], samples[:, 1])
