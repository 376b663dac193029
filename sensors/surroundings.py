"""What stands around the car, as a grid seen from above: what a training may ask of a model beside its plan.

cells    CELL_M wide, in the ego frame: row i covers x from X_M[0] + i CELL_M on, column j y from Y_M[0] + j CELL_M on
layers   LAYERS: other vehicles, people (on foot or on two wheels), the lanes of the route, and traffic lights that
         speak to who drives this way: not green, green
"""

import numpy as np

from sensors import frames
from sensors.clip import Boxes
from sensors.nuscenes_extension import SceneExtension

LAYERS = ("vehicle", "person", "route", "held", "free")
CELL_M, X_M, Y_M = 3.0, (-9.0, 45.0), (-18.0, 18.0)
ROWS, COLUMNS = round((X_M[1] - X_M[0]) / CELL_M), round((Y_M[1] - Y_M[0]) / CELL_M)
TWO_WHEELS = ("vehicle.bicycle", "vehicle.motorcycle")
ON_BOX = np.stack(np.meshgrid((-0.5, -0.25, 0.0, 0.25, 0.5), (-0.5, 0.0, 0.5), indexing="ij"), axis=-1).reshape(-1, 2)
SPEAKS_RAD = 0.8  # a signal is for who drives within this angle of its own
GREEN = "gG"


def cell_centres() -> np.ndarray:
    """x, y in the ego frame float64 [ROWS, COLUMNS, 2]."""
    x = X_M[0] + CELL_M * (np.arange(ROWS) + 0.5)
    y = Y_M[0] + CELL_M * (np.arange(COLUMNS) + 0.5)
    return np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)


def surroundings(
    T_world_from_ego: np.ndarray, boxes: Boxes, extension: SceneExtension | None, now_us: int
) -> tuple[np.ndarray, np.ndarray]:
    """(bool [LAYERS, ROWS, COLUMNS], bool [LAYERS]: which of the layers are known)."""
    grid, T = np.zeros((len(LAYERS), ROWS, COLUMNS), bool), frames.inverse(T_world_from_ego)
    if len(boxes):
        corners = boxes.size_lwh_m[:, None, :2] * ON_BOX
        flat = np.concatenate([corners, np.zeros((*corners.shape[:2], 1)), np.ones((*corners.shape[:2], 1))], axis=-1)
        points = np.einsum("ij,bjk,bpk->bpi", T, boxes.T_world_from_box, flat)[..., :2]
        person = np.array([not name.startswith("vehicle") or name.startswith(TWO_WHEELS) for name in boxes.categories])
        for layer, chosen in (("vehicle", ~person), ("person", person)):
            _mark(grid[LAYERS.index(layer)], points[chosen].reshape(-1, 2))
    if extension is None:
        return grid, np.array([layer in ("vehicle", "person") for layer in LAYERS])
    _mark(grid[LAYERS.index("route")], _to_ego(T, extension.route_points))
    yaw = np.arctan2(T_world_from_ego[1, 0], T_world_from_ego[0, 0])
    speaks = np.abs(frames.wrap(extension.signals_xyyaw[:, 2] - yaw)) < SPEAKS_RAD
    green = np.array([letter in GREEN for letter in extension.lights_at(now_us)] or np.zeros(0), bool)
    if len(green):
        for layer, chosen in (("held", speaks & ~green), ("free", speaks & green)):
            _mark(grid[LAYERS.index(layer)], _to_ego(T, extension.signals_xyyaw[chosen, :2]))
    return grid, np.ones(len(LAYERS), bool)


def mirrored(grid: np.ndarray) -> np.ndarray:
    """The grid [..., ROWS, COLUMNS] of the mirrored car: left and right exchanged."""
    return grid[..., ::-1]


def _mark(grid: np.ndarray, xy: np.ndarray) -> None:
    cells = np.floor((xy - (X_M[0], Y_M[0])) / CELL_M).astype(int)
    cells = cells[((cells >= 0) & (cells < grid.shape)).all(axis=1)]
    grid[cells[:, 0], cells[:, 1]] = True


def _to_ego(T_ego_from_world: np.ndarray, xy: np.ndarray) -> np.ndarray:
    return xy @ T_ego_from_world[:2, :2].T + T_ego_from_world[:2, 3]
