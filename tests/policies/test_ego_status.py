import numpy as np
import pytest
from safetensors.numpy import load_file

from policies.ego_status import (
    MIRRORED_INPUT,
    MIRRORED_OUTPUT,
    WEIGHTS,
    EgoStatus,
    carried_on,
    examples,
    fit,
    network,
)
from policies.protocol import NOTHING, check_policy
from sensors.errors import InputError
from sensors.gym_source import ClipHistory
from sensors.nuscenes_source import NuscenesSource
from sim.env import CourseEnv


def course_clips(count: int = 3):
    env = CourseEnv(image_size=(32, 20), cameras=False, time_limit_s=10.0)
    observation, _ = env.reset(seed=1)
    history, clips = ClipHistory(env.unwrapped.cameras, EgoStatus.clip_steps), []
    for _ in range(count):
        history.append(observation)
        clips.append((history.clip(), NOTHING))
        observation, *_ = env.step(np.array([0.0, 0.01]))
    return clips


def test_it_keeps_the_protocol_and_fits_into_50_kb():
    check_policy(EgoStatus(), course_clips())
    assert WEIGHTS.stat().st_size < 50_000


def test_it_looks_at_no_image():
    clip, _ = course_clips(1)[0]
    dark = clip.with_masked(np.ones_like(clip.image_mask))
    assert np.array_equal(EgoStatus().plan(clip, NOTHING).xyyaw_in_ego, EgoStatus().plan(dark, NOTHING).xyyaw_in_ego)


def test_carrying_on_is_an_arc():
    poses = carried_on(np.array(10.0), np.array(0.5))  # radius 20 m
    assert np.allclose(np.hypot(poses[:, 0], poses[:, 1] - 20.0), 20.0)
    assert np.allclose(poses[:, 2], 0.5 * np.arange(1, 9) * 0.5)
    assert np.allclose(carried_on(np.array(10.0), np.array(0.0))[-1], [40.0, 0.0, 0.0])


def test_left_and_right_are_alike_to_it():
    weights = load_file(WEIGHTS)
    inputs = np.random.default_rng(0).normal(0, [5.0, 0.2, 0.1, 1.0, 1.0], (64, 5))
    mirrored = network(weights, inputs * MIRRORED_INPUT) * MIRRORED_OUTPUT
    np.testing.assert_allclose(mirrored, network(weights, inputs), atol=1e-9)
    ahead = network(weights, np.array([8.0, 0.0, 0.0, 0.0, 0.0]))
    assert np.abs(ahead[:, 1:]).max() < 1e-9


def test_fitting_beats_carrying_on_and_is_repeatable(course_dataroot):
    inputs, targets = examples(NuscenesSource(course_dataroot, "v1.0-mini"))
    weights, again = fit(inputs, targets, steps=200), fit(inputs, targets, steps=200)
    assert all(np.array_equal(weights[name], again[name]) for name in weights)

    def error(plan):
        return np.linalg.norm((plan - targets)[..., :2], axis=-1).mean()

    assert error(network(weights, inputs)) < 0.7 * error(carried_on(*inputs.T[:2]))


def test_missing_weights_are_rejected(tmp_path):
    with pytest.raises(InputError, match="weights that policies"):
        EgoStatus(tmp_path / "none.safetensors")
