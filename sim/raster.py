"""Convex quads to pixels with numpy, exact at the pixels' centres.

Let r = (a, b, 1) be the ray of a pixel with depth 1, and p_0..p_3 a face's corners in the camera frame,
counter-clockwise seen from outside, with outward normal n. The ray meets the face iff it passes inside its four edges,
    r . (p_k x p_{k+1}) <= 0 for all k,   and the depth z of the hit follows from   1/z = n . r / n . p_0.
Both are linear in r, so a corner behind the camera needs no clipping (Olano and Greer 1997).

Without distortion r is linear in the pixel (u, v), so on a row each edge bounds u from one side: what a face covers of
a row is a span, on which 1/z is linear too. Through a lens each pixel of a window around the face is tested.

Of the faces on a pixel the nearest stays. Both in one number: a key is an int64 that holds 1/z in its upper bits and
the number of the span (or of the face, through a lens) in the lower ones, so the larger key is nearer; 0 is nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensors.camera import Camera
from sim.solids import cross
from sim.visible import MIN_FORWARD

NUMBER_BITS = 20
NUMBER_MASK = (1 << NUMBER_BITS) - 1
UNIT = 2.0**57  # of 1/z in a key: a face may be as near as 2^-6 m
MAX_NEARNESS = 60.0
LONGEST = 32  # pixels of a span, which has one colour
NEAR_M = 0.01  # a face with a corner nearer than this may reach anywhere in the image


@dataclass(frozen=True)
class Spans:
    """Runs of at most `LONGEST` pixels of one row each, sorted by camera.

    face    int64 [S]
    start   int64 [S]  first pixel in the image, row by row; length int64 [S]
    key     int64 [S]  of the first pixel, without a number; step int64 [S]: to the next pixel's
    ends    int64 [N + 1]  of camera n are the spans ends[n]...ends[n + 1]
    """

    face: np.ndarray
    start: np.ndarray
    length: np.ndarray
    key: np.ndarray
    step: np.ndarray
    ends: np.ndarray

    def positions(self, n: int) -> np.ndarray:
        """Pixels int64 [P] of camera n, one span after the other."""
        part = slice(self.ends[n], self.ends[n + 1])
        length = self.length[part]
        at = np.repeat(self.start[part] - (np.cumsum(length) - length), length)
        at += np.arange(len(at))
        return at

    def raise_keys(self, n: int, keys: np.ndarray) -> None:
        """Raise keys int64 [H, W] to those of camera n's spans, numbered from 0."""
        part = slice(self.ends[n], self.ends[n + 1])
        length, step = self.length[part], self.step[part]
        before, number = np.cumsum(length) - length, np.arange(int(length.sum()))
        first = (self.key[part] | np.arange(len(length))) - step * before
        # Integers wrap around exactly, so key + step (number - before) may be taken apart.
        key = np.repeat(step, length)
        key *= number
        key += np.repeat(first, length)
        number += np.repeat(self.start[part] - before, length)
        np.maximum.at(keys.reshape(-1), number, key)

    def nearness(self, n: int) -> np.ndarray:
        """1 / z float32 [K] in the middle of camera n's spans."""
        part = slice(self.ends[n], self.ends[n + 1])
        return ((self.key[part] + self.step[part] * (self.length[part] // 2)) * (1 / UNIT)).astype(np.float32)


@dataclass(frozen=True)
class Drawn:
    """Faces in the images of N cameras: spans, and for cameras with a lens model the faces' corners."""

    corners: np.ndarray
    ends: np.ndarray
    spans: Spans
    lenses: "Sequence[LensView | None]"
    pixel_count: int

    def nearest(self, n: int, keys: np.ndarray) -> None:
        """Raise keys int64 [H, W] to those of what camera n sees; their numbers are rows of `face(n)`."""
        if self.lenses[n] is None:
            self.spans.raise_keys(n, keys)
        else:
            self.lenses[n].draw(self.corners[self.ends[n] : self.ends[n + 1]], keys)

    def face(self, n: int) -> np.ndarray:
        """Faces int64 [K] by the numbers in the keys of camera n."""
        if self.lenses[n] is None:
            return self.spans.face[self.spans.ends[n] : self.spans.ends[n + 1]]
        return np.arange(self.ends[n], self.ends[n + 1])

    def nearness(self, n: int) -> np.ndarray:
        """1 / z float32 [K] of the same, in their middles."""
        if self.lenses[n] is None:
            return self.spans.nearness(n)
        z = self.corners[self.ends[n] : self.ends[n + 1], :, 2].mean(axis=1)
        return 1 / np.maximum(z, NEAR_M)

    def pixels(self, n: int) -> np.ndarray:
        """Pixels int64 [P] that the faces of camera n cover, each once."""
        if self.lenses[n] is None:
            covered = np.zeros(self.pixel_count, bool)
            covered[self.spans.positions(n)] = True
            return np.flatnonzero(covered)
        keys = np.zeros(self.lenses[n].shape, np.int64)
        self.nearest(n, keys)
        return np.flatnonzero(keys)


class Raster:
    """Rasterises faces for cameras of one size."""

    def __init__(self, cameras: Sequence[Camera]):
        self._cameras = tuple(cameras)
        self._lenses = [LensView(camera) if camera.distortion != "none" else None for camera in cameras]

    def place(self, corners: np.ndarray, ends: np.ndarray) -> Drawn:
        """Faces [F, 4, 3] in the frames of their cameras; of camera n are the faces ends[n]...ends[n + 1]."""
        count = self._cameras[0].width * self._cameras[0].height
        return Drawn(corners, ends, spans(corners, ends, self._cameras), self._lenses, count)


def planes(p: np.ndarray) -> np.ndarray:
    """Coefficients float32 [F, 5, 3] of four edge functions (>= 0 inside) and of 1/z, for corners [F, 4, 3]."""
    edges = cross(p[:, [1, 2, 3, 0]], p)
    normal = cross(p[:, 2] - p[:, 0], p[:, 3] - p[:, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = normal / np.einsum("fi,fi->f", normal, p[:, 0])[:, None]
    return np.concatenate([edges, depth[:, None]], axis=1).astype(np.float32)


def pixel_bounds(p: np.ndarray, lens: np.ndarray, width: int, height: int) -> np.ndarray:
    """First and last columns and rows int64 [F, 4] (u0, u1, v0, v1) whose pixels faces [F, 4, 3] may cover.

    lens [F, 4]: fx, fy, cx, cy of each face's camera. None are left where u1 < u0 or v1 < v0.
    """
    x, y, z = np.ascontiguousarray(p.transpose(2, 1, 0))
    near, behind = _least(z) < NEAR_M, _least(-z) >= 0
    z = np.maximum(z, NEAR_M)
    fx, fy, cx, cy = lens.T
    bounds = []
    for at, size in ((x / z * fx + cx, width), (y / z * fy + cy, height)):
        low, high = np.ceil(_least(at)), np.floor(-_least(-at))
        low[near], high[near] = 0, size
        high[behind] = -1
        bounds += [np.clip(low, 0, size).astype(np.int64), np.clip(high, -1, size - 1).astype(np.int64)]
    return np.stack(bounds, axis=1)


def _least(values: np.ndarray) -> np.ndarray:
    """Least [F] of [4, F]; a quarter of the time of min(axis=0) on so few."""
    return np.minimum(np.minimum(values[0], values[1]), np.minimum(values[2], values[3]))


def spans(p: np.ndarray, ends: np.ndarray, cameras: Sequence[Camera]) -> Spans:
    """What faces with corners [F, 4, 3] in the frames of cameras of one size cover, where those have no lens model.

    Of cameras[n] are the faces ends[n]...ends[n + 1].
    """
    width, height = cameras[0].width, cameras[0].height
    camera = np.repeat(np.arange(len(cameras)), np.diff(ends))
    lens = np.array([[c.K[0, 0], c.K[1, 1], c.K[0, 2], c.K[1, 2]] for c in cameras], np.float32)[camera]
    u0, u1, v0, v1 = pixel_bounds(p, lens, width, height).T
    plain = np.array([c.distortion == "none" for c in cameras])[camera]
    face = np.flatnonzero((u0 <= u1) & (v0 <= v1) & plain)
    u0, u1, v0, v1, lens = u0[face], u1[face], v0[face], v1[face], lens[face]
    # From rays to pixels: c_0 a + c_1 b + c_2 with a = (u - cx) / fx, b = (v - cy) / fy.
    c = planes(p[face]).transpose(1, 2, 0)  # [5, 3, F]
    per_u, per_v = c[:, 0] / lens[:, 0], c[:, 1] / lens[:, 1]
    rest = c[:, 2] - per_u * lens[:, 2] - per_v * lens[:, 3]
    slope = np.where(np.abs(per_u[:4]) < 1e-20, np.float32(1e-20), per_u[:4])
    is_left, m, q = slope > 0, -per_v[:4] / slope, -rest[:4] / slope

    rows = v1 - v0 + 1
    of = np.repeat(np.arange(len(face)), rows)
    v = np.arange(len(of)) + np.repeat(v0 - (np.cumsum(rows) - rows), rows)
    row = v.astype(np.float32)
    low, high = u0[of].astype(np.float32), u1[of].astype(np.float32)
    for k in range(4):
        bound = m[k][of] * row + q[k][of]
        left = is_left[k][of]
        np.maximum(low, bound, out=low, where=left)
        np.minimum(high, bound, out=high, where=~left)
    first = np.ceil(np.minimum(low, width)).astype(np.int64)
    last = np.floor(np.maximum(high, -1)).astype(np.int64)
    there = np.flatnonzero(first <= last)
    first, length, of, v = first[there], (last - first + 1)[there], of[there], v[there]
    per_u, per_v, rest = (x[4].astype(np.float64) for x in (per_u, per_v, rest))
    nearness = np.clip(per_u[of] * first + per_v[of] * v + rest[of], 0.0, MAX_NEARNESS)
    key = (nearness * UNIT).astype(np.int64) & ~NUMBER_MASK
    step = (np.clip(per_u, -MAX_NEARNESS, MAX_NEARNESS) * UNIT).astype(np.int64) & ~NUMBER_MASK
    start, step, number = v * width + first, step[of], face[of]
    start, length, key, step, number = _cut(start, length, key, step, number)
    return Spans(number, start, length, key, step, np.searchsorted(number, ends))


def _cut(start, length, key, step, face):
    """The same spans, none longer than LONGEST."""
    pieces = (length + (LONGEST - 1)) // LONGEST
    if pieces.max(initial=1) == 1:
        return start, length, key, step, face
    of = np.repeat(np.arange(len(length)), pieces)
    skipped = LONGEST * (np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    step = step[of]
    return start[of] + skipped, np.minimum(length[of] - skipped, LONGEST), key[of] + step * skipped, step, face[of]


class LensView:
    """The rays of a camera with a lens model, and where a range of rays lies in its image."""

    def __init__(self, camera: Camera):
        rays = camera.pixel_rays()
        with np.errstate(invalid="ignore"):
            seen = rays[..., 2] > MIN_FORWARD
        ab = np.where(seen[..., None], rays[..., :2] / np.where(seen, rays[..., 2], 1.0)[..., None], np.nan)
        self._a, self._b = ab[..., 0].astype(np.float32), ab[..., 1].astype(np.float32)
        # a rises along columns and b along rows, so what lies in a range of a or b is a run of columns or rows.
        self.shape = seen.shape
        low = np.where(seen, self._a, np.inf).min(axis=0), np.where(seen, self._b, np.inf).min(axis=1)
        high = np.where(seen, self._a, -np.inf).max(axis=0), np.where(seen, self._b, -np.inf).max(axis=1)
        self._highest = [np.maximum.accumulate(h) for h in high]
        self._lowest = [np.minimum.accumulate(v[::-1])[::-1] for v in low]

    def windows(self, p: np.ndarray) -> np.ndarray:
        """Column and row ranges [F, 4] (x0, x1, y0, y1) that hold the faces' [F, 4, 3] images, cut at a near plane."""
        q = np.roll(p, -1, axis=1)
        crosses = (p[..., 2] < NEAR_M) != (q[..., 2] < NEAR_M)
        share = (NEAR_M - p[..., 2]) / np.where(crosses, q[..., 2] - p[..., 2], 1.0)
        points = np.concatenate([p, p + share[..., None] * (q - p)], axis=1)
        valid = np.concatenate([p[..., 2] >= NEAR_M, crosses], axis=1)
        ab = points[..., :2] / np.where(valid, points[..., 2], 1.0)[..., None]
        low = np.where(valid[..., None], ab, np.inf).min(axis=1).astype(np.float32)
        high = np.where(valid[..., None], ab, -np.inf).max(axis=1).astype(np.float32)
        (left, right), (top, bottom) = ((self._highest[k], self._lowest[k]) for k in range(2))
        columns = np.searchsorted(left, low[:, 0]), np.searchsorted(right, high[:, 0], side="right")
        rows = np.searchsorted(top, low[:, 1]), np.searchsorted(bottom, high[:, 1], side="right")
        return np.stack([*columns, *rows], axis=1)

    def draw(self, p: np.ndarray, keys: np.ndarray) -> None:
        """Raise keys int64 [H, W] to those of faces [F, 4, 3], numbered from 0."""
        plane = planes(p)
        for f, (x0, x1, y0, y1) in enumerate(self.windows(p)):
            if x0 < x1 and y0 < y1:
                a, b, c = self._a[y0:y1, x0:x1], self._b[y0:y1, x0:x1], plane[f][:, :, None, None]
                block = c[:, 0] * a + (c[:, 1] * b + c[:, 2])
                with np.errstate(invalid="ignore"):
                    inside = (block[:4].min(axis=0) >= 0) & (block[4] > 0)
                near = np.where(inside, np.minimum(block[4], MAX_NEARNESS), 0).astype(np.float64)
                key = (near * UNIT).astype(np.int64) & ~NUMBER_MASK | f
                window = keys[y0:y1, x0:x1]
                np.copyto(window, key, where=inside & (key > window))
