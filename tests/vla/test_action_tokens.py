"""Bins and unicycle: exact inverses where they exist, stated errors where not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.errors import InputError
from vla.action_tokens import ActionTokenizer, bin_centres, integrate
from vla.config import ModelConfig

CONFIG = ModelConfig.tiny()
TOKENIZER = ActionTokenizer(CONFIG)
K, DT = CONFIG.plan_steps, CONFIG.plan_dt_s


def euler(v0, accel, curvature, dt_s, parts=20_000):
    """The slow twin of `integrate`: many small steps."""
    x = y = yaw = 0.0
    speed, out, h = max(v0, 0.0), [], dt_s / parts
    for a, c in zip(accel, curvature, strict=True):
        for _ in range(parts):
            middle = max(speed + a * h / 2, 0.0)
            x += middle * h * np.cos(yaw + c * middle * h / 2)
            y += middle * h * np.sin(yaw + c * middle * h / 2)
            yaw += c * middle * h
            speed = max(speed + a * h, 0.0)
        out.append((x, y, yaw, speed))
    return np.array(out).T


def feasible(rng, n):
    """Speeds [n] and smooth random controls [n, K] of a car that keeps moving, lateral acceleration within 4 m/s2."""
    v0 = rng.uniform(0.0, 20.0, n)
    accel = np.clip(rng.normal(0, 1, (n, 1)) + np.cumsum(rng.normal(0, 0.5, (n, K)), axis=1), -4.0, 2.5)
    speed = v0[:, None] + np.cumsum(accel, axis=1) * DT
    accel = np.where(speed < 1.0, np.abs(accel), accel)
    limit = np.minimum(0.18, 4.0 / np.maximum(v0[:, None] + 10, 1.0) ** 2)
    curvature = limit * np.tanh(rng.normal(0, 1, (n, 1)) + np.cumsum(rng.normal(0, 0.3, (n, K)), axis=1))
    return v0, accel, curvature


def test_integrate_equals_small_steps():
    accel = np.array([1.0, -4.0, -4.0, 0.0, 2.0])  # stops within the third interval, starts again in the fifth
    curvature = np.array([0.1, -0.2, 0.05, 0.1, 0.2])
    np.testing.assert_allclose(
        np.array(integrate(3.0, accel, curvature, DT)), euler(3.0, accel, curvature, DT), atol=1e-4
    )


def test_integrate_knows_circles():
    x, y, yaw, speed = integrate(10.0, np.zeros(K), np.full(K, 0.1), DT)
    angle = 0.1 * 10.0 * DT * np.arange(1, K + 1)
    np.testing.assert_allclose(x, 10 * np.sin(angle), atol=1e-12)
    np.testing.assert_allclose(y, 10 * (1 - np.cos(angle)), atol=1e-12)
    np.testing.assert_allclose(yaw, angle, atol=1e-12)
    np.testing.assert_array_equal(speed, np.full(K, 10.0))


def test_integrate_takes_batches():
    v0, accel, curvature = feasible(np.random.default_rng(0), 5)
    whole = np.array(integrate(v0, accel, curvature, DT))
    for i in range(5):
        np.testing.assert_array_equal(whole[:, i], np.array(integrate(v0[i], accel[i], curvature[i], DT)))


@given(st.floats(-5, 40), st.lists(st.floats(-6, 3), min_size=K, max_size=K))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_integrated_cars_never_reverse(v0, accel):
    x, _, _, speed = integrate(v0, np.array(accel), np.zeros(K), DT)
    assert (speed >= -1e-12).all()
    assert (np.diff(x, prepend=0.0) >= -1e-9).all()


def test_bins_are_what_the_docstring_says():
    for centres, low, high in ((TOKENIZER.accel_mps2, -6.0, 3.0), (TOKENIZER.curvature_1pm, -0.2, 0.2)):
        assert (np.diff(centres) > 0).all()
        assert (centres == 0).sum() == 1
        np.testing.assert_allclose([centres[0], centres[-1]], [low, high])
    np.testing.assert_allclose(TOKENIZER.curvature_1pm, -TOKENIZER.curvature_1pm[::-1], atol=1e-18)
    assert len(TOKENIZER.accel_mps2) == CONFIG.accel_bins
    assert len(TOKENIZER.curvature_1pm) == CONFIG.curvature_bins
    assert len(bin_centres(-1e-3, 50.0, 1e-3, 3)) == 3  # each side keeps one, however small


def test_encode_inverts_decode_for_every_token():
    accel = np.arange(CONFIG.accel_offset, CONFIG.curvature_offset)
    curvature = np.arange(CONFIG.curvature_offset, CONFIG.vocabulary)
    tokens = np.stack(np.broadcast_arrays(accel[:, None], curvature), axis=-1).reshape(-1, 1, 2)
    tokens = np.tile(tokens, (1, K, 1)).reshape(-1, 2 * K)
    np.testing.assert_array_equal(TOKENIZER.encode(*TOKENIZER.decode(tokens)), tokens)


def test_encode_takes_the_nearest_bin():
    rng = np.random.default_rng(0)
    accel, curvature = rng.uniform(-8, 5, (100, K)), rng.uniform(-0.3, 0.3, (100, K))
    got = TOKENIZER.decode(TOKENIZER.encode(accel, curvature))
    for values, centres, decoded in zip(
        (accel, curvature), (TOKENIZER.accel_mps2, TOKENIZER.curvature_1pm), got, strict=True
    ):
        np.testing.assert_array_equal(decoded, centres[np.abs(values[..., None] - centres).argmin(axis=-1)])


def test_labels_invert_integrate():
    """Smoothing moves labels a little; the path they drive is the path that was given, to 2 cm."""
    v0, accel, curvature = feasible(np.random.default_rng(1), 300)
    x, y, yaw, _ = integrate(v0, accel, curvature, DT)
    worst = 0.0
    for i in range(len(v0)):
        labels = TOKENIZER.labels(np.stack([x[i], y[i], yaw[i]], axis=-1), v0[i])
        again = integrate(v0[i], *labels, DT)
        worst = max(worst, np.hypot(again[0] - x[i], again[1] - y[i]).max())
    print(f"labels: worst position error {worst:.4f} m")
    assert worst < 0.1


def test_round_trip_error_in_metres():
    """Path to tokens and back: the figure that the bins cost, over 4 s, speeds of 0 to 20 m/s and more."""
    v0, accel, curvature = feasible(np.random.default_rng(2), 1000)
    x, y, _, _ = integrate(v0, accel, curvature, DT)
    again = integrate(v0, *TOKENIZER.decode(TOKENIZER.encode(accel, curvature)), DT)
    error = np.hypot(again[0] - x, again[1] - y)
    print(f"tokens: ADE {error.mean():.3f} m, FDE {error[:, -1].mean():.3f} m, 99 % {np.quantile(error, 0.99):.3f} m")
    assert error.mean() < 0.15
    assert error[:, -1].mean() < 0.4


@pytest.mark.parametrize("v0", [0.0, 0.03, -0.5])
def test_labels_of_a_car_that_stands_are_zero(v0):
    rng = np.random.default_rng(0)
    accel, curvature = TOKENIZER.labels(
        np.concatenate([rng.normal(0, 1e-3, (K, 2)), rng.normal(0, 0.01, (K, 1))], 1), v0
    )
    assert np.abs(accel).max() < 0.1
    x, y, yaw, _ = integrate(v0, accel, curvature, DT)
    assert np.abs(np.stack([x, y, yaw])).max() < 0.1


def test_labels_of_a_stop_end_at_rest():
    x, y, yaw, speed = integrate(5.0, np.array([-2.0] * 5 + [0.0] * (K - 5)), np.full(K, 0.02), DT)
    assert speed[-1] == 0
    again = integrate(5.0, *TOKENIZER.labels(np.stack([x, y, yaw], axis=-1), 5.0), DT)
    assert np.hypot(again[0] - x, again[1] - y).max() < 0.02
    assert again[3][-1] < 0.02


def test_action_tokens_rejects():
    good = TOKENIZER.encode(np.zeros(K), np.zeros(K))
    for bad in (good[:-1], np.roll(good, 1), good * 0, good + 1000):
        with pytest.raises(InputError, match="tokens"):
            TOKENIZER.decode(bad)
    with pytest.raises(InputError, match="finite"):
        TOKENIZER.encode(np.full(K, np.nan), np.zeros(K))
    with pytest.raises(InputError, match="shapes"):
        TOKENIZER.encode(np.zeros(K), np.zeros(K + 1))
    for poses, v0 in ((np.zeros((K, 2)), 1.0), (np.full((K, 3), np.nan), 1.0), (np.zeros((K, 3)), float("nan"))):
        with pytest.raises(InputError, match="xy_yaw"):
            TOKENIZER.labels(poses, v0)
