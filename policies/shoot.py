"""One scene of a recording: the expert drives, and what the cameras, the IMU and the bus say is staged in nuScenes
format, by whichever process is asked to.

A student that only ever saw perfect driving does not know how to come back to the lane, so scenes of the course start
displaced, and short bursts of noise on the curvature push the car off everywhere; in a town bursts of acceleration as
well, or its speed would tell why it is driven as it is, better than any picture; the expert's answer is in the
recording. A drive that does not end well, or breaks a rule, is discarded.

An imagined recording holds, instead of moments of the drive, moments that might have been at the same place, see
`policies.imagine`; then it does not matter how the drive ends. Each is two keyframes, of which only the second has a
plan: half a second before it, and it. Moments lie so far apart in the scene's time that no clip takes one for the past
of another.

A student may drive for part of the time, in turns with the expert, who says at every keyframe what it would do there
(Ross et al. 2011, DAgger): the recording then holds the situations that the student gets into, to the end.
"""

from collections import deque
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from policies.expert import PurePursuit
from policies.imagine import BEFORE_S, drawn, expected, imagine, looked_back
from policies.protocol import NOTHING, Plan, Policy, Privileged
from policies.rollout import REPLAN_EVERY
from policies.runs import Episode, kept, new_row
from policies.scene_notes import SceneNotes
from policies.town_expert import TownExpert
from policies.vla_policy import VlaPolicy
from sensors import frames
from sensors.clip import Boxes
from sensors.errors import InputError
from sensors.gym_source import ClipHistory
from sensors.imu import ImuWindow
from sensors.nuscenes_can import REFUSED
from sensors.nuscenes_recorder import SceneRecorder, StagedScene, map_png
from sensors.nuscenes_writer import NuscenesWriter
from sim.env import CameraEnv, CourseEnv
from sim.rollout_log import EpisodeRecorder
from sim.scenarios import COURSE, Scenario, get_scenario
from sim.scene import Moment
from sim.sensing import EXPOSURE_BEFORE_US
from sim.stage import begin, why_ended
from sim.surroundings import drivable_mask_of_course
from sim.town_env import TownEnv
from sim.town_surroundings import drivable_mask
from sim.tracker import PlanTracker
from sim.vehicle import EgoState

CUT = "enough keyframes"  # what a scene ends by that has all it should
FILM_HZ = 2  # keyframes
PERIODS_HZ = 10
JPEG_QUALITY = 90
EPOCH_US, HOUR_US = 1_577_836_800_000_000, 3_600_000_000  # scene n is driven n hours into 2020
START_LATERAL_M, START_HEADING_RAD = 0.5, 0.08
BURST_EVERY_S, BURST_S = (3.0, 6.0), (0.3, 0.7)
BURST_CURVATURE_1PM, TOWN_BURST_CURVATURE_1PM = (-0.04, 0.04), (-0.015, 0.015)
TOWN_PUSH_EVERY_S, TOWN_PUSH_S, TOWN_PUSH_MPS2 = (4.0, 9.0), (0.5, 1.5), (-2.5, 1.5)
IMAGINED_EVERY_M, IMAGINED_EVERY_S = 1.5, 1.0  # one way or the other, whichever comes first
MOMENT_US = 3_000_000  # of a scene's time, for each imagined moment
STUDENT_SHARE, TURN_S = 0.75, (4.0, 16.0)  # of a student's turns, and how long one lasts
IMU_KEYS = ("imu_time_us", "imu_accel_mps2", "imu_gyro_radps")
NUMBERS = tuple(n for n in range(1, 10_000) if n not in REFUSED)  # nuScenes scene names have four digits


@dataclass(frozen=True)
class Recording:
    """What all scenes of a dataroot have in common.

    suite      "course", or a suite of the town; its scenario k is the scene of number NUMBERS[k]
    hz         2: keyframes only; 10: with four sweeps between two of them, as nuScenes has them
    keyframes  of each scene; None: as many as it takes to the goal
    student    checkpoint of the policy that drives in turns with the expert, "" for none
    imagined   whether keyframes are moments that might have been
    """

    dataroot: Path
    version: str
    suite: str = COURSE
    hz: int = 2
    image_size: tuple[int, int] = (160, 96)
    keyframes: int | None = 40
    renderer: str = "cv"
    student: str = ""
    imagined: bool = False

    @property
    def samples(self) -> int:
        """Of nuScenes, for each keyframe with a plan."""
        return 2 if self.imagined else 1

    @property
    def expert(self) -> type[Policy]:
        return PurePursuit if self.suite == COURSE else TownExpert

    @property
    def writer(self) -> NuscenesWriter:
        return NuscenesWriter(self.dataroot, self.version, JPEG_QUALITY)


@dataclass(frozen=True)
class Shot:
    """What became of a scene: staged, with its row of the run, or discarded (staged None) for what it ended by."""

    number: int
    ended_by: str
    keyframes: int = 0
    staged: StagedScene | None = None
    row: dict | None = None


class Discarded(Exception):
    """The expert did not get through cleanly."""


class Bursts:
    """What to add to a command at a time: zero but for short bursts at random intervals (as in Laskey et al. 2017).

    between: the least and the most that one adds
    """

    def __init__(
        self,
        rng: np.random.Generator,
        between: tuple[float, float] = BURST_CURVATURE_1PM,
        every_s: tuple[float, float] = BURST_EVERY_S,
        length_s: tuple[float, float] = BURST_S,
    ):
        self._rng, self._between, self._every_s, self._length_s = rng, between, every_s, length_s
        self._until_s, self._next_s, self._value = 0.0, rng.uniform(*every_s), 0.0

    def at(self, time_s: float) -> float:
        if time_s >= self._next_s:
            self._value = self._rng.uniform(*self._between)
            self._until_s = time_s + self._rng.uniform(*self._length_s)
            self._next_s = self._until_s + self._rng.uniform(*self._every_s)
        return self._value if time_s < self._until_s else 0.0


class Turns:
    """Whether it is the student's turn to drive at a time; the expert begins."""

    def __init__(self, rng: np.random.Generator):
        self._rng, self._until_s, self._student = rng, rng.uniform(0.0, TURN_S[0]), False

    def at(self, time_s: float) -> bool:
        if time_s >= self._until_s:
            self._student = bool(self._rng.random() < STUDENT_SHARE)
            self._until_s = time_s + self._rng.uniform(*TURN_S)
        return self._student


@lru_cache(maxsize=1)
def _student(checkpoint: str) -> VlaPolicy:
    return VlaPolicy(Path(checkpoint))


def scene_name(number: int) -> str:
    return f"scene-{number:04d}"


def shoot(recording: Recording, number: int, run_path: Path, filmed: bool = False) -> Shot:
    """Drive and stage one scene, and write its log and film into the run directory; nothing is left of a discarded
    one, and nothing staged by one that fails."""
    start = number if recording.suite == COURSE else get_scenario(f"{recording.suite}/{NUMBERS.index(number)}")
    seed = start if recording.suite == COURSE else start.seed
    row = new_row(scene_name(number), recording.expert.name, seed)
    env = _env(recording, start)
    scene = recording.writer.recorder(scene_name(number), env.unwrapped.cameras)
    try:
        with kept(run_path, row, FILM_HZ if filmed else 0) as episode:
            take = _Take(recording, env, start, scene, EPOCH_US + number * HOUR_US, episode)
            take.drive()
            staged = take.finish()
        return Shot(number, episode.log.ended_by, take.keyframes, staged, row)
    except Discarded as reason:
        scene.discard()
        return Shot(number, str(reason))
    except BaseException:
        scene.discard()
        raise
    finally:
        env.close()


def _env(recording: Recording, start: int | Scenario) -> CameraEnv:
    """One that renders every step, or when asked where only keyframes are kept."""
    every_step = recording.hz == PERIODS_HZ
    common = {"image_size": recording.image_size, "cameras": every_step, "render_mode": "rgb_array"}
    common["renderer"] = recording.renderer
    if isinstance(start, Scenario):
        return TownEnv(start, **common)
    return CourseEnv(time_limit_s=recording.keyframes * 0.5 + 1.0, **common)


class _Take:
    """A scene under way: `drive` it, then `finish` it."""

    def __init__(
        self,
        recording: Recording,
        env: CameraEnv,
        start: int | Scenario,
        scene: SceneRecorder,
        later_us: int,
        episode: Episode,
    ):
        on_course = not isinstance(start, Scenario)
        seed = start if on_course else start.seed
        rng = np.random.default_rng([seed, 3])
        displaced = None
        if on_course:
            displaced = {
                "initial_lateral_m": rng.uniform(-START_LATERAL_M, START_LATERAL_M),
                "initial_heading_rad": rng.uniform(-START_HEADING_RAD, START_HEADING_RAD),
            }
        self.recording, self.env, self.start, self.scene, self.later_us = recording, env, start, scene, later_us
        self.episode, self.keyframes = episode, 0
        self.observation, self.stage = begin(env, start, displaced)
        self.bursts = Bursts(rng, BURST_CURVATURE_1PM if on_course else TOWN_BURST_CURVATURE_1PM)
        town = (TOWN_PUSH_MPS2, TOWN_PUSH_EVERY_S, TOWN_PUSH_S)
        self.pushes = None if on_course else Bursts(np.random.default_rng([seed, 5]), *town)
        self.notes = None if on_course else SceneNotes(self.stage, later_us)
        self.student = _student(recording.student) if recording.student else None
        self.turns = Turns(np.random.default_rng([seed, 4]))
        self.imagining, self.imagined_at = np.random.default_rng([seed, 6]), (np.inf, np.inf, 0)
        self.moments: deque[Moment] = deque(maxlen=1 + round(BEFORE_S * PERIODS_HZ))  # of the latest steps
        self.expert, self.tracker = recording.expert(), PlanTracker()
        self.history = ClipHistory(env.unwrapped.cameras, self.student.clip_steps if self.student else 1)
        self.observations: list[dict] = []
        self.seen = 0  # of the observations: up to the last keyframe
        self.sweeps: list[dict] = []  # since the last keyframe: a scene ends with one
        name = self.recording.expert.name
        self.log = EpisodeRecorder(scene.name, "drive", name, seed, self.stage.lines, self.stage.around)

    def drive(self) -> None:
        """The whole scene, image for image. What does not end well is Discarded, unless it is the student's doing, or
        imagined."""
        recording, stage, world = self.recording, self.stage, self.stage.world
        self.expert.reset(stage.seed)
        if self.student:
            self.student.reset(stage.seed)
        step, ended_by = 0, ""
        while not ended_by:
            observation, plan = self.observation, None
            if step % REPLAN_EVERY == 0:
                plan, followed = self._plan(step)
            else:
                self.history.append(observation)
            if recording.imagined:
                self._imagine()
            else:
                self._keep(plan)
            pose, now_us = observation["T_world_from_ego_now"], int(observation["now_us"])
            speed_mps, boxes, cue = float(observation["vehicle"][0]), stage.boxes(now_us), stage.cue()
            command = self.tracker.command(pose, now_us, speed_mps)
            pushed = self.pushes.at(step * 0.1) if self.pushes else 0.0
            action = (command.accel_mps2 + pushed, command.curvature_1pm + self.bursts.at(step * 0.1))
            self.log.frame(now_us, frames.xy_yaw(pose), speed_mps, action, boxes, (), stage.red_lanes(), cue)
            if plan is not None:
                self.log.plan(followed.time_s, followed.in_world(pose), followed.tokens, followed.reason)
                if self.episode.media is not None:
                    lines = [*stage.lines, *stage.stop_lines()]
                    self.episode.media.add(self.history.clip(*cue), followed.in_world(pose), lines, boxes, plan.reason)
            seen = len(world.events)
            self.observation, _, terminated, truncated, _ = self.env.step(np.array(action))
            step += 1
            if terminated or truncated:
                ended_by = why_ended([event.kind for event in world.events[seen:]], terminated)
            elif recording.keyframes is not None and step == recording.keyframes * REPLAN_EVERY:
                ended_by = CUT
        broken = [event.kind for event in world.events if event.kind != "route_completed" and event.fault == "ego"]
        strict = not self.student and not recording.imagined
        if strict and (broken or ended_by not in (CUT, "route_completed")):
            raise Discarded(broken[0] if broken else ended_by)
        if not self.keyframes:
            raise Discarded("nothing to keep")
        self.episode.log = self.log.finish(ended_by)

    def _plan(self, step: int) -> tuple[Plan, Plan]:
        """What the expert would do now, and the plan that the tracker follows: that, or the student's."""
        observation, stage = self.observation, self.stage
        unseen = self.recording.imagined and self.student is None and self.episode.media is None
        if "images" not in observation and not unseen:
            observation["images"] = self.env.unwrapped.capture().rgb
        self.history.append(observation)
        clip = self.history.clip(*stage.cue())
        plan = self.expert.plan(clip, Privileged(world=stage.world))
        plan.validate(f"{self.expert.name} {stage.name} step {step}")
        followed = plan
        if self.student and self.turns.at(step * 0.1):
            followed = self.student.plan(clip.resize(*self.student.image_size), NOTHING)
        pose, speed_mps = observation["T_world_from_ego_now"], float(observation["vehicle"][0])
        self.tracker.follow(followed, pose, int(observation["now_us"]), speed_mps)
        return plan, followed

    def _keep(self, plan: Plan | None) -> None:
        """What is perceived now, as a keyframe where there is a plan, else as a sweep."""
        observation, now_us = self.observation, int(self.observation["now_us"])
        if plan is None:
            self.sweeps.append(observation)
        else:
            for sweep in self.sweeps if self.recording.hz == PERIODS_HZ else ():
                time_us = sweep["camera_time_us"] + self.later_us
                self.scene.sweep(sweep["images"], time_us, sweep["T_world_from_ego"])
            self.sweeps = []
            self._sample(observation, self.stage.boxes(now_us))
            self.keyframes += 1
        if self.notes is not None:
            self.notes.add(self.stage, now_us, plan)
        self.observations.append({name: value for name, value in observation.items() if name != "images"})
        if plan is not None:
            self.seen = len(self.observations)

    def _imagine(self) -> None:
        """A moment that might be now, with its look back, if it is time for one."""
        world, now_us, env = self.stage.world, int(self.observation["now_us"]), self.env.unwrapped
        self.moments.append(env.moment())
        ego, (x_m, y_m, since_us) = world.ego, self.imagined_at
        if np.hypot(ego.x_m - x_m, ego.y_m - y_m) < IMAGINED_EVERY_M and now_us - since_us < 1e6 * IMAGINED_EVERY_S:
            return
        if len(self.moments) < self.moments.maxlen:
            return
        self.imagined_at = ego.x_m, ego.y_m, now_us
        imagined = imagine(world, self.imagining)
        there, plan = expected(world, self.expert, imagined)
        stage = replace(self.stage, world=there)
        plan.validate(f"imagined in {stage.name} at {now_us} us")
        at_us, boxes = (1 + self.keyframes) * MOMENT_US, stage.boxes(now_us)
        before = looked_back(imagined, self.imagining)
        before_us, earlier = at_us - round(1e6 * BEFORE_S), boxes.later(-BEFORE_S)
        self._see(before_us, drawn(world, self.moments[0], before, env.weather), before.ego, earlier)
        self._see(at_us, drawn(world, self.moments[-1], imagined, env.weather), imagined.ego, boxes)
        self.keyframes += 1
        self.notes.add(stage, at_us, plan)
        self.seen = len(self.observations)

    def _see(self, at_us: int, moment: Moment, ego: EgoState, boxes: Boxes) -> None:
        """A keyframe of what nobody saw, at an instant of the scene's own time."""
        seen = {
            "now_us": np.array(at_us, np.int64),
            "images": self.env.unwrapped.draw(moment),
            "camera_time_us": at_us - EXPOSURE_BEFORE_US,
            "T_world_from_ego": moment.T_world_from_ego,
            "T_world_from_ego_now": ego.T_world_from_ego,
            "vehicle": np.array([ego.speed_mps, 0.0, 0.0]),
            **{key: self.observation[key][:0] for key in IMU_KEYS},
        }
        self._sample(seen, boxes)
        self.observations.append(seen | {"images": None})

    def _sample(self, observation: dict, boxes: Boxes) -> None:
        self.scene.keyframe(
            int(observation["now_us"]) + self.later_us,
            observation["images"],
            observation["camera_time_us"] + self.later_us,
            observation["T_world_from_ego"],
            observation["T_world_from_ego_now"],
            boxes,
        )

    def finish(self) -> StagedScene:
        """Everything that belongs to the scene as a whole; what followed the last keyframe is left out."""
        seen = self.observations[: self.seen]
        later_us, world = self.later_us, self.stage.world
        imu_time_us, accel, gyro = (np.concatenate([o[key] for o in seen]) for key in IMU_KEYS)
        time_us = np.array([int(o["now_us"]) for o in seen])
        poses = np.stack([o["T_world_from_ego_now"] for o in seen])
        vehicle = np.stack([o["vehicle"] for o in seen])
        self.scene.can(ImuWindow(imu_time_us + later_us, accel, gyro), time_us + later_us, poses, *vehicle.T)
        if self.notes is None:
            words = f"Expert on course {self.stage.seed}, pushed off and coming back"
            return self.scene.finish(words, COURSE, map_png(drivable_mask_of_course(world.road)))
        self.scene.extension(self.notes.extension(int(time_us[-1])))
        around = self.stage.around
        what = "What might be" if self.recording.imagined else "Expert"
        words = f"{what} on {self.stage.name} in {around.town}, {around.weather}"
        return self.scene.finish(words, around.town, _town_png(world.network.path))


@lru_cache(maxsize=4)  # seconds for a large town
def _town_png(path: Path) -> bytes:
    return map_png(drivable_mask(path))


def first_number(suite: str, first: int) -> int:
    """The number of the scene that scenario `first` of the suite is; an InputError if it can be none."""
    if suite == COURSE:
        if first not in NUMBERS:
            raise InputError("record", "--seed", first, f"1 to {NUMBERS[-1]}, and one that the devkit accepts")
        return first
    if not 0 <= first < len(NUMBERS):
        raise InputError("record", "--seed", first, f"0 to {len(NUMBERS) - 1}: scene names have four digits")
    get_scenario(f"{suite}/{first}")
    return NUMBERS[first]
