"""Pedestrians as one sees them: without the leaps of SUMO's model."""

import numpy as np

MAX_WALK_MPS = 4.0  # nobody walks faster
CATCH_UP_MPS = 2.5  # who lags behind the model's place gets back to it this much faster than the model walks
LOST_M = 30.0  # who is this far from the model's place has been put somewhere else


class SmoothWalk:
    """Places of W pedestrians, period after period, and their speeds.

    At the corners of a junction SUMO takes a pedestrian a metre further at once, and some who turn to another crossing
    ten metres. Here they lag behind and catch up. SUMO also knows no speed of one who was put somewhere.
    """

    def __init__(self, count: int, period_s: float):
        self._period_s = period_s
        self._model_m, self._lag_m, self._seen_m = (np.zeros((count, 2)) for _ in range(3))
        self._were_there = np.zeros(count, bool)

    def follow(self, model_m: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where they are seen [W, 2] and how fast they walk [W], from the model's places [W, 2] and who is there [W].

        Who has just come is where the model says, and its speed is NaN: not known yet.
        """
        step, stay = model_m - self._model_m, there & self._were_there
        leaps = stay & (np.hypot(step[:, 0], step[:, 1]) > MAX_WALK_MPS * self._period_s)
        self._lag_m[leaps] -= step[leaps]
        lag = np.hypot(self._lag_m[:, 0], self._lag_m[:, 1])
        left = np.maximum(lag - CATCH_UP_MPS * self._period_s, 0.0) / np.maximum(lag, 1e-9)
        self._lag_m *= np.where(stay & (lag < LOST_M), left, 0.0)[:, None]
        seen = model_m + self._lag_m
        moved = seen - self._seen_m
        speed = np.where(stay, np.hypot(moved[:, 0], moved[:, 1]) / self._period_s, np.nan)
        self._model_m, self._seen_m, self._were_there = model_m, seen, there
        return seen, speed
