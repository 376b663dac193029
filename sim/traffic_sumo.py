"""The town's other road users: cars, trucks, buses, bicycles, pedestrians and traffic lights, by SUMO in this process.

SUMO is a library with one global simulation, so a process has one `SumoTraffic` at a time. The ego is a vehicle of it
that is put where our own model says; the others keep their distance from it, give way to it and expect the same. SUMO
speaks of the middle of the front bumper and of angles clockwise from north; here poses are x, y, yaw of footprints'
centres. Everything follows from the seed.
"""

import weakref
from dataclasses import dataclass
from itertools import chain

import libsumo
import numpy as np

from sensors.errors import InputError
from sensors.frames import wrap
from sim.knots import LAWFUL, WAY_M, Knots
from sim.road_network import RoadNetwork
from sim.vehicle import EgoState, VehicleParams
from sim.walking import MAX_WALK_MPS, SmoothWalk
from sim.world import PAINTS, Actor

STEP_S = 0.1
EGO = "ego"
SETTLE_STEPS = 20  # lets those who start anywhere find their speed and gaps before the ego's first instant
LOOK_AHEAD_EDGES = 4  # a way with fewer edges left is made longer
EXTEND_EVERY_STEPS = 30
NEAR_ROAD_M = 30.0  # the ego is on a lane that is this near; SUMO's own 100 m take it ten times as long to look for one
CLEAR_M = 9.0  # no vehicle starts this near to the ego
FAR = 1e5  # where those are who are not in the town
OPTIONS = f"""--step-length {STEP_S} --step-method.ballistic true --default.action-step-length 0.3
    --lanechange.duration 2.5 --collision.action none --time-to-teleport -1 --ignore-route-errors true
    --no-step-log true --no-warnings true"""
OWN_LANE_CHANGES = 1621  # SUMO's default mode
# SUMO's speed modes, sums of what is respected: 1 leaders, 2 own acceleration, 4 own braking, 8 right of way, 16 red
# lights; 32: who is in the junction already is not.
RECKLESS, RUNS_RED, PRESSES_ON = 0, 39, 55
BLINK_RIGHT, BLINK_LEFT, BRAKE_LIGHT = 1, 2, 8
DOMAINS = libsumo.vehicle, libsumo.person


@dataclass(frozen=True)
class Kind:
    """SUMO's class and manners of one kind of road user."""

    category: str
    sumo_class: str
    size_lwh_m: tuple[float, float, float]
    max_speed_mps: float
    accel_mps2: float
    share: float


KINDS = {
    "car": Kind("vehicle.car", "passenger", (4.5, 1.85, 1.55), 50.0, 2.6, 0.74),
    "truck": Kind("vehicle.truck", "truck", (7.4, 2.4, 3.0), 25.0, 1.3, 0.08),
    "bus": Kind("vehicle.bus.rigid", "bus", (11.0, 2.5, 3.1), 24.0, 1.2, 0.06),
    "bicycle": Kind("vehicle.bicycle", "bicycle", (1.75, 0.65, 1.7), 5.5, 1.2, 0.08),
    "motorcycle": Kind("vehicle.motorcycle", "motorcycle", (2.1, 0.8, 1.6), 40.0, 3.0, 0.04),
}
PEDESTRIAN = "human.pedestrian.adult"
PEDESTRIAN_LWH_M = (0.55, 0.6, 1.75)


@dataclass(frozen=True)
class Extra:
    """Somebody who takes part in a hazard: a vehicle of a kind on a lane, or a "walker" beside an edge, held at rest.

    way  edges; at_m: of the front bumper on the first one's lane `lane_index`
    """

    id: str
    kind: str
    way: tuple[str, ...]
    lane_index: int
    at_m: float


@dataclass(frozen=True)
class Snapshot:
    """Who is where at one instant, A actors in the order of `SumoTraffic.actors`.

    poses_m float64 [A, 3] (x, y, yaw of the footprint's centre; FAR for who is not there), speed_mps float64 [A],
    lights: state letters of each traffic light
    """

    poses_m: np.ndarray
    speed_mps: np.ndarray
    present: np.ndarray
    lights: dict[str, str]


class SumoTraffic:
    """`reset`, then `step` once each STEP_S; `now` and `before` are the last two instants."""

    _running: "weakref.ref[SumoTraffic] | None" = None

    def __init__(self):
        self.actors: tuple[Actor, ...] = ()
        self._open = False

    def reset(
        self,
        network: RoadNetwork,
        seed: int,
        params: VehicleParams,
        ego: EgoState,
        ego_edges: tuple[str, ...],
        vehicles: int,
        walkers: int,
        extras: tuple[Extra, ...] = (),
    ) -> None:
        """A new population around an ego that stands still meanwhile at its start, on the first of its edges."""
        other = SumoTraffic._running() if SumoTraffic._running else None
        if other is not None and other is not self:
            fix = "Call close() on the first, or give each world a process of its own (AsyncVectorEnv)."
            raise InputError("SumoTraffic", "simulation", "a second one in this process", "one at a time", fix)
        SumoTraffic._running = weakref.ref(self)
        self.network = network
        self._load(seed)
        self._rng = np.random.default_rng([seed, 5])
        self._params = params
        self._make_types(params)
        self._shift_lights()
        self._add_ego(ego, ego_edges)
        made = self._add_extras(extras)
        made += self._add_vehicles(vehicles, len(made))
        made += self._add_walkers(walkers, len(made) + 1)
        self.actors = tuple(made)
        self._index = {actor.id: k for k, actor in enumerate(made)}
        self._half = np.array([a.size_lwh_m[0] / 2 if a.category.startswith("vehicle") else 0.0 for a in made])
        self._on_foot = np.flatnonzero([a.category == PEDESTRIAN for a in made])
        self._walk = SmoothWalk(len(self._on_foot), STEP_S)
        self._knots = Knots(network, self._rng, frozenset(extra.id for extra in extras))
        self._steps, self._listed = 0, None
        for _ in range(SETTLE_STEPS):
            self._put(ego)
            libsumo.simulationStep()
        for name in libsumo.simulation.getPendingVehicles():  # no room for it: better none than one out of nothing
            libsumo.vehicle.remove(name)
        self.now = self._read()
        for name in sorted(self._vehicle_ids - {extra.id for extra in extras}):
            away_m = np.hypot(*(self.now.poses_m[self._index[name], :2] - (ego.x_m, ego.y_m)))
            # Nobody else on the road where a hazard is to happen: SUMO's vehicles cannot pass who has broken down.
            if away_m < CLEAR_M or (extras and libsumo.vehicle.getRoadID(name) == ego_edges[0]):
                libsumo.vehicle.remove(name)
        self.now = self._read()
        self.step(ego)

    def _load(self, seed: int) -> None:
        """An empty simulation of the network; what SUMO does not take is an InputError, SUMO's own words above it."""
        arguments = ["-n", str(self.network.path), "--seed", str(seed % 2**31), *OPTIONS.split()]
        try:
            if self._open:
                libsumo.load(arguments)
            else:
                libsumo.start(["sumo", *arguments])
        except (libsumo.TraCIException, libsumo.FatalTraCIError) as error:
            self.close()
            came, fix = f"SUMO refuses it ({error})", "What SUMO printed says why; netconvert -s FILE checks a network."
            raise InputError(self.network.path, "network", came, "a network that SUMO 1.28 runs", fix) from error
        self._open = True

    def step(self, ego: EgoState) -> None:
        """One period of SUMO, at whose end the ego is at this state."""
        self.before = self.now
        self._put(ego)
        libsumo.simulationStep()
        self._steps += 1
        self.now = self._read()
        if self._steps % EXTEND_EVERY_STEPS == 0:
            self._extend_ways()
            self._knots.untie(self._vehicle_ids, EGO)

    def close(self) -> None:
        """End the simulation, so that this process may have another."""
        if self._open:
            libsumo.close()
            self._open = False
        if SumoTraffic._running and SumoTraffic._running() is self:
            SumoTraffic._running = None

    def lane_of(self, actor: str) -> str:
        """Id of the lane a vehicle is on, inner lanes too; "" for a pedestrian or one who is not there."""
        return libsumo.vehicle.getLaneID(actor) if actor in self._vehicle_ids else ""

    def next_edges(self, actor: str) -> tuple[str, ...]:
        """The road edges a vehicle will use, from the one it is on or comes from."""
        return libsumo.vehicle.getRoute(actor)[max(libsumo.vehicle.getRouteIndex(actor), 0) :]

    # What a hazard makes somebody do ---------------------------------------------------------------

    def is_there(self, actor: str) -> bool:
        return actor in self._vehicle_ids or actor in self._person_ids

    def speed_of(self, vehicle: str) -> float:
        return libsumo.vehicle.getSpeed(vehicle)

    def drive_at(self, actor: str, speed_mps: float | None, manners: int = RECKLESS) -> None:
        """Hold a vehicle at a speed, as far as its manners (a speed mode) allow; None: let it drive as it likes."""
        libsumo.vehicle.setSpeedMode(actor, LAWFUL if speed_mps is None else manners)
        libsumo.vehicle.setSpeed(actor, -1.0 if speed_mps is None else speed_mps)
        libsumo.vehicle.setLaneChangeMode(actor, OWN_LANE_CHANGES if speed_mps is None else 0)

    def change_lane(self, actor: str, lane_index: int) -> None:
        """Move over to a lane of its edge, caring for nobody, and stay there."""
        libsumo.vehicle.setLaneChangeMode(actor, 0)
        libsumo.vehicle.changeLane(actor, lane_index, 60.0)

    def put(self, actor: str, x_m: float, y_m: float, yaw_rad: float) -> None:
        """Put a vehicle or a pedestrian somewhere, on a road or not."""
        of = libsumo.person if actor in self._person_ids else libsumo.vehicle
        rest = () if actor in self._person_ids else (-1,)
        of.moveToXY(actor, "", *rest, float(x_m), float(y_m), float(90.0 - np.degrees(yaw_rad)), 2)

    # Making the population -------------------------------------------------------------------------

    def _make_types(self, params: VehicleParams) -> None:
        types = libsumo.vehicletype
        own = Kind("", "passenger", (params.length_m, params.width_m, params.height_m), params.max_speed_mps, 3.0, 0.0)
        for name, kind in (*KINDS.items(), (EGO, own)):
            types.copy("DEFAULT_VEHTYPE", name)
            types.setVehicleClass(name, kind.sumo_class)
            types.setLength(name, kind.size_lwh_m[0])
            types.setWidth(name, kind.size_lwh_m[1])
            types.setMaxSpeed(name, kind.max_speed_mps)
            types.setAccel(name, kind.accel_mps2)
            types.setSpeedFactor(name, 0.97)
            types.setSpeedDeviation(name, 0.08)
        types.setMaxSpeed("DEFAULT_PEDTYPE", 1.5)

    def _shift_lights(self) -> None:
        self._lights = tuple(sorted(libsumo.trafficlight.getIDList()))
        for name in self._lights:
            phases = libsumo.trafficlight.getAllProgramLogics(name)[0].phases
            phase = int(self._rng.integers(len(phases)))
            libsumo.trafficlight.setPhase(name, phase)
            libsumo.trafficlight.setPhaseDuration(name, float(self._rng.uniform(1.0, phases[phase].duration)))

    def _add_ego(self, ego: EgoState, edges: tuple[str, ...]) -> None:
        libsumo.route.add("way of " + EGO, edges)
        libsumo.vehicle.add(EGO, "way of " + EGO, typeID=EGO, departPos="0", departSpeed="0")
        libsumo.vehicle.setSpeedMode(EGO, 0)
        libsumo.vehicle.setLaneChangeMode(EGO, 0)
        self._put(ego)

    def _put(self, ego: EgoState) -> None:
        front = self._params.front_m
        x, y = ego.x_m + front * np.cos(ego.yaw_rad), ego.y_m + front * np.sin(ego.yaw_rad)
        libsumo.vehicle.moveToXY(EGO, "", -1, float(x), float(y), float(90.0 - np.degrees(ego.yaw_rad)), 2, NEAR_ROAD_M)
        libsumo.vehicle.setSpeed(EGO, ego.speed_mps)

    def _add_extras(self, extras: tuple[Extra, ...]) -> list[Actor]:
        made = []
        for k, extra in enumerate(extras):
            if extra.kind == "walker":
                libsumo.person.add(extra.id, extra.way[0], extra.at_m)
                libsumo.person.appendWaitingStage(extra.id, 1e6, "waits")
                category, size = PEDESTRIAN, PEDESTRIAN_LWH_M
            else:
                kind = KINDS[extra.kind]
                category, size = kind.category, kind.size_lwh_m
                libsumo.route.add("way of " + extra.id, extra.way)
                where = {"departLane": str(extra.lane_index), "departPos": str(extra.at_m), "departSpeed": "0"}
                libsumo.vehicle.add(extra.id, "way of " + extra.id, typeID=extra.kind, **where)
                libsumo.vehicle.setSpeed(extra.id, 0.0)
                libsumo.vehicle.setLaneChangeMode(extra.id, 0)
            made.append(Actor(extra.id, k + 1, category, size, PAINTS[int(self._rng.integers(len(PAINTS)))], None))
        return made

    def _add_vehicles(self, count: int, before: int) -> list[Actor]:
        network, rng, made = self.network, self._rng, []
        edges = list(network.edges)
        weights = np.array([network.edge_length_m(edge) * len(network.edges[edge]) for edge in edges])
        share_of_edge = weights / weights.sum()
        names, shares = list(KINDS), np.array([kind.share for kind in KINDS.values()])
        for k in range(count):
            edge = edges[int(rng.choice(len(edges), p=share_of_edge))]
            kind_name, name = names[int(rng.choice(len(names), p=shares))], f"vehicle-{k + 1:03d}"
            if not network.open_to(edge, KINDS[kind_name].sumo_class):
                kind_name = "car"
            kind, scale, paint = KINDS[kind_name], rng.uniform(0.95, 1.05), PAINTS[int(rng.integers(len(PAINTS)))]
            size = tuple(round(v * scale, 3) for v in kind.size_lwh_m)
            way = network.random_walk(rng, edge, WAY_M, kind.sumo_class)
            libsumo.route.add("way of " + name, way)
            where = {"departLane": "random", "departPos": "random_free", "departSpeed": "avg"}
            libsumo.vehicle.add(name, "way of " + name, typeID=kind_name, **where)
            libsumo.vehicle.setLength(name, size[0])
            libsumo.vehicle.setWidth(name, size[1])
            made.append(Actor(name, before + k + 1, kind.category, size, paint, None))
        return made

    def _add_walkers(self, count: int, first_instance: int) -> list[Actor]:
        rng, made = self._rng, []
        lane_of = {lane.edge: lane.id for lane in self.network.of_kind("walk") if lane.length_m > 5.0}
        self._walks = tuple(lane_of)
        for k in range(count if self._walks else 0):
            edge, name = self._walks[int(rng.integers(len(self._walks)))], f"walker-{k + 1:03d}"
            libsumo.person.add(name, edge, float(rng.uniform(0.2, 0.8)) * libsumo.lane.getLength(lane_of[edge]))
            self._walk_on(name, edge)
            paint = PAINTS[int(rng.integers(len(PAINTS)))]
            made.append(Actor(name, first_instance + k, PEDESTRIAN, PEDESTRIAN_LWH_M, paint, None))
        return made

    def _walk_on(self, name: str, edge: str) -> None:
        """Append a way along sidewalks and crossings to somewhere else; who finds none in five draws waits."""
        for _ in range(5):
            goal = self._walks[int(self._rng.integers(len(self._walks)))]
            stages = libsumo.simulation.findIntermodalRoute(edge, goal, pType="DEFAULT_PEDTYPE") if goal != edge else ()
            if stages:
                for stage in stages:
                    libsumo.person.appendStage(name, stage)
                return
        libsumo.person.appendWaitingStage(name, 600.0, "waits")

    def _extend_ways(self) -> None:
        """Nobody arrives: a way that ends soon goes on, and so does a walk."""
        for name in sorted(self._vehicle_ids):
            way, at = libsumo.vehicle.getRoute(name), libsumo.vehicle.getRouteIndex(name)
            if at >= 0 and len(way) - at < LOOK_AHEAD_EDGES:
                more = self.network.random_walk(self._rng, way[-1], WAY_M, libsumo.vehicle.getVehicleClass(name))
                libsumo.vehicle.setRoute(name, [*way[at:], *more[1:]])
        for name in sorted(self._person_ids):
            if libsumo.person.getRemainingStages(name) == 1:
                edges = libsumo.person.getEdges(name)
                if edges:
                    self._walk_on(name, edges[-1])

    # Reading ---------------------------------------------------------------------------------------

    def _read(self) -> Snapshot:
        vehicles, people = libsumo.vehicle.getIDList(), libsumo.person.getIDList()
        if (vehicles, people) != self._listed:
            self._listed = vehicles, people
            self._names = tuple(name for name in vehicles if name != EGO), people
            self._vehicle_ids, self._person_ids = (frozenset(names) for names in self._names)
            self._rows = np.array([self._index[name] for name in chain(*self._names)], np.intp)
        count, rows = len(self.actors), self._rows
        poses, speed, present = np.full((count, 3), FAR), np.zeros(count), np.zeros(count, bool)
        if len(rows):
            at, angle, speeds = self._values("getPosition", 2), self._values("getAngle"), self._values("getSpeed")
            yaw = wrap(np.radians(90.0 - angle))
            poses[rows, 0] = at[::2] - self._half[rows] * np.cos(yaw)
            poses[rows, 1] = at[1::2] - self._half[rows] * np.sin(yaw)
            poses[rows, 2] = yaw
            speed[rows], present[rows] = speeds, True
            foot = self._on_foot
            poses[foot, :2], walked_mps = self._walk.follow(poses[foot, :2], present[foot])
            speed[foot] = np.where(walked_mps < MAX_WALK_MPS, walked_mps, speed[foot])
        state = libsumo.trafficlight.getRedYellowGreenState
        return Snapshot(poses, speed, present, {name: state(name) for name in self._lights})

    def _values(self, getter: str, size: int = 1) -> np.ndarray:
        """What SUMO says of everybody who is there, vehicles first, as float64 [size * K]."""
        of_vehicles, of_people = (
            map(getattr(of, getter), names) for of, names in zip(DOMAINS, self._names, strict=True)
        )
        each = chain(of_vehicles, of_people)
        return np.fromiter(chain.from_iterable(each) if size > 1 else each, np.float64, size * len(self._rows))

    def signals(self) -> np.ndarray:
        """Lamps int64 [A] that vehicles show now: bits BLINK_RIGHT, BLINK_LEFT, BRAKE_LIGHT."""
        out = np.zeros(len(self.actors), np.int64)
        for name in self._vehicle_ids:
            out[self._index[name]] = libsumo.vehicle.getSignals(name)
        return out
