"""A nuScenes scene as the topics of a car, and the driver in shadow mode that hears them.

    ros2 launch vla_drive_ros replay.launch.py dataroot:=data/nuscenes calibration_file:=scene.json start_delay_s:=15.0
    ros2 lifecycle set /driver_node configure && ros2 lifecycle set /driver_node activate

The player writes the scene's calibration to calibration_file, the driver reads it when it is configured.
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

CONFIG = Path(__file__).resolve().parents[1] / "config"
DRIVER = {
    "policy": ("constant-velocity", "constant-velocity or vla"),
    "checkpoint": ("", "folder that vla train wrote, for policy:=vla"),
    "device": ("cpu", "where the policy vla computes: cpu, cuda, cuda:1"),
}
PLAYER = {
    "dataroot": ("", "nuScenes dataroot"),
    "version": ("v1.0-mini", "table folder"),
    "scene": ("", "scene to play; empty: the first"),
}
NUMBERS = {
    "rate": ("1.0", "1: at recorded times; above: that many times faster"),
    "start_delay_s": ("10.0", "wait before the first message: time to configure and activate the driver"),
}
SHARED = {"calibration_file": ("scene_calibration.json", "written by the player, read by the driver")}


def generate_launch_description() -> LaunchDescription:
    arguments = {**DRIVER, **PLAYER, **NUMBERS, **SHARED}
    files = [str(CONFIG / "driver.yaml"), str(CONFIG / "replay.yaml")]  # the later one wins
    driver, player = ({**group, **SHARED} for group in (DRIVER, PLAYER))
    words = {name: ParameterValue(LaunchConfiguration(name), value_type=str) for name in arguments}
    numbers = {name: ParameterValue(LaunchConfiguration(name), value_type=float) for name in NUMBERS}
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(n, default_value=v, description=text) for n, (v, text) in arguments.items()),
            SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", str(CONFIG / "fastdds_shm.xml")),
            LifecycleNode(
                package="vla_drive_ros",
                executable="driver_node",
                name="driver_node",
                namespace="",
                output="screen",
                parameters=[*files, {name: words[name] for name in driver}],
            ),
            Node(
                package="vla_drive_ros",
                executable="replay_node",
                name="replay_node",
                output="screen",
                parameters=[*files, {**{name: words[name] for name in player}, **numbers}],
            ),
        ]
    )
