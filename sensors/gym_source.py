"""Observations of a driving environment to clips: pure conversion, no simulator and no gymnasium.

An observation is a mapping with, for N cameras and J new IMU samples,

    images                uint8 [N, H, W, 3] RGB; absent from an environment without cameras
    image_mask            bool [N]            False: no image of this camera has arrived; absent where all have
    camera_time_us        int64 [N]           each camera's exposure, in whatever past that lies
    T_world_from_ego      float64 [N, 4, 4]   ego pose at the exposures
    T_world_from_ego_now  float64 [4, 4]
    now_us                int64 []
    imu_time_us           int64 [J];  imu_accel_mps2, imu_gyro_radps  float64 [J, 3]
    vehicle               float64 [3]         speed (m/s), yaw rate (rad/s), angle of the road wheels (rad)

Step t of a clip is the observation nearest to now - (T - 1 - t) stride, at most TOLERANCE of a stride away from it.
Where there is none (before the start of an episode, as in sensors.nuscenes_source, or a dropped frame) the step is
masked: image_mask False, the time at which the camera was due (its time now less whole strides), and the pose of the
nearest observation, which before the start is the first one. A camera whose image has not arrived is masked likewise,
with the time that the observation gives; an older image is not put in its place.
"""

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from sensors.camera import Camera
from sensors.clip import Clip, VehicleState
from sensors.errors import InputError
from sensors.imu import ImuWindow

TOLERANCE = 0.1  # of the stride
REQUIRED = {
    "camera_time_us": np.int64,
    "T_world_from_ego": np.float64,
    "T_world_from_ego_now": np.float64,
    "now_us": np.int64,
    "imu_time_us": np.int64,
    "imu_accel_mps2": np.float64,
    "imu_gyro_radps": np.float64,
    "vehicle": np.float64,
}


class ClipHistory:
    """Keeps what a clip of `steps` frames, `stride_us` apart, needs of an episode's observations.

    `append` each observation, ask for a `clip` at any of them, `reset` between episodes. Frames are copied.
    """

    def __init__(self, cameras: Sequence[Camera], steps: int, stride_us: int = 500_000, imu_window_us: int = 1_000_000):
        if steps < 1:
            raise InputError("ClipHistory", "steps", steps, "at least 1")
        if stride_us < 1:
            raise InputError("ClipHistory", "stride_us", stride_us, "a time above 0")
        self.cameras, self.steps = tuple(cameras), steps
        self.stride_us, self.imu_window_us = stride_us, imu_window_us
        self.reset()

    def reset(self) -> None:
        """Forget the episode."""
        self._frames: deque[dict[str, np.ndarray]] = deque()
        self._imu = ImuWindow.empty()

    def append(self, observation: Mapping[str, np.ndarray]) -> None:
        """Take the next observation of the episode; what is not as in the module's docstring is an InputError."""
        frame = self._checked(observation)
        now_us = int(frame["now_us"])
        if self._frames and now_us <= int(self._frames[-1]["now_us"]):
            came = f"{now_us} us after {int(self._frames[-1]['now_us'])} us"
            raise InputError("observation", "now_us", came, "increasing time", "Call reset() between episodes.")
        new = ImuWindow(frame["imu_time_us"], frame["imu_accel_mps2"], frame["imu_gyro_radps"]).validate(
            "observation imu"
        )
        for name in ("camera_time_us", "imu_time_us"):
            if (frame[name] > now_us).any():
                raise InputError("observation", name, frame[name].max(), f"nothing later than now_us, {now_us}")
        if len(self._imu):
            new = new.window(int(self._imu.time_us[-1]), now_us)
        joined = ImuWindow(*(np.concatenate([getattr(w, name) for w in (self._imu, new)]) for name in _IMU_FIELDS))
        self._imu = joined.window(now_us - self.imu_window_us, now_us)
        self._frames.append(frame)
        oldest_us = now_us - (self.steps - 1) * self.stride_us - self._tolerance_us
        while int(self._frames[0]["now_us"]) < oldest_us:
            self._frames.popleft()

    def clip(self, command: str = "follow", instruction: str = "") -> Clip:
        """The clip at the last observation."""
        if not self._frames:
            raise InputError("ClipHistory", "observations", "none", "at least one", "Call append() first.")
        T, N, now = self.steps, len(self.cameras), self._frames[-1]
        camera = self.cameras[0]
        images = np.zeros((T, N, camera.height, camera.width, 3), np.uint8)
        mask = np.zeros((T, N), bool)
        time_us = np.empty((T, N), np.int64)
        T_world_from_ego = np.empty((T, N, 4, 4))
        times_us = np.array([int(f["now_us"]) for f in self._frames], np.int64)
        for t in range(T):
            back_us = (T - 1 - t) * self.stride_us
            away_us = np.abs(times_us - (int(now["now_us"]) - back_us))
            nearest = self._frames[int(np.argmin(away_us))]
            T_world_from_ego[t] = nearest["T_world_from_ego"]
            if away_us.min() <= self._tolerance_us:
                time_us[t] = nearest["camera_time_us"]
                if "images" in nearest:
                    mask[t] = nearest.get("image_mask", True)
                    images[t][mask[t]] = nearest["images"][mask[t]]
            else:
                time_us[t] = now["camera_time_us"] - back_us
        return Clip(
            now_us=int(now["now_us"]),
            T_world_from_ego_now=now["T_world_from_ego_now"].copy(),
            cameras=self.cameras,
            images=images,
            image_mask=mask,
            time_us=time_us,
            T_world_from_ego=T_world_from_ego,
            imu=self._imu,
            vehicle=VehicleState(*(float(v) for v in now["vehicle"])),
            command=command,
            instruction=instruction,
        )

    @property
    def _tolerance_us(self) -> int:
        return int(TOLERANCE * self.stride_us)

    def _checked(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        N, camera = len(self.cameras), self.cameras[0]
        J = len(observation["imu_time_us"]) if "imu_time_us" in observation else 0
        shapes = ((N,), (N, 4, 4), (4, 4), (), (J,), (J, 3), (J, 3), (3,))
        wanted = {name: (shape, dtype) for (name, dtype), shape in zip(REQUIRED.items(), shapes, strict=True)}
        if "images" in observation:
            wanted["images"] = ((N, camera.height, camera.width, 3), np.uint8)
        if "image_mask" in observation:
            wanted["image_mask"] = ((N,), np.bool_)
        frame = {}
        for name, (shape, dtype) in wanted.items():
            if name not in observation:
                raise InputError("observation", name, "nothing", f"{np.dtype(dtype)} {shape}")
            value = np.asarray(observation[name])
            if value.shape != shape or value.dtype != dtype:
                raise InputError("observation", name, f"{value.dtype} {value.shape}", f"{np.dtype(dtype)} {shape}")
            frame[name] = value.copy()
        return frame


_IMU_FIELDS = tuple(ImuWindow.__dataclass_fields__)
