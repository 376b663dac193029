"""The policy that looks: a checkpoint of the vla model behind the policy protocol."""

import time
from pathlib import Path

import torch

from policies.protocol import Plan, Privileged
from policies.transforms import image_size, plan_from_tokens, to_batch
from sensors.clip import Clip
from sensors.errors import InputError
from vla.action_tokens import ActionTokenizer
from vla.checkpoint import load, load_image_tokenizer
from vla.encoder import with_codes


def tokenizer_beside(checkpoint: Path) -> Path:
    """Where the image tokenizer of a model that reads codes is kept."""
    return Path(checkpoint).with_name("image_tokenizer")


class VlaPolicy:
    """Decodes greedily, so the same clip gives the same plan.

    A model that reads codes has its tokenizer beside its checkpoint, as `image_tokenizer`, where training put it.
    allow_blind: accept a clip in which every camera is masked (else an InputError: a policy that drives by looking
    shall not drive unseeing by mistake).
    """

    name = "vla"
    privileged = False
    needs_images = True

    def __init__(self, checkpoint: Path, device: torch.device | str = "cpu", allow_blind: bool = False):
        self._checkpoint = checkpoint
        self._model = load(checkpoint).model.eval().to(device)
        self._device, self._allow_blind = device, allow_blind
        self.config = self._model.config
        self._codes = None
        if self.config.image_input != "patches":
            self._codes = load_image_tokenizer(tokenizer_beside(checkpoint)).model.to(device)
        self._tokenizer = ActionTokenizer(self.config)
        self.clip_steps = self.config.steps
        self.image_size = image_size(self.config)
        self.needs_images = not allow_blind

    def reset(self, seed: int) -> None:
        """Nothing is random: decoding is greedy."""

    @torch.inference_mode()
    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        start = time.perf_counter()
        batch = to_batch([clip], self.config).to(self._device)
        if self._codes is not None:
            batch = with_codes(batch, self._codes)
        ready = time.perf_counter()
        decoded = self._model.decode(batch, allow_blind=self._allow_blind)
        if not decoded.valid[0]:
            fix = "The weights are damaged: train again, or take an earlier checkpoint."
            raise InputError(self._checkpoint, "logits", "NaN or infinity", "finite numbers", fix)
        tokens = decoded.tokens[0].cpu().numpy()
        end = time.perf_counter()
        plan = plan_from_tokens(tokens, clip, self._tokenizer)
        plan.latency_ms.update(batch=1e3 * (ready - start), model=1e3 * (end - ready))
        return plan
