"""A policy whose cameras are damaged before it looks: what that costs says what it looks at.

blank        every image black
shuffled     images exchanged between cameras that look opposite ways, each camera's calibration left where it was
miscalibrated  every camera with the calibration of the next, its images left
no-front, no-front-left, ..., no-back    the images of one camera missing (masked, as a camera that has failed)
no-rear      those of all that look back
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from policies.protocol import Plan, Policy, Privileged
from sensors.clip import Clip
from sensors.errors import InputError, unknown_name
from sim.sensing import RIG


def blank(clip: Clip) -> Clip:
    """All that was taken is black; what was not stays masked."""
    return replace(clip, images=np.zeros_like(clip.images))


def shuffled(clip: Clip) -> Clip:
    """Camera n has the images of camera n + N / 2: in a rig that goes round, of the one that looks the other way."""
    half = len(clip.cameras) // 2
    images, mask = (np.roll(values, half, axis=1) for values in (clip.images, clip.image_mask))
    return replace(clip, images=images, image_mask=mask)


def miscalibrated(clip: Clip) -> Clip:
    """Camera n has the lens and the place of camera n + 1."""
    others = (*clip.cameras[1:], *clip.cameras[:1])
    cameras = tuple(replace(other, name=camera.name) for camera, other in zip(clip.cameras, others, strict=True))
    return replace(clip, cameras=cameras)


def without(clip: Clip, names: tuple[str, ...]) -> Clip:
    """The images of these cameras are missing."""
    gone = np.array([camera.name in names for camera in clip.cameras])
    return clip.with_masked(np.broadcast_to(gone, clip.image_mask.shape))


def _words(camera: str) -> str:
    return camera.removeprefix("CAM_").replace("_", "-").lower()


DAMAGES: dict[str, Callable[[Clip], Clip]] = {
    "blank": blank,
    "shuffled": shuffled,
    "miscalibrated": miscalibrated,
    **{f"no-{_words(name)}": partial(without, names=(name,)) for name in RIG},
    "no-rear": partial(without, names=tuple(name for name in RIG if "BACK" in name)),
}


class Blinded:
    """A policy that looks, behind damaged cameras; its name says which."""

    privileged = False
    needs_images = True

    def __init__(self, policy: Policy, damage: str):
        if damage not in DAMAGES:
            raise unknown_name("cameras", "damage", damage, DAMAGES)
        if not policy.needs_images:
            raise InputError("--cameras", "policy", policy.name, "one that looks, since only that has cameras to lose")
        self._policy, self._damage = policy, damage
        self.name = f"{policy.name}-{damage}"
        self.clip_steps, self.image_size = policy.clip_steps, policy.image_size

    def reset(self, seed: int) -> None:
        self._policy.reset(seed)

    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        return self._policy.plan(DAMAGES[self._damage](clip), privileged)
