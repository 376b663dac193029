"""What a simulated trajectory is judged against: actors and map polygons, and the plane geometry that judging needs.

Letters: P proposals, K states, A actors, T instants 0.1 s apart, N points or boxes, V vertices, S segments. All points
are (x, y) in one common plane frame, in metres; a polygon is [V, 2] without a repeated last vertex (one is harmless).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from sensors.errors import InputError
from sensors.frames import wrap
from sim.metrics.pdm import DT_S, HEADING, PACIFICA, Footprint

STATES = 41  # of a simulated trajectory: 4 s
FRONT_LEFT, REAR_LEFT, REAR_RIGHT, FRONT_RIGHT, CENTRE, REAR_AXLE = range(6)
AREAS = ("roadblock", "intersection", "drivable", "carpark")
_LANES = ("lane", "lane_connector")


@dataclass(frozen=True)
class Actors:
    """A objects at T instants 0.1 s apart, t = 0 first; 51 instants cover everything that is asked (5.0 s).

    ids       tuple of A strings
    xyh       float64 [A, T, 3]  centre of the box and heading; anything where absent
    present   bool    [A, T]
    size_lw_m float64 [A, 2]     length, width
    speed_mps float64 [A, T]
    is_agent  bool    [A]        vehicle, pedestrian or bicycle; others are things that do not move by themselves
    """

    ids: tuple[str, ...]
    xyh: np.ndarray
    present: np.ndarray
    size_lw_m: np.ndarray
    speed_mps: np.ndarray
    is_agent: np.ndarray

    @classmethod
    def empty(cls, instants: int = 51) -> "Actors":
        zeros = np.zeros((0, instants))
        return cls((), np.zeros((0, instants, 3)), zeros.astype(bool), np.zeros((0, 2)), zeros, np.zeros(0, dtype=bool))

    def validate(self, where: object = "actors") -> "Actors":
        """Self, or an InputError that names the first bad field."""
        count, instants = len(self.ids), self.present.shape[-1]
        shapes = {
            "xyh": (count, instants, 3),
            "present": (count, instants),
            "size_lw_m": (count, 2),
            "speed_mps": (count, instants),
            "is_agent": (count,),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value.shape != shape:
                raise InputError(where, name, value.shape, shape)
        if len(set(self.ids)) != count:
            raise InputError(where, "ids", "one id twice", "different ids")
        if not (np.isfinite(self.xyh[self.present]).all() and np.isfinite(self.speed_mps[self.present]).all()):
            raise InputError(where, "xyh or speed_mps", "NaN or infinity where present", "finite numbers")
        if not (self.size_lw_m > 0).all():
            raise InputError(where, "size_lw_m", self.size_lw_m.min(), "positive sizes")
        return self

    def take(self, index: np.ndarray) -> "Actors":
        """The actors at `index` (integers or bool [A])."""
        chosen = np.arange(len(self.ids))[index]
        arrays = (self.xyh, self.present, self.size_lw_m, self.speed_mps, self.is_agent)
        return Actors(tuple(self.ids[i] for i in chosen), *(a[chosen] for a in arrays))


def resample_actors(actors: Actors, time_s: np.ndarray, instants: int = 51) -> Actors:
    """Actors at 0, 0.1, 0.2, ... s from ones known at increasing times [T] that start at 0 or before.

    Between two frames an actor is present if both show it; pose (heading along the shorter turn) and speed are
    linear. There are fewer instants than asked for where the frames end before: what is not known is not made up.
    """
    if len(time_s) < 2 or (np.diff(time_s) <= 0).any() or time_s[0] > 0.0:
        raise ValueError("actors need two or more frames at increasing times that start at 0 or before")
    covered = int(np.floor(time_s[-1] / DT_S + 1e-6)) + 1
    at = np.arange(min(instants, covered)) * DT_S
    k = np.clip(np.searchsorted(time_s, at + 1e-9, side="right") - 1, 0, len(time_s) - 2)
    share = np.round((at - time_s[k]) / (time_s[k + 1] - time_s[k]), 6)
    step = actors.xyh[:, k + 1] - actors.xyh[:, k]
    step[..., 2] = wrap(step[..., 2])
    first, last = share == 0.0, share == 1.0
    xyh = np.where(first[:, None], actors.xyh[:, k], actors.xyh[:, k] + share[:, None] * step)
    xyh = np.where(last[:, None], actors.xyh[:, k + 1], xyh)
    speed = actors.speed_mps[:, k] + share * (actors.speed_mps[:, k + 1] - actors.speed_mps[:, k])
    speed = np.where(first, actors.speed_mps[:, k], np.where(last, actors.speed_mps[:, k + 1], speed))
    present = (actors.present[:, k] | last) & (actors.present[:, k + 1] | first)
    return Actors(actors.ids, xyh, present, actors.size_lw_m, speed, actors.is_agent)


@dataclass(frozen=True)
class MapLayers:
    """Polygons of each layer, and which lanes and connectors lie on the route (one bool each).

    lanes_known False: the map holds only where one may drive, so that nothing can be said of lanes or intersections.
    """

    roadblock: Sequence[np.ndarray] = ()
    intersection: Sequence[np.ndarray] = ()
    drivable: Sequence[np.ndarray] = ()
    carpark: Sequence[np.ndarray] = ()
    lane: Sequence[np.ndarray] = ()
    lane_connector: Sequence[np.ndarray] = ()
    lane_on_route: Sequence[bool] = ()
    lane_connector_on_route: Sequence[bool] = ()
    lanes_known: bool = True

    def validate(self, where: object = "map") -> "MapLayers":
        """Self, or an InputError that names the first bad field."""
        for name in _LANES:
            if len(getattr(self, f"{name}_on_route")) != len(getattr(self, name)):
                came = f"{len(getattr(self, f'{name}_on_route'))} flags"
                raise InputError(where, f"{name}_on_route", came, f"{len(getattr(self, name))}, one for each {name}")
        for name in (*AREAS, *_LANES):
            for i, polygon in enumerate(getattr(self, name)):
                if np.ndim(polygon) != 2 or np.shape(polygon)[1] != 2 or len(polygon) < 3:
                    raise InputError(where, f"{name}[{i}]", np.shape(polygon), "[V, 2] with V >= 3")
        return self

    @cached_property
    def outlines(self) -> list[tuple[str, bool, "Outline"]]:
        """(layer, on the route, prepared polygon) of all; computed once, many plans are scored on one map."""
        prepared = [(name, False, Outline(polygon)) for name in AREAS for polygon in getattr(self, name)]
        for name in _LANES:
            flags = getattr(self, f"{name}_on_route")
            prepared += [(name, bool(on), Outline(p)) for on, p in zip(flags, getattr(self, name), strict=True)]
        return prepared


@dataclass(frozen=True)
class PdmScene:
    """Surroundings of one plan; None means that the log does not hold it, and what needs it is not available.

    actors      Actors
    layers      MapLayers or None
    centreline  float64 [V, 2] or None   the route's centre line, V >= 2
    red_lights  T tuples of polygons, or None   red, on-route lane connectors at each instant
    """

    actors: Actors = field(default_factory=Actors.empty)
    layers: MapLayers | None = None
    centreline: np.ndarray | None = None
    red_lights: Sequence[Sequence[np.ndarray]] | None = None

    def validate(self, where: object = "scene") -> "PdmScene":
        """Self, or an InputError that names the first bad field."""
        self.actors.validate(where)
        if self.layers is not None:
            self.layers.validate(where)
        if self.centreline is not None and (np.ndim(self.centreline) != 2 or len(self.centreline) < 2):
            raise InputError(where, "centreline", np.shape(self.centreline), "[V, 2] with V >= 2")
        if self.red_lights is not None and len(self.red_lights) < STATES:
            raise InputError(where, "red_lights", f"{len(self.red_lights)} instants", f"at least {STATES}")
        return self


@dataclass(frozen=True)
class Areas:
    """Where the ego is, bool [P, K] each.

    non_drivable   some corner lies in no roadblock, intersection, drivable area or car park
    multi_lane     corners touch more than one lane or connector, and none holds all four
    oncoming       the centre lies in no lane or connector of the route
    centre_in_intersection, rear_axle_in_intersection
    """

    non_drivable: np.ndarray
    multi_lane: np.ndarray
    oncoming: np.ndarray
    centre_in_intersection: np.ndarray
    rear_axle_in_intersection: np.ndarray

    def take(self, index: Sequence[int] | slice) -> "Areas":
        """Those of some of the proposals."""
        return Areas(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def ego_points(states: np.ndarray, vehicle: Footprint = PACIFICA) -> np.ndarray:
    """Corners, centre and rear axle [..., 6, 2] of states [..., 7], in the order FRONT_LEFT ... REAR_AXLE."""
    front = vehicle.centre_ahead_m + vehicle.length_m / 2
    rear, half = vehicle.centre_ahead_m - vehicle.length_m / 2, vehicle.width_m / 2
    ahead = np.array([front, rear, rear, front, vehicle.centre_ahead_m, 0.0])
    left = np.array([half, half, -half, -half, 0.0, 0.0])
    cos, sin = np.cos(states[..., HEADING, None]), np.sin(states[..., HEADING, None])
    return np.stack(
        [states[..., 0, None] + ahead * cos - left * sin, states[..., 1, None] + ahead * sin + left * cos], axis=-1
    )


class Outline:
    """A polygon prepared for many containment tests: edges x0, y0, x1, y1 [V] and bounding box."""

    def __init__(self, polygon: np.ndarray):
        self.x0, self.y0 = (np.ascontiguousarray(c, dtype=np.float64) for c in np.asarray(polygon).T)
        self.x1, self.y1 = np.roll(self.x0, -1), np.roll(self.y0, -1)
        self.levels = np.sort(self.y0)
        self.y_low, self.y_high = np.minimum(self.y0, self.y1), np.maximum(self.y0, self.y1)
        self.low, self.high = (self.x0.min(), self.y0.min()), (self.x0.max(), self.y0.max())

    def holds(self, x: np.ndarray, y: np.ndarray, ordered: bool = False) -> np.ndarray:
        """Whether points [N] lie strictly inside; only edges that a point's horizontal line crosses are looked at.

        Those are min(y0, y1) <= y < max(y0, y1), a run of the points in order of y (`ordered`: they are already).
        """
        inside = np.zeros(len(x), dtype=bool)
        near = np.flatnonzero((x > self.low[0]) & (x < self.high[0]) & (y > self.low[1]) & (y < self.high[1]))
        if not len(near):
            return inside
        near = near if ordered else near[np.argsort(y[near])]
        x, y = x[near], y[near]
        start, end = np.searchsorted(y, self.y_low), np.searchsorted(y, self.y_high)
        runs = end - start
        e = np.repeat(np.arange(len(self.x0)), runs)
        n = np.arange(len(e)) - np.repeat(np.cumsum(runs) - runs - start, runs)
        x0, y0 = self.x0[e], self.y0[e]
        rising = self.y1[e] > y0
        side = (self.x1[e] - x0) * (y[n] - y0) - (self.y1[e] - y0) * (x[n] - x0)  # > 0: the point is left of the edge
        crossed = np.bincount(n[(side > 0) == rising], minlength=len(x)) % 2 == 1
        crossed[n[side == 0]] = False
        level = self.levels[np.minimum(np.searchsorted(self.levels, y), len(self.levels) - 1)] == y
        for i in np.flatnonzero(level & crossed):  # level with a vertex: it may lie on a peak or level edge
            crossed[i] = not self._on_level(x[i], y[i])
        inside[near] = crossed
        return inside

    def _on_level(self, x: float, y: float) -> bool:
        between = (np.minimum(self.x0, self.x1) <= x) & (x <= np.maximum(self.x0, self.x1))
        return bool(((self.y0 == y) & ((self.x0 == x) | ((self.y1 == y) & between))).any())


def points_in_polygon(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Whether points [..., 2] lie strictly inside a polygon [V, 2] (even-odd rule; a point on an edge is outside)."""
    return Outline(polygon).holds(points[..., 0].ravel(), points[..., 1].ravel()).reshape(points.shape[:-1])


def ego_areas(points: np.ndarray, layers: MapLayers) -> Areas:
    """Areas of ego points [P, K, 6, 2]; every polygon in reach is tested once against all of them."""
    order = np.argsort(points[..., 1], axis=None)
    x, y = (points[..., i].ravel()[order] for i in range(2))
    back = np.empty(len(order), dtype=np.int64)
    back[order] = np.arange(len(order))
    low, high = (x.min(), y.min()), (x.max(), y.max())
    drivable = np.zeros(points.shape[:-1], dtype=bool)
    intersection = np.zeros(points.shape[:-1], dtype=bool)
    touched = np.zeros(points.shape[:-2], dtype=np.int64)
    held = np.zeros(points.shape[:-2], dtype=bool)
    routed = np.zeros(points.shape[:-2], dtype=bool)
    for name, on_route, outline in layers.outlines:
        if outline.low[0] > high[0] or outline.low[1] > high[1] or outline.high[0] < low[0] or outline.high[1] < low[1]:
            continue
        inside = outline.holds(x, y, ordered=True)[back].reshape(points.shape[:-1])
        if name in AREAS:
            drivable |= inside
            if name == "intersection":
                intersection |= inside
        else:
            corners = inside[..., :CENTRE]
            touched += corners.any(axis=-1)
            held |= corners.all(axis=-1)
            if on_route:
                routed |= inside[..., CENTRE]
    return Areas(
        non_drivable=~drivable[..., :CENTRE].all(axis=-1),
        multi_lane=(touched > 1) & ~held,
        oncoming=~routed,
        centre_in_intersection=intersection[..., CENTRE],
        rear_axle_in_intersection=intersection[..., REAR_AXLE],
    )


def boxes_touch(centre_a, heading_a, half_a, centre_b, heading_b, half_b) -> np.ndarray:
    """Whether N pairs of oriented boxes share a point, bool [N]: separating axes.

    Touching counts, as in shapely's `intersects`; for `sim.geometry.overlap` it does not.
    centre [N, 2], heading [N], half [N, 2] (half length, half width; a zero half width makes a segment).
    """
    cos, sin = np.cos(heading_b - heading_a), np.sin(heading_b - heading_a)
    c, s = np.abs(cos), np.abs(sin)
    apart = np.zeros(len(centre_a), dtype=bool)
    delta = centre_b - centre_a
    for heading, own, other in ((heading_a, half_a, half_b), (heading_b, half_b, half_a)):
        ch, sh = np.cos(heading), np.sin(heading)
        along, across = delta[:, 0] * ch + delta[:, 1] * sh, delta[:, 1] * ch - delta[:, 0] * sh
        apart |= np.abs(along) > own[:, 0] + other[:, 0] * c + other[:, 1] * s
        apart |= np.abs(across) > own[:, 1] + other[:, 0] * s + other[:, 1] * c
    return ~apart


def project_on_line(points: np.ndarray, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Arc length and distance [...] of the point of a polyline [V, 2] that is nearest to points [..., 2]."""
    flat = points.reshape(-1, 2)
    step = np.diff(line, axis=0)
    length = np.hypot(step[:, 0], step[:, 1])
    passed = np.cumsum(length) - length
    near = _near_segments(flat, line)
    start, step, length, passed = line[:-1][near], step[near], length[near], passed[near]
    dx, dy = flat[:, 0, None] - start[:, 0], flat[:, 1, None] - start[:, 1]
    share = (dx * step[:, 0] + dy * step[:, 1]) / np.maximum(length**2, 1e-300)
    np.clip(share, 0.0, 1.0, out=share)
    dx -= share * step[:, 0]
    dy -= share * step[:, 1]
    squared = dx * dx + dy * dy
    nearest, row = squared.argmin(axis=1), np.arange(len(flat))
    along = passed[nearest] + share[row, nearest] * length[nearest]
    return along.reshape(points.shape[:-1]), np.sqrt(squared[row, nearest]).reshape(points.shape[:-1])


def _near_segments(points: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Indices of the segments that can hold the nearest point of any of points [N, 2]; an exact bound, not a guess."""
    if len(line) < 32 or not len(points):
        return np.arange(len(line) - 1)
    coarse = line[::8]
    squared = (points[:, 0, None] - coarse[:, 0]) ** 2 + (points[:, 1, None] - coarse[:, 1]) ** 2
    bound = np.sqrt(squared.min(axis=1).max()) + 1e-9
    low, high = points.min(axis=0) - bound, points.max(axis=0) + bound
    start, end = np.minimum(line[:-1], line[1:]), np.maximum(line[:-1], line[1:])
    return np.flatnonzero(((end >= low) & (start <= high)).all(axis=1))


def rectangles_touch_polygon(corners: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Whether rectangles [N, 4, 2] share a point with a polygon [V, 2], convex or not, bool [N]."""
    touch = np.zeros(len(corners), dtype=bool)
    low, high = corners.min(axis=1), corners.max(axis=1)
    near = np.flatnonzero(((high >= polygon.min(axis=0)) & (low <= polygon.max(axis=0))).all(axis=1))
    if not len(near):
        return touch
    # In the frame of each rectangle: an edge of the polygon touches it unless one of three axes keeps them apart.
    boxes = corners[near]
    centre, sides = boxes.mean(axis=1), (boxes[:, 0] - boxes[:, 1], boxes[:, 1] - boxes[:, 2])
    half = np.stack([np.hypot(*side.T) / 2 for side in sides])
    axis = [side / np.maximum(2 * h, 1e-300)[:, None] for side, h in zip(sides, half, strict=True)]
    x, y = ((polygon[:, 0] - centre[:, :1]) * a[:, :1] + (polygon[:, 1] - centre[:, 1:]) * a[:, 1:] for a in axis)
    x1, y1 = np.roll(x, -1, axis=1), np.roll(y, -1, axis=1)
    dx, dy, (hx, hy) = x1 - x, y1 - y, half[:, :, None]
    apart = (np.abs(x + x1) > 2 * hx + np.abs(dx)) | (np.abs(y + y1) > 2 * hy + np.abs(dy))
    apart |= np.abs(x * dy - y * dx) > hx * np.abs(dy) + hy * np.abs(dx)
    hit = ~apart.all(axis=1)
    rest = np.flatnonzero(~hit)  # no edge touches: inside as a whole, or not at all
    hit[rest] = points_in_polygon(centre[rest], polygon)
    touch[near] = hit
    return touch


def angle_to(states: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Unsigned angle [N], rad, between the heading at the rear axle of states [N, 7] and the way to targets [N, 2].

    NaN for a target on the rear axle itself, which therefore is neither ahead nor behind.
    """
    dx, dy = targets[:, 0] - states[:, 0], targets[:, 1] - states[:, 1]
    cos, sin = np.cos(states[:, HEADING]), np.sin(states[:, HEADING])
    angle = np.abs(np.arctan2(cos * dy - sin * dx, cos * dx + sin * dy))
    return np.where(np.hypot(dx, dy) > 0, angle, np.nan)


def polygon_distance(rectangles: np.ndarray, polygons: np.ndarray) -> np.ndarray:
    """Distance [N] between the outlines of rectangles [N, 4, 2] and polygons [N, V, 2]; for touching ones see above."""
    return np.minimum(_outline_distance(rectangles, polygons), _outline_distance(polygons, rectangles))


def _outline_distance(vertices: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Least distance [N] from vertices [N, U, 2] to the edges of outlines [N, V, 2]."""
    x0, y0 = outline[:, None, :, 0], outline[:, None, :, 1]
    ex, ey = np.roll(x0, -1, axis=2) - x0, np.roll(y0, -1, axis=2) - y0
    dx, dy = vertices[:, :, None, 0] - x0, vertices[:, :, None, 1] - y0  # [N, U, V]
    share = np.clip((dx * ex + dy * ey) / np.maximum(ex * ex + ey * ey, 1e-300), 0.0, 1.0)
    dx, dy = dx - share * ex, dy - share * ey
    return np.sqrt((dx * dx + dy * dy).min(axis=(1, 2)))
