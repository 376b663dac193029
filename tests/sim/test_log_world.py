"""A recorded scene as a world: its traffic as it was or as it answers, what goes wrong, and its environment."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_log import HALF_ROAD_M, LANE_Y_M, START_US, START_X_M, along, made_up_drive, map_png

from sensors.errors import InputError
from sensors.frames import inverse, xy_yaw
from sensors.nuscenes_extension import MapLane, SceneExtension
from sim.log_env import LogEnv, LogScenario
from sim.log_world import VALID_M, LogWorld
from sim.stage import begin
from sim.traffic_log import FAR_M, LogTraffic

STEER = 0.02


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    return map_png(tmp_path_factory.mktemp("map"))


def world_of(road, mode="reactive", speed_mps=8.0, **others) -> LogWorld:
    world = LogWorld(mode)
    world.reset(made_up_drive(road, speed_mps, others))
    return world


def drive(world: LogWorld, accel: float, curvature: float = 0.0, steps: int = 98) -> list[str]:
    for _ in range(steps):
        world.step(accel, curvature)
    return [event.kind for event in world.events]


def test_the_world_begins_as_the_recorded_car_did(road):
    world = world_of(road)
    assert (world.ego.x_m, world.ego.y_m, world.ego.speed_mps) == (START_X_M, LANE_Y_M, 8.0)
    assert world.time_us == START_US
    assert world.until_us == START_US + 10_000_000


def test_who_drives_as_recorded_meets_the_recording_to_the_bit(road):
    """Reactive or not, and at the keyframes it is the annotation itself."""
    others = {"ahead": ("vehicle.car", *along(14.0, 8.0)), "behind": ("vehicle.car", *along(-9.0, 8.0))}
    others["walker"] = ("human.pedestrian.adult", *along(30.0, 1.0, LANE_Y_M + 6.0))
    worlds = [world_of(road, mode, **others) for mode in ("reactive", "replay")]
    for step in range(1, 96):
        for world in worlds:
            world.step(0.0, 0.0)
        a, b = (world.boxes_at(world.time_us) for world in worlds)
        assert np.array_equal(a.T_world_from_box, b.T_world_from_box)
        if step % 5 == 0:
            wanted = worlds[0].drive.boxes[step // 5].T_world_from_box
            assert np.allclose(a.T_world_from_box, wanted, atol=1e-9)
    assert not worlds[0].events


def test_who_follows_brakes_for_an_ego_that_does_not_do_as_recorded(road):
    """The one behind stops behind it in reactive traffic, and through it where all replay: not the ego's fault"""
    behind = {"behind": ("vehicle.car", *along(-12.0, 8.0))}
    assert drive(world_of(road, **behind), -3.0) == []
    world = world_of(road, "replay", **behind)
    assert drive(world, -3.0) == ["collision"]
    assert world.events[0].fault == "other"


def test_who_was_held_up_goes_on_along_its_path_and_catches_up(road):
    world = world_of(road, behind=("vehicle.car", *along(-12.0, 6.0)))
    record = world.traffic._poses[:, 0]
    held = []
    for step in range(95):
        world.step(-2.0 if step < 25 else 3.0, 0.0)
        held.append(record[step + 1, 0] - world.traffic.now.poses_m[0, 0])
    assert max(held) > 1.0  # it was
    assert min(held) > -1e-9  # and is never ahead of its record
    assert held[-1] < max(held)
    assert np.allclose(world.traffic.now.poses_m[0, 1:], [LANE_Y_M, 0.0], atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(accel=st.floats(-6.0, 3.0), bend=st.floats(-0.01, 0.01), gap=st.floats(7.0, 40.0), speed=st.floats(2.0, 12.0))
def test_nobody_who_answers_runs_into_an_ego_on_its_path(road, accel, bend, gap, speed):
    """Or leaves its path, or gets ahead of its record; whoever is hit was hit by the ego."""
    world = world_of(road, speed_mps=speed, behind=("vehicle.car", *along(-gap, speed)))
    for step in range(60):
        world.step(accel, bend)
        now = world.traffic.now
        if now.present[0]:
            assert now.poses_m[0, 0] <= world.traffic._poses[step + 1, 0, 0] + 1e-9
            assert abs(now.poses_m[0, 1] - LANE_Y_M) < 1e-9
    assert [e for e in world.events if e.kind == "collision" and e.fault == "other"] == []


def test_walkers_and_the_parked_do_as_recorded_whatever_the_ego_does(road):
    others = {"walker": ("human.pedestrian.adult", *along(20.0, 1.0, LANE_Y_M + 6.0))}
    others["parked"] = ("vehicle.car", *along(25.0, 0.0, LANE_Y_M - 4.0))
    a, b = world_of(road, **others), world_of(road, "replay", **others)
    for world in (a, b):
        drive(world, -4.0, steps=50)
    assert np.array_equal(a.traffic.now.poses_m, b.traffic.now.poses_m)


def test_nobody_comes_out_of_nothing_where_the_ego_is(road):
    x, y = along(4.0, 8.0)
    x[:4] = np.nan
    world = world_of(road, "replay", late=("vehicle.car", x, y))
    assert drive(world, 0.0) == ["route_completed"]
    assert world.traffic.left_out == ("late",)
    assert (world.traffic.now.poses_m == FAR_M).all()


def test_nobody_is_invented_in_a_gap_of_the_annotations(road):
    x, y = along(30.0, 8.0)
    x[3:8] = np.nan
    world = world_of(road, "replay", seen=("vehicle.car", x, y))
    there = [bool(world.traffic.now.present[0])]
    for _ in range(60):
        world.step(0.0, 0.0)
        there.append(bool(world.traffic.now.present[0]))
    assert there == [not 10 < step < 40 for step in range(61)]


def test_what_goes_wrong_is_told_once_when_it_begins(road):
    assert drive(world_of(road), 0.0) == ["route_completed"]
    assert drive(world_of(road), 0.0, STEER)[:2] == ["off_road", "route_left"]
    world = world_of(road)
    while not world.events:
        world.step(0.0, STEER)
    assert abs(world.ego.y_m - LANE_Y_M) == pytest.approx(HALF_ROAD_M, abs=1.6)
    while len(world.events) < 2:
        world.step(0.0, STEER)
    assert world.off_path_m == pytest.approx(VALID_M, abs=1.0)


def test_the_goal_is_none_where_the_recorded_car_stood(road):
    world = world_of(road, speed_mps=0.0)
    assert world.goal_m == 0.0
    assert drive(world, 0.0) == []


def test_unknown_traffic_is_refused(road):
    with pytest.raises(InputError, match="Did you mean reactive"):
        LogTraffic(made_up_drive(road).actors(), 0, 1, "reactiv")


def test_gymnasium_accepts_it_and_the_same_actions_give_the_same_episode(road):
    drive = made_up_drive(road, others={"ahead": ("vehicle.car", *along(14.0, 8.0))})
    how = {"action_mode": "normalized", "image_size": (24, 14)}
    with gymnasium.make("sim.gym_envs:vla_drive/NuScenesLog-v0", drive=drive, **how) as env:
        check_env(env.unwrapped, skip_render_check=True)
        seen = []
        for _ in range(2):
            observation, info = env.reset()
            images = [observation["images"]]
            for _ in range(5):
                observation, _, _, _, info = env.step(np.array([0.2, 0.1]))
                images.append(observation["images"])
            seen.append(np.stack(images))
    assert info["scene"] == "scene-9999"
    assert np.array_equal(*seen)


def test_an_episode_lasts_as_long_as_the_recording(road):
    env = LogEnv(drive=made_up_drive(road, speed_mps=0.0), cameras=False)
    observation, stage = begin(env, LogScenario(env.drive))
    steps, over = 0, False
    while not over:
        observation, _, terminated, over, _ = env.step(np.zeros(2))
        steps += 1
        assert not terminated
    assert steps == 100
    assert int(observation["now_us"]) == stage.world.until_us
    assert len(stage.world.future().time_us) == 0


def test_the_cameras_are_the_recorded_ones_and_fire_when_they_did(road):
    env = LogEnv(drive=made_up_drive(road), image_size=(32, 18), cameras=False)
    observation, _ = env.reset()
    assert [c.name for c in env.cameras] == [c.name for c in env.drive.cameras]
    assert env.cameras[0].K[0, 0] == pytest.approx(env.drive.cameras[0].K[0, 0] / 5)
    assert np.array_equal(observation["now_us"] - observation["camera_time_us"], env.drive.exposure_before_us)
    moved = inverse(observation["T_world_from_ego"]) @ observation["T_world_from_ego_now"]
    assert xy_yaw(moved)[:, 0] == pytest.approx(8.0 * env.drive.exposure_before_us * 1e-6, abs=1e-6)


def test_a_drive_or_where_to_read_it_but_not_both(road):
    with pytest.raises(InputError, match="neither"):
        LogEnv()
    with pytest.raises(InputError, match="both"):
        LogEnv("data", drive=made_up_drive(road))


def lit_extension(letter_at: dict[int, str]) -> SceneExtension:
    """A junction 30 m ahead with a way straight on, one 90 m ahead with one to the left; a signal beside each."""
    x, y = START_X_M + 30.0, LANE_Y_M
    straight = MapLane(":j_0", 3.5, 13.9, True, np.array([[x, y], [x + 20, y]]))
    left = MapLane(":j_1", 3.5, 13.9, True, np.array([[x + 60, y], [x + 68, y + 2], [x + 72, y + 12]]))
    other = MapLane(":j_2", 3.5, 13.9, False, np.array([[x + 20, y + 3.5], [x, y + 3.5]]))
    goes_on = MapLane(":j_3", 3.5, 13.9, True, np.array([[x + 20.2, y], [x + 30, y]]))
    signals = np.array([[x + 3, y - 3.0, 0.0], [x + 63, y + 5.0, 0.0], [x + 3, y + 6.0, np.pi]])
    none, times = np.zeros(0, np.int64), np.array([START_US + us for us in letter_at], np.int64)
    route = np.array([[START_X_M, y], [x + 200, y]])
    return SceneExtension(
        *("made-up/0", "made-up", "clear", 0, 70.0, route, (straight, left, other, goes_on), (), signals),
        *(times, tuple(letter_at.values()), none, (), (), none, (), np.zeros(0), np.zeros((0, 0, 3)), none, ()),
    )


def test_red_lights_of_a_simulated_scene_are_those_of_its_recording(road):
    """Straight on has the signal on the right, left the one on the left; who passes at red is told so."""
    extension = lit_extension({0: "rGr", 3_000_000: "Grr", 7_000_000: "rrr"})
    world = LogWorld("replay")
    world.reset(replace(made_up_drive(road, 8.0), extension=extension))
    assert world.surroundings.around.lights == "recorded"
    assert world.surroundings.lit == ((0, 0), (1, 1), (3, 0))
    assert world.red_lanes() == [0, 3]
    told = {}
    for _ in range(60):
        told |= {event.kind: world.time_us - START_US for event in world.step(0.0, 0.0)}
    assert world.red_lanes() == [1]
    assert told == {}  # green by then
    world.reset(replace(made_up_drive(road, 12.0), extension=extension))
    for _ in range(45):
        told |= {event.kind: world.time_us - START_US for event in world.step(0.0, 0.0)}
    assert told == {"stop_line": 2_300_000, "red_light": 2_500_000}


def test_without_signals_nothing_is_known_of_lights(road):
    world = world_of(road)
    assert (world.surroundings.around.lights, world.red_lanes()) == ("unknown", [])
