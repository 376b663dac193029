"""The town as a vehicle: six cameras, IMU, odometry, steering and /clock out, commands in.

It brakes by itself while commands are missing or older than their limit, as a vehicle's drive-by-wire gateway must.
Its sensors may be spoilt while it runs: parameter `fault`, see `vla_drive_ros.sensor_faults`.
"""

import sys
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path as FilePath

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nav_msgs.msg import Odometry, Path
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import CameraInfo, CompressedImage, Imu, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from policies.runs import Run, kept, new_row, write_json
from sensors import ros2_topics
from sensors.errors import InputError
from sensors.nuscenes_source import CAMERAS
from sensors.ros2_calibration import Calibration
from sensors.ros2_messages import (
    OdometrySample,
    camera_info_fields,
    image_fields,
    imu_fields,
    odometry_fields,
    steering_fields,
    time_us_from_stamp,
)
from sim.rollout_log import EpisodeLog
from sim.scenarios import get_scenario
from vla_drive_ros import interface, messages
from vla_drive_ros.process import Loop, Stop, declare, run
from vla_drive_ros.sensor_faults import SensorFaults, check_fault
from vla_drive_ros.town_car import Frame, ImuSample, Sample, TownCar

TICK_S = 0.01
LATE_S = 0.05  # a tick that is later than this stops the town's time, so that nothing is made up for in a burst
MOST_DRAWN = 2  # periods whose pictures are being drawn: one that takes long is late, not lost
GATEWAY_STOP_MPS2 = -3.0
CUE_PERIOD_S = 0.5
POLICY_NAME = "ros"


class SimNode(Node):
    def __init__(self, stop: Stop):
        super().__init__(interface.SIM)
        declare(self, interface.SIM_PARAMETERS)
        size = self._value("image_width"), self._value("image_height")
        scenario = get_scenario(self._value("scenario"))
        if self._value("empty"):
            scenario = replace(scenario, vehicles=0, walkers=0)
        self._run = self._new_run(scenario.seed)
        self._faults = SensorFaults()
        self._faults.name = check_fault(self._value("fault"))
        self.add_on_set_parameters_callback(self._changed)
        self._car = TownCar(scenario, size, self._value("renderer"), POLICY_NAME)
        self._write_calibration()
        self._stop, self._counts, self._why = stop, Counter({"periods": 0, "periods without a command": 0}), ""
        self._queue: deque[Sample | Frame] = deque()
        self._command: tuple[int, int, float, float] | None = None
        self._drawing: deque[Future] = deque()
        self._drawer = ThreadPoolExecutor(1, "drawer")
        self._publish_on()
        self.create_subscription(
            JointTrajectory, interface.of_node(interface.CONTROL, interface.JOINT_COMMAND), self._take_command, 1
        )
        self.create_subscription(Path, interface.of_node(interface.DRIVER, interface.TRAJECTORY), self._take_plan, 1)
        self.create_subscription(String, interface.of_node(interface.DRIVER, interface.REASON), self._take_reason, 1)
        self.get_logger().info(f"{scenario.name} in {scenario.town}: the town waits for a command that moves the car")
        self._now_us, self._ticked_s = self._car.time_us, time.monotonic()
        self._loop = Loop("car", TICK_S, self._tick, stop)
        self._cues = Loop("cues", CUE_PERIOD_S, self._tell, stop)

    def _publish_on(self) -> None:
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._images = {n: self.create_publisher(CompressedImage, ros2_topics.image_topic(n), 10) for n in CAMERAS}
        self._infos = {n: self.create_publisher(CameraInfo, ros2_topics.info_topic(n), latched) for n in CAMERAS}
        self._imu = self.create_publisher(Imu, ros2_topics.IMU, 100)
        self._odometry = self.create_publisher(Odometry, ros2_topics.ODOMETRY, 100)
        self._truth = self.create_publisher(Odometry, interface.TRUTH, 100)
        self._steering = self.create_publisher(JointState, ros2_topics.STEERING, 10)
        self._clock_publisher = self.create_publisher(ClockMessage, interface.CLOCK, 10)
        self._route_command = self.create_publisher(String, ros2_topics.COMMAND, latched)
        self._instruction = self.create_publisher(String, ros2_topics.INSTRUCTION, latched)
        self._diagnostics = self.create_publisher(DiagnosticArray, interface.DIAGNOSTICS, 10)

    def finish(self, why: str, hurry) -> None:
        self._loop.end()
        self._cues.end()
        self._drawer.shutdown()
        self.get_logger().info(f"{why}: {dict(self._counts)}")
        self._car.finish(self._keep)

    # What is heard

    def _take_command(self, message: JointTrajectory) -> None:
        (point,) = message.points
        k, m = (message.joint_names.index(name) for name in (interface.STEERING_JOINT, interface.TRACTION_JOINT))
        command = point.accelerations[m], point.positions[k]
        if not np.isfinite(command).all():
            self._counts["commands refused"] += 1
            return
        self._command = time_us_from_stamp(message.header.stamp), time.monotonic_ns() // 1000, *command

    def _take_plan(self, message: Path) -> None:
        _, times_us, xyyaw = messages.path_knots(message)
        self._car.plan(times_us, xyyaw, self._why)

    def _take_reason(self, message: String) -> None:
        self._why = message.data

    def _changed(self, parameters: list) -> SetParametersResult:
        try:
            for parameter in parameters:
                if parameter.name == "fault":
                    self._faults.name = check_fault(parameter.value)
        except InputError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    # What is done

    def _tick(self) -> None:
        """Publish what is due; at the end of a period, drive the next one."""
        seconds = time.monotonic()
        self._now_us += round(1e6 * min(seconds - self._ticked_s, LATE_S))
        self._ticked_s = seconds
        if self._now_us >= self._car.time_us:
            self._period()
        self._clock_publisher.publish(ClockMessage(clock=messages.time_of(self._now_us)))
        while self._drawing and self._drawing[0].done():
            drawn = self._drawing.popleft().result()
            self._queue = deque(sorted([*self._queue, *drawn], key=lambda sample: sample.time_us))
        while self._queue and self._queue[0].time_us <= self._now_us:
            true = self._queue.popleft()
            sample = self._faults.spoil(true)
            if isinstance(true, OdometrySample):
                self._truth.publish(messages.filled(Odometry(), odometry_fields(true)))
            if sample is not None:
                self._publish(sample)

    def _period(self) -> None:
        self._counts["periods"] += 1
        samples, moment, times_us = self._car.period(*self._commanded())
        self._queue.extend(samples)
        if len(self._drawing) < MOST_DRAWN:
            self._drawing.append(self._drawer.submit(self._car.pictures, moment, times_us))
        else:
            self._counts["periods without pictures"] += 1
        if self._car.ended_by:
            self._stop(self._car.ended_by)

    def _commanded(self) -> tuple[float, float]:
        """(acceleration, steering) of the period that begins: the command's, or a stop if none is young enough."""
        limit_us, command = 1000 * self._value("command_age_limit_ms"), self._command
        if command is not None:
            time_us, steady_us, accel, steering = command
            if max(self._now_us - time_us, time.monotonic_ns() // 1000 - steady_us) <= limit_us:
                return accel, steering
        self._counts["periods without a command"] += 1
        return GATEWAY_STOP_MPS2, command[3] if command is not None else 0.0

    def _publish(self, sample: Sample | Frame) -> None:
        time_us, filled = sample.time_us, messages.filled
        if isinstance(sample, Frame):
            name, frame = sample.camera.name, ros2_topics.optical_frame(sample.camera.name)
            self._infos[name].publish(filled(CameraInfo(), camera_info_fields(time_us, frame, sample.camera)))
            self._images[name].publish(filled(CompressedImage(), image_fields(time_us, frame, sample.jpeg)))
        elif isinstance(sample, ImuSample):
            fields = imu_fields(time_us, ros2_topics.EGO_FRAME, sample.accel_mps2, sample.gyro_radps)
            self._imu.publish(filled(Imu(), fields))
        elif isinstance(sample, OdometrySample):
            self._odometry.publish(filled(Odometry(), odometry_fields(sample)))
        else:
            self._steering.publish(filled(JointState(), steering_fields(time_us, sample.steering_rad)))

    def _tell(self) -> None:
        command, instruction = self._car.cue
        self._route_command.publish(String(data=command))
        self._instruction.publish(String(data=instruction))
        text = self._faults.name and f"sensors spoilt: {self._faults.name}"
        status = messages.status(DiagnosticStatus.OK, f"{self.get_name()}: car", text, dict(self._counts))
        self._diagnostics.publish(messages.diagnostics(self._now_us, [status]))

    # Files

    def _write_calibration(self) -> None:
        if self._value("calibration_file"):
            frame_ids = {name: ros2_topics.optical_frame(name) for name in CAMERAS}
            poses = {camera.name: camera.T_ego_from_cam for camera in self._car.cameras}
            calibration = Calibration(frame_ids, {name: poses[name] for name in CAMERAS}, np.eye(3))
            write_json(FilePath(self._value("calibration_file")), calibration.content())

    def _new_run(self, seed: int) -> Run | None:
        given = {p.name: self._value(p.name) for p in interface.SIM_PARAMETERS}
        return Run.create("ros", FilePath(given["out"]), given, [seed]) if given["out"] else None

    def _keep(self, log: EpisodeLog) -> None:
        if self._run is not None:
            row = new_row(f"{POLICY_NAME}-{log.name}".replace("/", "-"), POLICY_NAME, log.seed, log.name)
            with kept(self._run.path, row, 0) as episode:
                episode.log = log
            self._run.add(row)
            self._run.score([POLICY_NAME])
            self._run.save()

    def _value(self, name: str):
        return self.get_parameter(name).value


def main() -> None:
    sys.exit(run(SimNode))


if __name__ == "__main__":
    main()
