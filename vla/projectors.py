"""From continuous features to tokens of the backbone: one protocol, five kinds.

    linear     W x + b, a token an input
    mlp        W2 gelu(W1 x + b1) + b2, a token an input
    unshuffle  r x r neighbours of a grid become one token: nothing is lost, there are r^2 fewer
    resampler  M queries read the inputs and each other in one attention (Perceiver, Alayrac et al. 2022, Flamingo)
    q_former   M queries talk among themselves, then read the inputs (Li et al. 2023, BLIP-2)

Letters: B batch, L inputs, C their width, M tokens out, D width of the backbone.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from sensors.errors import InputError
from vla.attention import CrossAttention, SelfAttention, attention_bias
from vla.moe import SwiGLU


class Projector(Protocol):
    """Callable on features [B, L, C] with mask bool [B, L] (True: known); gives tokens [B, M, D].

    tokens(L) says M. What is masked changes no token. With nothing known at all the tokens are the projector's own.
    """

    def tokens(self, inputs: int) -> int: ...

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor: ...


class TokenWise(nn.Module):
    """The same small network for every input; `missing` [D] stands for one that is masked."""

    def __init__(self, features: int, width: int, hidden: int = 0):
        super().__init__()
        layers = [nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, width)] if hidden else []
        self.net = nn.Sequential(*(layers or [nn.Linear(features, width)]))
        self.missing = nn.Parameter(torch.zeros(width))

    def tokens(self, inputs: int) -> int:
        return inputs

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask[..., None], self.net(x.masked_fill(~mask[..., None], 0.0)), self.missing)


class Unshuffle(nn.Module):
    """A grid of rows x columns features, row by row; each square of r x r becomes one vector, then one token.

    An input that is masked counts as zeros beside a flag that says so.
    """

    def __init__(self, features: int, width: int, rows: int, columns: int, factor: int):
        super().__init__()
        if rows % factor or columns % factor:
            raise InputError("projector", "factor", factor, f"a divisor of the grid, {rows} x {columns}")
        self.rows, self.columns, self.factor = rows, columns, factor
        self.net = nn.Linear((features + 1) * factor**2, width)

    def tokens(self, inputs: int) -> int:
        return inputs // self.factor**2

    def squares(self, x: Tensor) -> Tensor:
        """[B, L, C] to [B, L / r^2, r^2 C], every number kept."""
        r = self.factor
        grid = x.unflatten(1, (self.rows // r, r, self.columns // r, r))
        return grid.movedim(3, 2).flatten(3, 5).flatten(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if x.shape[1] != self.rows * self.columns:
            raise InputError("projector", "inputs", x.shape[1], f"{self.rows} x {self.columns}")
        known = mask[..., None].to(x.dtype)
        return self.net(self.squares(torch.cat([x.masked_fill(~mask[..., None], 0.0), known], dim=-1)))


class _Reader(nn.Module):
    """Queries read a memory; then each thinks for itself. `talks`: they read each other first."""

    def __init__(self, width: int, heads: int, hidden: int, talks: bool):
        super().__init__()
        self.talk_norm = nn.RMSNorm(width, eps=1e-6) if talks else None
        self.talk = SelfAttention(width, heads, heads, width // heads, qk_norm=False) if talks else None
        self.read_norm, self.read = nn.RMSNorm(width, eps=1e-6), CrossAttention(width, heads)
        self.mlp_norm, self.mlp = nn.RMSNorm(width, eps=1e-6), SwiGLU(width, hidden)

    def forward(self, x: Tensor, memory: Tensor, known: Tensor) -> Tensor:
        if self.talk is not None:
            x = x + self.talk(self.talk_norm(x))
        normed = self.read_norm(x)
        if self.talk is None:  # one attention over the inputs and the queries themselves
            memory = torch.cat([memory, normed], dim=1)
            known = nn.functional.pad(known, (0, x.shape[1]), value=True)
        x = x + self.read(normed, memory, attention_bias(known[:, None, None], x.dtype))
        return x + self.mlp(self.mlp_norm(x))


class Queries(nn.Module):
    """`count` learned queries read any number of inputs in `layers` layers. `nothing` is always there to be read."""

    def __init__(self, features: int, width: int, count: int, heads: int, layers: int, talks: bool):
        super().__init__()
        if width % heads:
            raise InputError("projector", "heads", heads, f"a divisor of width = {width}")
        self.count = count
        self.input, self.input_norm = nn.Linear(features, width), nn.RMSNorm(width, eps=1e-6)
        self.queries, self.nothing = nn.Parameter(torch.empty(count, width)), nn.Parameter(torch.empty(1, width))
        self.layers = nn.ModuleList(_Reader(width, heads, 2 * width, talks) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        nn.init.normal_(self.queries, std=0.1)
        nn.init.normal_(self.nothing, std=0.1)

    def tokens(self, inputs: int) -> int:
        return self.count

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        memory = self.input_norm(self.input(x.masked_fill(~mask[..., None], 0.0)))
        memory = torch.cat([self.nothing.expand(len(x), 1, -1), memory], dim=1)
        known = nn.functional.pad(mask, (1, 0), value=True)
        tokens = self.queries.expand(len(x), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, memory, known)
        return self.norm(tokens)


PROJECTORS: dict[str, Callable[..., nn.Module]] = {
    "linear": lambda features, width: TokenWise(features, width),
    "mlp": lambda features, width: TokenWise(features, width, hidden=width),
    "unshuffle": Unshuffle,
    "resampler": lambda features, width, count, heads=4, layers=2: Queries(
        features, width, count, heads, layers, talks=False
    ),
    "q_former": lambda features, width, count, heads=4, layers=2: Queries(
        features, width, count, heads, layers, talks=True
    ),
}
