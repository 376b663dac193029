"""A small run directory with a drive or replay of two policies on two seeds, made without driving."""

import json
from pathlib import Path

import cv2
import numpy as np

from sensors.clip import Boxes
from sensors.frames import matrix_from_xy_yaw
from sim.metrics.protocols import episode_figures, summarize
from sim.report.video import VideoWriter
from sim.rollout_log import EpisodeLog, EpisodeRecorder, write_episode

HALF_S = np.arange(1, 7) * 0.5


def episode(name: str, policy: str, seed: int, kind: str = "drive", frames: int = 20) -> EpisodeLog:
    lines = [
        ("lane_edge", np.array([[-900.0, 4], [0, 4], [50, 4], [900, 4]])),
        ("centre", np.array([[0.0, 0], [9, 0]])),
    ]
    recorder = EpisodeRecorder(name, kind, policy, seed, lines)
    for k in range(frames):
        car = matrix_from_xy_yaw([20.0 + k], [2.0], [0.1])
        actors = Boxes(("a",), ("vehicle.car",), car, np.array([[4.5, 1.9, 1.6]]), np.zeros((1, 2)))
        recorder.frame(
            500_000 * k, (4.0 * k, 0, 0), 8.0, (0, 0), actors, ("off_road",) * (k == frames - 1 and seed > 0)
        )
        recorder.plan(HALF_S, np.stack([4 * k + 8 * HALF_S, 0.3 * HALF_S, 0 * HALF_S], axis=1))
    return recorder.finish("off_road" if seed else "time")


def make_run(run: Path, kind: str = "drive", failed: bool = False) -> dict:
    """A run of two policies and two seeds; the first episode has pictures, the last may have failed."""
    (run / "episodes").mkdir(parents=True)
    (run / "media").mkdir()
    logs, rows = [], []
    for policy in ("first", "second"):
        for seed in (0, 1):
            log = episode(f"{policy}-{seed}", policy, seed, kind, frames=20 + 2 * seed)
            write_episode(run / f"episodes/{log.name}.npz", log)
            logs.append((policy, episode_figures(log, [kind])))
            rows.append(
                {"name": log.name, "policy": policy, "seed": seed, "log": f"episodes/{log.name}.npz", "video": None}
                | {"sheets": [], "ended_by": log.ended_by, "error": ""}
                | {"scores": {name: [value, weight] for name, (value, ok, weight) in logs[-1][1].items() if ok}}
            )
    with VideoWriter(run / "media/a.mp4", 10) as video:
        for k in range(15):
            video.write(np.full((64, 96, 3), 10 * k, np.uint8))
    cv2.imwrite(str(run / "media/a_000.jpg"), np.full((60, 90, 3), 99, np.uint8))
    rows[0] |= {"video": "media/a.mp4", "sheets": ["media/a_000.jpg"]}
    if failed:
        rows[-1] |= {"log": None, "ended_by": "failure", "error": "ValueError: <script>alert(1)</script>"}
        logs.pop()
    summary = {
        "command": ["vla", kind, "--policy", "first"],
        "config": {"seconds": 10, "note": "</pre><b>"},
        "version": "0.1.0",
        "git_commit": "0123456789abcdef",
        "seeds": [0, 1],
        "scenes": {"asked": 4, "finished": 4 - failed, "failed": int(failed)},
        "metrics": summarize([figures for _, figures in logs]),
        "policies": {p: summarize([figures for name, figures in logs if name == p]) for p in ("first", "second")},
        "episodes": rows,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    return summary
