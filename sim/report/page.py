"""The report of a run: one self-contained HTML file, from the run directory's summary.json, episode logs and media.

RUN/summary.json    command, config, version, git_commit, seeds, scenes {asked, finished, failed}, metrics {flat},
                    optionally policies {name: {flat}} and curves {name: [[step, value], ...]},
                    episodes [{name, policy, seed, log, video, sheets, ended_by, error}] with paths relative to RUN; log
                    and video may be null
RUN/episodes/*.npz  RUN/media/*.mp4, *.jpg
RUN/report.html     written here; pictures and videos are embedded, so give a video to few episodes
"""

import base64
import json
from pathlib import Path

import cv2
import jinja2
import numpy as np

from sensors.errors import InputError
from sim.geometry import corners
from sim.metrics.protocols import PROTOCOLS
from sim.report.pictures import CAR
from sim.rollout_log import EpisodeLog, atomic_path, read_episode

SUMMARY_TYPES = {
    "command": list,
    "config": dict,
    "version": str,
    "git_commit": str,
    "seeds": list,
    "scenes": dict,
    "metrics": dict,
    "episodes": list,
}
EPISODE_KEYS = ("name", "policy", "seed", "log", "video", "sheets", "ended_by", "error")
MIME = {".mp4": "video/mp4", ".jpg": "image/jpeg", ".png": "image/png"}
LABELS = {  # metric: (words, unit)
    "time_on_course_s": ("time on course", "s"),
    "distance_m": ("distance", "m"),
    "collision_rate": ("collision rate", ""),
    "off_road_rate": ("off-road rate", ""),
    "mean_speed_mps": ("mean speed", "m/s"),
    "max_abs_accel_mps2": ("largest acceleration", "m/s²"),
    "max_abs_jerk_mps3": ("largest jerk", "m/s³"),
    "route_completion": ("route completion", ""),
    "at_fault_collision_rate": ("at-fault collision rate", ""),
    "red_light_rate": ("red-light rate", ""),
    "comfort_rate": ("comfort rate", ""),
    "incidents_per_km": ("incidents per km", ""),
    "ade_3s_m": ("average displacement over 3 s", "m"),
    "fde_3s_m": ("displacement at 3 s", "m"),
    "ade_1s_m": ("average displacement over 1 s", "m"),
    "pdms.compat": ("PDMS, compat", ""),
    "pdms.strict": ("PDMS, strict", ""),
    "epdms.compat": ("EPDMS, compat", ""),
    "epdms.strict": ("EPDMS, strict", ""),
    "nuplan.score": ("nuPlan", ""),
    "carla_2_0.driving_score": ("CARLA 2.0 driving score", "%"),
    "carla_2_1.driving_score": ("CARLA 2.1 driving score", "%"),
    "hugsim.hd": ("HUGSIM HD", ""),
    "neuroncap.score": ("NeuroNCAP", "stars"),
    "alpasim.score": ("AlpaSim", ""),
    "nuscenes.uniad.l2_3s_m": ("L2 at 3 s, UniAD", "m"),
    "nuscenes.stp3.l2_3s_m": ("L2 over 3 s, ST-P3 and VAD", "m"),
}
COUNTS = {"n_episodes": "episodes", "n_failed": "failed episodes", "n_keyframes": "keyframes scored"}
PLANS_SHOWN = 24
CURVE_POINTS = 200
PLANS_LISTED = 5
MARGIN_M, LEAST_SPAN_M = 12.0, 60.0
LINE_TOLERANCE_M = 0.05  # map lines are thinned to this before they are drawn


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html atomically and return its path; a broken run directory is an InputError."""
    run_dir = Path(run_dir)
    summary = read_summary(run_dir / "summary.json")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    episodes = [_episode(run_dir, episode) for episode in summary["episodes"]]
    page = environment.get_template("page.html.j2").render(
        title=" ".join(summary["command"][:2]) or "run",
        name=run_dir.resolve().name,
        problems=_problems(summary),
        summary=summary,
        table=_score_table(summary),
        groups=_groups(_score_table(summary)["rows"]),
        columns=[(key, *LABELS[key]) for key in LABELS if any(key in episode["metrics"] for episode in episodes)],
        episodes=episodes,
        curves=[_curve(name, np.array(points)) for name, points in summary.get("curves", {}).items()],
        config=json.dumps(summary["config"], indent=2, ensure_ascii=False, sort_keys=True),
        number=_number,
    )
    path = run_dir / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def read_summary(path: Path) -> dict:
    """What summary.json says, its fields checked; an InputError names the first bad one."""

    def no_number(word: str) -> None:
        raise ValueError(f"{word} is not a number of JSON")

    try:
        summary = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_number)
    except FileNotFoundError:
        raise InputError(path, "file", "nothing", "a run directory with summary.json") from None
    except (OSError, ValueError) as error:
        raise InputError(path, "file", f"unreadable ({error})", "JSON", "Was the run interrupted?") from None
    if not isinstance(summary, dict):
        raise InputError(path, "file", type(summary).__name__, "an object")
    for key, kind in SUMMARY_TYPES.items():
        if not isinstance(summary.get(key), kind):
            raise InputError(path, key, repr(summary.get(key)), f"a {kind.__name__}")
    for key in ("asked", "finished", "failed"):
        if not isinstance(summary["scenes"].get(key), int):
            raise InputError(path, f"scenes.{key}", repr(summary["scenes"].get(key)), "a count")
    for k, episode in enumerate(summary["episodes"]):
        for key in EPISODE_KEYS:
            if key not in episode:
                raise InputError(path, f"episodes[{k}].{key}", "nothing", "a value (log and video may be null)")
    return summary


def _problems(summary: dict) -> list[str]:
    """What must not be overlooked: printed in red in the headline."""
    scenes = summary["scenes"]
    problems = []
    if not scenes["asked"]:
        problems.append("No scene was asked for: this run measured nothing.")
    elif not scenes["finished"]:
        problems.append(f"None of {scenes['asked']} scenes finished: this run measured nothing.")
    if scenes["failed"]:
        problems.append(f"{scenes['failed']} of {scenes['asked']} scenes failed; they enter no mean.")
    missing = scenes["asked"] - scenes["finished"] - scenes["failed"]
    if missing > 0:
        problems.append(f"{missing} of {scenes['asked']} scenes were never run.")
    return problems


def _score_table(summary: dict) -> dict:
    """Policies as columns, metrics as rows; a cell is None where the run has no such number."""
    names = sorted({episode["policy"] for episode in summary["episodes"]}) or ["this run"]
    policies = summary.get("policies") or {", ".join(names): summary["metrics"]}
    keys = dict.fromkeys([*COUNTS, *LABELS])
    keys |= dict.fromkeys(key.removesuffix(".n") for flat in policies.values() for key in flat)
    rows = []
    for key in keys:
        cells = [_cell(flat, key) for flat in policies.values()]
        if not key.endswith((".ci95_low", ".ci95_high")) and any(cells):
            words, unit = LABELS.get(key, (COUNTS.get(key, key), ""))
            rows.append({"key": key, "words": words, "unit": unit, "cells": cells})
    return {"policies": list(policies), "rows": rows}


def _groups(rows: list[dict]) -> list[dict]:
    """The rows by protocol, the plain figures first; of the others, what nobody has stands by name only."""
    of = {name: key for key, protocol in PROTOCOLS.items() if not protocol.quick for name in protocol.names}
    groups = []
    for key in ("", *(key for key, protocol in PROTOCOLS.items() if not protocol.quick)):
        mine = [row for row in rows if of.get(row["key"], "") == key]
        shown = [row for row in mine if not key or any(cell and cell["value"] is not None for cell in row["cells"])]
        lacking = [row["words"] for row in mine if row not in shown]
        if mine:
            words = PROTOCOLS[key].words if key else ""
            groups.append({"words": words, "rows": shown, "lacking": lacking})
    return groups


def _cell(flat: dict, key: str) -> dict | None:
    if key not in flat and f"{key}.n" not in flat:
        return None
    return {
        "value": flat.get(key),
        "n": flat.get(f"{key}.n"),
        "low": flat.get(f"{key}.ci95_low"),
        "high": flat.get(f"{key}.ci95_high"),
    }


def _number(value: float | None) -> str:
    """Counts as they are, measurements with three to four figures: more is more than the reader can use."""
    if value is None:
        return "n/a"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3}f}"


def _episode(run_dir: Path, episode: dict) -> dict:
    log = read_episode(_inside(run_dir, episode["log"])) if episode["log"] else None
    shown = {key: episode[key] for key in EPISODE_KEYS}
    shown["video"] = _embed(run_dir, episode["video"]) if episode["video"] else None
    shown["sheets"] = [_embed(run_dir, sheet) for sheet in episode["sheets"]]
    shown["plot"] = _bird_eye_plot(log) if log is not None and len(log) else None
    shown["plans"] = _listed_plans(log) if log is not None else []
    shown["seconds"] = float(log.time_s[-1]) if log is not None and len(log) else None
    shown["metrics"] = {key: value for key, (value, _) in episode.get("scores", {}).items()}
    return shown


def _listed_plans(log: EpisodeLog) -> list[dict]:
    """The plans that the report spells out: first, last and some between, in the ego frame of their instant."""
    with_plan = np.unique(log.plan_frame)
    chosen = np.linspace(0, len(with_plan) - 1, min(len(with_plan), PLANS_LISTED)).round().astype(int)
    listed = []
    for frame in with_plan[chosen]:
        time_s, xyyaw = log.plan_at(frame)
        x, y, yaw = log.ego_xyyaw_in_world[frame]
        R = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])  # R_ego_from_world
        xy = (xyyaw[:, :2] - (x, y)) @ R.T
        listed.append(
            {
                "at_s": float(log.time_s[frame]),
                "speed_mps": float(log.speed_mps[frame]),
                "tokens": " ".join(str(token) for token in log.tokens_at(frame)),
                "points": [f"{t:g} s ({x:.1f}, {y:.1f})" for t, (x, y) in zip(time_s, xy, strict=True)],
            }
        )
    return listed


def _curve(name: str, points: np.ndarray) -> dict:
    """What the SVG of one training curve draws: (step, value) [M, 2] in a 100 x 30 view, thinned to means."""
    parts = np.array_split(points, min(len(points), CURVE_POINTS))
    xy = np.array([part.mean(axis=0) for part in parts])
    low, high = xy.min(axis=0), xy.max(axis=0)
    at = (xy - low) / np.maximum(high - low, 1e-12) * (100, -30) + (0, 30)
    return {
        "name": name.replace("_", " "),
        "points": " ".join(f"{x:.2f},{y:.2f}" for x, y in at),
        "low": float(low[1]),
        "high": float(high[1]),
        "last": float(xy[-1, 1]),
        "steps": int(points[-1, 0]),
    }


def _inside(run_dir: Path, relative: str) -> Path:
    path = (run_dir / relative).resolve()
    if not path.is_relative_to(run_dir.resolve()):
        raise InputError(run_dir / "summary.json", "episodes", relative, "a path inside the run directory")
    return path


def _embed(run_dir: Path, relative: str) -> str:
    path = _inside(run_dir, relative)
    if path.suffix not in MIME:
        raise InputError(run_dir / "summary.json", "episodes", relative, f"one of {', '.join(MIME)}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(path, "file", error, "a picture or video of this run") from None
    return f"data:{MIME[path.suffix]};base64,{base64.b64encode(data).decode()}"


def _bird_eye_plot(log: EpisodeLog) -> dict:
    """What the SVG draws, in metres from the middle of the view, y down: point strings by layer."""
    ego_xy = log.ego_xyyaw_in_world[:, :2]
    low = np.minimum(ego_xy.min(axis=0), log.plan_xyyaw_in_world[:, :2].min(axis=0, initial=np.inf)) - MARGIN_M
    high = np.maximum(ego_xy.max(axis=0), log.plan_xyyaw_in_world[:, :2].max(axis=0, initial=-np.inf)) + MARGIN_M
    middle, span = (low + high) / 2, np.maximum(high - low, LEAST_SPAN_M)
    span[0] = max(span[0], 1.6 * span[1])  # never a tower: the page is wide

    def points(xy: np.ndarray) -> str:
        return " ".join(f"{x:.2f},{y:.2f}" for x, y in (xy - middle) * (1, -1))

    def visible(xy: np.ndarray) -> bool:
        return bool((np.abs(xy - middle) <= span / 2).all(axis=1).any())

    lines = [
        {"kind": "edge" if "edge" in kind else "centre", "points": points(piece)}
        for kind, xy in log.lines()
        for piece in _pieces_in_view(xy, middle, span)
    ]
    plans, misses = _plans_and_misses(log)
    rows = log.actors_at(len(log) - 1)
    boxes = corners(np.concatenate([log.actor_xyyaw_in_world[rows], log.actor_size_lw_m[rows]], axis=1))
    tracks = [log.actor_xyyaw_in_world[log.actor_id == one, :2] for one in np.unique(log.actor_id)]
    x, y, yaw = log.ego_xyyaw_in_world[-1]
    ego = np.array([x + CAR.centre_m * np.cos(yaw), y + CAR.centre_m * np.sin(yaw), yaw, CAR.length_m, CAR.width_m])
    bar_m = max(metres for metres in (5, 10, 20, 50, 100, 200, 500) if metres <= max(span[0] / 5, 5))
    return {
        "view": f"{-span[0] / 2:.2f} {-span[1] / 2:.2f} {span[0]:.2f} {span[1]:.2f}",
        "bar": {"metres": bar_m, "x": 3 * span[0] / 100 - span[0] / 2, "y": span[1] / 2 - 3 * span[0] / 100},
        "text": span[0] / 55,
        "lines": lines,
        "tracks": [points(xy) for xy in tracks if visible(xy) and np.ptp(xy, axis=0).max() > 1.0],
        "actors": [points(box) for box in boxes if visible(box)],
        "track": points(ego_xy),
        "start": points(ego_xy[:1]).split(","),
        "ego": points(corners(ego)),
        "plans": [points(xy) for xy in plans],
        "misses": [points(xy) for xy in misses],
        "events": [
            {"name": str(name).replace("_", " "), "xy": points(ego_xy[frame : frame + 1]).split(",")}
            for name, frame in _first_events(log)
        ],
    }


def _plans_and_misses(log: EpisodeLog) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """At most PLANS_SHOWN plans [K+1, 2] from the ego on; of a replay also [2, 2]: a plan's end and the log by then."""
    with_plan = np.unique(log.plan_frame)
    shown = with_plan[np.linspace(0, len(with_plan) - 1, min(len(with_plan), PLANS_SHOWN)).round().astype(int)]
    ego_xy = log.ego_xyyaw_in_world[:, :2]
    plans, misses = [], []
    for frame in shown:
        time_s, xyyaw = log.plan_at(frame)
        plans.append(np.concatenate([ego_xy[frame : frame + 1], xyyaw[:, :2]]))
        end_s = log.time_s[frame] + time_s[-1]
        if log.kind == "replay" and end_s <= log.time_s[-1]:
            truth = [np.interp(end_s, log.time_s, ego_xy[:, c]) for c in (0, 1)]
            misses.append(np.stack([xyyaw[-1, :2], truth]))
    return plans, misses


def _pieces_in_view(xy: np.ndarray, middle: np.ndarray, span: np.ndarray) -> list[np.ndarray]:
    """The runs of a polyline [V, 2] with a vertex in view (and one vertex beyond at each end), thinned."""
    inside = (np.abs(xy - middle) <= span / 2).all(axis=1)
    near = inside.copy()
    near[1:] |= inside[:-1]
    near[:-1] |= inside[1:]
    cuts = np.flatnonzero(np.diff(near.astype(np.int8))) + 1
    runs = [run for run, keep in zip(np.split(xy, cuts), near[np.r_[0, cuts]], strict=True) if keep and len(run) > 1]
    # OpenCV thins float32: about the middle, where it still resolves a hundredth of a millimetre.
    return [
        cv2.approxPolyDP(np.float32(r - middle), LINE_TOLERANCE_M, False)[:, 0].astype(float) + middle for r in runs
    ]


def _first_events(log: EpisodeLog) -> list[tuple[str, int]]:
    """(name, frame) of the first event of each name."""
    names, rows = np.unique(log.event, return_index=True)
    return [(str(name), int(log.event_frame[row])) for name, row in zip(names, rows, strict=True)]
