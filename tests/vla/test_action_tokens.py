"""Bins and unicycle: exact inverses where they exist, stated errors where not."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.errors import InputError
from sensors.frames import interpolate_at, inverse, matrix, rotation_from_quaternion, yaw
from vla.action_tokens import STANDSTILL_M, ActionTokenizer, bin_centres, integrate
from vla.config import ModelConfig

CONFIG = ModelConfig.tiny()
TOKENIZER = ActionTokenizer(CONFIG)
K, DT = CONFIG.plan_steps, CONFIG.plan_dt_s
POSES = Path(__file__).resolve().parents[3] / "shared/data/nuscenes/can_bus/scene-0103_pose.json"


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
    x, y, heading, speed = integrate(10.0, np.zeros(K), np.full(K, 0.1), DT)
    angle = 0.1 * 10.0 * DT * np.arange(1, K + 1)
    np.testing.assert_allclose(x, 10 * np.sin(angle), atol=1e-12)
    np.testing.assert_allclose(y, 10 * (1 - np.cos(angle)), atol=1e-12)
    np.testing.assert_allclose(heading, angle, atol=1e-12)
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
    accel, curvature = (np.arange(slot.start, slot.stop) for slot in CONFIG.action_slots)
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
    """Smoothing moves labels a little; the path they drive is the path that was given, to 1 cm on average."""
    v0, accel, curvature = feasible(np.random.default_rng(1), 300)
    x, y, heading, _ = integrate(v0, accel, curvature, DT)
    errors = []
    for i in range(len(v0)):
        labels = TOKENIZER.labels(np.stack([x[i], y[i], heading[i]], axis=-1), v0[i])
        again = integrate(v0[i], *labels, DT)
        errors.append(np.hypot(again[0] - x[i], again[1] - y[i]))
    print(f"labels: mean position error {np.mean(errors):.4f} m, worst {np.max(errors):.4f} m")
    assert np.mean(errors) < 0.01
    assert np.max(errors) < 0.1


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
def test_labels_of_a_car_that_stands_keep_it_there(v0):
    rng = np.random.default_rng(0)
    poses = np.concatenate([rng.normal(0, 1e-3, (K, 2)), rng.normal(0, 0.01, (K, 1))], axis=1)
    accel, curvature = TOKENIZER.labels(poses, v0)
    assert (accel[1:] == 0).all()
    assert accel[0] == pytest.approx(-max(v0, 0.0) / DT)
    x, y, heading, _ = integrate(v0, accel, curvature, DT)
    assert np.abs(np.stack([x, y, heading])).max() < 0.01


def test_labels_of_a_stop_end_at_rest():
    x, y, heading, speed = integrate(5.0, np.array([-2.0] * 5 + [0.0] * (K - 5)), np.full(K, 0.02), DT)
    assert speed[-1] == 0
    again = integrate(5.0, *TOKENIZER.labels(np.stack([x, y, heading], axis=-1), 5.0), DT)
    assert np.hypot(again[0] - x, again[1] - y).max() < STANDSTILL_M
    assert again[3][-1] == pytest.approx(0.0, abs=1e-12)


def test_labels_of_a_noisy_path_do_not_ring():
    """Constant speed, 2 cm of noise in positions and 0.1 m/s in v0: the exact inverse makes 1 m/s2 of that."""
    rng, labels, exact = np.random.default_rng(3), [], []
    for _ in range(100):
        x, v0 = 10.0 * DT * np.arange(1, K + 1) + rng.normal(0, 0.02, K), 10.0 + rng.normal(0, 0.1)
        labels.append(TOKENIZER.labels(np.stack([x, np.zeros(K), np.zeros(K)], axis=-1), v0)[0])
        speed = v0
        for arc in np.diff(x, prepend=0.0):
            exact.append(2 * (arc - speed * DT) / DT**2)
            speed += exact[-1] * DT
    labels_rms, exact_rms = np.sqrt(np.mean(np.square(labels))), np.sqrt(np.mean(np.square(exact)))
    print(f"noisy path: labels {labels_rms:.2f} m/s2 rms, exact inverse {exact_rms:.2f} m/s2")
    assert labels_rms < 0.15
    assert exact_rms > 1.0


@pytest.mark.skipif(not POSES.exists(), reason=f"{POSES.name} of the shared nuScenes data is not there")
def test_round_trip_error_on_a_real_drive():
    track = json.loads(POSES.read_text())
    time_us = np.array([row["utime"] for row in track])
    R = np.array([rotation_from_quaternion(np.array(row["orientation"])) for row in track])
    poses = matrix(np.array([row["pos"] for row in track]), R)
    errors = []
    for i in range(0, len(track), 25):
        ahead_us = time_us[i] + (1e6 * DT * np.arange(1, K + 1)).astype(np.int64)
        if ahead_us[-1] <= time_us[-1]:
            T = inverse(poses[i]) @ np.stack([interpolate_at(time_us, poses, at) for at in ahead_us])
            labels = TOKENIZER.labels(np.stack([T[:, 0, 3], T[:, 1, 3], yaw(T)], axis=-1), track[i]["vel"][0])
            for controls in (labels, TOKENIZER.decode(TOKENIZER.encode(*labels))):
                x, y, _, _ = integrate(track[i]["vel"][0], *controls, DT)
                errors.append(np.hypot(x - T[:, 0, 3], y - T[:, 1, 3]))
    by_labels, by_tokens = np.array(errors[0::2]), np.array(errors[1::2])
    print(f"real drive: ADE of labels {by_labels.mean():.3f} m, of tokens {by_tokens.mean():.3f} m, n {len(by_tokens)}")
    assert len(by_tokens) > 20
    assert by_labels.mean() < 0.15
    assert by_tokens.mean() < 0.2


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
