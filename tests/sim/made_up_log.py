"""A recorded drive that never was: a straight road to the east, the car at a steady speed, whoever a test asks for."""

from pathlib import Path

import cv2
import numpy as np

from sensors.clip import Boxes
from sensors.frames import matrix_from_xy_yaw
from sensors.recorded_drive import RecordedDrive, Shots
from sim.sensing import EXPOSURE_BEFORE_US, nuscenes_rig

KEYFRAMES, PERIOD_US, START_US = 21, 500_000, 1_600_000_000_000_000
START_X_M, LANE_Y_M, HALF_ROAD_M = 150.0, 200.0, 7.0
CAR = (4.5, 1.85, 1.5)


def map_png(folder: Path) -> Path:
    """A road along y = LANE_Y_M, as nuScenes' raster: 10 px a metre, row 0 in the north."""
    mask = np.zeros((4000, 5000), np.uint8)
    mask[4000 - int((LANE_Y_M + HALF_ROAD_M) * 10) : 4000 - int((LANE_Y_M - HALF_ROAD_M) * 10)] = 255
    path = folder / "road.png"
    cv2.imwrite(str(path), mask)
    return path


def made_up_drive(map_path: Path, speed_mps: float = 8.0, others: dict[str, tuple] | None = None) -> RecordedDrive:
    """others: id -> (category, x [K], y [K]) of centres at the keyframes, NaN where it is not there; all look east."""
    time_us = START_US + np.arange(KEYFRAMES, dtype=np.int64) * PERIOD_US
    seconds = (time_us - START_US) * 1e-6
    ego = matrix_from_xy_yaw(START_X_M + speed_mps * seconds, LANE_Y_M, 0.0)
    boxes = []
    for k in range(KEYFRAMES):
        there = [(name, c, x[k], y[k]) for name, (c, x, y) in (others or {}).items() if np.isfinite(x[k])]
        T = matrix_from_xy_yaw(np.array([x for *_, x, _ in there]), np.array([y for *_, y in there]), 0.0)
        size = np.tile(CAR, (len(there), 1)) if there else np.zeros((0, 3))
        T[:, 2, 3] = CAR[2] / 2
        names = tuple(name for name, *_ in there)
        boxes.append(Boxes(names, tuple(c for _, c, *_ in there), T, size, np.full((len(there), 2), np.nan)))
    rig = nuscenes_rig(160, 90)
    none = Shots(np.zeros(0, np.int64), np.zeros((0, 4, 4)), ())
    before = EXPOSURE_BEFORE_US.copy()
    rest = (speed_mps, 0.0, rig, (none,) * len(rig), before, map_path, None, None)
    return RecordedDrive("scene-9999", "made up", time_us, ego, tuple(boxes), *rest)


def along(start_m: float, speed_mps: float, y_m: float = LANE_Y_M) -> tuple[np.ndarray, np.ndarray]:
    """x [K], y [K] of somebody who begins so far ahead of the car's rear axle and keeps a speed."""
    seconds = np.arange(KEYFRAMES) * PERIOD_US * 1e-6
    return START_X_M + start_m + speed_mps * seconds, np.full(KEYFRAMES, y_m)
