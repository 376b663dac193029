"""The driver in shadow mode, for a car that publishes the topics of launch/README.md.

    ros2 launch vla_drive_ros drive.launch.py calibration_file:=car.json
    ros2 lifecycle set /driver_node configure && ros2 lifecycle set /driver_node activate

It comes up unconfigured and publishes no plan until someone configures and activates it.
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

CONFIG = Path(__file__).resolve().parents[1] / "config"
ARGUMENTS = {
    "params_file": (str(CONFIG / "driver.yaml"), "parameters of driver_node"),
    "calibration_file": ("", "JSON: where cameras and IMU sit on the car"),
    "policy": ("constant-velocity", "constant-velocity or vla"),
    "checkpoint": ("", "folder that vla train wrote, for policy:=vla"),
    "device": ("cpu", "where the policy vla computes: cpu, cuda, cuda:1"),
}


def generate_launch_description() -> LaunchDescription:
    given = {n: ParameterValue(LaunchConfiguration(n), value_type=str) for n in ARGUMENTS if n != "params_file"}
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(n, default_value=v, description=text) for n, (v, text) in ARGUMENTS.items()),
            SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", str(CONFIG / "fastdds_shm.xml")),
            LifecycleNode(
                package="vla_drive_ros",
                executable="driver_node",
                name="driver_node",
                namespace="",
                output="screen",
                parameters=[LaunchConfiguration("params_file"), given],
            ),
        ]
    )
