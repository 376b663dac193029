"""The verbs of training: a policy or a codebook from a recipe, whether a codebook is usable, a look inside."""

import argparse
from collections.abc import Callable
from pathlib import Path

from policies.cli_parts import address_argument, count, run_arguments, seen_argument
from policies.codebooks import check_codebook_file, train_actions, train_text
from policies.dry_run import dry_run
from policies.grpo import dry_run_grpo, grpo
from policies.inspection import inspect, write_inspection
from policies.recipes import ActionRecipe, GrpoRecipe, Recipe, TextRecipe, TokenizerRecipe, load_recipe, shipped
from policies.runs import default_path
from policies.stages import load_stages, make, shipped_stages
from policies.train import Workers, train
from policies.train_images import check_tokenizer, report_figures, train_images
from sensors.errors import InputError
from vla.sharding import Division
from vla.sizes import SIZES

CODEBOOKS = (TokenizerRecipe, TextRecipe, ActionRecipe)
EPILOGS = {
    "train": """examples:
  vla train tiny data.dataroot=data/course               ten minutes on two cores
  vla train my-recipe.yaml train.steps=100 --out runs/t  the same --out again resumes
  vla train tiny --workers 4 --shard --experts-over 2    one model, divided over four workers
  vla train tiny --workers 8 --address auto              on a Ray cluster; a lost worker costs the last few steps
  vla train tiny-town --dry-run                          what it would cost
  vla train tiny-town model.size=300m --dry-run          what a larger one would
  vla train image-tokens data.dataroot=data/town         codes for images
  vla train text-tokens                                  codes for text
  vla train action-codes data.dataroot=data/town         codes for chunks of driving
  vla train grpo rollouts.start_from=runs/mine/checkpoint --workers 2
                                                         on with a policy by the reward of its own drives""",
    "make": """examples:
  vla make tiny-town --out runs/tiny-town                the shipped policy from nothing, with its scores
  vla make tokenizers --out runs/tokenizers              codes for images, text, driving; one that is no good stops it
  vla make dagger start=runs/mine/checkpoint town=data/town    rounds of driving in turns with the expert
  vla make my-stages.yaml --out runs/mine                the same command again goes on where it was""",
    "check-tokenizer": """examples:
  vla check-tokenizer runs/images/checkpoint --dataroot data/other
  vla check-tokenizer runs/actions/dct.json --dataroot data/other
  vla check-tokenizer runs/text/text_tokens.json
exit status 1: nothing should be trained on its codes, it says why""",
    "inspect": """examples:
  vla inspect runs/mine/checkpoint                       with clips of noise
  vla inspect runs/mine/checkpoint --dataroot data/town --out inside.html""",
}


def add_train_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare them; `verb` makes one subcommand from (name, function, help)."""
    sub = verb("train", _train, "train a policy or a codebook from a recipe")
    sub.add_argument("recipe", help=f"a YAML file or one of: {', '.join(shipped())}")
    words = f"replace values, as in train.steps=10; model.size=NAME exchanges the size: {', '.join(SIZES)}"
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=words)
    words = "processes that share each batch, or the drives (default 1); on a CPU one a core is faster than threads"
    sub.add_argument("--workers", type=count, default=1, help=words)
    words = "divide every weight over the workers, gathered for the layer being computed (FSDP2)"
    sub.add_argument("--shard", action="store_true", help=words)
    words = "divide the experts of a layer over so many workers; tokens travel to them (default 1: all have all)"
    sub.add_argument("--experts-over", type=count, default=1, metavar="N", help=words)
    address_argument(sub)
    words = "go on from a checkpoint that another arrangement of workers wrote in shards"
    sub.add_argument("--reshard", action="store_true", help=words)
    words = (
        "say what it would cost in parameters, memory, tokens and time, measured in two steps or a drive; write nothing"
    )
    sub.add_argument("--dry-run", action="store_true", help=words)
    run_arguments(sub)

    sub = verb("make", _make, "record, train and score a policy: all stages of a file in turn")
    sub.add_argument("stages", help=f"a YAML file or one of: {', '.join(shipped_stages())}")
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replace what stands under `given` in the file")
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="where all of it is made (default runs/<time>-make)")

    words = "say what a codebook of images, of driving or of text is worth"
    sub = verb("check-tokenizer", _check_tokenizer, words)
    sub.add_argument("codebook", type=Path, help="checkpoint folder, or JSON file, that vla train wrote")
    words = "nuScenes dataroot that it was not trained on; text needs none"
    sub.add_argument("--dataroot", type=Path, help=words)
    sub.add_argument("--version", default="v1.0-mini", help="table folder (default v1.0-mini)")
    seen_argument(sub)

    words = "draw what goes on inside a model: attention, gradients, embeddings, experts, codes"
    sub = verb("inspect", _inspect, words)
    sub.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder that vla train wrote")
    sub.add_argument("--dataroot", type=Path, help="nuScenes dataroot with clips to read (default: noise)")
    sub.add_argument("--version", default="v1.0-mini", help="table folder (default v1.0-mini)")
    sub.add_argument("--tokenizer", type=Path, metavar="CHECKPOINT", help="image tokenizer of a model that reads codes")
    sub.add_argument("--out", type=Path, metavar="FILE", help="the page (default runs/<time>-inspect/inspection.html)")


def _train(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    if options.dry_run:
        if isinstance(recipe, CODEBOOKS):
            raise InputError("vla train", "--dry-run", options.recipe, "the recipe of a policy")
        own = isinstance(recipe, GrpoRecipe)
        lines = dry_run_grpo(recipe, options.workers) if own else dry_run(recipe, options.workers).lines()
        print(*lines, sep="\n")
        return 0
    out, progress = options.out or default_path("train"), not options.quiet
    if options.address is not None:
        out = out.absolute()  # processes elsewhere stand elsewhere
    division = Division(options.shard, options.experts_over)
    if division.divides and not isinstance(recipe, Recipe):
        raise InputError("vla train", "--shard, --experts-over", options.recipe, "the recipe of a policy that imitates")
    if isinstance(recipe, CODEBOOKS):
        if options.workers > 1 or options.address is not None:
            raise InputError("vla train", "--workers", options.workers, "1 for a codebook")
        return _train_codebook(recipe, out, progress)
    if isinstance(recipe, GrpoRecipe):
        report = grpo(recipe, out, progress, options.workers, options.address)
    else:
        workers = Workers(options.workers, division, options.reshard)
        report = train(recipe, out, progress, workers, options.address)
    print(f"report: {report}")
    return 0


def _train_codebook(recipe: TokenizerRecipe | TextRecipe | ActionRecipe, out: Path, progress: bool) -> int:
    """Train one and check it; the exit status says whether it may be used."""
    if isinstance(recipe, TokenizerRecipe):
        report, codebook = train_images(recipe, out, progress)
        wrong = codebook.wrong
    else:
        report, check = (train_text if isinstance(recipe, TextRecipe) else train_actions)(recipe, out)
        wrong = check.wrong
    print(f"report: {report}")
    return _said(wrong)


def _make(options: argparse.Namespace) -> int:
    out = options.out or default_path("make")
    return make(load_stages(options.stages, out, options.overrides), out)


def _check_tokenizer(options: argparse.Namespace) -> int:
    if options.codebook.is_file():
        check = check_codebook_file(options.codebook, options.dataroot, options.version)
        figures, wrong = check.figures, check.wrong
    elif options.dataroot is None:
        raise InputError("vla check-tokenizer", "--dataroot", "nothing", "recorded scenes to look at")
    else:
        report = check_tokenizer(options.codebook, options.dataroot, options.version, options.allow_seen)
        figures, wrong = report_figures(report), report.wrong
    for name, value in figures.items():
        print(f"{name:32s} {value:10.4g}")
    return _said(wrong)


def _said(wrong: tuple[str, ...]) -> int:
    """Say whether a codebook is usable; the exit status."""
    print("\n".join(["NOT USABLE:", *(f"  {words}" for words in wrong)]) if wrong else "usable")
    return 1 if wrong else 0


def _inspect(options: argparse.Namespace) -> int:
    looked = inspect(options.checkpoint, options.dataroot, options.version, options.tokenizer)
    for name, value in looked.figures.items():
        print(f"{name:34s} {value:10.4g}")
    print(f"page: {write_inspection(looked, options.out or default_path('inspect') / 'inspection.html')}")
    return 0
