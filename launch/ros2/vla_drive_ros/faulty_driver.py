"""The driver with a policy that can be made to hang: SIGUSR1 blocks its next plan for two seconds. For the campaign."""

import signal
import sys
import threading
import time

from policies.protocol import Plan, Policy, Privileged
from sensors.clip import Clip
from vla_drive_ros.driver_node import DriverNode
from vla_drive_ros.process import run

BLOCKS_S = 2.0


class Hanging:
    """The policy, but for a plan that takes BLOCKS_S longer once `hang` was set."""

    def __init__(self, policy: Policy, hang: threading.Event):
        self._policy, self._hang = policy, hang
        for name in ("name", "privileged", "needs_images", "clip_steps", "image_size"):
            setattr(self, name, getattr(policy, name))

    def reset(self, seed: int) -> None:
        self._policy.reset(seed)

    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        if self._hang.is_set():
            self._hang.clear()
            time.sleep(BLOCKS_S)
        return self._policy.plan(clip, privileged)


def main() -> None:
    hang = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: hang.set())
    sys.exit(run(lambda stop: DriverNode(stop, lambda policy: Hanging(policy, hang))))


if __name__ == "__main__":
    main()
