"""Layers computed again for their gradients: nothing changes but memory."""

from dataclasses import replace

import pytest
import torch
from small_clips import SMALL, clip_of, collated

from policies.bench.plan_bench import kept_for_gradients
from vla.config import ModelConfig
from vla.model import DrivingModel
from vla.recompute import recompute_layers

DROPPING = replace(SMALL, expert_dropout=0.3, camera_identity_dropout=0.5)


def tokens_of(config: ModelConfig, clips: int) -> torch.Tensor:
    generator, shape = torch.Generator().manual_seed(1), (clips, config.plan_steps)
    pairs = [torch.randint(slot.start, slot.stop, shape, generator=generator) for slot in config.action_slots]
    return torch.stack(pairs, dim=-1).flatten(1)


def one_of(config: ModelConfig, recompute: bool) -> DrivingModel:
    model = DrivingModel(config).train()
    if recompute:
        recompute_layers(model)
    return model


def loss_of(model: DrivingModel, generator: torch.Generator | None = None) -> torch.Tensor:
    batch = collated([clip_of(model.config, 0), clip_of(model.config, 1)], model.config)
    return model.loss(batch, tokens_of(model.config, 2), generator=generator)[0]


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_loss_gradients_and_what_is_counted_are_the_same_to_the_bit(bf16):
    plain, again = one_of(DROPPING, False), one_of(DROPPING, True)
    found = []
    for model in (plain, again):
        generator = torch.Generator().manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(model, generator)
        loss.backward(retain_graph=True)
        loss.backward()  # the same draws a third time
        gradients = {name: p.grad for name, p in model.named_parameters()}
        found.append((loss, gradients, model.rebalance(0.0), generator.get_state()))
    (loss, gradients, loads, state), (loss_again, gradients_again, loads_again, state_again) = found
    assert torch.equal(loss, loss_again)
    assert torch.equal(state, state_again)
    for name, gradient in gradients.items():
        other = gradients_again[name]
        assert (gradient is None and other is None) or torch.equal(gradient, other), name
    assert all(torch.equal(load, loads_again[layer]) for layer, load in loads.items())
    assert sum(float(load.sum()) for load in loads.values()) > 0


def test_less_is_kept():
    deep = replace(SMALL, layers=8)
    plain, again = (
        kept_for_gradients(model, lambda m=model: loss_of(m)) for model in (one_of(deep, False), one_of(deep, True))
    )
    assert again < 0.4 * plain


def test_without_gradients_nothing_is_different():
    plain, again = one_of(SMALL, False), one_of(SMALL, True)
    with torch.no_grad():
        assert torch.equal(loss_of(plain), loss_of(again))
