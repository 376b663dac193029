"""What a training would cost, said before it begins."""

import pytest
import torch
from test_train import SMALL, small_recipe
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from policies.cli import main
from policies.dry_run import activations, arithmetic, dry_run
from policies.noise import noise_clip
from policies.recipes import load_recipe
from policies.transforms import to_batch
from vla.auxiliary import AuxiliaryLosses, LossConfig
from vla.model import DrivingModel


def kept_for_gradients(model: torch.nn.Module, loss_of) -> int:
    """Bytes that torch keeps for the gradients of a loss, beside the model's own parameters; every storage once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of()  # alive until all is counted, so that no storage is counted as another
    del loss
    return sum(kept.values())


@pytest.mark.parametrize("more", [[], ["model.steps=4", "model.layers=6", "model.encoder_width=64"]])
def test_activations_are_counted_as_torch_keeps_them(more):
    recipe = load_recipe("tiny", ["data.dataroot=none", *more])
    c = recipe.model
    model = DrivingModel(c).train()
    batch = to_batch([noise_clip(c, 0)], c)
    tokens = torch.tensor([slot.start for slot in c.action_slots]).repeat(1, c.action_tokens // 2)
    told = torch.full((1, c.reason_places), model.text.start)
    generator = torch.Generator().manual_seed(0)
    kept = kept_for_gradients(model, lambda: model.loss(batch, tokens, told, generator=generator)[0])
    assert 4 * activations(recipe) == pytest.approx(kept, rel=0.15)


@pytest.mark.parametrize("reach", ["past", "step"])
def test_arithmetic_is_counted_as_torch_does_it(reach):
    dense = ["model.dense_layers=4", f"model.fusion_reach={reach}", "model.steps=2", "data.dataroot=none"]
    recipe = load_recipe("tiny", dense)  # torch does not count the products of experts
    c, model = recipe.model, DrivingModel(recipe.model)
    batch = to_batch([noise_clip(c, 0)], c)
    tokens = torch.tensor([slot.start for slot in c.action_slots]).repeat(1, c.action_tokens // 2)
    told = torch.full((1, c.reason_places), model.text.start)
    heads, generator = AuxiliaryLosses(LossConfig(head_z=1.0), c, None), torch.Generator()  # it reads all places
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # of others it counts no attention
        model.loss(batch, tokens, told, generator=generator, auxiliary=heads)[0].backward()
    assert arithmetic(c, model) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_what_is_frozen_needs_no_moments():
    cost = dry_run(load_recipe("moe-10b", ["train.freeze=[backbone.,head.]"]))
    assert 0 < cost.learn < 0.2 * sum(cost.parts.values())
    assert cost.memory["optimizer"] == 2 * cost.memory["gradients"] == 8 * cost.learn
    assert cost.step_s is None


def test_the_cost_of_a_training_with_its_data(course_dataroot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = small_recipe(course_dataroot, "train.steps=500", "train.ema=0.9", "losses.surroundings=0.5")
    cost = dry_run(recipe)
    model = DrivingModel(recipe.model)
    assert sum(cost.parts.values()) - cost.parts["heads"] == sum(p.numel() for p in model.parameters())
    assert cost.memory["optimizer"] == 2 * cost.memory["average"] == 8 * sum(cost.parts.values())
    assert sum(cost.dataset.values()) > 0
    assert not cost.on_noise
    assert cost.step_s > 0
    assert not list(tmp_path.iterdir())


def test_the_cost_of_a_training_without_its_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "tiny", *SMALL, "data.dataroot=none", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "dataset     not here" in told
    assert "on noise" in told
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_not_measured():
    more = [f"model.{key}" for key in ("width=4096", "layers=32", "heads=32", "head_dim=128", "experts=64")]
    cost = dry_run(load_recipe("tiny", ["data.dataroot=none", *more, "model.expert_hidden=4096"]))
    assert sum(cost.parts.values()) > 50e9
    assert cost.active < 0.1 * sum(cost.parts.values())
    assert cost.step_s is None
    assert "not measured" in cost.lines()[-1]
