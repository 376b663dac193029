import json

import numpy as np
import pytest

from policies.baselines import ConstantVelocity
from policies.cli import main
from policies.expert import PurePursuit
from policies.protocol import NOTHING, Privileged, check_policy
from policies.rollout import drive_episode, quiet_env, road_lines
from policies.runs import Run
from policies.vla_policy import VlaPolicy
from sensors.errors import InputError
from sensors.gym_source import ClipHistory
from sim.rollout_log import read_episode

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
    lines = road_lines(env.world)
    assert sorted({kind for kind, _ in lines}) == ["centre", "lane_edge"]
    assert len(lines) == 6
    for _, xy in lines:
        np.testing.assert_array_equal(xy[0], xy[-1])


def test_drive_from_the_command_line_scores_policy_and_baselines(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["--episodes", "2", "--seconds", "2", "--videos", "1", "--image-size", "64x40", "--quiet"]
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
    assert main(["drive", *arguments, "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err
