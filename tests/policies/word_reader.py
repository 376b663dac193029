"""A policy that does as it is told in words, whoever is there, and gives one reason for everything."""

import numpy as np

from policies.protocol import Plan, Privileged
from sensors.clip import Clip
from sim.tracker import PLAN_TIME_S

GOES_M, TURNED_RAD, LANE_M = 28.0, 1.5, 3.3
SIDES = {"left": 1.0, "right": -1.0}


class WordReader:
    name = "word-reader"
    privileged = False
    needs_images = True
    clip_steps = 1
    image_size = (64, 36)

    def reset(self, seed: int) -> None:
        pass

    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        words, share = clip.instruction.lower().rstrip(".").replace(",", "").split(), PLAN_TIME_S / PLAN_TIME_S[-1]
        side = next((SIDES[word] for word in words if word in SIDES), 0.0)
        lane = bool({"lane", "lanes"} & set(words)) and "metres" not in words
        driven_m = 2.0 if "behind" in words else 0.4 * GOES_M if {"slow", "slowly", "fast"} & set(words) else GOES_M
        aside_m, turned = (side * LANE_M, 0.0) if lane else (0.0, side * TURNED_RAD)
        poses = np.stack([driven_m * share, aside_m * share, turned * share], axis=1)
        return Plan(PLAN_TIME_S, poses, np.full(len(share), 5.0), reason="drive: free road")
