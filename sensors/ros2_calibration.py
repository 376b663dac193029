"""The calibration file of a car: where its cameras and its IMU sit, as JSON. launch/README.md shows one."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sensors.camera import Camera
from sensors.errors import InputError


@dataclass(frozen=True)
class Calibration:
    """Where the sensors sit: optical frame and T_ego_from_cam [4, 4] by camera, and R_ego_from_imu [3, 3]."""

    frame_ids: dict[str, str]
    T_ego_from_cam: dict[str, np.ndarray]
    R_ego_from_imu: np.ndarray

    def content(self) -> dict:
        """The JSON object that `read_calibration` reads back bit for bit."""
        cameras = {
            name: {"frame_id": self.frame_ids[name], "T_ego_from_cam": T.tolist()}
            for name, T in self.T_ego_from_cam.items()
        }
        return {"cameras": cameras, "imu": {"R_ego_from_imu": self.R_ego_from_imu.tolist()}}


def read_calibration(path: Path, names: tuple[str, ...]) -> Calibration:
    """The calibration file of a car that has the cameras `names`; anything missing or not rigid is an InputError."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(path, "file", error.strerror, "a calibration file", "launch/README.md shows one.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(path, "content", f"no JSON: {error}", "a calibration file") from error
    return calibration_from(content, path, names)


def calibration_from(content: object, path: object, names: tuple[str, ...]) -> Calibration:
    """The same of the file's content, once it is read."""
    frame_ids = {name: _entry(path, content, str, "cameras", name, "frame_id") for name in names}
    poses = {name: _entry(path, content, list, "cameras", name, "T_ego_from_cam") for name in names}
    T_ego_from_cam = {name: _rigid(path, f"cameras.{name}.T_ego_from_cam", T, 4) for name, T in poses.items()}
    R = _entry(path, content, list, "imu", "R_ego_from_imu")
    return Calibration(frame_ids, T_ego_from_cam, _rigid(path, "imu.R_ego_from_imu", R, 3))


def json_object(text: str, where: object, field: str) -> dict:
    """The JSON object in a message's text."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(where, field, f"no JSON: {error}", "a JSON object") from error
    if not isinstance(value, dict):
        raise InputError(where, field, type(value).__name__, "a JSON object")
    return value


def same_calibration(one: Camera, other: Camera) -> bool:
    """Whether two cameras have the same size, K and distortion, to the last bit."""
    sizes = [(camera.width, camera.height, camera.distortion, camera.coefficients) for camera in (one, other)]
    return sizes[0] == sizes[1] and np.array_equal(one.K, other.K)


def _entry(path: object, content: object, kind: type, *keys: str):
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, kind):
        raise InputError(path, ".".join(keys), content, kind.__name__)
    return content


def _rigid(path: object, field: str, rows: list, size: int) -> np.ndarray:
    try:
        T = np.array(rows, np.float64)
    except (TypeError, ValueError):
        T = np.zeros(0)
    R = T[:3, :3] if T.shape == (size, size) else np.zeros((3, 3))
    last_row = size == 3 or T.shape != (4, 4) or (T[3] == (0, 0, 0, 1)).all()
    if (
        not np.isfinite(T).all()
        or not np.allclose(R @ R.T, np.eye(3), atol=1e-6)
        or np.linalg.det(R) < 0
        or not last_row
    ):
        raise InputError(path, field, rows, f"a rigid {size}x{size} matrix, row by row")
    return T
