"""What training minimises. Logits are made for scored positions and legal tokens only.

The softmax of a position runs over the tokens that the decoder may choose there, so the reported losses are the exact
negative log-likelihood of the decoder's own distribution. What is minimised is the divergence from a target that is
spread over its neighbours,

    KL(q || p),  q(i | t) ~ exp(-(i - t)^2 / (2 SPREAD^2))

since bins are ordered: the next bin is a small error, and examples that fall into different bins teach each other.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SPREAD_BINS = 1.0


def action_loss(hidden: Tensor, head: Tensor, tokens: Tensor, slots: tuple[slice, slice]) -> tuple[Tensor, dict]:
    """(loss to minimise, named scalars) of action tokens [B, 2K].

    hidden [B, 2K, D] has seen all tokens before its own; head [V, D]; slots: the ids that may stand at even
    (acceleration) and at odd (curvature) positions.
    """
    losses, scalars = [], {}
    for first, name in enumerate(("accel", "curvature")):
        slot = slots[first]
        logits = F.linear(hidden[:, first::2], head[slot]).float().flatten(0, 1)
        target = (tokens[:, first::2] - slot.start).flatten()
        bins = torch.arange(logits.shape[-1], device=logits.device)
        spread = torch.softmax(-0.5 * ((bins - target[:, None]) / SPREAD_BINS) ** 2, dim=-1)
        losses.append(F.kl_div(logits.log_softmax(dim=-1), spread, reduction="batchmean"))
        scalars[f"loss_{name}"] = F.cross_entropy(logits.detach(), target)
        scalars[f"accuracy_{name}"] = (logits.detach().argmax(dim=-1) == target).float().mean()
    scalars["loss_action"] = (scalars["loss_accel"] + scalars["loss_curvature"]) / 2
    return torch.stack(losses).mean(), scalars
