import numpy as np
import pytest

from sensors.camera import Camera
from sensors.errors import InputError
from sensors.frames import matrix_from_xy_yaw
from sensors.gym_source import ClipHistory

CAMERAS = tuple(Camera(name, 4, 3, np.array([[4.0, 0, 1.5], [0, 4.0, 1], [0, 0, 1]]), np.eye(4)) for name in "AB")
BEFORE_US = np.array([20_000, 5_000])


def observation(k: int, images: bool = True) -> dict:
    """Step k of an episode at 10 Hz that moves 1 m a step; everything in it tells k."""
    now_us = 10_000_000 + 100_000 * k
    times = now_us - BEFORE_US
    imu_us = now_us - np.arange(9, -1, -1) * 10_000
    out = {
        "camera_time_us": times,
        "T_world_from_ego": matrix_from_xy_yaw(k - BEFORE_US * 1e-5, 0.0, 0.0),
        "T_world_from_ego_now": matrix_from_xy_yaw(k, 0.0, 0.0),
        "now_us": np.array(now_us),
        "imu_time_us": imu_us,
        "imu_accel_mps2": np.full((10, 3), float(k)),
        "imu_gyro_radps": np.zeros((10, 3)),
        "vehicle": np.array([10.0, 0.1, 0.01 * k]),
    }
    if images:
        out["images"] = np.full((2, 3, 4, 3), k, np.uint8)
    return out


def history(count: int, **arguments) -> ClipHistory:
    made = ClipHistory(CAMERAS, 4, **arguments)
    for k in range(count):
        made.append(observation(k))
    return made


def test_steps_are_the_frames_a_stride_apart():
    clip = history(40).clip("left", "turn left").validate()
    assert clip.now_us == 10_000_000 + 39 * 100_000
    assert clip.images[:, 0, 0, 0, 0].tolist() == [24, 29, 34, 39]
    assert clip.image_mask.all()
    assert (clip.time_us[-1] == clip.now_us - BEFORE_US).all()
    assert np.diff(clip.time_us, axis=0).tolist() == [[500_000, 500_000]] * 3
    assert clip.T_world_from_ego[0, :, 0, 3] == pytest.approx(24 - BEFORE_US * 1e-5)
    assert (clip.command, clip.instruction) == ("left", "turn left")
    assert clip.vehicle.steering_rad == pytest.approx(0.39)
    assert clip.imu.time_us[0] > clip.now_us - 1_000_000
    assert len(clip.imu) == 100
    assert clip.imu.accel_mps2[:, 0].tolist() == np.repeat(np.arange(30.0, 40.0), 10).tolist()


@pytest.mark.parametrize("seen", [1, 4, 6, 11])
def test_before_the_start_steps_are_masked_with_due_times_and_first_pose(seen):
    clip = history(seen).clip().validate()
    missing = 4 - (1 + (seen - 1) // 5)
    assert clip.image_mask[:, 0].tolist() == [False] * missing + [True] * (4 - missing)
    assert (clip.images[:missing] == 0).all()
    assert np.diff(clip.time_us, axis=0).tolist() == [[500_000, 500_000]] * 3
    first = observation(0)["T_world_from_ego"]
    assert np.array_equal(clip.T_world_from_ego[:missing], np.tile(first, (missing, 1, 1, 1)))


def test_a_dropped_frame_is_masked_and_a_late_one_within_tolerance_used():
    made = ClipHistory(CAMERAS, 2)
    for k in (0, 1, 2, 3, 4, 7):
        made.append(observation(k))
    clip = made.clip().validate()
    assert clip.image_mask[:, 0].tolist() == [True, True]  # now is 7, so step 0 is frame 2
    made.append(observation(11))
    clip = made.clip().validate()  # frame 6 never came
    assert clip.image_mask[:, 0].tolist() == [False, True]
    assert clip.time_us[0].tolist() == (clip.time_us[1] - 500_000).tolist()
    late = observation(16)
    late["now_us"] = late["now_us"] + 40_000
    made.append(late)
    assert made.clip().validate().images[:, 0, 0, 0, 0].tolist() == [11, 16]


def test_an_image_that_has_not_arrived_is_masked_and_a_stale_one_keeps_its_time():
    made = ClipHistory(CAMERAS, 2)
    for k in range(6):
        seen = observation(k)
        seen["image_mask"] = np.array([k != 0, True])
        seen["camera_time_us"] = seen["camera_time_us"] - np.array([0, 100_000])
        made.append(seen)
    clip = made.clip().validate()
    assert clip.image_mask.tolist() == [[False, True], [True, True]]
    assert not clip.images[0, 0].any(), "what an observation shows of a masked camera is not believed"
    assert clip.images[1, :, 0, 0, 0].tolist() == [5, 5]
    assert (clip.time_us[1] == clip.now_us - BEFORE_US - (0, 100_000)).all()


def test_without_images_everything_is_masked():
    made = ClipHistory(CAMERAS, 2)
    made.append(observation(0, images=False))
    clip = made.clip().validate()
    assert not clip.image_mask.any()
    assert not clip.images.any()


def test_frames_are_copied_and_reset_forgets():
    made, given = ClipHistory(CAMERAS, 1), observation(3)
    made.append(given)
    given["images"][:] = 99
    assert made.clip().images.max() == 3
    made.reset()
    made.append(observation(0))  # an earlier time is no error after a reset
    assert len(made.clip().imu) == 10


def test_old_frames_are_let_go():
    made = history(200)
    assert len(made._frames) <= 17


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", np.zeros((2, 3, 4, 3), np.float32)),
        ("images", np.zeros((2, 4, 3, 3), np.uint8)),
        ("camera_time_us", np.zeros(3, np.int64)),
        ("vehicle", np.zeros(2)),
        ("imu_accel_mps2", np.zeros((9, 3))),
        ("imu_time_us", np.arange(10) + 20_000_000),
        ("camera_time_us", np.full(2, 20_000_000)),
        ("now_us", np.array(1.5)),
        ("image_mask", np.ones(2, np.int8)),
        ("image_mask", np.ones(3, bool)),
    ],
)
def test_append_rejects(name, value):
    bad = observation(1)
    bad[name] = value
    with pytest.raises(InputError, match=name):
        history(0).append(bad)


def test_append_rejects_nan_in_the_imu():
    bad = observation(0)
    bad["imu_accel_mps2"][3, 1] = np.nan
    with pytest.raises(InputError, match=r"accel_mps2\[3\]"):
        history(0).append(bad)


def test_append_rejects_missing_fields_and_time_running_backwards():
    bad = observation(0)
    del bad["vehicle"]
    with pytest.raises(InputError, match="vehicle: came nothing"):
        history(0).append(bad)
    with pytest.raises(InputError, match="reset"):
        history(3).append(observation(1))


def test_construction_and_clip_reject():
    with pytest.raises(InputError, match="steps"):
        ClipHistory(CAMERAS, 0)
    with pytest.raises(InputError, match="stride_us"):
        ClipHistory(CAMERAS, 1, stride_us=0)
    with pytest.raises(InputError, match="append"):
        ClipHistory(CAMERAS, 1).clip()
