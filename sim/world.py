"""The world: a road, the ego vehicle, the other road users, time, and what went wrong.

Time advances in control periods of 0.1 s. Inside a period the ego moves in ten substeps (100 Hz), which are kept, since
the IMU and the cameras look at instants within it; others hold their acceleration over the period, so their pose is
known at any instant. Everything follows from the seed, bit for bit.
"""

from dataclasses import dataclass

import numpy as np

from sensors.clip import Boxes, Future
from sensors.errors import InputError
from sensors.frames import matrix_from_xy_yaw, wrap
from sim.geometry import corners, overlap
from sim.roads import Course, Lane, Road
from sim.vehicle import EgoState, VehicleParams, advance, step

PERIOD_US, SUBSTEPS = 100_000, 10
SUBSTEP_US = PERIOD_US // SUBSTEPS
START_US = 10_000_000  # not 0, so that times before the start are not negative
SIZES_LWH_M = {
    "vehicle.car": (4.5, 1.85, 1.55),
    "vehicle.truck": (6.6, 2.3, 2.8),
    "human.pedestrian.adult": (0.55, 0.6, 1.75),
}
NEAR_M, CLOSING_M = 12.0, 8.0  # no two footprints touch beyond the first; nothing closes in by the second in a period
PAINTS = ((172, 28, 30), (36, 62, 130), (222, 222, 224), (52, 54, 58), (150, 154, 160), (204, 150, 40), (40, 96, 66))


@dataclass(frozen=True)
class Actor:
    """A road user as it was made. It follows `lane` from arc length s_m, or stands at pose (x, y, yaw) if lane is None.

    category  nuScenes name; size_lwh_m; paint RGB; instance: the number that marks it in instance images (1, 2, ...)
    """

    id: str
    instance: int
    category: str
    size_lwh_m: tuple[float, float, float]
    paint: tuple[int, int, int]
    lane: str | None
    s_m: float = 0.0
    speed_mps: float = 0.0
    eagerness: float = 1.0  # wanted speed over the lane's comfortable speed
    pose: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Event:
    """kind is "collision" (with `actor`, at this relative speed) or another (at the ego's speed), as the world lists.

    fault  "ego" or "other"
    """

    kind: str
    time_us: int
    actor: str
    speed_mps: float
    fault: str = "ego"


@dataclass(frozen=True)
class LaneState:
    """Where the ego's rear axle is in its own lane; left positive.

    departure_m: how far the footprint reaches beyond the lane's edges, 0 inside. wrong_way: more than half of the
    vehicle is beyond the left edge of its lane, or it points more than 90 degrees away from the lane.
    """

    s_m: float
    lateral_m: float
    heading_error_rad: float
    departure_m: float
    wrong_way: bool


@dataclass(frozen=True)
class Leader:
    """What is ahead of the ego in its lane: bumper to bumper gap, speed, id."""

    gap_m: float
    speed_mps: float
    actor: str


class EgoWorld:
    """The part of a world that is the ego's own: params, time_us, and the last period's substeps.

    track     11 EgoStates at track_time_us int64 [11], ends included; ego: EgoState now
    until_us  after which nothing is known of the others; None: always more
    command, instruction   what the route asks for, one of sensors.clip.ROUTE_COMMANDS, and in words
    """

    params: VehicleParams
    time_us: int
    track: tuple[EgoState, ...]
    until_us: int | None = None
    command: str = "follow"
    instruction: str = ""

    def red_lanes(self) -> list[int]:
        """Which of the lanes that a drive is judged against are red now, if the world itself knows."""
        return []

    def future(self) -> Future | None:
        """What is recorded of the time from now on; None where nothing is, since nobody drove here before."""
        return None

    @property
    def ego(self) -> EgoState:
        return self.track[-1]

    @property
    def track_time_us(self) -> np.ndarray:
        return self.time_us + np.arange(-SUBSTEPS, 1, dtype=np.int64) * SUBSTEP_US

    def ego_at(self, time_us: int) -> EgoState:
        """The ego at an instant of the last period, exact between substeps."""
        into = int(time_us) - (self.time_us - PERIOD_US)
        if not 0 <= into <= PERIOD_US:
            raise ValueError(f"time {time_us} us is not within the last {PERIOD_US} us before {self.time_us}")
        k, rest = divmod(into, SUBSTEP_US)
        if rest == 0:
            return self.track[k]
        a, b, t = self.track[k], self.track[k + 1], rest * 1e-6
        accel = (b.speed_mps - a.speed_mps) / (SUBSTEP_US * 1e-6)
        speed, distance = a.speed_mps + accel * t, a.speed_mps * t + 0.5 * accel * t * t
        return advance(a, distance, speed, b.curvature_1pm, b.response)

    def poses_of_ego(self, times_us: np.ndarray) -> np.ndarray:
        """T_world_from_ego [M, 4, 4] at instants int64 [M] of the last period."""
        states = [self.ego_at(time_us) for time_us in times_us.tolist()]
        return matrix_from_xy_yaw(*np.array([(s.x_m, s.y_m, s.yaw_rad) for s in states]).T)

    def _place_ego(self, now: EgoState, time_us: int = START_US) -> None:
        """Start an episode at this state and instant, after a period of driving steadily."""
        seconds = np.arange(-SUBSTEPS, 1) * (SUBSTEP_US * 1e-6)
        speed = now.speed_mps
        self.track = (*(advance(now, speed * float(t), speed, now.curvature_1pm) for t in seconds[:-1]), now)
        self.time_us = time_us
        waits = round(self.params.dead_time_s * 1e6 / SUBSTEP_US)
        self._commands = [(0.0, now.curvature_1pm)] * waits  # given, and not yet in effect

    def _drive_ego(self, accel_mps2: float, curvature_1pm: float) -> None:
        """Ten substeps; time goes on by one period."""
        state, track = self.ego, [self.ego]
        self._commands += [(accel_mps2, curvature_1pm)] * SUBSTEPS
        for command in self._commands[:SUBSTEPS]:
            state = step(state, *command, SUBSTEP_US * 1e-6, self.params)
            track.append(state)
        del self._commands[:SUBSTEPS]
        self.track = tuple(track)
        self.time_us += PERIOD_US


class World(EgoWorld):
    """One episode at a time: `reset(seed)`, then `step(accel, curvature)` as long as one likes.

    road, params, ego (EgoState now), actors, time_us, events (all since reset), track_time_us int64 [11] and track (11
    EgoStates): the last period's substeps, ends included.
    """

    def __init__(self, params: VehicleParams | None = None):
        self.params = params or VehicleParams()

    def reset(
        self, seed: int, lateral_m: float = 0.0, heading_rad: float = 0.0, speed_mps: float | None = None
    ) -> None:
        """A new course, traffic and ego. The three arguments displace the ego from its lane's centreline.

        The ego has driven steadily for one period already, so that cameras and IMU have a past to look at.
        """
        self.seed = int(seed)
        self.road: Road = Course.generate(self.seed)
        rng = np.random.default_rng([self.seed, 2])
        lane = self.road.lanes[self.road.ego_lane]
        starts = rng.uniform(0, lane.line.length_m, 64)
        bend = np.abs(lane.line.curvature_at(starts[:, None] + np.arange(0, 36, 5))).max(axis=1)
        start = float(starts[np.argmin(bend)])  # a straight piece
        default_speed = float(lane.comfortable_speed_mps(start) * rng.uniform(0.6, 0.9))
        speed = default_speed if speed_mps is None else float(speed_mps)
        for name, value, limit in (
            ("initial_lateral_m", lateral_m, 3.0),
            ("initial_heading_rad", heading_rad, 1.0),
            ("initial_speed_mps", speed - self.params.max_speed_mps / 2, self.params.max_speed_mps / 2),
        ):
            if not abs(value) <= limit:
                low = 0 if "speed" in name else -limit
                came = speed if "speed" in name else value
                raise InputError("world.reset", name, came, f"a number in [{low}, {low + 2 * limit}]")
        xy, heading = lane.line.at(start)
        xy = xy + lateral_m * np.array([-np.sin(heading), np.cos(heading)])
        curvature = float(lane.line.curvature_at(start)) if lateral_m == heading_rad == 0 else 0.0
        self.actors = _populate(self.road, start, rng)
        self._lane_of = np.array([-1 if a.lane is None else list(self.road.lanes).index(a.lane) for a in self.actors])
        self._half_length = np.array([a.size_lwh_m[0] / 2 for a in self.actors])
        self._size = np.array([a.size_lwh_m[:2] for a in self.actors])
        self._fixed = np.array([a.pose for a in self.actors])
        self._s = np.array([a.s_m for a in self.actors])
        self._speed = np.array([a.speed_mps for a in self.actors])
        self._accel = np.zeros(len(self.actors))
        self.events: tuple[Event, ...] = ()
        self._touching: frozenset[str] = frozenset()
        self._was_off_road = False
        self._lane_state: tuple[EgoState | None, LaneState | None] = (None, None)
        now = EgoState(float(xy[0]), float(xy[1]), float(wrap(heading + heading_rad)), speed, curvature)
        self._place_ego(now)
        self._s -= self._speed * PERIOD_US * 1e-6

    def step(self, accel_mps2: float, curvature_1pm: float) -> tuple[Event, ...]:
        """One control period; returns the events that began in it (also kept in `events`)."""
        self._s, self._speed = self._moved(PERIOD_US * 1e-6)
        self._accel = self._car_following()
        self._drive_ego(accel_mps2, curvature_1pm)
        begun = self._collisions() + self._leaving()
        self.events += begun
        return begun

    def poses_at(self, time_us: int) -> tuple[np.ndarray, np.ndarray]:
        """Poses [A, 3] (x, y, yaw of the footprint's centre) and speeds [A] of the actors within the last period."""
        into = int(time_us) - (self.time_us - PERIOD_US)
        if not 0 <= into <= PERIOD_US:
            raise ValueError(f"time {time_us} us is not within the last {PERIOD_US} us before {self.time_us}")
        s, speed = self._moved(into * 1e-6)
        poses = self._fixed.copy()
        for k, lane in enumerate(self.road.lanes.values()):
            mine = self._lane_of == k
            xy, heading = lane.line.at(s[mine])
            poses[mine] = np.column_stack([xy, heading])
        return poses, speed

    @property
    def actors_accel_mps2(self) -> np.ndarray:
        """Accelerations [A] of the actors over the last period."""
        return self._accel

    def boxes_at(self, time_us: int) -> Boxes:
        """The actors as annotated boxes; their origin is the box's centre, as in nuScenes."""
        poses, speed = self.poses_at(time_us)
        size = np.array([a.size_lwh_m for a in self.actors]).reshape(-1, 3)
        T = matrix_from_xy_yaw(*poses.T)
        T[:, 2, 3] = size[:, 2] / 2
        velocity = speed[:, None] * np.stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])], axis=-1)
        ids, categories = (tuple(getattr(a, name) for a in self.actors) for name in ("id", "category"))
        return Boxes(ids, categories, T, size, velocity)

    @property
    def ego_lane(self) -> Lane:
        return self.road.lanes[self.road.ego_lane]

    def lane_state(self) -> LaneState:
        """The ego's rear axle in its lane."""
        if self._lane_state[0] is not self.ego:  # several ask in one period
            self._lane_state = (self.ego, self._locate_ego())
        return self._lane_state[1]

    def _locate_ego(self) -> LaneState:
        ego, lane = self.ego, self.ego_lane
        at = lane.line.project(np.array([ego.x_m, ego.y_m]))
        box = ego.footprint(self.params)
        lateral = lane.line.project(np.concatenate([corners(box), box[None, :2]])).lateral_m
        error = float(wrap(ego.yaw_rad - at.heading_rad))
        departure = max(0.0, float(np.abs(lateral[:4]).max()) - lane.width_m / 2)
        wrong_way = bool(lateral[4] > lane.width_m / 2 or abs(error) > np.pi / 2)
        return LaneState(float(at.s_m), float(at.lateral_m), error, departure, wrong_way)

    def lane_ahead(self, distances_m: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centreline points [D, 2], headings [D], comfortable speeds [D] at arc lengths ahead of the rear axle."""
        s = self.lane_state().s_m + np.asarray(distances_m, dtype=np.float64)
        return *self.ego_lane.line.at(s), self.ego_lane.comfortable_speed_mps(s)

    def leader(self, within_m: float = 120.0) -> Leader | None:
        """The nearest actor ahead in the ego's lane, or None within this range."""
        s, speed = self._moved(PERIOD_US * 1e-6)
        own = np.flatnonzero(self._lane_of == list(self.road.lanes).index(self.road.ego_lane))
        if not len(own):
            return None
        to_centre = self.ego_lane.line.gap(self.lane_state().s_m, s[own])
        k = int(np.argmin(to_centre))
        gap = float(to_centre[k] - self._half_length[own[k]] - self.params.front_m)
        return Leader(gap, float(speed[own[k]]), self.actors[own[k]].id) if gap <= within_m else None

    def _moved(self, dt_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Arc lengths and speeds [A] this long after the start of the period; who brakes to 0 stays there."""
        brakes = self._accel < 0
        moving_s = np.where(brakes, np.minimum(dt_s, self._speed / np.where(brakes, -self._accel, 1.0)), dt_s)
        s = self._s + self._speed * moving_s + 0.5 * self._accel * moving_s**2
        return s, np.maximum(self._speed + self._accel * moving_s, 0.0)

    def _car_following(self) -> np.ndarray:
        """Acceleration [A] by the intelligent driver model (Treiber et al. 2000, eq. 3 and 4).

        a (1 - (v/v0)^4 - (g*/g)^2),  g* = g0 + v T + v dv / (2 sqrt(a b)); the leader may be the ego.
        """
        a_max, comfortable, headway_s, standstill_m = 1.8, 2.5, 1.3, 2.5
        accel = np.zeros(len(self.actors))
        ego_box = self.ego.footprint(self.params)
        for index, lane in enumerate(self.road.lanes.values()):
            mine = np.flatnonzero(self._lane_of == index)
            if not len(mine):
                continue
            s, v, half = self._s[mine], self._speed[mine], self._half_length[mine]
            ego = lane.line.project(ego_box[:2])
            in_lane = abs(ego.lateral_m) < lane.width_m / 2 + 0.4 * self.params.width_m
            along = self.ego.speed_mps * float(np.cos(self.ego.yaw_rad - ego.heading_rad))
            ahead_s = np.append(s, ego.s_m)
            ahead_v = np.append(v, max(along, 0.0))
            ahead_half = np.append(half, self.params.length_m / 2)
            gap = lane.line.gap(s[:, None], ahead_s) - half[:, None] - ahead_half
            np.fill_diagonal(gap, np.inf)
            if not in_lane:
                gap[:, -1] = np.inf
            k = np.argmin(np.where(gap < -2.0, np.inf, gap), axis=1)
            nearest = np.maximum(gap[np.arange(len(mine)), k], 0.1)
            wanted = lane.comfortable_speed_mps(s) * np.array([self.actors[i].eagerness for i in mine])
            closing = v - ahead_v[k]
            spacing = standstill_m + np.maximum(v * headway_s + v * closing / (2 * np.sqrt(a_max * comfortable)), 0.0)
            accel[mine] = np.clip(a_max * (1 - (v / wanted) ** 4 - (spacing / nearest) ** 2), -8.0, a_max)
        return accel

    def _collisions(self) -> tuple[Event, ...]:
        """Overlaps in any substep of the period just driven, each reported when it begins."""
        begun, touching = [], self._touching
        away = self.poses_at(self.time_us)[0][:, :2] - (self.ego.x_m, self.ego.y_m)
        if not (np.hypot(*away.T) < NEAR_M + CLOSING_M).any():  # the common case, at a tenth of the price
            self._touching = frozenset()
            return ()
        for time_us, ego in zip(self.track_time_us[1:], self.track[1:], strict=True):
            poses, speed = self.poses_at(int(time_us))
            near = np.flatnonzero(np.hypot(poses[:, 0] - ego.x_m, poses[:, 1] - ego.y_m) < NEAR_M)
            if not len(near):
                touching = frozenset()
                continue
            hit = near[overlap(ego.footprint(self.params), np.column_stack([poses[near], self._size[near]]))]
            for i in hit:
                if self.actors[i].id not in touching:
                    relative = np.array([np.cos(ego.yaw_rad), np.sin(ego.yaw_rad)]) * ego.speed_mps
                    relative = relative - speed[i] * np.array([np.cos(poses[i, 2]), np.sin(poses[i, 2])])
                    begun.append(Event("collision", int(time_us), self.actors[i].id, float(np.linalg.norm(relative))))
            touching = frozenset(self.actors[i].id for i in hit)
        self._touching = touching
        return tuple(begun)

    def _leaving(self) -> tuple[Event, ...]:
        box = corners(self.ego.footprint(self.params))
        off = not self.road.drivable(np.concatenate([box, (box + np.roll(box, -1, axis=0)) / 2])).all()
        begun = off and not self._was_off_road
        self._was_off_road = off
        return (Event("off_road", self.time_us, "", self.ego.speed_mps),) if begun else ()


def _populate(road: Road, ego_s_m: float, rng: np.random.Generator) -> tuple[Actor, ...]:
    """Moving vehicles on every lane (clear of the ego), parked ones half on the shoulder, standing pedestrians."""
    made: list[dict] = []

    def kind(truck_share):
        return "vehicle.truck" if rng.random() < truck_share else "vehicle.car"

    for name, lane in road.lanes.items():
        count = int(lane.line.length_m / rng.uniform(75, 120))
        for s in (np.arange(count) + rng.uniform(-0.25, 0.25, count)) * lane.line.length_m / count:
            eagerness, category = rng.uniform(0.6, 0.98), kind(0.2)
            ahead = float(lane.line.gap(ego_s_m, s))
            if name == road.ego_lane and (ahead < 30 or ahead > lane.line.length_m - 25):
                continue
            speed = float(lane.comfortable_speed_mps(s)) * eagerness * 0.9
            made.append(
                {"category": category, "lane": name, "s_m": float(s), "speed_mps": speed, "eagerness": eagerness}
            )
    beside: list[tuple[float, str]] = []  # arc length, lane
    for _ in range(60):
        name, lane = list(road.lanes.items())[int(rng.integers(len(road.lanes)))]
        s = float(rng.uniform(0, lane.line.length_m))
        parked = len(beside) < 9
        pieces = s + np.arange(-8, 9, 4.0)
        bent = float(np.abs(lane.line.curvature_at(pieces)).max()) > 1 / 40
        if any(n == name and min(lane.line.gap(s, o), lane.line.gap(o, s)) < 11 for o, n in beside) or bent:
            continue
        if len(beside) >= 15:
            break
        beside.append((s, name))
        xy, heading = lane.line.at(s)
        category = kind(0.1) if parked else "human.pedestrian.adult"
        width = SIZES_LWH_M[category][1]
        out = lane.width_m / 2 + (0.15 + width / 2 if parked else float(rng.uniform(2.2, 3.5)))  # right of the lane
        xy = xy + out * np.array([np.sin(heading), -np.cos(heading)])
        yaw = float(heading) if parked else float(rng.uniform(-np.pi, np.pi))
        made.append({"category": category, "lane": None, "pose": (float(xy[0]), float(xy[1]), yaw)})
    actors = []
    for i, fields in enumerate(made):
        scale = 1.0 if fields["category"].startswith("human") else rng.uniform(0.94, 1.04)
        size = tuple(float(round(v * scale, 3)) for v in SIZES_LWH_M[fields["category"]])
        paint = PAINTS[int(rng.integers(len(PAINTS)))]
        actors.append(Actor(id=f"actor-{i + 1:03d}", instance=i + 1, size_lwh_m=size, paint=paint, **fields))
    return tuple(actors)
