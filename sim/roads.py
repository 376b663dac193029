"""Roads: lanes with arc length, surfaces to draw, and where one may drive. A procedural closed course is the first.

`Road` is what the world asks of any map. A town answers the same questions from a traffic network.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np

from sim.geometry import ClosedLine

LANE_WIDTH_M = 3.5
SHOULDER_M = 1.2
SPEED_LIMIT_MPS = 50 / 3.6
COMFORTABLE_LATERAL_MPS2 = 2.0
COMFORTABLE_ACCEL_MPS2 = 1.5
MIN_RADIUS_M = 14.0  # of the road's centreline; the inner lane's is half a lane width less
SPACING_M = 1.0  # of the centreline's points
MARKING_M, DASH_M, DASH_PERIOD_M = 0.16, 3.0, 9.0
STRIP_M = 12.0  # length of one drawn piece of road
BORDER_M = 60.0  # a course lies in the world's positive quadrant, at least this far in: map rasters show no other


@dataclass(frozen=True)
class Lane:
    """One lane: centreline in the direction of travel, width, legal limit, and the ids of the lanes that follow it."""

    id: str
    line: ClosedLine
    width_m: float
    speed_limit_mps: float
    successors: tuple[str, ...]

    @cached_property
    def speed_profile_mps(self) -> np.ndarray:
        """Comfortable speed [P + 1] at the line's points: v^2 |k| <= a_lat, and |v'| v <= a between points.

        The legal limit, less in curves, and already less where a curve lies ahead within braking distance.
        """
        curvature = np.maximum(np.abs(self.line.curvature_1pm), 1e-9)
        square = np.minimum(self.speed_limit_mps**2, COMFORTABLE_LATERAL_MPS2 / curvature)
        ds = np.diff(self.line.s_m)
        for _ in range(2):  # the second lap carries what the first learnt across the seam
            for k in range(len(ds) - 1, -1, -1):
                square[k] = min(square[k], square[k + 1] + 2 * COMFORTABLE_ACCEL_MPS2 * ds[k])
            square[-1] = square[0]
        return np.sqrt(square)

    def comfortable_speed_mps(self, s_m: np.ndarray) -> np.ndarray:
        """Speed [...] at arc lengths [...], between the points of `speed_profile_mps`."""
        return np.interp(np.asarray(s_m) % self.line.length_m, self.line.s_m, self.speed_profile_mps)


@dataclass(frozen=True)
class Surface:
    """A polygon painted on the ground, later ones over earlier ones; kind is one of sim.scene.GROUND's."""

    kind: str
    outline_m: np.ndarray  # float64 [P, 2], simple polygon


class Road(Protocol):
    """What the world asks of a map; `ego_lane` is the id of the lane in which the ego starts."""

    lanes: dict[str, Lane]
    surfaces: tuple[Surface, ...]
    ego_lane: str

    def drivable(self, points: np.ndarray) -> np.ndarray:
        """Whether points [..., 2] lie on the carriageway or its shoulder, bool [...]."""

    def distance_m(self, points: np.ndarray) -> np.ndarray:
        """Distance [...] of points [..., 2] from the middle of the nearest road (to place things beside it)."""


@dataclass(frozen=True)
class Course:
    """A looping two-lane road: lane "right" along the centreline's direction, lane "left" against it.

    The road is 2 lanes and 2 shoulders wide; drivable is what lies within half of that of the centreline.
    """

    centre: ClosedLine
    lanes: dict[str, Lane]
    surfaces: tuple[Surface, ...]
    ego_lane: str = "right"

    @classmethod
    def generate(cls, seed: int) -> "Course":
        """The course of this seed: 400 to 800 m, curves both ways, no radius under MIN_RADIUS_M, no self-crossing.

        A polar Fourier curve r(t) = 1 + sum_k a_k cos(k t + p_k), scaled to its length; drawn again until it is good.
        """
        rng = np.random.default_rng([seed, 1])
        while True:
            length_m = rng.uniform(430.0, 760.0)
            line = _fourier_loop(rng, length_m)
            if line is not None:
                break
        right = ClosedLine(line.offset(-LANE_WIDTH_M / 2))
        left = ClosedLine(line.offset(LANE_WIDTH_M / 2)[::-1].copy())
        lanes = {
            name: Lane(name, lane, LANE_WIDTH_M, SPEED_LIMIT_MPS, (name,))
            for name, lane in (("right", right), ("left", left))
        }
        return cls(line, lanes, _surfaces(line))

    @property
    def half_width_m(self) -> float:
        return LANE_WIDTH_M + SHOULDER_M

    def drivable(self, points: np.ndarray) -> np.ndarray:
        return self.distance_m(points) <= self.half_width_m

    def distance_m(self, points: np.ndarray) -> np.ndarray:
        return np.abs(self.centre.project(points).lateral_m)


def _fourier_loop(rng: np.random.Generator, length_m: float) -> ClosedLine | None:
    """A candidate centreline of about this length, or None if it breaks a rule of `Course.generate`."""
    t = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    r = np.ones_like(t)
    for k in (2, 3, 4, 5):
        r += rng.normal(0, 0.42 / k) * np.cos(k * t + rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.5:
        t = -t  # the other way round
    if r.min() < 0.3:
        return None
    raw = np.stack([r * np.cos(t), r * np.sin(t)], axis=-1)
    dense = ClosedLine(raw * (length_m / ClosedLine(raw).length_m))
    count = round(length_m / SPACING_M)
    line = ClosedLine(dense.at(np.arange(count) * (dense.length_m / count))[0])
    k = line.curvature_1pm
    # Curves in both directions, and enough of them: a car that does not steer must not get far.
    if np.abs(k).max() > 1 / MIN_RADIUS_M or k.min() > -1 / 60 or k.max() < 1 / 60:
        return None
    if np.mean(np.abs(k) < 1 / 250) > 0.25:
        return None
    sparse, s = line.points[::2], line.s_m[:-1:2]
    apart = np.abs(s[:, None] - s)
    apart = np.minimum(apart, line.length_m - apart)
    distance = np.linalg.norm(sparse[:, None] - sparse, axis=-1)
    if distance[apart > 45.0].min() <= 22.0:
        return None
    return ClosedLine(line.points - line.points.min(axis=0) + BORDER_M)


def _surfaces(line: ClosedLine) -> tuple[Surface, ...]:
    """Verge, shoulders, asphalt, two solid edge lines, a dashed middle line; back to front."""
    half = LANE_WIDTH_M + SHOULDER_M
    edge = LANE_WIDTH_M - 0.15

    def whole(kind, left, right):
        pieces = max(1, round(line.length_m / STRIP_M))
        ends = np.linspace(0, line.length_m, pieces + 1)
        return [Surface(kind, _strip(line, a, b, left, right)) for a, b in pairwise(ends)]

    out = whole("shoulder", half, -half) + whole("asphalt", LANE_WIDTH_M, -LANE_WIDTH_M)
    for middle in (edge, -edge):
        out += whole("marking", middle + MARKING_M / 2, middle - MARKING_M / 2)
    count = round(line.length_m / DASH_PERIOD_M)
    for start in np.arange(count) * (line.length_m / count):
        out.append(Surface("marking", _strip(line, start, start + DASH_M, MARKING_M / 2, -MARKING_M / 2)))
    return tuple(out)


def _strip(line: ClosedLine, from_s: float, to_s: float, left_m: float, right_m: float) -> np.ndarray:
    """Outline [P, 2] of the band between two lateral offsets along a piece of the line."""
    xy, heading = line.at(np.linspace(from_s, to_s, max(2, round((to_s - from_s) / SPACING_M) + 1)))
    normal = np.stack([-np.sin(heading), np.cos(heading)], axis=-1)
    return np.concatenate([xy + left_m * normal, (xy + right_m * normal)[::-1]])
