"""The contract of a policy: a clip in, a plan out; and the checker that ships with it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sensors.clip import Clip, Future
from sensors.errors import InputError
from sim.tracker import Plan
from sim.world import EgoWorld


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
