import json
import shutil

import numpy as np
import pytest

from policies.baselines import ConstantVelocity
from policies.cli import main
from policies.expert import PurePursuit
from policies.protocol import NOTHING, Privileged, check_policy
from policies.rollout import drive_episode, quiet_env
from policies.runs import Run
from policies.town_expert import TownExpert
from policies.vla_policy import VlaPolicy
from sensors.errors import InputError
from sensors.gym_source import ClipHistory
from sim.rollout_log import read_episode, write_episode
from sim.scenarios import get_scenario
from sim.surroundings import course_lines
from vla.checkpoint import save
from vla.config import ModelConfig
from vla.model import DrivingModel

SIZE = (32, 32)


def test_the_expert_stays_on_the_course_where_constant_velocity_does_not():
    outcomes = {"pure-pursuit": [], "constant-velocity": []}
    for policy in (PurePursuit(), ConstantVelocity()):
        for seed in range(4):
            log = drive_episode(policy, quiet_env(SIZE, 20.0), seed)
            outcomes[policy.name].append((log.ended_by, log.time_s[-1]))
    assert outcomes["pure-pursuit"] == [("time", 20.0)] * 4
    assert all(ended in ("off_road", "collision") and seconds < 15 for ended, seconds in outcomes["constant-velocity"])


def test_same_seed_same_episode_bit_for_bit():
    a, b = (drive_episode(PurePursuit(), quiet_env(SIZE, 3.0), 5) for _ in range(2))
    for name in ("time_us", "ego_xyyaw_in_world", "action", "actor_xyyaw_in_world", "plan_xyyaw_in_world"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    other = drive_episode(PurePursuit(), quiet_env(SIZE, 3.0), 6)
    assert not np.array_equal(a.ego_xyyaw_in_world, other.ego_xyyaw_in_world)


def test_the_log_ends_with_the_state_after_the_last_step():
    log = drive_episode(ConstantVelocity(), quiet_env(SIZE, 15.0), 1)
    assert log.ended_by == "off_road"
    assert log.event.tolist() == ["off_road"]
    assert log.event_frame.tolist() == [len(log) - 1]
    assert np.isnan(log.action[-1]).all()
    assert np.isfinite(log.action[:-1]).all()
    assert np.diff(log.time_us).tolist() == [100_000] * (len(log) - 1)
    assert len(np.unique(log.plan_frame)) == (len(log) - 1 + 4) // 5


def test_a_policy_that_looks_gives_the_same_drive_filmed_or_not(tiny_checkpoint, tmp_path):
    policy = VlaPolicy(tiny_checkpoint)
    run = Run.create("drive", tmp_path / "run", {}, [3])
    with run.episode("filmed", policy.name, 3, fps=10) as episode:
        episode.log = drive_episode(policy, quiet_env(policy.image_size, 1.2), 3, episode)
    plain = drive_episode(policy, quiet_env(policy.image_size, 1.2), 3)
    np.testing.assert_array_equal(episode.log.ego_xyyaw_in_world, plain.ego_xyyaw_in_world)
    row = run.summary["episodes"][0]
    assert row["error"] == ""
    assert (run.path / row["video"]).stat().st_size > 1000
    assert all((run.path / sheet).is_file() for sheet in row["sheets"])


def test_the_expert_passes_the_policy_checker_and_needs_a_world():
    env = quiet_env(SIZE, 5.0)
    observation, _ = env.reset(seed=0)
    history = ClipHistory(env.cameras, 1)
    history.append(observation)
    clip = history.clip()
    check_policy(PurePursuit(), [(clip, Privileged(world=env.world))])
    with pytest.raises(InputError, match="vla drive"):
        PurePursuit().plan(clip, NOTHING)


def test_road_lines_are_closed_and_where_the_lanes_are():
    env = quiet_env(SIZE, 5.0)
    env.reset(seed=0)
    lines = course_lines(env.world.road)
    assert sorted({kind for kind, _ in lines}) == ["centre", "lane_edge"]
    assert len(lines) == 6
    for _, xy in lines:
        np.testing.assert_array_equal(xy[0], xy[-1])


@pytest.fixture(scope="module")
def town_log(tmp_path_factory):
    """The expert on a short route, as it is read back, and the bytes on the disk."""
    scenario = get_scenario("town-smoke/1")
    env = quiet_env(SIZE, start=scenario)
    log = drive_episode(TownExpert(), env, scenario)
    env.close()
    path = tmp_path_factory.mktemp("town") / "log.npz"
    write_episode(path, log)
    return read_episode(path), path.stat().st_size


def test_a_town_drive_is_logged_with_all_that_scoring_asks_for(town_log):
    log, _ = town_log
    assert log.ended_by == "route_completed"
    assert log.event[-1] == "route_completed"
    assert log.event_frame[-1] == len(log) - 1
    assert (log.name, log.suite, log.town, log.weather) == ("town-smoke/1", "town-smoke", "irregular", "clear")
    assert len(log.scene_time_us) == len(log) + 50
    around = log.surroundings
    assert {layer for layer, _ in around.areas} == {"drivable", "intersection", "crossing", "walkway"}
    on_route = [lane for lane in around.lanes if lane.on_route]
    assert 2 < len(on_route) < len(around.lanes)
    assert all(5 < lane.limit_mps < 40 and lane.width_m > 2 for lane in around.lanes)
    along = [np.hypot(*(around.route_m - xy).T).min() for xy in log.ego_xyyaw_in_world[:, :2]]
    assert max(along) < 3.5  # one lane aside at most
    at = int(np.argmin(np.hypot(*(around.route_m - log.ego_xyyaw_in_world[-1, :2]).T)))
    passed_m = np.hypot(*np.diff(around.route_m, axis=0).T)[:at].sum()
    assert abs(passed_m - around.goal_m) < 3.0


def test_a_town_log_says_why_and_what_the_route_asks_for(town_log):
    log, _ = town_log
    planned = np.unique(log.plan_frame)
    assert all(log.reason_at(frame) for frame in planned)
    assert log.reason_at(int(planned[0]) + 1) == ""
    assert log.cue_at(0)[0] in ("follow", "left", "right", "straight", "lane_left", "lane_right")
    assert len(set(log.instruction.tolist())) > 3
    assert log.cue_at(len(log) - 1) == (log.command[-1], log.instruction[-1])


def test_a_town_log_is_small(town_log):
    log, size = town_log
    assert size * 60 / log.time_s[-1] < 500_000  # of the megabyte a minute, with twice the traffic in mind


def test_red_lanes_are_those_of_red_lights_on_the_route():
    scenario = get_scenario("town-smoke/0")
    env = quiet_env(SIZE, 40.0, scenario)
    log = drive_episode(ConstantVelocity(), env, scenario)
    env.close()
    assert log.lights == "recorded"
    assert log.ended_by == "time"
    red = np.unique(log.red_lane)
    lanes = [log.surroundings.lanes[k] for k in red]
    assert lanes
    assert all(lane.on_route and lane.id.startswith(":") for lane in lanes)
    assert 0 < len(log.red_frame) < len(log.scene_time_us) * len(red)  # they are not red all the time


def test_drive_from_the_command_line_scores_policy_and_baselines(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["--suite", "course", "--episodes", "2", "--seconds", "2", "--image-size", "64x40", "--quiet"]
    arguments += ["--workers", "1"]
    assert main(["drive", *arguments, "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["scenes"] == {"asked": 6, "finished": 6, "failed": 0}
    assert set(summary["policies"]) == {"pure-pursuit", "constant-velocity", "ego-status"}
    assert summary["metrics"]["time_on_course_s"] == 2.0
    assert summary["metrics"]["time_on_course_s.n"] == 2
    assert summary["seeds"] == [0, 1]
    assert summary["version"]
    for row in summary["episodes"]:
        assert read_episode(out / row["log"]).policy == row["policy"]
    assert str(out / "report.html") in capsys.readouterr().out
    assert main(["report", str(out)]) == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").touch()
    assert main(["drive", *arguments, "--out", str(tmp_path / "mine")]) == 2
    assert "not empty" in capsys.readouterr().err


def test_an_interrupted_drive_is_gone_on_with(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["drive", "--suite", "course", "--episodes", "2", "--seconds", "2", "--image-size", "64x40", "--quiet"]
    arguments += ["--out", str(out)]
    assert main([*arguments, "--workers", "1"]) == 0
    whole = json.loads((out / "summary.json").read_text())
    written = {row["name"]: (out / row["log"]).stat().st_mtime_ns for row in whole["episodes"]}
    # Killed while it drove: the third was finished and is in no row, one row's log is gone, one episode had failed.
    kept, gone, failed = (row["name"] for row in (whole["episodes"][k] for k in (0, 1, 3)))
    (out / "episodes" / f"{gone}.npz").unlink()
    rows = [row | {"log": None, "error": "E: x"} if row["name"] == failed else row for row in whole["episodes"][:4]]
    cut = whole | {"episodes": [rows[0], rows[1], rows[3]], "git_commit": "another", "metrics": {}, "policies": {}}
    (out / "summary.json").write_text(json.dumps(cut))
    capsys.readouterr()
    assert main([*arguments, "--workers", "2"]) == 0
    assert "6 of 6 scenes finished" in capsys.readouterr().out
    again = json.loads((out / "summary.json").read_text())
    assert again["earlier_commits"] == ["another"]
    assert "begun at another" in (out / "report.html").read_text()
    for key in ("episodes", "scenes", "metrics", "policies", "seeds"):
        assert again[key] == whole[key], key
    later = {row["name"] for row in again["episodes"] if (out / row["log"]).stat().st_mtime_ns > written[row["name"]]}
    assert later == set(written) - {kept}

    assert main([*arguments, "--workers", "2"]) == 0  # nothing is left to do
    assert json.loads((out / "summary.json").read_text())["episodes"] == again["episodes"]
    for other, words in (
        (["--seconds", "3"], "seconds: came 3.0, expected 2.0, as"),
        (["--seed", "1"], "seed: came 1"),
    ):
        assert main([*arguments, *other]) == 2
        assert words in capsys.readouterr().err
    assert json.loads((out / "summary.json").read_text())["episodes"] == again["episodes"]


def test_a_drive_goes_on_with_the_same_weights_only(tmp_path, capsys):
    for seed in (0, 1):
        save(tmp_path / str(seed), DrivingModel(ModelConfig(), seed=seed))
    arguments = ["drive", "--suite", "course", "--episodes", "1", "--seconds", "0.5", "--policy", "vla", "--quiet"]
    arguments += ["--videos", "0", "--clips", "0", "--out", str(tmp_path / "run"), "--checkpoint", str(tmp_path / "at")]
    shutil.copytree(tmp_path / "0", tmp_path / "at")
    assert main(arguments) == 0
    shutil.rmtree(tmp_path / "at")
    shutil.copytree(tmp_path / "1", tmp_path / "at")
    assert main(arguments) == 2
    assert "weights: came " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_drive_what_one_drives(tmp_path):
    arguments = ["--suite", "hazard-jaywalker", "--episodes", "2", "--seconds", "8", "--image-size", "64x40", "--quiet"]
    for workers in "12":
        assert main(["drive", *arguments, "--workers", workers, "--out", str(tmp_path / workers)]) == 0
    one, two = (json.loads((tmp_path / workers / "summary.json").read_text()) for workers in "12")
    assert one["metrics"] == two["metrics"]
    assert [row["name"] for row in one["episodes"]] == [row["name"] for row in two["episodes"]]
    for row in one["episodes"]:
        assert (tmp_path / "1" / row["log"]).read_bytes() == (tmp_path / "2" / row["log"]).read_bytes()
