"""The policy that looks: a checkpoint of the vla model behind the policy protocol."""

import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from policies.protocol import Plan, Privileged
from policies.split import Learned
from policies.transforms import image_size, plan_from_tokens, stop_plan, to_batch
from sensors.camera import Camera
from sensors.clip import Clip
from sensors.collate import Batch
from sensors.errors import InputError
from vla.action_tokens import ActionTokenizer
from vla.checkpoint import load, load_image_tokenizer
from vla.encoder import with_codes
from vla.sentences import sentences_of
from vla.stream import Stream, at_once

SHIPPED = Path(__file__).parent / "tiny"  # the checkpoint that comes with the package; its MODEL_CARD.md tells of it
DRAWN_AT = 1.0  # temperature at which the plans are drawn that the likeliest is taken of
# So long one stands and gives way, or stands for all but a light, up to which speed one stands, and from which one has
# gone; see `VlaPolicy`.
PATIENCE_S, MORE_PATIENCE_S, STANDS_MPS, GOES_MPS = 2.0, 20.0, 0.3, 2.5
GIVES_WAY, DRIVES, RED = "give way", "drive", "stop: red light"  # as `sensors.reasons` has them
STREAMS = 8  # remembered: a car that plans more often than its clips step needs one for each plan within a step
LONGEST_STREAM = 4096  # steps; then it starts anew, since rotary angles lose their last digits


def tokenizer_beside(checkpoint: Path) -> Path:
    """Where the image tokenizer of a model that reads codes is kept."""
    return Path(checkpoint).with_name("image_tokenizer")


class _Wait:
    """How long a car has stood, and what for."""

    def __init__(self, patience_s: float):
        self._patience_us, self._more_us = 1e6 * patience_s, 1e6 * max(patience_s, MORE_PATIENCE_S)
        # Since it has stood, for all but a light, and for nothing but to give way; None while it goes.
        self._stands_since_us: int | None = None
        self._gives_way_since_us: int | None = None
        self._before = ""  # the reason said last

    def over(self, now_us: int) -> bool:
        """Whether it has lasted long enough."""
        if self._stands_since_us is None:
            return False
        return now_us - self._gives_way_since_us > self._patience_us or now_us - self._stands_since_us > self._more_us

    def note(self, clip: Clip, reason: str) -> None:
        """What is said now, at the speed of the clip."""
        over, said = self.over(clip.now_us), (self._before, reason)
        self._before = reason
        if clip.vehicle.speed_mps > (GOES_MPS if over else STANDS_MPS):
            self._stands_since_us = self._gives_way_since_us = None
        elif self._stands_since_us is None or all(each.startswith(RED) for each in said):
            self._stands_since_us = self._gives_way_since_us = clip.now_us
        elif not any(each.startswith((GIVES_WAY, DRIVES) if over else GIVES_WAY) for each in said):
            self._gives_way_since_us = clip.now_us


class VlaPolicy:
    """Decodes greedily, so the same clip gives the same plan; or, with best_of, takes the likeliest of so many draws.

    A model that reads codes has its tokenizer beside its checkpoint, as `image_tokenizer`, where training put it.
    learned: the scenes that it learned from; none where its checkpoint does not say.
    allow_blind: accept a clip in which every camera is masked (else an InputError: a policy that drives by looking
    shall not drive unseeing by mistake).

    A model that can (fusion_reach "step") keeps what it made of the past, see `vla.stream`. The rule: a clip whose
    earlier steps are, to the bit, the newest steps of a clip planned for before adds one step to what is remembered of
    that; any other (the first of a drive, one after a missed tick, a pause or a jump, one that steps at other instants)
    begins anew with all its own steps. So no step is ever taken to lie where it does not.

    reason: it says why, in the words of `sensors.reasons`, if the model has text. The plan is the same without.

    Who stands and gives way looks at a picture that does not change, and what is likeliest then never does either:
    two who wait for each other wait for ever. After patience_s plans are drawn from what the model holds possible,
    until it goes; after MORE_PATIENCE_S also where it stands for others, as for people on a kerb who wait for it to
    pass. Red lights have all the time they need. Another reason counts when it is said twice running: who is in doubt
    says now this, now that, and what is drawn may say anything. A real car has patience_s = inf: nothing that moves
    it is drawn by lot.

    Logits that are not finite give a comfortable stop, labelled in `Plan.fallback`, and nothing is remembered.
    """

    name = "vla"
    privileged = False
    needs_images = True

    def __init__(
        self,
        checkpoint: Path,
        device: torch.device | str = "cpu",
        allow_blind: bool = False,
        best_of: int = 1,
        reason: bool = True,
        patience_s: float = PATIENCE_S,
    ):
        if best_of < 1:
            raise InputError("vla policy", "best_of", best_of, "at least 1")
        loaded = load(checkpoint)
        self._model = loaded.model.eval().to(device)
        self.learned = Learned.from_json(loaded.extra.get("learned", []))
        self._device, self._allow_blind, self._best_of = device, allow_blind, best_of
        self._patience_s = patience_s
        self.config = self._model.config
        self._codes = None
        if self.config.image_input != "patches":
            self._codes = load_image_tokenizer(tokenizer_beside(checkpoint)).model.to(device)
        self._tokenizer = ActionTokenizer(self.config)
        self._sentences = sentences_of(self.config) if reason and self.config.reason_places else None
        self._reasons = None if self._sentences is None else self._sentences.reason_graph.to(device)
        self.clip_steps = self.config.steps
        self.image_size = image_size(self.config)
        self.needs_images = not allow_blind
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Forget the drive; only draws (best_of) are random."""
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._streams: deque[tuple[Stream, Clip]] = deque(maxlen=STREAMS)  # each with the clip it planned for last
        self._wait = _Wait(self._patience_s)

    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        begun = time.perf_counter()
        impatient = self._wait.over(clip.now_us)
        blind = self._allow_blind or bool(clip.image_mask.any())  # a look back is a look
        known = next((kept for kept in self._streams if _follows(clip, kept[1])), None)
        batch = self._read(clip if known is None else clip.last(1))
        read_ms = 1e3 * (time.perf_counter() - begun)
        if self.config.fusion_reach == "step":
            stream = Stream(self._model) if known is None else known[0]
            tick = stream.tick(batch, **self._how(blind, impatient))
            self._keep(stream, clip, known)
        else:
            tick = at_once(self._model, batch, **self._how(blind, impatient))
        latency_ms = {**tick.latency_ms, "see": tick.latency_ms["see"] + read_ms}
        if not tick.decode.valid[0]:
            self._streams.clear()
            return replace(stop_plan(clip, "logits that are not finite"), latency_ms=latency_ms)
        plan = plan_from_tokens(tick.decode.tokens[0].cpu().numpy(), clip, self._tokenizer)
        said = tick.decode.reason
        reason = self._sentences.reason_text(said.tokens[0].tolist()) if said is not None and said.valid[0] else ""
        self._wait.note(clip, reason)
        return replace(plan, logprob=float(tick.decode.logprob[0]), reason=reason, latency_ms=latency_ms)

    def _keep(self, stream: Stream, clip: Clip, known: tuple[Stream, Clip] | None) -> None:
        """Remember the stream, and in place of what it planned for before (`known`) this clip."""
        if known is not None:
            self._streams.remove(known)
        if stream.step < LONGEST_STREAM:
            self._streams.appendleft((stream, clip))

    def _read(self, clip: Clip) -> Batch:
        batch = to_batch([clip], self.config).to(self._device)
        return batch if self._codes is None else with_codes(batch, self._codes)

    def _how(self, blind: bool, impatient: bool) -> dict:
        drawn = {"temperature": DRAWN_AT, "generator": self._generator, "best": self._best_of}
        return {"allow_blind": blind, "reasons": self._reasons, **(drawn if impatient or self._best_of > 1 else {})}


def _follows(clip: Clip, before: Clip) -> bool:
    """Whether all steps of a clip but its last are the newest steps of an earlier one, seen by the same cameras."""
    names = ("time_us", "image_mask", "T_world_from_ego", "images")
    if [_geometry(camera) for camera in clip.cameras] != [_geometry(camera) for camera in before.cameras]:
        return False
    return all(np.array_equal(getattr(clip, name)[:-1], getattr(before, name)[1:]) for name in names)


def _geometry(camera: Camera) -> tuple:
    return camera.distortion, *camera.coefficients, *camera.K.ravel().tolist(), *camera.T_ego_from_cam.ravel().tolist()
