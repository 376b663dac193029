"""What goes on inside: who looks at what, what learning pulls on, how embeddings lie, which experts and codes are used.

Letters: B batch, L tokens, G modalities, h heads, E experts, D width; N P as in `sensors.collate.Batch`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sensors.collate import Batch
from vla.attention import attention_bias, visible
from vla.config import ModelConfig
from vla.image_tokens import ImageTokenizer
from vla.losses import action_loss
from vla.model import DrivingModel
from vla.moe import Routing, routing_statistics

COMPONENTS = 3
TIME_SPAN_S, TIME_POINTS = 2.0, 81


@dataclass(frozen=True)
class Inspection:
    """names of the G modalities that a model has, in the order of its tokens.

    tokens     int64 [G]                how many tokens each has
    attention  [layers, G, G]           share of their attention that one modality's tokens pay to another's; rows: 1
    even       [G, G]                   the same if all that a token may see were alike to it
    gradient   [G]                      norm of d loss / d token, a token and a clip: what learning pulls on
    load       [routed layers, E]       share of all choices that each expert got
    routing    of each layer and modality, see `vla.moe.routing_statistics`
    rays       [N, P, 3]                first principal components of the ray embedding of the first clip's last step
    rays_share [3]                      share of its variance that each holds
    times      [points, 3], times_share the same of the time embedding, from TIME_SPAN_S ago to now
    """

    names: tuple[str, ...]
    tokens: Tensor
    attention: Tensor
    even: Tensor
    gradient: Tensor
    load: Tensor
    routing: dict[str, float]
    rays: Tensor
    rays_share: Tensor
    times: Tensor
    times_share: Tensor

    def figures(self) -> dict[str, float]:
        """Flat, by name: the means over layers, and what each routed layer does."""
        paid = self.attention.mean(dim=0)[-1]
        figures = {f"attention.action.{name}": float(paid[g]) for g, name in enumerate(self.names)}
        figures |= {f"gradient.{name}": float(self.gradient[g]) for g, name in enumerate(self.names)}
        for i, load in enumerate(self.load):
            figures[f"expert_load.{i}.busiest"] = float(load.max() * len(load))
            figures[f"expert_load.{i}.idlest"] = float(load.min() * len(load))
        return figures | self.routing


def modalities(config: ModelConfig) -> tuple[tuple[str, ...], Tensor]:
    """(names, int64 [L]: which one each token of a clip and its plan is), in the order of the tokens."""
    counts = {
        "scene": config.steps * config.scene_tokens,
        "imu": config.imu_tokens,
        "vehicle": 3,
        "calibration": config.cameras if config.calibration_projector != "none" else 0,
        "command": 1,
        "instruction": config.instruction_places,
        "action": config.action_tokens,
    }
    names = tuple(name for name, count in counts.items() if count)
    return names, torch.arange(len(names)).repeat_interleave(torch.tensor([counts[name] for name in names]))


def inspect_model(model: DrivingModel, batch: Batch, action_tokens: Tensor) -> Inspection:
    """Look into a model in eval mode while it reads a batch and the plans int64 [B, 2K] that follow."""
    names, groups = modalities(model.config)
    member = torch.nn.functional.one_hot(groups).double()  # [L, G]
    count = member.sum(dim=0)
    layout, routings = model.layout(), []
    allowed = visible(layout, layout)
    bias, angles = attention_bias(allowed, torch.float32), model.backbone.angles(layout)
    with torch.no_grad():
        x = model.sequence(batch, action_tokens)
    x.requires_grad_()
    seen = []
    hooks = [
        layer.attention.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
        for layer in model.backbone.layers
    ]
    try:
        hidden = model.backbone(x, layout, routings=routings)[:, -action_tokens.shape[1] :]
    finally:
        for hook in hooks:
            hook.remove()
    loss, _ = action_loss(hidden, model.head.weight, action_tokens, model.slots)
    pull = torch.autograd.grad(loss, x)[0].double() * len(x)  # the loss is a mean over clips
    with torch.no_grad():
        attention = torch.stack(
            [
                member.T @ layer.attention.weights(read, bias, angles).double().mean(dim=(0, 1)) @ member
                for layer, read in zip(model.backbone.layers, seen, strict=True)
            ]
        )
        even = member.T @ (allowed.double() / allowed.sum(dim=1, keepdim=True)) @ member
        rays, rays_share = _rays(model, batch)
        times, times_share = principal(model.encoder.time(torch.linspace(-TIME_SPAN_S, 0.0, TIME_POINTS)))
    return Inspection(
        names=names,
        tokens=count.long(),
        attention=attention / count[:, None],
        even=even / count[:, None],
        gradient=(pull.norm(dim=-1).mean(dim=0) @ member) / count,
        load=_load(routings, model.config.experts),
        routing=routing_statistics(routings, groups.repeat(len(x)), names),
        rays=rays,
        rays_share=rays_share,
        times=times,
        times_share=times_share,
    )


def _load(routings: list[Routing], experts: int) -> Tensor:
    shares = [routing.load.double() / routing.chosen.numel() for routing in routings]
    return torch.stack(shares) if shares else torch.zeros(0, experts, dtype=torch.float64)


def _rays(model: DrivingModel, batch: Batch) -> tuple[Tensor, Tensor]:
    embedded = model.encoder.ray(batch.T_ego_now_from_cam[0, -1], batch.rays_in_cam[0], batch.ray_mask[0])
    places, share = principal(embedded.flatten(0, 1))
    return places.unflatten(0, embedded.shape[:2]), share


def principal(x: Tensor, components: int = COMPONENTS) -> tuple[Tensor, Tensor]:
    """(x [M, D] along its directions of largest variance [M, components], share of the variance that each holds).

    A direction's sign is such that its largest number is positive.
    """
    centred = (x - x.mean(dim=0)).double()
    _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:components]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    share = spread.square() / spread.square().sum().clamp(min=1e-12)
    return centred @ (directions * largest.sign()).T, share[:components]


@torch.inference_mode()
def code_counts(tokenizer: ImageTokenizer, images: Tensor) -> Tensor:
    """How often each code occurs in uint8 images [M, H, W, 3]: int64 [codes]."""
    counts = torch.zeros(tokenizer.config.codes, dtype=torch.int64)
    for part in images[:, None].split(24):
        counts += torch.bincount(tokenizer.encode(part).flatten(), minlength=len(counts))
    return counts
