"""A policy that looks for sure: it stops for a red lamp in the front camera's image, and turns as it is told."""

import numpy as np

from policies.protocol import Plan, Privileged
from sensors.clip import Clip
from sim.solids import LAMP_COLOUR, RED
from sim.tracker import PLAN_TIME_S

GOES_MPS, NEAR_GREY = 6.0, 40
YAW_RAD = {"left": 1.5, "right": -1.5}


def straight_plan(driven_m: float, end_yaw_rad: float = 0.0) -> Plan:
    """A way of this length at constant speed, turned at its end."""
    share = PLAN_TIME_S / PLAN_TIME_S[-1]
    pose = np.stack([driven_m * share, 0 * share, end_yaw_rad * share], axis=1)
    return Plan(PLAN_TIME_S, pose, np.full(len(share), driven_m / PLAN_TIME_S[-1]))


class LampReader:
    name = "lamp-reader"
    privileged = False
    needs_images = True
    clip_steps = 2
    image_size = (320, 192)

    def reset(self, seed: int) -> None:
        pass

    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        front = clip.images[-1, 0].astype(int)
        is_red = (np.abs(front - LAMP_COLOUR[RED]).max(axis=-1) < NEAR_GREY).any()
        going = GOES_MPS * PLAN_TIME_S[-1]
        return straight_plan(1.0 if is_red else going, YAW_RAD.get(clip.command, 0.0))
