"""What the ROS 2 nodes do on this machine: a drive over topics, and the fault campaign."""

import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from policies.ros_nodes import node_command


def ros_figures(quick: bool, say: Callable[[str], None]) -> dict[str, float]:
    """latency_ms, watchdog_gap_ms, complete_sets, scores with and without ROS, faults injected and unsafe."""
    say("minutes, in real time: the machine should have nothing else to do")
    with tempfile.TemporaryDirectory(prefix="vla-bench-ros-") as folder:
        found = Path(folder) / "figures.json"
        command, environment = node_command("measure", *(["--quick"] if quick else []), "--json", found)
        subprocess.run(command, env=environment, check=True)
        return json.loads(found.read_text())
