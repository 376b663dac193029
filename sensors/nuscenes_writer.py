"""Recordings as a nuScenes dataroot: v1.0 tables, camera JPEGs, map raster and CAN bus files.

The official devkit (`NuScenes`, `NuScenesCanBus`) and `sensors.nuscenes_source` read back what is written: numbers to
the last bit, images as the JPEG coder left them, rotations as unit quaternions.

A scene becomes part of the dataroot whole or not at all. Files are staged in `.<version>.staging/` and moved into place
when the scene is complete; then a new set of tables is written to `.<version>.<k>/` and `<version>`, a symbolic link,
is turned to it in one step. Whatever stops the process before that step leaves the old tables, which name none of the
new files; the next recording clears them away, led by the staging folder, and appends.

What nuScenes has no place for: the camera's distortion goes to `camera_distortion.json` (`sensors.nuscenes_index`),
the ego pose at the instant of a sample to the ego_pose record with the sample's token. What a recording doesn't know
is left empty and not made up: no visibility, no attributes, -1 lidar and radar points, null in CAN bus messages.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sensors.camera import Camera
from sensors.errors import InputError
from sensors.nuscenes_index import read_json
from sensors.nuscenes_recorder import APPENDED, SHARED, SceneRecorder, write_file

SCENE_NAME = re.compile(r"scene-\d{4}")  # what NuScenesCanBus insists on
NO_CAN_BUS = frozenset((*range(161, 169), *range(170, 177), *range(309, 315)))  # numbers that NuScenesCanBus refuses
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
        names = (f"scene-{k:04d}" for k in range(1, 10_000) if k not in NO_CAN_BUS)
        for name in names:
            if name not in taken:
                return name
        raise InputError(self.dataroot, "scenes", "every name up to scene-9999", "one still free")

    @contextmanager
    def scene(
        self, name: str, description: str, cameras: tuple[Camera, ...], location: str, drivable_mask: np.ndarray
    ) -> Iterator[SceneRecorder]:
        """A recorder; when the block ends normally the scene is committed, otherwise nothing of it stays.

        drivable_mask  uint8 [H, W], 255 where one may drive, at 0.1 m per pixel; as the devkit's MapMask has it, world
                       (x, y) in metres is column 10 x, row H - 10 y, so the world's positive quadrant is shown

        A full disk is an InputError; so is a second recorder on the same version.
        """
        if drivable_mask.ndim != 2 or drivable_mask.dtype != np.uint8:
            came = f"{drivable_mask.dtype} {drivable_mask.shape}"
            raise InputError(name, "drivable_mask", came, "uint8 [H, W]")
        try:
            self.dataroot.mkdir(parents=True, exist_ok=True)
            with _lock(self.dataroot / f".{self.version}.lock"):
                self._clear()
                self._check_name(name)
                try:
                    starts_us = frozenset(row["timestamp"] for row in self._rows("sample") if not row["prev"])
                    recorder = SceneRecorder(
                        self._staging / name, self.version, name, cameras, self.jpeg_quality, starts_us
                    )
                    yield recorder
                    rows = recorder.finish(description, location, drivable_mask)
                    self._move_into_place(name)
                    self._commit(name, rows)
                finally:
                    self._clear()
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            fix = f"{name} was discarded, complete scenes stay. Make room and run again: it appends."
            where = error.filename or self.dataroot
            raise InputError(where, "file", error.strerror, "room to write it", fix) from error

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
        if not SCENE_NAME.fullmatch(name) or int(name[-4:]) in NO_CAN_BUS:
            expected = "scene- and four digits, a number that the official CAN bus reader accepts"
            raise InputError(self.dataroot, "scene name", name, expected, f"{self.free_scene_name()} is free.")
        if name in self._taken():
            raise InputError(self.dataroot, "scene name", f"{name}, which is there already", "a new name")

    def _clear(self) -> None:
        """Remove what an interrupted recording left: tables not in use, and every file of a scene that has a staging
        folder but is in no table."""
        for name in {path.name for path in self._staging.glob("*")} - set(self.scenes):
            for path in (*self.dataroot.glob(f"samples/*/{name}__*"), *self.dataroot.glob(f"can_bus/{name}_*")):
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

    def _commit(self, name: str, rows: dict[str, list[dict]]) -> None:
        """A new set of tables beside the old one, then the link turned: the one step that counts."""
        old = self.tables.resolve().name
        k = int(old.rsplit(".", 1)[1]) + 1 if self.tables.exists() else 1
        new = self.dataroot / f".{self.version}.{k:06d}"
        new.mkdir()
        for table in APPENDED:
            write_file(new / f"{table}.json", _appended(self.tables / f"{table}.json", rows[table]))
        for table in SHARED:
            write_file(new / f"{table}.json", _table(_merged(self._rows(table), rows[table])))
        _sync_folder(new)
        link = self._staging / name / "link"
        link.symlink_to(new.name)
        os.replace(link, self.tables)
        _sync_folder(self.dataroot)


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
