"""Where one may drive, from the raster that nuScenes keeps of each location: 0.1 m a pixel, row 0 in the north."""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from sensors.errors import InputError

PX_PER_M = 10
TOLERANCE_PX = 0.5  # to which outlines are thinned


def drivable_area(path: Path, low_m: np.ndarray, high_m: np.ndarray) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Outlines [V, 2] and their holes [V, 2], in the world frame, inside a rectangle given by two corners [2].

    Outlines run through the centres of the outermost pixels, so the area is half a pixel (5 cm) on the small side.
    """
    packed, width = _raster(path)
    height = len(packed)
    left, right = np.clip(np.array([low_m[0], high_m[0]]) * PX_PER_M, 0, width).astype(int)
    top, bottom = np.clip(height - np.array([high_m[1], low_m[1]]) * PX_PER_M, 0, height).astype(int)
    window = np.ascontiguousarray(np.unpackbits(packed[top:bottom], axis=1)[:, left:right])
    if not window.size:
        return []
    return outlines_of(window, left, top - height)


def outlines_of(
    mask: np.ndarray, column: int, row: int, tolerance_px: float = TOLERANCE_PX
) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Outlines [V, 2] and their holes [V, 2] in metres of what is not 0 in a mask, whose upper left pixel is at this
    column of the raster and this row from its lower end (negative above it)."""
    contours, nesting = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    lines = [
        (cv2.approxPolyDP(c, tolerance_px, True)[:, 0] + (column + 0.5, row + 0.5)) / (PX_PER_M, -PX_PER_M)
        for c in contours
    ]
    parents = [] if nesting is None else nesting[0, :, 3]
    return [
        (line, [lines[h] for h in np.flatnonzero(np.equal(parents, k)) if len(lines[h]) > 2])
        for k, line in enumerate(lines)
        if parents[k] < 0 and len(line) > 2
    ]


@lru_cache(maxsize=1)  # scenes of one location follow each other, and a raster takes seconds to read
def _raster(path: Path) -> tuple[np.ndarray, int]:
    """The mask at one bit a pixel, uint8 [H, W / 8], and W: 600 million pixels are then 75 MB."""
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise InputError(path, "map", "no picture that decodes", "a PNG of the drivable area")
    return np.packbits(mask > 0, axis=1), mask.shape[1]
