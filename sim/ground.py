"""The painted ground: two maps around the car, and where the rays of a camera meet it.

Each pixel's ray meets z = 0 in a point that is fixed in the ego frame; the ground's paint is looked up there in two
square maps around the car, a fine and a coarse one, made of tiles that are painted as the car gets near them.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from sensors.camera import Camera
from sensors.errors import InputError
from sim.roads import Surface
from sim.scene import GROUND
from sim.solids import SEMANTIC
from sim.visible import MIN_FORWARD
from sim.weather import BEAM_COLOUR, Weather, beam_at

FINE_M, COARSE_M, MAP_CELLS = 1 / 16, 1 / 4, 2048  # metres a texel; maps of 128 m and 512 m
TILE_CELLS, TILES = 256, MAP_CELLS // 256  # maps begin at a tile, so they reach 56 m and 224 m at least
FINE_REACH_M = 50.0
SHORT_TEXELS, NEAR_TEXELS = 7.0, 2.5
GRAINS, GRAIN_CELLS = 16, 1024
GRAIN_AMPLITUDE = {"terrain": 26, "asphalt": 10, "shoulder": 20, "marking": 8, "sidewalk": 12}


def is_level(T_world_from_ego: np.ndarray) -> bool:
    T = T_world_from_ego
    return bool(T[2, 2] == 1.0 and not T[2, [0, 1, 3]].any() and not T[:2, 2].any())


@dataclass(frozen=True)
class Tone:
    """Weather over a camera's rays: on the ground colour = paint * gain * scale + veil. All uint8 [H, W, 4]; no alpha.

    sky  the colour where there is no ground
    """

    sky: np.ndarray
    gain: np.ndarray
    scale: float
    veil: np.ndarray


class GroundRays:
    """Where the pixels of a camera meet the ground z = 0, and the sky above it.

    Points are relative to the ego origin, in the axes of frame `flat`, whose z axis is vertical and whose height is the
    world's; `forward` is the ego's x axis there. Classes are looked up at the pixels' centres, and so is the colour of
    near ground; further away, where a pixel covers some metres of road, colour is the mean of `sample_count` samples.
    coarse_samples are those of rows top...split, fine_samples those of split...near

    top, all_ground  the first row with any ground, the first without any sky
    split            the first from which all ground is near enough for the fine map
    near             the first, not above split, from which a pixel covers at most NEAR_TEXELS of its texels
    """

    def __init__(self, camera: Camera, T_flat_from_cam: np.ndarray, forward: tuple[float, float] = (1.0, 0.0)):
        height = float(T_flat_from_cam[2, 3])
        if height <= 0:
            raise InputError("render", camera.name, f"a camera {height:.3g} m above ground", "a height above 0")
        columns, rows = _oversampling(camera)
        fine = camera.resize(camera.width * columns, camera.height * rows)[1]
        points, _, blind = meet_ground(fine, T_flat_from_cam)
        self.points, nearness, self._blind = meet_ground(camera, T_flat_from_cam)
        self.nearness = np.where(nearness > 0, nearness, 0).astype(np.float32)
        self.is_sky = self.nearness <= 0
        any_ground, any_sky = np.flatnonzero(~self.is_sky.all(axis=1)), np.flatnonzero(self.is_sky.any(axis=1))
        self.top = int(any_ground[0]) if len(any_ground) else camera.height
        self.all_ground = int(any_sky[-1]) + 1 if len(any_sky) else 0
        self.split = max(_after_last_far(np.where(blind, 0, np.abs(points).max(axis=-1)), rows), self.top)
        length = np.linalg.norm(np.diff(self.points, axis=0, append=self.points[-1:]), axis=-1).max(axis=1)
        long = np.flatnonzero(length > NEAR_TEXELS * FINE_M)
        self.near = max(int(long[-1]) + 1 if len(long) else 0, self.split)
        samples = points.reshape(camera.height, rows, camera.width, columns, 2)[self.top : self.near]
        samples = samples.transpose(1, 3, 0, 2, 4).reshape(rows * columns, self.near - self.top, camera.width, 2)
        far = self.split - self.top
        self.coarse_samples = np.ascontiguousarray(samples[:, :far]).reshape(-1, camera.width, 2)
        self.fine_samples = np.ascontiguousarray(samples[:, far:]).reshape(-1, camera.width, 2)
        self.sample_count = rows * columns
        self._steep = np.nan_to_num(camera.pixel_rays() @ T_flat_from_cam[2, :3])
        self._forward = forward
        self._tone: tuple[Weather, Tone] | None = None

    def tone(self, weather: Weather) -> "Tone":
        """Light and air of the weather over these rays; kept while the weather stays."""
        if self._tone is None or self._tone[0] != weather:
            self._tone = (weather, self._toned(weather))
        return self._tone[1]

    def _toned(self, weather: Weather) -> "Tone":
        up = np.clip(self._steep / 0.45, 0, 1)[..., None]
        sky = weather.horizon * (1 - up) + weather.zenith * up
        with np.errstate(divide="ignore"):
            clear = np.exp(-1.0 / (self.nearness * weather.haze_m))[..., None]
        clear = clear * (1 - weather.wet(self._steep))[..., None]
        light = np.broadcast_to(weather.ground, sky.shape)
        if weather.beam:
            light = light + (weather.beam * beam_at(self._in_ego()))[..., None] * BEAM_COLOUR
        gain = clear * light
        most = max(float(gain.max()), 1e-6)
        sky = np.where(self._blind[..., None], 0, sky)
        return Tone(_opaque(sky), _opaque(gain * (255 / most)), most / 255, _opaque((1 - clear) * weather.horizon))

    def _in_ego(self) -> np.ndarray:
        (c, s) = self._forward
        return self.points @ np.array([[c, -s], [s, c]], np.float32)


def _opaque(rgb: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] of colours [H, W, 3]."""
    return np.dstack([np.round(rgb), np.full(rgb.shape[:2], 255)]).astype(np.uint8)


@dataclass(frozen=True)
class Bands:
    """Rows of an image that differ in how their ground is looked up, top to bottom.

    top         the first with any ground
    all_ground  the first from which no sky is seen
    split       the first from which all ground is near enough for the fine map
    short, near the first from which a pixel covers at most SHORT_TEXELS, NEAR_TEXELS of its texels (of their length)
    """

    top: int
    all_ground: int
    split: int
    short: int
    near: int

    def ends(self, height: int) -> tuple[int, ...]:
        """Where the bands begin that are coarse, fine, fine and short, near; and where the last ends."""
        return self.top, self.split, max(self.split, self.short), max(self.split, self.near), height

    @classmethod
    def of(cls, camera: Camera, T_flat_from_cam: np.ndarray) -> "Bands":
        """From the rays of few columns: along a row the farthest points of a pinhole camera are at its ends."""
        rows = _oversampling(camera)[1]
        fine = camera.resize(camera.width, camera.height * rows)[1]
        v, u = np.mgrid[: fine.height, :3].astype(float)
        points, nearness, blind = _meet(fine.unproject(np.stack([u * (fine.width - 1) / 2, v], -1)), T_flat_from_cam)
        split = _after_last_far(np.where(blind, 0, np.abs(points).max(axis=-1)), rows)
        if camera.distortion != "none":
            return cls(0, camera.height, split, split, camera.height)
        ground = nearness.reshape(camera.height, -1) > 0
        distance = np.linalg.norm(points - T_flat_from_cam[:2, 3], axis=-1).max(axis=1)[rows - 1 :: rows]
        length = np.square(distance) / (T_flat_from_cam[2, 3] * camera.K[1, 1]) / FINE_M
        top, sky = np.flatnonzero(ground.any(axis=1)), np.flatnonzero(~ground.all(axis=1))
        firsts = (np.flatnonzero(length > limit) for limit in (SHORT_TEXELS, NEAR_TEXELS))
        short, near = (int(rows[-1]) + 1 if len(rows) else 0 for rows in firsts)
        return cls(int(top[0]) if len(top) else camera.height, int(sky[-1]) + 1 if len(sky) else 0, split, short, near)


def _oversampling(camera: Camera) -> tuple[int, int]:
    """Columns and rows of samples of the ground's colour in a pixel."""
    return (2, 2) if camera.width < 320 else (1, 2)


def _after_last_far(distance_m: np.ndarray, rows: int) -> int:
    """The row of the image after the last with a sample further than FINE_REACH_M, of distances [H rows, ...]."""
    far = np.flatnonzero(distance_m.max(axis=1).reshape(-1, rows).max(axis=1) > FINE_REACH_M)
    return int(far[-1]) + 1 if len(far) else 0


def meet_ground(camera: Camera, T_flat_from_cam: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ground points float32 [H, W, 2] (far away where there is none), 1/z [H, W], and pixels without a ray [H, W]."""
    return _meet(camera.pixel_rays(), T_flat_from_cam)


def _meet(rays: np.ndarray, T_flat_from_cam: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    R = T_flat_from_cam[:3, :3]
    with np.errstate(invalid="ignore", divide="ignore"):
        blind = ~(rays[..., 2] > MIN_FORWARD)
        ray = rays / np.where(blind, np.nan, rays[..., 2])[..., None]
        nearness = np.nan_to_num(-(ray @ R[2]) / T_flat_from_cam[2, 3])
        points = ray / nearness[..., None] @ R[:2].T + T_flat_from_cam[:2, 3]
    met = (nearness > 1e-6)[..., None] & np.isfinite(points)
    return np.where(met, points, 1e6).astype(np.float32), nearness, blind


class GroundTiles:
    """The ground's colours and classes near the car, painted from the surfaces' polygons tile by tile."""

    def __init__(self):
        self._surfaces: tuple[Surface, ...] | None = None
        names = list(GROUND)
        # One byte holds class and grain, so that painting is one table look-up.
        base = np.array([GROUND[name] for name in names], np.float64)
        grain = np.linspace(-1, 1, GRAINS)[:, None] * np.array([GRAIN_AMPLITUDE[name] for name in names])[:, None, None]
        table = np.zeros((len(names) * GRAINS, 4), np.uint8)
        table[:, :3] = np.clip(base[:, None] + grain, 0, 255).reshape(-1, 3)
        table[:, 3] = np.repeat([SEMANTIC[name] for name in names], GRAINS)
        self._colours = table.view(np.uint32)[:, 0]
        self._byte_of = {name: k * GRAINS for k, name in enumerate(names)}
        rng = np.random.default_rng(0)  # the grain of the ground is the same in every world
        blotches = cv2.resize(rng.random((64, 64)), (GRAIN_CELLS, GRAIN_CELLS), interpolation=cv2.INTER_CUBIC)
        mixed = 0.6 * rng.random((GRAIN_CELLS, GRAIN_CELLS)) + 0.4 * blotches
        self._grain = np.clip(mixed * GRAINS, 0, GRAINS - 1).astype(np.uint8)

    def around(self, surfaces: tuple[Surface, ...], near_m: np.ndarray, cell_m: float) -> tuple[tuple[int, int], dict]:
        """The first tile (column, row) of the map around a position, and its tiles by (column, row).

        A tile is uint8 [TILE_CELLS, TILE_CELLS, 4]: colours and semantic classes of its texels, rows along world y. It
        is the same object as long as it is in the map.
        """
        if self._surfaces is not surfaces:
            self._surfaces, self._tiles = surfaces, {FINE_M: {}, COARSE_M: {}}
            self._bounds = np.array([[s.outline_m.min(0), s.outline_m.max(0)] for s in surfaces]).reshape(-1, 2, 2)
        column, row = (int(v) - TILES // 2 for v in np.round(near_m / (cell_m * TILE_CELLS)))
        old, at = self._tiles[cell_m], [(column + i, row + j) for j in range(TILES) for i in range(TILES)]
        if at[0] not in old or at[-1] not in old:
            self._tiles[cell_m] = {key: old[key] if key in old else self._painted(cell_m, *key) for key in at}
        return (column, row), self._tiles[cell_m]

    def _painted(self, cell_m: float, column: int, row: int) -> np.ndarray:
        low = np.array([column, row]) * (TILE_CELLS * cell_m)
        classes = np.zeros((TILE_CELLS, TILE_CELLS), np.uint8)
        inside = (self._bounds[:, 1] > low - cell_m) & (self._bounds[:, 0] < low + cell_m * (TILE_CELLS + 1))
        for k in np.flatnonzero(inside.all(axis=1)):
            surface = self._surfaces[k]
            corners = np.round(((surface.outline_m - low) / cell_m - 0.5) * 16).astype(np.int32)
            cv2.fillPoly(classes, [corners], self._byte_of[surface.kind], shift=4)
        y, x = row * TILE_CELLS % GRAIN_CELLS, column * TILE_CELLS % GRAIN_CELLS
        classes += self._grain[y : y + TILE_CELLS, x : x + TILE_CELLS]
        return self._colours[classes].view(np.uint8).reshape(TILE_CELLS, TILE_CELLS, 4)


class GroundMaps:
    """The tiles put together, to look up."""

    def __init__(self):
        self._tiles = GroundTiles()
        self._maps: dict[float, tuple] = {}  # by texel size: tiles, number of the first, the map, and a spare one

    def paint(self, surfaces: tuple[Surface, ...], near_m: np.ndarray) -> None:
        """Make the maps around this position current: the tile decides, not the way there."""
        for cell_m in (FINE_M, COARSE_M):
            first, tiles = self._tiles.around(surfaces, near_m, cell_m)
            if cell_m not in self._maps:
                empty = np.zeros((2, MAP_CELLS, MAP_CELLS, 4), np.uint8)
                self._maps[cell_m] = ({}, first, *empty)
            old, old_first, whole, spare = self._maps[cell_m]
            if old is tiles:
                continue
            column, row = first[0] - old_first[0], first[1] - old_first[1]
            if old and max(abs(column), abs(row)) < TILES:  # what stays moves in one piece
                to_x, from_x = _overlap(column)
                to_y, from_y = _overlap(row)
                spare[to_y, to_x] = whole[from_y, from_x]
            for (x, y), tile in tiles.items():
                if old.get((x, y)) is not tile:
                    x, y = (x - first[0]) * TILE_CELLS, (y - first[1]) * TILE_CELLS
                    spare[y : y + TILE_CELLS, x : x + TILE_CELLS] = tile
            self._maps[cell_m] = (tiles, first, spare, whole)

    def colour(self, ground: GroundRays, pose: tuple[float, float, float], weather: Weather, out: np.ndarray) -> None:
        """Fill out uint8 [H, W, 4] with ground and sky, for rays turned by yaw and moved to x, y of the pose."""
        tone, bottom, count = ground.tone(weather), len(out), ground.sample_count
        for cell_m, samples, first, last in (
            (COARSE_M, ground.coarse_samples, ground.top, ground.split),
            (FINE_M, ground.fine_samples, ground.split, ground.near),
        ):
            if last > first:
                found = self._at(cell_m, samples, pose, cv2.INTER_NEAREST)
                images = [found[k * (last - first) : (k + 1) * (last - first)] for k in range(count)]
                while len(images) > 1:
                    pairs = zip(images[::2], images[1::2], strict=True)
                    images = [cv2.addWeighted(a, 0.5, b, 0.5, 0) for a, b in pairs]
                cv2.multiply(images[0], tone.gain[first:last], out[first:last], tone.scale)
        if ground.near < bottom:
            found = self._at(FINE_M, ground.points[ground.near :], pose, cv2.INTER_LINEAR)
            cv2.multiply(found, tone.gain[ground.near :], out[ground.near :], tone.scale)
        rows = slice(ground.top, bottom)
        cv2.add(out[rows], tone.veil[rows], out[rows])
        out[: ground.top] = tone.sky[: ground.top]
        mixed = slice(ground.top, ground.all_ground)
        np.copyto(out[mixed], tone.sky[mixed], where=ground.is_sky[mixed, :, None])

    def semantic(self, ground: GroundRays, pose: tuple[float, float, float]) -> np.ndarray:
        """Classes uint8 [H, W] of ground and sky."""
        out = np.full(ground.is_sky.shape, SEMANTIC["sky"], np.uint8)
        for cell_m, rows in ((COARSE_M, slice(ground.top, ground.split)), (FINE_M, slice(ground.split, len(out)))):
            if rows.start < rows.stop:
                kind = self._at(cell_m, ground.points[rows], pose, cv2.INTER_NEAREST)[..., 3]
                np.copyto(out[rows], kind, where=~ground.is_sky[rows])
        return out

    def _at(self, cell_m: float, points: np.ndarray, pose: tuple[float, float, float], how: int) -> np.ndarray:
        """The map at points float32 [h, W, 2]."""
        (x_m, y_m, yaw_rad), (_, first, whole, _) = pose, self._maps[cell_m]
        low = np.array(first) * (TILE_CELLS * cell_m)
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        texel_from_ego = np.array([[c, -s, x_m - low[0]], [s, c, y_m - low[1]]]) / cell_m
        texel_from_ego[:, 2] -= 0.5
        at = cv2.transform(points, texel_from_ego)
        return cv2.remap(whole, at, None, how, borderValue=(*GROUND["terrain"], SEMANTIC["terrain"]))


def _overlap(tiles: int) -> tuple[slice, slice]:
    """Where a map that moved by some tiles still shows what it did, and where that was."""
    cells, whole = abs(tiles) * TILE_CELLS, MAP_CELLS
    front, back = slice(0, whole - cells), slice(cells, whole)
    return (front, back) if tiles >= 0 else (back, front)
