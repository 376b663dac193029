"""Products in 8 bits, simulated: operands are rounded to what 8 bits hold, with scales, then multiplied exactly.

    y = q(x) q(W)^T      dx = q(dy) q(W)      dW = q(dy)^T q(x)
    q(v) = clip(s v, -largest, largest) in 8 bits, over s

    current   s = largest / max|v| of each tensor; x, W as e4m3, dy as e5m2
    delayed   the same with the greatest max|v| of a tensor's last HISTORY uses in training, so that s is known before v
              is; what lies beyond is clipped; s = 1 before the first use
    block     s for 1 x BLOCK numbers of x and dy along what the product sums over, and for BLOCK x BLOCK of W; powers
              of two; all as e4m3 (DeepSeek-V3 2024, section 3.3)

As Float8CurrentScaling, DelayedScaling and Float8BlockScaling of Transformer Engine, here on any device. Letters: M
rows, I inputs, O outputs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK, HISTORY = 128, 16
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def rounded(v: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    """float32 v as it reads after storage as `kind` with a scale."""
    largest = torch.finfo(kind).max
    return (v * scale).clamp(-largest, largest).to(kind).float() / scale


def scale_of(largest_number: Tensor, kind: torch.dtype) -> Tensor:
    """The scale that brings the largest number to the end of the range; 1 where there is none."""
    scale = (torch.finfo(kind).max / largest_number).clamp(max=torch.finfo(torch.float32).max)
    return torch.where(largest_number > 0, scale, 1.0)


def round_tensor(v: Tensor, kind: torch.dtype) -> Tensor:
    """v with one scale."""
    return rounded(v, scale_of(v.abs().amax(), kind), kind) if v.numel() else v


def round_blocks(v: Tensor, rows: int, columns: int) -> Tensor:
    """v [M, I] as e4m3 with a scale for each block; those at the end are smaller where the sizes do not divide."""
    M, I = v.shape
    padded = F.pad(v, (0, -I % columns, 0, -M % rows)).unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    scale = scale_of(padded.abs().amax(dim=(1, 3), keepdim=True), E4M3)
    scale = torch.ldexp(torch.ones_like(scale), torch.frexp(scale).exponent - 1)  # the power of two below it
    return rounded(padded, scale, E4M3).flatten(2).flatten(0, 1)[:M, :I]


class Current(nn.Module):
    """Of one product: how its operands are rounded."""

    def operands(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [M, I] and W [O, I] as they enter y, then x as it enters dW and W as it enters dx."""
        x, weight = round_tensor(x, E4M3), round_tensor(weight, E4M3)
        return x, weight, x, weight

    def gradient(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        """dy [M, O] as it enters dx, and as it enters dW."""
        dy = round_tensor(dy, E5M2)
        return dy, dy


class Delayed(nn.Module):
    """As Current; `history` [3, HISTORY] holds max|v| of x, W and dy, the latest first, 0 where there was no use."""

    def __init__(self):
        super().__init__()
        self.register_buffer("history", torch.zeros(3, HISTORY), persistent=False)

    def operands(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, weight = self._rounded(0, x, E4M3), self._rounded(1, weight, E4M3)
        return x, weight, x, weight

    def gradient(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        dy = self._rounded(2, dy, E5M2)
        return dy, dy

    def _rounded(self, of: int, v: Tensor, kind: torch.dtype) -> Tensor:
        scale = scale_of(self.history[of].amax(), kind)
        if self.training and v.numel():
            self.history[of] = self.history[of].roll(1)
            self.history[of, 0] = v.abs().amax()
        return rounded(v, scale, kind)


class Block(nn.Module):
    """As Current; both ways of x and dy are rounded from the exact numbers, never from each other."""

    def operands(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weight = round_blocks(weight, BLOCK, BLOCK)
        return round_blocks(x, 1, BLOCK), weight, round_blocks(x, BLOCK, 1), weight

    def gradient(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        return round_blocks(dy, 1, BLOCK), round_blocks(dy, BLOCK, 1)


RECIPES = {"current": Current, "delayed": Delayed, "block": Block}


class _Product(torch.autograd.Function):
    """x [M, I] and W [O, I] to [M, O], and back, by the equations of the module's docstring; in float32 within."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, recipe: nn.Module) -> Tensor:
        ctx.recipe, ctx.kinds = recipe, (x.dtype, weight.dtype)
        with torch.autocast(x.device.type, enabled=False):
            x_of_y, weight_of_y, *kept = recipe.operands(x.float(), weight.float())
            ctx.save_for_backward(*kept)
            return (x_of_y @ weight_of_y.T).to(x.dtype)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        dy_of_dx, dy_of_dweight = ctx.recipe.gradient(dy.float())
        return (dy_of_dx @ weight).to(ctx.kinds[0]), (dy_of_dweight.T @ x).to(ctx.kinds[1]), None


class Fp8Linear(nn.Linear):
    """In the place of a linear layer without bias, with its own parameter."""

    def __init__(self, of: nn.Linear, recipe: str):
        super().__init__(of.in_features, of.out_features, bias=False, device="meta")
        self.weight = of.weight
        self.recipe = RECIPES[recipe]().to(of.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x.flatten(0, -2), self.weight, self.recipe).view(*x.shape[:-1], -1)


class Fp8Grouped(nn.Module):
    """In the place of `vla.moe.grouped_linear`; each expert's product has scales of its own."""

    def __init__(self, weight: Tensor, recipe: str):
        super().__init__()
        self.recipes = nn.ModuleList(RECIPES[recipe]() for _ in weight).to(weight.device)

    def forward(self, rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
        parts = zip(rows.split(sizes), weight.unbind(0), self.recipes, strict=True)
        return torch.cat([_Product.apply(*part) for part in parts])
