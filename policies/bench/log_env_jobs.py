"""Measurements of drives through recorded scenes, each alone on a core (`policies.bench.pinned`); run as a program."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count

import cv2
import numpy as np

from policies.baselines import Log
from policies.bench.pinned import serve
from policies.bench.town_jobs import check_seen
from policies.protocol import Privileged
from sensors.gym_source import ClipHistory
from sensors.nuscenes_source import NuscenesSource
from sensors.recorded_drive import RecordedDrive, recorded_drive
from sim.log_env import LogEnv
from sim.novel_view import NovelView
from sim.render_gl import get_renderer
from sim.tracker import PlanTracker
from sim.view_quality import figures, held_out

REPLAN_EVERY, ASIDE_1PM = 5, 0.002  # curvature added to the recorded drive's, so that no image is just the recorded one
LOOK_EVERY = 10


def read(dataroot: str, version: str) -> RecordedDrive:
    source = NuscenesSource(dataroot, version, None, 1)
    return recorded_drive(source, source.scenes[0])


def drive_through(
    ready: Callable[[], None],
    dataroot: str,
    version: str,
    renderer: str,
    size: tuple[int, int],
    views: str,
    rounds: int,
) -> dict:
    """Steps a second of each round through a recorded scene, six cameras a step; how many images came about how; and a
    digest of all that was seen in the round before those."""
    cv2.setNumThreads(1)
    env = LogEnv(drive=read(dataroot, version), renderer=renderer, image_size=tuple(size), views=views)
    digest, hows = hashlib.sha256(), Counter()
    for _, observation, info in _driven(env):
        hows.update(info["views"])
        for name in sorted(observation):
            digest.update(np.ascontiguousarray(observation[name]).tobytes())
    ready()
    rates = []
    for _ in range(rounds):
        took = [seconds for seconds, _, _ in _driven(env)]
        rates.append(len(took) / sum(took))
    env.close()
    return {"steps_per_s": rates, "digest": digest.hexdigest(), "views": hows}


def _driven(env: LogEnv) -> Iterator[tuple[float, dict, dict]]:
    """Seconds that each step took, what was seen and the info: the recorded driver's plans, bent a little aside."""
    observation, _ = env.reset()
    driver, tracker, history, over = Log(), PlanTracker(), ClipHistory(env.cameras, 1), False
    for step in count():
        history.append({name: value for name, value in observation.items() if name != "images"})
        pose, now_us = observation["T_world_from_ego_now"], int(observation["now_us"])
        speed_mps = float(observation["vehicle"][0])
        if step % REPLAN_EVERY == 0:
            plan = driver.plan(history.clip(), Privileged(env.world.future(), env.world))
            tracker.follow(plan, pose, now_us, speed_mps)
        command = tracker.command(pose, now_us, speed_mps)
        begun = time.perf_counter()
        action = np.array([command.accel_mps2, command.curvature_1pm + ASIDE_1PM])
        observation, _, terminated, over, info = env.step(action)
        yield time.perf_counter() - begun, observation, info
        if step % LOOK_EVERY == 0:
            check_seen(observation["images"])
        if terminated or over:
            return


def hold_out(
    ready: Callable[[], None], dataroot: str, version: str, renderer: str, size: tuple[int, int], instants: int
) -> dict[str, float]:
    """`sim.view_quality` of a recorded scene."""
    cv2.setNumThreads(1)
    drive = read(dataroot, version)
    rig = tuple(camera.resize(*size)[1] for camera in drive.cameras)
    ready()
    return figures(held_out(NovelView(get_renderer(renderer, rig), drive), instants))


JOBS = {job.__name__: job for job in (drive_through, hold_out)}

if __name__ == "__main__":
    serve(JOBS)
