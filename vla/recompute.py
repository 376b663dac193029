"""Layers of which a training keeps the inputs only: the rest is computed again when its gradients are due.

That is a third more arithmetic, and a layer's memory once instead of once for each. It is torch.utils.checkpoint; what
is computed again has the same numbers, so loss and gradients do not change by a bit.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vla.backbone import Block
from vla.encoder import FusionLayer, LocalLayer

LAYERS = (Block, LocalLayer, FusionLayer)


def recompute_layers(model: nn.Module) -> None:
    """Have every layer of a model computed again for its gradients, from now on."""
    for module in model.modules():
        if isinstance(module, LAYERS):
            module.forward = partial(_recomputed, module)


def _recomputed(layer: nn.Module, x: Tensor, *rest: object) -> Tensor:
    """A layer's own forward; what it does beside its result, it does the first time only."""

    def forward(x: Tensor, *rest: object) -> Tensor:
        return type(layer).forward(layer, x, *rest)

    if not torch.is_grad_enabled():
        return forward(x, *rest)
    again = layer.again if isinstance(layer, Block) else lambda *rest: rest
    first, kept = iter((rest,)), again(*rest)
    return checkpoint(
        lambda x: forward(x, *(next(first, None) or again(*kept))), x, use_reentrant=False, preserve_rng_state=False
    )
