"""Feed-forward parts of a block: dense SwiGLU, and routed experts.

    SwiGLU(x) = W_down (silu(W_gate x) * W_up x)
    MoE(x)    = Shared(x) + sum over chosen e of  w_e Expert_e(x)
    s = sigmoid(W_router x);  chosen = top-k of s + bias;  w_e = s_e / sum of chosen s

The bias chooses but does not weigh: after each training step `rebalance` raises it for experts that got less than
their share, which evens the load without a loss that pulls on the weights (Wang et al. 2024, DeepSeek-V3). No token
is ever dropped. Letters: M tokens, D width, E experts, k chosen per token, F expert width.
"""

import torch
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """x [..., D] to [..., D] over `hidden` gated units."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(nn.functional.silu(gate) * up)


class MoE(nn.Module):
    """Routed experts with one shared; x [B, L, D] to (y [B, L, D], router z-loss)."""

    def __init__(self, width: int, experts: int, experts_per_token: int, hidden: int, shared: int):
        super().__init__()
        self.experts, self.k = experts, experts_per_token
        self.router = nn.Linear(width, experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * hidden, width))
        self.down = nn.Parameter(torch.empty(experts, width, hidden))
        self.shared = SwiGLU(width, shared * hidden)
        self.register_buffer("bias", torch.zeros(experts))
        # Tokens each expert got since the last `rebalance`; zero between steps, so not part of a checkpoint.
        self.register_buffer("load", torch.zeros(experts), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = x.reshape(-1, x.shape[-1])
        logits = self.router(tokens).float()
        scores = logits.sigmoid()
        chosen = (scores + self.bias).topk(self.k, dim=-1).indices
        weights = scores.gather(-1, chosen)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        # Sorted by expert, each expert's tokens are one run of rows, and one grouped product serves all of them.
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=self.experts)
        ends = counts.cumsum(0, dtype=torch.int32)
        rows = tokens.index_select(0, order // self.k)
        gate, up = nn.functional.grouped_mm(rows, self.gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        rows = nn.functional.grouped_mm(nn.functional.silu(gate) * up, self.down.transpose(1, 2), offs=ends)
        # Back in the order of the tokens: a sum over k neighbours, the same on every run and for every batch.
        routed = rows.index_select(0, order.argsort()).view(len(tokens), self.k, -1)
        routed = (routed * weights[..., None].to(rows.dtype)).sum(dim=1)
        if self.training:
            self.load += counts
        z_loss = logits.logsumexp(dim=-1).square().mean()
        return routed.view_as(x) + self.shared(x), z_loss

    @torch.no_grad()
    def rebalance(self, rate: float) -> None:
        """bias += rate sign(mean load - load), then count afresh."""
        self.bias += rate * (self.load.mean() - self.load).sign()
        self.load.zero_()
