"""Which faces cameras may see, and where they lie in the camera frames: for all cameras of a rig at once.

Faces are kept once, in the frame of their solid; what stands still is one solid of many objects. Whole objects are
sorted out by a sphere around them, then faces that are turned away. Coordinates are float32 relative to a solid or to a
camera, so that they are as good anywhere in the world.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensors.camera import Camera
from sim.scene import Backdrop, Scene
from sim.solids import Faces

REACH_M = 240.0  # solids whose centre is further ahead than this are not drawn
MIN_FORWARD = 0.05  # rays further off axis than about 87 degrees see nothing
EDGE_ON_M = 1e-4  # who is nearer to a face's plane than this does not see it
SPARE_FACES = 4096


@dataclass(frozen=True)
class Seen:
    """E faces that N cameras may see of V objects of S solids, by camera and roughly from near to far.

    The first N solids are the props, for each camera once.

    face    int64 [E]   row in the pool
    owner   int64 [E]   object; solid, camera int64 [V]: of the object
    ends    int64 [N + 1]  camera n may see the faces ends[n]...ends[n + 1]
    solids_of_camera  list [N]: of the solids that are no props, how many belong to each camera, in order
    poses   float64 [S, 3]  x, y, yaw in the world; lamps uint8 [S]: bits that shine; instance int32 [S]
    """

    face: np.ndarray
    owner: np.ndarray
    solid: np.ndarray
    camera: np.ndarray
    ends: np.ndarray
    solids_of_camera: list[int]
    poses: np.ndarray
    lamps: np.ndarray
    instance: np.ndarray


class Sight:
    """The space that the images of N cameras may show."""

    def __init__(self, cameras: Sequence[Camera]):
        planes = []
        for camera in cameras:
            (a0, b0), (a1, b1) = ray_limits(camera)
            # Unit normals of the sides, pointing out: x - a z < 0 inside the right one, and so on; and the axis.
            sides = np.array([[1, 0, -a1], [-1, 0, a0], [0, 1, -b1], [0, -1, b0], [0, 0, 1]])
            planes.append(sides / np.linalg.norm(sides, axis=1, keepdims=True))
        self._normals_in_cam = np.array(planes)
        self._pixel_rad = np.array([1 / camera.K[0, 0] for camera in cameras])

    def turned(self, T_world_from_cam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normals [N, 3, 5] in the world, and their offsets [N, 5]."""
        normals = T_world_from_cam[:, :3, :3] @ self._normals_in_cam.transpose(0, 2, 1)
        return normals, (T_world_from_cam[:, None, :3, 3] @ normals)[:, 0]

    def holds(self, beyond_m: np.ndarray, radius_m: np.ndarray, camera: np.ndarray) -> np.ndarray:
        """Whether spheres [...] whose centres lie beyond the planes by [..., 5] may be in the image of their camera."""
        ahead, b = beyond_m[..., 4], beyond_m
        seen = (ahead > -radius_m) & (ahead < REACH_M) & (2 * radius_m > self._pixel_rad[camera] * ahead)
        for k in range(4):
            seen &= b[..., k] < radius_m
        return seen


def ray_limits(camera: Camera) -> np.ndarray:
    """Smallest and largest (a, b) [2, 2] of rays (a, b, 1) through the image."""
    if camera.distortion == "none":
        ends = np.array([[-0.5, -0.5], [camera.width - 0.5, camera.height - 0.5]])
        return (ends - camera.K[:2, 2]) / camera.K[[0, 1], [0, 1]]
    rays = camera.pixel_rays()
    with np.errstate(invalid="ignore"):
        rays = rays[rays[..., 2] > MIN_FORWARD]
    ab = rays[:, :2] / rays[:, 2:]
    return np.array([ab.min(axis=0), ab.max(axis=0)])


class Pool:
    """Faces, each once: corners float32 [P, 4, 3], normals [P, 3], offsets of their planes [P], and what Faces has.

    Only the first `used` rows count. `generation` counts how often it began anew.
    """

    def __init__(self):
        self._backdrop, self.generation, self.used = None, 0, 0
        self._rows: dict[Faces, int] = {}

    def see(self, scenes: Sequence[Scene], T_world_from_cam: np.ndarray, sight: Sight) -> Seen:
        """What camera n may see of scenes[n] from T_world_from_cam[n]."""
        self._hold(scenes[0].backdrop)
        count = len(scenes)
        moving = [scene.moving for scene in scenes]
        mesh = np.concatenate([[self._row(m) for m in s.meshes] for s in moving]).astype(np.int64)
        solids_of_camera = [len(s.meshes) for s in moving]
        cam_of_solid = np.repeat(np.arange(count), solids_of_camera)
        poses = np.concatenate([np.tile([*self._centre_m, 0.0], (count, 1)), *(s.poses for s in moving)])
        lamps = np.concatenate([np.full(count, 255, np.uint8), *(s.lamps for s in moving)])
        instance = np.concatenate([np.zeros(count, np.int32), *(s.instance for s in moving)])
        c, s = np.cos(poses[:, 2]), np.sin(poses[:, 2])

        normals, offsets = sight.turned(T_world_from_cam)
        beyond = self._objects.middle @ normals - offsets[:, None]
        ahead_p = beyond[..., 4] - self._objects.radius
        cam_p, prop = np.nonzero(sight.holds(beyond, self._objects.radius, np.arange(count)[:, None]))
        x, y, z = self._meshes.middle[mesh].T
        at, cm, sm = poses[count:], c[count:], s[count:]
        middle = np.stack([cm * x - sm * y + at[:, 0], sm * x + cm * y + at[:, 1], z], axis=-1)
        beyond = (middle[:, None] @ normals[cam_of_solid])[:, 0] - offsets[cam_of_solid]
        mine = np.flatnonzero(sight.holds(beyond, self._meshes.radius[mesh], cam_of_solid))

        camera = np.concatenate([cam_p, cam_of_solid[mine]])
        ahead = np.concatenate([ahead_p[cam_p, prop], beyond[mine, 4] - self._meshes.radius[mesh[mine]]])
        order = np.lexsort((ahead, camera))  # near ones first, so that they spare the device what they hide
        camera, solid = camera[order], np.concatenate([cam_p, count + mine])[order]
        first = np.concatenate([self._objects.first[prop], self._meshes.first[mesh[mine]]])[order]
        faces = np.concatenate([self._objects.count[prop], self._meshes.count[mesh[mine]]])[order]
        owner = np.repeat(np.arange(len(first)), faces)
        face = np.arange(len(owner)) + np.repeat(first - (np.cumsum(faces) - faces), faces)
        eye = T_world_from_cam[camera, :3, 3] - np.column_stack([poses[solid, :2], np.zeros(len(solid))])
        cv, sv = c[solid], s[solid]
        eye = np.stack([cv * eye[:, 0] + sv * eye[:, 1], cv * eye[:, 1] - sv * eye[:, 0], eye[:, 2]], axis=-1)
        above = np.einsum("fi,fi->f", self.normals[face], eye.astype(np.float32)[owner]) - self.offsets[face]
        front = np.flatnonzero(above > EDGE_ON_M)
        face, owner = face[front], owner[front]
        ends = np.searchsorted(camera[owner], np.arange(count + 1))
        return Seen(face, owner, solid, camera, ends, solids_of_camera, poses, lamps, instance)

    def in_cameras(self, seen: Seen, T_world_from_cam: np.ndarray) -> np.ndarray:
        """Corners float32 [E, 4, 3] of the faces in their camera's frame."""
        R_cam_from_world = T_world_from_cam[seen.camera, :3, :3].transpose(0, 2, 1)
        x, y, yaw = seen.poses[seen.solid].T
        c, s, o = np.cos(yaw), np.sin(yaw), np.zeros(len(yaw))
        R_world_from_solid = np.array([[c, -s, o], [s, c, o], [o, o, o + 1]]).transpose(2, 0, 1)
        offset = np.stack([x, y, o], axis=-1) - T_world_from_cam[seen.camera, :3, 3]
        R = (R_cam_from_world @ R_world_from_solid).astype(np.float32)
        t = (R_cam_from_world @ offset[..., None])[..., 0].astype(np.float32)
        return self.corners[seen.face] @ R.transpose(0, 2, 1)[seen.owner] + t[seen.owner, None]

    def _hold(self, backdrop: Backdrop) -> None:
        """Begin anew with the props of this backdrop, unless they are here already."""
        if backdrop is self._backdrop:
            return
        props = backdrop.props
        self._centre_m = props.corners_m[..., :2].mean(axis=(0, 1)) if len(props) else np.zeros(2)
        self._backdrop, self.used, self._rows = backdrop, 0, {}
        self.generation += 1
        self._make_room(len(props) + SPARE_FACES)
        first = np.flatnonzero(np.diff(props.instance, prepend=-1))
        self._objects = _Objects(first, np.diff(first, append=len(props)), *_spheres(props, first))
        self._meshes = _Objects.none()
        self._add(props, self._centre_m)

    def _make_room(self, rows: int) -> None:
        old = self.used
        fields = {
            "corners": np.zeros((rows, 4, 3), np.float32),
            "normals": np.zeros((rows, 3), np.float32),
            "offsets": np.zeros(rows, np.float32),
            "colour": np.zeros((rows, 3), np.uint8),
            "semantic": np.zeros(rows, np.uint8),
            "instance": np.zeros(rows, np.int32),
            "lamp": np.zeros(rows, np.uint8),
        }
        for name, array in fields.items():
            if old:
                array[:old] = getattr(self, name)[:old]
            setattr(self, name, array)

    def _add(self, faces: Faces, origin_m: np.ndarray) -> None:
        first, end = self.used, self.used + len(faces)
        if end > len(self.semantic):
            self._make_room(2 * end)
        self.corners[first:end] = faces.corners_m - np.array([*origin_m, 0.0])
        self.normals[first:end] = faces.normals
        self.offsets[first:end] = np.einsum("fi,fi->f", self.normals[first:end], self.corners[first:end, 0])
        for name in ("colour", "semantic", "instance", "lamp"):
            getattr(self, name)[first:end] = getattr(faces, name)
        self.used = end

    def _row(self, mesh: Faces) -> int:
        """The row of a mesh in the list of meshes."""
        if mesh not in self._rows:
            self._rows[mesh] = len(self._rows)
            middle, radius = mesh.bound
            one = _Objects(np.array([self.used]), np.array([len(mesh)]), middle[None], np.array([radius]))
            self._meshes = self._meshes.joined(one)
            self._add(mesh, np.zeros(2))
        return self._rows[mesh]


@dataclass(frozen=True)
class _Objects:
    """Runs of faces in the pool and spheres around them: first, count [K], middle [K, 3], radius [K]."""

    first: np.ndarray
    count: np.ndarray
    middle: np.ndarray
    radius: np.ndarray

    @classmethod
    def none(cls) -> "_Objects":
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3)), np.zeros(0))

    def joined(self, other: "_Objects") -> "_Objects":
        return _Objects(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in self.__dataclass_fields__))


def _spheres(faces: Faces, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres [K, 3] and radii [K] of spheres around the runs of faces that begin at `first`."""
    if not len(first):
        return np.zeros((0, 3)), np.zeros(0)
    corners = faces.corners_m.reshape(-1, 12)
    low = np.minimum.reduceat(corners, first).reshape(-1, 4, 3).min(axis=1)
    high = np.maximum.reduceat(corners, first).reshape(-1, 4, 3).max(axis=1)
    return (low + high) / 2, np.linalg.norm(high - low, axis=1) / 2
