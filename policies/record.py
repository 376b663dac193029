"""The expert drives, and what the cameras, the IMU and the bus say is kept in nuScenes format.

Each scene is a course of its own seed. A student that only ever saw perfect driving does not know how to come back to
the lane, so scenes start displaced and short bursts of noise on the curvature push the car off; the expert's answer
is in the recording.
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from policies.control import PlanTracker
from policies.expert import PurePursuit
from policies.protocol import Privileged
from policies.rollout import REPLAN_EVERY
from sensors.clip import Boxes
from sensors.gym_source import ClipHistory
from sensors.imu import ImuWindow
from sensors.nuscenes_writer import NuscenesWriter
from sim.env import CourseEnv
from sim.world import World

LOCATION = "course"
MAP_PX_PER_M = 10
START_LATERAL_M, START_HEADING_RAD = 0.5, 0.08
BURST_EVERY_S, BURST_S, BURST_CURVATURE_1PM = (3.0, 6.0), (0.3, 0.7), 0.04
MAX_TRIES = 20


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


def drivable_mask(world: World) -> np.ndarray:
    """uint8 [H, W], 255 where one may drive, 0.1 m a pixel, row 0 in the north: nuScenes' map raster."""
    points = np.concatenate([lane.line.points for lane in world.road.lanes.values()])
    width, height = np.ceil(points.max(axis=0) + 10.0).astype(int)
    x, y = np.arange(width) + 0.5, np.arange(height)[::-1] + 0.5
    coarse = world.road.distance_m(np.stack(np.meshgrid(x, y), axis=-1)) < 10.0
    mask = np.zeros((height * MAP_PX_PER_M, width * MAP_PX_PER_M), np.uint8)
    fine = (np.arange(MAP_PX_PER_M) + 0.5) / MAP_PX_PER_M
    rows, columns = np.nonzero(coarse)  # only near the road is it worth asking each of the hundred pixels of a metre
    px = columns[:, None, None] + fine[None, None, :]
    py = (height - 1 - rows)[:, None, None] + fine[::-1][None, :, None]
    inside = world.road.drivable(np.stack(np.broadcast_arrays(px, py), axis=-1))
    blocks = mask.reshape(height, MAP_PX_PER_M, width, MAP_PX_PER_M)
    blocks[rows, :, columns, :] = np.where(inside, 255, 0)
    return mask


def record_scene(
    writer: NuscenesWriter, seed: int, keyframes: int, image_size: tuple[int, int], progress: tqdm | None = None
) -> bool:
    """One scene of `keyframes` at 2 Hz; False, and nothing written, if the expert did not get through it cleanly."""
    rng = np.random.default_rng([seed, 3])
    env = CourseEnv(image_size=image_size, seconds=keyframes * 0.5 + 1.0)
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
            frames.append((observation, world.boxes_at(now_us)))
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
    description = f"Expert on course {seed}, pushed off and coming back"
    with writer.scene(writer.free_scene_name(), description, cameras, LOCATION, drivable_mask(world)) as scene:
        for observation, boxes in frames:
            scene.keyframe(
                int(observation["now_us"]),
                observation["images"],
                observation["time_us"],
                observation["T_world_from_ego"],
                observation["T_world_from_ego_now"],
                boxes,
            )
        imu = ImuWindow(*(np.concatenate([o[key] for o in imus]) for key in ("imu_time_us", "accel", "gyro")))
        time_us, poses, speed, yaw_rate, steering = (np.array(column) for column in zip(*bus, strict=True))
        scene.can(imu, time_us, poses, speed, yaw_rate, steering)


def record(
    dataroot: Path,
    version: str,
    steps: int,
    scene_steps: int,
    seed: int,
    image_size: tuple[int, int],
    progress: bool = True,
) -> dict[str, int]:
    """Record until the dataroot holds `steps` keyframes; counts of scenes and keyframes. Run again, it goes on.

    Scene k is the course of seed `seed + k`, so an interrupted recording continues with the seeds not yet tried: the
    names of complete scenes say how many there are, and a seed that failed is tried in vain once more.
    """
    writer = NuscenesWriter(dataroot, version)
    wanted = -(-steps // scene_steps)
    counts = {"scenes": len(writer.scenes), "already_there": len(writer.scenes), "discarded": 0}
    next_seed, in_vain = seed + counts["scenes"], 0
    with tqdm(total=wanted * scene_steps, initial=counts["scenes"] * scene_steps, unit="step", desc="record") as bar:
        while counts["scenes"] < wanted and in_vain < MAX_TRIES:
            before = bar.n
            if record_scene(writer, next_seed, scene_steps, image_size, bar):
                counts["scenes"], in_vain = counts["scenes"] + 1, 0
            else:
                counts["discarded"], in_vain = counts["discarded"] + 1, in_vain + 1
                bar.update(before - bar.n)
            next_seed += 1
    return counts
