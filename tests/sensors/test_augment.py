from dataclasses import replace

import numpy as np
import pytest

from sensors import frames
from sensors.augment import (
    MIRROR_EGO,
    crop,
    drop_cameras,
    mirror,
    mirror_poses,
    misplace_cameras,
    photometric,
    shift_clocks,
)
from sensors.camera import Camera
from sensors.clip import Clip, VehicleState
from sensors.imu import ImuWindow

OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
LENSES = (
    ("CAM_FRONT", "none", ()),
    ("CAM_FRONT_LEFT", "brown_conrady", (-0.2, 0.05, 2e-3, -3e-3, 0.01)),
    ("CAM_BACK_RIGHT", "fisheye", (0.05, -0.01, 0.002, -0.0004)),
)


def some_clip(rng: np.random.Generator) -> Clip:
    cameras = []
    for n, (name, distortion, coefficients) in enumerate(LENSES):
        K = np.array([[20.0, 0, 14.3 + n], [0, 21.0, 7.9], [0, 0, 1]])
        T = frames.matrix_from_xy_yaw(1.0, 0.4 * n, 1.1 * n) @ frames.matrix(np.array([0.1, 0.2, 1.5]), OPTICAL)
        cameras.append(Camera(name, 32, 16, K, T, distortion, coefficients))
    time_us = 10_000_000 - np.array([[520_000, 515_000, 510_000], [20_000, 15_000, 10_000]])
    poses = frames.matrix_from_xy_yaw(rng.normal(size=(2, 3)), rng.normal(size=(2, 3)), rng.normal(size=(2, 3)))
    imu = ImuWindow(np.arange(9_900_000, 10_000_000, 10_000), rng.normal(size=(10, 3)), rng.normal(size=(10, 3)))
    return Clip(
        10_000_000,
        frames.matrix_from_xy_yaw(3.0, -2.0, 0.4),
        tuple(cameras),
        rng.integers(0, 256, (2, 3, 16, 32, 3), np.uint8),
        np.ones((2, 3), bool),
        time_us,
        poses,
        imu,
        VehicleState(5.0, 0.2, 0.05),
        "left",
        "turn left, then keep right",
    ).validate()


def assert_same(a: Clip, b: Clip) -> None:
    for name in ("T_world_from_ego_now", "images", "image_mask", "time_us", "T_world_from_ego"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-12)
    for x, y in zip(a.cameras, b.cameras, strict=True):
        assert (x.name, x.distortion) == (y.name, y.distortion)
        np.testing.assert_allclose(x.K, y.K, atol=1e-12)
        np.testing.assert_allclose(x.T_ego_from_cam, y.T_ego_from_cam, atol=1e-12)
        np.testing.assert_allclose(x.coefficients, y.coefficients)
    assert (a.vehicle, a.command, a.instruction) == (b.vehicle, b.command, b.instruction)
    np.testing.assert_array_equal(a.imu.accel_mps2, b.imu.accel_mps2)
    np.testing.assert_array_equal(a.imu.gyro_radps, b.imu.gyro_radps)


def test_mirror_is_its_own_inverse_and_valid():
    clip = some_clip(np.random.default_rng(0))
    mirrored = mirror(clip).validate()
    assert mirrored.command == "right"
    assert mirrored.instruction == "turn right, then keep left"
    assert [camera.name for camera in mirrored.cameras] == ["CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT"]
    assert_same(mirror(mirrored), clip)


@pytest.mark.parametrize("n", range(len(LENSES)))
def test_a_mirrored_point_is_seen_at_the_mirrored_pixel(n):
    rng = np.random.default_rng(1)
    clip = some_clip(rng)
    mirrored = mirror(clip)
    points_in_world = frames.apply(
        clip.T_world_from_ego[0, n] @ clip.cameras[n].T_ego_from_cam, rng.uniform((-1, -1, 3), (1, 1, 9), (50, 3))
    )

    def pixels(some: Clip, points: np.ndarray):
        T_cam_from_world = frames.inverse(some.T_world_from_ego[0, n] @ some.cameras[n].T_ego_from_cam)
        return some.cameras[n].project(frames.apply(T_cam_from_world, points))

    uv, valid = pixels(clip, points_in_world)
    uv_mirrored, valid_mirrored = pixels(mirrored, points_in_world * (1, -1, 1))
    assert valid.all()
    assert valid_mirrored.all()
    np.testing.assert_allclose(uv_mirrored, np.stack([31 - uv[:, 0], uv[:, 1]], axis=1), atol=1e-9)
    np.testing.assert_array_equal(mirrored.images[:, n, :, 31 - 7], clip.images[:, n, :, 7])


def look(directions_in_ego: np.ndarray) -> np.ndarray:
    """uint8 [..., 3]: a smooth world, far away, as it looks in each direction [..., 3]."""
    waves = np.stack([directions_in_ego @ wave for wave in ((1.0, 2.0, 0.5), (-1.5, 0.4, 1.0), (0.3, -1.0, 2.0))], -1)
    return (127.5 + 100 * np.sin(waves)).round().astype(np.uint8)


def in_a_world(clip: Clip) -> Clip:
    """The clip with images of that world."""
    pictures = [look(camera.pixel_rays() @ camera.T_ego_from_cam[:3, :3].T) for camera in clip.cameras]
    return replace(clip, images=np.tile(np.stack(pictures), (len(clip.images), 1, 1, 1, 1)))


def assert_shows_the_world(clip: Clip, away: float = 3.0, flip: tuple[int, int, int] = (1, 1, 1)) -> None:
    """Each pixel is what the world, mirrored by flip, looks like in the direction that the calibration gives it."""
    for n, camera in enumerate(clip.cameras):
        expected = look(camera.pixel_rays() @ camera.T_ego_from_cam[:3, :3].T * flip).astype(float)
        off = np.abs(clip.images[:, n, 1:-1, 1:-1] - expected[1:-1, 1:-1])
        assert off.max() <= away, camera.name


def test_what_is_cropped_or_mirrored_shows_the_world_where_the_calibration_says():
    clip, rng = in_a_world(some_clip(np.random.default_rng(6))), np.random.default_rng(7)
    assert_shows_the_world(clip, 0.0)
    assert_shows_the_world(mirror(clip), 0.5, (1, -1, 1))
    cropped = crop(clip, rng, 0.6).validate()
    assert_shows_the_world(cropped)
    assert all(c.K[0, 0] > before.K[0, 0] for c, before in zip(cropped.cameras, clip.cameras, strict=True))
    with pytest.raises(AssertionError):
        assert_shows_the_world(replace(cropped, cameras=clip.cameras))
    assert_same(crop(clip, rng, 0.0), clip)
    masked = crop(clip.with_masked(np.array([[True, False, False]] * 2)), rng, 0.5).validate()
    assert not masked.images[:, 0].any()


def test_misplaced_cameras_are_told_to_be_where_they_are_not_by_as_much_as_asked():
    clip = some_clip(np.random.default_rng(8)).with_fovea(32, 16)
    rng, turned, moved = np.random.default_rng(9), [], []
    for _ in range(200):
        told = misplace_cameras(clip, rng, 0.02, 0.1).validate()
        assert told.images is clip.images
        errors = [
            frames.inverse(camera.T_ego_from_cam) @ other.T_ego_from_cam
            for camera, other in zip(clip.cameras, told.cameras, strict=True)
        ]
        np.testing.assert_allclose(errors[0], errors[3], atol=1e-12)  # the fovea looks through the same lens
        turned += [np.arccos(np.clip((np.trace(E[:3, :3]) - 1) / 2, -1, 1)) for E in errors[:3]]
        moved += [E[:3, 3] for E in errors[:3]]
    assert np.sqrt(np.mean(np.square(turned))) == pytest.approx(0.02 * 3**0.5, rel=0.1)
    assert np.std(moved) == pytest.approx(0.1, rel=0.1)


def driven(time_us: np.ndarray, yaw_rate_radps: float) -> np.ndarray:
    """Poses [..., 4, 4] at times of a car that keeps 10 m/s and a yaw rate."""
    t = np.asarray(time_us) * 1e-6
    turned = yaw_rate_radps * t
    chord = 10.0 * t * np.sinc(turned / (2 * np.pi))
    return frames.matrix_from_xy_yaw(chord * np.cos(turned / 2), chord * np.sin(turned / 2), turned)


@pytest.mark.parametrize(("yaw_rate_radps", "away"), [(0.0, 1e-9), (0.3, 0.02)])
def test_shifted_clocks_tell_where_the_car_was_at_the_times_that_they_tell(yaw_rate_radps, away):
    clip = some_clip(np.random.default_rng(10))
    time_us = clip.now_us - np.arange(6)[::-1].reshape(2, 3) * 30_000 - 2_000
    poses, now = driven(time_us, yaw_rate_radps), driven(clip.now_us, yaw_rate_radps)
    clip = replace(clip, time_us=time_us, T_world_from_ego=poses, T_world_from_ego_now=now).validate()
    rng, shifts = np.random.default_rng(11), []
    for _ in range(50):
        told = shift_clocks(clip, rng, 40_000).validate()
        shift_us = told.time_us - time_us
        assert (shift_us == shift_us[0]).all()  # one offset a camera
        shifts.append(shift_us[0])
        np.testing.assert_allclose(told.T_world_from_ego, driven(told.time_us, yaw_rate_radps), atol=away)
        assert told.images is clip.images
    assert np.abs(shifts).max() <= 40_000
    assert np.min(shifts) < -30_000 < 30_000 < np.max(shifts)
    assert np.max([row[2] for row in shifts]) <= 2_000  # the newest image is of now or before
    assert_same(shift_clocks(clip, rng, 0.0), clip)
    one = shift_clocks(clip.last(1), rng, 40_000).validate()  # no further back than it is long
    assert np.abs(one.time_us - time_us[1:]).max() <= 62_000


def test_mirrored_poses_are_those_of_the_mirrored_clip():
    clip = some_clip(np.random.default_rng(2))
    ahead = frames.matrix_from_xy_yaw(np.array([2.0, 4.0]), np.array([0.5, 1.5]), np.array([0.2, 0.4]))
    in_world = MIRROR_EGO @ (clip.T_world_from_ego_now @ ahead) @ MIRROR_EGO
    seen = frames.xy_yaw(frames.inverse(mirror(clip).T_world_from_ego_now) @ in_world)
    np.testing.assert_allclose(seen, mirror_poses(frames.xy_yaw(ahead)), atol=1e-12)


def test_photometric_is_an_affine_map_of_each_camera_and_leaves_masked_images_black():
    clip = some_clip(np.random.default_rng(3))
    mask = clip.image_mask.copy()
    mask[0, 1] = False
    clip = replace(clip.with_masked(~mask))
    changed = photometric(clip, np.random.default_rng(4)).validate()
    assert not changed.images[0, 1].any()
    for n in range(3):
        before, after = clip.images[1, n].ravel().astype(float), changed.images[1, n].ravel().astype(float)
        inside = (after > 0) & (after < 255)
        gain, bias = np.polyfit(before[inside], after[inside], 1)
        assert 0.74 < gain < 1.26
        assert np.abs(after - np.clip(gain * before + bias, 0, 255)).max() < 1.5
    again = photometric(clip, np.random.default_rng(4))
    np.testing.assert_array_equal(again.images, changed.images)


def test_camera_dropout_spares_the_camera_ahead():
    clip = some_clip(np.random.default_rng(5))
    every = drop_cameras(clip, np.random.default_rng(0), 1.0)
    assert every.image_mask.tolist() == [[True, False, False]] * 2
    assert not every.images[:, 1:].any()
    assert drop_cameras(clip, np.random.default_rng(0), 0.0).image_mask.all()
