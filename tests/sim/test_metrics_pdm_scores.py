from dataclasses import replace

import numpy as np
import pytest

from sensors.errors import InputError
from sim.metrics import pdm, pdm_scores, pdm_two_stage
from sim.metrics.pdm_scene import Actors, MapLayers, PdmScene


def rectangle(x0, x1, y0, y1):
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=float)


ROAD = (-100.0, 300.0)
OWN, ONCOMING = rectangle(*ROAD, -1.75, 1.75), rectangle(*ROAD, 1.75, 5.25)
CENTRELINE = np.stack([np.arange(-100.0, 301.0), np.zeros(401)], axis=-1)


def layers(**extra):
    base = dict(roadblock=[rectangle(*ROAD, -1.75, 5.25)], lane=[OWN, ONCOMING], lane_on_route=[True, False])
    return MapLayers(**{**base, **extra}).validate()


def scene(*actors, red_lights=(), **extra):
    """A road along x, own lane around y = 0, the oncoming one left of it; actors as dicts of `actor`."""
    return PdmScene(actors_of(actors), layers(**extra), CENTRELINE, [tuple(red_lights)] * 41).validate()


def actor(x, y, speed=0.0, heading=0.0, length=4.0, width=2.0, agent=True, track=None, start=0):
    return dict(x=x, y=y, speed=speed, heading=heading, size=(length, width), agent=agent, track=track, start=start)


def actors_of(items, instants=51):
    out = Actors.empty(instants)
    for i, a in enumerate(items):
        t = np.arange(instants) * 0.1
        xyh = np.stack(
            [
                a["x"] + np.cos(a["heading"]) * a["speed"] * t,
                a["y"] + np.sin(a["heading"]) * a["speed"] * t,
                np.full(instants, a["heading"]),
            ],
            axis=-1,
        )
        xyh = xyh if a["track"] is None else a["track"]
        out = Actors(
            (*out.ids, f"object {i}"),
            np.concatenate([out.xyh, xyh[None]]),
            np.concatenate([out.present, (np.arange(instants) >= a["start"])[None]]),
            np.concatenate([out.size_lw_m, [a["size"]]]),
            np.concatenate([out.speed_mps, np.full((1, instants), a["speed"])]),
            np.append(out.is_agent, a["agent"]),
        )
    return out.validate()


def cruise(speed, y=0.0, x=0.0, heading=0.0):
    """States [1, 41, 7] at constant velocity."""
    states = np.zeros((1, 41, 7))
    t = np.arange(41) * 0.1
    states[0, :, 0], states[0, :, 1] = x + np.cos(heading) * speed * t, y + np.sin(heading) * speed * t
    states[0, :, 2], states[0, :, 3] = heading, speed
    return states


def one(states, where, name, version="v2", **kwargs):
    value, valid = pdm_scores.sub_scores(states, where, version, **kwargs)[name]
    return float(value[0]) if valid[0] else None


FRONT = 4.049  # of the ego ahead of its rear axle


def test_no_collision_branches():
    ahead = dict(x=30.0, y=0.0, speed=0.06)
    assert one(cruise(10.0), scene(), "NC") == 1.0
    assert one(cruise(10.0), scene(actor(**ahead)), "NC") == 0.0  # front bumper
    assert one(cruise(10.0), scene(actor(**ahead, agent=False)), "NC") == 0.5
    assert one(cruise(5.0), scene(actor(-10.0, 0.0, speed=12.0)), "NC") == 1.0  # run into from behind
    assert one(cruise(0.05), scene(actor(10.0, 0.0, speed=8.0, heading=np.pi)), "NC") == 1.0  # the ego stands
    assert one(cruise(0.06), scene(actor(10.0, 0.0, speed=8.0, heading=np.pi)), "NC") == 0.0
    drifting = dict(x=1.0, y=4.0, speed=2.0, heading=-np.pi / 2, length=2.0)
    assert one(cruise(0.5), scene(actor(**drifting)), "NC") == 1.0  # into the side, ego within its lane
    assert one(cruise(0.5, y=0.8), scene(actor(**drifting)), "NC") == 0.0  # the same across two lanes
    side = dict(x=2.0, y=2.0, width=2.0)
    touching_side = cruise(1.0)
    assert one(touching_side, scene(actor(**side, speed=0.05)), "NC") == 0.0  # stopped object: at fault
    assert one(touching_side, scene(actor(**side, speed=0.06)), "NC") == 1.0  # moving one: lateral, within the lane


def test_touching_at_the_start_is_ignored_in_v1_only():
    where = scene(actor(FRONT, 0.0, speed=0.0))
    assert one(cruise(3.0), where, "NC", "v1") == 1.0
    assert one(cruise(3.0), where, "TTC", "v1") == 1.0
    assert one(cruise(3.0), where, "NC") == 0.0
    assert one(cruise(3.0), where, "TTC") == 0.0


def test_an_object_not_at_fault_is_ignored_from_then_on():
    pushed = np.tile([-3.0, 0.0, 0.0], (51, 1))
    pushed[:, 0] += np.arange(51) * 0.5
    states = cruise(3.0)  # hit from behind; later the same object would be ahead
    pushed[25:, 0] = 14.0
    where = scene(actor(0, 0, speed=5.0, track=pushed))
    assert one(states, where, "NC") == 1.0
    assert one(states, scene(actor(0, 0, speed=5.0, track=pushed, start=25)), "NC") == 0.0


def test_speed_of_an_object_is_the_first_recorded_one_in_compat():
    track = np.tile([4.0, 3.0, 0.0], (51, 1))
    track[10:, 1] = 2.0  # it comes into the ego's side, and stands by then
    where = scene(actor(0, 0, speed=1.0, track=track))
    speed = np.where(np.arange(51) < 10, 1.0, 0.0)[None]
    where = replace(where, actors=replace(where.actors, speed_mps=speed))
    assert one(cruise(2.0), where, "NC") == 1.0
    assert one(cruise(2.0), where, "NC", variant="strict") == 0.0


def test_drivable_area():
    assert one(cruise(5.0), scene(), "DAC") == 1.0
    assert one(cruise(5.0, y=-0.60), scene(), "DAC") == 1.0
    assert one(cruise(5.0, y=-0.61), scene(), "DAC") == 0.0
    for layer in ("carpark", "drivable", "intersection"):
        beside = {layer: [rectangle(*ROAD, -5.0, -1.0)]}
        assert one(cruise(5.0, y=-0.61), scene(**beside), "DAC") == 1.0
    assert one(cruise(5.0, y=-0.61), scene(lane=[OWN, rectangle(*ROAD, -5, -1)], lane_on_route=[1, 0]), "DAC") == 0.0


@pytest.mark.parametrize(("metres", "score"), [(1.99, 1.0), (2.01, 0.5), (5.99, 0.5), (6.01, 0.0)])
def test_driving_direction_thresholds(metres, score):
    states = cruise(metres / 1.1, y=3.5)  # a window holds eleven steps of 0.1 s
    assert one(states, scene(), "DDC") == score
    assert one(states, scene(), "DDC", "v1") == score
    assert one(states, scene(lane_on_route=[True, True]), "DDC") == 1.0
    assert one(states, scene(intersection=[rectangle(*ROAD, 1, 6)]), "DDC") == 1.0
    assert one(states, scene(lane_connector=[ONCOMING], lane_connector_on_route=[True]), "DDC") == 1.0


def test_traffic_lights():
    red = rectangle(30.0, 40.0, -1.75, 1.75)
    reach = 40 * 0.1
    assert one(cruise((30 - FRONT - 0.01) / reach), scene(red_lights=[red]), "TLC") == 1.0
    assert one(cruise((30 - FRONT + 0.01) / reach), scene(red_lights=[red]), "TLC") == 0.0
    assert one(cruise(0.0), scene(red_lights=[rectangle(-5, 9, -1.75, 1.75)]), "TLC") == 0.0  # starts inside
    passed = [(red,)] * 20 + [()] * 21  # red for 2 s only
    assert one(cruise(10.0), replace(scene(), red_lights=passed), "TLC") == 1.0
    assert one(cruise(15.0), replace(scene(), red_lights=passed), "TLC") == 0.0
    assert one(cruise(10.0), replace(scene(), red_lights=None), "TLC") is None


@pytest.mark.parametrize(("degrees", "in_lane", "in_crossing"), [(29, 0, 0), (31, 1, 0), (149, 1, 0), (151, 1, 1)])
def test_time_to_collision_angles(degrees, in_lane, in_crossing):
    angle = np.deg2rad(degrees)
    distance = 4.0 if degrees < 90 else 2.0
    thing = actor(distance * np.cos(angle), distance * np.sin(angle), speed=1.0, length=2.2, width=2.2)
    thing["track"] = np.tile([thing["x"], thing["y"], 0.0], (51, 1))
    crossing = rectangle(-0.5, 200, -3, 3)  # holds the rear axle
    states = cruise(1.0)
    assert one(states, scene(thing), "TTC") == in_lane
    assert one(states, scene(thing, intersection=[crossing]), "TTC") == in_crossing
    assert one(cruise(0.004), scene(thing, intersection=[crossing]), "TTC") == 1.0
    assert one(cruise(0.006), scene(thing, intersection=[crossing]), "TTC") == in_crossing


def test_time_to_collision_asks_for_the_intersection_at_the_rear_axle():
    thing = actor(0, 0, speed=1.0, length=2.2, width=2.2, track=np.tile([2.0, 2.0, 0.0], (51, 1)))  # 45 degrees
    assert one(cruise(1.0), scene(thing, intersection=[rectangle(-1, 0.5, -3, 3)]), "TTC") == 0.0
    assert one(cruise(1.0), scene(thing, intersection=[rectangle(0.5, 9, -3, 3)]), "TTC") == 1.0


def test_overlapping_lanes_are_one_if_one_holds_the_car():
    drifting = actor(x=1.0, y=4.0, speed=2.0, heading=-np.pi / 2, length=2.0)
    across = rectangle(*ROAD, -5, 0.5)
    two = scene(drifting, lane=[OWN, across], lane_on_route=[True, False])
    assert one(cruise(0.5), two, "NC") == 1.0
    split = scene(drifting, lane=[rectangle(*ROAD, 0, 1.75), across], lane_on_route=[True, False])
    assert one(cruise(0.5), split, "NC") == 0.0


def test_time_to_collision_looks_nine_tenths_ahead():
    def wall(gap):
        return scene(actor(FRONT + 36.0 + gap + 1.0, 0.0, length=2.0, agent=False))

    states = cruise(10.0)  # v2 looks from k = 31: 31 m + 9 m of projection reach the front to 40 m
    assert one(states, wall(4.01), "TTC") == 1.0
    assert one(states, wall(3.99), "TTC") == 0.0
    assert one(states, wall(12.99), "TTC", "v1") == 0.0
    assert one(states, wall(13.01), "TTC", "v1") == 1.0
    assert one(states, wall(12.99), "NC", "v1") == 1.0
    late = scene(actor(FRONT + 41.5 + 1, 0.0, length=2.0, start=42))
    assert one(states, late, "TTC") == 1.0
    assert one(states, late, "TTC", "v1") == 0.0


@pytest.mark.parametrize(("samples", "score"), [(19, 1.0), (20, 0.0)])
def test_lane_keeping_samples(samples, score):
    states = cruise(5.0, y=0.0)
    states[0, 3 : 3 + samples, 1] = 0.51
    assert one(states, scene(), "LK") == score
    states[0, 3 : 3 + samples, 1] = 0.49
    assert one(states, scene(), "LK") == 1.0
    states[0, 3 : 4 + samples, 1] = 0.51
    states[0, 10, 1] = 0.0  # one sample within the limit starts the count again
    assert one(states, scene(), "LK") == 1.0


def test_lane_keeping_freezes_in_an_intersection():
    states = cruise(5.0)
    states[0, :10, 1] = states[0, 25:36, 1] = 0.6  # 10 + 11 samples beside the line, between them 15 in a crossing
    x = states[0, :, 0] + pdm.PACIFICA.centre_ahead_m
    crossing = rectangle(x[10] - 0.1, x[24] + 0.1, -3, 3)
    assert one(states, scene(intersection=[crossing]), "LK") == 0.0
    assert one(states, scene(), "LK") == 1.0


def test_progress_normalisation():
    metres, mult = np.array([20.0, 10.0, 40.0]), np.array([1.0, 1.0, 0.0])
    np.testing.assert_allclose(pdm_scores.progress(metres, mult, "v1"), [1.0, 0.5, 0.0])
    np.testing.assert_allclose(pdm_scores.progress(metres, mult, "v2"), [1.0, 0.5, 1.0])
    np.testing.assert_allclose(pdm_scores.progress(metres, np.array([0.5, 1, 0]), "v1"), [1.0, 1.0, 0.0])
    for best, v1, v2 in ((5.0, [1, 1, 0], [1, 1, 1]), (5.01, [1, 1 / 5.01, 0], [1, 1 / 5.01, 0])):
        metres = np.array([best, 1.0, 0.0])
        np.testing.assert_allclose(pdm_scores.progress(metres, mult, "v1"), v1)
        np.testing.assert_allclose(pdm_scores.progress(metres, mult, "v2"), v2)
    pair = np.concatenate([cruise(10.0), cruise(8.0)])
    for version in ("v1", "v2"):
        np.testing.assert_allclose(pdm_scores.sub_scores(pair, scene(), version)["EP"][0], [1.0, 0.8], atol=1e-12)
    back = np.concatenate([cruise(10.0), cruise(-2.0)])
    assert pdm_scores.sub_scores(back, scene())["EP"][0][1] == 0.0


def test_comfort_enters_both_versions():
    calm, rough = cruise(5.0), cruise(5.0)
    rough[0, :, pdm.AX] = 3.0
    past = (np.array([0, 500_000, 1_000_000, 1_500_100]), calm[0, :4])
    assert one(calm, scene(), "C", "v1") == 1.0
    assert one(rough, scene(), "C", "v1") == 0.0
    assert one(calm, scene(), "HC", history=past) == 1.0
    assert one(rough, scene(), "HC", history=past) == 0.0
    assert one(calm, scene(), "HC") is None
    scores = pdm_scores.plan_scores(calm[0], calm[0], scene(), history=past, earlier=(rough[0], 0.5))
    assert scores["EC"] == (0.0, True)
    assert pdm_scores.total(scores, "v2") == (pytest.approx(14 / 16), True)
    assert not pdm_scores.plan_scores(calm[0], calm[0], scene(), history=past)["EC"][1]


def full(**changed):
    names = ("NC", "DAC", "DDC", "TLC", "EP", "TTC", "LK", "C", "HC", "EC")
    return {name: (np.float64(changed.get(name, 1.0)), np.bool_(True)) for name in names}


def test_totals_worked_example():
    assert pdm_scores.total(full(EP=0.8), "v1")[0] == pytest.approx(0.916667, abs=5e-7)
    assert pdm_scores.total(full(EP=0.8, EC=0.0), "v2")[0] == pytest.approx(0.8125, abs=1e-12)
    assert pdm_scores.total(full(NC=0.5, DDC=0.5), "v2")[0] == 0.25
    assert pdm_scores.total(full(DDC=0.0, TLC=0.0, LK=0.0), "v1")[0] == 1.0
    missing = {**full(), "TLC": (np.float64(np.nan), np.bool_(False))}
    assert not pdm_scores.total(missing, "v2")[1]
    assert np.isnan(pdm_scores.total(missing, "v2")[0])
    assert pdm_scores.total(missing, "v1") == (1.0, True)


def test_human_filter():
    agent = full(NC=0.5, DAC=0.0, TLC=0.0, TTC=0.0, LK=0.0, HC=0.0, EC=0.0, EP=0.3)
    human = full(NC=0.5, DAC=0.0, TTC=0.0, HC=0.0, EC=0.0, EP=0.0)
    kept = {name: float(value) for name, (value, _) in pdm_two_stage.human_filter(agent, human).items()}
    assert kept == {**{n: float(v) for n, (v, _) in agent.items()}, "DAC": 1.0, "TTC": 1.0}
    unknown = {**human, "DAC": (np.float64(np.nan), np.bool_(False)), "DDC": (np.float64(np.nan), np.bool_(False))}
    filtered = pdm_two_stage.human_filter(agent, unknown)
    assert not filtered["DAC"][1]
    assert filtered["DDC"] == (1.0, True)


def test_two_stages():
    sure = np.bool_(True)
    starts = np.array([[10.0, 0.0], [10.0, 0.5]])
    near = np.exp(-0.25 / 0.2)
    value, valid = pdm_two_stage.two_stage((0.5, sure), starts[0], (np.array([1.0, 0.2]), np.ones(2, bool)), starts)
    assert valid
    assert value == pytest.approx(0.5 * (1.0 + 0.2 * near) / (1 + near))
    far, _ = pdm_two_stage.two_stage(
        (1.0, sure), np.array([90.0, 0.0]), (np.array([1.0, 0.2]), np.ones(2, bool)), starts
    )
    assert far == pytest.approx(0.6)  # no start is near: uniform
    assert not pdm_two_stage.two_stage((1.0, sure), starts[0], (np.zeros(0), np.zeros(0, bool)), np.zeros((0, 2)))[1]
    pairs = [((0.2, sure), (0.4, sure)), ((1.0, sure), (0.8, sure))]
    assert pdm_two_stage.two_stage_mean(pairs)[0] == pytest.approx(0.6)
    assert not pdm_two_stage.two_stage_mean([*pairs, ((np.nan, np.bool_(False)), (1.0, sure))])[1]
    assert not pdm_two_stage.two_stage_mean([])[1]


def test_what_a_scene_does_not_hold_is_not_available():
    bare = PdmScene(actors_of([]))
    scores = pdm_scores.sub_scores(cruise(5.0), bare)
    assert [n for n, (_, valid) in scores.items() if valid[0]] == ["NC", "TTC"]
    assert all(np.isnan(value[0]) for value, valid in scores.values() if not valid[0])
    assert one(cruise(10.0), replace(bare, actors=actors_of([actor(30, 0, 1.0)])), "NC") == 0.0
    lateral = replace(bare, actors=actors_of([actor(1, 4, 2.0, -np.pi / 2, 2.0)]))
    assert one(cruise(0.5), lateral, "NC") is None  # whose fault depends on lanes that nobody knows
    assert one(cruise(0.5), lateral, "TTC") is None
    short = replace(scene(), actors=actors_of([], instants=41))
    assert one(cruise(5.0), short, "TTC") == 1.0
    assert one(cruise(5.0), short, "TTC", "v1") is None
    assert one(cruise(5.0), replace(scene(), actors=actors_of([], instants=40)), "NC") is None
    dark = replace(scene(), red_lights=None)
    assert one(cruise(5.0), dark, "EP") is None
    assert one(cruise(5.0), dark, "EP", "v1") == 1.0


def test_scene_rejects():
    good = actors_of([actor(0, 0)])
    for change in (
        dict(ids=("a", "b")),
        dict(xyh=np.full((1, 51, 3), np.nan)),
        dict(size_lw_m=np.zeros((1, 2))),
        dict(speed_mps=np.zeros(51)),
    ):
        with pytest.raises(InputError):
            replace(good, **change).validate()
    twice = actors_of([actor(0, 0), actor(9, 9)])
    with pytest.raises(InputError, match="different ids"):
        replace(twice, ids=("a", "a")).validate()
    with pytest.raises(InputError, match="on_route"):
        MapLayers(lane=[OWN]).validate()
    with pytest.raises(InputError, match="V >= 3"):
        MapLayers(roadblock=[OWN[:2]]).validate()
    with pytest.raises(InputError, match="red_lights"):
        PdmScene(red_lights=[()]).validate()
    with pytest.raises(InputError, match="centreline"):
        PdmScene(centreline=np.zeros((1, 2))).validate()
    with pytest.raises(ValueError, match="version"):
        pdm_scores.sub_scores(cruise(1.0), scene(), "v3")
    with pytest.raises(ValueError, match="expected"):
        pdm_scores.sub_scores(cruise(1.0)[:, :40], scene())
