"""Experts on different workers against one worker that holds all of them."""

import copy

import pytest
import torch
from spawned import in_workers
from torch import distributed, nn

from vla.config import BackboneConfig
from vla.expert_parallel import Exchange
from vla.moe import MoE

WORKERS, EXPERTS, TOKENS = 2, 4, 6
LOADS = {  # added to the router's preference of each expert
    "as it comes": (0.0, 0.0, 0.0, 0.0),
    "an expert without a token": (0.0, -1e3, 0.0, 0.0),
    "a worker without a token": (0.0, 0.0, -1e3, -1e3),
    "all to the same two": (-1e3, 1e3, -1e3, 1e3),
}


def made() -> MoE:
    moe = MoE(BackboneConfig(width=16, experts=EXPERTS, experts_per_token=2, expert_hidden=8)).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return moe


class Counting(Exchange):
    """Keeps what it sent and how many rows came."""

    def __call__(self, moe, rows, counts):
        self.sent, by_expert = counts.clone(), moe.by_expert
        moe.by_expert = lambda rows, counts, *weights: self.take(by_expert, rows, counts, *weights)
        return super().__call__(moe, rows, counts)

    def take(self, by_expert, rows, counts, *weights):
        self.came = counts.clone()
        assert len(rows) == counts.sum()
        return by_expert(rows, counts, *weights)


def divided_equals_whole(replicas, folder):
    size = EXPERTS // WORKERS
    mine = slice(replicas.rank * size, (replicas.rank + 1) * size)
    for name, bias in LOADS.items():
        whole = made()
        whole.bias.copy_(torch.tensor(bias))
        part = copy.deepcopy(whole)
        for weight in ("gate_up", "down"):
            setattr(part, weight, nn.Parameter(getattr(part, weight)[mine].detach().clone()))
        part.exchange = Counting(distributed.group.WORLD)
        x = torch.randn(WORKERS, TOKENS, 16, generator=torch.Generator().manual_seed(1))
        all_of_it, own = x.clone().requires_grad_(), x[replicas.rank : replicas.rank + 1].clone().requires_grad_()
        y = whole(all_of_it)
        y.square().sum().backward()
        y_own = part(own)
        y_own.square().sum().backward()
        rank = slice(replicas.rank, replicas.rank + 1)
        torch.testing.assert_close(y_own, y[rank], msg=name)
        torch.testing.assert_close(own.grad, all_of_it.grad[rank], msg=name)
        for weight in ("gate_up", "down"):  # a worker's experts learn from the tokens of all
            torch.testing.assert_close(getattr(part, weight).grad, getattr(whole, weight).grad[mine], msg=name)
        came = torch.zeros(EXPERTS, dtype=torch.int64)
        came[mine] = part.exchange.came
        sent = part.exchange.sent
        assert sent.sum() == 2 * TOKENS
        for counts in (came, sent):
            distributed.all_reduce(counts)
        assert torch.equal(came, sent), name
        assert torch.equal(sent, whole.load.long()), name


@pytest.mark.timeout(120)
def test_tokens_travel_to_their_experts_and_back_under_any_load():
    in_workers(WORKERS, divided_equals_whole)
