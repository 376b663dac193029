"""Recordings as a nuScenes dataroot: v1.0 tables, camera JPEGs, map raster and CAN bus files.

The official devkit (`NuScenes`, `NuScenesCanBus`) and `sensors.nuscenes_source` read back what is written: numbers to
the last bit, images as the JPEG coder left them, rotations as unit quaternions.

A scene becomes part of the dataroot whole or not at all. Files are staged in `.<version>.staging/`, by any process, and
moved into place when the scene is complete; then a new set of tables is written to `.<version>.<k>/` and `<version>`, a
symbolic link, is turned to it in one step. Whatever stops the process before that step leaves the old tables, which
name none of the new files; the next recording clears them away, led by the staging folder, and appends.

What nuScenes has no place for: the camera's distortion goes to `camera_distortion.json` (`sensors.nuscenes_tables`),
the ego pose at the instant of a sample to the ego_pose record with the sample's token. What a recording doesn't know
is left empty and not made up: no visibility, no attributes, -1 lidar and radar points, null in CAN bus messages.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sensors.camera import Camera
from sensors.errors import InputError
from sensors.nuscenes_can import REFUSED
from sensors.nuscenes_extension import FOLDER as EXTENSION_FOLDER
from sensors.nuscenes_recorder import APPENDED, SHARED, SceneRecorder, StagedScene, map_png, write_file
from sensors.nuscenes_tables import read_json

SCENE_NAME = re.compile(r"scene-\d{4}")  # what NuScenesCanBus insists on
NOTES = "recording.json"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


class NuscenesWriter:
    """Appends scenes to `<dataroot>/<version>`, which it makes; tables that it did not write are refused."""

    def __init__(self, dataroot: str | Path, version: str, jpeg_quality: int = 95):
        self.dataroot, self.version, self.jpeg_quality = Path(dataroot), version, jpeg_quality
        if not re.fullmatch(r"\w[\w.-]*", version):
            raise InputError("NuscenesWriter", "version", version, "a folder name such as v1.0-sim")
        if not 1 <= jpeg_quality <= 100:
            raise InputError("NuscenesWriter", "jpeg_quality", jpeg_quality, "1 to 100")
        self.tables = self.dataroot / version
        if self.tables.exists() and not self.tables.is_symlink():
            raise InputError(self.tables, "tables", "a folder from elsewhere", "none, or one that a recording made")
        self._staging = self.dataroot / f".{version}.staging"

    @property
    def scenes(self) -> tuple[str, ...]:
        """Names of the complete scenes."""
        return tuple(row["name"] for row in self._rows("scene"))

    def free_scene_name(self) -> str:
        """The lowest scene-0001, scene-0002, ... that no version of the dataroot holds and the devkit accepts."""
        taken = self._taken()
        names = (f"scene-{k:04d}" for k in range(1, 10_000) if k not in REFUSED)
        for name in names:
            if name not in taken:
                return name
        raise InputError(self.dataroot, "scenes", "every name up to scene-9999", "one still free")

    @contextmanager
    def scene(
        self,
        name: str,
        description: str,
        cameras: tuple[Camera, ...],
        location: str,
        drivable_mask: np.ndarray,
        spelling: Mapping[bytes, tuple[float, ...]] | None = None,
    ) -> Iterator[SceneRecorder]:
        """A recorder of one scene; when the block ends normally it is committed, otherwise nothing of it stays.

        drivable_mask  as `map_png` takes it
        spelling       quaternions (w, x, y, z) by the bytes of their rotation matrices [3, 3], which do not give back
                       the last bits of what came as a quaternion

        A full disk is an InputError; so is a second recorder on the same version.
        """
        png = map_png(drivable_mask)
        with self.session(name):
            self._check_name(name)
            starts_us = frozenset(row["timestamp"] for row in self._rows("sample") if not row["prev"])
            recorder = self.recorder(name, cameras, starts_us, spelling)
            yield recorder
            self.commit([recorder.finish(description, location, png)])

    @contextmanager
    def session(self, what: str = "what was not yet whole") -> Iterator[None]:
        """Nobody else appends meanwhile. What an interrupted recording left, and what this one stages but does not
        commit, is cleared away. A full disk is an InputError that says that `what` was discarded."""
        try:
            self.dataroot.mkdir(parents=True, exist_ok=True)
            with _lock(self.dataroot / f".{self.version}.lock"):
                self._clear()
                try:
                    yield
                finally:
                    self._clear()
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            fix = f"{what} was discarded, complete scenes stay. Make room and run again: it appends."
            where = error.filename or self.dataroot
            raise InputError(where, "file", error.strerror, "room to write it", fix) from error

    def recorder(
        self,
        name: str,
        cameras: tuple[Camera, ...],
        starts_us: frozenset[int] = frozenset(),
        spelling: Mapping[bytes, tuple[float, ...]] | None = None,
    ) -> SceneRecorder:
        """A recorder that stages a scene while some process has a session; `starts_us`: when no scene may begin."""
        about = self.jpeg_quality, starts_us, spelling or {}
        return SceneRecorder(self._staging / name, self.version, name, cameras, *about)

    def commit(self, staged: Sequence[StagedScene], notes: bytes | None = None) -> None:
        """Make staged scenes part of the dataroot, in this order, all in one step. Within a session.

        notes  content of `recording.json` beside the tables, None to leave it as it is
        """
        os.sync()
        for scene in staged:
            self._move_into_place(scene.name)
        old = self.tables.resolve().name
        k = int(old.rsplit(".", 1)[1]) + 1 if self.tables.exists() else 1
        new = self.dataroot / f".{self.version}.{k:06d}"
        new.mkdir()
        for table in APPENDED:
            rows = [row for scene in staged for row in scene.rows[table]]
            write_file(new / f"{table}.json", _appended(self.tables / f"{table}.json", rows))
        for table in SHARED:
            rows = [row for scene in staged for row in scene.rows[table]]
            write_file(new / f"{table}.json", _table(_merged(self._rows(table), rows)))
        notes = self.notes() if notes is None else notes
        if notes is not None:
            write_file(new / NOTES, notes)
        _sync_folder(new)
        link = self._staging / "link"
        self._staging.mkdir(exist_ok=True)
        link.symlink_to(new.name)
        os.replace(link, self.tables)
        _sync_folder(self.dataroot)
        if k > 1:
            shutil.rmtree(self.dataroot / old, ignore_errors=True)

    def notes(self) -> bytes | None:
        """What the last commit that had any left in `recording.json`."""
        path = self.tables / NOTES
        return path.read_bytes() if path.exists() else None

    # Names and leftovers

    def _rows(self, table: str) -> list[dict]:
        path = self.tables / f"{table}.json"
        return read_json(path) if path.exists() else []

    def _taken(self) -> set[str]:
        """Files under samples/ and can_bus/ carry no version, so a scene's name must be new to the whole dataroot."""
        tables = [path for path in self.dataroot.glob("*/scene.json") if not path.parent.name.startswith(".")]
        names = {row["name"] for path in tables for row in read_json(path)}
        with_can = {path.name[:10] for path in self.dataroot.glob("can_bus/scene-*")}
        return names | (with_can - {path.name for path in self._staging.glob("*")})

    def _check_name(self, name: str) -> None:
        if not SCENE_NAME.fullmatch(name) or int(name[-4:]) in REFUSED:
            expected = "scene- and four digits, a number that the official CAN bus reader accepts"
            raise InputError(self.dataroot, "scene name", name, expected, f"{self.free_scene_name()} is free.")
        if name in self._taken():
            raise InputError(self.dataroot, "scene name", f"{name}, which is there already", "a new name")

    def _clear(self) -> None:
        """Remove what an interrupted recording left: tables not in use, and every file of a scene that has a staging
        folder but is in no table."""
        for name in {path.name for path in self._staging.glob("*")} - set(self.scenes):
            for pattern in ("samples/*/{}__*", "sweeps/*/{}__*", "can_bus/{}_*", EXTENSION_FOLDER + "/{}.json"):
                for path in self.dataroot.glob(pattern.format(name)):
                    path.unlink()
        shutil.rmtree(self._staging, ignore_errors=True)
        in_use = self.tables.resolve().name
        for path in self.dataroot.glob(f".{self.version}.*"):
            if re.fullmatch(r"\d+", path.name[len(self.version) + 2 :]) and path.name != in_use:
                shutil.rmtree(path, ignore_errors=True)

    # Committing

    def _move_into_place(self, name: str) -> None:
        folders = set()
        for staged in sorted(path for path in (self._staging / name).rglob("*") if path.is_file()):
            final = self.dataroot / staged.relative_to(self._staging / name)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, final)
            folders.add(final.parent)
        for folder in folders:
            _sync_folder(folder)


def _table(rows: list[dict]) -> bytes:
    return ("[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in rows) + "\n]").encode()


def _appended(path: Path, rows: list[dict]) -> bytes:
    """The table in `path` with rows at its end; nothing that is there is coded anew."""
    old = path.read_bytes() if path.exists() else _table([])
    if not old.endswith(b"\n]"):
        raise InputError(path, "content", f"{len(old)} bytes that end in {old[-2:]!r}", "a table that a recording made")
    if not rows or len(old) == len(_table([])):
        return _table(rows) if rows else old
    return old[:-2] + b",\n" + _table(rows)[2:]


def _merged(old: list[dict], new: list[dict]) -> list[dict]:
    """Old and new rows by token; a shared map collects its logs."""
    rows = {row["token"]: row for row in old}
    for row in new:
        known = rows.setdefault(row["token"], row)
        if known is not row and "log_tokens" in row:
            known["log_tokens"] = known["log_tokens"] + row["log_tokens"]
    return list(rows.values())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time; the system lets go of it however the process ends."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(path, "lock", "held by another recording", "one recording at a time") from error
        yield
