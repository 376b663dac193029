"""The vectorised scorer against a slow one: loops, ignore lists and shapely, as the reference does it."""

import functools
import operator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.metrics import pdm, pdm_scores
from sim.metrics.pdm_scene import (
    Actors,
    MapLayers,
    PdmScene,
    boxes_touch,
    ego_points,
    points_in_polygon,
    polygon_distance,
    project_on_line,
    rectangles_touch_polygon,
    resample_actors,
)

shapely = pytest.importorskip("shapely")
AREAS = ("roadblock", "intersection", "drivable", "carpark")


def random_polygon(rng, centre, size, vertices=9):
    """A star-shaped, in general not convex, polygon."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, vertices))
    radius = size * rng.uniform(0.3, 1.0, vertices)
    return centre + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def strip(xy, left, right):
    step = np.gradient(xy, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], axis=-1) / np.linalg.norm(step, axis=1, keepdims=True)
    return np.concatenate([xy + left * normal, (xy + right * normal)[::-1]])


def random_scene(seed, actors=14):
    """A curved road of two lanes with patches around it, and P = 5 rollouts along it."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(-0.6, 1.8, 60)
    radius = rng.uniform(20, 60)
    line = radius * np.stack([np.sin(angle), 1 - np.cos(angle)], axis=-1)
    halves = (strip(line[:35], 1.75, -1.75), strip(line[34:], 1.75, -1.75), strip(line, 5.25, 1.75))
    layers = MapLayers(
        roadblock=[strip(line, 5.25, -1.75)],
        intersection=[random_polygon(rng, line[40], 8.0)],
        drivable=[random_polygon(rng, line[i], 6.0) for i in (25, 35)],
        carpark=[random_polygon(rng, line[30] + 5, 5.0)],
        lane=halves[1:],
        lane_on_route=[True, bool(rng.integers(2))],
        lane_connector=halves[:1],
        lane_connector_on_route=[bool(rng.integers(4))],
    )
    at = rng.integers(5, 55, actors)
    xyh = np.zeros((actors, 51, 3))
    heading = angle[at] + rng.choice([0, np.pi, 0.5 * np.pi], actors) + rng.normal(0, 0.2, actors)
    speed = rng.choice([0.0, 0.04, 2.0, 6.0], actors)
    xyh[..., :2] = (line[at] + rng.normal(0, 3, (actors, 2)))[:, None]
    xyh[..., 0] += np.cos(heading)[:, None] * speed[:, None] * np.arange(51) * 0.1
    xyh[..., 1] += np.sin(heading)[:, None] * speed[:, None] * np.arange(51) * 0.1
    xyh[..., 2] = heading[:, None]
    names = tuple(f"a{i}" for i in range(actors))
    size = rng.uniform([0.5, 0.5], [5, 2.5], (actors, 2))
    present = rng.uniform(size=(actors, 51)) > 0.05
    objects = Actors(names, xyh, present, size, np.repeat(speed[:, None], 51, 1), rng.uniform(size=actors) > 0.3)
    lights = [[random_polygon(rng, line[i], 3.0) for i in (24, 50)] if k % 20 < 12 else [] for k in range(41)]
    scene = PdmScene(objects.validate(), layers.validate(), line, lights).validate()
    plans = []
    for pace in (0.0, 3.0, 6.0, 9.0, 12.0):
        a = np.arange(41) * 0.1 * pace / radius
        shift = rng.normal(0, 1.0)
        r = radius - shift * np.linspace(0, 1, 41)
        plans.append(np.stack([r * np.sin(a), radius - r * np.cos(a), a + rng.normal(0, 0.05)], axis=-1))
    return scene, pdm.rollout(np.array(plans), np.array([0.03, 3, 6, 9, 12]))


class Slow:
    """One proposal [41, 7] judged in plain loops."""

    def __init__(self, states, scene, version):
        self.states, self.scene, self.version = states, scene, version
        self.points = ego_points(states)
        self.ego = [shapely.Polygon(p[:4]) for p in self.points]
        layers, self.actors = scene.layers, scene.actors
        names = (*AREAS, "lane", "lane_connector")
        polygons = {name: [shapely.Polygon(p) for p in getattr(layers, name)] for name in names}
        lanes, self.crossings = polygons["lane"] + polygons["lane_connector"], polygons["intersection"]
        drivable = functools.reduce(operator.iadd, (polygons[name] for name in AREAS), [])
        routed = [*layers.lane_on_route, *layers.lane_connector_on_route]
        self.off, self.multi, self.oncoming, self.crossing = [], [], [], []
        for p in self.points:
            self.off.append(not all(any(inside(c, drivable)) for c in p[:4]))
            corners = np.array([inside(c, lanes) for c in p[:4]])
            self.multi.append(corners.any(0).sum() > 1 and not corners.all(0).any())
            self.oncoming.append(not any(h and on for h, on in zip(inside(p[4], lanes), routed, strict=True)))
            self.crossing.append(any(inside(p[4], self.crossings)))
        pairs = zip(self.actors.xyh, self.actors.size_lw_m, strict=True)
        self.boxes = [[shapely.Polygon(_corners(pose, size)) for pose in track] for track, size in pairs]

    def touched(self, shape, t, ignored):
        """Actors that are there at t, touch the shape and are not ignored."""
        count = len(self.actors.ids)
        return [
            a
            for a in range(count)
            if a not in ignored and self.actors.present[a, t] and shape.intersects(self.boxes[a][t])
        ]

    def degrees(self, k, a, t):
        dx, dy = self.actors.xyh[a, t, :2] - self.states[k, :2]
        way = np.array([np.cos(self.states[k, 2]), np.sin(self.states[k, 2])])
        return np.rad2deg(np.arccos(np.clip(way @ [dx, dy] / np.hypot(dx, dy), -1, 1)))

    def no_collision(self):
        ignored, score = self.touched(self.ego[0], 0, []) if self.version == "v1" else [], 1.0
        for k in range(41):
            for a in self.touched(self.ego[k], k, ignored):
                first_speed = self.actors.speed_mps[a, self.actors.present[a].argmax()]
                if abs(self.states[k, 3]) <= 0.05:
                    fault = False
                elif not self.actors.is_agent[a] or first_speed <= 0.05:
                    fault = True
                elif self.degrees(k, a, k) > 150:
                    fault = False
                else:
                    bumper = shapely.LineString([self.points[k, 0], self.points[k, 3]])
                    fault = bumper.intersects(self.boxes[a][k]) or self.multi[k] or self.off[k]
                if fault:
                    score = min(score, 0.0 if self.actors.is_agent[a] else 0.5)
                else:
                    ignored.append(a)
        return score

    def time_to_collision(self):
        ignored, score = self.touched(self.ego[0], 0, []) if self.version == "v1" else [], 1.0
        for k in range(41 if self.version == "v1" else 32):
            if self.states[k, 3] < 0.005:
                continue
            tight = self.multi[k] or self.off[k] or any(inside(self.states[k, :2], self.crossings))
            for h in (0, 3, 6, 9):
                way = self.states[k, 3] * h * 0.1 * np.array([np.cos(self.states[k, 2]), np.sin(self.states[k, 2])])
                for a in self.touched(shapely.Polygon(self.points[k, :4] + way), k + h, ignored):
                    degrees = self.degrees(k, a, k + h)
                    if degrees < 30 or (tight and not degrees > 150):
                        score = 0.0
                    else:
                        ignored.append(a)
        return score

    def scores(self):
        points, scene = self.points, self.scene
        step = [0.0] + [float(np.hypot(*(points[k, 4] - points[k - 1, 4]))) for k in range(1, 41)]
        step = [s if o and not c else 0.0 for s, o, c in zip(step, self.oncoming, self.crossing, strict=True)]
        most = max(sum(step[max(0, k - 10) : k + 1]) for k in range(41))
        red = any(self.ego[k].intersects(shapely.Polygon(p)) for k in range(41) for p in scene.red_lights[k])
        line, run, lk = shapely.LineString(scene.centreline), 0, 1.0
        for k in range(41):
            if not self.crossing[k]:
                run = run + 1 if shapely.Point(points[k, 4]).distance(line) > 0.5 else 0
                lk = 0.0 if run >= 20 else lk
        return {
            "NC": self.no_collision(),
            "DAC": 0.0 if any(self.off) else 1.0,
            "DDC": 1.0 if most < 2 else 0.5 if most < 6 else 0.0,
            "TLC": float(not red),
            "TTC": self.time_to_collision(),
            "LK": lk,
        }

    def metres(self):
        line = shapely.LineString(self.scene.centreline)
        start, end = (line.project(shapely.Point(self.points[k, 4])) for k in (0, 40))
        return max(0.0, end - start)


def inside(point, polygons):
    return [p.contains(shapely.Point(point)) for p in polygons]


def _corners(pose, size):
    c, s = np.cos(pose[2]), np.sin(pose[2])
    local = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * size / 2
    return pose[:2] + local @ [[c, s], [-s, c]]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_fast_scores_equal_the_slow_ones(version):
    seen = {}
    for seed in range(6):
        scene, states = random_scene(seed)
        fast = pdm_scores.sub_scores(states, scene, version)
        slow = [Slow(s, scene, version) for s in states]
        expected = [judged.scores() for judged in slow]
        for name in ("NC", "DAC", "DDC", "TTC") + (("TLC", "LK") if version == "v2" else ()):
            assert fast[name][1].all()
            np.testing.assert_array_equal(fast[name][0], [e[name] for e in expected], err_msg=f"{name}, seed {seed}")
            seen.setdefault(name, set()).update(fast[name][0].tolist())
        mult = np.prod([fast[n][0] for n in pdm_scores.MULTIPLIERS[version]], axis=0)
        progress = pdm_scores.progress(np.array([judged.metres() for judged in slow]), mult, version)
        np.testing.assert_allclose(fast["EP"][0], progress, atol=1e-9)
    for name, values in seen.items():  # the scenes exercise both outcomes, or the comparison says nothing
        assert {0.0, 1.0} <= values, name


@settings(deadline=None, derandomize=True, max_examples=8)
@given(st.integers(0, 50), st.floats(-500, 500), st.floats(-500, 500), st.floats(-np.pi, np.pi), st.integers(0, 99))
def test_scores_move_with_the_scene_and_do_not_know_names(seed, dx, dy, turn, shuffle):
    scene, states = random_scene(seed)
    c, s = np.cos(turn), np.sin(turn)

    def move(xy):
        return np.asarray(xy) @ [[c, s], [-s, c]] + [dx, dy]

    fields = {n: [move(p) for p in getattr(scene.layers, n)] for n in (*AREAS, "lane", "lane_connector")}
    order = np.random.default_rng(shuffle).permutation(len(scene.actors.ids))
    actors = scene.actors.take(order)
    xyh = np.concatenate([move(actors.xyh[..., :2]), actors.xyh[..., 2:] + turn], axis=-1)
    actors = replace(actors, xyh=xyh, ids=tuple(f"renamed {i}" for i in range(len(order))))
    lights = [[move(p) for p in red] for red in scene.red_lights]
    there = PdmScene(actors, replace(scene.layers, **fields), move(scene.centreline), lights)
    moved = states.copy()
    moved[..., :2], moved[..., 2] = move(states[..., :2]), states[..., 2] + turn
    a, b = pdm_scores.sub_scores(states, scene), pdm_scores.sub_scores(moved, there)
    for name in ("NC", "DAC", "DDC", "TLC", "TTC", "LK", "EP"):
        np.testing.assert_allclose(a[name][0], b[name][0], atol=1e-7, err_msg=name)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(0, 10**6))
def test_plane_geometry_is_shapelys(seed):
    rng = np.random.default_rng(seed)
    polygon = random_polygon(rng, np.zeros(2), 5.0, int(rng.integers(3, 14)))
    shape = shapely.Polygon(polygon)
    points = rng.uniform(-5, 5, (60, 2))
    expected = [shape.contains(shapely.Point(p)) for p in points]
    np.testing.assert_array_equal(points_in_polygon(points, polygon), expected)
    pose, size = rng.uniform(-6, 6, (30, 3)), rng.uniform(0.1, 4, (30, 2))
    corners = np.array([_corners(p, s) for p, s in zip(pose, size, strict=True)])
    boxes = [shapely.Polygon(c) for c in corners]
    np.testing.assert_array_equal(rectangles_touch_polygon(corners, polygon), [b.intersects(shape) for b in boxes])
    touch = boxes_touch(pose[:15, :2], pose[:15, 2], size[:15] / 2, pose[15:, :2], pose[15:, 2], size[15:] / 2)
    np.testing.assert_array_equal(touch, [a.intersects(b) for a, b in zip(boxes[:15], boxes[15:], strict=True)])
    outline = [b.exterior.distance(shape.exterior) for b in boxes]
    apart = polygon_distance(corners, np.broadcast_to(polygon, (30, *polygon.shape)))
    clear = np.array(outline) > 0  # outlines that cross are a matter for the tests above
    np.testing.assert_allclose(apart[clear], np.array(outline)[clear], atol=1e-9)
    line = np.cumsum(rng.normal(0, 1, (int(rng.integers(2, 90)), 2)), axis=0)
    along, distance = project_on_line(points, line)
    path = shapely.LineString(line)
    np.testing.assert_allclose(distance, [path.distance(shapely.Point(p)) for p in points], atol=1e-9)
    np.testing.assert_allclose(along, [path.project(shapely.Point(p)) for p in points], atol=1e-7)


@pytest.mark.parametrize("flip", [[1, 1], [1, -1], [-1, 1], [-1, -1]])
def test_points_on_the_edge_are_outside(flip):
    notched = np.array([[0, 0], [4, 0], [4, 4], [2, 2], [0, 4]], dtype=float) * flip
    hill = np.array([[0, 0], [4, 0], [4, 4], [3, 4], [2, 3], [1, 3], [0, 4]], dtype=float) * flip
    grid = np.stack(np.meshgrid(np.arange(-0.5, 5, 0.5), np.arange(-0.5, 5, 0.5)), axis=-1).reshape(-1, 2) * flip
    for polygon in (notched, hill):
        shape = shapely.Polygon(polygon)
        expected = [shape.contains(shapely.Point(p)) for p in grid]
        np.testing.assert_array_equal(points_in_polygon(grid, polygon), expected)


def test_actors_are_resampled_not_invented():
    track = np.array([[0, 0, 3.1], [5, 1, -3.1], [np.nan] * 3])[None]
    present, size = np.array([[True, True, False]]), np.ones((1, 2))
    frames = Actors(("a",), track, present, size, np.array([[2.0, 4.0, np.nan]]), np.array([True]))
    ten = resample_actors(frames, np.array([0.0, 0.5, 1.0])).validate()
    assert ten.present.shape == (1, 11)  # the frames end after 1 s
    assert ten.present[0].tolist() == [True] * 6 + [False] * 5
    np.testing.assert_allclose(ten.xyh[0, [0, 2, 5], 0], [0, 2, 5], atol=1e-12)
    np.testing.assert_allclose(ten.xyh[0, 1, 2], 3.1 + 0.2 * (2 * np.pi - 6.2), atol=1e-12)
    np.testing.assert_allclose(ten.speed_mps[0, [0, 1, 5]], [2.0, 2.4, 4.0], atol=1e-12)
    assert resample_actors(frames, np.array([-1.0, 0.0, 9.0])).present.shape == (1, 51)
    for times in ([0.1, 0.5, 1.0], [0.0, 0.0, 1.0]):
        with pytest.raises(ValueError, match="increasing"):
            resample_actors(frames, np.array(times))
