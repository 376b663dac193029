import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import LineString, Point, Polygon

from sensors.errors import InputError
from sim.geometry import ClosedLine, area, corners, overlap, overlap_slow

properties = settings(deadline=None, derandomize=True, max_examples=60)
box = st.tuples(*[st.floats(-4, 4)] * 2, st.floats(-4, 4), *[st.floats(0.3, 6)] * 2).map(np.array)


@properties
@given(box, box)
def test_overlap_agrees_with_its_slow_twin_and_shapely(a, b):
    common = Polygon(corners(a)).intersection(Polygon(corners(b))).area
    if (
        common > 1e-9 or Polygon(corners(a)).distance(Polygon(corners(b))) > 1e-9
    ):  # touching ones are a matter of rounding
        assert bool(overlap(a, b)) == (common > 0) == overlap_slow(a, b)


@properties
@given(box)
def test_corners_run_counter_clockwise_around_the_area(a):
    assert area(corners(a)) == pytest.approx(a[3] * a[4])


def test_overlap_is_vectorised():
    a = np.array([0, 0, 0, 4, 2.0])
    others = np.array([[3.9, 0, 0, 4, 2], [4.1, 0, 0, 4, 2], [0, 2.4, np.pi / 2, 4, 2], [0, 3.1, np.pi / 2, 4, 2.0]])
    assert overlap(a, others).tolist() == [True, False, True, False]


def circle(radius, count=400, clockwise=False):
    t = np.linspace(0, 2 * np.pi, count, endpoint=False) * (-1 if clockwise else 1)
    return ClosedLine(radius * np.stack([np.cos(t), np.sin(t)], axis=-1))


@pytest.mark.parametrize("clockwise", [False, True])
def test_circle_has_its_length_curvature_heading_and_laterals(clockwise):
    line, sign = circle(20.0, clockwise=clockwise), -1 if clockwise else 1
    assert line.length_m == pytest.approx(2 * np.pi * 20, rel=1e-4)
    assert line.curvature_at(np.linspace(0, 300, 50)) == pytest.approx(sign / 20, rel=1e-3)
    at = line.project(np.array([[18.0, 0.0], [0.0, 25.0]]))
    assert at.lateral_m == pytest.approx(np.array([2.0, -5.0]) * sign, abs=1e-2)
    assert at.heading_rad[0] == pytest.approx(sign * np.pi / 2, abs=2e-3)


@properties
@given(st.floats(-500, 500), st.floats(-6, 6))
def test_projection_inverts_position_plus_offset(s, left):
    line = circle(30.0)
    xy, heading = line.at(s)
    at = line.project(xy + left * np.array([-np.sin(heading), np.cos(heading)]))
    away = (float(at.s_m) - s) % line.length_m
    assert min(away, line.length_m - away) < 0.1  # inside a bend the nearest chord is not the nearest arc
    assert float(at.lateral_m) == pytest.approx(left, abs=0.01)


def test_projection_agrees_with_shapely():
    rng = np.random.default_rng(3)
    line = ClosedLine(np.array([[0, 0], [10, 1], [14, 9], [6, 13], [-2, 8.0]]))
    ring = LineString([*line.points, line.points[0]])
    points = rng.uniform(-5, 18, (200, 2))
    at = line.project(points)
    assert np.abs(at.lateral_m) == pytest.approx([ring.distance(Point(p)) for p in points])
    # At a corner's far side two segments are equally near, which is one and the same point of the line.
    assert np.linalg.norm(line.at(at.s_m)[0] - points, axis=1) == pytest.approx(np.abs(at.lateral_m))


def test_gap_goes_forward_round_the_loop():
    line = circle(10.0)
    assert line.gap(1.0, 4.0) == pytest.approx(3.0)
    assert line.gap(4.0, 1.0) == pytest.approx(line.length_m - 3.0)


@pytest.mark.parametrize("points", [np.zeros((2, 2)), np.zeros((4, 3)), np.zeros((5, 2))])
def test_line_rejects(points):
    with pytest.raises(InputError, match="points"):
        ClosedLine(points)
