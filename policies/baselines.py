"""Policies that bound the others: constant velocity from below, the recorded driver from above."""

import numpy as np

from policies.protocol import Plan, Privileged
from policies.transforms import future_in_ego, reaches, speed_at_now
from sensors.clip import Clip
from sensors.errors import InputError
from sim.tracker import PLAN_TIME_S


class ConstantVelocity:
    """Straight on at the present speed; looks at nothing but the speed signal or, without one, the ego poses."""

    name = "constant-velocity"
    privileged = False
    needs_images = False
    clip_steps = 2
    image_size = None

    def reset(self, seed: int) -> None:
        pass

    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        speed_mps = speed_at_now(clip)
        poses = np.zeros((len(PLAN_TIME_S), 3))
        poses[:, 0] = speed_mps * PLAN_TIME_S
        return Plan(PLAN_TIME_S, poses, np.full(len(PLAN_TIME_S), speed_mps))


class Log:
    """Does what the recorded driver did; privileged, and only where there is a recording.

    Near the end of a log, where less than a whole plan is recorded, the plan is as long as the recording reaches.
    """

    name = "log"
    privileged = True
    needs_images = False
    clip_steps = 1
    image_size = None

    def reset(self, seed: int) -> None:
        pass

    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        future = privileged.future
        if future is None:
            raise InputError("--policy log", "future", "none", "a recorded log", "Use it with vla replay.")
        time_s = np.array([t for t in PLAN_TIME_S if reaches(clip.now_us, future.time_us, t)])
        if not len(time_s):
            speed = speed_at_now(clip)
            ahead = np.array([[speed * PLAN_TIME_S[0], 0.0, 0.0]])
            return Plan(PLAN_TIME_S[:1], ahead, np.array([speed]), reason="the log ends here: straight on")
        poses = future_in_ego(clip, future, time_s)
        poses[~np.maximum.accumulate(poses[:, 0] > 0)] = 0.0  # who is beyond where the recorded car is, waits for it
        knots = np.concatenate([np.zeros((1, 3)), poses])
        speed_mps = np.linalg.norm(np.diff(knots[:, :2], axis=0), axis=1) / np.diff(time_s, prepend=0.0)
        return Plan(time_s, poses, speed_mps)
