"""The index: kept and made anew, whatever happens to its file; the same scenes from it as from tables read directly."""

import json
import os
import pickle
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from made_up_drive import VERSION, ego, keyframe, mask, record, rig
from nuscenes.nuscenes import NuScenes

from sensors import nuscenes_index, nuscenes_tables
from sensors.columns import open_columns, write_columns
from sensors.errors import InputError
from sensors.frames import matrix
from sensors.nuscenes_index import NuscenesIndex, cache_folder
from sensors.nuscenes_source import CAMERAS, NuscenesSource
from sensors.nuscenes_tables import read_json, read_tables
from sensors.nuscenes_writer import NuscenesWriter
from sensors.source import check_source

SWEEP_US = (150_000, 300_000)  # after each keyframe


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two scenes of three keyframes, the first with sweeps between them."""
    path = tmp_path_factory.mktemp("recorded") / "data"
    with NuscenesWriter(path, VERSION).scene("scene-0001", "a curve", rig(), "testtown", mask()) as scene:
        for k in range(3):
            scene.keyframe(*keyframe(k))
            for after_us in SWEEP_US if k < 2 else ():
                _, images, time_us, *_ = keyframe(k)
                scene.sweep(images, time_us + after_us, ego(time_us + after_us))
    record(path, "scene-0002")
    return path


@pytest.fixture
def dataroot(recorded, tmp_path):
    """A copy of its own."""
    return shutil.copytree(recorded, tmp_path / "data", symlinks=True)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Even small tables have their index kept, in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(nuscenes_index, "SMALL", 0)

    def files():
        return sorted(cache_folder().glob("*")) if cache_folder().is_dir() else []

    return files


def rows_of(dataroot, table):
    return read_json(dataroot / VERSION / f"{table}.json")


def change(dataroot, table, edit):
    path = dataroot / VERSION / f"{table}.json"
    rows = json.loads(path.read_text())
    edit(rows)
    path.write_text(json.dumps(rows))


def told(index):
    """Everything of all scenes, to be compared."""
    found = []
    for name in index.scenes:
        scene = index.scene(name)
        for k in scene.keyframes:
            captures = [
                (c.token, c.time_us, c.filename, c.width, c.T_world_from_ego.tolist()) for c in k.captures.values()
            ]
            boxes = (k.boxes.ids, k.boxes.categories, k.boxes.T_world_from_box.tolist(), k.boxes.size_lwh_m.tolist())
            found.append((name, k.token, k.now_us, k.T_world_from_ego_now.tolist(), captures, boxes))
        found += [(c, camera.K.tolist(), camera.T_ego_from_cam.tolist()) for c, camera in scene.cameras.items()]
        found += [(c, track.time_us.tolist(), track.filenames()) for c, track in scene.tracks.items()]
    return found


@contextmanager
def unread():
    """The tables are not read meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nuscenes_index, "read_tables", lambda _: pytest.fail("the tables were read"))
        yield


def test_small_tables_leave_nothing_behind(dataroot, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert NuscenesIndex(dataroot, VERSION).scenes == ("scene-0001", "scene-0002")
    assert not (tmp_path / "cache").exists()


def test_the_second_opening_reads_no_tables_and_tells_the_same(dataroot, kept):
    first = told(NuscenesIndex(dataroot, VERSION))
    assert len(kept()) == 1
    with unread():
        index = NuscenesIndex(dataroot, VERSION)
    assert told(index) == first
    assert index.unkept == ""
    assert not index.frame_times_us("scene-0001").flags.writeable  # mapped
    assert check_source(NuscenesSource(dataroot, VERSION, steps=2)) == 6


def test_another_process_maps_the_same_file(dataroot, kept):
    source = NuscenesSource(dataroot, VERSION)
    with unread():
        sent = pickle.dumps(source)
        again = pickle.loads(sent)
    assert len(sent) < 5_000
    assert told(again.index) == told(source.index)
    np.testing.assert_array_equal(again.clip("scene-0002", 1).images, source.clip("scene-0002", 1).images)
    change(dataroot, "scene", lambda rows: rows[0].update(description="another"))
    NuscenesIndex(dataroot, VERSION)
    with pytest.raises(InputError, match=r"made anew meanwhile.*start again"):
        pickle.loads(sent)


def test_an_index_that_is_not_kept_can_be_sent_too(dataroot):
    source = NuscenesSource(dataroot, VERSION)
    assert told(pickle.loads(pickle.dumps(source)).index) == told(source.index)


@pytest.mark.parametrize("same_size", [True, False])
def test_changed_tables_make_a_stale_index_anew(dataroot, kept, same_size):
    NuscenesIndex(dataroot, VERSION)
    description = "A curve" if same_size else "something else"
    path = (dataroot / VERSION / "scene.json").resolve()
    before = path.stat()
    path.write_text(path.read_text().replace("a curve", description))
    if same_size:  # and the same time: the contents tell
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
    assert NuscenesIndex(dataroot, VERSION).scene("scene-0001").description == description
    assert len(kept()) == 1


def test_a_recording_that_grows_is_seen(dataroot, kept):
    assert len(NuscenesIndex(dataroot, VERSION).scenes) == 2
    record(dataroot, "scene-0003")
    assert NuscenesIndex(dataroot, VERSION).scenes == ("scene-0001", "scene-0002", "scene-0003")


DAMAGES = {
    "empty": lambda data: b"",
    "cut off in the head": lambda data: data[:100],
    "cut off at the end": lambda data: data[:-1],
    "grown": lambda data: data + b"x",
    "another kind": lambda data: b"PK" + data[2:],
    "a long head": lambda data: data[:8] + b"\xff" * 8 + data[16:],
    "no JSON": lambda data: data.replace(b'"columns"', b'"columns', 1),
    "out of range": lambda data: data.replace(b'"float64"', b'"float99"', 1),
    "another layout": lambda data: data.replace(b'"key":"', b'"key":"0', 1).replace(b'" ', b'"', 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_made_anew(dataroot, kept, damage):
    first = told(NuscenesIndex(dataroot, VERSION))
    [path] = kept()
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    assert told(NuscenesIndex(dataroot, VERSION)) == first
    assert path.read_bytes() == whole
    assert kept() == [path]


def test_a_folder_that_takes_no_files_is_said_and_done_without(dataroot, tmp_path, monkeypatch):
    """Superusers may write anywhere, so the place is one that can't be a folder."""
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(nuscenes_index, "SMALL", 0)
    index = NuscenesIndex(dataroot, VERSION)
    assert "Not a directory" in index.unkept
    assert len(told(index)) > 10


def test_nothing_is_written_into_the_dataroot(dataroot, kept):
    before = sorted(dataroot.rglob("*"))
    NuscenesIndex(dataroot, VERSION)
    assert sorted(dataroot.rglob("*")) == before


@pytest.mark.parametrize("piece", [50, 300, 5000])
def test_tables_in_pieces_are_the_tables(dataroot, monkeypatch, piece):
    whole = read_tables(dataroot / VERSION)
    change(dataroot, "category", lambda rows: rows[0].update(extra={"a": [{}, {"b": "},"}]}))  # objects in objects
    monkeypatch.setattr(nuscenes_tables, "PIECE", piece)
    cut = read_tables(dataroot / VERSION)
    for name, table in whole.items():
        assert cut[name].tokens == table.tokens
        for field, column in table.columns.items():
            assert np.array_equal(cut[name][field], column), (name, field)
            assert type(cut[name][field]) is type(column)
    path = dataroot / VERSION / "sample_data.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"sample_data.json: content: came .* not JSON"):
        read_tables(dataroot / VERSION)


def test_sweeps_are_the_devkits(dataroot):
    devkit, index = NuScenes(VERSION, str(dataroot), verbose=False), NuscenesIndex(dataroot, VERSION)
    for name in index.scenes:
        scene = index.scene(name)
        first = devkit.get("sample", next(s for s in devkit.scene if s["name"] == name)["first_sample_token"])
        for channel in CAMERAS:
            track, row = scene.tracks[channel], devkit.get("sample_data", first["data"][channel])
            for k, capture in enumerate(track):
                assert (capture.token, capture.time_us, capture.filename) == (
                    row["token"],
                    row["timestamp"],
                    row["filename"],
                )
                assert track.is_keyframe[k] == row["is_key_frame"]
                np.testing.assert_allclose(capture.T_world_from_ego, ego(row["timestamp"]), rtol=0, atol=1e-9)
                row = devkit.get("sample_data", row["next"]) if row["next"] else None
            assert row is None
            assert track.filenames() == [capture.filename for capture in track[:]]
            np.testing.assert_array_equal(track.T_world_from_ego, [c.T_world_from_ego for c in track])
    assert len(index.scene("scene-0001").tracks["CAM_FRONT"]) == 3 + 2 * len(SWEEP_US)


def test_scenes_that_are_wrong_cost_no_others(dataroot):
    def backwards(rows):
        row = next(row for row in rows if row["is_key_frame"] and "CAM_FRONT__" in row["filename"])
        row["timestamp"] += 700_000

    change(dataroot, "sample_data", backwards)
    index = NuscenesIndex(dataroot, VERSION)
    with pytest.raises(InputError, match=r"sample_data.json: timestamp of \w+ \(CAM_FRONT\): came .* increasing time"):
        index.scene("scene-0001")
    with pytest.raises(InputError, match="timestamp of"):
        NuscenesSource(dataroot, VERSION)
    assert len(NuscenesSource(dataroot, VERSION, scenes=("scene-0002",)).frame_times_us("scene-0002")) == 3
    stock = {scene.name: scene for scene in index.inventory()}
    assert "increasing time" in stock["scene-0001"].problem
    assert stock["scene-0002"].problem == ""


def test_sweeps_may_come_in_any_order_and_repeats_are_left_out_and_counted(dataroot):
    before = told(NuscenesIndex(dataroot, VERSION))
    change(dataroot, "sample_data", lambda rows: rows.sort(key=lambda row: row["token"]))
    shuffled = NuscenesIndex(dataroot, VERSION)
    assert [k.now_us for k in shuffled.scene("scene-0001").keyframes] == [b[2] for b in before if b[0] == "scene-0001"]
    track = shuffled.scene("scene-0001").tracks["CAM_FRONT"]
    assert (np.diff(track.time_us) > 0).all()

    def repeat(rows):
        sweep = next(row for row in rows if not row["is_key_frame"])
        rows.append({**sweep, "token": "again"})

    change(dataroot, "sample_data", repeat)
    stock = NuscenesIndex(dataroot, VERSION).inventory()
    assert [scene.repeated_sweeps for scene in stock] == [1, 0]


def test_two_key_frames_of_one_camera_are_a_problem(dataroot):
    def repeat(rows):
        row = next(row for row in rows if row["is_key_frame"])
        rows.append({**row, "token": "again", "timestamp": row["timestamp"] + 1})

    change(dataroot, "sample_data", repeat)
    with pytest.raises(InputError, match=r"sample_token of again .*second key frame"):
        NuscenesIndex(dataroot, VERSION).scene("scene-0001")


def test_an_inventory_names_and_counts_what_is_missing(dataroot):
    rows = [row for row in rows_of(dataroot, "sample_data") if "CAM_BACK_LEFT" in row["filename"]]
    sweep, key = (next(row for row in rows if row["is_key_frame"] is is_key) for is_key in (False, True))
    for row in (sweep, key):
        (dataroot / row["filename"]).unlink()
    one, other = NuscenesIndex(dataroot, VERSION).inventory()
    assert one.images_missing == {name: int(name == "CAM_BACK_LEFT") for name in one.images_missing}
    assert (one.sweeps_missing, one.sweeps_present) == (1, 4 * 6 - 1)
    assert set(one.first_missing) == {sweep["filename"], key["filename"]}
    assert (other.first_missing, other.sweeps_present) == ((), 0)
    [alone] = NuscenesIndex(dataroot, VERSION).inventory(["scene-0002"])
    assert alone == other
    shutil.rmtree(dataroot / "samples")
    assert sum(NuscenesIndex(dataroot, VERSION).inventory()[1].images_missing.values()) == 18


def test_columns_are_what_was_written(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(5, 7)),
        "none": np.zeros((0, 7)),
        "b": rng.integers(0, 9, 3).astype(np.int32),
        "c": np.array([True, False]),
    }
    write_columns(tmp_path / "x", {"k": "v"}, arrays)
    found = open_columns(tmp_path / "x")
    assert found.about == {"k": "v"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    with pytest.raises(InputError, match="No such file"):
        open_columns(tmp_path / "y")


def test_poses_are_bit_for_bit_those_of_the_tables(dataroot):
    """However they are kept: what the file says is what is computed with."""
    index = NuscenesIndex(dataroot, VERSION)
    rows = {row["token"]: row for row in rows_of(dataroot, "ego_pose")}
    data = {row["token"]: row for row in rows_of(dataroot, "sample_data")}
    for capture in index.scene("scene-0001").tracks["CAM_BACK"]:
        pose = rows[data[capture.token]["ego_pose_token"]]
        np.testing.assert_array_equal(capture.T_world_from_ego[:3, 3], pose["translation"])
    np.testing.assert_array_equal(matrix(np.zeros(3), np.eye(3)), np.eye(4))


def test_frames_between_keyframes_are_clips_too(dataroot):
    """At the rate of the cameras; the devkit finds the same boxes there, moved along their way."""
    source = NuscenesSource(dataroot, VERSION, sweeps=True)
    devkit = NuScenes(VERSION, str(dataroot), verbose=False)
    assert check_source(source, frames_per_scene=7) == 7 + 3
    assert len(source.frame_times_us("scene-0001")) == 3 + 2 * len(SWEEP_US)
    for frame, capture in enumerate(source.scene("scene-0001").tracks["CAM_BACK_LEFT"]):
        clip, boxes = source.clip("scene-0001", frame), source.future("scene-0001", frame).boxes_now
        assert (clip.now_us, clip.image_mask[-1].all()) == (capture.time_us, True)
        np.testing.assert_array_equal(clip.T_world_from_ego_now, capture.T_world_from_ego)
        theirs = devkit.get_boxes(capture.token)
        assert len(boxes) == len(theirs)
        for box in theirs:
            i = boxes.ids.index(devkit.get("sample_annotation", box.token)["instance_token"])
            found = matrix(box.center, box.rotation_matrix)
            np.testing.assert_allclose(boxes.T_world_from_box[i], found, rtol=0, atol=1e-6)


def test_a_camera_that_missed_an_instant_between_keyframes_is_masked(dataroot):
    def drop(rows):
        rows.remove(next(row for row in rows if not row["is_key_frame"] and "CAM_FRONT__" in row["filename"]))

    change(dataroot, "sample_data", drop)
    source = NuscenesSource(dataroot, VERSION, sweeps=True)
    assert check_source(source, frames_per_scene=7) == 7 + 3
    masks = [source.clip("scene-0001", frame).image_mask[-1].all() for frame in range(7)]
    assert masks == [True, False, True, True, True, True, True]
