"""What there is to see in a town: its ground, houses and trees beside the roads, signals, and who moves."""

from collections.abc import Sequence

import numpy as np

from sim.scene import PROP_INSTANCE, Backdrop, Scene, actor_solids, shadows, vehicle_lamps
from sim.solids import AMBER, GREEN, RED, Faces, Solids, building, signal_mesh, tree
from sim.town_map import TownMap
from sim.town_world import TownWorld
from sim.traffic_sumo import BLINK_LEFT, BLINK_RIGHT, BRAKE_LIGHT
from sim.weather import Weather

SEEN_M = 120.0  # actors and signals further from the ego are not drawn
SIGNAL_INSTANCE = 5_000
SIGNAL_HEIGHT_M = 3.1
PROP_EVERY_M = 13.0
LAMPS = {"r": RED, "u": RED | AMBER, "y": AMBER, "Y": AMBER, "g": GREEN, "G": GREEN}
BLINK_US = 700_000


def town_backdrop(town: TownMap, seed: int) -> Backdrop:
    """Ground and props of a town: houses and trees beside its roads, placed by the seed."""
    rng = np.random.default_rng([seed, 3])
    meshes: list[Faces] = []
    poses: list[tuple[float, float, float]] = []
    taken, count = np.empty((64, 3)), 0  # circles: x, y, radius
    for names in town.network.edges.values():
        lane = town.network.lanes[names[0]]
        along = np.arange(8.0, lane.length_m - 4.0, PROP_EVERY_M) + rng.uniform(-3, 3)
        for (x, y), heading in zip(*lane.line.at(along), strict=True):
            is_tree, draw = rng.random() < 0.45, rng.random(4)
            # Sizes come in steps, so that the meshes of one episode serve the next.
            radius = 1.2 + 0.26 * int(6 * draw[0]) if is_tree else 5.0 + 0.5 * int(9 * draw[0])
            aside = lane.width_m / 2 + 2.5 + radius + (0.8 if is_tree else 2.5) + 4.0 * draw[3]
            x, y = float(x + aside * np.sin(heading)), float(y - aside * np.cos(heading))
            reach = radius + (0.3 if is_tree else 2.0)
            if float(town.distance_m(np.array([x, y]))) < reach:
                continue
            near = taken[:count]
            if ((near[:, 0] - x) ** 2 + (near[:, 1] - y) ** 2 < (near[:, 2] + reach) ** 2).any():
                continue
            if count == len(taken):
                taken = np.concatenate([taken, taken])
            taken[count], count = (x, y, reach), count + 1
            if is_tree:
                meshes.append(tree(radius, 4.5 + 0.5 * int(8 * draw[1]), int(4 * draw[2]) / 4))
            else:
                size = (1.7 * radius, 1.5 * radius, 3.2 * (2 + int(4 * draw[1])))
                meshes.append(building(size, int(4 * draw[2]) / 4))
            poses.append((x, y, 2 * np.pi * draw[3] if is_tree else float(heading)))
    if not meshes:
        return Backdrop(town.surfaces, Faces.join([]))
    instance, lamps = PROP_INSTANCE + np.arange(count, dtype=np.int32), np.zeros(count, np.uint8)
    return Backdrop(town.surfaces, Solids(tuple(meshes), np.array(poses), instance, lamps).faces)


def town_scene_at(world: TownWorld, back: Backdrop, time_us: int, weather: Weather) -> Scene:
    """The town around the ego at an instant of the last period. The ego itself is not drawn."""
    return town_scenes_at(world, back, [time_us], weather)[0]


def town_scenes_at(world: TownWorld, back: Backdrop, times_us: Sequence[int], weather: Weather) -> list[Scene]:
    """The same at several instants: who is near, and which lamps shine, is found once for all."""
    at = np.array([world.ego.x_m, world.ego.y_m])
    poses = np.stack([world.poses_at(int(time_us))[0] for time_us in times_us])
    near = np.flatnonzero(np.square(poses[-1, :, :2] - at).sum(axis=1) < SEEN_M**2)
    actors, poses = [world.actors[k] for k in near], poses[:, near]
    shown = world.traffic.signals()[near]
    lamps = [  # when blinkers are dark, when they shine
        vehicle_lamps(
            (shown & BRAKE_LIGHT) > 0, ((shown & BLINK_LEFT) > 0) & on, ((shown & BLINK_RIGHT) > 0) & on, weather
        )
        for on in (False, True)
    ]
    heads = _signals_near(world, at)
    moving = actor_solids(actors, poses[0], lamps[0])
    meshes, instance = moving.meshes + heads.meshes, np.concatenate([moving.instance, heads.instance])
    dark = shadows(actors, poses.reshape(-1, 3)).reshape(len(poses), len(near), 4, 2)
    scenes = []
    for time_us, pose, shadow in zip(times_us, poses, dark, strict=True):
        shine = np.concatenate([lamps[int(time_us) % BLINK_US < BLINK_US // 2], heads.lamps])
        solids = Solids(meshes, np.concatenate([pose, heads.poses]), instance, shine)
        scenes.append(Scene(back, solids, shadow, weather, int(time_us)))
    return scenes


def lamps_of_state(town: TownMap, light: str, state: str) -> dict[int, int]:
    """Instance -> lamps of the heads of a traffic light in this state (SUMO's letters), as `Otherwise` takes them."""
    heads = enumerate(town.signals)
    return {SIGNAL_INSTANCE + k: LAMPS.get(state[head.index], 0) for k, head in heads if head.light == light}


def _signals_near(world: TownWorld, at_m: np.ndarray) -> Solids:
    """The heads around a point, with the lamps that shine now."""
    signals = world.town_map.signals
    poses = world.town_map.signal_poses
    near = np.flatnonzero(np.square(poses[:, :2] - at_m).sum(axis=1) < SEEN_M**2)
    shown = [LAMPS.get(world.lights[signals[k].light][signals[k].index], 0) for k in near]
    meshes = (signal_mesh(SIGNAL_HEIGHT_M),) * len(near)
    return Solids(meshes, poses[near], (SIGNAL_INSTANCE + near).astype(np.int32), np.array(shown, np.uint8))
