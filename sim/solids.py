"""Solids: faces, the lamps on them, and the shapes of everything that stands or moves in a scene.

A solid is made of flat convex quadrilaterals, counter-clockwise seen from outside; a triangle repeats a corner. Colours
are those of the paint: light is the renderers' (sim/weather.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

SEMANTIC = {
    "sky": 0,
    "terrain": 1,
    "asphalt": 2,
    "shoulder": 3,
    "marking": 4,
    "vehicle": 5,
    "pedestrian": 6,
    "building": 7,
    "vegetation": 8,
    "pole": 9,
    "sidewalk": 10,
    "cyclist": 11,
    "traffic_light": 12,
    "sign": 13,
    "obstacle": 14,
}
BRAKE, LEFT, RIGHT, HEAD, TAIL, RED, AMBER, GREEN = (1 << k for k in range(8))
# What a lamp looks like while it shines, by its bit; of several bits on one face the first that shines counts.
LAMP_COLOUR = {
    BRAKE: (255, 42, 30),
    LEFT: (255, 158, 20),
    RIGHT: (255, 158, 20),
    HEAD: (255, 252, 236),
    TAIL: (176, 20, 16),
    RED: (255, 44, 36),
    AMBER: (255, 184, 24),
    GREEN: (40, 255, 130),
}


@dataclass(frozen=True, eq=False)
class Faces:
    """F convex quads: corners_m float64 [F, 4, 3], colour uint8 [F, 3], semantic uint8 [F], instance int32 [F].

    lamp uint8 [F]: 0 for paint. In a solid's own mesh, the bits (BRAKE...) any of which makes the face shine; in faces
    that are placed in the world, not 0 where the face shines, and colour is then the light's.
    """

    corners_m: np.ndarray
    colour: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray
    lamp: np.ndarray | None = None

    def __post_init__(self):
        if self.lamp is None:
            object.__setattr__(self, "lamp", np.zeros(len(self.semantic), np.uint8))

    def __len__(self) -> int:
        return len(self.semantic)

    @classmethod
    def join(cls, parts: Sequence["Faces"]) -> "Faces":
        if not parts:
            return cls(np.zeros((0, 4, 3)), np.zeros((0, 3), np.uint8), np.zeros(0, np.uint8), np.zeros(0, np.int32))
        return cls(*(np.concatenate([getattr(p, n) for p in parts]) for n in cls.__dataclass_fields__))

    @cached_property
    def normals(self) -> np.ndarray:
        """Outward unit normals [F, 3], from the diagonals (right for triangles too)."""
        c = self.corners_m
        n = cross(c[:, 2] - c[:, 0], c[:, 3] - c[:, 1])
        return n / np.linalg.norm(n, axis=1, keepdims=True)

    @cached_property
    def bound(self) -> tuple[np.ndarray, float]:
        """Centre [3] and radius of a sphere around all of it."""
        low, high = self.corners_m.min(axis=(0, 1)), self.corners_m.max(axis=(0, 1))
        return (low + high) / 2, float(np.linalg.norm(high - low) / 2)


@dataclass(frozen=True, eq=False)
class Solids:
    """A solids that move or shine: meshes in their own frames, and where they are at one instant.

    meshes    A Faces, the same object whenever it is the same shape and paint: renderers keep what they made of it
    poses     float64 [A, 3]  x, y, yaw
    instance  int32 [A]
    lamps     uint8 [A]       the bits of lamps that shine
    """

    meshes: tuple[Faces, ...]
    poses: np.ndarray
    instance: np.ndarray
    lamps: np.ndarray

    @classmethod
    def join(cls, parts: Sequence["Solids"]) -> "Solids":
        if not parts:
            return cls((), np.zeros((0, 3)), np.zeros(0, np.int32), np.zeros(0, np.uint8))
        arrays = (np.concatenate([getattr(p, n) for p in parts]) for n in ("poses", "instance", "lamps"))
        return cls(sum((p.meshes for p in parts), ()), *arrays)

    @cached_property
    def faces(self) -> Faces:
        """All faces in the world."""
        owner = np.repeat(np.arange(len(self.meshes)), [len(m) for m in self.meshes])
        local = Faces.join(self.meshes)
        shining = local.lamp & self.lamps[owner]
        colour = np.where((shining != 0)[:, None], COLOUR_OF_BITS[shining], local.colour)
        corners = _moved(local.corners_m, self.poses[owner][:, None])
        return Faces(corners, colour, local.semantic, self.instance[owner], shining)


def placed(mesh: Faces, x_m: float, y_m: float, yaw_rad: float, instance: int, lamps: int = 0) -> Faces:
    """One solid's faces in the world."""
    one = np.array([[x_m, y_m, yaw_rad]]), np.array([instance], np.int32), np.array([lamps], np.uint8)
    return Solids((mesh,), *one).faces


def _moved(points_m: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Points [..., 3] by poses [..., 3] (x, y, yaw)."""
    c, s = np.cos(poses[..., 2]), np.sin(poses[..., 2])
    x, y, z = np.moveaxis(points_m, -1, 0)
    return np.stack([c * x - s * y + poses[..., 0], s * x + c * y + poses[..., 1], z + 0 * c], axis=-1)


def _colour_of_bits() -> np.ndarray:
    """Light uint8 [256, 3] of a face by the bits that shine on it."""
    table = np.zeros((256, 3), np.uint8)
    for bits in range(1, 256):
        table[bits] = LAMP_COLOUR[bits & -bits]
    return table


COLOUR_OF_BITS = _colour_of_bits()


def mesh(parts: Sequence[tuple]) -> Faces:
    """A solid in its own frame from (quads [F, 4, 3], colour, semantic name) or (..., lamp bits); its instance is 0."""
    parts = [(*part, 0)[:4] for part in parts]
    return Faces(
        np.concatenate([quads for quads, *_ in parts]),
        np.concatenate([np.tile(np.array(colour, np.uint8), (len(q), 1)) for q, colour, *_ in parts]),
        np.concatenate([np.full(len(q), SEMANTIC[name], np.uint8) for q, _, name, _ in parts]),
        np.zeros(sum(len(q) for q, *_ in parts), np.int32),
        np.concatenate([np.full(len(q), lamp, np.uint8) for q, *_, lamp in parts]),
    )


GLASS, TYRE = (38, 46, 58), (26, 26, 28)


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross product [..., 3]; a third of np.cross's time on small arrays."""
    return a[..., _NEXT] * b[..., _LAST] - a[..., _LAST] * b[..., _NEXT]


_NEXT, _LAST = [1, 2, 0], [2, 0, 1]


def frustum(x, y, z, top_x=None, top_y=None) -> np.ndarray:
    """Five quads (four sides, top) of a box over ranges x, y, z whose top may have other ranges. It has no bottom."""
    top_x, top_y = top_x or x, top_y or y
    lower = np.array([[x[1], y[1], z[0]], [x[0], y[1], z[0]], [x[0], y[0], z[0]], [x[1], y[0], z[0]]])
    upper = np.array([[top_x[1], top_y[1]], [top_x[0], top_y[1]], [top_x[0], top_y[0]], [top_x[1], top_y[0]]])
    upper = np.column_stack([upper, np.full(4, z[1])])
    sides = [[lower[k], upper[k], upper[(k + 1) % 4], lower[(k + 1) % 4]] for k in range(4)]
    return np.array([*[side[::-1] for side in sides], upper])  # sides in order: left, back, right, front


def side_discs(x: float, half_width: float, radius: float) -> np.ndarray:
    """Hexagons on both flanks, as two quads each."""
    angle = np.arange(6) * np.pi / 3
    ring = np.stack([x + radius * np.cos(angle), np.zeros(6), radius + radius * np.sin(angle)], axis=-1)
    quads = []
    for side in (1, -1):
        hexagon = ring + np.array([0, side * half_width, 0])
        pair = [hexagon[[0, 1, 2, 3]], hexagon[[0, 3, 4, 5]]]
        quads += [q[::-1] if side > 0 else q for q in pair]
    return np.array(quads)


def end_patches(x: float, ys: Sequence[tuple], z: tuple, forward: bool) -> np.ndarray:
    quads = [np.array([[x, a, z[0]], [x, b, z[0]], [x, b, z[1]], [x, a, z[1]]]) for a, b in ys]
    return np.array([q if forward else q[::-1] for q in quads])


@lru_cache(maxsize=256)
def actor_mesh(category: str, size_lwh_m: tuple[float, float, float], paint: tuple[int, int, int]) -> Faces:
    """Mesh of a road user (a nuScenes category) of exactly this size; origin at its footprint's centre, x forward."""
    length, width, height = size_lwh_m
    l, w, h = length / 2, width / 2, height
    if category.startswith("human"):
        return mesh(_person(l, w, 0.0, h, paint, "pedestrian"))
    if category in ("vehicle.bicycle", "vehicle.motorcycle"):
        return mesh(_two_wheeler(l, w, h, paint))
    if category.startswith(("movable_object", "static_object", "animal")):
        return mesh([(frustum((-l, l), (-w, w), (0.0, h), (-0.3 * l, 0.3 * l), None), paint, "obstacle")])
    if category.startswith("vehicle.bus"):
        return mesh(_bus(l, w, h, paint))
    if category in ("vehicle.truck", "vehicle.trailer", "vehicle.construction"):
        return mesh(_truck(l, w, h, paint))
    return mesh(_car(l, w, h, paint))


def _car(l: float, w: float, h: float, paint: tuple) -> list[tuple]:
    inner = w - 0.02  # wheels reach the full width, lights the full length
    low, high, deck = (-0.78 * l, 0.5 * l), (-0.6 * l, 0.16 * l), (-0.76 * w, 0.76 * w)
    rear = end_patches(-0.6 * l - 0.005, [(-0.3 * w, 0.3 * w)], (0.955 * h, 0.995 * h), forward=False)
    return [
        (frustum((-l + 0.02, l - 0.02), (-inner, inner), (0.22, 0.58 * h)), paint, "vehicle"),
        (frustum(low, (-0.94 * w, 0.94 * w), (0.58 * h, 0.95 * h), high, deck), GLASS, "vehicle"),
        (frustum(high, (-0.78 * w, 0.78 * w), (0.95 * h, h)), paint, "vehicle"),
        *((side_discs(x, w, 0.33), TYRE, "vehicle") for x in (-0.6 * l, 0.6 * l)),
        *_lamps(l, w, (0.37 * h, 0.55 * h)),
        (rear, (120, 16, 14), "vehicle", BRAKE),
    ]


def _truck(l: float, w: float, h: float, paint: tuple) -> list[tuple]:
    inner, nose, deck = w - 0.02, (0.48 * l, l - 0.02), (0.48 * l, 0.92 * l)
    return [
        (frustum((-l + 0.02, 0.42 * l), (-inner, inner), (0.45, h)), (214, 214, 208), "vehicle"),
        (frustum(nose, (-inner, inner), (0.4, 0.62 * h), deck), paint, "vehicle"),
        (frustum(deck, (-inner, inner), (0.62 * h, 0.86 * h), (0.48 * l, 0.8 * l)), GLASS, "vehicle"),
        *((side_discs(x, w, 0.48), TYRE, "vehicle") for x in (-0.6 * l, 0.68 * l)),
        *_lamps(l, w, (0.55, 0.85)),
    ]


def _bus(l: float, w: float, h: float, paint: tuple) -> list[tuple]:
    inner = w - 0.02
    ends = frustum((-l + 0.01, l - 0.01), (-inner * 0.94, inner * 0.94), (0.48 * h, 0.84 * h))[[1, 3]]
    band = frustum((-0.94 * l, 0.96 * l), (-w + 0.005, w - 0.005), (0.5 * h, 0.8 * h))[[0, 2]]
    start, end = band[:, [0, 1]], band[:, [3, 2]]
    panes = [_pane(start, end, a, a + 0.13) for a in np.arange(0.01, 0.99, 0.14)]
    return [
        (frustum((-l + 0.02, l - 0.02), (-inner, inner), (0.32, h)), paint, "vehicle"),
        (np.concatenate([ends, *panes]), GLASS, "vehicle"),
        *((side_discs(x, w, 0.5), TYRE, "vehicle") for x in (-0.55 * l, 0.6 * l)),
        *_lamps(l, w, (0.5, 0.85)),
    ]


def _pane(start: np.ndarray, end: np.ndarray, a: float, b: float) -> np.ndarray:
    """Quads [S, 4, 3] from share a to share b of sides with upright edges start, end [S, 2, 3]."""
    left, right = start + a * (end - start), start + b * (end - start)
    return np.stack([left[:, 0], left[:, 1], right[:, 1], right[:, 0]], axis=1)


def _lamps(l: float, w: float, z: tuple) -> list[tuple]:
    """Head, rear and turn lamps at both ends of a vehicle, and its plate."""
    inner = [(0.46 * w, 0.76 * w), (-0.76 * w, -0.46 * w)]
    left, right, plate = [(0.78 * w, 0.92 * w)], [(-0.92 * w, -0.78 * w)], [(-0.25, 0.25)]
    both = ((l, True), (-l, False))
    return [
        (end_patches(l, inner, z, forward=True), (232, 228, 208), "vehicle", HEAD),
        (end_patches(-l, inner, z, forward=False), (132, 18, 16), "vehicle", BRAKE | TAIL),
        *((end_patches(x, left, z, forward), (150, 92, 24), "vehicle", LEFT) for x, forward in both),
        *((end_patches(x, right, z, forward), (150, 92, 24), "vehicle", RIGHT) for x, forward in both),
        (end_patches(-l, plate, (z[0] - 0.17, z[0] - 0.04), forward=False), (235, 235, 225), "vehicle"),
    ]


def _person(l: float, w: float, low: float, h: float, shirt: tuple, name: str) -> list[tuple]:
    """Legs, trunk and head between heights `low` and h."""
    hip, neck = low + 0.48 * (h - low), low + 0.84 * (h - low)
    return [
        (frustum((-l * 0.7, l * 0.7), (-w * 0.75, w * 0.75), (low, hip)), (50, 52, 70), name),
        (frustum((-l, l), (-w, w), (hip, neck)), shirt, name),
        (frustum((-l * 0.5, l * 0.5), (-w * 0.4, w * 0.4), (neck, h)), (206, 160, 130), name),
    ]


def _two_wheeler(l: float, w: float, h: float, paint: tuple) -> list[tuple]:
    radius = 0.36 * l
    return [
        *((side_discs(x, 0.04, radius), TYRE, "cyclist") for x in (-l + radius, l - radius)),
        (frustum((-0.55 * l, 0.5 * l), (-0.05, 0.05), (radius, 0.5 * h)), paint, "cyclist"),
        (frustum((0.42 * l, 0.5 * l), (-w, w), (0.52 * h, 0.56 * h)), TYRE, "cyclist"),
        *_person(0.25 * l, 0.8 * w, 0.32 * h, h, paint, "cyclist"),
        (end_patches(-l, [(-0.06, 0.06)], (0.4 * h, 0.48 * h), forward=False), (132, 18, 16), "cyclist", TAIL),
    ]


@lru_cache(maxsize=64)
def signal_mesh(height_m: float, arm_m: float = 0.0) -> Faces:
    """A traffic light seen by those who drive along +x: a pole at the origin, an arm to the left (y) that carries the
    head, whose lamps are RED over AMBER over GREEN. The head is larger than life, so that few pixels tell its colour.
    """
    steel, dark, low = (92, 96, 98), (24, 26, 26), height_m - 1.5
    parts = [(frustum((-0.08, 0.08), (-0.08, 0.08), (0.0, height_m - 0.2))[:4], steel, "pole")]
    if arm_m:
        parts.append((frustum((-0.06, 0.06), (0.0, arm_m), (height_m - 0.5, height_m - 0.36)), steel, "pole"))
    box = frustum((-0.16, 0.16), (arm_m - 0.3, arm_m + 0.3), (low, height_m))
    parts.append((np.concatenate([box, box[4:, ::-1] - [0, 0, height_m - low]]), dark, "traffic_light"))
    for k, (bit, off) in enumerate(((GREEN, (16, 52, 34)), (AMBER, (58, 44, 14)), (RED, (60, 16, 14)))):
        angle = np.arange(6) * np.pi / 3
        y, z = arm_m + 0.22 * np.cos(angle), low + 0.27 + 0.48 * k + 0.22 * np.sin(angle)
        ring = np.stack([np.full(6, -0.17), y, z], axis=-1)[::-1]
        parts.append((np.array([ring[[0, 1, 2, 3]], ring[[0, 3, 4, 5]]]), off, "traffic_light", bit))
    return mesh(parts)


@lru_cache(maxsize=1024)
def tree(radius: float, height: float, tint: float) -> Faces:
    green = (52 + int(30 * tint), 92 + int(28 * tint), 40)
    base, r = 0.28 * height, radius
    waist = (base + height) / 2
    wide, thin = (-r, r), (-0.45 * r, 0.45 * r)
    under = frustum(thin, thin, (base, waist), wide, wide)[:4]
    over = frustum(wide, wide, (waist, height), thin, thin)
    return mesh(
        [
            (frustum((-0.16, 0.16), (-0.16, 0.16), (0.0, base))[:4], (92, 68, 48), "vegetation"),
            (under, tuple(int(0.8 * v) for v in green), "vegetation"),
            (over, green, "vegetation"),
        ],
    )


@lru_cache(maxsize=1024)
def building(size_lwh_m: tuple, tint: float) -> Faces:
    length, width, height = size_lwh_m
    wall = [(188, 168, 146), (170, 92, 76), (196, 194, 188), (214, 198, 160)][int(4 * tint)]
    l, w = length / 2, width / 2
    parts = [(frustum((-l, l), (-w, w), (0.0, height)), wall, "building")]
    for floor in range(round(height / 3.2)):
        z = (3.2 * floor + 1.0, 3.2 * floor + 2.4)
        band = frustum((-l - 0.03, l + 0.03), (-w - 0.03, w + 0.03), z)[:4]
        for a, b in ((0.08, 0.28), (0.4, 0.6), (0.72, 0.92)):  # three windows to a side
            start, end = band[:, [0, 1]], band[:, [3, 2]]  # the upright edges of each side
            parts.append((_pane(start, end, a, b), (58, 70, 88), "building"))
    return mesh(parts)


def post() -> Faces:
    thin = (-0.06, 0.06)
    return mesh(
        [
            (frustum(thin, thin, (0.0, 0.95)), (236, 236, 232), "pole"),
            (frustum((-0.065, 0.065), (-0.065, 0.065), (0.68, 0.86))[:4], (206, 40, 30), "pole"),
        ],
    )
