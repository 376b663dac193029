"""The readable renderer: six cameras with numpy and OpenCV; colour, depth, semantic and instance images that agree.

Solids. Let r(u, v) = (a, b, 1) be the ray of a pixel with depth 1, and p_0..p_3 a face's corners in the camera frame,
counter-clockwise seen from outside, with outward normal n. The ray meets the face iff it passes inside its four edges,
    r . (p_k x p_{k+1}) <= 0 for all k,   and the depth z of the hit follows from   1/z = n . r / n . p_0.
Both are linear in r, so a corner behind the camera needs no clipping (Olano and Greer 1997) and any lens model is
exact, as its rays are; nothing is rasterised by its outline. The nearest hit wins.

The ground's paint and the weather over it are looked up per pixel: see sim/ground.py. Light falls on a face as a whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensors.camera import Camera
from sensors.errors import InputError
from sensors.frames import inverse
from sim.ground import MIN_FORWARD, GroundMaps, GroundRays, is_level
from sim.scene import Scene
from sim.solids import Faces, cross
from sim.weather import BEAM_COLOUR, SUN, Weather, beam_at, streaks

FACE_REACH_M = 240.0
SMALL_PX = 8  # faces whose image is no larger than this are traced together


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
        self._views = [View(camera) for camera in self.cameras]
        self._ground = GroundMaps()

    def render(self, scenes: Sequence[Scene], T_world_from_ego: np.ndarray) -> Images:
        """Camera n sees scenes[n], the world at its exposure, from the ego pose T_world_from_ego[n] [4, 4]."""
        count, view = len(self._views), self.cameras[0]
        check_scenes(scenes, T_world_from_ego, count)
        shape = (count, view.height, view.width)
        out = Images(
            np.empty((*shape, 3), np.uint8),
            np.empty(shape, np.float32),
            np.empty(shape, np.uint8),
            np.zeros(shape, np.int32),
        )
        self._ground.paint(scenes[0].backdrop.surfaces, T_world_from_ego[:, :2, 3].mean(axis=0))
        for n, (view, scene) in enumerate(zip(self._views, scenes, strict=True)):
            self._render_one(n, view, scene, T_world_from_ego[n], Images(*(getattr(out, f)[n] for f in _FIELDS)))
        return out

    def render_rgb(self, scenes: Sequence[Scene], T_world_from_ego: np.ndarray) -> np.ndarray:
        """`render(...).rgb`, which costs as much here."""
        return self.render(scenes, T_world_from_ego).rgb

    def _render_one(self, number: int, view: "View", scene: Scene, T_world_from_ego: np.ndarray, out: Images) -> None:
        x, y, yaw = *T_world_from_ego[:2, 3], float(np.arctan2(T_world_from_ego[1, 0], T_world_from_ego[0, 0]))
        ground = view.level
        if not is_level(T_world_from_ego):  # the rays' ground points differ from frame to frame
            T_flat_from_ego, yaw = T_world_from_ego.copy(), 0.0
            T_flat_from_ego[:2, 3] = 0
            forward = T_world_from_ego[:2, 0] / np.linalg.norm(T_world_from_ego[:2, 0])
            ground = GroundRays(view.camera, T_flat_from_ego @ view.camera.T_ego_from_cam, tuple(forward))
        weather = scene.weather
        self._ground.look_up(ground, x, y, yaw, weather, out)
        nearness = ground.nearness.copy()  # 1 / z of what is nearest so far; 0 is the sky
        T_cam_from_world = inverse(T_world_from_ego @ view.camera.T_ego_from_cam)
        _cast_shadows(view, scene.shadows_m, T_cam_from_world, weather.shadow, out)
        chosen = view.seen(scene, T_cam_from_world)
        hit = view.trace(chosen, T_cam_from_world, nearness)
        where = np.flatnonzero(hit >= 0)
        index, near = hit.ravel()[where], nearness.ravel()[where]
        through = np.where(chosen.lamp > 0, np.float32(0.5), np.float32(1.0))[index]
        haze = np.exp(-through / (near * np.float32(weather.haze_m)))[:, None]
        horizon = weather.horizon.astype(np.float32)
        colour = lit(chosen, weather, inverse(T_world_from_ego)).astype(np.float32)[index]
        colour -= horizon
        colour *= haze
        colour += horizon
        out.rgb.reshape(-1, 3)[where] = colour.astype(np.uint8)
        out.semantic.reshape(-1)[where] = chosen.semantic[index]
        out.instance.reshape(-1)[where] = chosen.instance[index]
        if weather.rain:
            streak = (streaks(*out.semantic.shape, scene.time_us, number) * weather.rain)[..., None]
            out.rgb[:] = out.rgb + (weather.streak - out.rgb) * streak
        with np.errstate(divide="ignore"):
            np.divide(1.0, nearness, out=out.depth)


_FIELDS = tuple(Images.__dataclass_fields__)


def lit(faces: Faces, weather: Weather, T_ego_from_world: np.ndarray) -> np.ndarray:
    """Colours uint8 [F, 3] of faces in this light, before haze."""
    light = weather.ambient + weather.direct * np.maximum(faces.normals @ SUN, 0.0)[:, None]
    if weather.beam:
        centre = faces.spheres[0] @ T_ego_from_world[:3, :3].T + T_ego_from_world[:3, 3]
        light = light + (weather.beam * beam_at(centre))[:, None] * BEAM_COLOUR
    return np.where((faces.lamp > 0)[:, None], faces.colour, np.clip(faces.colour * light, 0, 255)).astype(np.uint8)


class View:
    """A camera with its rays, and where a range of rays lies in the image."""

    def __init__(self, camera: Camera):
        self.camera = camera
        rays = camera.pixel_rays()
        with np.errstate(invalid="ignore"):
            seen = rays[..., 2] > MIN_FORWARD
        ab = np.where(seen[..., None], rays[..., :2] / np.where(seen, rays[..., 2], 1.0)[..., None], np.nan)
        self.separable = camera.distortion == "none"
        self.a, self.b = ab[..., 0].astype(np.float32), ab[..., 1].astype(np.float32)
        self.blind = ~seen
        # a rises along columns and b along rows, so what lies in a range of a or b is a run of columns or rows.
        with np.errstate(invalid="ignore"):
            low = np.where(seen, self.a, np.inf).min(axis=0), np.where(seen, self.b, np.inf).min(axis=1)
            high = np.where(seen, self.a, -np.inf).max(axis=0), np.where(seen, self.b, -np.inf).max(axis=1)
        self.highest = [np.maximum.accumulate(h) for h in high]
        self.lowest = [np.minimum.accumulate(v[::-1])[::-1] for v in low]
        self.limits = np.array([[low[0].min(), low[1].min()], [high[0].max(), high[1].max()]])
        self.pixel_rad = float(1 / camera.K[0, 0])
        self.level = GroundRays(camera, camera.T_ego_from_cam)

    def in_sight(self, centre: np.ndarray, radius: np.ndarray, T_cam_from_world: np.ndarray) -> np.ndarray:
        """Which of spheres [F, 3], [F] are within reach, not beyond a side of the image, and larger than a pixel."""
        x, y, z = T_cam_from_world[:3, :3] @ centre.T + T_cam_from_world[:3, 3:]
        (a0, b0), (a1, b1) = self.limits
        keep = (z > -radius) & (2 * radius > self.pixel_rad * np.abs(z)) & (z < FACE_REACH_M)
        for side, slope in ((x, a1), (-x, -a0), (y, b1), (-y, -b0)):
            keep &= side - slope * z < radius * np.hypot(1, slope)
        return np.flatnonzero(keep)

    def visible(self, faces: Faces, T_cam_from_world: np.ndarray) -> Faces:
        """The faces in sight that are turned to the camera."""
        index = self.in_sight(*faces.spheres, T_cam_from_world)
        eye = -T_cam_from_world[:3, :3].T @ T_cam_from_world[:3, 3]
        towards = np.einsum("fi,fi->f", faces.normals[index], faces.corners_m[index, 0] - eye) < 0
        return faces.take(index[towards])

    def seen(self, scene: Scene, T_cam_from_world: np.ndarray) -> Faces:
        """The visible faces of a scene."""
        moving = scene.moving.take(self.in_sight(*scene.moving.spheres, T_cam_from_world)).faces
        return Faces.join([self.visible(faces, T_cam_from_world) for faces in (scene.backdrop.props, moving)])

    def trace(self, faces: Faces, T_cam_from_world: np.ndarray, nearness: np.ndarray) -> np.ndarray:
        """Index [H, W] int32 of the face nearest at each pixel, -1 where `nearness` has a nearer thing; updates it."""
        hit = np.full(nearness.shape, -1, np.int32)
        p = faces.corners_m @ T_cam_from_world[:3, :3].T + T_cam_from_world[:3, 3]
        plane, window = planes(p), self.windows(p)
        width, height = window[:, 1] - window[:, 0], window[:, 3] - window[:, 2]
        there = (width > 0) & (height > 0)
        small = (width <= SMALL_PX) & (height <= SMALL_PX)
        self._trace_small(np.flatnonzero(there & small), plane, window, nearness, hit)
        for f in np.flatnonzero(there & ~small):
            x0, x1, y0, y1 = window[f]
            block = self._linear(plane[f], x0, x1, y0, y1)
            nearest = nearness[y0:y1, x0:x1]
            inside = block[:4].min(axis=0) >= 0
            inside &= block[4] > nearest
            np.copyto(nearest, block[4], where=inside)
            np.copyto(hit[y0:y1, x0:x1], f, where=inside)
        return hit

    def _trace_small(self, index, plane, window, nearness: np.ndarray, hit: np.ndarray) -> None:
        """The same as the loop in `trace`, at once for the faces [S] whose windows are small, which are most."""
        step = np.arange(SMALL_PX)
        x, y = window[index, 0, None] + step, window[index, 2, None] + step  # [S, SMALL_PX]
        valid = (y < window[index, 3, None])[:, :, None] & (x < window[index, 1, None])[:, None]
        pixel = np.minimum(y, hit.shape[0] - 1)[:, :, None] * hit.shape[1] + np.minimum(x, hit.shape[1] - 1)[:, None]
        a, b = self.a.ravel()[pixel], self.b.ravel()[pixel]  # [S, SMALL_PX, SMALL_PX]
        c = plane[index][..., None, None]
        value = [c[:, k, 0] * a + (c[:, k, 1] * b + c[:, k, 2]) for k in range(5)]
        for edge in value[:4]:
            valid &= edge >= 0
        valid &= value[4] > nearness.ravel()[pixel]
        pixel, near, face = pixel[valid], value[4][valid], np.broadcast_to(index[:, None, None], valid.shape)[valid]
        order = np.lexsort((-face, near))  # written from far to near, so that the nearest stays; of two, the first
        nearness.reshape(-1)[pixel[order]] = near[order]
        hit.reshape(-1)[pixel[order]] = face[order]

    def _linear(self, coefficients: np.ndarray, x0: int, x1: int, y0: int, y1: int) -> np.ndarray:
        """c_0 a + c_1 b + c_2 over a window, float32 [C, h, w], of coefficients [C, 3]."""
        c = coefficients[:, :, None, None]
        if self.separable:  # a depends on the column only, b on the row only
            return c[:, 0] * self.a[:1, x0:x1] + (c[:, 1] * self.b[y0:y1, :1] + c[:, 2])
        return c[:, 0] * self.a[y0:y1, x0:x1] + (c[:, 1] * self.b[y0:y1, x0:x1] + c[:, 2])

    def windows(self, p: np.ndarray) -> np.ndarray:
        """Column and row ranges [F, 4] (x0, x1, y0, y1) that hold the faces' [F, 4, 3] images, cut at a near plane."""
        near = 0.01
        q = np.roll(p, -1, axis=1)
        crosses = (p[..., 2] < near) != (q[..., 2] < near)
        share = (near - p[..., 2]) / np.where(crosses, q[..., 2] - p[..., 2], 1.0)
        cut = p + share[..., None] * (q - p)
        points = np.concatenate([p, cut], axis=1)
        valid = np.concatenate([p[..., 2] >= near, crosses], axis=1)
        ab = points[..., :2] / np.where(valid, points[..., 2], 1.0)[..., None]
        low = np.where(valid[..., None], ab, np.inf).min(axis=1).astype(np.float32)
        high = np.where(valid[..., None], ab, -np.inf).max(axis=1).astype(np.float32)
        columns = np.searchsorted(self.highest[0], low[:, 0]), np.searchsorted(self.lowest[0], high[:, 0], side="right")
        rows = np.searchsorted(self.highest[1], low[:, 1]), np.searchsorted(self.lowest[1], high[:, 1], side="right")
        return np.stack([*columns, *rows], axis=1)


def planes(p: np.ndarray) -> np.ndarray:
    """Coefficients float32 [F, 5, 3] of four edge functions (>= 0 inside) and of 1/z, for corners [F, 4, 3]."""
    edges = cross(np.roll(p, -1, axis=1), p)
    edges /= np.maximum(np.linalg.norm(edges, axis=-1, keepdims=True), 1e-12)
    normal = cross(p[:, 2] - p[:, 0], p[:, 3] - p[:, 1])
    depth = normal / np.einsum("fi,fi->f", normal, p[:, 0])[:, None]
    return np.concatenate([edges, depth[:, None]], axis=1).astype(np.float32)


def ground_faces(outlines_m: np.ndarray) -> Faces:
    """Black faces on the ground, turned up, of outlines [M, 4, 2]."""
    corners = np.concatenate([outlines_m, np.zeros((*outlines_m.shape[:2], 1))], axis=-1)
    none = np.zeros(len(corners), np.int32)
    return Faces(corners, np.zeros((len(corners), 3), np.uint8), none.astype(np.uint8), none)


def _cast_shadows(view: View, shadows_m: np.ndarray, T_cam_from_world: np.ndarray, left: float, out: Images) -> None:
    """Darken the ground under solids: this much is left of its colour."""
    faces = view.visible(ground_faces(shadows_m), T_cam_from_world)
    p = faces.corners_m @ T_cam_from_world[:3, :3].T + T_cam_from_world[:3, 3]
    plane = planes(p)
    for f, (x0, x1, y0, y1) in enumerate(view.windows(p)):
        if x0 < x1 and y0 < y1:
            inside = (view._linear(plane[f], x0, x1, y0, y1)[:4].min(axis=0) >= 0) & (out.semantic[y0:y1, x0:x1] > 0)
            window = out.rgb[y0:y1, x0:x1]
            window[inside] = (window[inside] * left).astype(np.uint8)
