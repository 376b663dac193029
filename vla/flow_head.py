"""A trajectory as a flow: noise carried to controls by a learned velocity, beside the action tokens.

    x_t = (1 - t) x_0 + t x_1,  x_0 ~ N(0, 1), x_1 the controls        (Lipman et al. 2023, eq. 22 with sigma_min = 0)
    loss = |v(x_t, t, c) - (x_1 - x_0)|^2
    sample:  x += v(x, t, c) / n  for t = 0, 1/n ... (n - 1)/n

A plug-in: the backbone's hidden state c is taken as it is and gets no gradient from here (unless asked), so the head
can be added to a trained model without disturbing what it knows.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensors.errors import InputError


class FlowHead(nn.Module):
    """Controls x [B, K, C] (K intervals, C numbers each, scaled to about one) given hidden states c [B, D]."""

    def __init__(self, width: int, intervals: int, controls: int = 2, hidden: int = 256, stop_gradient: bool = True):
        super().__init__()
        self.shape, self.stop_gradient = (intervals, controls), stop_gradient
        size = intervals * controls
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.condition, self.state = nn.Linear(width, hidden), nn.Linear(size + 1, hidden)
        self.middle, self.out = nn.Linear(hidden, hidden), nn.Linear(hidden, size)

    def velocity(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """v [B, K, C] at x [B, K, C] and t [B]."""
        h = F.silu(self.state(torch.cat([x.flatten(1), t[:, None]], dim=1)) + self.condition(self.norm(c)))
        return self.out(h + F.silu(self.middle(h))).view(-1, *self.shape)

    def loss(self, c: Tensor, controls: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, named scalars); `generator` draws noise and times."""
        if tuple(controls.shape) != (len(c), *self.shape):
            raise InputError("flow head", "controls", tuple(controls.shape), (len(c), *self.shape))
        c = c.detach() if self.stop_gradient else c
        noise = torch.randn(controls.shape, generator=generator).to(controls)
        t = torch.rand(len(c), generator=generator).to(controls)
        x = torch.lerp(noise, controls, t[:, None, None])
        loss = F.mse_loss(self.velocity(x, t, c), controls - noise)
        return loss, {"loss_flow": loss.detach()}

    @torch.no_grad()
    def sample(self, c: Tensor, generator: torch.Generator, steps: int = 10) -> Tensor:
        """Controls [B, K, C], by `steps` Euler steps from noise."""
        x = torch.randn(len(c), *self.shape, generator=generator).to(c)
        for k in range(steps):
            x = x + self.velocity(x, torch.full_like(c[:, 0], k / steps), c) / steps
        return x
