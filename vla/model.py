"""The guided tour: how a batch of clips becomes a plan, and the plan's reason in words.

images -> stem + ray + time -> local encoder -> fusion ->  S scene tokens per step   (encoder.py)
IMU, vehicle state, calibration, route command         ->  a few tokens, at the last step  (projectors.py)
instruction                                            ->  its text, at the last step  (sentences.py)
one sequence, one decoder:

    scene 0 | scene 1 ... scene T-1, IMU, ... instruction | plan | accel 0 | ... | reason | text 0 | text 1 | ...
    time 0    1       ... T-1                               T      T+1             T+2K     T+2K+1

tokens of one step see each other and all before them (`vla.attention.visible`);

each action token is predicted from the position before it; or, with parallel action decoding, from a query of its own:

    ... vehicle, command | query 0 | query 1 | ...       all at time T, which see each other

the reason reads all that the plan is read from, and is not seen by it: who does not ask for it pays nothing.
"""

from collections import deque
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sensors.collate import Batch
from sensors.errors import InputError
from vla.attention import Layout
from vla.auxiliary import AuxiliaryLosses, Seen
from vla.backbone import Backbone
from vla.cache import Cache
from vla.config import ModelConfig
from vla.decode import ActionDecode, SentenceGraph, choose_parallel, decode_actions, decode_sentence, likeliest
from vla.encoder import SceneEncoder, check_codes
from vla.losses import WHOLE, Counted, Loss, action_loss, counted, token_loss
from vla.moe import Routing, balance_loss, router_z_loss
from vla.projectors import CalibrationProjector, ImuProjector, VehicleProjector

ROUTER_Z_WEIGHT = 1e-4
REASON_WEIGHT = 0.1
BALANCE_WEIGHT = 1e-2  # of a softmax router; a sigmoid router is evened by its bias
# What is seen has to be loud at the start: with all maps alike, pictures move the scene tokens by 3 % of their size,
# and a policy learns from everything else first. Faint time, sharp queries and loud answers make it 45 %.
GAINS = (
    ("encoder.time.linear.weight", 0.25),
    ("attention.q.weight", 3.0),
    ("fusion.0.attention.out.weight", 3.0),
    ("fusion.1.attention.out.weight", 3.0),
)
TOKENS = (
    "embedding",
    "action_queries",
    "instruction_order",
    "queries",
    "nothing",
    "missing",
)  # are tokens, not maps


@dataclass(frozen=True)
class Thought:
    """What plan and reason are said from: all that was read, where their tokens will stand, and, for a plan that is
    said at once, what was made of its queries [B, 2K, D]."""

    cache: Cache
    layout: Layout
    hidden: Tensor | None


class DrivingModel(nn.Module):
    """The brain. Same config and seed: the same weights, bit for bit; torch's global generator is left alone."""

    def __init__(self, config: ModelConfig, seed: int = 0):
        super().__init__()
        self.config = c = config.validate()
        self.instruction_places, self.reason_places = c.instruction_places, c.reason_places
        with torch.random.fork_rng(devices=[]):
            self.encoder = SceneEncoder(c)
            self.scene = nn.Linear(c.encoder_width, c.width)
            self.deep = nn.ModuleList(nn.Linear(c.encoder_width, c.width, bias=False) for _ in range(c.deepstack))
            self.imu, self.vehicle = ImuProjector(c), VehicleProjector(c)
            self.calibration = CalibrationProjector(c) if c.calibration_projector != "none" else None
            self.embedding = nn.Embedding(c.vocabulary.size, c.width)
            self.backbone = Backbone(c)
            self.head = nn.Linear(c.width, c.vocabulary.size, bias=False)
            if c.action_decoding == "parallel":
                self.action_queries = nn.Parameter(torch.empty(c.action_tokens, c.width))
            # All perceived at one time, so angles do not show which word is first; and an empty place is only a place:
            # were they all alike, the router would have to send them all one way.
            if self.instruction_places:
                self.instruction_order = nn.Parameter(torch.empty(self.instruction_places, c.width))
        self.slots, self.text = c.action_slots, c.vocabulary.range_of("text")
        names = ("<plan>", "<reason>", "<end>", "<pad>")
        self.plan_token, self.reason_token, self.end_token, self.pad_token = map(c.vocabulary.special, names)
        self.first_command = c.vocabulary.command(c.commands[0])
        self._layout = self._lay_out()
        self._initialise(torch.Generator().manual_seed(seed))

    def layout(self, device: torch.device | str = "cpu", reason: bool = False) -> Layout:
        """Where the tokens of a clip and its plan stand, and of a reason, in the order of the module's docstring."""
        self._layout = self._layout.to(device)
        return self._layout if reason else self._layout[: len(self._layout) - self.reason_places]

    def _lay_out(self) -> Layout:
        c = self.config
        # A running car keeps each step's scene; so where it can, the scene of the last step is like any other's.
        kept = (c.steps if c.fusion_reach == "step" else c.steps - 1) * c.scene_tokens
        said, told = torch.arange(c.action_tokens), torch.arange(self.reason_places)
        perceived = c.steps * c.scene_tokens + c.now_tokens
        step = torch.arange(c.steps).repeat_interleave(c.scene_tokens)
        step = torch.cat([step, torch.full((perceived - len(step) + len(said) + len(told),), c.steps - 1)])
        plan = 1 + (said if c.action_decoding == "autoregressive" else 0 * said)
        phase = torch.cat([torch.zeros(perceived, dtype=torch.int64), plan, plan[-1] + 1 + told])
        now = torch.zeros(c.now_tokens - self.instruction_places, dtype=torch.int64)
        words = torch.arange(self.instruction_places)
        order = torch.cat([torch.arange(c.scene_tokens).repeat(c.steps), now, words, said, 0 * told])
        lasting = torch.arange(len(step)) < kept
        return Layout(step, phase, order, lasting)

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Norms 1, biases 0, maps N(0, 1 / inputs), tokens N(0, 0.1^2), smaller where a residual branch ends."""
        depth = (2 * self.config.layers) ** -0.5
        for name, parameter in self.named_parameters():
            parts = ["", *name.split(".")]
            if parts[-2].endswith("norm"):
                parameter.fill_(1.0)
            elif parts[-1] == "bias":
                parameter.zero_()
            elif not parameter.is_meta:
                inputs = parameter[0].numel() if parameter.ndim == 4 else parameter.shape[-1]  # 4: a convolution
                std = 0.1 if any(part in TOKENS for part in parts) else inputs**-0.5
                std *= next((gain for ending, gain in GAINS if name.endswith(ending)), 1.0)
                if parts[1] in ("backbone", "head") and (parts[-1] == "down" or parts[-2] in ("down", "out", "head")):
                    std *= depth
                parameter.normal_(0.0, std, generator=generator)
        for attention in [*(layer.attention for layer in self.encoder.fusion), *self.encoder.deep]:
            attention.kv.weight[: self.config.encoder_width] = attention.q.weight  # find the keys that resemble them

    def prefix(
        self,
        batch: Batch,
        allow_blind: bool = False,
        generator: torch.Generator | None = None,
        kept: list[Tensor] | None = None,
    ) -> Tensor:
        """Embedded tokens [B, L, D] of what the car perceives, in the order of the module's docstring.

        With DeepStack they are [B, L, (1 + n) D], see `Backbone`. A batch that does not fit the config or holds NaN is
        an InputError; so is a clip without a single image, unless `allow_blind`.
        """
        return torch.cat(self.perceive(batch, self.config.steps, allow_blind, generator, kept), dim=1)

    def perceive(
        self,
        batch: Batch,
        steps: int,
        allow_blind: bool = False,
        generator: torch.Generator | None = None,
        kept: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(scene tokens of `steps` steps [B, steps S, D], tokens that speak of now [B, M, D]); rules as `prefix`."""
        self._check(batch, steps, allow_blind)
        scene, *deep = self.encoder(batch, generator, kept).flatten(1, 2).split(self.config.encoder_width, dim=-1)
        scene = self.scene(scene)
        if deep:
            scene = torch.cat([scene, *(linear(x) for linear, x in zip(self.deep, deep, strict=True))], dim=-1)
        now = [self.imu(batch.imu, batch.imu_mask, batch.imu_time_s), self.vehicle(batch.vehicle, batch.vehicle_mask)]
        if self.calibration is not None:
            now.append(self.calibration(batch))
        now.append(self.embedding(batch.command_id[:, None] + self.first_command))
        if self.instruction_places:
            told = (batch.instruction != self.pad_token)[..., None]
            now.append(self.embedding(batch.instruction) * told + self.instruction_order)
        return scene, self._deepened(torch.cat(now, dim=1))

    def _deepened(self, x: Tensor) -> Tensor:
        """As wide as scene tokens: to all others DeepStack adds nothing."""
        return nn.functional.pad(x, (0, len(self.deep) * x.shape[-1])) if len(self.deep) else x

    def hidden(
        self, batch: Batch, action_tokens: Tensor, allow_blind: bool = False, reason_tokens: Tensor | None = None
    ) -> Tensor:
        """[B, 2K, D] that predicts each of action_tokens [B, 2K] from those before it (in parallel: from none).

        With reason_tokens [B, R] as `loss` takes them [B, 2K + R, D], the same for each of them.
        """
        x = self.sequence(batch, action_tokens, allow_blind, reason_tokens=reason_tokens)
        last = action_tokens.shape[1] + (0 if reason_tokens is None else reason_tokens.shape[1])
        return self.backbone(x, self.layout(x.device, reason_tokens is not None), last=last)

    def sequence(
        self,
        batch: Batch,
        action_tokens: Tensor,
        allow_blind: bool = False,
        generator: torch.Generator | None = None,
        reason_tokens: Tensor | None = None,
        kept: list[Tensor] | None = None,
    ) -> Tensor:
        """Embedded tokens [B, L, D] of a clip and what its plan and reason are predicted from; rules as `prefix`.

        kept: see `SceneEncoder.forward`.
        """
        parts = [self.prefix(batch, allow_blind, generator, kept), self.said(action_tokens)]
        if reason_tokens is not None:
            parts.append(self._follow(self.reason_token, reason_tokens))
        return torch.cat(parts, dim=1)

    def said(self, action_tokens: Tensor) -> Tensor:
        """[B, 2K, D], from which action_tokens [B, 2K] are predicted; as wide as the prefix."""
        if self.config.action_decoding == "parallel":
            return self._deepened(self.action_queries.expand(len(action_tokens), -1, -1))
        return self._follow(self.plan_token, action_tokens)

    def _follow(self, marker: int, tokens: Tensor) -> Tensor:
        """[B, L, D], from which tokens [B, L] are predicted one by one: the marker, and each but the last."""
        begin = tokens.new_full((len(tokens), 1), marker)
        return self._deepened(self.embedding(torch.cat([begin, tokens[:, :-1]], dim=1)))

    def loss(
        self,
        batch: Batch,
        action_tokens: Tensor,
        reason_tokens: Tensor | None = None,
        allow_blind: bool = False,
        generator: torch.Generator | None = None,
        auxiliary: AuxiliaryLosses | None = None,
        around: tuple[Tensor, ...] | None = None,
        count: Counted = WHOLE,
    ) -> Loss:
        """(loss to minimise, named detached scalars) of the expert's action_tokens int64 [B, 2K].

        reason_tokens: the expert's reasons int64 [B, R] by `vla.sentences`, those that are all <pad> do not count.
        generator: draws what the dropout of experts and of camera identities drops, where the config has it, and what
        auxiliary losses draw; around: as `vla.auxiliary.Seen` has it, where one of them asks; count: of a batch's part.
        """
        self._check_tokens(batch, action_tokens)
        if reason_tokens is not None:
            self._check_reason(batch, reason_tokens)
        routings: deque[Routing] = deque()  # FSDP would hand the layers copies of a list that holds tensors
        kept: list[Tensor] | None = None if auxiliary is None else []
        x, n = self.sequence(batch, action_tokens, allow_blind, generator, reason_tokens, kept), action_tokens.shape[1]
        told = 0 if reason_tokens is None else reason_tokens.shape[1]
        layout, last = self.layout(x.device, told > 0), n + told if auxiliary is None else None
        states = self.backbone(x, layout, routings=routings, generator=generator, last=last)
        hidden, reasoned = states[:, -n - told :].split([n, told], dim=1)
        loss, scalars = action_loss(hidden, self.head.weight, action_tokens, self.slots)
        if reason_tokens is not None:
            reason, more = counted(self._reason_loss(reasoned, reason_tokens), count.reason)
            loss, scalars = loss + REASON_WEIGHT * reason, scalars | more
        if routings:
            z_loss = router_z_loss(routings)
            scalars["loss_router_z"] = z_loss.detach()
            loss = loss + ROUTER_Z_WEIGHT * z_loss
            if self.config.router == "softmax":
                balance = balance_loss(routings)
                scalars["loss_balance"] = balance.detach()
                loss = loss + BALANCE_WEIGHT * balance
        if auxiliary is not None:
            c = self.config
            scene, states = (
                tokens[:, : c.steps * c.scene_tokens, : c.width].unflatten(1, (c.steps, -1)) for tokens in (x, states)
            )
            words = batch.instruction if reason_tokens is None else torch.cat([batch.instruction, reason_tokens], dim=1)
            known = (words, self.head.weight, self.slots, around, kept[-1], count)
            seen = Seen(batch, scene, states, hidden, action_tokens, *known)
            more, named = auxiliary(seen, generator)
            loss, scalars = loss + more, scalars | named
        return loss, scalars

    def _reason_loss(self, hidden: Tensor, tokens: Tensor) -> Loss:
        """Cross-entropy over text and <end> of tokens [B, R] but for <pad>, from hidden [B, R, D]."""
        size, weight = len(self.text), self.head.weight
        head = torch.cat([weight[self.text.start : self.text.stop], weight[self.end_token : self.end_token + 1]])
        index = torch.where(tokens == self.end_token, size, tokens - self.text.start)
        return token_loss(hidden, head, index, tokens != self.pad_token, slice(0, size + 1), "reason")

    @torch.inference_mode()
    def decode(
        self,
        batch: Batch,
        generator: torch.Generator | None = None,
        temperature: float = 0.0,
        allow_blind: bool = False,
        best: int = 1,
        reasons: SentenceGraph | None = None,
    ) -> ActionDecode:
        """One plan per clip: the most likely token at each position, or a draw at `temperature`.

        best: of one clip, draw that many and take the likeliest.
        reasons: sentences of which the likeliest says why; None: nobody asks.
        """
        thought = self.think(self.prefix(batch, allow_blind))
        plan = self.say(thought, temperature, generator, best)
        return plan if reasons is None else self.tell(thought, plan, reasons)

    def think(self, prefix: Tensor) -> Thought:
        """What the backbone makes of a prefix, for `say` and `tell`."""
        layout = self.layout(prefix.device, reason=True)
        return self.read(prefix, layout, self.backbone.cache(len(prefix), len(layout), prefix))

    def read(self, prefix: Tensor, layout: Layout, cache: Cache) -> Thought:
        """The same behind what a cache holds; layout of the prefix, plan and reason that follow it."""
        L, hidden = prefix.shape[1], None
        if self.config.action_decoding == "parallel":  # the plan's queries are read along: one pass
            n = self.config.action_tokens
            queries = self._deepened(self.action_queries.expand(len(prefix), -1, -1))
            hidden = self.backbone(torch.cat([prefix, queries], dim=1), layout[: L + n], cache, last=n)
        else:
            self.backbone.remember(prefix, layout[:L], cache)
        return Thought(cache, layout[L:], hidden)

    def say(self, of: Thought, temperature: float, generator: torch.Generator | None, best: int = 1) -> ActionDecode:
        """The plan, of `best` draws behind one clip the likeliest."""
        if best > 1 and of.cache.shape.batch != 1:
            raise InputError("best of many", "clips", of.cache.shape.batch, "one, behind which many plans are drawn")
        if of.hidden is not None:
            hidden = of.hidden if best == 1 else of.hidden.expand(best, -1, -1)
            said = choose_parallel(hidden, self.head.weight, self.slots, temperature, generator)
        else:
            cache, layout = of.cache if best == 1 else of.cache.repeated(best), of.layout[: self.config.action_tokens]
            parts = self.backbone, self.embedding, self.head.weight, self.slots, self.plan_token
            said = decode_actions(*parts, cache, layout, temperature, generator)
        return said if best == 1 else likeliest(said)

    def tell(self, of: Thought, plan: ActionDecode, reasons: SentenceGraph) -> ActionDecode:
        """The plan that was said, with its likeliest reason."""
        n = self.config.action_tokens
        if of.cache.layout.phase[-1] == 0:  # the plan was drawn with copies of the cache
            self.backbone.remember(self.said(plan.tokens), of.layout[:n], of.cache)
        parts = self.backbone, self.embedding, self.head.weight, reasons
        said = decode_sentence(*parts, self.reason_token, self.pad_token, of.cache, of.layout[n:], 0.0, None)
        return replace(plan, reason=said)

    def rebalance(self, rate: float = 5e-3) -> dict[int, Tensor]:
        """To be called after each optimizer step: moves the routers' biases towards an even load.

        Returns the tokens that each expert got since the last call [E], by layer of the backbone.
        """
        loads = {}
        for i, layer in enumerate(self.backbone.layers):
            if layer.routed:
                loads[i] = layer.mlp.load.clone()
                layer.mlp.rebalance(rate)
        return loads

    def _check(self, batch: Batch, steps: int, allow_blind: bool) -> None:
        c = self.config
        B, patches = len(batch.images), (c.image_width // c.patch_px) * (c.image_height // c.patch_px)
        for name, shape, hint in (
            ("images", (B, steps, c.cameras, c.image_height, c.image_width, 3), "[B, T, N, H, W, 3]"),
            ("rays_in_cam", (B, c.cameras, patches, 3), f"patches of {c.patch_px} px"),
            ("imu", (B, c.imu_samples, 6), "imu_samples of the config"),
            ("instruction", (B, self.instruction_places), "places of the config, by vla.sentences"),
        ):
            came = tuple(getattr(batch, name).shape)
            if came != shape:
                raise InputError("batch", name, came, f"{shape}, {hint}", "Collate as the model's config says.")
        if batch.images.dtype != torch.uint8:
            came = f"{batch.images.dtype}{', with NaN' if batch.images.isnan().any() else ''}"
            raise InputError("batch", "images", came, "torch.uint8, 0 .. 255", "Collate real images.")
        if c.image_input != "patches":
            check_codes(batch, c)
        if (batch.command_id < 0).any() or (batch.command_id >= len(c.commands)).any():
            came, expected = batch.command_id.tolist(), f"0 .. {len(c.commands) - 1}"
            raise InputError("batch", "command_id", came, expected, "It is an index into the config's commands.")
        ids = batch.instruction
        if ids.numel() and not 0 <= ids.min() <= ids.max() < self.text.stop:
            came, expected = f"{int(ids.min())} .. {int(ids.max())}", f"0 .. {self.text.stop - 1}"
            raise InputError("batch", "instruction", came, expected, "Are they of another vocabulary layout?")
        for name in ("time_s", "T_ego_now_from_cam", "rays_in_cam", "imu", "imu_time_s", "vehicle"):
            finite = torch.isfinite(getattr(batch, name))
            if not finite.all():
                clip = int(finite.flatten(1).all(dim=1).logical_not().nonzero()[0])
                raise InputError("batch", f"{name} of clip {clip}", "NaN or infinity", "finite numbers")
        blind = ~batch.image_mask.flatten(1).any(dim=1)
        if not allow_blind and blind.any():
            where = f"image_mask of clip {int(blind.nonzero()[0])}"
            raise InputError("batch", where, "every camera masked", "at least one image", "Or ask with allow_blind.")

    def _check_tokens(self, batch: Batch, tokens: Tensor) -> None:
        shape = (len(batch.images), 2 * self.config.plan_steps)
        if tuple(tokens.shape) != shape or tokens.dtype != torch.int64:
            raise InputError("loss", "action_tokens", f"{tokens.dtype} {tuple(tokens.shape)}", f"int64 {shape}")
        for first, slot in enumerate(self.slots):
            some = tokens[:, first::2]
            if (some < slot.start).any() or (some >= slot.stop).any():
                came, where = some.unique().tolist(), ("even", "odd")[first]
                expected = f"{slot.start} .. {slot.stop - 1} at {where} positions"
                raise InputError("loss", "action_tokens", came, expected, "Are they of another vocabulary layout?")

    def _check_reason(self, batch: Batch, tokens: Tensor) -> None:
        shape = (len(batch.images), self.reason_places)
        if tuple(tokens.shape) != shape or tokens.dtype != torch.int64:
            came = f"{tokens.dtype} {tuple(tokens.shape)}"
            raise InputError("loss", "reason_tokens", came, f"int64 {shape}", "Has the model text_tokens?")
