"""Routed experts against their slow dense twin, and the balancing of their load."""

import pytest
import torch
from torch.nn import functional as F

from vla.moe import MoE


def make(experts=4, k=2, seed=0):
    moe = MoE(width=16, experts=experts, experts_per_token=k, hidden=8, shared=1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return moe, torch.randn(3, 5, 16, generator=generator)


def twin(moe, x):
    """Every expert computed for every token, then weighed; those not chosen weigh nothing."""
    scores = moe.router(x).sigmoid()
    chosen = (scores + moe.bias).argsort(dim=-1, descending=True)[..., : moe.k]
    weights = torch.zeros_like(scores).scatter(-1, chosen, scores.gather(-1, chosen))
    weights = weights / weights.sum(dim=-1, keepdim=True)
    y = moe.shared(x)
    for e in range(moe.experts):
        gate, up = F.linear(x, moe.gate_up[e]).chunk(2, dim=-1)
        y = y + weights[..., e, None] * F.linear(F.silu(gate) * up, moe.down[e])
    return y


@pytest.mark.parametrize("k", [1, 2, 4])
def test_equals_dense_twin(k):
    moe, x = make(k=k)
    moe.bias.copy_(torch.tensor([0.3, -0.2, 0.0, 0.1]))
    results = []
    for forward in (lambda v: moe(v)[0], lambda v: twin(moe, v)):
        moe.zero_grad()
        inputs = x.clone().requires_grad_()
        y = forward(inputs)
        y.square().mean().backward()
        results.append([y.detach(), inputs.grad] + [p.grad.clone() for p in moe.parameters()])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-5)


def test_experts_without_tokens_are_harmless():
    moe, x = make()
    moe.bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0]))
    y, _ = moe(x)
    torch.testing.assert_close(y, twin(moe, x), atol=1e-6, rtol=1e-5)
    y.square().mean().backward()
    assert (moe.gate_up.grad[2:] == 0).all()


def test_a_tokens_result_does_not_depend_on_its_neighbours():
    moe, x = make()
    torch.testing.assert_close(moe(x)[0][1:2, 2:3], moe(x[1:2, 2:3])[0], atol=1e-6, rtol=1e-5)


def test_z_loss_is_the_squared_log_partition():
    moe, x = make()
    expected = moe.router(x).exp().sum(dim=-1).log().square().mean()
    torch.testing.assert_close(moe(x)[1], expected)


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
