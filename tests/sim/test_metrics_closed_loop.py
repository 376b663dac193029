import numpy as np
import pytest

from sim.metrics import closed_loop as loop
from sim.metrics.pdm import COMFORT_BOUNDS

CRASH = loop.Route(100.0, vehicle=1, red_light=1)


def test_carla_worked_example():
    assert loop.carla_2_0(CRASH) == (pytest.approx(42.0), True)
    assert loop.carla_2_1(CRASH)[0] == pytest.approx(47.62, abs=5e-3)
    assert loop.mean_score([loop.carla_2_0(CRASH), (100.0, True)])[0] == pytest.approx(71.0)


@pytest.mark.parametrize(
    ("kind", "factor", "load"),
    [
        ("pedestrian", 0.5, 1.0),
        ("vehicle", 0.6, 0.7),
        ("static", 0.65, 0.6),
        ("red_light", 0.7, 0.4),
        ("stop_sign", 0.8, 0.25),
        ("scenario_timeout", 0.7, 0.4),
        ("emergency_vehicle", 0.7, 0.4),
    ],
)
def test_carla_penalties(kind, factor, load):
    for count in (0, 1, 3):
        route = loop.Route(80.0, **{kind: count})
        assert loop.carla_2_0(route)[0] == pytest.approx(80 * factor**count)
        assert loop.carla_2_1(route)[0] == pytest.approx(80 / (1 + count * load))
    unknown = loop.Route(80.0, **{kind: None})
    assert not any(f(unknown)[1] for f in (loop.carla_2_0, loop.carla_2_1, loop.bench2drive))
    assert not loop.mean_score([loop.carla_2_0(unknown), (1.0, True)])[1]


def test_carla_shares():
    route = loop.Route(100.0, off_lane_pct=10.0, min_speed_pct=(50.0, 100.0))
    assert loop.carla_2_0(route)[0] == pytest.approx(100 * 0.9 * 0.85)
    assert loop.carla_2_1(route)[0] == pytest.approx(100 * 0.9 / 1.2)
    assert loop.bench2drive(route)[0] == pytest.approx(90.0)
    unknown = loop.Route(100.0, min_speed_pct=None)
    assert [f(unknown)[1] for f in (loop.carla_2_0, loop.carla_2_1, loop.bench2drive)] == [False, False, True]
    assert not loop.carla_2_0(loop.Route(100.0, off_lane_pct=None))[1]


def test_bench2drive_counts_missing_routes_as_zero():
    routes = [loop.Route(100.0, min_speed_pct=(50.0, 1500.0)), CRASH, loop.Route(90.0), loop.Route(100.0, stop_sign=1)]
    result = loop.bench2drive_mean(routes)
    assert result["driving_score"][0] == pytest.approx((100 + 42 + 90 + 80) / 220)
    assert result["success_rate"][0] == pytest.approx(1 / 220)
    assert result["efficiency"] == (50.0, True)
    assert loop.bench2drive_mean(routes, asked_for=4)["driving_score"][0] == pytest.approx(78.0)
    assert not loop.bench2drive_mean(routes[2:])["efficiency"][1]
    for bad in ([], routes * 56, [loop.Route(100.0, red_light=None)]):
        assert not any(valid for _, valid in loop.bench2drive_mean(bad).values())
    for spoilt in (dict(ended_early=True), dict(off_lane_pct=1.0)):
        assert loop.bench2drive_mean([loop.Route(100.0, **spoilt)])["success_rate"] == (0.0, True)


def test_bench2drive_comfort_is_a_share_of_segments():
    zero = np.zeros(65)
    assert loop.bench2drive_comfort(zero, zero, zero) == (1.0, True)
    for limit, name in ((2.40, "lon_acc"), (4.89, "lat_acc"), (0.95, "yaw_rate")):
        assert COMFORT_BOUNDS[name][1] == limit
        for share, expected in ((0.999, 1.0), (1.001, 2 / 3)):
            series = {"lon_acc": zero.copy(), "lat_acc": zero.copy(), "yaw_rate": zero.copy()}
            series[name][20:40] = limit * share
            assert loop.bench2drive_comfort(**series)[0] == pytest.approx(expected)
    series = np.where(np.arange(65) >= 60, 9.0, 0.0)  # only in the rest that fills no segment
    assert loop.bench2drive_comfort(series, zero, zero)[0] == 1.0
    ramp = 1.94 * (np.arange(8) - 3.5) * 0.1
    assert loop.bench2drive_comfort(zero[:8], zero[:8], ramp) == (1.0, True)
    assert loop.bench2drive_comfort(zero[:8], zero[:8], ramp, variant="strict") == (0.0, True)
    assert not loop.bench2drive_comfort(zero[:2], zero[:2], zero[:2])[1]


def scores(**changed):
    names = ("NC", "DAC", "MP", "DDC", "EP", "TTC", "speed_limit", "C")
    return {name: (changed.get(name, 1.0), True) for name in names}


def test_nuplan_total():
    assert loop.nuplan(scores()) == (1.0, True)
    assert loop.nuplan(scores(EP=0.2, C=0.0))[0] == pytest.approx((1 + 5 + 4) / 16)
    for gate in ("NC", "DAC", "MP", "DDC"):
        assert loop.nuplan(scores(**{gate: 0.5}))[0] == 0.5
        assert not loop.nuplan({**scores(), gate: loop.NOT_AVAILABLE})[1]


def test_nuplan_parts_at_their_thresholds():
    assert loop.nuplan_progress(20.1, 100.0) == {"EP": (0.201, True), "MP": (1.0, True)}
    assert loop.nuplan_progress(19.9, 100.0)["MP"] == (0.0, True)
    assert loop.nuplan_progress(0.0, 0.0)["EP"] == (1.0, True)
    assert loop.nuplan_progress(-1.9, 4.0)["EP"] == (0.5, True)
    assert loop.nuplan_progress(-2.1, 4.0)["EP"] == (0.0, True)
    assert not loop.nuplan_progress(10.0, None)["MP"][1]
    assert loop.nuplan_drivable_area(np.array([[0.0, 0.3]])) == (1.0, True)
    assert loop.nuplan_drivable_area(np.array([0.31])) == (0.0, True)
    assert not loop.nuplan_drivable_area(None)[1]
    for metres, value in ((1.99, 1.0), (2.01, 0.5), (5.99, 0.5), (6.01, 0.0)):
        assert loop.nuplan_driving_direction(np.full(40, metres / 11), 0.1) == (value, True)
    assert not loop.nuplan_driving_direction(None, 0.1)[1]
    assert [loop.nuplan_ttc(s)[0] for s in (0.949, 0.95, np.inf)] == [0.0, 1.0, 1.0]
    assert not loop.nuplan_ttc(None)[1]


def test_nuplan_speed_limit():
    limit = np.full(11, 10.0)
    assert loop.nuplan_speed_limit(limit, limit, 0.1) == (1.0, True)
    over = limit.copy()
    over[3:5] += 2.23
    assert loop.nuplan_speed_limit(over, limit, 0.1)[0] == pytest.approx(1 - 2 / 10)
    assert loop.nuplan_speed_limit(limit + 9, limit, 0.1)[0] == 0.0
    assert loop.nuplan_speed_limit(over, np.where(np.arange(11) == 3, np.nan, limit), 0.1)[0] == pytest.approx(0.9)
    assert not loop.nuplan_speed_limit(over, np.full(11, np.nan), 0.1)[1]
