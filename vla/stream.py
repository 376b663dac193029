"""A running car: each tick appends one step to what the backbone remembers, and says a plan.

    lasting   scene of step t                        remembered as long as the horizon holds
    live      IMU ... instruction, plan, reason      forgotten at the next tick

What lasts sees only what lasts; so a tick gives what the model would make of the whole drive at once, each token seeing
as far back as the horizon, and nothing is computed twice. For the first steps of a drive, as many as the config's, that
is `DrivingModel.decode` of them. Later it knows a little more than a clip of as many steps could say: the oldest step
remembered was itself read with its past in sight.
"""

import time
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from sensors.collate import Batch
from sensors.errors import InputError
from vla.attention import Horizon, Layout
from vla.cache import Cache
from vla.decode import ActionDecode, SentenceGraph
from vla.model import DrivingModel, Thought


@dataclass(frozen=True)
class Tick:
    """One plan, and how long each stage took.

    see: images to tokens; think: backbone; say: action tokens; tell: the reason, where one was asked for.
    """

    decode: ActionDecode
    latency_ms: dict[str, float]


@torch.inference_mode()
def at_once(
    model: DrivingModel,
    batch: Batch,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    best: int = 1,
    allow_blind: bool = False,
    reasons: SentenceGraph | None = None,
) -> Tick:
    """The plan for a batch of one clip of all its steps, timed; nothing is remembered. As `DrivingModel.decode`."""
    begun = _instant(model)
    prefix = model.prefix(batch, allow_blind)
    seen = _instant(model)
    thought = model.think(prefix)
    return _spoken(model, thought, temperature, generator, best, reasons, [begun, seen, _instant(model)])


def _spoken(
    model: DrivingModel,
    thought: Thought,
    temperature: float,
    generator: torch.Generator | None,
    best: int,
    reasons: SentenceGraph | None,
    instants: list[float],
) -> Tick:
    """What follows once the model has thought; instants: when it began, and when seeing and thinking ended."""
    decode = model.say(thought, temperature, generator, best)
    instants = [*instants, _instant(model)]
    if reasons is not None:
        decode = model.tell(thought, decode, reasons)
        instants.append(_instant(model))
    spans = zip(("see", "think", "say", "tell"), pairwise(instants), strict=False)
    return Tick(decode, {name: 1e3 * (b - a) for name, (a, b) in spans})


def _instant(model: DrivingModel) -> float:
    """Seconds, once the model's device has done what it was told."""
    if model.head.weight.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


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
        self._of_last = model.layout(reason=True)[(model.config.steps - 1) * model.config.scene_tokens :]
        h = self.horizon
        steps = h.steps + h.keyframe_steps // h.keyframe_every + 1
        self._tokens = (steps - 1) * model.config.scene_tokens + len(self._of_last)
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
        reasons: SentenceGraph | None = None,
    ) -> Tick:
        """The plan for a batch of one clip of one step; best: draw that many at `temperature`, take the likeliest.

        The first tick may bring a past with it: a clip of several steps, each told as its own now saw it.
        reasons: as in `DrivingModel.decode`.
        """
        steps = batch.image_mask.shape[1]
        if steps != 1 and self.step:
            raise InputError("stream", "batch", f"{steps} steps", "one: those before it are remembered")
        model, begun = self.model, _instant(self.model)
        scene, now = model.perceive(batch, steps, allow_blind)
        seen = _instant(model)
        last = self.step + steps - 1
        cache, layout = self._room(scene), self._layout_of(steps).to(scene.device)
        cache.begin(last)
        thought, self.step = model.read(torch.cat([scene, now], dim=1), layout, cache), last + 1
        return _spoken(model, thought, temperature, generator, best, reasons, [begun, seen, _instant(model)])

    def _layout_of(self, steps: int) -> Layout:
        """Where the tokens of the next `steps` steps stand, and those that speak of the last of them."""
        S, of_last = self.model.config.scene_tokens, self._of_last
        layout = Layout.joined(*[of_last[:S]] * (steps - 1), of_last)
        step = torch.arange(self.step, self.step + steps).repeat_interleave(S)
        rest = torch.full((len(of_last) - S,), self.step + steps - 1)
        return replace(layout, step=torch.cat([step, rest]))

    def _room(self, like: torch.Tensor) -> Cache:
        if self._cache is None:
            self._cache = self.model.backbone.cache(len(like), self._tokens, like, self.horizon, self._int8)
        return self._cache
