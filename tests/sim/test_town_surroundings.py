"""What a drive through a town is judged against lies where the town has it."""

import cv2
import numpy as np
import pytest

from sim.scenarios import get_scenario
from sim.town_surroundings import REACH_M, TownSurroundings, drivable_mask
from sim.town_world import TownWorld


@pytest.fixture(scope="module")
def town():
    world = TownWorld()
    world.reset(get_scenario("town-smoke/0"))
    yield TownSurroundings.of(world)
    world.close()


def inside(areas, points):
    """Whether points [N, 2] lie in any of some polygons, by the even-odd rule."""
    polygons = [polygon.astype(np.float32) for polygon in areas]
    return np.array([any(cv2.pointPolygonTest(p, (x, y), False) >= 0 for p in polygons) for x, y in points.tolist()])


def test_the_drivable_area_is_the_towns(town):
    rng = np.random.default_rng(0)
    route = town.around.route_m[rng.integers(len(town.around.route_m), size=600)]
    points = route + rng.uniform(-15, 15, route.shape)
    town_map = town.world.town_map
    near = np.array([town_map.drivable(p + 0.3 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])) for p in points])
    clear = near.all(axis=1) | ~near.any(axis=1)  # not within the raster's coarseness of an edge
    assert clear.sum() > 400
    drivable = inside([xy for layer, xy in town.around.areas if layer == "drivable"], points[clear])
    assert (drivable == town_map.drivable(points[clear])).mean() > 0.995
    assert 0.2 < drivable.mean() < 0.9


def test_the_map_raster_is_the_towns(town):
    mask = drivable_mask(town.world.network.path)
    rng = np.random.default_rng(1)
    points = town.around.route_m[rng.integers(len(town.around.route_m), size=300)] + rng.uniform(-12, 12, (300, 2))
    column, row = np.floor(points * (10, -10)).astype(int).T + np.array([[0], [mask.shape[0]]])
    assert ((mask[row, column] > 0) == town.world.town_map.drivable(points)).mean() > 0.98


def test_the_route_begins_at_the_ego_and_ends_beyond_the_goal(town):
    around, ego = town.around, town.world.ego
    np.testing.assert_allclose(around.route_m[0], [ego.x_m, ego.y_m], atol=0.3)
    step = np.hypot(*np.diff(around.route_m, axis=0).T)
    assert step.max() < 1.2
    assert 100 < step.sum() - around.goal_m < 120
    assert abs(around.goal_m - town.world.route.length_m) < 3.0
    headings = np.unwrap(np.arctan2(*np.diff(around.route_m, axis=0).T[::-1]))
    assert np.abs(np.diff(headings)).max() < 0.35  # it has no kinks
    assert inside([xy for layer, xy in around.areas if layer == "drivable"], around.route_m[:-110]).all()


def test_only_what_is_near_the_route_is_kept(town):
    around, network = town.around, town.world.network
    assert len(around.lanes) < sum(1 for _ in network.of_kind("road", "inner"))
    for lane in around.lanes:
        ends = np.concatenate([lane.centreline_m, lane.centreline_m[:1]])
        assert min(np.hypot(*(around.route_m - xy).T).min() for xy in ends) < REACH_M + 160.0  # lanes are kept whole
    on_route = {network.lanes[lane.id].edge for lane in around.lanes if lane.on_route}
    assert set(town.world.route.edges) <= on_route


def test_red_lanes_and_stop_lines_follow_the_lights(town):
    world, seen = town.world, set()
    for _ in range(300):
        world.step(-3.0, 0.0)
        for k in town.red_lanes():
            lane = town.around.lanes[k]
            link = world.network.link_into[lane.id]
            assert world.lights[link.light][link.light_index] in "ru"
            assert lane.on_route
        seen |= {colour for colour, _ in town.stop_lines()}
    assert seen == {"red", "amber", "green"}
