"""Layers of which a training keeps the inputs only: the rest is computed again when its gradients are due.

That is a third more arithmetic, and a layer's memory once instead of once for each. It is torch.utils.checkpoint; what
is computed again has the same numbers, so loss and gradients do not change by a bit.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Layer(nn.Module):
    """A layer, `compute(x, ...)`; where `recompute` is set its gradients are made as the module's docstring says."""

    recompute = False

    def compute(self, x: Tensor, *rest: object) -> Tensor:
        raise NotImplementedError

    def again(self, *rest: object) -> tuple:
        """What `compute` is to take in the place of `rest` when it is not the first time; made before the first."""
        return rest

    def forward(self, x: Tensor, *rest: object) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            return self.compute(x, *rest)
        first, kept = iter((rest,)), self.again(*rest)

        def compute(x: Tensor) -> Tensor:
            return self.compute(x, *(next(first, None) or self.again(*kept)))

        return checkpoint(compute, x, use_reentrant=False, preserve_rng_state=False)


def recompute_layers(model: nn.Module) -> None:
    """Have every layer of a model computed again for its gradients, from now on."""
    for module in model.modules():
        if isinstance(module, Layer):
            module.recompute = True
