"""Training examples: clips of recorded scenes with the action tokens that reproduce their future."""

import numpy as np

from policies.transforms import future_in_ego, reaches, speed_at_now
from sensors.augment import drop_cameras, mirror, mirror_future, photometric
from sensors.clip import Clip, Future
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
        """The example as it was recorded."""
        clip, future = self.recorded(index)
        return clip, self._tokens(clip, future)

    def varied(
        self, index: int, rng: np.random.Generator, mirror_share: float, camera_dropout: float
    ) -> tuple[Clip, np.ndarray]:
        """The example in another light, mirrored and without some of its cameras at these shares."""
        clip, future = self.recorded(index)
        if rng.random() < mirror_share:
            clip, future = mirror(clip), mirror_future(future)
        return drop_cameras(photometric(clip, rng), rng, camera_dropout), self._tokens(clip, future)

    def recorded(self, index: int) -> tuple[Clip, Future]:
        scene, frame = self._items[index]
        return self._source.clip(scene, frame), self._source.future(scene, frame)

    def _tokens(self, clip: Clip, future: Future) -> np.ndarray:
        driven = future_in_ego(clip, future, self.time_s)
        return self._tokenizer.encode(*self._tokenizer.labels(driven, speed_at_now(clip)))
