"""What the page draws of an episode: numbers that stand for the right metres, seconds and shares."""

import numpy as np
import pytest
from made_up_run import episode

from sim.report.drawings import BOTTOM, TOP, bird_eye_plot, route_share, time_line
from sim.report.failures import Failure
from sim.rollout_log import EpisodeLog, EpisodeRecorder
from sim.surroundings import Surroundings


def routed_log(frames: int = 41, goal_m: float = 60.0) -> EpisodeLog:
    """2 m a frame along a straight route, back a little at frame 10."""
    route = np.stack([np.arange(0.0, 200.0), np.zeros(200)], axis=1)
    around = Surroundings("made up", route_m=route, goal_m=goal_m, areas=(("drivable", route[[0, 100, 150]]),))
    recorder = EpisodeRecorder("a", "drive", "p", 0, (("edge", np.array([[-500.0, 3.0], [500.0, 3.0]])),), around)
    for k in range(frames):
        recorder.frame(100_000 * k, (2.0 * k - 5.0 * (k == 10), 0.5, 0.0), 20.0)
    return recorder.finish("time")


def numbers(points: str) -> np.ndarray:
    return np.array([pair.split(",") for pair in points.split()], float)


def test_the_share_of_the_route_never_falls_and_ends_at_one():
    log = routed_log()
    share = route_share(log, np.arange(len(log)))
    assert (np.diff(share) >= 0).all()
    assert share[[0, 9, 10, 15]] == pytest.approx([0.0, 18 / 60, 18 / 60, 30 / 60])
    assert share[-1] == 1.0
    assert route_share(log, np.array([0, 15, 40])) == pytest.approx([0.0, 0.5, 1.0])


def test_a_drive_over_time_is_its_speed_and_its_route():
    line = time_line(routed_log(), [])
    speed, route = line["curves"]
    assert (line["length_s"], line["marks"], line["rows"]) == (4.0, [], 0)
    assert (speed["most"], speed["last"], route["most"], route["last"]) == (20.0, 20.0, 100.0, 100.0)
    points = numbers(route["points"])
    assert points[0] == pytest.approx([0.0, BOTTOM])
    assert points[-1] == pytest.approx([100.0, TOP])
    assert {kind for kind in (speed["kind"], route["kind"])} == {"speed", "score"}


def test_a_replay_over_time_is_how_far_each_plan_was_off():
    _, error = time_line(episode("a", "p", 0, "replay"), [])["curves"]
    assert error["most"] == pytest.approx(0.3 * np.arange(1, 7).mean() * 0.5)  # the plan drifts 0.3 m a second aside
    assert numbers(error["points"])[-1, 0] == pytest.approx(100 * 13 / 19, abs=0.1)  # no plan is judged after that


def test_marks_that_lie_close_go_to_rows_of_their_own():
    found = [Failure("off the road", 20, 2.0), Failure("wrong way", 22, 2.2), Failure("blocked", 39, 3.9)]
    line = time_line(routed_log(), [*found, Failure("failure of the code")])
    assert [(mark["words"], mark["row"]) for mark in line["marks"]] == [
        ("off the road", 0),
        ("wrong way", 1),
        ("blocked", 0),
    ]
    assert [mark["left"] for mark in line["marks"]] == pytest.approx([50.0, 55.0, 97.5])
    assert line["rows"] == 2


def test_a_line_that_crosses_the_view_without_a_vertex_in_it_is_drawn():
    plot = bird_eye_plot(routed_log(), [])
    assert [line["kind"] for line in plot["lines"]] == ["edge"]
    assert len(plot["areas"]) == len(plot["route"]) == 1


def test_the_words_of_an_event_go_where_there_is_room():
    found = [Failure("off the road", 40, 4.0), Failure("wrong way", 2, 0.2), Failure("wrong way", 30, 3.0)]
    events = bird_eye_plot(routed_log(), found)["events"]
    assert [(event["name"], event["left"]) for event in events] == [("wrong way", False), ("off the road", True)]


def test_an_episode_of_one_frame_has_no_time():
    log = routed_log(frames=1)
    assert time_line(log, []) is None
    assert bird_eye_plot(log, [])["track"]
