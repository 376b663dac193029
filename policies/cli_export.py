"""The verb `vla export`: a run's episodes for other viewers, recorded scenes as datasets of other formats."""

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from policies.cli_parts import size
from policies.export_lerobot import write_lerobot
from policies.export_nuscenes import write_nuscenes
from sensors.errors import InputError, unknown_name
from sensors.folder_source import RECORDING, FolderSource
from sensors.nuscenes_source import NuscenesSource, RecordedSource
from sim.report.exports import FORMATS, export_run

RECORDED = {"lerobot": "LeRobot v3: parquet and MP4", "nuscenes": "the nuScenes devkit, and every verb here"}
EPILOGS = {
    "export": """examples:
  vla export runs/mine --to rrd                          every episode, into runs/mine/export; rerun FILE shows it
  vla export runs/mine --to mcap --episode vla-town-smoke-0
  vla export --dataroot data/town --version v1.0-sim --to lerobot --out data/town-lerobot --image-size 400x224
  vla export --source my/recording --to nuscenes --out data/mine"""
}


def add_export_verb(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare it; `verb` makes one subcommand from (name, function, help)."""
    sub = verb("export", _export, "write a run's episodes for other viewers, or recorded scenes as other datasets")
    words = f"a run, for {', '.join(FORMATS)}"
    sub.add_argument("run_directory", type=Path, metavar="RUN", nargs="?", help=words)
    told = {name: form.words for name, form in FORMATS.items()} | RECORDED
    words = ", ".join(f"{name} ({about})" for name, about in told.items())
    sub.add_argument("--to", required=True, metavar="FORMAT", help=words)
    sub.add_argument("--episode", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="of a run default RUN/export")
    recorded = sub.add_argument_group(f"recorded scenes, for {', '.join(RECORDED)}")
    where = recorded.add_mutually_exclusive_group()
    where.add_argument("--dataroot", type=Path, help="nuScenes dataroot")
    where.add_argument("--source", type=Path, metavar="FOLDER", help=f"a folder with images and {RECORDING}")
    recorded.add_argument("--version", default="v1.0-mini", help="table folder, read or written (default v1.0-mini)")
    recorded.add_argument("--scene", action="append", help="only this scene; may be repeated")
    recorded.add_argument("--image-size", type=size, metavar="WxH", help="lerobot: of the videos (default as recorded)")


def _export(options: argparse.Namespace) -> int:
    name, run = options.to, options.run_directory
    if name not in (*FORMATS, *RECORDED):
        raise unknown_name("--to", "format", name, (*FORMATS, *RECORDED))
    if name in RECORDED:
        return _recorded(options)
    if run is None:
        raise InputError("vla export", "RUN", "none", f"a run directory, whose episodes --to {name} takes")
    for path in export_run(run, name, options.out or run / "export", options.episode):
        print(f"{name}: {path}", flush=True)
    return 0


def _recorded(options: argparse.Namespace) -> int:
    name = options.to
    if options.run_directory is not None or options.episode:
        came = options.run_directory or "--episode"
        raise InputError("vla export", f"--to {name}", came, "recorded scenes: --dataroot or --source")
    if options.out is None:
        raise InputError("vla export", "--out", "nothing", "a folder for the dataset")
    if name == "lerobot":
        if find_spec("pyarrow") is None:
            fix = "Install the extra: pip install -c constraints.txt -e '.[viz]'"
            raise InputError("--to", name, "no package pyarrow", "pyarrow, which writes it", fix)
        write_lerobot(_source(options, 2), options.out, print)
    else:
        if options.image_size:
            raise InputError("vla export", "--image-size", options.image_size, "none, since nuscenes keeps the size")
        write_nuscenes(_source(options, 1), options.out, options.version, print)
    print(f"{name}: {options.out}")
    return 0


def _source(options: argparse.Namespace, steps: int) -> RecordedSource:
    scenes = tuple(options.scene) if options.scene else None
    if options.source is not None:
        return FolderSource(options.source, scenes, steps, options.image_size)
    if options.dataroot is None:
        raise InputError("vla export", f"--to {options.to}", "no recording", "--dataroot or --source")
    return NuscenesSource(options.dataroot, options.version, scenes, steps, options.image_size)
