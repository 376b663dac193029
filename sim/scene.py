"""What there is to see, independent of who draws it: painted ground, solids, weather. Renderers read this.

A scene is a `Backdrop` (ground and props; one per episode), `Solids` that move or shine at one instant, and `Weather`.
The ground is the plane z = 0.

Semantic ids (uint8): see SEMANTIC. Instance ids (int32): 0 ground and sky, 1... the actors (`Actor.instance`),
PROP_INSTANCE... the props, the faces of one of which follow each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sim.roads import Road, Surface
from sim.solids import (
    BRAKE,
    HEAD,
    LEFT,
    RIGHT,
    TAIL,
    Faces,
    Solids,
    actor_mesh,
    building,
    placed,
    post,
    tree,
)
from sim.weather import SUN, Weather
from sim.world import Actor, World

# Kind of surface: its semantic class (by name) is its own name; colour by day. What no surface covers is terrain.
GROUND = {
    "terrain": (88, 118, 58),
    "asphalt": (82, 83, 86),
    "shoulder": (142, 130, 108),
    "marking": (238, 236, 226),
    "sidewalk": (158, 154, 148),
}
PROP_INSTANCE = 10_000
BRAKES_FROM_MPS2 = -0.6  # brake lights are on below this acceleration


@dataclass(frozen=True)
class Backdrop:
    """The part of a scene that stands still: surfaces in order of painting, props, and their seed."""

    surfaces: tuple[Surface, ...]
    props: Faces


@dataclass(frozen=True)
class Scene:
    """One instant: backdrop, solids, the ground [M, 4, 2] in the shadow of the first M of them, and the weather.

    time_us  of the instant; rain falls by it
    """

    backdrop: Backdrop
    moving: Solids
    shadows_m: np.ndarray
    weather: Weather = field(default_factory=Weather)
    time_us: int = 0


@dataclass(frozen=True)
class Otherwise:
    """What is drawn otherwise than it is; nothing by itself.

    without  instances of the actors that are left out, and their shadows with them
    lamps    instance -> the bits of sim.solids that shine on it, whatever shines on it now
    added    actors at their `pose` (x, y, yaw in the world)
    """

    without: frozenset[int] = frozenset()
    lamps: Mapping[int, int] = field(default_factory=dict)
    added: tuple[Actor, ...] = ()

    def of(self, scene: Scene) -> Scene:
        """The same instant drawn otherwise."""
        was, poses = scene.moving, np.array([actor.pose for actor in self.added]).reshape(-1, 3)
        kept = ~np.isin(was.instance, list(self.without))
        lamps = [self.lamps.get(k, bits) for k, bits in zip(was.instance.tolist(), was.lamps.tolist(), strict=True)]
        meshes = tuple(was.meshes[k] for k in np.flatnonzero(kept))
        left = Solids(meshes, was.poses[kept], was.instance[kept], np.array(lamps, np.uint8)[kept])
        dark = scene.shadows_m[kept[: len(scene.shadows_m)]]
        dark = np.concatenate([dark, shadows(self.added, poses)])
        shine = np.array([self.lamps.get(actor.instance, 0) for actor in self.added], np.uint8)
        return replace(scene, moving=Solids.join([left, actor_solids(self.added, poses, shine)]), shadows_m=dark)


AS_IS = Otherwise()


@dataclass(frozen=True)
class Moment:
    """What N cameras see: camera n scenes[n], the world at its exposure, from the ego pose T_world_from_ego[n]."""

    scenes: tuple[Scene, ...]
    T_world_from_ego: np.ndarray

    def drawn(self, otherwise: Otherwise) -> "Moment":
        """The moment with all of its scenes otherwise."""
        return replace(self, scenes=tuple(otherwise.of(scene) for scene in self.scenes))


def backdrop(road: Road, seed: int) -> Backdrop:
    """Ground and props of a road: trees, buildings and posts beside it, placed by the seed."""
    rng = np.random.default_rng([seed, 3])
    solids: list[Faces] = []

    def add(make, x, y, yaw, *arguments):
        solids.append(placed(make(*arguments), x, y, yaw, PROP_INSTANCE + len(solids)))

    for lane in road.lanes.values():
        for s in np.arange(0, lane.line.length_m, 18.0):
            xy, heading = lane.line.at(s)
            right = np.array([np.sin(heading), -np.cos(heading)])
            add(post, *(xy + right * (lane.width_m / 2 + 1.7)), heading)
        for s in np.arange(0, lane.line.length_m, 9.0) + rng.uniform(-4, 4):
            xy, heading = lane.line.at(s)
            out = float(rng.uniform(9, 30))
            x, y = xy + out * np.array([np.sin(heading), -np.cos(heading)])
            is_tree, draw = rng.random() < 0.75, rng.random(4)
            size = 1.2 + 1.6 * draw[0] if is_tree else 5 + 5 * draw[0]  # radius
            if float(road.distance_m(np.array([x, y]))) < size + (6.5 if is_tree else 10.0):
                continue
            if is_tree:
                add(tree, x, y, 2 * np.pi * draw[3], size, 4.5 + 4.5 * draw[1], float(draw[2]))
            else:
                add(building, x, y, float(heading), (2 * size, 8 + 6 * draw[1], 3.2 * (2 + int(3 * draw[2]))), draw[3])
    return Backdrop(road.surfaces, Faces.join(solids))


def scene_at(world: World, back: Backdrop, time_us: int, weather: Weather) -> Scene:
    """The world at an instant of its last period. The ego itself is not drawn."""
    poses, _ = world.poses_at(time_us)
    lamps = vehicle_lamps(world.actors_accel_mps2 < BRAKES_FROM_MPS2, weather=weather)
    moving = actor_solids(world.actors, poses, lamps)
    return Scene(back, moving, shadows(world.actors, poses), weather, time_us)


def actor_solids(actors: Sequence[Actor], poses: np.ndarray, lamps: np.ndarray | None = None) -> Solids:
    """Actors at poses [A, 3] (x, y, yaw), with the bits of `lamps` uint8 [A] (none if None) shining."""
    meshes = tuple(actor_mesh(a.category, a.size_lwh_m, a.paint) for a in actors)
    instance = np.array([a.instance for a in actors], np.int32)
    return Solids(meshes, poses, instance, np.zeros(len(meshes), np.uint8) if lamps is None else lamps)


def vehicle_lamps(
    braking: np.ndarray,
    left: np.ndarray | bool = False,
    right: np.ndarray | bool = False,
    weather: Weather | None = None,
) -> np.ndarray:
    """Bits uint8 [A] of the lamps that shine on vehicles, from bool [A] each (blinking is up to who asks)."""
    always = HEAD | TAIL if weather and weather.headlamps else 0
    bits = BRAKE * np.asarray(braking) | LEFT * np.asarray(left) | RIGHT * np.asarray(right) | always
    return bits.astype(np.uint8)


def shadows(actors: Sequence[Actor], poses: np.ndarray) -> np.ndarray:
    """Ground [K, 4, 2] in the shadow of actors at poses [K, 3]; of A actors, K may be a multiple: A by A."""
    size = np.array([a.size_lwh_m for a in actors]).reshape(-1, 3)
    size = np.tile(size, (len(poses) // max(len(size), 1), 1))
    unit = np.array([[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]])
    local = unit * (size[:, None, :2] + 0.25)
    c, s = np.cos(poses[:, 2, None]), np.sin(poses[:, 2, None])
    turned = np.stack([c * local[..., 0] - s * local[..., 1], s * local[..., 0] + c * local[..., 1]], axis=-1)
    # Towards the side away from the sun, more so for a taller one.
    return turned + poses[:, None, :2] - 0.12 * size[:, None, 2:] * SUN[:2]
