"""The driver: cameras, IMU and odometry in, plans out. It never commands the vehicle; `control_node` may.

A lifecycle node, started unconfigured:

    unconfigured  --configure-->  inactive   parameters, calibration and policy are read and checked; inputs are heard
    inactive      --activate-->   active     plans are tried for at plan_rate_hz and published
    active        --deactivate--> inactive   nothing is published; what was heard is forgotten at the next activation

A plan goes out once, with the stamp of the clip it was made from, if every input it needs was fresh, it was ready in
time and keeps the limits of `vla_drive_ros.plan_check`. Otherwise nothing goes out and /diagnostics says why. Fifty
times a second ~/output/health says whether anything is wrong (ERROR: stop) or missing (WARN: go slowly), whatever the
policy is busy with.
"""

import math
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path as FilePath

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nav_msgs.msg import Odometry, Path
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu, JointState
from std_msgs.msg import String
from visualization_msgs.msg import MarkerArray

from policies.baselines import ConstantVelocity
from policies.protocol import NOTHING, Plan, Policy
from policies.repeat import Repeat, read_route
from policies.transforms import speed_at_now
from policies.vla_policy import SHIPPED, VlaPolicy
from sensors import ros2_topics
from sensors.clip import ROUTE_COMMANDS, Clip
from sensors.errors import InputError, unknown_name
from sensors.nuscenes_source import CAMERAS
from sensors.ros2_calibration import read_calibration
from sensors.ros2_source import Limits, StaleInput
from vla_drive_ros import interface, messages
from vla_drive_ros.inputs import Decoder, Inputs, StreamReport
from vla_drive_ros.plan_check import PlanLimits, check_plan
from vla_drive_ros.process import Loop, Stop, declare, run

# Messages that may wait: the sensor-data default of 5 loses some of a 100 Hz IMU, many more would only grow old.
IMAGE_DEPTH, ODOMETRY_DEPTH, IMU_DEPTH = 2, 10, 20
IMAGE_TRANSPORTS = ("compressed", "raw")
WATCH_S, REPORT_S = 0.02, 1.0
LONGEST_PLAN_S = 5.0
HERE_XYYAW = np.zeros(3)


class DriverNode(LifecycleNode):
    """`changed` may put another policy in place of the one that was configured: a test makes one block."""

    def __init__(self, stop: Stop, changed: Callable[[Policy], Policy] = lambda policy: policy):
        super().__init__(interface.DRIVER)
        declare(self, interface.DRIVER_PARAMETERS)
        self._changed, self._stop = changed, stop
        self._trajectory = self.create_lifecycle_publisher(Path, interface.TRAJECTORY, QoSProfile(depth=1))
        self._reason = self.create_lifecycle_publisher(String, interface.REASON, QoSProfile(depth=1))
        self._markers = self.create_lifecycle_publisher(MarkerArray, interface.MARKERS, QoSProfile(depth=1))
        self._health = self.create_publisher(DiagnosticArray, interface.HEALTH, 1)
        self._diagnostics = self.create_publisher(DiagnosticArray, interface.DIAGNOSTICS, 10)
        self._inputs: Inputs | None = None
        self._subscriptions_of_inputs: list = []
        self._decoders: dict[str, Decoder] = {}
        self._plan_loop: Loop | None = None
        self._publishing = threading.Lock()  # once the node is stopped, no plan that was under way goes out
        self._state, self._why, self._masked = "UNCONFIGURED", "", ()
        self._latency_ms: dict[str, float] = {}
        self._gap_ms, self._watched_s, self._reported_s = 0.0, time.monotonic(), 0.0
        self._counts = Counter({"published": 0, "refused": 0, "late": 0})
        self._refusal, self._busy_since_us = "", None
        self._watch = Loop("watch", WATCH_S, self._watch_inputs, stop)

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
        self._published_us, self._published_at_us, self._refusal = 0, self._instant()[1], ""
        self._tell("STALE", "no plan yet")
        result = super().on_activate(state)
        self._plan_loop = Loop("plan", 1.0 / self._value("plan_rate_hz"), self._plan, self._stop)
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

    def finish(self, why: str, hurry) -> None:
        """The last words, while they can still be sent: whoever moves the car hears at once that no plan will come.
        Then a plan that is under way is waited for: a process that ends within torch aborts."""
        self._watch.end()
        self._say_health([f"{why}: the driver has ended"], [])
        self._tell("STOPPED", why)
        loop = self._plan_loop
        self._stop_planning()
        if loop is not None:
            loop.join(LONGEST_PLAN_S)
        for decoder in self._decoders.values():
            decoder.end()

    def _configure(self) -> None:
        self._policy = self._changed(self._make_policy())
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
        self._subscribe(self._inputs)

    def _make_policy(self) -> Policy:
        name, checkpoint, route = (self._value(n) for n in ("policy", "checkpoint", "route_file"))
        if name not in interface.POLICIES:
            raise unknown_name("parameter", "policy", name, interface.POLICIES)
        if name != "vla" and checkpoint:
            raise InputError("parameter", "checkpoint", checkpoint, f"nothing, since {name} has no weights")
        if name != "repeat" and route:
            raise InputError("parameter", "route_file", route, f"nothing, since {name} does not repeat a drive")
        if name == "repeat":
            if not route:
                raise InputError("parameter", "route_file", repr(route), "a drive that was recorded")
            return Repeat(read_route(FilePath(route)))
        if name == "constant-velocity":
            return ConstantVelocity()
        torch.set_num_threads(self._value("threads") or max(1, len(os.sched_getaffinity(0)) - 1))
        path = FilePath(checkpoint) if checkpoint else SHIPPED
        policy = VlaPolicy(path, self._value("device"), patience_s=math.inf)
        cameras = policy.config.cameras - policy.config.fovea  # the fovea is cut out of another
        if cameras != len(CAMERAS):
            raise InputError(checkpoint, "cameras", cameras, f"{len(CAMERAS)}, those of this node")
        return policy

    def _subscribe(self, inputs: Inputs) -> None:
        def hear(kind: type, topic: str, take: Callable, depth: int = IMAGE_DEPTH, latched: bool = False) -> None:
            qos = QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)
            if latched:
                qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            self._subscriptions_of_inputs.append(self.create_subscription(kind, topic, take, qos))

        for camera in CAMERAS:
            decoder = self._decoders[camera] = Decoder(camera, inputs.take_image)
            hear(CameraInfo, ros2_topics.info_topic(camera), lambda m, name=camera: inputs.take_info(name, m))
            pictures = (Image, ros2_topics.raw_image_topic(camera))
            if self._value("image_transport") == "compressed":
                pictures = (CompressedImage, ros2_topics.image_topic(camera))
            hear(*pictures, lambda m, name=camera, put=decoder.put: put(name, m, *self._instant()))
        hear(Imu, ros2_topics.IMU, lambda m: inputs.take_imu(m, *self._instant()), IMU_DEPTH)
        hear(Odometry, ros2_topics.ODOMETRY, lambda m: inputs.take_odometry(m, *self._instant()), ODOMETRY_DEPTH)
        hear(JointState, ros2_topics.STEERING, lambda m: inputs.take_steering(m, *self._instant()), ODOMETRY_DEPTH)
        hear(String, ros2_topics.COMMAND, inputs.take_command, latched=True)
        hear(String, ros2_topics.INSTRUCTION, inputs.take_instruction, latched=True)

    def _forget(self) -> None:
        for subscription in self._subscriptions_of_inputs:
            self.destroy_subscription(subscription)
        for decoder in self._decoders.values():
            decoder.end()
        self._subscriptions_of_inputs.clear()
        self._decoders.clear()
        self._inputs = None

    def _stop_planning(self) -> None:
        """Nothing goes out after this; a plan under way is not waited for, its policy may be blocked."""
        with self._publishing:
            loop, self._plan_loop = self._plan_loop, None
        if loop is not None:
            loop.cancel()

    # Planning

    def _plan(self) -> None:
        start = time.perf_counter()
        now_us, steady_us = self._instant()
        try:
            clip, frame_id = self._inputs.clip(now_us, steady_us)
            if clip.now_us <= self._published_us:
                return  # nothing new to plan from
            clip = clip.validate()
            assembled = time.perf_counter()
            self._busy_since_us = steady_us
            plan = self._policy.plan(clip, NOTHING).validate()
            check_plan(plan.time_s, plan.xyyaw_in_ego, HERE_XYYAW, speed_at_now(clip), PlanLimits())
            self._refusal = ""
        except StaleInput as error:
            return self._tell("STALE", str(error))
        except InputError as error:
            self._counts["refused"] += 1
            self._refusal = f"plan refused: {error}"
            return self._tell("STALE", f"refused: {error}")
        finally:
            self._busy_since_us = None
        planned = time.perf_counter()
        self._latency_ms = {
            "assemble": 1e3 * (assembled - start),
            **plan.latency_ms,
            "plan": 1e3 * (planned - assembled),
        }
        self._publish(plan, clip, frame_id, steady_us)

    def _publish(self, plan: Plan, clip: Clip, frame_id: str, started_us: int) -> None:
        """Send the plan with the stamp of its clip, unless it took too long or the node was stopped meanwhile."""
        now_us, steady_us = self._instant()
        age_us = max(now_us - clip.now_us, steady_us - started_us)
        self._latency_ms["age"] = age_us / 1000
        limit_ms = self._value("plan_age_limit_ms")
        if age_us > 1000 * limit_ms:
            self._counts["late"] += 1
            return self._tell("STALE", f"plan {age_us / 1000:.0f} ms old when ready, limit {limit_ms} ms")
        path = messages.path(plan, clip.now_us, clip.T_world_from_ego_now, frame_id)
        with self._publishing:
            if self._plan_loop is None:
                return None
            self._reason.publish(String(data=plan.reason))
            self._trajectory.publish(path)
        self._markers.publish(messages.markers(path, plan.reason))
        self._published_us, self._published_at_us = clip.now_us, steady_us
        self._counts["published"] += 1
        self._masked = tuple(c.name for c, seen in zip(clip.cameras, clip.image_mask[-1], strict=True) if not seen)
        words = [plan.reason] if plan.fallback else []
        return self._tell("OK", "; ".join(words + [f"masked: {', '.join(self._masked)}"] * bool(self._masked)))

    # Health and diagnostics

    def _watch_inputs(self) -> None:
        """What is wrong, on a thread of its own, whatever the policy does; once a second, all of it to /diagnostics."""
        seconds = time.monotonic()
        self._gap_ms, self._watched_s = max(self._gap_ms, 1e3 * (seconds - self._watched_s)), seconds
        now_us, steady_us = self._instant()
        self._say_health(*self._wrong(now_us, steady_us))
        if seconds - self._reported_s >= REPORT_S:
            self._reported_s = seconds
            inputs = self._inputs
            reports = {} if inputs is None else inputs.report(now_us, steady_us)
            self._send([self._plan_status(), *(self._input_status(name, report) for name, report in reports.items())])

    def _wrong(self, now_us: int, steady_us: int) -> tuple[list[str], list[str]]:
        """(faults, degradations) now."""
        inputs, busy_since_us = self._inputs, self._busy_since_us
        if self._plan_loop is None or inputs is None:
            return [f"driver: {self._state.lower()}"], []
        faults, slight = inputs.health(now_us, steady_us, 1000 * self._value("cameras_silent_limit_ms"))
        limit_us = 1000 * self._value("inference_limit_ms")
        if busy_since_us is not None and steady_us - busy_since_us > limit_us:
            faults.append(
                f"policy: busy for {(steady_us - busy_since_us) / 1000:.0f} ms, limit {limit_us / 1000:.0f} ms"
            )
        if self._refusal:
            faults.append(self._refusal)
        silent_us = steady_us - self._published_at_us
        if silent_us > 1000 * self._value("plan_age_limit_ms") + 1e6 / self._value("plan_rate_hz"):
            if self._state == "OK":
                self._tell("STALE", f"no plan for {silent_us / 1000:.0f} ms")
            if not faults:
                faults.append(f"policy: no plan for {silent_us / 1000:.0f} ms")
        return faults, slight

    def _say_health(self, faults: list[str], slight: list[str]) -> None:
        level = DiagnosticStatus.ERROR if faults else DiagnosticStatus.WARN if slight else DiagnosticStatus.OK
        status = messages.status(level, f"{self.get_name()}: health", "; ".join(faults or slight), {})
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._health.publish(message)

    def _tell(self, state: str, why: str) -> None:
        """Take note of the state; a change goes out at once."""
        changed = state != self._state
        self._state, self._why = state, why
        if changed:
            self._send([self._plan_status()])

    def _plan_status(self):
        levels = {"OK": DiagnosticStatus.WARN if self._why else DiagnosticStatus.OK, "STALE": DiagnosticStatus.STALE}
        text = f"{self._state}: {self._why}" if self._why else self._state
        values = {**self._counts, **{f"latency_{stage}_ms": value for stage, value in self._latency_ms.items()}}
        level = levels.get(self._state, DiagnosticStatus.OK)
        return messages.status(level, f"{self.get_name()}: plan", text, values | {"watch_gap_ms.max": self._gap_ms})

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
