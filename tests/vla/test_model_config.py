"""The config: strict dictionaries, and a rule for each field that can be wrong."""

import json
from dataclasses import replace

import pytest
import torch

from sensors.errors import InputError
from vla.backbone import Backbone
from vla.config import BackboneConfig, ModelConfig
from vla.model import DrivingModel

TINY = ModelConfig.tiny()


def test_dictionary_round_trip_through_json():
    changed = replace(TINY, layers=6, plan_dt_s=0.25)
    assert ModelConfig.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed


def test_vocabulary_is_that_of_the_layout():
    layout, (accel, curvature) = TINY.vocabulary, TINY.action_slots
    assert (accel.start, curvature.stop) == (layout.range_of("action").start, layout.range_of("action").stop)
    assert (accel.stop - accel.start, curvature.start) == (TINY.accel_bins, accel.stop)
    assert curvature.stop - curvature.start == TINY.curvature_bins
    coded = replace(TINY, image_codes=512).vocabulary
    assert (len(coded.range_of("text")), len(coded.range_of("image"))) == (TINY.text_tokens, 512)


def test_config_rejects_unknown_key():
    with pytest.raises(InputError, match="Did you mean experts_per_token"):
        ModelConfig.from_dict({"expert_per_token": 2})
    with pytest.raises(InputError, match="an unknown key"):
        ModelConfig.from_dict({"zzz": 2})


@pytest.mark.parametrize(
    ("size", "whole", "active", "scene_tokens"),
    [("tiny", 3.78e6, 1.439e6, 64), ("300m", 301e6, 83e6, 576), ("10b-a2.5b", 9.9e9, 2.5e9, 1800)],
)
def test_sizes_have_the_parameters_they_claim(size, whole, active, scene_tokens):
    """Whole: everything; active: what a token meets in backbone and head. Nothing is allocated."""
    config = ModelConfig.of_size(size)
    with torch.device("meta"):
        model = DrivingModel(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(whole, rel=0.02)
    assert model.backbone.active_parameters + model.head.weight.numel() == pytest.approx(active, rel=0.02)
    assert config.steps * config.scene_tokens == scene_tokens


def test_active_parameters_by_hand():
    config = BackboneConfig(width=8, layers=2, heads=2, kv_heads=1, head_dim=4, dense_hidden=6, expert_hidden=5)
    attention = 8 * (2 + 2) * 4 + 8 * 8 + 2 * 4 + 2 * 8
    experts, router = 3 * 8 * 5 * (2 + 1), 8 * 8  # two chosen, one shared
    assert Backbone(config).active_parameters == 2 * attention + 3 * 8 * 6 + experts + router + 8


def test_experts_are_shared_out_evenly_or_not_at_all():
    assert BackboneConfig(experts=8).experts_per_rank(4) == 2
    for degree in (3, 16, 0):
        with pytest.raises(InputError, match=f"came 8, expected a multiple of the degree {degree}"):
            BackboneConfig(experts=8).experts_per_rank(degree)


def test_unknown_size_is_rejected():
    with pytest.raises(InputError, match="Did you mean 300m"):
        ModelConfig.of_size("300M")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("router", "softmin"),
        ("dense_layers", 5),
        ("expert_dropout", 1.0),
        ("rope_base", 1.0),
        ("order_pairs", 16),
        ("shared_experts", -1),
        ("fusion_reach", "future"),
        ("action_decoding", "paralel"),
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
