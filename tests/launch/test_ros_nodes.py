"""Real nodes in processes of their own, over DDS on loopback, with the [ros] extra. Those that time run with -m ros."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_scene import HEIGHT, SPEED_MPS, START_US, WIDTH, pose_at
from vla_drive_ros import interface

from sensors import ros2_topics
from sensors.ros2_messages import time_us_from_stamp
from vla.checkpoint import save
from vla.config import ModelConfig
from vla.model import DrivingModel

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed: pip install -e '.[ros]'")
diagnostic_msgs = pytest.importorskip("diagnostic_msgs.msg")
lifecycle = pytest.importorskip("lifecycle_msgs.msg")
lifecycle_srv = pytest.importorskip("lifecycle_msgs.srv")
nav_msgs = pytest.importorskip("nav_msgs.msg")
rcl_interfaces = pytest.importorskip("rcl_interfaces.msg")
rcl_srv = pytest.importorskip("rcl_interfaces.srv")

# lark, which the message wheels load
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")
ROOT = Path(__file__).resolve().parents[2]
DOMAIN = 1 + os.getpid() % 100  # one a test process, so that two runs on one machine do not hear each other
START_DELAY_S = 3.0
CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4
AGE_LIMIT_S = 0.2 + 0.25  # odometry's, and one planning period at 5 Hz with some room for the machine


def start(node: str, log: Path, *parameters: str) -> subprocess.Popen:
    paths = [str(ROOT), str(ROOT / "launch" / "ros2")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "ROS_DOMAIN_ID": str(DOMAIN),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "FASTDDS_DEFAULT_PROFILES_FILE": str(ROOT / "launch" / "ros2" / "config" / "fastdds_shm.xml"),
        "OMP_NUM_THREADS": "1",
    }
    words = [word for parameter in parameters for word in ("-p", parameter)]
    command = [sys.executable, "-m", f"vla_drive_ros.{node}", "--ros-args", *words]
    with open(log, "w") as file:
        return subprocess.Popen(command, env=environment, cwd=log.parent, stdout=file, stderr=subprocess.STDOUT)


class Observer:
    """A node of the test: keeps all plans (with when they came) and diagnostics, calls services."""

    def __init__(self):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=DOMAIN)
        self.node = rclpy.create_node("observer", context=self.context)
        self.executor = rclpy.executors.SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.paths: list[tuple[float, nav_msgs.Path]] = []
        self.statuses: list[diagnostic_msgs.DiagnosticStatus] = []
        topic = f"/{interface.DRIVER}/output/trajectory"
        self.node.create_subscription(nav_msgs.Path, topic, lambda m: self.paths.append((time.monotonic(), m)), 10)
        self.node.create_subscription(
            diagnostic_msgs.DiagnosticArray, interface.DIAGNOSTICS, lambda m: self.statuses.extend(m.status), 100
        )

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def spin(self, seconds: float) -> None:
        self.until(lambda: False, seconds)

    def until(self, done: Callable[[], object], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.05)
            if done():
                return True
        return False

    def call(self, kind, name: str, request, seconds: float = 30.0):
        client = self.node.create_client(kind, name)
        assert client.wait_for_service(seconds), f"{name} does not answer"
        future = client.call_async(request)
        assert self.until(future.done, seconds), f"{name} gave no answer"
        self.node.destroy_client(client)
        return future.result()

    def change(self, transition: int) -> bool:
        request = lifecycle_srv.ChangeState.Request(transition=lifecycle.Transition(id=transition))
        return self.call(lifecycle_srv.ChangeState, f"/{interface.DRIVER}/change_state", request).success

    def mute(self, cameras: str):
        value = rcl_interfaces.ParameterValue(type=rcl_interfaces.ParameterType.PARAMETER_STRING, string_value=cameras)
        request = rcl_srv.SetParameters.Request(parameters=[rcl_interfaces.Parameter(name="muted", value=value)])
        (result,) = self.call(rcl_srv.SetParameters, f"/{interface.REPLAY}/set_parameters", request).results
        return result

    def said(self, name: str, text: str, seconds: float) -> bool:
        """Whether a status called `name` that contains `text` comes from now on."""
        since = len(self.statuses)
        return self.until(
            lambda: any(s.name.endswith(name) and text in s.message for s in self.statuses[since:]), seconds
        )

    def heard_before(self, text: str) -> bool:
        return any(text in status.message for status in self.statuses)


@contextmanager
def running(folder: Path, dataroot: Path, *driver: str) -> Iterator[tuple]:
    """(observer, driver process, replay process); whatever still runs at the end is killed."""
    observer = Observer()
    calibration = f"calibration_file:={folder / 'car.json'}"
    replay = start(
        "replay_node",
        folder / "replay.log",
        f"dataroot:={dataroot}",
        "version:=v1.0-test",
        calibration,
        f"start_delay_s:={START_DELAY_S}",
    )
    size = (f"image_width:={WIDTH}", f"image_height:={HEIGHT}")
    drive = start("driver_node", folder / "driver.log", calibration, "use_sim_time:=true", *size, *driver)
    try:
        yield observer, drive, replay
    finally:
        observer.close()
        for process in (drive, replay):
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        for name in ("driver", "replay"):
            print(f"--- {name}\n{(folder / f'{name}.log').read_text()}")


def activate(observer: Observer) -> None:
    assert observer.change(CONFIGURE)
    assert observer.change(ACTIVATE)
    assert observer.until(lambda: len(observer.paths) >= 3, 20), [s.message for s in observer.statuses[-9:]]


def times_us(path) -> np.ndarray:
    stamps = [path.header.stamp, *(pose.header.stamp for pose in path.poses)]
    return np.array([time_us_from_stamp(stamp) for stamp in stamps])


@pytest.mark.ros
def test_plans_carry_the_clips_time_and_lie_where_the_car_will_be(tmp_path, fast_scene):
    with running(tmp_path, fast_scene) as (observer, _, _):
        assert observer.change(CONFIGURE)
        observer.spin(1.0)
        assert not observer.paths  # inactive
        assert observer.change(ACTIVATE)
        assert observer.until(lambda: len(observer.paths) >= 15, 20), [s.message for s in observer.statuses[-9:]]
        subscribed = dict(observer.node.get_subscriber_names_and_types_by_node(interface.DRIVER, "/"))
        published = dict(observer.node.get_publisher_names_and_types_by_node(interface.DRIVER, "/"))
        stamps = [times_us(path)[0] for _, path in observer.paths]
        assert (np.diff(stamps) > 0).all()
        for _, path in observer.paths:
            at_us = times_us(path)
            assert path.header.frame_id == "map"
            assert np.array_equal(np.diff(at_us), [500_000] * 8)
            assert START_US <= at_us[0] <= START_US + 25_000_000
            came = [[p.pose.position.x, p.pose.position.y] for p in path.poses]
            np.testing.assert_allclose(came, pose_at(at_us[1:])[:, :2, 3], atol=1e-3)
        for topic in ros2_topics.INPUTS:
            assert subscribed[topic.name] == [topic.type]
        for topic in interface.OUTPUTS:
            assert published[topic.name.replace("~", f"/{interface.DRIVER}")] == [topic.type]
        observer.until(lambda: sum(s.name.endswith(": CAM_BACK") for s in observer.statuses) >= 6, 8)
        rates = [float(v.value) for s in observer.statuses for v in s.values if v.key == "rate_hz" and "CAM_" in s.name]
        assert 8 <= np.median(rates[12:]) <= 12
        assert observer.change(DEACTIVATE)
        observer.spin(0.3)
        observer.paths.clear()
        observer.spin(1.5)
        assert not observer.paths
        assert observer.change(ACTIVATE)  # and again, from a clean slate
        assert observer.until(lambda: len(observer.paths) >= 3, 10)
        assert times_us(observer.paths[0][1])[0] > stamps[-1]


@pytest.mark.ros
def test_stopped_cameras_are_masked_and_too_few_stop_the_plans(tmp_path, fast_scene):
    with running(tmp_path, fast_scene) as (observer, _, _):
        activate(observer)
        assert not observer.mute("CAM_TOP").successful
        assert observer.mute("CAM_BACK").successful
        assert observer.said(": plan", "OK: masked: CAM_BACK", 5)
        assert observer.said(": CAM_BACK", "masked", 5)
        before = len(observer.paths)
        assert observer.until(lambda: len(observer.paths) >= before + 5, 5)
        assert observer.mute("CAM_BACK, CAM_FRONT_LEFT").successful
        assert observer.said(": plan", "STALE: cameras: 4 of 6 fresh, at least 5", 5)
        observer.spin(0.3)
        before = len(observer.paths)
        observer.spin(1.5)
        assert len(observer.paths) == before
        assert observer.mute("").successful
        assert observer.until(lambda: len(observer.paths) >= before + 5, 5)
        observer.said(": CAM_BACK", "", 3)
        assert [s.message for s in observer.statuses if s.name.endswith(": plan")][-1] == "OK"


@pytest.mark.ros
def test_no_plan_when_everything_stops_the_clock_too(tmp_path, fast_scene):
    with running(tmp_path, fast_scene) as (observer, _, replay):
        activate(observer)
        replay.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        assert observer.said(": plan", "STALE: odometry", 5)
        observer.spin(2.0)
        assert max(came for came, _ in observer.paths) <= stopped + AGE_LIMIT_S
        stamps = [times_us(path)[0] for _, path in observer.paths]
        assert (np.diff(stamps) > 0).all()
        replay.send_signal(signal.SIGCONT)
        before = len(observer.paths)
        assert observer.until(lambda: len(observer.paths) >= before + 3, 10)


@pytest.mark.ros
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_both_in_order(number, tmp_path, fast_scene):
    with running(tmp_path, fast_scene) as (observer, drive, replay):
        activate(observer)
        drive.send_signal(number)
        assert observer.until(lambda: drive.poll() is not None, 10)
        observer.spin(0.5)
        assert observer.heard_before(f"STOPPED: {number.name}")
        replay.send_signal(number)
        assert replay.wait(10) == 0
        assert drive.returncode == 0
        assert f"{number.name}: " in (tmp_path / "replay.log").read_text()
        assert "Traceback" not in (tmp_path / "driver.log").read_text() + (tmp_path / "replay.log").read_text()


@pytest.mark.ros
def test_a_checkpoint_drives(tmp_path, fast_scene):
    config = ModelConfig(image_width=WIDTH, image_height=HEIGHT)
    save(tmp_path / "checkpoint", DrivingModel(config))
    given = ("policy:=vla", f"checkpoint:={tmp_path / 'checkpoint'}", "plan_rate_hz:=2.0", "plan_age_limit_ms:=1500")
    with running(tmp_path, fast_scene, *given) as (observer, _, _):
        activate(observer)
        assert all(len(path.poses) == config.plan_steps for _, path in observer.paths)
        assert observer.said(": plan", "OK", 5)
        assert observer.said(": plan", "OK", 5)
        stages = {v.key: float(v.value) for s in observer.statuses if s.name.endswith(": plan") for v in s.values}
        assert min(stages[f"latency_{stage}_ms"] for stage in ("assemble", "see", "think", "plan", "age")) > 0


@pytest.mark.ros
@pytest.mark.parametrize(
    ("parameter", "complaint"),
    [
        ("calibration_file:=nowhere.json", "nowhere.json: file"),
        ("policy:=magic", "policy: came magic"),
        ("policy:=log", "policy: came log"),
        ("checkpoint:=nowhere", "checkpoint: came nowhere"),
        ("policy:=repeat", "route_file: came ''"),
        ("command:=fly", "command: came fly"),
    ],
)
def test_configure_rejects(parameter, complaint, tmp_path, fast_scene):
    with running(tmp_path, fast_scene, parameter) as (observer, drive, _):
        assert observer.until((tmp_path / "car.json").exists, 20)
        assert not observer.change(CONFIGURE)
        assert observer.said(": plan", complaint, 5)
        assert drive.poll() is None  # it may be mended and configured again


def test_parameter_out_of_range_is_refused_at_the_start(tmp_path):
    process = start("driver_node", tmp_path / "log", "camera_age_limit_ms:=60000")
    assert process.wait(30) == 2
    assert "camera_age_limit_ms" in (tmp_path / "log").read_text()


def test_replay_ends_by_itself_and_rejects(tmp_path, keyframe_scene):
    root = (f"dataroot:={keyframe_scene}", "version:=v1.0-test", "start_delay_s:=0.0")
    assert start("replay_node", tmp_path / "a", *root, "rate:=10.0").wait(30) == 0
    assert "end of the scene" in (tmp_path / "a").read_text()
    assert start("replay_node", tmp_path / "b", *root, "scene:=scene-9999").wait(30) == 2
    assert "Did you mean scene-0001?" in (tmp_path / "b").read_text()
    assert start("replay_node", tmp_path / "c").wait(30) == 2
    assert "dataroot" in (tmp_path / "c").read_text()


def test_scene_speed_is_what_the_plans_assume():
    assert (pose_at(START_US + 1_000_000) - pose_at(START_US))[0, 3] == pytest.approx(SPEED_MPS)
