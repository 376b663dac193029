"""The traffic of EPDMS: vehicles that answer to the plan, people and things that do not."""

import numpy as np
import pytest

from sim.metrics import pdm_traffic as traffic
from sim.metrics.pdm import PACIFICA
from sim.metrics.pdm_scene import Actors, MapLayers, PdmScene
from sim.metrics.pdm_traffic import react
from sim.surroundings import Lane, lane_polygon

OWN = Lane("own", np.array([[-100.0, 0.0], [300.0, 0.0]]), 3.5)
SHORT = Lane("short", np.array([[0.0, 30.0], [40.0, 30.0]]), 3.5, 6.0)
LANES = (OWN, SHORT)
FAR = np.array([0.0, -60.0, 0.0])  # an ego that is in nobody's way


def scene_of(*rows: tuple[float, float, float, float]) -> PdmScene:
    """Cars 4 x 2 m at (x, y, heading, speed) that go straight on at that speed in the recording."""
    at = np.array(rows, dtype=float).reshape(-1, 4)
    time_s = np.arange(51) * 0.1
    xyh = np.repeat(at[:, None, :3], 51, axis=1)
    xyh[..., 0] += np.cos(at[:, 2, None]) * at[:, 3, None] * time_s
    xyh[..., 1] += np.sin(at[:, 2, None]) * at[:, 3, None] * time_s
    count = len(at)
    flags, size = np.ones(count, dtype=bool), np.tile([4.0, 2.0], (count, 1))
    actors = Actors(
        tuple("abcdefgh"[:count]), xyh, np.ones((count, 51), dtype=bool), size, np.repeat(at[:, 3:], 51, axis=1), flags
    )
    polygons = [lane_polygon(lane.centreline_m, lane.width_m) for lane in LANES]
    return PdmScene(actors, MapLayers(lane=polygons, lane_on_route=[True] * len(LANES))).validate()


def ego(x: float, y: float, heading: float = 0.0, speed: float = 0.0) -> np.ndarray:
    states = np.zeros((1, 41, 7))
    states[0, :, 0], states[0, :, 1] = x + speed * 0.1 * np.arange(41), y
    states[0, :, 2], states[0, :, 3] = heading, speed
    return states


def answer(scene: PdmScene, states: np.ndarray, variant: str, vehicles=None) -> Actors:
    flags = np.ones(len(scene.actors.ids), dtype=bool) if vehicles is None else np.array(vehicles)
    (answered,) = react([scene], [flags], states, LANES, variant)
    return answered.actors.validate()


def idm_twin(v: float, v0: float, gap_m, v_lead: float, steps: int = 40) -> tuple[list[float], list[float]]:
    """Ways and speeds by the definition, one step at a time; gap_m(s, v) is what is left ahead."""
    s, out, speeds = 0.0, [0.0], [v]
    for _ in range(steps):
        wanted = 1.0 + v * 1.5 + v * (v - v_lead) / (2 * 2**0.5)
        accel = 1.0 - (v / v0) ** 4 - (wanted / max(gap_m(s, v), 1.0)) ** 2
        s, v = s + 0.1 * v, max(v + 0.1 * min(max(accel, -2.0), 1.0), 0.0)
        out.append(s)
        speeds.append(v)
    return out, speeds


def test_a_free_vehicle_takes_up_speed_on_its_lane():
    found = answer(scene_of((0.0, 0.4, 0.05, 4.0)), ego(*FAR), "compat")
    way, speed = idm_twin(4.0, 10.0, lambda s, v: 300.0 - s - 2.0, 0.0)
    np.testing.assert_allclose(found.xyh[0, 1:, 0], way[1:], atol=1e-9)
    np.testing.assert_allclose(found.speed_mps[0, 1:], speed[1:], atol=1e-9)
    assert np.abs(found.xyh[0, 1:, 1:]).max() < 1e-9  # moved onto the line, along it
    np.testing.assert_array_equal(found.xyh[0, 0], [0.0, 0.4, 0.05])  # at first it is where it was recorded


def test_a_lane_ends_and_its_limit_holds_in_compat():
    found = answer(scene_of((20.0, 30.0, 0.0, 5.0)), ego(*FAR), "compat")
    way, speed = idm_twin(5.0, 6.0, lambda s, v: 20.0 - s - 2.0, 0.0)
    np.testing.assert_allclose(found.xyh[0, 1:, 0], 20.0 + np.array(way[1:]), atol=1e-9)
    assert speed[-1] < 2.5
    through = answer(scene_of((20.0, 30.0, 0.0, 5.0)), ego(*FAR), "strict")
    np.testing.assert_allclose(through.xyh[0, :, 0], 20.0 + 0.5 * np.arange(41), atol=1e-9)


@pytest.mark.parametrize("variant", ["compat", "strict"])
def test_who_follows_brakes_for_an_ego_that_stops(variant: str):
    """In the recording it drives through where the plan now stands."""
    scene, stands = scene_of((-25.0, 0.0, 0.0, 8.0)), ego(4.0, 0.0)
    assert scene.actors.xyh[0, 40, 0] + 2.0 > 4.0
    found = answer(scene, stands, variant)
    tail_m = 4.0 + (PACIFICA.centre_ahead_m if variant == "strict" else 0.0) - PACIFICA.length_m / 2
    longer = 1.5 if variant == "compat" else 0.0  # seconds of its own way that count as the vehicle
    way, _ = idm_twin(8.0, 10.0, lambda s, v: tail_m - (-25.0 + s + 2.0 + longer * v), 0.0)
    np.testing.assert_allclose(found.xyh[0, 1:, 0], -25.0 + np.array(way[1:]), atol=1e-9)
    assert found.xyh[0, 40, 0] < scene.actors.xyh[0, 40, 0] - 1.0


def test_strict_vehicles_come_no_further_than_they_did():
    scene = scene_of((0.0, 0.0, 0.0, 3.0), (40.0, 30.0, 0.0, 0.0))
    found = answer(scene, ego(*FAR), "strict")
    np.testing.assert_allclose(found.xyh, scene.actors.xyh[:, :41], atol=1e-9)
    np.testing.assert_allclose(found.speed_mps, scene.actors.speed_mps[:, :41], atol=1e-9)


def test_strict_vehicles_see_people_and_compat_ones_do_not():
    scene = scene_of((0.0, 0.0, 0.0, 8.0), (22.0, 0.5, np.pi / 2, 0.0))
    strict = answer(scene, ego(*FAR), "strict", [True, False])
    assert strict.xyh[0, 40, 0] < scene.actors.xyh[0, 40, 0] - 5.0
    assert answer(scene, ego(*FAR), "compat", [True, False]).xyh[0, 40, 0] > 25.0
    for variant in ("compat", "strict"):  # the person is replayed
        again = answer(scene, ego(*FAR), variant, [True, False])
        np.testing.assert_array_equal(again.xyh[1], scene.actors.xyh[1, :41])
        assert again.present[1].all()


def test_vehicles_without_a_lane_stand_or_vanish_in_compat():
    parked, lost, mine = (10.0, 12.0, 0.0, 0.05), (10.0, -12.0, 0.0, 5.0), (60.0, 0.0, 0.0, 5.0)
    found = answer(scene_of(parked, lost, mine), ego(*FAR), "compat")
    assert found.present.sum(axis=1).tolist() == [41, 1, 41]
    assert np.ptp(found.xyh[0, :, 0]) == 0.0
    strict = answer(scene_of(parked, lost, mine), ego(*FAR), "strict")
    assert strict.present.all()


def test_of_two_that_overlap_on_a_lane_the_second_gets_no_rail():
    found = answer(scene_of((0.0, -1.2, 0.0, 5.0), (1.0, 1.2, 0.0, 5.0)), ego(*FAR), "compat")
    assert found.present.sum(axis=1).tolist() == [41, 1]


@pytest.mark.parametrize(("apart_m", "answers"), [(99.0, True), (101.0, False)])
def test_vehicles_answer_within_a_hundred_metres(apart_m: float, answers: bool):
    scene = scene_of((apart_m, 0.0, 0.0, 4.0))
    found = answer(scene, ego(0.0, -0.01), "compat")
    assert found.present[0, 1:].all() == answers


def test_plans_do_not_see_each_other_and_names_do_not_matter():
    scenes = [scene_of((-25.0, 0.0, 0.0, 8.0), (-60.0, 0.0, 0.0, 9.0)), scene_of((-25.0, 0.0, 0.0, 8.0))]
    states = np.concatenate([ego(4.0, 0.0), ego(*FAR)])
    for variant in ("compat", "strict"):
        flags = [np.ones(2, dtype=bool), np.ones(1, dtype=bool)]
        together = react(scenes, flags, states, LANES, variant)
        for q in range(2):
            alone = answer(scenes[q], states[q : q + 1], variant)
            np.testing.assert_allclose(together[q].actors.xyh, alone.xyh, atol=1e-12)
        turned = scenes[0].actors.take(np.array([1, 0]))
        other = PdmScene(turned, scenes[0].layers)
        np.testing.assert_allclose(answer(other, states[:1], variant).xyh[::-1], together[0].actors.xyh, atol=1e-12)


def test_nobody_is_no_trouble():
    for variant in ("compat", "strict"):
        assert answer(scene_of(), ego(0.0, 0.0), variant).ids == ()


def test_its_numbers_are_those_of_the_definition():
    values = (traffic.V0_MPS, traffic.MIN_GAP_M, traffic.HEADWAY_S, traffic.MAX_ACCEL_MPS2, traffic.MAX_DECEL_MPS2)
    assert values == (10.0, 1.0, 1.5, 1.0, 2.0)
    assert (traffic.RADIUS_M, traffic.SNAP_M) == (100.0, 3.0)
