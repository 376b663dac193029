"""Gymnasium environment: drive the procedural course with six cameras and an IMU.

`register()` in each process that makes it, then `gymnasium.make(ENV_ID)`.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from sensors.errors import InputError
from sensors.frames import wrap
from sim.render_gl import get_renderer
from sim.scene import Scene, backdrop, scene_at
from sim.sensing import EXPOSURE_BEFORE_US, imu_of_motion, nuscenes_rig
from sim.vehicle import VehicleParams
from sim.weather import Weather
from sim.world import PERIOD_US, SUBSTEPS, EgoWorld, Event, World

ENV_ID = "vla_drive/Course-v0"
EVENT_PENALTY = 20.0
OPTIONS = {
    "initial_lateral_m": "lateral_m",
    "initial_heading_rad": "heading_rad",
    "initial_speed_mps": "speed_mps",
}
MOSAIC = (("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"), ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"))


def register() -> None:
    """Make `gymnasium.make("vla_drive/Course-v0")` work in this process; calling it again does nothing."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(id=ENV_ID, entry_point="sim.env:CourseEnv")


class CameraEnv(gymnasium.Env):
    """What all driving environments share: a world with an ego, six cameras and an IMU, observations and pictures.

    A subclass makes the world, says what there is to see at an instant (`_scene`), resets and steps. `world` and
    `cameras` are for privileged policies and recorders; `weather` is the scenes'. `renderer` is a name for
    `sim.render_gl.get_renderer`; cv is the default because its images do not depend on the machine's graphics.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium's own convention)

    def __init__(
        self,
        world: EgoWorld,
        image_size: tuple[int, int],
        cameras: bool,
        time_limit_s: float,
        render_mode: str | None,
        renderer: str = "cv",
    ):
        name = type(self).__name__
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise InputError(name, "render_mode", render_mode, "None or rgb_array")
        if not time_limit_s > 0:
            raise InputError(name, "time_limit_s", time_limit_s, "a time above 0 s")
        if len(image_size) != 2 or not all(isinstance(v, (int, np.integer)) and v > 0 for v in image_size):
            raise InputError(name, "image_size", image_size, "(width, height) in px")
        self.render_mode, self.time_limit_s, self.with_images = render_mode, time_limit_s, cameras
        self.cameras = nuscenes_rig(*image_size)
        self.world = world
        self._renderer = get_renderer(renderer, self.cameras) if cameras or render_mode else None
        self._running = False
        self.weather = Weather()
        limits = self.world.params
        high = np.array([limits.max_accel_mps2, limits.max_curvature_1pm])
        low = np.array([limits.min_accel_mps2, -limits.max_curvature_1pm])
        self.action_space = spaces.Box(low, high, dtype=np.float64)
        self.observation_space = _observation_space(len(self.cameras), image_size, cameras)

    def _scene(self, time_us: int) -> Scene:
        raise NotImplementedError

    def _controls(self, action) -> tuple[float, float]:
        """Acceleration and curvature of an action of the Box, or what is wrong with it."""
        name = f"{type(self).__name__}.step"
        if not self._running:
            raise gymnasium.error.ResetNeeded("the episode has ended or not begun: call reset() before step()")
        action = np.asarray(action)
        if action.shape != (2,) or action.dtype.kind not in "fiu":
            raise InputError(name, "action", f"{action.dtype} {action.shape}", "2 numbers")
        if not np.isfinite(action).all():
            raise InputError(name, "action", action.tolist(), "finite acceleration and curvature")
        return float(action[0]), float(action[1])

    def render(self) -> np.ndarray | None:
        """The six images as uint8 [2 H, 3 W, 3]: front left, front, front right over back left, back, back right."""
        if self.render_mode is None:
            return None
        if not hasattr(self, "_backdrop"):
            raise gymnasium.error.ResetNeeded("nothing to render yet: call reset() before render()")
        images = dict(zip([c.name for c in self.cameras], self.capture().rgb, strict=True))
        return np.concatenate([np.concatenate([images[name] for name in row], axis=1) for row in MOSAIC])

    def capture(self):
        """`sim.render_cv.Images` at the cameras' last exposures: colour, depth, semantic and instance."""
        if self._renderer is None:
            raise InputError(type(self).__name__, "cameras", False, "True, to see anything")
        times_us, poses = self._exposures()
        return self._renderer.render(self._scenes(times_us), poses)

    def _scenes(self, times_us: np.ndarray) -> list[Scene]:
        return [self._scene(int(time_us)) for time_us in times_us]

    def _exposures(self) -> tuple[np.ndarray, np.ndarray]:
        times_us = self.world.time_us - EXPOSURE_BEFORE_US
        return times_us, np.stack([self.world.ego_at(int(t)).T_world_from_ego for t in times_us])

    def _observe(self) -> dict[str, np.ndarray]:
        world, ego = self.world, self.world.ego
        times_us, poses = self._exposures()
        imu = imu_of_motion(world.track_time_us, world.track)
        observation = {
            "camera_time_us": times_us,
            "T_world_from_ego": poses,
            "T_world_from_ego_now": ego.T_world_from_ego,
            "now_us": np.array(world.time_us, np.int64),
            "imu_time_us": imu.time_us,
            "imu_accel_mps2": imu.accel_mps2,
            "imu_gyro_radps": imu.gyro_radps,
            "vehicle": np.array([ego.speed_mps, ego.yaw_rate_radps, ego.steering_rad(world.params)]),
        }
        if self.with_images:
            observation["images"] = self._renderer.render_rgb(self._scenes(times_us), poses)
        return observation


class CourseEnv(CameraEnv):
    """Follow the right lane of a closed two-lane road among other vehicles, 10 steps a second.

    action       float [2]: acceleration (m/s2) and path curvature (1/m, positive to the left), applied for 0.1 s within
                 the vehicle's limits; what lies beyond them is limited, NaN and other shapes are an InputError
    observation  dict; N = 6 cameras, each with its own exposure within the last 0.1 s
        images                uint8 [N, H, W, 3] RGB; no such key with cameras=False
        camera_time_us        int64 [N]
        T_world_from_ego      float64 [N, 4, 4] at the exposures
        T_world_from_ego_now  float64 [4, 4]
        now_us                int64 []
        imu_time_us           int64 [10]; imu_accel_mps2, imu_gyro_radps float64 [10, 3]: the last 0.1 s
        vehicle               float64 [3]: speed (m/s), yaw rate (rad/s), angle of the road wheels (rad)
    reward       metres advanced along the lane in this step, less 0.1 for each metre the footprint is beyond its lane's
                 edges, less 20 for a collision or for leaving the road
    terminated   at a collision, or when a part of the footprint leaves road and shoulder
    truncated    at time_limit_s
    reset        a seed decides the episode, bit for bit; options displace the start: initial_lateral_m,
                 initial_heading_rad, initial_speed_mps

    `world` and `cameras` are for privileged policies and recorders.
    """

    world: World

    def __init__(
        self,
        image_size: tuple[int, int] = (160, 96),
        cameras: bool = True,
        time_limit_s: float = 60.0,
        render_mode: str | None = None,
        renderer: str = "cv",
    ):
        super().__init__(World(VehicleParams()), image_size, cameras, time_limit_s, render_mode, renderer)

    def _scene(self, time_us: int) -> Scene:
        return scene_at(self.world, self._backdrop, time_us, self.weather)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """(observation, info); see the class. Without a seed the generator of the last one draws the episode."""
        super().reset(seed=seed)
        options = options or {}
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise InputError("CourseEnv.reset", "options", ", ".join(unknown), f"only {', '.join(OPTIONS)}")
        world_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self.world.reset(world_seed, **{OPTIONS[name]: float(value) for name, value in options.items()})
        self._backdrop = backdrop(self.world.road, world_seed) if self._renderer else None
        self._steps, self._progress_m, self._running = 0, 0.0, True
        self._at_s_m = self.world.lane_state().s_m
        return self._observe(), self._info(())

    def step(self, action):
        """One control period of 0.1 s; gymnasium's five results. An error after the episode's end and before reset."""
        events = self.world.step(*self._controls(action))
        self._steps += 1
        lane, length = self.world.lane_state(), self.world.ego_lane.line.length_m
        # The nearer way round the loop, so that driving backwards counts as such.
        advanced = float(wrap((lane.s_m - self._at_s_m) * 2 * np.pi / length)) * length / (2 * np.pi)
        self._at_s_m = lane.s_m
        self._progress_m += advanced
        terminated = bool(events)
        truncated = not terminated and self._steps * PERIOD_US * 1e-6 >= self.time_limit_s
        self._running = not (terminated or truncated)
        reward = advanced - 0.1 * lane.departure_m - EVENT_PENALTY * terminated
        return self._observe(), float(reward), terminated, truncated, self._info(events)

    def _info(self, events: tuple[Event, ...]) -> dict[str, Any]:
        lane = self.world.lane_state()
        return {
            "world_seed": self.world.seed,
            "time_s": self._steps * PERIOD_US * 1e-6,
            "progress_m": self._progress_m,
            "collision": any(e.kind == "collision" for e in events),
            "off_road": any(e.kind == "off_road" for e in events),
            "lateral_m": lane.lateral_m,
            "heading_error_rad": lane.heading_error_rad,
            "departure_m": lane.departure_m,
            "wrong_way": lane.wrong_way,
        }


def _observation_space(count: int, image_size: tuple[int, int], images: bool) -> spaces.Dict:
    def box(limit, shape, dtype=np.float64):
        return spaces.Box(0 if dtype == np.int64 else -limit, limit, shape, dtype)

    far, late = 1e6, 2**62
    members = {
        "camera_time_us": box(late, (count,), np.int64),
        "T_world_from_ego": box(far, (count, 4, 4)),
        "T_world_from_ego_now": box(far, (4, 4)),
        "now_us": box(late, (), np.int64),
        "imu_time_us": box(late, (SUBSTEPS,), np.int64),
        "imu_accel_mps2": box(1e3, (SUBSTEPS, 3)),
        "imu_gyro_radps": box(1e2, (SUBSTEPS, 3)),
        "vehicle": box(1e3, (3,)),
    }
    if images:
        width, height = image_size
        members["images"] = spaces.Box(0, 255, (count, height, width, 3), np.uint8)
    return spaces.Dict(members)
