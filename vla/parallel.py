"""Data parallel training: replicas of one model, each in a process of its own, that step together.

Every replica sees its share of a batch; gradients are averaged, so that all take the step that one would have taken on
the whole batch (to rounding), and stay equal to the bit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed

from sensors.errors import InputError

PATIENCE = timedelta(minutes=10)  # for the others; one replica may be validating or reading its data


@dataclass(frozen=True)
class Replicas:
    """What one of `count` replicas knows of the others; alone, all of it costs nothing."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, rank: int, count: int, meeting: Path) -> "Replicas":
        """Meet the others over the file `meeting`, which must not exist before; returns when all are there."""
        store = f"file://{Path(meeting).absolute()}"
        distributed.init_process_group("gloo", store, rank=rank, world_size=count, timeout=PATIENCE)
        return cls(rank, count)

    def leave(self) -> None:
        if self.count > 1:
            distributed.destroy_process_group()

    def share(self, batch: Sequence) -> Sequence:
        """This replica's part of a batch; all parts are of one size."""
        if len(batch) % self.count:
            fix = "Change train.batch_size, or the number of workers."
            raise InputError("data parallel", "batch_size", len(batch), f"a multiple of {self.count} workers", fix)
        size = len(batch) // self.count
        return batch[self.rank * size : (self.rank + 1) * size]

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor, in place, by its mean over the replicas."""
        self._over_all(tensors, distributed.ReduceOp.SUM, 1.0 / self.count)

    def total(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over the replicas."""
        self._over_all(tensors, distributed.ReduceOp.SUM)

    def largest(self, tensors: Iterable[Tensor]) -> None:
        """Replace each number of each tensor, in place, by its maximum over the replicas."""
        self._over_all(tensors, distributed.ReduceOp.MAX)

    def _over_all(self, tensors: Iterable[Tensor], kind: distributed.ReduceOp, scale: float = 1.0) -> None:
        tensors = list(tensors)
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])  # one message instead of hundreds
        distributed.all_reduce(flat, kind)
        flat *= scale
        for tensor, piece in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(piece.view_as(tensor))
