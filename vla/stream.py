"""A running car: each tick appends one step to what the backbone remembers, and says a plan.

    lasting   scene of step t - 1, once more                     remembered from now on
    live      scene of step t, IMU, vehicle, command, plan       forgotten at the next tick

The lasting scene sees only lasting tokens, as the past steps of a clip do in training; so a tick gives what
`DrivingModel.decode` of all steps at once gives, and never looks at an image twice.
"""

import time
from dataclasses import dataclass, replace

import torch

from sensors.collate import Batch
from sensors.errors import InputError
from vla.attention import Horizon, Layout
from vla.cache import Cache
from vla.decode import ActionDecode, best_of
from vla.model import DrivingModel


@dataclass(frozen=True)
class Tick:
    """One plan, and how long each stage took.

    see: images to tokens; think: backbone; say: action tokens.
    """

    decode: ActionDecode
    latency_ms: dict[str, float]


class Stream:
    """One drive of one car. A model whose scene tokens read the images of past steps cannot stream.

    horizon: what is remembered, the steps of the config if None; int8: keys and values in a quarter of the memory.
    """

    def __init__(self, model: DrivingModel, horizon: Horizon | None = None, int8: bool = False):
        if model.config.fusion_reach != "step":
            came, fix = model.config.fusion_reach, "Train a model whose scene tokens need no past images."
            raise InputError("stream", "fusion_reach", came, "step", fix)
        self.model, self.step = model, 0
        self.horizon = Horizon(model.config.steps) if horizon is None else horizon
        self._int8, self._cache, self._scene = int8, None, None
        S, past = model.config.scene_tokens, (model.config.steps - 1) * model.config.scene_tokens
        self._live = model.layout()[past:]
        self._lasting = replace(self._live[:S], lasting=torch.ones(S, dtype=torch.bool))

    @torch.inference_mode()
    def tick(
        self,
        batch: Batch,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        best: int = 1,
        allow_blind: bool = False,
    ) -> Tick:
        """The plan for a batch of one clip of one step. best: draw that many at `temperature`, take the likeliest."""
        begun, model, K = time.perf_counter(), self.model, self.model.config.action_tokens
        scene, now = model.perceive(batch, 1, allow_blind)
        seen = time.perf_counter()
        cache, live = self._room(scene), self._at_step(self._live, self.step, scene)
        cache.begin(self.step - 1)
        tokens, layout = torch.cat([scene, now], dim=1), live[:-K]
        if self._scene is not None:
            tokens = torch.cat([self._scene, tokens], dim=1)
            layout = Layout.joined(self._at_step(self._lasting, self.step - 1, scene), layout)
        model.backbone.remember(tokens, layout, cache)
        self._scene = scene
        thought = time.perf_counter()
        if best == 1:
            decode = model.say(cache, live[-K:], temperature, generator)
        else:
            decode = best_of(best, cache, lambda past: model.say(past, live[-K:], temperature, generator))
        said = time.perf_counter()
        self.step += 1
        spans = {"see": seen - begun, "think": thought - seen, "say": said - thought}
        return Tick(decode, {name: 1e3 * span for name, span in spans.items()})

    @staticmethod
    def _at_step(layout: Layout, step: int, like: torch.Tensor) -> Layout:
        layout = layout.to(like.device)
        return replace(layout, step=torch.full_like(layout.step, step))

    def _room(self, like: torch.Tensor) -> Cache:
        if self._cache is None:
            h, S = self.horizon, self.model.config.scene_tokens
            steps = h.steps + h.keyframe_steps // h.keyframe_every + 1
            tokens = steps * S + len(self._live)
            self._cache = self.model.backbone.cache(len(like), tokens, like, h, self._int8)
        return self._cache
