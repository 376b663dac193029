"""A running car: each tick appends one step to what the backbone remembers, and says a plan.

    lasting   scene of step t                        remembered as long as the horizon holds
    live      IMU, vehicle, command, plan            forgotten at the next tick

What lasts sees only what lasts; so a tick gives what `DrivingModel.decode` of all steps at once gives, and nothing is
computed twice.
"""

import time
from dataclasses import dataclass, replace

import torch

from sensors.collate import Batch
from sensors.errors import InputError
from vla.attention import Horizon
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
        self._int8, self._cache = int8, None
        self._layout = model.layout()[(model.config.steps - 1) * model.config.scene_tokens :]
        h = self.horizon
        steps = h.steps + h.keyframe_steps // h.keyframe_every + 1
        self._tokens = (steps - 1) * model.config.scene_tokens + len(self._layout)
        if self._tokens > model.config.context:
            came, fix = f"{self._tokens} tokens to remember", "Make the horizon shorter, or change context."
            raise InputError("stream", "horizon", came, f"at most context = {model.config.context}", fix)

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
        cache, layout = self._room(scene), self._layout.to(scene.device)
        layout = replace(layout, step=torch.full_like(layout.step, self.step))
        cache.begin(self.step)
        model.backbone.remember(torch.cat([scene, now], dim=1), layout[:-K], cache)
        thought = time.perf_counter()
        if best == 1:
            decode = model.say(cache, layout[-K:], temperature, generator)
        else:
            decode = best_of(best, cache, lambda past: model.say(past, layout[-K:], temperature, generator))
        said = time.perf_counter()
        self.step += 1
        spans = {"see": seen - begun, "think": thought - seen, "say": said - thought}
        return Tick(decode, {name: 1e3 * span for name, span in spans.items()})

    def _room(self, like: torch.Tensor) -> Cache:
        if self._cache is None:
            self._cache = self.model.backbone.cache(len(like), self._tokens, like, self.horizon, self._int8)
        return self._cache
