"""The policy that comes with the package: the weights of a training run and its model card, made of what was measured.

python -m policies.ship runs/tiny-town/tiny runs/tiny-town/score policies/tiny
python -m policies.ship runs/longer-score policies/tiny      the same weights, scores of another drive with them
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from policies.scores import open_run, table
from sensors.errors import InputError
from sim.report.summary import read_summary
from vla.checkpoint import digest_of, load, save

MOST_BYTES = 16_000_000
CARD, SCORES, TRAINING = "MODEL_CARD.md", "## Scores", "## Training"
INTRODUCTION = """# Model card: tiny

The policy that `vla drive` takes unless told otherwise: it plans four seconds ahead from two looks of six cameras, now
and half a second ago, the car's speed, and what the route asks for, and says why. Of the car's own motion it is told
nothing else but where it then was: policies that also read the IMU learned to go on with it instead of looking. Made
by `python -m policies.ship`; every number below is copied by it from the runs named.
"""
LIMITS = """
## Limits

It has only ever seen the simulated towns of this package: their roads, signals, weather and road users, from their rig
of six cameras. Nothing can be said of how it drives anywhere else, and it must not drive a vehicle among people. Its
scores are those of the suite named above, no others; scenes beyond it are in no figure.

Licence: Apache-2.0, as the package; no recorded data of others was used.
"""


def ship(trained: Path, driven: Path, out: Path) -> None:
    """Weights of a training run, without the training's own state, and a card with the scores of a drive with them."""
    training, drive = read_summary(trained / "summary.json"), open_run(driven).summary
    made = load(trained / "checkpoint")
    _require_drive_with(trained / "checkpoint", driven, drive)
    extra = {name: training[name] for name in ("version", "git_commit")}
    extra |= {name: made.extra[name] for name in ("learned",) if name in made.extra}
    save(out, made.model, None, {"step": made.state["step"]}, extra)
    size = sum(path.stat().st_size for path in out.iterdir())
    if size > MOST_BYTES:
        raise InputError(out, "size", f"{size} bytes", f"at most {MOST_BYTES}", "Train a smaller model.")
    (out / CARD).write_text(card(training, drive))


def score_again(driven: Path, out: Path) -> None:
    """In the card of what is shipped, the scores of another drive with it."""
    drive, path = open_run(driven).summary, out / CARD
    _require_drive_with(out, driven, drive)
    text = path.read_text()
    begin, end = text.find(SCORES), text.find(TRAINING)
    if not 0 <= begin < end:
        raise InputError(path, "headings", "others", f"{SCORES} before {TRAINING}", "Ship it anew.")
    path.write_text(text[:begin] + scores(drive) + text[end:])


def _require_drive_with(checkpoint: Path, driven: Path, drive: dict) -> None:
    theirs, ours = drive["config"].get("weights"), digest_of(checkpoint)
    if theirs != ours:
        expected = f"{ours}, a drive with {checkpoint}"
        raise InputError(driven / "summary.json", "weights", theirs, expected, "The card tells of these weights.")


def card(training: dict, drive: dict) -> str:
    """The model card, in Markdown."""
    figures = [f"| {name} | {value:.4g} |" for name, value in sorted(training["metrics"].items())]
    return "\n".join(
        [
            INTRODUCTION,
            scores(drive) + TRAINING,
            "",
            f"`{_command(training)}`, commit {_commits(training)}, version {training['version']}.",
            "",
            "| figure | value |",
            "|---|---|",
            *figures,
            "",
            "```yaml",
            yaml.safe_dump(training["config"], sort_keys=False).strip(),
            "```",
            LIMITS,
        ]
    )


def scores(drive: dict) -> str:
    """The part of the card that tells of a drive."""
    suites = sorted({row["suite"] for row in drive["episodes"]})
    episodes, failed = len(drive["episodes"]) // max(len(drive["policies"]), 1), drive["scenes"]["failed"]
    of = f"{', '.join(suites)}, {episodes} episodes a policy, {failed} failed to run"
    told = f"`{_command(drive)}`, commit {_commits(drive)}: {of}."
    return "\n".join([SCORES, "", told, "", "```text", *table(drive), "```", "", ""])


def _commits(summary: dict) -> str:
    earlier = [f", begun at {commit[:10]}" for commit in summary.get("earlier_commits", [])]
    return "".join([summary["git_commit"][:10], *earlier])


def _command(summary: dict) -> str:
    return shlex.join(summary["command"])


def main(arguments: Sequence[str]) -> int:
    paths = [Path(argument) for argument in arguments]
    if len(paths) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        (ship if len(paths) == 3 else score_again)(*paths)
    except InputError as error:
        print(f"policies.ship: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
