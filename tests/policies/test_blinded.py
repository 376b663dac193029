"""Policies behind damaged cameras."""

from dataclasses import replace

import numpy as np
import pytest
from lamp_reader import LampReader

from policies.baselines import ConstantVelocity
from policies.blinded import DAMAGES, Blinded
from policies.cli import main
from policies.noise import noise_clip
from policies.protocol import NOTHING, check_policy
from sensors.errors import InputError
from sim.sensing import RIG, nuscenes_rig
from vla.config import ModelConfig


@pytest.fixture(scope="module")
def clip():
    """Noise, from cameras that are called as the car's are."""
    made = noise_clip(ModelConfig.tiny(), 0)
    return replace(made, cameras=nuscenes_rig(made.cameras[0].width, made.cameras[0].height)).validate()


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_changes_the_cameras_and_nothing_else(clip, name: str) -> None:
    images, cameras = clip.images.copy(), clip.cameras
    damaged = DAMAGES[name](clip).validate(name)
    assert np.array_equal(clip.images, images)
    same_images = np.array_equal(damaged.images, clip.images)
    calibration = [camera.T_ego_from_cam.tolist() for camera in damaged.cameras]
    same_calibration = calibration == [camera.T_ego_from_cam.tolist() for camera in cameras]
    assert (same_images, same_calibration) == ((True, False) if name == "miscalibrated" else (False, True))
    assert [camera.name for camera in damaged.cameras] == [camera.name for camera in cameras]
    for field in ("now_us", "command", "instruction", "vehicle", "imu"):
        assert getattr(damaged, field) is getattr(clip, field)


def test_each_damage_is_what_it_says(clip) -> None:
    assert not DAMAGES["blank"](clip).images.any()
    assert DAMAGES["blank"](clip).image_mask.all(), "black is not missing"
    assert np.array_equal(DAMAGES["shuffled"](clip).images[:, 0], clip.images[:, 3])
    assert list(RIG)[3] == "CAM_BACK"
    moved = DAMAGES["miscalibrated"](clip).cameras
    assert np.array_equal(moved[0].T_ego_from_cam, clip.cameras[1].T_ego_from_cam)
    assert (~DAMAGES["no-front"](clip).image_mask[0]).tolist() == [name == "CAM_FRONT" for name in RIG]
    assert (~DAMAGES["no-rear"](clip).image_mask[-1]).tolist() == ["BACK" in name for name in RIG]


def test_a_blinded_policy_keeps_the_protocol_and_sees_the_damaged_clip(clip) -> None:
    policy = LampReader()
    blind = Blinded(policy, "blank")
    assert blind.name == "lamp-reader-blank"
    check_policy(blind, [(clip, NOTHING)])
    assert policy.plan(clip, NOTHING).xyyaw_in_ego[-1, 0] == 1.0, "noise has some red"
    assert blind.plan(clip, NOTHING).xyyaw_in_ego[-1, 0] > 20.0


def test_blinded_rejects() -> None:
    with pytest.raises(InputError, match="Did you mean no-front"):
        Blinded(LampReader(), "no-frnt")
    with pytest.raises(InputError, match="one that looks"):
        Blinded(ConstantVelocity(), "blank")


def test_drive_takes_damaged_cameras_for_a_policy_that_looks_only(tmp_path, capsys) -> None:
    out = tmp_path / "run"
    assert main(["drive", "--policy", "constant-velocity", "--cameras", "blank", "--out", str(out)]) == 2
    assert "one that looks" in capsys.readouterr().err
    assert not out.exists()
