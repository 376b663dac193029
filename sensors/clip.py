"""The datum: `Clip` is what the car perceives, `Future` what only training and scoring see.

Letters: T time steps (oldest first), N cameras, H W image, J IMU samples, K future instants, B boxes.

             step 0                step T-1
    CAM 0    [image, time, pose]   [image, time, pose]    cameras fire at their own instants: time_us[t, n]
    ...                                                   differs within a step, and so does the ego pose
    CAM N-1  [image, time, pose]   [image, time, pose]  <- now_us: the instant the clip speaks of; nothing is later
    IMU      . . . . . . . . . . . . . . . . . . . .
"""

from dataclasses import dataclass, field, replace

import numpy as np

from sensors.camera import Camera
from sensors.errors import InputError
from sensors.imu import ImuWindow

ROUTE_COMMANDS = ("follow", "left", "right", "straight", "lane_left", "lane_right")


@dataclass(frozen=True)
class VehicleState:
    """What the car's own bus says at `now`; NaN where the source has no such signal.

    speed_mps      along ego x, negative in reverse
    yaw_rate_radps about ego z, positive to the left
    steering_rad   angle of the road wheels (not of the steering wheel), positive to the left
    """

    speed_mps: float = float("nan")
    yaw_rate_radps: float = float("nan")
    steering_rad: float = float("nan")


FOVEA = "_FOVEA"  # ends the name of the camera that `Clip.with_fovea` adds
OF_CAMERA = ("image_mask", "time_us", "T_world_from_ego")  # fields of Clip with a column a camera, but for the images


@dataclass(frozen=True)
class Clip:
    """Six-camera video with pose and time, IMU, vehicle state, command and instruction, up to `now_us`.

    now_us                int64          the instant of the clip; every time stamp in it is <= now_us
    T_world_from_ego_now  float64 [4, 4] ego pose at now_us
    cameras               N cameras, all of size W x H
    images                uint8 [T, N, H, W, 3] RGB; zeros where image_mask is False
    image_mask            bool [T, N]    False: this camera delivered nothing at this step
    time_us               int64 [T, N]   capture time; also set where masked (the scheduled time)
    T_world_from_ego      float64 [T, N, 4, 4] ego pose at each capture
    imu                   ImuWindow      up to now_us, at its own rate; may be empty
    vehicle               VehicleState
    command               one of ROUTE_COMMANDS
    instruction           free text, may be empty
    """

    now_us: int
    T_world_from_ego_now: np.ndarray
    cameras: tuple[Camera, ...]
    images: np.ndarray
    image_mask: np.ndarray
    time_us: np.ndarray
    T_world_from_ego: np.ndarray
    imu: ImuWindow = field(default_factory=ImuWindow.empty)
    vehicle: VehicleState = field(default_factory=VehicleState)
    command: str = "follow"
    instruction: str = ""

    @property
    def steps(self) -> int:
        return self.time_us.shape[0]

    def validate(self, where: object = "clip") -> "Clip":
        """Self, or an InputError that names the first bad field."""
        T, N = self.steps, len(self.cameras)
        width, height = (self.cameras[0].width, self.cameras[0].height) if N else (0, 0)
        for name, shape, dtype in (
            ("images", (T, N, height, width, 3), np.uint8),
            ("image_mask", (T, N), np.bool_),
            ("time_us", (T, N), np.int64),
            ("T_world_from_ego", (T, N, 4, 4), np.float64),
            ("T_world_from_ego_now", (4, 4), np.float64),
        ):
            value = getattr(self, name)
            if value.shape != shape or value.dtype != dtype:
                raise InputError(where, name, f"{value.dtype} {value.shape}", f"{np.dtype(dtype)} {shape}")
        if not T or not N:
            raise InputError(where, "time_us", f"T = {T}, N = {N}", "at least one step and one camera")
        for camera in self.cameras:
            camera.validate(where)
            if (camera.width, camera.height) != (width, height):
                came = f"{camera.name} {camera.width} x {camera.height}"
                raise InputError(where, "cameras", came, f"{width} x {height} like {self.cameras[0].name}")
        if len({camera.name for camera in self.cameras}) != N:
            raise InputError(where, "cameras", [c.name for c in self.cameras], "different names")
        for name in ("T_world_from_ego", "T_world_from_ego_now"):
            if not np.isfinite(getattr(self, name)).all():
                raise InputError(where, name, "NaN or infinity", "finite poses")
        if (self.time_us > self.now_us).any():
            raise InputError(where, "time_us", f"{self.time_us.max()} us", f"nothing later than now, {self.now_us} us")
        back = np.argwhere(np.diff(self.time_us, axis=0) <= 0)
        if len(back):
            t, n = back[0]
            came = f"{self.time_us[t + 1, n]} us after {self.time_us[t, n]} us"
            raise InputError(where, f"time_us[{t + 1}] of {self.cameras[n].name}", came, "increasing time")
        self.imu.validate(f"{where} imu")
        if len(self.imu) and self.imu.time_us[-1] > self.now_us:
            raise InputError(where, "imu.time_us", self.imu.time_us[-1], f"nothing later than now, {self.now_us} us")
        if self.command not in ROUTE_COMMANDS:
            raise InputError(where, "command", self.command, f"one of {', '.join(ROUTE_COMMANDS)}")
        return self

    def last(self, steps: int) -> "Clip":
        """The clip of the newest `steps` steps only; asking for more than there are is an InputError."""
        if not 1 <= steps <= self.steps:
            raise InputError("clip", "steps", steps, f"1 to {self.steps}")
        names = ("images", "image_mask", "time_us", "T_world_from_ego")
        return replace(self, **{name: getattr(self, name)[self.steps - steps :] for name in names})

    def resize(self, width: int, height: int) -> "Clip":
        """The clip with images of another size, and the cameras that would have taken them."""
        if all((camera.width, camera.height) == (width, height) for camera in self.cameras):
            return self
        images = np.zeros((*self.images.shape[:2], height, width, 3), np.uint8)
        for t, n in np.argwhere(self.image_mask):
            images[t, n] = self.cameras[n].resize(width, height, self.images[t, n])[0]
        return replace(self, cameras=tuple(c.resize(width, height)[1] for c in self.cameras), images=images)

    def with_fovea(self, width: int, height: int) -> "Clip":
        """The clip resized, and the middle of what the first camera sees at twice the scale as one more camera.

        A car far ahead or the lamp of a traffic light is a pixel of a small image; this one doubles them where they
        matter, from the pixels that the camera has.
        """
        first, (W, H) = self.cameras[0], (self.cameras[0].width, self.cameras[0].height)
        window = (W // 4, H // 4, W - 2 * (W // 4), H - 2 * (H // 4))
        camera = replace(first.crop(*window)[1].resize(width, height)[1], name=f"{first.name}{FOVEA}")
        images = np.zeros((self.steps, 1, height, width, 3), np.uint8)
        for t in np.flatnonzero(self.image_mask[:, 0]):
            image, cropped = first.crop(*window, self.images[t, 0])
            images[t, 0] = cropped.resize(width, height, image)[0]
        small = self.resize(width, height)
        added = {name: np.concatenate([getattr(self, name), getattr(self, name)[:, :1]], axis=1) for name in OF_CAMERA}
        images = np.concatenate([small.images, images], axis=1)
        return replace(small, cameras=(*small.cameras, camera), images=images, **added)

    def with_masked(self, mask: np.ndarray) -> "Clip":
        """The clip with the images where bool [T, N] `mask` is True taken away (zeros, image_mask False)."""
        images = self.images.copy()
        images[mask] = 0
        return replace(self, images=images, image_mask=self.image_mask & ~mask)


@dataclass(frozen=True)
class Boxes:
    """B oriented boxes in the world frame.

    ids              tuple of B strings, the same for one object over time
    categories       tuple of B strings, nuScenes names (vehicle.car, human.pedestrian.adult, ...)
    T_world_from_box float64 [B, 4, 4]   x along the length
    size_lwh_m       float64 [B, 3]      length, width, height
    velocity_in_world_mps float64 [B, 2] NaN where unknown
    """

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    T_world_from_box: np.ndarray
    size_lwh_m: np.ndarray
    velocity_in_world_mps: np.ndarray

    @classmethod
    def empty(cls) -> "Boxes":
        return cls((), (), np.zeros((0, 4, 4)), np.zeros((0, 3)), np.zeros((0, 2)))

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: np.ndarray) -> "Boxes":
        """The boxes at these indices [B']."""
        ids, categories = (tuple(names[k] for k in index) for names in (self.ids, self.categories))
        arrays = (self.T_world_from_box, self.size_lwh_m, self.velocity_in_world_mps)
        return Boxes(ids, categories, *(each[index] for each in arrays))

    def later(self, by_s: float) -> "Boxes":
        """The boxes so much later, or earlier, if they keep their velocity."""
        T = self.T_world_from_box.copy()
        T[:, :2, 3] += by_s * self.velocity_in_world_mps
        return replace(self, T_world_from_box=T)


@dataclass(frozen=True)
class Future:
    """Privileged data that belongs to a clip but is never part of it.

    time_us           int64 [K]       instants after now, increasing; K may be 0 at the end of a log
    T_world_from_ego  float64 [K, 4, 4]
    boxes_now         Boxes           annotated objects at now
    """

    time_us: np.ndarray
    T_world_from_ego: np.ndarray
    boxes_now: Boxes = field(default_factory=Boxes.empty)
