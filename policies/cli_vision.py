"""The verb `vla eval-vision`: whether a policy looks, and at what."""

import argparse
from collections.abc import Callable
from pathlib import Path

from policies.blinded import DAMAGES, Blinded
from policies.cli_drive import of_suite
from policies.cli_parts import (
    config,
    count,
    learned_by,
    make_policy,
    run_arguments,
    seconds,
    seen_argument,
    whole,
    with_baselines,
)
from policies.rollout import drive
from policies.runs import Run
from policies.scores import table
from policies.split import refuse_seen
from policies.town_expert import TownExpert
from policies.vision import PAIRS_FILE, ask, not_asked
from sensors.errors import InputError
from sim.gl_device import open_gl
from sim.render_gl import RENDERERS
from sim.report.page import write_report
from sim.scenarios import SUITES

EPISODES, DRIVEN = 20, 3
DAMAGED = ("blank", "shuffled", "miscalibrated", "no-front", "no-rear")
SCORED = ("drive", "plain", "carla")  # what else there is: vla score
EPILOGS = {
    "eval-vision": f"""what comes out, in summary.json, report.html and pairs.json (every pair, one by one):
  pair.red_light, pair.lead, pair.obstacle, pair.turn    share of the pairs that the policy tells apart, .n of them,
                                                         with the 95 % interval .ci95_low to .ci95_high
  blank.red_light, ...                                   the same behind black cameras: 0 unless something leaks; but
                                                         for turn, whose pairs differ in words, not in pictures
  and the scores of its own drives, cameras as they are and damaged, beside baselines and the expert

examples:
  vla eval-vision                              the shipped one: {EPISODES} drives to ask along, {DRIVEN} of its own
  vla eval-vision --checkpoint runs/t/checkpoint --episodes 50 --closed-loop 0   pairs only
  vla eval-vision --checkpoint runs/t/checkpoint --damage blank no-front no-back-left"""
}


def add_vision_verb(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare it; `verb` makes one subcommand from (name, function, help)."""
    sub = verb("eval-vision", _eval_vision, "say whether a policy looks: minimal pairs, and what damaged cameras cost")
    sub.add_argument("--checkpoint", type=Path, help="folder that vla train wrote (default: the shipped one)")
    sub.add_argument("--suite", default="town-val", metavar="NAME", help=f"{', '.join(SUITES)} (default town-val)")
    sub.add_argument("--seed", type=whole, default=0, help="the first scenario of the suite (default 0)")
    words = f"drives of the expert's along which the policy is asked (default {EPISODES}, or all that the suite has)"
    sub.add_argument("--episodes", type=count, help=words)
    words = "of these episodes the policy drives itself, as it is and damaged; 0: only pairs"
    sub.add_argument("--closed-loop", type=whole, metavar="N", help=f"{words} (default {DRIVEN})")
    words = f"damages to drive with, of {', '.join(DAMAGES)} (default {' '.join(DAMAGED)})"
    sub.add_argument("--damage", nargs="+", choices=DAMAGES, default=DAMAGED, metavar="NAME", help=words)
    sub.add_argument("--seconds", type=seconds, help="longest episode (default the scenario's)")
    sub.add_argument("--renderer", choices=RENDERERS, default="auto", help="as for vla drive")
    seen_argument(sub)
    run_arguments(sub)


def _eval_vision(options: argparse.Namespace) -> int:
    scenarios = of_suite(options.suite, options.seed, options.episodes, EPISODES)
    driven = min(DRIVEN, len(scenarios)) if options.closed_loop is None else options.closed_loop
    if driven > len(scenarios):
        raise InputError("vla eval-vision", "--closed-loop", driven, f"at most --episodes, {len(scenarios)}")
    if options.renderer == "gl":
        open_gl()
    policy, progress = make_policy("vla", options.checkpoint), not options.quiet
    seen = learned_by(policy).seen_of(scenarios)
    refuse_seen(seen, options.allow_seen, "vla eval-vision")
    damaged = [Blinded(policy, damage) for damage in dict.fromkeys(options.damage)]
    run = Run.create("eval-vision", options.out, config(options), [scenario.seed for scenario in scenarios])
    run.summary["seen_in_training"] = seen
    ask(run, policy, scenarios, options.seconds, options.renderer, progress)
    drivers = [policy, *damaged, *with_baselines(policy)[1:]] if driven else [policy]
    if driven:
        drive(run, drivers, scenarios[:driven], options.seconds, policy.image_size, 1, options.renderer, progress)
    return _close(run, [*(each.name for each in drivers), TownExpert.name])


def _close(run: Run, policies: list[str]) -> int:
    """Score and report; what was asked of nobody is said, and in the exit status."""
    run.score(policies, SCORED)
    run.save()
    print(run.headline())
    for row in run.summary["episodes"]:
        if row["error"]:
            print(f"  {row['name']}: {row['error']}")
    unasked = not_asked(run.summary["pairs"][policies[0]])
    for kind in unasked:
        print(f"  NO PAIR of {kind}: no instant of these drives was fit for one")
    print(*table(run.summary), sep="\n")
    print(f"pairs: {run.path / PAIRS_FILE}\nreport: {write_report(run.path)}")
    return 0 if run.whole and not unasked else 1
