"""Recorded scenes as other datasets, read back by plain pyarrow, pandas and PyAV, and by the devkit."""

import json
import shutil

import av
import numpy as np
import pytest

from policies.cli import main
from policies.export_lerobot import DATA_PATH, VIDEO_PATH, write_lerobot
from policies.export_nuscenes import write_nuscenes
from sensors.errors import InputError
from sensors.folder_source import FolderSource
from sensors.frames import inverse, matrix_from_xy_yaw, xy_yaw
from sensors.nuscenes_source import CAMERAS, NuscenesSource
from sensors.source import check_source

VERSION = "v1.0-mini"
LOST = "CAM_BACK", 2  # camera and keyframe, of the first scene, whose image is not there


@pytest.fixture(scope="module")
def source(course_dataroot, tmp_path_factory):
    dataroot = shutil.copytree(course_dataroot, tmp_path_factory.mktemp("recorded") / "data", symlinks=True)
    whole = NuscenesSource(dataroot, VERSION)
    whole.index.path(whole.scene(whole.scenes[0]).keyframes[LOST[1]].captures[LOST[0]].filename).unlink()
    (dataroot / "can_bus" / f"{whole.scenes[1]}_steeranglefeedback.json").unlink()
    return NuscenesSource(dataroot, VERSION)


@pytest.fixture(scope="module")
def lerobot(source, tmp_path_factory):
    pytest.importorskip("pyarrow", reason="pyarrow, of the extra [viz], is not installed")
    out, said = tmp_path_factory.mktemp("lerobot") / "data", []
    write_lerobot(source, out, said.append)
    return out, said


def test_lerobot_layout_is_that_of_version_3(lerobot, source):
    out, said = lerobot
    info, scenes = json.loads((out / "meta" / "info.json").read_text()), len(source.scenes)
    frames = sum(len(source.frame_times_us(scene)) - 1 for scene in source.scenes)
    assert (info["codebase_version"], info["fps"]) == ("v3.0", 2)
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (scenes, frames, 1)
    assert (info["data_path"], info["video_path"]) == (DATA_PATH, VIDEO_PATH)
    assert info["features"]["observation.state"]["shape"] == [4]
    videos = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    assert videos == [f"observation.images.{name.lower()}" for name in CAMERAS]
    assert said == [f"{scene}: episode {k}" for k, scene in enumerate(source.scenes)]
    assert len([path for path in out.rglob("*") if path.is_file()]) == 5 + 7 * scenes
    cameras = json.loads((out / "meta" / "cameras.json").read_text())
    assert cameras[source.scenes[-1]]["CAM_BACK"]["K"][2] == [0, 0, 1]
    assert set(json.loads((out / "meta" / "stats.json").read_text())) == set(info["features"])


def test_lerobot_numbers_are_the_drive(lerobot, source):
    import pyarrow.parquet as pq

    out, index = lerobot[0], 0
    episodes = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for k, scene in enumerate(source.scenes):
        rows = pq.read_table(out / DATA_PATH.format(chunk_index=0, file_index=k)).to_pylist()
        poses = source.scene(scene).T_world_from_ego_now
        assert len(rows) == len(poses) - 1 == episodes[k]["length"]
        assert (episodes[k]["dataset_from_index"], episodes[k]["dataset_to_index"]) == (index, index + len(rows))
        T = np.eye(4)
        for frame, row in enumerate(rows):
            assert (row["frame_index"], row["episode_index"], row["index"]) == (frame, k, index)
            assert row["timestamp"] == pytest.approx(frame / 2)
            assert row["observation.time_us"] == source.frame_times_us(scene)[frame]
            np.testing.assert_allclose(row["observation.state"][:3], xy_yaw(T), rtol=0, atol=1e-3)
            T = T @ matrix_from_xy_yaw(*row["action"])  # actions lead from state to state
            index += 1
        np.testing.assert_allclose(xy_yaw(T), xy_yaw(inverse(poses[0]) @ poses[-1]), rtol=0, atol=1e-3)
    rows = pq.read_table(out / DATA_PATH.format(chunk_index=0, file_index=0)).to_pylist()
    masks = np.array([row["observation.image_mask"] for row in rows])
    assert np.argwhere(~masks).tolist() == [[LOST[1], CAMERAS.index(LOST[0])]]


def test_lerobot_videos_show_every_frame(lerobot, source):
    out, _ = lerobot
    for n, name in enumerate(CAMERAS):
        key = f"observation.images.{name.lower()}"
        with av.open(str(out / VIDEO_PATH.format(video_key=key, chunk_index=0, file_index=0))) as film:
            frames = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in film.decode(video=0)]
        assert [time for time, _ in frames] == [0.5 * k for k in range(len(frames))]
        assert len(frames) == len(source.frame_times_us(source.scenes[0])) - 1
        for k, (_, image) in enumerate(frames):
            shown = source.clip(source.scenes[0], k).images[-1, n]
            assert np.abs(image.astype(float) - shown).mean() < 12  # of 255, what H.264 leaves of noise


def test_lerobot_tasks_are_an_index_of_pandas(lerobot):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    tasks = pandas.read_parquet(lerobot[0] / "meta" / "tasks.parquet")
    assert tasks.index.tolist() == ["follow"]
    assert tasks.task_index.tolist() == [0]


def test_nuscenes_from_a_dataroot_is_that_dataroot(source, tmp_path):
    said = []
    write_nuscenes(source, tmp_path / "again", VERSION, said.append)
    again = NuscenesSource(tmp_path / "again", VERSION)
    first, second, third = source.scenes
    assert said == [
        f"{first}: {first}, without 1 images",
        f"{second}: {second}, without a CAN bus",
        f"{third}: {third}",
    ]
    assert check_source(again) == check_source(source)
    for scene in source.scenes:
        for frame in range(len(source.frame_times_us(scene))):
            clip, before = again.clip(scene, frame), source.clip(scene, frame)
            for name in ("images", "image_mask", "time_us", "T_world_from_ego", "T_world_from_ego_now"):
                np.testing.assert_array_equal(getattr(clip, name), getattr(before, name))
            if scene != second:
                np.testing.assert_equal(vars(clip.vehicle), vars(before.vehicle))
                np.testing.assert_array_equal(clip.imu.gyro_radps, before.imu.gyro_radps)
            ours, theirs = again.future(scene, frame).boxes_now, source.future(scene, frame).boxes_now
            assert ours.categories == theirs.categories
            np.testing.assert_allclose(ours.T_world_from_box, theirs.T_world_from_box, rtol=0, atol=1e-12)


def folder_of_one(path):
    camera = {"width": 8, "height": 8, "K": [[8, 0, 4], [0, 8, 4], [0, 0, 1]], "T_ego_from_cam": np.eye(4).tolist()}
    frames = [
        {
            "time_us": 10**15 + 500_000 * k,
            "T_world_from_ego": np.eye(4).tolist(),
            "images": {"FRONT": {"file": "x.jpg"}},
        }
        for k in range(2)
    ]
    path.mkdir()
    (path / "recording.json").write_text(json.dumps({"cameras": {"FRONT": camera}, "frames": frames}))
    return path


def test_a_folder_becomes_a_dataroot_under_a_free_name(tmp_path, capsys):
    folder = folder_of_one(tmp_path / "mine")
    out = ["--out", str(tmp_path / "root"), "--version", "v1.0-mine"]
    assert main(["export", "--source", str(folder), "--to", "nuscenes", *out]) == 0
    assert "mine: scene-0001, without 2 images, a map, a CAN bus" in capsys.readouterr().out
    assert FolderSource(folder).scenes == ("mine",)


def test_bad_requests_are_refused(tmp_path, capsys):
    folder = folder_of_one(tmp_path / "mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    cases = [
        (["run", "--to", "lerobot", "--out", "x"], "recorded scenes: --dataroot or --source"),
        (["--to", "lerobot", "--out", "x"], "no recording"),
        (["--to", "nuscenes", "--source", str(folder)], "--out: came nothing"),
        (["--to", "rrd"], "a run directory"),
        (["--to", "lerobo"], "Did you mean lerobot?"),
        (["--to", "lerobot", "--source", str(folder), "--out", str(tmp_path / "full")], "which is not empty"),
        (["--to", "nuscenes", "--source", str(folder), "--out", "x", "--image-size", "8x8"], "keeps the size"),
    ]
    for words, complaint in cases:
        assert main(["export", *words]) == 2
        assert complaint in capsys.readouterr().err, words


def test_one_keyframe_alone_is_no_episode(tmp_path):
    folder, said = folder_of_one(tmp_path / "mine"), []
    content = json.loads((folder / "recording.json").read_text())
    (tmp_path / "mine" / "alone").mkdir()
    (tmp_path / "mine" / "both").mkdir()
    (folder / "both" / "recording.json").write_text(json.dumps(content))
    (folder / "alone" / "recording.json").write_text(json.dumps(content | {"frames": content["frames"][:1]}))
    (folder / "recording.json").unlink()
    with pytest.raises(InputError, match="none with two keyframes"):
        write_lerobot(FolderSource(folder, ("alone",)), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    pytest.importorskip("pyarrow", reason="pyarrow, of the extra [viz], is not installed")
    write_lerobot(FolderSource(folder), tmp_path / "x", said.append)
    assert said == ["alone: left out, since a single keyframe has no action", "both: episode 0"]
    info = json.loads((tmp_path / "x" / "meta" / "info.json").read_text())
    assert info["video_path"] is None  # not one image is there
    assert not (tmp_path / "x" / "videos").exists()
