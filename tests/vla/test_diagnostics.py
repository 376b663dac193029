from dataclasses import replace

import pytest
import torch

from vla.attention import attention_bias, visible
from vla.diagnostics import code_counts, inspect_model, modalities, principal
from vla.image_tokens import ImageTokenizer, ImageTokenizerConfig
from vla.model import DrivingModel


@pytest.fixture(scope="module")
def model(small):
    return DrivingModel(replace(small, calibration_projector="linear"), seed=1).eval()


@pytest.fixture(scope="module")
def seen(model, make_batch, make_tokens):
    return inspect_model(model, make_batch(model.config, 0, 1), make_tokens(model.config, 2))


def test_modalities_are_the_tokens_of_the_layout(model, small):
    names, groups = modalities(model.config)
    assert names == ("scene", "imu", "vehicle", "calibration", "command", "instruction", "action")
    assert len(groups) == len(model.layout())
    assert groups.bincount().tolist() == [16, 2, 3, 3, 1, 6, 8]
    assert "calibration" not in modalities(small)[0]


def test_attention_weights_are_those_that_attention_uses(model):
    attention = model.backbone.layers[1].attention
    x = torch.randn(2, len(model.layout()), model.config.width, generator=torch.Generator().manual_seed(0))
    bias, angles = (
        attention_bias(visible(model.layout(), model.layout()), x.dtype),
        model.backbone.angles(model.layout()),
    )
    with torch.no_grad():
        weights, (_, _, v) = attention.weights(x, bias, angles), attention._project(x, angles)
        read = weights @ v.repeat_interleave(attention.heads // attention.kv_heads, dim=1)
        by_hand = attention.out(read.transpose(1, 2).flatten(2))
        torch.testing.assert_close(by_hand, attention(x, bias, angles), atol=1e-5, rtol=0)


def test_shares_sum_to_one_and_nothing_perceived_looks_at_the_plan(seen, model):
    G, layers = len(seen.names), model.config.layers
    assert seen.attention.shape == (layers, G, G)
    torch.testing.assert_close(seen.attention.sum(dim=-1), torch.ones(layers, G, dtype=torch.float64))
    torch.testing.assert_close(seen.even.sum(dim=-1), torch.ones(G, dtype=torch.float64))
    assert seen.attention[:, :-1, -1].max() == seen.even[:-1, -1].max() == 0
    torch.testing.assert_close(seen.load.sum(dim=-1), torch.ones(len(seen.load), dtype=torch.float64))
    assert seen.load.shape == (layers - model.config.dense_layers, model.config.experts)


def test_gradients_grow_with_the_head_and_are_means_over_clips(seen, model, make_batch, make_tokens):
    assert seen.gradient.min() > 0
    louder = DrivingModel(model.config, seed=1).eval()
    with torch.no_grad():
        louder.head.weight *= 2
    other = inspect_model(louder, make_batch(model.config, 0, 1), make_tokens(model.config, 2))
    assert (other.gradient > 1.2 * seen.gradient).all()
    alone = [inspect_model(model, make_batch(model.config, k), make_tokens(model.config, 2)[k : k + 1]) for k in (0, 1)]
    mean = (alone[0].gradient + alone[1].gradient) / 2
    torch.testing.assert_close(seen.gradient, mean, rtol=1e-3, atol=0)


def test_a_modality_that_is_cut_off_gets_no_gradient(model, make_batch, make_tokens):
    deaf = DrivingModel(model.config, seed=1).eval()
    with torch.no_grad():  # without attention a token hears of itself only
        for layer in deaf.backbone.layers:
            layer.attention.out.weight.zero_()
    seen = inspect_model(deaf, make_batch(model.config, 0), make_tokens(model.config, 1))
    assert seen.gradient[:-1].max() == 0
    assert seen.gradient[-1] > 0


def test_principal_components_of_a_line_and_a_plane():
    generator = torch.Generator().manual_seed(0)
    t = torch.randn(50, 1, generator=generator).double()
    line = t @ torch.tensor([[0.0, -3.0, 1.0, 0.5]]).double() + 7
    places, share = principal(line)
    assert share[0] == pytest.approx(1.0)
    torch.testing.assert_close(places[:, 0].abs(), (t - t.mean()).abs()[:, 0] * 10.25**0.5)
    plane = torch.randn(50, 2, generator=generator).double() @ torch.tensor([[2.0, 0, 0], [0, 1.0, 0]]).double()
    places, share = principal(plane)
    assert share[:2].sum() == pytest.approx(1.0)
    assert share[0] > share[1]
    assert torch.equal(principal(plane)[0], places)


def test_code_counts_are_of_every_code():
    config = ImageTokenizerConfig(image_width=32, image_height=16, codes=16, channels=8)
    tokenizer = ImageTokenizer(config)
    images = torch.randint(0, 256, (30, 16, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    counts = code_counts(tokenizer, images)
    assert counts.shape == (16,)
    assert counts.sum() == 30 * 2 * 4
    assert torch.equal(counts, torch.bincount(tokenizer.encode(images[:, None]).flatten(), minlength=16))
