"""Transformer Engine: wired as it documents itself (a stand-in records it), missed with a reason, on a GPU right."""

import sys

import pytest
import stand_in_engine
import torch

from sensors.errors import InputError
from vla import te_layers
from vla.attention import Layout
from vla.backbone import Backbone
from vla.checkpoint import load, save
from vla.config import BackboneConfig, ModelConfig
from vla.fp8 import HISTORY, RECIPES
from vla.model import DrivingModel
from vla.precision import use_precision

CONFIG = BackboneConfig(
    width=32, layers=3, heads=2, kv_heads=1, head_dim=16, dense_hidden=48, experts=4, expert_hidden=16
)
LAYOUT = Layout.causal(9)


def make(config=CONFIG, seed=0):
    model, generator = Backbone(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator).add_("norm" in name)
    return model, torch.randn(2, 9, config.width, generator=generator)


@pytest.fixture
def fresh_search():
    te_layers.engine.cache_clear()
    yield
    te_layers.engine.cache_clear()


@pytest.fixture
def install(monkeypatch, fresh_search):
    """Installs the stand-in, and lets a CPU count as its GPU."""

    def installed(**able):
        modules = stand_in_engine.modules(**able)
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(te_layers, "DEVICE", "cpu")
        return modules["transformer_engine.pytorch"]

    return installed


def test_layers_are_made_as_documented_and_equal_plain_ones(install):
    engine = install()
    model, x = make()
    names, parameters = list(model.state_dict()), dict(model.named_parameters())
    model(x, LAYOUT).square().mean().backward()
    exact, gradients = model(x, LAYOUT), {name: p.grad.clone() for name, p in parameters.items()}
    model.zero_grad()
    taken = use_precision(model, "te")
    assert taken.name == "te"
    assert engine.made[:2] == [  # width 32; two heads and one of keys and of values, 16 numbers each
        ("Linear", 32, 64, False, torch.float32, "cpu"),
        ("Linear", 32, 32, False, torch.float32, "cpu"),
    ]
    assert [made for made in engine.made if made[0] == "GroupedLinear"] == [
        ("GroupedLinear", 4, 32, 32, False, torch.float32, "cpu"),  # gate and up of 16, for 4 experts
        ("GroupedLinear", 4, 16, 32, False, torch.float32, "cpu"),
    ] * 2
    torch.testing.assert_close(model(x, LAYOUT), exact)
    model(x, LAYOUT).square().mean().backward()
    assert len(engine.contexts) == 2  # one a pass, around all layers: else the amax history turns with every layer
    assert list(model.state_dict()) == names
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        torch.testing.assert_close(parameter.grad, gradients[name])
    use_precision(model, "torch")
    assert torch.equal(model(x, LAYOUT), exact)
    assert len(engine.contexts) == 2


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_those_of_the_library(install, recipe):
    engine, (model, x) = install(), make()
    taken = use_precision(model, "auto", recipe)
    assert taken == use_precision(model, "auto", recipe)
    assert taken.name == "te"
    assert recipe in taken.why
    model(x, LAYOUT)
    hybrid, made = stand_in_engine.Format.HYBRID, engine.contexts[0]
    assert (
        made
        == {
            "current": stand_in_engine.Float8CurrentScaling(fp8_format=hybrid),
            "delayed": stand_in_engine.DelayedScaling(fp8_format=hybrid, amax_history_len=HISTORY),
            "block": stand_in_engine.Float8BlockScaling(fp8_format=stand_in_engine.Format.E4M3),
        }[recipe]
    )


def test_sizes_that_do_not_fit_stay_in_torch(install):
    engine = install()
    odd = BackboneConfig(
        width=32, layers=2, heads=2, kv_heads=1, head_dim=16, dense_hidden=40, experts=4, expert_hidden=12
    )
    model, x = make(odd)
    exact, taken = model(x, LAYOUT), use_precision(model, "te")
    assert "5 layers stay in torch" in taken.why  # `down` of the dense MLP; all of the experts; both of the shared one
    torch.testing.assert_close(model(x, LAYOUT), exact)
    assert all(size % 16 == 0 for made in engine.made for size in made[2:3])


def learns_and_returns(path, device):
    """A training step in te, then its checkpoint in plain torch: the same weights, the same states."""
    config = ModelConfig(width=64, layers=2, heads=2, kv_heads=1, head_dim=32, dense_hidden=64, expert_hidden=32)
    model = DrivingModel(config, seed=1).to(device)
    layout, x = LAYOUT.to(device), torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0)).to(device)
    before = {name: p.clone() for name, p in model.backbone.named_parameters()}
    use_precision(model.backbone, "te", "delayed")
    optimizer = torch.optim.AdamW(model.backbone.parameters(), lr=1e-2)
    model.backbone(x, layout).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.backbone.named_parameters())
    save(path, model)
    loaded = load(path).model.to(device)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    use_precision(model.backbone, "torch")
    assert torch.equal(model.eval().backbone(x, layout), loaded.backbone(x, layout))
    model.load_state_dict(DrivingModel(config, seed=2).state_dict())  # in place: te sees it too
    use_precision(model.backbone, "te")
    assert not torch.allclose(model.backbone(x, layout), loaded.backbone(x, layout), atol=0.1)


def test_a_checkpoint_of_te_is_one_of_torch(install, tmp_path):
    install()
    learns_and_returns(tmp_path / "te", "cpu")


def test_what_is_missing_is_said(monkeypatch, fresh_search):
    model, real_import = make()[0], te_layers.importlib.import_module

    def stands_for(error):
        def importing(name, *rest):
            if name.startswith("transformer_engine"):
                raise error
            return real_import(name, *rest)

        te_layers.engine.cache_clear()
        monkeypatch.setattr(te_layers.importlib, "import_module", importing)

    for error, said in (
        (ModuleNotFoundError("No module named 'transformer_engine'"), "not installed"),
        (RuntimeError("Found no NVIDIA driver on your system"), "does not load here .*no NVIDIA driver"),
        (OSError("libcudart.so.12: cannot open shared object file"), "does not load here .*libcudart"),
    ):
        stands_for(error)
        with pytest.raises(InputError, match=rf"precision: te: came Transformer Engine .*{said}.*Install"):
            use_precision(model, "te")
        taken = use_precision(model, "auto")
        assert taken.name == "torch"
        assert "Transformer Engine" in taken.why


def test_what_the_machine_cannot_is_said(install, monkeypatch):
    model = make()[0]
    engine = install(blocks=(False, "FP8 block scaled GEMM requires CUDA >= 12.9"))
    assert use_precision(model, "te", "current").name == "te"
    with pytest.raises(InputError, match=r"no block scaling here \(FP8 block scaled GEMM requires CUDA"):
        use_precision(model, "te", "block")
    monkeypatch.setattr(te_layers, "DEVICE", "cuda")
    with pytest.raises(InputError, match="multiplies on cuda, and the model is on cpu"):
        use_precision(model, "te")
    del engine.autocast
    te_layers.engine.cache_clear()
    with pytest.raises(InputError, match=r"older than 2\.9"):
        use_precision(model, "te")


def test_it_is_looked_for_once(monkeypatch, fresh_search):
    asked, real_import = [], te_layers.importlib.import_module

    def importing(name, *rest):
        asked.append(name)
        return real_import(name, *rest)

    monkeypatch.setattr(te_layers.importlib, "import_module", importing)
    monkeypatch.setitem(sys.modules, "transformer_engine", None)
    for _ in range(3):
        assert use_precision(make()[0], "auto").name == "torch"
    assert asked == ["transformer_engine.pytorch"]


# On a GPU ------------------------------------------------------------------------------------------

# Every token takes every expert, so that no router turns a small difference into another expert; sizes are multiples of
# a block. An e4m3 operand is off by 2^-5.5 of itself in the mean square, which makes 3 % of a product's terms and less
# of their sum; through four layers this stays below 10 %. The simulation rounds to the same numbers and differs from
# the GPU in the order of sums and the width of the accumulator only.
WIDE = BackboneConfig(
    width=256,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=64,
    dense_hidden=512,
    experts=4,
    experts_per_token=4,
    expert_hidden=128,
)
FROM_TORCH, FROM_SIMULATION = 0.1, 0.03


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_simulation_is_within_its_bound_of_torch(recipe):
    model, x = make(WIDE)
    with torch.no_grad():
        exact = model(x, LAYOUT)
        use_precision(model, "fp8-sim", recipe)
        for _ in range(2):  # the second pass of delayed scaling knows the first
            simulated = model(x, LAYOUT)
    error = (simulated - exact).norm() / exact.norm()
    assert 1e-3 < error < FROM_TORCH


@pytest.fixture
def on_a_gpu():
    missing = "no CUDA device" if not torch.cuda.is_available() else te_layers.engine()
    if isinstance(missing, str):
        pytest.skip(missing)


@pytest.mark.gpu
def test_a_checkpoint_of_te_on_a_gpu_is_one_of_torch(on_a_gpu, tmp_path):
    learns_and_returns(tmp_path / "te", "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_te_on_a_gpu_is_near_torch_and_nearer_its_simulation(on_a_gpu, recipe, dtype):
    why = te_layers.why_not(te_layers.engine(), recipe, torch.device("cuda"))
    if why:
        pytest.skip(why)
    model, x = make(WIDE)
    model, x, layout = model.cuda(), x.cuda(), LAYOUT.to("cuda")
    states, gradients = {}, {}
    for name in ("torch", "fp8-sim", "te"):
        use_precision(model, name, recipe)
        for _ in range(2):
            model.zero_grad()
            with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "bf16"):
                states[name] = model(x, layout)
            states[name].float().square().mean().backward()
        gradients[name] = {key: p.grad.float().clone() for key, p in model.named_parameters()}
        states[name] = states[name].detach().float()
    coarse = 2**-7 if dtype == "bf16" else 0.0  # its own rounding comes on top

    def apart(a, b):
        return float((a - b).norm() / b.norm())

    assert 1e-3 < apart(states["te"], states["torch"]) < FROM_TORCH + FROM_SIMULATION + coarse
    assert apart(states["te"], states["fp8-sim"]) < FROM_SIMULATION + 2 * coarse
    for key, gradient in gradients["te"].items():
        assert gradient.isfinite().all(), key
        if gradients["torch"][key].norm() > 1e-6:
            assert apart(gradient, gradients["torch"][key]) < 0.5, key
    assert model.state_dict().keys() == Backbone(WIDE).state_dict().keys()
