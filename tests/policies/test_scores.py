"""Finished runs scored again and compared, from the command line on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from real_data import DATAROOT, needs_data

from policies.cli import main
from policies.expert import PurePursuit
from policies.rollout import drive_episode, quiet_env
from policies.runs import KEEP_EVERY_S, Run
from policies.scores import open_run
from sensors.errors import InputError
from sim.metrics.protocols import PROTOCOLS
from sim.rollout_log import EpisodeRecorder, read_episode, write_episode
from sim.surroundings import Surroundings

ISSUED = (
    *("pdms.compat", "pdms.strict", "epdms.compat", "epdms.strict", "carla_2_0.driving_score"),
    *("carla_2_1.driving_score", "nuplan.score", "hugsim.hd", "neuroncap.score", "alpasim.score"),
    *("nuscenes.uniad.l2_3s_m", "nuscenes.stp3.l2_3s_m", "route_completion", "at_fault_collision_rate"),
    *("red_light_rate", "off_road_rate"),
)


def metrics_of(path: Path) -> dict:
    return json.loads((path / "summary.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def driven(tmp_path_factory) -> Path:
    """The expert and its baselines on two courses, 6 s each, scored by every protocol."""
    path = tmp_path_factory.mktemp("scored") / "run"
    arguments = ["--suite", "course", "--episodes", "2", "--seed", "1", "--seconds", "6", "--videos", "0", "--quiet"]
    assert main(["drive", *arguments, "--out", str(path)]) == 0
    assert main(["score", str(path), "--protocol", "all"]) == 0
    return path


def test_every_metric_that_was_promised_is_there_or_said_to_be_missing(driven):
    metrics = metrics_of(driven)
    assert all(f"{name}.n" in metrics for name in ISSUED)
    known = {name for name in ISSUED if metrics[f"{name}.n"]}
    assert set(ISSUED) - known == {"nuscenes.uniad.l2_3s_m", "nuscenes.stp3.l2_3s_m", "red_light_rate"}
    for name in known:
        assert metrics[f"{name}.n"] == 2
        assert metrics[f"{name}.ci95_low"] <= metrics[name] <= metrics[f"{name}.ci95_high"]
    assert not any(name in metrics for name in set(ISSUED) - known)


def test_the_expert_beats_both_baselines(driven):
    policies = json.loads((driven / "summary.json").read_text())["policies"]
    assert list(policies) == ["pure-pursuit", "constant-velocity", "ego-status"]
    for name in ("pdms.strict", "epdms.strict", "nuplan.score", "carla_2_0.driving_score", "route_completion"):
        assert all(policies["pure-pursuit"][name] > policies[other][name] for other in list(policies)[1:]), name


def test_the_report_groups_by_protocol(driven):
    page = (driven / "report.html").read_text()
    for protocol in ("pdm", "nuplan", "carla", "hugsim"):
        assert f"<caption>{PROTOCOLS[protocol].words}</caption>" in page
    assert "nuScenes open loop, three conventions: not available from these logs" in page


def test_scoring_again_changes_nothing_and_one_protocol_leaves_the_others(driven, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(driven, path)
    before = metrics_of(path)
    assert main(["score", str(path), "--protocol", "nuplan", "plain"]) == 0
    after = metrics_of(path)
    assert {k: after[k] for k in before if k in after} == {k: before[k] for k in before if k in after}
    assert after["pdms.strict"] == before["pdms.strict"]


def test_a_run_compared_with_itself_does_not_differ(driven, capsys, tmp_path):
    assert main(["compare", str(driven), str(driven), "--json", str(tmp_path / "c.json")]) == 0
    text = capsys.readouterr().out
    assert "they do not differ" in text
    assert "these two differ" not in text
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["pdms.strict"]["n"] == 2
    assert not any(row["differ"] for row in found.values())


def test_failures_are_told_in_text_and_in_a_file(driven, capsys, tmp_path):
    assert main(["failures", str(driven), "--by", "weather", "--list", "--json", str(tmp_path / "f.json")]) == 0
    text, rows = capsys.readouterr().out, json.loads((tmp_path / "f.json").read_text())
    assert text.startswith(f"{rows[0]['policy']}: 2 episodes, ")
    assert len({row["name"] for row in rows}) == 2
    assert all(row["kind"] in text for row in rows)
    assert main(["failures", str(driven), "--policy", "nobody"]) == 2
    assert "expected one that was driven: " in capsys.readouterr().err


def edited(driven: Path, path: Path, change) -> Path:
    """A copy of the run whose summary `change` has had its way with."""
    shutil.copytree(driven, path)
    summary = json.loads((path / "summary.json").read_text())
    change(summary)
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_compare_sees_a_difference(driven, capsys, tmp_path):
    def worse(summary):
        for row in summary["episodes"]:
            row["scores"]["distance_m"][0] -= 10.0

    other = edited(driven, tmp_path / "worse", worse)
    assert main(["compare", str(driven), str(other)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "distance_m" in line)
    assert "these two differ" in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: [row.update(suite="town") for row in s["episodes"]], "suite: came town, expected course"),
        (lambda s: [row.update(scene="x" + row["scene"]) for row in s["episodes"]], "same scenes"),
        (lambda s: [row.pop("scores") for row in s["episodes"]], "vla score"),
    ],
)
def test_compare_rejects(driven, capsys, tmp_path, change, words):
    assert main(["compare", str(driven), str(edited(driven, tmp_path / "other", change))]) == 2
    assert words in capsys.readouterr().err


def test_compare_names_the_failed(driven, capsys, tmp_path):
    def fail(summary):
        summary["episodes"][0].update(log=None, error="RuntimeError: x")

    other = edited(driven, tmp_path / "failed", fail)
    assert main(["compare", str(driven), str(other)]) == 2  # one scene is left, and that is no interval
    assert "two common scenes" in capsys.readouterr().err


def test_score_rejects_a_run_without_episodes(tmp_path, capsys):
    run = Run.create("drive", tmp_path / "run", {}, [])
    run.save()
    assert main(["score", str(run.path)]) == 2
    assert "a run with episodes" in capsys.readouterr().err
    with run.episode("p-bad", "p", 0):
        raise RuntimeError("the wheel came off")
    assert main(["score", str(run.path)]) == 2
    assert "all of them failed" in capsys.readouterr().err
    with pytest.raises(InputError, match="run directory"):
        open_run(tmp_path / "nowhere")


def test_score_with_a_failed_scene_says_so(driven, tmp_path, capsys):
    def fail(summary):
        summary["episodes"][0].update(log=None, error="RuntimeError: x", ended_by="failure")
        summary["scenes"].update(failed=1, finished=summary["scenes"]["finished"] - 1)

    path = edited(driven, tmp_path / "failed", fail)
    assert main(["score", str(path), "--protocol", "plain"]) == 1
    assert "1 FAILED" in capsys.readouterr().out
    metrics = metrics_of(path)
    assert metrics["n_failed"] == 1
    assert metrics["route_completion.n"] == 1


def test_score_names_what_was_interrupted(driven, tmp_path, capsys):
    path = tmp_path / "killed"
    shutil.copytree(driven, path)
    first = sorted((path / "episodes").glob("*.npz"))[0]
    shutil.copy(first, first.with_name("pure-pursuit-seed-0009.unfinished.npz"))
    assert main(["score", str(path), "--protocol", "plain"]) == 1
    assert "1 INTERRUPTED and in no score: pure-pursuit-seed-0009" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["truncated", "foreign version"])
def test_score_rejects_a_damaged_log_and_changes_nothing(driven, tmp_path, capsys, damage):
    path = tmp_path / "run"
    shutil.copytree(driven, path)
    victim = sorted((path / "episodes").glob("*.npz"))[0]
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:3000])
    else:
        with np.load(victim) as columns:
            arrays = {name: columns[name] for name in columns.files}
        arrays["head"] = np.array(json.dumps(json.loads(str(arrays["head"])) | {"version": 1}))
        np.savez(victim, **arrays)
    before = (path / "summary.json").read_bytes()
    assert main(["score", str(path), "--protocol", "plain"]) == 2
    assert victim.name in capsys.readouterr().err
    assert (path / "summary.json").read_bytes() == before


def test_score_rejects_an_unknown_protocol(driven, capsys):
    assert main(["score", str(driven), "--protocol", "nuplann"]) == 2
    assert "Did you mean nuplan?" in capsys.readouterr().err


def test_what_a_killed_episode_recorded_is_kept(tmp_path):
    run = Run.create("drive", tmp_path / "run", {}, [0])
    recorder = EpisodeRecorder("seed-0000", "drive", "p", 0, surroundings=Surroundings("course"))

    def killed():
        with run.episode("p-seed-0000", "p", 0) as episode:
            for k in range(3):
                recorder.frame(100_000 * k, np.zeros(3), 1.0)
                episode.keep(recorder)
            assert not episode.unfinished.exists()  # writing at every frame would cost more than driving
            episode.kept_at_s -= KEEP_EVERY_S
            episode.keep(recorder)
            recorder.frame(300_000, np.zeros(3), 1.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    log = read_episode(tmp_path / "run" / "episodes" / "p-seed-0000.unfinished.npz")
    assert (len(log), log.ended_by) == (3, "unfinished")


def test_a_driven_minute_is_below_a_megabyte(tmp_path):
    env = quiet_env((32, 20), 60.0)
    log = drive_episode(PurePursuit(), env, 2)  # the course with the most traffic of the first few
    env.close()
    write_episode(tmp_path / "minute.npz", log)
    assert log.time_s[-1] == pytest.approx(60.0)
    assert (tmp_path / "minute.npz").stat().st_size < 1_000_000


def test_a_log_of_a_course_is_small_and_knows_its_surroundings(driven):
    for row in json.loads((driven / "summary.json").read_text())["episodes"]:
        log = read_episode(driven / row["log"])
        around = log.surroundings
        assert [lane.id for lane in around.lanes] == ["right", "left"]
        assert (around.suite, around.lights, len(around.areas)) == ("course", "none", 1)
        assert len(log.scene_time_us) == len(log) + 50
        assert around.goal_m > 20
        assert (driven / row["log"]).stat().st_size < 300_000  # of which the map is the most
    assert not list((driven / "episodes").glob("*.unfinished.npz"))


@needs_data
def test_the_recorded_driver_scores_above_constant_velocity(tmp_path):
    path = tmp_path / "run"
    arguments = ["--dataroot", str(DATAROOT), "--scene", "scene-0103", "--policy", "log", "--out", str(path), "--quiet"]
    assert main(["replay", *arguments]) == 0
    assert main(["score", str(path)]) == 0
    policies = json.loads((path / "summary.json").read_text())["policies"]
    log, straight = policies["log"], policies["constant-velocity"]
    assert log["pdms.strict"] > 0.85
    assert log["pdms.strict"] > straight["pdms.strict"] + 0.1
    assert log["pdms.compat"] > straight["pdms.compat"] + 0.1
    assert log["nuscenes.uniad.l2_3s_m"] < 0.2 < straight["nuscenes.uniad.l2_3s_m"]
    assert log["nuscenes.off_road_rate"] == 0.0
    for name in ("red_light_rate", "epdms.strict", "epdms.compat", "nuplan.score", "carla_2_0.driving_score"):
        assert log[f"{name}.n"] == 0  # no lights, no lanes, and nobody drove
        assert name not in log
