"""Routed experts against their slow dense twin, and the balancing of their load."""

import pytest
import torch
from torch.nn import functional as F

from sensors.errors import InputError
from vla.config import BackboneConfig
from vla.diagnostics import inspect_model
from vla.model import DrivingModel
from vla.moe import CollapseMonitor, MoE, Routing, balance_loss, grouped_linear, router_z_loss, routing_statistics


def make(experts=4, k=2, seed=0, **changes):
    moe = MoE(BackboneConfig(width=16, experts=experts, experts_per_token=k, expert_hidden=8, **changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return moe, torch.randn(3, 5, 16, generator=generator)


def twin(moe, x):
    """Every expert computed for every token, then weighed; those not chosen weigh nothing."""
    scores = moe.router(x).softmax(dim=-1) if moe.softmax else moe.router(x).sigmoid()
    chosen = (scores if moe.softmax else scores + moe.bias).argsort(dim=-1, descending=True)[..., : moe.k]
    weights = torch.zeros_like(scores).scatter(-1, chosen, scores.gather(-1, chosen))
    if moe.normalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    y = torch.zeros_like(x) if moe.shared is None else moe.shared(x)
    for e in range(moe.experts):
        gate, up = F.linear(x, moe.gate_up[e]).chunk(2, dim=-1)
        y = y + weights[..., e, None] * F.linear(F.silu(gate) * up, moe.down[e])
    return y


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(
    "changes", [{}, {"router": "softmax", "shared_experts": 0}, {"router": "softmax", "normalise_weights": False}]
)
def test_equals_dense_twin(k, changes):
    moe, x = make(k=k, **changes)
    moe.bias.copy_(torch.tensor([0.3, -0.2, 0.0, 0.1]))
    results = []
    for forward in (moe, lambda v: twin(moe, v)):
        moe.zero_grad()
        inputs = x.clone().requires_grad_()
        y = forward(inputs)
        y.square().mean().backward()
        results.append([y.detach(), inputs.grad] + [p.grad.clone() for p in moe.parameters()])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-5)


def test_products_follow_autocast():
    moe, x = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = grouped_linear(x.flatten(0, 1), moe.gate_up, torch.tensor([3, 6, 9, 15], dtype=torch.int32))
        y = moe(x)
    assert rows.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), twin(moe, x), atol=0.1, rtol=0.05)


def test_experts_without_tokens_are_harmless():
    moe, x = make()
    moe.bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0]))
    y = moe(x)
    torch.testing.assert_close(y, twin(moe, x), atol=1e-6, rtol=1e-5)
    y.square().mean().backward()
    assert (moe.gate_up.grad[2:] == 0).all()


def test_a_tokens_result_does_not_depend_on_its_neighbours():
    moe, x = make()
    torch.testing.assert_close(moe(x)[1:2, 2:3], moe(x[1:2, 2:3]), atol=1e-6, rtol=1e-5)


def routings_of(moe, x):
    routings = []
    moe(x, routings)
    return routings


def loads_of(moe, x):
    return {3: routings_of(moe, x)[0].load}


@pytest.mark.parametrize("router", ["sigmoid", "softmax"])
def test_every_way_of_inference_equals_the_dense_twin(router):
    moe, x = make(router=router)
    many = x.repeat(1, 40, 1)
    with torch.no_grad():
        ways = [moe._way(tokens.view(-1, 16)) for tokens in (x[:1, :1], x, many)]
        assert ways == [moe.one_token, moe.all_experts, moe.mixture]
        for tokens in (x, many):
            torch.testing.assert_close(moe(tokens), twin(moe, tokens), atol=1e-6, rtol=1e-5)
        for token in x.view(-1, 1, 1, 16):
            torch.testing.assert_close(moe(token), twin(moe, token), atol=1e-6, rtol=1e-5)


def test_losses_of_the_router_equal_their_definitions():
    moe, x = make(router="softmax")
    routings = routings_of(moe, x)
    logits = moe.router(x).flatten(0, 1)
    torch.testing.assert_close(router_z_loss(routings), logits.exp().sum(dim=-1).log().square().mean())
    probability, expected = logits.softmax(dim=-1), 0.0
    chosen = probability.topk(2).indices
    for e in range(4):
        share = (chosen == e).float().sum() / chosen.numel()
        expected = expected + 4 * share * probability[:, e].mean()
    torch.testing.assert_close(balance_loss(routings), expected)
    even = Routing(torch.zeros(8, 4), torch.arange(16).view(8, 2) % 4)
    assert balance_loss([even]).item() == pytest.approx(1.0)


def test_expert_dropout_drops_and_is_for_training_only():
    moe, x = make(expert_dropout=0.5)
    kept = []
    for seed in range(20):
        routings = []
        moe(x, routings, torch.Generator().manual_seed(seed))
        kept.append(len(routings[0].chosen.unique()))
    assert 2 == min(kept) < max(kept)
    moe.load.zero_()
    torch.testing.assert_close(moe.eval()(x), twin(moe, x), atol=1e-6, rtol=1e-5)
    with pytest.raises(InputError, match="generator"):
        moe.train()(x)


def test_statistics_per_modality():
    logits = torch.tensor([[9.0, 0, 0, 0]] * 4 + [[1.0, 1, 1, 1]] * 4)
    chosen = torch.tensor([[0]] * 4 + [[0], [1], [2], [3]])
    figures = routing_statistics(
        [Routing(logits, chosen)], torch.tensor([0] * 4 + [1] * 4), ("scene", "action", "text")
    )
    assert figures["router.0.scene.load"] == 4
    assert figures["router.0.scene.entropy"] == pytest.approx(0, abs=1e-6)
    assert figures["router.0.action.load"] == 1
    assert figures["router.0.action.entropy"] == pytest.approx(1)
    assert figures["router.0.action.confidence"] == pytest.approx(0.25)
    assert not any("text" in name for name in figures)


def test_figures_of_a_model_by_what_tokens_speak_of(small, make_batch, make_tokens):
    seen = inspect_model(DrivingModel(small).eval(), make_batch(small, 0, 1), make_tokens(small, 2))
    figures = seen.routing
    layers, modalities = {name.split(".")[1] for name in figures}, {name.split(".")[2] for name in figures}
    assert layers == {"0", "1"}  # of three layers the first is dense
    assert modalities == set(seen.names)
    assert all(1 <= value <= small.experts for name, value in figures.items() if name.endswith("load"))
    assert all(0 <= value <= 1.0001 for name, value in figures.items() if not name.endswith("load"))


@pytest.mark.parametrize("router", ["sigmoid", "softmax"])
def test_monitor_finds_an_injected_collapse_within_20_steps_and_no_false_one(router):
    moe, _ = make(experts=8, router=router)
    config = BackboneConfig(experts=8, router=router)
    generator, monitor = torch.Generator().manual_seed(0), CollapseMonitor(config)
    for _ in range(40):
        assert monitor.step(loads_of(moe, torch.randn(1, 64, 16, generator=generator))) == {}
    with torch.no_grad():  # whatever comes, two experts answer
        moe.router.weight.mul_(0.01)
        moe.router.weight[:2, 0] += 100.0
    for step in range(1, 21):  # noqa: B007
        x = torch.randn(1, 64, 16, generator=generator)
        x[..., 0] = 1.0
        if monitor.step(loads_of(moe, x)):
            break
    assert 1 < step <= 20
    assert monitor.step(loads_of(moe, x))[3] == pytest.approx(1, abs=0.05)
    with pytest.raises(InputError, match=r"run: router of backbone layer 3: came \d+% .* experts \[.*expert_dropout"):
        monitor.require_spread(loads_of(moe, x), "run")


def test_rebalance_evens_a_collapsed_router():
    """All tokens prefer expert 0 (an injected collapse); a few dozen steps of bias must spread them."""
    moe, _ = make()
    x = torch.randn(1, 256, 16, generator=torch.Generator().manual_seed(1)).abs()
    with torch.no_grad():
        moe.router.weight[0] = 0.5
        share = []
        for _ in range(200):
            moe(x)
            share.append((moe.load.max() / moe.load.sum()).item())
            moe.rebalance(0.01)
    assert share[0] == 0.5  # two experts per token: no expert can have more
    assert share[-1] < 0.3
    assert moe.load.sum() == 0


def test_evaluation_counts_no_load():
    moe, x = make()
    moe.eval()(x)
    assert moe.load.sum() == 0
