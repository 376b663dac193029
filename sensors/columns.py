"""Named arrays in one file that is mapped into memory: opening it reads its head, and using a row the pages around it.

    "VLACOLS1" | length of the head, uint64 | head, JSON | arrays, each at a multiple of 64 bytes

The head says dtype, shape and place of every array, how long the whole file is, and `about`, which is the writer's. A
file that is cut off, or of another kind, is an InputError; nothing in it is ever executed or unpickled.
"""

import json
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sensors.errors import InputError

MAGIC, ALIGNED = b"VLACOLS1", 64
DTYPES = ("bool", "uint8", "int32", "int64", "float64")
MOST_HEAD = 1 << 28


@dataclass(frozen=True)
class Columns:
    """Arrays by name, read-only, and what their writer says about them; `path` where a file holds them.

    Where a file does, another process that is sent them maps the file again, and refuses one that says otherwise.
    """

    about: dict
    arrays: Mapping[str, np.ndarray]
    path: Path | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def strings(self, name: str) -> "Strings":
        """A column that `pack_strings` made."""
        return Strings(self[f"{name}.ends"], self[f"{name}.text"])

    def __reduce__(self):
        return (Columns, (self.about, dict(self.arrays))) if self.path is None else (_again, (self.path, self.about))


class Strings(Sequence):
    """Text by row, UTF-8; ends int64 [M] say where each ends in text uint8."""

    def __init__(self, ends: np.ndarray, text: np.ndarray):
        self._ends, self._text = ends, text

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> str:
        row = range(len(self))[row]
        begin = int(self._ends[row - 1]) if row else 0
        return self._text[begin : int(self._ends[row])].tobytes().decode()


def pack_strings(name: str, values: Sequence[str]) -> dict[str, np.ndarray]:
    """The two arrays of a column of text."""
    texts = [value.encode() for value in values]
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    return {f"{name}.ends": ends, f"{name}.text": np.frombuffer(b"".join(texts), np.uint8)}


def write_columns(path: Path, about: dict, arrays: Mapping[str, np.ndarray]) -> None:
    """Write atomically: whoever opens the path finds the old file or the whole new one."""
    listed, at = {}, 0
    for name, array in arrays.items():
        listed[name] = [array.dtype.name, list(array.shape), at]
        at += -(-array.nbytes // ALIGNED) * ALIGNED
    head = json.dumps({"about": about, "columns": listed, "bytes": at}, separators=(",", ":")).encode()
    head += b" " * (-(len(MAGIC) + 8 + len(head)) % ALIGNED)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(MAGIC + struct.pack("<Q", len(head)) + head)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).data)
                file.write(bytes(-array.nbytes % ALIGNED))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def open_columns(path: Path) -> Columns:
    """What `write_columns` wrote; a file that is not whole, or not one of those, is an InputError."""

    def unusable(came: object) -> InputError:
        return InputError(path, "index", came, "a whole file of columns", "Delete it: it is made again.")

    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file can't be mapped
        raise unusable(error) from None
    begin = len(MAGIC) + 8
    if len(mapped) < begin or mapped[: len(MAGIC)] != MAGIC:
        raise unusable("something else")
    length = struct.unpack("<Q", mapped[len(MAGIC) : begin])[0]
    if length > min(MOST_HEAD, len(mapped) - begin):
        raise unusable(f"{len(mapped)} bytes, cut off")
    try:
        head = json.loads(mapped[begin : begin + length])
        about, listed, size = head["about"], head["columns"], head["bytes"]
        if len(mapped) != begin + length + size:
            raise unusable(f"{len(mapped)} bytes, expected {begin + length + size}")
        arrays = {name: _array(mapped, begin + length, *place) for name, place in listed.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise error if isinstance(error, InputError) else unusable(f"a head that says {error}") from None
    return Columns(about, arrays, path)


def _array(mapped: mmap.mmap, begin: int, dtype: str, shape: list[int], at: int) -> np.ndarray:
    if dtype not in DTYPES or at < 0 or any(n < 0 for n in shape):
        raise ValueError(f"{dtype} {shape} at {at}")
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.zeros(shape, dtype)
    return np.frombuffer(mapped, dtype, count, begin + at).reshape(shape)


def _again(path: Path, about: dict) -> Columns:
    columns = open_columns(path)
    if columns.about != about:
        came, expected = "made anew meanwhile", "what the first process opened"
        raise InputError(path, "index", came, expected, "The tables changed: start again.")
    return columns
