"""The report of a run: one self-contained HTML file, from the run directory's summary.json, episode logs and media.

Pictures, films and drawings are embedded as long as the page stays below about 15 MB, what matters most first: the
failures, then the run's own policy. Films beyond that are linked where they lie in the run directory; drawings are left
out. The page says how many.
"""

import base64
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sensors.errors import InputError
from sim.report.drawings import bird_eye_plot, time_line
from sim.report.failure_clips import MOST_CLIPS, chosen, clip_path, write_clip
from sim.report.failures import KINDS, Failure, failures, outcome
from sim.report.summary import LABELS, inside, policies_of, problems, read_summary, score_table
from sim.report.templates import write_page
from sim.report.training import charts, events
from sim.rollout_log import EpisodeLog, read_episode

MIME = {".mp4": "video/mp4", ".jpg": "image/jpeg", ".png": "image/png"}
EMBEDDED_BYTES, DRAWN_BYTES = 6_500_000, 3_000_000  # base64 makes 4 of 3
PLANS_LISTED = 5
MISTAKEN = 4  # categories that are listed beside the one that was meant
FILTERS = ("policy", "outcome", "suite", "town", "weather")  # of the table of episodes, where they differ
ROW_COLUMNS = (  # of the table of episodes: what the outcome does not say already
    "time_on_course_s",
    "distance_m",
    "mean_speed_mps",
    "route_completion",
    "ade_3s_m",
    "fde_3s_m",
    "pdms.strict",
    "epdms.strict",
    "nuplan.score",
    "carla_2_1.driving_score",
)


PICTURES = {  # what the pictures of a run are: their heading, of what its figures are, what they show
    "pairs": {
        "heading": "Pairs",
        "figures": "Of pairs it is the share that the policy tells apart, with the Wilson interval and the number of "
        "pairs.",
        "words": "Two versions of one instant that differ in one thing, and what the policy plans in each, in blue.",
    },
    "views": {
        "heading": "Views",
        "figures": "Of re-projected images it is the mean over the recorded ones that were held out for it.",
        "words": "Every second recorded image is held out and made of its neighbours, as those are made that a car "
        "would see where none was recorded.",
    },
}


@dataclass
class Budget:
    """Bytes that may still be embedded; what no longer fits is counted."""

    left: int
    refused: int = 0

    def take(self, size: int) -> bool:
        fits = size <= self.left
        self.left -= size * fits
        self.refused += not fits
        return fits


def write_report(run_dir: Path, most_clips: int = MOST_CLIPS) -> Path:
    """Write RUN/report.html atomically and return its path; a broken run directory is an InputError.

    At most `most_clips` failures are filmed from above, unless they were before.
    """
    run_dir = Path(run_dir)
    summary = read_summary(run_dir / "summary.json")
    policies = list(policies_of(summary))
    episodes = [_episode(run_dir, row, place) for place, row in enumerate(summary["episodes"], 1)]
    rows = [(row, failure) for episode in episodes for row, failure in episode["found"]]
    films = Budget(EMBEDDED_BYTES)
    picked = chosen(rows, policies, most_clips)
    clips = [_clip(run_dir, row, failure, films) for row, failure in picked]
    drawn = Budget(DRAWN_BYTES)
    for episode in sorted(episodes, key=lambda e: (not e["failed"], _place(e["policy"], policies))):
        row = summary["episodes"][episode["place"] - 1]
        episode["video"] = _media(run_dir, row["video"], films) if row["video"] else None
        episode["sheets"] = [_media(run_dir, sheet, films) for sheet in row["sheets"]]
        if episode["drawn"] and not drawn.take(len(json.dumps(episode["drawn"]))):
            episode["drawn"] = None
    table, (happened, unlisted) = score_table(summary), events(summary)
    return write_page(
        run_dir / "report.html",
        "page.html.j2",
        title=" ".join(summary["command"][:2]) or "run",
        name=run_dir.resolve().name,
        problems=problems(summary),
        summary=summary,
        table=table,
        failures=_failure_table(policies, rows),
        clips=clips,
        columns=[(key, *LABELS[key]) for key in ROW_COLUMNS if any(key in episode["metrics"] for episode in episodes)],
        episodes=episodes,
        place_of={episode["name"]: episode["place"] for episode in episodes},
        filters={key: sorted({episode[key] for episode in episodes}) for key in FILTERS},
        unfilmed=sum(failure.frame is not None for _, failure in rows) - len(clips),
        undrawn=drawn.refused,
        linked=films.refused,
        pictures=[{**shown, "path": _media(run_dir, shown["path"], films)} for shown in summary.get("pictures", [])],
        confusions={words: _confused(rows) for words, rows in summary.get("confusions", {}).items() if rows},
        shown=PICTURES["views" if any(episode.get("views") for episode in summary["episodes"]) else "pairs"],
        charts=charts(summary.get("curves", {})),
        happened=happened,
        unlisted=unlisted,
        config=json.dumps(summary["config"], indent=2, ensure_ascii=False, sort_keys=True),
    )


def _episode(run_dir: Path, row: dict, place: int) -> dict:
    """What the page says of an episode, its log read once; films come later."""
    log = read_episode(inside(run_dir, row["log"])) if row["log"] else None
    found = failures(row, log)
    shown = {key: row[key] for key in ("name", "policy", "seed", "ended_by", "error")}
    shown |= {"place": place, "found": [(row, failure) for failure in found], "outcome": outcome(row, found)}
    shown |= {"failed": bool(found), "suite": row.get("suite", ""), "log": row["log"]}
    shown |= {"town": "" if log is None else log.town, "weather": "" if log is None else log.weather}
    shown["seconds"] = float(log.time_s[-1]) if log is not None and len(log) else None
    shown["metrics"] = {key: value for key, (value, _) in row.get("scores", {}).items()}
    shown["drawn"] = None
    if log is not None and len(log):
        plot, line = bird_eye_plot(log, found), time_line(log, found)
        shown["drawn"] = {"plot": plot, "line": line, "plans": _listed_plans(log)}
    return shown


def _confused(rows: list[list]) -> list[dict]:
    """Of each category that was meant: how often, how often it was said, and what was said instead."""
    found: dict[str, dict] = {}
    for meant, said, times in rows:
        row = found.setdefault(meant, {"meant": meant, "times": 0, "right": 0, "instead": []})
        row["times"] += times
        row["right"] += times if said == meant else 0
        row["instead"] += [(said, times)] if said != meant else []
    return [row | {"instead": sorted(row["instead"], key=lambda each: -each[1])[:MISTAKEN]} for row in found.values()]


def _place(policy: str, policies: list[str]) -> int:
    return policies.index(policy) if policy in policies else len(policies)


def _failure_table(policies: list[str], rows: list[tuple[dict, Failure]]) -> list[dict]:
    """Rows of the taxonomy that occur: how often, and in how many episodes, by policy."""
    times = Counter((failure.kind, row["policy"]) for row, failure in rows)
    where = Counter({(failure.kind, row["policy"], row["name"]) for row, failure in rows})
    episodes = Counter((kind, policy) for kind, policy, _ in where)
    return [
        {"kind": kind, "cells": [(times[kind, policy], episodes[kind, policy]) for policy in policies]}
        for kind in KINDS
        if any(times[kind, policy] for policy in policies)
    ]


def _clip(run_dir: Path, row: dict, failure: Failure, films: Budget) -> dict:
    """The clip of a failure, made from the log if it is not there yet."""
    path = clip_path(row, failure, cameras=True)
    cameras = (run_dir / path).is_file()
    if not cameras:
        path = clip_path(row, failure, cameras=False)
        if not (run_dir / path).is_file():
            write_clip(run_dir / path, read_episode(inside(run_dir, row["log"])), failure)
    shown = {"kind": failure.kind, "at_s": failure.at_s, "name": row["name"], "policy": row["policy"]}
    return shown | {"video": _media(run_dir, path, films), "cameras": cameras}


def _listed_plans(log: EpisodeLog) -> list[dict]:
    """The plans that the report spells out: first, last and some between, in the ego frame of their instant."""
    with_plan = np.unique(log.plan_frame)
    picked = np.linspace(0, len(with_plan) - 1, min(len(with_plan), PLANS_LISTED)).round().astype(int)
    listed = []
    for frame in with_plan[picked]:
        time_s, xyyaw = log.plan_at(frame)
        x, y, yaw = log.ego_xyyaw_in_world[frame]
        R = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])  # R_ego_from_world
        xy = (xyyaw[:, :2] - (x, y)) @ R.T
        listed.append(
            {
                "at_s": float(log.time_s[frame]),
                "speed_mps": float(log.speed_mps[frame]),
                "reason": log.reason_at(frame),
                "tokens": " ".join(str(token) for token in log.tokens_at(frame)),
                "points": [f"{t:g} s ({x:.1f}, {y:.1f})" for t, (x, y) in zip(time_s, xy, strict=True)],
            }
        )
    return listed


def _media(run_dir: Path, relative: str, films: Budget) -> str:
    """A picture or film as a data URL, or its relative path where the page would grow too large."""
    path = inside(run_dir, relative)
    if path.suffix not in MIME:
        raise InputError(run_dir / "summary.json", "episodes", relative, f"one of {', '.join(MIME)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(path, "file", error, "a picture or video of this run") from None
    if not films.take(len(data)):
        return relative
    return f"data:{MIME[path.suffix]};base64,{base64.b64encode(data).decode()}"
