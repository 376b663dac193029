"""The verbs of training: from a recipe, a policy or an image tokenizer; and whether a tokenizer may be used."""

import argparse
from collections.abc import Callable
from pathlib import Path

from policies.cli_parts import run_arguments
from policies.recipes import TokenizerRecipe, load_recipe, shipped
from policies.runs import default_path
from policies.train import train
from policies.train_images import check_tokenizer, report_figures, train_images

EPILOGS = {
    "train": """examples:
  vla train tiny data.dataroot=data/course               ten minutes on two cores
  vla train my-recipe.yaml train.steps=100 --out runs/t  the same --out again resumes
  vla train image-tokens data.dataroot=data/town         codes for images""",
    "check-tokenizer": """example:
  vla check-tokenizer runs/codes/checkpoint --dataroot data/town
exit status 1: the codebook has collapsed, nothing should be trained on its codes""",
}


def add_train_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare them; `verb` makes one subcommand from (name, function, help)."""
    sub = verb("train", _train, "train a policy or an image tokenizer from a recipe")
    sub.add_argument("recipe", help=f"a YAML file or one of: {', '.join(shipped())}")
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replace values, as in train.steps=10")
    run_arguments(sub)

    sub = verb("check-tokenizer", _check_tokenizer, "say what a codebook of images is worth on recorded scenes")
    sub.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder that vla train wrote")
    sub.add_argument("--dataroot", type=Path, required=True, help="nuScenes dataroot that it was not trained on")
    sub.add_argument("--version", default="v1.0-mini", help="table folder (default v1.0-mini)")


def _train(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    make = train_images if isinstance(recipe, TokenizerRecipe) else train
    print(f"report: {make(recipe, options.out or default_path('train'), not options.quiet)}")
    return 0


def _check_tokenizer(options: argparse.Namespace) -> int:
    report = check_tokenizer(options.checkpoint, options.dataroot, options.version)
    for name, value in report_figures(report).items():
        print(f"{name:24s} {value:10.4g}")
    print("usable" if report.usable else "COLLAPSED: train longer, on more varied images, or with fewer codes")
    return 0 if report.usable else 1
