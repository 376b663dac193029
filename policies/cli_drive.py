"""The verbs that drive: closed-loop simulations, and recordings of the expert in nuScenes format."""

import argparse
import difflib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from policies.cli_parts import (
    close,
    config,
    count,
    make_policy,
    policy_arguments,
    run_arguments,
    seconds,
    size,
    whole,
    with_baselines,
)
from policies.expert import PurePursuit
from policies.record import LAST_COURSE, record
from policies.refilm import film_failures
from policies.rollout import COURSE_S, drive
from policies.runs import Run
from policies.town_expert import TownExpert
from sensors.errors import InputError
from sim.gl_device import open_gl
from sim.render_gl import RENDERERS
from sim.report.page import write_report
from sim.road_network import network_path, read_network
from sim.scenarios import SUITES, Scenario, get_scenario, suite_length
from sim.town_world import TownWorld
from sim.weather import WEATHERS

COURSE = "course"
DRIVERS = (TownExpert.name, PurePursuit.name, "constant-velocity", "ego-status", "vla")
CLIPS = 3  # of failures
MOST_EPISODES = 5  # that are driven unless told otherwise
OWN_ROUTE_M = (100.0, 700.0)  # on a network of one's own
LANE_PER_VEHICLE_M, MOST_VEHICLES, WALKERS_SHARE = 120.0, 60, 0.5
EPILOGS = {
    "drive": """examples:
  vla drive                                              the town's expert on five short routes, one filmed
  vla drive --suite hazard-cut-in --episodes 10          one hazard; all suites: see --suite
  vla drive --scenario town-test/3 --scenario town-test/7 --weather night --videos 2
  vla drive --net my.net.xml --seed 4                    your own SUMO network
  vla drive --policy vla --checkpoint runs/t/checkpoint --suite town-val --episodes 20
  vla drive --suite course --seconds 60                  a plain loop of road instead of a town""",
    "record": """examples:
  vla record --out data/course                           2,000 steps at 2 Hz, resumable
  vla record --out data/small --steps 80 --scene-steps 20 --image-size 320x192""",
}


def add_drive_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare them; `verb` makes one subcommand from (name, function, help)."""
    sub = verb("drive", _drive, "drive closed-loop simulations and score them beside constant velocity")
    where = sub.add_mutually_exclusive_group()
    where.add_argument("--suite", metavar="NAME", help=f"{', '.join(SUITES)} or {COURSE} (default town-smoke)")
    where.add_argument("--scenario", action="append", metavar="SUITE/K", help="this one; may be repeated")
    where.add_argument("--town", metavar="NAME", help="random routes through a shipped town")
    where.add_argument(
        "--net", type=Path, metavar="FILE", help="random routes through your own SUMO network (.net.xml)"
    )
    sub.add_argument("--weather", metavar="NAME", help=f"instead of the scenario's: {', '.join(WEATHERS)}")
    words = f"{TownExpert.name}, on the course {PurePursuit.name}"
    policy_arguments(sub, DRIVERS, None, words)
    sub.add_argument("--episodes", type=count, help=f"how many (default the suite, at most {MOST_EPISODES})")
    sub.add_argument(
        "--seed", type=whole, default=0, help="the first scenario of the suite, or the first seed (default 0)"
    )
    sub.add_argument("--seconds", type=seconds, help=f"longest episode (default the scenario's, course {COURSE_S:.0f})")
    sub.add_argument("--videos", type=whole, default=1, help="episodes filmed (default 1)")
    words = f"the policy's failures filmed with six cameras, by driving them again (default {CLIPS})"
    sub.add_argument("--clips", type=whole, default=CLIPS, metavar="N", help=words)
    sub.add_argument(
        "--image-size", type=size, default=(320, 192), metavar="WxH", help="if the policy has none of its own"
    )
    words = "gl (fast, needs EGL), cv (the same on every machine) or auto: gl if it is there (default)"
    sub.add_argument("--renderer", choices=RENDERERS, default="auto", help=words)
    run_arguments(sub)

    sub = verb("record", _record, "let the expert drive and record it in nuScenes format")
    sub.add_argument("--version", default="v1.0-mini", help="table folder (default v1.0-mini)")
    sub.add_argument("--steps", type=count, default=2000, help="keyframes at 2 Hz (default 2000)")
    sub.add_argument("--scene-steps", type=count, default=40, help="keyframes per scene (default 40)")
    sub.add_argument("--seed", type=_course, default=1000, help="the first course (default 1000)")
    sub.add_argument("--image-size", type=size, default=(160, 96), metavar="WxH", help="default 160x96")
    sub.add_argument("--videos", type=int, default=1, help="scenes filmed for the report (default 1)")
    run_arguments(sub)


def _course(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= LAST_COURSE:
        raise argparse.ArgumentTypeError(f"came {text!r}, expected a course between 1 and {LAST_COURSE}")
    return int(text)


def _drive(options: argparse.Namespace) -> int:
    starts = starts_of(options)
    on_course = not isinstance(starts[0], Scenario)
    expert, other = (PurePursuit, TownExpert) if on_course else (TownExpert, PurePursuit)
    options.policy = options.policy or expert.name
    if options.policy == other.name:
        came = f"{other.name}, which drives {'in a town' if on_course else 'on the course'} only"
        raise InputError("vla drive", "--policy", came, "a policy for this world", f"The expert here is {expert.name}.")
    if options.videos > len(starts):
        raise InputError(
            "vla drive", "--videos", options.videos, f"at most {len(starts)}, the episodes that are driven"
        )
    if options.renderer == "gl":
        open_gl()
    policies = with_baselines(make_policy(options.policy, options.checkpoint))
    if options.net is not None:  # a network without a route fails before anything is made
        world = TownWorld()
        world.reset(starts[0])
        world.close()
    seeds = [start if on_course else start.seed for start in starts]
    run = Run.create("drive", options.out, config(options), seeds)
    size, quiet = options.image_size, options.quiet
    drive(run, policies, starts, options.seconds, size, options.videos, options.renderer, not quiet)
    name = policies[0].name
    return close(run, policies, lambda: film_failures(run.path, starts, options.clips, name, not quiet))


def starts_of(options: argparse.Namespace) -> list[int | Scenario]:
    """Seeds of the course or scenarios of the town, whichever was asked for; what is not known is an InputError."""
    if options.weather is not None:
        _known("--weather", options.weather, WEATHERS)
    numbers = range(options.seed, options.seed + (options.episodes or MOST_EPISODES))
    if options.suite == COURSE:
        if options.weather is not None:
            raise InputError("vla drive", "--weather", options.weather, "none, since the course has clear days only")
        return list(numbers)
    if options.scenario:
        found = [get_scenario(name) for name in options.scenario]
    elif options.town is not None or options.net is not None:
        found = [_own(network_path(options.town or options.net), k) for k in numbers]
    else:
        suite = options.suite or "town-smoke"
        _known("--suite", suite, (*SUITES, COURSE))
        length = suite_length(suite)
        last = min(numbers.stop, length) if options.episodes is None else numbers.stop
        if options.seed >= length or last > length:
            came = f"scenarios {options.seed} to {last - 1} of {suite}"
            raise InputError("vla drive", "--seed, --episodes", came, f"0 to {length - 1}")
        found = [get_scenario(f"{suite}/{k}") for k in range(options.seed, last)]
    return [replace(each, weather=options.weather) if options.weather else each for each in found]


def _own(path: Path, seed: int) -> Scenario:
    """A scenario on a network, with as much traffic as its roads hold easily."""
    network = read_network(path)
    lanes_m = sum(lane.length_m for lane in network.of_kind("road"))
    vehicles = min(round(lanes_m / LANE_PER_VEHICLE_M), MOST_VEHICLES)
    walkers = round(WALKERS_SHARE * vehicles)
    return Scenario(f"{path.name.partition('.')[0]}/{seed}", str(path), seed, vehicles, walkers, OWN_ROUTE_M)


def _known(option: str, came: str, names: Iterable[str]) -> None:
    if came not in names:
        near = difflib.get_close_matches(came, list(names), 1)
        fix = f"Did you mean {near[0]}?" if near else ""
        raise InputError("vla drive", option, came, f"one of {', '.join(names)}", fix)


def _record(options: argparse.Namespace) -> int:
    run = Run.create("record", options.out, config(options), [options.seed], resume=True)
    size, quiet = options.image_size, options.quiet
    record(run, options.version, options.steps, options.scene_steps, options.seed, size, options.videos, not quiet)
    run.save()
    metrics = run.summary["metrics"]
    print(f"{run.headline()}, {metrics['n_keyframes']} keyframes")
    print(f"{metrics['n_discarded']} courses discarded, where the expert left the road or touched something")
    print(f"dataroot: {run.path}\nreport: {write_report(run.path)}")
    return 0 if run.whole else 1
