"""The readable renderer: six cameras with numpy and OpenCV; colour, depth, semantic and instance images that agree.

Solids. Let r(u, v) = (a, b, 1) be the ray of a pixel with depth 1, and p_0..p_3 a face's corners in the camera frame,
counter-clockwise seen from outside, with outward normal n. The ray meets the face iff it passes inside its four edges,
    r . (p_k x p_{k+1}) <= 0 for all k,   and the depth z of the hit follows from   1/z = n . r / n . p_0.
Both are linear in r, so a corner behind the camera needs no clipping (Olano and Greer 1997) and any lens model is
exact, as its rays are; nothing is rasterised by its outline. The nearest hit wins.

Ground. Each pixel's ray meets z = 0 in a point that is fixed in the ego frame; the ground's paint is looked up there in
two square maps around the car, a fine and a coarse one, painted when the car gets to another cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from sensors.camera import Camera
from sensors.errors import InputError
from sensors.frames import inverse
from sim.roads import Surface
from sim.scene import GROUND, HAZE_M, SEMANTIC, SKY_HORIZON, SKY_ZENITH, Faces, Scene, cross

FINE_M, COARSE_M, MAP_CELLS = 1 / 16, 1 / 4, 2048  # metres a texel; maps of 128 m and 512 m
FINE_SNAP_M, COARSE_SNAP_M = 16.0, 64.0  # the maps' centres lie on these grids: they reach 56 m and 224 m at least
FINE_REACH_M = 50.0
MIN_FORWARD = 0.05  # rays further off axis than about 87 degrees see nothing
FACE_REACH_M = 240.0
SMALL_PX = 8  # faces whose image is no larger than this are traced together
SHADOW = 0.45
GRAINS, GRAIN_CELLS = 16, 1024
GRAIN_AMPLITUDE = {"terrain": 26, "asphalt": 10, "shoulder": 20, "marking": 8}


@dataclass(frozen=True)
class Images:
    """Per-pixel agreeing images of N cameras.

    rgb      uint8   [N, H, W, 3]
    depth    float32 [N, H, W]  m along the optical axis; inf for the sky
    semantic uint8   [N, H, W]  sim.scene.SEMANTIC
    instance int32   [N, H, W]  0: none
    """

    rgb: np.ndarray
    depth: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray


class RendererCv:
    """Renders scenes for a fixed rig of cameras of one size, which may have any lens model of sensors.camera."""

    def __init__(self, cameras: Sequence[Camera]):
        if len({(c.width, c.height) for c in cameras}) != 1:
            sizes = [f"{c.name} {c.width} x {c.height}" for c in cameras]
            raise InputError("RendererCv", "cameras", sizes, "at least one camera, all of one size")
        self.cameras = tuple(camera.validate("RendererCv") for camera in cameras)
        self._views = [_View(camera) for camera in self.cameras]
        self._ground = _GroundMaps()

    def render(self, scenes: Sequence[Scene], T_world_from_ego: np.ndarray) -> Images:
        """Camera n sees scenes[n], the world at its exposure, from the ego pose T_world_from_ego[n] [4, 4]."""
        count, view = len(self._views), self.cameras[0]
        if len(scenes) != count or T_world_from_ego.shape != (count, 4, 4):
            came = f"{len(scenes)} scenes and poses {T_world_from_ego.shape}"
            raise InputError("render", "scenes, T_world_from_ego", came, f"{count} of each")
        shape = (count, view.height, view.width)
        out = Images(
            np.empty((*shape, 3), np.uint8),
            np.empty(shape, np.float32),
            np.empty(shape, np.uint8),
            np.zeros(shape, np.int32),
        )
        self._ground.paint(scenes[0].backdrop.surfaces, T_world_from_ego[:, :2, 3].mean(axis=0))
        for n, (view, scene) in enumerate(zip(self._views, scenes, strict=True)):
            self._render_one(view, scene, T_world_from_ego[n], Images(*(getattr(out, f)[n] for f in _FIELDS)))
        return out

    def _render_one(self, view: "_View", scene: Scene, T_world_from_ego: np.ndarray, out: Images) -> None:
        x, y, yaw = *T_world_from_ego[:2, 3], float(np.arctan2(T_world_from_ego[1, 0], T_world_from_ego[0, 0]))
        ground = view.level
        if not _is_level(T_world_from_ego):  # the rays' ground points differ from frame to frame
            T_flat_from_ego, yaw = T_world_from_ego.copy(), 0.0
            T_flat_from_ego[:2, 3] = 0
            ground = _GroundRays(view.camera, T_flat_from_ego @ view.camera.T_ego_from_cam)
        self._ground.look_up(ground, x, y, yaw, out)
        nearness = ground.nearness.copy()  # 1 / z of what is nearest so far; 0 is the sky
        T_cam_from_world = inverse(T_world_from_ego @ view.camera.T_ego_from_cam)
        _cast_shadows(view, scene.shadows_m, T_cam_from_world, out)
        chosen = Faces.join([view.visible(f, T_cam_from_world) for f in (scene.backdrop.props, scene.moving)])
        hit = view.trace(chosen, T_cam_from_world, nearness)
        where = np.nonzero(hit >= 0)
        index = hit[where]
        near = nearness[where]
        haze = np.exp(-1.0 / (near * HAZE_M))[:, None]
        colour = chosen.colour[index] * haze + np.array(SKY_HORIZON) * (1 - haze)
        out.rgb[where] = colour.astype(np.uint8)
        out.semantic[where], out.instance[where] = chosen.semantic[index], chosen.instance[index]
        with np.errstate(divide="ignore"):
            np.divide(1.0, nearness, out=out.depth)


_FIELDS = tuple(Images.__dataclass_fields__)


class _View:
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
        self.level = _GroundRays(camera, camera.T_ego_from_cam)

    def visible(self, faces: Faces, T_cam_from_world: np.ndarray) -> Faces:
        """The faces turned to the camera, within reach, not beyond a side of the image, and larger than a pixel."""
        R, t = T_cam_from_world[:3, :3], T_cam_from_world[:3, 3]
        centre, radius = faces.spheres
        x, y, z = R @ centre.T + t[:, None]
        (a0, b0), (a1, b1) = self.limits
        keep = (z > -radius) & (2 * radius > self.pixel_rad * np.abs(z)) & (z < FACE_REACH_M)
        for side, slope in ((x, a1), (-x, -a0), (y, b1), (-y, -b0)):
            keep &= side - slope * z < radius * np.hypot(1, slope)
        index = np.flatnonzero(keep)
        eye = -R.T @ t
        towards = np.einsum("fi,fi->f", faces.normals[index], faces.corners_m[index, 0] - eye) < 0
        return faces.take(index[towards])

    def trace(self, faces: Faces, T_cam_from_world: np.ndarray, nearness: np.ndarray) -> np.ndarray:
        """Index [H, W] int32 of the face nearest at each pixel, -1 where `nearness` has a nearer thing; updates it."""
        hit = np.full(nearness.shape, -1, np.int32)
        p = faces.corners_m @ T_cam_from_world[:3, :3].T + T_cam_from_world[:3, 3]
        plane, window = _planes(p), self._windows(p)
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

    def _windows(self, p: np.ndarray) -> np.ndarray:
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


def _planes(p: np.ndarray) -> np.ndarray:
    """Coefficients float32 [F, 5, 3] of four edge functions (>= 0 inside) and of 1/z, for corners [F, 4, 3]."""
    edges = cross(np.roll(p, -1, axis=1), p)
    edges /= np.maximum(np.linalg.norm(edges, axis=-1, keepdims=True), 1e-12)
    normal = cross(p[:, 2] - p[:, 0], p[:, 3] - p[:, 1])
    depth = normal / np.einsum("fi,fi->f", normal, p[:, 0])[:, None]
    return np.concatenate([edges, depth[:, None]], axis=1).astype(np.float32)


def _cast_shadows(view: _View, shadows_m: np.ndarray, T_cam_from_world: np.ndarray, out: Images) -> None:
    """Darken the ground under solids."""
    corners = np.concatenate([shadows_m, np.zeros((*shadows_m.shape[:2], 1))], axis=-1)
    none = np.zeros(len(corners), np.int32)
    faces = view.visible(Faces(corners, np.zeros((len(corners), 3), np.uint8), none, none), T_cam_from_world)
    p = faces.corners_m @ T_cam_from_world[:3, :3].T + T_cam_from_world[:3, 3]
    plane = _planes(p)
    for f, (x0, x1, y0, y1) in enumerate(view._windows(p)):
        if x0 < x1 and y0 < y1:
            inside = (view._linear(plane[f], x0, x1, y0, y1)[:4].min(axis=0) >= 0) & (out.semantic[y0:y1, x0:x1] > 0)
            window = out.rgb[y0:y1, x0:x1]
            window[inside] = (window[inside] * SHADOW).astype(np.uint8)


def _is_level(T_world_from_ego: np.ndarray) -> bool:
    T = T_world_from_ego
    return bool(T[2, 2] == 1.0 and not T[2, [0, 1, 3]].any() and not T[:2, 2].any())


class _GroundRays:
    """Where the pixels of a camera meet the ground z = 0, and the sky above it.

    Points are relative to the ego origin, in the axes of frame `flat`, whose z axis is vertical and whose height is the
    world's. Colour is looked up on a finer grid and averaged, as a pixel at 30 m covers some metres of road; classes at
    the pixels' centres. `top` and `split` are the first row with any ground, and the first from which all is near.
    """

    def __init__(self, camera: Camera, T_flat_from_cam: np.ndarray):
        height = float(T_flat_from_cam[2, 3])
        if height <= 0:
            raise InputError("render", camera.name, f"a camera {height:.3g} m above ground", "a height above 0")
        columns, rows = (2, 4) if camera.width < 320 else (1, 2)
        fine = camera.resize(camera.width * columns, camera.height * rows)[1]
        self.fine_points, _, fine_blind = _meet_ground(fine, T_flat_from_cam)
        self.points, nearness, self.blind = _meet_ground(camera, T_flat_from_cam)
        self.nearness = np.where(nearness > 0, nearness, 0).astype(np.float32)
        self.rows = rows
        distance = np.where(fine_blind, 0, np.abs(self.fine_points).max(axis=-1)).max(axis=1)
        far = np.flatnonzero(distance.reshape(-1, rows).max(axis=1) > FINE_REACH_M)
        self.split = int(far[-1]) + 1 if len(far) else 0
        ground = np.flatnonzero((self.nearness > 0).any(axis=1))
        self.top = int(ground[0]) if len(ground) else camera.height
        share = np.clip(np.nan_to_num(camera.pixel_rays() @ T_flat_from_cam[2, :3]) / 0.45, 0, 1)[..., None]
        sky = np.array(SKY_HORIZON) * (1 - share) + np.array(SKY_ZENITH) * share
        self.sky = np.where(self.blind[..., None], 0, sky).astype(np.uint8)
        self.is_sky = self.nearness <= 0
        with np.errstate(divide="ignore"):
            self.haze = np.exp(-1.0 / (self.nearness * HAZE_M)).astype(np.float32)[..., None]
        self.veil = (1 - self.haze) * np.array(SKY_HORIZON, np.float32)


def _meet_ground(camera: Camera, T_flat_from_cam: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ground points float32 [H, W, 2] (far away where there is none), 1/z [H, W], and pixels without a ray [H, W]."""
    rays, R = camera.pixel_rays(), T_flat_from_cam[:3, :3]
    with np.errstate(invalid="ignore", divide="ignore"):
        blind = ~(rays[..., 2] > MIN_FORWARD)
        ray = rays / np.where(blind, np.nan, rays[..., 2])[..., None]
        nearness = np.nan_to_num(-(ray @ R[2]) / T_flat_from_cam[2, 3])
        points = ray / nearness[..., None] @ R[:2].T + T_flat_from_cam[:2, 3]
    met = (nearness > 1e-6)[..., None] & np.isfinite(points)
    return np.where(met, points, 1e6).astype(np.float32), nearness, blind


class _GroundMaps:
    """The ground's classes and colours around the car, painted from the surfaces' polygons."""

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

    def paint(self, surfaces: tuple[Surface, ...], near_m: np.ndarray) -> None:
        """Make the maps around this position current: the cell of a grid decides, not the way there."""
        if self._surfaces is not surfaces:
            self._surfaces, self._maps = surfaces, {}
            self._bounds = np.array([[s.outline_m.min(0), s.outline_m.max(0)] for s in surfaces]).reshape(-1, 2, 2)
        for cell_m, snap_m in ((FINE_M, FINE_SNAP_M), (COARSE_M, COARSE_SNAP_M)):
            centre = np.round(near_m / snap_m) * snap_m
            made = self._maps.get(cell_m)
            if made is None or (made[0] != centre).any():
                self._maps[cell_m] = (centre, *self._painted(cell_m, centre))

    def _painted(self, cell_m: float, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class [M, M] and colour [M, M, 3] maps; rows along world y, columns along x."""
        low = centre - cell_m * MAP_CELLS / 2
        classes = np.zeros((MAP_CELLS, MAP_CELLS), np.uint8)
        inside = (self._bounds[:, 1] > low) & (self._bounds[:, 0] < low + cell_m * MAP_CELLS)
        for k in np.flatnonzero(inside.all(axis=1)):
            surface = self._surfaces[k]
            corners = np.round(((surface.outline_m - low) / cell_m - 0.5) * 16).astype(np.int32)
            cv2.fillPoly(classes, [corners], self._class_of[surface.kind], shift=4)
        shift = -np.round(low / cell_m).astype(int) % GRAIN_CELLS
        times = MAP_CELLS // GRAIN_CELLS
        grain = np.tile(np.roll(self._grain, (shift[1], shift[0]), axis=(0, 1)), (times, times))
        index = classes * np.uint8(GRAINS) + grain
        return classes, cv2.LUT(cv2.merge([index] * 3), self._colours)

    def look_up(self, ground: _GroundRays, x_m: float, y_m: float, yaw_rad: float, out: Images) -> None:
        """Fill colour, semantic and instance with ground and sky, for rays turned by yaw and moved to x, y."""
        height, width = out.semantic.shape
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        out.rgb[:], out.semantic[:], out.instance[:] = ground.sky, SEMANTIC["sky"], 0
        for cell_m, first, last in (
            (COARSE_M, ground.top, ground.split),
            (FINE_M, max(ground.split, ground.top), height),
        ):
            if first >= last:
                continue
            centre, classes, colours = self._maps[cell_m]
            low = centre - cell_m * MAP_CELLS / 2
            texel_from_ego = np.array([[c, -s, x_m - low[0]], [s, c, y_m - low[1]]]) / cell_m
            texel_from_ego[:, 2] -= 0.5
            at = cv2.transform(ground.fine_points[first * ground.rows : last * ground.rows], texel_from_ego)
            colour = cv2.remap(colours, at, None, cv2.INTER_LINEAR, borderValue=SKY_HORIZON)
            colour = cv2.resize(colour, (width, last - first), interpolation=cv2.INTER_AREA)
            hazy = (colour * ground.haze[first:last] + ground.veil[first:last]).astype(np.uint8)
            at = cv2.transform(ground.points[first:last], texel_from_ego)
            kind = cv2.LUT(cv2.remap(classes, at, None, cv2.INTER_NEAREST, borderValue=0), self._semantic)
            is_ground = ~ground.is_sky[first:last]
            np.copyto(out.rgb[first:last], hazy, where=is_ground[..., None])
            np.copyto(out.semantic[first:last], kind, where=is_ground)
