"""What might be: one instant of a town, changed, drawn, and planned in."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from policies.imagine import BEFORE_S, GUEST_INSTANCE, drawn, imagine, looked_back
from policies.protocol import Privileged
from policies.town_expert import TownExpert
from sim.geometry import overlap
from sim.imagined import Imagined
from sim.scenarios import get_scenario
from sim.stage import begin
from sim.town_env import TownEnv
from sim.town_world import TownWorld
from sim.vehicle import advance
from sim.world import Actor

LEAD = Actor("lead", GUEST_INSTANCE, "vehicle.car", (4.5, 1.85, 1.55), (200, 30, 30), None)


@pytest.fixture(scope="module")
def env() -> Iterator[TownEnv]:
    made = TownEnv("town-smoke/3", (64, 36), cameras=False, render_mode="rgb_array")
    begin(made, get_scenario("town-smoke/3"))
    for _ in range(15):
        made.step(np.array([2.0, 0.0]))
    yield made
    made.close()


def as_it_is(world: TownWorld) -> Imagined:
    return Imagined(world.ego)


def plan_in(world: TownWorld) -> np.ndarray:
    return TownExpert().plan(None, Privileged(world=world)).xyyaw_in_ego


def test_nothing_otherwise_is_the_world_as_it_is(env) -> None:
    world = env.world
    same = world.imagined(as_it_is(world))
    assert same.place == world.place
    assert (same.lights, same.time_us, same.ego) == (world.lights, world.time_us, world.ego)
    mine, theirs = same.boxes_at(world.time_us), world.boxes_at(world.time_us)
    assert mine.ids == theirs.ids
    np.testing.assert_array_equal(mine.T_world_from_box, theirs.T_world_from_box)
    np.testing.assert_array_equal(plan_in(same), plan_in(world))


def test_of_an_imagined_world_the_real_one_knows_nothing(env) -> None:
    world = env.world
    before = world.ego, world.lights, world.place, world.actors, world.route, world.traffic.now.poses_m.copy()
    for k in range(30):
        there = world.imagined(imagine(world, np.random.default_rng(k)))
        plan_in(there)
    now = world.ego, world.lights, world.place, world.actors, world.route, world.traffic.now.poses_m
    assert before[:5] == now[:5]
    np.testing.assert_array_equal(before[5], now[5])


def test_who_is_gone_is_not_there_and_a_guest_is_where_it_was_put(env) -> None:
    world = env.world
    gone = frozenset(actor.instance for actor in world.actors[::2])
    ahead = world.route.followed(world.place.first_lane).line.at(world.place.s_m + 20.0)
    pose = float(ahead[0][0]), float(ahead[0][1]), float(ahead[1])
    there = world.imagined(replace(as_it_is(world), gone=gone, guests=(replace(LEAD, pose=pose),)))
    boxes, ids = there.boxes_at(world.time_us), {a.id for a in world.actors if a.instance in gone}
    assert not ids & set(boxes.ids)
    at = boxes.ids.index("lead")
    np.testing.assert_allclose(boxes.T_world_from_box[at, :2, 3], pose[:2])
    free = world.imagined(replace(as_it_is(world), gone=frozenset(a.instance for a in world.actors)))
    held = plan_in(there)[-1, 0]
    assert held < 20.0
    assert plan_in(free)[-1, 0] > held + 2.0


def test_lights_are_obeyed_as_they_are_imagined(env) -> None:
    world, driven = env.world, {}
    everybody = frozenset(actor.instance for actor in world.actors)
    gap_m, link = next((gap_m, link) for gap_m, link in world.place.stop_lines if link.light)
    line = world.route.followed(world.place.first_lane).line
    (x, y), yaw = line.at(world.place.s_m + gap_m - 12.0)
    ego = replace(world.ego, x_m=float(x), y_m=float(y), yaw_rad=float(yaw), speed_mps=5.0)
    for letter in "rG":
        state = list(world.lights[link.light])
        state[link.light_index] = letter
        there = world.imagined(Imagined(ego, lights={link.light: "".join(state)}, gone=everybody))
        assert there.place.stop_lines[0][0] == pytest.approx(12.0, abs=0.3)
        driven[letter] = plan_in(there)[-1, 0]
    assert driven["r"] < 12.1 < driven["G"] - 2.0


def test_what_is_drawn_is_what_is_imagined(env) -> None:
    world, moment = env.world, env.moment()
    rest = replace(as_it_is(world), ego=replace(world.ego, speed_mps=0.0))
    still = drawn(world, moment, rest, env.weather)
    np.testing.assert_allclose(still.T_world_from_ego, np.broadcast_to(world.ego.T_world_from_ego, (6, 4, 4)))
    ahead = world.route.followed(world.place.first_lane).line.at(world.place.s_m + 12.0)
    pose = float(ahead[0][0]), float(ahead[0][1]), float(ahead[1])
    guest = replace(rest, guests=(replace(LEAD, pose=pose),))
    dark = env.draw(drawn(world, moment, guest, env.weather))
    bright = env.draw(drawn(world, moment, replace(guest, braking=frozenset({GUEST_INSTANCE})), env.weather))
    names = [camera.name for camera in env.cameras]
    changed = (dark != bright).any(axis=(1, 2, 3))
    assert changed[names.index("CAM_FRONT")]
    assert not changed[names.index("CAM_BACK")]
    assert (env.draw(still) != dark)[names.index("CAM_FRONT")].any()


def test_what_might_be_is_varied_fair_and_follows_from_the_seed(env) -> None:
    world = env.world
    drawn_ones = [imagine(world, np.random.default_rng(k)) for k in range(200)]
    assert imagine(world, np.random.default_rng(7)) == drawn_ones[7]
    speeds = np.array([might.ego.speed_mps for might in drawn_ones])
    assert 0.1 < np.mean(speeds == 0) < 0.4
    assert len(np.unique(speeds.round(1))) > 30
    assert 0.2 < np.mean([bool(might.guests) for might in drawn_ones]) < 0.5
    assert 0.2 < np.mean([len(might.gone) == len(world.actors) for might in drawn_ones]) < 0.5
    states = {state for might in drawn_ones for state in might.lights.values()}
    assert len(states) > 1
    for might in drawn_ones:
        there = world.imagined(might)
        assert abs(there.place.lateral_m) < 2.0
        for guest in might.guests:
            box = np.array([*guest.pose, *guest.size_lwh_m[:2]])
            assert not overlap(box, might.ego.footprint(world.params)).any()


def test_a_look_back_shows_who_drives_and_tells_nothing_of_what_is_right(env) -> None:
    ego = replace(env.world.ego, speed_mps=8.0, curvature_1pm=0.0)
    pose = ego.x_m + 20.0, ego.y_m, 0.3
    drives, stands = (replace(LEAD, pose=pose, speed_mps=v) for v in (6.0, 0.0))
    turned, sped = [], []
    for k in range(200):
        before = looked_back(Imagined(ego, guests=(drives, stands)), np.random.default_rng(k))
        moved, still = (np.array(guest.pose) for guest in before.guests)
        np.testing.assert_allclose(moved, np.array(pose) - 3.0 * np.array([np.cos(0.3), np.sin(0.3), 0.0]))
        np.testing.assert_array_equal(still, pose)
        mean_mps = (before.ego.speed_mps + ego.speed_mps) / 2
        here = advance(before.ego, mean_mps * BEFORE_S, ego.speed_mps, before.ego.curvature_1pm)
        np.testing.assert_allclose([here.x_m, here.y_m, here.yaw_rad], [ego.x_m, ego.y_m, ego.yaw_rad], atol=1e-9)
        turned.append(before.ego.curvature_1pm)
        sped.append(before.ego.speed_mps - ego.speed_mps)
    for drawn_so in (turned, sped):
        assert abs(np.mean(drawn_so)) < 0.3 * np.std(drawn_so)
        assert np.std(drawn_so) > 0
    at_rest = looked_back(Imagined(replace(ego, speed_mps=0.0)), np.random.default_rng(0)).ego
    assert at_rest.speed_mps >= 0.0
