"""The verb `vla plan`: what a training would take on GPUs that are not here."""

import argparse
from collections.abc import Callable
from pathlib import Path

from policies.cli_parts import between, count
from policies.plan import EFFICIENCY, GPUS, LINK_EFFICIENCY, RECOMPUTE, Asked, plan_recipe
from policies.recipes import Recipe, load_recipe, shipped
from policies.runs import write_json
from sensors.errors import InputError

EPILOGS = {
    "plan": """examples:
  vla plan --recipe moe-10b --gpus 256                   memory, bytes sent, time; for the recipe's own tokens
  vla plan --recipe moe-10b --gpus 64 --gpu h200 --recompute layers --tokens 50e9 train.accumulate=32
  vla plan --recipe my-recipe.yaml --gpus 8 --json plan.json
Nothing is measured but by vla bench plan, which says how far such plans are from what was measured."""
}

share = between(0.01, 1, "a share")


def add_plan_verb(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare it; `verb` makes one subcommand from (name, function, help)."""
    sub = verb("plan", _plan, "say what a training would take on GPUs: memory, bytes between them, time, days")
    sub.add_argument("--recipe", required=True, help=f"a YAML file or one of: {', '.join(shipped())}")
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replace values, as vla train does")
    sub.add_argument("--gpus", type=count, required=True, help="how many, in nodes of 8")
    sub.add_argument("--gpu", choices=tuple(GPUS), default="h100", help="of which kind (default h100)")
    words = "GPUs that share out the routed experts (default: as many as divide them, within a node)"
    sub.add_argument("--experts-over", type=count, metavar="N", help=words)
    words = "layers: keep only the input of each, and compute it again (default: as train.recompute says)"
    sub.add_argument("--recompute", choices=RECOMPUTE, help=words)
    words = f"share of a GPU's arithmetic that products reach (default {EFFICIENCY})"
    sub.add_argument("--efficiency", type=share, default=EFFICIENCY, metavar="SHARE", help=words)
    words = f"share of the links that messages reach (default {LINK_EFFICIENCY})"
    sub.add_argument("--link-efficiency", type=share, default=LINK_EFFICIENCY, metavar="SHARE", help=words)
    words = "budget to say the days for (default: the recipe's steps)"
    sub.add_argument("--tokens", type=between(1, 1e18, "tokens"), metavar="N", help=words)
    sub.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too, flat")


def _plan(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    if not isinstance(recipe, Recipe):
        raise InputError("vla plan", "--recipe", options.recipe, "a recipe with a `model`")
    if options.json is not None and not options.json.resolve().parent.is_dir():
        raise InputError("--json", "file", options.json, "a file in a folder that exists")
    spread = options.gpus, options.gpu, options.experts_over, options.recompute
    planned = plan_recipe(recipe, Asked(*spread, options.efficiency, options.link_efficiency, options.tokens))
    print(*planned.lines(), sep="\n")
    if options.json is not None:
        write_json(options.json, planned.figures())
    return 0
