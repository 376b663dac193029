"""What there is to see in a recorded scene where it is drawn: where one may drive, its kerb, and who is there."""

from collections.abc import Sequence

import cv2
import numpy as np

from sensors.nuscenes_map import PX_PER_M
from sim.geometry import area
from sim.log_surroundings import LogSurroundings, outlines_of_raster
from sim.log_world import LogWorld
from sim.roads import Surface
from sim.scene import BRAKES_FROM_MPS2, Backdrop, Scene, actor_solids, shadows, vehicle_lamps
from sim.solids import Faces
from sim.weather import Weather
from sim.world import PERIOD_US

SEEN_M = 120.0  # actors further from the ego are not drawn
KERB_M = 2.5  # of pavement around what is drivable, where the map knows of none


def log_backdrop(surroundings: LogSurroundings) -> Backdrop:
    """The ground of a scene; nothing is known of houses and trees."""
    ground, layer = surroundings.ground, surroundings.around.areas
    walked = [Surface("sidewalk", outline) for name, outline in layer if name == "walkway"]
    wide = (2 * round(KERB_M * PX_PER_M) + 1,) * 2
    kerb = cv2.dilate(ground.mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, wide))
    pieces = _pieces(ground.outlines, "asphalt", "sidewalk")
    pieces += [] if walked else _pieces(outlines_of_raster(kerb, ground.low_m), "sidewalk", "terrain")
    # An island lies in a hole that lies in a road: what is larger is painted first.
    pieces.sort(key=lambda piece: -abs(area(piece.outline_m)))
    return Backdrop((*walked, *pieces), Faces.join([]))


def log_scenes_at(world: LogWorld, back: Backdrop, times_us: Sequence[int], weather: Weather) -> list[Scene]:
    """Who is around the ego at instants of the last period; the ego itself is not drawn."""
    before, now = world.traffic.before, world.traffic.now
    at = np.array([world.ego.x_m, world.ego.y_m])
    near = np.flatnonzero(now.present & (np.hypot(*(now.poses_m[:, :2] - at).T) < SEEN_M))
    actors = [world.actors[k] for k in near]
    braking = (now.speed_mps - before.speed_mps)[near] / (PERIOD_US * 1e-6) < BRAKES_FROM_MPS2
    lamps, scenes = vehicle_lamps(braking, weather=weather), []
    for time_us in times_us:
        poses = world.poses_at(int(time_us))[0][near]
        scenes.append(Scene(back, actor_solids(actors, poses, lamps), shadows(actors, poses), weather, int(time_us)))
    return scenes


def _pieces(outlines: list[tuple[np.ndarray, list[np.ndarray]]], inside: str, hole: str) -> list[Surface]:
    """The parts of an area and the holes in them, as surfaces of these kinds."""
    return [Surface(inside, xy) for xy, _ in outlines] + [Surface(hole, xy) for _, holes in outlines for xy in holes]
