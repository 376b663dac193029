"""The fault campaign: every fault at random moments while the car drives, and a verdict on each.

    python -m vla_drive_ros.campaign --times 10 --json faults.json

The car repeats a taught route through an empty town; sensors are spoilt by sim_node, processes get signals, the machine
gets more to do than it can. After each fault the car must be at rest or go slowly, within limits of time and without a
command from what was too old; somebody must name the cause; and nothing may move it again but a reset and an engage.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.repeat import read_route
from policies.runs import write_json
from sensors.errors import InputError, unknown_name
from sim.geometry import OpenLine
from vla_drive_ros import interface
from vla_drive_ros.sensor_faults import FAULTS as SENSOR_FAULTS
from vla_drive_ros.stack import ROUTE, Stack, expert_route
from vla_drive_ros.supervisor import Heard, Supervisor
from vla_drive_ros.verdict import Limits, Tick, Verdict, judge

SCENARIO, SPEED_MPS, ROUTE_END_M = "town-val/2", 6.0, 130.0
IMAGE = {"image_width": 224, "image_height": 128}
DETECT_S, CAMERA_DETECT_S = 0.25, 0.40  # the age limits of poses, plans and of single cameras, and what is heard late
STAYS_S = 1.2  # how long it must stay where it is, before and after a reset
LONGEST_S, SLOW_S = 8.0, 4.0
HOGS_A_CORE = 4
TRIES = 4
HEARD_S = 0.3  # until what happens is heard
RESTARTED = ("control-sigint", "control-sigterm")  # a new control node has nothing latched, nor is it engaged
SAMPLE_LIMITS = {"stop_mps2": 1.5, "plan_age_ms": 800.0, "odometry_age_ms": 150.0, "slow_mps": 3.0}


@dataclass(frozen=True)
class Fault:
    """begin(stack) makes it happen, end(stack, begun) takes it back; `seconds` it lasts, 0: until the car stands or is
    slow. may, words, detect_s: see `vla_drive_ros.verdict`. ends: the node that is expected to end by it."""

    name: str
    begin: Callable[[Stack], object]
    end: Callable[[Stack, object], None]
    may: tuple[str, ...]
    words: tuple[str, ...]
    detect_s: float = DETECT_S
    seconds: float = 0.0
    ends: str = ""


def _spoil(name: str) -> tuple[Callable, Callable]:
    return (
        lambda stack: stack.supervisor.set_text(interface.SIM, "fault", name),
        lambda stack, _: stack.supervisor.set_text(interface.SIM, "fault", ""),
    )


def _signal(node: str, number: int) -> tuple[Callable, Callable]:
    def begin(stack: Stack) -> None:
        stack.processes[node].send_signal(number)

    return begin, lambda stack, _: None


def _pause(stack: Stack) -> None:
    stack.processes[interface.CONTROL].send_signal(signal.SIGSTOP)


def _go_on(stack: Stack, _: object) -> None:
    stack.processes[interface.CONTROL].send_signal(signal.SIGCONT)


def _starve(stack: Stack) -> list[subprocess.Popen]:
    count = HOGS_A_CORE * len(os.sched_getaffinity(0))
    return [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]


def _feed(stack: Stack, hogs: list[subprocess.Popen]) -> None:
    for hog in hogs:
        hog.kill()
        hog.wait()


def _press(stack: Stack) -> None:
    stack.supervisor.emergency_stop(True)


def _release(stack: Stack, _: object) -> None:
    stack.supervisor.emergency_stop(False)


_STOP, _SLOW = ("stop",), ("stop", "slow")
_OF_SENSORS = {
    "camera-stops": (_SLOW, ("CAM_BACK:",), CAMERA_DETECT_S),
    "cameras-stop": (_STOP, ("CAM_*: all silent", "CAM_FRONT:"), DETECT_S),
    "frozen": (_SLOW, ("CAM_FRONT: ",), CAMERA_DETECT_S),
    "stamps-back": (_STOP, ("odometry: ",), DETECT_S),
    "stamps-forward": (_STOP, ("odometry: ",), DETECT_S),
    "imu-nan": (_SLOW, ("imu: ",), CAMERA_DETECT_S),
    "odometry-stops": (_STOP, ("odometry: ",), DETECT_S),
    "garbage-jpeg": (_SLOW, ("CAM_FRONT_LEFT: ",), CAMERA_DETECT_S),
    "resolution": (_SLOW, ("CAM_FRONT: ",), CAMERA_DETECT_S),
}
FAULTS = {
    **{name: Fault(name, *_spoil(name), *_OF_SENSORS[name]) for name in SENSOR_FAULTS},
    "policy-killed": Fault(
        "policy-killed", *_signal(interface.DRIVER, signal.SIGKILL), _STOP, ("driver: ",), ends=interface.DRIVER
    ),
    "policy-blocked": Fault(
        "policy-blocked", *_signal(interface.DRIVER, signal.SIGUSR1), _STOP, ("policy: ",), DETECT_S + 0.15, 2.5
    ),
    "control-paused": Fault(
        "control-paused", _pause, _go_on, _STOP, ("control loop paused",), CAMERA_DETECT_S + 0.2, 1.0
    ),
    "cpu-starved": Fault("cpu-starved", _starve, _feed, ("stop", "slow", "go on"), (), seconds=4.0),
    "driver-sigint": Fault(
        "driver-sigint", *_signal(interface.DRIVER, signal.SIGINT), _STOP, ("SIGINT",), ends=interface.DRIVER
    ),
    "driver-sigterm": Fault(
        "driver-sigterm", *_signal(interface.DRIVER, signal.SIGTERM), _STOP, ("SIGTERM",), ends=interface.DRIVER
    ),
    "control-sigint": Fault(
        "control-sigint", *_signal(interface.CONTROL, signal.SIGINT), _STOP, ("SIGINT",), ends=interface.CONTROL
    ),
    "control-sigterm": Fault(
        "control-sigterm", *_signal(interface.CONTROL, signal.SIGTERM), _STOP, ("SIGTERM",), ends=interface.CONTROL
    ),
    "e-stop": Fault("e-stop", _press, _release, _STOP, ("emergency stop",)),
}


def inject(stack: Stack, fault: Fault, rng: np.random.Generator) -> Verdict:
    """One fault at a random moment of the drive, from a car that moves to one that moves again."""
    supervisor = stack.supervisor
    stack.drive_off()
    supervisor.hear(float(rng.uniform(0.2, 1.5)))
    if supervisor.state != "OK":
        raise InputError(fault.name, "state before it", supervisor.status.message, "a car that drives, state OK")
    for kept in (supervisor.states, supervisor.truth, supervisor.diagnostics):
        del kept[:-1]
    begun = fault.begin(stack)
    at_s = time.monotonic()
    try:
        if fault.seconds:
            supervisor.hear(fault.seconds)
        else:
            supervisor.until(lambda: _at_rest(supervisor, at_s), LONGEST_S)
    finally:
        fault.end(stack, begun)
    supervisor.hear(HEARD_S)
    if supervisor.state != "OK":
        supervisor.until(lambda: _at_rest(supervisor, at_s), LONGEST_S)
    limits = Limits(detect_s=fault.detect_s, **SAMPLE_LIMITS)
    ticks = [tick_of(heard) for heard in supervisor.states]
    said = [tick.cause for tick in ticks]
    said += [status.message for heard in supervisor.diagnostics for status in heard.message.status]
    times_s, speeds_mps = motion_of(supervisor.truth)
    verdict = judge(at_s, ticks, times_s, speeds_mps, limits, fault.may, fault.words, said)
    return Verdict(**vars(verdict) | {"unsafe": (*verdict.unsafe, *_afterwards(stack, fault))})


def _at_rest(supervisor: Supervisor, at_s: float) -> bool:
    """It stands, or has gone slowly for long enough to be sure that it does."""
    slow = time.monotonic() - at_s > SLOW_S and supervisor.state == "DEGRADED"
    return slow or abs(supervisor.speed_mps) < 0.02


def _afterwards(stack: Stack, fault: Fault) -> list[str]:
    """What is wrong once the fault is over: who ended, what moved without being asked to."""
    supervisor, unsafe = stack.supervisor, []
    stopped = abs(supervisor.speed_mps) < 0.02
    if fault.ends:
        supervisor.until(lambda: stack.processes[fault.ends].poll() is not None, 20.0)
    for node, process in stack.processes.items():
        if (process.poll() is not None) != (node == fault.ends):
            unsafe.append(f"{node} {'ended' if process.poll() is not None else 'did not end'}")
        elif fault.ends == node and fault.name != "policy-killed" and process.poll():
            unsafe.append(f"{node} ended with status {process.poll()}")
        if "Traceback" in stack.log(node).read_text():
            unsafe.append(f"{node} crashed")
    stack.ensure()
    if not stopped:
        return unsafe  # it goes on, or went slowly: nothing is latched
    unsafe += _stays(supervisor, "the fault was over")
    engaged = fault.name not in RESTARTED and not supervisor.engage().startswith(("reset", "the car is STOPPING"))
    end_s = time.monotonic() + 20.0
    while supervisor.reset() and time.monotonic() < end_s:
        supervisor.hear(0.2)  # it is refused while anything is wrong
    return unsafe + ["was engaged without a reset"] * engaged + _stays(supervisor, "a reset")


def _stays(supervisor: Supervisor, when: str) -> list[str]:
    """Whether the car moves without an engage."""
    supervisor.truth.clear()
    supervisor.hear(STAYS_S)
    return [f"moved without an engage after {when}"] * bool(max(motion_of(supervisor.truth)[1], default=0.0) > 0.05)


def tick_of(heard: Heard) -> Tick:
    (status,) = heard.message.status
    values = {pair.key: pair.value for pair in status.values}
    state, _, cause = status.message.partition(": ")
    ages = (float(values.get(name, "inf")) for name in ("plan_age_ms", "odometry_age_ms"))
    return Tick(heard.at_s, state, cause, values["moving"] == "True", *ages)


def motion_of(truth: list[Heard]) -> tuple[np.ndarray, np.ndarray]:
    """(when it came [n], speed [n])."""
    speeds = [heard.message.twist.twist.linear.x for heard in truth]
    return np.array([heard.at_s for heard in truth]), np.array(speeds)


class Campaign:
    """Stacks of processes, one after the other: each lasts until its route comes to an end, or it can't drive on."""

    def __init__(self, folder: Path, domain: int, seed: int, say: Callable[[str], None]):
        self._folder, self._domain, self._say = folder, domain, say
        self._rng = np.random.default_rng(seed)
        self._stack: Stack | None = None
        self.not_begun = 0
        expert_route(SCENARIO, SPEED_MPS, folder / ROUTE)
        self._line = OpenLine(read_route(folder / ROUTE).xy_m)

    def run(self, names: list[str], times: int) -> list[dict]:
        """Every fault so many times, a row each."""
        rows: list[dict] = []
        try:
            for name in names * times:
                verdict = self._one(FAULTS[name])
                rows.append({"fault": name, **vars(verdict)})
                how = f"{verdict.state} after {verdict.detect_s:.2f} s, {verdict.cause[:70]}"
                self._say(f"{name}: {how}: {'; '.join(verdict.unsafe) or 'safe'}")
        finally:
            self._end()
        return rows

    def _one(self, fault: Fault) -> Verdict:
        for attempt in range(TRIES):
            try:
                return inject(self._running(), fault, self._rng)
            except InputError as error:
                # Not the fault's doing: the machine was too busy for the car to drive off. Counted, and tried again.
                self._say(f"{fault.name}: not begun: {str(error)[:200]}")
                self.not_begun += 1
                self._end()
                if attempt == TRIES - 1:
                    raise
        raise AssertionError

    def _running(self) -> Stack:
        if self._stack is not None and self._left_m() < ROUTE_END_M:
            self._end()
        if self._stack is None:
            given = {
                interface.SIM: {"scenario": SCENARIO, "empty": "true", **IMAGE},
                interface.DRIVER: {
                    "policy": "repeat",
                    "route_file": self._folder / ROUTE,
                    "plan_rate_hz": 10.0,
                    **IMAGE,
                },
            }
            self._stack = Stack(self._folder, self._domain, given, {interface.DRIVER: "faulty_driver"})
        return self._stack

    def _left_m(self) -> float:
        at = self._stack.supervisor.truth[-1].message.pose.pose.position
        return self._line.length_m - float(self._line.project(np.array([at.x, at.y])).s_m)

    def _end(self) -> None:
        if self._stack is not None:
            self._stack.close()
            self._stack = None


def figures(rows: list[dict]) -> dict[str, float]:
    """What `vla bench ros` says of a campaign."""
    found = {"faults.injected": float(len(rows)), "faults.unsafe": float(sum(bool(row["unsafe"]) for row in rows))}
    for name in dict.fromkeys(row["fault"] for row in rows):
        mine = [row for row in rows if row["fault"] == name]
        noticed = [row["detect_s"] for row in mine if np.isfinite(row["detect_s"])]
        found[f"faults.{name}.injected"] = float(len(mine))
        found[f"faults.{name}.unsafe"] = float(sum(bool(row["unsafe"]) for row in mine))
        if noticed:
            found[f"faults.{name}.detect_ms.max"] = 1000 * max(noticed)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m vla_drive_ros.campaign", description=__doc__.splitlines()[0])
    parser.add_argument("--fault", action="append", help="only this one; may be repeated")
    parser.add_argument("--times", type=int, default=10, help="how often each (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="a row for each fault injected")
    options = parser.parse_args()
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:6.1f} s] {text}", file=sys.stderr, flush=True)

    try:
        names = options.fault or list(FAULTS)
        for name in names:
            if name not in FAULTS:
                raise unknown_name("--fault", "name", name, FAULTS)
        with tempfile.TemporaryDirectory(prefix="vla-campaign-") as folder:
            rows = Campaign(Path(folder), 1 + os.getpid() % 100, options.seed, say).run(names, options.times)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    kept = [{k: None if v != v else v for k, v in row.items()} for row in rows]
    write_json(options.json, {"rows": kept, "figures": figures(rows)})
    return 1 if any(row["unsafe"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
