"""Attention around a ring of processes, held against attention in one."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spawned import in_workers
from torch import distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import context_parallel
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sensors.errors import InputError
from vla.attention import Horizon, Layout, attention_bias, visible
from vla.backbone import Backbone
from vla.config import BackboneConfig, ModelConfig
from vla.model import DrivingModel
from vla.parallel import Replicas
from vla.ring_attention import Ring, attend, attend_gradients, merged

CONFIG = BackboneConfig(
    width=32, layers=2, heads=4, kv_heads=2, head_dim=8, dense_hidden=48, experts=4, expert_hidden=16
)
HORIZON = Horizon(3, keyframe_every=2, keyframe_steps=5)


def driving_layout() -> Layout:
    """Of a clip with its plan and reason: scenes that last, tokens of now, action tokens one by one."""
    config = ModelConfig(steps=5, scene_tokens=3, plan_steps=3, instruction_tokens=4, reason_tokens=3)
    return DrivingModel(config).layout(reason=True)


LAYOUTS = {
    "causal": (Layout.causal(13), None),
    "driving": (driving_layout(), None),
    "horizon": (driving_layout(), HORIZON),
}


# Blocks -------------------------------------------------------------------------------------------

STEPS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.booleans()), min_size=2, max_size=24)


@given(tokens=STEPS, cut=st.integers(1, 23), horizon=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_blocks_give_what_all_keys_give_and_so_do_their_gradients(tokens, cut, horizon, seed):
    """Any layout, any order of tokens, any cut in two."""
    step, phase, lasting = zip(*tokens, strict=True)
    zero = torch.zeros(len(tokens), dtype=torch.int64)
    layout = Layout(torch.tensor(step), torch.tensor(phase), zero, torch.tensor(lasting))
    allowed = visible(layout, layout, HORIZON if horizon else None) | torch.eye(len(tokens), dtype=torch.bool)
    make = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 2, 3, len(tokens), 4, generator=make)
    k, v = (torch.randn(2, 2, len(tokens), 4, generator=make) for _ in range(2))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    bias = attention_bias(allowed, torch.float32)
    wanted = F.scaled_dot_product_attention(q.flatten(1, 2), k, v, attn_mask=bias, enable_gqa=True).view_as(q)
    d_out = torch.randn(q.shape, generator=make)
    gradients = torch.autograd.grad(wanted, (q, k, v), d_out)
    with torch.no_grad():
        blocks = [part for part in torch.arange(len(tokens)).split(cut) if len(part)]
        out, log_z = torch.zeros_like(q), q.new_full(q.shape[:-1], -torch.inf)
        for part in blocks:
            out, log_z = merged(out, log_z, *attend(q, k[:, :, part], v[:, :, part], allowed[:, part]))
        torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-6)
        dq = torch.zeros_like(q)
        for part in blocks:
            whole = allowed[:, part], out, log_z, d_out
            more, dk, dv = attend_gradients(q, k[:, :, part], v[:, :, part], *whole)
            dq += more
            torch.testing.assert_close(dk, gradients[1][:, :, part], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(dv, gradients[2][:, :, part], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dq, gradients[0], rtol=1e-4, atol=1e-5)


# Around -------------------------------------------------------------------------------------------


def inputs(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [2, tokens, D], and what its outputs are weighed with."""
    make = torch.Generator().manual_seed(3)
    return tuple(torch.randn(2, tokens, CONFIG.width, generator=make) for _ in range(2))


def backbone() -> Backbone:
    made = Backbone(CONFIG)
    make = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(1 + 0.1 * torch.randn(parameter.shape, generator=make))
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=make)
    return made


def learned(made: Backbone, hidden: torch.Tensor, x: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    (hidden * weights).sum().backward()
    return {"hidden": hidden.detach(), "x": x.grad} | {name: p.grad for name, p in made.named_parameters()}


def around(replicas: Replicas, _: Path, folder: Path) -> None:
    """One device; what it finds lies in a file afterwards."""
    rank = replicas.rank
    found = {}
    for name, (layout, horizon) in LAYOUTS.items():
        ring, made = Ring.of(layout, distributed.group.WORLD, horizon), backbone()
        x, weights = (ring.part(each) for each in inputs(len(layout)))
        x.requires_grad_()
        hidden = made.run(x, made.angles(ring.own), ring)
        found[name] = learned(made, hidden, x, weights) | {"places": ring.places[rank]}
        try:
            made.run(x[:, 1:], made.angles(ring.own[1:]), ring)
        except InputError as error:
            found["refused"] = str(error)
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module", params=[1, 3])
def devices(request, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp(f"ring-{request.param}")
    if request.param == 1:
        alone = Replicas.join(0, 1, folder / "meeting")
        around(alone, folder, folder)
        distributed.destroy_process_group()
    else:
        in_workers(request.param, around, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_backbone_around_a_ring_is_the_backbone_in_one_process(devices, name):
    layout, horizon = LAYOUTS[name]
    made = backbone()
    x, weights = inputs(len(layout))
    x.requires_grad_()
    wanted = learned(made, made(x, layout, horizon=horizon), x, weights)
    places = torch.cat([found[name]["places"] for found in devices])
    assert sorted(places.tolist()) == list(range(len(layout)))
    for key in ("hidden", "x"):
        came = torch.cat([found[name][key] for found in devices], dim=1)[:, places.argsort()]
        torch.testing.assert_close(came, wanted[key], rtol=1e-4, atol=1e-5)
    for key in set(wanted) - {"hidden", "x"}:
        came = sum(found[name][key] for found in devices)
        torch.testing.assert_close(came, wanted[key], rtol=1e-4, atol=1e-4)


def test_tokens_that_are_not_the_devices_are_refused(devices):
    assert all("ring attention: tokens: came" in found["refused"] for found in devices)


def test_each_device_has_as_much_to_look_back_at(monkeypatch):
    monkeypatch.setattr(distributed, "get_world_size", lambda group: 4)
    monkeypatch.setattr(distributed, "get_rank", lambda group: 1)
    ring = Ring.of(Layout.causal(64))
    pairs = [int(sum(part + 1)) for part in ring.places]
    assert max(pairs) - min(pairs) == 0
    assert ring.sources() == [1, 0, 3, 2]
    with pytest.raises(InputError, match="came 7, expected at least 8, two for each of 4 devices"):
        Ring.of(Layout.causal(7))


# On GPUs ------------------------------------------------------------------------------------------


def beside_torch(rank: int, meeting: str) -> None:
    """Causal attention of bf16 over two GPUs, by a ring and by torch, and what all keys give on one."""
    device, count = torch.device("cuda", rank), 2
    torch.cuda.set_device(device)
    distributed.init_process_group("nccl", init_method=f"file://{meeting}", rank=rank, world_size=count)
    make = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, 8, 512, 64, generator=make).to(device, torch.bfloat16) for _ in range(3))
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    ring = Ring.of(Layout.causal(512), distributed.group.WORLD)
    ours = ring(*(ring.part(x, dim=2) for x in (q, k, v)))
    places = torch.arange(512, device=device)
    with (
        context_parallel(init_device_mesh("cuda", (count,)), buffers=[q, k, v, places], buffer_seq_dims=[2, 2, 2, 0]),
        sdpa_kernel(SDPBackend.FLASH_ATTENTION),
    ):
        theirs, held = F.scaled_dot_product_attention(q, k, v, is_causal=True), places.clone()
    torch.testing.assert_close(ours, ring.part(wanted, dim=2), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(theirs, wanted[:, :, held], rtol=2e-2, atol=2e-2)
    distributed.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_on_gpus_a_ring_gives_what_torchs_context_parallel_gives(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    multiprocessing.spawn(beside_torch, (str(tmp_path / "meeting"),), 2)
