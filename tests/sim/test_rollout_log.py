import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.clip import Boxes
from sensors.errors import InputError
from sensors.frames import matrix_from_xy_yaw
from sim.log_schema import COLUMNS, READABLE, VERSION
from sim.rollout_log import EpisodeLog, EpisodeRecorder, atomic_path, read_episode, write_episode
from sim.views import Shown

FEW = settings(deadline=None, derandomize=True, max_examples=15)
START_US = 1_600_000_000_000_000


def boxes(n: int, at: float = 0.0) -> Boxes:
    k = np.arange(n, dtype=np.float64)
    return Boxes(
        tuple(f"id{i}" for i in range(n)),
        ("vehicle.car",) * n,
        matrix_from_xy_yaw(at + 10 * k, 5 + k, 0.1 * k),
        np.tile([4.5, 1.9, 1.6], (n, 1)),
        np.stack([3 * np.ones(n), 4 * np.ones(n)], axis=1),
    )


def sample_log(frames: int = 20, actors: int = 3, kind: str = "drive") -> EpisodeLog:
    lines = [("lane_edge", np.array([[0.0, 4], [50, 4], [90, 10]])), ("centre", np.array([[0.0, 0], [90, 0]]))]
    recorder = EpisodeRecorder("one", kind, "constant-velocity", 7, lines)
    for k in range(frames):
        action = None if k == frames - 1 else (0.5, -0.01)
        events = ("off_road",) if k == frames - 1 else ()
        recorder.frame(START_US + 100_000 * k, (0.8 * k, 0.1, 0.0), 8.0, action, boxes(actors, k), events)
        if k % 5 == 0:
            time_s = np.arange(1, 7) * 0.5
            recorder.plan(time_s, np.stack([0.8 * k + 8 * time_s, 0.1 + 0 * time_s, 0 * time_s], axis=1))
    return recorder.finish("off_road")


def same(a: EpisodeLog, b: EpisodeLog) -> bool:
    return all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name), equal_nan=True)
        if f.name in COLUMNS and COLUMNS[f.name][0] != "U"
        else np.array_equal(getattr(a, f.name), getattr(b, f.name))
        for f in fields(EpisodeLog)
    )


def test_recorder_keeps_what_it_was_given() -> None:
    log = sample_log()
    assert len(log) == 20
    assert (log.name, log.kind, log.policy, log.seed, log.ended_by) == (
        "one",
        "drive",
        "constant-velocity",
        7,
        "off_road",
    )
    time_s, xyyaw = log.plan_at(5)
    assert np.array_equal(time_s, np.arange(1, 7) * 0.5)
    assert np.array_equal(xyyaw[:, 0], 4.0 + 8 * time_s)
    assert len(log.plan_at(6)[0]) == 0
    rows = log.actors_at(4)
    assert log.actor_id[rows].tolist() == ["id0", "id1", "id2"]
    assert np.allclose(log.actor_xyyaw_in_world[rows], [[4, 5, 0], [14, 6, 0.1], [24, 7, 0.2]], atol=1e-12)
    assert np.array_equal(log.actor_size_lw_m[rows], [[4.5, 1.9]] * 3)
    assert np.array_equal(log.actor_speed_mps[rows], [5.0] * 3)
    assert np.isnan(log.action[-1]).all()
    assert (log.action[:-1] == (0.5, -0.01)).all()
    assert (log.event.tolist(), log.event_frame.tolist()) == (["off_road"], [19])
    assert [(kind, xy.tolist()) for kind, xy in log.lines()] == [
        ("lane_edge", [[0, 4], [50, 4], [90, 10]]),
        ("centre", [[0, 0], [90, 0]]),
    ]
    assert np.allclose(log.time_s, np.arange(20) * 0.1)


def test_recorder_copies_what_the_caller_reuses() -> None:
    recorder, pose = EpisodeRecorder("one", "drive", "p", 0), np.zeros(3)
    recorder.frame(0, pose, 0.0)
    pose[:] = 9
    recorder.frame(1, pose, 0.0)
    assert recorder.finish("time").ego_xyyaw_in_world.tolist() == [[0, 0, 0], [9, 9, 9]]


@FEW
@given(st.integers(0, 12), st.integers(0, 4), st.booleans(), st.text(st.characters(codec="utf-8"), max_size=8))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, frames: int, actors: int, plan: bool, error: str) -> None:
    recorder = EpisodeRecorder("a", "replay", "log", 3, [("centre", np.zeros((2, 2)))] * actors)
    for k in range(frames):
        recorder.frame(k, (k, -k, 0.1), 1.0, None, boxes(actors), ("collision",) * (k % 2))
        if plan:
            recorder.plan(np.arange(1, k + 2) * 0.1, np.ones((k + 1, 3)))
    log = recorder.finish("time", error)
    path = tmp_path_factory.mktemp("log") / "a.npz"
    write_episode(path, log)
    assert same(read_episode(path), log)


def test_same_log_same_bytes_and_nothing_else_in_the_folder(tmp_path: Path) -> None:
    write_episode(tmp_path / "a.npz", sample_log())
    write_episode(tmp_path / "b.npz", sample_log())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_a_minute_among_twenty_actors_is_below_a_megabyte(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    recorder = EpisodeRecorder("minute", "drive", "p", 0)
    track = np.cumsum(rng.normal(0.5, 0.1, (600, 20)), axis=0)
    for k in range(600):
        T = matrix_from_xy_yaw(track[k], track[k] ** 2 / 99, track[k] / 7)
        actors = Boxes(
            tuple(f"{i:032x}" for i in range(20)),
            ("vehicle.car",) * 20,
            T,
            np.tile([4.5, 1.9, 1.6], (20, 1)),
            rng.normal(5, 1, (20, 2)),
        )
        recorder.frame(START_US + k * 100_000, rng.normal(0, 9, 3), 8.0, (0.1, 0.2), actors)
        if k % 5 == 0:
            recorder.plan(np.arange(1, 7) * 0.5, rng.normal(0, 9, (6, 3)))
    write_episode(tmp_path / "minute.npz", recorder.finish("time"))
    assert (tmp_path / "minute.npz").stat().st_size < 1_000_000


def test_plan_comes_once_after_a_frame() -> None:
    recorder = EpisodeRecorder("one", "drive", "p", 0)
    with pytest.raises(ValueError, match="once after each frame"):
        recorder.plan(np.ones(1), np.zeros((1, 3)))
    recorder.frame(0, (0, 0, 0), 0.0)
    recorder.plan(np.ones(1), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="once after each frame"):
        recorder.plan(np.ones(1), np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("column", "value", "field"),
    [
        ("kind", "dream", "kind"),
        ("name", 3, "name"),
        ("seed", "7", "seed"),
        ("time_us", np.zeros(20, np.int64), "time_us[1]"),
        ("time_us", np.arange(20.0), "time_us"),
        ("speed_mps", np.zeros(19), "speed_mps"),
        ("speed_mps", np.full(20, np.nan), "speed_mps"),
        ("ego_xyyaw_in_world", np.full((20, 3), np.inf), "ego_xyyaw_in_world"),
        ("ego_xyyaw_in_world", np.zeros((20, 2)), "ego_xyyaw_in_world"),
        ("actor_frame", np.full(60, 20), "actor_frame"),
        ("actor_frame", np.arange(60)[::-1] // 3, "actor_frame"),
        ("actor_id", np.zeros(60, np.int64), "actor_id"),
        ("plan_frame", np.full(24, -1), "plan_frame"),
        ("plan_time_s", np.ones(24), "plan_time_s"),
        ("plan_xyyaw_in_world", np.full((24, 3), np.nan), "plan_xyyaw_in_world"),
        ("event", np.array(["ofroad"]), "event"),
        ("event_frame", np.array([20]), "event_frame"),
        ("line_index", np.array([0, 0, 0, 1, 2]), "line_index"),
    ],
)
def test_validate_rejects(column: str, value: object, field: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(sample_log(), **{column: value}).validate("here")
    assert (caught.value.where, caught.value.field) == ("here", field)


def test_read_rejects_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an episode log"):
        read_episode(tmp_path / "none.npz")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_read_rejects_a_truncated_file(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.npz"
    write_episode(path, sample_log())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match="a whole episode log"):
        read_episode(path)


def test_read_rejects_any_changed_byte_or_reads_the_same(tmp_path: Path) -> None:
    """A flipped byte is an InputError or hits a field that the reader does not use; it never changes a number."""
    path, log, rng = tmp_path / "a.npz", sample_log(4, 1), np.random.default_rng(0)
    write_episode(path, log)
    whole, rejected = path.read_bytes(), 0
    for at in rng.integers(0, len(whole), 300):
        changed = bytearray(whole)
        changed[at] ^= 0xFF
        path.write_bytes(changed)
        try:
            assert same(read_episode(path), log)
        except InputError:
            rejected += 1
    assert rejected > 150


def rewrite(path: Path, **changes: object) -> None:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    arrays |= changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"head": None}, "head"),
        ({"head": np.array("{")}, "head"),
        ({"head": np.array("[]")}, "head"),
        ({"head": np.array(json.dumps({"schema": "vla-drive episode log", "version": 1}))}, "version"),
        ({"head": np.array(json.dumps({"schema": "another", "version": 2}))}, "version"),
        (
            {"head": np.array(json.dumps({"schema": "vla-drive episode log", "version": VERSION, "name": "a"}))},
            "ego_centre_m",
        ),
        ({"plan_time_s": None}, "plan_time_s"),
        ({"extra": np.zeros(1)}, "extra"),
        ({"time_us": np.zeros((20, 1), np.int64)}, "time_us"),
    ],
)
def test_read_rejects_foreign(tmp_path: Path, changes: dict, field: str) -> None:
    path = tmp_path / "a.npz"
    write_episode(path, sample_log())
    rewrite(path, **changes)
    with pytest.raises(InputError) as caught:
        read_episode(path)
    assert (caught.value.where, caught.value.field) == (str(path), field)


def test_a_log_from_before_views_were_told_is_read_without_any(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_episode(path, sample_log())
    with np.load(path, allow_pickle=False) as file:
        head = json.loads(str(file["head"])) | {"version": 4}
    columns = dict.fromkeys(READABLE[4])
    rewrite(path, head=np.array(json.dumps(head)), **columns)
    assert same(read_episode(path), sample_log())
    assert read_episode(path).shown() == []
    rewrite(path, head=np.array(json.dumps(head | {"version": VERSION})))
    with pytest.raises(InputError, match="view_camera: came nothing"):
        read_episode(path)


def test_views_are_kept_as_they_were_told(tmp_path: Path) -> None:
    recorder = EpisodeRecorder("one", "drive", "log", 7)
    told = (Shown("recorded", 0.0), Shown("re-projected", 0.25))
    for k in range(2):
        recorder.frame(START_US + 100_000 * k, (0.8 * k, 0.1, 0.0), 8.0)
        recorder.views(("CAM_FRONT", "CAM_BACK"), told)
    write_episode(tmp_path / "a.npz", recorder.finish("time"))
    log = read_episode(tmp_path / "a.npz")
    assert log.shown() == [*told, *told]
    assert log.view_frame.tolist() == [0, 0, 1, 1]
    with pytest.raises(InputError, match="view_how"):
        replace(log, view_how=np.array(["guessed"] * 4)).validate()


def test_read_never_unpickles(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, head=np.array([{}], object))
    with pytest.raises(InputError, match="pickle"):
        read_episode(path)


def test_atomic_path_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]
