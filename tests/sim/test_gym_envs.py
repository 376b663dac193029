"""The environments as Gymnasium's users meet them: by name, checked, in every action mode, and as vectors."""

import doctest

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import sim.env
import sim.town_env
from sim.actions import MODES
from sim.gym_envs import COURSE_ENV_ID, TOWN_ENV_ID

BINS = ([-4.0, -1.0, 0.0, 2.0], [-0.1, 0.0, 0.1])
# The action is in physical units on purpose, for who has them; a learner takes action_mode="normalized".
DECLINED = pytest.mark.filterwarnings("ignore:.*we recommend using a symmetric and normalized space")


def by_name(env_id: str, mode: str = "control", **options) -> gymnasium.Env:
    options = {"action_mode": mode} | ({"bins": BINS} if mode == "tokens" else {}) | options
    if env_id == TOWN_ENV_ID:
        options = {"scenario": "town-smoke/0", "cameras": False} | options
    return gymnasium.make(f"sim.gym_envs:{env_id}", **options)


@pytest.mark.parametrize("mode", [pytest.param(mode, marks=DECLINED if mode == "control" else ()) for mode in MODES])
@pytest.mark.parametrize("env_id", [COURSE_ENV_ID, TOWN_ENV_ID])
def test_gymnasium_accepts_every_mode_without_a_warning(env_id, mode):
    with by_name(env_id, mode, cameras=False, sensing="harsh" if mode == "plan" else "ideal") as env:
        check_env(env.unwrapped, skip_render_check=True)


def test_gymnasium_accepts_images_and_pictures():
    with by_name(COURSE_ENV_ID, "normalized", image_size=(24, 14), sensing="nuscenes") as env:
        check_env(env.unwrapped)


def test_the_modules_examples_run():
    for module in (sim.env, sim.town_env):
        result = doctest.testmod(module)
        assert result.attempted > 5
        assert result.failed == 0


@pytest.mark.parametrize("sensing", ["ideal", "harsh"])
def test_town_vectors_are_single_environments_side_by_side(sensing):
    """Two processes give, seed by seed, what one environment gives alone, through an end and the reset after it."""
    options = {"scenario": "town-smoke/0", "cameras": False, "time_limit_s": 0.3, "sensing": sensing}
    actions = np.random.default_rng(0).uniform((-1, -0.02), (2, 0.02), (6, 2, 2))
    how = {"vectorization_mode": "async", "vector_kwargs": {"context": "spawn"}}
    vector = gymnasium.make_vec(f"sim.gym_envs:{TOWN_ENV_ID}", 2, **how, **options)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    seen = [vector.reset(seed=[5, 6])[0]]
    ends = []
    for action in actions:
        observation, reward, terminated, truncated, _ = vector.step(action)
        seen.append(observation)
        ends.append((reward.tolist(), terminated.tolist(), truncated.tolist()))
    vector.close()
    for k, seed in enumerate((5, 6)):
        with gymnasium.make(f"sim.gym_envs:{TOWN_ENV_ID}", **options) as env:
            observation = env.reset(seed=seed)[0]
            over = False
            for step in range(len(actions) + 1):
                assert observation.keys() == seen[step].keys()
                assert all(np.array_equal(observation[name], seen[step][name][k]) for name in observation), step
                if step == len(actions):
                    break
                if over:  # the action of the step after an end is not used
                    observation, reward, terminated, truncated = env.reset()[0], 0.0, False, False
                else:
                    observation, reward, terminated, truncated, _ = env.step(actions[step, k])
                over = terminated or truncated
                assert (reward, terminated, truncated) == tuple(values[k] for values in ends[step])
    assert [truncated for _, _, truncated in ends] == [[k == 2] * 2 for k in range(6)]


def test_two_towns_in_one_process_are_refused():
    with by_name(TOWN_ENV_ID) as env:
        env.reset(seed=1)
        with pytest.raises(ValueError, match="process"):
            by_name(TOWN_ENV_ID).reset(seed=2)
