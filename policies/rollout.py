"""Closed loop: a policy drives a world, course, town or recording. One function an episode, one for a whole run."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
from tqdm import tqdm

from policies.distributed import sharing
from policies.protocol import NOTHING, Policy, Privileged
from policies.runs import Episode, Run, failure, new_row, tried
from policies.workers import LostWorker
from sensors import frames
from sensors.gym_source import ClipHistory
from sim.env import CameraEnv, CourseEnv
from sim.log_env import LogEnv, LogScenario
from sim.rollout_log import EpisodeLog, EpisodeRecorder
from sim.scenarios import Scenario
from sim.stage import Stage, Start, begin, name_of, why_ended
from sim.town_env import TownEnv
from sim.tracker import PlanTracker
from sim.world import PERIOD_US

REPLAN_EVERY = 5  # control periods: a new plan each 0.5 s, the interval of nuScenes' keyframes
FILM_EVERY = 2  # control periods: 5 pictures a second
FILM_HZ = 5
AFTERWARDS_S = 5.0  # the others are followed this much further, so that the last plans can be judged
COURSE_S = 30.0  # longest episode on the course, unless told otherwise; a town's scenario has its own limit


def quiet_env(
    image_size: tuple[int, int],
    seconds: float | None = None,
    start: Start | None = None,
    renderer: str = "cv",
    seen: bool = True,
) -> CameraEnv:
    """An environment that renders when asked (`capture`), not at every step, and not at all unless it is `seen`: the
    world that an episode with this start takes place in, without one the course."""
    common = {"image_size": image_size, "cameras": False, "renderer": renderer}
    common["render_mode"] = "rgb_array" if seen else None
    if isinstance(start, LogScenario):
        return LogEnv(drive=start.drive, traffic=start.traffic, views=start.views, time_limit_s=seconds, **common)
    if isinstance(start, Scenario):
        return TownEnv(start, time_limit_s=seconds, **common)
    return CourseEnv(time_limit_s=seconds or COURSE_S, **common)


def drive_episode(
    policy: Policy,
    env: CameraEnv,
    start: Start,
    episode: Episode | None = None,
    told: Callable[[str], None] | None = None,
) -> EpisodeLog:
    """One episode from its start to its end, as a log.

    `episode` films it and keeps what is not finished; `told` hears now and then how far it is.
    """
    media = episode.media if episode is not None else None
    observation, stage = begin(env, start)
    world = stage.world
    policy.reset(stage.seed)
    history = ClipHistory(env.unwrapped.cameras, policy.clip_steps)
    tracker = PlanTracker()
    recorder = EpisodeRecorder(stage.name, "drive", policy.name, stage.seed, stage.lines, stage.around)
    ended_by, step, seen, shown = "", 0, 0, ()
    while True:
        replan = step % REPLAN_EVERY == 0
        filmed = media is not None and step % FILM_EVERY == 0
        if filmed or (replan and policy.needs_images):  # pictures that nobody looks at are not rendered
            observation["images"] = env.unwrapped.capture().rgb
            shown = env.unwrapped.shown
        history.append(observation)
        pose, now_us = observation["T_world_from_ego_now"], int(observation["now_us"])
        speed_mps, boxes, cue = float(observation["vehicle"][0]), stage.boxes(now_us), stage.cue()
        events = [(event.kind, event.actor, event.speed_mps, event.fault) for event in world.events[seen:]]
        seen = len(world.events)
        about = (boxes, events, stage.red_lanes(), cue)
        if ended_by:
            recorder.frame(now_us, frames.xy_yaw(pose), speed_mps, None, *about)
            record_afterwards(recorder, stage, tracker)
            return recorder.finish(ended_by)
        if replan:
            given = Privileged(world.future(), world) if policy.privileged else NOTHING
            plan = policy.plan(history.clip(*cue), given).validate(f"{policy.name} {stage.name} step {step}")
            plan_in_world = plan.in_world(pose)
            tracker.follow(plan, pose, now_us, speed_mps)
        command = tracker.command(pose, now_us, speed_mps)
        action = (command.accel_mps2, command.curvature_1pm)
        recorder.frame(now_us, frames.xy_yaw(pose), speed_mps, action, *about)
        if "images" in observation and shown:
            recorder.views([camera.name for camera in env.unwrapped.cameras], shown)
        if replan:
            recorder.plan(plan.time_s, plan_in_world, plan.tokens, plan.reason)
            if told is not None:
                told(f"{policy.name} {stage.name} {step * PERIOD_US * 1e-6:.0f} s")
        if episode is not None:
            episode.keep(recorder)
        if filmed:
            drawn = [*stage.lines, *stage.stop_lines()]
            media.add(history.clip(*cue), plan_in_world, drawn, boxes, plan.reason, [each.words for each in shown])
        observation, _, terminated, truncated, _ = env.step(np.array(action))
        step += 1
        if terminated or truncated:
            ended_by = why_ended([event.kind for event in world.events[seen:]], terminated)


def record_afterwards(recorder: EpisodeRecorder, stage: Stage, tracker: PlanTracker) -> None:
    """What the others do after the end of an episode, as long as it is known, the ego carrying on with its last plan
    (and then stopping)."""
    world = stage.world
    for _ in range(round(AFTERWARDS_S * 1e6 / PERIOD_US)):
        if world.until_us is not None and world.time_us >= world.until_us:
            return
        command = tracker.command(world.ego.T_world_from_ego, world.time_us, world.ego.speed_mps)
        world.step(command.accel_mps2, command.curvature_1pm)
        recorder.afterwards(world.time_us, stage.boxes(world.time_us), stage.red_lanes())


def drive(
    run: Run,
    policies: Sequence[Policy],
    starts: Sequence[Start],
    seconds: float | None,
    image_size: tuple[int, int],
    videos: int,
    renderer: str = "cv",
    progress: bool = True,
    workers: int = 1,
    address: str | None = None,
) -> None:
    """Every policy from every start, but for the episodes that the run has; the first policy's first `videos` episodes
    are filmed. Several processes share them, with an address those of a Ray cluster; what comes out is the same."""
    jobs, names, done = [], [], {row["name"] for row in run.summary["episodes"]}
    for policy in policies:
        for k, start in enumerate(starts):
            names.append(episode_name(policy, start))
            fps = FILM_HZ if policy is policies[0] and k < videos else 0
            job = policy, start, seconds, policy.image_size or image_size, renderer, run.path.absolute(), fps
            jobs += [] if names[-1] in done else [job]
    bar = tqdm(
        total=len(names),
        initial=len(done.intersection(names)),
        disable=not progress,
        unit="episode",
        desc="drive",
        miniters=0,
        mininterval=1.0,
    )

    def tell(text: str) -> None:
        bar.set_postfix_str(text, refresh=False)
        bar.update(0)

    with bar, sharing(min(workers, max(len(jobs), 1)), address) as pool:
        waiting = [job if pool is None else pool.submit(drive_one, *job) for job in jobs]
        for job, waits in zip(jobs, waiting, strict=True):
            try:
                run.add(waits.result() if isinstance(waits, Future) else drive_one(*job, tell))
            except LostWorker as error:  # what runs in it, SUMO for one, can end a process
                run.add(_new_row(*job[:2]) | failure(error))
            bar.update()
    order = {
        name: place for place, name in enumerate(names)
    }  # as if nothing had been interrupted, behind other episodes
    run.summary["episodes"].sort(key=lambda row: order.get(row["name"], -1))


def episode_name(policy: Policy, start: Start) -> str:
    return f"{policy.name}-{name_of(start)}".replace("/", "-")


def _new_row(policy: Policy, start: Start) -> dict:
    seed = start if isinstance(start, int) else start.seed
    return new_row(episode_name(policy, start), policy.name, seed, name_of(start))


def drive_one(
    policy: Policy,
    start: Start,
    seconds: float | None,
    image_size: tuple[int, int],
    renderer: str,
    run_path: Path,
    fps: int,
    told: Callable[[str], None] | None = None,
) -> dict:
    """One episode of a run, its log and film written: its row of the summary. Nobody looks, nothing is drawn."""
    row = _new_row(policy, start)
    with tried(run_path, row, fps) as episode:
        env = quiet_env(image_size, seconds, start, renderer, fps > 0 or policy.needs_images)
        try:
            episode.log = drive_episode(policy, env, start, episode, told)
        finally:
            env.close()
    return row
