"""What the nodes offer: their names, outputs and parameters, as data; what they hear is `sensors.ros2_topics`. Nothing
here needs ROS."""

from dataclasses import dataclass

from sensors import ros2_topics
from sensors.ros2_topics import Topic

DRIVER, CONTROL, SIM, REPLAY = "driver_node", "control_node", "sim_node", "replay_node"
TRAJECTORY, HEALTH, REASON, MARKERS = "~/output/trajectory", "~/output/health", "~/output/reason", "~/output/markers"
CLOCK, DIAGNOSTICS, EMERGENCY_STOP = "/clock", "/diagnostics", "/emergency_stop"
JOINT_COMMAND, STATE = "~/output/joint_command", "~/output/state"
AUTOWARE_COMMAND, ACKERMANN_COMMAND = "~/output/control_cmd", "~/output/ackermann_cmd"
ENGAGE, RESET = "~/engage", "~/reset"
TRUTH = "~/truth"  # of sim_node: how the car really moves, whatever its sensors say
STEERING_JOINT, TRACTION_JOINT = "steering", "traction"
POLICIES = ("constant-velocity", "repeat", "vla")


def of_node(node: str, topic: str) -> str:
    """A topic or service of a node by its whole name."""
    return topic.replace("~", f"/{node}")


OUTPUTS = (
    Topic(TRAJECTORY, "nav_msgs/msg/Path", "out", "reliable, 1"),
    Topic(HEALTH, "diagnostic_msgs/msg/DiagnosticArray", "out", "reliable, 1"),
    Topic(REASON, "std_msgs/msg/String", "out", "reliable, 1"),
    Topic(MARKERS, "visualization_msgs/msg/MarkerArray", "out", "reliable, 1"),
    Topic(DIAGNOSTICS, "diagnostic_msgs/msg/DiagnosticArray", "out", "reliable, 10"),
)
CONTROL_INPUTS = (
    Topic(of_node(DRIVER, TRAJECTORY), "nav_msgs/msg/Path", "in", "reliable, 1"),
    Topic(of_node(DRIVER, HEALTH), "diagnostic_msgs/msg/DiagnosticArray", "in", "reliable, 1"),
    Topic(ros2_topics.ODOMETRY, "nav_msgs/msg/Odometry", "in", "sensor data"),
    Topic(EMERGENCY_STOP, "std_msgs/msg/Bool", "in", "reliable, 10"),
)
CONTROL_OUTPUTS = (
    Topic(JOINT_COMMAND, "trajectory_msgs/msg/JointTrajectory", "out", "reliable, 1"),
    Topic(STATE, "diagnostic_msgs/msg/DiagnosticArray", "out", "reliable, 1"),
    Topic(DIAGNOSTICS, "diagnostic_msgs/msg/DiagnosticArray", "out", "reliable, 10"),
)
# Only where the message package is installed, as on a vehicle with Autoware.
CONTROL_OPTIONAL = (
    Topic(AUTOWARE_COMMAND, "autoware_control_msgs/msg/Control", "out", "reliable, 1"),
    Topic(ACKERMANN_COMMAND, "ackermann_msgs/msg/AckermannDriveStamped", "out", "reliable, 1"),
)


@dataclass(frozen=True)
class Parameter:
    """A ROS parameter; `low` and `high` bound numbers, inclusive."""

    name: str
    default: str | bool | int | float
    description: str
    low: float | None = None
    high: float | None = None


DRIVER_PARAMETERS = (
    Parameter("policy", "constant-velocity", "constant-velocity, repeat or vla"),
    Parameter("checkpoint", "", "folder that vla train wrote, for the policy vla"),
    Parameter("route_file", "", "a drive that was recorded, for the policy repeat"),
    Parameter("device", "cpu", "where the policy vla computes: cpu, cuda, cuda:1"),
    Parameter("threads", 0, "processor cores the policy may take; 0: all but one, which control needs", 0, 256),
    Parameter("calibration_file", "", "JSON: where cameras and IMU sit on the car"),
    Parameter("image_transport", "compressed", "compressed or raw: which topic of each camera is heard"),
    Parameter("command", "follow", "route command given to the policy until another is heard"),
    Parameter("instruction", "", "instruction in words given to the policy until another is heard"),
    Parameter("plan_rate_hz", 5.0, "how often a plan is tried for", 0.5, 20.0),
    Parameter("image_width", 400, "width in px of the clip's images, for a policy that asks for no size", 16, 4096),
    Parameter("image_height", 225, "height in px of the same", 16, 4096),
    Parameter("min_cameras", 5, "cameras that the newest step must show; the others are masked", 1, 6),
    Parameter("sync_tolerance_ms", 60, "pictures of one step lie this near to the reference camera's", 1, 120),
    Parameter("camera_age_limit_ms", 250, "oldest picture in the newest step, longest silence of a camera", 20, 2000),
    Parameter("cameras_silent_limit_ms", 150, "longest silence of all cameras at once", 20, 2000),
    Parameter("odometry_age_limit_ms", 150, "oldest pose; without a younger one nothing is planned", 20, 1000),
    Parameter("imu_age_limit_ms", 200, "oldest IMU sample; without a younger one the window is empty", 20, 1000),
    Parameter("clock_skew_limit_ms", 50, "a stamp farther ahead of the clock than this is refused", 1, 500),
    Parameter("inference_limit_ms", 150, "a policy that takes longer than this is a fault", 20, 2000),
    Parameter("plan_age_limit_ms", 500, "a plan whose clip is older than this is not published", 50, 2000),
)
REPLAY_PARAMETERS = (
    Parameter("dataroot", "", "nuScenes dataroot"),
    Parameter("version", "v1.0-mini", "table folder"),
    Parameter("scene", "", "scene to play; empty: the first"),
    Parameter("rate", 1.0, "1: at recorded times; above: that many times faster", 1.0, 20.0),
    Parameter("start_delay_s", 2.0, "wait before the first message, for subscribers to be found", 0.0, 60.0),
    Parameter("calibration_file", "", "where to write the scene's calibration; empty: nowhere"),
    Parameter("muted", "", "cameras not to publish, with commas between; may be set while it plays"),
)
CONTROL_PARAMETERS = (
    Parameter("plan_age_limit_ms", 800, "a plan whose clip is older than this is not followed any more", 100, 3000),
    Parameter("odometry_age_limit_ms", 150, "without a younger pose the car stops", 20, 1000),
    Parameter("health_age_limit_ms", 120, "a driver that is silent for longer is a fault", 60, 1000),
    Parameter("loop_gap_limit_ms", 150, "a control loop that was held up for longer is a fault", 60, 1000),
    Parameter("degraded_limit_s", 10.0, "longest drive with something missing, then the car stops", 1.0, 60.0),
    Parameter("degraded_speed_mps", 3.0, "not faster while something is missing", 0.5, 10.0),
    Parameter("max_speed_mps", 10.0, "a plan that is faster is followed at this speed", 0.5, 20.0),
    Parameter("max_lateral_mps2", 3.0, "a plan too fast for its bends is followed so that they take this", 0.5, 6.0),
    Parameter("max_accel_mps2", 2.5, "largest acceleration", 0.2, 4.0),
    Parameter("max_braking_mps2", 6.0, "largest deceleration", 2.0, 9.0),
    Parameter("stop_mps2", 2.0, "deceleration of a comfortable stop", 0.5, 4.0),
    Parameter("emergency_mps2", 6.0, "deceleration of an emergency stop", 2.0, 9.0),
    Parameter("max_jerk_mps3", 20.0, "fastest change of acceleration but in an emergency", 1.0, 100.0),
    Parameter("max_steering_rad", 0.5, "largest angle of the road wheels", 0.05, 1.0),
    Parameter("max_steering_rate_radps", 0.6, "fastest turn of the road wheels", 0.05, 2.0),
    Parameter("wheelbase_m", 2.588, "front axle to rear axle", 1.0, 8.0),
)
SIM_PARAMETERS = (
    Parameter("scenario", "town-smoke/0", "SUITE/NUMBER, as in vla drive"),
    Parameter("empty", False, "nobody else in the town"),
    Parameter("image_width", 320, "width in px of the cameras' images", 16, 1600),
    Parameter("image_height", 192, "height in px of the same", 16, 900),
    Parameter("renderer", "cv", "who draws: cv, gl or auto"),
    Parameter("command_age_limit_ms", 200, "without a younger command the car brakes by itself", 50, 2000),
    Parameter("calibration_file", "", "where to write the car's calibration; empty: nowhere"),
    Parameter("out", "", "run directory to write the drive to, for vla score and vla report; empty: nowhere"),
    Parameter("fault", "", "what is wrong with the sensors, for example camera-stops; may be set while it runs"),
)
