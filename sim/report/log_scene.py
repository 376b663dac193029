"""What any viewer is shown of an episode's log: words, series, red ways, pictures of its film. No viewer's own terms.

Coordinates are of the world, x east, y north, z up, in metres; the ground is z = 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from sim.rollout_log import EpisodeLog
from sim.surroundings import lane_polygon

FILM_EVERY = 2  # frames of a drive's log from one picture of its film to the next; a replay has one at each
JPEG_QUALITY = 75
SERIES = ("speed_mps", "accel_mps2", "curvature_1pm")
EGO_HEIGHT_M, PERSON_HEIGHT_M, ACTOR_HEIGHT_M = 1.6, 1.75, 1.6  # for the eye: the log keeps no heights
# RGB of what is drawn; by part of the name of a map line's kind, the first that fits
EGO, PLAN, ROUTE, RED = (40, 44, 52), (38, 140, 230), (140, 190, 230), (214, 60, 48)
ACTOR, PERSON = (230, 150, 50), (220, 80, 110)
LINES = {"edge": (130, 138, 150), "": (190, 196, 205)}


@dataclass(frozen=True)
class Remark:
    """Words at a frame; `alarm` where something went wrong. `topic`: event, reason or instruction."""

    frame: int
    topic: str
    words: str
    alarm: bool = False


def remarks(log: EpisodeLog) -> list[Remark]:
    """Events as they began; reasons and instructions where they changed; in order of time."""
    found = [Remark(int(log.event_frame[k]), "event", *_event(log, k)) for k in range(len(log.event))]
    for topic, frames, words in (
        ("reason", log.reason_frame, log.reason.tolist()),
        ("instruction", log.cue_frame, log.instruction.tolist()),
    ):
        changed = [k for k, text in enumerate(words) if text and (k == 0 or text != words[k - 1])]
        found += [Remark(int(frames[k]), topic, words[k]) for k in changed]
    return sorted(found, key=lambda remark: remark.frame)


def _event(log: EpisodeLog, k: int) -> tuple[str, bool]:
    words = str(log.event[k]).replace("_", " ")
    details = [f"with {log.event_actor[k]}"] if log.event_actor[k] else []
    if np.isfinite(log.event_speed_mps[k]):
        details.append(f"at {log.event_speed_mps[k]:.1f} m/s")
    if log.event_fault[k] and log.event_actor[k]:
        details.append(f"fault: {log.event_fault[k]}")
    return " ".join([words, *details]), str(log.event[k]) != "route_completed"


def series(log: EpisodeLog) -> dict[str, np.ndarray]:
    """float64 [F] by name: the speed, and acceleration and curvature as asked for; NaN where nothing was."""
    return dict(zip(SERIES, (log.speed_mps, *log.action.T), strict=True))


def red_ways(log: EpisodeLog, frame: int) -> list[np.ndarray]:
    """Closed outlines [V, 2] of the lanes that are red at a frame."""
    lanes = log.surroundings.lanes
    outlines = [lane_polygon(lanes[k].centreline_m, lanes[k].width_m) for k in _red(log, frame)]
    return [np.concatenate([xy, xy[:1]]) for xy in outlines]


def red_changes(log: EpisodeLog, frame: int) -> bool:
    """Whether other lanes are red at a frame than at the one before; what was before the first is not known."""
    return frame == 0 or not np.array_equal(_red(log, frame), _red(log, frame - 1))


def _red(log: EpisodeLog, frame: int) -> np.ndarray:
    return log.red_lane[slice(*np.searchsorted(log.red_frame, (frame, frame + 1)))]


def map_lines(log: EpisodeLog) -> list[tuple[tuple[int, int, int], np.ndarray]]:
    """(RGB, xy [V, 2]) of the map's lines; where the log has none, the outlines of where one may drive."""
    lines = [(next(rgb for name, rgb in LINES.items() if name in kind), xy) for kind, xy in log.lines()]
    areas = [xy for layer, xy in log.surroundings.areas if layer == "drivable"] if not lines else []
    return lines + [(LINES["edge"], np.concatenate([xy, xy[:1]])) for xy in areas]


def actor_colour(category: str) -> tuple[int, int, int]:
    return PERSON if category.startswith("human.") else ACTOR


def actor_height_m(category: str) -> float:
    return PERSON_HEIGHT_M if category.startswith("human.") else ACTOR_HEIGHT_M


def ego_centre(log: EpisodeLog) -> tuple[float, float, float]:
    """Centre of the ego's box in the ego frame."""
    return (log.ego_centre_m, 0.0, EGO_HEIGHT_M / 2)


def film_pictures(path: Path, log: EpisodeLog) -> Iterator[tuple[int, bytes]]:
    """(frame of the log, JPEG) of each picture of the episode's film; nothing where it does not fit the log."""
    every = FILM_EVERY if log.kind == "drive" else 1
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if log.kind == "replay" and stream.frames != len(log):
            return
        for k, picture in enumerate(container.decode(stream)):
            if k * every >= len(log):
                return
            bgr = picture.to_ndarray(format="bgr24")
            yield k * every, cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
