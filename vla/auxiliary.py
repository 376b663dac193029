"""What a training may ask beside the plan, and the heads that answer it. No policy carries them: they are part of a
training's own state, not of the model that drives.

    world              the codes of the next frame, from what the backbone made of this one's scene tokens
    masked             the codes of this frame that are hidden, from those that are not and its scene
    scene_trajectory   which of a batch's trajectories belongs to which of its scenes, as the encoder saw them
    scene_text         which of its texts (instruction and reason) does
    surroundings       where others, the route and traffic lights are, seen from above, from the scene tokens
    shown              which patches of an image show others or traffic lights, from what the local encoder made of each
    head_z             keeps the logits of actions from drifting

The formulas stand in `vla.losses`. Letters: B clips, T steps, S scene tokens a step, D width of the backbone, E of the
heads, I images, P codes of an image, K intervals of the plan.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from sensors.collate import Batch
from sensors.errors import InputError
from sensors.surroundings import IN_IMAGES, LAYERS, cell_centres
from vla.config import ModelConfig
from vla.encoder import FusionLayer, LocalLayer, RayEmbedding
from vla.image_tokens import ImageTokenizerConfig
from vla.losses import (
    WHOLE,
    Counted,
    Loss,
    counted,
    head_z_loss,
    info_nce,
    masked_loss,
    masked_tokens,
    siglip,
    surroundings_loss,
    world_loss,
)
from vla.projectors import METRE_FREQUENCIES, Fourier

PAIR_WIDTH, TOKEN_WIDTH = 128, 16
NCE_SCALE, MOST_SCALE = 1 / 0.07, 100.0  # at the start, and at most (Radford et al. 2021)
RARE_LOGIT = -3.0  # a cell is mostly empty
SIGLIP_SCALE, SIGLIP_BIAS = 10.0, -10.0  # at the start (Zhai et al. 2023)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the auxiliary losses; 0: off, and then it has no parameters and costs nothing.

    world is asked only where both frames were seen: not of clips whose earlier images train.motion_dropout hides. Pairs
    are told apart within a batch, by several workers within the share of each.
    """

    world: float = 0.0
    masked: float = 0.0
    scene_trajectory_nce: float = 0.0
    scene_trajectory_siglip: float = 0.0
    scene_text_nce: float = 0.0
    scene_text_siglip: float = 0.0
    surroundings: float = 0.0
    shown: float = 0.0
    head_z: float = 0.0

    @property
    def any(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    @property
    def around(self) -> bool:
        """Whether what stands around the car is asked for."""
        return bool(self.surroundings or self.shown)

    @property
    def codes(self) -> bool:
        """Whether the codes of images are asked for."""
        return bool(self.world or self.masked)

    @property
    def text(self) -> bool:
        """Whether clips have to come with text."""
        return bool(self.scene_text_nce or self.scene_text_siglip)

    @property
    def pairs(self) -> bool:
        """Whether clips of a batch are told from each other."""
        return bool(self.text or self.scene_trajectory_nce or self.scene_trajectory_siglip)

    def validate(self, where: object = "losses") -> "LossConfig":
        """Self, or an InputError that names the weight to change."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise InputError(where, f"losses.{field.name}", value, "a weight of at least 0")
        return self


@dataclass(frozen=True)
class Seen:
    """What the model made of a batch.

    scene [B, T, S, D]    scene tokens, as they enter the backbone
    states [B, T, S, D]   and as they leave it
    said [B, 2K, D]       what each of the action tokens int64 [B, 2K] is predicted from
    words int64 [B, W]    tokens of instruction and reason, and others that do not count
    head, slots           of the actions, see `vla.losses.action_loss`
    around                what `sensors.surroundings` says of now, bool [B, C, X, Y], and which layers it knows [B, C];
                          of the images [B, N, C', rows, columns], and which kinds [B, C']; None where nobody asks
    patches [B, N, P, E]  of the newest images, as the scene tokens read them
    """

    batch: Batch
    scene: Tensor
    states: Tensor
    said: Tensor
    tokens: Tensor
    words: Tensor
    head: Tensor
    slots: tuple[slice, slice]
    around: tuple[Tensor, ...] | None = None
    patches: Tensor | None = None
    count: Counted = WHOLE


class CodeReader(nn.Module):
    """Codes of an image from the scene tokens of its step: each place asks along its own ray what is there.

    Places see each other, so that a code that is shown helps its neighbours; one that is hidden is the code `count`.
    """

    def __init__(self, config: ModelConfig, count: int, factor: int):
        super().__init__()
        width, heads, hidden = config.encoder_width, config.encoder_heads, config.encoder_hidden
        self.count, self.grid = count, config.patch_grid
        self.side = config.patch_px // factor  # codes along a patch
        self.ray = RayEmbedding(width)
        self.place = nn.Embedding(self.side * self.side, width)
        self.codes = nn.Embedding(count + 1, width)  # read and written by one table
        self.memory = nn.Linear(config.width, width)
        self.look = FusionLayer(width, heads, hidden)
        self.local = LocalLayer(width, heads, hidden)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        for table in (self.place, self.codes):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, states: Tensor, shown: Tensor, T_ego_now_from_cam: Tensor, rays: Tensor, mask: Tensor) -> Tensor:
        """[I, S, D], codes int64 [I, P], and of each image's camera [4, 4], rays in it and which there are, to
        [I, P, E], of which `head` makes logits."""
        rows, columns = self.grid
        patches = self.ray(T_ego_now_from_cam, rays, mask).unflatten(1, (rows, 1, columns, 1))
        asked = patches + self.place.weight.view(self.side, 1, self.side, -1)
        x = self.look(asked.flatten(1, 4) + self.codes(shown), self.memory(states), None)
        return self.norm(self.local(x, None))

    @property
    def head(self) -> Tensor:
        return self.codes.weight[: self.count]


class TrajectoryTower(nn.Module):
    """Action tokens int64 [B, 2K] to one vector each [B, PAIR_WIDTH]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.first = config.action_slots[0].start
        self.tokens = nn.Embedding(config.accel_bins + config.curvature_bins, TOKEN_WIDTH)
        self.hidden = nn.Linear(config.action_tokens * TOKEN_WIDTH, 2 * PAIR_WIDTH)
        self.out = nn.Linear(2 * PAIR_WIDTH, PAIR_WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(nn.functional.silu(self.hidden(self.tokens(tokens - self.first).flatten(1))))


class TextTower(nn.Module):
    """Tokens int64 [B, W] to one vector each [B, PAIR_WIDTH], whatever order its words have."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.text = config.vocabulary.range_of("text")
        self.words = nn.Embedding(len(self.text), PAIR_WIDTH)
        self.hidden = nn.Linear(PAIR_WIDTH, 2 * PAIR_WIDTH)
        self.out = nn.Linear(2 * PAIR_WIDTH, PAIR_WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        words = self.are_words(tokens)[..., None]
        each = self.words((tokens - self.text.start).clamp(0, len(self.text) - 1)) * words
        mean = each.sum(dim=1) / words.sum(dim=1).clamp(min=1)
        return self.out(nn.functional.silu(self.hidden(mean)))

    def are_words(self, tokens: Tensor) -> Tensor:
        return (tokens >= self.text.start) & (tokens < self.text.stop)


class SurroundingsReader(nn.Module):
    """Scene tokens [B, S, D] to logits [B, C, X, Y]: each cell of the grid asks what stands there."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.encoder_width
        centres = torch.from_numpy(cell_centres()).float()
        self.grid = centres.shape[:2]
        self.register_buffer("centres", centres.flatten(0, 1), persistent=False)
        self.metres = Fourier(METRE_FREQUENCIES)
        self.place = nn.Linear(2 * self.metres.features, width)
        self.memory = nn.Linear(config.width, width)
        self.look = FusionLayer(width, config.encoder_heads, config.encoder_hidden)
        self.out = nn.Linear(width, len(LAYERS))
        nn.init.constant_(self.out.bias, RARE_LOGIT)

    def forward(self, scene: Tensor) -> Tensor:
        asked = self.place(self.metres(self.centres)).float().expand(len(scene), -1, -1)  # as layers pass it on
        return self.out(self.look(asked, self.memory(scene), None)).transpose(1, 2).unflatten(2, self.grid)


class Pairs(nn.Module):
    """Scenes beside what belongs to them, each as one vector: InfoNCE, SigLIP or both, by their weights.

    Of clips with the same trajectory, or text, only the first counts: the others' would be as right an answer.
    """

    def __init__(self, name: str, width: int, other: nn.Module, nce: float, siglip: float):
        super().__init__()
        self.name, self.nce, self.siglip = name, nce, siglip
        self.scene, self.other, self.names = nn.Linear(width, PAIR_WIDTH), other, []
        if nce:
            self.names += [f"loss_nce_{name}", f"found_{name}"]
            self.nce_log_scale = nn.Parameter(torch.tensor(math.log(NCE_SCALE)))
        if siglip:
            self.names += [f"loss_siglip_{name}"]
            self.siglip_log_scale = nn.Parameter(torch.tensor(math.log(SIGLIP_SCALE)))
            self.siglip_bias = nn.Parameter(torch.tensor(SIGLIP_BIAS))

    def forward(self, scene: Tensor, tokens: Tensor, there: Tensor) -> Loss:
        """Of scene [B, S, D] and int64 [B, W] of those clips that have some, bool [B]; weighed. Fewer than 2: 0."""
        first = {tuple(tokens[i].tolist()): i for i in reversed(there.nonzero().flatten().tolist())}
        if len(first) < 2 <= len(scene):
            # With gradients, of zero: replicas average those of the same parameters, whatever clips each of them has.
            nothing = 0.0 * sum(parameter.sum() for parameter in self.parameters())
            return nothing, {name: scene.new_zeros(()) for name in self.names}
        chosen = sorted(first.values())
        a, b = self.scene(scene[chosen].mean(dim=1)), self.other(tokens[chosen])
        total, scalars = scene.new_zeros(()), {}
        if self.nce:
            loss, named = info_nce(a, b, self.nce_log_scale.exp().clamp(max=MOST_SCALE), self.name)
            total, scalars = total + self.nce * loss, scalars | named
        if self.siglip:
            loss, named = siglip(a, b, self.siglip_log_scale.exp(), self.siglip_bias, self.name)
            total, scalars = total + self.siglip * loss, scalars | named
        return total, scalars


class AuxiliaryLosses(nn.Module):
    """The sum of what `weights` asks for, weighed, of what a model of `config` made of a batch.

    images: the tokenizer's config, for losses that ask for codes; the batch is then a `vla.encoder.CodedBatch`. Same
    arguments, same initial weights; torch's global generator is left alone.
    """

    def __init__(self, weights: LossConfig, config: ModelConfig, images: ImageTokenizerConfig | None, seed: int = 0):
        super().__init__()
        self.weights = w = weights
        if w.codes:
            _check_codes(config, images)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.world = CodeReader(config, images.codes, images.factor) if w.world else None
            self.masked = CodeReader(config, images.codes, images.factor) if w.masked else None
            self.surroundings = SurroundingsReader(config) if w.surroundings else None
            self.shown = nn.Linear(config.encoder_width, len(IN_IMAGES)) if w.shown else None
            if self.shown is not None:
                nn.init.constant_(self.shown.bias, RARE_LOGIT)
            self.trajectory = self.words = None
            nce, sigmoid = w.scene_trajectory_nce, w.scene_trajectory_siglip
            if nce or sigmoid:
                self.trajectory = Pairs("scene_trajectory", config.width, TrajectoryTower(config), nce, sigmoid)
            if w.text:
                tower = TextTower(config)
                self.words = Pairs("scene_text", config.width, tower, w.scene_text_nce, w.scene_text_siglip)

    def forward(self, seen: Seen, generator: torch.Generator) -> Loss:
        """generator: draws the camera whose codes are asked for, one a clip, and which of them are hidden."""
        total, scalars = seen.scene.new_zeros(()), {}
        for weight, loss_of in ((self.weights.world, self._world), (self.weights.masked, self._masked)):
            if weight:
                loss, named = loss_of(seen, generator)
                total, scalars = total + weight * loss, scalars | named
        if self.surroundings is not None:
            asked = surroundings_loss(self.surroundings(seen.scene[:, -1]), *seen.around[:2], "surroundings")
            loss, named = counted(asked, seen.count.surroundings)
            total, scalars = total + self.weights.surroundings * loss, scalars | named
        if self.shown is not None:
            loss, named = self._shown(seen)
            total, scalars = total + self.weights.shown * loss, scalars | named
        if self.trajectory is not None:
            all_have = seen.tokens.new_ones(len(seen.tokens), dtype=torch.bool)
            loss, named = self.trajectory(seen.scene[:, -1], seen.tokens, all_have)
            total, scalars = total + loss, scalars | named
        if self.words is not None:
            loss, named = self.words(seen.scene[:, -1], seen.words, self.words.other.are_words(seen.words).any(dim=1))
            total, scalars = total + loss, scalars | named
        if self.weights.head_z:
            parts = [head_z_loss(seen.said[:, k::2], seen.head, slot)[0] for k, slot in enumerate(seen.slots)]
            loss = torch.stack(parts).mean()
            total, scalars = total + self.weights.head_z * loss, scalars | {"loss_head_z": loss.detach()}
        return total, scalars

    def _shown(self, seen: Seen) -> Loss:
        shown, known = seen.around[2:]
        logits = self.shown(seen.patches).transpose(-1, -2).unflatten(-1, shown.shape[-2:]).flatten(0, 1)
        known, by = known.repeat_interleave(shown.shape[1], dim=0), seen.batch.image_mask[:, -1].flatten()
        return counted(surroundings_loss(logits, shown.flatten(0, 1), known, "shown", by), seen.count.surroundings)

    def _world(self, seen: Seen, generator: torch.Generator) -> Loss:
        batch, (clip, camera) = seen.batch, _one_camera(seen.batch, generator)
        B, T = batch.image_mask.shape[:2]
        codes, there = batch.codes[clip, :, camera].flatten(2), batch.image_mask[clip, :, camera]
        pose, repeated = batch.T_ego_now_from_cam[clip, :, camera], torch.arange(B).repeat_interleave(T - 1)
        hidden = self.world(
            seen.states[:, :-1].flatten(0, 1),
            torch.full_like(codes[:, :-1].flatten(0, 1), self.world.count),
            pose[:, :-1].flatten(0, 1),
            batch.rays_in_cam[clip, camera][repeated],
            batch.ray_mask[clip, camera][repeated],
        )
        scored = there[..., None].expand_as(codes)
        return world_loss(hidden.unflatten(0, (B, T - 1)), self.world.head, codes, scored, slice(0, self.world.count))

    def _masked(self, seen: Seen, generator: torch.Generator) -> Loss:
        batch, (clip, camera) = seen.batch, _one_camera(seen.batch, generator)
        codes = batch.codes[clip, -1, camera].flatten(1)
        shown, hidden_ones = masked_tokens(codes, self.masked.count, generator)
        pose, rays = batch.T_ego_now_from_cam[clip, -1, camera], batch.rays_in_cam[clip, camera]
        hidden = self.masked(seen.states[:, -1], shown, pose, rays, batch.ray_mask[clip, camera])
        scored = hidden_ones & batch.image_mask[clip, -1, camera, None]
        return masked_loss(hidden, self.masked.head, codes, scored, slice(0, self.masked.count))


def _one_camera(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(clip, camera), each int64 [B]: one camera a clip, drawn; all of them would cost more than the plan does."""
    B, _, N = batch.image_mask.shape
    clip = torch.arange(B, device=batch.image_mask.device)
    return clip, torch.randint(N, (B,), generator=generator).to(clip.device)


def _check_codes(config: ModelConfig, images: ImageTokenizerConfig | None) -> None:
    if images is None:
        raise InputError("losses", "image tokenizer", "none", "one: world and masked ask for its codes")
    size, own = (images.image_width, images.image_height), (config.image_width, config.image_height)
    if size != own or config.patch_px % images.factor:
        came = f"{size[0]} x {size[1]} px, a code for {images.factor} px"
        expected = f"{own[0]} x {own[1]} px, and a divisor of patch_px = {config.patch_px}"
        raise InputError("losses", "image tokenizer", came, expected, "Train one for these images.")
