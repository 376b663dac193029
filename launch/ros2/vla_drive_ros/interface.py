"""What the nodes offer: their names, outputs and parameters, as data; what they hear is `sensors.ros2_topics`. Nothing
here needs ROS."""

from dataclasses import dataclass

from sensors.ros2_topics import Topic

DRIVER, REPLAY = "driver_node", "replay_node"
CLOCK, TRAJECTORY, DIAGNOSTICS = "/clock", "~/output/trajectory", "/diagnostics"

OUTPUTS = (
    Topic(TRAJECTORY, "nav_msgs/msg/Path", "out", "reliable, 1"),
    Topic(DIAGNOSTICS, "diagnostic_msgs/msg/DiagnosticArray", "out", "reliable, 10"),
)


@dataclass(frozen=True)
class Parameter:
    """A ROS parameter; `low` and `high` bound numbers, inclusive."""

    name: str
    default: str | int | float
    description: str
    low: float | None = None
    high: float | None = None


DRIVER_PARAMETERS = (
    Parameter("policy", "constant-velocity", "constant-velocity or vla"),
    Parameter("checkpoint", "", "folder that vla train wrote, for the policy vla"),
    Parameter("device", "cpu", "where the policy vla computes: cpu, cuda, cuda:1"),
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
    Parameter("odometry_age_limit_ms", 200, "oldest pose; without a younger one nothing is planned", 20, 1000),
    Parameter("imu_age_limit_ms", 200, "oldest IMU sample; without a younger one the window is empty", 20, 1000),
    Parameter("clock_skew_limit_ms", 50, "a stamp farther ahead of the clock than this is refused", 1, 500),
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
