"""Data parallel training: replicas of one model, each in a process of its own, that step together.

Every replica sees its share of a batch; gradients are averaged, so that all take the step that one would have taken on
the whole batch (to rounding), and stay equal to the bit.
"""

import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from sensors.errors import InputError

PATIENCE = timedelta(minutes=10)  # for the others; one replica may be validating or reading its data


@dataclass(frozen=True)
class Replicas:
    """What one of `count` replicas knows of the others; alone, all of it costs nothing."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, rank: int, count: int, meeting: Path | str, device: str = "cpu") -> "Replicas":
        """Meet the others; returns when all are there. On a GPU each takes one, in the order of their ranks.

        meeting: a file that all can write and that must not exist before, or "tcp://HOST:PORT", a free port of the
        first one's machine.
        """
        store = meeting if isinstance(meeting, str) else f"file://{meeting.absolute()}"
        backend = "gloo"
        if device == "cuda":
            torch.cuda.set_device(rank % torch.cuda.device_count())
            backend = "cpu:gloo,cuda:nccl"
        distributed.init_process_group(backend, store, rank=rank, world_size=count, timeout=PATIENCE)
        return cls(rank, count)

    @property
    def divided(self) -> bool:
        """Whether each holds only a part of the model: `vla.sharding`."""
        return False

    def leave(self) -> None:
        if self.count > 1:
            gc.collect()  # a group that only garbage holds would be ended after Python, which aborts the process
            distributed.destroy_process_group()

    def share(self, batch: Sequence) -> Sequence:
        """This replica's part of a batch; all parts are of one size."""
        if len(batch) % self.count:
            fix = "Change train.batch_size, or the number of workers."
            raise InputError("data parallel", "batch_size", len(batch), f"a multiple of {self.count} workers", fix)
        size = len(batch) // self.count
        return batch[self.rank * size : (self.rank + 1) * size]

    @property
    def arrangement(self) -> dict:
        """As a checkpoint in shards says it: over what a model is divided."""
        return {"workers": self.count, "shard": False, "experts_over": 1}

    def divide(self, model: nn.Module) -> None:
        """Leave of a model, equal on all of them, what this one is to hold: all of it."""

    def own(self, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """What this one's optimizer moves of named parameters."""
        return parameters

    def settle(self, parameters: dict[str, nn.Parameter], own: dict[str, nn.Parameter]) -> None:
        """Make the gradients of `own(parameters)` those of the mean of all replicas' losses."""
        self.average(p.grad for p in parameters.values() if p.grad is not None)

    def norms(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """The norm of the whole of each, by name of the parameter that it is this one's part of."""
        return {name: torch.linalg.vector_norm(gradient) for name, gradient in gradients.items()}

    def as_whole(self, name: str, part: Tensor) -> Tensor:
        """What belongs to this one's part of a parameter (a moment), as a part of the whole."""
        return part

    def fill(self, tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        """Give tensors of this one's, by name, the values that they have as a whole."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(values[name])

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor, in place, by its mean over the replicas."""
        self._over_all(tensors, distributed.ReduceOp.SUM, 1.0 / self.count)

    def total(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor, in place, by its sum over the replicas."""
        self._over_all(tensors, distributed.ReduceOp.SUM)

    def largest(self, tensors: Iterable[Tensor]) -> None:
        """Replace each number of each tensor, in place, by its maximum over the replicas."""
        self._over_all(tensors, distributed.ReduceOp.MAX)

    def _over_all(
        self,
        tensors: Iterable[Tensor],
        kind: distributed.ReduceOp,
        scale: float = 1.0,
        group: distributed.ProcessGroup | None = None,
    ) -> None:
        tensors = list(tensors)
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])  # one message instead of hundreds
        distributed.all_reduce(flat, kind, group)
        flat *= scale
        for tensor, piece in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(piece.view_as(tensor))
