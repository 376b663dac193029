"""One node in one process, with our own signal handlers: rclpy's close the context before a last message can go out."""

import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable

import rclpy
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from sensors.errors import InputError
from vla_drive_ros.interface import Parameter

THREADS = 8  # six cameras, one plan, one watch; they mostly wait


def declare(node: Node, parameters: Iterable[Parameter]) -> None:
    """Declare the parameters with description and range; rclpy refuses a value outside its range."""
    for p in parameters:
        descriptor = ParameterDescriptor(description=p.description)
        if isinstance(p.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(p.low), to_value=float(p.high))]
        elif isinstance(p.default, int):
            descriptor.integer_range = [IntegerRange(from_value=int(p.low), to_value=int(p.high), step=1)]
        node.declare_parameter(p.name, p.default, descriptor)


def run(make_node: Callable[[Callable[[str], None]], Node]) -> int:
    """Spin one node until SIGINT, SIGTERM, its own end or an exception; returns the exit status.

    `make_node` is handed `stop(why)`; the node's `finish(why)` is called while the context is still open. Status 0:
    stopped in order; 1: a defect, with its traceback; 2: an input that is not usable, with its message.
    """
    ends: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()  # its put is safe in a signal handler
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda came, _: ends.put((0, signal.Signals(came).name)))
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = make_node(lambda why: ends.put((0, why)))
    except (InputError, InvalidParameterValueException, InvalidParameterTypeException) as error:
        print(f"error: {error}", file=sys.stderr)
        rclpy.shutdown()
        return 2
    executor = MultiThreadedExecutor(THREADS)
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
    node.finish(why)
    ending.set()
    worker.join()
    executor.shutdown()  # waits for callbacks under way, which may need the node
    node.destroy_node()
    rclpy.shutdown()
    if status:
        print(why, file=sys.stderr)
    return status
