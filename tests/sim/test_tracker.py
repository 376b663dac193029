import numpy as np
import pytest

from sensors import frames
from sim.tracker import Plan, PlanTracker, hermite
from sim.vehicle import EgoState, VehicleParams, step

TIME_S = np.arange(1, 9) * 0.5


def arc_plan(radius_m: float, speed_mps: float) -> Plan:
    turn = speed_mps * TIME_S / radius_m
    xyyaw = np.stack([radius_m * np.sin(turn), radius_m * (1 - np.cos(turn)), turn], axis=1)
    return Plan(TIME_S, xyyaw, np.full(8, speed_mps))


@pytest.mark.parametrize("radius_m", [15.0, -15.0, 40.0, 1e6])
def test_hermite_stays_on_the_arc(radius_m):
    plan = arc_plan(radius_m, 10.0)
    knots = np.concatenate([np.zeros((1, 3)), plan.xyyaw_in_ego])
    path = hermite(np.concatenate([[0.0], TIME_S]), knots, np.full(9, 10.0), np.linspace(0, 4, 81))
    assert np.abs(np.linalg.norm(path - [0, radius_m], axis=1) - abs(radius_m)).max() < 1e-3


@pytest.mark.parametrize("radius_m", [15.0, -20.0, 60.0])
def test_the_vehicle_follows_an_arc_to_the_decimetre(radius_m):
    params, speed_mps = VehicleParams(), 7.0
    plan, tracker = arc_plan(radius_m, speed_mps), PlanTracker()
    state = EgoState(100.0, -50.0, 0.7, speed_mps, 1 / radius_m)
    start = state.T_world_from_ego
    tracker.follow(plan, start, 0, speed_mps)
    worst = 0.0
    for k in range(35):
        command = tracker.command(state.T_world_from_ego, k * 100_000, state.speed_mps)
        state = step(state, command.accel_mps2, command.curvature_1pm, 0.1, params)
        x, y = (frames.inverse(start) @ state.T_world_from_ego)[:2, 3]
        worst = max(worst, abs(np.hypot(x, y - radius_m) - abs(radius_m)))
    assert worst < 0.1
    assert state.speed_mps == pytest.approx(speed_mps, abs=0.2)


def test_no_plan_and_an_outlived_plan_both_stop():
    tracker = PlanTracker()
    assert tracker.command(np.eye(4), 0, 5.0).accel_mps2 < 0
    tracker.follow(arc_plan(1e6, 5.0), np.eye(4), 0, 5.0)
    assert tracker.command(np.eye(4), 100_000, 5.0).accel_mps2 == pytest.approx(0, abs=0.3)
    assert tracker.command(np.eye(4), 4_100_000, 5.0).accel_mps2 < -1


def test_a_plan_that_stands_still_holds_the_car():
    tracker = PlanTracker()
    plan = Plan(TIME_S, np.zeros((8, 3)), np.zeros(8))
    tracker.follow(plan, np.eye(4), 0, 0.2)
    assert tracker.command(np.eye(4), 100_000, 0.2).accel_mps2 < 0
