"""The verbs that drive: closed-loop simulations, and recordings of the expert in nuScenes format."""

import argparse
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from policies.blinded import DAMAGES, Blinded
from policies.cli_parts import (
    address_argument,
    close,
    config,
    count,
    hours,
    learned_by,
    make_policy,
    policy_arguments,
    run_arguments,
    seconds,
    size,
    whole,
    with_baselines,
)
from policies.expert import PurePursuit
from policies.record import KEYFRAMES_HZ, record
from policies.refilm import film_failures
from policies.rollout import COURSE_S, drive
from policies.runs import Run, default_path
from policies.shoot import COURSE, Recording, first_number
from policies.split import refuse_seen
from policies.town_expert import TownExpert
from policies.vla_policy import SHIPPED, VlaPolicy
from sensors.errors import InputError, unknown_name
from sim.gl_device import open_gl
from sim.render_gl import RENDERERS
from sim.report.page import write_report
from sim.road_network import network_path, read_network
from sim.scenarios import SUITES, Scenario, get_scenario, suite_length
from sim.town_world import TownWorld
from sim.weather import WEATHERS
from vla.checkpoint import digest_of

STEPS, FIRST_COURSE = 2000, 1000
DRIVERS = (VlaPolicy.name, TownExpert.name, PurePursuit.name, "constant-velocity", "ego-status")
CLIPS = 3  # of failures
MOST_EPISODES = 5  # that are driven unless told otherwise
OWN_ROUTE_M = (100.0, 700.0)  # on a network of one's own
LANE_PER_VEHICLE_M, MOST_VEHICLES, WALKERS_SHARE = 120.0, 60, 0.5
EPILOGS = {
    "drive": """examples:
  vla drive                                              the shipped policy on five short routes, one filmed
  vla drive --suite hazard-cut-in --episodes 10          one hazard; all suites: see --suite
  vla drive --scenario town-test/3 --scenario town-test/7 --weather night --videos 2
  vla drive --net my.net.xml --seed 4                    your own SUMO network
  vla drive --checkpoint runs/t/checkpoint --suite town-val --episodes 20
  vla drive --suite town-test --episodes 200 --workers 2 --out runs/all    interrupted? The same again goes on with it
  vla drive --suite course --seconds 60                  a plain loop of road instead of a town""",
    "record": """examples:
  vla record --out data/town --suite town-train --hours 1            six cameras at 10 Hz in the town, resumable
  vla record --out data/light --suite town-train --hours 5 --hz 2    keyframes only: a fifth of the space
  vla record --out data/might --suite town-train --imagined          moments that might be: lights, others, wishes
  vla record --out data/course --steps 2000                          a plain loop of road, 2,000 steps at 2 Hz
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
    words = f"{VlaPolicy.name}, the shipped one; on the course {PurePursuit.name}"
    policy_arguments(sub, DRIVERS, None, words)
    words = f"damaged cameras for a policy that looks: {', '.join(DAMAGES)}"
    sub.add_argument("--cameras", choices=DAMAGES, metavar="NAME", help=words)
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
    sub.add_argument("--workers", type=count, help="processes (default one a core; one for a policy that looks)")
    address_argument(sub)
    run_arguments(sub)

    sub = verb("record", _record, "let the expert drive and record it in nuScenes format")
    sub.add_argument("--suite", default=COURSE, metavar="NAME", help=f"{COURSE} (default) or {', '.join(SUITES)}")
    length = sub.add_mutually_exclusive_group()
    length.add_argument("--hours", type=hours, help="how much driving")
    length.add_argument("--steps", type=count, help=f"the same in keyframes at 2 Hz (default {STEPS})")
    sub.add_argument("--hz", type=int, choices=(2, 10), help="10 with sweeps between keyframes (default; course 2)")
    sub.add_argument("--scene-steps", type=count, help="keyframes per scene (default to the goal; course 40)")
    sub.add_argument("--seed", type=whole, help="the first scenario of the suite (default 0), or course (1000)")
    words = "a policy that drives in turns with the expert, who says what it would do (DAgger)"
    sub.add_argument("--student", type=Path, metavar="CHECKPOINT", help=words)
    words = (
        "instead of each moment of the drive one that might have been: lights, others, speed, way, wishes drawn anew; "
        "each is two keyframes, half a second apart, the second with a plan"
    )
    sub.add_argument("--imagined", action="store_true", help=words)
    sub.add_argument("--version", default="v1.0-mini", help="table folder (default v1.0-mini)")
    sub.add_argument("--image-size", type=size, metavar="WxH", help="default 400x225; course 160x96")
    sub.add_argument("--renderer", choices=RENDERERS, default="auto", help="as for vla drive")
    sub.add_argument("--videos", type=whole, default=1, help="scenes filmed for the report (default 1)")
    cores = len(os.sched_getaffinity(0))
    sub.add_argument("--workers", type=count, default=cores, help=f"processes (default one a core: {cores})")
    address_argument(sub)
    run_arguments(sub)


def _drive(options: argparse.Namespace) -> int:
    starts = starts_of(options)
    on_course = not isinstance(starts[0], Scenario)
    expert, other = (PurePursuit, TownExpert) if on_course else (TownExpert, PurePursuit)
    options.policy = options.policy or (PurePursuit.name if on_course else VlaPolicy.name)
    if options.policy == other.name:
        came = f"{other.name}, which drives {'in a town' if on_course else 'on the course'} only"
        raise InputError("vla drive", "--policy", came, "a policy for this world", f"The expert here is {expert.name}.")
    if options.videos > len(starts):
        raise InputError(
            "vla drive", "--videos", options.videos, f"at most {len(starts)}, the episodes that are driven"
        )
    if options.renderer == "gl":
        open_gl()
    policy = make_policy(options.policy, options.checkpoint, options.best_of)
    policies = with_baselines(Blinded(policy, options.cameras) if options.cameras else policy)
    if options.net is not None:  # a network without a route fails before anything is made
        world = TownWorld()
        world.reset(starts[0])
        world.close()
    seen = learned_by(policy).seen_of(starts)
    refuse_seen(seen, options.allow_seen, "vla drive")
    seeds = [start if on_course else start.seed for start in starts]
    weights = digest_of(options.checkpoint or SHIPPED) if options.policy == VlaPolicy.name else ""
    run = Run.again("drive", options.out, config(options) | {"weights": weights}, seeds)
    run.summary["seen_in_training"] = seen
    size, quiet = options.image_size, options.quiet
    # A policy that looks has threads of its own, and may be large.
    workers = options.workers or (1 if policies[0].needs_images else len(os.sched_getaffinity(0)))
    drive(
        run,
        policies,
        starts,
        options.seconds,
        size,
        options.videos,
        options.renderer,
        not quiet,
        workers,
        options.address,
    )
    name = policies[0].name
    return close(run, policies, lambda: film_failures(run.path, starts, options.clips, name, not quiet))


def starts_of(options: argparse.Namespace) -> list[int | Scenario]:
    """Seeds of the course or scenarios of the town, whichever was asked for; what is not known is an InputError."""
    if options.weather is not None:
        _known("vla drive", "--weather", options.weather, WEATHERS)
    if options.scenario and options.episodes:
        raise InputError("vla drive", "--episodes", options.episodes, "none beside --scenario, which says which")
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
        _known("vla drive", "--suite", suite, (*SUITES, COURSE))
        found = of_suite(suite, options.seed, options.episodes, MOST_EPISODES)
    return [replace(each, weather=options.weather) if options.weather else each for each in found]


def of_suite(suite: str, first: int, episodes: int | None, most: int) -> list[Scenario]:
    """So many scenarios of a suite, `most` at most where nobody says how many; beyond its end is an InputError."""
    length = suite_length(suite)
    last = min(first + most, length) if episodes is None else first + episodes
    if first >= length or last > length:
        came = f"scenarios {first} to {last - 1} of {suite}"
        raise InputError("suite", "--seed, --episodes", came, f"0 to {length - 1}")
    return [get_scenario(f"{suite}/{k}") for k in range(first, last)]


def _own(path: Path, seed: int) -> Scenario:
    """A scenario on a network, with as much traffic as its roads hold easily."""
    network = read_network(path)
    lanes_m = sum(lane.length_m for lane in network.of_kind("road"))
    vehicles = min(round(lanes_m / LANE_PER_VEHICLE_M), MOST_VEHICLES)
    walkers = round(WALKERS_SHARE * vehicles)
    return Scenario(f"{path.name.partition('.')[0]}/{seed}", str(path), seed, vehicles, walkers, OWN_ROUTE_M)


def _known(verb: str, option: str, came: str, names: Iterable[str]) -> None:
    if came not in names:
        raise unknown_name(verb, option, came, names)


def _record(options: argparse.Namespace) -> int:
    on_course = options.suite == COURSE
    _known("vla record", "--suite", options.suite, (COURSE, *SUITES))
    if options.renderer == "gl":
        open_gl()
    if options.imagined and (on_course or options.hz == 10):
        came, fix = "with the course or 10 Hz", "Add --suite town-train, and leave out --hz."
        raise InputError("vla record", "--imagined", came, "moments of drives through a town", fix)
    out = options.out or default_path("record")
    recording = Recording(
        dataroot=out if options.address is None else out.absolute(),  # processes elsewhere stand elsewhere
        version=options.version,
        suite=options.suite,
        hz=options.hz or (2 if on_course or options.imagined else 10),
        image_size=options.image_size or ((160, 96) if on_course else (400, 225)),
        keyframes=options.scene_steps or (40 if on_course else None),
        renderer=options.renderer,
        student=str(options.student or ""),
        imagined=options.imagined,
    )
    first = options.seed if options.seed is not None else FIRST_COURSE if on_course else 0
    number = first_number(recording.suite, first)
    wanted = round(options.hours * 3600 * KEYFRAMES_HZ) if options.hours else options.steps or STEPS
    run = Run.create("record", recording.dataroot, config(options), [first], resume=True)
    started_s = time.monotonic()
    shown = not options.quiet
    record(run, recording, wanted, number, options.videos, options.workers, shown, options.address)
    run.save()
    metrics, minutes = run.summary["metrics"], (time.monotonic() - started_s) / 60
    driven = metrics["n_keyframes"] / KEYFRAMES_HZ / 60
    print(f"{run.headline()}, {metrics['n_keyframes']} keyframes: {driven:.1f} minutes of driving")
    print(f"{metrics['n_discarded']} scenes discarded, where the expert broke a rule, touched something or got stuck")
    if not run.whole:
        print(f"fell short: {run.summary['fell_short']}")
    print(f"{minutes:.1f} minutes it took\ndataroot: {run.path}\nreport: {write_report(run.path)}")
    return 0 if run.whole else 1
