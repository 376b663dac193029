"""The recipe of a policy that learns from its own drives, see `policies.grpo`."""

import dataclasses
import math
from dataclasses import dataclass, field

from policies.loop_config import DEVICES, LoopConfig
from sensors.errors import InputError, unknown_name
from sim.render_gl import RENDERERS
from sim.scenarios import COURSE, SUITES, suite_length


@dataclass(frozen=True)
class RolloutConfig:
    """Drives to learn from: in each update from `groups` starts, `group` drives from each, every plan of them drawn.

    start_from: checkpoint to begin with, and to stay near; "" for the shipped one.
    suite, first: of the town, or "course"; update u takes its scenarios (or seeds) from number first + u groups on.
    seconds: longest drive.
    temperature: at which action tokens are drawn; probabilities below are those at this temperature.
    renderer: as `vla drive --renderer`.
    """

    start_from: str = ""
    suite: str = "town-train"
    first: int = 20_000
    groups: int = 2
    group: int = 8
    seconds: float = 20.0
    temperature: float = 1.0
    renderer: str = "auto"

    def check(self, where: object) -> None:
        """An InputError if a value is of no use."""
        if self.suite not in (COURSE, *SUITES):
            raise unknown_name(where, "rollouts.suite", self.suite, (COURSE, *SUITES))
        if self.renderer not in RENDERERS:
            raise unknown_name(where, "rollouts.renderer", self.renderer, RENDERERS)
        for key, low in (("first", 0), ("groups", 1), ("group", 2)):
            if getattr(self, key) < low:
                raise InputError(where, f"rollouts.{key}", getattr(self, key), f"at least {low}")
        if self.suite != COURSE and self.first + self.groups > suite_length(self.suite):
            expected = f"at most {suite_length(self.suite)}, the scenarios of {self.suite}"
            raise InputError(where, "rollouts.first + groups", self.first + self.groups, expected)
        if not 1.0 <= self.seconds < math.inf:
            raise InputError(where, "rollouts.seconds", self.seconds, "at least 1 s")
        if not 0 < self.temperature < math.inf:
            raise InputError(where, "rollouts.temperature", self.temperature, "a number above 0, such as 1")


@dataclass(frozen=True)
class RewardConfig:
    """What progress and comfort weigh in the reward of a drive, see `policies.rewards`."""

    progress: float = 0.8
    comfort: float = 0.2

    def check(self, where: object) -> None:
        """An InputError if a value is of no use."""
        if not (0 < self.progress < math.inf and 0 <= self.comfort < math.inf):
            came = f"progress {self.progress}, comfort {self.comfort}"
            raise InputError(where, "reward", came, "progress above 0 and comfort of at least 0")


@dataclass(frozen=True)
class GrpoTrainConfig(LoopConfig):
    """As LoopConfig, with steps that learn from all plans of an update, in micro-batches of batch_size plans.

    passes: steps in a row that learn from the same drives; only after the last of them there can be a checkpoint.
    clip_ratio, kl: e and b of `policies.grpo`.
    reach_s: how much of a plan is credited with what came of the drive; beyond it only the divergence counts.
    freeze, device: as in TrainConfig; drives are on the CPU.
    """

    passes: int = 2
    clip_ratio: float = 0.2
    kl: float = 0.02
    reach_s: float = 2.0
    freeze: tuple[str, ...] = ()
    device: str = "cpu"

    def check(self, where: object) -> None:
        """An InputError if a value is of no use."""
        super().check(where)
        if self.passes < 1:
            raise InputError(where, "train.passes", self.passes, "at least 1")
        for key in ("steps", "checkpoint_every"):
            if getattr(self, key) % self.passes:
                expected = f"a multiple of train.passes, {self.passes}"
                raise InputError(where, f"train.{key}", getattr(self, key), expected)
        for key, only, why in (
            ("accumulate", 1, "batch_size sets the micro-batches"),
            ("spike", 0.0, "losses are near 0"),
        ):
            if getattr(self, key) != only:
                raise InputError(where, f"train.{key}", getattr(self, key), f"{only} here, where {why}")
        if not 0 < self.clip_ratio < 1:
            raise InputError(where, "train.clip_ratio", self.clip_ratio, "a share in (0, 1)")
        if not 0 <= self.kl < math.inf:
            raise InputError(where, "train.kl", self.kl, "a weight of at least 0")
        if not 0 < self.reach_s < math.inf:
            raise InputError(where, "train.reach_s", self.reach_s, "a time above 0 s")
        if self.device not in DEVICES:
            raise unknown_name(where, "train.device", self.device, DEVICES)


@dataclass(frozen=True)
class GrpoRecipe:
    """Of a policy that learns from its own drives: the recipe has `rollouts` in the place of `data` and `model`."""

    name: str
    seed: int
    rollouts: RolloutConfig
    train: GrpoTrainConfig
    reward: RewardConfig = field(default_factory=RewardConfig)

    def validate(self, where: object = "recipe") -> "GrpoRecipe":
        for part in (self.rollouts, self.reward, self.train):
            part.check(where)
        if self.seed < 0:
            raise InputError(where, "seed", self.seed, "at least 0")
        return self

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)
