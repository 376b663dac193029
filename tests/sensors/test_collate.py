"""Collation: differences before rounding, nothing invented, nothing mixed."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from sensors import collate as module
from sensors.camera import Camera
from sensors.clip import ROUTE_COMMANDS, Clip, VehicleState
from sensors.collate import collate, join_steps
from sensors.errors import InputError
from sensors.frames import inverse, matrix, matrix_from_xy_yaw
from sensors.imu import ImuWindow

NOW_US = 1_533_151_603_547_590
OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
LENSES = {"none": (), "brown_conrady": (-0.3, 0.1, 1e-3, -1e-3, -0.01), "fisheye": (-0.01, 0.002, 0.0, 0.0)}


def make_clip(seed=0, width=48, height=32, imu_us=None, lenses=tuple(LENSES)):
    rng = np.random.default_rng(seed)
    T, N = 2, len(lenses)
    K = np.array([[40.0, 0, width / 2], [0, 42.0, height / 2], [0, 0, 1]])
    cameras = tuple(
        Camera(f"CAM_{n}", width, height, K, matrix(rng.normal(size=3), OPTICAL), lens, LENSES[lens])
        for n, lens in enumerate(lenses)
    )
    time_us = NOW_US - np.array([[500_000 * (T - 1 - t) + 7_001 * n for n in range(N)] for t in range(T)])
    imu_us = NOW_US - 10_000 * np.arange(30, -1, -1) if imu_us is None else np.asarray(imu_us, np.int64)
    return Clip(
        now_us=NOW_US,
        T_world_from_ego_now=matrix_from_xy_yaw(601.25, 1647.5, 0.7),
        cameras=cameras,
        images=rng.integers(0, 256, (T, N, height, width, 3), dtype=np.uint8),
        image_mask=rng.random((T, N)) < 0.8,
        time_us=time_us,
        T_world_from_ego=matrix_from_xy_yaw(rng.normal(600, 3, (T, N)), 1647.0, rng.normal(0.7, 0.1, (T, N))),
        imu=ImuWindow(imu_us, rng.normal(size=(len(imu_us), 3)), rng.normal(size=(len(imu_us), 3))),
        vehicle=VehicleState(5.0, float("nan"), -0.1),
        command=ROUTE_COMMANDS[seed % 6],
    ).validate()


def test_batch_is_its_clips_one_by_one():
    clips = [make_clip(seed) for seed in range(3)]
    whole = collate(clips, 16, 20)
    for i, clip in enumerate(clips):
        single = collate([clip], 16, 20)
        for field in fields(whole):
            assert torch.equal(getattr(whole, field.name)[i : i + 1], getattr(single, field.name)), field.name


def test_images_masks_and_commands_are_passed_on():
    clips = [make_clip(0), make_clip(4)]
    batch = collate(clips, 16, 20)
    np.testing.assert_array_equal(batch.images.numpy(), np.stack([clip.images for clip in clips]))
    np.testing.assert_array_equal(batch.image_mask.numpy(), np.stack([clip.image_mask for clip in clips]))
    assert batch.images.dtype == torch.uint8
    assert batch.command_id.tolist() == [0, 4]


def test_times_keep_their_microseconds():
    clip = make_clip()
    time_s = collate([clip], 16, 20).time_s[0]
    np.testing.assert_array_equal(time_s.numpy(), ((clip.time_us - NOW_US) / 1e6).astype(np.float32))
    assert np.float32(NOW_US * 1e-6) - np.float32((NOW_US - 7_001) * 1e-6) == 0, "float32 first would lose them"


def test_camera_poses_keep_their_centimetres():
    clip = make_clip()
    for t in range(2):
        for n, camera in enumerate(clip.cameras):
            expected = inverse(clip.T_world_from_ego_now) @ clip.T_world_from_ego[t, n] @ camera.T_ego_from_cam
            got = collate([clip], 16, 20).T_ego_now_from_cam[0, t, n].numpy()
            np.testing.assert_allclose(got, expected, atol=2e-6)


def test_each_step_as_its_own_now_saw_it():
    clip = make_clip()
    batch = collate([clip], 16, 20, each_step=True)
    newest = clip.time_us.argmax(axis=1)
    for t in range(2):
        own_us, own = clip.time_us[t, newest[t]], clip.T_world_from_ego[t, newest[t]]
        np.testing.assert_array_equal(batch.time_s[0, t], ((clip.time_us[t] - own_us) / 1e6).astype(np.float32))
        expected = inverse(own) @ clip.T_world_from_ego[t, 0] @ clip.cameras[0].T_ego_from_cam
        np.testing.assert_allclose(batch.T_ego_now_from_cam[0, t, 0], expected, atol=2e-6)
    earlier = replace(
        clip,
        now_us=NOW_US - 450_000,
        T_world_from_ego_now=matrix_from_xy_yaw(590.0, 1640.0, 0.6),
        **{name: getattr(clip, name)[:1] for name in ("images", "image_mask", "time_us", "T_world_from_ego")},
    )
    before = collate([earlier], 16, 20, each_step=True)  # what was said of a step before the next one came
    apart = join_steps([before, collate([clip.last(1)], 16, 20, each_step=True)])
    for name in (*batch.STEPWISE, "imu", "rays_in_cam"):
        assert torch.equal(getattr(batch, name), getattr(apart, name)), name
    assert not torch.equal(batch.time_s[:, :1], collate([clip], 16, 20).time_s[:, :1])


@pytest.mark.parametrize("patch_px", [8, 16])
def test_rays_pass_through_patch_centres(patch_px):
    clip = make_clip()
    batch = collate([clip], patch_px, 20)
    columns, rows = clip.cameras[0].width // patch_px, clip.cameras[0].height // patch_px
    for n, camera in enumerate(clip.cameras):
        assert batch.ray_mask[0, n].all()
        uv, valid = camera.project(batch.rays_in_cam[0, n].double().numpy())
        centre = (np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1) + 0.5) * patch_px - 0.5
        assert valid.all()
        np.testing.assert_allclose(uv, centre.reshape(-1, 2), atol=1e-4)


def test_patches_without_a_ray_are_masked_zeros():
    clip = make_clip(lenses=("fisheye",))
    wide = replace(clip.cameras[0], K=np.array([[8.0, 0, 24], [0, 8.0, 16], [0, 0, 1]]), coefficients=(-0.2, 0, 0, 0))
    batch = collate([replace(clip, cameras=(wide,))], 8, 20)
    lost = ~batch.ray_mask[0, 0]
    assert lost.any()
    assert not lost.all()
    assert (batch.rays_in_cam[0, 0][lost] == 0).all()
    assert torch.isfinite(batch.rays_in_cam).all()


def test_rays_are_computed_once_per_calibration(monkeypatch):
    module._patch_rays.cache_clear()
    calls = []
    unproject = Camera.unproject
    monkeypatch.setattr(Camera, "unproject", lambda self, uv: calls.append(1) or unproject(self, uv))
    for seed in range(3):  # the same lenses at other places on the car
        collate([make_clip(seed), make_clip(seed + 3)], 16, 20)
    assert len(calls) == 3
    other = make_clip()
    K = other.cameras[0].K * [[1.01], [1], [1]]
    collate([replace(other, cameras=(replace(other.cameras[0], K=K), *other.cameras[1:]))], 16, 20)
    assert len(calls) == 4


def test_vehicle_signals_that_are_missing_are_masked_zeros():
    batch = collate([make_clip()], 16, 20)
    assert batch.vehicle_mask[0].tolist() == [True, False, True]
    torch.testing.assert_close(batch.vehicle[0], torch.tensor([5.0, 0.0, -0.1]))


def test_imu_at_the_grid_is_passed_on():
    clip = make_clip()
    batch = collate([clip], 16, 20)
    assert batch.imu_mask.all()
    measured = np.concatenate([clip.imu.accel_mps2, clip.imu.gyro_radps], axis=1)[-20:]
    np.testing.assert_array_equal(batch.imu[0].numpy(), measured.astype(np.float32))
    np.testing.assert_allclose(batch.imu_time_s[0].numpy(), -0.01 * np.arange(19, -1, -1), atol=1e-9)


def test_imu_between_samples_is_what_resample_says():
    imu_us = NOW_US - 3_000 - 8_300 * np.arange(40, -1, -1)
    clip = make_clip(imu_us=imu_us)
    batch = collate([clip], 16, 20)
    mask = batch.imu_mask[0].numpy()
    assert mask.tolist() == [True] * 19 + [False], "the last sample is 3 ms old: nothing is known about now itself"
    twin = clip.imu.resample(NOW_US - 10_000 * np.arange(19, 0, -1))
    expected = np.concatenate([twin.accel_mps2, twin.gyro_radps], axis=1)
    np.testing.assert_allclose(batch.imu[0].numpy()[mask], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("ages_ms", "known_ages_ms"),
    [
        ([], []),
        ([50], [50]),
        ([51], []),
        ([150, 140, 130, 40, 30], [150, 140, 130, 40, 30]),  # a gap of 90 ms is not bridged
        ([150, 110, 70], [150, 140, 130, 120, 110, 100, 90, 80, 70]),
        ([5000, 4990], []),
    ],
)
def test_imu_gaps_are_masked_zeros(ages_ms, known_ages_ms):
    batch = collate([make_clip(imu_us=NOW_US - 1000 * np.array(ages_ms, np.int64))], 16, 20)
    ages = np.arange(19, -1, -1) * 10
    assert ages[batch.imu_mask[0].numpy()].tolist() == known_ages_ms
    assert (batch.imu[0][~batch.imu_mask[0]] == 0).all()


def test_to_moves_every_tensor():
    batch = collate([make_clip()], 16, 20).to("meta")
    assert all(getattr(batch, field.name).device.type == "meta" for field in fields(batch))


def test_collate_rejects():
    with pytest.raises(InputError, match="at least one clip"):
        collate([])
    with pytest.raises(InputError, match=r"clips\[1\]"):
        collate([make_clip(), make_clip(width=64)], 16, 20)
    with pytest.raises(InputError, match=r"clips\[2\]"):
        collate([make_clip(), make_clip(), make_clip(lenses=("none",))], 16, 20)
    with pytest.raises(InputError, match="multiples of the patch"):
        collate([make_clip(width=50)], 16, 20)
