import json
from pathlib import Path

import numpy as np
import pdm_twins
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.errors import InputError
from sim.metrics import pdm

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "pdm_rollout.json"
K = np.arange(41.0)


def straight(speed=10.0, samples=41):
    x = np.arange(float(samples)) * speed * 0.1
    return np.stack([x, 0 * x, 0 * x], axis=-1)


def arc(radius=30.0, speed=10.0):
    angle = K * 0.1 * speed / radius
    return np.stack([radius * np.sin(angle), radius * (1 - np.cos(angle)), angle], axis=-1)


def braking(v0=12.0, decel=4.0):
    t = np.minimum(K * 0.1, v0 / decel)
    x = v0 * t - decel * t**2 / 2
    return np.stack([x, 0 * x, 0 * x], axis=-1)


def states_of(ax=0.0, speed=10.0, yaw_rate=0.0, samples=41):
    """States in which only the given series vary; the heading is the integral of the yaw rate."""
    states = np.zeros((samples, 7))
    states[:, pdm.AX], states[:, pdm.VX], states[:, pdm.YAW_RATE] = ax, speed, yaw_rate
    states[1:, pdm.HEADING] = np.cumsum(states[:-1, pdm.YAW_RATE]) * 0.1
    return states


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden vectors are not beside this checkout")
@pytest.mark.parametrize("name", ["G1_straight_10mps", "G3_arc_R30_10mps", "G6_stopped_ref_ego0p15"])
def test_golden_rollouts_and_comfort(name):
    case = json.loads(GOLDEN.read_text())["cases"][name]
    states = pdm.rollout(np.array(case["ref_xyh"]), case["v0"])
    np.testing.assert_allclose(states, case["sim"], atol=5e-6, rtol=0)
    assert {k: int(v) for k, v in pdm.comfort(states).items()} == case["comfort"]


def test_spot_values_of_the_rollout():
    states = pdm.rollout(straight(), 5.0)
    np.testing.assert_allclose(states[1, [3, 4]], [5.151515, 1.515152], atol=1e-6)
    np.testing.assert_allclose(states[10, [0, 3]], [6.241370, 7.894245], atol=1e-6)
    np.testing.assert_allclose(states[40, [0, 3]], [34.529461, 9.961946], atol=1e-6)
    comfort = pdm.comfort(states)
    assert [name for name, ok in comfort.items() if not ok] == ["lon_acc", "lon_jerk"]
    states = pdm.rollout(arc(), 10.0)
    np.testing.assert_allclose(states[10, [0, 1, 2, 5]], [9.951091, 0.700182, 0.250438, 0.148093], atol=5e-6)
    np.testing.assert_allclose(states[40, :3], [28.483791, 22.444147, 1.303813], atol=5e-6)
    side = straight()
    side[1:, 1] = 1.0
    np.testing.assert_allclose(pdm.rollout(side, 10.0)[[20, 40], 1], [0.794276, 1.057797], atol=1e-6)
    still = pdm.rollout(straight(0.0), 0.15)
    np.testing.assert_allclose([still[1, 3], still[40, 0]], [0.1475, 0.270305], atol=1e-6)


@pytest.mark.parametrize("variant", ["compat", "strict"])
def test_rollout_equals_its_slow_twin(variant):
    rng = np.random.default_rng(3)
    curve = arc(12.0, 6.0)
    noise = straight(7.0) + rng.normal(0, [0.05, 0.1, 0.02], (41, 3))
    stop = braking()
    full_turn = arc(6.0, 9.0)  # heading passes pi
    batch = np.stack([curve, noise, stop, full_turn])
    v0 = np.array([4.0, 7.0, 12.0, 0.1])
    fast = pdm.rollout(batch, v0, variant=variant)
    for states, reference, speed in zip(fast, batch, v0, strict=True):
        np.testing.assert_allclose(states, pdm_twins.rollout(reference, speed, variant == "strict"), atol=1e-7)
        np.testing.assert_allclose(states, pdm.rollout(reference, speed, variant=variant), atol=1e-12)
    assert np.abs(fast[..., pdm.HEADING]).max() <= np.pi


@pytest.mark.parametrize("kind", pdm_twins.KINDS)
def test_every_kind_of_reference_is_driven_and_judged_as_the_definition_reads(kind):
    signal = pytest.importorskip("scipy.signal")
    rng = np.random.default_rng(len(kind))
    made = [pdm_twins.reference(kind, rng) for _ in range(4)]
    poses, v0 = np.stack([m[0] for m in made]), np.array([m[1] for m in made])
    for variant in ("compat", "strict"):
        states = pdm.rollout(poses, v0, variant=variant)
        for n in range(4):
            twin = pdm_twins.rollout(poses[n], v0[n], variant == "strict")
            np.testing.assert_allclose(states[n], twin, atol=1e-6, rtol=0)
    states = pdm.rollout(poses, v0)
    for at in ("centre", "rear_axle"):
        judged = pdm.comfort(states, at=at)
        for n in range(4):
            twin = pdm_twins.comfort(states[n], signal.savgol_filter, at)
            assert {name: bool(ok[n]) for name, ok in judged.items()} == twin


def test_braking_ends_centimetres_off_nuplan():
    compat, strict = (pdm.rollout(braking(), 12.0, variant=v) for v in ("compat", "strict"))
    assert 0.02 < abs(compat[-1, 0] - strict[-1, 0]) < 0.06


@settings(deadline=None, derandomize=True, max_examples=15)
@given(st.floats(-300, 300), st.floats(-300, 300), st.floats(-np.pi, np.pi))
def test_rollout_moves_with_the_scene(dx, dy, turn):
    reference = arc(20.0, 8.0)
    c, s = np.cos(turn), np.sin(turn)
    moved = np.column_stack([reference[:, :2] @ [[c, s], [-s, c]] + [dx, dy], reference[:, 2] + turn])
    here, there = pdm.rollout(reference, 6.0), pdm.rollout(moved, 6.0)
    np.testing.assert_allclose(there[:, 3:], here[:, 3:], atol=1e-6)
    np.testing.assert_allclose(there[:, :2], here[:, :2] @ [[c, s], [-s, c]] + [dx, dy], atol=1e-6)
    assert pdm.comfort(here) == pdm.comfort(there)


def test_rollout_takes_lists():
    states = pdm.rollout(straight().tolist(), 5)
    np.testing.assert_array_equal(states, pdm.rollout(straight(), 5.0))
    assert pdm.comfort(states.tolist()) == pdm.comfort(states)
    both = pdm.rollout([straight().tolist()] * 2, [5, 6])
    np.testing.assert_allclose(both[0], states, atol=1e-12)


@pytest.mark.parametrize(
    ("reference", "v0", "field"),
    [
        (np.zeros((41, 2)), 1.0, "reference"),
        (np.zeros((3, 3)), 1.0, "reference"),
        (np.zeros(41), 1.0, "reference"),
        (np.zeros((1, 1, 41, 3)), 1.0, "reference"),
        (np.full((41, 3), np.nan), 1.0, "reference"),
        ([[0, 0, 0], [1, 0]], 1.0, "reference"),
        ("a line", 1.0, "reference"),
        (straight(), np.nan, "v0_mps"),
        (straight(), np.inf, "v0_mps"),
        (straight(), [1.0, 2.0], "v0_mps"),
        (straight(), None, "v0_mps"),
    ],
)
def test_rollout_rejects(reference, v0, field):
    with pytest.raises(InputError) as caught:
        pdm.rollout(reference, v0)
    assert caught.value.field == field


def test_scores_reject_what_is_no_number():
    with pytest.raises(InputError, match="variant"):
        pdm.rollout(straight(), 1.0, variant="loose")
    with pytest.raises(InputError, match="initial"):
        pdm.rollout(straight(), 1.0, initial=np.full(7, np.nan))
    for bad in (np.zeros((3, 7)), np.zeros((41, 6)), np.zeros(7), np.full((41, 7), np.nan)):
        with pytest.raises(InputError, match="states"):
            pdm.comfort(bad)


def test_savgol_matrix_is_scipys_filter():
    signal = pytest.importorskip("scipy.signal")
    rng = np.random.default_rng(0)
    for n in (8, 14, 15, 36, 41, 55):
        y = rng.normal(size=n)
        for window, order, derivative in ((8, 2, 0), (15, 2, 1), (5, 2, 1), (5, 3, 2), (5, 2, 2), (7, 2, 0)):
            window = min(window, n)
            expected = signal.savgol_filter(y, window, order, deriv=derivative, delta=0.1, mode="interp")
            got = pdm.savgol_matrix(n, window, order, derivative, 0.1) @ y
            np.testing.assert_allclose(got, expected, atol=1e-12 * max(1.0, np.abs(expected).max()), rtol=0)
    with pytest.raises(ValueError, match="window"):
        pdm.savgol_matrix(5, 8, 2)


def _failed(states, **kwargs):
    return [name for name, ok in pdm.comfort(states, **kwargs).items() if not ok]


def test_comfort_just_inside_and_outside():
    t = K * 0.1
    for ok, bad, name in ((2.399, 2.401, "lon_acc"), (-4.049, -4.051, "lon_acc")):
        assert _failed(states_of(ax=ok)) == []
        assert _failed(states_of(ax=bad)) == [name]
    assert _failed(states_of(yaw_rate=0.949, speed=1.0)) == []
    assert _failed(states_of(yaw_rate=0.951, speed=1.0)) == ["yaw_rate"]
    for rate, expected in ((1.929, []), (1.931, ["yaw_acc"])):
        turn = states_of(speed=0.0)
        turn[:, pdm.HEADING] = rate * (t - 0.2) ** 2 / 2
        assert [n for n in _failed(turn[:5]) if n == "yaw_acc"] == expected
    for speed, expected in ((9.77, []), (9.79, ["lat_acc"])):
        assert _failed(states_of(speed=speed, yaw_rate=0.5), variant="strict") == expected
        assert _failed(states_of(speed=speed, yaw_rate=0.5)) == []


def test_jerk_just_inside_and_outside():
    """On a ramp of |ax| the even window of the acceleration leaves a kink at both ends: scipy says how steep."""
    signal = pytest.importorskip("scipy.signal")
    ramp = K[:20] * 0.1
    steepest = signal.savgol_filter(signal.savgol_filter(ramp, 8, 2), 15, 2, deriv=1, delta=0.1).max()
    assert 1.05 < steepest < 1.2
    for limit, name in ((4.13, "lon_jerk"), (8.37, "jerk")):
        for share, failed in ((0.9999, False), (1.0001, True)):
            states = states_of(ax=limit / steepest * share * ramp, samples=20)
            assert (name in _failed(states)) == failed
            assert (name in _failed(states, at="rear_axle")) == failed


def test_strict_lateral_acceleration_of_an_arc():
    states = states_of(speed=10.0, yaw_rate=10.0 / 15.0)
    signals = pdm.comfort_signals(states, "strict")
    np.testing.assert_allclose(signals["lat_acc"], 100.0 / 15.0, atol=1e-8)
    assert not pdm.comfort(states, "strict")["lat_acc"]
    assert pdm.comfort(states)["lat_acc"]
    assert np.all(pdm.comfort_signals(states)["lat_acc"] == 0)
    driven = pdm.rollout(arc(15.0, 10.0), 10.0)
    assert pdm.comfort_signals(driven, "strict")["lat_acc"].max() > 6.0


def test_where_the_acceleration_is_taken():
    states = states_of(ax=1.3, speed=1.0, yaw_rate=0.9)
    d = pdm.PACIFICA.centre_ahead_m
    np.testing.assert_allclose(pdm.accelerations(states)[0][1:], 1.3 + d * 0.81)
    np.testing.assert_allclose(pdm.accelerations(states, "strict")[0], 1.3 - d * 0.81)
    assert pdm.accelerations(states)[0][0] == pytest.approx(1.3 + d * 0.81)
    assert _failed(states) == ["lon_acc"]
    assert _failed(states, at="rear_axle") == _failed(states, variant="strict") == []
    spinning_up = states_of(yaw_rate=0.5 * K * 0.1)
    lon, lat = pdm.accelerations(spinning_up, "strict")
    np.testing.assert_allclose(lat, 10.0 * spinning_up[:, pdm.YAW_RATE] + d * 0.5)
    np.testing.assert_allclose(pdm.accelerations(spinning_up)[0][1:] + lon[1:], 0.5 * d, atol=1e-12)


def test_yaw_acceleration_is_a_cubic_fit():
    states = states_of()
    states[:, pdm.HEADING] = 0.05 * (K * 0.1) ** 3
    np.testing.assert_allclose(pdm.comfort_signals(states)["yaw_acc"], 0.3 * K * 0.1, atol=1e-7)


def test_comfort_unwraps_the_heading():
    states = states_of(yaw_rate=0.5, speed=1.0)
    states[:, pdm.HEADING] += 3.0
    wrapped = states.copy()
    wrapped[:, pdm.HEADING] = (wrapped[:, pdm.HEADING] + np.pi) % (2 * np.pi) - np.pi
    assert np.ptp(np.sign(wrapped[:, pdm.HEADING])) == 2
    assert pdm.comfort(wrapped) == pdm.comfort(states)


@pytest.mark.parametrize(
    ("span_us", "compat", "strict"), [(1_499_800, 14, 14), (1_500_000, 14, 15), (1_500_100, 15, 15)]
)
def test_history_samples(span_us, compat, strict):
    time_us = 7_000_000 + np.array([0, 500_000, 1_000_000, span_us])
    states = np.zeros((4, 7))
    states[:, 0] = (time_us - 7_000_000) * 1e-6 * 10.0
    assert len(pdm.resample_history(time_us, states)) == compat
    past = pdm.resample_history(time_us, states, "strict")
    assert len(past) == strict
    np.testing.assert_allclose(states[-1, 0] - past[::-1, 0], np.arange(1, strict + 1), atol=1e-9)


def test_history_comfort_judges_the_past_too():
    time_us = np.array([0, 500_000, 1_000_000, 1_500_000])
    states = states_of()[None]
    rough = states_of(ax=5.0)[:4]
    for variant in ("compat", "strict"):
        assert pdm.history_comfort(states, time_us, states[0, :4], variant) == (1.0, True)
        assert pdm.history_comfort(states, time_us, rough, variant) == (0.0, True)
    sideways = np.column_stack([states[0, :4], np.full(4, 6.0)])  # a recorded lateral acceleration
    assert pdm.history_comfort(states, time_us, sideways)[0] == 0.0
    value, valid = pdm.history_comfort(states, None, None)
    assert np.isnan(value).all()
    assert not valid.any()
    with pytest.raises(ValueError, match="history"):
        pdm.resample_history(np.array([0, 0]), rough[:2])


def test_extended_comfort_at_its_thresholds():
    base = states_of(ax=1.0)
    for delta, expected in ((0.699, 1.0), (0.701, 0.0)):
        assert pdm.extended_comfort(states_of(ax=1.0 + delta), base, 0.5) == (expected, True)
    t = K * 0.1
    for slope, expected in ((0.499, 1.0), (0.501, 0.0)):
        drift = slope * (t - t[:36].mean())  # acceleration differs by little, jerk by the slope
        assert pdm.extended_comfort(states_of(ax=5.0 + drift), states_of(ax=5.0), 0.5)[0] == expected
    for rate, expected in ((0.0999, 1.0), (0.1001, 0.0)):
        assert pdm.extended_comfort(states_of(yaw_rate=rate), states_of(), 0.5)[0] == expected
    for acc, expected in ((0.0999, 1.0), (0.1001, 0.0)):
        bent = states_of()
        bent[:, pdm.HEADING] = acc * (t - t[:36].mean()) ** 2 / 2
        rates_ok = pdm.extended_comfort(bent[:12], states_of(samples=12), 0.1)
        assert rates_ok[0] == 0.0  # the yaw rate alone fails at this end of the curve
        middle = bent[12:24]
        assert pdm.extended_comfort(middle, states_of(samples=12), 0.1)[0] == expected
    for apart in (0.0, 0.04, 0.55, -0.5):
        assert not pdm.extended_comfort(base, base, apart)[1]


def test_plan_is_resampled_not_prolonged():
    plan = np.array([[0, 0, 3.1], [5, 1, -3.1], [40, 0, 0.0]])
    poses = pdm.resample_plan(plan, np.array([0.0, 0.5, 4.0]))
    np.testing.assert_allclose(poses[[0, 5, 40], :2], plan[:, :2], atol=1e-12)
    np.testing.assert_allclose(poses[2, 2], 3.1 + 0.4 * (2 * np.pi - 6.2), atol=1e-12)
    with pytest.raises(ValueError, match="covers"):
        pdm.resample_plan(plan, np.array([0.0, 0.5, 3.9]))
