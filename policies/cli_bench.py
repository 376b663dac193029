"""The verb `vla bench`: the figures of one area, measured here and now, flat: {"name": number}."""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

from policies.bench.model_bench import model_figures
from policies.bench.nuscenes_bench import nuscenes_figures
from policies.bench.plan_bench import plan_figures
from policies.bench.ros import ros_figures
from policies.bench.scale import scale_figures
from policies.bench.scoring import score_figures
from policies.bench.tokens import token_figures
from policies.bench.town import town_figures
from policies.runs import git_commit, package_version, write_json
from sensors.errors import InputError, unknown_name

BENCHES: dict[str, Callable[[bool, Callable[[str], None]], dict[str, float]]] = {
    "model": model_figures,
    "nuscenes": nuscenes_figures,
    "plan": plan_figures,
    "ros": ros_figures,
    "scale": scale_figures,
    "sim": town_figures,
    "tokens": token_figures,
    "score": score_figures,
}
EPILOGS = {
    "bench": """examples:
  vla bench sim --quick --json sim.json                  within a minute on two cores that are otherwise idle
  vla bench sim                                          every figure of the simulator
  vla bench model --quick --json model.json              beside Hugging Face and beside itself, within a minute
  vla bench nuscenes --quick --json nuscenes.json        logs beside the official devkit and Pillow
  vla bench ros --quick --json ros.json                  a drive over topics, every fault once: minutes, in real time
  vla bench score --quick                                what scoring costs
  vla bench scale --quick                                whether workers learn what one learns, and how fast they drive
  vla bench plan                                         how far vla plan is from what was measured"""
}


def add_bench_verb(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare it; `verb` makes one subcommand from (name, function, help)."""
    sub = verb("bench", _bench, "measure the figures of one area on this machine")
    sub.add_argument("name", metavar="NAME", help=f"one of: {', '.join(BENCHES)}")
    sub.add_argument("--quick", action="store_true", help="only the main figures, with short measurements")
    sub.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")


def get_bench(name: str) -> Callable[[bool, Callable[[str], None]], dict[str, float]]:
    """What measures the figures of an area; an unknown one is an InputError that names the nearest."""
    if name not in BENCHES:
        raise unknown_name("bench", "name", name, BENCHES)
    return BENCHES[name]


def _bench(options: argparse.Namespace) -> int:
    measure, begun = get_bench(options.name), time.monotonic()
    if options.json is not None and not options.json.resolve().parent.is_dir():
        raise InputError("--json", "file", options.json, "a file in a folder that exists")

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:5.1f} s] {text}", file=sys.stderr, flush=True)

    say(f"{platform.machine()}, Python {platform.python_version()}, vla-drive {package_version()} {git_commit()[:9]}")
    figures = measure(options.quick, say)
    for name, value in figures.items():
        print(f"{name:40s} {value:10.4g}")
    if options.json is not None:
        write_json(options.json, figures)
    return 0
