"""Messages to arrays and back, exactly; and a synchroniser that masks what is missing and invents nothing."""

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
from sensors.ros2_source import (
    OFF_STRIDE_US,
    STRIDE_US,
    Calibration,
    ClipAssembler,
    Limits,
    OdometrySample,
    StaleInput,
    Stream,
    camera_from_info,
    image_from_compressed,
    imu_from_message,
    odometry_from_message,
    read_calibration,
    stamp_from_time_us,
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
        ("jpeg", lambda data: data[:-40], "data"),
        ("jpeg", lambda data: b"", "data"),
        ("jpeg", lambda data: b"\x00" * 500, "data"),
        ("jpeg", lambda data: fake.jpeg(a_picture(height=48)), "size"),
    ],
)
def test_image_rejects(form, change, field):
    with pytest.raises(InputError) as caught:
        image_from_compressed(fake.image(NOW_US, "f", change(fake.jpeg(a_picture())), form), a_camera())
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
    message.angular_velocity_covariance[0] = -1.0
    with pytest.raises(InputError, match="not measured"):
        imu_from_message(message, np.eye(3))


@quick
@given(finite, finite, st.floats(-3.1, 3.1), st.floats(-5, 30), st.floats(-1, 1))
def test_odometry_round_trip(x_m, y_m, yaw_rad, speed_mps, yaw_rate_radps):
    T = frames.matrix_from_xy_yaw(x_m, y_m, yaw_rad)
    sample = odometry_from_message(fake.odometry(NOW_US, T, speed_mps, yaw_rate_radps))
    np.testing.assert_allclose(sample.T_world_from_ego, T, rtol=0, atol=1e-12)
    assert (sample.time_us, sample.speed_mps, sample.yaw_rate_radps) == (NOW_US, speed_mps, yaw_rate_radps)


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


# Streams -----------------------------------------------------------------------------------------


@quick
@given(st.lists(st.integers(0, 400), max_size=60), st.integers(1, 200), st.integers(1, 20))
def test_stream_is_its_slow_twin(times, keep_us, capacity):
    stream, kept, refused = Stream(keep_us, capacity, ahead_us=50), [], 0
    now_us = 250
    for time_us in times:
        good = time_us <= now_us + 50 and (not kept or time_us > kept[-1])
        assert stream.add(time_us, f"v{time_us}", now_us, 0) == good
        kept, refused = [*kept, time_us] if good else kept, refused + (not good)
    assert stream.not_increasing + stream.ahead == refused
    assert stream.accepted + refused == len(times)
    expected = [t for t in kept if t >= kept[-1] - keep_us][-capacity:]
    assert stream.times_us == expected
    assert stream.values == [f"v{t}" for t in expected]


@quick
@given(st.sets(st.integers(0, 200), max_size=20), st.integers(0, 200), st.integers(1, 50), st.integers(0, 200))
def test_nearest_is_its_slow_twin(times, at_us, tolerance_us, until_us):
    stream = Stream(1000, 100, 1000)
    for time_us in sorted(times):
        stream.add(time_us, None, 0, 0)
    fits = [t for t in sorted(times) if abs(t - at_us) <= tolerance_us and t <= until_us]
    found = stream.nearest(at_us, tolerance_us, until_us)
    if not fits:
        assert found is None
    else:
        assert stream.times_us[found] == min(fits, key=lambda t: abs(t - at_us))


def test_one_wild_stamp_does_not_lock_a_stream():
    stream = Stream(1_000_000, 100, 50_000)
    assert not stream.add(NOW_US * 2, None, NOW_US, 0)
    assert stream.add(NOW_US, None, NOW_US, 0)
    assert stream.ahead == 1


@pytest.mark.parametrize(
    "changes",
    [{"tolerance_us": 0}, {"tolerance_us": 125_000}, {"min_cameras": 0}, {"min_cameras": 7}]
    + [{name: 0} for name in ("camera_age_us", "odometry_age_us", "imu_age_us", "ahead_us")],
)
def test_limits_reject(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        Limits(**changes).validate(6)


# Clips -------------------------------------------------------------------------------------------

NAMES = ("A", "B", "C")
FRAME_US = 83_333


def motion(time_us: int) -> np.ndarray:
    return frames.matrix_from_xy_yaw((time_us - NOW_US) * 1e-5, 0.0, 0.0)


def coded(name: str, time_us: int) -> np.ndarray:
    """A picture that says which camera took it and when, in its bytes."""
    code = np.frombuffer(int(time_us).to_bytes(8, "big") + name.encode() + bytes(3), np.uint8)
    return np.tile(code[:12].reshape(2, 2, 3), (1, 1, 1))


def small_cameras(names=NAMES) -> tuple[Camera, ...]:
    return tuple(a_camera(name, 2, 2) for name in names)


def rig(steps=2, min_cameras=1, **limits) -> ClipAssembler:
    return ClipAssembler(small_cameras(), steps, Limits(min_cameras=min_cameras, **limits))


def feed(assembler: ClipAssembler, until_us: int, drop=lambda name, k: False, since_us=NOW_US - 2_000_000):
    """Cameras at 12 Hz that fire 30 ms apart, odometry at 50 Hz, IMU at 100 Hz; returns what was sent."""
    messages = [(t, "odometry", t) for t in range(since_us, until_us + 1, 20_000)]
    messages += [(t, "imu", t) for t in range(since_us, until_us + 1, 10_000)]
    for n, name in enumerate(assembler.images):
        times = range(since_us + 30_000 * n // 2, until_us + 1, FRAME_US)
        messages += [(t, name, t) for k, t in enumerate(times) if not drop(name, k)]
    sent = {name: [] for name in assembler.images}
    for time_us, name, _ in sorted(messages):
        clock = (time_us, time_us)
        if name == "odometry":
            sample = OdometrySample(time_us, motion(time_us), 10.0, 0.1, "map")
            assembler.odometry.add(time_us, sample, *clock)
        elif name == "imu":
            assembler.imu.add(time_us, (np.array([0, 0, 9.8]), np.zeros(3)), *clock)
        else:
            assembler.images[name].add(time_us, coded(name, time_us), *clock)
            sent[name].append(time_us)
    return sent


def test_clip_of_a_healthy_rig_is_complete():
    assembler = rig(steps=3)
    feed(assembler, NOW_US)
    clip = assembler.clip(NOW_US, NOW_US).validate()
    assert clip.now_us == NOW_US
    assert clip.image_mask.all()
    assert np.abs(np.diff(clip.time_us, axis=0) - STRIDE_US).max() <= 60_000
    assert len(clip.imu) == 100
    assert (clip.vehicle.speed_mps, clip.vehicle.yaw_rate_radps) == (10.0, 0.1)
    assert np.isnan(clip.vehicle.steering_rad)


@quick
@given(st.randoms(use_true_random=False), st.floats(0, 0.9), st.integers(1, 4), st.integers(0, 200_000))
def test_nothing_is_invented_and_nothing_there_is_left_out(random, loss, steps, late_us):
    assembler = rig(steps=steps)
    lost = {(name, k): random.random() < loss for name in NAMES for k in range(40)}
    sent = feed(assembler, NOW_US, lambda name, k: lost[name, k])
    now_us = NOW_US + late_us
    try:
        clip = assembler.clip(now_us, now_us).validate()
    except StaleInput:
        assert not any(now_us - t <= 250_000 and t <= NOW_US for times in sent.values() for t in times)
        return
    for t in range(steps):
        for n, name in enumerate(NAMES):
            time_us = int(clip.time_us[t, n])
            if clip.image_mask[t, n]:
                assert time_us in sent[name]
                assert np.array_equal(clip.images[t, n], coded(name, time_us))
                assert t < steps - 1 or now_us - time_us <= 250_000
            else:
                assert not clip.images[t, n].any()
            np.testing.assert_allclose(clip.T_world_from_ego[t, n], motion(time_us), atol=1e-9)
    for t in range(steps):  # earlier steps: masked only if no picture lies near the instant of the step
        shown = [n for n in range(3) if clip.image_mask[t, n]]
        instant_us = int(clip.time_us[t, 0])  # the first camera's, or the scheduled one
        for n in set(range(3)) - set(shown) if t < steps - 1 else ():
            assert not any(abs(s - instant_us) <= 60_000 for s in sent[NAMES[n]])


def test_complete_sets_at_12_hz_with_two_percent_drops():
    random = np.random.default_rng(0)
    lost = random.random((3, 800)) < 0.02
    whole = 0
    assembler = rig()
    for k in range(100):
        since_us = NOW_US + k * 500_000
        feed(assembler, since_us + 480_000, lambda name, i, k=k: lost[NAMES.index(name), i + 6 * k], since_us)
        whole += assembler.clip(since_us + 490_000, since_us + 490_000).image_mask[-1].all()
    assert whole >= 99


def test_a_stopped_camera_is_masked_in_the_newest_step_only():
    assembler = rig(steps=2)
    feed(assembler, NOW_US, lambda name, k: name == "B" and k >= 20)
    clip = assembler.clip(NOW_US, NOW_US).validate()
    assert clip.image_mask.tolist() == [[True, True, True], [True, False, True]]


def test_a_picture_beside_a_young_one_may_be_too_old():
    assembler = rig(steps=1, camera_age_us=250_000)
    for time_us in range(NOW_US - 400_000, NOW_US + 1, 20_000):
        assembler.odometry.add(time_us, OdometrySample(time_us, motion(time_us), 1.0, 0.0, "map"), NOW_US, NOW_US)
    # C is alive, but its young picture lies far from the others' and the one beside them is too old.
    for name, ago_us in (("A", 230_000), ("B", 249_000), ("C", 251_000), ("C", 100_000)):
        assembler.images[name].add(NOW_US - ago_us, coded(name, NOW_US - ago_us), NOW_US, NOW_US)
    assert assembler.clip(NOW_US, NOW_US).validate().image_mask.tolist() == [[True, True, False]]


def test_another_camera_is_the_reference_when_the_first_stops():
    assembler = rig(steps=2)
    feed(assembler, NOW_US, lambda name, k: name == "A" and k >= 12)
    clip = assembler.clip(NOW_US, NOW_US).validate()
    assert clip.image_mask[-1].tolist() == [False, True, True]


def test_before_the_first_pose_everything_is_masked_and_the_pose_repeated():
    assembler = rig(steps=3)
    feed(assembler, NOW_US, since_us=NOW_US - 700_000)
    clip = assembler.clip(NOW_US, NOW_US).validate()
    assert clip.image_mask.any(axis=1).tolist() == [False, True, True]
    assert np.array_equal(clip.T_world_from_ego[0], clip.T_world_from_ego[1])


@pytest.mark.parametrize("apart_us", [400_000, 600_000])
def test_uneven_keyframes_still_make_history(apart_us):
    assembler = rig(steps=2, camera_age_us=700_000, odometry_age_us=1_000_000)
    for time_us in (NOW_US - apart_us, NOW_US):
        assembler.odometry.add(time_us, OdometrySample(time_us, motion(time_us), 1.0, 0.0, "map"), NOW_US, NOW_US)
        for name in NAMES:
            assembler.images[name].add(time_us, coded(name, time_us), NOW_US, NOW_US)
    clip = assembler.clip(NOW_US, NOW_US).validate()
    assert clip.image_mask.all()
    assert clip.time_us.tolist() == [[NOW_US - apart_us] * 3, [NOW_US] * 3]


def test_a_gap_in_the_odometry_is_not_bridged():
    assembler = rig(steps=2)
    for time_us in (NOW_US - 900_000, NOW_US - 300_000, NOW_US - 150_000, NOW_US):
        assembler.odometry.add(time_us, OdometrySample(time_us, motion(time_us), 1.0, 0.0, "map"), NOW_US, NOW_US)
    for time_us in (NOW_US - 600_000, NOW_US - 100_000):
        for name in NAMES:
            assembler.images[name].add(time_us, coded(name, time_us), NOW_US, NOW_US)
    assert assembler.clip(NOW_US, NOW_US).validate().image_mask.any(axis=1).tolist() == [False, True]


@pytest.mark.parametrize("by_steady", [False, True])
def test_stale_inputs_give_no_clip(by_steady):
    """Also when the clock of the stamps has stopped together with the sensors."""
    assembler = rig(min_cameras=3)
    with pytest.raises(StaleInput, match="odometry: none yet"):
        assembler.clip(NOW_US, NOW_US)
    feed(assembler, NOW_US)
    assembler.clip(NOW_US, NOW_US)

    def after(later_us):
        return (NOW_US, NOW_US + later_us) if by_steady else (NOW_US + later_us, NOW_US)

    assembler.clip(*after(150_000))
    with pytest.raises(StaleInput, match="odometry: 201 ms old"):
        assembler.clip(*after(201_000))
    pose_us = after(300_000)[0] + 1
    assembler.odometry.add(pose_us, OdometrySample(pose_us, motion(pose_us), 1.0, 0.0, "map"), *after(300_000))
    with pytest.raises(StaleInput, match="cameras: 0 of 3"):
        assembler.clip(*after(300_000))


def test_a_stale_imu_is_not_shown():
    assembler = rig(imu_age_us=100_000)
    feed(assembler, NOW_US)
    assert len(assembler.clip(NOW_US + 90_000, NOW_US).imu)
    assert not len(assembler.clip(NOW_US + 110_000, NOW_US).imu)


def test_min_cameras_is_kept():
    assembler = rig(min_cameras=3)
    feed(assembler, NOW_US, lambda name, k: name == "C" and k >= 20)
    with pytest.raises(StaleInput, match="cameras: 2 of 3 fresh, at least 3"):
        assembler.clip(NOW_US, NOW_US)


def test_buffers_stay_bounded():
    assembler = rig(steps=2)
    feed(assembler, NOW_US, since_us=NOW_US - 20_000_000)
    span_us = STRIDE_US + 250_000 + 2 * OFF_STRIDE_US
    assert all(len(stream.times_us) <= span_us / FRAME_US + 1 for stream in assembler.images.values())
    assert len(assembler.imu.times_us) <= 121
