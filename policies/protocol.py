"""The contract of a policy: a clip in, a plan out; and the checker that ships with it."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from sensors import frames
from sensors.clip import Clip, Future
from sensors.errors import InputError
from sim.world import EgoWorld

MAX_PLAN_SPEED_MPS = 70.0


@dataclass(frozen=True)
class Plan:
    """Where the rear axle shall be, in the ego frame of the clip's `now`.

    time_s        float64 [K]     after now, increasing, > 0
    xyyaw_in_ego  float64 [K, 3]  m, m, rad
    speed_mps     float64 [K]
    tokens        the action tokens it was decoded from, if any
    reason        why, in words; may be empty
    latency_ms    stage -> milliseconds
    """

    time_s: np.ndarray
    xyyaw_in_ego: np.ndarray
    speed_mps: np.ndarray
    tokens: tuple[int, ...] = ()
    reason: str = ""
    latency_ms: dict[str, float] = field(default_factory=dict)

    def validate(self, where: object = "plan") -> "Plan":
        """Self, or an InputError: a plan that is not finite, not in order of time or not drivable is never followed."""
        K = len(self.time_s)
        for name, shape in (("time_s", (K,)), ("xyyaw_in_ego", (K, 3)), ("speed_mps", (K,))):
            value = getattr(self, name)
            if not K or value.shape != shape:
                raise InputError(where, name, f"shape {value.shape}", f"{shape} with K >= 1")
            if not np.isfinite(value).all():
                raise InputError(where, name, value, "finite numbers")
        if (np.diff(self.time_s, prepend=0.0) <= 0).any():
            raise InputError(where, "time_s", self.time_s, "increasing times after now")
        step_mps = np.linalg.norm(np.diff(self.xyyaw_in_ego[:, :2], axis=0, prepend=0.0), axis=1) / np.diff(
            self.time_s, prepend=0.0
        )
        if step_mps.max() > MAX_PLAN_SPEED_MPS:
            raise InputError(where, "xyyaw_in_ego", f"{step_mps.max():.1f} m/s", f"at most {MAX_PLAN_SPEED_MPS} m/s")
        return self

    def in_world(self, T_world_from_ego_now: np.ndarray) -> np.ndarray:
        """The poses as x, y, yaw [K, 3] in the world frame."""
        return frames.xy_yaw(T_world_from_ego_now @ frames.matrix_from_xy_yaw(*self.xyyaw_in_ego.T))


@dataclass(frozen=True)
class Privileged:
    """What only a privileged policy is handed: the log's future (replay) or the world itself (simulation)."""

    future: Future | None = None
    world: EgoWorld | None = None


NOTHING = Privileged()


class Policy(Protocol):
    """A driver.

    name          what scores and run directories call it
    privileged    True: `plan` is handed a filled Privileged; False: it is handed NOTHING
    needs_images  False: the caller may leave the cameras off
    clip_steps    T of the clips it takes
    image_size    (width, height) of the images it takes, None for any
    """

    name: str
    privileged: bool
    needs_images: bool
    clip_steps: int
    image_size: tuple[int, int] | None

    def reset(self, seed: int) -> None:
        """Start of an episode; whatever is random afterwards comes from `seed`."""

    def plan(self, clip: Clip, privileged: Privileged) -> Plan: ...


def check_policy(policy: Policy, clips: list[tuple[Clip, Privileged]]) -> None:
    """Run a policy over clips and raise an InputError at the first breach of the protocol.

    Checks the attributes, that every plan validates, that the same seed gives the same plan, and that the clip is left
    as it was.
    """
    for name, kind in (("name", str), ("privileged", bool), ("needs_images", bool), ("clip_steps", int)):
        if not isinstance(getattr(policy, name, None), kind):
            raise InputError(policy, name, getattr(policy, name, "nothing"), kind.__name__)
    if not clips:
        raise InputError(policy.name, "clips", "none", "at least one clip to check with")
    rounds = []
    for _ in range(2):
        policy.reset(seed=0)
        plans = []
        for k, (clip, privileged) in enumerate(clips):
            images = clip.images.copy()
            plan = policy.plan(clip, privileged if policy.privileged else NOTHING)
            plans.append(plan.validate(f"{policy.name} plan {k}"))
            if not np.array_equal(images, clip.images):
                raise InputError(policy.name, "clip.images", "changed by the policy", "a clip that stays as it was")
        rounds.append(plans)
    for k, (first, second) in enumerate(zip(*rounds, strict=True)):
        if not np.array_equal(first.xyyaw_in_ego, second.xyyaw_in_ego):
            raise InputError(
                f"{policy.name} plan {k}", "xyyaw_in_ego", "another plan", "the same plan for the same seed"
            )
