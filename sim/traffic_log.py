"""Who was recorded, driving again: as they did, or answering to an ego that does not do as the recorded car did.

Between two annotations everybody moves straight; before the first and after the last there is nobody. Who answers stays
on its own recorded path and never runs ahead of its record. Standing, walking and everything else replays.

A moving vehicle answers as long as somebody who is not where the record has them is on its path ahead, and as long as
it is late itself, by the intelligent driver model (Treiber et al. 2000, eq. 3 and 4):

    a (1 - (v/v0)^4 - (g*/g)^2),   g* = g0 + v T + v dv / (2 sqrt(a b))

so that traffic around an ego that drives as recorded is the record, to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensors.errors import unknown_name
from sensors.frames import wrap, xy_yaw
from sensors.recorded_drive import RecordedActor
from sim.geometry import OpenLine, corners, overlap
from sim.world import PERIOD_US

MODES = ("reactive", "replay")
PERIOD_S = PERIOD_US * 1e-6
MAX_GAP_US = 1_500_000  # nobody is invented between annotations further apart
MOVES_M = 3.0  # whose path is shorter does not drive
LEAST_STEP_M = 0.05  # between the points of a path
OFF_RECORD_M = 1.0  # who is as near to where the record has them is met as recorded
HURRY = 1.1  # of its highest recorded speed: how fast drives who is late
LOOKS_M = 60.0  # ahead along the path
BESIDE_M = 0.3  # room between the flanks of who passes
ACCEL_MPS2, BRAKE_MPS2, HARDEST_MPS2, HEADWAY_S, STANDSTILL_M = 1.8, 2.5, 8.0, 1.3, 2.0
LEAST_WANTED_MPS = 5.0
ROOM_M = 0.3  # around the ego, in which nobody comes out of nothing
FAR_M = 1e6


@dataclass(frozen=True)
class Snapshot:
    """A actors at an instant: poses [A, 3] (x, y, yaw of the footprint), FAR_M away if absent; speeds [A]; present."""

    poses_m: np.ndarray
    speed_mps: np.ndarray
    present: np.ndarray


@dataclass
class _Driver:
    """Somebody who may answer: its number, its path, where the record has it along that at each instant of the grid
    [G] and until which; s_m along the path and speed now, and whether that is not the record's."""

    actor: int
    path: OpenLine
    record_m: np.ndarray
    last: int
    wanted_mps: float
    half_m: tuple[float, float]
    s_m: float = 0.0
    speed_mps: float = 0.0
    late: bool = False


class LogTraffic:
    """One scene's traffic on a grid of control periods: `reset`, then `step` as long as one likes.

    before, now  Snapshot at the start and the end of the last period
    left_out     ids of those who would have come out of nothing where the ego is
    """

    def __init__(self, actors: Sequence[RecordedActor], start_us: int, end_us: int, mode: str):
        if mode not in MODES:
            raise unknown_name("traffic of a log", "mode", mode, MODES)
        self.mode, self._sizes = mode, np.array([a.size_lwh_m for a in actors]).reshape(-1, 3)
        self._ids = [actor.id for actor in actors]
        grid_us = np.arange(start_us, end_us + 1, PERIOD_US, dtype=np.int64)
        self._poses = np.full((len(grid_us), len(actors), 3), FAR_M)
        self._present = present = np.zeros((len(grid_us), len(actors)), bool)
        for k, actor in enumerate(actors):
            present[:, k], self._poses[present[:, k], k] = poses_at_times(actor, grid_us)
        self._speed = _speeds(self._poses, present)
        self._drivers = [
            driver
            for k, actor in enumerate(actors)
            if mode == "reactive" and actor.category.startswith("vehicle.")
            for driver in _drivers(k, self._poses[:, k], present[:, k], self._sizes[k])
        ]

    def reset(self, ego_box: np.ndarray) -> None:
        """To the first instant, the ego's footprint [5] where it starts."""
        self._tick, self._out = 0, np.zeros(len(self._ids), bool)
        for driver in self._drivers:
            driver.late = False
        self.before = self.now = self._recorded(0)
        self._leave_out(self._present[0], ego_box)
        self.before = self.now

    @property
    def left_out(self) -> tuple[str, ...]:
        return tuple(self._ids[k] for k in np.flatnonzero(self._out))

    def step(self, ego_box: np.ndarray, ego_speed_mps: float, ego_off_m: float) -> None:
        """One period; the ego's footprint [5] and speed before it, and how far that is from where the record has it."""
        was, was_present = self.now, self.now.present
        self._tick += 1
        now = self._recorded(self._tick)
        if self._drivers and (ego_off_m > OFF_RECORD_M or any(driver.late for driver in self._drivers)):
            self._answer(now, was, ego_box, ego_speed_mps, ego_off_m > OFF_RECORD_M)
        self.before, self.now = was, now
        self._leave_out(now.present & ~was_present, ego_box)

    def _recorded(self, tick: int) -> Snapshot:
        if tick >= len(self._poses):  # nothing is known any more: everybody stays
            return Snapshot(self.now.poses_m.copy(), np.zeros(len(self._ids)), self.now.present.copy())
        present = self._present[tick] & ~self._out
        poses = np.where(present[:, None], self._poses[tick], FAR_M)
        return Snapshot(poses, np.where(present, self._speed[tick], 0.0), present)

    def _leave_out(self, appeared: np.ndarray, ego_box: np.ndarray) -> None:
        """Who has just appeared where the ego is, is not there."""
        new, now = np.flatnonzero(appeared), self.now
        roomy = ego_box + np.array([0, 0, 0, 2 * ROOM_M, 2 * ROOM_M])
        boxes = np.column_stack([now.poses_m[new], self._sizes[new, :2]])
        self._out[new[overlap(roomy, boxes)]] = True
        now.poses_m[self._out], now.speed_mps[self._out] = FAR_M, 0.0
        now.present[self._out] = False

    def _answer(self, now: Snapshot, was: Snapshot, ego_box: np.ndarray, ego_mps: float, ego_is_off: bool) -> None:
        """Those who have reason to, drive otherwise than recorded."""
        late = np.zeros(len(self._ids), bool)
        late[[d.actor for d in self._drivers if d.late]] = True
        boxes = np.column_stack([was.poses_m, self._sizes[:, :2]])
        boxes, speeds = np.concatenate([boxes, ego_box[None]]), np.append(was.speed_mps, ego_mps)
        others = np.append(was.present, True)
        for driver in self._drivers:
            a = driver.actor
            if not was.present[a] or self._out[a] or (not driver.late and self._tick > driver.last):
                continue
            if not driver.late:
                driver.s_m, driver.speed_mps = float(driver.record_m[self._tick - 1]), float(was.speed_mps[a])
            who = others.copy()
            who[a] = False
            if not driver.late:
                who[:-1] &= late
                who[-1] = ego_is_off
            self._drive(driver, now, boxes[who], speeds[who])

    def _drive(self, driver: _Driver, now: Snapshot, boxes: np.ndarray, speeds: np.ndarray) -> None:
        """One period of one driver who minds these others."""
        a, limit_m = driver.actor, float(driver.record_m[min(self._tick, driver.last)])
        gap_m, ahead_mps = _leader(driver, boxes, speeds)
        if not driver.late and not np.isfinite(gap_m):
            return
        v = driver.speed_mps
        spacing = STANDSTILL_M
        if np.isfinite(gap_m):
            closing = v * (v - ahead_mps) / (2 * np.sqrt(ACCEL_MPS2 * BRAKE_MPS2))
            spacing += max(v * HEADWAY_S + closing, 0.0)
        accel = ACCEL_MPS2 * (1 - (v / driver.wanted_mps) ** 4 - (spacing / max(gap_m, 0.1)) ** 2)
        speed = max(v + float(np.clip(accel, -HARDEST_MPS2, ACCEL_MPS2)) * PERIOD_S, 0.0)
        s_m = driver.s_m + 0.5 * (v + speed) * PERIOD_S
        if s_m >= limit_m and self._tick <= driver.last:  # as far as the record: it is on time
            driver.late = False
            return
        driver.late, driver.s_m, driver.speed_mps = True, min(s_m, limit_m), speed
        if driver.s_m >= driver.path.length_m - LEAST_STEP_M:  # where the record loses it
            driver.late = False
            now.poses_m[a], now.speed_mps[a], now.present[a] = FAR_M, 0.0, False
            return
        xy, heading = driver.path.at(driver.s_m)
        now.poses_m[a], now.speed_mps[a], now.present[a] = (*xy, heading), driver.speed_mps, True


def poses_at_times(actor: RecordedActor, time_us: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of M instants an actor is there at, bool [M], and its poses then [P, 3]."""
    known_us = actor.time_us
    k = np.clip(np.searchsorted(known_us, time_us, side="right") - 1, 0, max(len(known_us) - 2, 0))
    end = np.minimum(k + 1, len(known_us) - 1)
    known = (known_us[end] - known_us[k] <= MAX_GAP_US) | (known_us[k] == time_us) | (known_us[end] == time_us)
    there = (time_us >= known_us[0]) & (time_us <= known_us[-1]) & known
    k, end, at_us = k[there], end[there], time_us[there]
    poses = xy_yaw(actor.T_world_from_box)
    share = (at_us - known_us[k]) / np.maximum(known_us[end] - known_us[k], 1)
    step = poses[end] - poses[k]
    step[:, 2] = wrap(step[:, 2])
    return there, poses[k] + share[:, None] * step


def _speeds(poses: np.ndarray, present: np.ndarray) -> np.ndarray:
    """[G, A] by the step to the next instant, of the last one from the one before."""
    moved = np.hypot(*np.moveaxis(np.diff(poses[..., :2], axis=0), -1, 0)) / PERIOD_S
    moved = np.where(present[1:] & present[:-1], moved, 0.0)
    none = np.zeros((1, poses.shape[1]))
    ahead, back = np.concatenate([moved, none]), np.concatenate([none, moved])
    goes_on = np.concatenate([present[1:] & present[:-1], none.astype(bool)])
    return np.where(goes_on, ahead, back)


def _drivers(actor: int, poses: np.ndarray, present: np.ndarray, size_lwh_m: np.ndarray) -> list[_Driver]:
    """One who drives, or nobody, of an actor's poses on the grid [G, 3]."""
    at = np.flatnonzero(present)
    if len(at) < 2 or len(at) != at[-1] - at[0] + 1:
        return []
    xy = poses[at, :2]
    kept = [0]
    for k in range(1, len(xy)):
        if np.hypot(*(xy[k] - xy[kept[-1]])) >= LEAST_STEP_M:
            kept.append(k)
    if len(kept) < 3:
        return []
    path = OpenLine(xy[kept])
    if path.length_m < MOVES_M:
        return []
    along = np.maximum.accumulate(np.interp(at, at[kept], path.s_m))
    record = np.full(len(poses), along[-1])
    record[at], record[: at[0]] = along, 0.0
    wanted = max(HURRY * float(np.diff(along).max()) / PERIOD_S, LEAST_WANTED_MPS)
    half = float(size_lwh_m[0]) / 2, float(size_lwh_m[1]) / 2
    return [_Driver(actor, path, record, int(at[-1]), wanted, half)]


def _leader(driver: _Driver, boxes: np.ndarray, speeds: np.ndarray) -> tuple[float, float]:
    """Gap and speed along the path of the nearest of some boxes [B, 5] on it ahead; (inf, 0) if there is none."""
    here = driver.path.at(driver.s_m)[0]
    near = np.hypot(*(boxes[:, :2] - here).T) < LOOKS_M
    if not near.any():
        return np.inf, 0.0
    boxes, speeds = boxes[near], speeds[near]
    around = corners(boxes)
    points = np.concatenate([around, (around + np.roll(around, -1, axis=1)) / 2, boxes[:, None, :2]], axis=1)
    at = driver.path.project(points, driver.s_m + LOOKS_M / 2, LOOKS_M / 2 + 5.0)
    # Behind or beyond the path's ends a point projects on the end: it is in the way only if it is near that too.
    away = np.hypot(*np.moveaxis(points - driver.path.at(at.s_m)[0], -1, 0))
    in_way = (away < driver.half_m[1] + BESIDE_M) & (at.s_m > driver.s_m)
    if not in_way.any():
        return np.inf, 0.0
    first = np.where(in_way, at.s_m, np.inf).min(axis=1)
    k = int(np.argmin(first))
    j = int(np.argmin(np.where(in_way[k], at.s_m[k], np.inf)))
    along = float(speeds[k] * np.cos(boxes[k, 2] - at.heading_rad[k, j]))
    return float(first[k] - driver.s_m - driver.half_m[0]), max(along, 0.0)
