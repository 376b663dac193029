"""Feed-forward parts of a block: dense SwiGLU, and routed experts.

    SwiGLU(x)  = W_down (silu(W_gate x) * W_up x)
    MoE(x)     = Shared(x) + sum over chosen e of  w_e Expert_e(x)
    "sigmoid"    s = sigmoid(W_router x);  chosen = top-k of s + bias;  w_e = s_e / sum of chosen s
    "softmax"    s = softmax(W_router x);  chosen = top-k of s;         w_e = s_e / sum of chosen s   (Qwen3)

The bias chooses but does not weigh: after each training step `rebalance` raises it for experts that got less than
their share, which evens the load without a loss that pulls on the weights (Wang et al. 2024, DeepSeek-V3). No token
is ever dropped. Letters: M tokens, D width, E experts, k chosen per token, F expert width, n groups of tokens.
"""

import math
from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensors.errors import InputError
from vla.config import BackboneConfig

FEW_ROWS = 200  # tokens times experts


class SwiGLU(nn.Module):
    """x [..., D] to [..., D] over `hidden` gated units."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up if torch.is_grad_enabled() else F.silu(gate).mul_(up))


@dataclass(frozen=True)
class Routing:
    """What one routed layer did: logits [M, E] of its router and the experts chosen int64 [M, k]."""

    logits: Tensor
    chosen: Tensor

    @property
    def load(self) -> Tensor:
        """Tokens of each expert, int64 [E]."""
        return self.chosen.flatten().bincount(minlength=self.logits.shape[-1])


class MoE(nn.Module):
    """Routed experts, with shared ones where the config has some; x [B, L, D] to [B, L, D]."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        c, width, hidden = config, config.width, config.expert_hidden
        self.experts, self.k = c.experts, c.experts_per_token
        self.softmax, self.normalise = c.router == "softmax", c.normalise_weights
        self.dropout = c.expert_dropout
        self.router = nn.Linear(width, c.experts, bias=False)
        self.gate_up = nn.Parameter(torch.empty(c.experts, 2 * hidden, width))
        self.down = nn.Parameter(torch.empty(c.experts, width, hidden))
        self.shared = SwiGLU(width, c.shared_experts * hidden) if c.shared_experts else None
        self.register_buffer("bias", torch.zeros(c.experts))
        # Tokens each expert got since the last `rebalance`; zero between steps, so not part of a checkpoint.
        self.register_buffer("load", torch.zeros(c.experts), persistent=False)
        self.exchange: Callable | None = None  # where other workers hold some of the experts: `vla.expert_parallel`
        self.take_products(grouped_linear, grouped_linear)

    def take_products(self, up: Callable, down: Callable) -> None:
        """Take the experts' products by these, functions or modules, in the place of `grouped_linear`."""
        for name, product in (("up_product", up), ("down_product", down)):
            if hasattr(self, name):
                delattr(self, name)
            setattr(self, name, product)

    def forward(
        self,
        x: Tensor,
        routings: MutableSequence[Routing] | None = None,
        generator: torch.Generator | None = None,
        counted: bool = True,
    ) -> Tensor:
        """`routings`, where given, gets what this layer chose; `generator` draws which experts are dropped; counted:
        whether these tokens are part of the `load`, as they are once."""
        tokens = x.reshape(-1, x.shape[-1])
        logits = self.router(tokens).float()
        weights, chosen = self.choose(logits, generator)
        routed = self._way(tokens)(tokens, weights, chosen)
        if routings is not None:
            routings.append(Routing(logits, chosen))
        if self.training and counted:
            self.load += chosen.flatten().bincount(minlength=self.experts)
        routed = routed.view_as(x)
        return routed if self.shared is None else routed + self.shared(x)

    def choose(self, logits: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(weights [M, k], experts int64 [M, k]) of router logits [M, E]."""
        scores = logits.softmax(dim=-1) if self.softmax else logits.sigmoid()
        preference = scores if self.softmax else scores + self.bias
        if self.training and self.dropout:
            preference = preference.masked_fill(self._dropped(generator), -torch.inf)
        weights, chosen = preference.topk(self.k, dim=-1)
        if preference is not scores:
            weights = scores.gather(-1, chosen)
        return (weights / weights.sum(dim=-1, keepdim=True) if self.normalise else weights), chosen

    def _dropped(self, generator: torch.Generator | None) -> Tensor:
        """bool [E]: experts that this pass does without; at least k stay."""
        if generator is None:
            raise InputError("training", "generator", "none", "a torch.Generator", "expert_dropout draws from it.")
        draw = torch.rand(self.experts, generator=generator).to(self.bias.device)
        return (draw < self.dropout) & (draw < draw.topk(self.k).values[-1])

    def _way(self, tokens: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Three ways to one result: on a CPU, sorting a few tokens takes longer than computing too much for them."""
        if torch.is_grad_enabled() or tokens.is_cuda or self.up_product is not grouped_linear or self.exchange:
            return self.mixture
        if len(tokens) == 1:
            return self.one_token
        return self.all_experts if len(tokens) * self.experts <= FEW_ROWS else self.mixture

    def all_experts(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """`mixture` by computing every expert for every token and weighing those not chosen with 0."""
        E, M = self.experts, len(tokens)
        gate, up = F.linear(tokens, self.gate_up.flatten(0, 1)).view(M, E, -1).chunk(2, dim=-1)
        every = torch.zeros(M, E, dtype=tokens.dtype, device=tokens.device).scatter_(
            1, chosen, weights.to(tokens.dtype)
        )
        hidden = F.silu(gate).mul_(up).mul_(every[..., None])
        return torch.bmm(hidden.transpose(0, 1), self.down.transpose(1, 2)).sum(dim=0)

    def mixture(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """[M, D]: each token's experts, weighed. Sorted by expert, each expert's tokens are one run of rows."""
        order = chosen.flatten().argsort(stable=True)
        place = order.argsort()
        counts = chosen.flatten().bincount(minlength=self.experts)
        rows = Rows.apply(tokens, order, place, self.k)
        if self.exchange is None:
            rows = self.by_expert(rows, counts, self.gate_up, self.down)
        else:
            rows = self.exchange(self, rows, counts)
        # Back in the order of the tokens: a sum over k neighbours, the same on every run and for every batch.
        routed = Rows.apply(rows, place, order, 1).view(len(tokens), self.k, -1)
        return (routed * weights[..., None].to(rows.dtype)).sum(dim=1)

    def by_expert(self, rows: Tensor, counts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """rows [R, D], sorted by expert, through their experts; counts int64 [E] of each expert's rows."""
        ends = counts.cumsum(0, dtype=torch.int32)
        gate, up = self.up_product(rows, gate_up, ends).chunk(2, dim=-1)
        return self.down_product(F.silu(gate) * up, down, ends)

    def one_token(self, token: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """`mixture` of a single token [1, D] on a CPU: sorting and grouping would take longer than the products."""
        y = None
        for weight, expert in zip(weights[0].tolist(), chosen[0].tolist(), strict=True):
            gate, up = F.linear(token, self.gate_up[expert]).chunk(2, dim=-1)
            one = F.linear(F.silu(gate).mul_(up), self.down[expert])
            y = one.mul_(weight) if y is None else y.add_(one, alpha=weight)
        return y

    @torch.no_grad()
    def rebalance(self, rate: float) -> None:
        """bias += rate sign(mean load - load), then count afresh; a softmax router has no bias to move, and that of a
        router that is frozen stays."""
        if not self.softmax and self.router.weight.requires_grad:
            self.bias += rate * (self.load.mean() - self.load).sign()
        self.load.zero_()


class Rows(torch.autograd.Function):
    """Row order[i] // k of x [R, D] for each i; `place` is the inverse of the permutation `order` [R k].

    torch's own gradient of this adds rows up in any order; this one gathers them, faster and always alike.
    """

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, place: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(place)
        ctx.k = k
        return x.index_select(0, order // k if k > 1 else order)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        rows = gradient.index_select(0, ctx.saved_tensors[0])
        return (rows if ctx.k == 1 else rows.view(-1, ctx.k, rows.shape[-1]).sum(dim=1)), None, None, None


def grouped_linear(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """rows [R, in] times weight [E, out, in]: expert e's rows end before ends[e]; [R, out].

    Under autocast in its type, as torch does with every other product; of this one it does not know.
    """
    device = rows.device.type
    if torch.is_autocast_enabled(device):
        rows, weight = rows.to(torch.get_autocast_dtype(device)), weight.to(torch.get_autocast_dtype(device))
    return F.grouped_mm(rows, weight.transpose(1, 2), offs=ends)


# What routers are told, and what is told about them ----------------------------------------------


def router_z_loss(routings: Sequence[Routing]) -> Tensor:
    """mean log(sum exp logits)^2 over tokens and layers: keeps logits small (Zoph et al. 2022, eq. 5)."""
    return torch.stack([routing.logits.logsumexp(dim=-1).square().mean() for routing in routings]).mean()


def balance_loss(routings: Sequence[Routing]) -> Tensor:
    """E sum_e f_e p_e, mean over layers: f_e share of choices, p_e mean probability; 1 when even (Fedus et al.)."""
    losses = []
    for routing in routings:
        share = routing.load / routing.chosen.numel()
        losses.append(routing.logits.shape[-1] * (share * routing.logits.softmax(dim=-1).mean(dim=0)).sum())
    return torch.stack(losses).mean()


@torch.no_grad()
def routing_statistics(routings: Sequence[Routing], groups: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """Named figures per routed layer and group of tokens (`groups` int64 [M] indexes `names`); a group without tokens
    has none.

        load        share of the busiest expert times E: 1 when even, E / k when all tokens choose the same k
        entropy     of the group's load, over log E: 1 when even
        confidence  mean probability of a token's first choice
    """
    figures = {}
    for i, routing in enumerate(routings):
        E = routing.logits.shape[-1]
        confidence = routing.logits.softmax(dim=-1).amax(dim=-1)
        for g, name in enumerate(names):
            own = groups == g
            if own.any():
                share = routing.chosen[own].flatten().bincount(minlength=E) / (own.sum() * routing.chosen.shape[-1])
                entropy = -(share * share.clamp(min=1e-12).log()).sum() / math.log(E)
                values = E * share.max(), entropy, confidence[own].mean()
                for figure, value in zip(("load", "entropy", "confidence"), values, strict=True):
                    figures[f"router.{i}.{name}.{figure}"] = float(value)
    return figures


class CollapseMonitor:
    """Finds a router that has stopped choosing: in `patience` steps in a row the busiest k experts of a layer got more
    than `limit` of its tokens.

    k of E experts get k / E when all is even and 1 when the router has collapsed; the default limit lies between.
    """

    def __init__(self, config: BackboneConfig, limit: float | None = None, patience: int = 10):
        self.k, even = config.experts_per_token, config.experts_per_token / config.experts
        self.limit = (9 + even) / 10 if limit is None else limit
        self.patience, self._bad = patience, {}

    def step(self, loads: dict[int, Tensor]) -> dict[int, float]:
        """Layers that have collapsed as of this step, with the share that their busiest k experts got.

        loads: tokens of each expert in this step [E], by layer; a layer without a token says nothing.
        """
        found = {}
        for layer, load in loads.items():
            busiest = float(load.topk(self.k).values.sum() / load.sum().clamp(min=1))
            self._bad[layer] = self._bad.get(layer, 0) + 1 if busiest > self.limit else 0
            if self._bad[layer] >= self.patience:
                found[layer] = busiest
        return found

    def require_spread(self, loads: dict[int, Tensor], where: object) -> None:
        """`step`; a router that has collapsed is an InputError that says which, its load, and what to change."""
        for layer, share in self.step(loads).items():
            experts = sorted(loads[layer].topk(self.k).indices.tolist())
            came = f"{share:.0%} of its tokens go to experts {experts}, for {self.patience} steps"
            expected = f"at most {self.limit:.0%} to any {self.k} of {len(loads[layer])}"
            fix = "Raise model.expert_dropout or lower train.learning_rate, and use a new --out folder."
            raise InputError(where, f"router of backbone layer {layer}", came, expected, fix)
