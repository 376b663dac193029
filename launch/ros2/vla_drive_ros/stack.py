"""The simulated car, the driver and control as processes with one folder of logs: for the fault campaign and tests."""

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from policies.repeat import TaughtRoute
from policies.rollout import drive_episode, quiet_env
from policies.runs import write_json
from policies.town_expert import TownExpert
from sensors.errors import InputError
from sim.scenarios import get_scenario
from vla_drive_ros import interface
from vla_drive_ros.supervisor import STARTS_WITHIN_S, Supervisor, clear_segments, end, spawn

CALIBRATION, ROUTE = "car.json", "route.json"
HEALTHY_WITHIN_S = 60.0


def expert_route(scenario: str, max_speed_mps: float, path: Path) -> None:
    """Have the expert drive a scenario without anybody else, since who repeats a drive looks at nobody, and write its
    way as a route to repeat."""
    empty = replace(get_scenario(scenario), vehicles=0, walkers=0)
    env = quiet_env((64, 36), None, empty, seen=False)
    try:
        log = drive_episode(TownExpert(), env, empty)
    finally:
        env.close()
    write_json(path, TaughtRoute.of_track(log.ego_xyyaw_in_world[:, :2], max_speed_mps).to_json())


class Stack:
    """Starts all three; `close` ends them. `modules` puts another module in a node's place; `given` sets parameters,
    and so do `files`, as `spawn` has it."""

    def __init__(
        self,
        folder: Path,
        domain: int,
        given: dict[str, dict[str, object]],
        modules: dict[str, str] | None = None,
        files: Sequence[Path] = (),
    ):
        self.folder, self.domain, self._modules, self._files = folder, domain, modules or {}, files
        self._given = {
            interface.SIM: {"calibration_file": folder / CALIBRATION},
            interface.DRIVER: {"calibration_file": folder / CALIBRATION, "use_sim_time": "true"},
            interface.CONTROL: {"use_sim_time": "true"},
        }
        for node, parameters in given.items():
            self._given[node] = self._given[node] | parameters
        self.processes: dict[str, subprocess.Popen] = {}
        self.supervisor = Supervisor(domain)
        try:
            (folder / CALIBRATION).unlink(missing_ok=True)
            for node in self._given:
                self.start(node)
            self._until(lambda: (folder / CALIBRATION).exists(), "the car's calibration file")
            self.supervisor.bring_up(interface.DRIVER, interface.CONTROL)
        except BaseException:
            self.close()
            raise

    def start(self, node: str) -> None:
        module = self._modules.get(node, node)
        self.processes[node] = spawn(module, self._given[node], self.log(node), self.domain, self._files)

    def log(self, node: str) -> Path:
        return self.folder / f"{node}.log"

    def ensure(self) -> list[str]:
        """Start again whatever has ended, and bring it up; their names."""
        ended = [node for node, process in self.processes.items() if process.poll() is not None]
        if ended:
            clear_segments()
        for node in ended:
            self.start(node)
        self.supervisor.bring_up(*ended)
        return ended

    def drive_off(self, seconds: float = HEALTHY_WITHIN_S) -> None:
        """Reset what is latched, engage, and wait until the car moves."""
        supervisor, end_s = self.supervisor, time.monotonic() + seconds
        while supervisor.state != "OK" and (why := supervisor.reset()):
            if time.monotonic() > end_s:
                raise InputError(interface.CONTROL, "reset", why, f"a car that may be reset within {seconds:.0f} s")
            supervisor.hear(0.2)
        if supervisor.state != "OK":
            supervisor.engage_within(max(1.0, end_s - time.monotonic()))
            supervisor.hear(0.2)  # until its state is heard
        self._until(lambda: supervisor.speed_mps > 3.0 or supervisor.state == "STOPPED", "a car that moves")
        if supervisor.state == "STOPPED":
            raise InputError(interface.CONTROL, "state", supervisor.status.message, "a car that moves")

    def _until(self, done, what: str) -> None:
        end_s = time.monotonic() + STARTS_WITHIN_S
        while not self.supervisor.until(done, 0.5):
            dead = [node for node, process in self.processes.items() if process.poll() is not None]
            if dead or time.monotonic() > end_s:
                said = {node: self.log(node).read_text()[-500:] for node in dead}
                raise InputError("stack", what, f"nothing; ended: {json.dumps(said)}", f"it within {STARTS_WITHIN_S} s")

    def close(self) -> dict[str, int]:
        """Their exit statuses."""
        self.supervisor.close()
        return dict(zip(self.processes, end(list(self.processes.values()), signal.SIGINT), strict=True))
