"""The command `vla`: one verb a subcommand, arguments to calls, errors to exit statuses.

Exit status 0: everything asked for was done. 1: some of it failed, the run directory says what. 2: the input was not
usable; the message says what came, what was expected and how to fix it.
"""

import argparse
import os
import sys
from pathlib import Path

import threadpoolctl

from policies.baselines import ConstantVelocity, Log
from policies.cli_bench import EPILOGS as BENCH_EPILOGS
from policies.cli_bench import add_bench_verb
from policies.cli_score import EPILOGS as SCORE_EPILOGS
from policies.cli_score import add_score_verbs
from policies.doctor import examine
from policies.ego_status import EgoStatus
from policies.expert import PurePursuit
from policies.protocol import Policy
from policies.recipes import load_recipe, shipped
from policies.record import LAST_COURSE, record
from policies.replay import MASK_FLAG, check_images, replay
from policies.rollout import drive
from policies.runs import Run, default_path
from policies.scores import table
from policies.train import train
from policies.vla_policy import VlaPolicy
from sensors.errors import InputError
from sensors.nuscenes_source import NuscenesSource
from sim.report.page import write_report

DRIVERS = ("pure-pursuit", "constant-velocity", "ego-status", "vla")  # the first is the default
REPLAYERS = ("constant-velocity", "ego-status", "log", "vla")
EPILOGS = {
    "drive": """examples:
  vla drive                                              the expert on three courses, one filmed
  vla drive --policy vla --checkpoint runs/t/checkpoint --episodes 20 --seconds 60""",
    "record": """examples:
  vla record --out data/course                           2,000 steps at 2 Hz, resumable
  vla record --out data/small --steps 80 --scene-steps 20 --image-size 320x192""",
    "train": """examples:
  vla train tiny data.dataroot=data/course               ten minutes on two cores
  vla train my-recipe.yaml train.steps=100 --out runs/t  the same --out again resumes""",
    "replay": """examples:
  vla replay --dataroot /data/nuscenes --version v1.0-mini --policy constant-velocity
  vla replay --dataroot /data/nuscenes --policy vla --checkpoint runs/t/checkpoint --scene scene-0061""",
    **SCORE_EPILOGS,
    **BENCH_EPILOGS,
    "doctor": """example:
  vla doctor --dataroot /data/nuscenes --version v1.0-mini""",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    options = _parser().parse_args(arguments)
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

    sub = verb("drive", _drive, "drive closed-loop simulations and score them beside constant velocity")
    _policy_arguments(sub, DRIVERS)
    sub.add_argument("--episodes", type=_count, default=3, help="seeds to drive (default 3)")
    sub.add_argument("--seed", type=int, default=0, help="the first seed (default 0)")
    sub.add_argument("--seconds", type=_seconds, default=30.0, help="longest episode (default 30)")
    sub.add_argument("--videos", type=int, default=1, help="episodes filmed (default 1)")
    sub.add_argument(
        "--image-size", type=_size, default=(320, 192), metavar="WxH", help="if the policy has none of its own"
    )
    _run_arguments(sub)

    sub = verb("record", _record, "let the expert drive and record it in nuScenes format")
    sub.add_argument("--version", default="v1.0-mini", help="table folder (default v1.0-mini)")
    sub.add_argument("--steps", type=_count, default=2000, help="keyframes at 2 Hz (default 2000)")
    sub.add_argument("--scene-steps", type=_count, default=40, help="keyframes per scene (default 40)")
    sub.add_argument("--seed", type=_course, default=1000, help="the first course (default 1000)")
    sub.add_argument("--image-size", type=_size, default=(160, 96), metavar="WxH", help="default 160x96")
    sub.add_argument("--videos", type=int, default=1, help="scenes filmed for the report (default 1)")
    _run_arguments(sub)

    sub = verb("train", _train, "train a policy from a recipe")
    sub.add_argument("recipe", help=f"a YAML file or one of: {', '.join(shipped())}")
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replace values, as in train.steps=10")
    _run_arguments(sub)

    sub = verb("replay", _replay, "plan at every keyframe of recorded scenes and compare with what was driven")
    sub.add_argument("--dataroot", type=Path, required=True, help="nuScenes dataroot")
    sub.add_argument("--version", default="v1.0-mini", help="table folder (default v1.0-mini)")
    sub.add_argument("--scene", action="append", help="only this scene; may be repeated")
    _policy_arguments(sub, REPLAYERS)
    sub.add_argument(MASK_FLAG, action="store_true", help="run with every camera masked, though the policy looks")
    sub.add_argument(
        "--image-size", type=_size, default=(400, 225), metavar="WxH", help="if the policy has none of its own"
    )
    _run_arguments(sub)

    add_score_verbs(verb)
    add_bench_verb(verb)

    sub = verb("doctor", _doctor, "say what is installed, what is missing, and what a dataroot holds and lacks")
    sub.add_argument("--dataroot", type=Path, help="nuScenes dataroot to look into")
    sub.add_argument("--version", default="v1.0-mini", help="table folder (default v1.0-mini)")
    return parser


def _policy_arguments(sub: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    sub.add_argument("--policy", choices=names, default=names[0], help=f"who drives (default {names[0]})")
    sub.add_argument("--checkpoint", type=Path, help="folder that vla train wrote, for --policy vla")


def _run_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--out", type=Path, metavar="RUN", help="run directory (default runs/<time>-<verb>)")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"came {text!r}, expected WIDTHxHEIGHT such as 160x96")
    return int(width), int(height)


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"came {text!r}, expected a whole number of at least 1")
    return int(text)


def _course(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= LAST_COURSE:
        raise argparse.ArgumentTypeError(f"came {text!r}, expected a course between 1 and {LAST_COURSE}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"came {text!r}, expected seconds between 0.1 and 86400")
    return value


def make_policy(name: str, checkpoint: Path | None, mask_cameras: bool = False) -> Policy:
    """The policy of this name; `vla` needs a checkpoint, the others take none."""
    if name == "vla":
        if checkpoint is None:
            raise InputError("--policy vla", "--checkpoint", "nothing", "a checkpoint folder", "vla train writes one.")
        return VlaPolicy(checkpoint, allow_blind=mask_cameras)
    if checkpoint is not None:
        raise InputError("--checkpoint", "value", checkpoint, f"none, since --policy {name} has no weights")
    made = {"constant-velocity": ConstantVelocity, "ego-status": EgoStatus, "log": Log, "pure-pursuit": PurePursuit}
    return made[name]()


def _with_baselines(policy: Policy) -> list[Policy]:
    """The policy, and beside it what carries on and what knows only the car's own motion: no score stands alone."""
    return [policy, *(made() for made in (ConstantVelocity, EgoStatus) if made.name != policy.name)]


def _config(options: argparse.Namespace) -> dict:
    values = {key: value for key, value in vars(options).items() if key not in ("run", "verb", "quiet")}
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def _close(run: Run, policies: list[Policy]) -> int:
    """Score, save, write the report, say where; the exit status."""
    run.score([policy.name for policy in policies])
    run.save()
    print(run.headline())
    for row in run.summary["episodes"]:
        if row["error"]:
            print(f"  {row['name']}: {row['error']}")
    print(*table(run.summary), sep="\n")
    print(f"report: {write_report(run.path)}")
    return 0 if run.whole else 1


def _drive(options: argparse.Namespace) -> int:
    policies = _with_baselines(make_policy(options.policy, options.checkpoint))
    seeds = list(range(options.seed, options.seed + options.episodes))
    run = Run.create("drive", options.out, _config(options), seeds)
    drive(run, policies, seeds, options.seconds, options.image_size, options.videos, not options.quiet)
    return _close(run, policies)


def _record(options: argparse.Namespace) -> int:
    run = Run.create("record", options.out, _config(options), [options.seed], resume=True)
    size, quiet = options.image_size, options.quiet
    record(run, options.version, options.steps, options.scene_steps, options.seed, size, options.videos, not quiet)
    run.save()
    metrics = run.summary["metrics"]
    print(f"{run.headline()}, {metrics['n_keyframes']} keyframes")
    print(f"{metrics['n_discarded']} courses discarded, where the expert left the road or touched something")
    print(f"dataroot: {run.path}\nreport: {write_report(run.path)}")
    return 0 if run.whole else 1


def _train(options: argparse.Namespace) -> int:
    path = train(
        load_recipe(options.recipe, options.overrides), options.out or default_path("train"), not options.quiet
    )
    print(f"report: {path}")
    return 0


def _replay(options: argparse.Namespace) -> int:
    policies = _with_baselines(make_policy(options.policy, options.checkpoint, options.mask_cameras))
    scenes = tuple(options.scene) if options.scene else None
    size = policies[0].image_size or options.image_size
    steps = max(policy.clip_steps for policy in policies)
    source = NuscenesSource(options.dataroot, options.version, scenes, steps, size)
    check_images(source, policies[0])
    run = Run.create("replay", options.out, _config(options), [0])
    replay(run, policies, source, options.mask_cameras, not options.quiet)
    return _close(run, policies)


def _doctor(options: argparse.Namespace) -> int:
    findings = examine(options.dataroot, options.version)
    for finding in findings:
        print(f"{finding.state:4s}  {finding.topic:24s} {finding.text}")
    return 1 if any(finding.state == "MISS" for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
