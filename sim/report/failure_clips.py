"""A short film of each failure: the seconds before it from above, from the log alone; with cameras where there are any.

A clip is media/failure-NAME-FRAME.mp4, or failure-NAME-FRAME-cameras.mp4 where six pictures stand beside the view from
above. Only so many are made, the run's own policy and every kind of failure first.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sensors.clip import Boxes
from sensors.frames import apply, inverse, matrix_from_xy_yaw
from sim.report.failures import KINDS, Failure, failures
from sim.report.log_scene import red_ways
from sim.report.pictures import beside, bird_eye_image, captioned
from sim.report.summary import inside
from sim.report.video import VideoWriter
from sim.rollout_log import EpisodeLog, read_episode

MOST_CLIPS = 12
BEFORE_S, AFTER_S, HELD_S = 5.0, 1.0, 1.0  # the last picture stays for a while: nobody sees a single one
EVERY, FPS = 2, 5  # frames of a log at 10 Hz
SIZE_PX = (480, 480)
HEIGHT_M = 1.6  # of boxes: the log keeps none, and from above it does not matter
LINES_WITHIN_M = 90.0


def clip_path(row: dict, failure: Failure, cameras: bool) -> str:
    """Where the clip of a failure is, relative to the run directory."""
    return f"media/failure-{row['name']}-{failure.frame:04d}{'-cameras' if cameras else ''}.mp4"


def failures_of_run(run_dir: Path, summary: dict) -> list[tuple[dict, Failure]]:
    """Every failure of a run with its row of summary.json."""
    logs = ((row, read_episode(inside(run_dir, row["log"])) if row["log"] else None) for row in summary["episodes"])
    return [(row, failure) for row, log in logs for failure in failures(row, log)]


def chosen(found: Sequence[tuple[dict, Failure]], policies: Sequence[str], most: int) -> list[tuple[dict, Failure]]:
    """The failures that get a clip: those with a log, of the first policies first, and of these one of each kind."""
    seen: Counter[tuple[str, str]] = Counter()
    ranked = []
    for row, failure in found:
        if failure.frame is not None:
            again = seen[row["policy"], failure.kind]
            seen[row["policy"], failure.kind] += 1
            place = policies.index(row["policy"]) if row["policy"] in policies else len(policies)
            ranked.append((place, again, KINDS.index(failure.kind), len(ranked), row, failure))
    return [(row, failure) for *_, row, failure in sorted(ranked, key=lambda entry: entry[:4])[:most]]


def clip_frames(log: EpisodeLog, failure: Failure) -> range:
    """The frames of the log that the clip of a failure shows."""
    around = log.time_s - log.time_s[failure.frame]
    shown = np.flatnonzero((around >= -BEFORE_S - 1e-6) & (around <= AFTER_S + 1e-6))
    step = EVERY if log.kind == "drive" else 1
    return range(int(shown[0]) + (failure.frame - int(shown[0])) % step, int(shown[-1]) + 1, step)


def write_clip(
    path: Path, log: EpisodeLog, failure: Failure, mosaic: Callable[[int], np.ndarray] | None = None
) -> None:
    """Film a failure; `mosaic` gives the six pictures at a frame, asked for in order of time."""
    path.parent.mkdir(exist_ok=True)
    lines, shown = log.lines(), clip_frames(log, failure)
    with VideoWriter(path, FPS if log.kind == "drive" else 2) as video:
        for frame in shown:
            failed = frame >= failure.frame
            words = failure.kind if failed else log.reason_at(_plan_frame(log, frame))
            words = f"{log.time_s[frame]:.1f} s   {log.speed_mps[frame]:.1f} m/s   {words}"
            picture = captioned(frame_from_above(log, frame, lines), words, failed)
            if mosaic is not None:
                picture = beside(mosaic(frame), picture)
            video.write(picture)
        for _ in range(round(HELD_S * FPS)):
            video.write(picture)


def frame_from_above(log: EpisodeLog, frame: int, lines: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """The view from above at a frame: road, red lights, route, others, the way so far, the plan then in force."""
    T_world_from_ego = matrix_from_xy_yaw(*log.ego_xyyaw_in_world[frame])
    at = T_world_from_ego[:2, 3]
    drawn = [("route", log.route_xy_in_world_m)] if len(log.route_xy_in_world_m) > 1 else []
    drawn += [(kind, xy) for kind, xy in lines if (np.hypot(*(xy - at).T) < LINES_WITHIN_M).any()]
    drawn += [("red", xy) for xy in red_ways(log, frame)]
    return bird_eye_image(
        T_world_from_ego,
        drawn,
        boxes_at(log, frame),
        plan_in_force(log, frame),
        log.ego_xyyaw_in_world[: frame + 1, :2],
        SIZE_PX,
    )


def boxes_at(log: EpisodeLog, frame: int) -> Boxes:
    """The actors at a frame as boxes; heights are made up."""
    rows = log.actors_at(frame)
    xyyaw, size = log.actor_xyyaw_in_world[rows], log.actor_size_lw_m[rows]
    T = matrix_from_xy_yaw(*xyyaw.T)
    T[:, 2, 3] = HEIGHT_M / 2
    velocity = log.actor_speed_mps[rows, None] * np.stack([np.cos(xyyaw[:, 2]), np.sin(xyyaw[:, 2])], axis=1)
    size = np.column_stack([size, np.full(len(size), HEIGHT_M)])
    return Boxes(tuple(log.actor_id[rows].tolist()), tuple(log.actor_category[rows].tolist()), T, size, velocity)


def plan_in_force(log: EpisodeLog, frame: int) -> np.ndarray | None:
    """[K, 2] in the ego frame of now: what is still ahead of the last plan made up to a frame; None without one."""
    made = _plan_frame(log, frame)
    if made < 0:
        return None
    time_s, xyyaw = log.plan_at(made)
    ahead = time_s > log.time_s[frame] - log.time_s[made]
    T_ego_from_world = inverse(matrix_from_xy_yaw(*log.ego_xyyaw_in_world[frame]))
    return apply(T_ego_from_world, np.column_stack([xyyaw[ahead, :2], np.zeros(ahead.sum())]))[:, :2]


def _plan_frame(log: EpisodeLog, frame: int) -> int:
    """The frame at which the plan in force was made; -1 without one."""
    row = int(np.searchsorted(log.plan_frame, frame, side="right")) - 1
    return int(log.plan_frame[row]) if row >= 0 else -1
