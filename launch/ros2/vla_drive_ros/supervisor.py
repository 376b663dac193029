"""Nodes as processes, and somebody who configures, engages and watches them: for `vla ros`, the fault campaign, tests.

No ROS command line is needed. Processes are spawned, never forked: a fork after rclpy.init hangs.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from sensors.errors import InputError
from vla_drive_ros import interface
from vla_drive_ros.process import make_executor

HERE = Path(__file__).resolve().parent
# Beside the package in a checkout, inside it in a wheel; colcon puts it under share/.
CONFIG = next((path for path in (HERE.parent / "config", HERE / "config") if path.is_dir()), HERE.parent / "config")
STARTS_WITHIN_S, ENDS_WITHIN_S, HEARD_S = 90.0, 20.0, 0.3
SHARED_MEMORY, LOCK = Path("/dev/shm"), "_el"  # of Fast DDS: fastdds_0123456789abcdef, and a file beside it


def environment(domain: int | None = None) -> dict[str, str]:
    """What the nodes are started with: on this machine only unless told otherwise, images through shared memory."""
    found = dict(os.environ)
    found.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    found.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(CONFIG / "fastdds_shm.xml"))
    found["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, [found.get("PYTHONPATH")])])
    if domain is not None:
        found["ROS_DOMAIN_ID"] = str(domain)
    return found


def spawn(
    module: str,
    parameters: dict[str, object],
    log: Path | None = None,
    domain: int | None = None,
    files: Sequence[Path] = (),
) -> subprocess.Popen:
    """A node in a process group of its own, so that a terminal's signals reach it through us alone.

    Its output goes to `log`, or where ours goes. files: parameter files, the later one wins and `parameters` win over
    all; an empty text is not passed on.
    """
    words = [word for file in files for word in ("--params-file", str(file))]
    words += [word for key, value in parameters.items() if value != "" for word in ("-p", f"{key}:={value}")]
    command = [sys.executable, "-m", f"vla_drive_ros.{module}", "--ros-args", *words]
    given = {"env": environment(domain), "process_group": 0}
    if log is None:
        return subprocess.Popen(command, **given)
    with open(log, "a") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, **given)


def end(processes: list[subprocess.Popen], number: int = signal.SIGINT) -> list[int]:
    """Ask all to end, wait, kill what does not, and clear what the killed left; their exit statuses."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
    until = time.monotonic() + ENDS_WITHIN_S
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    clear_segments()
    return [process.returncode for process in processes]


def clear_segments() -> list[str]:
    """Remove the segments of Fast DDS whose processes are gone; their names.

    Who is killed leaves its own, 140 MB for images, and nobody clears it. A living process holds the lock beside it, as
    `fastdds shm clean` has it.
    """
    gone = []
    for lock in SHARED_MEMORY.glob(f"fastdds_{'[0-9a-f]' * 16}{LOCK}"):
        with suppress(OSError), lock.open("r+b") as file:  # another user's, or held, or gone meanwhile
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            segment = lock.with_name(lock.name.removesuffix(LOCK))
            segment.unlink()
            lock.unlink()
            gone.append(segment.name)
    return gone


class NoAnswer(InputError):
    """Nobody offers a service, or whoever does says nothing."""


@dataclass(frozen=True)
class Heard:
    """A message and when it came, by the steady clock."""

    at_s: float
    message: object


class Supervisor:
    """Calls the nodes' services, and keeps what they say: states, commands, plans, diagnostics, and how
    the simulated car really moves."""

    def __init__(self, domain: int | None = None):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("vla_supervisor", context=self.context)
        self._executor = make_executor(self.context)
        self._executor.add_node(self.node)
        self.states: list[Heard] = []
        self.commands: list[Heard] = []
        self.truth: list[Heard] = []
        self.plans: list[Heard] = []
        self.diagnostics: list[Heard] = []
        self._emergency_stop = self.node.create_publisher(Bool, interface.EMERGENCY_STOP, 10)
        sensor_data = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)
        control, driver = interface.CONTROL, interface.DRIVER
        for kind, topic, kept, qos in (
            (DiagnosticArray, interface.of_node(control, interface.STATE), self.states, 100),
            (JointTrajectory, interface.of_node(control, interface.JOINT_COMMAND), self.commands, 100),
            (Odometry, interface.of_node(interface.SIM, interface.TRUTH), self.truth, sensor_data),
            (PathMessage, interface.of_node(driver, interface.TRAJECTORY), self.plans, 100),
            (DiagnosticArray, interface.DIAGNOSTICS, self.diagnostics, 100),
        ):
            keep = lambda m, kept=kept: kept.append(Heard(time.monotonic(), m))  # noqa: E731
            self.node.create_subscription(kind, topic, keep, qos)

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    # Time and services

    def until(self, done: Callable[[], object], seconds: float) -> bool:
        """Hear until `done` or so long; whether it was done."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self._executor.spin_once(timeout_sec=0.02)
            if done():
                return True
        return False

    def hear(self, seconds: float) -> None:
        self.until(lambda: False, seconds)

    def call(self, kind: type, name: str, request: object, seconds: float = 30.0):
        """The answer of a service; nobody there, or no answer in time, is an InputError."""
        client = self.node.create_client(kind, name)
        try:
            if not self.until(client.service_is_ready, seconds):
                raise NoAnswer(name, "service", "nobody", f"a node that offers it within {seconds:.0f} s")
            future = client.call_async(request)
            if not self.until(future.done, seconds):
                raise NoAnswer(name, "answer", "none", f"one within {seconds:.0f} s")
            return future.result()
        finally:
            self.node.destroy_client(client)

    def change(self, node: str, transition: int, becomes: int) -> bool:
        """Whether a lifecycle node made the transition. One that was killed seems to live for some seconds, and
        who asks it gets no answer: asked again, its successor answers."""
        request, end_s = ChangeState.Request(transition=Transition(id=transition)), time.monotonic() + STARTS_WITHIN_S
        while True:
            with suppress(NoAnswer):
                if self.call(ChangeState, f"/{node}/change_state", request, 5.0).success:
                    return True
                state = self.call(GetState, f"/{node}/get_state", GetState.Request(), 5.0).current_state
                return state.id == becomes  # an earlier request was heard after all
            if time.monotonic() > end_s:
                raise InputError(node, "lifecycle", "no answer", f"one within {STARTS_WITHIN_S:.0f} s")

    def bring_up(self, *nodes: str) -> None:
        """Configure and activate; what a node says against it is an InputError. Nothing moves by this."""
        for name, transition in (
            ("configure", Transition.TRANSITION_CONFIGURE),
            ("activate", Transition.TRANSITION_ACTIVATE),
        ):
            becomes = State.PRIMARY_STATE_INACTIVE if name == "configure" else State.PRIMARY_STATE_ACTIVE
            for node in nodes:
                if not self.change(node, transition, becomes):
                    raise InputError(node, name, "a refusal", "an agreement", "Its output and /diagnostics say why.")

    def engage(self, wanted: bool = True) -> str:
        """ "" if the control node agrees, else why not."""
        service = interface.of_node(interface.CONTROL, interface.ENGAGE)
        answer = self.call(SetBool, service, SetBool.Request(data=wanted))
        return "" if answer.success else answer.message

    def engage_within(self, seconds: float) -> None:
        """Engage as soon as it is healthy; an InputError says what still speaks against it then."""
        end_s = time.monotonic() + seconds
        while refusal := self.engage():
            if time.monotonic() > end_s:
                raise InputError(interface.CONTROL, "engage", refusal, f"a car that may move within {seconds:.0f} s")
            self.hear(0.2)

    def reset(self) -> str:
        answer = self.call(Trigger, interface.of_node(interface.CONTROL, interface.RESET), Trigger.Request())
        return "" if answer.success else answer.message

    def emergency_stop(self, pressed: bool) -> None:
        self._emergency_stop.publish(Bool(data=pressed))

    def press_within(self, seconds: float, pressed: bool) -> str:
        """Press or release the emergency stop once the control node hears it; "" when it has had time to."""
        if not self.until(lambda: self._emergency_stop.get_subscription_count(), seconds):
            return f"nobody listens to {interface.EMERGENCY_STOP}"
        self.emergency_stop(pressed)
        self.hear(HEARD_S)
        return ""

    def forget(self) -> None:
        """Drop what was heard so far, but for the latest of each."""
        for kept in (self.states, self.commands, self.truth, self.plans, self.diagnostics):
            del kept[:-1]

    def set_text(self, node: str, name: str, value: str) -> None:
        """Set a text parameter of a running node; a refusal is an InputError."""
        given = Parameter(name=name, value=ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value))
        request = SetParameters.Request(parameters=[given])
        (result,) = self.call(SetParameters, f"/{node}/set_parameters", request).results
        if not result.successful:
            raise InputError(node, name, value, result.reason)

    # What was heard

    @property
    def state(self) -> str:
        """The control node's latest state, "" before the first."""
        return self.states[-1].message.status[0].message.partition(":")[0] if self.states else ""

    @property
    def status(self) -> DiagnosticStatus | None:
        return self.states[-1].message.status[0] if self.states else None

    @property
    def speed_mps(self) -> float:
        return self.truth[-1].message.twist.twist.linear.x if self.truth else float("nan")
