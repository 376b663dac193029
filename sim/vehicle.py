"""The ego vehicle: bicycle at the rear axle, with limits, and its inverse; lag and tyre slip if asked for.

    x'   = v cos(yaw)      y' = v sin(yaw)      yaw' = v k      v' = a      k = tan(steering) / wheelbase

Within one step acceleration a and curvature k are constant, so the rear axle moves on an arc of length ds and turns by
k ds, which `advance` integrates exactly (no Euler step). With lags, a and the steering answer a command like
tau y' = command - y, also exactly; with `Tyres` the curvature is that of `sim.tyres`, and the rear axle slips sideways.
"""

import math
from dataclasses import dataclass, fields

import numpy as np

from sensors.errors import InputError
from sensors.frames import matrix_from_xy_yaw, wrap
from sim.tyres import Tyres, slip_step


@dataclass(frozen=True)
class VehicleParams:
    """Size and limits; the defaults are those of the Renault Zoe that recorded nuScenes, answering at once.

    The rear bumper lies `rear_overhang_m` behind the rear axle (the ego origin), the front bumper the rest of the
    length before it. Speed never leaves [0, max_speed_mps]: there is no reverse gear.

    accel_lag_s, steering_lag_s  time constants tau of the actuators, 0 for none (about 0.3 and 0.1 on a real car)
    dead_time_s                  a command takes this long before it has any effect; `sim.world` rounds it to 10 ms
    tyres                        None: they roll where they point
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
    accel_lag_s: float = 0.0
    steering_lag_s: float = 0.0
    dead_time_s: float = 0.0
    tyres: Tyres | None = None

    def validate(self, where: object = "vehicle") -> "VehicleParams":
        """Self, or an InputError that names the first bad field."""
        for name in (field.name for field in fields(self) if field.name != "tyres"):
            value = getattr(self, name)
            low, high = (0.0, 1.0) if name in ("accel_lag_s", "steering_lag_s", "dead_time_s") else (1e-3, 1e6)
            if name == "min_accel_mps2":
                low, high = -1e6, -1e-3
            if name == "max_steering_rad":
                high = 1.5
            if not low <= value <= high:
                raise InputError(where, name, value, f"a number in [{low:g}, {high:g}]")
        if self.tyres is not None:
            self.tyres.validate(f"{where} tyres")
        return self

    @property
    def ideal(self) -> bool:
        """Commands within the limits are met at once and exactly (after the dead time)."""
        return self.tyres is None and not self.accel_lag_s and not self.steering_lag_s

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
class Response:
    """Where actuators and tyres are on their way to what was commanded.

    accel_mps2 acts now, steering_rad of the road wheels, slip: the rear axle's speed along ego y over that along x
    """

    accel_mps2: float
    steering_rad: float
    slip: float = 0.0


@dataclass(frozen=True)
class EgoState:
    """Rear axle pose in the world, speed along ego x, yaw rate over speed now (the path's curvature; left positive).

    response  None for an ideal vehicle
    """

    x_m: float
    y_m: float
    yaw_rad: float
    speed_mps: float
    curvature_1pm: float = 0.0
    response: Response | None = None

    @property
    def yaw_rate_radps(self) -> float:
        return self.speed_mps * self.curvature_1pm

    @property
    def T_world_from_ego(self) -> np.ndarray:
        return matrix_from_xy_yaw(self.x_m, self.y_m, self.yaw_rad)

    def steering_rad(self, params: VehicleParams) -> float:
        if self.response is not None:
            return self.response.steering_rad
        return float(np.arctan(params.wheelbase_m * self.curvature_1pm))

    @property
    def slip(self) -> float:
        """Speed of the rear axle along ego y over that along ego x."""
        return self.response.slip if self.response is not None else 0.0

    def footprint(self, params: VehicleParams) -> np.ndarray:
        """Box [5] (x, y, yaw, length, width) as in sim.geometry."""
        forward = np.array([np.cos(self.yaw_rad), np.sin(self.yaw_rad)])
        x, y = np.array([self.x_m, self.y_m]) + params.centre_m * forward
        return np.array([x, y, self.yaw_rad, params.length_m, params.width_m])


def advance(
    state: EgoState, distance_m: float, speed_mps: float, curvature_1pm: float, response: Response | None = None
) -> EgoState:
    """The state after an arc of this length along ego x (negative: before it) and curvature, at this speed.

    A chord of length ds sinc(k ds / 2), in the direction yaw + k ds / 2; with slip as much again aside as it is.
    """
    half_turn = 0.5 * curvature_1pm * distance_m
    heading = state.yaw_rad + half_turn
    chord = distance_m * _sinc(half_turn)
    dx, dy = chord * float(np.cos(heading)), chord * float(np.sin(heading))
    if response is not None and response.slip:
        dx, dy = dx - response.slip * dy, dy + response.slip * dx
    yaw = (state.yaw_rad + 2 * half_turn + math.pi) % (2 * math.pi) - math.pi  # wrap, without its handling of arrays
    return EgoState(state.x_m + dx, state.y_m + dy, yaw, speed_mps, curvature_1pm, response)


def step(state: EgoState, accel_mps2: float, curvature_1pm: float, dt_s: float, params: VehicleParams) -> EgoState:
    """The state dt_s later under a commanded acceleration and curvature.

    a is limited to [min_accel, max_accel], steering atan(wheelbase k) to its limit and its rate. The curvature reached
    holds over the whole step. Speed stops at 0 and at its limit within the step, at the instant it gets there.
    NaN is an InputError.
    """
    if not (math.isfinite(accel_mps2) and math.isfinite(curvature_1pm)):
        raise InputError("vehicle.step", "command", (accel_mps2, curvature_1pm), "finite acceleration and curvature")
    a = min(max(accel_mps2, params.min_accel_mps2), params.max_accel_mps2)
    limit = params.max_steering_rad
    wanted = min(max(float(np.arctan(params.wheelbase_m * curvature_1pm)), -limit), limit)
    if params.ideal:
        k, response = _steered(state, curvature_1pm, wanted, dt_s, params), None
    else:
        a, k, response = _respond(state, a, wanted, dt_s, params)
    speed = min(max(state.speed_mps + a * dt_s, 0.0), params.max_speed_mps)
    # Time spent speeding up or down; the rest of the step is at the speed reached.
    changing_s = min(dt_s, (speed - state.speed_mps) / a) if a else dt_s
    distance = 0.5 * (state.speed_mps + speed) * changing_s + speed * (dt_s - changing_s)
    return advance(state, distance, speed, k, response)


def _steered(state: EgoState, curvature_1pm: float, wanted_rad: float, dt_s: float, params: VehicleParams) -> float:
    """Curvature after a step towards the road wheels' angle that was asked for by this curvature."""
    now = state.steering_rad(params)
    reach = params.max_steering_rate_radps * dt_s
    if abs(curvature_1pm) <= params.max_curvature_1pm and abs(wanted_rad - now) <= reach:
        return float(curvature_1pm)  # not through atan and tan: an unlimited command is met exactly
    return float(np.tan(now + min(max(wanted_rad - now, -reach), reach)) / params.wheelbase_m)


def _respond(
    state: EgoState, accel_mps2: float, wanted_rad: float, dt_s: float, params: VehicleParams
) -> tuple[float, float, Response]:
    """Mean acceleration over the step, curvature and response after it."""
    before = state.response or Response(accel_mps2 if not params.accel_lag_s else 0.0, state.steering_rad(params))
    mean, accel = _lagged(before.accel_mps2, accel_mps2, params.accel_lag_s, dt_s)
    reach = params.max_steering_rate_radps * dt_s
    turn = _lagged(before.steering_rad, wanted_rad, params.steering_lag_s, dt_s)[1] - before.steering_rad
    steering = before.steering_rad + min(max(turn, -reach), reach)
    if params.tyres is None:
        return mean, float(np.tan(steering) / params.wheelbase_m), Response(accel, steering)
    speed = min(max(state.speed_mps + mean * dt_s, 0.0), params.max_speed_mps)
    was = (state.speed_mps, before.slip, state.curvature_1pm)
    slip, curvature = slip_step(params.tyres, params.wheelbase_m, was, speed, steering, dt_s)
    return mean, curvature, Response(accel, steering, slip)


def _lagged(now: float, wanted: float, tau_s: float, dt_s: float) -> tuple[float, float]:
    """Mean over dt and value after it of y in  tau y' = wanted - y  from y = now."""
    if not tau_s:
        return wanted, wanted
    left = math.exp(-dt_s / tau_s)
    return wanted + (now - wanted) * (1 - left) * tau_s / dt_s, wanted + (now - wanted) * left


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


def _sinc(angle_rad: float) -> float:
    """sin(x) / x, to the bit as np.sinc(x / pi) but without its handling of arrays."""
    y = np.pi * (angle_rad / np.pi or 1e-20)
    return float(np.sin(y)) / y
