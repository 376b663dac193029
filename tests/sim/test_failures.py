"""What went wrong: kinds and fault of failures, which of them are filmed, and what the films show."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from made_up_run import make_run

from sensors.clip import Boxes
from sensors.frames import matrix_from_xy_yaw
from sim.report.failure_clips import (
    boxes_at,
    chosen,
    clip_frames,
    clip_path,
    frame_from_above,
    plan_in_force,
    write_clip,
)
from sim.report.failure_table import NONE, as_json, counts, struck, table
from sim.report.failures import COMPLETED_SHARE, KINDS, OF_THE_CODE, OUT_OF_TIME, Failure, failures, outcome
from sim.report.page import write_report
from sim.report.pictures import ALARM, PLAN
from sim.rollout_log import EpisodeLog, EpisodeRecorder, write_episode
from sim.surroundings import Lane, Surroundings

ACTORS = ("human.pedestrian.adult", "vehicle.bicycle", "vehicle.truck", "movable_object.barrier")
WORDS = ("a pedestrian", "a two-wheeler", "a vehicle", "an object")
CUE = ("left", "Now, turn left at the junction.")
LANE = Lane("a", np.array([[0.0, 0.0], [200.0, 0.0]]), 3.5)


def log_of(events: dict[int, list], frames: int = 80, ended_by: str = "time", red: bool = False) -> EpisodeLog:
    """10 m/s along x for `frames` at 10 Hz, four actors 6 m to the left of it, a plan each 0.5 s."""
    recorder = EpisodeRecorder("seed-0000", "drive", "p", 0, surroundings=Surroundings("made up", lanes=(LANE,)))
    T = matrix_from_xy_yaw(np.arange(4) * 12.0 + 20, np.full(4, 6.0), np.zeros(4))
    boxes = Boxes(("h", "b", "t", "o"), ACTORS, T, np.full((4, 3), 1.5), np.zeros((4, 2)))
    time_s = np.arange(1, 9) * 0.5
    for k in range(frames):
        recorder.frame(100_000 * k, (1.0 * k, 0, 0), 10.0, (0, 0), boxes, events.get(k, ()), [0] if red else [])
        if k % 5 == 0:
            recorder.plan(time_s, np.stack([k + 10 * time_s, 0 * time_s, 0 * time_s], axis=1))
    return recorder.finish(ended_by)


def row_of(log: EpisodeLog, error: str = "", **scores: float) -> dict:
    row = {"name": "p-seed-0000", "policy": "p", "error": error, "ended_by": log.ended_by}
    return row | {"scores": {name: [value, 1.0] for name, value in scores.items()}}


@pytest.mark.parametrize(("actor", "words"), list(zip("hbto", WORDS, strict=True)))
@pytest.mark.parametrize(
    ("by_world", "score", "fault"),
    [
        ("ego", None, "at fault"),
        ("other", None, "not at fault"),
        ("", None, "fault unknown"),
        ("ego", 0.0, "not at fault"),  # the figure in the table beside it decides
        ("other", 1.0, "at fault"),
    ],
)
def test_a_collision_has_a_partner_and_a_fault(actor, words, by_world, score, fault):
    log = log_of({70: [("collision", actor, 3.0, by_world)]}, ended_by="collision")
    row = row_of(log) if score is None else row_of(log, at_fault_collision_rate=score)
    kind = f"collision with {words}, {fault}"
    assert failures(row, log) == [Failure(kind, 70, 7.0, actor)]
    assert kind in KINDS
    assert outcome(row, failures(row, log)) == kind


def test_the_failure_that_ended_an_episode_is_its_outcome():
    events = {10: ["red_light"], 40: ["speeding"], 79: ["off_road", "wrong_way"]}
    log = log_of(events, ended_by="off_road")
    found = failures(row_of(log), log)
    assert [f.kind for f in found] == ["ran a red light", "speeding", "off the road", "wrong way"]
    assert [f.at_s for f in found] == [1.0, 4.0, 7.9, 7.9]
    assert outcome(row_of(log), found) == "off the road"
    assert outcome(row_of(log), found[:2]) == "ran a red light"
    assert set(f.kind for f in found) < set(KINDS)


def test_completing_the_route_is_none_and_running_out_of_time_is_one():
    done = log_of({79: ["route_completed"]}, ended_by="route_completed")
    assert failures(row_of(done, route_completion=1.0), done) == []
    assert outcome(row_of(done), []) == "no failure"
    late = log_of({})
    assert failures(row_of(late, route_completion=COMPLETED_SHARE), late) == []
    assert failures(row_of(late, route_completion=COMPLETED_SHARE - 0.001), late) == [Failure(OUT_OF_TIME, 79, 7.9)]
    assert failures(row_of(late), late) == []  # nothing is known of a route


def test_a_failure_of_the_code_is_one_with_and_without_a_log():
    log = log_of({5: ["stop_line"]})
    row = row_of(log, error="ValueError: x")
    assert failures(row, None) == [Failure(OF_THE_CODE)]
    assert [f.kind for f in failures(row, log)] == ["passed a stop line", OF_THE_CODE]
    assert outcome(row, failures(row, log)) == OF_THE_CODE


def test_clips_go_to_the_first_policy_and_to_each_kind_first():
    def one(policy, kind, frame=1):
        return {"policy": policy, "name": policy}, Failure(kind, frame, 0.1)

    found = [
        one("base", "off the road"),
        one("own", "speeding"),
        one("own", "speeding", 2),
        one("own", "off the road"),
        ({"policy": "own", "name": "own"}, Failure(OF_THE_CODE)),
    ]
    picked = [(row["policy"], f.kind, f.frame) for row, f in chosen(found, ["own", "base"], 9)]
    assert picked == [
        ("own", "off the road", 1),
        ("own", "speeding", 1),
        ("own", "speeding", 2),
        ("base", "off the road", 1),
    ]
    assert [(row["policy"], f.kind) for row, f in chosen(found, ["own"], 2)] == [p[:2] for p in picked[:2]]


def test_a_clip_shows_the_seconds_before_and_the_failure_itself(tmp_path: Path):
    log = log_of({61: ["off_road"]})
    failure = failures(row_of(log), log)[0]
    shown = clip_frames(log, failure)
    assert failure.frame in shown
    assert (log.time_s[shown[0]], log.time_s[shown[-1]]) == pytest.approx((1.1, 7.1))
    write_clip(tmp_path / "media" / "a.mp4", log, failure)
    with av.open(str(tmp_path / "media" / "a.mp4")) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == len(shown) + 5  # the last is held
    edge = np.array([picture[240, 1].astype(int) for picture in pictures])
    alarmed = np.abs(edge - ALARM).max(axis=1) < 60
    assert alarmed.tolist() == [frame >= failure.frame for frame in shown] + [True] * 5


def test_a_clip_with_cameras_puts_the_mosaic_beside(tmp_path: Path):
    log = log_of({40: ["off_road"]})
    asked = []

    def mosaic(frame):
        asked.append(frame)
        return np.full((240, 360, 3), 90, np.uint8)

    write_clip(tmp_path / "a.mp4", log, failures(row_of(log), log)[0], mosaic)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (240, 360 + 240)
    assert asked == list(clip_frames(log, failures(row_of(log), log)[0]))


def test_the_view_from_above_comes_from_the_log():
    log = log_of({})
    boxes = boxes_at(log, 30)
    assert boxes.categories == ACTORS
    np.testing.assert_allclose(boxes.T_world_from_box[1, :2, 3], (32.0, 6.0))
    np.testing.assert_allclose(plan_in_force(log, 32)[:, 0], 10 * np.arange(1, 9) * 0.5 - 2.0)
    assert len(plan_in_force(log, 34)) == 8
    view = frame_from_above(log, 30, log.lines())
    assert (view == PLAN).all(axis=2).any()
    assert not (view == ALARM).all(axis=2).any()
    assert (frame_from_above(log_of({}, red=True), 30, []) == ALARM).all(axis=2).any()


def test_the_report_films_failures_once_and_says_what_it_left_out(tmp_path: Path):
    make_run(tmp_path)
    page = write_report(tmp_path, most_clips=1).read_text()
    clips = sorted((tmp_path / "media").glob("failure-*"))
    assert [clip.name for clip in clips] == ["failure-first-1-0021.mp4"]
    assert "1 of 2 of them" in page
    stamp = clips[0].stat().st_mtime_ns
    page = write_report(tmp_path).read_text()
    assert clips[0].stat().st_mtime_ns == stamp
    assert "The seconds before each of them" in page
    assert page.count("<video") == 3
    assert "--clips 2" in page
    clips[0].rename(tmp_path / clip_path({"name": "first-1"}, Failure("off the road", 21), cameras=True))
    page = write_report(tmp_path).read_text()
    assert 'class="wide"' in page
    assert not clips[0].exists()  # the better one is there


def test_what_does_not_fit_is_linked_or_left_out_in_words(tmp_path: Path, monkeypatch):
    make_run(tmp_path)
    monkeypatch.setattr("sim.report.page.EMBEDDED_BYTES", 1000)
    monkeypatch.setattr("sim.report.page.DRAWN_BYTES", 5_000)
    page = write_report(tmp_path).read_text()
    assert 'src="media/a.mp4"' in page
    assert "3 films and pictures are not in this page but beside it" in page
    assert "media-src data: &#39;self&#39; file:" in page or "media-src data: 'self' file:" in page
    left_out = page.count("<article") - page.count('class="timeline"')
    assert 0 < left_out < 4
    assert f"{left_out} of 4 episodes are not drawn" in page


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_page_of_many_episodes_stays_small(tmp_path: Path):
    """300 filmed episodes, 90 MB of films and pictures: the page is below 15 MB and says what is not in it."""
    summary = make_run(tmp_path)
    log = log_of({60: ["off_road"]}, frames=300)
    rng, rows = np.random.default_rng(0), []
    for k in range(300):
        name = f"first-{k}"
        write_episode(tmp_path / "episodes" / f"{name}.npz", log)
        for suffix in ("mp4", "jpg"):
            (tmp_path / "media" / f"{name}.{suffix}").write_bytes(rng.bytes(150_000))
        media = {"log": f"episodes/{name}.npz", "video": f"media/{name}.mp4", "sheets": [f"media/{name}.jpg"]}
        rows.append(summary["episodes"][0] | media | {"name": name, "seed": k})
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"episodes": rows}))
    page = write_report(tmp_path).read_text()
    assert len(page.encode()) < 15_000_000
    assert page.count("<article") == 300
    assert "films and pictures are not in this page but beside it" in page
    assert "12 of 300 of them" in page


def test_an_unfinished_log_of_a_failed_episode_is_not_needed(tmp_path: Path):
    make_run(tmp_path, failed=True)
    write_episode(tmp_path / "episodes" / "x.npz", log_of({}))
    page = write_report(tmp_path).read_text()
    assert OF_THE_CODE in page


def test_table_counts_episodes_by_town_and_says_what_was_so(tmp_path):
    (tmp_path / "episodes").mkdir()
    rows = []
    for k, (town, events) in enumerate((("grid", {}), ("grid", {40: ["a", "b"]}), ("ring", {70: ["off_road"]}))):
        place = Surroundings("made up", town, lanes=(LANE,))
        recorder = EpisodeRecorder(f"seed-{k:04d}", "drive", "p", k, surroundings=place)
        two = matrix_from_xy_yaw([45.0, 40.0], [0.0, 6.0], [np.pi, np.pi / 2])
        boxes = Boxes(("a", "b"), ("vehicle.car", "vehicle.bus.rigid"), two, np.full((2, 3), 1.5), np.zeros((2, 2)))
        for frame in range(80):
            what = events.get(frame, ())
            told = [("collision", name, 5.0, "ego") if len(name) == 1 else name for name in what]
            recorder.frame(100_000 * frame, (1.0 * frame, 0, 0), 10.0, (0, 0), boxes, told, cue=CUE)
        log = recorder.finish("completed")
        write_episode(tmp_path / f"episodes/{log.name}.npz", log)
        rows.append(row_of(log) | {"name": log.name, "log": f"episodes/{log.name}.npz"})
    found = struck(tmp_path, rows)
    assert counts(found, "town") == {
        "no failure": {"all": 1, "grid": 1},
        "collision with a vehicle, at fault": {"all": 1, "grid": 1},  # two of them in one episode
        "off the road": {"all": 1, "ring": 1},
    }
    assert counts(found, "command")["no failure"] == {"all": 1}
    first, second, third = (each for each in found if each.kind != NONE)
    assert first.other.startswith("ahead going towards it")
    assert second.other.startswith("to the left going across")
    assert f"told {CUE[1]!r}" in third.line()
    crashed = {"name": "seed-0009", "policy": "p", "log": None, "error": "it ended its process"}
    assert [each.line() for each in struck(tmp_path, [crashed])] == ["seed-0009  failure of the code"]
    assert table(found, "town")[0].split() == ["episodes", "all", "grid", "ring"]
    assert all(each["speed_mps"] is None for each in as_json(found) if each["kind"] == NONE)
