"""The figures of the town: `vla bench sim`. Everything through gymnasium's `env.step`, one process on one core.

    steps_per_s.R.WxH       six cameras by renderer R, traffic, ego, collisions, rules and IMU; median of windows
    steps_per_s.none        the same without cameras; .none.busy: with the larger population of town-val
    speedup.two_processes   steps a second of two processes at once over those of one
    pixel_rate_ratio.car_racing   pixels a second over Gymnasium's CarRacing-v3
    reset_s                 median reset after the first, six cameras; reset_s.none without
    semantic_iou.gl_cv      agreement of the renderers at random poses
    memory_growth_mb.300_episodes, deterministic (1: two processes agree bit for bit), step_ms.C.p50 ... p99
    recording_minutes_per_minute  simulated minutes that `vla record` writes in a minute on all cores

The ego drives as the expert drove when its actions were recorded, just before: same seed, same episode. What this
machine cannot measure is left out, and it is said why.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from policies.bench.pinned import run_pinned
from policies.protocol import Privileged
from policies.record import KEYFRAMES_HZ
from policies.town_expert import TownExpert
from sensors.errors import InputError
from sensors.gym_source import ClipHistory
from sim.gl_device import gl_name
from sim.town_env import TownEnv
from sim.tracker import PlanTracker

JOBS = "policies.bench.town_jobs"
USUAL, BUSY = "town-train/0", "town-val/0"  # 30 vehicles and 20 walkers; 60 and 40
SMALL, MIDDLE, LARGE = (224, 128), (400, 225), (800, 450)
CAMERAS, REPLAN_EVERY = 6, 5
RECORD_HOURS = 0.1
EXTRA = "pip install -c constraints.txt -e '.[bench]'"
Say = Callable[[str], None]


def town_figures(quick: bool, say: Say) -> dict[str, float]:
    """All figures, or with `quick` those that take less than a minute; `say` is told what is done and left out."""
    with tempfile.TemporaryDirectory() as folder:
        bench = _Town(Path(folder), quick, say)
        bench.speed()
        bench.two_processes()
        bench.car_racing()
        bench.agreement()
        if not quick:
            bench.memory()
            bench.determinism()
            bench.recording()
        return bench.figures


def record_actions(path: Path, scenario: str, count: int) -> None:
    """What the expert does in the first steps of a scenario, float64 [M, 2]."""
    env, expert, tracker, actions = TownEnv(scenario, cameras=False), TownExpert(), PlanTracker(), []
    observation, _ = env.reset()
    expert.reset(env.scenario.seed)
    history, given = ClipHistory(env.cameras, 1), Privileged(world=env.world)
    for step in range(count):
        history.append(observation)
        pose, now_us = observation["T_world_from_ego_now"], int(observation["now_us"])
        speed_mps = float(observation["vehicle"][0])
        if step % REPLAN_EVERY == 0:
            tracker.follow(expert.plan(history.clip(), given), pose, now_us, speed_mps)
        command = tracker.command(pose, now_us, speed_mps)
        actions.append((command.accel_mps2, command.curvature_1pm))
        observation, _, terminated, truncated, _ = env.step(np.array(actions[-1]))
        if terminated or truncated:
            break
    env.close()
    np.save(path, np.array(actions))


class _Town:
    def __init__(self, folder: Path, quick: bool, say: Say):
        self.figures: dict[str, float] = {}
        self._quick, self._say, self._folder = quick, say, folder
        self._window_s, self._windows, self._resets = (0.8, 3, 4) if quick else (3.0, 5, 12)
        self._renderers = ("gl", "cv")
        self._best_rate: dict[tuple[int, int], float] = {}
        try:
            say(f"OpenGL by {gl_name()}")
        except InputError as error:
            say(f"left out, all of gl: {error}")
            self._renderers = ("cv",)

    def speed(self) -> None:
        """Steps a second, milliseconds a step, seconds a reset."""
        wanted = [("gl", SMALL), ("gl", MIDDLE), ("cv", MIDDLE)]
        if not self._quick:
            wanted += [("gl", LARGE), ("cv", LARGE), ("cv", SMALL)]
        for renderer, size in wanted:
            if renderer in self._renderers:
                name = f"{renderer}.{size[0]}x{size[1]}"
                resets = self._resets if (renderer, size) == (self._renderers[0], MIDDLE) else 0
                self._steps(name, USUAL, renderer, size, resets, "reset_s")
        self._steps("none", USUAL, "", (), 0 if self._quick else self._resets, "reset_s.none")
        if not self._quick:
            self._steps("none.busy", BUSY, "", (), 0, "")

    def two_processes(self) -> None:
        if len(os.sched_getaffinity(0)) < 2:
            self._say("left out, speedup.two_processes: this process may use one core only")
            return
        job = self._job(USUAL, self._renderers[0], MIDDLE, 0)
        one = np.median(run_pinned(JOBS, [job])[0]["steps_per_s"])
        two = [np.median(result["steps_per_s"]) for result in run_pinned(JOBS, [job, job])]
        self._put("speedup.two_processes", float(sum(two) / one), f"({two[0]:.1f} + {two[1]:.1f}) / {one:.1f} steps/s")

    def car_racing(self) -> None:
        if importlib.util.find_spec("Box2D") is None or importlib.util.find_spec("pygame") is None:
            self._say(f"left out, pixel_rate_ratio.car_racing: not available, {EXTRA}")
            return
        how = {"window_s": self._window_s, "windows": self._windows}
        theirs = float(np.median(run_pinned(JOBS, [("car_racing", how)])[0]["pixels_per_s"]))
        for size in (MIDDLE,) if self._quick else (MIDDLE, SMALL):
            name = f"steps_per_s.{self._renderers[0]}.{size[0]}x{size[1]}"
            ours = self.figures[name] * CAMERAS * size[0] * size[1]
            suffix = "" if size == MIDDLE else f".{size[0]}x{size[1]}"
            words = f"{ours / 1e6:.1f} over {theirs / 1e6:.2f} Mpixel/s"
            self._put("pixel_rate_ratio.car_racing" + suffix, ours / theirs, words)

    def agreement(self) -> None:
        if "gl" in self._renderers:
            how = {
                "scenario": USUAL,
                "size": MIDDLE,
                "actions": self._actions(USUAL),
                "poses": 10 if self._quick else 50,
            }
            scores = run_pinned(JOBS, [("semantic_iou", how)])[0]["iou"]
            self._put("semantic_iou.gl_cv", float(np.mean(scores)), f"least of {len(scores)} poses {min(scores):.3f}")

    def memory(self) -> None:
        how = {"scenario": USUAL, "episodes": 300, "warm_episodes": 20, "length": 20}
        self._put("memory_growth_mb.300_episodes", run_pinned(JOBS, [("memory", how)])[0]["growth_mb"])

    def determinism(self) -> None:
        """The same episode in two processes, by every renderer."""
        same = []
        for renderer in self._renderers:
            how = {"renderer": renderer, "size": SMALL, "actions": self._actions(USUAL), "count": 100}
            digests = [run_pinned(JOBS, [("episode_digest", {"scenario": USUAL, **how})]) for _ in range(2)]
            same.append(digests[0] == digests[1])
        self._put("deterministic", float(all(same)), f"states and images by {', '.join(self._renderers)}")

    def recording(self) -> None:
        """`vla record` on all cores, from its start to its end."""
        out = self._folder / "recording"
        words = ["--suite", "town-train", "--hours", str(RECORD_HOURS), "--image-size", "{}x{}".format(*MIDDLE)]
        begun = time.monotonic()
        record = [sys.executable, "-m", "policies.cli", "record", *words, "--videos", "0", "--out", str(out), "--quiet"]
        done = subprocess.run(record, capture_output=True, text=True, check=False)
        minutes = (time.monotonic() - begun) / 60
        if done.returncode:
            raise RuntimeError(f"vla record failed:\n{done.stderr.strip()[-2000:]}")
        keyframes = json.loads((out / "summary.json").read_text())["metrics"]["n_keyframes"]
        driven = keyframes / KEYFRAMES_HZ / 60
        name = "recording_minutes_per_minute"
        self._put(name, driven / minutes, f"{driven:.1f} minutes of driving in {minutes:.1f}, six cameras at 10 Hz")

    def _steps(self, name: str, scenario: str, renderer: str, size: tuple, resets: int, reset_name: str) -> None:
        result = run_pinned(JOBS, [self._job(scenario, renderer, size, resets)])[0]
        rates = result["steps_per_s"]
        words = "windows " + " ".join(f"{rate:.1f}" for rate in rates)
        self._put(f"steps_per_s.{name}", float(np.median(rates)), words)
        if not self._quick:
            for share in (50, 95, 99):
                self._put(f"step_ms.{name}.p{share}", float(np.percentile(result["step_ms"], share)))
        if resets:
            self._put(reset_name, float(np.median(result["reset_s"])), f"longest {max(result['reset_s']):.3f} s")

    def _job(self, scenario: str, renderer: str, size: tuple, resets: int) -> tuple[str, dict]:
        how = {"renderer": renderer, "size": size, "window_s": self._window_s, "windows": self._windows}
        return "steps", {"scenario": scenario, "actions": self._actions(scenario), "resets": resets, **how}

    def _actions(self, scenario: str) -> str:
        path = self._folder / f"{scenario.replace('/', '-')}.npy"
        if not path.exists():
            record_actions(path, scenario, 400 if self._quick else 1200)
        return str(path)

    def _put(self, name: str, value: float, words: str = "") -> None:
        self.figures[name] = value
        self._say(f"{name} = {value:.4g}" + (f"   ({words})" if words else ""))
