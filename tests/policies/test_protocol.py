from dataclasses import replace

import numpy as np
import pytest
from test_transforms import moving_clip

from policies.baselines import ConstantVelocity, Log
from policies.protocol import NOTHING, Plan, Privileged, check_policy
from policies.vla_policy import VlaPolicy
from sensors import frames
from sensors.clip import Future
from sensors.errors import InputError

GOOD = Plan(np.array([0.5, 1.0]), np.array([[1.0, 0, 0], [2.0, 0, 0]]), np.array([2.0, 2.0]))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("time_s", np.array([0.5, 0.5]), "increasing"),
        ("time_s", np.array([0.0, 0.5]), "increasing"),
        ("time_s", np.array([0.5, np.nan]), "finite"),
        ("xyyaw_in_ego", np.full((2, 3), np.inf), "finite"),
        ("xyyaw_in_ego", np.zeros((2, 2)), "shape"),
        ("xyyaw_in_ego", np.array([[1.0, 0, 0], [200.0, 0, 0]]), "m/s"),
        ("speed_mps", np.zeros(3), "shape"),
    ],
)
def test_plan_rejects(field, value, words):
    GOOD.validate()
    with pytest.raises(InputError) as error:
        replace(GOOD, **{field: value}).validate()
    assert field in str(error.value)
    assert words in str(error.value)


def test_plan_in_world():
    T = frames.matrix_from_xy_yaw(10.0, 5.0, np.pi / 2)
    np.testing.assert_allclose(GOOD.in_world(T), [[10, 6, np.pi / 2], [10, 7, np.pi / 2]], atol=1e-12)
    one = Plan(GOOD.time_s[:1], GOOD.xyyaw_in_ego[:1], GOOD.speed_mps[:1])
    assert one.in_world(T).shape == (1, 3)


def log_ahead(clip, seconds=5.0):
    time_us = clip.now_us + (np.arange(0.5, seconds, 0.5) * 1e6).astype(np.int64)
    ahead = 4.0 * (time_us - clip.now_us) * 1e-6
    poses = clip.T_world_from_ego_now @ frames.matrix_from_xy_yaw(ahead, 0.0, 0.0)
    return Privileged(future=Future(time_us, poses))


def test_every_policy_that_needs_no_world_passes_the_checker(tiny_checkpoint):
    clips = [moving_clip(4.0), moving_clip(0.0)]
    pairs = [(clip, log_ahead(clip)) for clip in clips]
    for policy in (ConstantVelocity(), Log()):
        check_policy(policy, pairs)
    check_policy(VlaPolicy(tiny_checkpoint), [(six_camera_clip(tiny_checkpoint), NOTHING)])


def six_camera_clip(checkpoint):
    config = VlaPolicy(checkpoint).config
    clip = moving_clip(4.0)
    camera = clip.cameras[0].resize(config.image_width, config.image_height)[1]
    cameras = tuple(replace(camera, name=f"CAM_{n}") for n in range(config.cameras))
    shape = (config.steps, config.cameras)
    images = np.random.default_rng(0).integers(0, 256, (*shape, config.image_height, config.image_width, 3), np.uint8)
    return replace(
        clip,
        cameras=cameras,
        images=images,
        image_mask=np.ones(shape, bool),
        time_us=np.repeat(clip.time_us, config.cameras, axis=1),
        T_world_from_ego=np.repeat(clip.T_world_from_ego, config.cameras, axis=1),
    ).validate()


def test_vla_refuses_to_drive_blind_unless_asked(tiny_checkpoint):
    clip = six_camera_clip(tiny_checkpoint)
    blind = clip.with_masked(np.ones_like(clip.image_mask))
    with pytest.raises(InputError, match="every camera masked"):
        VlaPolicy(tiny_checkpoint).plan(blind, NOTHING)
    VlaPolicy(tiny_checkpoint, allow_blind=True).plan(blind, NOTHING).validate()


def test_log_at_the_end_of_the_recording_is_as_long_as_the_recording():
    clip = moving_clip(4.0)
    assert Log().plan(clip, log_ahead(clip, 1.6)).time_s[-1] == 1.5
    nothing_left = Log().plan(clip, Privileged(future=Future(np.zeros(0, np.int64), np.zeros((0, 4, 4)))))
    assert nothing_left.validate().reason
    with pytest.raises(InputError, match="vla replay"):
        Log().plan(clip, NOTHING)


class Faulty(ConstantVelocity):
    """Breaks one rule at a time."""

    def __init__(self, fault):
        self.fault, self.calls = fault, 0
        if fault == "attribute":
            self.clip_steps = "two"

    def plan(self, clip, privileged):
        self.calls += 1
        plan = super().plan(clip, privileged)
        if self.fault == "images":
            clip.images[:] += 1
        if self.fault == "random":
            return replace(plan, xyyaw_in_ego=plan.xyyaw_in_ego + 1e-3 * self.calls)
        if self.fault == "nan":
            return replace(plan, xyyaw_in_ego=plan.xyyaw_in_ego * np.nan)
        return plan


@pytest.mark.parametrize(
    ("fault", "words"),
    [("attribute", "clip_steps"), ("images", "changed"), ("random", "the same plan"), ("nan", "finite")],
)
def test_checker_rejects(fault, words):
    with pytest.raises(InputError, match=words):
        check_policy(Faulty(fault), [(moving_clip(4.0), NOTHING)])


def test_checker_rejects_no_clips():
    with pytest.raises(InputError, match="at least one clip"):
        check_policy(ConstantVelocity(), [])
