"""SE(3) with named frames.

Axes follow REP-103: x forward, y left, z up for `world` and `ego`; x right, y down, z forward for a camera (optical).
The ego origin is the centre of the rear axle on the ground, as in nuScenes. Quaternions are (w, x, y, z). Angles in
radians, lengths in metres.

A 4x4 matrix called `T_a_from_b` maps homogeneous points of frame b to frame a, so adjacent names cancel:
`T_world_from_cam = T_world_from_ego @ T_ego_from_cam`. Arrays carry their frames in their name; `Transform` carries
them as data and refuses to compose what does not cancel.
"""

from dataclasses import dataclass

import numpy as np

from sensors.errors import InputError

UNIT_TOLERANCE = 1e-3  # nuScenes writes quaternions with six or more digits; a larger error is a corrupt file


def rotation_from_quaternion(q_wxyz: np.ndarray, where: object = "quaternion", field: str = "rotation") -> np.ndarray:
    """Rotation matrix [..., 3, 3] of unit quaternions [..., 4] in (w, x, y, z); any other length is an InputError."""
    q = np.asarray(q_wxyz, dtype=np.float64)
    if q.shape[-1:] != (4,):
        raise InputError(where, field, f"{q.shape[-1:]} numbers", "4 numbers (w, x, y, z)")
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    if not np.all(np.abs(norm - 1.0) <= UNIT_TOLERANCE):  # written so that NaN fails too
        worst = norm.flat[int(np.argmax(np.nan_to_num(np.abs(norm - 1.0), nan=np.inf)))]
        raise InputError(where, field, f"a quaternion of length {worst:.6g}", "a unit quaternion (w, x, y, z)")
    w, x, y, z = np.moveaxis(q / norm, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quaternion_from_rotation(R: np.ndarray) -> np.ndarray:
    """Unit quaternion [4] (w, x, y, z) with w >= 0 of one rotation matrix [3, 3] (Shepperd's method)."""
    R = np.asarray(R, dtype=np.float64)
    trace = float(np.trace(R))
    # The largest of 4w^2, 4x^2, 4y^2, 4z^2 is the safe one to divide by.
    squares = np.array([trace, R[0, 0], R[1, 1], R[2, 2]])
    k = int(np.argmax(squares))
    off = np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])
    if k == 0:
        q = np.array([1.0 + trace, *off])
    else:
        i = k - 1
        j, m = (i + 1) % 3, (i + 2) % 3
        q = np.empty(4)
        q[0] = off[i]
        q[1 + i] = 1.0 + R[i, i] - R[j, j] - R[m, m]
        q[1 + j] = R[j, i] + R[i, j]
        q[1 + m] = R[m, i] + R[i, m]
    q /= np.linalg.norm(q)
    return q if q[0] >= 0 else -q


def matrix(translation_m: np.ndarray, R: np.ndarray) -> np.ndarray:
    """[..., 4, 4] from translations [..., 3] and rotations [..., 3, 3]."""
    t = np.asarray(translation_m, dtype=np.float64)
    T = np.zeros((*np.broadcast_shapes(t.shape[:-1], np.shape(R)[:-2]), 4, 4))
    T[..., :3, :3], T[..., :3, 3], T[..., 3, 3] = R, t, 1.0
    return T


def matrix_from_xy_yaw(x_m: np.ndarray, y_m: np.ndarray, yaw_rad: np.ndarray) -> np.ndarray:
    """[..., 4, 4] of planar poses on z = 0; inputs broadcast."""
    x, y, yaw = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in (x_m, y_m, yaw_rad)))
    T = np.zeros((*x.shape, 4, 4))
    T[..., 0, 0] = T[..., 1, 1] = np.cos(yaw)
    T[..., 1, 0] = np.sin(yaw)
    T[..., 0, 1] = -T[..., 1, 0]
    T[..., 0, 3], T[..., 1, 3] = x, y
    T[..., 2, 2] = T[..., 3, 3] = 1.0
    return T


def inverse(T: np.ndarray) -> np.ndarray:
    """Inverse [..., 4, 4] of rigid transforms, by transposing the rotation (exact for a proper rotation)."""
    R = np.swapaxes(T[..., :3, :3], -1, -2)
    return matrix(-(R @ T[..., :3, 3, None])[..., 0], R)


def apply(T_a_from_b: np.ndarray, points_in_b_m: np.ndarray) -> np.ndarray:
    """Points [..., 3] of frame b in frame a; leading dimensions broadcast against those of T [..., 4, 4]."""
    return (T_a_from_b[..., :3, :3] @ points_in_b_m[..., None])[..., 0] + T_a_from_b[..., :3, 3]


def yaw(T: np.ndarray) -> np.ndarray:
    """Heading [...] of the x axis in the horizontal plane, in (-pi, pi]."""
    return np.arctan2(T[..., 1, 0], T[..., 0, 0])


def xy_yaw(T: np.ndarray) -> np.ndarray:
    """x, y and heading [..., 3] of poses [..., 4, 4]: the inverse of `matrix_from_xy_yaw` for planar ones."""
    return np.stack([T[..., 0, 3], T[..., 1, 3], yaw(T)], axis=-1)


def wrap(angle_rad: np.ndarray) -> np.ndarray:
    """Angle in [-pi, pi)."""
    return (np.asarray(angle_rad) + np.pi) % (2 * np.pi) - np.pi


def interpolate(T_0: np.ndarray, T_1: np.ndarray, fraction: float) -> np.ndarray:
    """Pose [4, 4] on the way from T_0 (0) to T_1 (1): linear in translation, slerp in rotation."""
    q0, q1 = quaternion_from_rotation(T_0[:3, :3]), quaternion_from_rotation(T_1[:3, :3])
    dot = float(q0 @ q1)
    q1, dot = (-q1, -dot) if dot < 0 else (q1, dot)
    angle = np.arccos(min(dot, 1.0))
    if angle < 1e-6:  # sin(angle) would cancel; the chord is the arc to 1e-12
        q = (1 - fraction) * q0 + fraction * q1
    else:
        q = (np.sin((1 - fraction) * angle) * q0 + np.sin(fraction * angle) * q1) / np.sin(angle)
    return matrix((1 - fraction) * T_0[:3, 3] + fraction * T_1[:3, 3], rotation_from_quaternion(q / np.linalg.norm(q)))


def interpolate_at(time_us: np.ndarray, poses: np.ndarray, at_us: int) -> np.ndarray:
    """Pose [4, 4] at `at_us` of a track: strictly increasing times [M], poses [M, 4, 4]. Outside it is a ValueError."""
    if not time_us[0] <= at_us <= time_us[-1]:
        raise ValueError(f"time {at_us} us lies outside the track [{time_us[0]}, {time_us[-1]}] us")
    k = int(np.searchsorted(time_us, at_us, side="right")) - 1
    if time_us[k] == at_us:
        return poses[k].copy()
    return interpolate(poses[k], poses[k + 1], (at_us - time_us[k]) / (time_us[k + 1] - time_us[k]))


@dataclass(frozen=True)
class Transform:
    """A rigid transform that knows its frames: maps points of `source` to points of `target`; matrix [4, 4]."""

    target: str
    source: str
    matrix: np.ndarray

    @classmethod
    def from_pose(cls, target: str, source: str, translation_m, q_wxyz, where: object = "pose") -> "Transform":
        return cls(target, source, matrix(np.asarray(translation_m), rotation_from_quaternion(q_wxyz, where)))

    def __matmul__(self, other: "Transform") -> "Transform":
        if self.source != other.target:
            raise ValueError(
                f"frames do not cancel: {self.target}_from_{self.source} @ {other.target}_from_{other.source}"
            )
        return Transform(self.target, other.source, self.matrix @ other.matrix)

    def inverse(self) -> "Transform":
        return Transform(self.source, self.target, inverse(self.matrix))

    def apply(self, points_m: np.ndarray) -> np.ndarray:
        return apply(self.matrix, points_m)
