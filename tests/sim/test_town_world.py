"""The town's world: routes, traffic around the ego, the same episode from the same seed, and the rules."""

import os
import subprocess
import sys
from dataclasses import replace

import libsumo
import numpy as np
import pytest

from sensors.clip import ROUTE_COMMANDS
from sensors.errors import InputError
from sim.contacts import Contacts
from sim.geometry import overlap
from sim.knots import Knots
from sim.road_network import network_path, shipped_towns
from sim.scenarios import SUITES, UNSEEN_TOWN, Scenario, get_scenario, suite_length
from sim.town_map import town_map
from sim.town_route import Route, comfortable_speed_mps, command, instruction, smooth_line
from sim.town_world import TownWorld
from sim.traffic_sumo import KINDS, PEDESTRIAN
from sim.vehicle import EgoState, VehicleParams

QUIET = Scenario("quiet", "grid", 3, vehicles=0, walkers=0)
BUSY = Scenario("busy", "grid", 5, vehicles=50, walkers=30)


@pytest.fixture
def world():
    made = TownWorld()
    yield made
    made.close()


def follow(world: TownWorld, speed_mps: float, steps: int, lights: bool = False):
    """Drive along the route's line at a constant wanted speed, blind to all else; yields each step's events."""
    for _ in range(steps):
        followed, ego = world.route.followed(world.place.first_lane), world.ego
        x, y = followed.line.at(world.place.s_m + 4.0)[0] - (ego.x_m, ego.y_m)
        left = -np.sin(ego.yaw_rad) * x + np.cos(ego.yaw_rad) * y
        fastest = min(speed_mps, float(np.interp(world.place.s_m + 3.0, followed.line.s_m, followed.speed_mps)))
        for gap_m, link in world.place.stop_lines:
            if lights and link.light and gap_m > 0 and world.lights[link.light][link.light_index] in "ruy":
                fastest = min(fastest, float(np.sqrt(2 * max(gap_m - 1.5, 0.0))))
        yield world.step(float(np.clip((fastest - ego.speed_mps) / 0.3, -6, 3)), 2 * left / (x * x + y * y))


def test_a_quiet_route_is_completed_and_its_commands_are_given(world: TownWorld) -> None:
    world.reset(replace(QUIET, seed=7))
    commands, kinds, instructions = set(), [], set()
    for events in follow(world, 9.0, 2500, lights=True):
        commands.add(world.command)
        instructions.add(world.instruction)
        kinds += [event.kind for event in events]
        if "route_completed" in kinds:
            break
    assert kinds == ["route_completed"]
    assert commands <= set(ROUTE_COMMANDS)
    assert len(commands) > 1
    assert any("at the traffic lights" in text for text in instructions)
    assert abs(world.place.progress_m - world.route.length_m) < 2.0


def test_progress_never_jumps(world: TownWorld) -> None:
    world.reset(replace(QUIET, town="ring", seed=2))
    before = world.place.progress_m
    for _ in follow(world, 8.0, 300):
        now = world.place.progress_m
        assert -0.3 < now - before < 3.5
        before = now
    assert before > 100.0


def test_passing_a_red_light_is_told_in_two_steps(world: TownWorld) -> None:
    found = []
    for seed in range(8):
        world.reset(replace(QUIET, seed=seed))
        for events in follow(world, 12.0, 200):
            found += [event.kind for event in events]
        if "red_light" in found:
            break
    assert "red_light" in found
    assert found.index("stop_line") < found.index("red_light")


def test_who_drives_off_the_road_is_told_so(world: TownWorld) -> None:
    world.reset(QUIET)
    kinds = []
    for _ in range(80):
        kinds += [event.kind for event in world.step(2.0, -0.05)]
    assert "off_road" in kinds
    assert "route_left" in kinds
    assert kinds.count("off_road") == 1


def test_speeding_and_standing_for_ever_are_told(world: TownWorld) -> None:
    world.reset(QUIET)
    kinds = [event.kind for _ in range(1210) for event in world.step(-1.0, 0.0)]
    assert kinds == ["blocked"]
    world.reset(replace(QUIET, town="oldtown"), speed_mps=16.0)
    assert "speeding" in [event.kind for _ in range(20) for event in world.step(1.0, 0.0)]


@pytest.mark.parametrize("town", shipped_towns())
def test_every_town_lives(world: TownWorld, town: str) -> None:
    """All kinds are there and move, lights change, pedestrians use the crossings."""
    world.reset(Scenario("life", town, 2, 60, 150))
    crossings = [(lane.line, lane.width_m / 2) for lane in world.network.of_kind("crossing")]
    kinds = {actor.category for k, actor in enumerate(world.actors) if world.traffic.now.present[k]}
    assert kinds == {kind.category for kind in KINDS.values()} | {PEDESTRIAN}
    walks = np.array([actor.category == PEDESTRIAN for actor in world.actors])
    begun, lights, crossed = world.traffic.now.poses_m, world.lights, set()
    speeds = []
    for step in range(300):
        world.step(-1.0, 0.0)
        now = world.traffic.now
        speeds.append(now.speed_mps[~walks & now.present].mean())
        for line, half in crossings if step % 25 == 0 else ():
            at = line.project(now.poses_m[walks, :2])
            on = (np.abs(at.lateral_m) < half) & (at.s_m > 0.1) & (at.s_m < line.length_m - 0.1)
            crossed |= set(np.flatnonzero(on))
    assert crossed
    assert np.mean(speeds) > 2.5
    assert sum(world.lights[name] != lights[name] for name in lights) > len(lights) / 2
    moved = np.hypot(*(now.poses_m - begun)[walks & now.present, :2].T)
    assert (moved > 5).mean() > 0.8


def test_traffic_keeps_clear_of_an_ego_that_stands_in_its_way(world: TownWorld) -> None:
    world.reset(BUSY)
    events = [event for _ in range(600) for event in world.step(-1.0, 0.0)]
    assert [event for event in events if event.kind == "collision"] == []
    present = world.traffic.now.present
    assert present.sum() > 60
    moved = np.hypot(*(world.traffic.now.poses_m - world.traffic.before.poses_m)[present, :2].T)
    assert 0.5 < moved.max() < 3.0


def test_positions_between_two_steps_of_sumo_lie_between_them(world: TownWorld) -> None:
    world.reset(BUSY)
    world.step(0.0, 0.0)
    ends = [world.poses_at(world.time_us - back)[0] for back in (100_000, 0)]
    middle = world.poses_at(world.time_us - 50_000)[0]
    assert np.allclose(middle[:, :2], (ends[0][:, :2] + ends[1][:, :2]) / 2)
    assert len(world.boxes_at(world.time_us)) == world.traffic.now.present.sum()
    with pytest.raises(ValueError, match="not within"):
        world.poses_at(world.time_us + 1)


PROGRAM = """
import hashlib, sys, numpy as np
from sim.scenarios import Scenario, get_scenario
from sim.town_world import TownWorld
from sim.traffic_sumo import KINDS, PEDESTRIAN
world, digests = TownWorld(), {}
for name in sys.argv[1:]:
    scenario = Scenario(name, "irregular", 5, 40, 30) if name == "busy" else get_scenario(name)
    world.reset(scenario)
    digest = hashlib.sha256()
    for k in range(120):
        events = world.step(1.0 if k < 40 else -0.2, 0.001)
        now, ego = world.traffic.now, np.array([world.ego.x_m, world.place.progress_m])
        for array in (now.poses_m, now.speed_mps, now.present, ego):
            digest.update(array.tobytes())
        digest.update(repr((events, world.lights, world.instruction)).encode())
    digests[name] = digest.hexdigest()
print(*(f"{name} {digests[name]}" for name in sorted(digests)), sep="\\n")
"""


def test_same_seed_same_episode_in_other_processes_and_after_other_episodes() -> None:
    """Whatever was driven before, and however Python orders its sets."""
    names = ["busy", "hazard-jaywalker/1", "hazard-cut-in/0", "hazard-red-light-runner/0"]
    orders = [names, names[::-1], ["town-smoke/2", *names[2:], *names[:2]]]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *order],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": str(k)},
        )
        for k, order in enumerate(orders)
    ]
    outputs = [process.communicate(timeout=100)[0].splitlines() for process in running]
    assert len(outputs[0]) == len(names)
    assert outputs[0] == outputs[1] == [line for line in outputs[2] if "smoke" not in line]


def test_traffic_rejects_a_second_simulation_in_one_process(world: TownWorld) -> None:
    world.reset(QUIET)
    second = TownWorld()
    with pytest.raises(InputError, match="one at a time"):
        second.reset(QUIET)
    world.close()
    second.reset(QUIET)
    second.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"town": "gird"}, "Did you mean grid"),
        ({"vehicles": -1}, "vehicles: came -1"),
        ({"walkers": 1000}, "walkers: came 1000"),
        ({"route_m": (300.0, 200.0)}, "route_m"),
        ({"route_m": (9e5, 1e6)}, "route: came none found"),
        ({"weather": "ran"}, "Did you mean rain"),
        ({"time_limit_s": 0.0}, "time_limit_s"),
    ],
)
def test_reset_rejects(world: TownWorld, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        world.reset(replace(QUIET, **change))


def test_reset_rejects_a_speed_or_a_way_that_cannot_be(world: TownWorld) -> None:
    with pytest.raises(InputError, match="initial_speed_mps"):
        world.reset(QUIET, speed_mps=float("nan"))
    with pytest.raises(InputError, match="an edge that follows"):
        world.reset(QUIET, way=("A0A1", "D1D2"))


# Routes and suites -------------------------------------------------------------------------------


def test_a_route_changes_lanes_only_where_it_must() -> None:
    network = town_map(network_path("grid")).network
    for seed in range(30):
        way = network.random_walk(np.random.default_rng(seed), list(network.edges)[seed], 500.0)
        if len(set(way)) < len(way):
            continue
        route = Route(network, way)
        for k, edge in enumerate(way[:-1]):
            for lane in network.edges[edge]:
                link, shift = route.link_from(lane), route.shifts[k][lane]
                assert shift or link is not None
                there = route.beside(lane, shift)
                assert there is not None
                assert network.lanes[route.link_from(there).to_lane].edge == way[k + 1]


def test_a_turn_is_announced_and_then_made() -> None:
    network = town_map(network_path("grid")).network
    link = next(k for links in network.links.values() for k in links if k.direction == "left" and k.light)
    edges = tuple(network.lanes[name].edge for name in (link.from_lane, link.to_lane))
    route = Route(network, edges)
    end = network.lanes[link.from_lane].length_m
    assert command(route, link.from_lane, end - 60.0) == "follow"
    assert command(route, link.from_lane, end - 20.0) == "left"
    assert instruction(route, link.from_lane, end - 20.0) == "In 20 metres, turn left at the traffic lights."
    assert command(route, link.from_lane, route.followed(link.from_lane).line.length_m - 5.0) == "follow"


def test_a_bend_without_another_way_is_announced_in_words_alone() -> None:
    network = town_map(network_path("grid")).network
    bends = [
        link
        for links in network.links.values()
        for link in links
        if link.direction in ("left", "right") and len(network.followers[network.lanes[link.from_lane].edge]) == 1
    ]
    assert bends
    for link in bends:
        route = Route(network, tuple(network.lanes[name].edge for name in (link.from_lane, link.to_lane)))
        at_m = network.lanes[link.from_lane].length_m - 20.0
        assert instruction(route, link.from_lane, at_m) == f"In 20 metres, turn {link.direction} at the junction."
        assert command(route, link.from_lane, at_m) == "follow"


def test_a_roundabout_is_announced_by_its_exit() -> None:
    network = town_map(network_path("ring")).network
    route = Route(network, network.route("corner3-arm0", "arm2-corner2"))
    said: list[str] = []
    lane = next(name for name in network.edges[route.edges[0]] if route.shifts[0][name] == 0)
    while route.link_from(lane) is not None:
        followed, link = route.followed(lane), route.link_from(lane)
        said += [
            instruction(route, lane, s) for s in np.arange(0.0, followed.starts_m[followed.lanes.index(link.to_lane)])
        ]
        lane = link.to_lane
    order = list(dict.fromkeys(text for text in said if "roundabout" in text))
    assert order[0] == "In 100 metres, enter the roundabout and take exit 2."
    assert order[-3:] == [
        "Now, enter the roundabout and take exit 2.",
        "Stay in the roundabout.",
        "Leave the roundabout here.",
    ]


def test_comfortable_speed_slows_before_a_curve_and_keeps_the_limit() -> None:
    network = town_map(network_path("grid")).network
    link = next(k for links in network.links.values() for k in links if k.direction == "right")
    line, starts = smooth_line([network.lanes[name] for name in (link.from_lane, *link.inner, link.to_lane)])
    speed = comfortable_speed_mps(line, np.full(len(line.s_m), 13.9))
    assert speed.max() <= 13.9
    assert float(np.interp(starts[1], line.s_m, speed)) < 8.0
    assert (speed**2 * np.abs(line.curvature_1pm) <= 2.0 + 1e-9).all()
    slowing = -np.diff(speed**2) / 2 / np.diff(line.s_m)
    assert slowing.max() <= 1.5 + 1e-6


def test_suites_share_no_seed_and_one_town_is_kept_for_the_test() -> None:
    drawn = {name: [SUITES[name](k) for k in range(min(suite_length(name), 500))] for name in SUITES}
    seeds = [scenario.seed for scenarios in drawn.values() for scenario in scenarios]
    assert len(set(seeds)) == len(seeds)
    towns = {name: {s.town for s in scenarios} for name, scenarios in drawn.items()}
    assert towns["town-train"] == set(shipped_towns()) - {UNSEEN_TOWN}
    assert towns["town-test"] == towns["town-val"] | {UNSEEN_TOWN}
    assert towns["town-val"] < towns["town-train"]
    assert all(s.town != UNSEEN_TOWN for name in drawn for s in drawn[name] if name != "town-test")
    assert suite_length("town-smoke") == 5
    assert all(s.validate().name == f"{name}/{k}" for name in drawn for k, s in enumerate(drawn[name]))


@pytest.mark.parametrize(
    ("name", "message"), [("town-tset/1", "Did you mean town-test"), ("town-smoke/5", "town-smoke/4")]
)
def test_get_scenario_rejects(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_scenario(name)


# What the rules are told ------------------------------------------------------------------------


def test_footprints_of_a_period_are_those_of_its_states() -> None:
    contacts = Contacts(VehicleParams())
    egos = tuple(EgoState(3.0 * k, -7.0 + k, 0.3 * k - 3.0, 5.0) for k in range(20))
    assert np.array_equal(contacts._footprints(egos), [ego.footprint(contacts.params) for ego in egos])


def test_whoever_touches_the_ego_is_near_enough_to_be_looked_at(world: TownWorld) -> None:
    world.reset(BUSY)
    rng, tested = np.random.default_rng(0), 0
    for _ in range(200):
        events = world.step(0.0, 0.0)
        poses = np.column_stack(
            [
                rng.normal((world.ego.x_m, world.ego.y_m), 4.0, (len(world.actors), 2)),
                rng.uniform(-3, 3, len(world.actors)),
            ]
        )
        boxes = np.column_stack([poses, world._size[:, :2]])
        hits = overlap(world.ego.footprint(world.params), boxes)
        assert world._may_touch(poses, poses)[hits].all()
        tested += hits.sum()
    assert tested > 1000
    assert events == ()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 11])
def test_nobody_stands_in_a_junction_for_ever(world: TownWorld, seed: int) -> None:
    world.reset(Scenario("knot", "oldtown", seed, 90, 20))
    stood = dict.fromkeys((actor.id for actor in world.actors), 0)
    for _ in range(1500):
        world.step(-1.0, 0.0)
        for actor, speed_mps in zip(world.actors, world.traffic.now.speed_mps, strict=True):
            stands = speed_mps < 0.1 and world.traffic.lane_of(actor.id).startswith(":")
            stood[actor.id] = stood[actor.id] + 1 if stands else 0
        assert max(stood.values()) < 700


@pytest.mark.parametrize("untied", [True, False])
def test_who_cannot_get_over_takes_the_way_of_his_lane(world: TownWorld, untied: bool) -> None:
    """Two cars that have to exchange lanes stand beside each other at the end of their road."""
    world.reset(QUIET)
    network, start = world.network, "B1C1"
    knots = Knots(network, np.random.default_rng(0), frozenset())
    right, left = network.edges[start]
    ways = {"right": (left, network.links[right][0]), "left": (right, network.links[left][-1])}
    assert [link.direction for _, link in ways.values()] == ["right", "left"]
    for name, (lane, link) in ways.items():
        libsumo.route.add(name, [start, network.lanes[link.to_lane].edge])
        where = {"departLane": str(network.lanes[lane].index), "departPos": "106", "departSpeed": "0"}
        libsumo.vehicle.add(name, name, typeID="car", **where)
    for step in range(1200):
        libsumo.simulationStep()
        there = {name for name in libsumo.vehicle.getIDList() if libsumo.vehicle.getRoadID(name) == start}
        if untied and step % 30 == 0:
            knots.untie(frozenset(there - {"ego"}), "ego")
    assert there == (set() if untied else {"right", "left"})
