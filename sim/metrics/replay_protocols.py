"""nuScenes open loop from the log of a replay: plans in the LiDAR frame of their keyframe, boxes of later keyframes."""

import numpy as np

from sim.metrics.closed_loop import NOT_AVAILABLE, Score
from sim.metrics.log_view import LogView
from sim.metrics.nuscenes_planning import (
    CONVENTIONS,
    STEPS,
    SampleErrors,
    is_turning,
    rasterise,
    sample_errors,
    summary,
)

LIDAR_AHEAD_M = 0.943713  # of the rear axle, on every nuScenes car
STEP_S = 0.5
OBSTACLES = {"uniad": ("vehicle.",), "stp3": ("vehicle.", "human.")}
KEYFRAME_S = 0.75  # two frames further apart are no neighbours
Figure = tuple[float, bool, float]


class Sample:
    """One keyframe in its own LiDAR frame: the plan, the recording and whether it is there, boxes by step."""

    def __init__(self, view: LogView, frame: int):
        self._view, log = view, view.log
        x, y, yaw = log.ego_xyyaw_in_world[frame]
        self._origin = np.array([x, y]) + LIDAR_AHEAD_M * np.array([np.cos(yaw), np.sin(yaw)])
        self._yaw = yaw
        time_s, xyyaw = log.plan_at(frame)
        knots = np.concatenate([log.ego_xyyaw_in_world[frame][None], xyyaw])
        knots[:, 2] = np.unwrap(knots[:, 2])
        at_s = STEP_S * np.arange(1, STEPS + 1)
        later = frame + np.arange(1, STEPS + 1)
        self.mask = later < len(log)
        self.frames = np.minimum(later, len(log) - 1)
        # Keyframes lie 0.4 to 0.6 s apart: a plan is where it says it will be at the instant of each.
        real_s = np.where(self.mask, log.time_s[self.frames] - log.time_s[frame], at_s)
        plan = np.stack([np.interp(real_s, np.append(0.0, time_s), knots[:, c]) for c in range(3)], axis=-1)
        self.plan_xyyaw = plan
        self.plan_xy = self._lidar(plan)
        self.recorded_xy = self._lidar(log.ego_xyyaw_in_world[self.frames])
        reached = at_s <= (time_s[-1] if len(time_s) else 0.0) + 1e-6
        # Keyframes come a little early: the sixth may lie before 3 s, where the recorded driver's own plan then ends.
        early = real_s < at_s
        self.mask &= reached | ~early
        self.planned = bool(reached[self.mask].all())  # wherever there is a recording to compare with

    def _lidar(self, xyyaw: np.ndarray) -> np.ndarray:
        """LiDAR positions [N, 2] of ego poses [N, 3] as x to the right and y ahead of the present LiDAR."""
        at = xyyaw[:, :2] + LIDAR_AHEAD_M * np.stack([np.cos(xyyaw[:, 2]), np.sin(xyyaw[:, 2])], axis=-1)
        return self._turn(at - self._origin)

    def _turn(self, d: np.ndarray) -> np.ndarray:
        cos, sin = np.cos(self._yaw), np.sin(self._yaw)
        return np.stack([d[:, 0] * sin - d[:, 1] * cos, d[:, 0] * cos + d[:, 1] * sin], axis=-1)

    def boxes(self, kinds: tuple[str, ...]) -> list[np.ndarray]:
        """Boxes [B, 5] at each step, of these categories."""
        log, out = self._view.log, []
        for frame, there in zip(self.frames, self.mask, strict=True):
            rows = log.actors_at(int(frame)) if there else slice(0, 0)
            wanted = np.array([c.startswith(kinds) for c in log.actor_category[rows].tolist()], dtype=bool)
            pose, size = log.actor_xyyaw_in_world[rows][wanted], log.actor_size_lw_m[rows][wanted]
            yaw = pose[:, 2] - self._yaw + np.pi / 2
            out.append(np.column_stack([self._turn(pose[:, :2] - self._origin), yaw, size]))
        return out


def nuscenes(view: LogView) -> dict[str, Figure]:
    """nuscenes.<convention>.<figure>: (value, valid, weight), the weight being how many samples count.

    Also `nuscenes.turning.l2_3s_m` (UniAD's convention where the recorded car turns) and `nuscenes.off_road_rate`, the
    share of plans whose car leaves the drivable area within 3 s. Not available where one plan falls short of 3 s;
    collisions neither where nobody is ever in the log: it then says that nobody was looked for, not that the road was
    empty.
    """
    samples = [Sample(view, int(frame)) for frame in np.unique(view.log.plan_frame)]
    whole = len(samples) == len(view.log) and len(samples) > 0 and all(s.planned for s in samples)
    whole = whole and bool((np.diff(view.log.time_s) < KEYFRAME_S).all())
    samples = samples if whole else []
    peopled = len(view.log.actor_category) > 0
    errors: dict[str, list[SampleErrors]] = {convention: [] for convention in CONVENTIONS}
    for sample in samples:
        occupied = {name: rasterise(sample.boxes(kinds), name) for name, kinds in OBSTACLES.items()}
        for convention in CONVENTIONS:
            grid = occupied.get(convention, occupied["uniad"])
            track = (sample.plan_xy, sample.recorded_xy, sample.mask)
            errors[convention].append(sample_errors(*track, grid, convention))
    figures: dict[str, Figure] = {}
    for convention in CONVENTIONS:
        counted = [e for e in errors[convention] if e.full or convention != "stp3"]
        for name, (value, valid) in summary(errors[convention], convention).items():
            if name.startswith("l2") or peopled:
                figures[f"nuscenes.{convention}.{name}"] = (value, valid, len(counted))
            else:
                figures[f"nuscenes.{convention}.{name}"] = (*NOT_AVAILABLE, 0.0)
    turns = [is_turning(sample.recorded_xy, sample.mask) == (True, True) for sample in samples]
    turning = [error for error, turn in zip(errors["uniad"], turns, strict=True) if turn]
    value, valid = summary(turning, "uniad")["l2_3s_m"]
    figures["nuscenes.turning.l2_3s_m"] = (value, valid, len(turning))
    figures["nuscenes.off_road_rate"] = (*_off_road(view, samples), len(samples))
    return figures


def _off_road(view: LogView, samples: list[Sample]) -> Score:
    if view.layers is None or not samples:
        return NOT_AVAILABLE
    car = view.footprint
    off = []
    for sample in samples:
        pose = sample.plan_xyyaw
        ends = car.centre_ahead_m + np.array([1, -1, -1, 1]) * car.length_m / 2
        sides = np.array([1, 1, -1, -1]) * car.width_m / 2
        cos, sin = np.cos(pose[:, 2, None]), np.sin(pose[:, 2, None])
        corners = np.stack([pose[:, 0, None] + ends * cos - sides * sin, pose[:, 1, None] + ends * sin + sides * cos])
        off.append(not view.drivable(corners.reshape(2, -1).T).all())
    return float(np.mean(off)), True
