"""Networks: what is read from net.xml, the search for a route, and bad files."""

import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sensors.errors import InputError
from sim.road_network import network_path, read_network, shipped_towns
from sim.town_route import Route, instruction


@pytest.fixture(scope="module", params=shipped_towns())
def network(request):
    return read_network(network_path(request.param))


def test_at_least_four_towns_are_shipped_each_below_200_kb() -> None:
    assert len(shipped_towns()) >= 4
    assert all(network_path(town).stat().st_size < 200_000 for town in shipped_towns())


def test_every_road_leads_on_and_every_link_joins_lanes_that_meet(network) -> None:
    assert all(network.followers[edge] for edge in network.edges)
    for start, links in network.links.items():
        for link in links:
            way = [network.lanes[name].line for name in (start, *link.inner, link.to_lane)]
            gaps = [np.hypot(*(b.points[0] - a.points[-1])) for a, b in pairwise(way)]
            assert max(gaps) < 1.0, link
            assert link.direction in ("straight", "left", "right", "back")
            assert not link.light or link.light_index < min(map(len, network.programs[link.light]))


def test_every_town_has_lights_crossings_and_sidewalks(network) -> None:
    assert network.programs
    assert any(True for _ in network.of_kind("crossing"))
    assert any(True for _ in network.of_kind("walk"))


def test_right_of_way_is_not_mutual_without_lights(network) -> None:
    checked = 0
    for junction in network.junctions.values():
        if junction.kind == "priority":
            for i, others in enumerate(junction.yields_to):
                assert not any(i in junction.yields_to[j] for j in others)
                assert others <= junction.foes[i]
                checked += len(others)
    assert checked or all(j.kind != "priority" for j in network.junctions.values())


def test_routes_follow_links_and_are_no_longer_than_a_random_walk_there(network) -> None:
    rng = np.random.default_rng(0)
    edges = list(network.edges)
    for _ in range(5):
        walk = network.random_walk(rng, edges[int(rng.integers(len(edges)))], 600.0)
        way = network.route(walk[0], walk[-1])
        assert (way[0], way[-1]) == (walk[0], walk[-1])
        assert all(b in network.followers[a] for a, b in pairwise(way))

        def seconds(edges):
            lanes = [network.lanes[network.edges[edge][0]] for edge in edges]
            return sum(lane.length_m / lane.speed_limit_mps + 4.0 for lane in lanes[1:])

        assert seconds(way) <= seconds(walk) + 1e-9


def test_turns_have_the_direction_that_links_say(network) -> None:
    turned = {"left": [], "right": []}
    for links in network.links.values():
        for link in links:
            if link.direction in turned:
                a, b = (
                    network.lanes[name].line.heading_rad[k] for name, k in ((link.from_lane, -1), (link.to_lane, 0))
                )
                turned[link.direction].append(np.sin(b - a))
    assert min(turned["left"]) > 0.1
    assert max(turned["right"]) < -0.1


def write(folder: Path, text: str) -> Path:
    path = folder / "town.net.xml"
    path.write_text(text)
    return path


def test_network_rejects_an_unknown_town_and_names_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean irregular"):
        network_path("iregular")


def test_network_rejects_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        network_path(tmp_path / "x.net.xml")


def test_network_rejects_what_is_no_xml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"came (not well-formed|syntax error)"):
        read_network(write(tmp_path, "hello"))


def test_network_rejects_a_broken_gzip(tmp_path: Path) -> None:
    path = tmp_path / "x.net.xml.gz"
    path.write_bytes(gzip.compress(b"<net/>" * 1000)[:40])
    with pytest.raises(InputError, match="network"):
        read_network(path)


def test_network_rejects_another_xml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="root element: came routes"):
        read_network(write(tmp_path, "<routes/>"))


def test_network_rejects_one_without_roads(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="roads: came none"):
        read_network(write(tmp_path, "<net></net>"))


def test_route_rejects_an_unknown_edge_and_an_unreachable_one(tmp_path: Path) -> None:
    lane = '<lane id="{0}_0" index="0" speed="10" length="50" width="3" shape="{1}"/>'
    edges = "".join(
        f'<edge id="{name}" from="x" to="y">{lane.format(name, shape)}</edge>'
        for name, shape in (("a", "0,0 50,0"), ("b", "60,0 90,0"))
    )
    network = read_network(write(tmp_path, f"<net>{edges}</net>"))
    with pytest.raises(InputError, match="edge: came c"):
        network.route("a", "c")
    with pytest.raises(InputError, match="can be reached from a"):
        network.route("a", "b")


def test_two_ways_through_a_junction_meet_where_both_pass() -> None:
    network = read_network(network_path("grid"))
    met = 0
    for junction, links in network.links_of_junction.items():
        for ours in links:
            for theirs in links:
                if theirs.index not in network.junctions[junction].foes[ours.index]:
                    continue
                ours_m, theirs_m = network.meet_m(ours, theirs)
                assert network.meet_m(theirs, ours) == pytest.approx((theirs_m, ours_m), abs=2.0)
                for link, at_m in ((ours, ours_m), (theirs, theirs_m)):
                    assert 0.0 <= at_m <= sum(network.lanes[lane].length_m for lane in link.inner) + 10.0
                met += 1
        if met > 60:
            break
    assert met > 60


def test_of_two_ways_to_a_side_one_is_told_which():
    network = read_network(network_path("market"))
    several, alone = [], 0
    for edge, lanes in network.edges.items():
        links = [link for lane in lanes for link in network.links.get(lane, ())]
        for side in ("left", "right"):
            ways = {network.lanes[link.to_lane].edge: link for link in links if link.direction == side}
            if len(ways) < 2:
                alone += len(ways)
                assert all(network.degree(link) == "" for link in ways.values())
                continue
            slight, sharp = sorted(ways.values(), key=lambda link: abs(network.turn_rad(link)))
            assert (network.degree(slight), network.degree(sharp)) == ("slightly", "sharply")
            assert abs(network.turn_rad(sharp)) - abs(network.turn_rad(slight)) > 0.3
            assert (network.turn_rad(slight) > 0) == (network.turn_rad(sharp) > 0) == (side == "left")
            several.append((edge, sharp))
        for link in links:
            assert link.direction in ("left", "right") or network.degree(link) == ""
    assert len(several) > 10
    assert alone > 10
    edge, sharp = several[0]
    route = Route(network, (edge, network.lanes[sharp.to_lane].edge))
    said = instruction(route, sharp.from_lane, network.lanes[sharp.from_lane].length_m - 20.0)
    assert said.startswith("In 20 metres, turn sharply ")


def test_between_two_others_a_way_to_a_side_is_plain():
    network = read_network(network_path("suburb"))
    threes = 0
    for lanes in network.edges.values():
        links = [link for lane in lanes for link in network.links.get(lane, ()) if link.direction == "right"]
        ways = {network.lanes[link.to_lane].edge: link for link in links}
        if len(ways) == 3:
            threes += 1
            in_order = sorted(ways.values(), key=lambda link: abs(network.turn_rad(link)))
            assert [network.degree(link) for link in in_order] == ["slightly", "", "sharply"]
    assert threes
