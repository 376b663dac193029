"""Minimal pairs: two versions of one instant that differ in one thing, and whether two plans tell them apart.

A kind's share of passed pairs says how often the policy acted on that thing. Whoever does not see it plans the same for
both versions and passes none, since every criterion asks for a difference between the two plans.

    red_light   the light ahead green, and red        (nobody else about)
    lead        the road ahead free, and the vehicle that is ahead drawn       (nobody else about)
    obstacle    the road ahead free, and a vehicle or a person standing in the lane       (nobody else about)
    turn        one way through the junction asked for, and another: a command with its sentence, one picture

And minimal pairs of what is said, in one picture, which may matter as well (nobody else about but who is spoken of):

    turn_words, turn_command   as turn, but only the sentence differs, or only the command
    slow        the route's sentence, and "Slow down."
    stop        the route's sentence, and "Stop behind the bus." with a bus parked ahead
    stop_whom   "Stop behind the truck.", and "Stop behind the bus.", with a bus parked ahead and no truck
    lane        the route's sentence, and "Change lane to the left.", or right, where there is one
"""

import math
from collections.abc import Sequence

import numpy as np

from sensors.frames import wrap
from sim.tracker import Plan

KINDS = ("red_light", "lead", "obstacle", "turn")
WORD_KINDS = ("turn", "turn_words", "turn_command", "slow", "stop", "stop_whom", "lane")

LINE_SLACK_M = 1.0  # the bumper may come to stand this far beyond a stop line; the event "stop_line" is another matter
RED_SHARE = 0.5  # or: before a red light one drives at most this share of what one drives before a green one
GREEN_MORE_M = 4.0  # before a green light the plan ends this much further on, at least
LEAD_NEARER_M = 3.0  # behind somebody the plan ends this much earlier, at least
OBSTACLE_NEARER_M = 2.0  # before an obstacle the plan ends this much earlier, at least,
OBSTACLE_SHARE = 0.7  # and before it, or is at most this share as long;
ASIDE_M = 1.0  # or it passes where the obstacle begins this far beside where it would have passed, at least
SLOW_LESS_M, SLOW_SHARE = 2.0, 0.85  # who is asked to slow down drives this much less at least, and at most this share
LANE_ASIDE_M = 1.5  # who is asked to change lanes ends this far beside where it would be, at least
Z_95 = 1.959964  # of the normal distribution: 95 % of it lie within so many standard deviations


def driven_m(plan: Plan) -> float:
    """Length of the plan's way."""
    return float(_along(plan)[0][-1])


def tells_red(green: Plan, red: Plan, line_m: float) -> bool:
    """Whether the second stops for the light and the first does not; line_m: from the front bumper to the stop line."""
    goes_m, stops_m = driven_m(green), driven_m(red)
    stops = stops_m <= line_m + LINE_SLACK_M or stops_m <= RED_SHARE * goes_m
    return stops and goes_m - stops_m >= GREEN_MORE_M


def tells_lead(absent: Plan, present: Plan) -> bool:
    """Whether the second keeps back behind the vehicle ahead."""
    return driven_m(absent) - driven_m(present) >= LEAD_NEARER_M


def tells_obstacle(absent: Plan, present: Plan, gap_m: float, front_m: float) -> bool:
    """Whether the second brakes for an obstacle gap_m ahead of the front bumper (front_m ahead of the axle), or
    passes beside it."""
    free_m, kept_m = driven_m(absent), driven_m(present)
    if free_m - kept_m >= OBSTACLE_NEARER_M and (kept_m <= OBSTACLE_SHARE * free_m or kept_m <= gap_m):
        return True
    here, there = (_point_at(plan, gap_m + front_m) for plan in (absent, present))
    return here is not None and there is not None and float(np.hypot(*(there - here))) >= ASIDE_M


def tells_ways(one: Plan, other: Plan, yaw_rad: Sequence[float]) -> bool:
    """Whether both plans end nearer to the heading of their own way than to that of the other one's.

    yaw_rad: of the two ways, in the ego frame of now, where a careful driver is at the end of the plan.
    """
    ends = [plan.xyyaw_in_ego[-1, 2] for plan in (one, other)]
    away = np.abs(wrap(np.subtract.outer(np.array(ends), np.array(yaw_rad))))  # [plan, way]
    return bool(away[0, 0] < away[0, 1] and away[1, 1] < away[1, 0])


def tells_slow(usual: Plan, slow: Plan) -> bool:
    """Whether the second drives less far in the same time."""
    usual_m, slow_m = driven_m(usual), driven_m(slow)
    return slow_m <= SLOW_SHARE * usual_m and usual_m - slow_m >= SLOW_LESS_M


def tells_lane(stays: Plan, changes: Plan, left: int) -> bool:
    """Whether the second ends beside the first, on the left (left = 1) or right (-1)."""
    aside_m = changes.xyyaw_in_ego[-1, 1] - stays.xyyaw_in_ego[-1, 1]
    return bool(left * aside_m >= LANE_ASIDE_M)


def wilson(passed: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): of 0 or all of a few it does not claim to know it.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    share, z2 = passed / count, Z_95**2
    middle = share + z2 / (2 * count)
    half = Z_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max((middle - half) / (1 + z2 / count), 0.0), min((middle + half) / (1 + z2 / count), 1.0)


def share_figures(name: str, passed: Sequence[bool]) -> dict[str, float]:
    """Flat: `name.n` (always), and where that is not 0 `name`, the share, with `name.ci95_low`, `name.ci95_high`."""
    flat: dict[str, float] = {f"{name}.n": len(passed)}
    if passed:
        low, high = wilson(sum(passed), len(passed))
        flat |= {name: sum(passed) / len(passed), f"{name}.ci95_low": low, f"{name}.ci95_high": high}
    return flat


def _along(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Arc lengths [K + 1] and points [K + 1, 2] of the plan's way, from where the ego is."""
    points = np.concatenate([np.zeros((1, 2)), plan.xyyaw_in_ego[:, :2]])
    return np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))]), points


def _point_at(plan: Plan, driven_m: float) -> np.ndarray | None:
    """Where the plan is after this way, None beyond its end."""
    along, points = _along(plan)
    return np.array([np.interp(driven_m, along, points[:, c]) for c in (0, 1)]) if driven_m <= along[-1] else None
