"""What real sensors do to the truth: pictures late, missing, off their time, blurred and noisy; IMU and pose in error.

`Sensing` says how bad, `Faults` does it through one episode. What cannot be had is masked, never invented.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sensors.errors import InputError, unknown_name
from sensors.frames import matrix_from_xy_yaw
from sensors.imu import FaultyImu, ImuErrors, ImuWindow
from sim.scene import Scene
from sim.sensing import EXPOSURE_BEFORE_US
from sim.world import PERIOD_US, EgoWorld

POSE_TAU_S = 10.0  # an error of localisation is forgotten in about this time
TIMING, IMU, POSE, PIXELS = range(11, 15)  # streams of random numbers of an episode, beside its seed


@dataclass(frozen=True)
class Sensing:
    """How far the sensors are from ideal. All zero is ideal.

    latency_us      a camera's image arrives this much after it was due; what is given is the newest that has arrived,
                    with its true, older capture time
    jitter_us       capture times are off by up to this much either way (uniform), within the control period
    drop_share      of the images of each camera that never arrive, on average
    drop_burst      how many are lost in a row, on average: a two-state Markov chain (Gilbert 1960) with these two
                    figures; the images before one that is lost are not shown in its place, the camera is masked
    exposure_us     the image is the mean of `exposure_samples` renderings at instants spread evenly over this time
                    around the capture time (of display values, not of light), so each costs as much as an ideal image
    read_noise      standard deviation in grey levels of 255, everywhere; shot_noise the same at white, growing with the
                    square root of brightness. Gaussian, each pixel and channel its own
    position_m, heading_rad  standard deviation of the error of localisation in x, y and yaw, a first-order Gauss-Markov
                    process with time constant POSE_TAU_S; it moves all poses of an observation alike
    imu             errors of the IMU
    """

    latency_us: int = 0
    jitter_us: int = 0
    drop_share: float = 0.0
    drop_burst: float = 1.0
    exposure_us: int = 0
    exposure_samples: int = 4
    read_noise: float = 0.0
    shot_noise: float = 0.0
    position_m: float = 0.0
    heading_rad: float = 0.0
    imu: ImuErrors = field(default_factory=ImuErrors)

    def validate(self, where: object = "sensing") -> "Sensing":
        """Self, or an InputError that names the first bad field."""
        for name, low, high in (
            ("latency_us", 0, 1_000_000),
            ("jitter_us", 0, 20_000),
            ("drop_burst", 1.0, 1e4),
            ("drop_share", 0.0, self.drop_burst / (self.drop_burst + 1)),  # at most one image between two bursts
            ("exposure_us", 0, 50_000),
            ("exposure_samples", 1, 64),
            ("read_noise", 0.0, 100.0),
            ("shot_noise", 0.0, 100.0),
            ("position_m", 0.0, 10.0),
            ("heading_rad", 0.0, 0.5),
        ):
            value = getattr(self, name)
            if not low <= value <= high or (isinstance(low, int) and value != int(value)):
                kind = "an integer" if isinstance(low, int) else "a number"
                raise InputError(where, name, value, f"{kind} in [{low:g}, {high:g}]")
        self.imu.validate(f"{where} imu")
        return self


# nuscenes: a survey-grade IMU and RTK localisation, frames recorded in time. harsh: the parts of a production car on a
# bad day. Orders of magnitude of such devices' data sheets, not a calibration of one.
SENSING = {
    "ideal": Sensing(),
    "nuscenes": Sensing(
        jitter_us=1_000,
        exposure_us=5_000,
        read_noise=1.0,
        shot_noise=2.5,
        position_m=0.02,
        heading_rad=0.0035,
        imu=ImuErrors(2.0, 0.05, 100.0, 4.0, 10.0, 0.5),
    ),
    "harsh": Sensing(
        latency_us=120_000,
        jitter_us=10_000,
        drop_share=0.05,
        drop_burst=4.0,
        exposure_us=20_000,
        read_noise=4.0,
        shot_noise=8.0,
        position_m=0.3,
        heading_rad=0.01,
        imu=ImuErrors(20.0, 1.0, 200.0, 15.0, 100.0, 5.0),
    ),
}


def get_sensing(given: Sensing | str) -> Sensing:
    """The preset of this name, or what was given, validated; an unknown name is an InputError."""
    if not isinstance(given, str):
        return given.validate()
    if given not in SENSING:
        raise unknown_name("environment", "sensing", given, SENSING)
    return SENSING[given]


@dataclass(frozen=True)
class Shots:
    """What N cameras took in one period, or what of several periods has arrived. K: samples of an exposure.

    time_us int64 [N]; T_world_from_ego [N, 4, 4] then; arrives bool [N]
    samples_us int64 [N, K]; samples_T [N, K, 4, 4]; scenes: K for each of the N, or None where nobody keeps them
    """

    time_us: np.ndarray
    T_world_from_ego: np.ndarray
    arrives: np.ndarray
    samples_us: np.ndarray
    samples_T: np.ndarray
    scenes: list[list[Scene]] | None = None


SceneAt = Callable[[int], Scene]
Render = Callable[[list[Scene], np.ndarray], np.ndarray]


class Faults:
    """The sensors of one car through episodes: `reset`, then `advance` at the start and after every control period.

    shots  what has arrived by now
    """

    def __init__(self, sensing: Sensing, exposure_before_us: np.ndarray = EXPOSURE_BEFORE_US):
        self.sensing, self._before_us = sensing, exposure_before_us
        # Whole periods by which the newest image that has arrived is older than an ideal one, of each camera.
        self._age = np.maximum(-(-(sensing.latency_us - exposure_before_us) // PERIOD_US), 0)

    def reset(self, seed: int) -> None:
        """A new episode: the IMU is switched on, nothing has been taken yet."""
        self._seed = seed
        self._timing, imu, self._pose = (np.random.default_rng([seed, stream]) for stream in (TIMING, IMU, POSE))
        self._imu = FaultyImu(self.sensing.imu, imu)
        self._pose_error = self._pose.standard_normal(3)
        self._lost = self._timing.random(len(self._before_us)) < self.sensing.drop_share
        self._taken: deque[Shots] = deque(maxlen=int(self._age.max()) + 1)

    def advance(self, world: EgoWorld, scene_at: SceneAt | None) -> None:
        """The cameras take the last period's images; `scene_at`: how, where they may be looked at later."""
        hold = np.exp(-PERIOD_US * 1e-6 / POSE_TAU_S)
        self._pose_error = hold * self._pose_error + np.sqrt(1 - hold**2) * self._pose.standard_normal(3)
        s, now_us = self.sensing, world.time_us
        jitter = np.rint(self._timing.uniform(-s.jitter_us, s.jitter_us, len(self._age))).astype(np.int64)
        times_us = now_us - np.clip(self._before_us + jitter, 0, PERIOD_US - 1)
        samples = s.exposure_samples if s.exposure_us else 1
        within_us = np.rint(((np.arange(samples) + 0.5) / samples - 0.5) * s.exposure_us).astype(np.int64)
        samples_us = np.clip(times_us[:, None] + within_us, now_us - PERIOD_US, now_us)
        scenes = None
        if scene_at is not None and self._taken.maxlen > 1:  # the world will have moved on
            scenes = [[scene_at(int(t)) for t in row] for row in samples_us]
        samples_T = np.stack([world.poses_of_ego(row) for row in samples_us])
        shots = Shots(times_us, world.poses_of_ego(times_us), ~self._losses(), samples_us, samples_T, scenes)
        self._taken.appendleft(shots)
        self.shots = self._arrived() if self._age.any() else shots

    def imu(self, truth: ImuWindow) -> ImuWindow:
        """What the IMU reads of the last period; once a period."""
        return self._imu.read(truth)

    def localised(self, T_world_from_ego: np.ndarray) -> np.ndarray:
        """Poses [..., 4, 4] as localisation believes them now."""
        s = self.sensing
        x, y, yaw = self._pose_error * (s.position_m, s.position_m, s.heading_rad)
        moved = T_world_from_ego.copy()
        moved[..., :3, :3] = matrix_from_xy_yaw(0.0, 0.0, yaw)[:3, :3] @ moved[..., :3, :3]
        moved[..., :2, 3] += (x, y)
        return moved

    def expose(self, render: Render, scene_at: SceneAt, now_us: int) -> np.ndarray:
        """uint8 [N, H, W, 3]: the images that have arrived, zeros for those that have not."""
        shots, s = self.shots, self.sensing
        samples = shots.samples_us.shape[1]
        total = np.float32(0)
        for k in range(samples):
            total = total + render(self.scenes(k, scene_at), shots.samples_T[:, k]).astype(np.float32)
        rgb = total / np.float32(samples)
        if s.read_noise or s.shot_noise:
            rng = np.random.default_rng([self._seed, PIXELS, now_us])  # the same however often it is looked at
            deviation = np.sqrt(np.float32(s.read_noise**2) + rgb * np.float32(s.shot_noise**2 / 255))
            rgb = rgb + deviation * rng.standard_normal(rgb.shape, np.float32)
        rgb = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
        rgb[~shots.arrives] = 0
        return rgb

    def scenes(self, sample: int, scene_at: SceneAt) -> list[Scene]:
        """The scenes [N] at one sample of the exposures of what has arrived."""
        if self.shots.scenes is not None:
            return [of_camera[sample] for of_camera in self.shots.scenes]
        return [scene_at(int(t)) for t in self.shots.samples_us[:, sample]]

    def _losses(self) -> np.ndarray:
        """Bool [N]. A loss goes on with 1 - 1 / burst; one begins as often as it takes to meet the share."""
        share, burst = self.sensing.drop_share, self.sensing.drop_burst
        goes_on = np.where(self._lost, 1 - 1 / burst, share / (burst * (1 - share)))
        self._lost = self._timing.random(len(self._lost)) < goes_on
        return self._lost

    def _arrived(self) -> Shots:
        """Each camera's newest image that has arrived. Before the first has, it is masked, at the time it was due."""
        age = np.minimum(self._age, len(self._taken) - 1)
        missing = self._age - age
        of = [self._taken[int(k)] for k in age]

        def pick(name):
            return [getattr(shots, name)[n] for n, shots in enumerate(of)]

        return Shots(
            np.array(pick("time_us")) - missing * PERIOD_US,
            np.stack(pick("T_world_from_ego")),
            np.array(pick("arrives")) & (missing == 0),
            np.stack(pick("samples_us")),
            np.stack(pick("samples_T")),
            pick("scenes") if of[0].scenes is not None else None,
        )
