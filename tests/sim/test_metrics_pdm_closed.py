import time
from dataclasses import replace

import numpy as np
import pytest

from sim.metrics import pdm, pdm_scores
from sim.metrics.pdm_closed import constant_velocity, pdm_closed
from sim.metrics.pdm_proposals import OFFSETS_M, SPEED_SHARES, idm_acceleration, parallel_paths, proposals
from sim.metrics.pdm_scene import Actors, MapLayers, PdmScene, ego_points

EGO = np.array([0.0, 0.2, 0.01, 8.0, 0.0, 0.0, 0.0])


def rectangle(x0, x1, y0, y1):
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=float)


def actors_of(*items):
    """Actors from rows (x, y, heading, speed, length, width)."""
    rows = np.array(items, dtype=float).reshape(-1, 6)
    count = len(rows)
    speed = np.repeat(rows[:, 3:4], 51, axis=1)
    xyh = np.repeat(rows[:, None, :3], 51, axis=1)
    way = np.stack([np.cos(rows[:, 2]), np.sin(rows[:, 2])], axis=-1)
    xyh[..., :2] += way[:, None] * speed[..., None] * (np.arange(51) * 0.1)[:, None]
    present, agents = np.ones((count, 51), dtype=bool), np.ones(count, dtype=bool)
    return Actors(tuple(map(str, range(count))), xyh, present, rows[:, 4:], speed, agents).validate()


def road(*items, red=(), bend=0.0):
    x = np.arange(-40.0, 160.0)
    line = np.stack([x, bend * np.maximum(x, 0) ** 2], axis=-1)
    lane = np.concatenate([line + np.array([0, -1.75]), (line + np.array([0, 1.75]))[::-1]])
    edge = np.concatenate([line + np.array([0, -6]), (line + np.array([0, 6]))[::-1]])
    layers = MapLayers(roadblock=[edge], lane=[lane], lane_on_route=[True])
    return PdmScene(actors_of(*items), layers, line, [tuple(red)] * 41).validate()


def slow_progress(ego, scene, limit, lateral, share):
    """Arc lengths [41] of one compat proposal, in scalars and with shapely, as NAVSIM's generator unrolls it."""
    shapely = pytest.importorskip("shapely")
    path = parallel_paths(scene.centreline)[lateral]
    line = shapely.LineString(path[:, :2])
    along = np.append(0, np.cumsum(np.hypot(*np.diff(path[:, :2], axis=0).T)))
    s, v, target = line.project(shapely.Point(ego[:2])), ego[3], limit * share
    end = min(s + limit * 4.0, line.length)
    inner = [p for p, a in zip(path[:, :2], along, strict=True) if s < a < end]
    window = shapely.LineString([line.interpolate(s).coords[0], *inner, line.interpolate(end).coords[0]])
    corridor = window.buffer(pdm.PACIFICA.width_m / 2, cap_style="square", join_style="mitre")
    out, lead, lead_speed, rear = [s], 0.0, 0.0, 0.0
    for k in range(1, 41):
        if k % 2 == 0:
            pose = np.array([np.interp(s, along, path[:, i]) for i in range(3)])
            own = shapely.Polygon(ego_points(np.append(pose, np.zeros(4)))[:4])
            lead, lead_speed, rear, best = line.length, 0.0, pdm.PACIFICA.length_m / 2, np.inf
            for a in range(len(scene.actors.ids)):
                x, y, h = scene.actors.xyh[a, k]
                half = scene.actors.size_lw_m[a] / 2
                turn = np.array([[np.cos(h), -np.sin(h)], [np.sin(h), np.cos(h)]])
                box = shapely.Polygon([x, y] + (np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * half) @ turn.T)
                if box.intersects(corridor) and line.project(shapely.Point(x, y)) > s and own.distance(box) < best:
                    best = own.distance(box)
                    lead, rear = s + best, 0.0
                    lead_speed = scene.actors.speed_mps[a, 0] * np.cos(h - pose[2])
            for polygon in map(shapely.Polygon, scene.red_lights[k]):
                ahead = line.project(polygon.centroid) > s
                if polygon.intersects(corridor) and ahead and own.distance(polygon) < best:
                    best = own.distance(polygon)
                    lead, rear, lead_speed = s + best, 0.0, 0.0
        gap = max(lead - s - rear, 1.0)
        wanted = 1.0 + v * 1.5 + v * (v - lead_speed) / (2 * np.sqrt(1.5 * 3.0))
        dv = np.clip(1.5 * (1 - (v / target) ** 10 - (wanted / gap) ** 2), -3.0, 1.5)
        s, v = s + 0.1 * v, v + 0.1 * dv
        out.append(s)
    return np.array(out), line, along, path


@pytest.mark.parametrize(
    ("items", "red"),
    [
        ((), ()),
        (((30, 0, 0, 3, 4, 2), (50, 1.5, 0.3, 5, 4, 2), (25, -1.9, 0, 6, 4, 1.0)), ()),
        (((50.9, 0, 0, 0, 4, 2), (-4, 0, 0, 9, 4, 2)), ()),  # within the square end of the corridor, and behind
        (((20, 0, 0, 1, 14, 2), (18, 0.9, 0, 5, 0.3, 0.3)), ()),  # the nearer centre is not the nearer box
        (((60, 8, -np.pi / 2, 4, 4, 2), (20, 4.5, 0, 0, 4, 2)), (rectangle(35, 45, -2, 2),)),
    ],
)
@pytest.mark.parametrize("bend", [0.0, 0.004])
def test_proposals_equal_their_slow_twin(items, red, bend):
    scene = road(*items, red=red, bend=bend)
    scene = replace(scene, actors=constant_velocity(scene.actors))
    poses = proposals(EGO[None], [scene], 12.0)[0]
    for p in range(15):
        s, _, along, path = slow_progress(EGO, scene, 12.0, p // 5, SPEED_SHARES[p % 5])
        expected = np.stack([np.interp(s, along, path[:, i]) for i in range(3)], axis=-1)
        np.testing.assert_allclose(poses[p], expected, atol=1e-6, err_msg=f"proposal {p}")


def test_idm_reaches_its_fixed_points():
    v, target = np.array([0.0, 10.0, 5.0, 10.0]), np.array([10.0, 10.0, 10.0, 10.0])
    gap, lead = np.array([1e9, 1e9, 1.0, 5.0]), np.array([0.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(idm_acceleration(v, target, gap, lead), [1.5, 0.0, -3.0, -3.0], atol=1e-6)
    following = idm_acceleration(np.array([6.0]), np.array([1e9]), np.array([1.0 + 6 * 1.5]), np.array([6.0]))
    assert following[0] == pytest.approx(0.0, abs=1e-9)


def test_free_road_takes_the_fastest_centre_proposal():
    result = pdm_closed(EGO, road(), 12.0)
    assert result.proposals.shape == (15, 41, 3)
    assert result.states.shape == (15, 41, 7)
    assert (result.best, result.score[result.best]) == (4, 1.0)
    np.testing.assert_array_equal(result.states[:, 0], np.tile(EGO, (15, 1)))
    assert pdm_closed(EGO, road()).reference[-1, 3] > result.reference[-1, 3]  # without a limit, 15 m/s
    lateral = result.proposals[:, -1, 1].reshape(3, 5)
    np.testing.assert_allclose(lateral, np.repeat(np.array(OFFSETS_M)[:, None], 5, axis=1), atol=1e-9)


def test_it_stops_for_what_stands_and_for_red():
    for scene in (road((25, 0, 0, 0, 4, 2)), road(red=[rectangle(23, 30, -2, 2)])):
        for version in ("v1", "v2"):
            states = pdm_closed(EGO, scene, 12.0, version).reference
            assert ego_points(states)[:, 0, 0].max() < 23.0
            assert states[-1, 3] < 3.0
            assert pdm_scores.sub_scores(states[None], scene)["NC"][0] == 1.0
    passed = pdm_closed(EGO, road((25, 4.2, 0, 0, 4, 2)), 12.0)
    assert passed.reference[-1, 0] > 35.0


def test_strict_does_not_brake_on_nothing():
    compat, strict = (pdm_closed(EGO, road(), 12.0, variant=v).proposals for v in ("compat", "strict"))
    step = np.diff(compat[4, :4, 0]), np.diff(strict[4, :4, 0])
    assert step[0][1] < step[0][0] - 0.02  # -3 m/s2 for the first 0.1 s
    assert step[1][1] > step[1][0]


def test_forecast_is_of_agents_at_constant_velocity():
    actors = actors_of((0, 0, np.pi / 2, 4.0, 4, 2), (5, 5, 0, 3.0, 4, 2))
    present = actors.present.copy()
    present[1, 0] = False
    seen = constant_velocity(replace(actors, present=present, is_agent=np.array([True, True])))
    assert seen.ids == ("0",)
    np.testing.assert_allclose(seen.xyh[0, [0, 1, 2, 3, 10], 1], [0, 0, 0.8, 0.8, 4.0], atol=1e-12)
    still = constant_velocity(replace(actors, is_agent=np.array([False, True])))
    assert np.ptp(still.xyh[0, :, 1]) == 0.0


def test_names_and_order_of_actors_do_not_matter():
    scene = road((30, 0, 0, 3, 4, 2), (45, 1.0, 0, 5, 4, 2), (25, -1.9, 0, 6, 4, 1))
    shuffled = scene.actors.take(np.array([2, 0, 1]))
    other = replace(scene, actors=replace(shuffled, ids=("x", "y", "z")))
    a, b = pdm_closed(EGO, scene, 12.0), pdm_closed(EGO, other, 12.0)
    np.testing.assert_array_equal(a.score, b.score)
    np.testing.assert_allclose(a.states, b.states, atol=1e-12)


def test_pdm_closed_rejects():
    for missing in (replace(road(), layers=None), replace(road(), centreline=None)):
        with pytest.raises(ValueError, match="map and a centre line"):
            pdm_closed(EGO, missing)
    with pytest.raises(ValueError, match="no length"):
        pdm_closed(EGO, replace(road(), centreline=np.zeros((2, 2))))


@pytest.mark.slow  # a figure of a quiet machine
def test_fifteen_proposals_are_simulated_and_scored_in_20_ms():
    rng = np.random.default_rng(0)
    rows = np.column_stack(
        [rng.uniform(-30, 120, 50), rng.choice([-5, 4, 9], 50), np.zeros(50), rng.uniform(0, 10, 50)]
    )
    scene = road(*np.column_stack([rows, np.tile([4.5, 1.9], (50, 1))]))
    tiles = [
        np.concatenate([[[x, y], [x + 20, y]], np.linspace([x + 20, y + 3.5], [x, y + 3.5], 40)])
        for x in range(-40, 160, 20)
        for y in (-5.25, -1.75, 1.75)
    ]
    layers = replace(scene.layers, lane=tiles, lane_on_route=[i % 3 == 1 for i in range(len(tiles))])
    scene = replace(scene, layers=layers)
    poses = pdm_closed(EGO, scene, 12.0).proposals
    took = []
    for _ in range(8):
        start = time.process_time()
        pdm_scores.sub_scores(pdm.rollout(poses, EGO[3], initial=EGO), scene)
        took.append(time.process_time() - start)
    assert min(took) <= 0.020
