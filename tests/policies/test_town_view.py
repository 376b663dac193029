"""What limits a driver in a town, case by case, and how a car moves under limits."""

from types import SimpleNamespace

import numpy as np
import pytest

from policies.town_motion import AT_IT_M, DT_S, HARDEST_BRAKING_MPS2, MAX_ACCEL_MPS2, acceleration, motion
from policies.town_view import Limit, Others, at_lines, on_crossings, zebras_on
from sim.geometry import OpenLine
from sim.road_network import Link, network_path
from sim.town_map import town_map
from sim.town_route import Route
from sim.vehicle import EgoState, VehicleParams

GRID = town_map(network_path("grid")).network


def at_line(gap_m: float, light: str = "", state: str = "", stop_sign: bool = False) -> SimpleNamespace:
    link = Link("road_0", "next_0", (), "straight", light, 0, "junction", 0, stop_sign)
    return SimpleNamespace(place=SimpleNamespace(stop_lines=((gap_m, link),)), lights={light: state})


@pytest.mark.parametrize(
    ("state", "gap_m", "speed_mps", "why"),
    [
        ("r", 30.0, 12.0, "stop: red light, 30 m"),
        ("u", 3.0, 1.0, "stop: red light, 3 m"),
        ("y", 40.0, 12.0, "stop: amber light, 40 m"),
        ("y", 12.0, 12.0, None),  # it would take 6.5 m/s2
        ("G", 20.0, 12.0, None),
        ("r", -2.0, 5.0, None),  # one is past it
    ],
)
def test_lights(state: str, gap_m: float, speed_mps: float, why: str | None) -> None:
    found = [limit.reason for limit in at_lines(at_line(gap_m, "light", state), speed_mps, set())]
    assert found == ([why] if why else [])


def test_one_stops_at_a_stop_sign_once() -> None:
    world = at_line(8.0, stop_sign=True)
    (limit,) = at_lines(world, 8.0, set())
    assert (limit.reason, limit.standstill) == ("stop: stop sign, 8 m", True)
    assert list(at_lines(world, 0.0, {"road_0"})) == []


def crossing_ahead():
    link = next(k for links in GRID.links.values() for k in links if k.direction == "straight" and k.light)
    edges = tuple(GRID.lanes[name].edge for name in (link.from_lane, link.to_lane))
    line = Route(GRID, edges).followed(link.from_lane).line
    return line, zebras_on(SimpleNamespace(network=GRID), line)


def test_a_line_across_a_junction_has_a_crossing_before_and_one_behind_it() -> None:
    line, zebras = crossing_ahead()
    assert len(zebras) >= 2
    for zebra in zebras[:2]:
        assert 3.0 < zebra.leaves_m - zebra.enters_m < 6.0
        middle = line.at((zebra.enters_m + zebra.leaves_m) / 2)[0]
        assert np.hypot(*(zebra.lane.line.at(zebra.at_m)[0] - middle)) < 1.0


def one_walker(zebra, at_m: float, towards_end: bool, speed_mps: float) -> Others:
    xy, heading = zebra.lane.line.at(at_m)
    pose = np.array([[*xy, float(heading) + (0.0 if towards_end else np.pi)]])
    zero = np.zeros(1)
    return Others(np.array([0]), pose, np.array([speed_mps]), zero, zero, np.array([[0.5, 0.5]]), np.array([True]))


@pytest.mark.parametrize(
    ("beside_m", "speed_mps", "ego_mps", "stops"),
    [
        (-2.5, 1.3, 6.0, True),  # comes towards the ego's lane, 2.5 m from it
        (-2.5, 0.0, 6.0, False),  # waits
        (3.0, 1.3, 6.0, False),  # has crossed it and goes on
        (0.0, 0.5, 7.0, True),  # is in it
        (0.0, 1.3, 2.0, False),  # is in it, and will be gone
    ],
)
def test_pedestrians_on_a_crossing(beside_m: float, speed_mps: float, ego_mps: float, stops: bool) -> None:
    zebra = crossing_ahead()[1][0]
    others = one_walker(zebra, zebra.at_m + beside_m, True, speed_mps)
    world = SimpleNamespace(params=VehicleParams())
    found = list(on_crossings(world, others, (zebra,), zebra.enters_m - 8.5, ego_mps))
    assert [limit.reason for limit in found] == ["stop: pedestrian, 8 m"] * stops
    late = list(on_crossings(world, others, (zebra,), zebra.enters_m - 1.0, 12.0))
    assert bool(late) == (beside_m == 0.0), "nobody is in the lane yet, and it is too late to stop before it"


# Motion -------------------------------------------------------------------------------------------


def straight(limits, speed_mps: float, wanted_mps: float = 12.0, seconds: float = 8.0) -> np.ndarray:
    path = OpenLine(np.column_stack([np.arange(0.0, 200.0), np.zeros(200)]))
    ego = EgoState(0.0, 0.0, 0.0, speed_mps)
    return motion(ego, path, 0.0, np.full(200, wanted_mps), limits, seconds)[0]


def test_a_free_car_reaches_the_comfortable_speed_and_keeps_to_the_path() -> None:
    rows = straight([], 0.0, seconds=12.0)
    assert rows[-1, 3] == pytest.approx(12.0, abs=0.1)
    assert np.diff(rows[:, 3]).max() <= MAX_ACCEL_MPS2 * DT_S + 1e-9
    assert np.abs(rows[:, 1:3]).max() == 0.0
    assert np.allclose(rows[:, 0], rows[:, 4])


@pytest.mark.parametrize("speed_mps", [3.0, 8.0, 12.0])
def test_one_stops_at_a_line_and_not_far_before_it(speed_mps: float) -> None:
    rows = straight([Limit(35.0, 0.0, "stop: red light, 36 m", standstill=True)], speed_mps, seconds=20.0)
    assert 32.0 < rows[-1, 4] <= 35.0 + AT_IT_M
    assert rows[-1, 3] < 0.3
    assert np.diff(rows[:, 3]).min() / DT_S > -3.5


def test_one_falls_in_behind_a_slower_car_and_names_it() -> None:
    ahead = Limit(25.0, 6.0, "follow: car, 25 m")
    rows = straight([ahead], 12.0, seconds=20.0)
    assert rows[-1, 3] == pytest.approx(6.0, abs=0.5)
    gaps = 25.0 + 6.0 * DT_S * np.arange(1, len(rows) + 1) - rows[:, 4]
    assert gaps.min() > 2.5
    assert acceleration(12.0, ahead, 1.0) < HARDEST_BRAKING_MPS2
    assert acceleration(12.0, Limit(1.0, 6.0, "", gentle=True), 1.0) > -2.0


def test_speeding_up_is_foreseen() -> None:
    zero = np.zeros(1)
    car = Others(
        np.array([0]), np.zeros((1, 3)), np.array([4.0]), np.array([2.0]), zero, np.array([[4.5, 1.8]]), zero > 0
    )
    seconds = np.array([1.0, 3.0])
    assert np.allclose(car.boxes_after(seconds)[:, 0, 0], [4.0, 12.0])
    # 2 m/s2 for 1.5 s, then 7 m/s
    assert np.allclose(car.boxes_after(seconds, gains=True)[:, 0, 0], [5.0, 4.0 * 1.5 + 1.5**2 + 1.5 * 7.0])
