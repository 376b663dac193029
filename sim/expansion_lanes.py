"""What a map expansion says of the surroundings of a recorded drive: lanes, which of them it could have used, areas."""

import numpy as np

from sensors.nuscenes_expansion import AREAS, ExpansionLane, MapExpansion
from sim.surroundings import Lane, with_holes

ALIGNED_RAD = np.radians(60.0)  # a lane that the driver could have used leads the way that was driven,
BESIDE_LANES = 1.5  # and lies under the car or beside it: so many widths from the car to its middle


def surroundings_of_expansion(
    expansion: MapExpansion, track_xyyaw: np.ndarray, low_m: np.ndarray, high_m: np.ndarray
) -> tuple[tuple[Lane, ...], tuple[tuple[str, np.ndarray], ...]]:
    """(lanes, areas) within a rectangle, as `Surroundings` has them; the map tells no speed limits.

    On the route are the lanes that lead along the recorded drive [K, 3], those beside them included: another lane of
    the same direction is no wrong way.
    """
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
