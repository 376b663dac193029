"""One token in NumPy beside the backbone in torch."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vla.attention import Layout
from vla.backbone import Backbone
from vla.config import BackboneConfig
from vla.one_token import MOST_WIDTH, TokenSteps

SMALL = BackboneConfig(width=32, layers=3, heads=4, kv_heads=2, head_dim=8, dense_hidden=48, expert_hidden=16)
PAST, MORE = 7, 5


def made(config: BackboneConfig) -> Backbone:
    model, generator = Backbone(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    return model


def begun(model: Backbone, batch: int = 1, int8: bool = False):
    """A cache that holds a few tokens, with room for more that stand in `layout`."""
    x = torch.randn(batch, PAST, model.config.width, generator=torch.Generator().manual_seed(1))
    cache = model.cache(batch, PAST + MORE, x, int8=int8)
    with torch.no_grad():
        model.remember(x, Layout.causal(PAST), cache)
    layout = Layout.causal(MORE, PAST)
    cache.reserve(layout)
    return cache, layout


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"router": "softmax"},
        {"router": "softmax", "normalise_weights": False, "experts_per_token": 1},
        {"shared_experts": 0, "experts_per_token": 3},
        {"shared_experts": 2, "dense_layers": 0},
        {"kv_heads": 4, "dense_layers": 3},
        {"order_pairs": 2},
    ],
    ids=str,
)
@torch.inference_mode()
def test_tokens_one_by_one_are_what_the_backbone_makes_of_them(changes):
    config = replace(SMALL, **changes).validate()
    model = made(config)
    x = torch.randn(1, MORE, config.width, generator=torch.Generator().manual_seed(2))
    (cache, layout), (other, _) = begun(model), begun(model)
    cos, sin = model.angles(layout)
    steps = TokenSteps.of(model, cache)
    for i in range(3):
        angles = cos[i : i + 1], sin[i : i + 1]
        torch.testing.assert_close(
            steps(x[:, i : i + 1], angles), model.run(x[:, i : i + 1], angles, None, other), atol=2e-5, rtol=0
        )
    several = steps(x[:, 3:], (cos[3:], sin[3:]))  # two at once: the hidden state of the second
    model.run(x[:, 3:4], (cos[3:4], sin[3:4]), None, other)
    last = model.run(x[:, 4:], (cos[4:], sin[4:]), None, other)
    torch.testing.assert_close(several, last, atol=2e-5, rtol=0)
    assert len(cache) == len(other) == PAST + MORE
    for ours, theirs in zip(cache.layers, other.layers, strict=True):
        torch.testing.assert_close(ours.keys.data, theirs.keys.data, atol=2e-5, rtol=0)
        torch.testing.assert_close(ours.values.data, theirs.values.data, atol=2e-5, rtol=0)


@torch.inference_mode()
def test_what_is_not_a_number_stays_none():
    model = made(SMALL)
    cache, layout = begun(model)
    x = torch.zeros(1, 1, SMALL.width)
    x[0, 0, 3] = torch.nan
    cos, sin = model.angles(layout[:1])
    assert not torch.isfinite(TokenSteps.of(model, cache)(x, (cos, sin))).any()


def test_others_are_left_to_torch():
    model = made(SMALL)
    with torch.inference_mode():
        cache = begun(model)[0]
        assert TokenSteps.of(model, cache) is not None
        assert TokenSteps.of(model, begun(model, batch=2)[0]) is None
        assert TokenSteps.of(model, begun(model, int8=True)[0]) is None
        wide = Backbone(replace(SMALL, width=MOST_WIDTH + 8))
        assert TokenSteps.of(wide, wide.cache(1, 2, wide.norm.weight)) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert TokenSteps.of(model, cache) is None
        model.layers[0].attention.qkv = type("Eight", (nn.Linear,), {})(SMALL.width, 64, bias=False)
        assert TokenSteps.of(model, cache) is None
    assert TokenSteps.of(made(SMALL), cache) is None, "with gradients"
