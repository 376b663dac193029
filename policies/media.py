"""Film and contact sheets of one episode."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from sensors import frames
from sensors.clip import Boxes, Clip
from sim.report.pictures import beside, bird_eye_image, captioned, clip_mosaic
from sim.report.video import VideoWriter

SHEETS = 4  # kept per episode, spread over it, the last moment among them
SHEET_EVERY = 10
JPEG_QUALITY = 88
STRIP_PX = 20  # for the instruction, below the view from above


class EpisodeMedia:
    """`add` a moment at a time; leaving the block writes media/NAME.mp4 and media/NAME_000.jpg ... under the run."""

    def __init__(self, run_path: Path, name: str, fps: int):
        self._folder, self._name = run_path / "media", name
        self._writer = VideoWriter(self._folder / f"{name}.mp4", fps)
        self._open_things = ExitStack()
        self._kept: list[bytes] = []
        self._last, self._moments = np.zeros((1, 1, 3), np.uint8), 0
        self._track: list[np.ndarray] = []

    def __enter__(self) -> "EpisodeMedia":
        self._open_things.enter_context(self._writer)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open_things.__exit__(kind, error, trace)

    def add(
        self,
        clip: Clip,
        plan_in_world: np.ndarray,
        lines: list[tuple[str, np.ndarray]],
        boxes: Boxes,
        reason: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        """One moment: the clip's last step, the plan in force x, y, yaw [K, 3] in the world, map lines, actors, why the
        plan is as it is, and what to say of each camera's image."""
        T_now = clip.T_world_from_ego_now
        points = np.column_stack([plan_in_world[:, :2], np.full(len(plan_in_world), T_now[2, 3])])
        xy = frames.apply(frames.inverse(T_now), points)[:, :2]
        xy = xy[xy[:, 0] > 0] if len(xy) else xy
        self._track.append(T_now[:2, 3])
        mosaic = clip_mosaic(clip, xy, notes=notes)
        view = bird_eye_image(T_now, lines, boxes, xy, np.array(self._track))
        if clip.instruction:
            view[-STRIP_PX:] = captioned(view[-STRIP_PX:], clip.instruction)
        self._writer.write(beside(mosaic, view, reason))
        self._last = mosaic
        if self._moments % SHEET_EVERY == 0:
            self._kept.append(_jpeg(mosaic))
        self._moments += 1

    def write_sheets(self) -> list[str]:
        """Write the contact sheets; their names relative to the run directory."""
        pictures = [*self._kept, _jpeg(self._last)] if (self._moments - 1) % SHEET_EVERY else self._kept
        chosen = sorted(set(np.linspace(0, len(pictures) - 1, min(SHEETS, len(pictures))).round().astype(int).tolist()))
        names = [f"media/{self._name}_{k:03d}.jpg" for k in range(len(chosen))]
        for name, index in zip(names, chosen, strict=True):
            (self._folder.parent / name).write_bytes(pictures[index])
        return names

    @property
    def video(self) -> str | None:
        return f"media/{self._name}.mp4" if self._moments else None


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
