"""The fast renderer: the scenes of render_cv by OpenGL 4.3 on EGL, on a GPU or, without one, on Mesa's llvmpipe.

Per camera: first sky and ground (a ray a pixel), then shadows, then faces from near to far, each writing colour, depth
and ids in one pass. Where the processor draws and the car is level, colours of sky and ground come from sim.ground
instead, as OpenCV samples a map several times as fast as llvmpipe does. All cameras share one framebuffer, one under
the other. Meshes stay on the device; a frame sends the solids' poses and a list of the faces that sim.visible lets
through. A camera with a lens model takes another way, see gl_shaders.LENS_VERTEX.
"""

import logging
from collections.abc import Sequence, Set
from functools import lru_cache

import cv2
import moderngl
import numpy as np

from sensors.camera import Camera
from sensors.errors import InputError, unknown_name
from sensors.frames import inverse
from sim import gl_shaders
from sim.gl_device import (
    COARSE_UNIT,
    FINE_UNIT,
    NEAR_UNIT,
    RAIN_UNIT,
    RAYS_UNIT,
    GroundTextures,
    Growing,
    Programs,
    Solids,
    is_software,
    open_gl,
)
from sim.ground import COARSE_M, FINE_M, Bands, GroundMaps, GroundRays, is_level
from sim.raster import LensView, planes
from sim.render_cv import Images, RendererCv, check_rig, check_scenes, lit, pose_of, rain_on, shadow_corners
from sim.scene import Scene
from sim.visible import MIN_FORWARD, Seen, Sight
from sim.weather import RAIN_CELLS, RAIN_SHARE, Weather, rain_offset, rain_tile

NEAR_M = 0.1  # as in gl_shaders; nothing nearer is drawn, and the depth buffer tells 6 mm apart at 100 m
NO_RAY = 1e9
BLOCK_BYTES = gl_shaders.CAMERA_FLOATS * 4


RENDERERS = ("gl", "cv", "auto")


def get_renderer(name: str, cameras: Sequence[Camera]) -> "RendererGl | RendererCv":
    """gl is the fast one and needs EGL: an InputError says how to get it. auto is gl, or cv where gl is not to be had.

    Images of cv are the same on every machine, those of gl only for one driver, so auto is for where that is no matter.
    """
    if name not in RENDERERS:
        raise unknown_name("get_renderer", "renderer", name, RENDERERS)
    if name == "cv":
        return RendererCv(cameras)
    try:
        open_gl()
    except InputError as error:
        if name == "gl":
            raise
        _say_once(f"rendering with OpenCV: {error.came}. {error.fix}")
        return RendererCv(cameras)
    return RendererGl(cameras)


@lru_cache(maxsize=1)
def _say_once(text: str) -> None:
    logging.getLogger(__name__).warning(text)


class RendererGl:
    """Renders scenes for a fixed rig of cameras of one size, which may have any lens model of sensors.camera.

    The same driver gives the same bytes again; another driver may round otherwise. For one thread.
    """

    def __init__(self, cameras: Sequence[Camera]):
        self.cameras = check_rig("RendererGl", cameras)
        count, width, height = len(self.cameras), self.cameras[0].width, self.cameras[0].height
        self._context = open_gl()
        with self._context as gl:
            gl.gc()
            most, size = gl.info["GL_MAX_TEXTURE_SIZE"], (width, count * height)
            if max(size) > most:
                raise InputError(
                    "RendererGl", "cameras", f"{count} of {width} x {height}", f"at most {most} rows in all"
                )
            self._colour, self._depth = gl.texture(size, 4), gl.texture(size, 1, dtype="f4")
            self._ids, hidden = gl.texture(size, 1, dtype="u4"), gl.depth_renderbuffer(size)
            self._whole = gl.framebuffer([self._colour, self._depth, self._ids], hidden)
            self._only_colour = gl.framebuffer([self._colour], hidden)
            self._rays = gl.texture(size, 2, np.concatenate([_rays(c) for c in self.cameras]), dtype="f4")
            self._rain = gl.texture((RAIN_CELLS, RAIN_CELLS), 1, rain_tile(), dtype="f4")
            self._programs, self._solids, self._ground = Programs(gl), Solids(gl), GroundTextures(gl)
            self._uniforms = gl.buffer(reserve=count * BLOCK_BYTES)
            self._shadows, self._seen = Growing(gl, 4), Growing(gl, 3)
        self._T_ego_from_cam = np.stack([camera.T_ego_from_cam for camera in self.cameras])
        self._lenses = [LensView(c) if c.distortion != "none" else None for c in self.cameras]
        self._sight = Sight(self.cameras)
        self._fixed = np.stack([_fixed_block(camera, n) for n, camera in enumerate(self.cameras)])
        self._level_bands = [Bands.of(camera, camera.T_ego_from_cam) for camera in self.cameras]
        self._level = None
        if is_software():
            self._level, self._maps = [GroundRays(c, c.T_ego_from_cam) for c in self.cameras], GroundMaps()

    def render(self, scenes: Sequence[Scene], T_world_from_ego: np.ndarray) -> Images:
        """Camera n sees scenes[n], the world at its exposure, from the ego pose T_world_from_ego[n] [4, 4]."""
        with self._context:
            rgb = self._draw(self._whole, scenes, T_world_from_ego)
            depth, ids = np.empty(rgb.shape[:3], np.float32), np.empty(rgb.shape[:3], np.uint32)
            self._depth.read_into(depth)
            self._ids.read_into(ids)
        return Images(rgb, depth, ids.astype(np.uint8), (ids >> 8).astype(np.int32))

    def render_rgb(self, scenes: Sequence[Scene], T_world_from_ego: np.ndarray) -> np.ndarray:
        """`render(...).rgb` for less."""
        with self._context:
            return self._draw(self._only_colour, scenes, T_world_from_ego)

    def _draw(self, target: moderngl.Framebuffer, scenes: Sequence[Scene], T_world_from_ego: np.ndarray) -> np.ndarray:
        check_scenes(scenes, T_world_from_ego, len(self.cameras))
        T_world_from_cam = T_world_from_ego @ self._T_ego_from_cam
        lowest = T_world_from_cam[:, 2, 3].min()
        if lowest <= 0:
            raise InputError("render", "T_world_from_ego", f"a camera {lowest:.3g} m above ground", "a height above 0")
        self._context.gc()
        origin = T_world_from_ego[:, :2, 3]
        looked_up = self._level is not None and all(map(is_level, T_world_from_ego))
        shaded = target is self._whole or not looked_up
        if shaded:
            self._ground.paint(scenes[0].backdrop.surfaces, origin.mean(axis=0))
        self._uniforms.write(self._blocks(scenes, T_world_from_ego, T_world_from_cam))
        self._ground.bind()
        self._rain.use(RAIN_UNIT)
        self._rays.use(RAYS_UNIT)
        target.use()
        target.clear(depth=0.0)
        defines = [self._defines(n, scene, target is self._whole) for n, scene in enumerate(scenes)]
        self._context.enable_only(moderngl.NOTHING)
        if shaded:
            self._draw_ground(defines, T_world_from_ego, T_world_from_cam)
        self._only_colour.use()  # what follows leaves depth and ids of the ground alone
        if looked_up:
            self._look_up_ground(scenes, T_world_from_ego)
        self._draw_shadows(scenes, origin, T_world_from_cam)
        target.use()
        seen = self._solids.send(scenes, T_world_from_cam, origin, self._sight)
        gl = self._context
        gl.enable_only(moderngl.DEPTH_TEST | moderngl.CULL_FACE)
        gl.depth_func, gl.front_face = ">", "cw"
        for n, lens in enumerate(self._lenses):
            if lens is None:
                self._look(n)
                self._programs.quads("SOLID", defines[n], int(seen.ends[n]), int(seen.ends[n + 1]))
        if any(self._lenses):
            self._draw_solids_through_lenses(scenes, seen, T_world_from_cam, defines)
        rgba = np.empty((len(self.cameras), *self._shape, 4), np.uint8)
        self._colour.read_into(rgba)
        return cv2.cvtColor(rgba.reshape(-1, rgba.shape[2], 4), cv2.COLOR_RGBA2RGB).reshape(*rgba.shape[:3], 3)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.cameras[0].height, self.cameras[0].width

    def _look(self, n: int, first: int = 0, end: int | None = None) -> None:
        """Draw into the image of camera n, or into its rows first...end."""
        height, width = self._shape
        self._uniforms.bind_to_uniform_block(0, offset=n * BLOCK_BYTES, size=BLOCK_BYTES)
        self._context.viewport = (0, n * height + first, width, (height if end is None else end) - first)

    def _defines(self, n: int, scene: Scene, all_images: bool) -> frozenset[str]:
        """What the shaders have to do for a camera's image."""
        weather, lens = scene.weather, self.cameras[n].distortion != "none"
        wanted = {"BEAM": weather.beam > 0, "RAIN": weather.rain > 0, "IDS": all_images, "LENS": lens}
        return frozenset(name for name, is_wanted in wanted.items() if is_wanted)

    def _draw_ground(self, defines: list, T_world_from_ego: np.ndarray, T_world_from_cam: np.ndarray) -> None:
        """Sky and ground, the ground in bands of rows by what a pixel covers of it."""
        bands = [
            self._level_bands[n] if is_level(T_world_from_ego[n]) else Bands.of(camera, T_world_from_cam[n])
            for n, camera in enumerate(self.cameras)
        ]
        for n, rows in enumerate(bands):
            self._look(n, 0, rows.all_ground)
            self._programs.fill("SKY_FRAGMENT", defines[n])
        looks = ((COARSE_UNIT, 4), (FINE_UNIT, 4), (FINE_UNIT, 2), (NEAR_UNIT, 0))
        for k, (unit, taps) in enumerate(looks):  # all cameras in a row, as changing the program costs more
            for n, rows in enumerate(bands):
                first, end = rows.ends(self._shape[0])[k : k + 2]
                if first < end:
                    self._look(n, first, end)
                    how, is_fine = defines[n] | {f"TAPS {taps}"}, unit != COARSE_UNIT
                    self._programs.fill("GROUND_FRAGMENT", how, ground_map=unit, is_fine=is_fine)

    def _look_up_ground(self, scenes: Sequence[Scene], T_world_from_ego: np.ndarray) -> None:
        """Colours of sky and ground for a level car, by OpenCV."""
        self._maps.paint(scenes[0].backdrop.surfaces, T_world_from_ego[:, :2, 3].mean(axis=0))
        rgba = np.empty((len(self.cameras), *self._shape, 4), np.uint8)
        for n, (scene, T) in enumerate(zip(scenes, T_world_from_ego, strict=True)):
            self._maps.colour(self._level[n], pose_of(T), scene.weather, rgba[n])
            if scene.weather.rain:
                rain_on(rgba[n], scene, n)
        self._colour.write(rgba)

    def _draw_shadows(self, scenes: Sequence[Scene], origin: np.ndarray, T_world_from_cam: np.ndarray) -> None:
        """Darken the ground under solids."""
        shadows = [scene.shadows_m - origin[n] for n, scene in enumerate(scenes)]
        if not sum(map(len, shadows)):
            return
        self._shadows.write(np.concatenate(shadows).astype(np.float32))
        self._shadows.bind()
        self._context.enable_only(moderngl.BLEND)
        self._context.blend_func = moderngl.ZERO, moderngl.SRC_COLOR
        corners, ends = shadow_corners(scenes, T_world_from_cam)
        for n, lens in enumerate(self._lenses):
            self._look(n)
            if lens is None:
                self._programs.quads("SHADOW", frozenset(), int(ends[n]), int(ends[n + 1]))
            else:
                part = corners[ends[n] : ends[n + 1]]
                black = np.zeros((len(part), 4), np.uint8)
                self._through_lens(lens, part, black, np.zeros(len(part), np.uint32), {"LENS"}, is_shadow=True)

    def _draw_solids_through_lenses(
        self, scenes: Sequence[Scene], seen: Seen, T_world_from_cam: np.ndarray, defines: list
    ) -> None:
        pool = self._solids.pool
        corners = pool.in_cameras(seen, T_world_from_cam)
        colour, shines = lit(pool, scenes, seen, corners, self._T_ego_from_cam)
        look = np.column_stack([colour, np.where(shines, 255, 0)]).astype(np.uint8)
        instance = pool.instance[seen.face] + seen.instance[seen.solid[seen.owner]]
        ids = (pool.semantic[seen.face] + instance.astype(np.uint32) * 256).astype(np.uint32)
        for n, lens in enumerate(self._lenses):
            if lens is not None:
                self._look(n)
                part = slice(seen.ends[n], seen.ends[n + 1])
                self._through_lens(lens, corners[part], look[part], ids[part], defines[n], is_shadow=False)

    def _through_lens(
        self, lens: LensView, corners: np.ndarray, look: np.ndarray, ids: np.ndarray, defines: Set[str], is_shadow: bool
    ) -> None:
        """Faces [F, 4, 3] in the frame of a camera with a lens; look uint8 [F, 4]: colour, and 255 if it shines."""
        rows = np.zeros((len(corners), 6, 4), np.float32)
        rows[:, :5, :3], rows[:, 5] = planes(corners), lens.windows(corners)
        rows[:, 0, 3] = np.ascontiguousarray(look).view(np.float32)[:, 0]
        rows[:, 1, 3] = ids.view(np.float32)
        rows = rows[(rows[:, 5, 0] < rows[:, 5, 1]) & (rows[:, 5, 2] < rows[:, 5, 3])]
        if len(rows):
            self._context.disable(moderngl.CULL_FACE)
            self._seen.write(rows)
            self._seen.bind()
            self._programs.quads("LENS", frozenset(defines), 0, len(rows), is_shadow=is_shadow)

    def _blocks(
        self, scenes: Sequence[Scene], T_world_from_ego: np.ndarray, T_world_from_cam: np.ndarray
    ) -> np.ndarray:
        """float32 [N, CAMERA_FLOATS]: gl_shaders' block Camera of each camera."""
        out = self._fixed.copy()
        for n, (camera, scene, T) in enumerate(zip(self.cameras, scenes, T_world_from_cam, strict=True)):
            T_rel_from_cam, origin = T.copy(), T_world_from_ego[n, :2, 3]
            T_rel_from_cam[:2, 3] -= origin
            forward = T_world_from_ego[n, :2, 0] / np.linalg.norm(T_world_from_ego[n, :2, 0])
            out[n, :16] = (_clip_from_cam(camera) @ inverse(T_rel_from_cam)).T.ravel()
            out[n, 16:28].reshape(3, 4)[:, :3] = T_rel_from_cam[:3, :3].T
            out[n, 28:31] = T_rel_from_cam[:3, 3]
            out[n, 40:44] = self._ground.to_texel(FINE_M, origin)
            out[n, 44:48] = self._ground.to_texel(COARSE_M, origin)
            out[n, 48:50] = forward
            out[n, 50:52] = rain_offset(scene.time_us, n) if scene.weather.rain else 0
            out[n, 52:76] = _weather_block(scene.weather, camera.width)
        return out


def _clip_from_cam(camera: Camera) -> np.ndarray:
    """Projection [4, 4] whose rows grow downwards and whose depth is 2 NEAR_M / z - 1."""
    (fx, _, cx), (_, fy, cy) = camera.K[:2]
    width, height = camera.width, camera.height
    return np.array(
        [
            [2 * fx / width, 0, 2 * (cx + 0.5) / width - 1, 0],
            [0, 2 * fy / height, 2 * (cy + 0.5) / height - 1, 0],
            [0, 0, -1, 2 * NEAR_M],
            [0, 0, 1, 0],
        ]
    )


def _fixed_block(camera: Camera, n: int) -> np.ndarray:
    """What of a camera's block never changes."""
    out = np.zeros(gl_shaders.CAMERA_FLOATS, np.float32)
    out[31] = n * camera.height
    out[32:36] = camera.K[0, 0], camera.K[1, 1], *camera.K[:2, 2]
    out[36:38], out[39] = (camera.width, camera.height), (camera.K[0, 0] + camera.K[1, 1]) / 2
    return out


@lru_cache(maxsize=64)
def _weather_block(weather: Weather, width: int) -> np.ndarray:
    """The last six vectors of gl_shaders' block Camera."""
    return np.concatenate(
        [
            [*weather.ambient, weather.haze_m],
            [*weather.direct, weather.beam],
            [*(weather.horizon / 255), weather.rain],
            [*(weather.zenith / 255), RAIN_CELLS / (RAIN_SHARE * width)],
            [*weather.ground, weather.shadow],
            [*(weather.streak / 255), 0.0],
        ]
    )


def _rays(camera: Camera) -> np.ndarray:
    """(a, b) float32 [H, W, 2] of the pixels' rays (a, b, 1); NO_RAY where a pixel sees nothing."""
    rays = camera.pixel_rays()
    with np.errstate(invalid="ignore"):
        seen = rays[..., 2] > MIN_FORWARD
    ab = rays[..., :2] / np.where(seen, rays[..., 2], 1.0)[..., None]
    return np.where(seen[..., None], ab, NO_RAY).astype(np.float32)
