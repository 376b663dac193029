"""The figures of ROS 2 on this machine: one drive in closed loop over topics, and the fault campaign.

python -m vla_drive_ros.measure --quick --json ros.json
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from policies.runs import write_json
from sensors.errors import InputError
from vla_drive_ros.campaign import FAULTS, Campaign, figures
from vla_drive_ros.closed_loop import check_length, closed_loop_figures, complete_sets

TIMES = {True: 1, False: 10}  # quick: how often each fault
DOMAINS = 100


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m vla_drive_ros.measure", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every fault once, not ten times")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the figures, flat")
    options = parser.parse_args()
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:6.1f} s] {text}", file=sys.stderr, flush=True)

    try:
        with tempfile.TemporaryDirectory(prefix="vla-ros-") as folder:
            domain = 1 + os.getpid() % DOMAINS
            found = {"complete_sets": complete_sets()}
            found |= closed_loop_figures(Path(folder), domain, say)
            check_length(found)
            campaign = Campaign(Path(folder), domain, 0, say)
            found |= figures(campaign.run(list(FAULTS), TIMES[options.quick]))
            found["faults.not_begun"] = float(campaign.not_begun)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(options.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
