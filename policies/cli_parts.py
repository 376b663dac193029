"""What several verbs of the command `vla` share: arguments, policies by name, and how a run is closed."""

import argparse
from collections.abc import Callable
from pathlib import Path

from policies.baselines import ConstantVelocity, Log
from policies.distributed import ADDRESSES
from policies.ego_status import EgoStatus
from policies.expert import PurePursuit
from policies.protocol import Policy
from policies.runs import Run
from policies.scores import table
from policies.split import ALLOW_FLAG, Learned
from policies.town_expert import TownExpert
from policies.vla_policy import SHIPPED, VlaPolicy
from sensors.errors import InputError
from sim.report.page import write_report

MADE = {made.name: made for made in (TownExpert, PurePursuit, ConstantVelocity, EgoStatus, Log)}


def policy_arguments(sub: argparse.ArgumentParser, names: tuple[str, ...], default: str | None, words: str) -> None:
    sub.add_argument("--policy", choices=names, default=default, help=f"who drives (default {words})")
    sub.add_argument(
        "--checkpoint", type=Path, help="folder that vla train wrote, for --policy vla (default: the shipped one)"
    )
    sub.add_argument("--best-of", type=count, default=1, metavar="N", help="vla draws N plans, takes the likeliest")
    seen_argument(sub)


def seen_argument(sub: argparse.ArgumentParser) -> None:
    words = "score it on what it learned from; such a score says nothing of other places"
    sub.add_argument(ALLOW_FLAG, action="store_true", help=words)


def address_argument(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--address", metavar="ADDRESS", help=f"the workers are those of a Ray cluster: {ADDRESSES}")


def run_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=Path, metavar="RUN", help="run directory (default runs/<time>-<verb>)")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")


def bag_arguments(sub: argparse.ArgumentParser, optional: bool = False) -> None:
    sub.add_argument("bag", type=Path, nargs="?" if optional else None, metavar="BAG", help="bag folder or .mcap file")
    words = "the car's calibration file (default what the bag has)"
    sub.add_argument("--calibration", type=Path, metavar="FILE", help=words)


def size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"came {text!r}, expected WIDTHxHEIGHT such as 160x96")
    return int(width), int(height)


def count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"came {text!r}, expected a whole number of at least 1")
    return int(text)


def whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"came {text!r}, expected a whole number of at least 0")
    return int(text)


def between(low: float, high: float, unit: str) -> Callable[[str], float]:
    """An argument's type: a number of units in this range."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = low - 1.0
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"came {text!r}, expected {unit} between {low:g} and {high:.0f}")
        return value

    return number


seconds, hours = between(0.1, 86_400, "seconds"), between(0.001, 10_000, "hours")


def make_policy(name: str, checkpoint: Path | None, best_of: int = 1, mask_cameras: bool = False) -> Policy:
    """The policy of this name; `vla` takes the shipped checkpoint unless given one, the others take none."""
    if name == "vla":
        return VlaPolicy(checkpoint or SHIPPED, allow_blind=mask_cameras, best_of=best_of)
    if checkpoint is not None:
        raise InputError("--checkpoint", "value", checkpoint, f"none, since --policy {name} has no weights")
    if best_of > 1:
        raise InputError("--best-of", "value", best_of, f"nothing, since --policy {name} draws no plans")
    return MADE[name]()


def learned_by(policy: Policy) -> Learned:
    """The scenes that a policy learned from, as far as it is known."""
    return policy.learned if isinstance(policy, VlaPolicy) else Learned({})


def with_baselines(policy: Policy) -> list[Policy]:
    """The policy, and beside it what carries on and what knows only the car's own motion: no score stands alone."""
    return [policy, *(made() for made in (ConstantVelocity, EgoStatus) if made.name != policy.name)]


def config(options: argparse.Namespace) -> dict:
    values = {key: value for key, value in vars(options).items() if key not in ("run", "verb", "quiet")}
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def close(run: Run, policies: list[Policy], film: Callable[[], list[str]] = list) -> int:
    """Score, save, `film` what went wrong (and say what could not be), write the report, say where; the exit status."""
    run.score([policy.name for policy in policies])
    run.save()
    problems = film()
    print(run.headline())
    for row in run.summary["episodes"]:
        if row["error"]:
            print(f"  {row['name']}: {row['error']}")
    print(*(f"  {problem}" for problem in problems), sep="\n", end="\n" if problems else "")
    print(*table(run.summary), sep="\n")
    print(f"report: {write_report(run.path)}")
    return 0 if run.whole else 1
