"""The figures of scoring: `vla bench score`. The expert drives a town for 30 s an episode, a plan each 0.5 s.

episodes, plans, others     how many were scored; others: mean number in a log
wall_s                      all of them under every protocol, on all cores, as `vla score` does
wall_s.100_episodes         the same for 100 of them, at that rate
cpu_ms.plan                 CPU time over plans, reading included
cpu_ratio.twice_plans, .twice_others   one log against its first half, and against every second of its others
pdm_closed_ms               15 proposals simulated and scored on one core
log_mb.minute               size of the logs over simulated time
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from policies.rollout import drive
from policies.runs import Run
from policies.scores import score_run
from policies.town_expert import TownExpert
from sim.log_schema import COLUMNS
from sim.metrics.log_view import LogView
from sim.metrics.pdm import VX, rollout
from sim.metrics.pdm_closed import foresee, pdm_closed
from sim.metrics.pdm_scores import sub_scores
from sim.metrics.protocols import PROTOCOLS, episode_figures
from sim.rollout_log import EpisodeLog, read_episode
from sim.scenarios import get_scenario

EPISODES, SECONDS, SUITE = {True: 8, False: 100}, 30.0, "town-val"
REPEATS = 3


def score_figures(quick: bool, say: Callable[[str], None]) -> dict[str, float]:
    """All figures; with `quick` of fewer episodes."""
    with tempfile.TemporaryDirectory() as folder:
        count = EPISODES[quick]
        run = Run.create("drive", Path(folder) / "run", {}, list(range(count)))
        scenarios = [get_scenario(f"{SUITE}/{k}") for k in range(count)]
        drive(run, [TownExpert()], scenarios, SECONDS, (32, 20), 0, progress=False)
        run.summary["policies"] = {TownExpert.name: {}}
        run.save()
        paths = [run.path / row["log"] for row in run.summary["episodes"]]
        say(f"{len(paths)} episodes driven")
        begun = time.monotonic()
        score_run(run.path, tuple(PROTOCOLS), progress=False)
        wall_s = time.monotonic() - begun
        logs = [read_episode(path) for path in paths]
        minutes = sum(float(log.scene_time_us[-1] - log.scene_time_us[0]) for log in logs) / 60e6
        figures = {
            "episodes": len(logs),
            "plans": sum(len(np.unique(log.plan_frame)) for log in logs),
            "others": float(np.mean([len(np.unique(log.actor_id)) for log in logs])),
            "wall_s": wall_s,
            "wall_s.100_episodes": wall_s * 100 / len(logs),
            "log_mb.minute": sum(path.stat().st_size for path in paths) / 1e6 / minutes,
        }
        say(f"scored in {wall_s:.1f} s")
        # The longest and fullest of them: a short one costs what every log costs.
        log = max(logs, key=lambda log: (len(log), len(log.actor_id)))
        path = paths[logs.index(log)]
        whole_s = _cpu_s(lambda: episode_figures(read_episode(path), PROTOCOLS))
        return figures | {
            "cpu_ms.plan": 1000 * whole_s / len(np.unique(log.plan_frame)),
            "cpu_ratio.twice_plans": _ratio(log, first_half(log)),
            "cpu_ratio.twice_others": _ratio(log, every_second_other(log)),
            "pdm_closed_ms": 1000 * pdm_closed_s(log),
        }


def first_half(log: EpisodeLog) -> EpisodeLog:
    """The log with the first half of its plans, everything else as it is."""
    kept = log.plan_frame < np.median(np.unique(log.plan_frame))
    return replace(log, **{name: getattr(log, name)[kept] for name in _columns("Q")}).validate()


def every_second_other(log: EpisodeLog) -> EpisodeLog:
    """The log with half of its others."""
    kept = np.isin(log.actor_id, np.unique(log.actor_id)[::2])
    return replace(log, **{name: getattr(log, name)[kept] for name in _columns("A")}).validate()


def pdm_closed_s(log: EpisodeLog) -> float:
    """CPU time to simulate and score the 15 proposals at a frame in the middle."""
    view, frame = LogView(log), len(log) // 2
    ego, scene = view.states[frame, :7], view.scene(frame)
    seen = foresee(ego, scene)
    poses = pdm_closed(ego, scene, view.limit_mps[frame]).proposals
    return _cpu_s(lambda: sub_scores(rollout(poses, ego[VX], initial=ego), seen))


def _columns(letter: str) -> list[str]:
    return [name for name, (_, rows, _) in COLUMNS.items() if rows == letter]


def _ratio(whole: EpisodeLog, part: EpisodeLog) -> float:
    return _cpu_s(lambda: episode_figures(whole, ("pdm",))) / _cpu_s(lambda: episode_figures(part, ("pdm",)))


def _cpu_s(work: Callable[[], object]) -> float:
    """Least CPU time of some repeats, after one that warms up."""
    took = []
    for _ in range(REPEATS + 1):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return min(took[1:])
