"""Tyres that slip: the dynamic single-track model with linear tyres that saturate.

With speed u along ego x, lateral velocity v of the centre of mass, yaw rate r and road wheels at the angle d

    m (v' + u r) = F_f + F_r        F_f =  C_f (tan d - (v + l_f r) / u)      |F_f| <= 0.95 mu m g l_r / L
    I r' = l_f F_f - l_r F_r        F_r = -C_r (v - l_r r) / u                |F_r| <= mu m g l_f / L

(Rajamani, Vehicle Dynamics and Control, 2nd ed., eq. 2.31; tan d for d, so that its limit at low speed is the kinematic
bicycle). Steady cornering: r = u tan d / (L + K u^2) with the understeer gradient K = m / L (l_r / C_f - l_f / C_r).
Speed is not changed by the tyres, and braking takes none of their grip.

The fractions blow up as u -> 0. A backward Euler step in the unknowns v / u (slope) and r / u (curvature) instead of v
and r divides by nothing that vanishes (the idea of Ge et al. 2021, arXiv 2011.09612), and is stable at any speed.
"""

from dataclasses import dataclass

import numpy as np

from sensors.errors import InputError

GRAVITY_MPS2 = 9.80665
FRONT_GRIP = 0.95  # of the rear's: at the limit a production car slides over its front axle, it does not spin
ROUNDS = 4  # of the saturation, which depends on the slip that it limits


@dataclass(frozen=True)
class Tyres:
    """Mass and tyres of a car; the defaults are of the order of a compact electric car's on a dry road.

    front_share   of the weight on the front axle
    front_npr, rear_npr  cornering stiffness of an axle, N/rad
    friction      mu: 0.9 dry, 0.5 wet, 0.2 on snow
    """

    mass_kg: float = 1600.0
    yaw_inertia_kgm2: float = 2300.0
    front_share: float = 0.57
    front_npr: float = 90_000.0
    rear_npr: float = 110_000.0
    friction: float = 0.9

    def validate(self, where: object = "tyres") -> "Tyres":
        """Self, or an InputError that names the first bad field."""
        for name, value in vars(self).items():
            high = 1.0 if name == "front_share" else np.inf
            if not 0 < value < high:
                raise InputError(where, name, value, "a share between 0 and 1" if high == 1 else "a number above 0")
        return self

    def axles_m(self, wheelbase_m: float) -> tuple[float, float]:
        """Distances (l_f, l_r) of the front and the rear axle from the centre of mass."""
        return (1 - self.front_share) * wheelbase_m, self.front_share * wheelbase_m

    def understeer_s2pm(self, wheelbase_m: float) -> float:
        """K in r = u tan d / (L + K u^2); above 0 the car understeers."""
        front_m, rear_m = self.axles_m(wheelbase_m)
        return self.mass_kg / wheelbase_m * (rear_m / self.front_npr - front_m / self.rear_npr)


def slip_step(
    tyres: Tyres,
    wheelbase_m: float,
    before: tuple[float, float, float],
    speed_mps: float,
    steering_rad: float,
    dt_s: float,
) -> tuple[float, float]:
    """(slope v / u at the rear axle, curvature r / u) dt later, from (speed, slope, curvature) `before`."""
    front_m, rear_m = tyres.axles_m(wheelbase_m)
    speed_0, slope, curvature = before
    slope += rear_m * curvature  # at the centre of mass
    lateral_0, turning_0 = speed_0 * slope, speed_0 * curvature
    steer = float(np.tan(steering_rad))
    m, inertia = tyres.mass_kg, tyres.yaw_inertia_kgm2
    load = tyres.friction * GRAVITY_MPS2 * m / wheelbase_m
    for _ in range(ROUNDS):
        front = _secant(tyres.front_npr, steer - slope - front_m * curvature, FRONT_GRIP * load * rear_m)
        rear = _secant(tyres.rear_npr, rear_m * curvature - slope, load * front_m)
        skew = front_m * front - rear_m * rear
        a, b = speed_mps + dt_s * (front + rear) / m, dt_s * (skew / m + speed_mps**2)
        c, d = dt_s * skew / inertia, speed_mps + dt_s * (front_m**2 * front + rear_m**2 * rear) / inertia
        e, f = lateral_0 + dt_s * front * steer / m, turning_0 + dt_s * front_m * front * steer / inertia
        slope, curvature = (e * d - b * f) / (a * d - b * c), (a * f - e * c) / (a * d - b * c)
    return slope - rear_m * curvature, curvature


def _secant(stiffness_npr: float, slip_rad: float, limit_n: float) -> float:
    """The stiffness that gives a tyre's force at this slip: less than its own beyond the limit of grip."""
    return min(stiffness_npr, limit_n / abs(slip_rad)) if slip_rad else stiffness_npr
