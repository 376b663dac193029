"""The benchmark: its names, what it refuses, and measurements of a fraction of a second."""

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from policies.bench import scoring, town
from policies.bench.pinned import run_pinned
from policies.bench.scale import many_episodes
from policies.bench.town import JOBS, record_actions, town_figures
from policies.bench.town_jobs import check_seen
from policies.cli import main
from policies.expert import PurePursuit
from policies.rollout import drive_episode, quiet_env
from sensors.errors import InputError
from sim.gl_device import gl_name

QUICK = {
    "steps_per_s.gl.224x128",
    "steps_per_s.gl.400x225",
    "steps_per_s.cv.400x225",
    "steps_per_s.none",
    "speedup.two_processes",
    "pixel_rate_ratio.car_racing",
    "reset_s",
    "semantic_iou.gl_cv",
}
FULL = QUICK | {
    "steps_per_s.gl.800x450",
    "steps_per_s.cv.800x450",
    "steps_per_s.none.busy",
    "reset_s.none",
    "memory_growth_mb.300_episodes",
    "deterministic",
    "recording_minutes_per_minute",
    "step_ms.gl.400x225.p99",
}
MADE_UP = {
    "steps": {"steps_per_s": [50.0, 60.0, 70.0], "step_ms": [16.0], "reset_s": [0.2]},
    "car_racing": {"pixels_per_s": [2e6]},
    "semantic_iou": {"iou": [0.9, 1.0]},
    "memory": {"growth_mb": 3.0},
    "episode_digest": {"digest": "ab"},
}


def has_gl() -> bool:
    try:
        gl_name()
    except InputError:
        return False
    return True


@pytest.fixture(scope="module")
def actions(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bench") / "actions.npy"
    record_actions(path, "town-smoke/0", 30)
    return str(path)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every measurement has been made, every means is there."""
    monkeypatch.setattr(town, "run_pinned", lambda _, jobs: [MADE_UP[name] for name, _ in jobs])
    monkeypatch.setattr(town, "record_actions", lambda *_: None)
    monkeypatch.setattr(town, "gl_name", lambda: "made up")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(town.subprocess, "run", recorded)


def recorded(words: list[str], **_) -> subprocess.CompletedProcess:
    """A recording of five minutes."""
    out = Path(words[words.index("--out") + 1])
    out.mkdir()
    (out / "summary.json").write_text(json.dumps({"metrics": {"n_keyframes": 600}}))
    return subprocess.CompletedProcess(words, 0, "", "")


def test_names_and_ratios(made_up: None) -> None:
    quick = town_figures(True, lambda _: None)
    assert set(quick) == QUICK
    assert quick["steps_per_s.none"] == 60.0
    assert quick["speedup.two_processes"] == 2.0
    assert quick["pixel_rate_ratio.car_racing"] == 60.0 * 6 * 400 * 225 / 2e6
    assert quick["semantic_iou.gl_cv"] == 0.95
    assert set(town_figures(False, lambda _: None)) > FULL


def test_what_cannot_be_measured_is_left_out_and_said(made_up: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise InputError("renderer", "gl", "no EGL here", "EGL")

    monkeypatch.setattr(town, "gl_name", missing)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    said: list[str] = []
    figures = town_figures(True, said.append)
    assert set(figures) == {"steps_per_s.cv.400x225", "steps_per_s.none", "reset_s"}
    for words in ("no EGL here", "pip install", "one core only"):
        assert any("left out" in line and words in line for line in said)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_processes_measure_at_once(actions: str) -> None:
    how = {"scenario": "town-smoke/0", "renderer": "", "size": [], "actions": actions, "window_s": 0.05, "windows": 3}
    results = run_pinned(JOBS, [("steps", how | {"resets": 2})] * 2)
    for result in results:
        assert len(result["steps_per_s"]) == 3
        assert min(result["steps_per_s"]) > 10
        assert len(result["reset_s"]) == 2
        assert sum(result["step_ms"]) > 100  # of three windows of 50 ms; more on a machine that does other things


def test_images_are_looked_at(actions: str) -> None:
    how = {"scenario": "town-smoke/0", "renderer": "cv", "size": [64, 36], "actions": actions, "count": 11}
    assert len(run_pinned(JOBS, [("episode_digest", how)])[0]["digest"]) == 64
    with pytest.raises(RuntimeError, match="camera 0 shows nothing"):
        check_seen(np.zeros((6, 36, 64, 3), np.uint8))


@pytest.mark.skipif(not has_gl(), reason="needs OpenGL on EGL")
def test_the_renderers_agree(actions: str) -> None:
    how = {"scenario": "town-smoke/0", "size": [96, 54], "actions": actions, "poses": 2}
    scores = run_pinned(JOBS, [("semantic_iou", how)])[0]["iou"]
    assert len(scores) == 2
    assert 0.9 < min(scores) <= 1.0


def test_memory_is_that_of_the_process() -> None:
    how = {"scenario": "town-smoke/0", "episodes": 3, "warm_episodes": 2, "length": 3}
    assert abs(run_pinned(JOBS, [("memory", how)])[0]["growth_mb"]) < 20


def test_a_measurement_that_fails_says_why(actions: str) -> None:
    with pytest.raises(RuntimeError, match=r"memory failed(.|\n)*Did you mean town-smoke"):
        run_pinned(JOBS, [("memory", {"scenario": "town-smok/0", "episodes": 1, "warm_episodes": 1, "length": 1})])


def test_an_unknown_bench_is_named(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main(["bench", "sin"]) == 2
    assert "Did you mean sim?" in capsys.readouterr().err
    assert main(["bench", "sim", "--json", str(tmp_path / "none" / "x.json")]) == 2
    assert "a folder that exists" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_quick_bench_writes_flat_figures(tmp_path: Path) -> None:
    assert main(["bench", "sim", "--quick", "--json", str(tmp_path / "sim.json")]) == 0
    figures = json.loads((tmp_path / "sim.json").read_text())
    assert set(figures) <= QUICK
    assert {"steps_per_s.cv.400x225", "steps_per_s.none", "reset_s"} <= set(figures)
    assert all(isinstance(value, float) and value > 0 for value in figures.values())


def test_halves_of_a_log() -> None:
    env = quiet_env((32, 20), 3.0)
    log = drive_episode(PurePursuit(), env, 1)
    env.close()
    plans, others = (len(np.unique(column)) for column in (log.plan_frame, log.actor_id))
    assert len(np.unique(scoring.first_half(log).plan_frame)) == plans // 2
    assert len(np.unique(scoring.every_second_other(log).actor_id)) == (others + 1) // 2
    assert 0.0 < scoring.pdm_closed_s(log) < 1.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_episodes_of_two_workers_are_those_of_one_and_this_process_does_not_grow(tmp_path: Path) -> None:
    """`vla bench scale` does it with 200 and 1,000 of them."""
    said: list[str] = []
    figures = many_episodes(tmp_path, 40, 12, said.append)
    names = {"2_workers"} | ({"ray"} if importlib.util.find_spec("ray") else set())
    assert set(figures) == {f"{what}.{name}" for what in ("scores_differ", "memory_growth_mb.driver") for name in names}
    assert all(figures[f"scores_differ.{name}"] == 0 for name in names)
    assert all(figures[f"memory_growth_mb.driver.{name}"] < 10 for name in names), said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_bench_of_scoring_stays_within_its_limits(tmp_path: Path) -> None:
    path = tmp_path / "score.json"
    assert main(["bench", "score", "--quick", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert figures["wall_s.100_episodes"] <= 120
    assert figures["pdm_closed_ms"] <= 20
    assert figures["log_mb.minute"] < 1.0
    assert figures["cpu_ratio.twice_plans"] < 2.3
    assert figures["cpu_ratio.twice_others"] < 2.0
