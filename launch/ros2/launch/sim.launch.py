"""The simulated town as a car, the driver and control: the whole chain without a vehicle.

    ros2 launch vla_drive_ros sim.launch.py scenario:=town-val/2
    ros2 lifecycle set /driver_node configure && ros2 lifecycle set /driver_node activate
    ros2 lifecycle set /control_node configure && ros2 lifecycle set /control_node activate
    ros2 service call /control_node/engage std_srvs/srv/SetBool "{data: true}"

The town waits for the first command that moves the car. It writes the car's calibration, the driver reads it when it is
configured. `fault` spoils its sensors while it runs: ros2 param set /sim_node fault camera-stops.
"""

from pathlib import Path

from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

CONFIG = Path(__file__).resolve().parents[1] / "config"
DRIVER = {
    "policy": ("constant-velocity", "constant-velocity, repeat or vla"),
    "checkpoint": ("", "folder that vla train wrote, for policy:=vla"),
    "route_file": ("", "a drive that was recorded, for policy:=repeat"),
    "device": ("cpu", "where the policy vla computes: cpu, cuda, cuda:1"),
}
CAR = {
    "scenario": ("town-smoke/0", "SUITE/NUMBER, as in vla drive"),
    "renderer": ("cv", "who draws: cv, gl or auto"),
    "out": ("", "run directory to write the drive to; empty: nowhere"),
    "fault": ("", "what is wrong with the sensors from the start"),
}
SWITCHES = {"empty": ("false", "nobody else in the town")}
SHARED = {"calibration_file": ("sim_calibration.json", "written by the car, read by the driver")}


def generate_launch_description() -> LaunchDescription:
    arguments = {**DRIVER, **CAR, **SWITCHES, **SHARED}
    files = [str(CONFIG / f"{name}.yaml") for name in ("driver", "control", "sim")]  # the later one wins
    words = {name: ParameterValue(LaunchConfiguration(name), value_type=str) for name in arguments}
    words |= {name: ParameterValue(LaunchConfiguration(name), value_type=bool) for name in SWITCHES}
    common = {"package": "vla_drive_ros", "namespace": "", "output": "screen"}
    driver = [*files, {name: words[name] for name in (*DRIVER, *SHARED)}]
    car = [*files, {name: words[name] for name in (*CAR, *SWITCHES, *SHARED)}]
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(n, default_value=v, description=text) for n, (v, text) in arguments.items()),
            SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", str(CONFIG / "fastdds_shm.xml")),
            LifecycleNode(**common, executable="driver_node", name="driver_node", parameters=driver),
            LifecycleNode(**common, executable="control_node", name="control_node", parameters=files),
            Node(**common, executable="sim_node", name="sim_node", parameters=car),
        ]
    )
