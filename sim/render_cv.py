"""The readable renderer: six cameras with numpy and OpenCV; colour, depth, semantic and instance images that agree.

The ground's paint and the weather over it are looked up per pixel (sim/ground.py), then shadows darken it, then the
faces in sight (sim/visible.py) are drawn, the nearest of each pixel (sim/raster.py). Light falls on a face as a whole,
haze on each piece of a row. Any lens model is exact, as its rays are; only cameras without one are fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from sensors.camera import Camera
from sensors.errors import InputError
from sim.ground import GroundMaps, GroundRays, is_level
from sim.raster import NUMBER_MASK, UNIT, Raster
from sim.scene import Scene
from sim.solids import COLOUR_OF_BITS
from sim.visible import Pool, Seen, Sight
from sim.weather import BEAM_COLOUR, SUN, Weather, beam_at, streaks


@dataclass(frozen=True)
class Images:
    """Per-pixel agreeing images of N cameras.

    rgb      uint8   [N, H, W, 3]
    depth    float32 [N, H, W]  m along the optical axis; inf for the sky
    semantic uint8   [N, H, W]  sim.solids.SEMANTIC
    instance int32   [N, H, W]  0: none
    """

    rgb: np.ndarray
    depth: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray


def check_rig(where: str, cameras: Sequence[Camera]) -> tuple[Camera, ...]:
    """The cameras, or an InputError: a renderer asks for one size and for cameras above the ground."""
    if len({(c.width, c.height) for c in cameras}) != 1:
        sizes = [f"{c.name} {c.width} x {c.height}" for c in cameras]
        raise InputError(where, "cameras", sizes, "at least one camera, all of one size")
    for camera in cameras:
        height = float(camera.validate(where).T_ego_from_cam[2, 3])
        if height <= 0:
            raise InputError(where, camera.name, f"a camera {height:.3g} m above ground", "a height above 0")
    return tuple(cameras)


def check_scenes(scenes: Sequence[Scene], T_world_from_ego: np.ndarray, count: int) -> None:
    """An InputError unless there are a scene and a pose for each of `count` cameras."""
    if len(scenes) != count or T_world_from_ego.shape != (count, 4, 4):
        came = f"{len(scenes)} scenes and poses {T_world_from_ego.shape}"
        raise InputError("render", "scenes, T_world_from_ego", came, f"{count} of each")


class RendererCv:
    """Renders scenes for a fixed rig of cameras of one size, which may have any lens model of sensors.camera."""

    def __init__(self, cameras: Sequence[Camera]):
        self.cameras = check_rig("RendererCv", cameras)
        self._T_ego_from_cam = np.stack([camera.T_ego_from_cam for camera in self.cameras])
        self._sight, self._pool, self._ground = Sight(self.cameras), Pool(), GroundMaps()
        self._level = [GroundRays(camera, camera.T_ego_from_cam) for camera in self.cameras]
        self._shape = self.cameras[0].height, self.cameras[0].width
        self._keys = np.empty((1, *self._shape), np.int64)
        self._raster = Raster([*self.cameras, *self.cameras])  # faces, then shadows

    def render(self, scenes: Sequence[Scene], T_world_from_ego: np.ndarray) -> Images:
        """Camera n sees scenes[n], the world at its exposure, from the ego pose T_world_from_ego[n] [4, 4]."""
        keys = np.empty((len(self.cameras), *self._shape), np.int64)
        rgb, grounds, drawn, seen = self._draw(scenes, T_world_from_ego, keys)
        depth, semantic = np.empty(keys.shape, np.float32), np.empty(keys.shape, np.uint8)
        with np.errstate(divide="ignore"):
            for n, (rays, pose) in enumerate(grounds):
                np.divide(1.0, rays.nearness, out=depth[n])
                semantic[n] = self._ground.semantic(rays, pose)
        instance = np.zeros(keys.shape, np.int32)
        instance_of = self._pool.instance[seen.face] + seen.instance[seen.solid[seen.owner]]
        for n in range(len(keys)):
            at = np.flatnonzero(keys[n])
            key = keys[n].ravel()[at]
            face = drawn.face(n)[key & NUMBER_MASK]
            depth[n].ravel()[at] = UNIT / key
            semantic[n].ravel()[at] = self._pool.semantic[seen.face][face]
            instance[n].ravel()[at] = instance_of[face]
        return Images(rgb, depth, semantic, instance)

    def render_rgb(self, scenes: Sequence[Scene], T_world_from_ego: np.ndarray) -> np.ndarray:
        """`render(...).rgb` for less."""
        return self._draw(scenes, T_world_from_ego, self._keys)[0]  # one after the other in the same place

    def _draw(self, scenes: Sequence[Scene], T_world_from_ego: np.ndarray, keys: np.ndarray):
        """Colours; rays on the ground and their pose, of each camera; what filled keys int64 [N or 1, H, W]."""
        check_scenes(scenes, T_world_from_ego, len(self.cameras))
        T_world_from_cam = T_world_from_ego @ self._T_ego_from_cam
        self._ground.paint(scenes[0].backdrop.surfaces, T_world_from_ego[:, :2, 3].mean(axis=0))
        seen = self._pool.see(scenes, T_world_from_cam, self._sight)
        corners = self._pool.in_cameras(seen, T_world_from_cam)
        shadows, shadow_ends = shadow_corners(scenes, T_world_from_cam)
        drawn = self._raster.place(
            np.concatenate([corners, shadows]), np.concatenate([seen.ends, len(corners) + shadow_ends[1:]])
        )
        colour, shines = lit(self._pool, scenes, seen, corners, self._T_ego_from_cam)
        count, grounds = len(scenes), []
        rgba, rgb = np.empty((*self._shape, 4), np.uint8), np.empty((count, *self._shape, 3), np.uint8)
        for n, scene in enumerate(scenes):
            grounds.append(self._rays(n, T_world_from_ego[n]))
            self._ground.colour(*grounds[n], scene.weather, rgba)
            _darken(rgba, drawn.pixels(count + n), scene.weather.shadow)
            key, face = keys[n % len(keys)], drawn.face(n)
            key.fill(0)
            drawn.nearest(n, key)
            _paint(rgba, key, _hazy(colour[face], shines[face], drawn.nearness(n), scene.weather))
            if scene.weather.rain:
                rain_on(rgba, scene, n)
            cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB, rgb[n])
        return rgb, grounds, drawn, seen

    def _rays(self, n: int, T_world_from_ego: np.ndarray) -> tuple[GroundRays, tuple[float, float, float]]:
        """Where the rays of camera n meet the ground, and the x, y, yaw that they are relative to."""
        if is_level(T_world_from_ego):
            return self._level[n], pose_of(T_world_from_ego)
        T_flat_from_ego = T_world_from_ego.copy()  # its rays' ground points differ from frame to frame
        T_flat_from_ego[:2, 3] = 0
        forward = T_world_from_ego[:2, 0] / np.linalg.norm(T_world_from_ego[:2, 0])
        return GroundRays(self.cameras[n], T_flat_from_ego @ self._T_ego_from_cam[n], tuple(forward)), (
            *T_world_from_ego[:2, 3],
            0.0,
        )


def pose_of(T_world_from_ego: np.ndarray) -> tuple[float, float, float]:
    """x, y, yaw of a level car."""
    return (*T_world_from_ego[:2, 3], float(np.arctan2(T_world_from_ego[1, 0], T_world_from_ego[0, 0])))


def lit(
    pool: Pool, scenes: Sequence[Scene], seen: Seen, corners: np.ndarray, T_ego_from_cam: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Colours float32 [E, 3] of the faces in this light, before haze, and whether they shine bool [E]."""
    camera, solid = seen.camera[seen.owner], seen.solid[seen.owner]
    weathers = [scene.weather for scene in scenes]
    c, s = np.cos(seen.poses[:, 2]), np.sin(seen.poses[:, 2])
    sun = np.stack([c * SUN[0] + s * SUN[1], c * SUN[1] - s * SUN[0], np.full(len(c), SUN[2])], axis=-1)
    lambert = np.maximum(np.einsum("fi,fi->f", pool.normals[seen.face], sun.astype(np.float32)[solid]), 0)
    ambient, direct = (np.array([getattr(w, name) for w in weathers]) for name in ("ambient", "direct"))
    light = ambient[camera] + direct[camera] * lambert[:, None]
    if any(weather.beam for weather in weathers):
        R, t = T_ego_from_cam[camera, :3, :3], T_ego_from_cam[camera, :3, 3]
        in_ego = (R @ corners.mean(axis=1)[..., None])[..., 0] + t
        light += (np.array([weather.beam for weather in weathers])[camera] * beam_at(in_ego))[:, None] * BEAM_COLOUR
    shining = pool.lamp[seen.face] & seen.lamps[solid]
    painted = np.clip(pool.colour[seen.face] * light, 0, 255)
    colour = np.where((shining > 0)[:, None], COLOUR_OF_BITS[shining], painted)
    return colour.astype(np.float32), shining > 0


def shadow_corners(scenes: Sequence[Scene], T_world_from_cam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners float32 [M, 4, 3] of all shadows in the frames of their cameras, and where those of each end [N + 1]."""
    parts = []
    for scene, T in zip(scenes, T_world_from_cam, strict=True):
        from_eye = np.empty((len(scene.shadows_m), 4, 3))
        from_eye[..., :2], from_eye[..., 2] = scene.shadows_m - T[:2, 3], -T[2, 3]
        parts.append((from_eye @ T[:3, :3]).astype(np.float32))
    return np.concatenate(parts), np.cumsum([0, *map(len, parts)])


def _darken(rgba: np.ndarray, at: np.ndarray, left: float) -> None:
    """Leave this share of the colour of some pixels."""
    pixels = rgba.reshape(-1, 4).view(np.uint32)[:, 0]
    colour, share = pixels[at], np.uint32(256 * left)
    odd, even = np.uint32(0xFF00FF00), np.uint32(0x00FF00FF)  # two channels at a time, with room for the product
    pixels[at] = ((colour & even) * share >> 8 & even) | ((colour >> 8 & even) * share & odd)


def _hazy(colour: np.ndarray, shines: np.ndarray, nearness: np.ndarray, weather: Weather) -> np.ndarray:
    """Colours uint32 [K] (four bytes) of colours float32 [K, 3] seen through the air, of lamps through half of it."""
    clear = np.exp(np.where(shines, np.float32(-0.5), np.float32(-1.0)) / (nearness * np.float32(weather.haze_m)))
    horizon = weather.horizon.astype(np.float32)
    out = np.full((len(colour), 4), 255, np.uint8)
    out[:, :3] = (colour - horizon) * clear[:, None] + horizon
    return out.view(np.uint32)[:, 0]


def _paint(rgba: np.ndarray, keys: np.ndarray, colour: np.ndarray) -> None:
    """Colours uint32 [K] on the pixels of these keys [H, W]."""
    at = np.flatnonzero(keys != 0)
    rgba.reshape(-1, 4).view(np.uint32)[:, 0][at] = colour[keys.ravel()[at] & NUMBER_MASK]


def rain_on(rgba: np.ndarray, scene: Scene, n: int) -> None:
    """Streaks of falling rain in the image of camera n."""
    opacity = streaks(*rgba.shape[:2], scene.time_us, n) * scene.weather.rain
    at = np.flatnonzero(opacity)
    share, pixels = opacity.ravel()[at, None], rgba.reshape(-1, 4)
    seen = pixels[at, :3]
    pixels[at, :3] = seen + (scene.weather.streak - seen) * share
