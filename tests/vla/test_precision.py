"""Simulated FP8: its numbers beside naive twins, its gradients, its error, and that nothing else changes."""

import math

import pytest
import torch
from torch.nn import functional as F

from sensors.errors import InputError
from vla import precision
from vla.attention import Layout, attend, attention_bias
from vla.backbone import Backbone
from vla.config import BackboneConfig
from vla.fp8 import (
    E4M3,
    E5M2,
    HISTORY,
    RECIPES,
    Delayed,
    Fp8Grouped,
    Fp8Linear,
    round_blocks,
    round_tensor,
    rounded,
    scale_of,
)
from vla.moe import grouped_linear
from vla.precision import compute_dtype, scaling_state, use_precision

CONFIG = BackboneConfig(
    width=32, layers=2, heads=2, kv_heads=1, head_dim=16, dense_hidden=48, experts=4, expert_hidden=16
)


def make():
    model, generator = Backbone(CONFIG), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2, generator=generator)
    return model, torch.randn(2, 9, 32, generator=generator)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nearest_e4m3(value):
    """By the definition: 4 bits of exponent (bias 7), 3 of mantissa, ties to even, at most 448."""
    if value == 0:
        return 0.0
    step = 2.0 ** (max(math.floor(math.log2(abs(value))), -6) - 3)
    return max(-448.0, min(448.0, round(value / step) * step))


def test_rounding_by_hand():
    x = torch.tensor([448.0, 1.0, 1.06, 17.0, -3.3, 0.0])  # scale 1; e4m3 has 3 bits behind the leading one
    assert round_tensor(x, E4M3).tolist() == [448.0, 1.0, 1.0, 16.0, -3.25, 0.0]
    assert round_tensor(torch.tensor([57344.0, 1.2, 1.4]), E5M2).tolist() == [57344.0, 1.25, 1.5]
    assert (round_tensor(torch.zeros(3), E4M3) == 0).all()
    assert rounded(torch.tensor([1000.0, -1e9]), torch.tensor(1.0), E4M3).tolist() == [448.0, -448.0]
    assert scale_of(torch.tensor(1e-42), E4M3).isfinite()


@pytest.mark.parametrize(("shape", "block"), [((5, 300), (1, 128)), ((200, 7), (128, 1)), ((150, 260), (128, 128))])
def test_blocks_equal_a_naive_loop_also_where_sizes_do_not_divide(shape, block):
    v = normal(*shape) * torch.logspace(-3, 3, shape[1])
    expected, bound = torch.zeros(shape), torch.zeros(shape)
    for top in range(0, shape[0], block[0]):
        for left in range(0, shape[1], block[1]):
            part = slice(top, top + block[0]), slice(left, left + block[1])
            scale = 2.0 ** math.floor(math.log2(448.0 / float(v[part].abs().max())))
            bound[part] = (v[part].abs() * 2**-4).clamp(min=2**-10 / scale)  # half a step: of 3 bits, or of the least
            expected[part] = torch.tensor([[nearest_e4m3(x * scale) / scale for x in row] for row in v[part].tolist()])
    torch.testing.assert_close(round_blocks(v, *block), expected, atol=0, rtol=0)
    assert 0.5 < ((round_blocks(v, *block) - v).abs() / bound).max() <= 1
    assert round_blocks(torch.zeros(0, 5), 128, 1).shape == (0, 5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_linear_and_its_gradients_are_products_of_rounded_operands(recipe):
    plain = torch.nn.Linear(140, 24, bias=False)
    linear, x, up = Fp8Linear(plain, recipe), normal(2, 70, 140).requires_grad_(), normal(2, 70, 24, seed=1)
    linear(x).backward(up)
    linear.zero_grad()
    x.grad = None
    y = linear(x)  # for delayed scaling the second use: its scales are those of the first
    y.backward(up)
    rows, dy, W = x.detach().flatten(0, 1), up.flatten(0, 1), linear.weight.detach()
    if recipe == "block":
        ways = round_blocks(rows, 1, 128), round_blocks(rows, 128, 1), round_blocks(W, 128, 128)
        ways += round_blocks(dy, 1, 128), round_blocks(dy, 128, 1)
    else:
        ways = (round_tensor(rows, E4M3),) * 2 + (round_tensor(W, E4M3),) + (round_tensor(dy, E5M2),) * 2
    x_of_y, x_of_dweight, weight, dy_of_dx, dy_of_dweight = ways
    torch.testing.assert_close(y.flatten(0, 1), x_of_y @ weight.T)
    torch.testing.assert_close(x.grad.flatten(0, 1), dy_of_dx @ weight)
    torch.testing.assert_close(linear.weight.grad, dy_of_dweight.T @ x_of_dweight)


def test_delayed_scaling_follows_the_amax_history():
    recipe, largest = Delayed(), torch.finfo(E4M3).max
    weight, seen = torch.ones(1, 1), []
    for k, size in enumerate([2.0, 8.0, 4.0, 0.5] + [0.25] * HISTORY):
        x = torch.tensor([[size, size / 3]])
        known = max(seen[-HISTORY:], default=0.0)
        scale = largest / known if known else 1.0
        expected = [[nearest_e4m3(v * scale) / scale for v in x[0].tolist()]]
        torch.testing.assert_close(recipe.operands(x, weight)[0], torch.tensor(expected))
        seen.append(size)
        assert recipe.history[0, : len(seen)].tolist() == seen[::-1][:HISTORY], k
    clipped = Delayed()
    clipped.operands(torch.tensor([[1.0]]), weight)
    came = [clipped.operands(torch.tensor([[3.0]]), weight)[0].item() for _ in range(2)]
    assert came == pytest.approx([1.0, 3.0])  # the first is beyond what the history knows
    before = clipped.history.clone()
    clipped.eval().operands(torch.tensor([[9.0]]), weight)
    assert torch.equal(clipped.history, before)  # only training is history


@pytest.mark.parametrize("recipe", RECIPES)
def test_grouped_equals_linear_by_linear(recipe):
    weight, rows = normal(3, 24, 40), normal(20, 40, seed=1)
    ends = torch.tensor([7, 7, 20], dtype=torch.int32)  # the second expert has nothing to do
    grouped = Fp8Grouped(weight, recipe)
    for _ in range(2):
        y = grouped(rows, weight, ends)
    for e, part in enumerate((slice(0, 7), slice(7, 7), slice(7, 20))):
        alone = RECIPES[recipe]()
        for _ in range(2):
            x, w, *_ = alone.operands(rows[part], weight[e])
        torch.testing.assert_close(y[part], x @ w.T)
    error = (y - grouped_linear(rows, weight, ends)).norm() / y.norm()
    assert 1e-3 < error < 0.05  # each operand is off by at most 2^-4, by about 2^-5.5 in the mean square


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_is_near_the_reference_and_keeps_parameters_and_names(recipe):
    model, x = make()
    layout, before = Layout.causal(9), dict(model.named_parameters())
    with torch.no_grad():
        exact = model(x, layout)
        assert use_precision(model, "fp8-sim", recipe).name == "fp8-sim"
        model(x, layout)
        model_state, histories = model.state_dict(), scaling_state(model)
        rounded_states = model.eval()(x, layout)
        one = model(x[:1, :1], layout[:1])  # a single token is rounded too
        assert (one - exact[:1, :1]).abs().max() > 1e-3
        after = dict(model.named_parameters())
        assert before.keys() == after.keys() == dict(Backbone(CONFIG).named_parameters()).keys()
        assert all(before[name] is after[name] for name in before)
        assert model_state.keys() == Backbone(CONFIG).state_dict().keys()
        assert len(histories) == (2 * 2 + 2 + 2 + 2 * 4 if recipe == "delayed" else 0)
        use_precision(model, "torch")
        assert torch.equal(model(x, layout), exact)
        assert not scaling_state(model)
    error = (rounded_states - exact).norm() / exact.norm()
    assert 1e-3 < error < 0.2  # a router that chooses another expert counts in full


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_in_fp8_learns(recipe):
    model, x = make()
    use_precision(model, "fp8-sim", recipe)
    optimizer, target = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.tanh(x.flip(2))
    losses = []
    for _ in range(30):
        loss = F.mse_loss(model(x, Layout.causal(9)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_auto_takes_bf16_only_where_instructions_multiply_it(tmp_path, monkeypatch):
    flags, cpu = tmp_path / "cpuinfo", torch.device("cpu")
    monkeypatch.setattr(precision, "CPU_FLAGS", flags)
    assert compute_dtype("auto", cpu).name == "fp32"
    flags.write_text("flags : avx512f avx512_vnni\n")
    assert compute_dtype("auto", cpu).name == "fp32"
    for unit in ("avx512_bf16", "amx_bf16"):
        flags.write_text(f"flags : avx512f {unit} amx_tile\n")
        taken = compute_dtype("auto", cpu)
        assert taken.name == "bf16"
        assert unit in taken.why
    assert compute_dtype("bf16", cpu).name == "bf16"


def test_unknown_names_are_said():
    model, _ = make()
    with pytest.raises(InputError, match="Did you mean fp8-sim"):
        use_precision(model, "fp8sim")
    with pytest.raises(InputError, match="fp8 recipe: came blok, expected one of current, delayed, block"):
        use_precision(model, "fp8-sim", "blok")


def test_attention_on_a_cpu_is_float32s_under_autocast_too():
    q, k, v = torch.randn(3, 2, 4, 9, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    bias = attention_bias(torch.ones(9, 9).tril().bool(), torch.float32)
    wanted = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=bias)
    with torch.autocast("cpu", torch.bfloat16):
        got, causal = attend(q, k, v, bias), attend(q, k, v, is_causal=True)
    assert got.dtype == torch.float32
    assert torch.equal(got, wanted)
    assert torch.allclose(causal, wanted, atol=1e-6)
