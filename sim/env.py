"""Gymnasium environments of driving: what they have in common, and the procedural course.

>>> import gymnasium
>>> import numpy as np
>>> env = gymnasium.make("sim.gym_envs:vla_drive/Course-v0", image_size=(64, 36))
>>> observation, info = env.reset(seed=7)
>>> observation["images"].shape
(6, 36, 64, 3)
>>> ahead = np.array([1.0, 0.0])  # 1 m/s2, straight on
>>> observation, reward, terminated, truncated, info = env.step(ahead)
>>> bool(0.5 < reward < 2.0), terminated, truncated  # metres in a tenth of a second
(True, False, False)
>>> env.close()

Observation, a dict; N = 6 cameras of H x W px in the order of `sim.sensing.RIG`, J IMU samples at 100 Hz since the last
observation (10, or 50 where actions are plans):

    images                uint8 [N, H, W, 3] RGB; no such key with cameras=False
    image_mask            bool [N]: False where no image has arrived (zeros then); no such key with ideal sensing
    camera_time_us        int64 [N]: capture times; each camera fires on its own within 0.1 s
    T_world_from_ego      float64 [N, 4, 4]: ego pose at each capture, metres
    T_world_from_ego_now  float64 [4, 4]
    now_us                int64 []
    imu_time_us           int64 [J]
    imu_accel_mps2        float64 [J, 3]: specific force in ego axes, gravity included
    imu_gyro_radps        float64 [J, 3]
    vehicle               float64 [3]: speed (m/s), yaw rate (rad/s), angle of the road wheels (rad)

`sensors.gym_source` makes clips of them. Actions are those of `sim.actions`; a learner that wants them in [-1, 1] takes
action_mode="normalized".
"""

import numbers
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from sensors.camera import Camera
from sensors.errors import InputError, unknown_name
from sensors.frames import wrap
from sensors.imu import ImuWindow
from sim.actions import get_action_mode
from sim.faults import Faults, Sensing, get_sensing
from sim.render_cv import Images
from sim.render_gl import get_renderer
from sim.scene import AS_IS, Moment, Otherwise, Scene, backdrop, scene_at
from sim.sensing import EXPOSURE_BEFORE_US, imu_of_motion, nuscenes_rig
from sim.vehicle import VehicleParams
from sim.views import Shown
from sim.weather import WEATHERS, Weather
from sim.world import PERIOD_US, SUBSTEPS, EgoWorld, Event, World

EVENT_PENALTY = 20.0
IMU_FIELDS = {"imu_time_us": "time_us", "imu_accel_mps2": "accel_mps2", "imu_gyro_radps": "gyro_radps"}
START_OPTIONS = {
    "initial_lateral_m": "lateral_m",
    "initial_heading_rad": "heading_rad",
    "initial_speed_mps": "speed_mps",
}
MOSAIC = (("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"), ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"))


class CameraEnv(gymnasium.Env):
    """What all driving environments share: a world with an ego, six cameras and an IMU, observations and pictures.

    image_size    (width, height) of each camera, px
    cameras       False: observations without images; `capture` and `render` still show what there is to see
    renderer      a name for `sim.render_gl.get_renderer`; cv because its images do not depend on the machine's graphics
    action_mode, bins   see `sim.actions`
    sensing       how far the sensors are from ideal: a name in `sim.faults.SENSING` or a `Sensing`
    rig, exposure_before_us   the cameras at that size, and how long before now each fires; nuScenes' own if not given

    A subclass makes the world, resets it, says what there is to see at an instant, what a period was worth and whether
    it was the last. `world` and `cameras` are for privileged policies and recorders; `weather` is the scenes'.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium's own convention)

    def __init__(
        self,
        world: EgoWorld,
        image_size: tuple[int, int],
        cameras: bool,
        time_limit_s: float,
        render_mode: str | None,
        renderer: str,
        action_mode: str,
        bins: Sequence[Sequence[float]] | None,
        sensing: Sensing | str,
        rig: tuple[Camera, ...] | None = None,
        exposure_before_us: np.ndarray = EXPOSURE_BEFORE_US,
    ):
        name = type(self).__name__
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise InputError(name, "render_mode", render_mode, "None or rgb_array")
        if not time_limit_s > 0:
            raise InputError(name, "time_limit_s", time_limit_s, "a time above 0 s")
        if np.shape(image_size) != (2,) or not all(isinstance(v, (int, np.integer)) and v > 0 for v in image_size):
            raise InputError(name, "image_size", image_size, "(width, height) in px")
        world.params.validate(f"{name} vehicle")
        self.render_mode, self.time_limit_s, self.with_images = render_mode, time_limit_s, cameras
        self.cameras, self.world, self.weather = rig or nuscenes_rig(*image_size), world, Weather()
        self._exposure_before_us = exposure_before_us
        self._mode = get_action_mode(action_mode, world.params, bins)
        self.sensing = get_sensing(sensing)
        self._faults = None if self.sensing == Sensing() else Faults(self.sensing, exposure_before_us)
        self._renderer = get_renderer(renderer, self.cameras) if cameras or render_mode else None
        self._running = False
        self._read: deque[ImuWindow] = deque(maxlen=self._mode.periods)
        self.action_space = self._mode.space
        samples = SUBSTEPS * self._mode.periods
        self.observation_space = _observation_space(len(self.cameras), image_size, samples, cameras, self._faults)

    def _scene(self, time_us: int) -> Scene:
        raise NotImplementedError

    def _worth(self, events: tuple[Event, ...]) -> float:
        """The reward of the control period just driven, in which these events began."""
        raise NotImplementedError

    def _over(self, events: tuple[Event, ...]) -> tuple[bool, bool]:
        """Whether the period just driven was the last: (terminated, truncated for another reason than the time)."""
        raise NotImplementedError

    def _info(self, events: tuple[Event, ...]) -> dict[str, Any]:
        raise NotImplementedError

    def _begin(self, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What `reset` returns, once the world is reset. Before the start the ego has driven steadily."""
        self._steps, self._running = 0, True
        if self._faults:
            self._faults.reset(seed)
        steady = imu_of_motion(self.world.track_time_us, self.world.track)
        for back in range(self._mode.periods - 1, 0, -1):
            earlier = replace(steady, time_us=steady.time_us - back * PERIOD_US)
            self._read.append(self._faults.imu(earlier) if self._faults else earlier)
        self._sense(steady)
        return self._observe(), self._info(())

    def step(self, action):
        """One action; gymnasium's five results. An error after the episode's end and before reset."""
        if not self._running:
            raise gymnasium.error.ResetNeeded("the episode has ended or not begun: call reset() before step()")
        controls = self._mode.take(action, self.world, f"{type(self).__name__}.step")
        events, reward = (), 0.0
        for _ in range(self._mode.periods):
            begun = self.world.step(*controls())
            self._steps += 1
            events += tuple(begun)
            reward += self._worth(begun)
            self._sense(imu_of_motion(self.world.track_time_us, self.world.track))
            terminated, truncated = self._over(begun)
            truncated = not terminated and (truncated or self._steps * PERIOD_US * 1e-6 >= self.time_limit_s)
            if terminated or truncated:
                self._running = False
                break
        return self._observe(), float(reward), terminated, truncated, self._info(events)

    def render(self) -> np.ndarray | None:
        """The six images as uint8 [2 H, 3 W, 3]: front left, front, front right over back left, back, back right."""
        if self.render_mode is None:
            return None
        if not hasattr(self, "_backdrop"):
            raise gymnasium.error.ResetNeeded("nothing to render yet: call reset() before render()")
        images = dict(zip([c.name for c in self.cameras], self.capture().rgb, strict=True))
        return np.concatenate([np.concatenate([images[name] for name in row], axis=1) for row in MOSAIC])

    def capture(self, otherwise: Otherwise = AS_IS) -> Images:
        """Colour, depth, semantic and instance of the images that are there now; colour is what an observation has.

        otherwise: what is drawn otherwise than it is, so that one instant can be seen as it is and as it might be.
        """
        moment = self.moment().drawn(otherwise)
        images = self._renderer.render(moment.scenes, moment.T_world_from_ego)
        return replace(images, rgb=self._exposed(otherwise)) if self._faults else images

    @property
    def shown(self) -> tuple[Shown, ...]:
        """How the latest images of the N cameras came about; () where everything is drawn, since there is no record."""
        return ()

    def moment(self) -> Moment:
        """What there is to see now, to be drawn then or later; of faulty sensing the middle of the exposures."""
        if self._renderer is None:
            raise InputError(type(self).__name__, "cameras", False, "True, to see anything")
        if self._faults:
            middle = self._faults.shots.samples_us.shape[1] // 2
            return Moment(tuple(self._faults.scenes(middle, self._scene)), self._faults.shots.samples_T[:, middle])
        times_us = self.world.time_us - self._exposure_before_us
        return Moment(tuple(self._scenes(times_us)), self.world.poses_of_ego(times_us))

    def draw(self, moment: Moment) -> np.ndarray:
        """The images uint8 [N, H, W, 3] of a moment of this environment, as ideal sensors see it."""
        return self._renderer.render_rgb(moment.scenes, moment.T_world_from_ego)

    def _scenes(self, times_us: np.ndarray) -> list[Scene]:
        return [self._scene(int(time_us)) for time_us in times_us]

    def _exposed(self, otherwise: Otherwise = AS_IS) -> np.ndarray:
        def render(scenes: Sequence[Scene], T_world_from_ego: np.ndarray) -> np.ndarray:
            return self._renderer.render_rgb([otherwise.of(scene) for scene in scenes], T_world_from_ego)

        return self._faults.expose(render, self._scene, self.world.time_us)

    def _sense(self, imu: ImuWindow) -> None:
        """The sensors go on by one control period."""
        if self._faults:
            self._faults.advance(self.world, self._scene if self._renderer else None)
            imu = self._faults.imu(imu)
        self._read.append(imu)

    def _observe(self) -> dict[str, np.ndarray]:
        world, ego = self.world, self.world.ego
        now = np.array([ego.speed_mps, ego.yaw_rate_radps, ego.steering_rad(world.params)])
        observation = {"now_us": np.array(world.time_us, np.int64), "vehicle": now}
        for name, of in IMU_FIELDS.items():
            parts = [getattr(window, of) for window in self._read]
            observation[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self._faults:
            shots = self._faults.shots
            observation["camera_time_us"] = shots.time_us.copy()
            observation["image_mask"] = shots.arrives.copy()
            observation["T_world_from_ego"] = self._faults.localised(shots.T_world_from_ego)
            observation["T_world_from_ego_now"] = self._faults.localised(ego.T_world_from_ego)
            if self.with_images:
                observation["images"] = self._exposed()
            return observation
        times_us = world.time_us - self._exposure_before_us
        poses = world.poses_of_ego(times_us)
        observation |= {
            "camera_time_us": times_us,
            "T_world_from_ego": poses,
            "T_world_from_ego_now": ego.T_world_from_ego,
        }
        if self.with_images:
            observation["images"] = self._renderer.render_rgb(self._scenes(times_us), poses)
        return observation


class CourseEnv(CameraEnv):
    """Follow the right lane of a closed two-lane road among other vehicles, 10 control periods a second.

    observation  see the module's docstring, and action see `sim.actions`
    reward       metres advanced along the lane in this step, less 0.1 a period for each metre the footprint is beyond
                 its lane's edges, less 20 for a collision or for leaving the road
    terminated   at a collision, or when a part of the footprint leaves road and shoulder
    truncated    at time_limit_s
    reset        a seed decides the episode, bit for bit; options displace the start: initial_lateral_m,
                 initial_heading_rad, initial_speed_mps; or set the weather, a name in sim.weather.WEATHERS or a Weather
    info         world_seed, time_s, progress_m; lateral_m, heading_error_rad, departure_m, wrong_way of the ego in its
                 lane; collision, off_road in this step
    """

    world: World

    def __init__(
        self,
        image_size: tuple[int, int] = (160, 96),
        cameras: bool = True,
        time_limit_s: float = 60.0,
        render_mode: str | None = None,
        renderer: str = "cv",
        action_mode: str = "control",
        bins: Sequence[Sequence[float]] | None = None,
        sensing: Sensing | str = "ideal",
        vehicle: VehicleParams | None = None,
    ):
        world = World(vehicle)
        super().__init__(world, image_size, cameras, time_limit_s, render_mode, renderer, action_mode, bins, sensing)

    def _scene(self, time_us: int) -> Scene:
        return scene_at(self.world, self._backdrop, time_us, self.weather)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """(observation, info); see the class. Without a seed the generator of the last one draws the episode."""
        super().reset(seed=seed)
        options = checked_options("CourseEnv.reset", options, (*START_OPTIONS, "weather"))
        self.weather = weather_of(options.pop("weather", "clear"))
        world_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self.world.reset(world_seed, **{START_OPTIONS[name]: float(value) for name, value in options.items()})
        self._backdrop = backdrop(self.world.road, world_seed) if self._renderer else None
        self._progress_m, self._at_s_m = 0.0, self.world.lane_state().s_m
        return self._begin(world_seed)

    def _worth(self, events: tuple[Event, ...]) -> float:
        lane, length = self.world.lane_state(), self.world.ego_lane.line.length_m
        # The nearer way round the loop, so that driving backwards counts as such.
        advanced = float(wrap((lane.s_m - self._at_s_m) * 2 * np.pi / length)) * length / (2 * np.pi)
        self._at_s_m = lane.s_m
        self._progress_m += advanced
        return advanced - 0.1 * lane.departure_m - EVENT_PENALTY * bool(events)

    def _over(self, events: tuple[Event, ...]) -> tuple[bool, bool]:
        return bool(events), False

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


def checked_options(where: str, options: dict[str, Any] | None, known: Sequence[str]) -> dict[str, Any]:
    """A copy of the options of a reset; an unknown one, or what should be a number and is not, is an InputError."""
    for name, value in (options or {}).items():
        if name not in known:
            raise unknown_name(where, "options", name, known)
        if name.startswith("initial_") and not isinstance(value, numbers.Real):
            raise InputError(where, name, value, "a number")
    return dict(options or {})


def weather_of(given: Weather | str) -> Weather:
    """The weather of this name, or what was given, validated."""
    if not isinstance(given, str):
        return given.validate()
    if given not in WEATHERS:
        raise unknown_name("environment", "weather", given, WEATHERS)
    return WEATHERS[given]


def _observation_space(
    count: int, image_size: tuple[int, int], samples: int, images: bool, faults: Faults | None
) -> spaces.Dict:
    def box(limit, shape, dtype=np.float64):
        return spaces.Box(0 if dtype == np.int64 else -limit, limit, shape, dtype)

    far, late = 1e6, 2**62
    members = {
        "camera_time_us": box(late, (count,), np.int64),
        "T_world_from_ego": box(far, (count, 4, 4)),
        "T_world_from_ego_now": box(far, (4, 4)),
        "now_us": box(late, (), np.int64),
        "imu_time_us": box(late, (samples,), np.int64),
        "imu_accel_mps2": box(1e3, (samples, 3)),
        "imu_gyro_radps": box(1e2, (samples, 3)),
        "vehicle": box(1e3, (3,)),
    }
    if faults:
        members["image_mask"] = spaces.Box(0, 1, (count,), np.bool_)
    if images:
        width, height = image_size
        members["images"] = spaces.Box(0, 255, (count, height, width, 3), np.uint8)
    return spaces.Dict(members)
