"""The clip's rules, its masking, and the checker of sources."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from sensors.camera import Camera
from sensors.clip import Boxes, Clip, Future
from sensors.errors import InputError
from sensors.imu import ImuWindow
from sensors.source import check_source

T, N, HEIGHT, WIDTH = 2, 3, 4, 6
NOW_US = 1_600_000_000_500_000


def cameras():
    K = np.array([[5.0, 0.0, 2.5], [0.0, 5.0, 1.5], [0.0, 0.0, 1.0]])
    return tuple(Camera(f"CAM_{n}", WIDTH, HEIGHT, K, np.eye(4)) for n in range(N))


def clip(**fields):
    images = np.random.default_rng(0).integers(1, 256, (T, N, HEIGHT, WIDTH, 3), dtype=np.uint8)
    time_us = NOW_US - np.array([[500_000], [0]]) - np.arange(N) * 1000
    poses = np.tile(np.eye(4), (T, N, 1, 1))
    return replace(Clip(NOW_US, np.eye(4), cameras(), images, np.ones((T, N), bool), time_us, poses), **fields)


def test_a_good_clip_is_valid():
    good = clip()
    assert good.validate() is good
    assert good.steps == T


def poke(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def imu(until_us):
    return ImuWindow(np.array([until_us - 10, until_us]), np.zeros((2, 3)), np.zeros((2, 3)))


good = clip()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"images": good.images[..., :2]}, "images"),
        ({"images": np.moveaxis(good.images, -1, 2)}, "images"),
        ({"images": good.images.astype(np.float32)}, "images"),
        ({"image_mask": good.image_mask[:1]}, "image_mask"),
        ({"image_mask": good.image_mask.astype(int)}, "image_mask"),
        ({"time_us": good.time_us.astype(float)}, "time_us"),
        ({"T_world_from_ego": good.T_world_from_ego[:, :1]}, "T_world_from_ego"),
        ({"T_world_from_ego_now": np.eye(3)}, "T_world_from_ego_now"),
        ({"cameras": cameras()[:2]}, "images"),
        ({"cameras": (*cameras()[:2], cameras()[0])}, "cameras"),
        ({"cameras": (*cameras()[:2], replace(cameras()[2], width=7))}, "cameras"),
        ({"cameras": (*cameras()[:2], replace(cameras()[2], distortion="odd"))}, "distortion"),
        ({"T_world_from_ego": poke(good.T_world_from_ego, (0, 0, 1, 1), np.nan)}, "T_world_from_ego"),
        ({"T_world_from_ego_now": np.full((4, 4), np.inf)}, "T_world_from_ego_now"),
        ({"time_us": good.time_us + 1}, "time_us"),
        ({"time_us": poke(good.time_us, (0, 1), good.time_us[1, 1])}, "time_us[1] of CAM_1"),
        ({"imu": imu(NOW_US + 1)}, "imu.time_us"),
        ({"imu": ImuWindow(np.array([2, 1]), np.zeros((2, 3)), np.zeros((2, 3)))}, "time_us[1]"),
        ({"command": "home"}, "command"),
    ],
)
def test_validate_rejects(fields, field):
    with pytest.raises(InputError) as error:
        clip(**fields).validate("log frame 3")
    assert error.value.field == field
    assert error.value.where.startswith("log frame 3")


@pytest.mark.parametrize("shape", [(0, N), (T, 0)])
def test_validate_rejects_no_step_and_no_camera(shape):
    t, n = shape
    empty = clip(
        cameras=cameras()[:n],
        images=np.zeros((t, n, HEIGHT if n else 0, WIDTH if n else 0, 3), np.uint8),
        image_mask=np.zeros((t, n), bool),
        time_us=np.zeros((t, n), np.int64),
        T_world_from_ego=np.zeros((t, n, 4, 4)),
    )
    with pytest.raises(InputError, match="at least one step and one camera"):
        empty.validate()


def test_the_latest_instant_may_be_now():
    assert clip(imu=imu(NOW_US)).validate().time_us.max() == NOW_US


def test_masking_takes_images_away_and_nothing_else():
    mask = np.zeros((T, N), bool)
    mask[0, 1] = True
    masked = good.with_masked(mask).validate()
    assert not masked.images[0, 1].any()
    assert masked.image_mask.tolist() == [[True, False, True], [True, True, True]]
    np.testing.assert_array_equal(masked.images[~mask], good.images[~mask])
    assert good.images[0, 1].all()
    np.testing.assert_array_equal(masked.time_us, good.time_us)
    twice = masked.with_masked(~mask)
    assert not twice.image_mask.any()


def test_the_last_steps_of_a_clip():
    whole = clip()
    last = whole.last(1).validate()
    assert last.steps == 1
    np.testing.assert_array_equal(last.images[0], whole.images[-1])
    np.testing.assert_array_equal(last.time_us[0], whole.time_us[-1])
    for steps in (0, T + 1):
        with pytest.raises(InputError, match=f"1 to {T}"):
            whole.last(steps)


def test_a_clip_has_no_future():
    assert not {"future", "boxes", "boxes_now"} & set(Clip.__dataclass_fields__)


def test_input_errors_cross_processes():
    error = InputError("a.json", "token", 3, "a string", "Fix it.")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "a.json: token: came 3, expected a string. Fix it."
    assert copy.field == "token"


class Fake:
    """A source of two scenes of three frames; tests break one thing at a time."""

    name, scenes = "fake", ("a", "b")

    def __init__(self, **broken):
        self.broken, self.asked = broken, 0

    def frame_times_us(self, scene):
        return self.broken.get("times", NOW_US + 1_000_000 * np.arange(3))

    def clip(self, scene, frame):
        self.asked += 1
        shift = 1_000_000 * frame
        fields = {"now_us": NOW_US + shift, "time_us": good.time_us + shift}
        return clip(**fields, **self.broken.get("clip", lambda scene, asked: {})(scene, self.asked))

    def future(self, scene, frame):
        later = self.broken.get("later", NOW_US + 1_000_000 * np.arange(frame + 1, 3))
        return Future(later, np.zeros((self.broken.get("poses", len(later)), 4, 4)), Boxes.empty())


def test_the_checker_accepts_a_good_source():
    assert check_source(Fake()) == 6
    assert check_source(Fake(), frames_per_scene=1) == 2


def other_cameras(scene, asked):
    return {"cameras": tuple(replace(c, name=f"{scene}{c.name}") for c in cameras())}


def other_images(scene, asked):
    return {"images": np.full_like(good.images, asked)}


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        ({"times": np.arange(3.0)}, "frame_times_us"),
        ({"times": np.zeros(0, np.int64)}, "frame_times_us"),
        ({"times": np.array([NOW_US, NOW_US])}, "frame_times_us"),
        ({"times": NOW_US + np.arange(3)}, "clip.now_us"),
        ({"clip": lambda scene, asked: {"command": "home"}}, "command"),
        ({"clip": other_cameras}, "clip"),
        ({"clip": other_images}, "clip"),
        ({"later": np.array([NOW_US])}, "future.time_us"),
        ({"later": np.array([NOW_US + 5_000_000, NOW_US + 4_000_000])}, "future.time_us"),
        ({"poses": 5}, "future.T_world_from_ego"),
    ],
)
def test_the_checker_rejects(broken, field):
    with pytest.raises(InputError) as error:
        check_source(Fake(**broken))
    assert error.value.field == field
    assert error.value.where.startswith("fake ")


def test_the_checker_rejects_an_empty_source():
    source = Fake()
    source.scenes = ()
    with pytest.raises(InputError, match="scenes: came none"):
        check_source(source)
