"""The topics that a car offers the driver: names, types, quality of service, rates and frames, as data."""

from dataclasses import dataclass

from sensors.nuscenes_source import CAMERAS

IMU, ODOMETRY, STEERING = "/imu/data", "/localization/kinematic_state", "/vehicle/steering"
COMMAND, INSTRUCTION = "/route/command", "/route/instruction"
# Of recordings alone: the calibration file's content, what a scene is called and knows beyond messages, both as JSON,
# and the instants at which a clip is to be made.
CALIBRATION, SCENE, KEYFRAME = "/calibration", "/scene", "/keyframe"
TF, TF_STATIC = "/tf", "/tf_static"
WORLD_FRAME, EGO_FRAME = "map", "base_link"


def image_topic(camera: str) -> str:
    return f"/{camera.lower()}/image_raw/compressed"


def raw_image_topic(camera: str) -> str:
    """Where the same pictures are heard as Image, if the driver is told to."""
    return f"/{camera.lower()}/image_raw"


def info_topic(camera: str) -> str:
    return f"/{camera.lower()}/camera_info"


def optical_frame(camera: str) -> str:
    return f"{camera.lower()}_optical_frame"


REQUIRED, WANTED, OPTIONAL = "required", "wanted", "optional"


@dataclass(frozen=True)
class Topic:
    """`qos` is what the driver asks for or offers. Sensor data: best effort, volatile; whoever offers more fits too.
    Latched: reliable, transient local, so that who comes later hears the last word as well.

    need      what the driver does without: REQUIRED it does not plan, WANTED it drives slowly, OPTIONAL nothing
    good_hz   the rate that it is made for; least_hz: below it, its limits of age stop it now and again; 0: no rate
    """

    name: str
    type: str
    direction: str
    qos: str
    need: str = REQUIRED
    good_hz: float = 0.0
    least_hz: float = 0.0


INPUTS = (
    *(
        Topic(image_topic(name), "sensor_msgs/msg/CompressedImage", "in", "sensor data", REQUIRED, 10.0, 5.0)
        for name in CAMERAS
    ),
    *(Topic(info_topic(name), "sensor_msgs/msg/CameraInfo", "in", "sensor data") for name in CAMERAS),
    Topic(IMU, "sensor_msgs/msg/Imu", "in", "sensor data", WANTED, 50.0, 5.0),
    Topic(ODOMETRY, "nav_msgs/msg/Odometry", "in", "sensor data", REQUIRED, 20.0, 7.0),
    Topic(STEERING, "sensor_msgs/msg/JointState", "in", "sensor data", OPTIONAL, 10.0, 5.0),
    Topic(COMMAND, "std_msgs/msg/String", "in", "latched", OPTIONAL),
    Topic(INSTRUCTION, "std_msgs/msg/String", "in", "latched", OPTIONAL),
)
# Topics of a bag: the inputs, pictures that were recorded raw, and what only recordings have.
BAG_TYPES = {
    **{topic.name: topic.type for topic in INPUTS},
    **{raw_image_topic(name): "sensor_msgs/msg/Image" for name in CAMERAS},
    CALIBRATION: "std_msgs/msg/String",
    SCENE: "std_msgs/msg/String",
    KEYFRAME: "std_msgs/msg/Header",
    TF: "tf2_msgs/msg/TFMessage",
    TF_STATIC: "tf2_msgs/msg/TFMessage",
}
LATCHED_QOS = ("reliable", "transient local")
LATCHED = frozenset((COMMAND, INSTRUCTION, CALIBRATION, SCENE, TF_STATIC))
