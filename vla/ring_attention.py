"""Attention over sequences that no single device holds: blockwise, around a ring (Liu et al. 2023, Ring Attention).

Each of P devices has some tokens of every sequence: their queries stay, keys and values go round, and each device meets
every other's once. What it has seen so far is merged by the logarithms Z of its softmax's sums,

    out = (e^Z out + e^Z' out') / (e^Z + e^Z')

and the gradients of keys and values go round with them, back to whose they are. Who sees whom is what
`vla.attention.visible` says of the tokens' layouts: steps, phases, what lasts, horizons. That is why torch's own
`context_parallel` does not do: it knows causal and full attention only, and kernels of GPUs only (of torch 2.13; on a
CPU it has no sharding for scaled_dot_product_attention). Where both can, on several GPUs, a test holds them against
each other. Blocks in which nobody sees anybody are passed on and not computed.

    ring = Ring.of(layout, group)
    hidden = backbone.run(ring.part(x), backbone.angles(ring.own), ring)     of this device's tokens

All else in a backbone treats tokens one by one. Gradients of weights are those of this device's tokens: sum them over
the ring.

Letters: B batch, h query heads, g key heads (r of the former share one of the latter), L this device's tokens, M those
of the device whose keys are met, d head size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from sensors.errors import InputError
from vla.attention import Horizon, Layout, visible


@dataclass(frozen=True)
class Ring:
    """Devices around a sequence; to be given to `SelfAttention` in the place of a bias.

    rank, group    this device, and all of them (None: torch's default group)
    places         int64 [L] for each device: its tokens' places in the whole sequence
    layouts        of each device's tokens
    """

    rank: int
    group: distributed.ProcessGroup | None
    places: tuple[Tensor, ...]
    layouts: tuple[Layout, ...]
    horizon: Horizon | None = None

    @classmethod
    def of(
        cls, layout: Layout, group: distributed.ProcessGroup | None = None, horizon: Horizon | None = None
    ) -> "Ring":
        """The devices of a process group around a sequence of this layout. Each takes one piece from its beginning and
        one from its end, so that all have about as much to look back at."""
        rank, count = distributed.get_rank(group), distributed.get_world_size(group)
        if len(layout) < 2 * count:
            expected = f"at least {2 * count}, two for each of {count} devices"
            raise InputError("ring attention", "tokens", len(layout), expected, "Use fewer devices.")
        pieces = torch.arange(len(layout)).tensor_split(2 * count)
        places = tuple(torch.cat([pieces[k], pieces[2 * count - 1 - k]]) for k in range(count))
        return cls(rank, group, places, tuple(layout[part] for part in places), horizon)

    @property
    def own(self) -> Layout:
        """Of this device's tokens."""
        return self.layouts[self.rank]

    def part(self, x: Tensor, dim: int = 1) -> Tensor:
        """This device's tokens of a whole sequence."""
        return x.index_select(dim, self.places[self.rank].to(x.device))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, h, L, d], what this device's queries [B, h, L, d] find in all keys and values, of which k and v
        [B, g, L, d] are this device's."""
        if q.shape[2] != len(self.own) or k.shape[2] != len(self.own):
            came = f"{q.shape[2]} queries, {k.shape[2]} keys"
            fix = "A sequence over devices has no cache, and all of its tokens ask."
            raise InputError("ring attention", "tokens", came, f"{len(self.own)}, those of device {self.rank}", fix)
        with torch.autocast(q.device.type, enabled=False):  # sums are merged in full precision
            return _Around.apply(q, k, v, self)

    def allowed(self, source: int, device: torch.device) -> Tensor | None:
        """bool [L, M]: which tokens of the device `source` this one's see; None if none sees any."""
        found = visible(self.own, self.layouts[source], self.horizon)
        return found.to(device) if found.any() else None

    def sources(self) -> list[int]:
        """Whose keys are here, turn by turn: at first this device's own."""
        count = len(self.places)
        return [(self.rank - turn) % count for turn in range(count)]


class _Around(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, ring: Ring) -> Tensor:
        queries = _grouped(q, k.shape[1])
        out, log_z = torch.zeros_like(queries), queries.new_full(queries.shape[:-1], -torch.inf)
        held = torch.stack([k, v])
        for turn, source in enumerate(sources := ring.sources()):
            coming = _Passing(held, ring, sources[turn + 1]) if turn + 1 < len(sources) else None
            allowed = ring.allowed(source, q.device)
            if allowed is not None:
                out, log_z = merged(out, log_z, *attend(queries, held[0].float(), held[1].float(), allowed))
            held = coming.arrived() if coming is not None else held
        ctx.ring = ring
        ctx.save_for_backward(q, k, v, out, log_z)
        return out.flatten(1, 2).to(q.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, log_z = ctx.saved_tensors
        ring: Ring = ctx.ring
        queries, d_out = _grouped(q, k.shape[1]), _grouped(gradient, k.shape[1])
        dq, held, d_held = torch.zeros_like(queries), torch.stack([k, v]), torch.zeros((2, *k.shape), device=q.device)
        for turn, source in enumerate(sources := ring.sources()):
            coming = _Passing(held, ring, sources[turn + 1]) if turn + 1 < len(sources) else None
            allowed = ring.allowed(source, q.device)
            if allowed is not None:
                parts = queries, held[0].float(), held[1].float(), allowed, out, log_z, d_out
                more_dq, dk, dv = attend_gradients(*parts)
                dq += more_dq
                d_held += torch.stack([dk, dv])
            if len(sources) > 1:  # what was added here belongs to `source`, and travels on towards it
                d_held = _Passing(d_held, ring, sources[(turn + 1) % len(sources)]).arrived()
            held = coming.arrived() if coming is not None else held
        dk, dv = d_held
        return dq.flatten(1, 2).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None


class _Passing:
    """A tensor [..., L, d] on its way to the next device, while that of the one before comes, whose tokens are those of
    the device `source`."""

    def __init__(self, x: Tensor, ring: Ring, source: int):
        count = len(ring.places)
        after, before = (ring.rank + 1) % count, (ring.rank - 1) % count
        if ring.group is not None:
            after, before = (distributed.get_global_rank(ring.group, peer) for peer in (after, before))
        self._sent = x.contiguous()
        self._came = x.new_empty(*x.shape[:-2], len(ring.places[source]), x.shape[-1])
        operations = [
            distributed.P2POp(distributed.isend, self._sent, after, ring.group),
            distributed.P2POp(distributed.irecv, self._came, before, ring.group),
        ]
        self._under_way = distributed.batch_isend_irecv(operations)

    def arrived(self) -> Tensor:
        """What came; waits for it."""
        for work in self._under_way:
            work.wait()
        return self._came


# One block ----------------------------------------------------------------------------------------


def _grouped(x: Tensor, groups: int) -> Tensor:
    """[B, h, L, d] to float32 [B, g, r, L, d]: the queries that share a key head, beside each other."""
    return x.float().unflatten(1, (groups, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """(what queries [B, g, r, L, d] find in k, v [B, g, M, d], log of their softmax's sum [B, g, r, L]); 0 and -inf for
    those that see none of them."""
    scores = _scores(q, k, allowed)
    log_z = scores.logsumexp(dim=-1)
    return torch.einsum("bgrlm,bgmd->bgrld", _shares(scores, log_z), v), log_z


def merged(out: Tensor, log_z: Tensor, more: Tensor, more_log_z: Tensor) -> tuple[Tensor, Tensor]:
    """What two blocks of keys give together; see the module."""
    both = torch.logaddexp(log_z, more_log_z)
    return _shares(log_z[..., None], both) * out + _shares(more_log_z[..., None], both) * more, both


def attend_gradients(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, out: Tensor, log_z: Tensor, d_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one block's q, k, v, given out and log Z over all blocks and the gradient of out:

    p = e^(s - Z)   dv = p^T d_out   ds = p (d_out v^T - sum d_out out) / sqrt(d)   dq = ds k   dk = ds^T q
    """
    shares = _shares(_scores(q, k, allowed), log_z)
    dv = torch.einsum("bgrlm,bgrld->bgmd", shares, d_out)
    slope = torch.einsum("bgrld,bgmd->bgrlm", d_out, v) - (d_out * out).sum(dim=-1, keepdim=True)
    slope = slope * shares * q.shape[-1] ** -0.5
    return torch.einsum("bgrlm,bgmd->bgrld", slope, k), torch.einsum("bgrlm,bgrld->bgmd", slope, q), dv


def _scores(q: Tensor, k: Tensor, allowed: Tensor) -> Tensor:
    scores = torch.einsum("bgrld,bgmd->bgrlm", q, k) * q.shape[-1] ** -0.5
    return scores.masked_fill(~allowed, -torch.inf)


def _shares(scores: Tensor, log_z: Tensor) -> Tensor:
    """e^(scores - log Z) [..., M]; 0 where nothing was seen, so both are -inf."""
    return (scores - log_z.nan_to_num(neginf=0.0)[..., None]).exp()
