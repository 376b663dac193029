"""The ego vehicle: kinematic bicycle at the rear axle, with limits, and its inverse.

    x'   = v cos(yaw)      y' = v sin(yaw)      yaw' = v k      v' = a      k = tan(steering) / wheelbase

Within one step acceleration a and curvature k are constant, so the rear axle moves on an arc of length ds and turns by
k ds, which `advance` integrates exactly (no Euler step).
"""

from dataclasses import dataclass

import numpy as np

from sensors.errors import InputError
from sensors.frames import matrix_from_xy_yaw, wrap


@dataclass(frozen=True)
class VehicleParams:
    """Size and limits; the defaults are those of the Renault Zoe that recorded nuScenes.

    The rear bumper lies `rear_overhang_m` behind the rear axle (the ego origin), the front bumper the rest of the
    length before it. Speed never leaves [0, max_speed_mps]: there is no reverse gear.
    """

    length_m: float = 4.084
    width_m: float = 1.85
    height_m: float = 1.562
    wheelbase_m: float = 2.588
    rear_overhang_m: float = 0.657
    min_accel_mps2: float = -6.0
    max_accel_mps2: float = 3.0
    max_steering_rad: float = 0.5  # of the road wheels; 4.7 m of radius at the rear axle
    max_steering_rate_radps: float = 0.7
    max_speed_mps: float = 37.0

    @property
    def front_m(self) -> float:
        """Rear axle to front bumper."""
        return self.length_m - self.rear_overhang_m

    @property
    def centre_m(self) -> float:
        """Rear axle to the centre of the footprint, along ego x."""
        return self.length_m / 2 - self.rear_overhang_m

    @property
    def max_curvature_1pm(self) -> float:
        return float(np.tan(self.max_steering_rad) / self.wheelbase_m)


@dataclass(frozen=True)
class EgoState:
    """Rear axle pose in the world, speed along ego x, curvature of the path now (positive to the left)."""

    x_m: float
    y_m: float
    yaw_rad: float
    speed_mps: float
    curvature_1pm: float = 0.0

    @property
    def yaw_rate_radps(self) -> float:
        return self.speed_mps * self.curvature_1pm

    @property
    def T_world_from_ego(self) -> np.ndarray:
        return matrix_from_xy_yaw(self.x_m, self.y_m, self.yaw_rad)

    def steering_rad(self, params: VehicleParams) -> float:
        return float(np.arctan(params.wheelbase_m * self.curvature_1pm))

    def footprint(self, params: VehicleParams) -> np.ndarray:
        """Box [5] (x, y, yaw, length, width) as in sim.geometry."""
        forward = np.array([np.cos(self.yaw_rad), np.sin(self.yaw_rad)])
        x, y = np.array([self.x_m, self.y_m]) + params.centre_m * forward
        return np.array([x, y, self.yaw_rad, params.length_m, params.width_m])


def advance(state: EgoState, distance_m: float, speed_mps: float, curvature_1pm: float) -> EgoState:
    """The state after an arc of this length (negative: before it) and curvature, at this speed.

    A chord of length ds sinc(k ds / 2), in the direction yaw + k ds / 2.
    """
    half_turn = 0.5 * curvature_1pm * distance_m
    chord = distance_m * float(np.sinc(half_turn / np.pi))  # numpy's sinc(x) is sin(pi x) / (pi x)
    return EgoState(
        state.x_m + chord * float(np.cos(state.yaw_rad + half_turn)),
        state.y_m + chord * float(np.sin(state.yaw_rad + half_turn)),
        float(wrap(state.yaw_rad + 2 * half_turn)),
        speed_mps,
        curvature_1pm,
    )


def step(state: EgoState, accel_mps2: float, curvature_1pm: float, dt_s: float, params: VehicleParams) -> EgoState:
    """The state dt_s later under a commanded acceleration and curvature.

    a is limited to [min_accel, max_accel], steering atan(wheelbase k) to its limit and its rate. The curvature reached
    holds over the whole step. Speed stops at 0 and at its limit within the step, at the instant it gets there.
    NaN is an InputError.
    """
    if not (np.isfinite(accel_mps2) and np.isfinite(curvature_1pm)):
        raise InputError("vehicle.step", "command", (accel_mps2, curvature_1pm), "finite acceleration and curvature")
    a = min(max(accel_mps2, params.min_accel_mps2), params.max_accel_mps2)
    wanted = float(np.clip(np.arctan(params.wheelbase_m * curvature_1pm), *_both(params.max_steering_rad)))
    now = state.steering_rad(params)
    reach = params.max_steering_rate_radps * dt_s
    if abs(curvature_1pm) <= params.max_curvature_1pm and abs(wanted - now) <= reach:
        k = float(curvature_1pm)  # not through atan and tan: an unlimited command is met exactly
    else:
        k = float(np.tan(now + np.clip(wanted - now, -reach, reach)) / params.wheelbase_m)
    speed = min(max(state.speed_mps + a * dt_s, 0.0), params.max_speed_mps)
    # Time spent speeding up or down; the rest of the step is at the speed reached.
    changing_s = min(dt_s, (speed - state.speed_mps) / a) if a else dt_s
    distance = 0.5 * (state.speed_mps + speed) * changing_s + speed * (dt_s - changing_s)
    return advance(state, distance, speed, k)


def inverse(state_0: EgoState, state_1: EgoState, dt_s: float) -> tuple[float, float]:
    """(acceleration, curvature) that `step` needs from state_0 to state_1, if no limit is active.

    a = (v1 - v0) / dt    k = wrap(yaw1 - yaw0) / ds    ds = (v0 + v1) dt / 2
    A car that does not move tells no curvature: then it is state_1's. A turn of more than half a circle is not seen.
    """
    a = (state_1.speed_mps - state_0.speed_mps) / dt_s
    distance = 0.5 * (state_0.speed_mps + state_1.speed_mps) * dt_s
    if distance < 1e-6:
        return a, state_1.curvature_1pm
    return a, float(wrap(state_1.yaw_rad - state_0.yaw_rad)) / distance


def _both(limit: float) -> tuple[float, float]:
    return -limit, limit
