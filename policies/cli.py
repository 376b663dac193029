"""The command `vla`: one verb a subcommand, arguments to calls, errors to exit statuses.

Exit status 0: everything asked for was done. 1: some of it failed, the run directory says what. 2: the input was not
usable; the message says what came, what was expected and how to fix it.
"""

import argparse
import errno
import os
import sys
from pathlib import Path

import threadpoolctl

from policies.cli_bench import EPILOGS as BENCH_EPILOGS
from policies.cli_bench import add_bench_verb
from policies.cli_data import EPILOGS as DATA_EPILOGS
from policies.cli_data import add_data_verb
from policies.cli_drive import EPILOGS as DRIVE_EPILOGS
from policies.cli_drive import add_drive_verbs
from policies.cli_export import EPILOGS as EXPORT_EPILOGS
from policies.cli_export import add_export_verb
from policies.cli_plan import EPILOGS as PLAN_EPILOGS
from policies.cli_plan import add_plan_verb
from policies.cli_replay import EPILOGS as REPLAY_EPILOGS
from policies.cli_replay import add_replay_verb
from policies.cli_ros import EPILOGS as ROS_EPILOGS
from policies.cli_ros import add_ros_verb
from policies.cli_score import EPILOGS as SCORE_EPILOGS
from policies.cli_score import add_score_verbs
from policies.cli_train import EPILOGS as TRAIN_EPILOGS
from policies.cli_train import add_train_verbs
from policies.cli_vision import EPILOGS as VISION_EPILOGS
from policies.cli_vision import add_vision_verbs
from policies.doctor import examine
from sensors.errors import InputError

EPILOGS = {
    **DRIVE_EPILOGS,
    **TRAIN_EPILOGS,
    **PLAN_EPILOGS,
    **REPLAY_EPILOGS,
    **DATA_EPILOGS,
    **SCORE_EPILOGS,
    **EXPORT_EPILOGS,
    **VISION_EPILOGS,
    **BENCH_EPILOGS,
    **ROS_EPILOGS,
    "doctor": """example:
  vla doctor --dataroot /data/nuscenes --version v1.0-mini""",
}


FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk, or of what one may have of it


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    options = _options(arguments)
    # On matrices as small as ours BLAS threads only spin; torch keeps its own.
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        try:
            return options.run(options)
        except InputError as error:
            print(f"vla {options.verb}: error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"vla {options.verb}: interrupted; what was finished is kept", file=sys.stderr)
            return 130
        except BrokenPipeError:  # who reads our output, `head` for example, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except OSError as error:
            if error.errno not in FULL:
                raise
            print(f"vla {options.verb}: error: {error}; what was finished is kept", file=sys.stderr)
            return 2


def _options(arguments: list[str] | None) -> argparse.Namespace:
    """What was asked for; KEY=VALUE of a recipe may also stand behind options, which argparse does not know."""
    parser = _parser()
    options, more = parser.parse_known_args(arguments)
    wrong = [word for word in more if word.startswith("-") or "=" not in word or not hasattr(options, "overrides")]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if more:
        options.overrides = [*options.overrides, *more]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vla", description="Vision-language-action stack for six-camera vehicles. Research software."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run, help_text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=help_text,
            description=help_text,
            epilog=EPILOGS[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    add_drive_verbs(verb)

    add_train_verbs(verb)
    add_plan_verb(verb)
    add_data_verb(verb)

    add_replay_verb(verb)
    add_vision_verbs(verb)
    add_score_verbs(verb)
    add_export_verb(verb)
    add_bench_verb(verb)
    add_ros_verb(verb)

    sub = verb("doctor", _doctor, "say what is installed, what is missing, and what a dataroot holds and lacks")
    sub.add_argument("--dataroot", type=Path, help="nuScenes dataroot to look into")
    sub.add_argument("--version", default="v1.0-mini", help="table folder (default v1.0-mini)")
    return parser


def _doctor(options: argparse.Namespace) -> int:
    findings = examine(options.dataroot, options.version)
    for finding in findings:
        print(f"{finding.state:4s}  {finding.topic:24s} {finding.text}")
    return 1 if any(finding.state == "MISS" for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
