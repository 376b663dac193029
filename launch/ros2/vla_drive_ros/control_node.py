"""Plans to commands at 33 Hz, and the only node that may move the car.

A lifecycle node, started unconfigured. Inactive it says nothing. Active it commands a standstill until somebody calls
~/engage; what may end that, and what it takes to go on, is the table of `vla_drive_ros.safety`.

    ~/engage          std_srvs/SetBool   True: let the car move, if nothing speaks against it; False: stop comfortably
    ~/reset           std_srvs/Trigger   clear what is latched; the car stays where it is
    /emergency_stop   std_msgs/Bool      True: stop at once; latched until False and a reset

A first SIGINT or SIGTERM stops the car comfortably and ends the node when it stands, a second one ends it with a last
command to stop. Either way the last command is one to stand still.
"""

import importlib
import sys
import threading
import time
from dataclasses import replace

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nav_msgs.msg import Odometry, Path
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from sensors import ros2_topics
from sensors.errors import InputError
from sensors.ros2_messages import odometry_from_message, time_us_from_stamp
from vla_drive_ros import interface, messages
from vla_drive_ros.controller import HOLD_MPS2, ControlCommand, Controller, ControlLimits, Health
from vla_drive_ros.process import Loop, Stop, declare, run
from vla_drive_ros.safety import MOVING, SafetyLimits, State

PERIOD_S = 0.03
LONGEST_STOP_S = 15.0
LEVELS = {
    State.OK: DiagnosticStatus.OK,
    State.DEGRADED: DiagnosticStatus.WARN,
    State.STOPPING: DiagnosticStatus.ERROR,
    State.STOPPED: DiagnosticStatus.WARN,
}


def optional(type_name: str) -> type | None:
    """The class of a message such as "ackermann_msgs/msg/AckermannDriveStamped"; None where its package is not."""
    package, _, kind = type_name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), kind)
    except ImportError:
        return None


class ControlNode(LifecycleNode):
    def __init__(self, stop: Stop):
        super().__init__(interface.CONTROL)
        declare(self, interface.CONTROL_PARAMETERS)
        self._stop = stop
        self._lock = threading.Lock()
        self._controller: Controller | None = None
        self._loop: Loop | None = None
        self._last: ControlCommand | None = None
        self._gap_ms, self._ticked_s, self._told = 0.0, 0.0, ("", "")
        self._command = self.create_publisher(JointTrajectory, interface.JOINT_COMMAND, 1)
        self._state = self.create_publisher(DiagnosticArray, interface.STATE, 1)
        self._diagnostics = self.create_publisher(DiagnosticArray, interface.DIAGNOSTICS, 10)
        makers = (messages.autoware_control, messages.ackermann)
        self._others = [
            (self.create_publisher(kind, topic.name, 1), kind, make)
            for topic, make in zip(interface.CONTROL_OPTIONAL, makers, strict=True)
            if (kind := optional(topic.type)) is not None
        ]
        sensor_data = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(Odometry, ros2_topics.ODOMETRY, self._take_odometry, sensor_data)
        self.create_subscription(Path, interface.of_node(interface.DRIVER, interface.TRAJECTORY), self._take_plan, 1)
        health = interface.of_node(interface.DRIVER, interface.HEALTH)
        self.create_subscription(DiagnosticArray, health, self._take_health, 1)
        self.create_subscription(Bool, interface.EMERGENCY_STOP, self._take_emergency_stop, 10)
        self.create_service(SetBool, interface.ENGAGE, self._engage)
        self.create_service(Trigger, interface.RESET, self._reset)
        self._watch = Loop("watch", 1.0, lambda: self._tell(), stop)

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        with self._lock:
            self._controller = Controller(*self._limits())
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        with self._lock:
            self._controller = Controller(*self._limits())  # whatever was engaged or heard before is forgotten
        self._ticked_s, self._gap_ms = time.monotonic(), 0.0
        self._loop = Loop("control", PERIOD_S, self._tick, self._stop)
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Refused while the car moves: who wants to end a drive disengages first."""
        with self._lock:
            stopped = self._controller.machine.state == State.STOPPED
        if not stopped:
            self.get_logger().error("not deactivated: the car moves. Call ~/engage with false and wait.")
            return TransitionCallbackReturn.FAILURE
        self._end_loop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        with self._lock:
            self._controller = None
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._end_loop()
        return super().on_shutdown(state)

    def finish(self, why: str, hurry) -> None:
        """Stop the car, then say so; the control loop goes on meanwhile."""
        end_s = time.monotonic() + LONGEST_STOP_S
        if self._loop is not None:
            with self._lock:
                self._controller.machine.disengage(f"{why}: the control node ends")
            while not hurry() and time.monotonic() < end_s:
                with self._lock:
                    if self._controller.machine.state == State.STOPPED:
                        break
                time.sleep(PERIOD_S)
        self._watch.end()
        self._end_loop()
        if self._last is not None:
            final = -self._value("stop_mps2") if self._last.state != State.STOPPED else HOLD_MPS2
            stopped = {"state": State.STOPPED, "cause": f"{why}: the control node has ended", "speed_mps": 0.0}
            self._publish(replace(self._last, time_us=self._now()[0], accel_mps2=final, **stopped))
        self._tell(f"{why}: the control node has ended")
        time.sleep(2 * PERIOD_S)  # what was published last is on its way when the context closes

    def _limits(self) -> tuple[ControlLimits, SafetyLimits]:
        get = self._value
        control = ControlLimits(
            plan_age_us=1000 * get("plan_age_limit_ms"),
            odometry_age_us=1000 * get("odometry_age_limit_ms"),
            health_age_us=1000 * get("health_age_limit_ms"),
            speed_mps=get("max_speed_mps"),
            lateral_mps2=get("max_lateral_mps2"),
            accel_mps2=get("max_accel_mps2"),
            braking_mps2=get("max_braking_mps2"),
            stop_mps2=get("stop_mps2"),
            emergency_mps2=get("emergency_mps2"),
            jerk_mps3=get("max_jerk_mps3"),
            steering_rad=get("max_steering_rad"),
            steering_rate_radps=get("max_steering_rate_radps"),
            degraded_speed_mps=get("degraded_speed_mps"),
            wheelbase_m=get("wheelbase_m"),
        )
        safety = SafetyLimits(
            degraded_limit_us=round(1e6 * get("degraded_limit_s")), loop_gap_us=1000 * get("loop_gap_limit_ms")
        )
        return control, safety

    # What is heard

    def _take_odometry(self, message: Odometry) -> None:
        with self._lock:
            if self._controller is not None:
                try:
                    self._controller.take_odometry(odometry_from_message(message), *self._now())
                except InputError as error:
                    self._controller.odometry.refuse(error.field)

    def _take_plan(self, message: Path) -> None:
        with self._lock:
            if self._controller is not None:
                try:
                    self._controller.take_plan(*messages.path_knots(message), message.header.frame_id, *self._now())
                except InputError as error:
                    self._controller.plans.refuse(error.field)

    def _take_health(self, message: DiagnosticArray) -> None:
        (status,) = message.status
        fault = status.message if status.level == DiagnosticStatus.ERROR else ""
        degradation = status.message if status.level == DiagnosticStatus.WARN else ""
        with self._lock:
            if self._controller is not None:
                try:
                    time_us = time_us_from_stamp(message.header.stamp, "health")
                    self._controller.take_health(Health(fault, degradation), time_us, *self._now())
                except InputError as error:
                    self._controller.health.refuse(error.field)

    def _take_emergency_stop(self, message: Bool) -> None:
        with self._lock:
            if self._controller is not None:
                self._controller.machine.emergency_stop(message.data)

    def _engage(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        with self._lock:
            if self._loop is None:
                response.success, response.message = False, "the control node is not active"
            elif request.data:
                refusal = self._controller.machine.engage()
                response.success, response.message = not refusal, refusal or "engaged"
            else:
                self._controller.machine.disengage("disengaged")
                response.success, response.message = True, "disengaged"
        self.get_logger().info(f"engage {request.data}: {response.message}")
        return response

    def _reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            refusal = "the control node is not active" if self._loop is None else self._controller.machine.reset()
        response.success, response.message = not refusal, refusal or "reset; call ~/engage to go on"
        self.get_logger().info(f"reset: {response.message}")
        return response

    # What is done

    def _tick(self) -> None:
        seconds = time.monotonic()
        self._gap_ms, self._ticked_s = max(self._gap_ms, 1e3 * (seconds - self._ticked_s)), seconds
        with self._lock:
            self._last = self._controller.tick(*self._now())
        self._publish(self._last)
        if (self._last.state, self._last.cause.partition(":")[0]) != self._told:
            self._tell()

    def _publish(self, command: ControlCommand) -> None:
        self._command.publish(messages.joint_command(command))
        for publisher, kind, make in self._others:
            publisher.publish(make(command, kind))
        self._state.publish(messages.diagnostics(command.time_us, [self._status(command)]))

    def _status(self, command: ControlCommand, more: dict | None = None) -> DiagnosticStatus:
        text = f"{command.state}: {command.cause}" if command.cause else str(command.state)
        ages = {"plan_age_ms": command.plan_age_us, "odometry_age_ms": command.odometry_age_us}
        values = {name: age / 1000 for name, age in ages.items() if age is not None}
        values |= {"accel_mps2": command.accel_mps2, "steering_rad": f"{command.steering_rad:.4f}"}
        values |= {"moving": command.state in MOVING, "emergency": command.emergency} | (more or {})
        return messages.status(LEVELS[command.state], f"{self.get_name()}: control", text, values)

    def _tell(self, ended: str = "") -> None:
        """To /diagnostics, once a second and when something changes."""
        last = self._last
        if last is None or ended:
            text = ended or "not active"
            statuses = [messages.status(DiagnosticStatus.OK, f"{self.get_name()}: control", text, {})]
        else:
            self._told = last.state, last.cause.partition(":")[0]
            with self._lock:
                heard = {"plan": self._controller.plans, "odometry": self._controller.odometry}
                more = {f"refused {k}: {why}": n for k, h in heard.items() for why, n in h.refused.items()}
            statuses = [self._status(last, {"loop_gap_ms.max": self._gap_ms} | more)]
        self._diagnostics.publish(messages.diagnostics(self._now()[0], statuses))

    def _end_loop(self) -> None:
        if self._loop is not None:
            self._loop.end()
            self._loop = None

    def _now(self) -> tuple[int, int]:
        return max(self.get_clock().now().nanoseconds // 1000, 1), time.monotonic_ns() // 1000

    def _value(self, name: str):
        return self.get_parameter(name).value


def main() -> None:
    sys.exit(run(ControlNode))


if __name__ == "__main__":
    main()
