"""Tyres against what the theory of steady cornering says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.tyres import FRONT_GRIP, GRAVITY_MPS2, Tyres, slip_step

WHEELBASE_M = 2.588
properties = settings(deadline=None, derandomize=True, max_examples=60)


def settle(tyres: Tyres, speed_mps: float, steering_rad: float, seconds: float = 8.0) -> tuple[float, float]:
    slip = curvature = 0.0
    for _ in range(round(seconds / 0.01)):
        slip, curvature = slip_step(tyres, WHEELBASE_M, (speed_mps, slip, curvature), speed_mps, steering_rad, 0.01)
    return slip, curvature


@properties
@given(st.floats(0, 36), st.floats(-0.3, 0.3), st.floats(0.4, 0.6), st.floats(60e3, 150e3), st.floats(1.05, 1.6))
def test_steady_cornering_turns_by_the_understeer_gradient(speed, lateral_share, front_share, front_npr, stiffer):
    """r = u tan d / (L + K u^2), well below the limit of grip; the tail hangs out by what the rear tyres need."""
    rear_npr = stiffer * front_npr * (1 - front_share) / front_share  # stiffer for its load than the front: stable
    tyres = Tyres(front_share=front_share, front_npr=front_npr, rear_npr=rear_npr)
    K = tyres.understeer_s2pm(WHEELBASE_M)
    assert K > 0
    kinematic = lateral_share * GRAVITY_MPS2 / max(speed, 5.0) ** 2
    steering = math.atan(kinematic * (WHEELBASE_M + K * speed**2))
    slip, curvature = settle(tyres, speed, steering)
    assert speed * curvature == pytest.approx(speed * math.tan(steering) / (WHEELBASE_M + K * speed**2), abs=1e-7)
    front_m, rear_m = tyres.axles_m(WHEELBASE_M)
    assert front_m + rear_m == pytest.approx(WHEELBASE_M)
    rear_force = tyres.mass_kg * speed**2 * curvature * front_m / WHEELBASE_M
    assert slip == pytest.approx(-rear_force / rear_npr, abs=1e-7)


@properties
@given(st.floats(-0.5, 0.5), st.floats(-0.2, 0.2), st.floats(-0.2, 0.2), st.sampled_from([0.001, 0.01, 0.1]))
def test_a_car_that_stands_is_the_kinematic_bicycle_whatever_it_was(steering, slip, curvature, dt_s):
    after = slip_step(Tyres(), WHEELBASE_M, (0.0, slip, curvature), 0.0, steering, dt_s)
    for _ in range(20):  # where the tyres were sliding
        after = slip_step(Tyres(), WHEELBASE_M, (0.0, *after), 0.0, steering, dt_s)
    assert after == pytest.approx((0.0, math.tan(steering) / WHEELBASE_M), abs=1e-9)


@pytest.mark.parametrize("speed", [0.0, 0.01, 0.3, 1.0, 5.0, 15.0, 36.0])
@pytest.mark.parametrize("dt_s", [0.01, 0.1])
def test_it_is_stable_at_any_speed(speed, dt_s):
    """A jolt dies away, and a turn of the wheel settles: no step is larger than the one before, once it is over."""
    slip, curvature = 0.02, 0.05 / max(speed, 1.0)
    for _ in range(round(6.0 / dt_s)):
        slip, curvature = slip_step(Tyres(), WHEELBASE_M, (speed, slip, curvature), speed, 0.0, dt_s)
    assert abs(slip) < 1e-6
    assert abs(curvature) < 1e-6


@pytest.mark.parametrize("friction", [0.2, 0.9])
def test_grip_limits_the_lateral_acceleration(friction):
    tyres = Tyres(friction=friction)
    slip, curvature = settle(tyres, 20.0, 0.2)
    assert 20.0**2 * curvature == pytest.approx(FRONT_GRIP * friction * GRAVITY_MPS2, rel=1e-3)
    assert abs(slip) < 0.1  # it ploughs straight on over its front axle


def test_left_is_the_mirror_of_right():
    left, right = settle(Tyres(), 18.0, 0.06, 0.3), settle(Tyres(), 18.0, -0.06, 0.3)
    assert np.array(left) == pytest.approx(-np.array(right), abs=1e-15)
