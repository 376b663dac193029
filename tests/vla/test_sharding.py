"""A model divided over workers against the same model in one, and its checkpoints in shards."""

import json

import pytest
import torch
from small_clips import SMALL, clip_of, collated
from spawned import in_workers

from sensors.errors import InputError
from vla.manifest import MANIFEST
from vla.model import DrivingModel
from vla.parallel import Replicas
from vla.recompute import recompute_layers
from vla.sharded_checkpoint import ShardWriter, newest, read_shards, require_mesh
from vla.sharding import Division, Shards

DIVISIONS = (Division(shard=True), Division(experts=2), Division(shard=True, experts=2))


def tokens_of(seed: int) -> torch.Tensor:
    generator, shape = torch.Generator().manual_seed(seed), (1, SMALL.plan_steps)
    pairs = [torch.randint(slot.start, slot.stop, shape, generator=generator) for slot in SMALL.action_slots]
    return torch.stack(pairs, dim=-1).flatten(1)


def backward(model: DrivingModel, seeds: range) -> float:
    """The mean loss of some clips, each on its own, and its gradient."""
    total = 0.0
    for seed in seeds:
        loss = model.loss(collated([clip_of(SMALL, seed)], SMALL), tokens_of(seed))[0] / len(seeds)
        loss.backward()
        total += loss.item()
    return total


def divided_equals_whole(replicas, folder, divisions, recompute=False):
    whole = DrivingModel(SMALL).train()
    loss, clips = backward(whole, range(2 * replicas.count)), 2
    expected = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    norms = replicas.norms(expected)
    for division in divisions:
        shards, model = Shards.of(replicas, division, "cpu"), DrivingModel(SMALL).train()
        if recompute:
            recompute_layers(model)
        shards.divide(model)
        parameters = dict(model.named_parameters())
        own = shards.own(parameters)
        held = sum(p.numel() for p in own.values()) / sum(p.numel() for p in whole.parameters())
        assert held < 1.1 / replicas.count or not division.shard
        mine = torch.tensor([backward(model, range(clips * replicas.rank, clips * (replicas.rank + 1)))])
        shards.average([mine])
        assert mine.item() == pytest.approx(loss, rel=1e-6), (division, mine, loss)
        shards.settle(parameters, own)
        gradients = {name: p.grad for name, p in own.items() if p.grad is not None}
        assert gradients.keys() == expected.keys()
        for name, norm in shards.norms(gradients).items():
            assert norm.item() == pytest.approx(norms[name].item(), rel=1e-4, abs=1e-8), (division, name)
        gathered = shards.gather({name: shards.as_whole(name, g) for name, g in gradients.items()})
        for name, gradient in gathered.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7, msg=f"{division} {name}")
        whole_again(shards, model, folder / f"{division}")


def whole_again(shards, model, folder):
    """What is written in shards is what was there when it was asked for, and is read by who holds other parts."""
    writer, before = ShardWriter(folder, shards), shards.gather(model.state_dict())
    manifest = {"config": SMALL.to_dict(), "mesh": shards.arrangement, "state": {"step": 1}}
    one = torch.tensor(1.5)
    writer.write(1, {**model.state_dict(), "one": one}, manifest)
    with torch.no_grad():
        for parameter in (one, *shards.own(dict(model.named_parameters())).values()):
            parameter.fill_(7.0)
    writer.finish()
    shards.average([torch.zeros(1)])
    path = newest(folder)
    read_shards(path, model.state_dict(), shards)
    again = shards.gather(model.state_dict())
    assert all(torch.equal(again[name], before[name]) for name in before)
    if shards.rank == 0:
        alone, held = DrivingModel(SMALL, seed=1), torch.zeros(1)
        read_shards(path, {**alone.state_dict(), "one": held}, Replicas())
        assert all(torch.equal(tensor, before[name]) for name, tensor in alone.state_dict().items())
        assert held.item() == 1.5
        refuses_what_was_changed(path, alone)
    shards.average([torch.zeros(1)])
    whole = {name: torch.full(t.shape, 3.0) for name, t in model.state_dict().items()}
    shards.fill(model.state_dict(), whole)
    assert all(torch.equal(t, whole[name]) for name, t in shards.gather(model.state_dict()).items())


def refuses_what_was_changed(path, alone):
    with pytest.raises(InputError, match=r"another: came \[?nothing|another.*nothing"):
        read_shards(path, {"another": torch.zeros(2)}, Replicas())
    file = sorted(path.glob("*.safetensors"))[1]
    blob = file.read_bytes()
    for changed, message in ((blob[:-8], "size: came"), (blob[:-1] + bytes([blob[-1] ^ 1]), "sha256: came")):
        file.write_bytes(changed)
        with pytest.raises(InputError, match=rf"{file.name}: {message}"):
            read_shards(path, alone.state_dict(), Replicas())
    file.write_bytes(blob)
    manifest = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(manifest.replace('"step": 1', '"step": 2'))
    with pytest.raises(InputError, match="sha256"):
        read_shards(path, alone.state_dict(), Replicas())
    (path / MANIFEST).write_text(manifest)
    assert json.loads(manifest)["mesh"]["workers"] == 2 or len(list(path.glob("*.safetensors"))) == 4


@pytest.mark.timeout(120)
def test_two_workers_hold_one_model():
    in_workers(2, divided_equals_whole, DIVISIONS)


@pytest.mark.timeout(120)
def test_two_workers_hold_one_model_whose_layers_are_computed_again():
    in_workers(2, divided_equals_whole, DIVISIONS[2:], True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_four_workers_hold_one_model():
    in_workers(4, divided_equals_whole, DIVISIONS)


@pytest.mark.parametrize(
    ("division", "workers", "message"),
    [
        (Division(experts=3), 4, "--experts-over: came 3, expected a number that divides 4 workers"),
        (Division(experts=8), 8, "--experts-over: came 8, expected a number that divides 4, the experts of a layer"),
        (Division(shard=True), 1, "--workers: came 1, expected at least 2"),
        (Division(shard=True, experts=2), 10, "expected multiples of 5, the workers that share an expert"),
    ],
)
def test_workers_that_cannot_divide_a_model_are_refused(division, workers, message):
    with pytest.raises(InputError, match=message):
        division.require_fits(SMALL, workers)


def test_shards_of_another_arrangement_are_refused(tmp_path):
    ours, theirs = ({"workers": n, "shard": True, "experts_over": 1} for n in (2, 4))
    require_mesh(tmp_path, ours, ours)
    with pytest.raises(InputError, match=r"mesh: came workers 4, .* expected workers 2, .*--reshard"):
        require_mesh(tmp_path, theirs, ours)
