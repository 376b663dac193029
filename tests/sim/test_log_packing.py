"""Columns made small come back exactly as they were, and a log of a busy town stays small."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.clip import Boxes
from sensors.frames import matrix_from_xy_yaw
from sim.log_packing import TICKS, WORDS, in_ticks, pack, unpack
from sim.rollout_log import COLUMNS, EpisodeRecorder, read_episode, write_episode

FEW = settings(deadline=None, derandomize=True, max_examples=25)


def columns(rng: np.random.Generator, rows: int, rounded: bool = True) -> dict[str, np.ndarray]:
    """Of `rows` sights of some actors who come and go, in order of time."""
    pose = rng.normal(0, [900.0, 900.0, 3.0], (rows, 3))
    speed = rng.uniform(0, 30, rows)
    if rounded:
        pose, speed = in_ticks("actor_xyyaw_in_world", pose), in_ticks("actor_speed_mps", speed)
    return {
        "actor_frame": np.sort(rng.integers(0, 40, rows)),
        "actor_id": rng.choice(["a", "car 2", "pedestrian"], rows) if rows else np.array([], str),
        "actor_xyyaw_in_world": pose,
        "actor_speed_mps": speed,
        "time_us": rng.integers(0, 2**60, 5),
    }


def same(a: dict, b: dict) -> bool:
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


@FEW
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.booleans())
def test_unpack_is_the_inverse_to_the_last_bit(seed: int, rows: int, rounded: bool) -> None:
    given_columns = columns(np.random.default_rng(seed), rows, rounded)
    packed = pack(given_columns)
    assert same(unpack(packed), given_columns)
    assert any(name.endswith(TICKS) for name in packed) == (rounded and rows > 0)
    assert any(name.endswith(WORDS) for name in packed) == (rows > 0)


@pytest.mark.parametrize("strange", [np.nan, np.inf, 3e5, -3e5])
def test_what_is_no_motion_stays_as_it_is(strange: float) -> None:
    given_columns = columns(np.random.default_rng(0), 9)
    given_columns["actor_xyyaw_in_world"][4, 0] = strange
    packed = pack(given_columns)
    assert "actor_xyyaw_in_world" in packed
    assert np.array_equal(unpack(packed)["actor_xyyaw_in_world"], given_columns["actor_xyyaw_in_world"], equal_nan=True)


def test_a_minute_among_a_hundred_others_is_below_a_megabyte(tmp_path) -> None:
    """A hundred that accelerate, brake and turn at random all the time, 10 times a second."""
    rng = np.random.default_rng(1)
    recorder = EpisodeRecorder("busy", "drive", "p", 0)
    pose, speed, rate = rng.uniform(-400, 400, (100, 3)), rng.uniform(0, 14, 100), np.zeros(100)
    for k in range(650):
        speed = np.clip(speed + rng.normal(0, 0.1, 100), 0, 14)
        rate = 0.9 * rate + rng.normal(0, 0.01, 100)
        pose[:, 2] = (pose[:, 2] + 0.1 * rate + np.pi) % (2 * np.pi) - np.pi
        direction = np.stack([np.cos(pose[:, 2]), np.sin(pose[:, 2])], axis=-1)
        pose[:, :2] += 0.1 * speed[:, None] * direction
        ids, size = tuple(f"vehicle {i}" for i in range(100)), np.tile([4.5, 1.9, 1.6], (100, 1))
        others = Boxes(ids, ("vehicle.car",) * 100, matrix_from_xy_yaw(*pose.T), size, speed[:, None] * direction)
        if k <= 600:
            recorder.frame(100_000 * k, np.zeros(3), 0.0, None, others)
        else:
            recorder.afterwards(100_000 * k, others)
    log = recorder.finish("time")
    write_episode(tmp_path / "busy.npz", log)
    assert (tmp_path / "busy.npz").stat().st_size < 1_000_000
    again = read_episode(tmp_path / "busy.npz")
    assert all(np.array_equal(getattr(log, name), getattr(again, name), equal_nan=True) for name in MOTION_COLUMNS)


MOTION_COLUMNS = tuple(name for name, (dtype, letter, _) in COLUMNS.items() if letter == "A" and dtype != "U")
