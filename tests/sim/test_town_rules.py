"""What counts as an event in a town: each rule on both sides of its threshold."""

import math
from dataclasses import replace

import numpy as np
import pytest

from sim.road_network import network_path
from sim.town_map import TownMap, town_map
from sim.town_rules import BLOCKED_S, ROUTE_LEFT_M, SPEEDING, STANDS_MPS, STOPPED_WITHIN_M, Place, Rules
from sim.vehicle import EgoState, VehicleParams
from sim.world import Actor

PARAMS = VehicleParams()
CAR = Actor("a", 1, "vehicle.car", (4.5, 1.8, 1.5), (0, 0, 0), None)


@pytest.fixture(scope="module")
def town() -> TownMap:
    return town_map(network_path("grid"))


@pytest.fixture
def rules(town: TownMap) -> Rules:
    return Rules(town, PARAMS, 100.0)


@pytest.fixture(scope="module")
def lane(town: TownMap):
    """The right lane of a road with two, and a link with a light at its end."""
    name = next(lanes[0] for lanes in town.network.edges.values() if any(k.light for k in town.network.links[lanes[0]]))
    return town.network.lanes[name]


@pytest.fixture
def place(lane) -> Place:
    return Place(lane.id, lane.id, 40.0, 0.0, 0.0, 30.0, 10.0, ())


def on(lane, s_m: float, left_m: float = 0.0, turned_rad: float = 0.0, speed_mps: float = 5.0) -> EgoState:
    (x, y), heading = lane.line.at(s_m)
    x, y = float(x - left_m * np.sin(heading)), float(y + left_m * np.cos(heading))
    return EgoState(x, y, float(heading) + turned_rad, speed_mps)


# Collisions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ego_mps", "box", "other_mps", "in_lane", "fault"),
    [
        (8.0, (4.5, 0.0, 0.0), 0.0, True, "ego"),  # into who stands
        (0.0, (4.5, 0.0, 0.0), 0.0, True, "other"),  # stood itself
        (STANDS_MPS, (4.5, 0.0, np.pi), 9.0, False, "ego"),  # just not standing, head on
        (STANDS_MPS - 0.01, (4.5, 0.0, np.pi), 9.0, False, "other"),
        (5.0, (-2.5, 0.0, 0.0), 9.0, True, "other"),  # from behind
        (5.0, (-2.5, 0.0, 0.0), 4.9, True, "other"),  # from behind but slower: it was driven into aside
        (5.0, (-2.5, 0.0, 0.0), 4.9, False, "ego"),
        (5.0, (5.0, 0.5, 0.0), 4.0, True, "ego"),  # with the front
        (5.0, (4.0, 2.6, -np.pi / 2), 6.0, True, "ego"),  # with the front, into who crosses
        (5.0, (0.5, 1.7, -0.1), 6.0, True, "other"),  # who changes lane, into the flank of who keeps his
        (5.0, (0.5, 1.7, -0.1), 6.0, False, "ego"),  # the other way round
        (5.0, (1.0, 3.0, -np.pi / 2), 6.0, True, "other"),  # into the flank, at a right angle
    ],
)
def test_fault_of_a_collision(rules: Rules, ego_mps, box, other_mps, in_lane, fault) -> None:
    ego, boxes = EgoState(0.0, 0.0, 0.0, ego_mps), np.array([[[*box, 4.5, 1.8]]])
    (event,) = rules.collisions(np.array([1]), (ego,), (CAR,), boxes, np.array([other_mps]), in_lane)
    between = math.hypot(other_mps * math.cos(box[2]) - ego_mps, other_mps * math.sin(box[2]))
    assert (event.kind, event.fault, event.actor) == ("collision", fault, "a")
    assert abs(event.speed_mps - between) < 1e-9


def test_a_collision_is_told_once_and_again_after_parting(rules: Rules) -> None:
    ego, touching = EgoState(0.0, 0.0, 0.0, 8.0), np.array([[[4.5, 0.0, 0.0, 4.5, 1.8]]])
    apart = np.array([[[14.5, 0.0, 0.0, 4.5, 1.8]]])

    def told(boxes: np.ndarray, actors: tuple = (CAR,)) -> int:
        return len(rules.collisions(np.array([1]), (ego,), actors, boxes, np.zeros(1), True))

    assert [told(touching), told(touching), told(apart), told(touching)] == [1, 0, 0, 1]
    assert [told(touching), told(apart, ()), told(touching)] == [0, 0, 1]


def test_the_first_instant_of_contact_is_told(rules: Rules) -> None:
    egos = tuple(EgoState(0.1 * k, 0.0, 0.0, 10.0) for k in range(10))
    first = PARAMS.front_m + 0.45 + 2.25  # its rear bumper is 0.45 m ahead of the ego's front
    boxes = np.full((10, 1, 5), [first, 0.0, 0.0, 4.5, 1.8])
    (event,) = rules.collisions(np.arange(10), egos, (CAR,), boxes, np.zeros(1), True)
    assert event.time_us == 5


def test_within_its_lane(rules: Rules, place: Place, lane) -> None:
    room = (lane.width_m - PARAMS.width_m) / 2
    for left in (-1, 1):
        assert rules.in_lane(replace(place, lateral_m=left * (room + 0.19)))
        assert not rules.in_lane(replace(place, lateral_m=left * (room + 0.21)))
    assert not rules.in_lane(replace(place, lateral_m=room, heading_error_rad=0.1))


# Where it is and how fast ------------------------------------------------------------------------


def test_off_road_is_a_wheel_beyond_the_edge_and_the_joint(rules: Rules, place: Place, lane) -> None:
    edge = lane.width_m / 2 - (PARAMS.width_m / 2 - 0.1)  # the wheels stand 0.1 m inside the flank
    assert rules.others(0, on(lane, 40.0, -(edge + 0.2)), place, {}) == []
    assert [event.kind for event in rules.others(0, on(lane, 40.0, -(edge + 0.3)), place, {})] == ["off_road"]
    assert rules.others(0, on(lane, 40.0, -(edge + 0.4)), place, {}) == [], "told once"
    assert rules.others(0, on(lane, 40.0), place, {}) == []
    turned = on(lane, 40.0, -edge + 0.2, -0.3)  # only the front wheel
    assert [event.kind for event in rules.others(0, turned, place, {})] == ["off_road"]


@pytest.mark.parametrize(("turned_rad", "periods", "told"), [(np.pi, 4, False), (np.pi, 5, True), (1.4, 9, False)])
def test_wrong_way(rules: Rules, place: Place, lane, turned_rad: float, periods: int, told: bool) -> None:
    kinds = [e.kind for _ in range(periods) for e in rules.others(0, on(lane, 40.0, 0.0, turned_rad), place, {})]
    assert ("wrong_way" in kinds) == told


def test_a_junction_has_no_wrong_way(rules: Rules, place: Place, town: TownMap) -> None:
    middle = next(iter(town.network.junctions.values())).outline_m.mean(axis=0)
    for turned in np.arange(0, 6.2, 0.4):
        kinds = [e.kind for _ in range(6) for e in rules.others(0, EgoState(*middle, turned, 3.0), place, {})]
        assert "wrong_way" not in kinds


def test_speeding_is_a_tenth_too_fast_for_a_second(rules: Rules, place: Place, lane) -> None:
    def drive(share: float, periods: int) -> list[str]:
        ego = on(lane, 40.0, speed_mps=share * place.limit_mps)
        return [e.kind for _ in range(periods) for e in rules.others(0, ego, place, {})]

    assert drive(SPEEDING, 50) == []
    assert drive(SPEEDING + 0.01, 9) == []
    assert drive(1.0, 1) == []
    assert drive(SPEEDING + 0.01, 10) == ["speeding"]
    assert drive(SPEEDING + 0.01, 30) == []
    assert drive(1.0, 1) + drive(SPEEDING + 0.01, 10) == ["speeding"]


def test_blocked_is_two_minutes_within_two_metres(rules: Rules, place: Place, lane) -> None:
    ego, waits = on(lane, 40.0, speed_mps=0.0), round(BLOCKED_S * 10)
    rules.others(0, ego, place, {})

    def stand(progress_m: float, periods: int) -> list[str]:
        there = replace(place, progress_m=progress_m)
        return [e.kind for _ in range(periods) for e in rules.others(0, ego, there, {})]

    assert stand(31.9, waits - 1) == []
    assert stand(32.1, waits) == []
    assert stand(32.1, 1) == ["blocked"]


def test_the_ends_of_a_route(rules: Rules, place: Place, lane) -> None:
    def kinds(**change) -> list[str]:
        return [event.kind for event in rules.others(0, on(lane, 40.0), replace(place, **change), {})]

    assert kinds(lateral_m=-ROUTE_LEFT_M) == kinds(progress_m=99.9) == []
    assert kinds(lateral_m=ROUTE_LEFT_M + 0.1) == ["route_left"]
    assert kinds(progress_m=100.0) == ["route_completed"]


# Stop lines --------------------------------------------------------------------------------------


@pytest.fixture
def pass_line(rules: Rules, place: Place, lane, town: TownMap):
    """Drive over the stop line; each item is (distance of the bumper, state letter) or with the speed; all events."""
    link = next(link for link in town.network.links[lane.id] if link.light)

    def drive(*steps: tuple, **change) -> list[str]:
        kinds = []
        for distance, letter, *speed in steps:
            its = replace(link, **change)
            at = replace(place, stop_lines=((distance, its),))
            lights = {its.light: letter * (its.light_index + 1)} if its.light else {}
            ego = on(lane, 40.0, speed_mps=speed[0] if speed else 5.0)
            kinds += [event.kind for event in rules.others(0, ego, at, lights)]
        return kinds

    return drive


BACK = -PARAMS.front_m


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([(1.0, "r"), (-0.1, "r"), (BACK + 0.1, "r")], ["stop_line"]),
        ([(1.0, "r"), (-0.1, "r"), (BACK, "r")], ["stop_line", "red_light"]),
        ([(1.0, "r"), (-0.1, "r"), (BACK, "G")], ["stop_line"]),  # waited on the line for green
        ([(1.0, "G"), (-0.1, "G"), (-1.0, "r"), (BACK, "r")], []),  # turned red within the junction
        ([(1.0, "r"), (0.1, "r"), (-0.1, "g"), (BACK, "g")], []),  # turned green in time
        ([(1.0, "y"), (-0.1, "y"), (BACK, "r")], []),  # amber
        ([(1.0, "u"), (-0.1, "u"), (BACK, "u")], ["stop_line", "red_light"]),  # red and amber
        ([(0.0, "r"), (-0.1, "r")], []),  # was on the line when it was first looked at
        ([(-0.1, "r"), (BACK, "r")], []),
        ([(0.1, "r"), (0.0, "r")], ["stop_line"]),
        ([(0.1, "r"), (-0.1, "r"), (0.1, "r"), (-0.1, "r")], ["stop_line", "stop_line"]),
    ],
)
def test_lights(pass_line, steps: list, told: list) -> None:
    assert pass_line(*steps) == told


def test_changing_lanes_on_the_line_does_not_help(pass_line, lane, town: TownMap) -> None:
    other = next(name for name in town.network.edges[lane.edge] if name != lane.id)
    assert pass_line((0.3, "r")) == []
    assert pass_line((-0.2, "r"), from_lane=other) == ["stop_line"]


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([(STOPPED_WITHIN_M - 0.1, "O", 0.0), (1.0, "O"), (-0.1, "O")], []),
        ([(STOPPED_WITHIN_M + 0.1, "O", 0.0), (1.0, "O"), (-0.1, "O")], ["stop_line"]),
        ([(1.0, "O", STANDS_MPS), (-0.1, "O")], ["stop_line"]),
        ([(1.0, "O", STANDS_MPS - 0.01), (-0.1, "O")], []),
    ],
)
def test_at_a_stop_sign_one_stands_first(pass_line, steps: list, told: list) -> None:
    assert pass_line(*steps, light="", stop_sign=True) == told
