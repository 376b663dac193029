"""Junctions left as told, and otherwise, on made-up drives."""

import numpy as np
import pytest

from sim.metrics.protocols import episode_figures
from sim.rollout_log import EpisodeLog, EpisodeRecorder
from sim.surroundings import Lane, Surroundings

STEP_M = 0.8
AHEAD = np.column_stack([np.arange(0.0, 201.0, 2.0), np.zeros(101)])
LEFT = np.concatenate([AHEAD[:26], np.column_stack([np.full(75, 50.0), np.arange(2.0, 152.0, 2.0)])])
SQUARE = np.array([[42.0, -8.0], [58.0, -8.0], [58.0, 8.0], [42.0, 8.0]])


def drive(way_m: np.ndarray, told: str, metres: float, ended_by: str, aside_m: float = 0.0) -> EpisodeLog:
    """Along a way for so long; the route turns left at the junction 50 m ahead, and is told until after it."""
    lanes = (Lane("left", LEFT, 3.5), Lane("ahead", AHEAD, 3.5, on_route=False))
    road = np.array([[-50.0, -100.0], [250.0, -100.0], [250.0, 200.0], [-50.0, 200.0]])
    areas = (("drivable", road), ("intersection", SQUARE))
    around = Surroundings("made up", lanes=lanes, areas=areas, route_m=LEFT, goal_m=150.0)
    recorder = EpisodeRecorder("one", "drive", "p", 0, surroundings=around)
    passed_m = np.append(0.0, np.cumsum(np.hypot(*np.diff(way_m, axis=0).T)))
    for k in range(round(metres / STEP_M)):
        x, y = (np.interp(k * STEP_M, passed_m, way_m[:, c]) for c in (0, 1))
        dx, dy = (np.interp(k * STEP_M + 0.1, passed_m, way_m[:, c]) - v for c, v in ((0, x), (1, y)))
        yaw = float(np.arctan2(dy, dx))
        pose = (x - aside_m * np.sin(yaw), y + aside_m * np.cos(yaw), yaw)
        cue = (told if k * STEP_M < 60.0 else "follow", "")
        recorder.frame(100_000 * k, pose, 8.0, (0.0, 0.0), cue=cue)
    return recorder.finish(ended_by)


@pytest.mark.parametrize(
    ("way_m", "told", "metres", "ended_by", "figure"),
    [
        (LEFT, "left", 100.0, "time", (1.0, 1)),
        (AHEAD, "left", 100.0, "time", (0.0, 1)),
        (AHEAD, "left", 57.0, "route_left", (0.0, 1)),  # within it, but already elsewhere
        (LEFT, "left", 50.0, "collision", None),
        (LEFT, "left", 30.0, "time", None),
        (LEFT, "follow", 100.0, "time", None),  # no choice, nothing told
    ],
)
def test_a_junction_is_left_by_the_way_told_or_another(way_m, told, metres, ended_by, figure) -> None:
    value, valid, weight = episode_figures(drive(way_m, told, metres, ended_by), ["junctions"])["junction.followed"]
    assert ((value, weight) if valid else None) == figure


def test_another_lane_of_the_way_told_is_that_way() -> None:
    for aside_m, followed in ((3.5, 1.0), (-3.5, 1.0), (6.0, 0.0)):
        log = drive(LEFT, "left", 100.0, "time", aside_m)
        assert episode_figures(log, ["junctions"])["junction.followed"][0] == followed
