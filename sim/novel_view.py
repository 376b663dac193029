"""What the cameras of a car would see that is not where the recorded one was: its images, re-projected.

For each camera the two recorded images taken nearest are warped to the new pose. How far away each pixel is tells a
plane sweep (Collins 1996): of the ground plane and of planes across the view at several inverse depths w, the one on
which both images agree best,

    x_source ~ K (R K^-1 x + w t),    w = 1 / z,  linear in x on any plane

at a quarter of the size, which is all a step of a simulation has time for. Where only one image is near, it is the
ground, and FAR_M away what is not ground.

Who is elsewhere than when an image was taken, is cut out of it (the outline of its box) and put where it is now: where
a pixel's ray meets the box says where it was in the image. What no image shows is drawn, and counted:
`Shown.hole_share`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from sensors.camera import Camera
from sensors.errors import InputError
from sensors.frames import inverse, matrix_from_xy_yaw, wrap
from sensors.nuscenes_source import picture, read_bytes
from sensors.recorded_drive import RecordedActor, RecordedDrive
from sim.render_cv import Images, RendererCv
from sim.render_gl import RendererGl
from sim.scene import Scene
from sim.traffic_log import poses_at_times
from sim.views import RECORDED, RENDERED, REPROJECTED, Shown
from sim.visible import MIN_FORWARD

SAME_M, SAME_RAD, SAME_US = 0.01, 0.001, 20_000  # nearer than this, an image is the recorded one
MOVED_M, MOVED_RAD = 0.15, 0.03  # who is this near to where it was, is part of what stands still
RAD_M, S_M = 8.0, 0.2  # a radian of another heading, a second of another time, count like so many metres
MOST_AWAY_M = 12.0  # images from further away show nothing that would help
BASE_M = 0.6  # least distance between two images that tells depths
SWEEP_PART = 4  # of the image's width and height
NEAREST_M, PLANES, FAR_M = 3.5, 18, 40.0
GROUND_SLACK = 12.0  # grey levels that two images may differ by and still show the ground: most of what is low is
WINDOW = (5, 5)
CUT_MARGIN_M, CUT_PX = 0.15, 2
NEAR_M, FAR_PX = 0.3, 4000.0
KEPT = 128  # decoded images
OPAQUE = 250
CORNERS = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])


@dataclass(frozen=True)
class _Shot:
    """One recorded image as a source: rgba uint8 [H, W, 4], opaque where it shows what stood still; small, of it; poses
    of all actors when it was taken [A, 3], and who was there."""

    rgba: np.ndarray
    small: np.ndarray
    T_world_from_cam: np.ndarray
    poses: np.ndarray
    there: np.ndarray


class NovelView:
    """Renders scenes for the rig of a recorded drive, like the renderer it is given, which draws what no image shows.

    shown  N Shown: how the images of the last call came about
    """

    def __init__(self, renderer: RendererGl | RendererCv, drive: RecordedDrive):
        self.renderer, self.cameras, self.drive = renderer, renderer.cameras, drive
        for camera in self.cameras:
            if camera.distortion != "none":
                fix = "Undistort the images, or drive with --views rendered."
                raise InputError(drive.name, f"lens of {camera.name}", camera.distortion, "undistorted images", fix)
        self.shown: tuple[Shown, ...] = ()
        self._size = self.cameras[0].width, self.cameras[0].height
        self._small = [c.resize(max(c.width // SWEEP_PART, 8), max(c.height // SWEEP_PART, 6))[1] for c in self.cameras]
        self._T_world_from_cam = [
            shots.T_world_from_ego @ c.T_ego_from_cam for shots, c in zip(drive.shots, self.cameras, strict=True)
        ]
        self._actors = drive.actors()
        self._tracks = [_tracks(self._actors, shots.time_us) for shots in drive.shots]
        self._box_m = np.array([a.size_lwh_m for a in self._actors]).reshape(-1, 3)
        self._middle_m = np.array([a.T_world_from_box[:, 2, 3].mean() for a in self._actors])
        self._shot = lru_cache(maxsize=KEPT)(self._read)

    def render_rgb(self, scenes: Sequence[Scene], T_world_from_ego: np.ndarray) -> np.ndarray:
        """Camera n sees scenes[n], the world at its exposure, from the ego pose T_world_from_ego[n] [4, 4]."""
        return self._reproject(self.renderer.render_rgb(scenes, T_world_from_ego), scenes, T_world_from_ego)

    def render(self, scenes: Sequence[Scene], T_world_from_ego: np.ndarray) -> Images:
        """The same, with depth, semantic and instance images as they are drawn."""
        drawn = self.renderer.render(scenes, T_world_from_ego)
        return replace(drawn, rgb=self._reproject(drawn.rgb, scenes, T_world_from_ego))

    def _reproject(self, drawn: np.ndarray, scenes: Sequence[Scene], T_world_from_ego: np.ndarray) -> np.ndarray:
        T_world_from_cam = [T @ c.T_ego_from_cam for T, c in zip(T_world_from_ego, self.cameras, strict=True)]
        seen = [self.view(n, T, scenes[n], drawn[n]) for n, T in enumerate(T_world_from_cam)]
        self.shown = tuple(shown for _, shown in seen)
        return np.stack([image for image, _ in seen])

    def view(
        self, n: int, T: np.ndarray, scene: Scene, drawn: np.ndarray, without: frozenset[int] = frozenset()
    ) -> tuple[np.ndarray, Shown]:
        """The image of camera n at T_world_from_cam, what no image shows as it is drawn [H, W, 3]; without these of its
        shots, which a test holds out."""
        near = self._nearest(n, T, scene.time_us, without)
        if not near:
            return drawn, Shown(RENDERED, 1.0)
        shots = [self._shot(n, s) for s in near]
        now, there = self._now(scene)
        moved = [_moved(shot, now, there) for shot in shots]
        if self._is_recorded(n, near[0], T, scene.time_us) and not moved[0].any():
            return self.recorded(n, near[0]), Shown(RECORDED, 0.0)
        camera, nearness = self.cameras[n], self._inverse_depth(n, T, shots)
        out = None
        for shot, elsewhere in zip(shots, moved, strict=True):
            rgba = self._without(shot, camera, elsewhere & shot.there)
            out = _warped(camera, T, nearness, shot.T_world_from_cam, rgba, out)
        same_time = int(np.argmin(np.abs(self.drive.shots[n].time_us - scene.time_us)))
        sources = shots if same_time in (*near, *without) else [*shots, self._shot(n, same_time)]
        here = np.flatnonzero(moved[0] & there)
        away_m = np.hypot(*(now[here, :2] - T[:2, 3]).T)
        for a in here[np.argsort(-away_m)]:
            self._put(out, a, now[a], camera, T, sources)
        holes = out[..., 3] <= OPAQUE
        out[holes, :3] = drawn[holes]
        return np.ascontiguousarray(out[..., :3]), Shown(REPROJECTED, float(holes.mean()))

    def recorded(self, n: int, s: int) -> np.ndarray:
        """Shot s of camera n as it was recorded, uint8 [H, W, 3]."""
        return np.ascontiguousarray(self._shot(n, s).rgba[..., :3])

    def actors_at(self, n: int, s: int) -> tuple[np.ndarray, np.ndarray]:
        """Poses [A, 3] of all actors when shot s of camera n was taken, and who was there."""
        poses, there = self._tracks[n]
        return poses[s], there[s]

    def _read(self, n: int, s: int) -> _Shot:
        shots, camera = self.drive.shots[n], self.cameras[n]
        path = shots.paths[s]
        rgb = picture(read_bytes(path), path, self.drive.cameras[n], self._size)
        small = camera.resize(self._small[n].width, self._small[n].height, rgb)[0]
        rgba = cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA)
        return _Shot(rgba, small, self._T_world_from_cam[n][s], *self.actors_at(n, s))

    def _nearest(self, n: int, T: np.ndarray, time_us: int, without: frozenset[int]) -> list[int]:
        """The nearest shot of camera n, and the next that is BASE_M away from it; as far as there are any."""
        of = self._T_world_from_cam[n]
        if not len(of):
            return []
        away_m = np.linalg.norm(of[:, :3, 3] - T[:3, 3], axis=1)
        turned = np.arccos(np.clip(of[:, :3, 2] @ T[:3, 2], -1.0, 1.0))
        late_s = np.abs(self.drive.shots[n].time_us - time_us) * 1e-6
        cost = away_m + RAD_M * turned + S_M * late_s
        cost[[*without, *np.flatnonzero(away_m > MOST_AWAY_M).tolist()]] = np.inf
        first = int(np.argmin(cost))
        if not np.isfinite(cost[first]):
            return []
        cost[np.linalg.norm(of[:, :3, 3] - of[first, :3, 3], axis=1) < BASE_M] = np.inf
        second = int(np.argmin(cost))
        return [first, second] if np.isfinite(cost[second]) else [first]

    def _is_recorded(self, n: int, s: int, T: np.ndarray, time_us: int) -> bool:
        of, shots = self._T_world_from_cam[n][s], self.drive.shots[n]
        turned = np.arccos(np.clip((np.trace(of[:3, :3].T @ T[:3, :3]) - 1) / 2, -1.0, 1.0))
        near = np.linalg.norm(of[:3, 3] - T[:3, 3]) < SAME_M and turned < SAME_RAD
        return bool(near and abs(int(shots.time_us[s]) - time_us) < SAME_US)

    def _now(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        """Poses [A, 3] of the actors in a scene, and who is there."""
        poses, there = np.zeros((len(self._actors), 3)), np.zeros(len(self._actors), bool)
        mine = scene.moving.instance <= len(self._actors)
        index = scene.moving.instance[mine] - 1
        poses[index], there[index] = scene.moving.poses[mine], True
        return poses, there

    def _inverse_depth(self, n: int, T: np.ndarray, shots: list[_Shot]) -> np.ndarray:
        """w float32 [H, W] of the pixels of camera n at T."""
        small = self._small[n]
        ground = _ground(small, T)
        if len(shots) < 2:
            nearness = np.where(ground > 1 / FAR_M, ground, np.float32(1 / FAR_M))
        else:
            nearness = _sweep(small, T, shots, ground)
        return cv2.resize(nearness, self._size, interpolation=cv2.INTER_LINEAR)

    def _without(self, shot: _Shot, camera: Camera, cut: np.ndarray) -> np.ndarray:
        """An image from which the outlines of the boxes of these actors are cut."""
        outlines = [hull for a in np.flatnonzero(cut) if (hull := self._outline(a, shot, camera)) is not None]
        if not outlines:
            return shot.rgba
        alpha = np.zeros(shot.rgba.shape[:2], np.uint8)
        for hull in outlines:
            cv2.fillConvexPoly(alpha, hull, 255)
        alpha = cv2.dilate(alpha, np.ones((2 * CUT_PX + 1,) * 2, np.uint8))
        rgba = shot.rgba.copy()
        rgba[..., 3] = np.where(alpha > 0, 0, rgba[..., 3])
        return rgba

    def _outline(self, a: int, shot: _Shot, camera: Camera) -> np.ndarray | None:
        """Convex outline int32 [V, 1, 2] of an actor's box in an image, None where it is not in it."""
        return _outline(self._box(a, shot.poses[a]), self._box_m[a] + 2 * CUT_MARGIN_M, shot.T_world_from_cam, camera)

    def _box(self, a: int, pose: np.ndarray) -> np.ndarray:
        """T_world_from_box [4, 4] of an actor at a pose x, y, yaw."""
        T = matrix_from_xy_yaw(*pose)
        T[2, 3] = self._middle_m[a]
        return T

    def _put(
        self, out: np.ndarray, a: int, pose: np.ndarray, camera: Camera, T: np.ndarray, shots: list[_Shot]
    ) -> None:
        """An actor into an image [H, W, 4] seen from T, from the first of some images that shows it; a hole where none
        does."""
        box = self._box(a, pose)
        outline = _outline(box, self._box_m[a], T, camera)
        if outline is None:
            return
        (u0, v0), (u1, v1) = np.maximum(outline[:, 0].min(axis=0), 0), outline[:, 0].max(axis=0) + 1
        v, u = np.mgrid[v0 : min(v1, camera.height), u0 : min(u1, camera.width)]
        if not u.size:
            return
        on_box, hit = _meet_box(camera, inverse(box) @ T, u, v, self._box_m[a])
        part = out[v0 : v0 + u.shape[0], u0 : u0 + u.shape[1]]
        part[hit, 3] = 0
        for shot in shots:
            if not shot.there[a]:
                continue
            T_cam_from_box = inverse(shot.T_world_from_cam) @ self._box(a, shot.poses[a])
            x, y, z = np.moveaxis(on_box @ T_cam_from_box[:3, :3].T + T_cam_from_box[:3, 3], -1, 0)
            z = np.where(z > MIN_FORWARD, z, 1e-6)
            x, y = camera.K[0, 0] * x / z + camera.K[0, 2], camera.K[1, 1] * y / z + camera.K[1, 2]
            x, y = (np.clip(c, -1e4, 1e4).astype(np.float32) for c in (x, y))
            seen = cv2.remap(shot.rgba, x, y, cv2.INTER_LINEAR)
            new = hit & (part[..., 3] == 0) & (seen[..., 3] > OPAQUE)
            part[new] = seen[new]


def _warped(
    camera: Camera,
    T: np.ndarray,
    nearness: np.ndarray,
    T_source: np.ndarray,
    rgba: np.ndarray,
    so_far: np.ndarray | None,
) -> np.ndarray:
    """uint8 [H, W, 4]: one image as it looks from T; of a picture that others have filled in part, only the rest."""
    between = _between(camera, T, camera, T_source)
    if so_far is None:
        u = np.arange(camera.width, dtype=np.float32)[None]
        v = np.arange(camera.height, dtype=np.float32)[:, None]
        return cv2.remap(rgba, *_source_pixels(*between, u, v, nearness), cv2.INTER_LINEAR)
    v, u = np.nonzero(so_far[..., 3] <= OPAQUE)
    if len(v):
        x, y = _source_pixels(*between, *(c.astype(np.float32) for c in (u, v)), nearness[v, u])
        shape = -(-len(v) // 256), 256  # remap takes no array of more than 32,766 rows
        found = cv2.remap(rgba, np.resize(x, shape), np.resize(y, shape), cv2.INTER_LINEAR)
        so_far[v, u] = found.reshape(-1, 4)[: len(v)]
    return so_far


def _outline(T_world_from_box: np.ndarray, size_m: np.ndarray, T: np.ndarray, camera: Camera) -> np.ndarray | None:
    """Convex outline int32 [V, 1, 2] of a box as a camera at T_world_from_cam sees it, None where it does not."""
    T_cam_from_box = inverse(T) @ T_world_from_box
    in_cam = CORNERS * size_m @ T_cam_from_box[:3, :3].T + T_cam_from_box[:3, 3]
    if in_cam[:, 2].max() < MIN_FORWARD:
        return None
    uv = (in_cam / np.maximum(in_cam[:, 2:], NEAR_M) @ camera.K.T)[:, :2]
    if (uv.max(axis=0) < 0).any() or (uv.min(axis=0) > (camera.width, camera.height)).any():
        return None
    return cv2.convexHull(np.clip(np.rint(uv), -FAR_PX, FAR_PX).astype(np.int32))


def _meet_box(
    camera: Camera, T_box_from_cam: np.ndarray, u: np.ndarray, v: np.ndarray, size_m: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the rays of pixels [h, w] enter a box, [h, w, 3] in its own frame, and which do, by its slabs (Kay and
    Kajiya 1986)."""
    (fx, _, cx), (_, fy, cy) = camera.K[:2]
    ray = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones(u.shape)], axis=-1) @ T_box_from_cam[:3, :3].T
    start = T_box_from_cam[:3, 3]
    with np.errstate(divide="ignore"):
        ends = np.stack([(side * size_m / 2 - start) / ray for side in (-1, 1)])
    enters, leaves = ends.min(axis=0).max(axis=-1), ends.max(axis=0).min(axis=-1)
    hit = (enters < leaves) & (enters > MIN_FORWARD)
    return start + np.where(hit, enters, 0.0)[..., None] * ray, hit


def _tracks(actors: Sequence[RecordedActor], time_us: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Poses [S, A, 3] of the actors at some instants, and who is there [S, A]."""
    poses, there = np.zeros((len(time_us), len(actors), 3)), np.zeros((len(time_us), len(actors)), bool)
    for a, actor in enumerate(actors):
        there[:, a], poses[there[:, a], a] = poses_at_times(actor, time_us)
    return poses, there


def _moved(shot: _Shot, now: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Who is not where it was, or not there any more, or was not, bool [A]."""
    away = np.hypot(*(now - shot.poses)[:, :2].T) > MOVED_M
    turned = np.abs(wrap(now[:, 2] - shot.poses[:, 2])) > MOVED_RAD
    return away | turned | (there != shot.there)


def _ground(camera: Camera, T_world_from_cam: np.ndarray) -> np.ndarray:
    """Inverse depth float32 [H, W] at which the rays of a camera meet z = 0; not above 0 where they do not."""
    up = T_world_from_cam[2, :3] @ np.linalg.inv(camera.K)
    v, u = np.mgrid[: camera.height, : camera.width].astype(np.float32)
    return (-(up[0] * u + up[1] * v + up[2]) / T_world_from_cam[2, 3]).astype(np.float32)


def _between(target: Camera, T: np.ndarray, source: Camera, T_source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """H [3, 3] and e [3] with x_source ~ H x + w e."""
    T_source_from_target = inverse(T_source) @ T
    H = source.K @ T_source_from_target[:3, :3] @ np.linalg.inv(target.K)
    return H, source.K @ T_source_from_target[:3, 3]


def _source_pixels(
    H: np.ndarray, e: np.ndarray, u: np.ndarray, v: np.ndarray, nearness: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """x, y float32 in a source, of pixels u, v of a target; far outside where they lie behind it."""
    H, e = H.astype(np.float32), e.astype(np.float32)
    x, y, z = (H[k, 0] * u + (H[k, 1] * v + H[k, 2]) + nearness * e[k] for k in range(3))
    np.maximum(z, np.float32(1e-4), out=z)
    return np.clip(x / z, -FAR_PX, FAR_PX), np.clip(y / z, -FAR_PX, FAR_PX)


def _sweep(camera: Camera, T: np.ndarray, shots: list[_Shot], ground: np.ndarray) -> np.ndarray:
    """Inverse depth float32 [H, W] of a (small) camera's pixels, on which two images agree best."""
    planes = np.linspace(0.0, 1 / NEAREST_M, PLANES).astype(np.float32)
    size = camera.width, camera.height
    between = [_between(camera, T, camera, shot.T_world_from_cam) for shot in shots]
    cost = np.empty((PLANES + 1, *ground.shape), np.float32)
    for k, w in enumerate(planes):
        seen = []
        for (H, e), shot, outside in zip(between, shots, (0, 255), strict=True):
            onto = H + np.outer(e * w, (0.0, 0.0, 1.0))
            how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": (outside,) * 3}
            seen.append(cv2.warpPerspective(shot.small, onto, size, flags=how, **border))
        cost[k] = _difference(*seen)
    seen, (v, u) = [], np.mgrid[: camera.height, : camera.width].astype(np.float32)
    known = np.ones(ground.shape, bool)
    for (H, e), shot in zip(between, shots, strict=True):
        x, y = _source_pixels(H, e, u, v, ground)
        seen.append(cv2.remap(shot.small, x, y, cv2.INTER_LINEAR))
        known &= (x >= 0) & (y >= 0) & (x <= size[0] - 1) & (y <= size[1] - 1)
    seen[0][~known] = seen[1][~known]  # beyond an image's edge nothing speaks against the ground
    cost[-1] = np.maximum(_difference(*seen) - GROUND_SLACK, 0.0)
    cost[-1][ground <= 0] = np.inf
    best = cost.argmin(axis=0)
    inner = np.clip(best, 1, PLANES - 2)
    left, middle, right = (np.take_along_axis(cost, (inner + d)[None], 0)[0] for d in (-1, 0, 1))
    bend = np.maximum(left + right - 2 * middle, 1e-3)
    shift = np.where(best == inner, np.clip((left - right) / (2 * bend), -0.5, 0.5), 0.0)
    step = planes[1]
    found = np.where(best == PLANES, np.maximum(ground, 0.0), np.minimum(best, PLANES - 1) * step + shift * step)
    return cv2.medianBlur(found.astype(np.float32), 5)


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How much two images differ around each pixel, float32 [H, W]."""
    return cv2.blur(cv2.transform(cv2.absdiff(a, b), np.ones((1, 3), np.float32) / 3).astype(np.float32), WINDOW)
