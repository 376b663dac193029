"""One instant drawn as it is and as it might be."""

from collections.abc import Iterator

import numpy as np
import pytest

from sim.faults import Sensing
from sim.scenarios import get_scenario
from sim.scene import AS_IS, PROP_INSTANCE, Otherwise
from sim.solids import GREEN, RED, SEMANTIC
from sim.stage import begin
from sim.town_env import TownEnv
from sim.town_scene import SIGNAL_INSTANCE, lamps_of_state
from sim.world import Actor

SIZE = (128, 72)


def test_faulty_sensing_sees_it_too() -> None:
    sensing = Sensing(latency_us=100_000, read_noise=2.0)
    env = TownEnv("town-smoke/3", (64, 36), cameras=False, render_mode="rgb_array", sensing=sensing)
    env.reset()
    env.step(np.array([1.0, 0.0]))
    plain, again = env.capture().rgb, env.capture(AS_IS).rgb
    everybody = frozenset(actor.instance for actor in env.world.actors)
    without = env.capture(Otherwise(without=everybody)).rgb
    env.close()
    assert np.array_equal(plain, again)
    assert not np.array_equal(plain, without)


@pytest.fixture(scope="module", params=["cv", "auto"])
def env(request) -> Iterator[TownEnv]:
    """A town after two seconds, drawn by OpenCV and, where there is OpenGL, by that."""
    made = TownEnv("town-smoke/3", SIZE, cameras=False, render_mode="rgb_array", renderer=request.param)
    begin(made, get_scenario("town-smoke/3"))
    for _ in range(20):
        made.step(np.array([2.0, 0.0]))
    yield made
    made.close()


def test_nothing_otherwise_is_the_same_to_the_bit(env) -> None:
    plain, again = env.capture(), env.capture(Otherwise())
    for name in ("rgb", "depth", "semantic", "instance"):
        assert np.array_equal(getattr(plain, name), getattr(again, name))
    assert np.array_equal(env.draw(env.moment()), plain.rgb)


def test_leaving_somebody_out_changes_only_where_it_was_and_its_shadow(env) -> None:
    plain, shadows = env.capture(), 0
    actors = plain.instance[(plain.instance > 0) & (plain.instance < SIGNAL_INSTANCE)]
    ids, pixels = np.unique(actors, return_counts=True)
    for gone in ids[np.argsort(pixels)[-6:]].tolist():
        without = env.capture(Otherwise(without=frozenset({gone})))
        assert not (without.instance == gone).any()
        changed = (plain.rgb != without.rgb).any(axis=-1)
        assert changed[plain.instance == gone].mean() > 0.9
        beside = changed & (plain.instance != gone)
        shadows += beside.sum()
        assert (plain.instance[beside] == 0).all()
        assert (plain.semantic[beside] == without.semantic[beside]).all()
        assert (plain.rgb[beside] <= without.rgb[beside]).all()  # it was darker there
    assert pixels.max() > 50
    assert shadows > 50


def test_somebody_added_stands_where_the_pose_says(env) -> None:
    ego, ahead_m = env.world.ego, 12.0
    at = (ego.x_m + ahead_m * np.cos(ego.yaw_rad), ego.y_m + ahead_m * np.sin(ego.yaw_rad), ego.yaw_rad)
    car = Actor("pasted", 4_000, "vehicle.car", (4.5, 1.85, 1.55), (172, 28, 30), None, pose=at)
    everybody = frozenset(actor.instance for actor in env.world.actors)
    images = env.capture(Otherwise(without=everybody, added=(car,)))
    seen = images.instance[0] == car.instance
    assert set(np.unique(images.instance)) & everybody == set()
    assert seen.any()
    assert (images.semantic[0][seen] == SEMANTIC["vehicle"]).all()
    rear_m = ahead_m - 4.5 / 2 - 1.7  # its rear from the camera
    assert abs(np.median(images.depth[0][seen]) - rear_m) < 1.0


def test_lights_show_the_state_that_is_asked_for(env) -> None:
    shown = env.capture().instance
    seen = shown[(shown >= SIGNAL_INSTANCE) & (shown < PROP_INSTANCE)]
    light = env.world.town_map.signals[int(seen[0]) - SIGNAL_INSTANCE].light
    count = len(env.world.lights[light])
    moment, drawn = env.moment(), {}
    for letter, lamp in (("r", RED), ("G", GREEN)):
        lamps = lamps_of_state(env.world.town_map, light, letter * count)
        assert set(lamps.values()) == {lamp}
        drawn[letter] = moment.drawn(Otherwise(lamps=lamps)).scenes[0].moving
    heads = np.isin(drawn["r"].instance, list(lamps))
    assert heads.any()
    assert (drawn["r"].lamps[heads] == RED).all()
    assert (drawn["G"].lamps[heads] == GREEN).all()
    assert np.array_equal(drawn["r"].lamps[~heads], drawn["G"].lamps[~heads])
