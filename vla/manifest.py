"""The files of a checkpoint: named in `checkpoint.json` with size and sha256, read only if they are as they were.

`checkpoint.json` holds a sha256 of its own other fields too. A folder is written beside its place, flushed to disk,
then renamed; one that it replaces stands for a moment as `.NAME.previous`. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from sensors.errors import InputError

FORMAT = 1
MANIFEST = "checkpoint.json"


def standing(path: Path) -> Path:
    """`path`, or what stands for it while it is replaced."""
    previous = _previous(path)
    return previous if previous.is_dir() and not path.exists() else path


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


def exchange(partial: Path, path: Path) -> None:
    """Put `partial` in the place of `path`, so that at every instant `path` or its `.previous` is whole."""
    previous = _previous(path)
    if path.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(path, previous)
    os.rename(partial, path)
    sync_folder(path.parent)
    shutil.rmtree(previous, ignore_errors=True)


def write_file(path: Path, blob: bytes) -> None:
    with path.open("wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sealed(manifest: dict) -> bytes:
    """The content of a `checkpoint.json`."""
    return json.dumps(manifest | {"sha256": _seal(manifest)}, indent=1, allow_nan=False).encode()


def entry_of(blob: bytes) -> dict:
    """What a manifest says of a file with this content."""
    return {"bytes": len(blob), "sha256": sha256_of(blob)}


def read_manifest(path: Path) -> dict:
    """The parsed and verified `checkpoint.json`."""
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        fix = "Give the folder that `vla train` wrote."
        raise InputError(path, "file", error.strerror, "a readable checkpoint", fix) from error
    except ValueError as error:
        raise InputError(path, "file", f"no JSON ({error})", "a whole checkpoint.json", "Is it cut?") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        came = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(path, "format", came, FORMAT, "It was written by another version.")
    if manifest.get("sha256") != _seal(manifest):
        raise InputError(path, "sha256", _seal(manifest), manifest.get("sha256"), "The file was changed.")
    return manifest


def read_file(path: Path, entry: dict) -> bytes:
    """Content of a file that has the size and the sha256 of its entry."""
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise InputError(path, "file", error.strerror, "a readable file, as checkpoint.json says") from error
    if len(blob) != entry["bytes"]:
        raise InputError(path, "size", f"{len(blob)} bytes", f"{entry['bytes']} bytes", "The file is cut or replaced.")
    if sha256_of(blob) != entry["sha256"]:
        raise InputError(path, "sha256", sha256_of(blob), entry["sha256"], "The file was changed.")
    return blob


def _seal(manifest: dict) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return sha256_of(json.dumps(rest, sort_keys=True).encode())


def sha256_of(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()
