"""The protocol that every source of clips implements, and the checker that ships with it."""

from typing import Protocol

import numpy as np

from sensors.clip import Clip, Future
from sensors.errors import InputError


class Source(Protocol):
    """Random access to the clips of recorded scenes.

    A frame is an instant of a scene at which a clip can be asked for; `frame_times_us` lists them. Clips of one source
    agree in T, in the number, order and size of cameras. `future` is separate so that a policy can't reach it.
    """

    name: str
    scenes: tuple[str, ...]

    def frame_times_us(self, scene: str) -> np.ndarray:
        """int64 [M], strictly increasing."""

    def clip(self, scene: str, frame: int) -> Clip: ...

    def future(self, scene: str, frame: int) -> Future: ...


def check_source(source: Source, frames_per_scene: int = 3) -> int:
    """Walk a source and raise an InputError at the first breach of the protocol; returns the number of clips seen.

    Checks, at first, middle and last frames of every scene: frame times increase, clips validate and agree in shape and
    cameras, the clip's instant is the frame's, the future lies after it, and asking twice gives the same answer.
    """
    if not source.scenes:
        raise InputError(source.name, "scenes", "none", "at least one scene")
    shape, seen = None, 0
    for scene in source.scenes:
        where = f"{source.name} {scene}"
        times = source.frame_times_us(scene)
        if times.dtype != np.int64 or not len(times) or (np.diff(times) <= 0).any():
            raise InputError(where, "frame_times_us", f"{times.dtype} {times[:3]}...", "increasing int64, not empty")
        for frame in sorted(set(np.linspace(0, len(times) - 1, frames_per_scene).astype(int).tolist())):
            clip = source.clip(scene, frame).validate(f"{where} frame {frame}")
            now = (clip.images.shape, tuple(camera.name for camera in clip.cameras))
            shape = shape or now
            if now != shape:
                raise InputError(where, "clip", now, f"{shape}, like the source's first clip")
            if clip.now_us != times[frame]:
                raise InputError(where, "clip.now_us", clip.now_us, f"frame_times_us[{frame}] = {times[frame]}")
            future = source.future(scene, frame)
            if (np.diff(future.time_us, prepend=clip.now_us) <= 0).any():
                raise InputError(where, "future.time_us", future.time_us[:3], f"increasing times after {clip.now_us}")
            if future.T_world_from_ego.shape != (len(future.time_us), 4, 4):
                raise InputError(where, "future.T_world_from_ego", future.T_world_from_ego.shape, "[K, 4, 4]")
            if not np.array_equal(clip.images, source.clip(scene, frame).images):
                raise InputError(where, "clip", "other images the second time", "the same clip when asked twice")
            seen += 1
    return seen
