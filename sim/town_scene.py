"""What there is to see in a town: its ground, houses and trees beside the roads, signals, and who moves."""

import numpy as np

from sim.scene import PROP_INSTANCE, Backdrop, Scene, actor_solids, shadows, vehicle_lamps
from sim.solids import AMBER, GREEN, RED, Faces, Solids, building, placed, signal_mesh, tree
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
    solids: list[Faces] = []
    taken: list[tuple[float, float, float]] = []
    for names in town.network.edges.values():
        lane = town.network.lanes[names[0]]
        for s in np.arange(8.0, lane.length_m - 4.0, PROP_EVERY_M) + rng.uniform(-3, 3):
            (x, y), heading = lane.line.at(s)
            is_tree, draw = rng.random() < 0.45, rng.random(4)
            radius = 1.2 + 1.3 * draw[0] if is_tree else 5.0 + 4.0 * draw[0]
            aside = lane.width_m / 2 + 2.5 + radius + (0.8 if is_tree else 2.5) + 4.0 * draw[3]
            x, y = float(x + aside * np.sin(heading)), float(y - aside * np.cos(heading))
            reach = radius + (0.3 if is_tree else 2.0)
            if float(town.distance_m(np.array([x, y]))) < reach:
                continue
            if any((x - a) ** 2 + (y - b) ** 2 < (reach + c) ** 2 for a, b, c in taken):
                continue
            taken.append((x, y, reach))
            if is_tree:
                mesh, yaw = tree(radius, 4.5 + 4.0 * draw[1], float(draw[2])), 2 * np.pi * draw[3]
            else:
                size = (1.7 * radius, 1.5 * radius, 3.2 * (2 + int(4 * draw[1])))
                mesh, yaw = building(size, float(draw[2])), float(heading)
            solids.append(placed(mesh, x, y, yaw, PROP_INSTANCE + len(solids)))
    return Backdrop(town.surfaces, Faces.join(solids))


def town_scene_at(world: TownWorld, back: Backdrop, time_us: int, weather: Weather) -> Scene:
    """The town around the ego at an instant of the last period. The ego itself is not drawn."""
    poses, _ = world.poses_at(time_us)
    at = np.array([world.ego.x_m, world.ego.y_m])
    near = np.flatnonzero(np.hypot(*(poses[:, :2] - at).T) < SEEN_M)
    actors, poses = [world.actors[k] for k in near], poses[near]
    shown = world.traffic.signals()[near]
    blinks = time_us % BLINK_US < BLINK_US // 2
    lamps = vehicle_lamps(
        (shown & BRAKE_LIGHT) > 0,
        ((shown & BLINK_LEFT) > 0) & blinks,
        ((shown & BLINK_RIGHT) > 0) & blinks,
        weather,
    )
    moving = actor_solids(actors, poses, lamps)
    return Scene(back, _with_signals(world, moving, at), shadows(actors, poses), weather, time_us)


def _with_signals(world: TownWorld, moving: Solids, at: np.ndarray) -> Solids:
    signals = [(k, s) for k, s in enumerate(world.town_map.signals) if np.hypot(s.x_m - at[0], s.y_m - at[1]) < SEEN_M]
    if not signals:
        return moving
    head = signal_mesh(SIGNAL_HEIGHT_M)
    return Solids(
        (*moving.meshes, *(head for _ in signals)),
        np.concatenate([moving.poses, [(s.x_m, s.y_m, s.yaw_rad) for _, s in signals]]),
        np.concatenate([moving.instance, [SIGNAL_INSTANCE + k for k, _ in signals]]).astype(np.int32),
        np.concatenate([moving.lamps, [LAMPS.get(world.lights[s.light][s.index], 0) for _, s in signals]]).astype(
            np.uint8
        ),
    )
