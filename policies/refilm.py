"""Failures filmed with six cameras after the drive: the logged actions drive the same world again, no policy needed.

A world follows from its seed and the ego's actions, bit for bit, so what the cameras see is what they would have seen.
Where the ego does not come to where the log has it, the world has changed since, and nothing is filmed.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from policies.rollout import quiet_env
from sensors.errors import InputError
from sensors.frames import xy_yaw
from sensors.gym_source import ClipHistory
from sim.env import CameraEnv
from sim.log_env import LogScenario
from sim.report.failure_clips import chosen, clip_frames, clip_path, failures_of_run, plan_in_force, write_clip
from sim.report.failures import Failure
from sim.report.pictures import clip_mosaic
from sim.report.summary import inside, policies_of, read_summary
from sim.rollout_log import EpisodeLog, read_episode
from sim.stage import Start, begin, name_of

SAME_M = 1e-6


def driven_again(env: CameraEnv, start: Start, log: EpisodeLog) -> Iterator[dict]:
    """The observation at each frame of the log, its actions driven from the same start; elsewhere: an InputError."""
    observation, _ = begin(env, start)
    for frame, action in enumerate(log.action):
        apart = np.abs(xy_yaw(observation["T_world_from_ego_now"]) - log.ego_xyyaw_in_world[frame]).max()
        if apart > SAME_M:
            came = f"{apart:.3g} m or rad from the log after {log.time_s[frame]:.1f} s"
            fix = "The world has changed since this was driven: drive it again."
            raise InputError(log.name, "ego", came, "the logged pose", fix)
        yield observation
        if frame + 1 < len(log):
            observation = env.step(action)[0]


def film_failures(
    run_dir: Path, starts: Iterable[Start], most: int, only: str = "", progress: bool = True
) -> list[str]:
    """Film up to `most` failures of a drive with six cameras, unless they were before; what could not be, in words.

    `starts` are those that the run was driven from, however many more; `only` the failures of this policy, if given.
    """
    summary = read_summary(run_dir / "summary.json")
    found = [(row, f) for row, f in failures_of_run(run_dir, summary) if only in ("", row["policy"])]
    by_row: dict[str, tuple[dict, list[Failure]]] = {}
    for row, failure in chosen(found, list(policies_of(summary)), most):
        if not (run_dir / clip_path(row, failure, cameras=True)).is_file():
            by_row.setdefault(row["name"], (row, []))[1].append(failure)
    by_scene = {name_of(start): start for start in starts}
    problems, envs = [], {}
    for row, failed in tqdm(by_row.values(), desc="film failures", unit="episode", disable=not (progress and by_row)):
        log, start = read_episode(inside(run_dir, row["log"])), by_scene.get(row["scene"])
        try:
            if start is None:
                raise InputError(row["name"], "scene", row["scene"], "one that the run was driven from")
            kind = start.name if isinstance(start, LogScenario) else type(start)  # a recorded scene has its own cameras
            envs[kind] = envs.get(kind) or _env(summary["config"], start)
            _film(run_dir, envs[kind], start, log, row, failed)
        except InputError as error:
            problems.append(f"{row['name']}: not filmed with cameras: {error}")
    for env in envs.values():
        env.close()
    return problems


def _film(run_dir: Path, env: CameraEnv, start: Start, log: EpisodeLog, row: dict, found: Sequence[Failure]) -> None:
    """One drive serves all failures of an episode."""
    wanted = {frame for failure in found for frame in clip_frames(log, failure)}
    history, mosaics = ClipHistory(env.cameras, 1), {}
    for frame, observation in enumerate(driven_again(env, start, log)):
        if frame in wanted:
            history.append(observation | {"images": env.capture().rgb})
            mosaics[frame] = clip_mosaic(history.clip(), plan_in_force(log, frame))
        if frame == max(wanted):
            break
    for failure in found:
        write_clip(run_dir / clip_path(row, failure, cameras=True), log, failure, mosaics.__getitem__)


def _env(config: dict, start: Start) -> CameraEnv:
    return quiet_env(tuple(config["image_size"]), config["seconds"], start, config["renderer"])
