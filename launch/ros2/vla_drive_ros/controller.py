"""From plans and odometry to control commands, behind the safety machine. No ROS in here; times are handed in.

Two clocks, as in `sensors.ros2_source`: `now_us` is that of the stamps, `steady_us` never jumps or stops. An input is
as old as the clock says that finds it older. A stamp that repeats or goes back is not taken, so it makes nothing young.

While the car follows a plan, `sim.tracker` follows it as it does in the simulator, no faster than the car may be and
its bends allow (`vla_drive_ros.plan_check`). While it stops, the path of the last valid plan still says where to, its
time no longer when; but a young plan that brakes harder is heeded. Where the pose is not known any more it is reckoned
from the last one, the speed then and what was commanded since.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from sensors import frames
from sensors.errors import InputError
from sensors.ros2_messages import OdometrySample
from sim.tracker import Plan, PlanTracker
from sim.vehicle import EgoState, VehicleParams, advance
from vla_drive_ros.plan_check import Pace, PlanLimits, check_plan, paced
from vla_drive_ros.safety import SafetyLimits, SafetyMachine, State

HOLD_MPS2 = -3.0  # while it stands
STANDS_MPS = 0.05
SPEED_GAIN_1PS = 2.0  # towards the speed of DEGRADED, slowing no harder than a comfortable stop
AHEAD_US = 100_000  # a stamp further ahead of the clock than this is not taken
TRACK = 256  # odometry samples that are remembered, to know where the car was when a plan was made


@dataclass(frozen=True)
class ControlLimits:
    """How old an input may be, and what is commanded at most.

    stop_mps2, emergency_mps2   deceleration of a comfortable and of an emergency stop
    jerk_mps3                   of every change of acceleration but that to an emergency stop
    speed_mps, lateral_mps2     a plan that is faster, or too fast for its bends, is followed more slowly
    """

    plan_age_us: int = 800_000
    odometry_age_us: int = 150_000
    health_age_us: int = 150_000
    speed_mps: float = 10.0
    lateral_mps2: float = 3.0
    accel_mps2: float = 2.5
    braking_mps2: float = 6.0
    stop_mps2: float = 2.0
    emergency_mps2: float = 6.0
    jerk_mps3: float = 20.0
    steering_rad: float = VehicleParams().max_steering_rad
    steering_rate_radps: float = 0.6
    degraded_speed_mps: float = 3.0
    wheelbase_m: float = VehicleParams().wheelbase_m


@dataclass(frozen=True)
class ControlCommand:
    """What the car is asked to do from `time_us` on, and why; ages are of what it was made from, None for nothing."""

    time_us: int
    accel_mps2: float
    steering_rad: float
    steering_rate_radps: float
    speed_mps: float
    state: State
    cause: str
    emergency: bool
    plan_age_us: int | None
    odometry_age_us: int | None


@dataclass(frozen=True)
class Health:
    """What the driver says of itself: "" where nothing is wrong."""

    fault: str = ""
    degradation: str = ""


@dataclass
class _Heard:
    """The newest message of one kind: its stamp, when it came, what it said, and how many were not taken."""

    value: object = None
    time_us: int = 0
    steady_us: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    def take(self, value: object, time_us: int, now_us: int, steady_us: int) -> bool:
        if self.value is not None and time_us <= self.time_us:
            self.refuse("stamp not increasing")
            return False
        if time_us > now_us + AHEAD_US:
            self.refuse("stamp ahead of the clock")
            return False
        self.value, self.time_us, self.steady_us = value, time_us, steady_us
        return True

    def refuse(self, why: str) -> None:
        self.refused[why] = self.refused.get(why, 0) + 1

    def age_us(self, now_us: int, steady_us: int) -> int | None:
        return None if self.value is None else max(now_us - self.time_us, steady_us - self.steady_us)

    def stale(self, what: str, limit_us: int, now_us: int, steady_us: int) -> list[str]:
        age_us = self.age_us(now_us, steady_us)
        if age_us is None:
            return [f"{what}: none yet"]
        return [f"{what}: {age_us / 1000:.0f} ms old, limit {limit_us / 1000:.0f} ms"] if age_us > limit_us else []


class Controller:
    """Not thread-safe: whoever has several threads holds a lock around each call."""

    def __init__(self, limits: ControlLimits, safety: SafetyLimits):
        self.limits, self.machine = limits, SafetyMachine(safety)
        self._pace = Pace(limits.speed_mps, limits.lateral_mps2, limits.stop_mps2, limits.accel_mps2)
        self.plans, self.odometry, self.health = _Heard(), _Heard(), _Heard()
        self._tracker = PlanTracker()
        self._track: deque[OdometrySample] = deque(maxlen=TRACK)
        self._last: ControlCommand | None = None
        self._ego, self._ego_us = EgoState(0.0, 0.0, 0.0, 0.0), 0  # as reckoned at that instant
        self._reckoned_from: OdometrySample | None = None

    # What is heard ---------------------------------------------------------------------------------

    def take_odometry(self, sample: OdometrySample, now_us: int, steady_us: int) -> None:
        if not np.isfinite([sample.speed_mps, sample.yaw_rate_radps]).all():
            return self.odometry.refuse("twist not measured")
        if self.odometry.take(sample, sample.time_us, now_us, steady_us):
            self._track.append(sample)
        return None

    def take_health(self, health: Health, time_us: int, now_us: int, steady_us: int) -> None:
        self.health.take(health, time_us, now_us, steady_us)

    def take_plan(
        self, time_us: int, times_us: np.ndarray, xyyaw: np.ndarray, frame_id: str, now_us: int, steady_us: int
    ) -> None:
        """A plan made at `time_us`: poses [K, 3] at `times_us` [K], in the frame called `frame_id`, odometry's."""
        odometry = self.odometry.value
        try:
            if odometry is None or frame_id != odometry.frame_id:
                known = "none yet" if odometry is None else odometry.frame_id
                raise InputError("plan", "frame_id", frame_id, f"that of the odometry, {known}")
            then = self._then(time_us)
            now_xyyaw = np.array([then.x_m, then.y_m, then.yaw_rad])
            time_s = (times_us - time_us) * 1e-6
            check_plan(time_s, xyyaw, now_xyyaw, then.speed_mps, PlanLimits())
        except InputError as error:
            return self.plans.refuse(error.field)
        if self.plans.take(xyyaw, time_us, now_us, steady_us):
            speeds = speeds_of(time_s, xyyaw, now_xyyaw)
            time_s, speeds = paced(time_s, xyyaw, speeds, now_xyyaw, then.speed_mps, self._pace)
            plan = Plan(time_s, _in_ego(xyyaw, then.T_world_from_ego), speeds)
            self._tracker.follow(plan, then.T_world_from_ego, time_us, then.speed_mps)
        return None

    # What is done ----------------------------------------------------------------------------------

    def tick(self, now_us: int, steady_us: int) -> ControlCommand:
        """The command of this instant."""
        limits, clock = self.limits, (now_us, steady_us)
        health: Health = self.health.value or Health()
        faults = [
            *self.health.stale("driver", limits.health_age_us, *clock),
            *([health.fault] if health.fault else []),
            *self.odometry.stale("odometry", limits.odometry_age_us, *clock),
            *self.plans.stale("plan", limits.plan_age_us, *clock),
        ]
        ego = self._where(now_us)
        stands = ego.speed_mps < STANDS_MPS
        state = self.machine.tick(steady_us, faults, [health.degradation] if health.degradation else [], stands)
        accel, curvature = self._wish(state, ego, *clock)
        accel, steering, rate = self._limited(now_us, accel, curvature, stands)
        moving = state in (State.OK, State.DEGRADED)
        speed_mps = max(ego.speed_mps + 0.5 * accel, 0.0) if moving else 0.0
        why, ages = (state, self.machine.cause, self.machine.emergency), (self.plans, self.odometry)
        ages_us = (heard.age_us(*clock) for heard in ages)
        self._last = ControlCommand(now_us, accel, steering, rate, speed_mps, *why, *ages_us)
        return self._last

    def _wish(self, state: State, ego: EgoState, now_us: int, steady_us: int) -> tuple[float, float]:
        """(acceleration, curvature) before the limits."""
        limits = self.limits
        if state in (State.OK, State.DEGRADED):
            command = self._tracker.command(ego.T_world_from_ego, now_us, ego.speed_mps)
            accel = command.accel_mps2
            if state == State.DEGRADED:
                slower = SPEED_GAIN_1PS * (limits.degraded_speed_mps - ego.speed_mps)
                accel = min(accel, max(slower, -limits.stop_mps2))
            return accel, command.curvature_1pm
        if state == State.STOPPED:
            return HOLD_MPS2, ego.curvature_1pm
        curvature = self._tracker.curvature_1pm(ego.T_world_from_ego, ego.speed_mps)
        accel = -(limits.emergency_mps2 if self.machine.emergency else limits.stop_mps2)
        if not self.plans.stale("plan", limits.plan_age_us, now_us, steady_us):  # it may see what is in the way
            accel = min(accel, self._tracker.command(ego.T_world_from_ego, now_us, ego.speed_mps).accel_mps2)
        return accel, curvature

    def _limited(self, now_us: int, accel: float, curvature: float, stands: bool) -> tuple[float, float, float]:
        """(acceleration, steering, steering rate) nearest to a wish that keep the limits of actuators and comfort. An
        emergency stop may jerk, and a car that stands does not."""
        limits, last = self.limits, self._last
        accel = float(np.clip(accel, -limits.braking_mps2, limits.accel_mps2))
        steering = float(np.clip(np.arctan(limits.wheelbase_m * curvature), -limits.steering_rad, limits.steering_rad))
        if last is None:
            return accel, steering, 0.0
        dt_s = float(np.clip((now_us - last.time_us) * 1e-6, 1e-3, 0.2))
        if not (self.machine.emergency or stands):
            accel = _within(accel, last.accel_mps2, limits.jerk_mps3 * dt_s)
        steering = _within(steering, last.steering_rad, limits.steering_rate_radps * dt_s)
        return accel, steering, (steering - last.steering_rad) / dt_s

    # Where the car is ------------------------------------------------------------------------------

    def _where(self, now_us: int) -> EgoState:
        """The car now: from the latest odometry, or from where it was reckoned to be, on by what was commanded."""
        latest = self.odometry.value
        if latest is not self._reckoned_from:
            self._ego, self._ego_us, self._reckoned_from = _state_of(latest), latest.time_us, latest
        if self._last is not None and latest is not None and now_us > self._ego_us:
            seconds, ego = min((now_us - self._ego_us) * 1e-6, 1.0), self._ego
            speed = max(ego.speed_mps + self._last.accel_mps2 * seconds, 0.0)
            curvature = float(np.tan(self._last.steering_rad)) / self.limits.wheelbase_m
            self._ego = advance(ego, 0.5 * (ego.speed_mps + speed) * seconds, speed, curvature)
            self._ego_us = now_us
        return self._ego

    def _then(self, time_us: int) -> EgoState:
        """The car when a plan was made: as the odometry says that was the latest then, on by its speed and turn."""
        earlier = [sample for sample in self._track if sample.time_us <= time_us] or [self._track[0]]
        ego, seconds = _state_of(earlier[-1]), (time_us - earlier[-1].time_us) * 1e-6
        if abs(seconds) > 0.2:
            raise InputError("plan", "stamp", f"{seconds:.1f} s off the odometry", "an instant whose odometry is known")
        return advance(ego, ego.speed_mps * seconds, ego.speed_mps, ego.curvature_1pm)


def _state_of(sample: OdometrySample) -> EgoState:
    x, y, yaw = frames.xy_yaw(sample.T_world_from_ego).tolist()
    curvature = sample.yaw_rate_radps / sample.speed_mps if sample.speed_mps > 0.5 else 0.0
    return EgoState(x, y, yaw, max(sample.speed_mps, 0.0), curvature)


def _in_ego(xyyaw: np.ndarray, T_world_from_ego: np.ndarray) -> np.ndarray:
    return frames.xy_yaw(frames.inverse(T_world_from_ego) @ frames.matrix_from_xy_yaw(*xyyaw.T))


def speeds_of(time_s: np.ndarray, xyyaw: np.ndarray, now_xyyaw: np.ndarray) -> np.ndarray:
    """Speeds [K] at the knots of a plan that tells none: between the means of the intervals before and after, which is
    exact for a constant acceleration; at the end the trend goes on, but never below 0."""
    knots = np.concatenate([now_xyyaw[None], xyyaw])
    dt_s = np.diff(time_s, prepend=0.0)
    means = np.linalg.norm(np.diff(knots[:, :2], axis=0), axis=1) / dt_s
    if len(means) == 1:
        return means
    inner = (means[:-1] * dt_s[1:] + means[1:] * dt_s[:-1]) / (dt_s[:-1] + dt_s[1:])
    return np.append(inner, max(2 * means[-1] - inner[-1], 0.0))


def _within(value: float, centre: float, reach: float) -> float:
    return min(max(value, centre - reach), centre + reach)
