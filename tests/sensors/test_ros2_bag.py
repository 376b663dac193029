"""Bags: what goes in comes out to the last bit, other tools read it, and a drive of a car becomes keyframes."""

import json
from pathlib import Path

import numpy as np
import pytest
import ros_message_stand_ins as fake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sensors import frames
from sensors.camera import Camera
from sensors.errors import InputError
from sensors.nuscenes_source import CAMERAS, NuscenesSource
from sensors.nuscenes_writer import NuscenesWriter
from sensors.ros2_bag import Bag, write_bag
from sensors.ros2_calibration import Calibration
from sensors.ros2_drive import read_drive, unpack
from sensors.ros2_messages import (
    OdometrySample,
    camera_info_fields,
    header_fields,
    image_fields,
    imu_fields,
    imu_from_message,
    odometry_fields,
    odometry_from_message,
    steering_fields,
    time_us_from_stamp,
)
from sensors.ros2_topics import (
    CALIBRATION,
    COMMAND,
    IMU,
    INSTRUCTION,
    ODOMETRY,
    STEERING,
    image_topic,
    info_topic,
    optical_frame,
    raw_image_topic,
)

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install -e '.[bags]'")
NOW_US = 1_700_000_000_000_000
finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
vector = st.lists(finite, min_size=3, max_size=3)
unit = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1)
OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
few = settings(deadline=None, derandomize=True, max_examples=15, suppress_health_check=list(HealthCheck))


def bag_of(path: Path, *sent: tuple[str, int, dict]) -> Path:
    with write_bag(path) as send:
        for each in sent:
            send(*each)
    return path


@few
@given(data=st.data())
def test_messages_to_a_bag_and_back_are_exact(tmp_path_factory, data):
    times_us = sorted(data.draw(st.sets(st.integers(1, 2**31 * 1_000_000 - 1), min_size=1, max_size=5)))
    jpeg, sent, samples = data.draw(st.binary(max_size=64)), [], []
    for time_us in times_us:
        q_wxyz = np.array(data.draw(unit))
        q_wxyz /= np.linalg.norm(q_wxyz)
        T = frames.matrix(np.array(data.draw(vector)), frames.rotation_from_quaternion(q_wxyz))
        speed_mps = data.draw(finite | st.just(float("nan")))
        samples.append(OdometrySample(time_us, T, speed_mps, data.draw(finite), "map", tuple(q_wxyz)))
        inertial = [np.array(data.draw(vector)) for _ in range(2)]
        sent.append((ODOMETRY, time_us, odometry_fields(samples[-1])))
        sent.append((IMU, time_us, imu_fields(time_us, "imu", *inertial)))
        sent.append((image_topic("CAM_BACK"), time_us, image_fields(time_us, "f", jpeg)))
    path = bag_of(tmp_path_factory.mktemp("bags") / "bag", *sent)
    with Bag(path) as bag:
        came = list(bag.messages({topic for topic, *_ in sent}))
        assert [(topic, time_us) for topic, time_us, _ in came] == [(topic, time_us) for topic, time_us, _ in sent]
        for (topic, _, message), (_, time_us, fields) in zip(came, sent, strict=True):
            assert time_us_from_stamp(message.header.stamp) == time_us
            if topic == ODOMETRY:
                sample = odometry_from_message(message)
                assert odometry_fields(sample) == fields
                known = next(each for each in samples if each.time_us == time_us)
                assert np.array_equal(sample.T_world_from_ego, known.T_world_from_ego)
            elif topic == IMU:
                _, accel, gyro = imu_from_message(message, np.eye(3))
                assert imu_fields(time_us, "imu", accel, gyro) == fields
            else:
                assert bytes(message.data) == jpeg
        ((_, _, one),) = bag.messages({IMU}, times_us[-1])
        assert time_us_from_stamp(one.header.stamp) == times_us[-1]


def test_other_tools_find_the_definitions_in_the_file(tmp_path):
    reader = pytest.importorskip("mcap.reader", reason="mcap is not installed: pip install -e '.[viz]'")
    path = bag_of(tmp_path / "drive", (IMU, NOW_US, imu_fields(NOW_US, "imu", np.ones(3), np.zeros(3))))
    with open(path / "drive.mcap", "rb") as file:
        found = reader.make_reader(file)
        summary = found.get_summary()
        assert found.get_header().profile == "ros2"
        (schema,) = summary.schemas.values()
        assert (schema.name, schema.encoding) == ("sensor_msgs/msg/Imu", "ros2msg")
        for part in (b"linear_acceleration", b"MSG: geometry_msgs/Vector3", b"MSG: std_msgs/Header"):
            assert part in schema.data
    with Bag(path / "drive.mcap") as bare:
        assert [(each.topic, each.count) for each in bare.stored] == [(IMU, 1)]


def test_a_bag_says_what_quality_of_service_was_offered(tmp_path):
    path = bag_of(
        tmp_path / "bag",
        (COMMAND, NOW_US, {"data": "left"}),
        (STEERING, NOW_US, steering_fields(NOW_US, 0.1)),
    )
    with Bag(path) as bag:
        assert {each.topic: each.qos for each in bag.stored} == {
            COMMAND: ("reliable", "transient local"),
            STEERING: ("reliable", "volatile"),
        }


def test_an_interrupted_bag_leaves_nothing(tmp_path):
    def interrupted() -> None:
        with write_bag(tmp_path / "bag") as send:
            send(COMMAND, NOW_US, {"data": "left"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".bag.partial" / "bag").mkdir(parents=True)  # as kill -9 leaves it
    bag_of(tmp_path / "bag", (COMMAND, NOW_US, {"data": "left"}))
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "nothing there"),
        (lambda path: path.mkdir(), "nothing there"),
        (lambda path: path.write_text("x"), "unreadable"),
        (lambda path: (path.mkdir(), (path / "metadata.yaml").write_text("a: [")), "unreadable"),
        (lambda path: (path.mkdir(), (path / "metadata.yaml").write_text("a: 1")), "unreadable"),
    ],
)
def test_bag_rejects(tmp_path, make, complaint):
    make(tmp_path / "bag")
    with pytest.raises(InputError, match=complaint):
        Bag(tmp_path / "bag")


@pytest.mark.parametrize("kept", [0, 5, 60, 600, -30, -200])
def test_a_file_that_is_cut_off_is_told(tmp_path, kept):
    path = bag_of(tmp_path / "bag", *((COMMAND, NOW_US + k, {"data": "left"}) for k in range(20)))
    file = path / "bag.mcap"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match="unreadable"):
        Bag(path)


# A car's own bag ---------------------------------------------------------------------------------


def cameras() -> dict[str, Camera]:
    K = np.array([[20.0, 0, 15.5], [0, 20.0, 11.5], [0, 0, 1]])
    pose = frames.matrix(np.array([1.5, 0, 1.6]), OPTICAL)
    return {name: Camera(name, 32, 24, K, pose) for name in CAMERAS}


def calibration() -> Calibration:
    poses = {name: camera.T_ego_from_cam for name, camera in cameras().items()}
    return Calibration({name: optical_frame(name) for name in CAMERAS}, poses, np.eye(3))


def car_pose(time_us: int) -> np.ndarray:
    return frames.matrix_from_xy_yaw((time_us - NOW_US) * 5e-6, 0.0, 0.0)


def car_drive(seconds: float = 3.0, lost: frozenset = frozenset(), raw: frozenset = frozenset()) -> list[tuple]:
    """Cameras at 12 Hz, 5 ms apart, odometry at 50 Hz, IMU at 100 Hz; `lost` holds (camera, k) without a picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    jpeg, sent = fake.jpeg(pixels), []
    for time_us in range(NOW_US, NOW_US + round(seconds * 1e6), 10_000):
        sent.append((IMU, time_us, imu_fields(time_us, "imu", np.array([0, 0, 9.81]), np.zeros(3))))
        if time_us % 20_000 == 0:
            sample = OdometrySample(time_us, car_pose(time_us), 5.0, 0.0, "map")
            sent.append((ODOMETRY, time_us, odometry_fields(sample)))
    for k in range(round(seconds * 12)):
        for n, (name, camera) in enumerate(cameras().items()):
            time_us, frame = NOW_US + k * 83_333 + 5_000 * n, optical_frame(name)
            sent.append((info_topic(name), time_us, camera_info_fields(time_us, frame, camera)))
            if name in raw:
                about = {"height": 24, "width": 32, "encoding": "rgb8", "step": 96, "data": pixels.tobytes()}
                fields = {"header": header_fields(time_us, frame), **about}
                sent.append((raw_image_topic(name), time_us, fields))
            elif (name, k) not in lost:
                sent.append((image_topic(name), time_us, image_fields(time_us, frame, jpeg)))
    return sorted(sent, key=lambda each: each[1])


def calibration_message() -> tuple[str, int, dict]:
    return CALIBRATION, NOW_US, {"data": json.dumps(calibration().content())}


def test_a_cars_bag_becomes_keyframes_half_a_second_apart(tmp_path):
    lost, raw = frozenset({("CAM_BACK", 12), ("CAM_BACK", 11), ("CAM_BACK", 13)}), frozenset({"CAM_FRONT_LEFT"})
    words = [(COMMAND, NOW_US + 1_000_000, {"data": "left"}), (INSTRUCTION, NOW_US + 2_000_000, {"data": "stop"})]
    sent = sorted([calibration_message(), *car_drive(3.1, lost, raw), *words], key=lambda each: each[1])
    with Bag(bag_of(tmp_path / "bag", *sent)) as bag:
        drive = read_drive(bag)
        assert drive.problems() == []
        now_us = [instant.now_us for instant in drive.instants]
        assert len(now_us) == 7
        np.testing.assert_allclose(np.diff(now_us), 500_000, atol=42_000 + 20_000)
        name = unpack(bag, drive, NuscenesWriter(tmp_path / "root", "v1.0-bag"))
    source = NuscenesSource(tmp_path / "root", "v1.0-bag", steps=1)
    assert source.scenes == (name,)
    masks = [source.clip(name, frame).image_mask[0] for frame in range(7)]
    assert [mask.tolist() for mask in masks] == [[c != "CAM_BACK" or f != 2 for c in CAMERAS] for f in range(7)]
    clips = [source.clip(name, frame) for frame in range(7)]
    for clip in clips:
        for n in range(6):
            np.testing.assert_allclose(clip.T_world_from_ego[0, n], car_pose(clip.time_us[0, n]), atol=1e-9)
        assert clip.vehicle.speed_mps == 5.0
        assert len(clip.imu) >= 1
    assert [clip.command for clip in clips] == ["follow"] * 2 + ["left"] * 5
    assert [clip.instruction for clip in clips] == [""] * 4 + ["stop"] * 3


def test_what_a_message_says_wrong_is_left_out_and_told(tmp_path):
    sent = car_drive(1.0)
    bad_us = NOW_US + 1_100_000
    odd = Camera("CAM_FRONT", 32, 24, cameras()["CAM_FRONT"].K * [[2], [2], [1]], np.eye(4))
    bad = [
        (IMU, bad_us, imu_fields(bad_us, "imu", np.array([np.nan, 0, 0]), np.zeros(3))),
        (IMU, bad_us, imu_fields(NOW_US, "imu", np.zeros(3), np.zeros(3))),
        (COMMAND, bad_us, {"data": "go left"}),
        (image_topic("CAM_BACK"), bad_us, image_fields(bad_us, "cam_front_optical_frame", b"")),
        (info_topic("CAM_FRONT"), bad_us, camera_info_fields(bad_us, optical_frame("CAM_FRONT"), odd)),
        (ODOMETRY, bad_us, {"child_frame_id": "base_link"}),
    ]
    with Bag(bag_of(tmp_path / "bag", calibration_message(), *sent, *bad)) as bag:
        problems = "\n".join(read_drive(bag).problems())
    for words in (
        f"{IMU}: 2 messages left out",
        "linear_acceleration",
        "increasing time",
        f"{COMMAND}: 1 message left out",
        "cam_back_optical_frame, as in the calibration",
        "another calibration than before",
        f"{ODOMETRY}: 1 message left out: header.stamp: came 0 s 0 ns",
    ):
        assert words in problems


def test_drive_rejects(tmp_path):
    sent = car_drive(1.0)
    without = {
        "calibration": (sent, CALIBRATION),
        "odometry": ([calibration_message(), *(each for each in sent if each[0] != ODOMETRY)], ODOMETRY),
        "info": (
            [calibration_message(), *(e for e in sent if e[0] != info_topic("CAM_BACK"))],
            "/cam_back/camera_info",
        ),
        "pictures": ([calibration_message(), *(e for e in sent if "image_raw" not in e[0])], "keyframes"),
    }
    for name, (messages, complaint) in without.items():
        with Bag(bag_of(tmp_path / name, *messages)) as bag, pytest.raises(InputError, match=complaint):
            read_drive(bag)
