"""What went wrong in an episode: kind, whose fault, with whom, when. One row of the report's taxonomy each.

A collision is the ego's fault where the at-fault score of the episode says so (the figure in the table beside it), and
where that is not available as the world judged. Whoever ran out of time before the goal failed too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.rollout_log import EpisodeLog

# event of the log: in words, in the order of the report; a collision stands before them, the rest after
EVENT_WORDS = {
    "off_road": "off the road",
    "red_light": "ran a red light",
    "stop_line": "passed a stop line",
    "wrong_way": "wrong way",
    "route_left": "left the route",
    "blocked": "blocked",
    "speeding": "speeding",
}
PARTNERS = {  # beginning of a nuScenes category, the first that fits: in words
    "human.": "a pedestrian",
    "vehicle.bicycle": "a two-wheeler",
    "vehicle.motorcycle": "a two-wheeler",
    "vehicle.": "a vehicle",
}
OTHER_PARTNER = "an object"
AT_FAULT, NOT_AT_FAULT, FAULT_UNKNOWN = "at fault", "not at fault", "fault unknown"
OUT_OF_TIME, OF_THE_CODE = "time ran out before the goal", "failure of the code"
COMPLETED_SHARE = 0.999  # of the route: rounding is no failure
# Every kind there can be, in the order of the report.
KINDS = (
    *(
        f"collision with {partner}, {fault}"
        for fault in (AT_FAULT, NOT_AT_FAULT, FAULT_UNKNOWN)
        for partner in dict.fromkeys([*PARTNERS.values(), OTHER_PARTNER])
    ),
    *EVENT_WORDS.values(),
    OUT_OF_TIME,
    OF_THE_CODE,
)


@dataclass(frozen=True)
class Failure:
    """One of KINDS at a frame of the log of an episode; frame and seconds are None where there is no log.

    actor: whom a collision was with, else ""
    """

    kind: str
    frame: int | None = None
    at_s: float | None = None
    actor: str = ""


def failures(row: dict, log: EpisodeLog | None) -> list[Failure]:
    """Everything that went wrong in an episode, in order of time: its row of summary.json, and its log."""
    found = [] if log is None else [f for f in (_of_event(row, log, k) for k in range(len(log.event))) if f]
    if row["error"]:
        return [*found, Failure(OF_THE_CODE)]
    completion = row.get("scores", {}).get("route_completion", (1.0,))[0]
    if log is not None and len(log) and log.ended_by == "time" and completion < COMPLETED_SHARE:
        found.append(Failure(OUT_OF_TIME, len(log) - 1, float(log.time_s[-1])))
    return found


def outcome(row: dict, found: Sequence[Failure]) -> str:
    """How an episode went, in one word or a kind: the failure that ended it, else the first, else how it ended."""
    if row["error"]:
        return OF_THE_CODE
    ending = [f.kind for f in found if f.kind == EVENT_WORDS.get(row["ended_by"])]
    ending += [f.kind for f in found if row["ended_by"] == "collision" and f.kind.startswith("collision")]
    kinds = ending or [f.kind for f in found]
    return kinds[0] if kinds else "no failure"


def _of_event(row: dict, log: EpisodeLog, k: int) -> Failure | None:
    name, frame, actor = str(log.event[k]), int(log.event_frame[k]), str(log.event_actor[k])
    if name == "collision":
        kind = f"collision with {_partner(log, actor)}, {_fault(row, str(log.event_fault[k]))}"
    elif name in EVENT_WORDS:
        kind = EVENT_WORDS[name]
    else:
        return None
    return Failure(kind, frame, float(log.time_s[frame]), actor)


def _partner(log: EpisodeLog, actor: str) -> str:
    rows = np.flatnonzero(log.actor_id == actor)
    category = str(log.actor_category[rows[0]]) if len(rows) else ""
    return next((words for start, words in PARTNERS.items() if category.startswith(start)), OTHER_PARTNER)


def _fault(row: dict, judged_by_world: str) -> str:
    value = row.get("scores", {}).get("at_fault_collision_rate", (None,))[0]
    if value is None:
        value = {"ego": 1.0, "other": 0.0}.get(judged_by_world)
    return FAULT_UNKNOWN if value is None else AT_FAULT if value else NOT_AT_FAULT
