import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sensors.errors import InputError
from sensors.frames import wrap
from sim.geometry import corners
from sim.vehicle import EgoState, VehicleParams, advance, inverse, step

PARAMS = VehicleParams()
UNLIMITED = VehicleParams(max_steering_rate_radps=1e6)
properties = settings(deadline=None, derandomize=True, max_examples=80)
states = st.builds(
    EgoState, st.floats(-500, 500), st.floats(-500, 500), st.floats(-3.1, 3.1), st.floats(0, 30), st.floats(-0.2, 0.2)
)


@properties
@given(states, st.floats(-6, 3), st.floats(-0.2, 0.2), st.floats(0.01, 0.5))
def test_inverse_recovers_the_command(state, accel, curvature, dt_s):
    assume(0.05 < state.speed_mps + accel * dt_s < 36)
    after = step(state, accel, curvature, dt_s, UNLIMITED)
    got_accel, got_curvature = inverse(state, after, dt_s)
    distance = 0.5 * (state.speed_mps + after.speed_mps) * dt_s
    assert got_accel == pytest.approx(accel, abs=1e-9)
    assert got_curvature == pytest.approx(curvature, abs=1e-13 / distance + 1e-12)


@properties
@given(states, st.floats(-6, 3), st.floats(-0.2, 0.2))
def test_ten_short_steps_are_one_long_one(state, accel, curvature):
    parts = state
    for _ in range(10):
        parts = step(parts, accel, curvature, 0.01, UNLIMITED)
    whole = step(state, accel, curvature, 0.1, UNLIMITED)
    assert (parts.x_m, parts.y_m, parts.speed_mps) == pytest.approx((whole.x_m, whole.y_m, whole.speed_mps), abs=1e-9)
    assert abs(wrap(parts.yaw_rad - whole.yaw_rad)) < 1e-9


def test_arc_agrees_with_fine_euler_integration():
    x, y, yaw, v, k, n = 1.0, 2.0, 0.4, 8.0, 0.1, 200_000
    for _ in range(n):
        x, y, yaw, v = (
            x + v * np.cos(yaw) / n,
            y + v * np.sin(yaw) / n,
            yaw + v * k / n,
            v + 2.0 / n,
        )
    exact = step(EgoState(1.0, 2.0, 0.4, 8.0), 2.0, k, 1.0, UNLIMITED)
    assert (exact.x_m, exact.y_m, exact.yaw_rad, exact.speed_mps) == pytest.approx((x, y, yaw, v), abs=2e-4)


def test_advance_backwards_undoes_forwards():
    start = EgoState(3.0, -1.0, 0.3, 7.0, 0.05)
    back = advance(advance(start, 12.0, 7.0, 0.05), -12.0, 7.0, 0.05)
    assert (back.x_m, back.y_m, back.yaw_rad) == pytest.approx((3.0, -1.0, 0.3))


def test_limits():
    rest, fast = EgoState(0, 0, 0, 1.0), EgoState(0, 0, 0, 36.9)
    assert step(rest, -100, 0, 1.0, PARAMS).speed_mps == 0.0
    assert step(rest, -100, 0, 1.0, PARAMS).x_m == pytest.approx(1.0 / (2 * 6))  # v^2 / 2a, no reverse
    assert step(rest, 100, 0, 1.0, PARAMS).speed_mps == pytest.approx(4.0)
    assert step(fast, 3, 0, 1.0, PARAMS).speed_mps == PARAMS.max_speed_mps
    turned = step(rest, 0, 10.0, 0.1, PARAMS)
    assert turned.steering_rad(PARAMS) == pytest.approx(0.1 * PARAMS.max_steering_rate_radps)
    for _ in range(30):
        turned = step(turned, 0, -10.0, 0.1, PARAMS)
    assert turned.curvature_1pm == pytest.approx(-PARAMS.max_curvature_1pm)


def test_standing_car_keeps_its_pose_and_tells_its_wheels():
    start = EgoState(1, 2, 0.5, 0.0)
    after = step(start, -3.0, 0.01, 0.1, PARAMS)
    assert (after.x_m, after.y_m, after.yaw_rad) == (1, 2, 0.5)
    assert inverse(start, after, 0.1) == (0.0, 0.01)


def test_footprint_surrounds_the_rear_axle():
    box = corners(EgoState(10.0, 0.0, 0.0, 0.0).footprint(PARAMS))
    assert box[:, 0].max() == pytest.approx(10 + PARAMS.front_m)
    assert box[:, 0].min() == pytest.approx(10 - PARAMS.rear_overhang_m)
    assert np.ptp(box[:, 1]) == pytest.approx(PARAMS.width_m)
    assert PARAMS.front_m > PARAMS.wheelbase_m  # the front axle lies behind the front bumper


@pytest.mark.parametrize("command", [(np.nan, 0.0), (0.0, np.inf)])
def test_step_rejects(command):
    with pytest.raises(InputError, match="finite"):
        step(EgoState(0, 0, 0, 1), *command, 0.1, PARAMS)
