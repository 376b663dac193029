"""Failures filmed with six cameras after the drive."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from policies.cli import main
from policies.refilm import driven_again
from policies.rollout import quiet_env
from sensors.errors import InputError
from sim.rollout_log import read_episode, write_episode
from sim.scenarios import get_scenario


def pictures(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def driven(tmp_path_factory) -> Path:
    """Constant velocity (and ego status) on one course that they leave, filmed, with tiny pictures."""
    path = tmp_path_factory.mktemp("refilmed") / "run"
    arguments = ["drive", "--suite", "course", "--policy", "constant-velocity", "--seed", "1", "--episodes", "1"]
    arguments += ["--seconds", "6", "--image-size", "64x40", "--renderer", "cv", "--quiet", "--out", str(path)]
    assert main(arguments) == 0
    return path


def test_what_the_cameras_see_is_what_they_saw(driven: Path):
    """A drive films its policy's failures; the clip shows what the film of the whole drive shows a frame before."""
    clips = list((driven / "media").glob("failure-*-cameras.mp4"))
    assert [clip.name for clip in clips] == ["failure-constant-velocity-seed-0001-0035-cameras.mp4"]
    film, clip = pictures(driven / "media" / "constant-velocity-seed-0001.mp4"), pictures(clips[0])
    assert len(read_episode(driven / "episodes" / "constant-velocity-seed-0001.npz")) == 36
    top = film.shape[1] // 2
    front = [part[:, :top, 320:640].astype(float) for part in (film, clip)]
    for k in range(1, len(film) - 1):  # the film shows the even frames, the clip the odd ones
        near = min(np.abs(front[1][j] - front[0][k]).mean() for j in (k - 1, k))
        far = np.abs(front[1][0 if k > len(film) // 2 else -6] - front[0][k]).mean()
        assert near < 0.7 * far
    assert 'class="wide"' in (driven / "report.html").read_text()


def test_a_clip_is_made_once(driven: Path, tmp_path: Path):
    path = tmp_path / "run"
    shutil.copytree(driven, path)
    (clip,) = (path / "media").glob("failure-*-cameras.mp4")
    before = pictures(clip).astype(float)
    clip.unlink()
    assert main(["report", str(path), "--clips", "1", "--quiet"]) == 0
    assert np.abs(pictures(clip) - before).mean() < 0.5  # x264 does not promise the same bits
    stamp = clip.stat().st_mtime_ns
    assert main(["report", str(path), "--clips", "1", "--quiet"]) == 0
    assert clip.stat().st_mtime_ns == stamp


def test_the_logged_actions_lead_where_the_log_went(driven: Path):
    log = read_episode(driven / "episodes" / "constant-velocity-seed-0001.npz")
    env = quiet_env((32, 20), 6.0)
    observations = list(driven_again(env, 1, log))
    assert len(observations) == len(log)
    with pytest.raises(InputError, match="The world has changed"):
        list(driven_again(env, 2, log))
    env.close()


def test_a_world_that_has_changed_is_not_filmed_and_said(driven: Path, tmp_path: Path, capsys):
    path = tmp_path / "run"
    shutil.copytree(driven, path)
    victim = path / "episodes" / "constant-velocity-seed-0001.npz"
    log = read_episode(victim)
    track = log.ego_xyyaw_in_world.copy()
    track[5:, 0] += 0.01
    for clip in (path / "media").glob("failure-*-cameras.mp4"):
        clip.unlink()
    write_episode(victim, replace(log, ego_xyyaw_in_world=track))
    assert main(["report", str(path), "--clips", "1", "--quiet"]) == 1
    assert "The world has changed" in capsys.readouterr().out
    assert not list((path / "media").glob("failure-*-cameras.mp4"))
    assert list((path / "media").glob("failure-*.mp4"))  # from above it can be told all the same


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"verb": "replay"}, "a drive, or a closed loop on a dataroot"),
        ({"config": {"seconds": 3.0}}, "config.suite"),
    ],
)
def test_clips_reject(driven: Path, tmp_path: Path, capsys, change: dict, words: str):
    path = tmp_path / "run"
    shutil.copytree(driven, path)
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps(summary | change))
    assert main(["report", str(path), "--clips", "1", "--quiet"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_town_is_driven_again_too(tmp_path: Path):
    path = tmp_path / "run"
    arguments = ["drive", "--policy", "constant-velocity", "--scenario", "town-smoke/1", "--weather", "rain"]
    arguments += ["--seconds", "20", "--image-size", "64x40", "--videos", "0", "--quiet", "--out", str(path)]
    assert main(arguments) == 0
    assert list((path / "media").glob("failure-*-cameras.mp4"))
    log = read_episode(path / "episodes" / "constant-velocity-town-smoke-1.npz")
    env = quiet_env((32, 20), 20.0, get_scenario("town-smoke/1"))
    assert len(list(driven_again(env, get_scenario("town-smoke/1"), log))) == len(log)
    env.close()


def test_the_other_verbs_of_finished_runs(driven: Path, tmp_path: Path, capsys):
    board, compared = tmp_path / "board.html", tmp_path / "compared.html"
    assert main(["leaderboard", str(driven.parent), "--out", str(board)]) == 0
    text = capsys.readouterr().out
    assert "run constant-velocity" in text
    assert "course" in board.read_text()
    assert main(["leaderboard", str(tmp_path / "nowhere")]) == 2
    assert "no summary.json in it or below" in capsys.readouterr().err
    assert main(["compare", str(driven), str(driven), "--html", str(compared)]) == 2  # one scene is no interval
    assert not compared.exists()
    assert main(["export", str(driven), "--to", "rdd"]) == 2
    assert "Did you mean rrd?" in capsys.readouterr().err
