"""What there is to see, independent of who draws it: painted ground, faces of solids, sky. Renderers read this.

A scene is a `Backdrop` (ground and props; one per episode) and `Faces` of what moves at one instant. Every solid is
made of flat convex quadrilaterals, counter-clockwise seen from outside; a triangle repeats a corner. Colours are final
(shaded); the ground is the plane z = 0.

Semantic ids (uint8): see SEMANTIC. Instance ids (int32): 0 ground and sky, 1... the actors (`Actor.instance`),
PROP_INSTANCE... the props.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from sim.roads import Road, Surface
from sim.world import Actor, World

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
}
# Kind of surface: semantic class (by its name) and colour. What no surface covers is terrain.
GROUND = {
    "terrain": (88, 118, 58),
    "asphalt": (82, 83, 86),
    "shoulder": (142, 130, 108),
    "marking": (238, 236, 226),
}
PROP_INSTANCE = 10_000
SUN = np.array([0.45, 0.32, 0.83]) / np.linalg.norm([0.45, 0.32, 0.83])  # direction to the sun, world
SKY_ZENITH, SKY_HORIZON = (92, 142, 206), (206, 218, 226)
HAZE_M = 260.0  # distance at which a colour is 63 % horizon


@dataclass(frozen=True)
class Faces:
    """F convex quads: corners_m float64 [F, 4, 3], colour uint8 [F, 3], semantic uint8 [F], instance int32 [F]."""

    corners_m: np.ndarray
    colour: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray

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
    def spheres(self) -> tuple[np.ndarray, np.ndarray]:
        """Centres [F, 3] and radii [F] of spheres around the faces."""
        centre = self.corners_m.mean(axis=1)
        return centre, np.sqrt(((self.corners_m - centre[:, None]) ** 2).sum(axis=-1).max(axis=1))

    def take(self, index: np.ndarray) -> "Faces":
        return Faces(self.corners_m[index], self.colour[index], self.semantic[index], self.instance[index])


@dataclass(frozen=True)
class Backdrop:
    """The part of a scene that stands still: surfaces in order of painting, props, and their seed."""

    surfaces: tuple[Surface, ...]
    props: Faces


@dataclass(frozen=True)
class Scene:
    """One instant: backdrop, faces of the actors, and the ground [M, 4, 2] under them that lies in their shadow."""

    backdrop: Backdrop
    moving: Faces
    shadows_m: np.ndarray


def backdrop(road: Road, seed: int) -> Backdrop:
    """Ground and props of a road: trees, buildings and posts beside it, placed by the seed."""
    rng = np.random.default_rng([seed, 3])
    solids: list[Faces] = []

    def add(make, x, y, yaw, *arguments):
        local = make(PROP_INSTANCE + len(solids), *arguments)
        solids.append(_placed(local, np.tile([x, y, yaw], (len(local), 1))))

    for lane in road.lanes.values():
        for s in np.arange(0, lane.line.length_m, 18.0):
            xy, heading = lane.line.at(s)
            right = np.array([np.sin(heading), -np.cos(heading)])
            add(_post, *(xy + right * (lane.width_m / 2 + 1.7)), heading)
        for s in np.arange(0, lane.line.length_m, 9.0) + rng.uniform(-4, 4):
            xy, heading = lane.line.at(s)
            out = float(rng.uniform(9, 30))
            x, y = xy + out * np.array([np.sin(heading), -np.cos(heading)])
            tree, draw = rng.random() < 0.75, rng.random(4)
            size = 1.2 + 1.6 * draw[0] if tree else 5 + 5 * draw[0]  # radius
            if float(road.distance_m(np.array([x, y]))) < size + (6.5 if tree else 10.0):
                continue
            if tree:
                add(_tree, x, y, 2 * np.pi * draw[3], size, 4.5 + 4.5 * draw[1], float(draw[2]))
            else:
                add(_building, x, y, float(heading), (2 * size, 8 + 6 * draw[1], 3.2 * (2 + int(3 * draw[2]))), draw[3])
    return Backdrop(road.surfaces, Faces.join(solids))


def scene_at(world: World, back: Backdrop, time_us: int) -> Scene:
    """The world at an instant of its last period. The ego itself is not drawn."""
    poses, _ = world.poses_at(time_us)
    return Scene(back, actor_faces(world.actors, poses), _shadows(world.actors, poses))


def actor_faces(actors: tuple[Actor, ...], poses: np.ndarray) -> Faces:
    """Faces of actors at poses [A, 3] (x, y, yaw)."""
    local, owner = _local_faces(actors)
    return _placed(local, poses[owner])


@lru_cache(maxsize=8)
def _local_faces(actors: tuple[Actor, ...]) -> tuple[Faces, np.ndarray]:
    """All actors' faces, each in its actor's frame, and which actor [F] each belongs to."""
    meshes = [_actor_mesh(a.category, a.size_lwh_m, a.paint, a.instance) for a in actors]
    return Faces.join(meshes), np.repeat(np.arange(len(actors)), [len(m) for m in meshes])


def _shadows(actors: Sequence[Actor], poses: np.ndarray) -> np.ndarray:
    size = np.array([a.size_lwh_m for a in actors]).reshape(-1, 3)
    unit = np.array([[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]])
    local = unit * (size[:, None, :2] + 0.25)
    c, s = np.cos(poses[:, 2, None]), np.sin(poses[:, 2, None])
    turned = np.stack([c * local[..., 0] - s * local[..., 1], s * local[..., 0] + c * local[..., 1]], axis=-1)
    # Towards the side away from the sun, more so for a taller one.
    return turned + poses[:, None, :2] - 0.12 * size[:, None, 2:] * SUN[:2]


def _placed(local: Faces, poses: np.ndarray) -> Faces:
    """Faces moved by one pose [F, 3] (x, y, yaw) each, coloured by the sun: ambient plus Lambert's law."""
    c, s = np.cos(poses[:, 2])[:, None], np.sin(poses[:, 2])[:, None]
    x, y, z = np.moveaxis(local.corners_m, -1, 0)
    corners = np.stack([c * x - s * y + poses[:, :1], s * x + c * y + poses[:, 1:2], z], axis=-1)
    n = local.normals
    upright = n[:, 2] * SUN[2]
    lambert = (
        (c[:, 0] * n[:, 0] - s[:, 0] * n[:, 1]) * SUN[0] + (s[:, 0] * n[:, 0] + c[:, 0] * n[:, 1]) * SUN[1] + upright
    )
    colour = np.clip(local.colour * (0.58 + 0.47 * np.maximum(lambert, 0.0))[:, None], 0, 255).astype(np.uint8)
    return Faces(corners, colour, local.semantic, local.instance)


def _mesh(instance: int, parts: Sequence[tuple[np.ndarray, tuple, str]]) -> Faces:
    """Faces of one solid from quads [F, 4, 3] with a colour and a semantic name each."""
    return Faces(
        np.concatenate([quads for quads, _, _ in parts]),
        np.concatenate([np.tile(np.array(colour, np.uint8), (len(q), 1)) for q, colour, _ in parts]),
        np.concatenate([np.full(len(q), SEMANTIC[name], np.uint8) for q, _, name in parts]),
        np.full(sum(len(q) for q, _, _ in parts), instance, np.int32),
    )


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross product [..., 3]; a third of np.cross's time on small arrays."""
    return a[..., _NEXT] * b[..., _LAST] - a[..., _LAST] * b[..., _NEXT]


_NEXT, _LAST = [1, 2, 0], [2, 0, 1]


def _frustum(x, y, z, top_x=None, top_y=None) -> np.ndarray:
    """Five quads (four sides, top) of a box over ranges x, y, z whose top may have other ranges. It has no bottom."""
    top_x, top_y = top_x or x, top_y or y
    lower = np.array([[x[1], y[1], z[0]], [x[0], y[1], z[0]], [x[0], y[0], z[0]], [x[1], y[0], z[0]]])
    upper = np.array([[top_x[1], top_y[1]], [top_x[0], top_y[1]], [top_x[0], top_y[0]], [top_x[1], top_y[0]]])
    upper = np.column_stack([upper, np.full(4, z[1])])
    sides = [[lower[k], upper[k], upper[(k + 1) % 4], lower[(k + 1) % 4]] for k in range(4)]
    return np.array([*[side[::-1] for side in sides], upper])  # sides in order: left, back, right, front


def _side_discs(x: float, half_width: float, radius: float) -> np.ndarray:
    """Hexagons on both flanks, as two quads each."""
    angle = np.arange(6) * np.pi / 3
    ring = np.stack([x + radius * np.cos(angle), np.zeros(6), radius + radius * np.sin(angle)], axis=-1)
    quads = []
    for side in (1, -1):
        hexagon = ring + np.array([0, side * half_width, 0])
        pair = [hexagon[[0, 1, 2, 3]], hexagon[[0, 3, 4, 5]]]
        quads += [q[::-1] if side > 0 else q for q in pair]
    return np.array(quads)


def _end_patches(x: float, ys: Sequence[tuple], z: tuple, forward: bool) -> np.ndarray:
    quads = [np.array([[x, a, z[0]], [x, b, z[0]], [x, b, z[1]], [x, a, z[1]]]) for a, b in ys]
    return np.array([q if forward else q[::-1] for q in quads])


def _actor_mesh(category: str, size_lwh_m: tuple, paint: tuple, instance: int) -> Faces:
    """Local mesh, origin at the footprint's centre, x forward. Its extent is exactly the box's."""
    length, width, height = size_lwh_m
    l, w, h = length / 2, width / 2, height
    if category.startswith("human"):
        skin, shirt, trousers = (206, 160, 130), paint, (50, 52, 70)
        return _mesh(
            instance,
            [
                (_frustum((-l * 0.7, l * 0.7), (-w * 0.75, w * 0.75), (0.0, 0.48 * h)), trousers, "pedestrian"),
                (_frustum((-l, l), (-w, w), (0.48 * h, 0.84 * h)), shirt, "pedestrian"),
                (_frustum((-l * 0.5, l * 0.5), (-w * 0.4, w * 0.4), (0.84 * h, h)), skin, "pedestrian"),
            ],
        )
    truck = category == "vehicle.truck"
    inner = w - 0.02  # wheels reach the full width, lights the full length
    glass, tyre = (38, 46, 58), (26, 26, 28)
    ends = (-l + 0.02, l - 0.02)
    lamps = [(w * 0.5, w * 0.92), (-w * 0.92, -w * 0.5)]
    if truck:
        bodies = [
            (_frustum((ends[0], 0.42 * l), (-inner, inner), (0.45, h)), (214, 214, 208), "vehicle"),
            (_frustum((0.48 * l, ends[1]), (-inner, inner), (0.4, 0.62 * h), (0.48 * l, 0.92 * l)), paint, "vehicle"),
            (
                _frustum((0.48 * l, 0.92 * l), (-inner, inner), (0.62 * h, 0.86 * h), (0.48 * l, 0.8 * l)),
                glass,
                "vehicle",
            ),
        ]
        lamp_z, radius, axles = (0.55, 0.8), 0.48, (-0.6 * l, 0.68 * l)
    else:
        bodies = [
            (_frustum(ends, (-inner, inner), (0.22, 0.58 * h)), paint, "vehicle"),
            (
                _frustum(
                    (-0.78 * l, 0.5 * l),
                    (-0.94 * w, 0.94 * w),
                    (0.58 * h, 0.95 * h),
                    (-0.6 * l, 0.16 * l),
                    (-0.76 * w, 0.76 * w),
                ),
                glass,
                "vehicle",
            ),
            (_frustum((-0.6 * l, 0.16 * l), (-0.78 * w, 0.78 * w), (0.95 * h, h)), paint, "vehicle"),
        ]
        lamp_z, radius, axles = (0.38 * h, 0.54 * h), 0.33, (-0.6 * l, 0.6 * l)
    return _mesh(
        instance,
        [
            *bodies,
            *((_side_discs(x, w, radius), tyre, "vehicle") for x in axles),
            (_end_patches(l, lamps, lamp_z, forward=True), (255, 250, 222), "vehicle"),
            (_end_patches(-l, lamps, lamp_z, forward=False), (214, 22, 18), "vehicle"),
            (_end_patches(-l, [(-0.25, 0.25)], (0.4, 0.52), forward=False), (235, 235, 225), "vehicle"),
        ],
    )


def _tree(instance: int, radius: float, height: float, tint: float) -> Faces:
    green = (52 + int(30 * tint), 92 + int(28 * tint), 40)
    base, r = 0.28 * height, radius
    waist = (base + height) / 2
    wide, thin = (-r, r), (-0.45 * r, 0.45 * r)
    under = _frustum(thin, thin, (base, waist), wide, wide)[:4]
    over = _frustum(wide, wide, (waist, height), thin, thin)
    return _mesh(
        instance,
        [
            (_frustum((-0.16, 0.16), (-0.16, 0.16), (0.0, base))[:4], (92, 68, 48), "vegetation"),
            (under, tuple(int(0.8 * v) for v in green), "vegetation"),
            (over, green, "vegetation"),
        ],
    )


def _building(instance: int, size_lwh_m: tuple, tint: float) -> Faces:
    length, width, height = size_lwh_m
    wall = [(188, 168, 146), (170, 92, 76), (196, 194, 188), (214, 198, 160)][int(4 * tint)]
    l, w = length / 2, width / 2
    parts = [(_frustum((-l, l), (-w, w), (0.0, height)), wall, "building")]
    for floor in range(round(height / 3.2)):
        z = (3.2 * floor + 1.0, 3.2 * floor + 2.4)
        band = _frustum((-l - 0.03, l + 0.03), (-w - 0.03, w + 0.03), z)[:4]
        for a, b in ((0.08, 0.28), (0.4, 0.6), (0.72, 0.92)):  # three windows to a side
            start, end = band[:, [0, 1]], band[:, [3, 2]]  # the upright edges of each side
            left, right = start + a * (end - start), start + b * (end - start)
            quads = np.stack([left[:, 0], left[:, 1], right[:, 1], right[:, 0]], axis=1)
            parts.append((quads, (58, 70, 88), "building"))
    return _mesh(instance, parts)


def _post(instance: int) -> Faces:
    thin = (-0.06, 0.06)
    return _mesh(
        instance,
        [
            (_frustum(thin, thin, (0.0, 0.95)), (236, 236, 232), "pole"),
            (_frustum((-0.065, 0.065), (-0.065, 0.065), (0.68, 0.86))[:4], (206, 40, 30), "pole"),
        ],
    )
