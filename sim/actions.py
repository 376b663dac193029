"""What an action of a driving environment may be, and the (acceleration, curvature) it means while it lasts.

    control     float64 [2]     acceleration (m/s2) and path curvature (1/m, positive to the left); one period of 0.1 s
    normalized  float64 [2]     the same as shares of the vehicle's limits: 0 is 0, -1 and 1 are the limits; one period
    tokens      int64 [2]       indices in `bins`, (accelerations, curvatures) increasing; one period
    plan        float64 [8, 4]  x, y (m), yaw (rad), speed (m/s) at 0.5, 1, ... 4 s in the ego frame of now; followed by
                                `sim.tracker` for five periods, the interval of nuScenes' keyframes

The vehicle limits what lies beyond its limits; NaN and another shape are an InputError.
"""

from collections.abc import Callable, Sequence

import numpy as np
from gymnasium import spaces

from sensors.errors import InputError, unknown_name
from sim.tracker import PLAN_TIME_S, Plan, PlanTracker
from sim.vehicle import VehicleParams
from sim.world import EgoWorld

Controls = tuple[float, float]
PLAN_PERIODS = 5


class ControlAction:
    """One action mode: its `space`, how many `periods` an action lasts, and `take`."""

    periods = 1

    def __init__(self, params: VehicleParams):
        self._high = np.array([params.max_accel_mps2, params.max_curvature_1pm])
        self._low = np.array([params.min_accel_mps2, -params.max_curvature_1pm])
        self.space: spaces.Space = spaces.Box(self._low, self._high, dtype=np.float64)

    def take(self, action: object, world: EgoWorld, where: str) -> Callable[[], Controls]:
        """Check the action and return what gives the controls of each period it lasts, asked as the world is then."""
        values = checked(action, "fiu", (2,), where, "2 finite numbers, acceleration and curvature")
        controls = self._controls(values, where)
        return lambda: controls

    def _controls(self, values: np.ndarray, where: str) -> Controls:
        return float(values[0]), float(values[1])


class NormalizedAction(ControlAction):
    """Shares of the limits, each side its own, so that 0 is coasting straight on."""

    def __init__(self, params: VehicleParams):
        super().__init__(params)
        self.space = spaces.Box(-1.0, 1.0, (2,), np.float64)

    def _controls(self, values: np.ndarray, where: str) -> Controls:
        accel, curvature = values * np.where(values < 0, -self._low, self._high)
        return float(accel), float(curvature)


class TokenAction(ControlAction):
    """Indices in increasing lists of accelerations and curvatures."""

    def __init__(self, params: VehicleParams, bins: Sequence[Sequence[float]] | None):
        fix = "Pass bins=(accelerations, curvatures), such as accel_mps2 and curvature_1pm of the policy's tokenizer."
        if bins is None or len(bins) != 2:
            raise InputError("action mode tokens", "bins", bins, "two increasing lists of numbers", fix)
        self._bins = tuple(np.asarray(centres, np.float64) for centres in bins)
        for centres in self._bins:
            if centres.ndim != 1 or len(centres) < 2 or not (np.diff(centres) > 0).all():
                came = f"shape {centres.shape}"
                raise InputError("action mode tokens", "bins", came, "two increasing lists of numbers", fix)
        self.space = spaces.MultiDiscrete([len(centres) for centres in self._bins])

    def take(self, action: object, world: EgoWorld, where: str) -> Callable[[], Controls]:
        limits = [len(centres) for centres in self._bins]
        expected = f"two integers below {limits}"
        values = checked(action, "iu", (2,), where, expected)
        if (values < 0).any() or (values >= limits).any():
            raise InputError(where, "action", values.tolist(), expected)
        accel, curvature = (float(centres[k]) for centres, k in zip(self._bins, values, strict=True))
        return lambda: (accel, curvature)


class PlanAction(ControlAction):
    """A plan, tracked. The tracker keeps to what a car can do, so any finite plan is followed as well as it can be."""

    periods = PLAN_PERIODS

    def __init__(self, params: VehicleParams):
        super().__init__(params)
        reach_m = (params.max_speed_mps * PLAN_TIME_S)[:, None]
        one = np.ones_like(reach_m)
        high = np.concatenate([reach_m, reach_m, np.pi * one, params.max_speed_mps * one], axis=1)
        self.space = spaces.Box(high * (-1.0, -1.0, -1.0, 0.0), high, dtype=np.float64)

    def take(self, action: object, world: EgoWorld, where: str) -> Callable[[], Controls]:
        K = len(PLAN_TIME_S)
        rows = checked(action, "fiu", (K, 4), where, f"{K} rows of finite x, y, yaw, speed").astype(np.float64)
        tracker = PlanTracker()
        plan = Plan(PLAN_TIME_S, rows[:, :3], rows[:, 3])
        tracker.follow(plan, world.ego.T_world_from_ego, world.time_us, world.ego.speed_mps)

        def controls():
            command = tracker.command(world.ego.T_world_from_ego, world.time_us, world.ego.speed_mps)
            return command.accel_mps2, command.curvature_1pm

        return controls


MODES = {"control": ControlAction, "normalized": NormalizedAction, "plan": PlanAction, "tokens": TokenAction}


def get_action_mode(name: str, params: VehicleParams, bins: Sequence[Sequence[float]] | None) -> ControlAction:
    """The mode of this name; an unknown one, or bins that it has no use for, is an InputError."""
    if name not in MODES:
        raise unknown_name("environment", "action_mode", name, MODES)
    if name == "tokens":
        return TokenAction(params, bins)
    if bins is not None:
        raise InputError("environment", "bins", f"with action_mode {name}", "bins only with action_mode tokens")
    return MODES[name](params)


def checked(action: object, kinds: str, shape: tuple[int, ...], where: str, expected: str) -> np.ndarray:
    """The action as an array of this shape and of one of these kinds of numbers, finite; else an InputError."""
    try:
        values = np.asarray(action)
    except ValueError:  # ragged
        raise InputError(where, "action", action, expected) from None
    if values.shape != shape or values.dtype.kind not in kinds:
        raise InputError(where, "action", f"{values.dtype} {values.shape}", expected)
    if not np.isfinite(values).all():
        raise InputError(where, "action", values.tolist(), expected)
    return values
