import numpy as np
import pytest
from shapely.geometry import LinearRing, Polygon

from sim.geometry import area
from sim.roads import COMFORTABLE_ACCEL_MPS2, LANE_WIDTH_M, MIN_RADIUS_M, SHOULDER_M, Course

COURSES = [Course.generate(seed) for seed in range(8)]


@pytest.mark.parametrize("course", COURSES)
def test_course_is_a_loop_with_curves_both_ways(course):
    assert 400 <= course.centre.length_m <= 800
    curvature = course.centre.curvature_1pm
    assert curvature.min() < -1 / 60
    assert curvature.max() > 1 / 60
    for lane in course.lanes.values():
        assert 1 / np.abs(lane.line.curvature_1pm).max() >= 12.0
    assert 1 / np.abs(curvature).max() >= MIN_RADIUS_M - 1e-6


@pytest.mark.parametrize("course", COURSES)
def test_road_does_not_cross_itself(course):
    for left in (-course.half_width_m, 0.0, course.half_width_m):
        assert LinearRing(course.centre.offset(left)).is_simple
    assert LinearRing(course.centre.points).buffer(10.0).interiors  # still a ring, not filled in by a near miss


def test_same_seed_same_course_other_seed_another():
    assert np.array_equal(Course.generate(3).centre.points, COURSES[3].centre.points)
    assert not np.array_equal(COURSES[2].centre.points[:100], COURSES[3].centre.points[:100])


def test_lanes_lie_right_and_left_and_run_opposite_ways():
    course = COURSES[0]
    right, left = course.lanes["right"].line, course.lanes["left"].line
    assert course.centre.project(right.points).lateral_m == pytest.approx(-LANE_WIDTH_M / 2, abs=0.02)
    assert course.centre.project(left.points).lateral_m == pytest.approx(LANE_WIDTH_M / 2, abs=0.02)
    # The oncoming lane lies to the left of a driver in either lane.
    assert (left.project(right.points).lateral_m < 0).mean() == 0.0
    assert np.sign(area(right.points)) == -np.sign(area(left.points))
    assert course.lanes["right"].successors == ("right",)


def test_drivable_is_road_and_shoulder():
    course = COURSES[1]
    edge = LANE_WIDTH_M + SHOULDER_M
    assert course.drivable(course.centre.offset(edge - 0.05)).all()
    assert not course.drivable(course.centre.offset(-edge - 0.05)).any()


@pytest.mark.parametrize("course", COURSES[:3])
def test_speed_profile_is_comfortable(course):
    for lane in course.lanes.values():
        v, ds = lane.speed_profile_mps, np.diff(lane.line.s_m)
        assert (v <= lane.speed_limit_mps + 1e-9).all()
        assert (v**2 * np.abs(lane.line.curvature_1pm) <= 2.0 + 1e-6).all()
        assert ((v[:-1] ** 2 - v[1:] ** 2) / (2 * ds) <= COMFORTABLE_ACCEL_MPS2 + 1e-6).all()
        assert v[0] == v[-1]
        assert v.min() < 0.8 * v.max()


def test_surfaces_are_simple_polygons_that_cover_the_road():
    course = COURSES[0]
    kinds = [s.kind for s in course.surfaces]
    assert kinds.index("asphalt") > kinds.index("shoulder")
    assert kinds.index("marking") > len(kinds) - 1 - kinds[::-1].index("asphalt")
    covered = sum(Polygon(s.outline_m).area for s in course.surfaces if s.kind == "asphalt")
    assert covered == pytest.approx(2 * LANE_WIDTH_M * course.centre.length_m, rel=0.01)
    assert all(Polygon(s.outline_m).is_valid for s in course.surfaces)
