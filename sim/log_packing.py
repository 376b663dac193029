"""How the columns of an episode log lie in its file: much smaller, and on reading exactly what they were.

    text      every different word once, and its number in each row
    motion    of the others, where it is in whole ticks, as a recorder rounds it: sorted by actor, second differences
              from sight to sight, bytes of equal weight together, since nearly all of the upper ones are zero

What fits neither stays as it is.
"""

from collections.abc import Mapping

import numpy as np

# Ticks in a metre or radian of what is recorded of the others: a tenth of a millimetre, and over 100 m one of a radian.
MOTION = {"actor_xyyaw_in_world": np.array([1e4, 1e4, 1e5]), "actor_speed_mps": np.array(1e4)}
WHO, WHEN = "actor_id", "actor_frame"
WORDS, NUMBERS, TICKS = ".words", ".numbers", ".ticks"


def in_ticks(name: str, values: np.ndarray) -> np.ndarray:
    """Values of a column of MOTION rounded to its ticks."""
    return np.rint(values * MOTION[name]) / MOTION[name]


def pack(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays to write for these columns."""
    packed: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        if column.dtype.kind == "U" and len(column):
            words, numbers = np.unique(column, return_inverse=True)
            packed |= {name + WORDS: words, name + NUMBERS: numbers.astype(np.min_scalar_type(len(words)))}
            continue
        planes = _planes(name, columns) if name in MOTION and len(column) else None
        packed[name if planes is None else name + TICKS] = column if planes is None else planes
    return packed


def unpack(packed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `pack`; arrays that it did not make raise ValueError, KeyError, IndexError or TypeError."""
    columns = {name: array for name, array in packed.items() if not name.endswith((WORDS, NUMBERS, TICKS))}
    for name, array in packed.items():
        if name.endswith(WORDS):
            columns[name.removesuffix(WORDS)] = array[packed[name.removesuffix(WORDS) + NUMBERS]]
    for name, array in packed.items():
        if name.endswith(TICKS):
            scale = MOTION[name.removesuffix(TICKS)]
            zigzag = np.ascontiguousarray(np.moveaxis(array, 0, -1)).view("<u4")[..., 0].astype(np.int64)
            ticks = np.empty(zigzag.shape, np.int64)
            ticks[_order(columns)] = np.cumsum(np.cumsum((zigzag >> 1) ^ -(zigzag & 1), axis=0), axis=0)
            columns[name.removesuffix(TICKS)] = ticks / scale
    return columns


def _planes(name: str, columns: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """uint8 [4, rows, ...] of a column in whole ticks; None for one that is not, or moves beyond all measure."""
    column, scale = columns[name], MOTION[name]
    if not np.isfinite(column).all() or np.abs(column * scale).max() > 2**28:
        return None
    ticks = np.rint(column * scale).astype(np.int64)
    if not np.array_equal(ticks / scale, column):
        return None
    ticks = ticks[_order(columns)]
    step = np.diff(ticks, axis=0, prepend=np.zeros_like(ticks[:1]))
    change = np.diff(step, axis=0, prepend=np.zeros_like(step[:1]))
    zigzag = ((change << 1) ^ (change >> 63)).astype("<u4")
    return np.ascontiguousarray(np.moveaxis(zigzag[..., None].view(np.uint8), -1, 0))


def _order(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows of one actor together, in order of time."""
    return np.lexsort((columns[WHEN], np.unique(columns[WHO], return_inverse=True)[1]))
