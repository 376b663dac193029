"""`vla replay --closed-loop`: recorded scenes driven through by a policy."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from real_data import DATAROOT, needs_data

from policies.baselines import Log
from policies.cli import main
from policies.protocol import Privileged
from sensors.clip import Future
from sensors.frames import matrix_from_xy_yaw
from sensors.nuscenes_source import NuscenesSource
from sim.rollout_log import read_episode


def closed_loop(dataroot: Path, out: Path, *words: str) -> int:
    data = ["--dataroot", str(dataroot), "--out", str(out), "--quiet", "--renderer", "cv"]
    return main(["replay", "--closed-loop", *data, *words])


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_a_recording_is_driven_through_by_its_own_driver(course_dataroot, tmp_path):
    run = tmp_path / "run"
    words = ("--scene", "scene-1000", "--policy", "log", "--image-size", "64x32", "--clips", "0")
    assert closed_loop(course_dataroot, run, *words) == 0
    summary = summary_of(run)
    assert summary["scenes"] == {"asked": 3, "finished": 3, "failed": 0}
    assert summary["policies"]["log"]["collision_rate"] == 0.0
    log = read_episode(run / "episodes" / "log-scene-1000.npz")
    assert log.kind == "drive"
    human = np.stack([np.interp(log.time_us, log.human_time_us, log.human_xyyaw_in_world[:, c]) for c in (0, 1)], 1)
    assert np.hypot(*(log.ego_xyyaw_in_world[:, :2] - human).T).max() < 1.0
    assert (run / "media" / "log-scene-1000.mp4").stat().st_size > 1000
    assert main(["score", str(run)]) == 0
    assert summary_of(run)["policies"]["log"]["alpasim.score.n"] == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--closed-loop", "--scene", "scene-1010"), "Did you mean scene-100"),
        (("--traffic", "replay"), "--traffic: came without --closed-loop"),
        (("--closed-loop", "--mask-cameras"), "--mask-cameras: came with --closed-loop"),
    ],
)
def test_bad_arguments_say_what_is_wrong(course_dataroot, tmp_path, capsys, words, complaint):
    assert main(["replay", "--dataroot", str(course_dataroot), "--out", str(tmp_path / "run"), *words]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dataroot_without_maps_is_refused(course_dataroot, tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(course_dataroot, root, ignore=shutil.ignore_patterns("maps"))
    assert closed_loop(root, tmp_path / "run", "--scene", "scene-1000") == 2
    assert "scene-1000: map: came no raster of this location" in capsys.readouterr().err


def test_missing_and_broken_images_cost_what_they_show_and_no_more(course_dataroot, tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(course_dataroot, root)
    front = sorted((root / "samples" / "CAM_FRONT").glob("*scene-1000*")) or sorted(
        (root / "samples" / "CAM_FRONT").glob("*.jpg")
    )
    front[3].unlink()
    words = ("--scene", "scene-1000", "--policy", "log", "--image-size", "64x32", "--clips", "0", "--videos", "0")
    assert closed_loop(root, tmp_path / "run", *words) == 0
    assert summary_of(tmp_path / "run")["policies"]["log"]["novel_view.psnr_db.n"] > 0
    front[5].write_bytes(front[5].read_bytes()[:100])
    capsys.readouterr()
    assert closed_loop(root, tmp_path / "again", *words) == 0
    printed = capsys.readouterr().out
    assert f"scene-1000: re-projected images not measured: {front[5]}" in printed
    assert (tmp_path / "again" / "report.html").is_file()


def test_a_place_that_cannot_be_written_is_said(course_dataroot, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    assert closed_loop(course_dataroot, tmp_path / "file" / "run", "--scene", "scene-1000") == 2
    assert "run, not a directory, expected a folder that can be written" in capsys.readouterr().err


def test_a_scene_too_short_to_drive_in_is_counted_beside_the_others(course_dataroot, tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(course_dataroot, root)
    tables = root / "v1.0-mini"
    scenes, samples = (json.loads((tables / f"{name}.json").read_text()) for name in ("scene", "sample"))
    scenes[0]["nbr_samples"] = 1
    next(sample for sample in samples if sample["token"] == scenes[0]["first_sample_token"])["next"] = ""
    (tables / "scene.json").write_text(json.dumps(scenes))
    (tables / "sample.json").write_text(json.dumps(samples))
    run, words = tmp_path / "run", ("--policy", "log", "--image-size", "64x32", "--clips", "0", "--videos", "0")
    assert closed_loop(root, run, *words) == 1
    assert summary_of(run)["scenes"] == {"asked": 9, "finished": 6, "failed": 3}
    printed = capsys.readouterr().out
    assert f"log-{scenes[0]['name']}: " in printed
    assert "came 1 over 0.0 s, expected at least 2 s to drive in" in printed


@needs_data
def test_a_scene_of_one_keyframe_is_refused(tmp_path, capsys):
    assert closed_loop(DATAROOT, tmp_path / "run", "--scene", "scene-0061") == 2
    assert "came 1 over 0.0 s, expected at least 2 s to drive in" in capsys.readouterr().err


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("traffic", ["reactive", "replay"])
def test_the_recorded_driver_gets_through_the_real_scene_and_who_carries_on_does_not(tmp_path, traffic):
    run = tmp_path / "run"
    words = ("--scene", "scene-0103", "--policy", "log", "--traffic", traffic, "--videos", "0", "--clips", "0")
    assert closed_loop(DATAROOT, run, *words) == 0
    assert main(["score", str(run), "--protocol", "pdm"]) == 0
    policies = summary_of(run)["policies"]
    assert policies["log"]["collision_rate"] == policies["log"]["off_road_rate"] == 0.0
    assert policies["log"]["route_completion"] == 1.0
    assert policies["constant-velocity"]["pdms.strict"] < 0.5 < 0.9 < policies["log"]["pdms.strict"]


def test_the_recorded_driver_waits_where_it_is_beyond_its_record(course_dataroot):
    clip = NuscenesSource(course_dataroot, "v1.0-mini", ("scene-1000",), 1).clip("scene-1000", 3)
    time_us = clip.now_us + np.arange(1, 10) * 500_000
    stands, goes_on = (np.minimum(-1.0 + speed * np.arange(1, 10) * 0.5, 20.0) for speed in (0.0, 2.0))
    for x, first in ((stands, 8), (goes_on, 1)):
        future = Future(time_us, clip.T_world_from_ego_now @ matrix_from_xy_yaw(x, 0.0, 0.0))
        plan = Log().plan(clip, Privileged(future)).validate()
        assert not plan.xyyaw_in_ego[:first].any()
        assert not plan.speed_mps[:first].any()
        assert (plan.speed_mps[first:] > 0).all()
