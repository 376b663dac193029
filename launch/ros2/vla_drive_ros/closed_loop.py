"""The shipped policy drives over topics, three processes and DDS between them, beside the same episode without ROS."""

import math
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from policies.rollout import drive_episode, quiet_env
from policies.vla_policy import SHIPPED, VlaPolicy
from sensors.camera import Camera
from sensors.errors import InputError
from sensors.nuscenes_source import CAMERAS
from sensors.ros2_messages import OdometrySample, time_us_from_stamp
from sensors.ros2_source import ClipAssembler, Limits, StaleInput
from sim.metrics.protocols import figures_of_file, score
from sim.rollout_log import read_episode
from sim.scenarios import get_scenario
from sim.sensing import EXPOSURE_BEFORE_US
from vla_drive_ros import interface
from vla_drive_ros.campaign import tick_of
from vla_drive_ros.stack import Stack
from vla_drive_ros.start import TOWN_MPS
from vla_drive_ros.supervisor import CONFIG, Heard, Supervisor

SCENARIO, LEAST_M = "town-val/2", 300.0
SCORES = {"carla": "carla_2_1.driving_score", "nuplan": "nuplan.score", "plain": "route_completion"}
CPU_OF = (interface.SIM, interface.DRIVER, interface.CONTROL)
LONGEST_S = 280.0


def closed_loop_figures(folder: Path, domain: int, say: Callable[[str], None]) -> dict[str, float]:
    """Latency, rates, processor time and scores of one drive. A machine too busy to drive on stops the car; as a safety
    driver would, one waits, resets and engages again, and the stops are counted."""
    policy, scenario = VlaPolicy(SHIPPED, patience_s=math.inf), get_scenario(SCENARIO)  # as the driver node has it
    env = quiet_env(policy.image_size, None, scenario, seen=True)
    try:
        without = drive_episode(policy, env, scenario)
    finally:
        env.close()
    run = folder / "run"
    figures = _over_topics(policy.image_size, folder, run, domain, say)
    (path,) = (run / "episodes").glob("*.npz")
    for protocol, name in SCORES.items():
        scale = 1.0 if name.startswith("carla") else 100.0
        ours = {key: value for key, (value, *_) in figures_of_file(path, (protocol,))[1].items()}[name]
        theirs = score([without], (protocol,))[name][0]
        figures[f"score.{protocol}.ros"], figures[f"score.{protocol}.without"] = scale * ours, scale * theirs
        figures[f"score.{protocol}.difference"] = scale * (ours - theirs)
    aside_m = _apart(read_episode(path).ego_xyyaw_in_world, without.ego_xyyaw_in_world)
    return figures | {"drive.apart_m.max": float(aside_m.max())}


def _over_topics(
    image_size: tuple[int, int], folder: Path, run: Path, domain: int, say: Callable[[str], None]
) -> dict[str, float]:
    sim = {"scenario": SCENARIO, "out": run, "image_width": image_size[0], "image_height": image_size[1]}
    given = {interface.SIM: sim, interface.DRIVER: {"policy": "vla"}, interface.CONTROL: {"max_speed_mps": TOWN_MPS}}
    stack = Stack(folder, domain, given, files=(CONFIG / "sim.yaml",))
    supervisor, processes = stack.supervisor, stack.processes
    try:
        supervisor.engage_within(60.0)
        for kept in (
            supervisor.states,
            supervisor.truth,
            supervisor.commands,
            supervisor.plans,
            supervisor.diagnostics,
        ):
            kept.clear()
        before, used = {node: _cpu_s(processes[node].pid) for node in CPU_OF}, {}
        while processes[interface.SIM].poll() is None and _seconds(supervisor.truth) < LONGEST_S:
            supervisor.hear(0.5)
            alive = [node for node in CPU_OF if processes[node].poll() is None]
            used |= {node: _cpu_s(processes[node].pid) - before[node] for node in alive}
            there = time.monotonic() - supervisor.truth[-1].at_s < 1.0
            if supervisor.state == "STOPPED" and there:
                say(f"stopped: {supervisor.status.message}; reset and engaged")
                stack.drive_off()
    finally:
        stack.close()
    seconds = _seconds(supervisor.truth)
    figures = {f"cpu_percent.{node}": 100 * s / seconds for node, s in used.items()}
    return figures | _heard(supervisor, seconds)


def _heard(supervisor: Supervisor, seconds: float) -> dict[str, float]:
    """What the messages of a drive tell, as long as the car was there."""
    end_s = supervisor.truth[-1].at_s
    ticks = [tick_of(heard) for heard in supervisor.states if heard.at_s <= end_s]
    commands = [heard.message.header.stamp for heard in supervisor.commands if heard.at_s <= end_s]
    commands_us = np.array([time_us_from_stamp(stamp) for stamp in commands])
    driven = [tick for tick in ticks if tick.moving]
    ages = np.array([tick.plan_age_ms for tick in driven])
    latency_ms = ages[1:][np.diff(ages) < 0]  # the first command from each new plan
    at_m = np.array([(p.x, p.y) for p in (heard.message.pose.pose.position for heard in supervisor.truth)])
    values = [
        (status.name, pair.key, float(pair.value))
        for heard in supervisor.diagnostics
        if heard.at_s <= end_s
        for status in heard.message.status
        for pair in status.values
        if pair.key in ("rate_hz", "watch_gap_ms.max", "loop_gap_ms.max")
    ]
    gaps = [value for _, key, value in values if key.endswith("gap_ms.max")]
    rates = {}
    for name in (*CAMERAS, "imu", "odometry"):
        mine = [value for status, key, value in values if key == "rate_hz" and status.endswith(f": {name}")]
        rates[f"rate_hz.{name.lower()}"] = float(np.median(mine))
    stops = sum(a.moving and b.state == "STOPPING" for a, b in pairwise(ticks))
    return {
        "latency_ms.p50": float(np.percentile(latency_ms, 50)),
        "latency_ms.p99": float(np.percentile(latency_ms, 99)),
        "watchdog_gap_ms.max": max(gaps),
        "command_gap_ms.max": float(np.diff(commands_us).max()) / 1000,
        "rate_hz.command": len(commands) / seconds,
        "rate_hz.plan": len(supervisor.plans) / seconds,
        **rates,
        "drive.distance_m": float(np.hypot(*np.diff(at_m, axis=0).T).sum()),
        "drive.stops": float(stops),
        "drive.seconds": seconds,
        "drive.degraded_share": sum(tick.state == "DEGRADED" for tick in driven) / max(len(driven), 1),
    }


def _seconds(heard: list[Heard]) -> float:
    return heard[-1].at_s - heard[0].at_s if len(heard) > 1 else 0.0


def _cpu_s(pid: int) -> float:
    """Processor time of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _apart(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """How far each point of one way [F, 3] lies beside the other."""
    return np.array([np.hypot(*(theirs[:, :2] - at).T).min() for at in ours[:, :2]])


def complete_sets(seconds: float = 120.0, rate_hz: float = 12.0, lost: float = 0.02, seed: int = 0) -> float:
    """Share of clips whose newest step shows all six cameras, where they fire in turn and lose pictures by chance.

    A camera that lost one is masked only if no other set in the last quarter of a second is more complete.
    """
    cameras = tuple(Camera(name, 8, 6, np.eye(3), np.eye(4)) for name in CAMERAS)
    assembler, rng = ClipAssembler(cameras, 1, Limits(min_cameras=1)), np.random.default_rng(seed)
    start_us, period_us, image = 10_000_000, round(1e6 / rate_hz), np.zeros((6, 8, 3), np.uint8)
    sent = [
        (start_us + k * period_us - int(before_us), name)
        for k in range(1, round(seconds * rate_hz))
        for name, before_us in zip(CAMERAS, EXPOSURE_BEFORE_US, strict=True)
        if rng.random() >= lost
    ]
    odometry = range(start_us - 200_000, sent[-1][0], 20_000)
    plans = range(start_us + 500_000, sent[-1][0], 100_000)
    events = [*((t, 0, name) for t, name in sent), *((t, 1, "") for t in odometry), *((t, 2, "") for t in plans)]
    complete = []
    for time_us, kind, name in sorted(events):
        if kind == 0:
            assembler.images[name].add(time_us, image, time_us, time_us)
        elif kind == 1:
            sample = OdometrySample(time_us, np.eye(4), 0.0, 0.0, "map")
            assembler.odometry.add(time_us, sample, time_us, time_us)
        else:
            try:
                complete.append(assembler.clip(time_us, time_us).image_mask[-1].all())
            except StaleInput:
                complete.append(False)
    return float(np.mean(complete))


def check_length(figures: dict[str, float]) -> None:
    """An InputError where the car did not drive far enough for the figures to mean anything."""
    if figures["drive.distance_m"] < LEAST_M:
        fix = "The machine is too busy; /diagnostics named the cause."
        raise InputError("closed loop", "distance", f"{figures['drive.distance_m']:.0f} m", f"{LEAST_M:.0f} m", fix)
