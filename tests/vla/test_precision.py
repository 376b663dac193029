"""Simulated FP8: its numbers, its gradients, and that nothing else about the model changes."""

import pytest
import torch
from torch.nn import functional as F

from sensors.errors import InputError
from vla.attention import Layout
from vla.backbone import Backbone
from vla.config import BackboneConfig
from vla.precision import E4M3, E5M2, round_fp8, use_precision

CONFIG = BackboneConfig(
    width=32, layers=2, heads=2, kv_heads=1, head_dim=16, dense_hidden=48, experts=4, expert_hidden=16
)


def make():
    model, generator = Backbone(CONFIG), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
    return model, torch.randn(2, 9, 32, generator=generator)


def test_rounding_by_hand():
    x = torch.tensor([448.0, 1.0, 1.06, 17.0, -3.3, 0.0])  # scale 1; e4m3 has 3 bits behind the leading one
    assert round_fp8(x, E4M3, None).tolist() == [448.0, 1.0, 1.0, 16.0, -3.25, 0.0]
    assert round_fp8(torch.tensor([57344.0, 1.2, 1.4]), E5M2, None).tolist() == [57344.0, 1.25, 1.5]
    blocks = round_fp8(torch.tensor([[448.0, 1.0, 0.001, 0.001]]), E4M3, 2)
    assert blocks[0].tolist() == pytest.approx([448.0, 1.0, 0.001, 0.001])
    assert round_fp8(torch.tensor([[448.0, 1.0, 0.001, 0.001]]), E4M3, None)[0, 2] != pytest.approx(0.001, rel=0.1)
    assert (round_fp8(torch.zeros(3), E4M3, None) == 0).all()


def test_linear_and_its_gradients_are_products_of_rounded_operands():
    model, x = make()
    use_precision(model, "fp8-sim")
    linear = model.layers[0].attention.out
    x = x.clone().requires_grad_()
    y, up = linear(x), torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1))
    y.backward(up)
    q4, q5 = (lambda v, kind=kind: round_fp8(v.detach(), kind, None) for kind in (E4M3, E5M2))
    torch.testing.assert_close(y, q4(x) @ q4(linear.weight).T)
    torch.testing.assert_close(x.grad, q5(up) @ q4(linear.weight))
    torch.testing.assert_close(linear.weight.grad, q5(up).flatten(0, 1).T @ q4(x).flatten(0, 1))


@pytest.mark.parametrize("scaling", ["current", "block"])
def test_fp8_is_near_the_reference_and_keeps_parameters_and_names(scaling):
    model, x = make()
    layout, before = Layout.causal(9), dict(model.named_parameters())
    with torch.no_grad():
        exact = model(x, layout)
        assert use_precision(model, "fp8-sim", scaling).name == "fp8-sim"
        rounded = model(x, layout)
        one = model(x[:1, :1], layout[:1])  # a single token is rounded too
        assert (one - exact[:1, :1]).abs().max() > 1e-3
        after = dict(model.named_parameters())
        assert before.keys() == after.keys() == dict(Backbone(CONFIG).named_parameters()).keys()
        assert all(before[name] is after[name] for name in before)
        use_precision(model, "torch")
        assert torch.equal(model(x, layout), exact)
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-3 < error < 0.2  # a router that chooses another expert counts in full


def test_training_in_fp8_learns():
    model, x = make()
    use_precision(model, "fp8-sim")
    optimizer, target = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.tanh(x.flip(2))
    losses = []
    for _ in range(40):
        loss = F.mse_loss(model(x, Layout.causal(9)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_what_is_not_there_is_said():
    model, _ = make()
    with pytest.raises(InputError, match="Transformer Engine"):
        use_precision(model, "te")
    with pytest.raises(InputError, match="Did you mean fp8-sim"):
        use_precision(model, "fp8sim")
    with pytest.raises(InputError, match="scaling"):
        use_precision(model, "fp8-sim", "blok")
    taken = use_precision(model, "auto")
    assert taken.name == "torch"
    assert "Transformer Engine" in taken.why
