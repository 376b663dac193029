"""Products by Transformer Engine, in 8 bits on a GPU. The parameters stay ours: its layers use them, and are themselves
hidden from the model, so that parameters, their names and checkpoints are those of plain torch.

Its amax history of delayed scaling is therefore not part of a checkpoint (it keeps it as a pickle, which no checkpoint
of ours holds): a resumed training fills it anew. Letters as in `vla.fp8`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla.fp8 import HISTORY

DEVICE = "cuda"
ALIGNED = 16  # its 8-bit products take multiples of so many rows, inputs and outputs


@dataclass(frozen=True)
class Engine:
    """What of the library is used: transformer_engine.pytorch and transformer_engine.common.recipe."""

    layers: ModuleType
    recipes: ModuleType

    def recipe(self, name: str) -> object:
        """The library's own recipe for one of ours, see `vla.fp8`."""
        r = self.recipes
        if name == "block":
            return r.Float8BlockScaling(fp8_format=r.Format.E4M3)
        if name == "delayed":
            return r.DelayedScaling(fp8_format=r.Format.HYBRID, amax_history_len=HISTORY, amax_compute_algo="max")
        return r.Float8CurrentScaling(fp8_format=r.Format.HYBRID)

    def context(self, name: str) -> Callable:
        """A context in which its layers multiply by a recipe; one around all of them, or histories turn too often."""
        return partial(self.layers.autocast, enabled=True, recipe=self.recipe(name))


@cache
def engine() -> Engine | str:
    """Transformer Engine, or why there is none. Looked for once: the import takes seconds."""
    try:
        layers = importlib.import_module("transformer_engine.pytorch")
        recipes = importlib.import_module("transformer_engine.common.recipe")
    except ImportError as error:
        return f"Transformer Engine is not installed ({error})"
    except (RuntimeError, OSError) as error:  # so it says that there is no GPU, or a library of CUDA is missing
        return f"Transformer Engine does not load here ({error})"
    if not hasattr(layers, "autocast"):
        return "this Transformer Engine is older than 2.9"
    return Engine(layers, recipes)


def why_not(found: Engine | str, recipe: str, device: torch.device) -> str:
    """Why a recipe of `vla.fp8` does not run there; "" if it does."""
    if isinstance(found, str):
        return found
    if device.type != DEVICE:
        return f"Transformer Engine multiplies on {DEVICE}, and the model is on {device.type}"
    able = found.layers.is_fp8_block_scaling_available if recipe == "block" else found.layers.is_fp8_available
    there, why = able(return_reason=True)
    return "" if there else f"Transformer Engine has no {recipe} scaling here ({why})"


def fits(*sizes: int) -> bool:
    """Whether its 8-bit products take these inputs and outputs."""
    return not any(size % ALIGNED for size in sizes)


class TeLinear(nn.Linear):
    """In the place of a linear layer without bias, with its own parameter; what rows lack is filled with zeros."""

    def __init__(self, of: nn.Linear, engine: Engine):
        super().__init__(of.in_features, of.out_features, bias=False, device="meta")
        self.weight = of.weight
        kind = {"params_dtype": of.weight.dtype, "device": of.weight.device}
        layer = engine.layers.Linear(of.in_features, of.out_features, bias=False, **kind)
        layer.weight = of.weight
        self._hidden = (layer,)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        y = self._hidden[0](F.pad(rows, (0, 0, 0, -len(rows) % ALIGNED)))
        return y[: len(rows)].view(*x.shape[:-1], -1)


class TeGrouped(nn.Module):
    """In the place of `vla.moe.grouped_linear`; each expert's rows are filled up with zeros."""

    def __init__(self, weight: Tensor, engine: Engine):
        super().__init__()
        experts, outputs, inputs = weight.shape
        kind = {"params_dtype": weight.dtype, "device": weight.device}
        layer = engine.layers.GroupedLinear(experts, inputs, outputs, bias=False, **kind)
        for e in range(experts):  # its own parameters give way to views of ours, set before each use
            delattr(layer, f"weight{e}")
        self._hidden = (layer,)

    def forward(self, rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        layer = self._hidden[0]
        for e, one in enumerate(weight.unbind(0)):
            setattr(layer, f"weight{e}", one)
        sizes = ends.diff(prepend=ends.new_zeros(1)).long()
        full = (sizes + ALIGNED - 1) // ALIGNED * ALIGNED
        moved = (full.cumsum(0) - full) - (ends - sizes)  # how far an expert's rows go down
        place = torch.arange(len(rows), device=rows.device) + moved.repeat_interleave(sizes)
        splits = full.tolist()
        filled = rows.new_zeros(sum(splits), rows.shape[-1]).index_copy(0, place, rows)
        return layer(filled, splits).index_select(0, place)
