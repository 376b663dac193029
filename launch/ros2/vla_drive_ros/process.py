"""One node in one process, with our own signal handlers: rclpy's close the context before a last message can go out.

Messages are taken by one thread, whose callbacks only take note; whatever lasts or must not wait (a plan, a picture to
decode, a watchdog, the control loop) has a thread of its own and a steady clock. Which executor matters, measured with
rclpy 9.1 on two cores (`vla bench ros` measures the loops' gaps): a MultiThreadedExecutor spends its time on waking up,
lost a third of 210 messages a second and held a 20 Hz timer up for 0.75 s; a SingleThreadedExecutor lost none, but with
the shipped policy beside it a plan took 460 ms; with the EventsExecutor, which need not ask every subscription at each
turn, 230 ms.
"""

import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Protocol

import rclpy
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

try:
    from rclpy.experimental.events_executor import EventsExecutor
except ImportError:  # before ROS 2 Kilted
    EventsExecutor = None

from sensors.errors import InputError
from vla_drive_ros.interface import Parameter

SWITCH_S = 0.0005  # a thread that must be on time waits no longer than this for another one's Python


class Stop(Protocol):
    """How a node, or a thread of it, ends its process; status 0 is an end in order."""

    def __call__(self, why: str, status: int = 0) -> None: ...


class Loop(threading.Thread):
    """Calls `step` once a period by a steady clock until `end`; what it raises ends the process.

    A step that is late is not made up for: the next one comes a period after it.
    """

    def __init__(self, name: str, period_s: float, step: Callable[[], None], stop: Stop):
        super().__init__(name=name, daemon=True)
        self._period_s, self._step, self._stop_process = period_s, step, stop
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        due_s = time.monotonic()
        while not self._ended.wait(max(0.0, due_s - time.monotonic())):
            due_s = max(due_s, time.monotonic() - self._period_s) + self._period_s
            try:
                self._step()
            except Exception:  # the border of a thread: told, and the exit status says so
                self._stop_process(traceback.format_exc(), 1)
                return

    def cancel(self) -> None:
        """No step begins after this; one that is under way is not waited for."""
        self._ended.set()

    def end(self) -> None:
        """No step begins after this, and none is under way unless it is that step which calls."""
        self._ended.set()
        if self is not threading.current_thread():
            self.join()


def make_executor(context: rclpy.Context | None = None) -> Executor:
    """The one that is told of messages, where this rclpy has it; the other asks all subscriptions at each turn."""
    kind = EventsExecutor or SingleThreadedExecutor
    return kind(context=context)


def declare(node: Node, parameters: Iterable[Parameter]) -> None:
    """Declare the parameters with description and range; rclpy refuses a value outside its range."""
    for p in parameters:
        descriptor = ParameterDescriptor(description=p.description)
        if isinstance(p.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(p.low), to_value=float(p.high))]
        elif isinstance(p.default, int) and not isinstance(p.default, bool):
            descriptor.integer_range = [IntegerRange(from_value=int(p.low), to_value=int(p.high), step=1)]
        node.declare_parameter(p.name, p.default, descriptor)


def run(make_node: Callable[[Stop], Node]) -> int:
    """Spin one node until SIGINT, SIGTERM, its own end or an exception; returns the exit status.

    `make_node` is handed `stop`; the node's `finish(why, hurry)` is called while messages still come and go, and
    `hurry()` says whether another signal has come since. Status 0: stopped in order; 1: a defect, with its traceback;
    2: an input that is not usable, with its message.
    """
    sys.setswitchinterval(SWITCH_S)
    ends: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()  # its put is safe in a signal handler
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda came, _: ends.put((0, signal.Signals(came).name)))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = make_node(lambda why, status=0: ends.put((status, why)))
    except (InputError, InvalidParameterValueException, InvalidParameterTypeException) as error:
        print(f"error: {error}", file=sys.stderr)
        rclpy.shutdown()
        return 2
    executor = make_executor()
    executor.add_node(node)
    ending = threading.Event()

    def spin() -> None:
        try:
            while not ending.is_set():
                executor.spin_once(timeout_sec=0.1)
        except Exception:  # the border of the process: told, and the exit status says so
            ends.put((1, traceback.format_exc()))

    worker = threading.Thread(target=spin, name="executor", daemon=True)
    worker.start()
    status, why = ends.get()
    node.finish(why, lambda: not ends.empty())
    ending.set()
    worker.join()
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown()
    if status:
        print(why, file=sys.stderr)
    return status
