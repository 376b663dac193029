"""Every protocol from logs alone, on made-up drives whose outcome is known, and what must not change a score."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sensors.clip import Boxes
from sensors.errors import InputError
from sensors.frames import matrix_from_xy_yaw
from sim.metrics.log_view import LogView
from sim.metrics.pdm_scene import points_in_polygon
from sim.metrics.plan_protocols import plan_totals
from sim.metrics.protocols import (
    PROTOCOLS,
    compare_figures,
    episode_figures,
    get_protocol,
    score,
    summarize,
)
from sim.rollout_log import EpisodeLog, EpisodeRecorder
from sim.surroundings import Lane, Surroundings, lane_polygon

FEW = settings(deadline=None, derandomize=True, max_examples=3, phases=(Phase.explicit, Phase.generate))
PLAN_S = np.arange(1, 9) * 0.5
ROAD_X = np.arange(-50.0, 401.0, 2.0)
NAMES = tuple(PROTOCOLS)


def moved(xyyaw: np.ndarray, motion: tuple[float, float, float]) -> np.ndarray:
    """Poses [..., 3] or points [..., 2] after a rigid motion (x, y, turn) of the whole scene."""
    x, y, turn = motion
    cos, sin, out = np.cos(turn), np.sin(turn), np.array(xyyaw, dtype=np.float64)
    out[..., 0] = x + cos * xyyaw[..., 0] - sin * xyyaw[..., 1]
    out[..., 1] = y + sin * xyyaw[..., 0] + cos * xyyaw[..., 1]
    if out.shape[-1] == 3:
        out[..., 2] += turn
    return out


def road(motion: tuple[float, float, float], lights: str, lanes: bool = True) -> Surroundings:
    """A straight road along x: own lane around y = 0, the oncoming one left of it; 200 m to the goal."""
    own = np.column_stack([ROAD_X, np.zeros(len(ROAD_X))])
    other = np.column_stack([ROAD_X[::-1], np.full(len(ROAD_X), 3.5)])
    area = np.array([[-50, -2.75], [400, -2.75], [400, 6.25], [-50, 6.25]], dtype=np.float64)
    both = (Lane("own", moved(own, motion), 3.5, 13.9), Lane("other", moved(other, motion), 3.5, 13.9, False))
    return Surroundings(
        suite="made up",
        lights=lights,
        lanes=both if lanes else (),
        areas=(("drivable", moved(area, motion)),),
        route_m=moved(own[ROAD_X >= 0], motion),
        goal_m=100.0,
    )


def drive_log(
    speed_mps: float = 8.0,
    cars: dict[str, tuple[float, float, float]] | None = None,
    lateral_m: float = 0.0,
    frames: int = 121,
    motion: tuple[float, float, float] = (0.0, 0.0, 0.0),
    events: dict[int, tuple] | None = None,
    lights: str = "none",
    lanes: bool = True,
    name: str = "one",
    policy: str = "p",
    first: int = 0,
) -> EpisodeLog:
    """The ego straight on at one speed from x = 5.3; cars {id: (x, y, speed)}; plans go on as the ego does."""
    recorder = EpisodeRecorder(name, "drive", policy, 0, surroundings=road(motion, lights, lanes))
    cars = {"a": (60.0, 3.5, -9.0), "b": (80.0, 0.0, 9.0)} if cars is None else cars

    def boxes(time_s: float) -> Boxes:
        poses = moved(np.array([(x + v * time_s, y, np.pi * (v < 0)) for x, y, v in cars.values()]), motion)
        velocity = np.array([(v, 0.0) for _, _, v in cars.values()])
        size = np.tile([4.5, 1.9, 1.6], (len(cars), 1))
        return Boxes(tuple(cars), ("vehicle.car",) * len(cars), matrix_from_xy_yaw(*poses.T), size, velocity)

    for k in range(first, frames):
        x = 5.3 + speed_mps * 0.1 * k
        pose = moved(np.array([x, lateral_m, 0.0]), motion)
        happened = [events[k]] if events and k in events else []
        actors = boxes(0.1 * k) if cars else None
        recorder.frame(100_000 * k, pose, speed_mps, (0.0, 0.0), actors, happened)
        if k % 5 == 0:
            ahead = np.column_stack([x + speed_mps * PLAN_S, np.full(8, lateral_m), np.zeros(8)])
            recorder.plan(PLAN_S, moved(ahead, motion))
    for k in range(frames, frames + 50):
        recorder.afterwards(100_000 * k, boxes(0.1 * k) if cars else None)
    return recorder.finish(events[frames - 1][0] if events and frames - 1 in events else "time")


def figures(log: EpisodeLog, *names: str) -> dict[str, float]:
    """Valid figures only."""
    return {k: v for k, (v, valid, _) in episode_figures(log, names or NAMES).items() if valid}


def test_a_faultless_drive_scores_full_marks_wherever_there_are_any():
    found = figures(drive_log(speed_mps=13.0, cars={}))
    for name in ("route_completion", "comfort_rate", "alpasim.score", "hugsim.hd", "nuplan.score"):
        assert found[name] == pytest.approx(1.0), name
    for name in ("carla_2_0.driving_score", "carla_2_1.driving_score", "bench2drive.driving_score"):
        assert found[name] == pytest.approx(100.0), name
    assert found["neuroncap.score"] == 5.0
    assert found["incidents_per_km"] == found["at_fault_collision_rate"] == found["off_road_rate"] == 0.0
    assert found["pdms.strict"] > 0.95
    assert found["epdms.strict"] > 0.95
    assert not any(name.startswith("nuscenes") for name in found)


def test_running_into_a_standing_car_is_the_egos_fault():
    found = figures(drive_log(cars={"a": (41.0, 0.0, 0.0)}, frames=46, events={45: ("collision", "a", 8.0, "ego")}))
    assert found["at_fault_collision_rate"] == found["collision_rate"] == 1.0
    assert found["nuplan.score"] == found["alpasim.score"] == found["hugsim.hd"] == 0.0
    assert found["neuroncap.score"] == 0.0
    completed = 100 * 0.1 * 45 * 8.0 / 94.7  # of the 94.7 m from the start to the goal
    assert found["carla_2_0.driving_score"] == pytest.approx(completed * 0.6, rel=1e-6)
    assert found["carla_2_1.driving_score"] == pytest.approx(completed / 1.7, rel=1e-6)
    assert found["bench2drive.success_rate"] == 0.0
    assert found["pdms.strict"] < 0.3


def test_being_run_into_from_behind_is_not():
    log = drive_log(cars={"a": (-9.0, 0.0, 12.0)}, frames=31, events={30: ("collision", "a", 4.0, "other")})
    found = figures(log)
    assert found["collision_rate"] == 1.0
    assert found["at_fault_collision_rate"] == 0.0
    assert found["alpasim.score"] > 0.0


def test_leaving_the_road_ends_every_score_that_asks_for_it():
    found = figures(drive_log(cars={}, lateral_m=-1.9, frames=31, events={30: ("off_road", "", 8.0, "ego")}))
    assert found["off_road_rate"] == 1.0
    assert found["nuplan.score"] == found["alpasim.score"] == found["pdms.strict"] == 0.0


def test_the_wrong_lane_costs_direction_and_lanes():
    found = figures(drive_log(lateral_m=3.5, cars={}))
    assert found["nuplan.score"] == found["epdms.strict"] == 0.0
    assert found["carla_2_0.driving_score"] == found["carla_2_1.driving_score"] == pytest.approx(0.0, abs=1e-9)
    assert found["pdms.strict"] > 0.5  # v1 has no driving direction


@FEW
@given(st.floats(-np.pi, np.pi), st.floats(-3e3, 3e3), st.floats(-3e3, 3e3))
def test_moving_the_whole_scene_changes_no_score(turn: float, x: float, y: float):
    still, there = figures(drive_log(frames=31)), figures(drive_log(frames=31, motion=(x, y, turn)))
    assert set(still) == set(there)
    for name, value in still.items():
        assert there[name] == pytest.approx(value, abs=1e-6), name


def test_renaming_the_others_changes_no_score():
    log = drive_log(frames=61, cars={"a": (60.0, 3.5, -9.0), "b": (40.0, 0.0, 6.0)})
    names = np.where(log.actor_id == "a", "z", np.where(log.actor_id == "b", "c", log.actor_id))
    assert figures(replace(log, actor_id=names)) == figures(log)


def test_a_drive_in_two_logs_has_the_plan_scores_of_one():
    whole, early, late = drive_log(frames=61), drive_log(frames=31), drive_log(frames=61, first=30)
    for variant in ("compat", "strict"):
        one, two, three = (np.array(plan_totals(LogView(log), variant)["v1"]) for log in (whole, early, late))
        assert len(one) == 13
        # The first state of a log takes the acceleration of the second; everything else is the same.
        assert np.allclose(np.concatenate([two[:-1], three]), one, atol=1e-9)


def test_the_second_stage_of_a_drive_is_the_drive_four_seconds_later():
    log = drive_log(speed_mps=8.0, frames=121)  # it could be faster: no plan has full marks
    found = figures(log)
    for variant in ("compat", "strict"):
        scores = np.array([value for value, _ in plan_totals(LogView(log), variant, ("v2",))["v2"]])
        whole = scores[:-8] * scores[8:]  # plans are 0.5 s apart
        expected = np.mean((whole[1:] + whole[:-1]) / 2)
        assert found[f"epdms_two_stage.{variant}"] == pytest.approx(expected, abs=1e-12)
    assert found["epdms_two_stage.strict"] < found["epdms.strict"] < 1.0
    assert not any(name.startswith("epdms_two") for name in figures(drive_log(frames=31)))  # nothing is 4 s later


def test_a_run_in_two_parts_has_the_scores_of_one():
    logs = [drive_log(speed_mps=v, frames=41, name=f"n{v}") for v in (4.0, 8.0, 12.0, 13.0)]
    names = ("drive", "plain", "pdm", "carla")
    whole, first, second = (score(part, names) for part in (logs, logs[:2], logs[2:]))
    for name, (value, valid) in whole.items():
        assert valid == first[name][1] == second[name][1], name
        if valid and name not in (
            "incidents_per_km",
            "km_between_incidents",
        ):  # these are per km, and the parts are not equally long
            assert value == pytest.approx((first[name][0] + second[name][0]) / 2), name


def test_what_nobody_knows_of_lights_is_not_available():
    unknown, none, red = (figures(drive_log(lights=lights, frames=61)) for lights in ("unknown", "none", "recorded"))
    for name in ("epdms.compat", "epdms.strict", "carla_2_0.driving_score", "bench2drive.driving_score"):
        assert name not in unknown
        assert name in none
        assert name in red
    assert "red_light_rate" not in unknown  # nobody looked
    assert "red_light_rate" not in none  # nothing to run
    assert red["red_light_rate"] == 0.0
    assert "pdms.strict" in unknown  # v1 does not ask for lights


def test_a_red_lane_under_the_plan_stops_epdms():
    log = drive_log(lights="recorded", cars={}, frames=16)
    frames = np.arange(len(log.scene_time_us))
    lit = replace(log, red_frame=frames, red_lane=np.zeros(len(frames), np.int64)).validate()
    assert figures(lit, "pdm")["epdms.strict"] == 0.0
    run = replace(
        log,
        event=np.array(["red_light"]),
        event_frame=np.array([10]),
        event_actor=np.array([""]),
        event_speed_mps=np.array([8.0]),
        event_fault=np.array(["ego"]),
    ).validate()
    found, clean = figures(run, "plain", "carla"), figures(log, "plain", "carla")
    assert found["red_light_rate"] == 1.0
    assert found["carla_2_0.driving_score"] == pytest.approx(0.7 * clean["carla_2_0.driving_score"])


def test_the_speed_limit_is_that_of_where_the_car_is():
    """60 m of road with another limit cost speed there, and nothing before."""
    log = drive_log(speed_mps=12.0, cars={}, frames=61)
    slow = np.array([[40.0, 0.0], [400.0, 0.0]])
    lane_index = np.append(log.lane_index, [2, 2])
    changed = replace(
        log,
        lane_id=np.append(log.lane_id, "slow"),
        lane_width_m=np.append(log.lane_width_m, 3.5),
        lane_limit_mps=np.append(log.lane_limit_mps, 8.0),
        lane_on_route=np.append(log.lane_on_route, True),
        lane_index=lane_index,
        lane_xy_in_world_m=np.concatenate([log.lane_xy_in_world_m, slow]),
    ).validate()
    at_m = changed.ego_xyyaw_in_world[:, 0]
    limits = LogView(replace(changed, lane_xy_in_world_m=_cut(changed, 40.0)).validate()).limit_mps
    np.testing.assert_array_equal(limits, np.where(at_m < 40.0, 13.9, 8.0))
    assert figures(changed)["nuplan.score"] <= figures(log)["nuplan.score"]


def _cut(log: EpisodeLog, end_m: float) -> np.ndarray:
    """The vertices of the lanes, the first of which ends earlier."""
    xy = log.lane_xy_in_world_m.copy()
    xy[log.lane_index == 0, 0] = np.minimum(xy[log.lane_index == 0, 0], end_m)
    return xy


def test_without_lanes_what_needs_them_is_not_available():
    found = figures(drive_log(lanes=False, frames=61))
    assert not {"epdms.strict", "nuplan.score", "carla_2_0.driving_score"} & set(found)
    assert {"pdms.strict", "hugsim.hd", "alpasim.score", "collision_rate"} <= set(found)


def test_without_plans_what_needs_them_is_not_available():
    log = drive_log(frames=61)
    empty = replace(log, plan_frame=log.plan_frame[:0], plan_time_s=log.plan_time_s[:0])
    empty = replace(empty, plan_xyyaw_in_world=log.plan_xyyaw_in_world[:0]).validate()
    found = figures(empty)
    assert not {"pdms.strict", "epdms.compat", "hugsim.hd"} & set(found)
    assert found["nuplan.score"] > 0


def test_a_plan_under_four_seconds_has_no_pdms():
    log = drive_log(frames=61)
    short = log.plan_time_s < 3.9
    cut = {name: getattr(log, name)[short] for name in ("plan_frame", "plan_time_s", "plan_xyyaw_in_world")}
    assert not {"pdms.strict", "epdms.strict"} & set(figures(replace(log, **cut).validate()))


@pytest.mark.parametrize("frames", [0, 1])
def test_a_log_of_hardly_any_frames_is_not_available_never_a_number(frames: int):
    recorder = EpisodeRecorder("short", "drive", "p", 0, surroundings=road((0.0, 0.0, 0.0), "none"))
    for k in range(frames):
        recorder.frame(k, (0.0, 0.0, 0.0), 1.0)
    found = figures(recorder.finish("time"))
    assert not set(found) - {"time_on_course_s", "distance_m", "collision_rate", "off_road_rate"}


def test_score_rejects_an_empty_run_and_leaves_failed_episodes_out():
    with pytest.raises(InputError, match="Was the run empty"):
        score([])
    good, failed = drive_log(frames=41), replace(drive_log(frames=41, speed_mps=1.0), error="the wheel came off")
    assert str(score([good, failed], ["plain"])) == str(score([good], ["plain"]))
    assert not any(valid for _, valid in score([failed], ["plain", "pdm"]).values())


def test_get_protocol_rejects_with_the_nearest():
    with pytest.raises(InputError, match="Did you mean nuplan"):
        get_protocol("nuplann")


def test_every_metric_has_a_name_and_every_name_a_protocol():
    declared = [name for protocol in PROTOCOLS.values() for name in protocol.names]
    assert len(declared) == len(set(declared))
    assert set(episode_figures(drive_log(frames=41), NAMES)) == set(declared)


def test_cost_grows_linearly_with_plans_and_actors():
    def seconds(frames: int, cars: int) -> float:
        many = {f"c{k}": (30.0 + 9 * k, 3.5 * (k % 2), 0.0 if k % 2 else 9.0) for k in range(cars)}
        log, took = drive_log(frames=frames, cars=many), []
        for _ in range(2):
            start = time.process_time()
            episode_figures(log, NAMES)
            took.append(time.process_time() - start)
        return min(took)

    seconds(21, 4)
    assert seconds(101, 5) < 1.6 * (100 / 25) * seconds(26, 5)
    assert seconds(26, 40) < 1.6 * (40 / 10) * seconds(26, 10)


def test_summary_is_weighted_with_an_interval():
    rows = [{"m": (1.0, True, 1.0)}, {"m": (4.0, True, 3.0)}, {"m": (9.0, False, 5.0)}, {"k": (2.0, True, 1.0)}]
    flat = summarize([*rows, None], ["q"])
    assert (flat["m"], flat["m.n"], flat["k.n"]) == (3.25, 2, 1)
    assert (flat["n_episodes"], flat["n_failed"], flat["q.n"]) == (5, 1, 0)
    assert flat["m.ci95_low"] == 1.0
    assert flat["m.ci95_high"] == 4.0
    assert flat["k.ci95_low"] == flat["k"] == 2.0  # of one value no spread is known


def test_a_route_that_is_missing_has_nought_in_bench2drive():
    rows = [{"bench2drive.driving_score": (80.0, True, 1.0), "carla_2_0.driving_score": (80.0, True, 1.0)}, None]
    flat = summarize(rows, ["bench2drive.driving_score", "carla_2_0.driving_score", "bench2drive.success_rate"])
    assert (flat["bench2drive.driving_score"], flat["bench2drive.driving_score.n"]) == (40.0, 2)
    assert (flat["carla_2_0.driving_score"], flat["carla_2_0.driving_score.n"]) == (80.0, 1)
    assert flat["bench2drive.success_rate.n"] == 0
    assert "bench2drive.success_rate" not in flat


def test_kilometres_between_incidents_are_the_runs():
    def run(*episodes):
        rows = [{"incidents_per_km": (count / km, True, km)} for count, km in episodes]
        return summarize(rows, ["incidents_per_km", "km_between_incidents"])

    flat = run((1, 0.2), (1, 0.4), (0, 1.4))
    assert flat["km_between_incidents"] == pytest.approx(1.0)
    assert flat["km_between_incidents.n"] == 3
    assert flat["km_between_incidents.ci95_low"] == pytest.approx(0.2)
    assert "km_between_incidents.ci95_high" not in flat  # some resample has no incident at all
    none = run((0, 5.0), (0, 1.0))
    assert none["km_between_incidents.n"] == 2
    assert "km_between_incidents" not in none


def test_compare_is_paired():
    """A small difference in each of many very different scenes is seen; unpaired intervals would overlap."""
    rng = np.random.default_rng(0)
    base = rng.normal(0.0, 10.0, 40)
    a = {f"s{k}": {"m": (float(v), True, 1.0)} for k, v in enumerate(base)}
    b = {f"s{k}": {"m": (float(v + 0.5 + rng.normal(0, 0.3)), True, 1.0)} for k, v in enumerate(base)}
    (found,) = compare_figures(a, b)
    assert found.differ
    assert found.low < 0.5 < found.high
    assert not compare_figures(a, a)[0].differ
    assert compare_figures(a, {"other": a["s0"]}) == []


def test_lane_polygon_of_a_loop_is_a_ring():
    t = np.linspace(0, 2 * np.pi, 101)
    line = 30 * np.stack([np.cos(t), np.sin(t)], axis=-1)
    line[-1] = line[0]
    ring = lane_polygon(line, 4.0)
    at = np.array([[0.0, 25.0], [29.0, 0.0], [-31.0, 1.0], [0.0, -33.0]])
    assert points_in_polygon(at, ring).tolist() == [False, True, True, False]
