"""Episodes for other viewers, read back with the viewers' own readers."""

import base64
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_up_run import make_run

from sensors.clip import Boxes
from sensors.errors import InputError
from sensors.frames import matrix_from_xy_yaw
from sim.report.exports import FORMATS, export_run, get_format
from sim.report.log_scene import Remark, film_pictures, red_changes, red_ways, remarks, series
from sim.report.video import VideoWriter
from sim.rollout_log import EpisodeLog, EpisodeRecorder, read_episode
from sim.surroundings import Lane, Surroundings

LANE = Lane("a", np.array([[0.0, 0.0], [200.0, 0.0]]), 3.5)


def needs(module: str):
    return pytest.importorskip(module, reason=f"{module}, of the extra [viz], is not installed")


def eventful_log() -> EpisodeLog:
    """Four frames: red from the second on, a collision at the last, reasons that change once, a plan at each."""
    recorder = EpisodeRecorder("s", "drive", "p", 0, [("lane_edge", np.eye(2))], Surroundings("x", lanes=(LANE,)))
    car = Boxes(("a",), ("vehicle.car",), matrix_from_xy_yaw([9.0], [2.0], [0.5]), np.ones((1, 3)), np.zeros((1, 2)))
    for k, reason in enumerate(("drive", "drive", "stop: red light", "stop: red light")):
        events = [("collision", "a", 3.25, "ego")] if k == 3 else []
        recorder.frame(100_000 * k, (1.0 * k, 2.0, 0.5), 5.0, (0.1 * k, 0.01), car, events, [0] if k else [])
        recorder.plan(np.array([0.5, 1.0]), np.array([[k + 1.0, 2, 0.5], [k + 2.0, 3, 0.5]]), reason=reason)
    return recorder.finish("collision")


def read_column(recording, entity: str, ending: str) -> list:
    """The first item of each value of an entity's component, over time."""
    table = recording.view(index="time", contents=entity).select().read_all()
    name = next(name for name in table.column_names if name.endswith(ending))
    return [value[0] for value in table[name].to_pylist() if value]


def test_remarks_say_what_changed_and_what_went_wrong():
    assert remarks(eventful_log()) == [
        Remark(0, "reason", "drive"),
        Remark(2, "reason", "stop: red light"),
        Remark(3, "event", "collision with a at 3.2 m/s fault: ego", alarm=True),
    ]


def test_red_ways_are_closed_and_told_when_they_change():
    log = eventful_log()
    assert [red_changes(log, k) for k in range(4)] == [True, True, False, False]
    assert red_ways(log, 0) == []
    (way,) = red_ways(log, 1)
    np.testing.assert_array_equal(way[0], way[-1])
    assert np.ptp(way, axis=0) == pytest.approx((200.0, 3.5))


def test_series_are_of_every_frame():
    assert {name: len(values) for name, values in series(eventful_log()).items()} == dict.fromkeys(
        ("speed_mps", "accel_mps2", "curvature_1pm"), 4
    )


def test_film_pictures_know_their_frames(tmp_path: Path):
    log = eventful_log()
    with VideoWriter(tmp_path / "a.mp4", 5) as video:
        for k in range(3):
            video.write(np.full((32, 48, 3), 60 * k + 40, np.uint8))
    frames, jpegs = zip(*film_pictures(tmp_path / "a.mp4", log), strict=True)
    assert frames == (0, 2)  # the third would lie beyond the log
    brightness = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).mean() for jpeg in jpegs]
    assert brightness == pytest.approx([40, 100], abs=4)


def test_mcap_reads_back(tmp_path: Path):
    needs("mcap")
    from mcap.reader import make_reader

    make_run(tmp_path / "run")
    path, *others = export_run(tmp_path / "run", "mcap", tmp_path / "out")
    assert len(others) == 3
    log = read_episode(tmp_path / "run" / "episodes" / "first-0.npz")
    found: dict[str, list] = {}
    with open(path, "rb") as file:
        for schema, channel, message in make_reader(file).iter_messages():
            assert (schema.encoding, channel.message_encoding) == ("jsonschema", "json")
            assert json.loads(schema.data)["title"] == schema.name
            data = json.loads(message.data)
            assert set(data) <= set(json.loads(schema.data)["properties"])
            found.setdefault(channel.topic, []).append((schema.name, message.log_time, data))
    assert {topic: len(rows) for topic, rows in found.items()} == {
        **dict.fromkeys(("/ego", "/tf", "/actors", "/plan", "/motion"), len(log)),
        "/map": 1,
        "/red": 1,
        "/film": 10,
    }
    schema, time_ns, pose = found["/ego"][3]
    assert (schema, time_ns) == ("foxglove.PoseInFrame", int(log.time_us[3]) * 1000)
    assert pose["pose"]["position"] == {"x": 12.0, "y": 0.0, "z": 0.0}
    assert pose["timestamp"] == {"sec": 1, "nsec": 500_000_000}
    ego, actors = found["/actors"][3][2]["entities"]
    assert ego["frame_id"] == "ego"
    assert actors["cubes"][0]["size"] == {"x": 4.5, "y": 1.9, "z": 1.6}
    assert actors["cubes"][0]["pose"]["position"]["x"] == 23.0
    line = found["/plan"][3][2]["entities"][0]["lines"][0]
    assert [point["x"] for point in line["points"]] == pytest.approx([12.0, *(12 + 8 * np.arange(1, 7) * 0.5)])
    jpeg = base64.b64decode(found["/film"][0][2]["data"])
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (64, 96, 3)


def test_mcap_has_the_words(tmp_path: Path):
    needs("mcap")
    from mcap.reader import make_reader

    FORMATS["mcap"].write(eventful_log(), tmp_path / "a.mcap", None)
    with open(tmp_path / "a.mcap", "rb") as file:
        words = [json.loads(m.data) for _, c, m in make_reader(file).iter_messages() if c.topic == "/words"]
    assert [(w["level"], w["name"]) for w in words] == [(2, "reason"), (2, "reason"), (4, "event")]
    assert words[2]["message"].startswith("collision with a")


def test_rrd_reads_back(tmp_path: Path):
    needs("rerun")
    from rerun import dataframe

    make_run(tmp_path / "run")
    (path,) = export_run(tmp_path / "run", "rrd", tmp_path / "out", ["first-0"])
    assert path.read_bytes()[:3] == b"RRF"
    recording = dataframe.load_recording(path)
    log = read_episode(tmp_path / "run" / "episodes" / "first-0.npz")

    def rows(entity: str, ending: str) -> list:
        return read_column(recording, entity, ending)

    columns = {str(column.entity_path) for column in recording.schema().component_columns()}
    assert {"/world/ego", "/world/actors", "/world/plan", "/world/map", "/film", "/series/speed_mps"} <= columns
    assert [value[0] for value in rows("/world/ego", "Translation3D")] == pytest.approx(log.ego_xyyaw_in_world[:, 0])
    assert [value[0] for value in rows("/world/actors", "Translation3D")] == pytest.approx(20.0 + np.arange(len(log)))
    assert rows("/series/speed_mps", "Scalar") == [8.0] * len(log)
    assert len(rows("/film", "Blob")) == 10


def test_rrd_has_the_words(tmp_path: Path):
    needs("rerun")
    from rerun import dataframe

    FORMATS["rrd"].write(eventful_log(), tmp_path / "a.rrd", None)
    table = dataframe.load_recording(tmp_path / "a.rrd").view(index="time", contents="/words/**").select().read_all()
    text = [
        str(value[0])
        for name in table.column_names
        if name.endswith("Text")
        for value in table[name].to_pylist()
        if value
    ]
    assert sorted(text) == ["collision with a at 3.2 m/s fault: ego", "drive", "stop: red light"]


def test_an_unknown_format_episode_or_folder_is_named(tmp_path: Path, monkeypatch):
    make_run(tmp_path / "run")
    with pytest.raises(InputError, match="Did you mean mcap"):
        get_format("mcp")
    monkeypatch.setattr("sim.report.exports.find_spec", lambda name: object())
    with pytest.raises(InputError, match="Did you mean first-0"):
        list(export_run(tmp_path / "run", "mcap", tmp_path / "out", ["frst-0"]))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a folder that can be made"):
        list(export_run(tmp_path / "run", "mcap", tmp_path / "file" / "out"))
    shutil.rmtree(tmp_path / "run" / "episodes")
    with pytest.raises(InputError, match="a run directory"):
        list(export_run(tmp_path / "nowhere", "mcap", tmp_path / "out"))


@pytest.mark.parametrize("name", list(FORMATS))
def test_without_its_package_a_format_says_what_to_install(name: str, monkeypatch):
    monkeypatch.setattr("sim.report.exports.find_spec", lambda module: None)
    with pytest.raises(InputError, match=r"pip install .*\[viz\]"):
        get_format(name)
