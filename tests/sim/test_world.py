import numpy as np
import pytest

from sensors.errors import InputError
from sim.geometry import corners, overlap
from sim.roads import LANE_WIDTH_M
from sim.vehicle import VehicleParams
from sim.world import PERIOD_US, START_US, World


def made(seed, **displaced):
    world = World()
    world.reset(seed, **displaced)
    return world


def good_command(world):
    """Pure pursuit, comfortable speed, and a gap kept to the car ahead."""
    ego = world.ego
    points, _, speed = world.lane_ahead(np.array([max(4.0, 0.6 * ego.speed_mps + 2), 5.0]))
    dx, dy = points[0] - (ego.x_m, ego.y_m)
    left = -np.sin(ego.yaw_rad) * dx + np.cos(ego.yaw_rad) * dy
    accel, leader = 0.9 * speed[1] - ego.speed_mps, world.leader()
    if leader:
        closing = ego.speed_mps * (ego.speed_mps - leader.speed_mps) / 4
        wanted = 3 + max(0.0, 1.5 * ego.speed_mps + closing)
        accel = min(accel, 1.5 * (1 - (wanted / max(leader.gap_m, 0.1)) ** 2))
    return accel, 2 * left / (dx * dx + dy * dy)


@pytest.mark.parametrize("seed", range(4))
def test_a_good_driver_finishes_a_minute(seed):
    world = made(seed)
    start = world.lane_state()
    for _ in range(600):
        assert world.step(*good_command(world)) == ()
        assert not world.lane_state().wrong_way
    assert world.events == ()
    assert world.time_us == START_US + 600 * PERIOD_US
    assert abs(world.lane_state().lateral_m) < 0.5
    assert start.departure_m == 0


def test_who_does_not_steer_does_not_get_far():
    survived = []
    for seed in range(12):
        world = made(seed)
        while not world.step(0.0, 0.0):
            pass
        survived.append((world.time_us - START_US) * 1e-6)
    assert 2.5 < np.median(survived) < 10
    assert max(survived) < 15


def test_same_seed_same_world_bit_for_bit():
    a, b, other = made(7), made(7), made(8)
    for _ in range(50):
        for world in (a, b, other):
            world.step(*good_command(world))
    assert a.actors == b.actors
    assert a.ego == b.ego
    assert np.array_equal(a.poses_at(a.time_us)[0], b.poses_at(b.time_us)[0])
    assert a.ego != other.ego


def test_traffic_keeps_to_its_lanes_and_never_collides():
    world = made(2)
    moving = [i for i, a in enumerate(world.actors) if a.lane]
    standing = [i for i, a in enumerate(world.actors) if not a.lane]
    assert len(moving) >= 6
    assert len(standing) >= 6
    start = world.poses_at(world.time_us)[0]
    for _ in range(300):
        world.step(*good_command(world))
        boxes = np.column_stack([world.poses_at(world.time_us)[0], [a.size_lwh_m[:2] for a in world.actors]])
        touching = overlap(boxes[:, None], boxes[None])
        assert touching.sum() == len(boxes)  # each only itself
    end, speed = world.poses_at(world.time_us)
    assert np.array_equal(start[standing], end[standing])
    assert np.linalg.norm(start[moving, :2] - end[moving, :2], axis=1).min() > 5
    assert len({round(v, 2) for v in speed[moving]}) > 3  # at differing speeds
    for i in moving:
        lane = world.road.lanes[world.actors[i].lane]
        assert abs(lane.line.project(end[i, :2]).lateral_m) < 0.05
        assert {"right", "left"} >= {world.actors[i].lane}


def test_parked_cars_leave_the_lane_free():
    for seed in range(4):
        world = made(seed)
        for actor in world.actors:
            if actor.lane is None:
                box = corners(np.array([*actor.pose, *actor.size_lwh_m[:2]]))
                assert world.road.distance_m(box).min() > LANE_WIDTH_M - 0.15


def test_ego_stops_behind_it_traffic_waits():
    world = made(3)
    for _ in range(400):
        events = world.step(-6.0, 0.0) if world.ego.speed_mps else world.step(-1.0, 0.0)
        assert not events
    assert world.ego.speed_mps == 0


def test_collision_is_reported_once_with_whom_and_how_fast():
    for seed in range(10):
        world = made(seed)
        for _ in range(600):
            _, curvature = good_command(world)
            leader = world.leader()
            events = world.step(3.0 if world.ego.speed_mps < 12 else 0.0, curvature)
            if events:
                break
        if events[0].kind == "collision" and events[0].actor == leader.actor:
            break
    else:
        pytest.fail("no seed ran into its leader")
    assert events[0].speed_mps == pytest.approx(world.ego.speed_mps - leader.speed_mps, abs=1.0)
    assert START_US < events[0].time_us <= world.time_us
    assert world.events.count(events[0]) == 1
    assert not [e for e in world.step(0.0, 0.0) if e.actor == leader.actor]


def test_off_road_is_reported_once():
    world = made(1)
    kinds = [e.kind for _ in range(60) for e in world.step(0.0, -0.05)]
    assert kinds.count("off_road") == 1


def test_state_between_substeps_lies_on_the_path():
    world = made(4)
    world.step(2.0, 0.05)
    times = np.arange(world.time_us - PERIOD_US, world.time_us + 1, 1000)
    speeds = np.array([world.ego_at(t).speed_mps for t in times])
    xy = np.array([(world.ego_at(t).x_m, world.ego_at(t).y_m) for t in times])
    assert np.diff(speeds) == pytest.approx(2.0 * 1e-3, rel=1e-6)
    assert np.linalg.norm(np.diff(xy, axis=0), axis=1) == pytest.approx((speeds[1:] + speeds[:-1]) / 2 * 1e-3, rel=1e-5)
    assert world.ego_at(world.time_us) == world.ego
    with pytest.raises(ValueError, match="last"):
        world.ego_at(world.time_us + 1)
    with pytest.raises(ValueError, match="last"):
        world.poses_at(world.time_us - PERIOD_US - 1)


def test_actors_move_continuously_across_periods():
    world = made(5)
    world.step(0.0, 0.0)
    before = world.poses_at(world.time_us)
    world.step(0.0, 0.0)
    after = world.poses_at(world.time_us - PERIOD_US)
    assert after[0] == pytest.approx(before[0], abs=1e-12)
    assert after[1] == pytest.approx(before[1], abs=1e-12)


def test_displaced_start_and_lane_state():
    world = made(6, lateral_m=0.8, heading_rad=-0.1, speed_mps=4.0)
    lane = world.lane_state()
    assert lane.lateral_m == pytest.approx(0.8, abs=0.01)
    assert lane.heading_error_rad == pytest.approx(-0.1, abs=0.01)
    assert world.ego.speed_mps == 4.0
    assert made(6, lateral_m=3.0).lane_state().wrong_way
    assert made(6, lateral_m=3.0).lane_state().departure_m == pytest.approx(3.0 + 1.85 / 2 - 1.75, abs=0.1)


def test_boxes_stand_on_the_ground():
    world = made(0)
    boxes = world.boxes_at(world.time_us)
    assert len(boxes) == len(world.actors) == len(set(boxes.ids))
    assert boxes.T_world_from_box[:, 2, 3] == pytest.approx(boxes.size_lwh_m[:, 2] / 2)
    assert np.linalg.norm(boxes.velocity_in_world_mps, axis=1) == pytest.approx(world.poses_at(world.time_us)[1])


@pytest.mark.parametrize(
    "bad", [{"lateral_m": 5.0}, {"heading_rad": np.nan}, {"speed_mps": -1.0}, {"speed_mps": 99.0}], ids=str
)
def test_reset_rejects(bad):
    with pytest.raises(InputError, match="initial_"):
        made(0, **bad)


def test_step_rejects_nan():
    with pytest.raises(InputError, match="finite"):
        made(0).step(np.nan, 0.0)


def test_a_dead_time_delays_commands_by_whole_substeps():
    late = World(VehicleParams(dead_time_s=0.13))
    late.reset(0, speed_mps=8.0)
    for _ in range(2):
        late.step(2.0, late.ego.curvature_1pm)
    speeds = [state.speed_mps for state in late.track]
    assert speeds[:4] == [8.0] * 4  # 100 ms before this period and 30 ms within it
    assert speeds[4:] == pytest.approx([8.0 + 0.02 * k for k in range(1, 8)])
    late.reset(0, speed_mps=8.0)  # the commands of the last episode are forgotten
    late.step(0.0, 0.0)
    assert late.ego.speed_mps == 8.0
