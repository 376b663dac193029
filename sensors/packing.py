"""A nuScenes dataroot made into a pack (`sensors.shards`), and packs looked through.

Packed are the key-frame images of cameras and all that `sensors.nuscenes_source` reads beside them; sweeps and lidar
stay behind. The same recording gives the same bytes. pack.json is written last: a folder without it is no pack, and
whoever was interrupted packs again.
"""

import hashlib
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sensors.errors import BrokenFile, InputError
from sensors.nuscenes_extension import FOLDER as EXTENSIONS
from sensors.nuscenes_index import NuscenesIndex
from sensors.nuscenes_source import jpeg_size
from sensors.pack_source import PackSource
from sensors.shards import MANIFEST, TABLES, Pack, Piece, Shards, fetch, read_pack, tables_folder

MB = 1_000_000
HEADER = 512  # bytes of a tar before each file, and what a file is padded to


class _Digest:
    """What is written, to a file and to its checksum."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.sha256, self.size = stream, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self.stream.write(data)

    def tell(self) -> int:
        return self.size


def pack(
    dataroot: Path,
    version: str,
    out: Path,
    shard_bytes: int = 256 * MB,
    say: Callable[[str], None] = lambda text: None,
) -> Pack:
    """Pack a dataroot into the folder `out`, whole scenes into shards of about so many bytes."""
    index = NuscenesIndex(dataroot, version)
    if not index.scenes:
        raise InputError(index.table_path("scene"), "scenes", "none", "at least one to pack")
    if (out / MANIFEST).exists():
        raise InputError(out, MANIFEST, "a pack is there already", "another folder", "Or delete it.")
    if out.exists() and not out.is_dir():
        raise InputError(out, "folder", "a file", "a folder to pack into")
    out.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, scenes in enumerate(_groups(index, shard_bytes)):
        files = [file for found in scenes.values() for file in found]
        keyframes = {scene: len(index.scene(scene).keyframes) for scene in scenes}
        shards.append(_write(index, out / f"images-{number:05d}.tar", files, keyframes))
        say(f"{shards[-1].name}: {len(scenes)} scenes, {len(files)} images, {shards[-1].bytes / MB:.1f} MB")
    tables = _write(index, out / TABLES, _tables(index))
    for stale in set(out.glob("images-*.tar")) - {out / shard.name for shard in shards}:  # of one who was interrupted
        stale.unlink()
    made = Pack(str(out), version, tables, tuple(shards))
    part = out / f"{MANIFEST}.part"
    part.write_text(made.to_json())
    _sync(part)
    part.replace(out / MANIFEST)
    return made


def _groups(index: NuscenesIndex, shard_bytes: int) -> Iterator[dict[str, list[str]]]:
    """Names of the image files of each scene of a shard, by scene."""
    group: dict[str, list[str]] = {}
    size = 0
    for scene in index.scenes:
        group[scene] = []
        for keyframe in index.scene(scene).keyframes:
            for capture in keyframe.captures.values():
                path = index.path(capture.filename)
                if capture.channel.startswith("CAM_") and path.is_file():
                    group[scene].append(capture.filename)
                    size += path.stat().st_size + 2 * HEADER
        if size >= shard_bytes:
            yield group
            group, size = {}, 0
    if group:
        yield group


def _tables(index: NuscenesIndex) -> list[str]:
    """Names of all files but sensors' that concern the recording's scenes."""
    root, scenes = index.dataroot, set(index.scenes)
    rasters = {index.map_path(scene) for scene in scenes} - {None}
    names = [path.relative_to(root.resolve()) for path in rasters]
    names += [path.relative_to(root) for path in (root / index.version).glob("*.json")]
    for folder in ("can_bus", EXTENSIONS):
        files = (root / folder).glob("*.json")
        names += [path.relative_to(root) for path in files if scenes & _beginnings(path.stem)]
    return sorted(name.as_posix() for name in names)


def _beginnings(stem: str) -> set[str]:
    """What a name is, or begins with before an underscore: the scene, where a message follows it."""
    return {stem} | {stem[:k] for k, letter in enumerate(stem) if letter == "_"}


def _write(index: NuscenesIndex, path: Path, files: list[str], scenes: dict[str, int] | None = None) -> Piece:
    """A tar of files of the dataroot, alike whenever and by whomever it is written."""
    part = path.with_suffix(".part")
    with part.open("wb") as stream:
        digest = _Digest(stream)
        with tarfile.open(fileobj=digest, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for name in files:
                source = index.path(name)
                member = tarfile.TarInfo(name)
                member.size, member.mode = source.stat().st_size, 0o644
                with source.open("rb") as content:
                    tar.addfile(member, content)
    _sync(part)
    part.replace(path)
    images = len(files) if scenes is not None else 0
    return Piece(path.name, digest.size, digest.sha256.hexdigest(), images, scenes or {})


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


# Looking through ----------------------------------------------------------------------------------


def verify(place: str | Path) -> Iterator[tuple[str, str]]:
    """(file, what is wrong with it or "") of every file of a pack, each read from front to back: its checksum, that all
    its images are whole, and that the tables can be read."""
    found = read_pack(place)
    yield found.tables.name, _complaint(lambda: _check_tables(found))
    shards = Shards(found)
    for piece in found.shards:
        yield piece.name, _complaint(lambda piece=piece: _check_shard(shards, piece))


def _complaint(check: Callable[[], None]) -> str:
    try:
        check()
    except InputError as error:
        return str(error)
    return ""


def _check_tables(found: Pack) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fetch(found, found.tables, Path(folder) / TABLES)
    index, listed = NuscenesIndex(tables_folder(found), found.version), Shards(found)
    for scene in index.scenes:
        listed.of(scene)


def _check_shard(shards: Shards, piece: Piece) -> None:
    shard, where = shards.open(piece), shards.pack.where(piece)
    if len(shard.names) != piece.images:
        raise BrokenFile(where, "images", len(shard.names), f"{piece.images} as {MANIFEST} says")
    for name in shard.names:
        if jpeg_size(shard.read(name)) is None:
            raise BrokenFile(f"{where}/{name}", "image", "not whole", "a complete JPEG", "It was packed like that.")


@dataclass(frozen=True)
class Statistics:
    """figures by name; locations: scenes of each, the most frequent first."""

    figures: dict[str, float]
    locations: dict[str, int]

    def lines(self) -> list[str]:
        """As the terminal shows it."""
        lines = [f"{name:24s} {value:14,.4g}" for name, value in self.figures.items()]
        return [*lines, *(f"scenes of {place:14s} {count:14,}" for place, count in self.locations.items())]


def statistics(place: str | Path) -> Statistics:
    """What a pack holds, by its manifest and tables alone."""
    found = read_pack(place)
    source = PackSource(place, found.version)
    sizes = [shard.bytes for shard in found.shards]
    keyframes = sum(count for shard in found.shards for count in shard.scenes.values())
    spans_us = [int(times[-1] - times[0]) for times in map(source.frame_times_us, source.scenes)]
    extensions = [source.extension(scene) for scene in source.scenes]
    figures = {
        "shards": len(sizes),
        "shard_mb.mean": sum(sizes) / len(sizes) / MB,
        "shard_mb.max": max(sizes) / MB,
        "gb": (sum(sizes) + found.tables.bytes) / 1000 / MB,
        "scenes": len(source.scenes),
        "hours": sum(spans_us) / 3.6e9,
        "keyframes": keyframes,
        "images": sum(shard.images for shard in found.shards),
        "kb_an_image": sum(sizes) / max(1, sum(shard.images for shard in found.shards)) / 1000,
        "scenes.simulated": sum(extension is not None for extension in extensions),
        "reasons": sum(len(extension.reasons) for extension in extensions if extension is not None),
    }
    places = Counter(source.scene(scene).location for scene in source.scenes)
    return Statistics({name: float(value) for name, value in figures.items()}, dict(places.most_common()))
