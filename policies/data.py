"""Training examples: clips of recorded scenes with the action tokens that reproduce their future."""

import numpy as np

from policies.transforms import future_in_ego, reaches, speed_at_now
from sensors.clip import Clip
from sensors.errors import InputError
from sensors.source import Source
from vla.action_tokens import ActionTokenizer


class TrainingSet:
    """Indexable pairs (clip, action tokens int64 [2K]) over the frames of `scenes` with a full plan ahead of them."""

    def __init__(self, source: Source, scenes: tuple[str, ...], tokenizer: ActionTokenizer):
        self._source, self._tokenizer = source, tokenizer
        self.time_s = tokenizer.dt_s * np.arange(1, tokenizer.steps + 1)
        horizon_s = float(self.time_s[-1])
        self._items = []
        for scene in scenes:
            times_us = source.frame_times_us(scene)
            self._items += [(scene, k) for k, now in enumerate(times_us) if reaches(now, times_us, horizon_s)]
        if not self._items:
            expected = f"at least one frame with {horizon_s:g} s of future"
            raise InputError(source.name, "scenes", f"{len(scenes)} scenes without one", expected)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Clip, np.ndarray]:
        scene, frame = self._items[index]
        clip = self._source.clip(scene, frame)
        return clip, self._tokenizer.encode(*self._tokenizer.labels(self.truth(index, clip), speed_at_now(clip)))

    def truth(self, index: int, clip: Clip) -> np.ndarray:
        """What was driven: x, y, yaw [K, 3] in ego at the plan's times."""
        scene, frame = self._items[index]
        return future_in_ego(clip, self._source.future(scene, frame), self.time_s)
