import json
from dataclasses import replace

import numpy as np
import pytest
from real_data import DATAROOT, needs_data

from policies.cli import main
from policies.replay import MASK_FLAG
from sim.metrics.log_view import LogView
from sim.metrics.replay_protocols import nuscenes
from sim.rollout_log import read_episode
from vla.checkpoint import save
from vla.config import ModelConfig
from vla.model import DrivingModel


def devkit_constant_velocity_errors() -> np.ndarray:
    """Slow twin by the official devkit: [keyframes, 6] errors in m, straight on at the CAN bus speed, scene-0103."""
    from nuscenes.can_bus.can_bus_api import NuScenesCanBus
    from nuscenes.nuscenes import NuScenes
    from pyquaternion import Quaternion

    nusc = NuScenes("v1.0-mini", str(DATAROOT), verbose=False)
    bus = [(m["utime"], m["vel"][0]) for m in NuScenesCanBus(str(DATAROOT)).get_messages("scene-0103", "pose")]
    scene = next(s for s in nusc.scene if s["name"] == "scene-0103")
    times, poses, token = [], [], scene["first_sample_token"]
    while token:
        sample = nusc.get("sample", token)
        pose = nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
        times.append(sample["timestamp"])
        poses.append((pose["translation"][:2], Quaternion(pose["rotation"]).yaw_pitch_roll[0]))
        token = sample["next"]
    times, xy = np.array(times), np.array([p for p, _ in poses])
    rows = []
    for k, (now, (start, yaw)) in enumerate(zip(times, poses, strict=True)):
        past = [speed for t, speed in bus if now - 200_000 <= t <= now]
        if not past or times[-1] < now + 3_000_000:
            # The first keyframe is older than the bus: speed from the way to the next capture is ours, not the twin's.
            rows.append(np.full(6, np.nan))
            continue
        at = now + np.arange(1, 7) * 500_000
        truth = np.stack([np.interp(at - times[0], times - times[0], xy[:, c]) for c in (0, 1)], axis=1)
        plan = np.array(start) + np.outer(np.arange(1, 7) * 0.5 * past[-1], [np.cos(yaw), np.sin(yaw)])
        rows.append(np.linalg.norm(plan - truth, axis=1))
        assert k < len(times) - 6 or np.isnan(rows[-1]).all()
    return np.array(rows)


@needs_data
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_constant_velocity_on_the_real_scenes(tmp_path):
    run = tmp_path / "run"
    data = ["--dataroot", str(DATAROOT), "--version", "v1.0-mini"]
    assert main(["replay", *data, "--policy", "constant-velocity", "--out", str(run), "--quiet"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["scenes"] == {"asked": 4, "finished": 4, "failed": 0}
    metrics = summary["metrics"]
    errors = devkit_constant_velocity_errors()
    known = errors[~np.isnan(errors).any(axis=1)]
    assert metrics["n_keyframes"] == len(known) + 1  # the twin leaves out the first keyframe
    # The one keyframe that the twin lacks can move the mean by no more than its own share.
    assert metrics["ade_3s_m"] == pytest.approx(known.mean(), rel=0.03)
    assert metrics["fde_3s_m"] == pytest.approx(known[:, -1].mean(), rel=0.03)
    assert metrics["ade_1s_m"] == pytest.approx(known[:, :2].mean(), rel=0.03)
    assert (run / "report.html").stat().st_size > 10_000


@needs_data
def test_the_log_scores_as_the_human(tmp_path):
    run = tmp_path / "run"
    arguments = ["--dataroot", str(DATAROOT), "--scene", "scene-0103", "--policy", "log", "--out", str(run), "--quiet"]
    assert main(["replay", *arguments]) == 0
    policies = json.loads((run / "summary.json").read_text())["policies"]
    assert policies["log"]["ade_3s_m"] < 0.02 < policies["constant-velocity"]["ade_3s_m"]
    figures = nuscenes(LogView(read_episode(run / "episodes" / "log-scene-0103.npz")))
    for convention in ("uniad", "stp3", "hybrid"):
        assert figures[f"nuscenes.{convention}.l2_3s_m"][0] < 0.05
        assert figures[f"nuscenes.{convention}.obj_box_col_3s"][:2] == (0.0, True)
    assert figures["nuscenes.off_road_rate"][:2] == (0.0, True)


@needs_data
def test_vla_on_real_images_and_without(tmp_path, tiny_checkpoint, capsys):
    data = ["--dataroot", str(DATAROOT), "--policy", "vla", "--checkpoint", str(tiny_checkpoint), "--quiet"]
    assert main(["replay", *data, "--scene", "scene-0061", "--out", str(tmp_path / "seeing")]) == 0
    summary = json.loads((tmp_path / "seeing" / "summary.json").read_text())
    episode = next(row for row in summary["episodes"] if row["policy"] == "vla")
    assert episode["sheets"]
    assert all((tmp_path / "seeing" / sheet).is_file() for sheet in episode["sheets"])
    assert main(["replay", *data, "--scene", "scene-0103", "--out", str(tmp_path / "refused")]) == 2
    message = capsys.readouterr().err
    assert "scene-0103" in message
    assert "none of 240 camera files" in message
    assert MASK_FLAG in message
    assert not (tmp_path / "refused").exists()
    assert main(["replay", *data, "--scene", "scene-0103", MASK_FLAG, "--out", str(tmp_path / "blind")]) == 0
    assert json.loads((tmp_path / "blind" / "summary.json").read_text())["metrics"]["n_keyframes"] == 34


@needs_data
def test_a_policy_of_one_step_is_replayed_beside_baselines_of_two(tmp_path):
    save(tmp_path / "one", DrivingModel(replace(ModelConfig.tiny(), steps=1)))
    arguments = ["--scene", "scene-0061", "--policy", "vla", "--checkpoint", str(tmp_path / "one"), "--quiet"]
    assert main(["replay", "--dataroot", str(DATAROOT), *arguments, "--out", str(tmp_path / "run")]) == 0


@needs_data
def test_the_shipped_policy_does_not_replay_what_has_no_images(capsys):
    assert main(["replay", "--dataroot", str(DATAROOT), "--policy", "vla", "--quiet"]) == 2
    assert "run it blind on purpose with --mask-cameras" in capsys.readouterr().err


def test_replay_rejects_policies_that_need_a_world(capsys):
    with pytest.raises(SystemExit) as exit_of:
        main(["replay", "--dataroot", "x", "--policy", "pure-pursuit"])
    assert exit_of.value.code == 2
    assert "constant-velocity" in capsys.readouterr().err


def test_replay_rejects_what_is_no_dataroot(tmp_path, capsys):
    assert main(["replay", "--dataroot", str(tmp_path / "nowhere"), "--quiet"]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_plain_folder_is_replayed_through_the_same_protocol(tmp_path, tiny_checkpoint, capsys):
    """Two cars on one straight road: constant velocity is right, and a scene of one frame has no score, but counts."""
    for name, frames in (("a", 9), ("b", 1)):
        (tmp_path / "plain" / name).mkdir(parents=True)
        camera = {"width": 8, "height": 8, "K": [[8, 0, 4], [0, 8, 4], [0, 0, 1]], "T_ego_from_cam": np.eye(4).tolist()}
        rows = [
            {"time_us": 500_000 * k, "T_world_from_ego": (np.eye(4) + np.eye(4, k=3) * 4.0 * k).tolist(), "images": {}}
            for k in range(frames)
        ]
        content = {"cameras": {"FRONT": camera}, "frames": rows}
        (tmp_path / "plain" / name / "recording.json").write_text(json.dumps(content))
    source, out = ["--source", str(tmp_path / "plain")], ["--out", str(tmp_path / "run"), "--quiet"]
    assert main(["replay", *source, "--image-size", "8x8", "--policy", "log", *out]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["scenes"] == {"asked": 6, "finished": 6, "failed": 0}
    assert summary["policies"]["log"]["ade_3s_m"] == pytest.approx(0, abs=1e-6)
    assert summary["metrics"]["n_keyframes"] == 3
    assert main(["replay", *source, "--closed-loop", "--policy", "log", *out]) == 2
    assert "vla export --source" in capsys.readouterr().err
    assert main(["replay", *source, "--policy", "vla", "--checkpoint", str(tiny_checkpoint), *out]) == 2
    assert "none of 0 camera files" in capsys.readouterr().err


@needs_data
def test_a_split_that_is_not_whole_is_refused(capsys):
    data = ["replay", "--dataroot", str(DATAROOT), "--quiet"]
    assert main([*data, "--split", "mini_val"]) == 2
    assert "1 of its 2 scenes missing: scene-0916" in capsys.readouterr().err
    assert main([*data, "--split", "val"]) == 2
    assert "expected --version v1.0-trainval" in capsys.readouterr().err
    assert main([*data, "--split", "vall"]) == 2
    assert "Did you mean val?" in capsys.readouterr().err
