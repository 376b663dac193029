"""A recorded scene as a world: its traffic, an ego of ours that starts as the recorded car did, and what goes wrong.

collision        as in a town; in lane is who is within IN_LANE_M of where the recorded car drove
off_road         a wheel is where one may not drive, nor did the recorded car
stop_line        the front bumper passes a stop line at red, where a simulated scene recorded its lights
red_light        so does the rear axle, the light still being red
route_left       more than VALID_M beside where the recorded car drove: what the others did and the cameras saw there
                 says nothing any more, so that the episode ends
route_completed  the goal is reached: where the recorded drive ends, in a simulated scene its own

Time is the recording's. After the last keyframe nothing is known of the others.
"""

import math
from collections.abc import Iterator

import numpy as np

from sensors.clip import Boxes, Future
from sensors.frames import interpolate_at, matrix_from_xy_yaw, wrap, xy_yaw
from sensors.recorded_drive import RecordedDrive
from sim.contacts import Contacts, wheels
from sim.geometry import OpenLine
from sim.log_surroundings import LogSurroundings
from sim.traffic_log import FAR_M, LogTraffic
from sim.vehicle import EgoState, VehicleParams
from sim.world import PAINTS, PERIOD_US, SUBSTEPS, Actor, EgoWorld, Event

VALID_M, IN_LANE_M = 10.0, 0.75
WHEEL_M = 0.1  # wheels stand this far inside the car's flanks
SLOWEST_MPS = 0.5  # below this a yaw rate tells no bend


def actors_of(drive: RecordedDrive) -> tuple[Actor, ...]:
    """Everybody who was recorded, in paints of ours: what colour they were, no annotation says."""
    recorded = enumerate(drive.actors())
    return tuple(Actor(a.id, k + 1, a.category, a.size_lwh_m, PAINTS[k % len(PAINTS)], None) for k, a in recorded)


class LogWorld(EgoWorld):
    """One episode at a time: `reset(drive)`, then `step(accel, curvature)`.

    drive, surroundings, traffic, actors, events (all since reset), until_us (the last instant that is known)
    progress_m, off_path_m    along the route, and beside where the recorded car drove, left positive
    """

    def __init__(self, traffic: str = "reactive", params: VehicleParams | None = None):
        self.params, self._mode = params or VehicleParams(), traffic

    def reset(self, drive: RecordedDrive, speed_mps: float | None = None) -> None:
        """The scene from its first keyframe; the speed is the recorded one unless told otherwise."""
        self.drive, self.seed = drive, 0
        self.surroundings = LogSurroundings.of(drive, self.params)
        self._route = OpenLine(self.surroundings.around.route_m)
        self.goal_m = self.surroundings.around.goal_m
        x, y, yaw = xy_yaw(drive.T_world_from_ego[0]).tolist()
        speed = min(max(drive.speed_mps if speed_mps is None else speed_mps, 0.0), self.params.max_speed_mps)
        bend = drive.yaw_rate_radps / speed if speed > SLOWEST_MPS else 0.0
        limit = self.params.max_curvature_1pm
        self._place_ego(EgoState(x, y, yaw, speed, min(max(bend, -limit), limit)), int(drive.time_us[0]))
        recorded = drive.actors()
        periods = int(drive.time_us[-1] - drive.time_us[0]) // PERIOD_US
        self.until_us = int(drive.time_us[0]) + periods * PERIOD_US
        self.actors = actors_of(drive)
        self.size_m = np.array([a.size_lwh_m for a in self.actors]).reshape(-1, 3)
        self._reach_m = np.hypot(self.size_m[:, 0], self.size_m[:, 1]) / 2
        self.traffic = LogTraffic(recorded, self.time_us, self.until_us, self._mode)
        self.traffic.reset(self.ego.footprint(self.params))
        self._contacts, self._going_on, self.events = Contacts(self.params), set(), ()
        lanes = self.surroundings.around.lanes
        starts: dict[int, np.ndarray] = {}
        for lane, signal in self.surroundings.lit:
            starts.setdefault(signal, lanes[lane].centreline_m[0])
        self._lines_m = {signal: float(self._route.project(xy).s_m) for signal, xy in starts.items()}
        self._ran: set[int] = set()
        self.progress_m = self._along_m = 0.0
        self._locate()

    def step(self, accel_mps2: float, curvature_1pm: float) -> tuple[Event, ...]:
        """One control period; returns the events that began in it (also kept in `events`)."""
        was = self.ego
        off_m = math.hypot(*(self.recorded_pose()[:2, 3] - (was.x_m, was.y_m)))
        self._drive_ego(accel_mps2, curvature_1pm)
        self.traffic.step(was.footprint(self.params), was.speed_mps, off_m)
        self._locate()
        begun = (*self._collisions(), *self._others())
        self.events += begun
        return begun

    @property
    def seconds(self) -> float:
        """From the start to the last instant that is known."""
        return (self.until_us - int(self.drive.time_us[0])) * 1e-6

    @property
    def command(self) -> str:
        return self.surroundings.cue_at(self._along_m)[0]

    @property
    def instruction(self) -> str:
        return self.surroundings.cue_at(self._along_m)[1]

    def recorded_pose(self) -> np.ndarray:
        """Where the recorded car is now [4, 4]."""
        drive = self.drive
        return interpolate_at(drive.time_us, drive.T_world_from_ego, min(self.time_us, int(drive.time_us[-1])))

    def red_lanes(self) -> list[int]:
        return self.surroundings.red_lanes(self.time_us)

    def future(self) -> Future:
        """Where the recorded car went from now on, and who is there now."""
        later = self.drive.after(self.time_us)
        return Future(later.time_us, later.T_world_from_ego, self.boxes_at(self.time_us))

    def poses_at(self, time_us: int) -> tuple[np.ndarray, np.ndarray]:
        """Poses [A, 3] (x, y, yaw of the footprint's centre; far away if absent) and speeds [A] in the last period."""
        into = int(time_us) - (self.time_us - PERIOD_US)
        if not 0 <= into <= PERIOD_US:
            raise ValueError(f"time {time_us} us is not within the last {PERIOD_US} us before {self.time_us}")
        before, now, share = self.traffic.before, self.traffic.now, into / PERIOD_US
        step = now.poses_m - before.poses_m
        step[:, 2] = wrap(step[:, 2])
        stays = (before.present & now.present)[:, None]
        poses = np.where(stays, before.poses_m + share * step, now.poses_m)
        return poses, before.speed_mps + share * (now.speed_mps - before.speed_mps)

    def boxes_at(self, time_us: int) -> Boxes:
        """Those who are there as annotated boxes; their origin is the box's centre, as in nuScenes."""
        poses, speed = self.poses_at(time_us)
        there = np.flatnonzero(self.traffic.now.present)
        poses, speed, size = poses[there], speed[there], self.size_m[there]
        T = matrix_from_xy_yaw(*poses.T)
        T[:, 2, 3] = size[:, 2] / 2
        velocity = speed[:, None] * np.stack([np.cos(poses[:, 2]), np.sin(poses[:, 2])], axis=-1)
        ids, categories = (tuple(getattr(self.actors[k], name) for k in there) for name in ("id", "category"))
        return Boxes(ids, categories, T, size, velocity)

    def _locate(self) -> None:
        ego, was_m = self.ego, self.progress_m
        self.progress_m = self._route.nearest(ego.x_m, ego.y_m, self.progress_m)[0]
        self._passed_m = was_m, self.progress_m
        self._along_m, self.off_path_m, _ = self.surroundings.record.nearest(ego.x_m, ego.y_m, self._along_m)

    def _others(self) -> list[Event]:
        ground = self.surroundings.ground
        states = {
            "off_road": not ground.at(wheels(self.ego, self.params, WHEEL_M)).all(),
            "route_left": abs(self.off_path_m) > VALID_M,
            "route_completed": 0 < self.goal_m <= self.progress_m,
        }
        kinds = [*self._at_lights()]
        kinds += [kind for kind, true in states.items() if true and kind not in self._going_on]
        self._going_on = {kind for kind, true in states.items() if true}
        return [Event(kind, self.time_us, "", self.ego.speed_mps) for kind in kinds]

    def _at_lights(self) -> Iterator[str]:
        """As the front bumper, and then the rear axle, pass the beginning of a way through a junction that is red."""
        lanes, (was_m, now_m) = self.red_lanes(), self._passed_m
        red = {signal for lane, signal in self.surroundings.lit if lane in lanes}
        for signal, at_m in self._lines_m.items():
            if was_m < at_m - self.params.front_m <= now_m and signal in red:
                self._ran.add(signal)
                yield "stop_line"
            if was_m < at_m <= now_m and signal in self._ran and signal in red:
                yield "red_light"

    def _collisions(self) -> list[Event]:
        now, before, ego = self.traffic.now, self.traffic.before, self.ego
        moved_m = ego.speed_mps * PERIOD_US * 1e-6 + self.params.length_m
        away_m = np.hypot(now.poses_m[:, 0] - ego.x_m, now.poses_m[:, 1] - ego.y_m)
        between = now.poses_m - before.poses_m
        reach_m = np.minimum(np.hypot(between[:, 0], between[:, 1]), FAR_M) * before.present + self._reach_m + moved_m
        near = np.flatnonzero(now.present & (away_m < reach_m))
        share = np.arange(1, SUBSTEPS + 1)[:, None, None] / SUBSTEPS
        step = between[near]
        step[:, 2] = wrap(step[:, 2])
        poses = now.poses_m[near] - (1 - share) * np.where(before.present[near, None], step, 0.0)
        size = np.broadcast_to(self.size_m[near, :2], (*poses.shape[:2], 2))
        how = tuple(self.actors[k] for k in near), np.concatenate([poses, size], axis=-1), now.speed_mps[near]
        return self._contacts.begun(self.track_time_us[1:], self.track[1:], *how, abs(self.off_path_m) < IN_LANE_M)
