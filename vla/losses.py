"""What training minimises. Logits are made for scored positions and legal tokens only.

The softmax of a position runs over the tokens that the decoder may choose there, so the reported losses are the exact
negative log-likelihood of the decoder's own distribution. What is minimised is the divergence from a target that is
spread over its neighbours,

    KL(q || p),  q(i | t) ~ exp(-(i - t)^2 / (2 SPREAD^2))

since bins are ordered: the next bin is a small error, and examples that fall into different bins teach each other.

Every loss returns (loss to minimise, named detached scalars).
Letters: B batch, L tokens, T steps, P codes per step, D width, V vocabulary, R scored positions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sensors.errors import InputError

SPREAD_BINS = 1.0
RARE_WEIGHT = 4.0
Loss = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Counted:
    """How much one of the parts that a batch is learned from counts, beside the mean part, in losses that are means
    over other things than clips: of reasons over their tokens, of surroundings over what is known of them.

    With them the mean over the parts is the loss of the batch.
    """

    reason: float = 1.0
    surroundings: float = 1.0


WHOLE = Counted()  # the batch is not in parts


ROWS = 256  # logits of so many positions exist at a time


class _LinearCrossEntropy(torch.autograd.Function):
    """(sum of -log p, sum of log Z^2, number right) of targets [R] under softmax(hidden [R, D] head [V, D]^T).

    The gradient p - 1 at the target is made with the logits at hand, so no logits are kept and none are made twice:
    R V numbers of memory become ROWS V.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = hidden.new_zeros(3, dtype=torch.float32)
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        d_hidden, d_head = torch.zeros_like(hidden), torch.zeros_like(head)
        for h, t, d in zip(hidden.split(ROWS), targets.split(ROWS), d_hidden.split(ROWS), strict=True):
            logits = F.linear(h, head).float()
            log_z = logits.logsumexp(dim=-1, keepdim=True)
            own = logits.gather(-1, t[:, None])
            total += torch.stack([(log_z - own).sum(), log_z.square().sum(), (logits.argmax(-1) == t).float().sum()])
            if wanted:
                slope = logits.sub_(log_z).exp_().scatter_add_(-1, t[:, None], torch.full_like(own, -1.0)).to(h.dtype)
                torch.mm(slope, head, out=d)
                d_head.addmm_(slope.T, h)
        ctx.save_for_backward(d_hidden, d_head)
        loss, z, right = total.unbind()
        ctx.mark_non_differentiable(z, right)
        return loss, z, right

    @staticmethod
    def backward(ctx, gradient: Tensor, *_) -> tuple[Tensor, Tensor, None]:
        d_hidden, d_head = ctx.saved_tensors
        return d_hidden * gradient.to(d_hidden.dtype), d_head * gradient.to(d_head.dtype), None


def linear_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mean -log p, mean log Z^2, accuracy) of targets int64 [R] under softmax(hidden [R, D] head [V, D]^T).

    Only the first has a gradient. Without a row all are 0.
    """
    loss, z, right = _LinearCrossEntropy.apply(hidden, head, targets)
    rows = max(len(targets), 1)
    return loss / rows, z / rows, right / rows


def token_loss(hidden: Tensor, head: Tensor, tokens: Tensor, scored: Tensor, slot: slice, name: str) -> Loss:
    """Cross-entropy of tokens [..., L] where bool `scored` [..., L], over the tokens of `slot` only.

    hidden [..., L, D] has seen what comes before its own token; head [V, D]. Equal to a softmax over the whole
    vocabulary with all tokens outside the slot masked, at a fraction of the work. Without a scored position it is 0.
    """
    chosen = tokens[scored]
    if chosen.numel() and not slot.start <= chosen.min() <= chosen.max() < slot.stop:
        came = f"{int(chosen.min())} .. {int(chosen.max())}"
        fix = "Are they of another vocabulary layout?"
        raise InputError(f"{name} loss", "tokens", came, f"{slot.start} .. {slot.stop - 1}", fix)
    loss, z, accuracy = linear_cross_entropy(hidden[scored], head[slot], chosen - slot.start)
    return loss, {f"loss_{name}": loss.detach(), f"accuracy_{name}": accuracy, f"z_{name}": z}


def head_z_loss(hidden: Tensor, head: Tensor, slot: slice) -> Loss:
    """mean log(sum exp logits)^2 over hidden [R, D] and a slot: keeps logits from drifting (Chowdhery et al. 2022)."""
    loss = F.linear(hidden, head[slot]).float().logsumexp(dim=-1).square().mean()
    return loss, {"loss_head_z": loss.detach()}


def world_loss(hidden: Tensor, head: Tensor, codes: Tensor, seen: Tensor, slot: slice) -> Loss:
    """What the next frame will look like: hidden of code p of step t predicts code p of step t + 1.

    hidden [B, T - 1, P, D], codes int64 [B, T, P] (as tokens), seen bool [B, T, P]: false where no camera delivered.
    `copied_world` is the accuracy of saying that nothing changes: a model that looks ahead has to be above it.
    """
    if codes.shape[1] < 2:
        raise InputError("world loss", "codes", f"{codes.shape[1]} step", "at least 2: one to look at, one to predict")
    scored = seen[:, :-1] & seen[:, 1:]
    loss, scalars = token_loss(hidden, head, codes[:, 1:], scored, slot, "world")
    same = (codes[:, :-1] == codes[:, 1:])[scored].float()
    return loss, scalars | {"copied_world": same.sum() / max(same.numel(), 1)}


def surroundings_loss(logits: Tensor, there: Tensor, known: Tensor, name: str, seen: Tensor | None = None) -> Loss:
    """Binary cross-entropy of each cell of each layer, [B, C, X, Y], over the layers that are known [B, C].

    A cell where something stands weighs RARE_WEIGHT, one of a row that is not `seen` [B] nothing. `found_...`: share of
    the cells where something stands that are given more than one half.
    """
    asked = known if seen is None else known & seen[:, None]
    weight = torch.where(there, RARE_WEIGHT, 1.0) * asked[..., None, None]
    loss = F.binary_cross_entropy_with_logits(logits.float(), there.float(), weight, reduction="sum")
    loss = loss / (known.sum() * logits[0, 0].numel()).clamp(min=1)
    hits = there & asked[..., None, None]
    found = ((logits.detach() > 0) & hits).sum() / hits.sum().clamp(min=1)
    return loss, {f"loss_{name}": loss.detach(), f"found_{name}": found}


def counted(loss: Loss, weight: float) -> Loss:
    """The loss of a part of a batch and its named scalars, as much as the part counts."""
    return weight * loss[0], {name: weight * value for name, value in loss[1].items()}


def masked_tokens(tokens: Tensor, mask_token: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(tokens [B, L] with some replaced by mask_token, bool [B, L] which): a share cos(pi u / 2), u uniform, per row.

    Chang et al. 2022 (MaskGIT), eq. 3. At least one token of a row is masked.
    """
    B, L = tokens.shape
    share = torch.cos(torch.rand(B, 1, generator=generator) * (math.pi / 2))
    order = torch.rand(B, L, generator=generator).argsort(dim=-1).argsort(dim=-1)
    masked = (order < (share * L).ceil().clamp(min=1)).to(tokens.device)
    return tokens.masked_fill(masked, mask_token), masked


def masked_loss(hidden: Tensor, head: Tensor, tokens: Tensor, masked: Tensor, slot: slice) -> Loss:
    """Cross-entropy of the tokens [B, L] that `masked_tokens` hid, from hidden [B, L, D] of the places they had."""
    return token_loss(hidden, head, tokens, masked, slot, "masked")


def info_nce(a: Tensor, b: Tensor, scale: Tensor | float, name: str) -> Loss:
    """Row i of a [B, D] belongs to row i of b: cross-entropy of finding it, both ways (Radford et al. 2021).

    logits = scale cos(a_i, b_j)
    """
    logits = _cosines(a, b, name) * scale
    own = torch.arange(len(a), device=a.device)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    found = (logits.detach().argmax(dim=-1) == own).float().mean()
    return loss, {f"loss_nce_{name}": loss.detach(), f"found_{name}": found}


def siglip(a: Tensor, b: Tensor, scale: Tensor | float, bias: Tensor | float, name: str) -> Loss:
    """Each pair (i, j) of rows of a and b [B, D] on its own: do they belong together (Zhai et al. 2023, eq. 1)?

    -1/B sum_ij log sigmoid(z_ij (scale cos(a_i, b_j) + bias)),  z = 1 for i = j, else -1
    """
    logits = _cosines(a, b, name) * scale + bias
    z = 2 * torch.eye(len(a), device=a.device) - 1
    loss = -F.logsigmoid(z * logits).sum() / len(a)
    return loss, {f"loss_siglip_{name}": loss.detach()}


def _cosines(a: Tensor, b: Tensor, name: str) -> Tensor:
    if a.shape != b.shape or len(a) < 2:
        came = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise InputError(f"{name} loss", "pairs", came, "two of one shape [B, D], B at least 2")
    return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T


def action_loss(hidden: Tensor, head: Tensor, tokens: Tensor, slots: tuple[slice, slice]) -> Loss:
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
