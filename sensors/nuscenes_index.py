"""The v1.0 tables of a nuScenes dataroot, linked: scene -> keyframes and tracks -> captures, poses, boxes.

The tables are the truth (`sensors.nuscenes_tables` reads, `sensors.nuscenes_linking` links them). Large ones are read
once: what comes out is kept as one file, mapped into memory, in the user's cache folder (`$XDG_CACHE_HOME/vla-drive`,
or `~/.cache/vla-drive`), never in the dataroot. It is used as long as the tables are those it was made from, by their
sizes, times and contents. Where it can't be kept, `unkept` says why, and the tables are read whenever they are opened.

Every `filename` stays inside the dataroot: absolute paths and `..` are refused when the tables are read, links that
lead out of it when the file is asked for (`path`).
"""

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np

from sensors.columns import Columns, open_columns, write_columns
from sensors.errors import InputError, nearest
from sensors.nuscenes_can import CAN_MESSAGES, can_is_refused
from sensors.nuscenes_expansion import expansion_path
from sensors.nuscenes_linking import link
from sensors.nuscenes_scene import RecordedScene, channels_of, read_scene
from sensors.nuscenes_tables import FIELDS, OPTIONAL, check_inside, read_tables

MANIFEST = "pack.json"  # of a pack, see `sensors.shards`
LAYOUT = 2  # of the columns and of what is checked; another one is made anew
SMALL = 1 << 22  # bytes of tables that are read faster than it takes to keep what comes out
FIRST = 3  # names of missing files that an inventory keeps
SAMPLES, SAMPLED = 16, 1 << 16  # pieces of a table, and bytes of each, that tell whether it is the same


@dataclass(frozen=True)
class SceneInventory:
    """What one scene holds and lacks: image files by channel, CAN bus files by message, the map's raster and lanes.

    images_present, images_missing  of its key frames, by camera
    sweeps_present, sweeps_missing  of the images between them
    first_missing    names of the first files that are missing, of either
    can_refused      nuScenes says that the CAN bus of this scene is not to be used
    repeated_sweeps  records between key frames that were left out, since they repeat a time stamp
    problem          why the scene can't be used, "" if it can
    """

    name: str
    location: str
    keyframes: int
    annotations: int
    images_present: dict[str, int]
    images_missing: dict[str, int]
    sweeps_present: int
    sweeps_missing: int
    first_missing: tuple[str, ...]
    can_present: tuple[str, ...]
    can_missing: tuple[str, ...]
    can_refused: bool
    map_present: bool
    lanes_present: bool
    repeated_sweeps: int
    problem: str

    @property
    def images(self) -> int:
        return sum(self.images_present.values())


class NuscenesIndex:
    """All scenes of `<dataroot>/<version>`.

    scenes  names, in the order of the table
    unkept  why the index is not kept for the next time: "" where it is, or needs not be
    """

    def __init__(self, dataroot: str | Path, version: str):
        self.dataroot, self.version = Path(dataroot), version
        if not self.dataroot.is_dir():
            raise InputError(self.dataroot, "dataroot", "no such folder", "a nuScenes dataroot")
        if (self.dataroot / MANIFEST).is_file():
            fix = "Trainings read packs; for all else unpack it: all its .tar files into one folder are a dataroot."
            raise InputError(self.dataroot, "dataroot", "a pack", "a nuScenes dataroot", fix)
        versions = tuple(sorted(p.parent.name for p in self.dataroot.glob("*/scene.json") if p.parent.name[0] != "."))
        if not (self.dataroot / version).is_dir():
            one_of(self.dataroot, "version", version, versions)
        self.unkept = ""
        self._columns = self._opened()
        about = self._columns.about
        self._scene_rows = {row[0]: k for k, row in enumerate(about["scenes"])}
        self._inside: dict[Path, str] = {}  # folders that lie within the dataroot, by what their links lead to
        self.scenes: tuple[str, ...] = tuple(self._scene_rows)

    def table_path(self, table: str) -> Path:
        return self.dataroot / self.version / f"{table}.json"

    def can_path(self, scene: str, message: str) -> Path:
        return self.dataroot / "can_bus" / f"{scene}_{message}.json"

    def path(self, filename: str, table: str = "sample_data") -> Path:
        """Where a table's `filename` lies; outside the dataroot, links included, is an InputError."""
        check_inside(self.table_path(table), filename, self.dataroot)
        path = self._root / filename
        if path.parent not in self._inside:
            self._inside[path.parent] = os.path.realpath(path.parent)
        real = self._inside[path.parent] if not path.is_symlink() else os.path.realpath(path)
        if not Path(real).is_relative_to(self._root):
            expected, fix = f"a path inside {self.dataroot}", "Links may not lead out of it."
            raise InputError(self.table_path(table), "filename", filename, expected, fix)
        return path

    def map_path(self, scene: str) -> Path | None:
        """The raster of where one may drive, or None without one."""
        rasters = self._columns.about["scenes"][self._scene_rows[scene]][3]
        return next((path for name in rasters if (path := self.path(name, "map")).is_file()), None)

    def scene(self, name: str) -> RecordedScene:
        """One scene; keyframes in order of time. One that the tables tell wrong is an InputError."""
        self.check(name)
        return read_scene(self._columns, self._scene_rows[name], self.table_path("calibrated_sensor"))

    def frame_times_us(self, name: str) -> np.ndarray:
        """`now_us` int64 [K] of a scene's keyframes."""
        self.check(name)
        k = self._scene_rows[name]
        return self._columns["keyframe.now_us"][slice(*map(int, self._columns["scene.first_keyframe"][k : k + 2]))]

    def check(self, name: str) -> None:
        """An InputError if there is no such scene, or if it can't be used."""
        one_of(self.table_path("scene"), "scene", name, self.scenes)
        if name in self._columns.about["problems"]:
            raise InputError(*self._columns.about["problems"][name])

    def channels(self, name: str) -> tuple[str, ...]:
        """Of the sensors of a scene."""
        return channels_of(self._columns, self._scene_rows[name])

    @cached_property
    def _root(self) -> Path:
        return self.dataroot.resolve()

    def inventory(self, scenes: Iterable[str] | None = None) -> list[SceneInventory]:
        """What these scenes, or all, hold and lack; nothing but the existence of files is looked at."""
        listed: dict[str, frozenset[str]] = {}  # names in each folder
        return [self._take_stock(name, listed) for name in (self.scenes if scenes is None else scenes)]

    def _take_stock(self, name: str, listed: dict[str, frozenset[str]]) -> SceneInventory:
        problem = self._columns.about["problems"].get(name)
        location = self._columns.about["scenes"][self._scene_rows[name]][2]
        scene = None if problem else self.scene(name)
        cameras = list(scene.cameras) if scene else []
        counts = {
            kind: dict.fromkeys(cameras, 0) for kind in ((True, True), (True, False), (False, True), (False, False))
        }
        missing = []
        for channel in cameras:
            track = scene.tracks[channel]
            for filename, is_key in zip(track.filenames(), track.is_keyframe.tolist(), strict=True):
                there = self._is_there(filename, listed)
                counts[is_key, there][channel] += 1
                if not there and len(missing) < FIRST:
                    missing.append(filename)
        can = tuple(message for message in CAN_MESSAGES if self.can_path(name, message).is_file())
        return SceneInventory(
            name=name,
            location=location,
            keyframes=len(scene.keyframes) if scene else 0,
            annotations=scene.annotations if scene else 0,
            images_present=counts[True, True],
            images_missing=counts[True, False],
            sweeps_present=sum(counts[False, True].values()),
            sweeps_missing=sum(counts[False, False].values()),
            first_missing=tuple(missing),
            can_present=can,
            can_missing=tuple(message for message in CAN_MESSAGES if message not in can),
            can_refused=can_is_refused(name),
            map_present=self.map_path(name) is not None,
            lanes_present=expansion_path(self.dataroot, location).is_file(),
            repeated_sweeps=self._columns.about["repeated_sweeps"].get(name, 0),
            problem=str(InputError(*problem)) if problem else "",
        )

    def _is_there(self, filename: str, listed: dict[str, frozenset[str]]) -> bool:
        """Whether a file exists; folders are listed once, as that is faster than asking for every file."""
        folder, _, name = filename.rpartition("/")
        if folder not in listed:
            at = self.path(filename).parent
            with os.scandir(at) if at.is_dir() else nullcontext(()) as entries:
                found = [(entry.name, entry.is_symlink()) for entry in entries if entry.is_file()]
            for linked in (each for each, is_link in found if is_link):
                self.path(f"{folder}/{linked}")
            listed[folder] = frozenset(each for each, _ in found)
        return name in listed[folder]

    # The file that is kept -----------------------------------------------------------------------

    def _opened(self) -> Columns:
        """The columns that are kept if they are of these tables, else new ones, kept if they are large."""
        sizes = {path: path.stat().st_size for path in map(self.table_path, (*FIELDS, *OPTIONAL)) if path.exists()}
        if sum(sizes.values()) < SMALL:
            return self._made()
        kept, key = cache_folder() / f"{self._place()}.columns", _key(sizes)
        try:
            columns = open_columns(kept)
            if columns.about["key"] == key:
                return columns
        except (InputError, KeyError):
            pass  # none yet, or of another layout, or cut off: it is made anew
        columns = self._made()
        columns.about["key"] = key
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_columns(kept, columns.about, columns.arrays)
            return open_columns(kept)
        except OSError as error:
            self.unkept = f"{kept.parent}: {error.strerror}"
            return columns

    def _made(self) -> Columns:
        """The columns of the tables; scenes whose cameras are not valid have a problem as well."""
        with _no_garbage():
            columns = link(self.dataroot, read_tables(self.dataroot / self.version))
        problems = columns.about["problems"]
        for k, (name, *_) in enumerate(columns.about["scenes"]):
            try:
                if name not in problems:
                    read_scene(columns, k, self.table_path("calibrated_sensor"))
            except InputError as error:
                problems[name] = [error.where, error.field, error.came, error.expected, error.fix]
        return columns

    def _place(self) -> str:
        return blake2b(os.fsencode(self.dataroot.resolve() / self.version), digest_size=16).hexdigest()


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Without the search for cycles: millions of records have none, and it takes a third of the time to read them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def cache_folder() -> Path:
    """Where indices are kept, one for each version of a dataroot."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vla-drive" / "nuscenes"


def one_of(where: object, field: str, came: str, known: tuple[str, ...]) -> str:
    """`came` if it is known, else an InputError with the nearest name."""
    if came in known:
        return came
    listed = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
    raise InputError(where, field, came, f"one of {listed or 'none'}", nearest(came, known))


def _key(sizes: dict[Path, int]) -> str:
    """What tells tables from others: their names, sizes and times, and pieces of their contents."""
    digest = blake2b(f"{LAYOUT}".encode(), digest_size=16)
    for path, size in sizes.items():
        digest.update(f"{path.name} {size} {path.stat().st_mtime_ns}\n".encode())
        with open(path, "rb") as file:
            for at in dict.fromkeys(np.linspace(0, max(size - SAMPLED, 0), SAMPLES, dtype=np.int64).tolist()):
                file.seek(at)
                digest.update(file.read(SAMPLED))
    return digest.hexdigest()
