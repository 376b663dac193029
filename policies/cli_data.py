"""The verb `vla data`: recordings as packs of shards, for training at scale."""

import argparse
from collections.abc import Callable
from pathlib import Path

from policies.cli_parts import count
from policies.prepared import QUALITY, prepare
from policies.recipes import Recipe, load_recipe
from policies.runs import write_json
from sensors.errors import InputError
from sensors.packing import MB, pack, statistics, verify

EPILOGS = {
    "data": """examples:
  vla data pack data/town data/town.pack --version v1.0-trainval
  vla data verify data/town.pack                         every checksum, every image; exit status 1: something is broken
  vla data stats s3://bucket/town.pack                   any URL that fsspec knows, with its package (s3fs) installed
  vla train town-300m data.dataroot=data/town.pack data.shuffle=20000 --out runs/town
  vla data prepare tiny-town data.dataroot=data/town --out data/town.ready --workers 2
  vla train tiny-town data.dataroot=data/town.ready train.device=cuda --out runs/town     nothing is read at a step"""
}


def add_data_verb(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare it; `verb` makes one subcommand from (name, function, help)."""
    sub = verb("data", _pack, "make a dataroot into checksummed shards for training at scale, and look through them")
    kinds = sub.add_subparsers(dest="kind", required=True, metavar="pack|verify|stats|prepare")

    packing = kinds.add_parser("pack", help="a nuScenes dataroot into a folder of shards")
    packing.add_argument("dataroot", type=Path, metavar="DATAROOT", help="nuScenes dataroot")
    packing.add_argument("out", type=Path, metavar="PACK", help="folder to make")
    packing.add_argument("--version", default="v1.0-mini", help="table folder (default v1.0-mini)")
    packing.add_argument("--shard-mb", type=count, default=256, help="about how large shards are (default 256)")
    packing.set_defaults(run=_pack)

    for kind, run, words in (
        ("verify", _verify, "read every file from front to back and compare its checksum"),
        ("stats", _stats, "what a pack holds"),
    ):
        looking = kinds.add_parser(kind, help=words)
        looking.add_argument("place", metavar="PACK", help="folder, or a URL that fsspec knows")
        looking.set_defaults(run=run)
    looking.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too, flat")

    ready = kinds.add_parser("prepare", help="examples as the model of a recipe reads them, for a training on a GPU")
    ready.add_argument("recipe", metavar="RECIPE", help="a shipped recipe's name, or a YAML file")
    ready.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to it, as of vla train")
    ready.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to make")
    ready.add_argument("--quality", type=quality, default=QUALITY, help=f"of its JPEGs, 1 to 100 (default {QUALITY})")
    ready.add_argument("--workers", type=count, default=1, help="processes (default 1)")
    ready.add_argument("--quiet", action="store_true", help="no progress bar")
    ready.set_defaults(run=_prepare)


def quality(text: str) -> int:
    """Of a JPEG."""
    value = int(text)
    if not 1 <= value <= 100:
        raise ValueError(text)
    return value


def _prepare(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    if not isinstance(recipe, Recipe):
        raise InputError("vla data prepare", "recipe", recipe.name, "one of a driving model")
    held = prepare(recipe, options.out, options.quality, options.workers, not options.quiet)
    print(f"prepared: {options.out}, {held:,} examples")
    return 0


def _pack(options: argparse.Namespace) -> int:
    made = pack(options.dataroot, options.version, options.out, options.shard_mb * MB, print)
    gb = sum(shard.bytes for shard in made.shards) / 1000 / MB
    print(f"pack: {options.out}, {len(made.shards)} shards, {gb:.3g} GB")
    return 0


def _verify(options: argparse.Namespace) -> int:
    broken = 0
    for name, problem in verify(options.place):
        print(f"{'BROKEN' if problem else 'ok':7s} {name}{': ' if problem else ''}{problem}", flush=True)
        broken += bool(problem)
    print(f"{broken} broken files" if broken else "all files are whole")
    return 1 if broken else 0


def _stats(options: argparse.Namespace) -> int:
    if options.json is not None and not options.json.resolve().parent.is_dir():
        raise InputError("--json", "file", options.json, "a file in a folder that exists")
    found = statistics(options.place)
    print(*found.lines(), sep="\n")
    if options.json is not None:
        write_json(options.json, found.figures)
    return 0
