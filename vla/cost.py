"""What a model costs to train, from its shapes alone: parameters, arithmetic, and what its gradients need kept.

A model on torch's meta device has all of its parameters and none of their memory, so this takes no longer for ten
billion of them. Tests hold every count against what torch really does. Letters as in `vla.backbone` and `vla.encoder`.
"""

from dataclasses import dataclass

import torch
from torch import nn

from sensors.surroundings import cell_centres
from vla.auxiliary import LossConfig
from vla.backbone import LanguageModel
from vla.config import BackboneConfig, ModelConfig
from vla.model import DrivingModel

PASSES = 3  # a product and the gradients of its two factors
MULTIPLY_ADD = 2
# Of a number that is kept beside a norm, where queries and keys are normed and turned, and anywhere else.
KEPT_BYTES = {
    "fp32": (4, 4, 4),
    "bf16": (5, 4, 2),  # torch's autocast: norms and turns stay in fp32, and products keep what they make in bf16
    "all-bf16": (2, 2, 2),  # a model that is itself in bf16, as others have it
}


@dataclass(frozen=True)
class Parameters:
    """How many there are, by who holds them where a model is shared out: experts by their number, all else alike.

    experts   of routed experts, all layers
    blocks    of layers, without their routed experts: a layer at a time is needed whole
    root      of all that is in no layer, and is needed from begin to end: tables, heads, projectors
    most      of one layer, the largest: (routed experts, all else)
    active    of the backbone, met by one token
    learn     not frozen
    """

    experts: int
    blocks: int
    root: int
    most: tuple[int, int]
    active: int
    learn: int

    @property
    def total(self) -> int:
        return self.experts + self.blocks + self.root

    @classmethod
    def of(cls, model: DrivingModel | LanguageModel) -> "Parameters":
        layers = [*model.backbone.layers]
        if isinstance(model, DrivingModel):
            layers += [*model.encoder.local, *model.encoder.fusion]
        sizes = [(_experts(layer), _count(layer) - _experts(layer)) for layer in layers]
        experts, blocks = (sum(column) for column in zip(*sizes, strict=True))
        root = _count(model) - experts - blocks
        learn = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return cls(experts, blocks, root, max(sizes, key=sum), model.backbone.active_parameters, learn)


@dataclass(frozen=True)
class Kept:
    """Bytes that the gradients of one sequence need: of all layers, of their inputs alone, of the largest layer, and
    of all that is in no layer. Who computes a layer again from its input keeps the last three."""

    layers: int
    inputs: int
    largest: int
    rest: int

    @property
    def total(self) -> int:
        return self.layers + self.rest

    @property
    def recomputed(self) -> int:
        return self.inputs + self.largest + self.rest


@dataclass(frozen=True)
class SequenceCost:
    """What one sequence (a clip, a text) costs.

    tokens        of the backbone
    flop          of a training step
    flop_layers   of them, of a forward pass through the layers
    routed        numbers that a forward pass sends to routed experts and back
    cache         numbers that a running decoder remembers of it: keys and values of all layers
    """

    parameters: Parameters
    tokens: int
    flop: int
    flop_layers: int
    kept: Kept
    routed: int
    cache: int


def on_paper(config: ModelConfig) -> DrivingModel:
    """The model with all its parameters and none of their memory."""
    with torch.device("meta"):
        return DrivingModel(config)


def cost_of_clip(model: DrivingModel, losses: LossConfig | None = None, dtype: str = "fp32") -> SequenceCost:
    """Of one clip that has all its images; auxiliary losses count where they keep much. dtype: of KEPT_BYTES."""
    c = model.config
    return _cost(c, model, clip_tokens(c), arithmetic(c, model), activations(c, losses or LossConfig(), dtype))


def cost_of_text(
    c: BackboneConfig, vocabulary: int, tokens: int, causal_half: bool = False, dtype: str = "all-bf16"
) -> SequenceCost:
    """Of a language model of this backbone and one text. causal_half: only those pairs of attention that are not masked
    count, as Megatron counts them; else all, as torchtitan does."""
    with torch.device("meta"):
        model = LanguageModel(c, vocabulary)
    met = model.backbone.active_parameters + pairs(c, tokens / 2 if causal_half else tokens) + model.head.weight.numel()
    flop = PASSES * MULTIPLY_ADD * tokens * met
    layers = [tokens * layer_bytes(c, layer, dtype) for layer in range(c.layers)]
    norm, _, other = KEPT_BYTES[dtype]
    kept = Kept(sum(layers), other * c.layers * tokens * c.width, max(layers), 2 * norm * tokens * c.width)
    return _cost(c, model, tokens, round(flop), kept)


def clip_tokens(c: ModelConfig) -> int:
    """Of the backbone, with a plan and a reason."""
    return c.steps * c.scene_tokens + c.now_tokens + c.action_tokens + c.reason_places


def pairs(c: BackboneConfig, keys: float) -> float:
    """Multiplications of one token's attention to `keys` others, in all layers: scores, and sums of values."""
    return 2 * keys * c.layers * c.heads * c.head_dim


def arithmetic(c: ModelConfig, model: DrivingModel) -> int:
    """FLOP of a training step for one clip that has all its images: 6 for each weight that a token or patch meets (2 to
    multiply and add, twice that for the gradients of inputs and weights) and for each pair of numbers in attention.

    A little less where weights are frozen; losses that only train come on top.
    """
    tokens, W = clip_tokens(c), c.encoder_width
    images, scene = c.steps * c.cameras, c.steps * c.scene_tokens
    patches = images * c.patches
    reach = c.cameras * c.patches * (1 if c.fusion_reach == "step" else c.steps)
    layer = 4 * W * W + 3 * W * c.encoder_hidden  # attention and gated hidden layer
    read = 2 * W * W  # keys and values
    met = tokens * (model.backbone.active_parameters + pairs(c, tokens))
    met += c.encoder_layers * patches * (layer + 2 * c.patches * W)
    met += c.fusion_layers * (scene * (layer - read + 2 * reach * W) + patches * read)
    for k, halve in enumerate(model.encoder.stem.halvings if model.encoder.stem is not None else (), 1):
        met += images * halve.weight.numel() * (c.image_width >> k) * (c.image_height >> k)
    return round(PASSES * MULTIPLY_ADD * met)


def layer_bytes(c: BackboneConfig, layer: int, dtype: str) -> int:
    """What one token's gradients need kept in a layer of the backbone: inputs of products, norms and gates."""
    norm, turn, other = KEPT_BYTES[dtype]
    heads, groups, D = c.heads * c.head_dim, c.kv_heads * c.head_dim, c.width
    attention = norm * 4 * D + turn * 2 * (heads + groups) + other * (heads + 2 * groups + heads)
    if layer < c.dense_layers:
        return attention + other * 4 * c.dense_hidden
    experts = c.experts_per_token * (4 * c.expert_hidden + 2 * D) + c.shared_experts * 4 * c.expert_hidden
    return attention + other * experts


def activations(c: ModelConfig, losses: LossConfig, dtype: str) -> Kept:
    """What one clip's gradients need kept, of every token and patch."""
    norm, _, other = KEPT_BYTES[dtype]
    tokens, W, images = clip_tokens(c), c.encoder_width, c.steps * c.cameras
    reader = norm * 4 * W + other * (5 * W + 4 * c.encoder_hidden)  # of a layer that reads, or of one among patches
    patches, scene = images * c.patches, c.steps * c.scene_tokens
    layers = [tokens * layer_bytes(c, layer, dtype) for layer in range(c.layers)]
    layers += c.encoder_layers * [patches * reader]
    layers += c.fusion_layers * [scene * reader + other * patches * 2 * W]
    inputs = other * (c.layers * tokens * c.width + c.encoder_layers * patches * W + c.fusion_layers * scene * W)
    rest = patches * (norm * 4 * W + other * (2 * W + _stem(c)))
    if losses.surroundings:
        rest += cell_centres()[..., 0].size * reader
    return Kept(sum(layers), inputs, max(layers), rest)


def _stem(c: ModelConfig) -> int:
    """Numbers that a patch's convolutions keep: what each halves, before and after its gate."""
    side, halvings = c.patch_px, c.patch_px.bit_length() - 1
    kept = 3 * side * side
    for k in range(1, halvings):
        kept += 2 * (side >> k) ** 2 * (c.encoder_width >> (halvings - k))
    return kept


def _cost(c: BackboneConfig, model: DrivingModel | LanguageModel, tokens: int, flop: int, kept: Kept) -> SequenceCost:
    routed = (c.layers - c.dense_layers) * tokens * c.experts_per_token * 2 * c.width
    head = tokens * model.head.weight.numel() if isinstance(model, LanguageModel) else 0
    forward = flop // PASSES - MULTIPLY_ADD * head
    cache = c.layers * tokens * 2 * c.kv_heads * c.head_dim
    return SequenceCost(Parameters.of(model), tokens, flop, forward, kept, routed, cache)


def _experts(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters() if p.ndim == 3)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
