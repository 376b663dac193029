"""The expert drives, and what the cameras, the IMU and the bus say is kept in nuScenes format.

Each scene is a course of its own seed. A student that only ever saw perfect driving does not know how to come back to
the lane, so scenes start displaced and short bursts of noise on the curvature push the car off; the expert's answer
is in the recording.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from tqdm import tqdm

from policies.expert import PurePursuit
from policies.media import EpisodeMedia
from policies.protocol import Privileged
from policies.replay import FILM_HZ
from policies.rollout import REPLAN_EVERY, quiet_env
from policies.runs import Run
from sensors import frames
from sensors.camera import Camera
from sensors.clip import Boxes
from sensors.gym_source import ClipHistory
from sensors.imu import ImuWindow
from sensors.nuscenes_writer import NO_CAN_BUS, NuscenesWriter
from sim.roads import Road
from sim.rollout_log import EpisodeLog, EpisodeRecorder
from sim.surroundings import course_lines, of_course
from sim.tracker import PlanTracker

LOCATION = "course"
MAP_PX_PER_M, MAP_MARGIN_M = 10, 10.0
DRIVABLE = ("asphalt", "shoulder")
EPOCH_US, HOUR_US = 1_577_836_800_000_000, 3_600_000_000  # course k is driven k hours into 2020
START_LATERAL_M, START_HEADING_RAD = 0.5, 0.08
BURST_EVERY_S, BURST_S, BURST_CURVATURE_1PM = (3.0, 6.0), (0.3, 0.7), 0.04
MAX_IN_VAIN = 20
LAST_COURSE = 9999  # nuScenes scene names have four digits
IMU_KEYS = ("imu_time_us", "imu_accel_mps2", "imu_gyro_radps")


class Bursts:
    """Curvature to add at a time: zero but for short bursts at random intervals (noise as in Laskey et al. 2017)."""

    def __init__(self, rng: np.random.Generator):
        self._rng, self._until_s, self._next_s, self._value = rng, 0.0, rng.uniform(*BURST_EVERY_S), 0.0

    def at(self, time_s: float) -> float:
        if time_s >= self._next_s:
            self._value = self._rng.uniform(-BURST_CURVATURE_1PM, BURST_CURVATURE_1PM)
            self._until_s = time_s + self._rng.uniform(*BURST_S)
            self._next_s = self._until_s + self._rng.uniform(*BURST_EVERY_S)
        return self._value if time_s < self._until_s else 0.0


def drivable_mask(road: Road) -> np.ndarray:
    """uint8 [H, W], 255 where one may drive, 0.1 m a pixel, row 0 in the north: nuScenes' map raster."""
    outlines = [surface.outline_m for surface in road.surfaces if surface.kind in DRIVABLE]
    width, height = np.ceil(np.concatenate(outlines).max(axis=0) + MAP_MARGIN_M).astype(int) * MAP_PX_PER_M
    mask = np.zeros((height, width), np.uint8)
    for outline in outlines:
        pixels = outline * (MAP_PX_PER_M, -MAP_PX_PER_M) + (-0.5, height - 0.5)
        cv2.fillPoly(mask, [np.rint(pixels * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
    return mask


@dataclass(frozen=True)
class Take:
    """One driven scene before it is written: keyframes as (observation with images, boxes, plan in world [K, 3]), every
    observation for IMU and bus, and the log."""

    road: Road
    cameras: tuple[Camera, ...]
    keyframes: list[tuple[dict, Boxes, np.ndarray]]
    observations: list[dict]
    lines: list[tuple[str, np.ndarray]]
    log: EpisodeLog


def drive_scene(seed: int, keyframes: int, image_size: tuple[int, int], progress: tqdm | None = None) -> Take | None:
    """The expert on one course for `keyframes` at 2 Hz; None if it did not get through cleanly."""
    rng = np.random.default_rng([seed, 3])
    env = quiet_env(image_size, keyframes * 0.5 + 1.0)
    displaced = {
        "initial_lateral_m": rng.uniform(-START_LATERAL_M, START_LATERAL_M),
        "initial_heading_rad": rng.uniform(-START_HEADING_RAD, START_HEADING_RAD),
    }
    observation, _ = env.reset(seed=seed, options=displaced)
    world, expert, tracker, bursts = env.unwrapped.world, PurePursuit(), PlanTracker(), Bursts(rng)
    history, lines = ClipHistory(env.cameras, expert.clip_steps), course_lines(world.road)
    around = of_course(world, keyframes * 0.5)
    recorder = EpisodeRecorder(scene_name(seed), "drive", expert.name, seed, lines, around)
    taken, observations = [], []
    for step in range(keyframes * REPLAN_EVERY):
        history.append(observation)
        observations.append(observation)
        pose, now_us = observation["T_world_from_ego_now"], int(observation["now_us"])
        speed_mps, boxes = float(observation["vehicle"][0]), world.boxes_at(now_us)
        planned = step % REPLAN_EVERY == 0
        if planned:
            plan = expert.plan(history.clip(), Privileged(world=world)).validate(f"expert seed {seed} step {step}")
            tracker.follow(plan, pose, now_us, speed_mps)
            taken.append((observation | {"images": env.capture().rgb}, boxes, plan.in_world(pose)))
        command = tracker.command(pose, now_us, speed_mps)
        action = (command.accel_mps2, command.curvature_1pm + bursts.at(step * 0.1))
        recorder.frame(now_us, frames.xy_yaw(pose), speed_mps, action, boxes)
        if planned:
            recorder.plan(plan.time_s, plan.in_world(pose))
            if progress is not None:
                progress.update()
        observation, _, terminated, _, _ = env.step(np.array(action))
        if terminated:
            return None
    return Take(world.road, env.cameras, taken, observations, lines, recorder.finish("time"))


def write_scene(writer: NuscenesWriter, seed: int, take: Take) -> None:
    """All time stamps of course k move by k hours: the devkit sorts scenes by time, so no two may begin together."""
    later_us = EPOCH_US + seed * HOUR_US
    description = f"Expert on course {seed}, pushed off and coming back"
    with writer.scene(scene_name(seed), description, take.cameras, LOCATION, drivable_mask(take.road)) as scene:
        for observation, boxes, _ in take.keyframes:
            scene.keyframe(
                int(observation["now_us"]) + later_us,
                observation["images"],
                observation["camera_time_us"] + later_us,
                observation["T_world_from_ego"],
                observation["T_world_from_ego_now"],
                boxes,
            )
        imu_time_us, accel, gyro = (np.concatenate([o[key] for o in take.observations]) for key in IMU_KEYS)
        time_us = np.array([int(o["now_us"]) for o in take.observations])
        poses = np.stack([o["T_world_from_ego_now"] for o in take.observations])
        vehicle = np.stack([o["vehicle"] for o in take.observations])
        scene.can(ImuWindow(imu_time_us + later_us, accel, gyro), time_us + later_us, poses, *vehicle.T)


def film(take: Take, media: EpisodeMedia) -> None:
    """The keyframes of a scene as film and contact sheets."""
    history = ClipHistory(take.cameras, 1)
    for observation, boxes, plan_in_world in take.keyframes:
        history.append(observation)
        media.add(history.clip(), plan_in_world, take.lines, boxes)


def scene_name(seed: int) -> str:
    """Course and scene have one number, so a recording that goes on knows which courses it has."""
    return f"scene-{seed:04d}"


def record(
    run: Run,
    version: str,
    steps: int,
    scene_steps: int,
    seed: int,
    image_size: tuple[int, int],
    videos: int,
    progress: bool = True,
) -> None:
    """Record courses `seed`, `seed + 1`, ... into the run directory, which is the dataroot too, until it holds at least
    `steps` keyframes; the first `videos` new scenes are filmed.

    A course whose scene is there already is left as it is, so an interrupted recording goes on where it was. A course
    that the expert does not get through cleanly is discarded; MAX_IN_VAIN of them in a row end the recording.
    """
    writer = NuscenesWriter(run.path, version)
    wanted, there, discarded, in_vain = -(-steps // scene_steps), 0, 0, 0
    with tqdm(total=wanted * scene_steps, unit="step", desc="record", disable=not progress) as bar:
        for course in (k for k in range(seed, LAST_COURSE + 1) if k not in NO_CAN_BUS):
            if there == wanted or in_vain == MAX_IN_VAIN:
                break
            before, name = bar.n, scene_name(course)
            if name in writer.scenes:
                there += 1
                bar.update(scene_steps)
                continue
            take = drive_scene(course, scene_steps, image_size, bar)
            if take is None:
                discarded, in_vain = discarded + 1, in_vain + 1
                bar.update(before - bar.n)
                continue
            write_scene(writer, course, take)
            there, in_vain, videos = there + 1, 0, videos - 1
            with run.episode(name, PurePursuit.name, course, FILM_HZ * (videos >= 0)) as episode:
                episode.log = take.log
                if episode.media is not None:
                    film(take, episode.media)
    run.summary["scenes"] = {"asked": wanted, "finished": there, "failed": wanted - there}
    run.score([PurePursuit.name])
    run.summary["metrics"] |= {"n_scenes": there, "n_keyframes": there * scene_steps, "n_discarded": discarded}
