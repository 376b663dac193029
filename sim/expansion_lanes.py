"""What maps say of the surroundings of a recorded drive: of the expansion lanes, which of them it could have used, and
areas; without one, of the raster where one may drive."""

from pathlib import Path

import numpy as np

from sensors.nuscenes_expansion import AREAS, ExpansionLane, MapExpansion
from sensors.nuscenes_map import drivable_area
from sim.surroundings import Lane, with_holes

AROUND_M = 100.0  # beyond the recorded drive
ALIGNED_RAD = np.radians(60.0)  # a lane that the driver could have used leads the way that was driven,
BESIDE_LANES = 1.5  # and lies under the car or beside it: so many widths from the car to its middle


def mapped_surroundings(
    expansion: MapExpansion | None, raster: Path | None, track_xyyaw: np.ndarray
) -> tuple[tuple[Lane, ...], tuple[tuple[str, np.ndarray], ...]]:
    """(lanes, areas) around a recorded drive [K, 3], as `Surroundings` has them; no lanes without an expansion, nothing
    without either. The map tells no speed limits.

    On the route are the lanes that lead along the drive, those beside them included: another lane of the same direction
    is no wrong way.
    """
    low_m, high_m = track_xyyaw[:, :2].min(axis=0) - AROUND_M, track_xyyaw[:, :2].max(axis=0) + AROUND_M
    if expansion is None:
        found = [] if raster is None else drivable_area(raster, low_m, high_m)
        return (), tuple(("drivable", with_holes(*polygon)) for polygon in found)
    lanes = tuple(
        Lane(lane.token, lane.centreline_xyyaw[:, :2], lane.width_m, on_route=_is_along(lane, track_xyyaw))
        for lane in expansion.lanes_within(low_m, high_m)
    )
    areas = [("drivable", with_holes(*polygon)) for polygon in expansion.drivable(low_m, high_m)]
    for layer in AREAS:
        areas += [(layer, with_holes(line, list(holes))) for line, holes in expansion.within(layer, low_m, high_m)]
    return lanes, tuple(areas)


def _is_along(lane: ExpansionLane, track_xyyaw: np.ndarray) -> bool:
    line = lane.centreline_xyyaw
    away_m = np.hypot(*(track_xyyaw[:, None, :2] - line[None, :, :2]).T).T  # [K, V]
    nearest = away_m.argmin(axis=1)
    turn = track_xyyaw[:, 2] - line[nearest, 2]
    aligned = np.abs((turn + np.pi) % (2 * np.pi) - np.pi) < ALIGNED_RAD
    # Its points lie about a metre apart, so the nearest of them is as far as the line, to a tenth of a metre.
    return bool((aligned & (away_m.min(axis=1) < BESIDE_LANES * lane.width_m)).any())
