"""The expert drives, and what the cameras, the IMU and the bus say is kept in nuScenes format.

Each scene is a course of its own seed. A student that only ever saw perfect driving does not know how to come back to
the lane, so scenes start displaced and short bursts of noise on the curvature push the car off; the expert's answer
is in the recording.
"""

from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from policies.control import PlanTracker
from policies.expert import PurePursuit
from policies.protocol import Privileged
from policies.rollout import REPLAN_EVERY, quiet_env
from sensors.clip import Boxes
from sensors.gym_source import ClipHistory
from sensors.imu import ImuWindow
from sensors.nuscenes_writer import NO_CAN_BUS, NuscenesWriter
from sim.roads import Road

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


def record_scene(
    writer: NuscenesWriter, seed: int, keyframes: int, image_size: tuple[int, int], progress: tqdm | None = None
) -> bool:
    """One scene of `keyframes` at 2 Hz; False, and nothing written, if the expert did not get through it cleanly."""
    rng = np.random.default_rng([seed, 3])
    env = quiet_env(image_size, keyframes * 0.5 + 1.0)
    displaced = {
        "initial_lateral_m": rng.uniform(-START_LATERAL_M, START_LATERAL_M),
        "initial_heading_rad": rng.uniform(-START_HEADING_RAD, START_HEADING_RAD),
    }
    observation, _ = env.reset(seed=seed, options=displaced)
    world, cameras = env.unwrapped.world, env.unwrapped.cameras
    expert, tracker, bursts = PurePursuit(), PlanTracker(), Bursts(rng)
    history = ClipHistory(cameras, expert.clip_steps)
    frames, imus, bus = [], [], []
    for step in range(keyframes * REPLAN_EVERY):
        history.append(observation)
        pose, now_us = observation["T_world_from_ego_now"], int(observation["now_us"])
        speed_mps = float(observation["vehicle"][0])
        imus.append(observation)
        bus.append((now_us, pose, *observation["vehicle"]))
        if step % REPLAN_EVERY == 0:
            frames.append((observation | {"images": env.capture().rgb}, world.boxes_at(now_us)))
            plan = expert.plan(history.clip(), Privileged(world=world)).validate(f"expert seed {seed} step {step}")
            tracker.follow(plan, pose, now_us, speed_mps)
            if progress is not None:
                progress.update()
        command = tracker.command(pose, now_us, speed_mps)
        curvature = command.curvature_1pm + bursts.at(step * 0.1)
        observation, _, terminated, _, _ = env.step(np.array([command.accel_mps2, curvature]))
        if terminated:
            return False
    _write_scene(writer, seed, world, cameras, frames, imus, bus)
    return True


def _write_scene(writer, seed, world, cameras, frames: list[tuple[dict, Boxes]], imus: list[dict], bus: list) -> None:
    """All time stamps of course k move by k hours: the devkit sorts scenes by time, so no two may begin together."""
    later_us = EPOCH_US + seed * HOUR_US
    description = f"Expert on course {seed}, pushed off and coming back"
    with writer.scene(scene_name(seed), description, cameras, LOCATION, drivable_mask(world.road)) as scene:
        for observation, boxes in frames:
            scene.keyframe(
                int(observation["now_us"]) + later_us,
                observation["images"],
                observation["camera_time_us"] + later_us,
                observation["T_world_from_ego"],
                observation["T_world_from_ego_now"],
                boxes,
            )
        imu_time_us, accel, gyro = (np.concatenate([o[key] for o in imus]) for key in IMU_KEYS)
        time_us, poses, speed, yaw_rate, steering = (np.array(column) for column in zip(*bus, strict=True))
        scene.can(ImuWindow(imu_time_us + later_us, accel, gyro), time_us + later_us, poses, speed, yaw_rate, steering)


def scene_name(seed: int) -> str:
    """Course and scene have one number, so a recording that goes on knows which courses it has."""
    return f"scene-{seed:04d}"


def record(
    dataroot: Path,
    version: str,
    steps: int,
    scene_steps: int,
    seed: int,
    image_size: tuple[int, int],
    progress: bool = True,
) -> dict[str, int]:
    """Record courses `seed`, `seed + 1`, ... until at least `steps` keyframes are there; counts of scenes.

    A course whose scene is in the dataroot already is left as it is, so an interrupted recording goes on where it was.
    A course that the expert does not get through cleanly is discarded; MAX_IN_VAIN of them in a row end the recording.
    """
    writer = NuscenesWriter(dataroot, version)
    wanted = -(-steps // scene_steps)
    counts = {"wanted": wanted, "scenes": 0, "already_there": 0, "discarded": 0}
    in_vain = 0
    with tqdm(total=wanted * scene_steps, unit="step", desc="record", disable=not progress) as bar:
        for course in range(seed, LAST_COURSE + 1):
            if counts["scenes"] == wanted or in_vain == MAX_IN_VAIN:
                break
            if course in NO_CAN_BUS:
                continue
            before = bar.n
            if scene_name(course) in writer.scenes:
                counts["already_there"] += 1
                bar.update(scene_steps)
            elif not record_scene(writer, course, scene_steps, image_size, bar):
                counts["discarded"], in_vain = counts["discarded"] + 1, in_vain + 1
                bar.update(before - bar.n)
                continue
            counts["scenes"], in_vain = counts["scenes"] + 1, 0
    return counts
