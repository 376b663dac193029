"""Closed loop: a policy drives a world. One function an episode, one for a whole run."""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from policies.protocol import NOTHING, Policy, Privileged
from policies.runs import Episode, Run
from sensors import frames
from sensors.gym_source import ClipHistory
from sim.env import CourseEnv
from sim.rollout_log import EpisodeLog, EpisodeRecorder
from sim.surroundings import of_course
from sim.tracker import PlanTracker
from sim.world import PERIOD_US, World

REPLAN_EVERY = 5  # control periods: a new plan each 0.5 s, the interval of nuScenes' keyframes
FILM_EVERY = 2  # control periods: 5 pictures a second
FILM_HZ = 5
AFTERWARDS_S = 5.0  # the others are followed this much further, so that the last plans can be judged


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


def quiet_env(image_size: tuple[int, int], seconds: float) -> CourseEnv:
    """An environment that renders when asked (`capture`), not at every step."""
    return CourseEnv(image_size=image_size, cameras=False, time_limit_s=seconds, render_mode="rgb_array")


def drive_episode(
    policy: Policy, env: CourseEnv, seed: int, episode: Episode | None = None, progress: tqdm | None = None
) -> EpisodeLog:
    """One seeded episode, from reset to its end, as a log; `episode` films it and keeps what is not finished."""
    media = episode.media if episode is not None else None
    observation, _ = env.reset(seed=seed)
    world = env.unwrapped.world
    policy.reset(seed)
    history = ClipHistory(env.unwrapped.cameras, policy.clip_steps)
    tracker = PlanTracker()
    lines = road_lines(world)
    around = of_course(world, env.unwrapped.time_limit_s)
    recorder = EpisodeRecorder(f"seed-{seed:04d}", "drive", policy.name, seed, lines, around)
    given = Privileged(world=world) if policy.privileged else NOTHING
    ended_by, step, seen = "", 0, 0
    while True:
        replan = step % REPLAN_EVERY == 0
        filmed = media is not None and step % FILM_EVERY == 0
        if filmed or (replan and policy.needs_images):  # pictures that nobody looks at are not rendered
            observation["images"] = env.capture().rgb
        history.append(observation)
        pose, now_us = observation["T_world_from_ego_now"], int(observation["now_us"])
        speed_mps = float(observation["vehicle"][0])
        boxes = world.boxes_at(now_us)
        xyyaw = frames.xy_yaw(pose)
        events = [(event.kind, event.actor, event.speed_mps, event.fault) for event in world.events[seen:]]
        seen = len(world.events)
        if ended_by:
            recorder.frame(now_us, xyyaw, speed_mps, None, boxes, events)
            record_afterwards(recorder, world, tracker)
            return recorder.finish(ended_by)
        if replan:
            plan = policy.plan(history.clip(), given).validate(f"{policy.name} seed {seed} step {step}")
            plan_in_world = plan.in_world(pose)
            tracker.follow(plan, pose, now_us, speed_mps)
        command = tracker.command(pose, now_us, speed_mps)
        recorder.frame(now_us, xyyaw, speed_mps, (command.accel_mps2, command.curvature_1pm), boxes, events)
        if replan:
            recorder.plan(plan.time_s, plan_in_world, plan.tokens)
        if episode is not None:
            episode.keep(recorder)
        if filmed:
            media.add(history.clip(), plan_in_world, lines, boxes)
        observation, _, terminated, truncated, _ = env.step(np.array([command.accel_mps2, command.curvature_1pm]))
        step += 1
        if terminated or truncated:
            ended_by = world.events[-1].kind if terminated else "time"
        if progress is not None:
            progress.update()


def record_afterwards(recorder: EpisodeRecorder, world: World, tracker: PlanTracker) -> None:
    """What the others do after the end of an episode, the ego carrying on with its last plan (and then stopping)."""
    for _ in range(round(AFTERWARDS_S * 1e6 / PERIOD_US)):
        command = tracker.command(world.ego.T_world_from_ego, world.time_us, world.ego.speed_mps)
        world.step(command.accel_mps2, command.curvature_1pm)
        recorder.afterwards(world.time_us, world.boxes_at(world.time_us))


def drive(
    run: Run,
    policies: Sequence[Policy],
    seeds: Sequence[int],
    seconds: float,
    image_size: tuple[int, int],
    videos: int,
    progress: bool = True,
) -> None:
    """Every policy on every seed; the first policy's first `videos` episodes are filmed."""
    steps = round(seconds * 10)
    total = len(policies) * len(seeds) * steps
    with tqdm(total=total, disable=not progress, unit="step", desc="drive") as bar:
        for policy in policies:
            size = policy.image_size or image_size
            for k, seed in enumerate(seeds):
                filmed = policy is policies[0] and k < videos
                env = quiet_env(size, seconds)
                name = f"{policy.name}-seed-{seed:04d}"
                with run.episode(name, policy.name, seed, FILM_HZ * filmed) as episode:
                    episode.log = drive_episode(policy, env, seed, episode, bar)
                env.close()
                done = (policies.index(policy) * len(seeds) + k + 1) * steps
                bar.update(done - bar.n)
