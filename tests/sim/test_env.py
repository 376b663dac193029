import hashlib
import multiprocessing

import gymnasium
import numpy as np
import pytest

from sensors.errors import InputError
from sim.env import CourseEnv
from sim.vehicle import VehicleParams
from sim.weather import WEATHERS, Weather
from sim.world import START_US

SIZE = (32, 20)


def digest(seed: int) -> str:
    """Everything an episode of 15 steps gives, in one number (runs in other processes too)."""
    env, total = CourseEnv(image_size=SIZE), hashlib.sha256()
    observation, info = env.reset(seed=seed)
    actions = np.random.default_rng(0).uniform((-1, -0.02), (2, 0.02), (15, 2))
    for action in actions:
        for name in sorted(observation):
            total.update(observation[name].tobytes())
        observation, reward, *ended, info = env.step(action)
        total.update(repr((reward, ended, sorted(info.items()))).encode())
    return total.hexdigest()


def test_same_seed_same_episode_bit_for_bit_in_two_processes():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        a, b, other = pool.map(digest, (11, 11, 12), chunksize=1)
    assert a == b == digest(11)
    assert a != other


def test_observation_tells_of_the_last_tenth_of_a_second():
    env = CourseEnv(image_size=SIZE)
    first, info = env.reset(seed=3)
    assert info["world_seed"] == 3
    assert int(first["now_us"]) == START_US
    assert first["imu_accel_mps2"][:, 0] == pytest.approx(0.0, abs=1e-9)  # steady before the start
    assert first["imu_accel_mps2"][:, 2] == pytest.approx(9.80665)
    assert first["imu_time_us"].tolist() == [START_US - 90_000 + 10_000 * k for k in range(10)]
    second = env.step(np.array([2.0, 0.0]))[0]
    assert int(second["now_us"]) == START_US + 100_000
    assert second["imu_accel_mps2"][:, 0] == pytest.approx(2.0)
    assert (second["camera_time_us"] <= second["now_us"]).all()
    assert len(set(second["camera_time_us"].tolist())) == 6
    assert second["vehicle"][0] == pytest.approx(first["vehicle"][0] + 0.2)
    # The poses at the exposures lie on the way, in order of time.
    order = np.argsort(second["camera_time_us"])
    start = first["T_world_from_ego_now"][:2, 3]
    along = np.linalg.norm(second["T_world_from_ego"][order][:, :2, 3] - start, axis=1)
    assert (np.diff(along) > 0).all()
    assert second["images"].std() > 20
    assert not np.array_equal(first["images"], second["images"])


def test_reward_is_progress_less_penalties():
    env = CourseEnv(cameras=False)
    env.reset(seed=1, options={"initial_speed_mps": 6.0})
    _, reward, terminated, _, info = env.step(np.array([0.0, env.world.ego.curvature_1pm], np.float32))
    assert reward == pytest.approx(0.6, abs=0.05)
    assert not terminated
    assert info["progress_m"] == pytest.approx(reward)
    while not terminated:
        _, reward, terminated, truncated, info = env.step((0.0, -0.1))
    assert info["off_road"]
    assert not truncated
    assert reward < -15


def test_step_outside_an_episode_is_an_error():
    env = CourseEnv(cameras=False)
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.step((0.0, 0.0))
    env.reset(seed=0)
    while not env.step((0.0, 0.1))[2]:
        pass
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.step((0.0, 0.0))


def test_truncates_at_the_time_limit():
    env = CourseEnv(cameras=False, time_limit_s=0.5)
    env.reset(seed=0)
    ends = [env.step((-6.0, 0.0))[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]


def test_options_displace_the_start():
    env = CourseEnv(cameras=False)
    _, info = env.reset(
        seed=2, options={"initial_lateral_m": -0.5, "initial_heading_rad": 0.1, "initial_speed_mps": 3.0}
    )
    assert info["lateral_m"] == pytest.approx(-0.5, abs=0.02)
    assert info["heading_error_rad"] == pytest.approx(0.1, abs=0.02)
    assert env.world.ego.speed_mps == 3.0


def test_weather_is_an_option_of_one_episode():
    env = CourseEnv(cameras=False)
    env.reset(seed=2, options={"weather": "night"})
    assert env.weather == WEATHERS["night"]
    env.reset(seed=2)
    assert env.weather == WEATHERS["clear"]


def test_render_is_a_mosaic_of_the_six_images():
    env = CourseEnv(image_size=SIZE, render_mode="rgb_array")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.render()
    observation, _ = env.reset(seed=4)
    picture = env.render()
    assert picture.shape == (40, 96, 3)
    assert np.array_equal(picture[:20, 32:64], observation["images"][0])
    assert CourseEnv(cameras=False).render() is None
    blind = CourseEnv(image_size=SIZE, cameras=False, render_mode="rgb_array")
    blind.reset(seed=4)
    assert np.array_equal(blind.render(), picture)
    assert np.isfinite(env.capture().depth).any()


@pytest.mark.parametrize(
    "action", [(np.nan, 0.0), (0.0, np.inf), (0.0,), (0.0, 0.0, 0.0), ("a", "b"), [[0.0, 0.0]]], ids=str
)
def test_action_rejects(action):
    env = CourseEnv(cameras=False)
    env.reset(seed=0)
    with pytest.raises(InputError, match="action"):
        env.step(action)
    env.step((0.0, 0.0))  # the episode goes on


@pytest.mark.parametrize(
    "arguments",
    [
        {"render_mode": "human"},
        {"time_limit_s": 0},
        {"time_limit_s": np.nan},
        {"image_size": (0, 3)},
        {"image_size": (3,)},
        {"image_size": 96},
        {"action_mode": "plans"},
        {"bins": ([0, 1], [0, 1])},
        {"sensing": "idea"},
        {"vehicle": VehicleParams(wheelbase_m=-1.0)},
    ],
    ids=str,
)
def test_construction_rejects(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        CourseEnv(**arguments)


def test_reset_and_capture_reject():
    env = CourseEnv(cameras=False)
    with pytest.raises(InputError, match="Did you mean initial_speed_mps"):
        env.reset(seed=0, options={"initial_sped_mps": 3.0})
    with pytest.raises(InputError, match="a number"):
        env.reset(seed=0, options={"initial_speed_mps": "fast"})
    with pytest.raises(InputError, match="rain: came 2"):
        env.reset(seed=0, options={"weather": Weather(rain=2.0)})
    with pytest.raises(InputError, match="Did you mean night"):
        env.reset(seed=0, options={"weather": "nigt"})
    with pytest.raises(InputError, match="initial_lateral_m"):
        env.reset(seed=0, options={"initial_lateral_m": 30.0})
    with pytest.raises(InputError, match="cameras"):
        env.capture()
