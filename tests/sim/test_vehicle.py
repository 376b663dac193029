import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sensors.errors import InputError
from sensors.frames import wrap
from sim.geometry import corners
from sim.tyres import Tyres
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


@properties
@given(states, st.floats(-6, 3), st.floats(-0.2, 0.2), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_a_lag_answers_a_step_of_the_command_as_theory_says(state, accel, curvature, accel_lag_s, steering_lag_s):
    """y = 1 - exp(-t / tau); the speed is its integral. Ten steps or one: the answer is exact, so they agree."""
    params = replace(UNLIMITED, accel_lag_s=accel_lag_s, steering_lag_s=steering_lag_s)
    start, t = replace(state, speed_mps=15.0), 0.4
    ends = []
    for n in (1, 10):
        now = start
        for _ in range(n):
            now = step(now, accel, curvature, t / n, params)
        ends.append(now)
    held = 1 - math.exp(-t / accel_lag_s)
    wanted, before = (math.atan(params.wheelbase_m * k) for k in (curvature, state.curvature_1pm))
    for end in ends:
        assert end.response.accel_mps2 == pytest.approx(accel * held, abs=1e-9)
        assert end.speed_mps == pytest.approx(15.0 + accel * (t - accel_lag_s * held), abs=1e-9)
        steering = wanted + (before - wanted) * math.exp(-t / steering_lag_s)
        assert end.steering_rad(params) == pytest.approx(steering, abs=1e-9)
        assert end.curvature_1pm == pytest.approx(math.tan(steering) / params.wheelbase_m, abs=1e-9)


@properties
@given(states, st.floats(-8, 5), st.floats(-0.3, 0.3))
def test_a_very_short_lag_is_none(state, accel, curvature):
    hurried = replace(PARAMS, accel_lag_s=1e-9, steering_lag_s=1e-9)
    one, other = (step(state, accel, curvature, 0.1, params) for params in (PARAMS, hurried))
    for name in ("x_m", "y_m", "yaw_rad", "speed_mps", "curvature_1pm"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-6)


def test_a_released_brake_takes_its_time_to_let_go():
    params, now = replace(PARAMS, accel_lag_s=0.3), EgoState(0, 0, 0, 1.0)
    for _ in range(10):
        now = step(now, -6.0, 0.0, 0.1, params)
    assert now.speed_mps == 0.0
    assert step(now, 3.0, 0.0, 0.1, params).speed_mps == 0.0
    for _ in range(10):
        now = step(now, 3.0, 0.0, 0.1, params)
    assert now.speed_mps > 0.5


def test_slip_moves_the_rear_axle_sideways_and_stays_exact():
    """Constant speed, turn and slip: the rear axle runs on a circle whose radius is that of the speed it has."""
    params, speed, steering = replace(PARAMS, tyres=Tyres()), 20.0, 0.02
    now = EgoState(0.0, 0.0, 0.0, speed)
    for _ in range(1000):
        now = step(now, 0.0, math.tan(steering) / params.wheelbase_m, 0.01, params)
    assert now.slip < -0.005  # the tail hangs out of a left turn
    places = [now]
    for _ in range(200):
        places.append(step(places[-1], 0.0, math.tan(steering) / params.wheelbase_m, 0.01, params))
    xy = np.array([(p.x_m, p.y_m) for p in places])
    radius = math.hypot(1.0, now.slip) / now.curvature_1pm
    course = now.yaw_rad + math.atan(now.slip)
    centre = xy[0] + radius * np.array([-math.sin(course), math.cos(course)])
    assert np.hypot(*(xy - centre).T) == pytest.approx(radius, rel=1e-5)
    assert now.steering_rad(params) == pytest.approx(steering)
    back = advance(places[-1], -20.0 * 0.01, speed, places[-1].curvature_1pm, places[-1].response)
    assert (back.x_m, back.y_m) == pytest.approx(tuple(xy[-2]), abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"accel_lag_s": -0.1}, "accel_lag_s"),
        ({"steering_lag_s": math.nan}, "steering_lag_s"),
        ({"dead_time_s": 1.5}, "dead_time_s"),
        ({"wheelbase_m": 0.0}, "wheelbase_m"),
        ({"min_accel_mps2": 1.0}, "min_accel_mps2"),
        ({"max_steering_rad": 1.6}, "max_steering_rad"),
        ({"tyres": Tyres(friction=0.0)}, "tyres: friction"),
        ({"tyres": Tyres(front_share=1.0)}, "front_share"),
        ({"tyres": Tyres(mass_kg=math.nan)}, "mass_kg"),
    ],
    ids=str,
)
def test_params_reject(fields, message):
    VehicleParams(tyres=Tyres()).validate()
    with pytest.raises(InputError, match=message):
        replace(PARAMS, **fields).validate()
