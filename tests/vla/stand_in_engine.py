"""Transformer Engine as far as this project uses it, for machines without a GPU: signatures, rules of shapes and the
names of parameters as its documentation says; products are exact; what was asked for is recorded.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import ModuleType

import torch
from torch import nn


class Format(Enum):
    E4M3 = "e4m3"
    HYBRID = "e4m3 forward, e5m2 backward"


@dataclass
class DelayedScaling:
    margin: int = 0
    fp8_format: Format = Format.HYBRID
    amax_history_len: int = 1024
    amax_compute_algo: str = "max"


@dataclass
class Float8CurrentScaling:
    fp8_format: Format = Format.HYBRID


@dataclass
class Float8BlockScaling:
    fp8_format: Format = Format.E4M3


def modules(fp8=(True, ""), blocks=(True, "")) -> dict[str, ModuleType]:
    """What `sys.modules` holds where it is installed; `made` and `contexts` of the first are the records."""
    layers, recipes = ModuleType("transformer_engine.pytorch"), ModuleType("transformer_engine.common.recipe")
    layers.made, layers.contexts, layers.active = [], [], []

    @contextmanager
    def autocast(enabled=True, calibrating=False, recipe=None, amax_reduction_group=None):
        layers.contexts.append(recipe)
        layers.active.append(recipe)
        yield
        layers.active.pop()

    layers.autocast, layers.Linear, layers.GroupedLinear = autocast, _linear(layers), _grouped_linear(layers)
    layers.is_fp8_available = lambda return_reason=False: fp8 if return_reason else fp8[0]
    layers.is_fp8_block_scaling_available = lambda return_reason=False: blocks if return_reason else blocks[0]
    for thing in (Format, DelayedScaling, Float8CurrentScaling, Float8BlockScaling):
        setattr(recipes, thing.__name__, thing)
    names = ("transformer_engine", "transformer_engine.common")
    parents = {name: ModuleType(name) for name in names}
    return parents | {layers.__name__: layers, recipes.__name__: recipes}


def _check(layers, *tensors):
    """Its assert_dim_for_fp8_exec."""
    assert layers.active, "outside of autocast"
    for tensor in tensors:
        assert math.prod(tensor.shape[:-1]) % 8 == 0, tensor.shape
        assert tensor.shape[-1] % 16 == 0, tensor.shape


def _parameter(rows, columns, dtype):
    return nn.Parameter(torch.full((rows, columns), math.nan, dtype=dtype))


def _linear(layers) -> type:
    class Linear(nn.Module):
        def __init__(self, in_features, out_features, bias=True, *, params_dtype=None, device="cuda"):
            super().__init__()
            layers.made.append(("Linear", in_features, out_features, bias, params_dtype, str(device)))
            self.weight = _parameter(out_features, in_features, params_dtype)

        def get_extra_state(self):  # as its layers have one, which would be in every checkpoint
            return torch.zeros(1)

        def forward(self, inp, is_first_microbatch=None):
            _check(layers, inp, self.weight)
            return inp @ self.weight.T

    return Linear


def _grouped_linear(layers) -> type:
    class GroupedLinear(nn.Module):
        def __init__(self, num_gemms, in_features, out_features, bias=True, *, params_dtype=None, device="cuda"):
            super().__init__()
            layers.made.append(("GroupedLinear", num_gemms, in_features, out_features, bias, params_dtype, str(device)))
            self.num_gemms = num_gemms
            for i in range(num_gemms):
                self.register_parameter(f"weight{i}", _parameter(out_features, in_features, params_dtype))

        def get_extra_state(self):
            return torch.zeros(1)

        def forward(self, inp, m_splits, is_first_microbatch=None):
            assert len(m_splits) == self.num_gemms
            assert all(type(size) is int for size in m_splits)
            assert sum(m_splits) == len(inp)
            weights = [getattr(self, f"weight{i}") for i in range(self.num_gemms)]
            parts = inp.split(m_splits)
            _check(layers, *parts, *weights)
            return torch.cat([part @ weight.T for part, weight in zip(parts, weights, strict=True)])

    return GroupedLinear
