"""The driver in shadow mode: it plans and says what it would drive. It never commands a vehicle.

A lifecycle node, started unconfigured:

    unconfigured  --configure-->  inactive   parameters, calibration and policy are read and checked; inputs are heard
    inactive      --activate-->   active     plans are tried for at plan_rate_hz and published
    active        --deactivate--> inactive   nothing is published; what was heard is forgotten at the next activation

A plan goes out once, with the stamp of the clip it was made from, if every input it needs was fresh, it is valid, and
it was ready in time. Otherwise nothing goes out and /diagnostics says why.
"""

import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path as FilePath

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nav_msgs.msg import Odometry, Path
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu, JointState
from std_msgs.msg import String

from policies.baselines import ConstantVelocity
from policies.protocol import NOTHING, Plan, Policy
from policies.vla_policy import VlaPolicy
from sensors import ros2_topics
from sensors.clip import ROUTE_COMMANDS, Clip
from sensors.errors import InputError, unknown_name
from sensors.nuscenes_source import CAMERAS
from sensors.ros2_calibration import read_calibration
from sensors.ros2_source import Limits, StaleInput
from vla_drive_ros import interface, messages
from vla_drive_ros.inputs import Inputs, StreamReport
from vla_drive_ros.process import declare, run

IMAGE_TRANSPORTS = ("compressed", "raw")
POLICIES = ("constant-velocity", "vla")
# Messages that may wait: the sensor-data default of 5 loses some of a 100 Hz IMU, many more would only grow old.
IMAGE_DEPTH, ODOMETRY_DEPTH, IMU_DEPTH = 2, 10, 20


class DriverNode(LifecycleNode):
    def __init__(self, stop: Callable[[str], None]):
        super().__init__(interface.DRIVER)
        declare(self, interface.DRIVER_PARAMETERS)
        self._trajectory = self.create_lifecycle_publisher(Path, interface.TRAJECTORY, QoSProfile(depth=1))
        self._diagnostics = self.create_publisher(DiagnosticArray, interface.DIAGNOSTICS, 10)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._inputs: Inputs | None = None
        self._subscriptions_of_inputs: list = []
        self._plan_timer = None
        self._state, self._why, self._masked = "UNCONFIGURED", "", ()
        self._latency_ms: dict[str, float] = {}
        self._counts = Counter({"published": 0, "refused": 0, "late": 0})
        self.create_timer(1.0, self._watch, MutuallyExclusiveCallbackGroup(), self._steady)

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            self._configure()
        except InputError as error:
            self.get_logger().error(f"not configured: {error}")
            self._tell("UNCONFIGURED", str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception:  # rclpy turns it into a failed transition without a word
            self.get_logger().fatal(traceback.format_exc())
            raise
        self._tell("INACTIVE", "")
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._inputs.reset()
        self._policy.reset(seed=0)
        self._published_us, self._published_at_us = 0, self._instant()[1]
        self._tell("STALE", "no plan yet")
        result = super().on_activate(state)
        period_s = 1.0 / self._value("plan_rate_hz")
        self._plan_timer = self.create_timer(period_s, self._plan, self._plan_group, self._steady)
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop_planning()
        self._tell("INACTIVE", "")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._forget()
        self._tell("UNCONFIGURED", "")
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop_planning()
        self._forget()
        self._tell("FINALIZED", "")
        return super().on_shutdown(state)

    def finish(self, why: str) -> None:
        """The last words, while they can still be sent."""
        self._stop_planning()
        self._tell("STOPPED", why)

    def _configure(self) -> None:
        self._policy = self._make_policy()
        command = self._value("command")
        if command not in ROUTE_COMMANDS:
            raise unknown_name("parameter", "command", command, ROUTE_COMMANDS)
        if self._value("image_transport") not in IMAGE_TRANSPORTS:
            raise unknown_name("parameter", "image_transport", self._value("image_transport"), IMAGE_TRANSPORTS)
        limits = Limits(
            tolerance_us=1000 * self._value("sync_tolerance_ms"),
            camera_age_us=1000 * self._value("camera_age_limit_ms"),
            odometry_age_us=1000 * self._value("odometry_age_limit_ms"),
            imu_age_us=1000 * self._value("imu_age_limit_ms"),
            ahead_us=1000 * self._value("clock_skew_limit_ms"),
            min_cameras=self._value("min_cameras"),
        )
        calibration = read_calibration(FilePath(self._value("calibration_file")), CAMERAS)
        size = self._policy.image_size or (self._value("image_width"), self._value("image_height"))
        words = command, self._value("instruction")
        self._inputs = Inputs(calibration, limits, self._policy.clip_steps, size, *words)
        self._plan_age_limit_us = 1000 * self._value("plan_age_limit_ms")
        self._plan_group = MutuallyExclusiveCallbackGroup()
        self._subscribe(self._inputs)

    def _make_policy(self) -> Policy:
        name, checkpoint = self._value("policy"), self._value("checkpoint")
        if name not in POLICIES:
            raise InputError("parameter", "policy", name, f"one of {', '.join(POLICIES)}")
        if (name == "vla") != bool(checkpoint):
            expected = "a folder that vla train wrote" if name == "vla" else f"nothing, since {name} has no weights"
            raise InputError("parameter", "checkpoint", repr(checkpoint), expected)
        if name == "constant-velocity":
            return ConstantVelocity()
        policy = VlaPolicy(FilePath(checkpoint), self._value("device"))
        if policy.config.cameras != len(CAMERAS):
            raise InputError(checkpoint, "cameras", policy.config.cameras, f"{len(CAMERAS)}, those of this node")
        return policy

    def _subscribe(self, inputs: Inputs) -> None:
        """One callback group a topic: order is kept within it, and a busy one holds up no other."""

        def hear(kind: type, topic: str, take: Callable, depth: int = IMAGE_DEPTH, latched: bool = False) -> None:
            qos = QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)
            if latched:
                qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            made = self.create_subscription(kind, topic, take, qos, callback_group=MutuallyExclusiveCallbackGroup())
            self._subscriptions_of_inputs.append(made)

        for camera in CAMERAS:
            hear(CameraInfo, ros2_topics.info_topic(camera), lambda m, name=camera: inputs.take_info(name, m))
            pictures = (Image, ros2_topics.raw_image_topic(camera))
            if self._value("image_transport") == "compressed":
                pictures = (CompressedImage, ros2_topics.image_topic(camera))
            hear(*pictures, lambda m, name=camera: inputs.take_image(name, m, *self._instant()))
        hear(Imu, ros2_topics.IMU, lambda m: inputs.take_imu(m, *self._instant()), IMU_DEPTH)
        hear(Odometry, ros2_topics.ODOMETRY, lambda m: inputs.take_odometry(m, *self._instant()), ODOMETRY_DEPTH)
        hear(JointState, ros2_topics.STEERING, lambda m: inputs.take_steering(m, *self._instant()), ODOMETRY_DEPTH)
        hear(String, ros2_topics.COMMAND, inputs.take_command, latched=True)
        hear(String, ros2_topics.INSTRUCTION, inputs.take_instruction, latched=True)

    def _forget(self) -> None:
        for subscription in self._subscriptions_of_inputs:
            self.destroy_subscription(subscription)
        self._subscriptions_of_inputs.clear()
        self._inputs = None

    def _stop_planning(self) -> None:
        if self._plan_timer is not None:
            self.destroy_timer(self._plan_timer)
            self._plan_timer = None

    # Planning

    def _plan(self) -> None:
        start = time.perf_counter()
        now_us, steady_us = self._instant()
        try:
            clip, frame_id = self._inputs.clip(now_us, steady_us)
            if clip.now_us <= self._published_us:
                return  # nothing new to plan from
            clip.validate()
            assembled = time.perf_counter()
            plan = self._policy.plan(clip, NOTHING).validate()
        except StaleInput as error:
            return self._tell("STALE", str(error))
        except InputError as error:
            self._counts["refused"] += 1
            return self._tell("STALE", f"refused: {error}")
        planned = time.perf_counter()
        self._latency_ms = {
            "assemble": 1e3 * (assembled - start),
            **plan.latency_ms,
            "plan": 1e3 * (planned - assembled),
        }
        self._publish(plan, clip, frame_id, steady_us)

    def _publish(self, plan: Plan, clip: Clip, frame_id: str, started_us: int) -> None:
        """Send the plan with the stamp of its clip, unless it took too long or the node was stopped meanwhile."""
        if self._plan_timer is None:
            return None
        now_us, steady_us = self._instant()
        age_us = max(now_us - clip.now_us, steady_us - started_us)
        self._latency_ms["age"] = age_us / 1000
        if age_us > self._plan_age_limit_us:
            self._counts["late"] += 1
            limit_ms = self._plan_age_limit_us / 1000
            return self._tell("STALE", f"plan {age_us / 1000:.0f} ms old when ready, limit {limit_ms:.0f} ms")
        self._trajectory.publish(messages.path(plan, clip.now_us, clip.T_world_from_ego_now, frame_id))
        self._published_us, self._published_at_us = clip.now_us, steady_us
        self._counts["published"] += 1
        self._masked = tuple(c.name for c, seen in zip(clip.cameras, clip.image_mask[-1], strict=True) if not seen)
        words = [plan.reason] if plan.fallback else []
        self._tell("OK", "; ".join(words + [f"masked: {', '.join(self._masked)}"] * bool(self._masked)))

    # Diagnostics

    def _watch(self) -> None:
        """Once a second, on its own thread: what each input delivers, and a policy that has fallen silent."""
        now_us, steady_us = self._instant()
        if self._plan_timer is not None and self._state == "OK":
            silent_us = steady_us - self._published_at_us
            if silent_us > self._plan_age_limit_us + 1e6 / self._value("plan_rate_hz"):
                self._tell("STALE", f"no plan for {silent_us / 1000:.0f} ms")
        inputs = self._inputs
        reports = {} if inputs is None else inputs.report(now_us, steady_us)
        self._send([self._plan_status(), *(self._input_status(name, report) for name, report in reports.items())])

    def _tell(self, state: str, why: str) -> None:
        """Take note of the state; a change goes out at once."""
        changed = state != self._state
        self._state, self._why = state, why
        if changed:
            self._send([self._plan_status()])

    def _plan_status(self):
        levels = {"OK": DiagnosticStatus.WARN if self._why else DiagnosticStatus.OK, "STALE": DiagnosticStatus.STALE}
        text = f"{self._state}: {self._why}" if self._why else self._state
        latency = {f"latency_{stage}_ms": value for stage, value in self._latency_ms.items()}
        level = levels.get(self._state, DiagnosticStatus.OK)
        return messages.status(level, f"{self.get_name()}: plan", text, {**self._counts, **latency})

    def _input_status(self, name: str, report: StreamReport):
        masked = name in self._masked and self._state == "OK"
        level = DiagnosticStatus.ERROR if report.fault else DiagnosticStatus.STALE if masked else DiagnosticStatus.OK
        text = report.fault or ("masked" if masked else "")
        if report.age_ms is None and not text:
            level, text = DiagnosticStatus.STALE, "nothing yet"
        age = {} if report.age_ms is None else {"age_ms": report.age_ms}
        values = {"rate_hz": report.rate_hz, **age, **{f"refused: {why}": n for why, n in report.refused.items()}}
        return messages.status(level, f"{self.get_name()}: {name}", text, values)

    def _send(self, statuses: list) -> None:
        message = DiagnosticArray(status=statuses)
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _instant(self) -> tuple[int, int]:
        """(now_us, steady_us): the clock that stamps are compared with, and one that never stops."""
        return self.get_clock().now().nanoseconds // 1000, time.monotonic_ns() // 1000

    def _value(self, name: str):
        return self.get_parameter(name).value


def main() -> None:
    sys.exit(run(DriverNode))


if __name__ == "__main__":
    main()
