"""Several nodes as plain processes, brought up and watched until one ends or a signal comes: what `vla ros` runs.

python -m vla_drive_ros.start sim --policy constant-velocity --engage
"""

import argparse
import queue
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from sensors.errors import InputError, unknown_name
from vla_drive_ros import interface
from vla_drive_ros.supervisor import CONFIG, STARTS_WITHIN_S, Supervisor, end, spawn

WISHES = {
    "engage": lambda supervisor: supervisor.engage(),
    "disengage": lambda supervisor: supervisor.engage(False),
    "reset": lambda supervisor: supervisor.reset(),
    "emergency-stop": lambda supervisor: supervisor.press_within(STARTS_WITHIN_S, True),
    "release": lambda supervisor: supervisor.press_within(STARTS_WITHIN_S, False),
}
TOWN_MPS = 20.0  # a town's roads are faster than what a car may drive at first
PARAMETERS = {
    interface.DRIVER: interface.DRIVER_PARAMETERS,
    interface.CONTROL: interface.CONTROL_PARAMETERS,
    interface.SIM: interface.SIM_PARAMETERS,
    interface.REPLAY: interface.REPLAY_PARAMETERS,
}


def nodes_of(options: argparse.Namespace, calibration: Path) -> dict[str, dict[str, object]]:
    """The nodes that a command starts, in order, and what it sets of their parameters; "" where nothing is."""
    text = {name: str(getattr(options, name) or "") for name in ("policy", "checkpoint", "route_file")}
    driver = {interface.DRIVER: text | {"calibration_file": calibration}}
    if options.what == "drive":
        return driver | ({interface.CONTROL: {}} if options.control else {})
    if options.what == "sim":
        empty = {"empty": "true"} if options.empty else {}
        sim = {"scenario": options.scenario, "out": options.out or "", "calibration_file": calibration, **empty}
        return {interface.SIM: sim, **driver, interface.CONTROL: {"max_speed_mps": TOWN_MPS}}
    replay = {"dataroot": options.dataroot, "version": options.version, "scene": options.scene, "rate": options.rate}
    return {interface.REPLAY: replay | {"calibration_file": calibration, "start_delay_s": 15.0}, **driver}


def with_settings(nodes: dict[str, dict[str, object]], settings: list[str]) -> dict[str, dict[str, object]]:
    """The nodes with what --set says; an unknown node or parameter is an InputError that names the nearest."""
    nodes = {node: dict(parameters) for node, parameters in nodes.items()}
    for setting in settings:
        name, equals, value = setting.partition("=")
        node, _, parameter = name.partition(".")
        if node not in nodes:
            raise unknown_name("--set", "node", node, nodes)
        known = {p.name: p.default for p in PARAMETERS[node]}
        if not equals or parameter not in known:
            raise unknown_name("--set", f"parameter of {node}", parameter, known)
        whole = isinstance(known[parameter], float) and value.lstrip("-").isdecimal()
        nodes[node][parameter] = f"{value}.0" if whole else value  # ROS takes no whole number for another
    return nodes


def start(options: argparse.Namespace) -> int:
    """Start, bring up, say what happens; the worst exit status of the nodes."""
    ends: queue.SimpleQueue[str] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda came, _: ends.put(signal.Signals(came).name))
    with tempfile.TemporaryDirectory(prefix="vla-ros-") as folder:
        calibration = options.calibration if options.what == "drive" else Path(folder) / "car.json"
        nodes = with_settings(nodes_of(options, calibration), options.set)
        files = [] if options.what == "drive" else [CONFIG / f"{options.what}.yaml"]
        processes: dict[str, subprocess.Popen] = {}
        supervisor = Supervisor()
        try:
            for node, given in nodes.items():
                processes[node] = spawn(node, given, files=files)
            if options.what != "drive":  # the car writes where its cameras sit
                supervisor.until(lambda: calibration.exists() or _ended(processes) or not ends.empty(), STARTS_WITHIN_S)
            if not _ended(processes) and ends.empty():
                supervisor.bring_up(*(node for node in (interface.DRIVER, interface.CONTROL) if node in nodes))
                if options.what == "sim" and options.engage:
                    supervisor.engage_within(STARTS_WITHIN_S)
                _watch(supervisor, processes, ends)
        finally:
            supervisor.close()
            statuses = end(list(processes.values()))
    return max(abs(status) for status in statuses)


def _watch(supervisor: Supervisor, processes: dict[str, subprocess.Popen], ends: queue.SimpleQueue) -> None:
    """Say each change of what control and driver say, until a node ends or a signal comes."""
    told: dict[str, str] = {}
    while not _ended(processes) and ends.empty():
        supervisor.hear(0.2)
        for status in (status for heard in supervisor.diagnostics for status in heard.message.status):
            if status.name.endswith((": control", ": plan")) and told.get(status.name) != status.message:
                told[status.name] = status.message
                print(f"{status.name}: {status.message}", flush=True)
        supervisor.forget()


def _ended(processes: dict[str, subprocess.Popen]) -> list[str]:
    return [node for node, process in processes.items() if process.poll() is not None]


def ask(wish: str) -> int:
    """One wish to the control node that runs; status 1 and its reason where it refuses."""
    supervisor = Supervisor()
    try:
        refusal = WISHES[wish](supervisor)
    finally:
        supervisor.close()
    print(f"{wish}: {refusal or 'done'}")
    return 1 if refusal else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vla ros")
    commands = parser.add_subparsers(dest="what", required=True)
    for what in ("drive", "sim", "replay"):
        sub = commands.add_parser(what)
        for name in ("policy", "checkpoint", "route-file"):
            sub.add_argument(f"--{name}", default="")
        sub.add_argument("--set", action="append", default=[])
        for name, kind in {
            "drive": {"calibration": Path, "control": None},
            "sim": {"scenario": str, "out": Path, "empty": None, "engage": None},
            "replay": {"dataroot": Path, "version": str, "scene": str, "rate": float},
        }[what].items():
            given = {"action": "store_true"} if kind is None else {"type": kind, "default": "" if kind is str else None}
            sub.add_argument(f"--{name}", **given)
    commands.add_parser("ask").add_argument("wish", choices=WISHES)
    return parser


def main() -> int:
    options = _parser().parse_args()
    try:
        return ask(options.wish) if options.what == "ask" else start(options)
    except InputError as error:
        print(f"vla ros {options.what}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
