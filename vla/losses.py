"""What training minimises. Logits are made for scored positions and legal tokens only.

The softmax of a position runs over the tokens that the decoder may choose there, so the loss is the exact negative
log-likelihood of the decoder's own distribution.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def action_loss(hidden: Tensor, head: Tensor, tokens: Tensor, slots: tuple[slice, slice]) -> tuple[Tensor, dict]:
    """Mean cross-entropy of action tokens [B, 2K] from hidden [B, 2K, D], which has seen all tokens before its own.

    head [V, D]; slots: the ids that may stand at even (acceleration) and at odd (curvature) positions.
    """
    losses, scalars = [], {}
    for first, name in enumerate(("accel", "curvature")):
        slot = slots[first]
        logits = F.linear(hidden[:, first::2], head[slot]).float().flatten(0, 1)
        target = (tokens[:, first::2] - slot.start).flatten()
        losses.append(F.cross_entropy(logits, target))
        scalars[f"loss_{name}"] = losses[-1].detach()
        scalars[f"accuracy_{name}"] = (logits.detach().argmax(dim=-1) == target).float().mean()
    return torch.stack(losses).mean(), scalars
