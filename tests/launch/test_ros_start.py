"""`vla ros drive|sim|replay|ask`: what they start, and what they refuse; with -m ros, a drive from the command line."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from policies.cli import main
from policies.ros_nodes import node_command
from sensors.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
HAS_ROS = importlib.util.find_spec("rclpy") is not None


def test_without_ros_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["ros", "sim"]) == 2
    said = capsys.readouterr().err
    assert "rclpy: came nothing" in said
    assert "pip install" in said


def test_command_finds_the_package_of_a_checkout(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    command, environment = node_command("start", "sim", "--engage")
    assert command == [sys.executable, "-m", "vla_drive_ros.start", "sim", "--engage"]
    assert str(ROOT / "launch" / "ros2") in environment["PYTHONPATH"].split(os.pathsep)


def test_options_reach_the_program(monkeypatch):
    became = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(os, "execve", lambda program, command, environment: became.append(command[3:]))
    main(["ros", "sim", "--scenario", "town-val/2", "--engage", "--set", "control_node.stop_mps2=1.0"])
    main(["ros", "drive", "--calibration", "car.json", "--policy", "repeat", "--route-file", "r.json", "--control"])
    main(["ros", "ask", "reset"])
    sim, drive, ask = became
    assert sim[0] == "sim"
    assert {"--scenario", "town-val/2", "--engage", "--set", "control_node.stop_mps2=1.0"} <= set(sim)
    assert "--empty" not in sim
    assert drive[0] == "drive"
    assert {"--calibration", "car.json", "--policy", "repeat", "--route-file", "r.json", "--control"} <= set(drive)
    assert ask == ["ask", "reset"]


def vla(*words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "policies.cli", "ros", *words]
    environment = os.environ | {"ROS_DOMAIN_ID": str(1 + os.getpid() % 100), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT)


@pytest.mark.ros
@pytest.mark.skipif(not HAS_ROS, reason="rclpy is not installed: pip install -e '.[ros]'")
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["sim", "--scenario", "town-smok/0"], "Did you mean town-smoke"),
        (["sim", "--set", "contro_node.stop_mps2=1"], "Did you mean control_node"),
        (["sim", "--set", "control_node.stop=1"], "Did you mean stop_mps2"),
        (["drive", "--calibration", "nowhere.json", "--policy", "repeat"], "route_file"),
    ],
)
def test_refuses(words, complaint):
    process = vla(*words)
    said, _ = process.communicate(timeout=110)
    assert process.returncode == 2, said
    assert complaint in said


@pytest.mark.ros
@pytest.mark.timeout(300)
@pytest.mark.skipif(not HAS_ROS, reason="rclpy is not installed: pip install -e '.[ros]'")
def test_sim_engages_drives_and_ends_in_order(tmp_path):
    process = vla("sim", "--empty", "--engage", "--out", str(tmp_path / "run"), "--set", "driver_node.image_width=64")
    said = ""
    for line in process.stdout:
        said += line
        if re.search(r"control_node: control: (OK|DEGRADED|STOPPING)", line):
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said + rest
    assert (tmp_path / "run" / "summary.json").exists()


def test_ask_is_refused_an_unknown_wish():
    with pytest.raises((SystemExit, InputError)):
        main(["ros", "ask", "fly"])
