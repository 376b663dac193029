"""The verbs `vla eval-vision` and `vla eval-language`: whether a policy looks, and at what; whether it listens, and
knows why it does what it does."""

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
from policies.language import HEARD, REASONS_FILE
from policies.language import ask as ask_in_words
from policies.rollout import drive
from policies.runs import Run
from policies.scores import table
from policies.split import refuse_seen
from policies.town_expert import TownExpert
from policies.vision import PAIRS_FILE, ask, not_asked
from policies.vla_policy import VlaPolicy
from sensors.errors import InputError
from sim.gl_device import open_gl
from sim.render_gl import RENDERERS
from sim.report.page import write_report
from sim.scenarios import SUITES, Scenario

EPISODES, DRIVEN = 20, 3
DAMAGED = ("blank", "shuffled", "miscalibrated", "no-front", "no-rear")
SCORED = ("drive", "plain", "carla")  # what else there is: vla score
LESS_HEARD = ("words-only", "silent")
SCORED_OF_WORDS = ("drive", "plain", "junctions")
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
  vla eval-vision --checkpoint runs/t/checkpoint --damage blank no-front no-back-left""",
    "eval-language": f"""what comes out, in summary.json, report.html, pairs.json and reasons.json (one by one):
  pair.turn, pair.turn_words, pair.turn_command    share of the pairs that the policy tells apart, .n of them, with the
                                                   95 % interval: a turn, in words alone, by command alone
  pair.slow, pair.stop, pair.stop_whom, pair.lane  slow down; stop behind the bus; behind the bus or the truck, with a
                                                   bus there alone; change lane
  blank.slow, ...                                  the same behind black cameras
  reason.driven, reason.imagined                   share of reasons whose action and cause are the expert's, in its own
                                                   drives and in moments that might be; .._action: the action is
  junction.followed                                share of junctions with a choice that its drives left as told: as it
                                                   is, and told by words or command alone, or nothing

examples:
  vla eval-language                                the shipped one: {EPISODES} drives to ask along, {DRIVEN} of its own
  vla eval-language --checkpoint runs/t/checkpoint --closed-loop 20 --heard words-only silent""",
}


def add_vision_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare them; `verb` makes one subcommand from (name, function, help)."""
    sub = verb("eval-vision", _eval_vision, "say whether a policy looks: minimal pairs, and what damaged cameras cost")
    _asked_arguments(sub, "as it is and damaged")
    words = f"damages to drive with, of {', '.join(DAMAGES)} (default {' '.join(DAMAGED)})"
    sub.add_argument("--damage", nargs="+", choices=DAMAGES, default=DAMAGED, metavar="NAME", help=words)

    words = "say whether a policy does as it is told, and knows why: minimal pairs of words, junctions, reasons"
    sub = verb("eval-language", _eval_language, words)
    _asked_arguments(sub, "told as always and less")
    words = f"what else it is told to drive with, of {', '.join(HEARD)} (default {' '.join(LESS_HEARD)})"
    sub.add_argument("--heard", nargs="+", choices=HEARD, default=LESS_HEARD, metavar="NAME", help=words)


def _asked_arguments(sub: argparse.ArgumentParser, how: str) -> None:
    sub.add_argument("--checkpoint", type=Path, help="folder that vla train wrote (default: the shipped one)")
    sub.add_argument("--suite", default="town-val", metavar="NAME", help=f"{', '.join(SUITES)} (default town-val)")
    sub.add_argument("--seed", type=whole, default=0, help="the first scenario of the suite (default 0)")
    words = f"drives of the expert's along which the policy is asked (default {EPISODES}, or all that the suite has)"
    sub.add_argument("--episodes", type=count, help=words)
    words = f"of these episodes the policy drives itself, {how}; 0: it is only asked"
    sub.add_argument("--closed-loop", type=whole, metavar="N", help=f"{words} (default {DRIVEN})")
    sub.add_argument("--seconds", type=seconds, help="longest episode (default the scenario's)")
    sub.add_argument("--renderer", choices=RENDERERS, default="auto", help="as for vla drive")
    seen_argument(sub)
    run_arguments(sub)


def _eval_vision(options: argparse.Namespace) -> int:
    policy, scenarios, driven, run = _begin(options)
    damaged = [Blinded(policy, damage) for damage in dict.fromkeys(options.damage)]
    progress = not options.quiet
    ask(run, policy, scenarios, options.seconds, options.renderer, progress)
    drivers = [policy, *damaged, *with_baselines(policy)[1:]] if driven else [policy]
    if driven:
        drive(run, drivers, scenarios[:driven], options.seconds, policy.image_size, 1, options.renderer, progress)
    return _close(run, [*(each.name for each in drivers), TownExpert.name], SCORED)


def _eval_language(options: argparse.Namespace) -> int:
    policy, scenarios, driven, run = _begin(options)
    heard = tuple(dict.fromkeys(options.heard))
    drivers = ask_in_words(
        run, policy, scenarios, driven, heard, options.seconds, options.renderer, progress=not options.quiet
    )
    print(f"reasons: {run.path / REASONS_FILE}")
    return _close(run, [*(drivers or [policy.name]), TownExpert.name], SCORED_OF_WORDS)


def _begin(options: argparse.Namespace) -> tuple[VlaPolicy, list[Scenario], int, Run]:
    """The policy to ask, along which scenarios, how many of which it drives itself, and the run that it goes into."""
    scenarios = of_suite(options.suite, options.seed, options.episodes, EPISODES)
    driven = min(DRIVEN, len(scenarios)) if options.closed_loop is None else options.closed_loop
    if driven > len(scenarios):
        raise InputError(f"vla {options.verb}", "--closed-loop", driven, f"at most --episodes, {len(scenarios)}")
    if options.renderer == "gl":
        open_gl()
    policy = make_policy("vla", options.checkpoint)
    seen = learned_by(policy).seen_of(scenarios)
    refuse_seen(seen, options.allow_seen, f"vla {options.verb}")
    run = Run.create(options.verb, options.out, config(options), [scenario.seed for scenario in scenarios])
    run.summary["seen_in_training"] = seen
    return policy, scenarios, driven, run


def _close(run: Run, policies: list[str], protocols: tuple[str, ...]) -> int:
    """Score and report; what was asked of nobody is said, and in the exit status."""
    run.score(policies, protocols)
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
