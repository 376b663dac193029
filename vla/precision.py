"""In what numbers the products of the backbone are taken; parameters and their names are the same in all of them.

    torch     the parameters' own type: the reference
    fp8-sim   operands rounded to e4m3 and gradients to e5m2, with scales, then multiplied exactly; on any device
    te        Transformer Engine on a GPU
    auto      the fastest that there is; the answer says which and why

Routers, norms, embeddings and heads always stay as they are.

    y = q4(x) q4(W)^T      dx = q5(dy) q4(W)      dW = q5(dy)^T q4(x)      q(x) = s round(x / s),  s = max|x| / largest
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensors.errors import InputError, unknown_name
from vla.moe import MoE, grouped_linear

PRECISIONS = ("torch", "fp8-sim", "te", "auto")
DTYPES = ("fp32", "bf16", "auto")
CPU_FLAGS = Path("/proc/cpuinfo")
SCALINGS = ("current", "block")  # one scale for a tensor, or for BLOCK numbers of a row
BLOCK = 128
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@dataclass(frozen=True)
class Precision:
    """What was taken, and why."""

    name: str
    why: str


def compute_dtype(name: str, device: torch.device) -> Precision:
    """In what type products are taken in a training whose parameters are float32.

    "auto" takes bf16 where hardware multiplies it: on a CPU only its matrix unit (amx_bf16) does so faster than fp32;
    without, a product in bf16 takes several times as long.
    """
    if name != "auto":
        return Precision(name, "asked for")
    if device.type == "cuda":
        fast, unit = torch.cuda.is_bf16_supported(including_emulation=False), "the GPU's tensor cores"
    else:
        fast, unit = CPU_FLAGS.is_file() and "amx_bf16" in CPU_FLAGS.read_text(), "a matrix unit (amx_bf16)"
    return Precision("bf16", f"there is {unit}") if fast else Precision("fp32", f"without {unit} bf16 is slower")


def use_precision(backbone: nn.Module, name: str, scaling: str = "current") -> Precision:
    """Make the backbone multiply in the precision asked for; one that is not there is an InputError."""
    for what, value, allowed in (("precision", name, PRECISIONS), ("scaling", scaling, SCALINGS)):
        if value not in allowed:
            raise unknown_name("precision", what, value, allowed)
    if name == "te":
        raise InputError("precision", "te", _why_no_te(), "layers of Transformer Engine", "Use torch, or fp8-sim.")
    if name == "fp8-sim":
        rounded = partial(round_fp8, block=BLOCK if scaling == "block" else None)
        _use(backbone, partial(Fp8Linear, rounded), partial(_fp8_grouped, rounded))
        return Precision(name, f"asked for; {scaling} scaling")
    _use(backbone, nn.Linear, grouped_linear)
    return Precision("torch", "asked for" if name == "torch" else _why_no_te())


def _why_no_te() -> str:
    if importlib.util.find_spec("transformer_engine") is None:
        return "Transformer Engine is not installed"
    if not torch.cuda.is_available():
        return "Transformer Engine is installed, but there is no CUDA device"
    return "this version has no layers of Transformer Engine yet"


def _use(backbone: nn.Module, linear: Callable[..., nn.Linear], grouped: Callable) -> None:
    for module in list(backbone.modules()):
        if isinstance(module, MoE):
            module.grouped = grouped
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name != "router":
                other = linear(child.in_features, child.out_features, bias=False, device="meta")
                other.weight = child.weight  # the same parameter, so optimizers and checkpoints see no difference
                setattr(module, name, other)


def round_fp8(x: Tensor, kind: torch.dtype, block: int | None) -> Tensor:
    """x as it reads after storage in 8 bits, with one scale, or one for each `block` numbers of the last dimension."""
    largest = torch.finfo(kind).max
    if block is None:
        scale = x.abs().amax().clamp(min=1e-12) / largest
        return (x / scale).to(kind).to(x.dtype) * scale
    padded = F.pad(x, (0, -x.shape[-1] % block)).unflatten(-1, (-1, block))
    scale = padded.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / largest
    return ((padded / scale).to(kind).to(x.dtype) * scale).flatten(-2)[..., : x.shape[-1]]


class _RoundForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rounded: Callable) -> Tensor:
        return rounded(x, E4M3)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _RoundBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rounded: Callable) -> Tensor:
        ctx.rounded = rounded
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.rounded(gradient.contiguous(), E5M2), None


class Fp8Linear(nn.Linear):
    """y = q4(x) q4(W)^T, gradients as in the module's docstring."""

    def __init__(self, rounded: Callable, *arguments, **options):
        super().__init__(*arguments, **options)
        self.rounded = rounded

    def forward(self, x: Tensor) -> Tensor:
        weight = _RoundForward.apply(self.weight, self.rounded)
        return _RoundBackward.apply(F.linear(_RoundForward.apply(x, self.rounded), weight), self.rounded)


def _fp8_grouped(rounded: Callable, rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    rows, weight = _RoundForward.apply(rows, rounded), _RoundForward.apply(weight, rounded)
    return _RoundBackward.apply(grouped_linear(rows, weight, ends), rounded)
