"""The driver, and control where it is asked for, on a car that publishes the topics of launch/README.md.

    ros2 launch vla_drive_ros drive.launch.py calibration_file:=car.json control:=true
    ros2 lifecycle set /driver_node configure && ros2 lifecycle set /driver_node activate
    ros2 lifecycle set /control_node configure && ros2 lifecycle set /control_node activate
    ros2 service call /control_node/engage std_srvs/srv/SetBool "{data: true}"

Without control it is shadow mode. Both come up unconfigured; nothing moves until someone has engaged control.
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

CONFIG = Path(__file__).resolve().parents[1] / "config"
FILES = {
    "params_file": (str(CONFIG / "driver.yaml"), "parameters of driver_node"),
    "control_params_file": (str(CONFIG / "control.yaml"), "parameters of control_node"),
}
DRIVER = {
    "calibration_file": ("", "JSON: where cameras and IMU sit on the car"),
    "policy": ("constant-velocity", "constant-velocity, repeat or vla"),
    "checkpoint": ("", "folder that vla train wrote, for policy:=vla"),
    "route_file": ("", "a drive that was recorded, for policy:=repeat"),
    "device": ("cpu", "where the policy vla computes: cpu, cuda, cuda:1"),
}
CONTROL = {"control": ("false", "true: start control_node as well, which moves the car once engaged")}


def generate_launch_description() -> LaunchDescription:
    arguments = {**FILES, **DRIVER, **CONTROL}
    given = {name: ParameterValue(LaunchConfiguration(name), value_type=str) for name in DRIVER}
    common = {"package": "vla_drive_ros", "namespace": "", "output": "screen"}
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(n, default_value=v, description=text) for n, (v, text) in arguments.items()),
            SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", str(CONFIG / "fastdds_shm.xml")),
            LifecycleNode(
                **common,
                executable="driver_node",
                name="driver_node",
                parameters=[LaunchConfiguration("params_file"), given],
            ),
            LifecycleNode(
                **common,
                executable="control_node",
                name="control_node",
                parameters=[LaunchConfiguration("control_params_file")],
                condition=IfCondition(LaunchConfiguration("control")),
            ),
        ]
    )
