"""A bag is planned on as the scene that it came from: the same clips, the same plans."""

import json
from pathlib import Path

import numpy as np
import pytest
from real_data import DATAROOT, needs_data

from policies.bags import BAG_VERSION, record_bag, unpack_bag
from policies.cli import main
from policies.repeat import BEYOND_M, read_route
from sensors.errors import InputError
from sensors.nuscenes_index import NuscenesIndex
from sensors.nuscenes_source import NuscenesSource
from sensors.ros2_recording import messages_of
from sensors.ros2_topics import ODOMETRY
from sensors.source import check_source
from sim.rollout_log import read_episode

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install -e '.[bags]'")
OF_CLIP = ("now_us", "T_world_from_ego_now", "images", "image_mask", "time_us", "T_world_from_ego")


def assert_same_clips(before: NuscenesSource, after: NuscenesSource, scene: str) -> None:
    """To the last bit, but for where a camera sits: its matrix is stored as a quaternion on the way."""
    (name,) = after.scenes
    assert np.array_equal(before.frame_times_us(scene), after.frame_times_us(name))
    for frame in range(len(before.frame_times_us(scene))):
        one, other = before.clip(scene, frame), after.clip(name, frame)
        for field in OF_CLIP:
            assert np.array_equal(getattr(one, field), getattr(other, field)), (frame, field)
        assert np.array_equal([*vars(one.vehicle).values()], [*vars(other.vehicle).values()], equal_nan=True)
        for field in ("time_us", "accel_mps2", "gyro_radps"):
            assert np.array_equal(getattr(one.imu, field), getattr(other.imu, field)), (frame, field)
        assert (one.command, one.instruction) == (other.command, other.instruction)
        for a, b in zip(one.cameras, other.cameras, strict=True):
            assert (a.name, a.width, a.height, a.distortion, a.coefficients) == (
                *(b.name, b.width, b.height),
                *(b.distortion, b.coefficients),
            )
            assert np.array_equal(a.K, b.K)
            np.testing.assert_allclose(a.T_ego_from_cam, b.T_ego_from_cam, rtol=0, atol=2e-15)


def plans(run: Path) -> dict[str, np.ndarray]:
    rows = json.loads((run / "summary.json").read_text())["episodes"]
    return {row["policy"]: read_episode(run / row["log"]).plan_xyyaw_in_world for row in rows}


def replay(out: Path, *arguments: object) -> dict[str, np.ndarray]:
    assert main(["replay", *map(str, arguments), "--quiet", "--out", str(out)]) == 0
    return plans(out)


@needs_data
@pytest.mark.parametrize(
    ("scene", "blind"),
    [("scene-0061", ()), pytest.param("scene-0103", ("--mask-cameras",), marks=pytest.mark.slow)],
)
def test_a_real_scene_over_a_bag_gives_the_same_clips_and_plans(tmp_path, tiny_checkpoint, scene, blind):
    bag = tmp_path / "bag"
    record_bag(DATAROOT, "v1.0-mini", scene, bag, progress=False)
    made = unpack_bag(bag, None, tmp_path / "root", progress=False)
    assert (made.scene, made.drive.problems()) == (scene, [])
    before = NuscenesSource(DATAROOT, "v1.0-mini", (scene,), 4, (400, 225))
    after = NuscenesSource(tmp_path / "root", BAG_VERSION, None, 4, (400, 225))
    check_source(after)
    assert_same_clips(before, after, scene)
    policy = ("--policy", "vla", "--checkpoint", tiny_checkpoint, *blind)
    of_scene = replay(tmp_path / "a", "--dataroot", DATAROOT, "--scene", scene, *policy)
    of_bag = replay(tmp_path / "b", bag, *policy)
    assert of_scene.keys() == of_bag.keys()
    assert len(of_scene) == 3
    for name in of_scene:
        assert len(of_scene[name])
        assert np.array_equal(of_scene[name], of_bag[name]), name


def test_a_recorded_course_over_a_bag_and_back(tmp_path, course_dataroot):
    bag, scene = tmp_path / "bag", "scene-1001"
    assert main(["ros", "record", "--dataroot", str(course_dataroot), "--scene", scene, "--out", str(bag)]) == 0
    assert main(["ros", "unpack", str(bag), "--out", str(tmp_path / "root"), "--quiet"]) == 0
    before = NuscenesSource(course_dataroot, "v1.0-mini", (scene,), 2)
    after = NuscenesSource(tmp_path / "root", BAG_VERSION, None, 2)
    assert after.scenes == (scene,)
    assert_same_clips(before, after, scene)
    assert after.index.scene(scene).location == before.index.scene(scene).location
    of_scene = replay(tmp_path / "a", "--dataroot", course_dataroot, "--scene", scene)
    of_bag = replay(tmp_path / "b", bag)
    assert all(np.array_equal(of_scene[name], of_bag[name]) for name in of_scene)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "came none"),
        (("a.mcap", "--dataroot", "data"), "came bag and dataroot"),
        (("nowhere",), "nothing there"),
        (("nowhere", "--version", "v1.0-mini"), "came --version"),
        (("nowhere", "--scene", "scene-0001"), "came --scene"),
        (("--dataroot", "data", "--calibration", "car.json"), "--calibration"),
    ],
)
def test_replay_rejects(arguments, complaint, capsys):
    assert main(["replay", *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_a_bag_is_never_written_over(tmp_path, course_dataroot):
    record_bag(course_dataroot, "v1.0-mini", None, tmp_path / "bag", progress=False)
    files = {path: path.read_bytes() for path in (tmp_path / "bag").iterdir()}
    with pytest.raises(InputError, match="there already"):
        record_bag(course_dataroot, "v1.0-mini", None, tmp_path / "bag", progress=False)
    assert files == {path: path.read_bytes() for path in (tmp_path / "bag").iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]


def test_the_way_of_a_bag_or_a_run_is_taught(tmp_path, course_dataroot, capsys):
    bag, out, run = tmp_path / "bag", tmp_path / "route.json", tmp_path / "run"
    record_bag(course_dataroot, "v1.0-mini", "scene-1001", bag, progress=False)
    assert main(["ros", "teach", str(bag), "--max-speed", "4", "--out", str(out)]) == 0
    assert "at most 4 m/s" in capsys.readouterr().out
    index = NuscenesIndex(course_dataroot, "v1.0-mini")
    driven = [sent for sent in messages_of(index, index.scene("scene-1001")) if sent.topic == ODOMETRY]
    at_m = np.array([[*sent.fields()["pose"]["pose"]["position"].values()][:2] for sent in driven])
    route = read_route(out)
    assert len(route.xy_m) > 10
    beyond = np.hypot(*(route.xy_m[-1] - at_m[-1]))
    assert beyond == pytest.approx(BEYOND_M - 1, abs=1.5)
    assert np.hypot(*(route.xy_m[: -BEYOND_M + 1, None] - at_m).T).min(0).max() < 1e-9
    given = ("--dataroot", course_dataroot, "--scene", "scene-1001", "--policy", "log")
    replay(run, *given)
    assert main(["ros", "teach", str(run), "--out", str(out)]) == 0
    assert read_route(out).max_speed_mps == 6.0


@pytest.mark.parametrize(
    ("made", "words", "complaint"),
    [
        ("nothing", (), "nothing there"),
        ("run", ("--episode", "log-scene-100"), "Did you mean"),
        ("bag", ("--max-speed", "90"), "max_speed_mps: came 90.0"),
    ],
)
def test_teach_rejects(tmp_path, course_dataroot, capsys, made, words, complaint):
    source, out = tmp_path / made, tmp_path / "route.json"
    if made == "bag":
        record_bag(course_dataroot, "v1.0-mini", "scene-1001", source, progress=False)
    elif made == "run":
        replay(source, "--dataroot", course_dataroot, "--scene", "scene-1001", "--policy", "log")
    assert main(["ros", "teach", str(source), *words, "--out", str(out)]) == 2
    assert complaint in capsys.readouterr().err
    assert not out.exists()
