"""What the recipes of all trainings have in common: how long, how fast, how carefully."""

import math
from dataclasses import dataclass

from sensors.errors import InputError, unknown_name

DEVICES = ("cpu", "cuda")
SCHEDULES, CLIP_BY = ("constant", "cosine", "wsd"), ("whole", "parts")


@dataclass(frozen=True)
class LoopConfig:
    """steps of batch_size examples; AdamW with warm-up; gradients clipped by norm. See `policies.descent` and `guard`.

    accumulate: micro-batches that a batch is learned from one after the other, to fit it into memory. Their gradients
    sum to the batch's, but for losses that tell the clips of a micro-batch apart, and what is drawn for each.
    schedule: constant, cosine, or wsd, which decays over the last decay_share of the steps.
    clip_by: "whole" model, or its "parts": vision, text, heads, backbone.
    ema: decay of the averaged weights, which are then those that a checkpoint's policy has; 0: the last ones.
    most_skipped: steps in a row that may be skipped since loss or gradient are not finite.
    spike, most_rewinds: a loss of so many times its running median sends the training back, at most so often; 0: never.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 50
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    checkpoint_every: int = 100
    accumulate: int = 1
    schedule: str = "cosine"
    decay_share: float = 0.2
    clip_by: str = "whole"
    ema: float = 0.0
    most_skipped: int = 5
    spike: float = 0.0
    most_rewinds: int = 3

    def check(self, where: object) -> None:
        """An InputError if a value is of no use."""
        least = {"steps": 1, "batch_size": 1, "warmup_steps": 0, "checkpoint_every": 1, "accumulate": 1}
        for key, low in (least | {"most_skipped": 0, "most_rewinds": 0}).items():
            if getattr(self, key) < low:
                raise InputError(where, f"train.{key}", getattr(self, key), f"at least {low}")
        if self.batch_size % self.accumulate:
            fix = "Change one of them."
            raise InputError(where, "train.batch_size", self.batch_size, f"a multiple of {self.accumulate}", fix)
        if not 0 < self.learning_rate < 1:
            raise InputError(where, "train.learning_rate", self.learning_rate, "a number in (0, 1)")
        if self.clip_norm <= 0 or self.weight_decay < 0:
            raise InputError(where, "train.clip_norm, weight_decay", "a negative number", "clip_norm > 0, decay >= 0")
        for key, allowed in (("schedule", SCHEDULES), ("clip_by", CLIP_BY)):
            if getattr(self, key) not in allowed:
                raise unknown_name(where, f"train.{key}", getattr(self, key), allowed)
        if not 0 < self.decay_share <= 1:
            raise InputError(where, "train.decay_share", self.decay_share, "a share in (0, 1]")
        if not 0 <= self.ema < 1:
            raise InputError(where, "train.ema", self.ema, "a decay in [0, 1), such as 0.999")
        if self.spike and not 1 < self.spike < math.inf:
            raise InputError(where, "train.spike", self.spike, "0, or a factor above 1 such as 3")
