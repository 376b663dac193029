"""What is frozen stays as it is to the bit, and costs no optimizer state; what can't be meant is refused."""

import pytest
import torch

from policies.freezing import freeze
from sensors.errors import InputError
from vla.config import ModelConfig
from vla.model import DrivingModel


def tiny():
    with torch.device("meta"):
        return DrivingModel(ModelConfig.tiny())


def frozen(*patterns):
    model = tiny()
    freeze(model, patterns, "recipe")
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_patterns_are_names_what_stands_before_names_and_stars_for_one_part():
    names = [name for name, _ in tiny().named_parameters()]
    assert frozen() == set()
    assert frozen("encoder.", "head.weight") == {name for name in names if name.startswith(("encoder.", "head."))}
    layers = ModelConfig.tiny().layers
    assert frozen("backbone.layers.*.attention.qkv.weight") == {
        f"backbone.layers.{k}.attention.qkv.weight" for k in range(layers)
    }
    assert frozen("backbone.layers.1.") == {name for name in names if name.startswith("backbone.layers.1.")}
    assert frozen("*.weight") == {name for name in names if name.count(".") == 1 and name.endswith(".weight")}


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("encodr.", r"such as .*encoder\., .* Did you mean encoder\.\?"),
        ("encoder", r"Did you mean encoder\.\?"),
        ("backbone.layer.*.mlp.", r"Did you mean backbone\.layers\.\*\.mlp\.\?"),
        ("head.weigth", r"Did you mean head\.weight\?"),
        ("action_queries", r"came 'action_queries'"),  # of plans that are said at once only
        ("", "came ''"),
        ("[", r"came '\['"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest(pattern, words):
    with pytest.raises(InputError, match=rf"train\.freeze.*{words}"):
        freeze(tiny(), ["head.", pattern], "recipe")


def test_something_is_left_to_learn():
    with pytest.raises(InputError, match="leaves something to learn"):
        freeze(tiny(), [name for name, _ in tiny().named_parameters()], "recipe")
