"""The town as a world: a network, SUMO's traffic, the ego with a route to a goal, and the rules.

Time advances in control periods of 0.1 s as in `sim.world`; the others move in straight lines within a period. The same
seed gives the same episode, bit for bit, in any process.
"""

import copy
import math

import numpy as np

from sensors.clip import Boxes
from sensors.errors import InputError
from sensors.frames import matrix_from_xy_yaw, wrap
from sim.hazards import HAZARDS, Hazard
from sim.imagined import Imagined, StillTraffic, Wish
from sim.road_network import NetLane, network_path
from sim.scenarios import Scenario
from sim.town_map import TownMap, town_map
from sim.town_route import Route, command, instruction
from sim.town_rules import Place, Rules
from sim.traffic_sumo import SumoTraffic
from sim.vehicle import EgoState, VehicleParams
from sim.world import PERIOD_US, START_US, SUBSTEPS, Actor, EgoWorld, Event

START_M = 12.0  # of the first edge; its lanes are longer than this
LINES_AHEAD = 2  # stop lines that are told
TRIES = 2000
FASTEST_M = 6.0  # nobody moves further in a period; who comes out of nothing has not moved


class TownWorld(EgoWorld):
    """One episode at a time: `reset(scenario)`, then `step(accel, curvature)`. A process has one at a time.

    scenario, town_map, network, route, place (where the ego is on it), actors, events (all since reset), lights,
    wish (of the passenger, if somebody imagines one)
    """

    wish: Wish | None = None

    def __init__(self, params: VehicleParams | None = None):
        self.params = params or VehicleParams()
        self.traffic = SumoTraffic()

    def reset(self, scenario: Scenario, speed_mps: float = 0.0, way: tuple[str, ...] = ()) -> None:
        """A new population, route and ego, at rest unless told otherwise; `way`: the route's edges, else the seed's."""
        self.scenario = scenario.validate()
        self.seed = scenario.seed
        if not 0 <= speed_mps <= 20.0:
            raise InputError("TownWorld.reset", "initial_speed_mps", speed_mps, "a number in [0, 20]")
        self.town_map: TownMap = town_map(network_path(scenario.town))
        self.network = self.town_map.network
        rng = np.random.default_rng([self.seed, 4])
        self.route, lane = self._way_of(tuple(way), rng) if way else self._draw_way(rng)
        self._hazard = self._hazard_on(self.route, lane.id)
        xy, heading = lane.line.at(START_M)
        self._first_lane, self._s_m = lane.id, START_M
        self._place_ego(EgoState(float(xy[0]), float(xy[1]), float(heading), float(speed_mps)))
        self.traffic.reset(
            self.network,
            self.seed,
            self.params,
            self.ego,
            self.route.edges,
            scenario.vehicles,
            scenario.walkers,
            self._hazard.extras(),
        )
        self.actors: tuple[Actor, ...] = self.traffic.actors
        self._size = np.array([a.size_lwh_m for a in self.actors]).reshape(-1, 3)
        self._reach_m = np.hypot(self._size[:, 0], self._size[:, 1]) / 2
        self.events: tuple[Event, ...] = ()
        self.rules = Rules(self.town_map, self.params, self.route.length_m)
        self.place = self._locate()
        self.rules.others(self.time_us, self.ego, self.place, self.lights)

    def step(self, accel_mps2: float, curvature_1pm: float) -> tuple[Event, ...]:
        """One control period; returns the events that began in it (also kept in `events`)."""
        seconds = (self.time_us - START_US) * 1e-6
        self._hazard.act(self.traffic, self.ego, self.place.progress_m, seconds)
        self._drive_ego(accel_mps2, curvature_1pm)
        self.traffic.step(self.ego)
        self.place = self._locate()
        begun = (*self._collisions(), *self.rules.others(self.time_us, self.ego, self.place, self.lights))
        self.events += begun
        return begun

    def imagined(self, imagined: Imagined) -> "TownWorld":
        """This instant as it might be: a world that answers every question, and must not be stepped.

        An ego that would be off the road, and a way that does not begin on it, are up to who imagines them.
        """
        world = copy.copy(self)
        world.traffic = StillTraffic(self.traffic, imagined)
        world.actors = world.traffic.actors
        world._size = np.array([a.size_lwh_m for a in world.actors]).reshape(-1, 3)
        if imagined.edges:
            world.route = Route(self.network, imagined.edges)
        world.wish = imagined.wish
        world._place_ego(imagined.ego)
        world.time_us = self.time_us
        world.place = world._locate()
        return world

    def close(self) -> None:
        """End the simulation: the process may then have another."""
        self.traffic.close()

    @property
    def lights(self) -> dict[str, str]:
        """SUMO's state letters of each traffic light: r red, y amber, g green (give way), G green."""
        return self.traffic.now.lights

    @property
    def command(self) -> str:
        """One of sensors.clip.ROUTE_COMMANDS."""
        if self.wish is not None and self.wish.hides_command:
            return "follow"
        return command(self.route, self.place.first_lane, self.place.s_m)

    @property
    def instruction(self) -> str:
        """The route's next step in words; or the passenger's wish."""
        if self.wish is not None:
            return self.wish.words
        return instruction(self.route, self.place.first_lane, self.place.s_m)

    def poses_at(self, time_us: int) -> tuple[np.ndarray, np.ndarray]:
        """Poses [A, 3] (x, y, yaw of the footprint's centre; far away if absent) and speeds [A] in the last period."""
        into = int(time_us) - (self.time_us - PERIOD_US)
        if not 0 <= into <= PERIOD_US:
            raise ValueError(f"time {time_us} us is not within the last {PERIOD_US} us before {self.time_us}")
        before, now = self.traffic.before, self.traffic.now
        share = into / PERIOD_US
        step = now.poses_m - before.poses_m
        step[:, 2] = wrap(step[:, 2])
        appears = ~before.present | ~now.present
        poses = np.where(appears[:, None], now.poses_m, before.poses_m + share * step)
        return poses, before.speed_mps + share * (now.speed_mps - before.speed_mps)

    def boxes_at(self, time_us: int) -> Boxes:
        """Those who are in the town as annotated boxes; their origin is the box's centre, as in nuScenes."""
        poses, speed = self.poses_at(time_us)
        there = np.flatnonzero(self.traffic.now.present)
        poses, speed, size = poses[there], speed[there], self._size[there]
        T = matrix_from_xy_yaw(*poses.T)
        T[:, 2, 3] = size[:, 2] / 2
        velocity = speed[:, None] * np.stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])], axis=-1)
        ids, categories = (tuple(getattr(self.actors[k], name) for k in there) for name in ("id", "category"))
        return Boxes(ids, categories, T, size, velocity)

    def _draw_way(self, rng: np.random.Generator) -> tuple[Route, NetLane]:
        """A route whose length lies within the scenario's limits and on which its hazard can happen."""
        names = [e for e in self.network.edges if self.network.edge_length_m(e) > START_M + 10.0]
        low, high = self.scenario.route_m
        for _ in range(TRIES if names else 0):
            start, goal = (names[int(k)] for k in rng.integers(len(names), size=2))
            way = self.network.find_route(start, goal)
            if len(way) < 2:
                continue
            route, lane = self._way_of(way, rng)
            if low <= route.length_m <= high and self._hazard_on(route, lane.id).fits():
                return route, lane
        what = f" for the hazard {self.scenario.hazard}" if self.scenario.hazard else ""
        expected = f"a network with a route of {low:.0f} to {high:.0f} m{what}"
        raise InputError("TownWorld", "route", f"none found in {self.network.path.name}", expected)

    def _way_of(self, edges: tuple[str, ...], rng: np.random.Generator) -> tuple[Route, NetLane]:
        """The route over these edges, and the lane it starts from: one that leads on, if there are several any."""
        route = Route(self.network, edges, START_M)
        good = [lane for lane in self.network.edges[edges[0]] if route.shifts[0][lane] == 0]
        lane = self.network.lanes[good[int(rng.integers(len(good)))]]
        if lane.length_m < START_M + 8.0:
            raise InputError("TownWorld.reset", "way", edges[0], f"a first edge of at least {START_M + 8:.0f} m")
        return route, lane

    def _hazard_on(self, route: Route, lane: str) -> Hazard:
        return HAZARDS.get(self.scenario.hazard, Hazard)(route, lane, START_M)

    def _locate(self) -> Place:
        """The ego on its route. It changes line at the next road lane, and with more than half of it in another one."""
        route, ego = self.route, self.ego
        for _ in range(3):
            followed = route.followed(self._first_lane)
            self._s_m, lateral, heading = followed.line.nearest(ego.x_m, ego.y_m, self._s_m)
            lane = followed.lane_at(self._s_m)
            if self.network.lanes[lane].kind != "road":
                break
            half = self.network.lanes[lane].width_m / 2
            beside = route.beside(lane, int(np.sign(lateral))) if abs(lateral) > half else None
            if beside is None and lane == self._first_lane:
                break
            self._s_m -= float(followed.starts_m[followed.lanes.index(lane)])
            self._first_lane = beside or lane
        k = followed.lanes.index(lane)
        ends = (*followed.starts_m, followed.line.length_m)
        share = (self._s_m - ends[k]) / max(ends[k + 1] - ends[k], 1e-6)
        front = self._s_m + self.params.front_m
        lines = [(at_m - front, link) for at_m, link in followed.links[:LINES_AHEAD]]
        if not followed.links and not followed.ends_well:  # a lane that does not lead on has a line all the same
            links = self.network.links.get(lane, ())
            lines = [(followed.line.length_m - front, link) for link in links[:1]]
        return Place(
            lane,
            self._first_lane,
            self._s_m,
            lateral,
            float(wrap(ego.yaw_rad - heading)),
            route.progress_m(lane, float(share)),
            self.network.lanes[lane].speed_limit_mps
            if self.network.lanes[lane].kind == "road"
            else self.network.lanes[self.network.link_into[lane].from_lane].speed_limit_mps,
            tuple(lines),
        )

    def _collisions(self) -> list[Event]:
        now, before = self.traffic.now, self.traffic.before
        near = np.flatnonzero(self._may_touch(now.poses_m, before.poses_m))
        if not len(near):
            return self.rules.collisions(self.track_time_us, self.track, (), np.zeros((0, 0, 5)), np.zeros(0), True)
        share = np.arange(1, SUBSTEPS + 1)[:, None, None] / SUBSTEPS
        step = now.poses_m[near] - before.poses_m[near]
        step[:, 2] = wrap(step[:, 2])
        poses = now.poses_m[near] - (1 - share) * np.where(before.present[near, None], step, 0.0)
        size = np.broadcast_to(self._size[near, :2], (*poses.shape[:2], 2))
        actors = tuple(self.actors[k] for k in near)
        boxes = np.concatenate([poses, size], axis=-1)
        how = self.track[1:], actors, boxes, now.speed_mps[near], self.rules.in_lane(self.place)
        return self.rules.collisions(self.track_time_us[1:], *how)

    def _may_touch(self, now_m: np.ndarray, before_m: np.ndarray) -> np.ndarray:
        """Whose footprint [A] may reach the ego's in this period: their circumscribed circles, as far as both moved."""
        ego, was, params = self.ego, self.track[0], self.params
        x_m, y_m = (v + params.centre_m * turn(ego.yaw_rad) for v, turn in ((ego.x_m, math.cos), (ego.y_m, math.sin)))
        turned_m = params.length_m * abs(wrap(ego.yaw_rad - was.yaw_rad))
        mine_m = math.hypot(params.length_m, params.width_m) / 2 + math.hypot(ego.x_m - was.x_m, ego.y_m - was.y_m)
        moved = now_m - before_m
        apart_m = np.hypot(now_m[:, 0] - x_m, now_m[:, 1] - y_m) - self._reach_m - (mine_m + turned_m)
        return apart_m < np.minimum(np.hypot(moved[:, 0], moved[:, 1]), FASTEST_M)
