from dataclasses import replace

import numpy as np
import pytest

from sim.metrics import neural_sims as sims

GROUND = np.stack(np.meshgrid(np.arange(-20, 60, 0.4) + 0.1, np.arange(-5, 5, 0.4) + 0.1), axis=-1).reshape(-1, 2)


def step(speed=4.0, cars=(), **changed):
    """A plan straight along x for 3 s; cars are rows (x, y, yaw, length, width) that stand."""
    plan = np.zeros((6, 3))
    plan[:, 0] = speed * 0.5 * np.arange(1, 7)
    rows = [np.array(cars, dtype=float).reshape(-1, 5)] * 7
    return replace(sims.HugsimStep(np.zeros(3), (4.0, 2.0), plan, rows, GROUND), **changed)


def value(result, name="s"):
    return result[name][0] if result[name][1] else None


def test_hugsim_step_branches():
    clear = sims.hugsim_step(step())
    assert {name: v for name, (v, _) in clear.items()} == {"NC": 1, "DAC": 1, "TTC": 1, "C": 1, "s": 1}
    assert value(sims.hugsim_step(step(cars=[(14.0, 0, 0, 4, 2)]))) == 0.0
    soon = sims.hugsim_step(step(cars=[(17.0, 0, 0, 4, 2)]))  # 12 m planned, +2 and +4 m of look-ahead, 4 m of boxes
    assert (value(soon, "NC"), value(soon, "TTC"), value(soon)) == (1, 0, pytest.approx(2 / 7))
    assert value(sims.hugsim_step(step(cars=[(20.1, 0, 0, 4, 2)]))) == 1.0
    assert value(sims.hugsim_step(step(cars=[(19.9, 0, 0, 4, 2)]))) == pytest.approx(2 / 7)


def test_hugsim_background_needs_more_than_a_hundred_points():
    rng = np.random.default_rng(0)
    points = rng.uniform([5.0, -0.5], [6.0, 0.5], (101, 2))
    assert value(sims.hugsim_step(step(background_xy=points)), "NC") == 0.0
    assert value(sims.hugsim_step(step(background_xy=points[:100])), "NC") == 1.0


def test_hugsim_drivable_cells():
    box = np.array([[-1, -0.5], [-1, 0.5], [1, -0.5], [1, 0.5]])
    standing = np.zeros((6, 3))
    for cells, expected in ((4, 1.0), (2, 1.0), (1, 0.0), (0, 0.0)):  # one of four is under .3, two are not under .5
        here = step(plan=standing, ground_xy=box[:cells])
        assert value(sims.hugsim_step(here), "DAC") == expected
    unknown = sims.hugsim_step(step(ground_xy=None))
    assert value(unknown, "NC") == 1.0
    assert value(unknown, "DAC") is None
    assert value(unknown) is None


def test_hugsim_comfort_bounds_and_its_faults():
    def plan(speeds, yaw_rate=0.0):
        yaw = yaw_rate * 0.5 * np.arange(1, 7)
        path = np.cumsum(np.stack([np.cos(yaw), np.sin(yaw)], axis=-1) * np.array(speeds)[:, None] * 0.5, axis=0)
        return step(plan=np.column_stack([path, yaw]), ground_xy=None)

    def comfortable(*args, variant="compat", **kwargs):
        return value(sims.hugsim_step(plan(*args, **kwargs), variant), "C")

    for acc, compat, strict in ((2.39, 1, 1), (2.41, 1, 0), (4.88, 1, 0), (4.90, 0, 0), (-4.04, 1, 1), (-4.06, 0, 0)):
        speeds = 20.0 + acc * 0.5 * np.arange(6)
        assert (comfortable(speeds), comfortable(speeds, variant="strict")) == (compat, strict)
    for jerk, compat, strict in ((4.1, 1, 1), (4.2, 1, 0), (8.3, 1, 0), (8.4, 0, 0)):
        speeds = 20.0 + np.concatenate([[0, 0, 0], np.cumsum(jerk * 0.25 * np.array([-0.5, 0.5, 0.5]))])
        acc = np.diff(speeds) / 0.5
        assert np.abs(np.diff(acc) / 0.5).max() == pytest.approx(jerk)
        assert (comfortable(speeds), comfortable(speeds, variant="strict")) == (compat, strict)
    for rate, speed, compat, strict in ((0.94, 2.0, 1, 1), (0.96, 2.0, 0, 0), (0.9, 6.0, 1, 0)):
        turning = plan([speed] * 6, yaw_rate=rate)
        assert value(sims.hugsim_step(turning), "C") == compat
        assert value(sims.hugsim_step(turning, "strict"), "C") == strict
    assert value(sims.hugsim_step(step(plan=np.array([[9.0, 0, 0], [9.0, 9.0, 0]]))), "C") == 1.0  # three poses
    noise = np.column_stack([np.zeros((6, 2)), np.array([0, 2, 0, 2, 0, 2])])
    assert value(sims.hugsim_step(step(plan=noise)), "C") == 1.0  # it stands: headings do not count


def test_hugsim_total():
    assert sims.hugsim([(1.0, True), (0.5, True)], 0.8) == (pytest.approx(0.6), True)
    assert sims.hugsim([(1.0, True)], 1.1)[0] == 1.0
    assert not sims.hugsim([], 1.0)[1]
    assert not sims.hugsim([(1.0, True), sims.NOT_AVAILABLE], 1.0)[1]
    route = np.stack([np.arange(10.0), np.zeros(10)], axis=-1)
    assert sims.hugsim_route_completion(np.array([[3.2, 1.0], [2.0, 0]]), route) == pytest.approx(4 / 9)
    assert sims.hugsim_route_completion(route, route) > 1.0
    short = sims.hugsim_step(step(plan=np.zeros((1, 3))))
    assert not any(valid for _, valid in short.values())


def test_neuroncap_stars():
    assert [sims.neuroncap(v, 10.0)[0] for v in (None, 0.0, 5.0, 10.0, 12.0)] == [5.0, 4.0, 2.0, 0.0, 0.0]
    assert not sims.neuroncap(3.0, 0.0)[1]
    assert sims.neuroncap(None, 0.0) == (5.0, True)
    runs = {"front": {"a": [(5.0, True), (3.0, True)], "b": [(0.0, True)]}, "side": {"c": [(4.0, True)]}}
    assert sims.neuroncap_mean(runs)[0] == pytest.approx((2.0 + 4.0) / 2)
    assert not sims.neuroncap_mean({**runs, "frontal": {}})[1]
    assert not sims.neuroncap_mean({})[1]


def test_first_impact_looks_between_frames():
    ego = np.column_stack([np.arange(5) * 5.0, np.zeros(5), np.zeros(5)])
    speed = np.full(5, 10.0)
    thin = np.tile([12.4, 0.0, 0.0], (1, 5, 1))  # stands between the positions of two frames, the car is 1 m long
    assert sims.first_impact(ego, speed, (1.0, 2.0), thin, np.array([[0.2, 1.0]])) == (10.0, 3, 0)
    assert sims.first_impact(ego, speed, (1.0, 2.0), thin + np.array([0, 5, 0]), np.array([[0.2, 1.0]])) is None
    oncoming = np.stack([30.0 - np.arange(5) * 2.5, np.zeros(5), np.full(5, np.pi)], axis=-1)[None]
    impact, frame, actor = sims.first_impact(ego, speed, (4.0, 2.0), oncoming, np.array([[4.0, 2.0]]))
    assert (impact, frame, actor) == (pytest.approx(15.0), 4, 0)
    absent = np.full((1, 5, 3), np.nan)
    assert sims.first_impact(ego, speed, (4.0, 2.0), absent, np.array([[4.0, 2.0]])) is None
    at_once = sims.first_impact(ego, speed, (4.0, 2.0), ego[None] * [0.2, 1, 1], np.array([[4.0, 2.0]]))
    assert at_once == (pytest.approx(8.0), 0, 0)


def rollout(**changed):
    share = np.linspace(0.2, 1.0, 5)
    none = np.zeros(5, dtype=bool)
    return replace(sims.AlpasimRollout(share, none, none.copy(), np.zeros(5), 50.0), **changed)


def test_alpasim_branches():
    late = np.array([False, False, False, False, True])
    assert sims.alpasim(rollout()) == (1.0, True)
    for share, score in ((0.4, 0.5), (0.8, 1.0), (-1.0, 0.0), (1.7, 1.0)):
        assert sims.alpasim(rollout(progress_share=np.full(5, share)))[0] == pytest.approx(score)
    assert sims.alpasim(rollout(at_fault=late))[0] == sims.alpasim(rollout(off_road=late))[0] == 0.0
    away = np.array([0, 3.9, 4.0, 9, 9])
    assert sims.alpasim(rollout(at_fault=late, path_distance_m=away))[0] == pytest.approx(0.6 / 0.8)
    assert sims.alpasim(rollout(at_fault=late, path_distance_m=away - 5.1))[0] == 0.0
    still = np.zeros(5)
    assert [sims.alpasim(rollout(progress_share=still, recorded_m=m))[0] for m in (4.9, 5.0)] == [1.0, 0.0]
    assert not sims.alpasim(rollout(recorded_m=np.nan))[1]
    assert not sims.alpasim(sims.AlpasimRollout(*(np.zeros(0),) * 4, 9.0))[1]
