"""What an action means, mode by mode."""

import gymnasium
import numpy as np
import pytest

from sensors.errors import InputError
from sim.actions import MODES, PLAN_PERIODS
from sim.env import CourseEnv
from sim.tracker import PLAN_TIME_S
from sim.vehicle import VehicleParams

BINS = (np.array([-4.0, 0.0, 2.0]), np.array([-0.1, 0.0, 0.1]))
SPEED = {"initial_speed_mps": 6.0}


def course(mode, **options):
    bins = {"bins": BINS} if mode == "tokens" else {}
    env = CourseEnv(**({"cameras": False, "action_mode": mode} | bins | options))
    env.reset(seed=1, options=SPEED)
    return env


def straight(speed_mps: float) -> np.ndarray:
    zero = 0 * PLAN_TIME_S
    return np.stack([speed_mps * PLAN_TIME_S, zero, zero, speed_mps + zero], axis=1)


@pytest.mark.parametrize(
    ("mode", "action", "controls"),
    [
        ("normalized", (0.5, -0.25), (1.5, -0.25 * VehicleParams().max_curvature_1pm)),
        ("normalized", (-0.5, 0.0), (-3.0, 0.0)),
        ("tokens", (2, 1), (2.0, 0.0)),
        ("tokens", (0, 2), (-4.0, 0.1)),
    ],
)
def test_an_action_is_the_control_it_stands_for(mode, action, controls):
    one, other = course(mode), course("control")
    assert one.action_space.contains(np.array(action, one.action_space.dtype))
    a, b = one.step(np.array(action)), other.step(np.array(controls))
    assert all(np.array_equal(a[0][name], b[0][name]) for name in a[0])
    assert a[1:] == b[1:]


def test_a_plan_is_tracked_for_half_a_second():
    env = course("plan", time_limit_s=1.0)
    before = env.world.ego
    plan = straight(8.0)
    plan[:, 1] = 0.02 * plan[:, 0] ** 2 / 2  # bends to the left
    assert env.action_space.contains(plan)
    observation, reward, terminated, truncated, info = env.step(plan)
    assert info["time_s"] == pytest.approx(0.5)
    assert (terminated, truncated) == (False, False)
    assert reward == pytest.approx(0.5 * (before.speed_mps + env.world.ego.speed_mps) * 0.5, abs=0.2)
    assert before.speed_mps + 0.5 < env.world.ego.speed_mps < 8.5
    assert env.world.ego.curvature_1pm > 0.005
    times = observation["imu_time_us"]
    assert len(times) == 10 * PLAN_PERIODS
    assert set(np.diff(times)) == {10_000}
    assert times[-1] == observation["now_us"]
    assert env.step(plan)[3], "1 s is over"
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(plan)


def test_a_plan_ends_early_where_the_episode_does():
    env = course("plan", time_limit_s=0.7)
    env.step(straight(6.0))
    observation, _, terminated, truncated, info = env.step(straight(6.0))
    assert (terminated, truncated, round(info["time_s"], 3)) == (False, True, 0.7)
    assert env.observation_space.contains(observation)


def test_before_the_start_the_imu_of_plans_reads_steady_driving():
    env = CourseEnv(cameras=False, action_mode="plan")
    seen = env.reset(seed=1)[0]
    assert seen["imu_time_us"].shape == (50,)
    assert (np.diff(seen["imu_time_us"]) == 10_000).all()
    assert seen["imu_accel_mps2"][:, 0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("mode", "action"),
    [
        ("normalized", (np.nan, 0.0)),
        ("normalized", (0.0,)),
        ("tokens", (3, 0)),
        ("tokens", (-1, 0)),
        ("tokens", (0.0, 1.0)),
        ("tokens", (1,)),
        ("plan", np.zeros(4)),
        ("plan", np.zeros((7, 4))),
        ("plan", np.full((8, 4), np.nan)),
        ("plan", [[0.0], [0.0, 1.0]]),
        ("plan", "ahead"),
    ],
    ids=str,
)
def test_action_rejects(mode, action):
    env = course(mode)
    with pytest.raises(InputError, match=r"CourseEnv.step: action"):
        env.step(action)
    env.step(env.action_space.sample())  # the episode goes on


@pytest.mark.parametrize("bins", [None, ([0, 1],), ([1, 0], [0, 1]), ([0], [0, 1]), ([0, np.nan], [0, 1])], ids=str)
def test_bins_are_two_increasing_lists(bins):
    with pytest.raises(InputError, match="two increasing lists"):
        CourseEnv(cameras=False, action_mode="tokens", bins=bins)


def test_an_unknown_mode_is_met_with_the_nearest():
    assert set(MODES) == {"control", "normalized", "plan", "tokens"}
    with pytest.raises(InputError, match="Did you mean control"):
        CourseEnv(cameras=False, action_mode="controls")
