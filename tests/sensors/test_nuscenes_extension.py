"""Sweeps between keyframes and the extension of a simulated scene: written, read back, and no bother to the devkit."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from made_up_drive import START_US, VERSION, bus, ego, keyframe, mask, rig
from nuscenes.nuscenes import NuScenes

from sensors.errors import InputError
from sensors.nuscenes_extension import FOLDER, MapLane, SceneExtension, read_extension
from sensors.nuscenes_source import NuscenesSource
from sensors.nuscenes_writer import NuscenesWriter
from sensors.source import check_source


def extension():
    line = np.array([[0.0, 30.0], [50.0, 30.0], [90.125, 41.5]])
    return SceneExtension(
        scenario="town-train/3",
        town="grid",
        weather="rain",
        seed=17,
        goal_m=80.5,
        route_m=line,
        lanes=(MapLane("a_0", 3.2, 13.89, True, line), MapLane(":j_1", 3.0, 8.0, False, line[:2])),
        areas=(("drivable", line), ("crossing", line + 1.0)),
        signals_xyyaw=np.array([[60.0, 26.0, 0.5], [70.0, 35.0, -1.25]]),
        lights_time_us=np.array([START_US, START_US + 700_000]),
        lights=("rG", "Gr"),
        cue_time_us=np.array([START_US, START_US + 500_000]),
        commands=("follow", "left"),
        instructions=("Follow the road to your destination.", "Now, turn left at the traffic lights."),
        plan_time_us=START_US + np.arange(3) * 500_000,
        reasons=("drive: free road", "stop: red light, 12 m", "drive: free road"),
        plan_after_s=np.array([0.5, 1.0]),
        plans=np.arange(18.0).reshape(3, 2, 3) / 8,
        event_time_us=np.array([START_US + 900_000]),
        events=(("collision", "vehicle-001", "other"),),
    )


def sweep(time_us):
    """Arguments of SceneRecorder.sweep for cameras that fire up to 40 ms before an instant."""
    times_us = time_us - np.array([37_000, 29_000, 21_000, 12_000, 0, 40_001])
    return keyframe(9)[1], times_us, ego(times_us)


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    """Three keyframes with four sweeps between two of them."""
    path = tmp_path_factory.mktemp("extended")
    with NuscenesWriter(path, VERSION).scene("scene-0001", "", rig(), "testtown", mask()) as scene:
        for k in range(3):
            for j in range(1, 5 if k else 0):
                scene.sweep(*sweep(START_US + 500_000 * (k - 1) + 100_000 * j))
            scene.keyframe(*keyframe(k))
        scene.can(*bus(3))
        scene.extension(extension())
    return path


def test_extension_comes_back(dataroot):
    read = read_extension(dataroot, "scene-0001")
    for field in fields(SceneExtension):
        mine, theirs = getattr(extension(), field.name), getattr(read, field.name)
        if field.name == "lanes":
            assert [(e.id, e.width_m, e.limit_mps, e.on_route) for e in mine] == [
                (e.id, e.width_m, e.limit_mps, e.on_route) for e in theirs
            ]
            for a, b in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(a.centreline_m, b.centreline_m)
        elif field.name == "areas":
            assert [layer for layer, _ in mine] == [layer for layer, _ in theirs]
            for (_, a), (_, b) in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_array_equal(mine, theirs)
    assert read_extension(dataroot, "scene-0002") is None


def test_a_state_holds_until_the_next(dataroot):
    read = read_extension(dataroot, "scene-0001")
    assert [read.lights_at(START_US + t) for t in (-1, 0, 699_999, 700_000)] == ["rG", "rG", "rG", "Gr"]
    assert read.cue_at(START_US + 499_999) == ("follow", "Follow the road to your destination.")
    assert read.cue_at(START_US + 600_000)[0] == "left"
    assert [read.reason_at(START_US + t) for t in (-1, 500_000)] == ["", "stop: red light, 12 m"]


def test_clips_carry_command_and_instruction(dataroot):
    source = NuscenesSource(dataroot, VERSION)
    assert check_source(source) == 3
    assert [source.clip("scene-0001", k).command for k in range(3)] == ["follow", "left", "left"]
    assert source.clip("scene-0001", 2).instruction == "Now, turn left at the traffic lights."


def test_sweeps_are_filed_as_nuscenes_files_them(dataroot):
    devkit = NuScenes(VERSION, str(dataroot), verbose=False)
    samples = [devkit.sample[k]["token"] for k in range(3)]
    row = devkit.get("sample_data", devkit.sample[0]["data"]["CAM_BACK"])
    track = [row]
    while row["next"]:
        row = devkit.get("sample_data", row["next"])
        track.append(row)
    assert [row["is_key_frame"] for row in track] == [k % 5 == 0 for k in range(11)]
    assert [samples.index(row["sample_token"]) for row in track] == [0] + [1] * 5 + [2] * 5
    assert (np.diff([row["timestamp"] for row in track]) > 0).all()
    assert [row["filename"].split("/")[0] for row in track] == [
        "samples" if k % 5 == 0 else "sweeps" for k in range(11)
    ]
    assert all((dataroot / row["filename"]).is_file() for row in track)
    assert all(devkit.get("ego_pose", row["ego_pose_token"])["timestamp"] == row["timestamp"] for row in track)


def test_sweep_rejects_a_scene_without_keyframes_around_it(tmp_path):
    writer = NuscenesWriter(tmp_path, VERSION)
    with (
        pytest.raises(InputError, match="before the first keyframe"),
        writer.scene("scene-0001", "", rig(), "testtown", mask()) as scene,
    ):
        scene.sweep(*sweep(START_US))
    with (  # noqa: PT012 - the recorder is closed by the error
        pytest.raises(InputError, match="a keyframe at the end"),
        writer.scene("scene-0001", "", rig(), "testtown", mask()) as scene,
    ):
        scene.keyframe(*keyframe(0))
        scene.sweep(*sweep(START_US + 100_000))
    assert writer.scenes == ()
    assert not list(tmp_path.glob("sweeps/*/*"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lights": ("rG", "G")}, "lights: came G, expected 2 letters"),
        ({"commands": ("follow", "up")}, "commands: came up"),
        ({"reasons": ("x",)}, "reasons: came 1 rows, expected 3"),
        ({"areas": (("lawn", np.zeros((3, 2))),)}, "lawn"),
        ({"route_m": np.full((3, 2), np.nan)}, "route_m"),
        ({"cue_time_us": np.array([START_US, START_US - 1])}, "cue_time_us"),
    ],
)
def test_extension_rejects(change, says):
    with pytest.raises(InputError, match=says):
        replace(extension(), **change).validate()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"scenario": "x"}', b"{\xff"])
def test_read_rejects_a_damaged_extension(tmp_path, content):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "scene-0001.json").write_bytes(content)
    with pytest.raises(InputError, match=r"scene-0001\.json"):
        read_extension(tmp_path, "scene-0001")


def test_read_rejects_another_shape(tmp_path):
    (tmp_path / FOLDER).mkdir()
    values = json.loads(extension().to_json()) | {"route_m": [[1.0, 2.0, 3.0]]}
    (tmp_path / FOLDER / "scene-0001.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="content"):
        read_extension(tmp_path, "scene-0001")
