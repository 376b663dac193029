"""Autoregressive decoding of a plan, restricted to tokens that are legal at their position."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla.backbone import Backbone


@dataclass(frozen=True)
class ActionDecode:
    """tokens int64 [B, 2K], legal at every position; logprob float32 [B], of the whole plan at temperature 1."""

    tokens: Tensor
    logprob: Tensor


def choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Index [B] into logits [B, V]: the largest at temperature 0, else drawn from softmax(logits / temperature)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]


def decode_actions(
    backbone: Backbone,
    embedding: nn.Embedding,
    head: Tensor,
    slots: tuple[slice, slice],
    prefix: Tensor,
    blocks: Tensor,
    temperature: float,
    generator: torch.Generator | None,
) -> ActionDecode:
    """Tokens after prefix [B, L, D], whose end is the plan token; blocks [L + 2K - 1] number it and what follows."""
    B, L, _ = prefix.shape
    cache = backbone.cache(B, len(blocks), prefix)
    x, start, tokens = prefix, 0, []
    logprob = torch.zeros(B, device=prefix.device)
    for i in range(len(blocks) - L + 1):
        hidden, _ = backbone(x, blocks[start : L + i], cache)
        slot = slots[i % 2]
        logits = F.linear(hidden[:, -1], head[slot]).float()
        index = choose(logits, temperature, generator)
        logprob = logprob + logits.log_softmax(dim=-1).gather(-1, index[:, None])[:, 0]
        tokens.append(index + slot.start)
        x, start = embedding(tokens[-1])[:, None], L + i
    return ActionDecode(torch.stack(tokens, dim=1), logprob)
