"""Expert parallelism: each of a group's workers holds some of a layer's experts, and tokens travel to those they chose.

    rows of a worker, sorted by expert  --all-to-all-->  rows of its experts, from all workers
    -> sorted by expert -> through the experts -> back in the order they came  --all-to-all-->  rows as they left

Expert e belongs to worker e // (E / n) of n, so rows sorted by expert are sorted by worker. Before the rows go their
counts, so any load is possible: no token is dropped, and a worker whose experts got none takes part with no rows. Every
worker of a group has to run the same layers equally often. Letters: R rows, D width, n workers, E experts.
"""

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from vla.moe import MoE, Rows


class Exchange:
    """What a `vla.moe.MoE` whose experts are divided over a group sends its rows through."""

    def __init__(self, group: ProcessGroup):
        self.group = group

    def __call__(self, moe: MoE, rows: Tensor, counts: Tensor) -> Tensor:
        """What the experts make of rows [R, D], counts int64 [E] of each; in the order of the rows."""
        sent = counts.view(self.group.size(), -1)  # [n, E / n]: to whom, for which of their experts
        came = torch.empty_like(sent)
        distributed.all_to_all_single(came, sent.contiguous(), group=self.group)
        there, back = sent.sum(dim=1).tolist(), came.sum(dim=1).tolist()
        rows = _AllToAll.apply(rows, there, back, self.group)
        experts = torch.arange(came.shape[1], device=rows.device).repeat(len(came)).repeat_interleave(came.flatten())
        order = experts.argsort(stable=True)
        place = order.argsort()
        rows = Rows.apply(rows, order, place, 1)
        rows = moe.by_expert(rows, came.sum(dim=0), local(moe.gate_up), local(moe.down))
        return _AllToAll.apply(Rows.apply(rows, place, order, 1), back, there, self.group)


class _AllToAll(torch.autograd.Function):
    """Rows [R, D]: the first there[0] to worker 0, the next to worker 1 ...; back[k] come from worker k."""

    @staticmethod
    def forward(ctx, rows: Tensor, there: list[int], back: list[int], group: ProcessGroup) -> Tensor:
        ctx.splits, ctx.group = (there, back), group
        return _all_to_all(rows, there, back, group)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        there, back = ctx.splits
        return _all_to_all(gradient, back, there, ctx.group), None, None, None


def _all_to_all(rows: Tensor, there: list[int], back: list[int], group: ProcessGroup) -> Tensor:
    came = rows.new_empty(sum(back), *rows.shape[1:])
    distributed.all_to_all_single(came, rows.contiguous(), back, there, group=group)
    return came


def local(tensor: Tensor) -> Tensor:
    """This worker's part of a tensor; of one that is not divided, all of it. Gradients flow."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
