import numpy as np
import pytest

from sensors.errors import InputError
from vla.action_codes import (
    COSINES,
    DT_S,
    SEGMENT_STEPS,
    STEPS,
    DctCodes,
    SegmentCodes,
    path_error,
    round_trip,
)
from vla.action_tokens import integrate, unicycle_labels


def chunks(count: int, seed: int):
    """Driving of a kind: targets of speed and curvature that change now and then, followed smoothly."""
    rng = np.random.default_rng(seed)
    v0 = rng.uniform(0, 13, count) * (rng.random(count) > 0.15)
    accel, curvature = np.zeros((count, STEPS)), np.zeros((count, STEPS))
    for m in range(count):
        speed, kappa, aim_v, aim_k = v0[m], 0.0, rng.uniform(0, 13), 0.0
        for k in range(STEPS):
            if rng.random() < 0.04:
                aim_v = rng.choice([0.0, rng.uniform(3, 13)])
            if rng.random() < 0.05:
                aim_k = rng.choice([0.0, rng.uniform(-0.1, 0.1)])
            kappa += 0.15 * (aim_k - kappa)
            accel[m, k] = np.clip(0.8 * (aim_v - speed), -3.0, 1.8)
            accel[m, k] = max(accel[m, k], -speed / DT_S)
            speed += accel[m, k] * DT_S
            curvature[m, k] = kappa
    return v0, accel, curvature


TRAIN, HELD_OUT = chunks(400, 0), chunks(60, 1)
DCT = DctCodes.trained(*TRAIN, size=1600)
SEGMENTS = SegmentCodes.trained(*TRAIN, size=512)


def test_cosines_are_orthonormal():
    np.testing.assert_allclose(COSINES @ COSINES.T, np.eye(STEPS), atol=1e-12)


def test_dct_codes_are_few_and_close():
    lost = round_trip(DCT, *HELD_OUT)
    assert lost.ade_m < 0.1  # of driving rougher than any expert's
    assert lost.codes < 12


def test_weighing_by_effect_beats_rounding_alike():
    """FAST's own scale of 10 needs more codes for a larger error."""
    alike = round_trip(DctCodes.trained(*TRAIN, size=1600, uniform_scale=10.0), *HELD_OUT)
    weighed = round_trip(DCT, *HELD_OUT)
    assert weighed.ade_m < alike.ade_m
    assert weighed.codes < 0.6 * alike.codes


def test_decoding_and_encoding_again_gives_the_same_codes():
    for v0, accel, curvature in zip(*HELD_OUT, strict=True):
        codes = DCT.encode(v0, accel, curvature)
        assert np.array_equal(DCT.encode(v0, *DCT.decode(v0, codes)), codes)


def test_standing_still_needs_no_code():
    assert len(DCT.encode(0.0, np.zeros(STEPS), np.full(STEPS, 0.1))) == 0
    accel, curvature = DCT.decode(0.0, [])
    assert not accel.any()
    assert not curvature.any()


def test_every_code_can_be_decoded():
    for code in range(DCT.size):
        assert np.isfinite(DCT.decode(5.0, [code])).all()


def test_segments_put_together_are_the_path():
    lost = round_trip(SEGMENTS, *HELD_OUT)
    assert lost.codes_max == STEPS // SEGMENT_STEPS
    assert lost.ade_m < 0.5  # 512 segments; the error does not add up, since each begins where the last one ended
    assert lost.fde_m < 1.0


def test_the_codebooks_own_segments_are_exact():
    codes = [3, 77, 200, 3, 500, 41, 9, 9]
    path = SEGMENTS.path(codes)
    again = []
    at = np.zeros(3)
    for k, code in enumerate(codes):
        piece = path[k * SEGMENT_STEPS : (k + 1) * SEGMENT_STEPS]
        c, s = np.cos(at[2]), np.sin(at[2])
        local = (piece[:, :2] - at[:2]) @ np.array([[c, -s], [s, c]])
        np.testing.assert_allclose(local, SEGMENTS.paths[code][:, :2], atol=1e-9)
        at = piece[-1]
        again.append(code)
    assert again == codes


def test_path_error_by_hand():
    wanted = np.column_stack([np.arange(1.0, 5.0), np.zeros(4), np.zeros(4)])
    got = wanted + np.array([0.3, 0.4, 0.0])
    ade, fde, late = path_error(wanted, got, np.full(4, 2.0))
    assert (ade, fde, late) == pytest.approx((0.5, 0.5, 0.15))
    assert path_error(wanted, got, np.zeros(4))[2] == 0.0


@pytest.mark.parametrize("codes", [DCT, SEGMENTS])
def test_saved_and_loaded_is_the_same(codes, tmp_path):
    codes.save(tmp_path / "codes.json")
    again = type(codes).load(tmp_path / "codes.json")
    first, second = (x.encode(*(part[5] for part in HELD_OUT)) for x in (codes, again))
    assert np.array_equal(first, second)
    (tmp_path / "bad.json").write_text("{")
    for name in ("bad.json", "absent.json"):
        with pytest.raises(InputError, match=name):
            type(codes).load(tmp_path / name)


def test_action_codes_reject():
    with pytest.raises(InputError, match="both"):
        DCT.encode(1.0, np.zeros(3), np.zeros(3))
    with pytest.raises(InputError, match="finite"):
        SEGMENTS.encode(np.nan, np.zeros(STEPS), np.zeros(STEPS))
    with pytest.raises(InputError, match=rf"0 \.\. {DCT.size - 1}"):
        DCT.decode(1.0, [DCT.size])
    with pytest.raises(InputError, match="at most 128"):
        DCT.decode(1.0, [int(DCT.encode(9.0, *(x[0] for x in HELD_OUT[1:]))[0])] * 200)
    with pytest.raises(InputError, match=r"0 \.\. 511"):
        SEGMENTS.path([512])
    with pytest.raises(InputError, match="at least 1023"):
        DctCodes.trained(*TRAIN, size=500)
    with pytest.raises(InputError, match="segments"):
        SegmentCodes.trained(*(part[:2] for part in TRAIN), size=512)


def test_labels_of_a_dense_path_drive_it():
    """The regularised inverse at 10 Hz: what it returns drives along the path that it was given."""
    for v0, accel, curvature in zip(*HELD_OUT, strict=True):
        path = np.stack(integrate(v0, accel, curvature, DT_S)[:3], axis=-1)
        driven = np.stack(integrate(v0, *unicycle_labels(path, v0, DT_S), DT_S)[:3], axis=-1)
        assert np.hypot(*(driven - path)[:, :2].T).mean() < 0.05
