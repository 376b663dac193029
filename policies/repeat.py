"""The policy that repeats a drive: teach a route by driving it once, then follow it by localisation alone.

It looks at nothing but the car's own pose: no pictures, no others, no lights. On a vehicle it is what one engages
first, on a closed course, to prove the chain from topics to wheels before a learned policy drives.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.protocol import Plan, Privileged
from policies.town_motion import DT_S, motion
from policies.town_view import Limit
from policies.transforms import speed_at_now
from sensors import frames
from sensors.clip import Clip
from sensors.errors import InputError
from sensors.reasons import reason
from sim.geometry import OpenLine
from sim.tracker import PLAN_TIME_S
from sim.vehicle import EgoState, VehicleParams

SPACING_M = 1.0
BEYOND_M = 15
LATERAL_MPS2 = 2.0  # comfortable in a bend
MAX_ASIDE_M, SEARCH_M = 3.0, 20.0  # further from the route than this it is not followed
FRONT_M = VehicleParams().front_m


@dataclass(frozen=True)
class TaughtRoute:
    """Where a car drove, and no faster than this: xy_m float64 [P, 2] in the frame of its odometry."""

    xy_m: np.ndarray
    max_speed_mps: float

    @classmethod
    def of_track(cls, xy_m: np.ndarray, max_speed_mps: float) -> "TaughtRoute":
        """The route of a recorded track [F, 2], its points SPACING_M apart, whether it stood on the way or not; then
        BEYOND_M straight on, so that a car that stops at its end has reached where the recorded one was."""
        kept = [xy_m[0]]
        for point in xy_m[1:]:
            if np.hypot(*(point - kept[-1])) >= SPACING_M:
                kept.append(point)
        end = np.array(kept)
        if len(end) > 1:
            direction = (end[-1] - end[-2]) / np.hypot(*(end[-1] - end[-2]))
            end = np.concatenate([end, end[-1] + np.arange(1, BEYOND_M)[:, None] * direction])
        return cls(end, float(max_speed_mps)).validate()

    def validate(self, where: object = "route") -> "TaughtRoute":
        if self.xy_m.ndim != 2 or self.xy_m.shape[1] != 2 or len(self.xy_m) < 3 or not np.isfinite(self.xy_m).all():
            raise InputError(where, "xy_m", f"shape {self.xy_m.shape}", "at least 3 finite points [P, 2]")
        steps_m = np.hypot(*np.diff(self.xy_m, axis=0).T)
        if steps_m.min() < 0.1 or steps_m.max() > 10 * SPACING_M:
            came = f"points {steps_m.min():.2f} to {steps_m.max():.2f} m apart"
            raise InputError(where, "xy_m", came, f"0.1 to {10 * SPACING_M:.0f} m")
        if not 0.5 <= self.max_speed_mps <= 20.0:
            raise InputError(where, "max_speed_mps", self.max_speed_mps, "0.5 to 20")
        return self

    def to_json(self) -> dict:
        return {"max_speed_mps": self.max_speed_mps, "xy_m": self.xy_m.tolist()}


def read_route(path: Path) -> TaughtRoute:
    """The route in a JSON file; what is not one is an InputError."""
    try:
        content = json.loads(path.read_bytes())
        route = TaughtRoute(np.array(content["xy_m"], np.float64), float(content["max_speed_mps"]))
    except OSError as error:
        raise InputError(path, "file", error.strerror, "a route that was recorded") from error
    except (ValueError, KeyError, TypeError) as error:
        expected = 'JSON {"max_speed_mps": number, "xy_m": [[x, y], ...]}'
        raise InputError(path, "content", f"{type(error).__name__}: {error}", expected) from error
    return route.validate(path)


class Repeat:
    """Plans four seconds along a taught route, no faster than it says and than its bends allow, to a stop at its end.

    A car further than MAX_ASIDE_M beside the route is an InputError: it is not driven back to it.
    """

    name = "repeat"
    privileged = False
    needs_images = False
    clip_steps = 1
    image_size = None

    def __init__(self, route: TaughtRoute):
        self._line = OpenLine(route.xy_m)
        bend_1pm = np.abs(self._line.curvature_at(self._line.s_m))
        wide = np.convolve(np.pad(bend_1pm, 2, mode="edge"), np.ones(5) / 5, mode="valid")  # recorded points are noisy
        self._speeds = np.minimum(route.max_speed_mps, np.sqrt(LATERAL_MPS2 / np.maximum(wide, 1e-6)))
        self.reset(0)

    def reset(self, seed: int) -> None:
        self._s_m: float | None = None

    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        x, y, yaw = frames.xy_yaw(clip.T_world_from_ego_now).tolist()
        on = self._line.project(np.array([x, y]), self._s_m, SEARCH_M)
        if abs(on.lateral_m) > MAX_ASIDE_M:
            raise InputError("policy repeat", "pose", f"{abs(on.lateral_m):.1f} m off the route", f"{MAX_ASIDE_M} m")
        self._s_m = float(on.s_m)
        ego = EgoState(x, y, yaw, max(speed_at_now(clip), 0.0))
        left_m = self._line.length_m - self._s_m - FRONT_M
        end = Limit(left_m, 0.0, "stop: end of the route", standstill=True)
        rows, _, _ = motion(ego, self._line, self._s_m, self._speeds, [end], PLAN_TIME_S[-1])
        chosen = rows[np.round(PLAN_TIME_S / DT_S).astype(int) - 1]
        in_ego = frames.inverse(clip.T_world_from_ego_now) @ frames.matrix_from_xy_yaw(*chosen[:, :3].T)
        return Plan(PLAN_TIME_S, frames.xy_yaw(in_ego), chosen[:, 3], reason=reason("drive", "free road"))
