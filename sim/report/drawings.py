"""What inline SVG draws: an episode from above and over time, a training curve. Numbers and strings, no markup."""

from dataclasses import replace

import cv2
import numpy as np

from sim.geometry import corners
from sim.metrics.log_view import LogView
from sim.metrics.open_loop import keyframe_errors
from sim.report.failures import Failure
from sim.report.pictures import CAR
from sim.rollout_log import EpisodeLog

PLANS_SHOWN = 24
MARGIN_M, LEAST_SPAN_M = 12.0, 60.0
MAP_TOLERANCE_M, TRACK_TOLERANCE_M = 0.08, 0.05  # lines are thinned to this before they are drawn
AREA_TOLERANCE_M = 0.3
MOVED_M = 1.0  # less than this is no track
ROUTE_EVERY = 5  # frames: finding the place on the route is the dearest of all
TOP, BOTTOM = 6.0, 94.0  # of the curves over time, in a view of 0 to 100
LABEL_PERCENT = 18.0  # of the width that a label of the time line takes: one nearer goes a row lower


def bird_eye_plot(log: EpisodeLog, found: list[Failure]) -> dict:
    """The episode from above in metres from the middle of the view, y down: point strings by layer."""
    ego_xy = log.ego_xyyaw_in_world[:, :2]
    low = np.minimum(ego_xy.min(axis=0), log.plan_xyyaw_in_world[:, :2].min(axis=0, initial=np.inf)) - MARGIN_M
    high = np.maximum(ego_xy.max(axis=0), log.plan_xyyaw_in_world[:, :2].max(axis=0, initial=-np.inf)) + MARGIN_M
    middle, span = (low + high) / 2, np.maximum(high - low, LEAST_SPAN_M)
    span[0] = max(span[0], 1.6 * span[1])  # never a tower: the page is wide

    def points(xy: np.ndarray) -> str:
        return " ".join(f"{x:.2f},{y:.2f}" for x, y in (xy - middle) * (1, -1))

    def thin(xy: np.ndarray, tolerance_m: float) -> str:
        return points(cv2.approxPolyDP(np.float32(xy - middle), tolerance_m, False)[:, 0].astype(float) + middle)

    def visible(xy: np.ndarray) -> bool:
        return bool((np.abs(xy - middle) <= span / 2).all(axis=1).any())

    lines = [
        {"kind": "edge" if "edge" in kind else "centre", "points": thin(piece, MAP_TOLERANCE_M)}
        for kind, xy in log.lines()
        for piece in _pieces_in_view(xy, middle, span)
    ]
    route = _pieces_in_view(log.route_xy_in_world_m, middle, span) if len(log.route_xy_in_world_m) > 1 else []
    plans, misses = _plans_and_misses(log)
    rows = log.actors_at(len(log) - 1)
    boxes = corners(np.concatenate([log.actor_xyyaw_in_world[rows], log.actor_size_lw_m[rows]], axis=1))
    bar_m = max(metres for metres in (5, 10, 20, 50, 100, 200, 500) if metres <= max(span[0] / 5, 5))
    return {
        "view": f"{-span[0] / 2:.2f} {-span[1] / 2:.2f} {span[0]:.2f} {span[1]:.2f}",
        "bar": {"metres": bar_m, "x": 3 * span[0] / 100 - span[0] / 2, "y": span[1] / 2 - 3 * span[0] / 100},
        "text": span[0] / 55,
        "lines": lines,
        "areas": [thin(xy, AREA_TOLERANCE_M) for xy in _drivable(log) if visible(xy)],
        "route": [thin(piece, MAP_TOLERANCE_M) for piece in route],
        "tracks": [thin(xy, TRACK_TOLERANCE_M) for xy in _moving_tracks(log) if visible(xy)],
        "actors": [points(box) for box in boxes if visible(box)],
        "track": thin(ego_xy, TRACK_TOLERANCE_M),
        "start": points(ego_xy[:1]).split(","),
        "ego": points(corners(_ego_box(log))),
        "plans": [thin(xy, TRACK_TOLERANCE_M) for xy in plans],
        "misses": [points(xy) for xy in misses],
        "events": [
            {
                "name": failure.kind,
                "xy": points(ego_xy[failure.frame : failure.frame + 1]).split(","),
                "left": bool(ego_xy[failure.frame, 0] > middle[0]),  # its words go where there is room
            }
            for failure in _first_of_kind(found)
        ],
    }


def _drivable(log: EpisodeLog) -> list[np.ndarray]:
    """Outlines [V, 2] of where one may drive."""
    return [xy for layer, xy in log.surroundings.areas if layer == "drivable"]


def _ego_box(log: EpisodeLog) -> np.ndarray:
    x, y, yaw = log.ego_xyyaw_in_world[-1]
    return np.array([x + CAR.centre_m * np.cos(yaw), y + CAR.centre_m * np.sin(yaw), yaw, CAR.length_m, CAR.width_m])


def _moving_tracks(log: EpisodeLog) -> list[np.ndarray]:
    """[N, 2] of every other who moved, in the order of their ids."""
    order = np.argsort(log.actor_id, kind="stable")
    _, first = np.unique(log.actor_id[order], return_index=True)
    tracks = np.split(log.actor_xyyaw_in_world[order, :2], first[1:]) if len(first) else []
    return [xy for xy in tracks if np.ptp(xy, axis=0).max() > MOVED_M]


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
    """The runs of a polyline [V, 2] whose segments may be in view."""
    low, high = np.minimum(xy[:-1], xy[1:]), np.maximum(xy[:-1], xy[1:])
    near = ((low <= middle + span / 2) & (high >= middle - span / 2)).all(axis=1)
    ends = np.flatnonzero(np.diff(np.concatenate([[False], near, [False]]).astype(int)))
    return [xy[i : j + 1] for i, j in ends.reshape(-1, 2)]


def _first_of_kind(found: list[Failure]) -> list[Failure]:
    with_frame = {failure.kind: failure for failure in reversed(found) if failure.frame is not None}
    return sorted(with_frame.values(), key=lambda failure: failure.frame)


def time_line(log: EpisodeLog, found: list[Failure]) -> dict | None:
    """The episode over time: curves in a view of 100 x 100, and where its failures are, in per cent of its length.

    A drive shows its speed and how much of the route is done, a replay its speed and how far each plan was off.
    """
    if len(log) < 2:
        return None
    length_s = float(log.time_s[-1])
    curves = [_curve_over_time("speed", "speed, m/s", log.time_s, log.speed_mps, length_s)]
    if log.kind == "replay":
        errors_m, valid = keyframe_errors(log)
        if valid:
            at_s, words = log.time_s[: len(errors_m)], "mean error of the plan over 3 s, m"
            curves.append(_curve_over_time("score", words, at_s, errors_m.mean(axis=1), length_s))
    elif len(log.route_xy_in_world_m) > 1 and log.goal_m > 0:
        seen = np.unique(np.append(np.arange(0, len(log), ROUTE_EVERY), len(log) - 1))
        share = 100 * route_share(log, seen)
        curves.append(_curve_over_time("score", "route done, %", log.time_s[seen], share, length_s))
    marks, row_end = [], []  # a label goes to the first row whose last one is far enough to the left
    for failure in found:
        if failure.at_s is not None:
            left = 100 * failure.at_s / length_s
            row = next((k for k, end in enumerate(row_end) if left - end > LABEL_PERCENT), len(row_end))
            row_end[row:] = [left, *row_end[row + 1 :]]
            marks.append({"left": left, "row": row, "words": failure.kind, "at_s": failure.at_s})
    return {"length_s": length_s, "curves": curves, "marks": marks, "rows": len(row_end)}


def route_share(log: EpisodeLog, seen: np.ndarray) -> np.ndarray:
    """float64 [M]: how much of the way to the goal has been driven by each of these frames [M], the most so far."""
    thinned = replace(log, ego_xyyaw_in_world=log.ego_xyyaw_in_world[seen])
    along_m = np.maximum.accumulate(LogView(thinned).along_m)
    to_go_m = log.goal_m - along_m[0]
    return np.clip((along_m - along_m[0]) / to_go_m, 0.0, 1.0) if to_go_m > 0 else np.ones(len(along_m))


def _curve_over_time(kind: str, words: str, time_s: np.ndarray, values: np.ndarray, length_s: float) -> dict:
    """From 0 (at the bottom) to the largest value, thinned; the value at the end."""
    most = max(float(values.max()), 1e-9)
    x, y = 100 * time_s / length_s, BOTTOM - (BOTTOM - TOP) * np.maximum(values, 0.0) / most
    xy = cv2.approxPolyDP(np.float32(np.column_stack([x, y])), 0.3, False)[:, 0]
    return {
        "kind": kind,
        "words": words,
        "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in xy),
        "most": float(values.max()),
        "last": float(values[-1]),
    }
