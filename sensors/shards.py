"""A recording as a few large files, a pack, for training at scale: read from front to back, checked, also from afar.

    pack.json              which files there are, how long, their SHA-256, and which scenes each shard holds
    tables.tar             tables, CAN bus files, extensions and maps
    images-00000.tar ...   shards: the images of whole scenes, in order of time

Tar and no columnar format, since JPEGs are compressed already, and in a tar each is one run of bytes that is decoded
where it lies. Every tool opens it, and all files unpacked into one folder are the nuScenes dataroot again.

A pack lies in a folder, or behind any URL that fsspec knows. What is behind one is fetched whole, once a machine, into
the user's cache folder (that of `sensors.nuscenes_index`), where CACHED_BYTES of shards are kept.
Whoever opens a shard first reads all of it and compares its checksum; one that differs is a BrokenFile, each time.
"""

import hashlib
import json
import mmap
import os
import re
import tarfile
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import fsspec

from sensors.errors import BrokenFile, InputError
from sensors.nuscenes_index import MANIFEST, cache_folder

TABLES, FORMAT = "tables.tar", "vla-drive pack 1"
AGAIN = "Copy it again, or pack again."
OPEN = 256  # shards: mapped, so they cost no memory of their own
CACHED_BYTES = 200 << 30
CHUNK, TRIES = 1 << 22, 3
_NAME, _SHA256 = re.compile(r"[\w.-]+\.tar"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Piece:
    """One file of a pack; scenes: keyframes of those whose images it holds."""

    name: str
    bytes: int
    sha256: str
    images: int = 0
    scenes: dict[str, int] = field(default_factory=dict)

    def check(self, where: object) -> "Piece":
        """Self, or an InputError: what a manifest says is not to be trusted before."""
        if not _NAME.fullmatch(self.name):
            raise InputError(where, "name", repr(self.name), "the name of a .tar file beside pack.json")
        if not _SHA256.fullmatch(self.sha256) or type(self.bytes) is not int or self.bytes < 0:
            raise InputError(where, self.name, f"{self.bytes} bytes, SHA-256 {self.sha256}", "a size and a SHA-256")
        return self


@dataclass(frozen=True)
class Pack:
    """What pack.json says of the pack at `place`, a folder or a URL."""

    place: str
    version: str
    tables: Piece
    shards: tuple[Piece, ...]

    def where(self, piece: Piece) -> str:
        return beside(self.place, piece.name)

    def to_json(self) -> str:
        values = {"format": FORMAT, "version": self.version, "tables": asdict(self.tables)}
        return json.dumps(values | {"shards": [asdict(shard) for shard in self.shards]}, indent=1)


def beside(place: str | Path, name: str) -> str:
    """Where a file of a folder or of a URL lies."""
    return f"{str(place).rstrip('/')}/{name}"


def is_url(place: str | Path) -> bool:
    return "://" in str(place)


def is_pack(place: str | Path) -> bool:
    """Whether it is a pack and no dataroot; a URL can be nothing else."""
    return is_url(place) or Path(place, MANIFEST).is_file()


def read_pack(place: str | Path) -> Pack:
    """The pack of a folder or URL; one whose manifest is missing or damaged is an InputError."""
    where = beside(place, MANIFEST)
    with reading(where) as stream:
        content = stream.read()
    try:
        values = json.loads(content)
        if values["format"] != FORMAT:
            raise InputError(where, "format", values["format"], FORMAT, "It was packed by another version.")
        tables, *shards = (Piece(**piece).check(where) for piece in (values["tables"], *values["shards"]))
        return Pack(str(place), values["version"], tables, tuple(shards))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        came = f"{type(error).__name__}: {error}"
        raise InputError(where, "content", came, "what vla data pack writes", AGAIN) from None


@contextmanager
def reading(where: str) -> Iterator[BinaryIO]:
    """A file or URL, opened; one that cannot be opened or read is a BrokenFile."""
    try:
        with fsspec.open(where, "rb") if is_url(where) else Path(where).open("rb") as stream:
            yield stream
    except (ImportError, ValueError) as error:  # of fsspec: a scheme that nobody here knows
        if isinstance(error, InputError):
            raise
        raise InputError(where, "URL", str(error), "one that fsspec can open here") from None
    except OSError as error:
        raise BrokenFile(where, "file", error.strerror or type(error).__name__, "a file that can be read") from None


# What is kept near --------------------------------------------------------------------------------


def tables_folder(pack: Pack) -> Path:
    """The tables, unpacked into the cache folder, where they are found again by their checksum."""
    folder = cache_folder() / "tables" / pack.tables.sha256
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        path = fetch(pack, pack.tables, Path(made) / TABLES)
        inside = Path(made) / "dataroot"
        try:
            with tarfile.open(path, "r:") as tar:
                tar.extractall(inside, filter="data")  # nothing leads out of the folder, nothing but files
        except tarfile.TarError as error:
            raise InputError(pack.where(pack.tables), "content", str(error), "a tar of tables") from None
        with suppress(OSError):  # another process was faster
            inside.rename(folder)
    return folder


def fetch(pack: Pack, piece: Piece, path: Path) -> Path:
    """Copy a file of a pack to `path`, read once from front to back; one with another checksum is a BrokenFile."""
    with reading(pack.where(piece)) as stream, path.open("wb") as copy:
        digest = hashlib.sha256()
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            copy.write(chunk)
    require(pack.where(piece), piece, path.stat().st_size, digest.hexdigest())
    return path


def require(where: str, piece: Piece, size: int, sha256: str) -> None:
    """A BrokenFile if a file is not what the manifest says."""
    if (size, sha256) != (piece.bytes, piece.sha256):
        both = (size, sha256), (piece.bytes, piece.sha256)
        came, expected = (f"{count} bytes, SHA-256 {digest[:12]}..." for count, digest in both)
        raise BrokenFile(where, "checksum", came, f"{expected} as {MANIFEST} says", AGAIN)


def _near(pack: Pack, piece: Piece) -> Path:
    """A shard on this machine's disk."""
    if not is_url(pack.place):
        return Path(pack.where(piece))
    path = _kept(piece)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(path.parent, piece.bytes)
        with tempfile.TemporaryDirectory(dir=path.parent) as made:
            fetch(pack, piece, Path(made) / piece.name).replace(path)
    with suppress(OSError):
        os.utime(path)
    return path


def _kept(piece: Piece) -> Path:
    return cache_folder() / "shards" / f"{piece.sha256}.tar"


def _make_room(folder: Path, size: int) -> None:
    """Remove the shards that were used least lately; who has one open goes on reading it."""
    kept = sorted(((path.stat().st_mtime, path) for path in folder.glob("*.tar")), reverse=True)
    for _, path in kept:
        size += path.stat().st_size
        if size > CACHED_BYTES:
            path.unlink(missing_ok=True)


# Reading ------------------------------------------------------------------------------------------


class Shard:
    """A shard that is as its manifest says: files by name, where they lie in it."""

    def __init__(self, where: str, path: Path, piece: Piece):
        try:
            with path.open("rb") as stream:
                self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: nothing in it
            raise BrokenFile(where, "file", str(error), "a shard that can be read") from None
        self._bytes.madvise(mmap.MADV_SEQUENTIAL)
        digest = hashlib.sha256()
        for start in range(0, len(self._bytes), CHUNK):
            digest.update(memoryview(self._bytes)[start : start + CHUNK])
        require(where, piece, len(self._bytes), digest.hexdigest())
        self._bytes.madvise(mmap.MADV_NORMAL)
        try:
            with tarfile.open(fileobj=self._bytes, mode="r:") as tar:
                self._places = {member.name: (member.offset_data, member.size) for member in tar if member.isfile()}
        except tarfile.TarError as error:
            raise BrokenFile(where, "content", str(error), "a tar of images") from None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._places)

    def read(self, name: str) -> bytes | None:
        """Of a file; None where there is none of this name."""
        if name not in self._places:
            return None
        start, size = self._places[name]
        return self._bytes[start : start + size]


class Shards:
    """Files of a pack's scenes. Another process that is given it opens its own."""

    def __init__(self, pack: Pack):
        self.pack = pack
        self._of = {scene: shard for shard in pack.shards for scene in shard.scenes}
        self._opened: OrderedDict[str, Shard | BrokenFile] = OrderedDict()

    def __reduce__(self):
        return Shards, (self.pack,)

    def of(self, scene: str) -> Piece:
        """The shard with a scene's images."""
        if scene not in self._of:
            expected = f"one of the {len(self._of)} that {MANIFEST} lists"
            raise InputError(self.pack.place, "scene", scene, expected, "Pack the recording again.")
        return self._of[scene]

    def read(self, scene: str, name: str) -> tuple[str, bytes | None]:
        """(where it lies, content) of a file; None where there is none. A shard that is broken is a BrokenFile."""
        piece = self.of(scene)
        shard = self.open(piece)
        return f"{self.pack.where(piece)}/{name}", shard.read(name)

    def open(self, piece: Piece) -> Shard:
        """The shard, checked; that it is broken is found out once and remembered."""
        if piece.name not in self._opened:
            self._opened[piece.name] = self._tried(piece)
            if len(self._opened) > OPEN:
                self._opened.popitem(last=False)
        self._opened.move_to_end(piece.name)
        shard = self._opened[piece.name]
        if isinstance(shard, BrokenFile):
            raise shard
        return shard

    def _tried(self, piece: Piece) -> Shard | BrokenFile:
        """From afar it is tried TRIES times: lines fail, and what is kept near may be damaged."""
        afar = is_url(self.pack.place)
        for _ in range(TRIES if afar else 1):
            try:
                path = _near(self.pack, piece)
                return Shard(self.pack.where(piece), path, piece)
            except BrokenFile as error:
                broken = error
                if afar:
                    _kept(piece).unlink(missing_ok=True)
        return broken
