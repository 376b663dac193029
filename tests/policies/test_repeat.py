"""The policy that repeats a drive: it keeps the protocol, stays on the route, slows for bends, stops at the end."""

import json

import numpy as np
import pytest

from policies.protocol import NOTHING, check_policy
from policies.repeat import BEYOND_M, LATERAL_MPS2, Repeat, TaughtRoute, read_route
from sensors.clip import Clip, VehicleState
from sensors.errors import InputError
from sim.sensing import nuscenes_rig
from sim.tracker import PlanTracker
from sim.vehicle import EgoState, VehicleParams, step

RADIUS_M = 12.0
QUARTER = np.linspace(0, np.pi / 2, 20)
BEND = np.stack([40 + RADIUS_M * np.sin(QUARTER), RADIUS_M * (1 - np.cos(QUARTER))], axis=1)
TRACK = np.concatenate(
    [
        np.stack([np.arange(0, 40.0), np.zeros(40)], axis=1),
        BEND,
        np.stack([np.full(40, 40 + RADIUS_M), RADIUS_M + np.arange(1, 41.0)], axis=1),
    ]
)


def clip_of(ego: EgoState, now_us: int = 10_000_000) -> Clip:
    rig = nuscenes_rig(8, 6)
    T = np.broadcast_to(ego.T_world_from_ego, (1, 6, 4, 4)).copy()
    images, seen = np.zeros((1, 6, 6, 8, 3), np.uint8), np.zeros((1, 6), bool)
    vehicle = VehicleState(ego.speed_mps, ego.yaw_rate_radps)
    return Clip(now_us, ego.T_world_from_ego, rig, images, seen, np.full((1, 6), now_us), T, vehicle=vehicle)


def test_drives_the_route_and_stops_where_the_recorded_car_was():
    policy, tracker, params = Repeat(TaughtRoute.of_track(TRACK, 8.0)), PlanTracker(), VehicleParams()
    ego, now_us, aside, in_bend = EgoState(0.0, 0.5, 0.1, 0.0), 0, [], []
    for k in range(600):
        if k % 5 == 0:
            plan = policy.plan(clip_of(ego, now_us + 1), NOTHING).validate()
            tracker.follow(plan, ego.T_world_from_ego, now_us, ego.speed_mps)
        command = tracker.command(ego.T_world_from_ego, now_us, ego.speed_mps)
        ego, now_us = step(ego, command.accel_mps2, command.curvature_1pm, 0.1, params), now_us + 100_000
        nearest = np.hypot(*(TRACK - (ego.x_m, ego.y_m)).T)
        if ego.y_m < TRACK[-1, 1]:
            aside.append(nearest.min())
        if 45 < np.argmin(nearest) < 55:
            in_bend.append(ego.speed_mps)
    assert max(aside[30:]) < 1.0
    assert max(in_bend) ** 2 / RADIUS_M < 1.3 * LATERAL_MPS2
    assert ego.speed_mps < 0.1
    assert 0 <= ego.y_m - TRACK[-1, 1] <= BEYOND_M  # past the end of the track, before that of the route


def test_keeps_the_protocol_and_says_how_far_off_it_is():
    policy = Repeat(TaughtRoute.of_track(TRACK, 8.0))
    check_policy(policy, [(clip_of(EgoState(10.0 + k, 0.0, 0.0, 3.0)), NOTHING) for k in range(3)])
    policy.reset(0)
    with pytest.raises(InputError, match=r"5.0 m off the route"):
        policy.plan(clip_of(EgoState(10.0, 5.0, 0.0, 3.0)), NOTHING)


def test_standing_on_the_way_leaves_no_mark():
    stood = np.concatenate([TRACK[:20], np.repeat(TRACK[20:21], 50, axis=0), TRACK[20:]])
    assert np.array_equal(TaughtRoute.of_track(stood, 8.0).xy_m, TaughtRoute.of_track(TRACK, 8.0).xy_m)


def test_file_gives_back_the_route(tmp_path):
    route = TaughtRoute.of_track(TRACK, 8.0)
    (tmp_path / "route.json").write_text(json.dumps(route.to_json()))
    again = read_route(tmp_path / "route.json")
    assert np.array_equal(again.xy_m, route.xy_m)
    assert again.max_speed_mps == route.max_speed_mps


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[1, 2]", "content"),
        ("{", "content"),
        ('{"max_speed_mps": 5, "xy_m": [[0, 0]]}', "at least 3 finite points"),
        ('{"max_speed_mps": 5, "xy_m": [[0, 0], [1, 0], [NaN, 0]]}', "at least 3 finite points"),
        ('{"max_speed_mps": 5, "xy_m": [[0, 0], [1, 0], [50, 0]]}', "m apart"),
        ('{"max_speed_mps": 50, "xy_m": [[0, 0], [1, 0], [2, 0]]}', "max_speed_mps"),
    ],
)
def test_read_route_rejects(tmp_path, text, complaint):
    (tmp_path / "route.json").write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_route(tmp_path / "route.json")
    with pytest.raises(InputError, match=r"nowhere\.json"):
        read_route(tmp_path / "nowhere.json")
