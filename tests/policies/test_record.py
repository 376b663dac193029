import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from small_recording import SCENE_STEPS, SCENES, SMALL_IMAGE

from policies.cli import main
from policies.record import COMMIT_WITHIN_S, Tally, record
from policies.runs import Run
from policies.shoot import (
    TOWN_PUSH_EVERY_S,
    TOWN_PUSH_MPS2,
    TOWN_PUSH_S,
    Bursts,
    Recording,
    Shot,
    scene_name,
)
from sensors.nuscenes_recorder import StagedScene
from sensors.nuscenes_source import NuscenesSource
from sensors.nuscenes_writer import NuscenesWriter
from sensors.source import check_source
from sim.roads import Course
from sim.surroundings import drivable_mask_of_course

ARGUMENTS = ["--steps", "8", "--scene-steps", "4", "--image-size", "64x32", "--workers", "1", "--quiet"]


def test_our_source_reads_the_recording(course_dataroot):
    source = NuscenesSource(course_dataroot, "v1.0-mini")
    assert check_source(source) == SCENES * 3
    assert source.scenes == tuple(scene_name(1000 + k) for k in range(SCENES))
    clip = source.clip(source.scenes[0], 5)
    assert (clip.cameras[0].width, clip.cameras[0].height) == SMALL_IMAGE
    assert clip.image_mask.all()
    assert len(clip.imu) == 100
    assert np.isfinite([clip.vehicle.speed_mps, clip.vehicle.yaw_rate_radps, clip.vehicle.steering_rad]).all()
    future = source.future(source.scenes[0], 5)
    np.testing.assert_array_equal(np.diff(future.time_us, prepend=clip.now_us), 500_000)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_official_devkit_loads_walks_and_renders_it(course_dataroot, tmp_path, capsys):
    import matplotlib

    matplotlib.use("Agg")
    from nuscenes.can_bus.can_bus_api import NuScenesCanBus
    from nuscenes.nuscenes import NuScenes

    nusc = NuScenes("v1.0-mini", str(course_dataroot), verbose=False)
    nusc.list_scenes()
    assert "course" in capsys.readouterr().out
    walked = 0
    for scene in nusc.scene:
        token = scene["first_sample_token"]
        while token:
            sample = nusc.get("sample", token)
            for channel in sample["data"].values():
                _, _, K = nusc.get_sample_data(channel)
                assert K.shape == (3, 3)
            walked += 1
            token = sample["next"]
    assert walked == SCENES * SCENE_STEPS
    out = tmp_path / "camera.png"
    nusc.render_sample_data(nusc.sample[3]["data"]["CAM_FRONT"], out_path=str(out), verbose=False)
    assert out.stat().st_size > 10_000
    bus = NuScenesCanBus(str(course_dataroot))
    assert len(bus.get_messages(scene_name(1000), "ms_imu")) >= (SCENE_STEPS - 1) * 50
    matplotlib.pyplot.close("all")


def test_recording_goes_on_and_does_nothing_twice(tmp_path, capsys):
    out = tmp_path / "data"
    assert main(["record", "--out", str(out), *ARGUMENTS]) == 0
    samples = out / "samples"
    first = {p: p.stat().st_mtime_ns for p in samples.rglob("*.jpg")}
    assert len(first) == 8 * 6
    assert main(["record", "--out", str(out), *ARGUMENTS]) == 0
    assert "2 of 2 scenes finished, 8 keyframes" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in samples.rglob("*.jpg")} == first
    summary = json.loads((out / "summary.json").read_text())
    assert summary["metrics"]["n_keyframes"] == 8
    assert [row["name"] for row in summary["episodes"]] == ["scene-1000", "scene-1001"]
    assert summary["episodes"][0]["video"]
    assert main(["record", "--out", str(out), *ARGUMENTS, "--steps", "12"]) == 0
    assert len(list(samples.rglob("*.jpg"))) == 12 * 6


def test_two_recordings_of_one_seed_are_the_same_bytes(tmp_path):
    for name in "ab":
        run = Run.create("record", tmp_path / name, {}, [1000])
        record(run, Recording(run.path, "v1.0-mini", image_size=SMALL_IMAGE, keyframes=4), 4, 1000, progress=False)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a" / "samples").rglob("*.jpg"))
    assert files
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    clips = [NuscenesSource(tmp_path / name, "v1.0-mini").clip("scene-1000", 3) for name in "ab"]
    np.testing.assert_array_equal(clips[0].T_world_from_ego, clips[1].T_world_from_ego)
    np.testing.assert_array_equal(clips[0].imu.accel_mps2, clips[1].imu.accel_mps2)


def test_numbers_that_the_devkit_refuses_are_skipped(tmp_path):
    run = Run.create("record", tmp_path / "data", {}, [160])
    record(run, Recording(run.path, "v1.0-mini", image_size=SMALL_IMAGE, keyframes=1), 2, 160, progress=False)
    assert NuscenesWriter(tmp_path / "data", "v1.0-mini").scenes == ("scene-0160", "scene-0169")


def test_the_map_raster_is_the_road(tmp_path):
    road = Course.generate(1000)
    mask = drivable_mask_of_course(road)
    rng = np.random.default_rng(0)
    points = rng.uniform(0, np.array(mask.shape[::-1]) / 10, (4000, 2))
    near = np.abs(road.distance_m(points) - road.half_width_m) < 0.25  # the rasters' and the strips' own coarseness
    column, row = np.floor(points * (10, -10)).astype(int).T + np.array([[0], [mask.shape[0]]])
    inside = mask[np.clip(row, 0, mask.shape[0] - 1), column] > 0
    np.testing.assert_array_equal(inside[~near], road.drivable(points)[~near])
    assert inside.any()


@pytest.mark.parametrize("town", [False, True])
def test_bursts_are_short_rare_and_of_both_signs(town):
    how = (TOWN_PUSH_MPS2, TOWN_PUSH_EVERY_S, TOWN_PUSH_S) if town else ()
    bursts = Bursts(np.random.default_rng(0), *how)
    values = np.array([bursts.at(0.1 * k) for k in range(3000)])
    assert 0.05 < np.mean(values != 0) < 0.25
    assert values.min() < 0 < values.max()
    if town:
        assert TOWN_PUSH_MPS2[0] <= values.min() < 0.8 * TOWN_PUSH_MPS2[0]
        assert 0.8 * TOWN_PUSH_MPS2[1] < values.max() <= TOWN_PUSH_MPS2[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "10000"], "1 to 9999"),
        (["--seed", "165"], "one that the devkit accepts"),
        (["--suite", "town-trian"], "Did you mean town-train?"),
        (["--suite", "town-val", "--seed", "200"], "town-val/0 to town-val/199"),
        (["--suite", "town-train", "--seed", "20000"], "scene names have four digits"),
    ],
)
def test_record_rejects(arguments, words, tmp_path, capsys):
    assert main(["record", "--out", str(tmp_path / "x"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "arguments", [["--hours", "0"], ["--hz", "5"], ["--steps", "0"], ["--hours", "1", "--steps", "9"]]
)
def test_record_rejects_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as exit_of:
        main(["record", *arguments])
    assert exit_of.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite", "town-val"], "suite: came town-val into a recording of course"),
        (["--image-size", "32x32"], "image_size: came [32, 32] into a recording of [64, 32]"),
        (["--hz", "10"], "hz: came 10 into a recording of 2"),
        (["--version", "v1.0-test"], "v1.0-test into a dataroot that holds v1.0-mini"),
    ],
)
def test_a_dataroot_holds_one_kind_of_recording(course_dataroot, arguments, words, capsys):
    same = ["--image-size", "64x32", "--scene-steps", "12", "--hz", "2"]
    assert main(["record", "--out", str(course_dataroot), *same, *arguments, "--quiet"]) == 2
    assert words in capsys.readouterr().err


def test_record_rejects_a_folder_that_others_made(tmp_path, capsys):
    (tmp_path / "v1.0-mini").mkdir()
    assert main(["record", "--out", str(tmp_path), *ARGUMENTS]) == 2
    assert "v1.0-mini" in capsys.readouterr().err


TOWN = ["record", "--suite", "hazard-cut-in", "--image-size", "48x32", "--renderer", "cv", "--videos", "0", "--quiet"]


@pytest.fixture(scope="module")
def town_dataroot(tmp_path_factory):
    """One scene of the town at 10 Hz, by one process."""
    out = tmp_path_factory.mktemp("town") / "data"
    assert main([*TOWN, "--steps", "10", "--workers", "1", "--out", str(out)]) == 0
    return out


def test_a_town_scene_is_whole_and_knows_more_than_nuscenes(town_dataroot):
    source = NuscenesSource(town_dataroot, "v1.0-mini")
    assert source.scenes == ("scene-0001",)
    check_source(source)
    count = len(source.frame_times_us("scene-0001"))
    assert count > 40
    extension = source.extension("scene-0001")
    assert (extension.scenario, extension.town, extension.weather) == ("hazard-cut-in/0", "grid", "clear")
    times_us = source.frame_times_us("scene-0001")
    np.testing.assert_array_equal(extension.plan_time_us, times_us)
    assert extension.plan_at(times_us[3]).shape == (8, 3)
    assert extension.plan_at(times_us[3] + 1) is None
    assert all(":" in reason for reason in extension.reasons)
    clips = [source.clip("scene-0001", k) for k in range(0, count, 10)]
    assert len({clip.instruction for clip in clips}) > 1
    assert len({state for state in extension.lights if state}) > 1
    assert {letter for states in extension.lights for letter in states} <= set("ruyYgG")
    assert extension.events == (("route_completed", "", "ego"),)
    away = [np.hypot(*(extension.route_m - clip.T_world_from_ego_now[:2, 3]).T).min() for clip in clips]
    assert max(away) < 3.5
    assert any(box.startswith("vehicle") for box in source.future("scene-0001", 5).boxes_now.categories)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_official_devkit_walks_a_town_scene(town_dataroot):
    from nuscenes.nuscenes import NuScenes

    nusc = NuScenes("v1.0-mini", str(town_dataroot), verbose=False)
    scene = nusc.scene[0]
    row = nusc.get("sample_data", nusc.get("sample", scene["first_sample_token"])["data"]["CAM_FRONT"])
    images = 0
    while True:
        images += 1
        assert os.path.getsize(nusc.get_sample_data_path(row["token"])) > 300
        if not row["next"]:
            break
        row = nusc.get("sample_data", row["next"])
    assert images == 5 * (scene["nbr_samples"] - 1) + 1
    mask = nusc.map[0]["mask"]
    on_road = [
        mask.mask()[tuple(int(v) for v in reversed(mask.to_pixel_coords(*np.array(pose["translation"][:2]))))]
        for pose in nusc.ego_pose[::50]
    ]
    assert all(on_road)


def test_scenes_are_committed_in_time_however_long_a_commit_once_took(monkeypatch):
    """A machine that slept through a commit makes it look slow; what is whole must not wait for the end then."""
    now_s, commits = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])

    def commit(staged, notes):
        commits.append(len(staged))
        now_s[0] += 3600.0

    recording = SimpleNamespace(writer=SimpleNamespace(commit=commit))
    notes = {"discarded": {}, "kept_discarded": {}}
    with Tally(SimpleNamespace(add=list), recording, notes, 10**6, {}, progress=False) as tally:
        for k in range(20):
            now_s[0] += 60.0
            tally.take(Shot(k, "route_completed", 10, StagedScene(f"scene-{k:04d}", {}), {}))
    assert commits[0] == 1
    assert len(commits) > 3
    assert max(commits) <= COMMIT_WITHIN_S / 60.0 + 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_recording_goes_on_and_leaves_no_half_scene(town_dataroot, tmp_path, capsys):
    out = tmp_path / "data"
    arguments = [*TOWN, "--steps", "10", "--workers", "2", "--out", str(out)]
    code = "import sys; from policies.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *arguments])
    staged = out / ".v1.0-mini.staging"
    try:
        while not list(staged.rglob("*.jpg")):
            assert process.poll() is None
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / "v1.0-mini").exists()
    assert not (out / "samples").exists()
    assert main(arguments) == 0
    assert "1 of 1 scenes finished" in capsys.readouterr().out
    assert not list(out.glob(".v1.0-mini.staging*"))

    def contents(root):
        files = {path.relative_to(root): path for path in root.rglob("*") if path.is_file() and path.parent != root}
        return {name: path.read_bytes() for name, path in files.items() if name.parts[0] not in ("media", "episodes")}

    # Two processes, one of them killed, made what one made.
    assert contents(out) == contents(town_dataroot)


@pytest.mark.parametrize("suite", ["course", "hazard-jaywalker"])
def test_scenes_of_so_many_keyframes_at_either_rate(suite, tmp_path, capsys):
    same = ["--image-size", "32x32", "--renderer", "cv", "--workers", "1", "--videos", "0", "--quiet"]
    arguments = ["record", "--suite", suite, "--hz", "10", "--steps", "3", "--scene-steps", "3", *same]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert "1 of 1 scenes finished, 3 keyframes" in capsys.readouterr().out
    assert len(list(tmp_path.glob("samples/*/*.jpg"))) == 3 * 6
    assert len(list(tmp_path.glob("sweeps/*/*.jpg"))) == 2 * 4 * 6


IMAGINED = ["record", "--imagined", "--workers", "1", *TOWN[3:]]


def test_a_recording_of_what_might_be_holds_moments_with_a_plan_and_a_look_back_each(tmp_path):
    out = tmp_path / "data"
    assert main([*IMAGINED, "--suite", "town-smoke", "--steps", "20", "--out", str(out)]) == 0
    source = NuscenesSource(out, "v1.0-mini", steps=3)
    check_source(source)
    scene = source.scenes[0]
    all_us, extension = source.frame_times_us(scene), source.extension(scene)
    times_us = all_us[1::2]
    np.testing.assert_array_equal(extension.plan_time_us, times_us)
    np.testing.assert_array_equal(times_us - all_us[::2], 500_000)
    clips = [source.clip(scene, k) for k in range(1, len(all_us), 2)]
    assert all((~clip.image_mask[0]).all() for clip in clips), "a moment for the past of another"
    assert all(clip.image_mask[1:].all() for clip in clips)
    # The car has driven from the look back to the moment, at about the speed that it has.
    came_m = [np.hypot(*(c.T_world_from_ego_now - c.T_world_from_ego[1, 0])[:2, 3]) for c in clips]
    took_s = [(c.now_us - c.time_us[1, 0]) * 1e-6 for c in clips]
    drove_m = np.array([clip.vehicle.speed_mps for clip in clips]) * took_s
    assert np.abs(came_m - drove_m).max() < 1.3  # MOST_CAME_MPS2 for 0.54 s
    assert np.corrcoef(came_m, drove_m)[0, 1] > 0.98
    assert not any(len(clip.imu) for clip in clips), "no car was driven so"
    speeds = np.array([clip.vehicle.speed_mps for clip in clips])
    assert len(np.unique(speeds)) > len(speeds) / 3
    for clip in clips:
        back_m = np.linalg.norm(clip.T_world_from_ego_now[:2, 3] - clip.T_world_from_ego[-1, :, :2, 3], axis=1)
        np.testing.assert_allclose(back_m, clip.vehicle.speed_mps * (clip.now_us - clip.time_us[-1]) * 1e-6, atol=1e-6)
    assert len({extension.lights_at(int(t)) for t in times_us}) > 5
    assert main([*IMAGINED, "--suite", "town-smoke", "--steps", "20", "--out", str(out)]) == 0
    assert len(NuscenesSource(out, "v1.0-mini").scenes) == len(source.scenes), "nothing is missing"


@pytest.mark.parametrize("more", [[], ["--suite", "town-smoke", "--hz", "10"]])
def test_only_moments_of_a_town_can_be_imagined(more, tmp_path, capsys):
    assert main([*IMAGINED, *more, "--out", str(tmp_path / "data")]) == 2
    assert "Add --suite town-train" in capsys.readouterr().err
