"""The flow head: exact where the velocity is known, silent towards the backbone, able to learn."""

import pytest
import torch

from sensors.errors import InputError
from vla.flow_head import FlowHead


def test_sampling_follows_the_velocity_exactly(monkeypatch):
    head, goal = FlowHead(8, 4), torch.arange(8.0).view(1, 4, 2)
    # All of the data in one point: the velocity (x_1 - x) / (1 - t) leads straight there, whatever the step.
    monkeypatch.setattr(head, "velocity", lambda x, t, c: (goal - x) / (1 - t[:, None, None]))
    for steps in (1, 7):
        sampled = head.sample(torch.zeros(3, 8), torch.Generator().manual_seed(0), steps)
        torch.testing.assert_close(sampled, goal.expand(3, -1, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("stop", [True, False])
def test_gradient_stops_where_asked(stop):
    head, c = FlowHead(8, 4, stop_gradient=stop), torch.randn(3, 8, requires_grad=True)
    loss, scalars = head.loss(c, torch.randn(3, 4, 2), torch.Generator().manual_seed(0))
    loss.backward()
    assert (c.grad is None) == stop
    assert all(parameter.grad.abs().max() > 0 for parameter in head.parameters())
    assert scalars["loss_flow"] == loss


def test_learns_controls_that_depend_on_the_condition():
    torch.manual_seed(0)
    head, generator = FlowHead(4, 3, hidden=64), torch.Generator().manual_seed(0)
    c = torch.eye(4)[:2].repeat(32, 1)
    controls = torch.where(c[:, :1, None] > 0, 1.0, -1.0).expand(-1, 3, 2)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for _ in range(200):
        loss, _ = head.loss(c, controls, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sampled = head.sample(c, generator)
    assert (sampled - controls).abs().mean() < 0.3


def test_controls_of_another_shape_are_rejected():
    with pytest.raises(InputError, match="controls"):
        FlowHead(8, 4).loss(torch.zeros(2, 8), torch.zeros(2, 5, 2), torch.Generator())
