"""In what numbers the products of the backbone are taken; parameters and their names are the same in all of them.

    torch     the parameters' own type, or that of an autocast: the reference
    fp8-sim   8 bits, simulated on any device: `vla.fp8`
    te        8 bits by Transformer Engine, on a GPU: `vla.te_layers`
    auto      te where it is, else torch; the answer says which and why

Routers, norms, embeddings and heads always stay as they are.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sensors.errors import InputError, unknown_name
from vla.backbone import Backbone
from vla.fp8 import RECIPES, Delayed, Fp8Grouped, Fp8Linear
from vla.moe import MoE, grouped_linear
from vla.te_layers import Engine, TeGrouped, TeLinear, engine, fits, why_not

PRECISIONS = ("torch", "fp8-sim", "te", "auto")
FP8_RECIPES = tuple(RECIPES)
DTYPES = ("fp32", "bf16", "auto")
CPU_FLAGS = Path("/proc/cpuinfo")
CPU_UNITS = ("amx_bf16", "avx512_bf16")  # as the flags name them


@dataclass(frozen=True)
class Precision:
    """What was taken, and why."""

    name: str
    why: str


def compute_dtype(name: str, device: torch.device) -> Precision:
    """In what type products are taken in a training whose parameters are float32.

    "auto" takes bf16 where hardware multiplies it: on a CPU one of the `CPU_UNITS`; without, a product in bf16 takes
    several times as long.
    """
    if name != "auto":
        return Precision(name, "asked for")
    if device.type == "cuda":
        fast, unit = torch.cuda.is_bf16_supported(including_emulation=False), "the GPU's tensor cores"
    else:
        flags = CPU_FLAGS.read_text().split() if CPU_FLAGS.is_file() else []
        fast, unit = any(unit in flags for unit in CPU_UNITS), f"instructions for it ({' or '.join(CPU_UNITS)})"
    return Precision("bf16", f"there are {unit}") if fast else Precision("fp32", f"without {unit} bf16 is slower")


def use_precision(backbone: Backbone, name: str, recipe: str = "current") -> Precision:
    """Make the backbone multiply in the precision asked for; one that is not there is an InputError.

    recipe: how 8 bits are scaled, one of `vla.fp8`.
    """
    for what, value, allowed in (("precision", name, PRECISIONS), ("fp8 recipe", recipe, FP8_RECIPES)):
        if value not in allowed:
            raise unknown_name("precision", what, value, allowed)
    if name == "fp8-sim":
        _use(backbone, partial(Fp8Linear, recipe=recipe), partial(Fp8Grouped, recipe=recipe))
        return Precision(name, f"asked for; {recipe} scaling")
    if name in ("te", "auto"):
        found = engine()
        missing = why_not(found, recipe, backbone.norm.weight.device)
        if not missing:
            return _use_te(backbone, found, recipe, "asked for" if name == "te" else "it is there")
        if name == "te":
            fix = "Install '.[fp8]' on a machine with a GPU of compute capability 8.9 or more, or use torch or fp8-sim."
            raise InputError("precision", "te", missing, "layers of Transformer Engine", fix)
    _use(backbone, _plain, lambda weight: grouped_linear)
    return Precision("torch", "asked for" if name == "torch" else missing)


def scaling_state(backbone: Backbone) -> dict[str, Tensor]:
    """What delayed scaling remembers, by name, for a training that is to be resumed to the bit; see `vla.te_layers`."""
    return {f"{n}.history": m.history for n, m in backbone.named_modules() if isinstance(m, Delayed)}


def _use_te(backbone: Backbone, found: Engine, recipe: str, why: str) -> Precision:
    left = []

    def linear(of: nn.Linear) -> nn.Linear:
        if fits(of.in_features, of.out_features):
            return TeLinear(of, found)
        left.append(of)
        return _plain(of)

    def grouped(weight: Tensor) -> Callable:
        if fits(*weight.shape[1:]):
            return TeGrouped(weight, found)
        left.append(weight)
        return grouped_linear

    _use(backbone, linear, grouped)
    backbone.numbers = found.context(recipe)
    stay = f"; {len(left)} layers stay in torch: their sizes are no multiples of 16" if left else ""
    return Precision("te", f"{why}; {recipe} scaling{stay}")


def _plain(of: nn.Linear) -> nn.Linear:
    other = nn.Linear(of.in_features, of.out_features, bias=False, device="meta")
    other.weight = of.weight
    return other


def _use(backbone: Backbone, linear: Callable[[nn.Linear], nn.Linear], grouped: Callable[[Tensor], Callable]) -> None:
    """Exchange every product; the parameters stay the same objects, so optimizers and checkpoints see no difference."""
    backbone.numbers = nullcontext
    for module in list(backbone.modules()):
        if isinstance(module, MoE):
            module.take_products(grouped(module.gate_up), grouped(module.down))
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name != "router":
                setattr(module, name, linear(child))
