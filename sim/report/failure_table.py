"""Failures of a run in text: how many episodes of each town, weather or command they struck, and each with what was so.

Counts are of episodes, not of failures: who stands in a crowd touches several of it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sensors.frames import wrap
from sim.report.failures import KINDS, Failure, failures
from sim.report.summary import inside
from sim.rollout_log import EpisodeLog, read_episode

BY = ("town", "weather", "command")
NONE = "no failure"
ALL = "all"


@dataclass(frozen=True)
class Struck:
    """A failure, or with the kind NONE an episode without one, and what was so at its frame.

    command, instruction   what the route asked for; reason: what the policy last said, "" where it says none
    speed_mps              of the ego, NaN where there is no log
    other                  of a collision: where it was from the ego, which way it went beside the ego's, how fast
    """

    name: str
    policy: str
    town: str
    weather: str
    kind: str
    at_s: float
    command: str = ""
    instruction: str = ""
    reason: str = ""
    speed_mps: float = float("nan")
    other: str = ""

    def line(self) -> str:
        told = f"told {self.instruction or self.command!r}" if self.instruction or self.command else ""
        said = f"said {self.reason!r}" if self.reason else ""
        when = "" if np.isnan(self.at_s) else f"  {self.at_s:.1f} s"
        speed = "" if np.isnan(self.speed_mps) else f"at {self.speed_mps:.1f} m/s"
        return ", ".join(word for word in (f"{self.name}{when}  {self.kind}", speed, self.other, told, said) if word)


def struck(run_dir: Path, rows: Sequence[dict]) -> list[Struck]:
    """Every failure of these rows of summary.json's episodes, in order, and every episode without one."""
    return [one for row in rows for one in _of_episode(run_dir, row)]


def counts(rows: Sequence[Struck], by: str) -> dict[str, dict[str, int]]:
    """Episodes by kind, of KINDS and NONE, and by what `by`, one of BY, was; ALL counts each episode once a kind.

    An episode without failure has no command of its own: it counts in ALL only where `by` is "command".
    """
    where = {(row.kind, group, row.policy, row.name) for row in rows for group in {getattr(row, by), ALL} - {""}}
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for (kind, group), times in Counter((kind, group) for kind, group, _, _ in where).items():
        found[kind][group] = times
    return {kind: found[kind] for kind in (NONE, *KINDS) if kind in found}


def table(rows: Sequence[Struck], by: str) -> list[str]:
    """`counts` as lines, a column a town, weather or command."""
    found = counts(rows, by)
    groups = [ALL, *sorted({group for row in found.values() for group in row} - {ALL})]
    wide = max(map(len, [*found, "episodes"]))
    lines = [f"  {'episodes':{wide}}  {'  '.join(f'{group:>4}' for group in groups)}"]
    for kind, times in found.items():
        cells = "  ".join(f"{times.get(group, 0):>{max(len(group), 4)}}" for group in groups)
        lines.append(f"  {kind:{wide}}  {cells}")
    return lines


def as_json(rows: Sequence[Struck]) -> list[dict]:
    """Every row; what is not known is None."""
    return [{key: None if value != value else value for key, value in asdict(row).items()} for row in rows]


def _of_episode(run_dir: Path, row: dict) -> Iterator[Struck]:
    log = read_episode(inside(run_dir, row["log"])) if row["log"] else None
    place = ("", "") if log is None else (log.town, log.weather)
    found = failures(row, log)
    if not found:
        yield Struck(row["name"], row["policy"], *place, NONE, float("nan") if log is None else float(log.time_s[-1]))
    for failure in found:
        if failure.frame is None:
            yield Struck(row["name"], row["policy"], *place, failure.kind, float("nan"))
        else:
            yield Struck(row["name"], row["policy"], *place, failure.kind, failure.at_s, *_what_was_so(log, failure))


def _what_was_so(log: EpisodeLog, failure: Failure) -> tuple[str, str, str, float, str]:
    k = failure.frame
    said = log.reason[log.reason_frame <= k]
    return *log.cue_at(k), str(said[-1]) if len(said) else "", float(log.speed_mps[k]), _other(log, k, failure.actor)


def _other(log: EpisodeLog, frame: int, actor: str) -> str:
    """Where one of the others is from the ego, and which way it goes how fast; "" for nobody."""
    rows = log.actors_at(frame)
    mine = np.flatnonzero(log.actor_id[rows] == actor)
    if not len(mine):
        return ""
    (x, y, yaw), mps = log.actor_xyyaw_in_world[rows][mine[0]], log.actor_speed_mps[rows][mine[0]]
    ego_x, ego_y, ego_yaw = log.ego_xyyaw_in_world[frame]
    bearing, turn = np.degrees(wrap(np.array([np.arctan2(y - ego_y, x - ego_x) - ego_yaw, yaw - ego_yaw])))
    beside = "to the left" if bearing > 0 else "to the right"
    where = "ahead" if abs(bearing) < 45 else "behind" if abs(bearing) > 135 else beside
    way = "the same way" if abs(turn) < 45 else "towards it" if abs(turn) > 135 else "across"
    return f"{where} going {way}{'' if np.isnan(mps) else f' at {mps:.1f} m/s'}"
