"""Pedestrians without leaps."""

import numpy as np

from sim.walking import CATCH_UP_MPS, MAX_WALK_MPS, SmoothWalk

HERE = np.ones(2, bool)


def test_a_leap_is_walked_and_a_walk_is_left_as_it_is() -> None:
    walk = SmoothWalk(2, 0.1)
    seen, fast = [], []
    for k in range(80):
        model = np.array([[0.12 * k + 10.0 * (k >= 5), 0.0], [5.0, 0.1 * k]])
        at, speed = walk.follow(model, HERE)
        seen.append(at)
        fast.append(speed)
        assert np.array_equal(at[1], model[1])
        assert k < 60 or np.array_equal(at, model), "it has caught up"
    moved = np.hypot(*np.diff([at[0] for at in seen], axis=0).T)
    assert moved.max() <= 0.1 * CATCH_UP_MPS + 0.12 + 1e-9
    assert np.isnan(fast[0]).all()
    assert np.allclose(np.array(fast[1:])[:, 0] * 0.1, moved)
    assert max(speed[0] for speed in fast[1:]) < MAX_WALK_MPS


def test_who_comes_goes_or_is_put_far_away_is_there_at_once() -> None:
    walk = SmoothWalk(2, 0.1)
    walk.follow(np.array([[0.0, 0.0], [1e5, 1e5]]), np.array([True, False]))
    at, speed = walk.follow(np.array([[100.0, 0.0], [3.0, 4.0]]), HERE)
    assert np.array_equal(at, [[100.0, 0.0], [3.0, 4.0]])
    assert np.isnan(speed[1])
