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
from sim.weather import BEAM_COLOUR, Weather, beam_at

FINE_M, COARSE_M, MAP_CELLS = 1 / 16, 1 / 4, 2048  # metres a texel; maps of 128 m and 512 m
TILE_CELLS, TILES = 256, MAP_CELLS // 256  # maps begin at a tile, so they reach 56 m and 224 m at least
FINE_REACH_M = 50.0
SHORT_TEXELS, NEAR_TEXELS = 7.0, 2.5
MIN_FORWARD = 0.05  # rays further off axis than about 87 degrees see nothing
GRAINS, GRAIN_CELLS = 16, 1024
GRAIN_AMPLITUDE = {"terrain": 26, "asphalt": 10, "shoulder": 20, "marking": 8, "sidewalk": 12}


def is_level(T_world_from_ego: np.ndarray) -> bool:
    T = T_world_from_ego
    return bool(T[2, 2] == 1.0 and not T[2, [0, 1, 3]].any() and not T[:2, 2].any())


@dataclass(frozen=True)
class Tone:
    """Weather over a camera's rays: on the ground colour = paint * gain + veil, float32 [H, W, 1 or 3].

    sky  uint8 [H, W, 3]
    """

    sky: np.ndarray
    gain: np.ndarray
    veil: np.ndarray


class GroundRays:
    """Where the pixels of a camera meet the ground z = 0, and the sky above it.

    Points are relative to the ego origin, in the axes of frame `flat`, whose z axis is vertical and whose height is the
    world's; `forward` is the ego's x axis there. Colour is looked up on a finer grid and averaged, as a pixel at 30 m
    covers some metres of road; classes at the pixels' centres. `top` and `split` are the first row with any ground, and
    the first from which all is near.
    """

    def __init__(self, camera: Camera, T_flat_from_cam: np.ndarray, forward: tuple[float, float] = (1.0, 0.0)):
        height = float(T_flat_from_cam[2, 3])
        if height <= 0:
            raise InputError("render", camera.name, f"a camera {height:.3g} m above ground", "a height above 0")
        columns, rows = _oversampling(camera)
        fine = camera.resize(camera.width * columns, camera.height * rows)[1]
        self.fine_points, _, fine_blind = meet_ground(fine, T_flat_from_cam)
        self.points, nearness, self.blind = meet_ground(camera, T_flat_from_cam)
        self.nearness = np.where(nearness > 0, nearness, 0).astype(np.float32)
        self.rows = rows
        self.split = _after_last_far(np.where(fine_blind, 0, np.abs(self.fine_points).max(axis=-1)), rows)
        ground = np.flatnonzero((self.nearness > 0).any(axis=1))
        self.top = int(ground[0]) if len(ground) else camera.height
        self._steep = np.nan_to_num(camera.pixel_rays() @ T_flat_from_cam[2, :3])
        self._up = np.clip(self._steep / 0.45, 0, 1)[..., None]
        self._forward = forward
        self.is_sky = self.nearness <= 0
        self._tone: tuple[Weather, Tone] | None = None

    def tone(self, weather: Weather) -> "Tone":
        """Light and air of the weather over these rays; kept while the weather stays."""
        if self._tone is None or self._tone[0] != weather:
            self._tone = (weather, self._toned(weather))
        return self._tone[1]

    def _toned(self, weather: Weather) -> "Tone":
        sky = weather.horizon * (1 - self._up) + weather.zenith * self._up
        with np.errstate(divide="ignore"):
            clear = np.exp(-1.0 / (self.nearness * weather.haze_m)).astype(np.float32)[..., None]
        if weather.rain:
            clear = clear * (1 - weather.wet(self._steep))[..., None].astype(np.float32)
        light = weather.ground
        if weather.beam:
            light = light + (weather.beam * beam_at(self._in_ego()))[..., None] * BEAM_COLOUR
        elif (light == light[0]).all():
            light = light[:1]  # white light: one factor a pixel instead of three
        return Tone(
            np.where(self.blind[..., None], 0, sky).astype(np.uint8),
            (clear * light).astype(np.float32),
            (1 - clear) * weather.horizon.astype(np.float32),
        )

    def _in_ego(self) -> np.ndarray:
        (c, s) = self._forward
        return self.points @ np.array([[c, -s], [s, c]], np.float32)


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
    return (2, 4) if camera.width < 320 else (1, 2)


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
    """The ground's classes and colours near the car, painted from the surfaces' polygons tile by tile."""

    def __init__(self):
        self._surfaces: tuple[Surface, ...] | None = None
        names = list(GROUND)
        self._class_of = {name: k for k, name in enumerate(names)}
        self._semantic = np.array([SEMANTIC[name] for name in names] + [0] * (256 - len(names)), np.uint8)
        # One byte holds class and grain, so that painting colours is one table look-up.
        base = np.array([GROUND[name] for name in names], np.float64)
        grain = np.linspace(-1, 1, GRAINS)[:, None] * np.array([GRAIN_AMPLITUDE[name] for name in names])[:, None, None]
        table = np.zeros((256, 1, 3), np.uint8)
        table[: len(names) * GRAINS, 0] = np.clip(base[:, None] + grain, 0, 255).reshape(-1, 3)
        self._colours = table
        rng = np.random.default_rng(0)  # the grain of the ground is the same in every world
        blotches = cv2.resize(rng.random((64, 64)), (GRAIN_CELLS, GRAIN_CELLS), interpolation=cv2.INTER_CUBIC)
        mixed = 0.6 * rng.random((GRAIN_CELLS, GRAIN_CELLS)) + 0.4 * blotches
        self._grain = np.clip(mixed * GRAINS, 0, GRAINS - 1).astype(np.uint8)

    def around(self, surfaces: tuple[Surface, ...], near_m: np.ndarray, cell_m: float) -> tuple[tuple[int, int], dict]:
        """The first tile (column, row) of the map around a position, and its tiles by (column, row).

        A tile is the semantic classes [TILE_CELLS, TILE_CELLS] and colours [..., 3] of its texels, rows along world y.
        It is the same object as long as it is in the map.
        """
        if self._surfaces is not surfaces:
            self._surfaces, self._tiles = surfaces, {FINE_M: {}, COARSE_M: {}}
            self._bounds = np.array([[s.outline_m.min(0), s.outline_m.max(0)] for s in surfaces]).reshape(-1, 2, 2)
        column, row = (int(v) - TILES // 2 for v in np.round(near_m / (cell_m * TILE_CELLS)))
        old, at = self._tiles[cell_m], [(column + i, row + j) for j in range(TILES) for i in range(TILES)]
        if at[0] not in old or at[-1] not in old:
            self._tiles[cell_m] = {key: old.get(key) or self._painted(cell_m, *key) for key in at}
        return (column, row), self._tiles[cell_m]

    def _painted(self, cell_m: float, column: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        low = np.array([column, row]) * (TILE_CELLS * cell_m)
        classes = np.zeros((TILE_CELLS, TILE_CELLS), np.uint8)
        inside = (self._bounds[:, 1] > low - cell_m) & (self._bounds[:, 0] < low + cell_m * (TILE_CELLS + 1))
        for k in np.flatnonzero(inside.all(axis=1)):
            surface = self._surfaces[k]
            corners = np.round(((surface.outline_m - low) / cell_m - 0.5) * 16).astype(np.int32)
            cv2.fillPoly(classes, [corners], self._class_of[surface.kind], shift=4)
        y, x = row * TILE_CELLS % GRAIN_CELLS, column * TILE_CELLS % GRAIN_CELLS
        index = classes * np.uint8(GRAINS) + self._grain[y : y + TILE_CELLS, x : x + TILE_CELLS]
        return cv2.LUT(classes, self._semantic), cv2.LUT(cv2.merge([index] * 3), self._colours)


class GroundMaps:
    """The tiles put together, to look up."""

    def __init__(self):
        self._tiles = GroundTiles()
        self._maps: dict[float, tuple] = {}  # by texel size: tiles, position of the first corner, classes, colours

    def paint(self, surfaces: tuple[Surface, ...], near_m: np.ndarray) -> None:
        """Make the maps around this position current: the tile decides, not the way there."""
        for cell_m in (FINE_M, COARSE_M):
            first, tiles = self._tiles.around(surfaces, near_m, cell_m)
            if cell_m in self._maps and self._maps[cell_m][0] is tiles:
                continue
            classes = np.empty((MAP_CELLS, MAP_CELLS), np.uint8)
            colours = np.empty((MAP_CELLS, MAP_CELLS, 3), np.uint8)
            for (column, row), tile in tiles.items():
                x, y = (column - first[0]) * TILE_CELLS, (row - first[1]) * TILE_CELLS
                classes[y : y + TILE_CELLS, x : x + TILE_CELLS] = tile[0]
                colours[y : y + TILE_CELLS, x : x + TILE_CELLS] = tile[1]
            self._maps[cell_m] = (tiles, np.array(first) * (TILE_CELLS * cell_m), classes, colours)

    def look_up(self, ground: GroundRays, x_m: float, y_m: float, yaw_rad: float, weather: Weather, out) -> None:
        """Fill colour, semantic and instance of `out` with ground and sky, for rays turned by yaw and moved to x, y."""
        height, width = out.semantic.shape
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        tone = ground.tone(weather)
        out.rgb[:], out.semantic[:], out.instance[:] = tone.sky, SEMANTIC["sky"], 0
        for cell_m, first, last in (
            (COARSE_M, ground.top, ground.split),
            (FINE_M, max(ground.split, ground.top), height),
        ):
            if first >= last:
                continue
            _, low, classes, colours = self._maps[cell_m]
            texel_from_ego = np.array([[c, -s, x_m - low[0]], [s, c, y_m - low[1]]]) / cell_m
            texel_from_ego[:, 2] -= 0.5
            at = cv2.transform(ground.fine_points[first * ground.rows : last * ground.rows], texel_from_ego)
            colour = cv2.remap(colours, at, None, cv2.INTER_LINEAR, borderValue=GROUND["terrain"])
            colour = cv2.resize(colour, (width, last - first), interpolation=cv2.INTER_AREA)
            hazy = colour * tone.gain[first:last]
            hazy += tone.veil[first:last]
            if weather.beam:  # nothing else is brighter than its paint
                np.minimum(hazy, 255, out=hazy)
            hazy = hazy.astype(np.uint8)
            at = cv2.transform(ground.points[first:last], texel_from_ego)
            kind = cv2.remap(classes, at, None, cv2.INTER_NEAREST, borderValue=SEMANTIC["terrain"])
            is_ground = ~ground.is_sky[first:last]
            np.copyto(out.rgb[first:last], hazy, where=is_ground[..., None])
            np.copyto(out.semantic[first:last], kind, where=is_ground)
