"""Whether a drive leaves junctions by the way that it was told."""

import numpy as np

from sensors.frames import wrap
from sim.metrics.closed_loop import NOT_AVAILABLE
from sim.metrics.drive_protocols import Drive

TURNS = ("left", "right", "straight")
BEYOND_M = 6.0  # after the junction one is on some way
BESIDE_M, ALONG_RAD = 5.0, np.radians(60.0)  # of the route; in another lane of it one is on it all the same
LOST = ("route_left", "off_road")  # what ends a drive that went elsewhere


def junctions(drive: Drive) -> dict[str, tuple[float, bool, float]]:
    """`junction.followed`: (share of the junctions with a choice that were left by the route's way, valid, how many).

    Told is what the route's command was on the way in. A drive that ends in a junction has left it by no way: it counts
    as not followed if it ends for having left road or route, and not at all if it ends for anything else.
    """
    log = drive.log
    if not (drive.mapped and drive.routed and len(log.cue_frame)):
        return {"junction.followed": (*NOT_AVAILABLE, 0.0)}
    inside = drive.areas.rear_axle_in_intersection[0]
    begins = np.flatnonzero(np.diff(inside.astype(int), prepend=0) > 0)
    outcomes = [_followed(drive, inside, int(k)) for k in begins if log.cue_at(max(int(k) - 1, 0))[0] in TURNS]
    known = [outcome for outcome in outcomes if outcome is not None]
    share = (float(np.mean(known)), True) if known else NOT_AVAILABLE
    return {"junction.followed": (*share, float(len(known)))}


def _followed(drive: Drive, inside: np.ndarray, begin: int) -> bool | None:
    """Of the junction that is entered at a frame; None where the drive ended before that was to be seen."""
    frames = len(inside)
    end = next((k for k in range(begin, frames) if not inside[k]), frames)
    driven_m = np.cumsum(drive.step_m)
    out = next((k for k in range(end, frames) if driven_m[k] - driven_m[end] >= BEYOND_M), None)
    if out is None:
        return False if drive.log.ended_by in LOST else None
    return drive.view.off_way_m[out] < BESIDE_M and bool(abs(_astray_rad(drive, out)) < ALONG_RAD)


def _astray_rad(drive: Drive, frame: int) -> float:
    """The ego's heading against that of the route where it is."""
    way_m, at = drive.view.way_m, drive.view.along_m[frame]
    k = int(np.clip(np.searchsorted(drive.view.passed_m, at, side="right") - 1, 0, len(way_m) - 2))
    dx, dy = way_m[k + 1] - way_m[k]
    return float(wrap(drive.log.ego_xyyaw_in_world[frame, 2] - np.arctan2(dy, dx)))
