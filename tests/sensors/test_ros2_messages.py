"""Messages to arrays and back, exactly; whatever cannot be used is an InputError that names the field."""

import json

import cv2
import numpy as np
import pytest
import ros_message_stand_ins as fake
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors import frames
from sensors.camera import Camera
from sensors.errors import InputError
from sensors.ros2_calibration import Calibration, read_calibration
from sensors.ros2_messages import (
    OdometrySample,
    camera_from_info,
    command_from_message,
    image_from_compressed,
    image_from_message,
    imu_from_message,
    odometry_fields,
    odometry_from_message,
    stamp_from_time_us,
    steering_fields,
    steering_from_message,
    time_us_from_stamp,
)

quick = settings(deadline=None, derandomize=True, max_examples=40)
NOW_US = 1_700_000_000_000_000
finite = st.floats(-1e3, 1e3)


def a_camera(name="CAM_FRONT", width=32, height=24, distortion="none", coefficients=()) -> Camera:
    K = np.array([[20.0, 0, 15.5], [0, 21.0, 11.5], [0, 0, 1]])
    return Camera(name, width, height, K, frames.matrix_from_xy_yaw(1.0, 0.1, 0.2), distortion, coefficients)


# Stamps ------------------------------------------------------------------------------------------


@quick
@given(st.integers(1, (2**31 - 1) * 1_000_000 + 999_999))
def test_time_to_stamp_and_back_is_exact(time_us):
    sec, nanosec = stamp_from_time_us(time_us)
    assert 0 <= nanosec < 10**9
    assert time_us_from_stamp(fake.Message(sec=sec, nanosec=nanosec)) == time_us


@quick
@given(st.integers(1, 2**31 - 1), st.integers(0, 10**9 - 1), st.integers(0, 2**31 - 1), st.integers(0, 10**9 - 1))
def test_stamps_keep_their_order_and_lose_less_than_a_microsecond(sec, nanosec, other_sec, other_nanosec):
    first, second = sorted([(sec, nanosec), (max(other_sec, 1), other_nanosec)])
    times_us = [time_us_from_stamp(fake.Message(sec=s, nanosec=n)) for s, n in (first, second)]
    assert times_us[0] <= times_us[1]
    s, n = stamp_from_time_us(times_us[0])
    assert 0 <= first[0] * 10**9 + first[1] - (s * 10**9 + n) < 1000


@pytest.mark.parametrize(("sec", "nanosec"), [(0, 0), (-1, 5), (1, -1), (1, 10**9), (2**31, 0)])
def test_stamp_rejects(sec, nanosec):
    with pytest.raises(InputError, match=r"header\.stamp"):
        time_us_from_stamp(fake.Message(sec=sec, nanosec=nanosec))


@pytest.mark.parametrize("time_us", [-1, 2**31 * 1_000_000])
def test_time_rejects_what_a_stamp_cannot_hold(time_us):
    with pytest.raises(InputError, match="time_us"):
        stamp_from_time_us(time_us)


# Images and calibration --------------------------------------------------------------------------


def a_picture(seed=0, height=24, width=32) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


@pytest.mark.parametrize("form", ["jpeg", "jpg", "rgb8; jpeg compressed bgr8", "bgr8; jpeg compressed bgr8"])
def test_image_is_the_jpeg_in_rgb(form):
    picture = a_picture()
    decoded = image_from_compressed(fake.image(NOW_US, "f", fake.jpeg(picture), form), a_camera())
    assert decoded.shape == (24, 32, 3)
    assert np.abs(decoded.astype(int) - picture).mean() < 12  # JPEG loss; swapped channels differ by 80
    assert np.abs(decoded[..., ::-1].astype(int) - picture).mean() > 40


@pytest.mark.parametrize(
    ("form", "change", "field"),
    [
        ("png", lambda data: data, "format"),
        ("", lambda data: data, "format"),
        ("16UC1; compressedDepth png", lambda data: data, "format"),
        ("jpeg", lambda data: data[:-40], "image"),
        ("jpeg", lambda data: b"", "image"),
        ("jpeg", lambda data: b"\x00" * 500, "image"),
        ("jpeg", lambda data: fake.jpeg(a_picture(height=48)), "image size"),
    ],
)
def test_image_rejects(form, change, field):
    with pytest.raises(InputError) as caught:
        image_from_compressed(fake.image(NOW_US, "f", change(fake.jpeg(a_picture())), form), a_camera())
    assert caught.value.field == field


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
@pytest.mark.parametrize("padding", [0, 5])
def test_raw_image_is_its_pixels(encoding, padding):
    picture = a_picture(1)
    pixels = np.concatenate([picture, np.full((24, 32, 1), 9, np.uint8)], axis=-1)
    pixels = pixels[..., ["rgba".index(colour) for colour in encoding[:-1]]]
    decoded = image_from_message(fake.raw_image(NOW_US, "f", pixels, encoding, padding), a_camera())
    assert np.array_equal(decoded, picture)
    assert decoded.flags.c_contiguous
    half = image_from_message(fake.raw_image(NOW_US, "f", pixels, encoding, padding), a_camera(), (16, 12))
    assert np.array_equal(half, a_camera().resize(16, 12, picture)[0])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"encoding": "yuv422"}, "encoding"),
        ({"encoding": "mono16"}, "encoding"),
        ({"encoding": ""}, "encoding"),
        ({"height": 48}, "image size"),
        ({"step": 95}, "step, data"),
        ({"data": b""}, "step, data"),
    ],
)
def test_raw_image_rejects(changes, field):
    message = fake.raw_image(NOW_US, "f", a_picture())
    vars(message).update(changes)
    with pytest.raises(InputError) as caught:
        image_from_message(message, a_camera())
    assert caught.value.field == field


@quick
@given(
    st.sampled_from([("none", 0), ("brown_conrady", 5), ("fisheye", 4)]).flatmap(
        lambda kind: st.tuples(st.just(kind[0]), st.lists(st.floats(-0.3, 0.3), min_size=kind[1], max_size=kind[1]))
    )
)
def test_camera_to_info_and_back_is_exact(model):
    distortion, coefficients = model
    if distortion == "brown_conrady" and not any(coefficients):
        distortion, coefficients = "none", []
    camera = a_camera(distortion=distortion, coefficients=tuple(coefficients))
    back = camera_from_info(fake.info(camera), camera.name, camera.T_ego_from_cam)
    assert (back.name, back.width, back.height) == (camera.name, camera.width, camera.height)
    assert (back.distortion, back.coefficients) == (camera.distortion, camera.coefficients)
    assert np.array_equal(back.K, camera.K)
    assert np.array_equal(back.T_ego_from_cam, camera.T_ego_from_cam)


def test_plumb_bob_of_four_has_no_k3():
    message = fake.info(a_camera())
    message.d = [0.1, 0.2, 0.01, 0.02]
    camera = camera_from_info(message, "CAM_FRONT", np.eye(4))
    assert (camera.distortion, camera.coefficients) == ("brown_conrady", (0.1, 0.2, 0.01, 0.02, 0.0))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"k": [0.0] * 9}, "K"),
        ({"k": []}, "K"),
        ({"width": 0}, "width, height"),
        ({"distortion_model": "rational_polynomial", "d": [0.1] * 8}, "distortion_model, d"),
        ({"distortion_model": "plumb_bob", "d": [0.1] * 3}, "distortion_model, d"),
        ({"distortion_model": "equidistant", "d": [0.1] * 5}, "distortion_model, d"),
        ({"distortion_model": "", "d": [0.1] * 5}, "distortion_model, d"),
        ({"d": [0.0, 0.0, float("nan"), 0.0, 0.0]}, "d"),
        ({"binning_x": 2}, "roi, binning"),
        ({"roi": fake.Message(x_offset=4, y_offset=0, width=16, height=24)}, "roi, binning"),
    ],
)
def test_camera_info_rejects(changes, field):
    message = fake.info(a_camera())
    vars(message).update(changes)
    with pytest.raises(InputError) as caught:
        camera_from_info(message, "CAM_FRONT", np.eye(4))
    assert caught.value.field == field


def a_calibration() -> Calibration:
    R = frames.matrix_from_xy_yaw(0, 0, 0.3)[:3, :3]
    return Calibration({"CAM_FRONT": "cam_front_optical_frame"}, {"CAM_FRONT": a_camera().T_ego_from_cam}, R)


def test_calibration_file_round_trip_is_exact(tmp_path):
    path = tmp_path / "car.json"
    path.write_text(json.dumps(a_calibration().content()))
    back = read_calibration(path, ("CAM_FRONT",))
    assert back.frame_ids == a_calibration().frame_ids
    assert np.array_equal(back.T_ego_from_cam["CAM_FRONT"], a_calibration().T_ego_from_cam["CAM_FRONT"])
    assert np.array_equal(back.R_ego_from_imu, a_calibration().R_ego_from_imu)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda c: c.pop("imu"), "imu.R_ego_from_imu"),
        (lambda c: c["cameras"].pop("CAM_FRONT"), "cameras.CAM_FRONT.frame_id"),
        (lambda c: c["cameras"]["CAM_FRONT"].pop("T_ego_from_cam"), "cameras.CAM_FRONT.T_ego_from_cam"),
        (lambda c: c["cameras"]["CAM_FRONT"].update(T_ego_from_cam=[[1, 2], [3]]), "cameras.CAM_FRONT.T_ego_from_cam"),
        (
            lambda c: c["cameras"]["CAM_FRONT"].update(T_ego_from_cam=(2 * np.eye(4)).tolist()),
            "cameras.CAM_FRONT.T_ego_from_cam",
        ),
        (lambda c: c["imu"].update(R_ego_from_imu=np.diag([1.0, 1, -1]).tolist()), "imu.R_ego_from_imu"),
    ],
)
def test_calibration_rejects(change, field, tmp_path):
    content = a_calibration().content()
    change(content)
    path = tmp_path / "car.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_calibration(path, ("CAM_FRONT",))
    assert caught.value.field == field


def test_calibration_rejects_no_file_and_no_json(tmp_path):
    with pytest.raises(InputError, match="file"):
        read_calibration(tmp_path / "none.json", ())
    (tmp_path / "cut.json").write_text('{"cameras": ')
    with pytest.raises(InputError, match="content"):
        read_calibration(tmp_path / "cut.json", ())


# IMU and odometry --------------------------------------------------------------------------------


@quick
@given(st.lists(finite, min_size=6, max_size=6))
def test_imu_is_turned_into_ego_axes(values):
    yaw_90 = frames.matrix_from_xy_yaw(0, 0, np.pi / 2)[:3, :3]
    time_us, accel, gyro = imu_from_message(fake.imu(NOW_US, values[:3], values[3:]), yaw_90)
    assert time_us == NOW_US
    np.testing.assert_allclose(accel, [-values[1], values[0], values[2]], atol=1e-9)
    np.testing.assert_allclose(gyro, [-values[4], values[3], values[5]], atol=1e-9)
    _, accel, gyro = imu_from_message(fake.imu(NOW_US, values[:3], values[3:]), np.eye(3))
    assert [*accel, *gyro] == values


def test_imu_rejects():
    for bad in (fake.imu(NOW_US, (np.nan, 0, 0)), fake.imu(NOW_US, gyro_radps=(0, np.inf, 0))):
        with pytest.raises(InputError, match="finite"):
            imu_from_message(bad, np.eye(3))
    message = fake.imu(NOW_US)
    message.angular_velocity_covariance = [-1.0] * 9
    with pytest.raises(InputError, match="not measured"):
        imu_from_message(message, np.eye(3))


@quick
@given(finite, finite, st.floats(-3.1, 3.1), st.floats(-5, 30), st.floats(-1, 1))
def test_odometry_round_trip(x_m, y_m, yaw_rad, speed_mps, yaw_rate_radps):
    T = frames.matrix_from_xy_yaw(x_m, y_m, yaw_rad)
    sample = odometry_from_message(fake.odometry(NOW_US, T, speed_mps, yaw_rate_radps))
    np.testing.assert_allclose(sample.T_world_from_ego, T, rtol=0, atol=1e-12)
    assert (sample.time_us, sample.speed_mps, sample.yaw_rate_radps) == (NOW_US, speed_mps, yaw_rate_radps)


unit = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1)


@quick
@given(unit, st.lists(finite, min_size=3, max_size=3), st.floats(-5, 30), st.floats(-1, 1), st.sampled_from("sy-"))
def test_odometry_message_to_sample_and_back_is_exact(q, position_m, speed_mps, yaw_rate_radps, unmeasured):
    motion = {"s": (np.nan, yaw_rate_radps), "y": (speed_mps, np.nan), "-": (speed_mps, yaw_rate_radps)}[unmeasured]
    q_wxyz = tuple(np.array(q) / np.linalg.norm(q))
    T = frames.matrix(np.array(position_m), frames.rotation_from_quaternion(np.array(q_wxyz)))
    fields = odometry_fields(OdometrySample(NOW_US, T, *motion, "map", q_wxyz))
    sample = odometry_from_message(fake.message(fields))
    assert np.array_equal(sample.T_world_from_ego, T)
    assert np.array_equal((sample.speed_mps, sample.yaw_rate_radps), motion, equal_nan=True)
    assert odometry_fields(sample) == fields


@quick
@given(st.floats(-1.4, 1.4))
def test_steering_to_message_and_back_is_exact(steering_rad):
    message = fake.message(steering_fields(NOW_US, steering_rad))
    assert steering_from_message(message) == (NOW_US, steering_rad)


@pytest.mark.parametrize("position", [[], [np.nan], [30.0], [-np.inf]])
def test_steering_rejects(position):
    message = fake.message(steering_fields(NOW_US, 0.0))
    message.position = position
    with pytest.raises(InputError, match="steering: position"):
        steering_from_message(message)


def test_command_is_one_of_the_known():
    assert command_from_message(fake.Message(data="left")) == "left"
    with pytest.raises(InputError, match="Did you mean left"):
        command_from_message(fake.Message(data="Left"))


def test_odometry_rejects():
    lost = np.eye(4)
    lost[0, 3] = np.nan
    with pytest.raises(InputError, match="finite"):
        odometry_from_message(fake.odometry(NOW_US, lost))
    with pytest.raises(InputError, match="finite"):
        odometry_from_message(fake.odometry(NOW_US, np.eye(4), speed_mps=np.inf))
    message = fake.odometry(NOW_US, np.eye(4))
    message.pose.pose.orientation.w = 0.0
    with pytest.raises(InputError, match="unit quaternion"):
        odometry_from_message(message)
