"""A recorded scene as messages, through the driver's inputs, without ROS: the clips are the nuScenes source's."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import ros_message_stand_ins as fake
from real_data import DATAROOT, needs_data
from small_scene import START_US, make_cameras
from vla_drive_ros.inputs import Inputs

from policies.baselines import ConstantVelocity
from policies.protocol import NOTHING
from policies.vla_policy import SHIPPED, VlaPolicy
from sensors import frames
from sensors.nuscenes_index import NuscenesIndex
from sensors.nuscenes_source import CAMERAS, NuscenesSource
from sensors.ros2_messages import steering_fields
from sensors.ros2_recording import Sent, calibration_of, messages_of
from sensors.ros2_source import Limits, StaleInput
from sensors.ros2_topics import COMMAND, IMU, INSTRUCTION, ODOMETRY, STEERING, image_topic, info_topic, optical_frame

LIMITS = Limits(camera_age_us=700_000)
REAL_KEYFRAMES = 4


def make_inputs(scene, steps=2, size=(64, 48)) -> Inputs:
    return Inputs(calibration_of(scene), LIMITS, steps, size)


def send(inputs: Inputs, sent: Sent) -> None:
    """What the driver does with a message, at its own instant."""
    message, clock = fake.message(sent.fields()), (sent.time_us, sent.time_us)
    for name in CAMERAS:
        if sent.topic == info_topic(name):
            inputs.take_info(name, message)
        elif sent.topic == image_topic(name):
            inputs.take_image(name, message, *clock)
    if sent.topic in (COMMAND, INSTRUCTION):
        (inputs.take_command if sent.topic == COMMAND else inputs.take_instruction)(message)
    for topic, take in ((IMU, inputs.take_imu), (ODOMETRY, inputs.take_odometry), (STEERING, inputs.take_steering)):
        if sent.topic == topic:
            take(message, *clock)


@pytest.fixture
def recorded(keyframe_scene):
    index = NuscenesIndex(keyframe_scene, "v1.0-test")
    return index, index.scene("scene-0001")


@pytest.mark.parametrize("size", [(64, 48), (32, 16)])
def test_scene_over_messages_gives_the_clips_of_the_nuscenes_source(recorded, keyframe_scene, size):
    index, scene = recorded
    source = NuscenesSource(keyframe_scene, "v1.0-test", steps=2, image_size=size)
    inputs, queue = make_inputs(scene, 2, size), messages_of(index, scene)
    for camera in scene.cameras.values():  # a car's CameraInfo comes before the first clip is wanted
        inputs.take_info(camera.name, fake.info(camera, 1, optical_frame(camera.name)))
    for frame, now_us in enumerate(source.frame_times_us("scene-0001").tolist()):
        while queue and queue[0].time_us <= now_us:
            send(inputs, queue.pop(0))
        clip, frame_id = inputs.clip(now_us, now_us)
        clip, expected = clip.validate(), source.clip("scene-0001", frame)
        assert frame_id == "map"
        assert clip.now_us == expected.now_us
        assert np.array_equal(clip.image_mask, expected.image_mask)
        assert np.array_equal(clip.images, expected.images)
        seen = clip.image_mask
        assert np.array_equal(clip.time_us[seen], expected.time_us[seen])
        assert np.array_equal(clip.T_world_from_ego[seen], expected.T_world_from_ego[seen])
        assert np.array_equal(clip.T_world_from_ego_now, expected.T_world_from_ego_now)
        assert clip.vehicle == expected.vehicle
        for name in ("time_us", "accel_mps2", "gyro_radps"):
            assert np.array_equal(getattr(clip.imu, name), getattr(expected.imu, name))
        for ours, theirs in zip(clip.cameras, expected.cameras, strict=True):
            assert ours.name == theirs.name
            assert np.array_equal(ours.K, theirs.K)
            assert np.array_equal(ours.T_ego_from_cam, theirs.T_ego_from_cam)


@pytest.fixture
def with_pictures(tmp_path):
    """The real data, with pictures of anything where it has none, at the first keyframes of a scene."""

    def made(name: str) -> Path:
        root = tmp_path / "nuscenes"
        root.mkdir()
        for folder in DATAROOT.iterdir():
            if folder.name != "samples":
                (root / folder.name).symlink_to(folder)
        rng = np.random.default_rng(0)
        for keyframe in NuscenesIndex(DATAROOT, "v1.0-mini").scene(name).keyframes[:REAL_KEYFRAMES]:
            for channel in CAMERAS:
                file = root / keyframe.captures[channel].filename
                file.parent.mkdir(parents=True, exist_ok=True)
                picture = cv2.resize(rng.integers(0, 256, (9, 16, 3), np.uint8), (1600, 900))
                file.write_bytes(fake.jpeg(picture))
        return root

    return made


@needs_data
@pytest.mark.parametrize("name", ["scene-0061", "scene-0103"])
def test_a_real_scene_over_messages_gives_the_plans_of_vla_replay(with_pictures, name):
    root, policies = with_pictures(name), (ConstantVelocity(), VlaPolicy(SHIPPED))
    index, size, steps = NuscenesIndex(root, "v1.0-mini"), policies[1].image_size, policies[1].clip_steps
    source = NuscenesSource(root, "v1.0-mini", (name,), steps=steps, image_size=size)
    inputs, queue = make_inputs(index.scene(name), steps, size), messages_of(index, index.scene(name))
    for camera in index.scene(name).cameras.values():
        inputs.take_info(camera.name, fake.info(camera, 1, optical_frame(camera.name)))
    for frame, now_us in enumerate(source.frame_times_us(name).tolist()[:REAL_KEYFRAMES]):
        while queue and queue[0].time_us <= now_us:
            send(inputs, queue.pop(0))
        clip, _ = inputs.clip(now_us, now_us)
        expected = source.clip(name, frame)
        assert clip.image_mask[-1].all()
        assert np.array_equal(clip.image_mask, expected.image_mask)
        assert clip.image_mask.all() == (frame > 0)
        # Nothing was seen before the first; when that would have been is told differently, and the model reads it.
        for policy in policies if frame else policies[:1]:
            policy.reset(0)
            ours = policy.plan(clip, NOTHING)
            policy.reset(0)
            theirs = policy.plan(expected, NOTHING)
            assert np.array_equal(ours.xyyaw_in_ego, theirs.xyyaw_in_ego)
            assert np.array_equal(ours.speed_mps, theirs.speed_mps)
            assert ours.tokens == theirs.tokens


def calibrated(scene) -> Inputs:
    inputs = make_inputs(scene)
    for camera in make_cameras():
        inputs.take_info(camera.name, fake.info(camera, 1, optical_frame(camera.name)))
    return inputs


def drive(inputs: Inputs, leave_out=(), since_us=START_US, until_us=START_US + 1_000_000) -> None:
    """A healthy car that stands still, without the streams of `leave_out`."""
    data = fake.jpeg(np.full((48, 64, 3), 90, np.uint8))
    for time_us in range(since_us, until_us + 1, 20_000):
        clock = (time_us, time_us)
        inputs.take_odometry(fake.odometry(time_us, np.eye(4)), *clock)
        inputs.take_imu(fake.imu(time_us), *clock)
        for name in CAMERAS if (time_us - since_us) % 100_000 == 0 else ():
            if name not in leave_out:
                inputs.take_image(name, fake.image(time_us, optical_frame(name), data), *clock)


def test_no_clip_before_every_calibration_has_come(recorded):
    inputs = make_inputs(recorded[1])
    for camera in make_cameras()[:-1]:
        inputs.take_info(camera.name, fake.info(camera, 1, optical_frame(camera.name)))
    drive(inputs)
    with pytest.raises(StaleInput, match="no CameraInfo of CAM_FRONT_LEFT yet"):
        inputs.clip(START_US + 1_000_000, START_US + 1_000_000)


def test_report_counts_rates_and_refusals(recorded):
    inputs = calibrated(recorded[1])
    inputs.report(START_US, START_US)
    drive(inputs, leave_out=("CAM_BACK",))
    now = (START_US + 1_000_000, START_US + 1_000_000)
    inputs.take_image("CAM_BACK", fake.image(now[0], optical_frame("CAM_BACK"), b"garbage"), *now)
    inputs.take_image(
        "CAM_FRONT",
        fake.image(now[0] - 1, optical_frame("CAM_FRONT"), fake.jpeg(np.zeros((48, 64, 3), np.uint8))),
        *now,
    )
    inputs.take_image("CAM_FRONT", fake.image(now[0], "elsewhere", b""), *now)
    inputs.take_imu(fake.imu(now[0] + 1, (np.nan, 0, 0)), *now)
    report = inputs.report(*now)
    assert report["CAM_FRONT"].rate_hz == pytest.approx(11, abs=0.1)
    assert report["CAM_FRONT"].refused["stamp not increasing"] == 1
    assert report["CAM_FRONT"].refused["header.frame_id"] == 1
    assert report["CAM_BACK"].refused["image"] == 1
    assert report["CAM_BACK"].age_ms is None
    assert report["imu"].refused["linear_acceleration"] == 1
    assert inputs.clip(*now)[0].image_mask[-1].tolist() == [name != "CAM_BACK" for name in CAMERAS]


def test_another_calibration_while_running_is_a_fault(recorded):
    inputs = calibrated(recorded[1])
    drive(inputs)
    now = (START_US + 1_000_000, START_US + 1_000_000)
    inputs.clip(*now)
    camera = make_cameras()[2]
    inputs.take_info(camera.name, fake.info(camera, 2, optical_frame(camera.name)))
    inputs.clip(*now)  # the same again is no fault
    K = camera.K.copy()
    K[0, 0] += 1
    camera.K[:] = K
    inputs.take_info(camera.name, fake.info(camera, 2, optical_frame(camera.name)))
    with pytest.raises(StaleInput, match="CAM_BACK_RIGHT changed"):
        inputs.clip(*now)
    inputs.reset()
    assert inputs.report(*now)["CAM_BACK_RIGHT"].fault


def test_another_optical_frame_is_a_fault(recorded):
    inputs = make_inputs(recorded[1])
    inputs.take_info("CAM_FRONT", fake.info(make_cameras()[0], 1, "cam_back_optical_frame"))
    with pytest.raises(StaleInput, match="cam_front_optical_frame, as in the calibration file"):
        inputs.clip(START_US, START_US)


def test_words_of_the_route_go_into_the_clip(recorded):
    inputs = calibrated(recorded[1])
    drive(inputs)
    now = (START_US + 1_000_000, START_US + 1_000_000)
    assert (inputs.clip(*now)[0].command, inputs.clip(*now)[0].instruction) == ("follow", "")
    inputs.take_command(fake.Message(data="left"))
    inputs.take_instruction(fake.Message(data="stop behind the bus"))
    assert (inputs.clip(*now)[0].command, inputs.clip(*now)[0].instruction) == ("left", "stop behind the bus")
    inputs.take_command(fake.Message(data="lft"))
    with pytest.raises(StaleInput, match="Did you mean left"):
        inputs.clip(*now)
    inputs.take_command(fake.Message(data="right"))
    assert inputs.clip(*now)[0].command == "right"


def test_steering_reaches_the_clip_while_it_is_young(recorded):
    inputs = calibrated(recorded[1])
    drive(inputs)
    now = (START_US + 1_000_000, START_US + 1_000_000)
    assert np.isnan(inputs.clip(*now)[0].vehicle.steering_rad)
    for time_us, angle in ((now[0] - 250_000, 0.1), (now[0] - 200_000, 0.2), (now[0] + 1, 0.3)):
        inputs.take_steering(fake.message(steering_fields(time_us, angle)), *now)
    assert inputs.clip(*now)[0].vehicle.steering_rad == 0.2
    inputs.take_steering(fake.message(steering_fields(now[0] + 2, 9.0)), *now)
    assert inputs.report(*now)["steering"].refused["position"] == 1


def test_pictures_may_come_raw(recorded):
    inputs = calibrated(recorded[1])
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    drive(inputs, leave_out=("CAM_BACK",))
    now = (START_US + 1_000_000, START_US + 1_000_000)
    inputs.take_image("CAM_BACK", fake.raw_image(now[0], "cam_back_optical_frame", pixels), *now)
    assert np.array_equal(inputs.clip(*now)[0].images[-1, CAMERAS.index("CAM_BACK")], pixels)
    inputs.take_image("CAM_BACK", fake.raw_image(now[0], "cam_back_optical_frame", pixels, "yuv422"), *now)
    assert inputs.report(*now)["CAM_BACK"].refused["encoding"] == 1


def test_a_picture_that_had_to_be_refused_is_told_at_once_until_a_good_one_comes(recorded):
    inputs = calibrated(recorded[1])
    drive(inputs)
    now = (START_US + 1_000_010, START_US + 1_000_010)
    silent_us = 150_000
    assert inputs.health(*now, silent_us) == ([], [])
    small, good = (fake.jpeg(np.full((h, w, 3), 91, np.uint8)) for h, w in ((24, 32), (48, 64)))
    inputs.take_image("CAM_FRONT", fake.image(now[0], optical_frame("CAM_FRONT"), small), *now)
    faults, slight = inputs.health(*now, silent_us)
    assert not faults
    assert slight == ["CAM_FRONT: image size: came 32 x 24 px"]
    inputs.take_image("CAM_BACK", fake.image(now[0], optical_frame("CAM_BACK"), b"garbage"), *now)
    faults, slight = inputs.health(*now, silent_us)  # two cameras are more than may be missing
    assert [word.partition(":")[0] for word in faults] == ["CAM_FRONT", "CAM_BACK"]
    for name in ("CAM_FRONT", "CAM_BACK"):
        inputs.take_image(name, fake.image(now[0], optical_frame(name), good), *now)
    assert inputs.health(*now, silent_us) == ([], [])


@pytest.mark.parametrize("odometry_us", [None, 1_000_000], ids=["none", "ahead"])
def test_a_car_that_came_to_rest_while_its_place_was_unknown_sees_on(recorded, odometry_us):
    inputs, name, frame_id = calibrated(recorded[1]), "CAM_FRONT", optical_frame("CAM_FRONT")
    drive(inputs)
    data = fake.jpeg(np.full((48, 64, 3), 91, np.uint8))
    start_us, place = START_US + 1_000_000, frames.matrix_from_xy_yaw(8.5, 0, 0)
    for time_us in range(start_us + 20_000, start_us + 1_000_001, 20_000):  # meanwhile it stops 8.5 m further on
        if odometry_us is not None:
            inputs.take_odometry(fake.odometry(time_us + odometry_us, place), time_us, time_us)
        inputs.take_image(name, fake.image(time_us, frame_id, data), time_us, time_us)
    for time_us in range(start_us + 1_020_000, start_us + 1_500_001, 20_000):
        inputs.take_odometry(fake.odometry(time_us, place), time_us, time_us)
        inputs.take_image(name, fake.image(time_us, frame_id, data), time_us, time_us)
    assert inputs.report(time_us, time_us)[name].refused.get("data", 0) == 0
    time_us, further = time_us + 20_000, frames.matrix_from_xy_yaw(9.5, 0, 0)
    inputs.take_odometry(fake.odometry(time_us, further), time_us, time_us)
    inputs.take_image(name, fake.image(time_us, frame_id, data), time_us, time_us)
    assert inputs.report(time_us, time_us)[name].refused["data"] == 1  # but a camera that hangs is found


def test_another_world_frame_is_a_fault(recorded):
    inputs = calibrated(recorded[1])
    drive(inputs)
    now = (START_US + 1_000_010, START_US + 1_000_010)
    inputs.take_odometry(fake.odometry(now[0], frames.matrix_from_xy_yaw(5, 0, 0), frame_id="odom"), *now)
    with pytest.raises(StaleInput, match="odometry changed from map to odom"):
        inputs.clip(*now)


def test_reset_forgets_samples(recorded):
    inputs = calibrated(recorded[1])
    drive(inputs)
    inputs.reset()
    with pytest.raises(StaleInput, match="odometry: none yet"):
        inputs.clip(START_US + 1_000_000, START_US + 1_000_000)
