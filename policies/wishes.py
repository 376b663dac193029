"""What a passenger's wish changes in how a careful driver drives; in everything else it drives as ever.

slow                      at most SLOW_SHARE of the comfortable speed, reached by easing off
stop behind               to rest behind the nearest of that kind that stands ahead, in the way or beside it within
                          BESIDE_M; on, where none of that kind stands
lane left, lane right     to that lane, as soon as those who drive there leave room
left, right, straight     nothing: the way is the route's, what is missing is its command

A reason names what limits the driver, never the wish: `sensors.reasons` has no word for one.
"""

from collections.abc import Iterator

import numpy as np

from policies.town_view import Limit, Others, kind_of
from sensors.reasons import reason
from sim.geometry import OpenLine
from sim.town_world import TownWorld

SLOW_SHARE, EASES_MPS2 = 0.5, 1.3
BESIDE_M, SIGHT_M = 4.5, 40.0
STANDS_MPS = 0.3
LANES = {"lane left": 1, "lane right": -1}


def lane_wished(world: TownWorld) -> int:
    """How many lanes to the left (right if negative) the passenger wants to be; 0 for no such wish."""
    return 0 if world.wish is None else LANES.get(world.wish.kind, 0)


def speeds_wished(world: TownWorld, path: OpenLine, s_m: float, comfortable_mps: np.ndarray) -> np.ndarray:
    """Speeds [P] at the points of a path, for an ego at s_m of it.

    max(SLOW_SHARE v, sqrt(v0^2 - 2 EASES_MPS2 s)) with the comfortable speed v, the ego's v0 and s from where it is
    """
    if world.wish is None or world.wish.kind != "slow":
        return comfortable_mps
    easing = world.ego.speed_mps**2 - 2 * EASES_MPS2 * (path.s_m - s_m)
    return np.minimum(comfortable_mps, np.maximum(SLOW_SHARE * comfortable_mps, np.sqrt(np.maximum(easing, 0.0))))


def stops_wished(world: TownWorld, others: Others, path: OpenLine, s_m: float) -> Iterator[Limit]:
    """Behind whom the passenger wants to stop."""
    if world.wish is None or world.wish.kind != "stop behind" or not len(others.index):
        return
    at = path.project(others.poses[:, :2])
    gap_m = at.s_m - others.size_m[:, 0] / 2 - s_m - world.params.front_m
    fits = (gap_m > 0) & (gap_m < SIGHT_M) & (np.abs(at.lateral_m) < BESIDE_M) & (others.speed_mps < STANDS_MPS)
    fits &= (np.cos(others.poses[:, 2] - at.heading_rad) > 0) & (at.s_m < path.length_m - 0.01)
    named = [int(a) for a in np.flatnonzero(fits) if kind_of(world, others, a) == world.wish.of]
    for a in sorted(named, key=lambda a: gap_m[a])[:1]:
        yield Limit(float(gap_m[a]), 0.0, reason("follow", world.wish.of, gap_m[a]))
