"""The config: strict dictionaries, and a rule for each field that can be wrong."""

import json
from dataclasses import replace

import pytest

from sensors.errors import InputError
from vla.config import ModelConfig

TINY = ModelConfig.tiny()


def test_dictionary_round_trip_through_json():
    changed = replace(TINY, layers=6, plan_dt_s=0.25)
    assert ModelConfig.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed


def test_vocabulary_has_no_gap():
    assert TINY.accel_offset == 1 + len(TINY.commands)
    assert TINY.vocabulary == 1 + len(TINY.commands) + TINY.accel_bins + TINY.curvature_bins


def test_config_rejects_unknown_key():
    with pytest.raises(InputError, match="Did you mean experts_per_token"):
        ModelConfig.from_dict({"expert_per_token": 2})
    with pytest.raises(InputError, match="an unknown key"):
        ModelConfig.from_dict({"zzz": 2})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_width", 150),
        ("image_height", 100),
        ("patch_px", 10),
        ("patch_px", 6),
        ("encoder_width", 130),
        ("heads", 5),
        ("head_dim", 31),
        ("imu_samples", 99),
        ("layers", 0),
        ("layers", 2.0),
        ("layers", True),
        ("steps", "2"),
        ("experts_per_token", 9),
        ("plan_dt_s", 0.0),
        ("plan_dt_s", float("nan")),
        ("accel_min_mps2", 1.0),
        ("accel_fine_mps2", 0.0),
        ("curvature_max_1pm", -0.2),
        ("curvature_bins", 64),
        ("accel_bins", 2),
        ("commands", ("left", "right")),
    ],
)
def test_config_rejects(field, value):
    with pytest.raises(InputError) as caught:
        ModelConfig.from_dict({field: value})
    assert field in caught.value.field or field in caught.value.expected
