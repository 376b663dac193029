"""nuScenes open-loop planning in the three published conventions, which are not comparable with each other.

Letters: N samples, T = 6 steps 0.5 s apart, B boxes. Everything is in the LiDAR frame of the present (x right, y
forward, m); the grid is 100 x 100 m, 200 x 200 cells of 0.5 m.

                     uniad                          stp3 (ST-P3, VAD)            hybrid (UniAD's "stp3")
    obstacles        vehicles                       vehicles and people          vehicles
    value at k s     at step 2k                     mean of steps 1 .. 2k        mean of uniad's arrays 1 .. 2k
    samples          all; a step without a future   those with a full 3 s        all, as uniad
                     adds 0 but is counted
    grid rows        forward                        backward                     forward

The ego is 4.084 x 1.85 m, its box 0.5 m ahead and never turned; a step at which the recorded car's box collides
counts 0. `obj_col` looks at the cell of the ego, `obj_box_col` at the 32 cells of its box. Source: UniAD
`planning_head_plugin/planning_metrics.py`, VAD `planner/metric_stp3.py`. VAD's ego cell is wrong by half the grid
(it halves an offset): "compat" keeps that, "strict" does not, and turns the box of the ego with the plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from sim.metrics.pdm import check_variant
from sim.metrics.pdm_scene import boxes_touch

STEPS, CELLS, CELL_M, RANGE_M = 6, 200, 0.5, 50.0
CONVENTIONS = ("uniad", "stp3", "hybrid")
EGO_LENGTH_M, EGO_WIDTH_M, EGO_AHEAD_M = 4.084, 1.85, 0.5
TURNING_M = 2.0  # lateral displacement after 3 s from which nuScenes planners call a command "left" or "right"
_FIRST_M = -RANGE_M + CELL_M / 2  # centre of the first cell
# skimage.draw.polygon of the ego's box: forward cells 96.4 .. 104.6, lateral ones 97.65 .. 101.35
_BOX_FORWARD, _BOX_RIGHT = np.meshgrid(np.arange(97, 105), np.arange(98, 102), indexing="ij")


@dataclass(frozen=True)
class SampleErrors:
    """One sample in one convention: l2_m, obj_col, obj_box_col float64 [6] per step; full: all 3 s are recorded."""

    l2_m: np.ndarray
    obj_col: np.ndarray
    obj_box_col: np.ndarray
    full: bool


def rasterise(boxes: Sequence[np.ndarray], convention: str) -> np.ndarray:
    """Occupancy bool [T, 200, 200] of the boxes [B, 5] (x, y, yaw, length, width) at each step.

    yaw is counter-clockwise from x; corners are rounded to cells and filled as OpenCV does, outline included.
    """
    occupied = np.zeros((len(boxes), CELLS, CELLS), dtype=np.uint8)
    for t, rows in enumerate(boxes):
        for x, y, yaw, length, width in np.asarray(rows, dtype=np.float64).reshape(-1, 5):
            along = np.array([1, -1, -1, 1]) * length / 2
            left = np.array([1, 1, -1, -1]) * width / 2
            px = x + along * np.cos(yaw) - left * np.sin(yaw)
            py = y + along * np.sin(yaw) + left * np.cos(yaw)
            py = -py if _rows_backward(convention) else py
            cells = np.round((np.stack([px, py], axis=-1) + RANGE_M) / CELL_M).astype(np.int32)
            cv2.fillPoly(occupied[t], [cells], 1)
    return occupied.astype(bool)


def sample_errors(
    plan_xy: np.ndarray,
    recorded_xy: np.ndarray,
    recorded_mask: np.ndarray,
    occupied: np.ndarray,
    convention: str,
    variant: str = "compat",
) -> SampleErrors:
    """Errors of plan [6, 2] against the recording [6, 2] (mask bool [6]) on occupancy [6, 200, 200] of `rasterise`.

    `recorded_xy` may hold anything where the mask is False.
    """
    check_variant(variant)
    if convention not in CONVENTIONS:
        raise ValueError(f"convention {convention!r} is not one of {', '.join(CONVENTIONS)}")
    if plan_xy.shape != (STEPS, 2) or occupied.shape != (STEPS, CELLS, CELLS):
        raise ValueError(f"plan {plan_xy.shape}, occupancy {occupied.shape}: expected (6, 2), (6, 200, 200)")
    recorded = np.where(recorded_mask[:, None], recorded_xy, 0.0)  # the datasets store zeros there
    gap = np.where(recorded_mask[:, None], plan_xy - recorded, 0.0)
    excused = _box_collides(recorded, occupied, convention, None)
    yaw = None if variant == "compat" else _course(plan_xy)
    box = _box_collides(plan_xy, occupied, convention, yaw) & ~excused
    centre = _centre_collides(plan_xy, occupied, convention, variant) & ~excused
    return SampleErrors(
        np.hypot(gap[:, 0], gap[:, 1]), centre.astype(np.float64), box.astype(np.float64), bool(recorded_mask.all())
    )


def boxes_collide(plan_xy: np.ndarray, boxes: Sequence[np.ndarray]) -> np.ndarray:
    """Exact collisions bool [6], without a grid: the ego's box, turned with the plan, against boxes [B, 5] per step."""
    yaw = _course(plan_xy)
    hit = np.zeros(len(plan_xy), dtype=bool)
    for t, rows in enumerate(boxes):
        rows = np.asarray(rows, dtype=np.float64).reshape(-1, 5)
        ahead = EGO_AHEAD_M * np.array([np.cos(yaw[t]), np.sin(yaw[t])])
        half = np.broadcast_to([EGO_LENGTH_M / 2, EGO_WIDTH_M / 2], (len(rows), 2))
        centre = np.broadcast_to(plan_xy[t] + ahead, (len(rows), 2))
        hit[t] = boxes_touch(centre, np.full(len(rows), yaw[t]), half, rows[:, :2], rows[:, 2], rows[:, 3:5] / 2).any()
    return hit


def summary(samples: Sequence[SampleErrors], convention: str) -> dict[str, tuple[float, bool]]:
    """{l2_1s_m, ..., obj_col_3s, obj_box_col_1s, ...}: (value, valid); not available where no sample counts."""
    if convention not in CONVENTIONS:
        raise ValueError(f"convention {convention!r} is not one of {', '.join(CONVENTIONS)}")
    counted = [s for s in samples if s.full or convention != "stp3"]
    figures = {}
    for name, suffix in (("l2_m", "_m"), ("obj_col", ""), ("obj_box_col", "")):
        mean = np.mean([getattr(s, name) for s in counted], axis=0) if counted else np.full(STEPS, np.nan)
        for seconds in (1, 2, 3):
            last = 2 * seconds
            value = mean[last - 1] if convention == "uniad" else mean[:last].mean()
            figures[f"{name.removesuffix('_m')}_{seconds}s{suffix}"] = (float(value), bool(counted))
    return figures


def is_turning(recorded_xy: np.ndarray, recorded_mask: np.ndarray) -> tuple[bool, bool]:
    """Whether the recorded car ends 2 m or more beside its heading after 3 s, and whether that can be told."""
    return bool(abs(recorded_xy[-1, 0]) >= TURNING_M), bool(recorded_mask[-1])


def _rows_backward(convention: str) -> bool:
    return convention == "stp3"


def _course(plan_xy: np.ndarray) -> np.ndarray:
    """Direction of travel [6], counter-clockwise from x; a step under 0.1 m keeps the one before (at first, ahead)."""
    step = np.diff(plan_xy, axis=0, prepend=np.zeros((1, 2)))
    yaw, last = np.empty(len(step)), np.pi / 2
    for t, (dx, dy) in enumerate(step):
        last = float(np.arctan2(dy, dx)) if np.hypot(dx, dy) >= 0.1 else last
        yaw[t] = last
    return yaw


def _box_collides(xy: np.ndarray, occupied: np.ndarray, convention: str, yaw: np.ndarray | None) -> np.ndarray:
    """Whether any cell of the ego's box is occupied, bool [6]; cells beyond the grid are moved to its rim."""
    hit = np.zeros(STEPS, dtype=bool)
    for t in range(STEPS):
        right, forward = _BOX_RIGHT.astype(np.float64), _BOX_FORWARD.astype(np.float64)
        if yaw is not None:
            turn, middle = yaw[t] - np.pi / 2, -_FIRST_M / CELL_M  # the box is drawn around the middle of the grid
            u, w = right - middle, forward - middle
            right = middle + u * np.cos(turn) - w * np.sin(turn)
            forward = middle + u * np.sin(turn) + w * np.cos(turn)
        row, column = xy[t, 1] / CELL_M + forward, xy[t, 0] / CELL_M + right
        row = CELLS - row if _rows_backward(convention) else row
        row, column = (np.clip(c.astype(np.int32), 0, CELLS - 1) for c in (row, column))
        hit[t] = occupied[t, row, column].any()
    return hit


def _centre_collides(xy: np.ndarray, occupied: np.ndarray, convention: str, variant: str) -> np.ndarray:
    """Whether the cell of the ego is occupied, bool [6]; False beyond the grid."""
    right, forward = xy[:, 0], xy[:, 1]
    if not _rows_backward(convention):
        row, column = (forward - _FIRST_M) / CELL_M, (right - _FIRST_M) / CELL_M
    else:
        offset = -_FIRST_M / 2 if variant == "compat" else -_FIRST_M
        row, column = (offset - forward) / CELL_M, (offset + right) / CELL_M
    row, column = row.astype(np.int64), column.astype(np.int64)
    inside = (row >= 0) & (row < CELLS) & (column >= 0) & (column < CELLS)
    steps = np.arange(STEPS)
    return inside & occupied[steps, np.clip(row, 0, CELLS - 1), np.clip(column, 0, CELLS - 1)]
