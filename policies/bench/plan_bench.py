"""What `vla plan` says against what happens: arithmetic and memory of models that run here, and trainings that others
have measured on H100s."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from policies.noise import noise_clip
from policies.published import PUBLISHED, shared_out_gib
from policies.transforms import to_batch
from vla.auxiliary import AuxiliaryLosses, LossConfig
from vla.config import ModelConfig
from vla.cost import cost_of_clip
from vla.model import DrivingModel

TINY = replace(ModelConfig.tiny(), steps=2)
WIDER = replace(
    TINY,
    **{"width": 320, "layers": 8, "heads": 10, "experts": 16, "experts_per_token": 4, "encoder_width": 64, "steps": 3},
    **{"fusion_reach": "step", "action_decoding": "parallel"},
)


def plan_figures(quick: bool, say: Callable[[str], None]) -> dict[str, float]:
    """Per model: error.flop, error.kept (planned / measured - 1); per published training what it measured. Everything
    takes seconds: quick or not."""
    figures: dict[str, float] = {}
    for name, config in (("tiny", TINY), ("wider", WIDER)):
        figures |= _compared(name, clip_errors(config), say)
    for run in PUBLISHED:
        figures |= _compared(run.name, run.errors(), say)
        if run.otherwise:
            say(f"{run.name}: theirs has {run.otherwise} ({run.source})")
    return figures | _compared("llama-3.1-8b.torchtitan", {"gib_from_8_to_128_gpus": shared_out_gib()}, say)


Error = tuple[float, float, float]


def _compared(name: str, errors: dict[str, Error], say: Callable[[str], None]) -> dict[str, float]:
    for what, (planned, measured, error) in errors.items():
        say(f"{name}: {what} planned {planned:.4g}, measured {measured:.4g}: {error:+.1%}")
    return {f"error.{what}.{name}": error for what, (_, _, error) in errors.items()}


def clip_errors(config: ModelConfig) -> dict[str, Error]:
    """flop, and bytes kept in fp32 and under autocast, of one clip of noise: (planned, measured, planned / measured
    - 1)."""
    model = DrivingModel(config).train()
    batch = to_batch([noise_clip(config, 0)], config)
    tokens = torch.tensor([slot.start for slot in config.action_slots]).repeat(1, config.action_tokens // 2)
    told = torch.full((1, config.reason_places), model.text.start)
    whole = AuxiliaryLosses(LossConfig(head_z=1.0), config, None)  # asks for the hidden states of all places

    def loss(auxiliary: AuxiliaryLosses | None = None) -> Tensor:
        return model.loss(batch, tokens, told, generator=torch.Generator().manual_seed(0), auxiliary=auxiliary)[0]

    def in_bf16() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss()

    return {
        "flop": _error(cost_of_clip(model).flop, counted_flop(lambda: loss(whole))),
        "kept": _error(cost_of_clip(model).kept.total, kept_for_gradients(model, loss)),
        "kept_bf16": _error(cost_of_clip(model, dtype="bf16").kept.total, kept_for_gradients(model, in_bf16)),
    }


def _error(planned: float, measured: float) -> Error:
    return float(planned), float(measured), planned / measured - 1


def kept_for_gradients(model: nn.Module, loss_of: Callable[[], Tensor]) -> int:
    """Bytes that torch keeps for the gradients of a loss, beside the model's own parameters; every storage once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    copies = {tuple(p.shape) for p in model.parameters() if p.ndim > 1}  # of autocast: weights, not activations
    copies |= {shape[::-1] for shape in copies if len(shape) == 2} | {(s[0], *s[:0:-1]) for s in copies if len(s) == 3}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and not (tensor.dtype == torch.bfloat16 and tuple(tensor.shape) in copies):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of()  # alive until all is counted, so that no storage is counted as another
    del loss
    return sum(kept.values())


def counted_flop(loss_of: Callable[[], Tensor]) -> int:
    """FLOP of a loss and its gradients as torch counts them, products of experts included."""
    grouped = {torch.ops.aten._grouped_mm: _grouped_flop}
    # Of other kernels than this one torch counts no attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=grouped) as counter:
        loss_of().backward()
    return counter.get_total_flops()


def _grouped_flop(a: torch.Size, b: torch.Size, *_, **__) -> int:
    """Rows [R, I] by experts' weights [E, I, O], or, for the gradient of these, [I, R] by [R, O]."""
    return 2 * a[0] * a[1] * b[-1]
