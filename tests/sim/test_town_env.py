"""The town as a Gymnasium environment."""

import gymnasium
import numpy as np
import pytest

from sensors.clip import ROUTE_COMMANDS
from sensors.errors import InputError
from sensors.gym_source import ClipHistory
from sim.faults import Sensing
from sim.scenarios import Scenario, get_scenario
from sim.solids import SEMANTIC
from sim.town_env import TownEnv

SIZE = (112, 64)


@pytest.fixture
def make_env():
    made = []

    def make(**options) -> TownEnv:
        for env in made:
            env.close()
        made.append(TownEnv(**({"scenario": "town-smoke/0", "image_size": SIZE} | options)))
        return made[-1]

    yield make
    for env in made:
        env.close()


def test_the_first_reset_is_the_scenario_and_a_seed_is_another_episode(make_env) -> None:
    env = make_env(cameras=False)
    first = env.reset()[1]
    assert first["world_seed"] == get_scenario("town-smoke/0").seed
    assert env.reset(seed=77)[1]["world_seed"] == 77
    drawn = env.reset()[1]["world_seed"]
    assert drawn not in (77, first["world_seed"])
    env.reset(seed=77)
    assert env.reset()[1]["world_seed"] == drawn
    assert env.reset(options={"scenario": "town-smoke/2"})[1]["scenario"] == "town-smoke/2"
    assert env.world.scenario.town == get_scenario("town-smoke/2").town


def test_images_show_road_and_sky_and_make_a_clip(make_env) -> None:
    env = make_env(render_mode="rgb_array")
    observation, info = env.reset()
    assert env.observation_space.contains(observation)
    assert observation["images"].shape == (6, SIZE[1], SIZE[0], 3)
    seen = env.capture().semantic
    for name in ("sky", "asphalt", "marking", "sidewalk", "building"):
        assert (seen == SEMANTIC[name]).mean() > 0.002, name
    assert env.render().shape == (2 * SIZE[1], 3 * SIZE[0], 3)
    history = ClipHistory(env.cameras, 1)
    history.append(observation)
    clip = history.clip(ROUTE_COMMANDS[int(observation["command"])], info["instruction"]).validate()
    assert clip.instruction


def test_a_light_ahead_is_drawn_in_its_colour(make_env) -> None:
    env = make_env(scenario="town-val/0", image_size=(400, 225))
    env.reset()
    signal = env.world.town_map.signals[0]
    state = env.world.lights[signal.light][signal.index]
    scene = env._scene(env.world.time_us)
    at = np.array([signal.x_m, signal.y_m]) - 20.0 * np.array([np.cos(signal.yaw_rad), np.sin(signal.yaw_rad)])
    env.world._place_ego(type(env.world.ego)(*map(float, at), signal.yaw_rad, 0.0))
    images = env.capture()
    front = images.semantic[0] == SEMANTIC["traffic_light"]
    assert front.sum() > 40, "the head covers some pixels at 20 m"
    red, green = (images.rgb[0][front][:, c].astype(int) for c in (0, 1))
    shining = np.abs(red - green).max()
    assert shining > 120, (state, scene.moving.lamps)


def test_reward_is_progress_and_an_end_is_an_end(make_env) -> None:
    env = make_env(cameras=False)
    env.reset()
    total, info = 0.0, {}
    for _ in range(400):
        _, reward, terminated, truncated, info = env.step(np.array([2.0, 0.03]))
        total += reward
        if terminated or truncated:
            break
    assert terminated
    assert info["off_road"] or info["collision"]
    assert total < info["progress_m"] - 19.0
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.array([0.0, 0.0]))


def test_time_truncates(make_env) -> None:
    env = make_env(cameras=False, time_limit_s=0.3)
    env.reset()
    ends = [env.step(np.array([0.0, 0.0]))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenario": "town-smok/1"}, "Did you mean town-smoke"),
        ({"action_mode": "control", "bins": ([0.0, 1.0], [0.0, 1.0])}, "bins only with"),
        ({"scenario": Scenario("mine", "grid", 1, weather="nigt")}, "Did you mean night"),
        ({"sensing": Sensing(drop_share=2.0)}, "drop_share"),
        ({"image_size": (0, 5)}, "image_size"),
    ],
)
def test_env_rejects(make_env, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_env(**options)


@pytest.mark.parametrize("action", [np.array([np.nan, 0.0]), np.zeros(3), np.array(["a", "b"])])
def test_step_rejects(make_env, action: np.ndarray) -> None:
    env = make_env(cameras=False)
    env.reset()
    with pytest.raises(InputError, match="action"):
        env.step(action)


def test_reset_rejects_an_unknown_option(make_env) -> None:
    with pytest.raises(InputError, match="Did you mean initial_speed_mps"):
        make_env(cameras=False).reset(options={"initial_sped": 1.0})
