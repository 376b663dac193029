"""The IMU window: rules, slicing, resampling."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.errors import InputError
from sensors.imu import GRAVITY_MPS2, FaultyImu, ImuErrors, ImuWindow

few = settings(deadline=None, derandomize=True, max_examples=40)
START_US = 1_600_000_000_000_000


def track(J=50, step_us=10_000):
    rng = np.random.default_rng(J)
    time_us = START_US + step_us * np.arange(J, dtype=np.int64)
    return ImuWindow(time_us, rng.normal(size=(J, 3)), rng.normal(size=(J, 3)))


@few
@given(st.integers(-30_000, 600_000), st.integers(0, 600_000))
def test_window_is_half_open_like_the_slow_way(after, length):
    imu = track()
    part = imu.window(START_US + after, START_US + after + length)
    rows = [j for j, t in enumerate(imu.time_us) if after < t - START_US <= after + length]
    np.testing.assert_array_equal(part.time_us, imu.time_us[rows])
    np.testing.assert_array_equal(part.accel_mps2, imu.accel_mps2[rows])
    np.testing.assert_array_equal(part.gyro_radps, imu.gyro_radps[rows])
    part.validate()


@few
@given(st.lists(st.integers(0, 490_000), min_size=1, max_size=10))
def test_resample_is_linear(offsets):
    imu = track()
    at = START_US + np.sort(np.array(offsets, np.int64))
    got = imu.resample(at)
    for j, t in enumerate(at):
        k = min(int((t - START_US) // 10_000), 48)
        f = float(t - imu.time_us[k]) / 10_000
        np.testing.assert_allclose(
            got.accel_mps2[j], (1 - f) * imu.accel_mps2[k] + f * imu.accel_mps2[k + 1], atol=1e-9
        )
        np.testing.assert_allclose(
            got.gyro_radps[j], (1 - f) * imu.gyro_radps[k] + f * imu.gyro_radps[k + 1], atol=1e-9
        )


def test_resample_at_its_own_times_changes_nothing():
    imu = track()
    same = imu.resample(imu.time_us)
    np.testing.assert_array_equal(same.accel_mps2, imu.accel_mps2)
    np.testing.assert_array_equal(same.gyro_radps, imu.gyro_radps)
    assert len(imu.resample(np.zeros(0, np.int64))) == 0
    assert len(ImuWindow.empty().resample(np.zeros(0, np.int64))) == 0


@pytest.mark.parametrize("outside", [START_US - 1, START_US + 490_001])
def test_resample_rejects_extrapolation(outside):
    with pytest.raises(InputError, match="times inside"):
        track().resample(np.array([START_US, outside]))
    with pytest.raises(InputError, match="an empty window"):
        ImuWindow.empty().resample(np.array([outside]))


def test_an_empty_window_is_valid():
    assert len(ImuWindow.empty().validate()) == 0


def changed(**fields):
    imu = track(5)
    return ImuWindow(**{name: fields.get(name, getattr(imu, name)) for name in imu.__dataclass_fields__})


def with_nan(row):
    values = np.zeros((5, 3))
    values[row, 1] = np.nan
    return values


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"time_us": np.arange(5.0)}, "time_us"),
        ({"time_us": np.zeros((5, 1), np.int64)}, "time_us"),
        ({"time_us": np.array([1, 2, 2, 3, 4])}, "time_us[2]"),
        ({"time_us": np.array([1, 2, 3, 9, 4])}, "time_us[4]"),
        ({"accel_mps2": np.zeros((4, 3))}, "accel_mps2"),
        ({"gyro_radps": np.zeros((5, 2))}, "gyro_radps"),
        ({"accel_mps2": with_nan(3)}, "accel_mps2[3]"),
        ({"gyro_radps": with_nan(1)}, "gyro_radps[1]"),
        ({"gyro_radps": np.full((5, 3), np.inf)}, "gyro_radps[0]"),
    ],
)
def test_validate_rejects(fields, field):
    track(5).validate()
    with pytest.raises(InputError) as error:
        changed(**fields).validate("bus.json")
    assert (error.value.where, error.value.field) == ("bus.json", field)


def still(J, rate_hz=100):
    return ImuWindow(
        START_US + (1_000_000 // rate_hz) * np.arange(J, dtype=np.int64), np.zeros((J, 3)), np.zeros((J, 3))
    )


def readings(errors, seed, J=400):
    return FaultyImu(errors, np.random.default_rng(seed)).read(still(J))


def test_an_imu_without_errors_reads_the_truth():
    imu = track()
    read = FaultyImu(ImuErrors(), np.random.default_rng(0)).read(imu)
    assert np.array_equal(read.accel_mps2, imu.accel_mps2)
    assert np.array_equal(read.gyro_radps, imu.gyro_radps)


@few
@given(st.integers(0, 1000), st.lists(st.integers(0, 50), max_size=4))
def test_read_in_pieces_is_read_at_once(seed, cuts):
    """Also: the same seed gives the same errors."""
    errors, imu = ImuErrors(20.0, 1.0, 200.0, 15.0, 100.0, 5.0), track()
    whole = FaultyImu(errors, np.random.default_rng(seed)).read(imu)
    model, ends = FaultyImu(errors, np.random.default_rng(seed)), sorted([0, *cuts, 50])
    parts = [
        model.read(ImuWindow(imu.time_us[i:j], imu.accel_mps2[i:j], imu.gyro_radps[i:j])) for i, j in pairwise(ends)
    ]
    for name in ("accel_mps2", "gyro_radps"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(joined, getattr(whole, name), atol=1e-12)


@pytest.mark.parametrize("rate_hz", [100.0, 400.0])
def test_white_noise_has_the_density_of_the_data_sheet(rate_hz):
    imu = readings(ImuErrors(accel_noise_ug_rthz=200.0, gyro_noise_mdps_rthz=10.0, rate_hz=rate_hz), 1, 20_000)
    assert imu.accel_mps2.std() == pytest.approx(200e-6 * GRAVITY_MPS2 * np.sqrt(rate_hz), rel=0.02)
    assert imu.gyro_radps.std() == pytest.approx(np.radians(10e-3) * np.sqrt(rate_hz), rel=0.02)
    assert abs(imu.accel_mps2.mean()) < 4 * imu.accel_mps2.std() / np.sqrt(60_000)


def test_turn_on_bias_is_constant_and_another_each_time():
    errors = ImuErrors(accel_bias_mg=20.0, gyro_bias_dps=1.0)
    ons = [readings(errors, seed, 3) for seed in range(500)]
    assert all((imu.accel_mps2 == imu.accel_mps2[0]).all() for imu in ons)
    assert np.std([imu.accel_mps2[0] for imu in ons]) == pytest.approx(20e-3 * GRAVITY_MPS2, rel=0.05)
    assert np.std([imu.gyro_radps[0] for imu in ons]) == pytest.approx(np.radians(1.0), rel=0.05)


def test_the_walk_of_the_bias_spreads_with_the_root_of_time():
    ends = [readings(ImuErrors(accel_walk_ug_rts=100.0, gyro_walk_mdps_rts=5.0), seed) for seed in range(500)]
    for J, seconds in ((100, 1.0), (400, 4.0)):
        spread = np.std([imu.accel_mps2[J - 1] for imu in ends])
        assert spread == pytest.approx(100e-6 * GRAVITY_MPS2 * np.sqrt(seconds), rel=0.08)
        assert np.std([imu.gyro_radps[J - 1] for imu in ends]) == pytest.approx(
            np.radians(5e-3) * seconds**0.5, rel=0.08
        )


@pytest.mark.parametrize(
    "fields", [{"accel_bias_mg": -1.0}, {"gyro_noise_mdps_rthz": np.nan}, {"rate_hz": 0.0}], ids=str
)
def test_imu_errors_reject(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        ImuErrors(**fields).validate()
