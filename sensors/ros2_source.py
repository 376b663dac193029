"""ROS 2 messages to clips and back: pure functions and a synchroniser. Nothing here imports rclpy: a message is
anything with the fields of its type (sensor_msgs/CompressedImage, CameraInfo, Imu; nav_msgs/Odometry).

Images are raw (not rectified) and come with the K and D of their CameraInfo; where the camera sits comes from a
calibration file. `base_link` is the ego frame: centre of the rear axle on the ground. Odometry's twist is in its child
frame, as REP-105 has it.

The synchroniser follows `sensors.nuscenes_source`: the newest step is a set of captures around one of the reference
camera, earlier steps lie STRIDE_US apart. What did not come, came too late or cannot be placed is masked: zeros,
image_mask False, the scheduled time. Nothing is extrapolated; the clip's instant is that of the latest odometry.
"""

import json
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sensors import frames
from sensors.camera import Camera
from sensors.clip import Clip, VehicleState
from sensors.errors import InputError
from sensors.imu import ImuWindow
from sensors.nuscenes_source import picture

STRIDE_US = 500_000  # between steps, as between the keyframes of nuScenes
OFF_STRIDE_US = STRIDE_US // 4  # how far a step may be off it; the keyframes of nuScenes lie 0.4 to 0.6 s apart
LARGEST_SEC = 2**31 - 1  # builtin_interfaces/Time holds seconds in an int32
IMAGES, SAMPLES = 128, 4096  # kept of one stream at most, whatever their stamps say
NO_CAMERA = np.full((3, 3), np.nan)


# Messages to arrays ------------------------------------------------------------------------------


def time_us_from_stamp(stamp, where: object = "message") -> int:
    """Microseconds since the epoch of a builtin_interfaces/Time; nanoseconds are cut off, so order is kept.

    A zero stamp is an InputError: the driver of that sensor does not stamp its messages.
    """
    if not (0 <= stamp.sec <= LARGEST_SEC and 0 <= stamp.nanosec < 1_000_000_000) or not (stamp.sec or stamp.nanosec):
        raise InputError(where, "header.stamp", f"{stamp.sec} s {stamp.nanosec} ns", "a time after 0 s")
    return stamp.sec * 1_000_000 + stamp.nanosec // 1000


def stamp_from_time_us(time_us: int) -> tuple[int, int]:
    """(sec, nanosec) of a builtin_interfaces/Time; `time_us_from_stamp` gives back exactly `time_us`."""
    sec, micro = divmod(int(time_us), 1_000_000)
    if not 0 <= sec <= LARGEST_SEC:
        raise InputError("stamp", "time_us", time_us, f"0 to {LARGEST_SEC} s, what an int32 of seconds holds")
    return sec, micro * 1000


def image_from_compressed(message, camera: Camera, size: tuple[int, int] | None = None) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a CompressedImage that holds a whole JPEG of the camera's size, else InputError.

    size: (width, height) to resize it to, None: none.

    `format` is "jpeg" or, as image_transport writes it, "rgb8; jpeg compressed bgr8"; the JPEG itself says what its
    colours are, and the orientation tag is ignored, since the calibration speaks of the stored pixels.
    """
    where = f"image of {camera.name}"
    codec = message.format.rpartition(";")[2].split()[:1]
    if codec not in (["jpeg"], ["jpg"]):
        raise InputError(where, "format", repr(message.format), "jpeg", "Set the camera driver's image format to jpeg.")
    return picture(bytes(message.data), where, camera, size)


def camera_from_info(info, name: str, T_ego_from_cam: np.ndarray) -> Camera:
    """The camera that a CameraInfo describes, at its place on the car; R and P (rectification) are not used.

    plumb_bob with 0, 4 or 5 coefficients is none (all zero) or brown_conrady, equidistant with 4 is fisheye. Another
    model, binning, a region of interest or an empty K is an InputError.
    """
    where, roi = f"CameraInfo of {name}", info.roi
    window = (roi.x_offset, roi.y_offset, roi.width, roi.height)
    if window not in ((0, 0, 0, 0), (0, 0, info.width, info.height)) or max(info.binning_x, info.binning_y) > 1:
        came = f"roi {window}, binning {info.binning_x} x {info.binning_y}"
        raise InputError(where, "roi, binning", came, "the whole image at full resolution")
    model, D = info.distortion_model, tuple(float(d) for d in info.d)
    if not np.isfinite(D).all():
        raise InputError(where, "d", D, "finite numbers")
    if (model == "plumb_bob" and len(D) in (0, 4, 5)) or (model == "" and not D):
        distortion, coefficients = ("brown_conrady", (*D, 0.0)[:5]) if any(D) else ("none", ())
    elif model == "equidistant" and len(D) == 4:
        distortion, coefficients = "fisheye", D
    else:
        came = f"{model!r} with {len(D)} coefficients"
        raise InputError(where, "distortion_model, d", came, "plumb_bob with 0, 4 or 5 or equidistant with 4")
    K = np.array(info.k, np.float64)
    K = K.reshape(3, 3) if K.shape == (9,) else NO_CAMERA
    return Camera(name, info.width, info.height, K, T_ego_from_cam, distortion, coefficients).validate("CameraInfo of")


def info_fields(camera: Camera) -> dict:
    """width, height, k, d, distortion_model, r and p of the CameraInfo from which `camera_from_info` makes `camera`."""
    fisheye = camera.distortion == "fisheye"
    return {
        "width": camera.width,
        "height": camera.height,
        "k": camera.K.ravel().tolist(),
        "d": list(camera.coefficients) if camera.coefficients else [0.0] * 5,
        "distortion_model": "equidistant" if fisheye else "plumb_bob",
        "r": np.eye(3).ravel().tolist(),
        "p": np.pad(camera.K, ((0, 0), (0, 1))).ravel().tolist(),
    }


def imu_from_message(message, R_ego_from_imu: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """(time_us, accel_mps2 [3], gyro_radps [3]) in ego axes; gravity stays in, as REP-145 and `sensors.imu` have it."""
    time_us = time_us_from_stamp(message.header.stamp, "imu")
    values = []
    for field in ("linear_acceleration", "angular_velocity"):
        vector, covariance = getattr(message, field), getattr(message, f"{field}_covariance")
        value = np.array([vector.x, vector.y, vector.z], np.float64)
        if covariance[0] == -1 or not np.isfinite(value).all():
            came = "not measured (covariance -1)" if covariance[0] == -1 else value
            raise InputError("imu", field, came, "three finite numbers")
        values.append(R_ego_from_imu @ value)
    return time_us, *values


@dataclass(frozen=True)
class OdometrySample:
    """Pose [4, 4] of the ego in the frame called `frame_id`, forward speed and yaw rate, at `time_us`."""

    time_us: int
    T_world_from_ego: np.ndarray
    speed_mps: float
    yaw_rate_radps: float
    frame_id: str


def odometry_from_message(message) -> OdometrySample:
    """The pose and motion in an Odometry; a quaternion that is no rotation or a number not finite is an InputError."""
    time_us = time_us_from_stamp(message.header.stamp, "odometry")
    at, q, twist = message.pose.pose.position, message.pose.pose.orientation, message.twist.twist
    position_m = np.array([at.x, at.y, at.z], np.float64)
    motion = np.array([twist.linear.x, twist.angular.z], np.float64)
    if not np.isfinite(position_m).all() or not np.isfinite(motion).all():
        raise InputError("odometry", "pose, twist", [*position_m, *motion], "finite numbers")
    R = frames.rotation_from_quaternion(np.array([q.w, q.x, q.y, q.z]), "odometry", "orientation")
    return OdometrySample(time_us, frames.matrix(position_m, R), *motion.tolist(), message.header.frame_id)


# The calibration file ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """Where the sensors sit: optical frame and T_ego_from_cam [4, 4] by camera, and R_ego_from_imu [3, 3]."""

    frame_ids: dict[str, str]
    T_ego_from_cam: dict[str, np.ndarray]
    R_ego_from_imu: np.ndarray

    def content(self) -> dict:
        """The JSON object that `read_calibration` reads back bit for bit."""
        cameras = {
            name: {"frame_id": self.frame_ids[name], "T_ego_from_cam": T.tolist()}
            for name, T in self.T_ego_from_cam.items()
        }
        return {"cameras": cameras, "imu": {"R_ego_from_imu": self.R_ego_from_imu.tolist()}}


def read_calibration(path: Path, names: tuple[str, ...]) -> Calibration:
    """The calibration file of a car that has the cameras `names`; anything missing or not rigid is an InputError."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(path, "file", error.strerror, "a calibration file", "launch/README.md shows one.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(path, "content", f"no JSON: {error}", "a calibration file") from error
    frame_ids = {name: _entry(path, content, str, "cameras", name, "frame_id") for name in names}
    poses = {name: _entry(path, content, list, "cameras", name, "T_ego_from_cam") for name in names}
    T_ego_from_cam = {name: _rigid(path, f"cameras.{name}.T_ego_from_cam", T, 4) for name, T in poses.items()}
    R = _entry(path, content, list, "imu", "R_ego_from_imu")
    return Calibration(frame_ids, T_ego_from_cam, _rigid(path, "imu.R_ego_from_imu", R, 3))


def _entry(path: Path, content: object, kind: type, *keys: str):
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, kind):
        raise InputError(path, ".".join(keys), content, kind.__name__)
    return content


def _rigid(path: Path, field: str, rows: list, size: int) -> np.ndarray:
    try:
        T = np.array(rows, np.float64)
    except (TypeError, ValueError):
        T = np.zeros(0)
    R = T[:3, :3] if T.shape == (size, size) else np.zeros((3, 3))
    last_row = size == 3 or T.shape != (4, 4) or (T[3] == (0, 0, 0, 1)).all()
    if (
        not np.isfinite(T).all()
        or not np.allclose(R @ R.T, np.eye(3), atol=1e-6)
        or np.linalg.det(R) < 0
        or not last_row
    ):
        raise InputError(path, field, rows, f"a rigid {size}x{size} matrix, row by row")
    return T


# The synchroniser --------------------------------------------------------------------------------


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
        T_now, vehicle = latest.T_world_from_ego, VehicleState(latest.speed_mps, latest.yaw_rate_radps)
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

    def _imu_window(self, clip_us: int) -> ImuWindow:
        i, j = (bisect_right(self.imu.times_us, t) for t in (clip_us - self.imu_window_us, clip_us))
        samples = np.array(self.imu.values[i:j]).reshape(j - i, 2, 3)
        return ImuWindow(np.array(self.imu.times_us[i:j], np.int64), samples[:, 0], samples[:, 1])
