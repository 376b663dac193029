"""The map expansion as the devkit's NuScenesMap reads it, on a small map; each kind of damage is refused."""

import json
import math
import shutil

import numpy as np
import pytest
from made_up_drive import VERSION, record
from nuscenes.map_expansion.arcline_path_utils import discretize_lane
from nuscenes.map_expansion.map_api import NuScenesMap

from sensors.errors import InputError
from sensors.nuscenes_expansion import discretised, expansion_path, read_expansion
from sensors.nuscenes_source import NuscenesSource
from sensors.recorded_drive import recorded_drive
from sim.expansion_lanes import mapped_surroundings
from sim.log_surroundings import LogSurroundings
from sim.vehicle import VehicleParams

TOWN = "boston-seaport"


def town() -> dict:
    """A road of two lanes, east and west of each other's direction, with a hole in the ground, and a curve after it."""
    nodes: dict[str, tuple[float, float]] = {}
    polygons = []

    def polygon(name, outline, holes=()):
        def line(points, what):
            tokens = [f"{what}-{k}" for k in range(len(points))]
            nodes.update(zip(tokens, points, strict=True))
            return tokens

        rows = [{"node_tokens": line(hole, f"{name}-hole-{k}")} for k, hole in enumerate(holes)]
        polygons.append({"token": name, "exterior_node_tokens": line(outline, name), "holes": rows})
        return name

    def box(x0, y0, x1, y1):
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]

    divider = {"left_lane_divider_segments": [], "right_lane_divider_segments": []}
    ground = polygon("ground", box(0, 0, 60, 12), [box(30, 5, 34, 7), []])
    east, west = polygon("east", box(0, 2, 40, 5.5)), polygon("west", box(0, 6.5, 40, 10))
    curve = polygon("curve", box(40, 2, 50, 12))
    straight = {"shape": "LSR", "radius": 1000.0, "segment_length": [0.0, 40.0, 0.0]}
    bend = {"start_pose": [40.0, 3.75, 0.0], "shape": "LSL", "radius": 8.0, "segment_length": [4.0, 3.3, 5.1]}
    layers = {
        "drivable_area": [{"token": "d", "polygon_tokens": [ground]}],
        "road_segment": [
            {"token": "junction", "polygon_token": curve, "is_intersection": True},
            {"token": "road", "polygon_token": east, "is_intersection": False},
        ],
        "road_block": [{"token": "block", "polygon_token": east}],
        "lane": [{"token": "e", "polygon_token": east, **divider}, {"token": "w", "polygon_token": west, **divider}],
        "lane_connector": [{"token": "c", "polygon_token": curve}],
        "ped_crossing": [{"token": "x", "polygon_token": polygon("zebra", box(20, 0, 23, 12))}],
        "walkway": [{"token": "v", "polygon_token": polygon("walk", box(0, -3, 60, 0))}],
        "arcline_path_3": {
            "e": [{"start_pose": [0.0, 3.75, 0.0], **straight}],
            "w": [{"start_pose": [40.0, 8.25, math.pi], **straight}],
            "c": [bend],
        },
        "connectivity": {"e": {"incoming": [], "outgoing": ["c"]}, "c": {"incoming": ["e"], "outgoing": []}},
        **{name: [] for name in ("stop_line", "carpark_area", "road_divider", "lane_divider", "traffic_light", "line")},
    }
    points = [{"token": token, "x": x, "y": y} for token, (x, y) in nodes.items()]
    return {"version": "1.3", "canvas_edge": [100.0, 100.0], "node": points, "polygon": polygons, **layers}


def write(dataroot, content):
    path = expansion_path(dataroot, TOWN)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) if isinstance(content, dict) else content)
    read_expansion.cache_clear()
    return path


def test_areas_lanes_and_links_are_the_devkits(tmp_path):
    ours, theirs = read_expansion(write(tmp_path, town())), NuScenesMap(str(tmp_path), TOWN)
    for layer, name in (("crossing", "ped_crossing"), ("walkway", "walkway"), ("roadblock", "road_block")):
        for (outline, holes), row in zip(ours.areas[layer], getattr(theirs, name), strict=True):
            shape = theirs.extract_polygon(row["polygon_token"])
            np.testing.assert_array_equal(outline, np.array(shape.exterior.coords)[:-1])
            assert len(holes) == len(shape.interiors)
    [(ground, [hole])] = ours.areas["drivable"]
    shape = theirs.extract_polygon("ground")
    np.testing.assert_array_equal(ground, np.array(shape.exterior.coords)[:-1])
    np.testing.assert_array_equal(hole, np.array(shape.interiors[0].coords)[:-1])
    assert len(ours.areas["intersection"]) == 1
    lines = theirs.discretize_lanes(["e", "w", "c"], 1.0)
    for token, lane in ours.lanes.items():
        np.testing.assert_allclose(lane.centreline_xyyaw[:, :2], np.array(lines[token])[:, :2], rtol=0, atol=1e-9)
        if token in theirs.connectivity:
            assert list(lane.after) == theirs.get_outgoing_lane_ids(token)
            assert list(lane.before) == theirs.get_incoming_lane_ids(token)
    assert (ours.lanes["e"].width_m, ours.lanes["c"].connector) == (pytest.approx(3.5), True)


@pytest.mark.parametrize("shape", ["LSL", "LSR", "RSL", "RSR", "RLR", "LRL"])
def test_centrelines_are_the_devkits_whatever_their_shape(shape):
    rng = np.random.default_rng(0)
    for _ in range(20):
        paths = [
            {
                "start_pose": [*rng.normal(scale=500, size=2), rng.uniform(-3, 3)],
                "shape": shape,
                "radius": rng.uniform(2, 900),
                "segment_length": rng.uniform(0, 9, 3).tolist(),
            }
            for _ in range(2)
        ]
        ours, theirs = discretised(paths, 1.0), np.array(discretize_lane(paths, 1.0))
        np.testing.assert_allclose(ours[:, :2], theirs[:, :2], rtol=0, atol=1e-8)
        turn = (ours[:, 2] - theirs[:, 2] + np.pi) % (2 * np.pi) - np.pi
        np.testing.assert_allclose(turn, 0, rtol=0, atol=1e-9)


def test_the_drivable_area_is_what_the_devkit_finds_at_points(tmp_path):
    ours, theirs = read_expansion(write(tmp_path, town())), NuScenesMap(str(tmp_path), TOWN)
    low, high = np.array([5.0, -4.0]), np.array([70.0, 20.0])
    [(outline, holes)] = ours.drivable(low, high)
    np.testing.assert_allclose([outline.min(axis=0), outline.max(axis=0)], [[5, 0], [60, 12]], rtol=0, atol=0.11)
    np.testing.assert_allclose([holes[0].min(axis=0), holes[0].max(axis=0)], [[30, 5], [34, 7]], rtol=0, atol=0.16)
    for x, y in ((10.0, 6.0), (32.0, 6.0), (59.0, 1.0), (61.0, 6.0)):
        inside = theirs.record_on_point(x, y, "drivable_area") != ""
        ring = [x > 5, x < 60, 0 < y < 12, not (30 < x < 34 and 5 < y < 7)]
        assert inside == all(ring)


def test_lanes_of_the_way_that_was_driven_are_on_the_route(tmp_path):
    expansion = read_expansion(write(tmp_path, town()))
    track = np.column_stack([np.linspace(5, 25, 7), np.full(7, 3.6), np.zeros(7)])
    lanes, areas = mapped_surroundings(expansion, None, track)
    assert {lane.id: lane.on_route for lane in lanes} == {"e": True, "w": False, "c": False}
    assert sorted({layer for layer, _ in areas}) == ["crossing", "drivable", "intersection", "roadblock", "walkway"]
    assert math.isnan(lanes[0].limit_mps)
    assert mapped_surroundings(expansion, None, track + np.array([500.0, 500.0, 0.0])) == ((), ())
    assert mapped_surroundings(None, None, track) == ((), ())


def test_a_source_finds_the_map_of_its_location(tmp_path):
    record(tmp_path, "scene-0001", keyframes=1)
    source = NuscenesSource(tmp_path, VERSION)
    assert source.expansion("scene-0001") is None
    assert not source.index.inventory()[0].lanes_present
    write(tmp_path, town()).rename(expansion_path(tmp_path, "testtown"))
    assert set(source.expansion("scene-0001").lanes) == {"e", "w", "c"}
    assert source.index.inventory()[0].lanes_present


def test_a_drive_through_a_scene_has_its_lanes_with_or_without_a_raster(tmp_path):
    record(tmp_path, "scene-0001", keyframes=5)
    source = NuscenesSource(tmp_path, VERSION)
    assert LogSurroundings.of(recorded_drive(source, "scene-0001"), VehicleParams()).around.lanes == ()
    write(tmp_path, town()).rename(expansion_path(tmp_path, "testtown"))
    shutil.rmtree(tmp_path / "maps" / "rasters", ignore_errors=True)
    for raster in (tmp_path / "maps").glob("*.png"):
        raster.unlink()
    drive = recorded_drive(source, "scene-0001")
    assert drive.map_path is None
    around = LogSurroundings.of(drive, VehicleParams()).around
    assert {lane.id for lane in around.lanes} == {"e", "w", "c"}
    assert {"drivable", "crossing", "intersection"} <= {layer for layer, _ in around.areas}
    expansion_path(tmp_path, "testtown").unlink()
    with pytest.raises(InputError, match="no raster of this location"):
        recorded_drive(source, "scene-0001")
    write(tmp_path, town() | {"version": "1.0"}).rename(expansion_path(tmp_path, "testtown"))
    with pytest.raises(InputError, match=r"version: came 1.0, expected 1.3 or later"):
        recorded_drive(source, "scene-0001")


DAMAGES = {
    "earlier": (lambda content: content.update(version="1.0"), "version: came 1.0, expected 1.3 or later"),
    "unnumbered": (lambda content: content.pop("version"), "version: came none, expected 1.3 or later"),
    "no lanes": (lambda content: content.pop("lane"), "KeyError: 'lane'"),
    "dangling": (lambda content: content["walkway"][0].update(polygon_token="gone"), "KeyError: 'gone'"),
    "a shape unknown": (lambda content: content["arcline_path_3"]["c"][0].update(shape="LQL"), "KeyError: 'Q'"),
    "words": (lambda content: content["node"][0].update(x="east"), "ValueError: could not convert"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_another_version_or_a_damaged_map_is_refused(tmp_path, damage):
    content = town()
    change, says = DAMAGES[damage]
    change(content)
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=says) as error:
        read_expansion(path)
    assert path.name in str(error.value)
    assert "Download the map expansion" in str(error.value)


def test_no_map_and_no_json_are_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_expansion(expansion_path(tmp_path, "nowhere"))
    with pytest.raises(InputError, match="JSONDecodeError"):
        read_expansion(write(tmp_path, '{"version": "1.3", "no'))
    assert expansion_path(tmp_path, "../../secret").parent == tmp_path / "maps" / "expansion"
