"""The v1.0 tables of a nuScenes dataroot, read piece by piece into columns, and checked record by record.

Only what the stack uses is kept. A table, field or token that is missing or wrong is an InputError that names the file,
the record and the field. Layout: https://www.nuscenes.org/nuscenes#data-format.

One table of ours stands beside the official ones, `camera_distortion.json`, rows {token, calibrated_sensor_token,
model, coefficients} with the names of `sensors.camera`. nuScenes itself ships undistorted images and has no such table.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np

from sensors.errors import InputError
from sensors.frames import UNIT_TOLERANCE

PIECE = 1 << 24  # bytes of a table that are read, and are objects of Python, at a time
_BETWEEN = re.compile(rb"\}\s*,")


@dataclass(frozen=True)
class To:
    """The token of a record in another table."""

    table: str


@dataclass(frozen=True)
class Numbers:
    """So many finite numbers."""

    count: int
    unit: bool = False  # a quaternion


ROTATION, TRANSLATION = Numbers(4, unit=True), Numbers(3)
POSE = {"rotation": ROTATION, "translation": TRANSLATION}
# A table stands below those it refers to. A list stays as it is; whoever needs it looks into it.
FIELDS: dict[str, dict[str, object]] = {
    "category": {"name": str},
    "instance": {"category_token": To("category")},
    "sensor": {"channel": str, "modality": str},
    "calibrated_sensor": {"sensor_token": To("sensor"), **POSE, "camera_intrinsic": list},
    "log": {"location": str},
    "scene": {"name": str, "description": str, "log_token": To("log"), "first_sample_token": str, "nbr_samples": int},
    "sample": {"timestamp": int, "next": str, "scene_token": To("scene")},
    "ego_pose": {"timestamp": int, **POSE},
    "sample_data": {
        "sample_token": To("sample"),
        "ego_pose_token": To("ego_pose"),
        "calibrated_sensor_token": To("calibrated_sensor"),
        **dict.fromkeys(("timestamp", "width", "height"), int),
        "is_key_frame": bool,
        "filename": str,
    },
    "sample_annotation": {
        "sample_token": To("sample"),
        "instance_token": To("instance"),
        **POSE,
        "size": Numbers(3),
        **dict.fromkeys(("prev", "next"), str),
    },
    "map": {"filename": str, "log_tokens": list},
}
OPTIONAL = {"camera_distortion": {"calibrated_sensor_token": str, "model": str, "coefficients": list}}


@dataclass
class Table:
    """One table. columns: of text and lists, lists; of To, rows int32 [M]; of numbers int64 or float64 [M, ...]."""

    path: Path
    tokens: list[str] = field(default_factory=list)
    columns: dict[str, list | np.ndarray] = field(default_factory=dict)
    row_of: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, name: str):
        return self.columns[name]

    def rows(self, tokens: Sequence[str], referrer: "Table", name: str, optional: bool = False) -> np.ndarray:
        """Rows int32 [M] of the tokens in a field of another table's records; -1 for "" where it is optional."""
        rows = np.fromiter(map(self.row_of.get, tokens, [-1] * len(tokens)), np.int32, len(tokens))
        for k in np.flatnonzero(rows < 0):
            if not (optional and tokens[k] == ""):
                raise dangling(referrer.path, f"{name} of {referrer.tokens[k]}", tokens[k], self.path)
        return rows


def read_json(path: Path) -> list:
    """The JSON list in a file; a file that is missing, cut off or no list is an InputError."""
    try:
        return _list_of(path, path.read_bytes())
    except OSError as error:
        raise _no_file(path, error) from error


def read_tables(folder: Path) -> dict[str, Table]:
    """All tables of a version's folder by name."""
    tables: dict[str, Table] = {}
    for name, fields in FIELDS.items():
        tables[name] = _read(folder / f"{name}.json", fields, tables)
    for name, fields in OPTIONAL.items():
        if (folder / f"{name}.json").exists():
            tables[name] = _read(folder / f"{name}.json", fields, tables)
    return tables


def check_inside(where: object, filename: str, dataroot: Path) -> None:
    """An InputError unless a file name stays inside the dataroot as far as its words tell."""
    parts = PurePosixPath(filename).parts
    if not parts or filename[0] == "/" or ".." in parts or "\0" in filename:
        expected, fix = f"a path inside {dataroot}", "Links may not lead out of it."
        raise InputError(where, "filename", filename, expected, fix)


def dangling(where: object, name: str, token: str, table: Path) -> InputError:
    return InputError(where, name, repr(token), f"the token of a record in {table.name}")


def _read(path: Path, fields: dict[str, object], tables: dict[str, Table]) -> Table:
    table = Table(path)
    parts: dict[str, list] = {name: [] for name in fields}
    for rows in _pieces(path):
        tokens = _values(path, rows, len(table), "token", str)
        for name, kind in fields.items():
            wanted = str if isinstance(kind, To) else list if isinstance(kind, Numbers) else kind
            values = _values(path, rows, len(table), name, wanted)
            parts[name].append(_column(path, tokens, values, name, kind, tables))
        table.tokens += tokens
    for name, kind in fields.items():
        if kind in (str, list):
            table.columns[name] = list(chain.from_iterable(parts[name]))
        else:
            empty = _column(path, [], [], name, kind, tables)
            table.columns[name] = np.concatenate([empty, *parts[name]])
        parts[name] = []
    table.row_of = dict(zip(table.tokens, range(len(table)), strict=True))
    if len(table.row_of) != len(table):
        raise InputError(path, "token", f"{len(table) - len(table.row_of)} repeated", "unique tokens")
    return table


def _values(path: Path, rows: list, before: int, name: str, wanted: type) -> list:
    """A field of these records; one that is no object, lacks it, or has it of another type is an InputError."""
    try:
        values = [row[name] for row in rows]
        if set(map(type, values)) <= {wanted}:  # a bool is no time stamp
            return values
    except (KeyError, TypeError, IndexError):
        pass  # found below
    for i, row in enumerate(rows, before):
        if not isinstance(row, dict):
            raise InputError(path, f"record {i}", type(row).__name__, "an object")
        if type(row.get(name)) is not wanted:
            came = repr(row[name]) if name in row else "no such field"
            raise InputError(path, f"{name} of record {i} ({row.get('token')})", came, wanted.__name__)
    raise AssertionError("one of them is wrong")


def _column(path: Path, tokens: list[str], values: list, name: str, kind: object, tables: dict[str, Table]):
    """One field of a piece, as `Table` has it."""
    if isinstance(kind, To):
        return tables[kind.table].rows(values, Table(path, tokens), name)
    if isinstance(kind, Numbers):
        return _numbers(path, tokens, values, name, kind)
    if kind is int:
        try:
            return np.array(values, np.int64)
        except OverflowError:
            k = next(k for k, value in enumerate(values) if abs(value) >> 63)
            raise InputError(path, f"{name} of {tokens[k]}", values[k], "an integer of 64 bits") from None
    return values if kind in (str, list) else np.array(values, bool)


def _numbers(path: Path, tokens: list[str], values: list, name: str, kind: Numbers) -> np.ndarray:
    """float64 [M, count]; a record of another count, not finite or no unit quaternion is an InputError."""
    array = as_numbers(values, kind.count)
    if array is None:
        k = next(k for k, value in enumerate(values) if as_numbers([value], kind.count) is None)
        raise InputError(path, f"{name} of {tokens[k]}", values[k], f"{kind.count} finite numbers")
    if kind.unit:
        norm = np.linalg.norm(array, axis=1)
        bad = np.flatnonzero(np.abs(norm - 1) > UNIT_TOLERANCE)
        if len(bad):
            came = f"{values[bad[0]]} of length {norm[bad[0]]:.6g}"
            raise InputError(path, f"{name} of {tokens[bad[0]]}", came, "a unit quaternion (w, x, y, z)")
    return array


def as_numbers(values: list, *shape: int) -> np.ndarray | None:
    """float64 [M, *shape], or None if these are no such numbers, all of them finite."""
    try:
        array = np.array(values).reshape(len(values), *shape) if values else np.zeros((0, *shape))
    except ValueError:
        return None
    return array.astype(np.float64) if array.dtype.kind in "iuf" and np.isfinite(array).all() else None


def _pieces(path: Path) -> Iterator[list]:
    """The records of a table in lists: all of a small one, of a large one what so many bytes hold."""
    try:
        with open(path, "rb") as file:
            yield from _pieces_of(path, file.read)
    except OSError as error:
        raise _no_file(path, error) from error


def _pieces_of(path: Path, read: Callable[..., bytes]) -> Iterator[list]:
    """A large table is cut after records; where that fails, as with objects in objects, the rest is one piece."""
    rest = read(PIECE)
    while rest[:1] == b"[" and (more := read(PIECE)):
        at = _last_comma(rest)
        try:
            rows = json.loads(rest[:at] + b"]") if at else None
        except ValueError:
            rows = None
        if rows is None:
            rest += more
            break
        yield rows
        rest = b"[" + rest[at + 1 :] + more
    yield _list_of(path, rest + read())


def _last_comma(content: bytes) -> int:
    """Where the last comma after an object is, 0 without one."""
    at = content.rfind(b"}")
    while at > 0:
        found = _BETWEEN.match(content, at)
        if found:
            return found.end() - 1
        at = content.rfind(b"}", 0, at)
    return 0


def _list_of(path: Path, content: bytes) -> list:
    try:
        value = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        came = f"{path.stat().st_size} bytes that are not JSON: {error}"
        raise InputError(path, "content", came, "a complete JSON list", "The file is cut off or damaged.") from error
    if not isinstance(value, list):
        raise InputError(path, "content", type(value).__name__, "a JSON list of records")
    return value


def _no_file(path: Path, error: OSError) -> InputError:
    return InputError(path, "file", error.strerror, "a JSON list of records", "Is the download complete?")
