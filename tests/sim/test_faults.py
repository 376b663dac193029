"""Sensors that are not ideal: what they do to an episode, and that they do it the same way each time."""

from dataclasses import replace

import numpy as np
import pytest

from sensors.errors import InputError
from sensors.frames import xy_yaw
from sensors.gym_source import ClipHistory
from sensors.imu import ImuErrors
from sim.env import CourseEnv
from sim.faults import POSE_TAU_S, SENSING, Faults, Sensing, get_sensing
from sim.sensing import EXPOSURE_BEFORE_US
from sim.vehicle import EgoState, VehicleParams
from sim.world import START_US, EgoWorld

SIZE = (40, 24)


def drive(sensing, steps=12, seed=3, still=False, **options):
    """The observations of an episode that goes straight on, or stands."""
    env = CourseEnv(**({"image_size": SIZE, "cameras": False, "sensing": sensing} | options))
    seen = [env.reset(seed=seed, options={"initial_speed_mps": 0.0} if still else None)[0]]
    for _ in range(steps):
        seen.append(env.step((0.0, 0.0) if still else (0.5, env.world.ego.curvature_1pm))[0])
    return seen


def standing() -> EgoWorld:
    world = EgoWorld()
    world.params = VehicleParams()
    world._place_ego(EgoState(0.0, 0.0, 0.0, 0.0))
    return world


def test_ideal_is_no_sensing_at_all():
    ideal, none = drive("ideal", steps=2), drive(Sensing(), steps=2)
    assert "image_mask" not in ideal[0]
    for a, b in zip(ideal, none, strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_faults_that_do_nothing_change_nothing():
    """A latency that no camera notices: every path of the faults runs, and nothing comes of it."""
    ideal, faulty = drive("ideal", cameras=True, steps=1), drive(Sensing(latency_us=1), cameras=True, steps=1)
    for a, b in zip(ideal, faulty, strict=True):
        assert b.pop("image_mask").all()
        assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["nuscenes", "harsh"])
def test_same_seed_same_faults_with_cameras_or_without(name):
    one, again, blind = (drive(name, 2, cameras=cameras) for cameras in (True, True, False))
    other = drive(name, 2, seed=4)
    for k, (a, b, c) in enumerate(zip(one, again, blind, strict=True)):
        assert all(np.array_equal(a[field], b[field]) for field in a), k
        assert all(np.array_equal(a[field], c[field]) for field in c), k
    assert not np.array_equal(one[-1]["imu_accel_mps2"], other[-1]["imu_accel_mps2"])


@pytest.mark.parametrize("latency_us", [30_000, 250_000])
def test_a_late_image_is_the_one_of_its_true_time(latency_us):
    """Each image, time and pose is what ideal cameras had then; before the first has arrived, there is none."""
    ideal, late = drive("ideal", 4, cameras=True), drive(Sensing(latency_us=latency_us), 4, cameras=True)
    true = {
        int(t): (o["images"][n], o["T_world_from_ego"][n]) for o in ideal for n, t in enumerate(o["camera_time_us"])
    }
    assert len(true) == 6 * len(ideal)
    for seen in late:
        now_us = int(seen["now_us"])
        for n, time_us in enumerate(seen["camera_time_us"].tolist()):
            assert time_us + latency_us <= now_us < time_us + latency_us + 100_000, "the newest that has arrived"
            assert seen["image_mask"][n] == (time_us in true)
            if time_us in true:
                assert np.array_equal(seen["images"][n], true[time_us][0])
                assert np.array_equal(seen["T_world_from_ego"][n], true[time_us][1])
            else:
                assert time_us < START_US - 100_000
                assert not seen["images"][n].any()
    assert late[-1]["image_mask"].all()


@pytest.mark.parametrize(("share", "burst"), [(0.1, 1.0), (0.2, 5.0)])
def test_drops_have_their_share_and_their_bursts(share, burst):
    faults, world = Faults(Sensing(drop_share=share, drop_burst=burst)), standing()
    faults.reset(0)
    lost = []
    for _ in range(2500):
        faults.advance(world, None)
        lost.append(~faults.shots.arrives)
    lost = np.array(lost)
    assert lost.mean() == pytest.approx(share, rel=0.25)
    begins = (lost[1:] & ~lost[:-1]).sum()
    assert lost.sum() / begins == pytest.approx(burst, rel=0.25)
    assert (lost.any(axis=1) & ~lost.all(axis=1)).any(), "cameras fail on their own"


def test_a_dropped_image_is_black_and_masked_in_the_clip():
    env = CourseEnv(SIZE, sensing=Sensing(drop_share=0.5, drop_burst=2.0))
    history = ClipHistory(env.cameras, 4)
    history.append(env.reset(seed=1)[0])
    for _ in range(15):
        seen = env.step((0.0, env.world.ego.curvature_1pm))[0]
        history.append(seen)
        assert (seen["images"].any(axis=(1, 2, 3)) == seen["image_mask"]).all()
    clip = history.clip().validate()
    assert 0 < clip.image_mask.mean() < 1
    assert (clip.images.any(axis=(2, 3, 4)) == clip.image_mask).all()


def test_jitter_moves_capture_times_both_ways_and_tells_them():
    seen = drive(Sensing(jitter_us=6_000), 40, still=True)
    off = np.array([o["now_us"] - EXPOSURE_BEFORE_US - o["camera_time_us"] for o in seen])
    assert off.min() < -3_000
    assert off.max() > 4_500
    assert np.abs(off).max() <= 6_000
    times = np.array([o["camera_time_us"] for o in seen])
    assert (np.diff(times, axis=0) > 0).all()
    assert all((o["camera_time_us"] <= o["now_us"]).all() for o in seen)


def test_blur_is_the_mean_of_what_is_seen_during_the_exposure():
    fast = {"options": {"initial_speed_mps": 20.0}, "seed": 2}
    sharp, blurred = CourseEnv(SIZE), CourseEnv(SIZE, sensing=Sensing(exposure_us=40_000, exposure_samples=8))
    images = [env.reset(**fast)[0]["images"].astype(float) for env in (sharp, blurred)]
    edges = [np.abs(np.diff(image, axis=2)).mean() for image in images]
    assert edges[1] < 0.93 * edges[0], "edges are softer"
    assert images[1].mean() == pytest.approx(images[0].mean(), rel=0.02)
    still = {"options": {"initial_speed_mps": 0.0}, "seed": 2}
    images = [env.reset(**still)[0]["images"].astype(float) for env in (sharp, blurred)]
    same = (images[0] == images[1]).all(axis=-1).mean()
    assert same > 0.97, "who stands still sees sharply what stands still: all but the other cars"


def test_noise_grows_with_brightness_and_capture_shows_the_same():
    sharp, noisy = CourseEnv(SIZE), CourseEnv(SIZE, sensing=Sensing(read_noise=2.0, shot_noise=12.0))
    clean = sharp.reset(seed=5)[0]["images"].astype(float)
    seen = noisy.reset(seed=5)[0]["images"]
    assert np.array_equal(noisy.capture().rgb, seen)
    assert np.array_equal(noisy.capture().depth, sharp.capture().depth)
    error = seen - clean
    for low, high in ((40, 90), (120, 200)):
        within = (clean > low) & (clean < high)
        expected = np.sqrt(2.0**2 + 12.0**2 * clean[within].mean() / 255)
        assert error[within].std() == pytest.approx(expected, rel=0.06)
    assert abs(error[(clean > 60) & (clean < 200)].mean()) < 0.2


def test_localisation_is_off_by_as_much_all_over_an_observation():
    ideal, off = (drive(how, 20, still=True) for how in ("ideal", Sensing(position_m=0.5, heading_rad=0.02)))
    errors = []
    for a, b in zip(ideal, off, strict=True):
        error = b["T_world_from_ego_now"][:2, 3] - a["T_world_from_ego_now"][:2, 3]
        assert b["T_world_from_ego"][:, :2, 3] - a["T_world_from_ego"][:, :2, 3] == pytest.approx(
            np.tile(error, (6, 1))
        )
        np.testing.assert_allclose(np.linalg.det(b["T_world_from_ego"]), 1.0)
        errors.append(error)
    steps = np.linalg.norm(np.diff(errors, axis=0), axis=1)
    assert 0 < np.median(steps) < 0.2, "it drifts, it does not jump"


def test_errors_of_localisation_spread_as_asked_and_are_forgotten():
    faults, world, truth = Faults(Sensing(position_m=0.5, heading_rad=0.02)), standing(), np.eye(4)[None]
    starts, ends = [], []
    for seed in range(400):
        faults.reset(seed)
        starts.append(xy_yaw(faults.localised(truth))[0])
        for _ in range(round(2 * POSE_TAU_S / 0.1) if seed < 20 else 0):
            faults.advance(world, None)
        if seed < 20:
            ends.append(xy_yaw(faults.localised(truth))[0])
    assert np.std(starts, axis=0) == pytest.approx((0.5, 0.5, 0.02), rel=0.1)
    assert np.std(ends, axis=0) == pytest.approx((0.5, 0.5, 0.02), rel=0.4)
    assert abs(np.corrcoef(np.array(starts)[:20, 0], np.array(ends)[:, 0])[0, 1]) < 0.6


def test_imu_errors_reach_the_observation():
    ideal, biased = drive("ideal", 3), drive(Sensing(imu=ImuErrors(accel_bias_mg=50.0)), 3)
    bias = [b["imu_accel_mps2"] - a["imu_accel_mps2"] for a, b in zip(ideal, biased, strict=True)]
    assert np.ptp(np.concatenate(bias), axis=0) == pytest.approx(0.0, abs=1e-12), "from the first sample on"
    assert np.abs(bias).min() > 0


@pytest.mark.parametrize(
    "fields",
    [
        {"latency_us": -1},
        {"latency_us": 1.5},
        {"jitter_us": 1_000_000},
        {"drop_share": 0.6},
        {"drop_share": np.nan},
        {"drop_burst": 0.5},
        {"exposure_us": 60_000},
        {"exposure_samples": 0},
        {"read_noise": np.nan},
        {"shot_noise": -1.0},
        {"position_m": np.inf},
        {"heading_rad": -0.1},
        {"imu": ImuErrors(accel_bias_mg=-1.0)},
    ],
    ids=str,
)
def test_sensing_rejects(fields):
    with pytest.raises(InputError, match="accel_bias_mg" if "imu" in fields else next(iter(fields))):
        CourseEnv(cameras=False, sensing=replace(SENSING["nuscenes"], **fields))


def test_presets_are_valid_and_an_unknown_one_is_met_with_the_nearest():
    for name, preset in SENSING.items():
        assert get_sensing(name) is preset
        assert preset.validate() is preset
    with pytest.raises(InputError, match="Did you mean nuscenes"):
        CourseEnv(cameras=False, sensing="nuscene")
