"""What stands around the car, from above and in its images: what a training may ask of a model beside its plan.

cells    CELL_M wide, in the ego frame: row i covers x from X_M[0] + i CELL_M on, column j y from Y_M[0] + j CELL_M on
layers   LAYERS: other vehicles, people (on foot or on two wheels), the lanes of the route, and traffic lights that
         speak to who drives this way: not green, green
"""

import numpy as np

from sensors import frames
from sensors.clip import Boxes, Clip
from sensors.nuscenes_extension import SceneExtension

LAYERS = ("vehicle", "person", "route", "held", "free")
CELL_M, X_M, Y_M = 3.0, (-9.0, 45.0), (-18.0, 18.0)
ROWS, COLUMNS = round((X_M[1] - X_M[0]) / CELL_M), round((Y_M[1] - Y_M[0]) / CELL_M)
TWO_WHEELS = ("vehicle.bicycle", "vehicle.motorcycle")
ON_BOX = np.stack(np.meshgrid((-0.5, -0.25, 0.0, 0.25, 0.5), (-0.5, 0.0, 0.5), indexing="ij"), axis=-1).reshape(-1, 2)
SPEAKS_RAD = 0.8  # a signal is for who drives within this angle of its own
GREEN = "gG"
IN_IMAGES = ("vehicle", "person", "held", "free")  # of LAYERS
SHOWN_M = 60.0  # what is further away is a pixel, or hidden by others
HEAD_M = (0.4, 2.6, 3.6)  # width of a traffic light's head, its lower and its upper edge above the road


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
        person = np.array([_is_person(name) for name in boxes.categories])
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


def in_images(
    clip: Clip, boxes: Boxes, extension: SceneExtension | None, rows: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which of rows x columns patches of the newest images show what: (bool [N, IN_IMAGES, rows, columns], bool
    [IN_IMAGES]: which kinds are known). A thing is where the rectangle around its corners is, hidden or not."""
    N, T_world_from_ego = len(clip.cameras), clip.T_world_from_ego[-1]
    shown = np.zeros((N, len(IN_IMAGES), rows, columns), bool)
    things, kinds = _things(clip, boxes, extension)
    if len(things):
        for n, camera in enumerate(clip.cameras):
            T = frames.inverse(T_world_from_ego[n] @ camera.T_ego_from_cam)
            uv, valid = camera.project(things @ T[:3, :3].T + T[:3, 3])
            scale = np.array([columns / camera.width, rows / camera.height])
            for k in np.flatnonzero(valid.all(axis=1)):
                low, high = (uv[k].min(axis=0) + 0.5) * scale, (uv[k].max(axis=0) + 0.5) * scale
                if (high > 0).all() and low[0] < columns and low[1] < rows:
                    (left, top), (right, bottom) = np.floor(low.clip(0)).astype(int), np.ceil(high).astype(int)
                    shown[n, kinds[k], top:bottom, left:right] = True
    shown &= clip.image_mask[-1, :, None, None, None]
    return shown, np.array([extension is not None or kind in ("vehicle", "person") for kind in IN_IMAGES])


def _things(clip: Clip, boxes: Boxes, extension: SceneExtension | None) -> tuple[np.ndarray, np.ndarray]:
    """(corners in the world [things, 8, 3], which of IN_IMAGES each is) of what is near."""
    corners, kinds = [], []
    at = clip.T_world_from_ego_now[:2, 3]
    unit = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    for k in range(len(boxes)):
        T = boxes.T_world_from_box[k]
        if np.hypot(*(T[:2, 3] - at)) < SHOWN_M:
            corners.append(unit * boxes.size_lwh_m[k] @ T[:3, :3].T + T[:3, 3])
            kinds.append(IN_IMAGES.index("person" if _is_person(boxes.categories[k]) else "vehicle"))
    yaw = np.arctan2(clip.T_world_from_ego_now[1, 0], clip.T_world_from_ego_now[0, 0])
    lights = () if extension is None else zip(extension.signals_xyyaw, extension.lights_at(clip.now_us), strict=False)
    width_m, low_m, high_m = HEAD_M
    for (x, y, facing), letter in lights:
        if np.hypot(x - at[0], y - at[1]) < SHOWN_M and abs(frames.wrap(facing - yaw)) < SPEAKS_RAD:
            corners.append(unit * (width_m, width_m, high_m - low_m) + (x, y, (low_m + high_m) / 2))
            kinds.append(IN_IMAGES.index("free" if letter in GREEN else "held"))
    return np.array(corners).reshape(-1, 8, 3), np.array(kinds, int)


def _is_person(category: str) -> bool:
    return not category.startswith("vehicle") or category.startswith(TWO_WHEELS)


def mirrored(grid: np.ndarray) -> np.ndarray:
    """A grid from above or of an image [..., rows, columns] as the mirrored car has it: left and right exchanged."""
    return grid[..., ::-1]


def _mark(grid: np.ndarray, xy: np.ndarray) -> None:
    cells = np.floor((xy - (X_M[0], Y_M[0])) / CELL_M).astype(int)
    cells = cells[((cells >= 0) & (cells < grid.shape)).all(axis=1)]
    grid[cells[:, 0], cells[:, 1]] = True


def _to_ego(T_ego_from_world: np.ndarray, xy: np.ndarray) -> np.ndarray:
    return xy @ T_ego_from_world[:2, :2].T + T_ego_from_world[:2, 3]
