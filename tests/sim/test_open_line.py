"""Lines with two ends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.errors import InputError
from sim.geometry import OpenLine


def arc(radius_m: float, count: int = 60) -> OpenLine:
    angle = np.linspace(0.0, 1.5, count)
    return OpenLine(radius_m * np.stack([np.cos(angle), np.sin(angle)], axis=-1))


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.floats(8.0, 300.0))
def test_heading_and_curvature_of_an_arc_are_exact(radius_m: float) -> None:
    line = arc(radius_m)
    step = 1.5 / 59
    chord_over_arc = np.sinc(step / 2 / np.pi)
    assert np.allclose(line.heading_rad, np.linspace(0.0, 1.5, 60) + np.pi / 2, atol=1e-9)
    assert np.allclose(line.curvature_1pm * chord_over_arc, 1 / radius_m, rtol=1e-6)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.floats(1.0, 40.0), st.floats(-3.0, 3.0))
def test_projection_of_a_point_beside_the_line_is_where_it_came_from(s_m: float, left_m: float) -> None:
    line = arc(40.0, 400)
    xy, heading = line.at(s_m)
    found = line.project(xy + left_m * np.array([-np.sin(heading), np.cos(heading)]))
    assert abs(float(found.s_m) - s_m) < 0.02
    assert abs(float(found.lateral_m) - left_m) < 0.01


def test_beyond_the_ends_is_the_end() -> None:
    line = OpenLine(np.array([[0.0, 0.0], [10.0, 0.0]]))
    assert np.allclose(line.at(np.array([-5.0, 50.0]))[0], [[0, 0], [10, 0]])
    assert float(line.project(np.array([12.0, 1.0])).s_m) == 10.0


def test_projection_near_a_place_does_not_jump_to_another_branch() -> None:
    there = np.stack([np.arange(0.0, 100.0), np.zeros(100)], axis=-1)
    line = OpenLine(np.concatenate([there, there[::-1] + np.array([0.0, 4.0])]))
    point = np.array([50.0, 3.0])
    assert float(line.project(point).s_m) > 120.0
    assert abs(float(line.project(point, near_s_m=48.0, within_m=20.0).s_m) - 50.0) < 1e-9


def test_line_rejects_one_point_and_equal_neighbours() -> None:
    with pytest.raises(InputError, match="P >= 2"):
        OpenLine(np.zeros((1, 2)))
    with pytest.raises(InputError, match="equal neighbours"):
        OpenLine(np.zeros((3, 2)))


@pytest.mark.parametrize("seed", range(30))
def test_the_nearest_of_one_point_is_its_projection_bit_for_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    line = OpenLine(np.cumsum(rng.normal((0.8, 0.2), 0.4, (60, 2)), axis=0))
    x, y = rng.normal(20, 15, 2)
    for near in (None, float(rng.uniform(-5, 60))):
        found = line.project(np.array([x, y]), near, 8.0)
        assert line.nearest(x, y, near, 8.0) == (found.s_m, found.lateral_m, found.heading_rad)
