"""The verb `vla replay`: recorded scenes, open loop at their keyframes, or driven through in closed loop."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from policies.bags import BAG_VERSION, unpacked
from policies.cli_parts import (
    bag_arguments,
    close,
    config,
    count,
    learned_by,
    make_policy,
    policy_arguments,
    run_arguments,
    seconds,
    size,
    whole,
    with_baselines,
)
from policies.log_views import measure_views
from policies.protocol import Policy
from policies.refilm import film_failures
from policies.replay import MASK_FLAG, check_images, replay, warn_of_missing
from policies.rollout import drive
from policies.runs import Run, new_row
from policies.split import refuse_seen
from sensors.errors import InputError
from sensors.folder_source import RECORDING, FolderSource
from sensors.nuscenes_index import NuscenesIndex
from sensors.nuscenes_source import NuscenesSource, RecordedSource
from sensors.nuscenes_splits import PLANNING, SPLITS, TRAINVAL, scenes_of_split
from sensors.recorded_drive import recorded_drive
from sim.gl_device import open_gl
from sim.log_env import VIEWS, LogScenario
from sim.render_gl import RENDERERS
from sim.traffic_log import MODES

VERSION = "v1.0-mini"
REPLAYERS = ("constant-velocity", "ego-status", "log", "vla")
CLOSED = {"traffic": "reactive", "views": "auto", "renderer": "auto", "videos": 1, "clips": 3, "seconds": None}
CLOSED["workers"] = 1
EPILOGS = {
    "replay": """examples:
  vla replay --dataroot /data/nuscenes --version v1.0-mini --policy constant-velocity
  vla replay --dataroot /data/nuscenes --policy vla --checkpoint runs/t/checkpoint --scene scene-0061
  vla replay --dataroot /data/nuscenes --version v1.0-trainval --policy vla        the 150 scenes of published scores
  vla replay bags/scene-0061 --policy vla                         a bag of ROS 2, without ROS
  vla replay --source my/recording --policy constant-velocity     images, and a JSON of cameras and poses
  vla replay --closed-loop --dataroot /data/nuscenes --scene scene-0103 --policy log
  vla replay --closed-loop --dataroot data/town --policy vla --traffic replay --videos 2"""
}


def add_replay_verb(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare it; `verb` makes one subcommand from (name, function, help)."""
    sub = verb("replay", _replay, "plan at every keyframe of recorded scenes and compare, or drive through them")
    bag_arguments(sub, optional=True)
    sub.add_argument("--dataroot", type=Path, help="nuScenes dataroot, instead of a bag")
    sub.add_argument("--source", type=Path, metavar="FOLDER", help=f"a folder with images and {RECORDING}, instead")
    sub.add_argument("--version", help=f"table folder (default {VERSION})")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--scene", action="append", help="only this scene; may be repeated")
    words = f"an official split ({', '.join(SPLITS)}); of {TRAINVAL} {PLANNING} is the default, as in published scores"
    which.add_argument("--split", metavar="NAME", help=words)
    policy_arguments(sub, REPLAYERS, REPLAYERS[0], REPLAYERS[0])
    sub.add_argument(MASK_FLAG, action="store_true", help="run with every camera masked, though the policy looks")
    sub.add_argument(
        "--image-size", type=size, default=(400, 225), metavar="WxH", help="if the policy has none of its own"
    )
    run_arguments(sub)
    closed = sub.add_argument_group("closed loop: the policy drives, from the recorded start to where the record ends")
    closed.add_argument("--closed-loop", action="store_true", help="drive; all below needs this")
    words = "reactive: who has to, answers (default); replay: all drive as recorded"
    closed.add_argument("--traffic", choices=MODES, help=words)
    words = "auto: recorded images, re-projected to where the car is, where there are any (default); rendered: none"
    closed.add_argument("--views", choices=VIEWS, help=words)
    closed.add_argument("--renderer", choices=RENDERERS, help="as for vla drive")
    closed.add_argument("--seconds", type=seconds, help="longest episode (default the recording)")
    closed.add_argument("--videos", type=whole, help=f"episodes filmed (default {CLOSED['videos']})")
    words = f"failures filmed with six cameras, by driving them again (default {CLOSED['clips']})"
    closed.add_argument("--clips", type=whole, metavar="N", help=words)
    closed.add_argument("--workers", type=count, help=f"processes (default {CLOSED['workers']})")


def _replay(options: argparse.Namespace) -> int:
    given = [name for name in CLOSED if getattr(options, name) is not None]
    if given and not options.closed_loop:
        came, fix = "without --closed-loop", "Add --closed-loop to drive through the scenes."
        raise InputError("vla replay", f"--{given[0]}", came, "an option of open loop", fix)
    places = [name for name in ("bag", "dataroot", "source") if getattr(options, name) is not None]
    if len(places) != 1:
        came = " and ".join(places) or "none"
        fix = "A bag is a folder or an .mcap file."
        raise InputError("vla replay", "BAG, --dataroot, --source", came, "one of them", fix)
    if options.bag is None and options.calibration is not None:
        raise InputError("vla replay", "--calibration", options.calibration, f"nothing beside --{places[0]}")
    if options.source is not None:
        for name in ("version", "split", "closed_loop"):
            if getattr(options, name):
                fix = f"vla export --source {options.source} --to nuscenes makes a dataroot, which takes it."
                raise InputError("vla replay", f"--{name.replace('_', '-')}", "with --source", "nothing", fix)
        return _replay_on(options, lambda scenes, **how: FolderSource(options.source, scenes, **how))
    if options.bag is None:
        version = options.version or VERSION
        return _replay_on(options, lambda scenes, **how: _dataroot(options, version, scenes, how))
    for name in ("version", "scene", "split"):
        if getattr(options, name):
            raise InputError("vla replay", "options", f"--{name}", "nothing of a dataroot beside a bag of one drive")
    with unpacked(options.bag, options.calibration, not options.quiet) as made:
        print(*made.drive.problems(), sep="\n", end="\n" if made.drive.refused else "")
        return _replay_on(options, lambda scenes, **how: NuscenesSource(made.dataroot, BAG_VERSION, scenes, **how))


def _dataroot(options: argparse.Namespace, version: str, scenes: tuple[str, ...] | None, how: dict) -> NuscenesSource:
    """The scenes that are named, those of a split, or all; of v1.0-trainval the split of published scores."""
    split = options.split or (PLANNING if version == TRAINVAL and scenes is None else None)
    if split is not None:
        scenes = scenes_of_split(split, version, NuscenesIndex(options.dataroot, version).scenes)
        print(f"split {split}: {len(scenes)} scenes")
    return NuscenesSource(options.dataroot, version, scenes, **how)


def _replay_on(options: argparse.Namespace, opened: Callable[..., RecordedSource]) -> int:
    """`opened` makes the source from scenes, steps, image_size and threads."""
    policies = with_baselines(make_policy(options.policy, options.checkpoint, options.best_of, options.mask_cameras))
    size = policies[0].image_size or options.image_size
    steps = 1 if options.closed_loop else max(policy.clip_steps for policy in policies)
    scenes, cores = tuple(options.scene) if options.scene else None, len(os.sched_getaffinity(0))
    source = opened(scenes, steps=steps, image_size=size, threads=cores if cores > 1 else 0)
    seen = learned_by(policies[0]).seen_in(source)
    if options.closed_loop:
        return _closed_loop(options, policies, source, seen)
    check_images(source, policies[0])
    for line in warn_of_missing(source):
        print(line)
    refuse_seen(seen, options.allow_seen, "vla replay")
    run = Run.create("replay", options.out, config(options), [0])
    run.summary["seen_in_training"] = seen
    replay(run, policies, source, options.mask_cameras, not options.quiet)
    return close(run, policies)


def _closed_loop(options: argparse.Namespace, policies: list[Policy], source: NuscenesSource, seen: list[str]) -> int:
    if options.mask_cameras:
        raise InputError("vla replay", MASK_FLAG, "with --closed-loop", "one of the two")
    for name, default in CLOSED.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    if options.renderer == "gl":
        open_gl()
    refuse_seen(seen, options.allow_seen, "vla replay")
    starts, refused = starts_in(source, options.traffic, options.views)
    run = Run.create("replay", options.out, config(options), [0])
    run.summary["seen_in_training"] = seen
    quiet, name = options.quiet, policies[0].name
    for policy in policies:
        for scene, error in refused.items():
            run.add(new_row(f"{policy.name}-{scene}", policy.name, 0) | {"ended_by": "refused", "error": str(error)})
    how = options.seconds, options.image_size, options.videos, options.renderer, not quiet, options.workers
    drive(run, policies, starts, *how)
    problems = measure_views(run, name, starts, policies[0].image_size or options.image_size, options.renderer)
    return close(run, policies, lambda: [*problems, *film_failures(run.path, starts, options.clips, name, not quiet)])


def starts_in(source: NuscenesSource, traffic: str, views: str) -> tuple[list[LogScenario], dict[str, InputError]]:
    """Every scene of a source as the start of an episode, and why those that cannot be driven through can't; an
    InputError if none can."""
    starts, refused = [], {}
    for scene in source.scenes:
        try:
            starts.append(LogScenario(recorded_drive(source, scene), traffic, views))
        except InputError as error:
            refused[scene] = error
    if not starts:
        raise next(iter(refused.values()))
    return starts, refused


def starts_of_replay(options: argparse.Namespace) -> list[LogScenario]:
    """What a closed loop on a dataroot was driven from, by its own arguments."""
    scenes = tuple(options.scene) if options.scene else None
    source = NuscenesSource(options.dataroot, options.version or VERSION, scenes, 1)
    return starts_in(source, options.traffic, options.views)[0]
