"""Controller and check of plans in a loop with the simulator's vehicle, and what no messages can bring about."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vla_drive_ros.controller import ControlCommand, Controller, ControlLimits, Health, speeds_of
from vla_drive_ros.plan_check import Pace, PlanLimits, check_plan, paced
from vla_drive_ros.safety import MOVING, SafetyLimits, State

from sensors import frames
from sensors.errors import InputError
from sensors.ros2_messages import OdometrySample
from sim.tracker import PLAN_TIME_S
from sim.vehicle import EgoState, VehicleParams, advance, step

TICK_US, ODOMETRY_US, PLAN_US, HEALTH_US = 30_000, 20_000, 200_000, 50_000
LIMITS, PARAMS = ControlLimits(), VehicleParams()


@dataclass
class Car:
    """The simulator's vehicle, a driver that wants `speed_mps` on a circle, and the controller between them."""

    speed_mps: float = 5.0
    curvature_1pm: float = 0.02
    silent: set = field(default_factory=set)  # of odometry, plan, health
    fault: str = ""
    degradation: str = ""

    def __post_init__(self):
        self.controller = Controller(LIMITS, SafetyLimits())
        self.now_us, self.ego = 10_000_000, EgoState(3.0, -2.0, 0.7, 0.0)
        self.commands: list[ControlCommand] = []
        self.speeds: list[float] = []

    def run(self, seconds: float) -> ControlCommand:
        end_us = self.now_us + round(seconds * 1e6)
        while self.now_us < end_us:
            self.now_us += 10_000
            if self.commands:
                last = self.commands[-1]
                curvature = float(np.tan(last.steering_rad)) / PARAMS.wheelbase_m
                self.ego = step(self.ego, last.accel_mps2, curvature, 0.01, PARAMS)
            clock = (self.now_us, self.now_us)
            if self.now_us % ODOMETRY_US == 0 and "odometry" not in self.silent:
                self.controller.take_odometry(sample_of(self.ego, self.now_us), *clock)
            if self.now_us % HEALTH_US == 0 and "health" not in self.silent:
                self.controller.take_health(Health(self.fault, self.degradation), self.now_us, *clock)
            if self.now_us % PLAN_US == 0 and "plan" not in self.silent:
                self.controller.take_plan(*self.plan(), "map", *clock)
            if self.now_us % TICK_US == 0:
                self.commands.append(self.controller.tick(*clock))
                self.speeds.append(self.ego.speed_mps)
        return self.commands[-1]

    def plan(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Towards the wanted speed by 1.5 m/s2, on a circle of the wanted curvature from here."""
        gain = np.sign(self.speed_mps - self.ego.speed_mps) * 1.5
        until_s = abs(self.speed_mps - self.ego.speed_mps) / 1.5
        ramp_s = np.minimum(PLAN_TIME_S, until_s)
        arc_m = self.ego.speed_mps * ramp_s + 0.5 * gain * ramp_s**2 + self.speed_mps * (PLAN_TIME_S - ramp_s)
        yaw = arc_m * self.curvature_1pm
        x, y = np.sin(yaw) / self.curvature_1pm, (1 - np.cos(yaw)) / self.curvature_1pm
        T = self.ego.T_world_from_ego @ frames.matrix_from_xy_yaw(x, y, yaw)
        return self.now_us, self.now_us + (PLAN_TIME_S * 1e6).astype(np.int64), frames.xy_yaw(T)

    def engaged(self) -> "Car":
        self.run(1.5)
        assert self.controller.machine.engage() == ""
        return self


def sample_of(ego: EgoState, time_us: int) -> OdometrySample:
    return OdometrySample(time_us, ego.T_world_from_ego, ego.speed_mps, ego.yaw_rate_radps, "map")


def test_stands_until_engaged_then_follows_the_plan():
    car = Car()
    car.run(5.0)
    assert car.ego.speed_mps == 0
    assert {command.state for command in car.commands} == {State.STOPPED}
    car.engaged().run(8.0)
    assert car.ego.speed_mps == pytest.approx(5.0, abs=0.2)
    assert car.ego.curvature_1pm == pytest.approx(0.02, abs=0.004)
    steering = np.diff([command.steering_rad for command in car.commands])
    assert np.abs(steering).max() <= LIMITS.steering_rate_radps * TICK_US * 1e-6 + 1e-12
    jerk = np.diff([command.accel_mps2 for command in car.commands if command.state == State.OK])
    assert np.abs(jerk).max() <= LIMITS.jerk_mps3 * TICK_US * 1e-6 + 1e-12


@pytest.mark.parametrize(
    ("silent", "word", "limit_us"),
    [
        ("odometry", "odometry: ", LIMITS.odometry_age_us),
        ("plan", "plan: ", LIMITS.plan_age_us),
        ("health", "driver: ", LIMITS.health_age_us),
    ],
)
def test_silence_stops_comfortably_on_the_path_and_takes_reset_and_engage(silent, word, limit_us):
    car = Car().engaged()
    car.run(6.0)
    car.silent = {silent}
    since, at_us, then = len(car.commands), car.now_us, car.ego
    car.run(6.0)
    stopping = [c for c in car.commands[since:] if c.state == State.STOPPING]
    assert word in stopping[0].cause
    assert stopping[0].time_us - at_us <= limit_us + TICK_US
    assert min(c.accel_mps2 for c in stopping) >= -LIMITS.stop_mps2 - 1e-9
    assert car.ego.speed_mps == 0
    assert (np.diff(car.speeds[-len(stopping) :]) <= 1e-9).all()
    centre = np.array([then.x_m, then.y_m]) + np.array([-np.sin(then.yaw_rad), np.cos(then.yaw_rad)]) / 0.02
    assert np.hypot(*(centre - (car.ego.x_m, car.ego.y_m))) == pytest.approx(50.0, abs=0.3)  # still on the circle
    assert "still wrong" in car.controller.machine.reset()
    car.silent = set()
    car.run(2.0)
    assert car.ego.speed_mps == 0
    assert "reset first" in car.controller.machine.engage()
    assert car.controller.machine.reset() == ""
    car.run(2.0)
    assert car.ego.speed_mps == 0
    assert car.controller.machine.engage() == ""
    car.run(3.0)
    assert car.ego.speed_mps > 2


def test_degraded_is_slow_and_emergency_is_hard():
    car = Car().engaged()
    car.run(6.0)
    car.degradation = "CAM_BACK: 300 ms old"
    assert car.run(4.0).state == State.DEGRADED
    assert car.ego.speed_mps == pytest.approx(LIMITS.degraded_speed_mps, abs=0.2)
    car.degradation = ""
    assert car.run(6.0).state == State.OK
    car.controller.machine.emergency_stop(True)
    begun_us = car.now_us
    while car.ego.speed_mps > 0:
        car.run(0.03)
    assert car.now_us - begun_us < 1.2 * 5.0 / LIMITS.emergency_mps2 * 1e6
    assert car.run(1.0).state == State.STOPPED


@pytest.mark.parametrize("speed_mps", [6.0, 9.0])
def test_degraded_slows_as_a_comfortable_stop_does_and_no_harder(speed_mps):
    car = Car(speed_mps=speed_mps, curvature_1pm=0.0001).engaged()
    car.run(10.0)
    since, before_mps = len(car.commands), car.ego.speed_mps
    car.degradation = "CAM_BACK: 300 ms old"
    car.run((before_mps - LIMITS.degraded_speed_mps) / LIMITS.stop_mps2 + 0.8)
    assert car.ego.speed_mps < LIMITS.degraded_speed_mps + 0.3
    assert min(command.accel_mps2 for command in car.commands[since:]) >= -LIMITS.stop_mps2 - 1e-9


def test_fault_that_the_driver_tells_stops():
    car = Car().engaged()
    car.run(3.0)
    car.fault = "policy: busy for 300 ms, limit 200 ms"
    assert car.run(0.1).state == State.STOPPING
    assert car.commands[-1].cause == car.fault


@pytest.mark.parametrize(("braking_mps2", "expected_mps2"), [(0.5, LIMITS.stop_mps2), (4.5, 4.5)])
def test_a_stop_is_no_softer_than_a_young_plan(braking_mps2, expected_mps2):
    """A fault while the policy brakes for what is in the way."""
    car = Car(speed_mps=9.0, curvature_1pm=0.0001).engaged()
    car.run(10.0)
    car.fault, car.silent = "imu: gone", {"plan"}
    now_us, means = car.now_us, np.maximum(9.0 - braking_mps2 * (PLAN_TIME_S - 0.25), 0.0)
    T = car.ego.T_world_from_ego @ frames.matrix_from_xy_yaw(*on_path(means, np.zeros(8)).T)
    times_us = now_us + (PLAN_TIME_S * 1e6).astype(np.int64)
    car.controller.take_plan(now_us, times_us, frames.xy_yaw(T), "map", now_us, now_us)
    assert car.run(0.6).state == State.STOPPING
    assert -car.commands[-1].accel_mps2 == pytest.approx(expected_mps2, rel=0.15)


def test_old_and_foreign_messages_make_nothing_young():
    car = Car().engaged()
    car.run(3.0)
    clock, controller = (car.now_us, car.now_us), car.controller
    time_us, times_us, xyyaw = car.plan()
    controller.take_plan(controller.plans.time_us, times_us, xyyaw, "map", *clock)
    controller.take_plan(time_us, times_us, xyyaw, "odom", *clock)
    controller.take_plan(time_us + 150_000, times_us + 150_000, xyyaw, "map", *clock)
    controller.take_odometry(sample_of(car.ego, controller.odometry.time_us), *clock)
    controller.take_odometry(OdometrySample(car.now_us + 1, np.eye(4), float("nan"), 0.0, "map"), *clock)
    assert controller.plans.refused == {"stamp not increasing": 1, "frame_id": 1, "stamp ahead of the clock": 1}
    assert controller.odometry.refused == {"stamp not increasing": 1, "twist not measured": 1}


def test_speeds_of_a_plan_are_exact_for_constant_acceleration():
    time_s = PLAN_TIME_S
    arc_m = 4.0 * time_s + 0.5 * 0.8 * time_s**2
    xyyaw = np.stack([arc_m, 0 * arc_m, 0 * arc_m], axis=1)
    np.testing.assert_allclose(speeds_of(time_s, xyyaw, np.zeros(3))[:-1], 4.0 + 0.8 * time_s[:-1], atol=1e-12)
    assert speeds_of(time_s[:1], xyyaw[:1], np.zeros(3)) == pytest.approx(arc_m[0] / time_s[0])


def straight(speed_mps: float = 5.0) -> SimpleNamespace:
    poses = np.zeros((8, 3))
    poses[:, 0] = speed_mps * PLAN_TIME_S
    return SimpleNamespace(time_s=PLAN_TIME_S.copy(), xyyaw=poses, now_xyyaw=np.zeros(3), speed_mps=speed_mps)


def spoilt(name: str) -> SimpleNamespace:
    plan = straight()
    if name == "finite":
        plan.xyyaw[3, 1] = np.nan
    elif name == "increasing":
        plan.time_s[4] = plan.time_s[3]
    elif name == "speed, m/s":
        plan = straight(25.0)
    elif name == "acceleration, m/s2":
        plan.speed_mps = 0.0
    elif name == "jerk, m/s3":
        plan.xyyaw[4:, 0] += 0.95
        plan.xyyaw[5:, 0] += -0.95
    elif name == "curvature, 1/m":
        plan.xyyaw[:, 2] = 0.26 * plan.xyyaw[:, 0]
        plan.xyyaw[:, 0] *= 0.5
        plan.xyyaw[:, 2] *= 0.5
        plan.speed_mps = 2.5
    elif name == "steering rate, rad/s":
        plan.xyyaw[2:, 2] += 0.4
        plan.xyyaw[3:, 2] += -0.4
        plan.xyyaw[:, 0] *= 0.75
        plan.speed_mps *= 0.75
    return plan


@pytest.mark.parametrize(
    "name",
    [
        "finite",
        "increasing",
        "speed, m/s",
        "acceleration, m/s2",
        "jerk, m/s3",
        "curvature, 1/m",
        "steering rate, rad/s",
    ],
)
def test_check_plan_rejects(name):
    limits = PlanLimits()
    check_plan(**vars(straight()), limits=limits)
    with pytest.raises(InputError, match=name):
        check_plan(**vars(spoilt(name)), limits=limits)


BENDS = st.lists(st.floats(-0.2, 0.2), min_size=8, max_size=8)
SPEEDS = st.lists(st.floats(0.0, 20.0), min_size=8, max_size=8)


def on_path(speeds_mps: np.ndarray, curvatures_1pm: np.ndarray) -> np.ndarray:
    """Knots [K, 3] of a path of arcs, a knot every half second."""
    ego, knots = EgoState(0.0, 0.0, 0.0, 0.0), []
    for speed, curvature in zip(speeds_mps, curvatures_1pm, strict=True):
        ego = advance(ego, 0.5 * speed, speed, curvature)
        knots.append((ego.x_m, ego.y_m, ego.yaw_rad))
    return np.array(knots)


@settings(max_examples=200, deadline=None)
@given(BENDS, SPEEDS, st.floats(0, 20), st.floats(0.5, 20))
def test_a_plan_is_paced_to_the_car_and_to_its_bends(bends, means, now_mps, top_mps):
    pace = Pace(top_mps, 3.0, 2.0, 2.5)
    xyyaw, zero = on_path(np.array(means), np.array(bends)), np.zeros(3)
    speeds = speeds_of(PLAN_TIME_S, xyyaw, zero)
    time_s, slower = paced(PLAN_TIME_S, xyyaw, speeds, zero, now_mps, pace)
    assert (np.diff(time_s, prepend=0.0) >= 0.5 - 1e-9).all()  # never faster than it came
    assert (slower <= speeds).all()
    assert slower.max() <= top_mps + 1e-9
    steps_m = np.hypot(*np.diff(np.concatenate([zero[None], xyyaw])[:, :2], axis=0).T)
    curvature = np.where(steps_m >= 0.5, frames.wrap(np.diff(xyyaw[:, 2], prepend=0.0)) / np.maximum(steps_m, 0.5), 0.0)
    for beside in (curvature, np.append(curvature[1:], 0.0)):
        assert (slower**2 * np.abs(beside)).max() <= pace.lateral_accel_mps2 + 1e-6
    if slower is not speeds:  # otherwise nothing was too fast, and it is what it was
        gains = np.diff(np.append(now_mps, slower) ** 2) / 2
        assert (gains <= pace.accel_mps2 * steps_m + 1e-6).all()
        assert (gains[1:] >= -pace.braking_mps2 * steps_m[1:] - 1e-6).all()
        again = paced(time_s, xyyaw, slower, zero, now_mps, pace)
        assert again[0] is time_s
        assert again[1] is slower
    else:
        assert time_s is PLAN_TIME_S


@pytest.mark.parametrize(("wish_mps", "curvature"), [(15.0, 0.002), (12.0, 0.05), (18.0, -0.1)])
def test_a_plan_that_is_only_too_fast_is_followed_more_slowly(wish_mps, curvature):
    car = Car(speed_mps=wish_mps, curvature_1pm=curvature).engaged()
    car.run(12.0)
    allowed = min(LIMITS.speed_mps, float(np.sqrt(LIMITS.lateral_mps2 / abs(curvature))))
    assert car.controller.plans.refused == {}
    assert car.commands[-1].state == State.OK
    assert 0.9 * allowed <= car.ego.speed_mps <= 1.02 * allowed
    assert max(car.speeds) <= 1.05 * allowed
    assert car.ego.curvature_1pm == pytest.approx(curvature, rel=0.2, abs=0.004)


def test_it_brakes_ahead_of_a_bend():
    """At 10 m/s towards a bend of 10 m radius, 5.5 m/s fast: gentle braking takes 17 m, and it begins that early."""
    car = Car(speed_mps=10.0, curvature_1pm=0.0001).engaged()
    car.run(12.0)
    bends = np.array([0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1])
    xyyaw = on_path(np.full(8, 10.0), bends)
    T = car.ego.T_world_from_ego @ frames.matrix_from_xy_yaw(*xyyaw.T)
    begun_us, at = car.now_us, np.array([car.ego.x_m, car.ego.y_m])
    car.silent = {"plan"}
    car.controller.take_plan(
        begun_us, begun_us + (PLAN_TIME_S * 1e6).astype(np.int64), frames.xy_yaw(T), "map", begun_us, begun_us
    )
    since = len(car.commands)
    car.run(0.75)
    assert {command.state for command in car.commands[since:]} == {State.OK}
    gone_m = np.hypot(*(np.array([car.ego.x_m, car.ego.y_m]) - at))
    fast_mps = np.sqrt(30.0 + 2 * LIMITS.stop_mps2 * (20.0 - gone_m))
    assert car.ego.speed_mps == pytest.approx(fast_mps, abs=0.4)  # 7.9 m of braking still ahead
    assert min(command.accel_mps2 for command in car.commands[since:]) > -1.3 * LIMITS.stop_mps2


MESSAGES = st.lists(
    st.tuples(
        st.sampled_from(["tick"] * 4 + ["odometry", "plan", "health", "engage", "reset", "stop", "release"]),
        st.sampled_from([0, 10_000, 30_000, 30_000, 100_000, 400_000]),  # passes before it
        st.sampled_from([0, 0, 0, -1_000_000, 2_000_000, -50_000]),  # how wrong its stamp is
        st.sampled_from(["", "", "", "broken"]),
        st.floats(0, 12),
    ),
    max_size=80,
)


@settings(max_examples=80, deadline=None)
@given(MESSAGES)
def test_no_motion_is_ever_commanded_from_what_is_old_or_wrong(messages):
    car = Car()
    car.engaged()
    controller = car.controller
    for kind, passes_us, off_us, fault, speed in messages:
        car.now_us += passes_us
        clock, stamp_us = (car.now_us, car.now_us), car.now_us + off_us
        if kind == "odometry":
            controller.take_odometry(sample_of(EgoState(3.0, -2.0, 0.7, speed), stamp_us), *clock)
        elif kind == "plan":
            _, times_us, xyyaw = car.plan()
            controller.take_plan(stamp_us, times_us + off_us, xyyaw, "map", *clock)
        elif kind == "health":
            controller.take_health(Health(fault), stamp_us, *clock)
        elif kind == "engage":
            controller.machine.engage()
        elif kind == "reset":
            controller.machine.reset()
        elif kind in ("stop", "release"):
            controller.machine.emergency_stop(kind == "stop")
        else:
            command = controller.tick(*clock)
            values = (command.accel_mps2, command.steering_rad, command.steering_rate_radps, command.speed_mps)
            assert np.isfinite(values).all()
            assert -LIMITS.braking_mps2 <= command.accel_mps2 <= LIMITS.accel_mps2
            assert abs(command.steering_rad) <= LIMITS.steering_rad
            if command.state in MOVING:
                assert command.plan_age_us <= LIMITS.plan_age_us
                assert command.odometry_age_us <= LIMITS.odometry_age_us
                assert controller.health.age_us(*clock) <= LIMITS.health_age_us
                assert not controller.health.value.fault
                assert not controller.machine.latched
            else:
                assert command.accel_mps2 <= 0 or command.state == State.STOPPING  # the jerk limit's way down
                assert command.speed_mps == 0
