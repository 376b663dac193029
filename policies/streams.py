"""The order in which a training learns from examples that lie in shards: each shard is read once an epoch.

    the shards of an epoch, in an order of its own, are cut into lanes of one length, each a run of examples;
    in its lane an example moves by at most `reach` places: what a shuffle buffer of so many does;
    every part of the batch draws from a lane of its own

so that a worker, who learns from one part of each batch, reads the shards of its lanes and no others, a few at a time,
and two workers read none alike but where two lanes meet. How many lanes there are depends on the batch and the shards
alone: the order is the same however many workers there are. It is a function of (seed, draw): nothing is lost by
starting anew at any draw.
"""

from functools import lru_cache

import numpy as np

from sensors.errors import InputError

EPOCHS_KEPT = 4
NEAR = 20  # tries to find an example near one whose file is broken, before any will do


class Streams:
    """Draws of `size` examples; `shards` [examples]: the number of the shard that each lies in, 0 .. M - 1.

    chances [examples]: how often each is to be drawn, sum 1; None: all alike, once an epoch.
    """

    def __init__(self, shards: np.ndarray, size: int, seed: int, reach: int, chances: np.ndarray | None = None):
        self.shards, self.seed, self.reach = shards, seed, reach
        count = len(np.unique(shards))
        self.lanes = max(lanes for lanes in range(1, min(size, count, len(shards)) + 1) if size % lanes == 0)
        self.width = size // self.lanes  # examples of a draw from each lane
        self._chances = chances
        self.lane = lru_cache(maxsize=EPOCHS_KEPT * self.lanes)(self._lane)
        self._laid_out = lru_cache(maxsize=EPOCHS_KEPT)(self._lay_out)

    def __reduce__(self):
        return Streams, (self.shards, self.width * self.lanes, self.seed, self.reach, self._chances)

    def require_apart(self, workers: int) -> None:
        """An InputError if so many workers cannot read lanes of their own."""
        if self.lanes % workers:
            came = f"{len(np.unique(self.shards))} shards and a batch of {self.width * self.lanes}: {self.lanes} lanes"
            fix = "Pack smaller shards (--shard-mb), change train.batch_size, or the number of workers."
            raise InputError("data.shuffle", "lanes", came, f"a multiple of {workers} workers", fix)

    def indices(self, draw: int) -> list[int]:
        """The examples of a draw, lane by lane."""
        first = draw * self.width
        places = range(first, first + self.width)
        return [self._at(lane, place) for lane in range(self.lanes) for place in places]

    def instead(self, draw: int, place: int, rng: np.random.Generator, tried: int) -> int:
        """Another example for a place of a draw, by preference one whose shard is being read."""
        lane, near = place // self.width, self.reach + self.width
        if tried >= NEAR:
            return int(rng.integers(len(self.shards)))
        at = draw * self.width + int(rng.integers(-near, near + 1))
        return self._at(lane, max(at, 0))

    def _at(self, lane: int, place: int) -> int:
        """The example at a place of a lane's endless sequence of epochs."""
        ends = self._ends()
        epoch, within = divmod(place, int(ends[lane + 1] - ends[lane]))
        return int(self.lane(epoch, lane)[within])

    def _ends(self) -> np.ndarray:
        return np.arange(self.lanes + 1) * len(self.shards) // self.lanes

    def _lane(self, epoch: int, lane: int) -> np.ndarray:
        """Examples of a lane in an epoch, in order."""
        ends = self._ends()
        run = self._laid_out(epoch)[ends[lane] : ends[lane + 1]]
        jitter = np.random.default_rng([self.seed, epoch, 5, lane]).random(len(run))
        return run[np.argsort(np.arange(len(run)) + self.reach * jitter, kind="stable")]

    def _lay_out(self, epoch: int) -> np.ndarray:
        """All that an epoch learns from, shard by shard, as often as it is wanted."""
        rng = np.random.default_rng([self.seed, epoch, 4])
        rank = rng.permutation(self.shards.max() + 1)[self.shards]
        order = np.argsort(rank, kind="stable")
        if self._chances is None:
            return order
        # An example that is wanted 2.3 times comes twice or thrice: systematic sampling, whose sum is exact.
        wanted = np.concatenate([[0.0], np.cumsum(self._chances)])
        marks = np.floor(wanted / wanted[-1] * len(order) + rng.random())
        return np.repeat(order, np.diff(marks).astype(int)[order])
