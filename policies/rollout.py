"""Closed loop: a policy drives a world. One function an episode, one for a whole run."""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from tqdm import tqdm

from policies.control import PlanTracker
from policies.media import EpisodeMedia
from policies.protocol import NOTHING, Plan, Policy, Privileged
from policies.runs import Run
from sensors import frames
from sensors.gym_source import ClipHistory
from sim.env import CourseEnv
from sim.rollout_log import EpisodeLog, EpisodeRecorder
from sim.world import World

REPLAN_EVERY = 5  # control periods: a new plan each 0.5 s, the interval of nuScenes' keyframes
FILM_HZ = 10


def road_lines(world: World) -> list[tuple[str, np.ndarray]]:
    """The road's edges and lane centrelines as closed lines (kind, xy [V, 2]), for the log's map."""
    lines = []
    for lane in world.road.lanes.values():
        closed = np.concatenate([lane.line.points, lane.line.points[:1]])
        lines.append(("centre", closed))
        for side in (-0.5, 0.5):
            edge = lane.line.offset(side * lane.width_m)
            lines.append(("lane_edge", np.concatenate([edge, edge[:1]])))
    return lines


def drive_episode(
    policy: Policy, env: CourseEnv, seed: int, media: EpisodeMedia | None = None, progress: tqdm | None = None
) -> EpisodeLog:
    """One seeded episode, from reset to its end, as a log."""
    observation, _ = env.reset(seed=seed)
    world = env.unwrapped.world
    policy.reset(seed)
    history = ClipHistory(env.unwrapped.cameras, policy.clip_steps)
    tracker = PlanTracker()
    lines = road_lines(world)
    recorder = EpisodeRecorder(f"seed-{seed:04d}", "drive", policy.name, seed, lines)
    given = Privileged(world=world) if policy.privileged else NOTHING
    ended_by, step = "", 0
    while not ended_by:
        history.append(observation)
        pose, now_us = observation["T_world_from_ego_now"], int(observation["now_us"])
        speed_mps = float(observation["vehicle"][0])
        new_plan: Plan | None = None
        if step % REPLAN_EVERY == 0:
            new_plan = policy.plan(history.clip(), given).validate(f"{policy.name} seed {seed} step {step}")
            tracker.follow(new_plan, pose, now_us, speed_mps)
        command = tracker.command(pose, now_us, speed_mps)
        action = np.array([command.accel_mps2, command.curvature_1pm])
        boxes = world.boxes_at(now_us)
        before = len(world.events)
        xyyaw = np.array([pose[0, 3], pose[1, 3], frames.yaw(pose)])
        observation, _, terminated, truncated, _ = env.step(action)
        events = [event.kind for event in world.events[before:]]
        recorder.frame(now_us, xyyaw, speed_mps, (command.accel_mps2, command.curvature_1pm), boxes, events)
        if new_plan is not None:
            plan_in_world = new_plan.in_world(pose)
            recorder.plan(new_plan.time_s, plan_in_world)
        if media is not None:
            media.add(history.clip(), plan_in_world, lines, boxes)
        ended_by = events[0] if terminated and events else "time" if truncated else "terminated" if terminated else ""
        step += 1
        if progress is not None:
            progress.update()
    return recorder.finish(ended_by)


def drive(
    run: Run,
    policies: Sequence[Policy],
    seeds: Sequence[int],
    seconds: float,
    image_size: tuple[int, int],
    videos: int,
    progress: bool = True,
) -> None:
    """Every policy on every seed; the first policy's first `videos` episodes are filmed.

    A policy that needs no images drives with the cameras off, unless it is filmed.
    """
    steps = round(seconds * 10)
    with ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=len(policies) * len(seeds) * steps, disable=not progress, unit="step", desc="drive")
        )
        for policy in policies:
            size = policy.image_size or image_size
            for k, seed in enumerate(seeds):
                filmed = policy is policies[0] and k < videos
                env = CourseEnv(image_size=size, cameras=filmed or policy.needs_images, seconds=seconds)
                name = f"{policy.name}-seed-{seed:04d}"
                with run.episode(name, policy.name, seed, FILM_HZ * filmed) as episode:
                    episode.log = drive_episode(policy, env, seed, episode.media, bar)
                env.close()
                done = (policies.index(policy) * len(seeds) + k + 1) * steps
                bar.update(done - bar.n)
