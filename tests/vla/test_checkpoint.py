"""Checkpoints: the same bits back, every kind of damage found, and never a moment without a whole one."""

import json
import os
from dataclasses import replace

import pytest
import torch

from sensors.errors import InputError
from vla import checkpoint
from vla.checkpoint import MODEL, STATE, exists, load, save
from vla.manifest import MANIFEST, sealed
from vla.model import DrivingModel


@pytest.fixture
def saved(tmp_path, small):
    path = tmp_path / "checkpoint"
    save(path, DrivingModel(small, 5), {"moment": torch.arange(4.0)}, {"step": 7}, {"version": "0.1.0"})
    return path


def test_round_trip(saved, small, make_batch, make_tokens):
    model, loaded = DrivingModel(small, 5), load(saved, small)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    batch, tokens = make_batch(small, 0), make_tokens(small, 1)
    with torch.no_grad():
        assert torch.equal(model.eval().loss(batch, tokens)[0], loaded.model.loss(batch, tokens)[0])
    assert torch.equal(loaded.state_tensors["moment"], torch.arange(4.0))
    assert loaded.state == {"step": 7}
    assert loaded.extra == {"version": "0.1.0"}
    assert not loaded.model.training


def test_router_bias_is_part_of_it(tmp_path, small):
    model = DrivingModel(small)
    model.backbone.layers[1].mlp.bias[0] = 0.25
    save(tmp_path / "c", model)
    assert load(tmp_path / "c").model.backbone.layers[1].mlp.bias[0] == 0.25


def test_manifest_lists_every_parameter(saved, small):
    listed = json.loads((saved / MANIFEST).read_text())["parameters"]
    assert listed == {name: list(value.shape) for name, value in DrivingModel(small).state_dict().items()}


def test_replacing_leaves_one_folder(saved, small):
    save(saved, DrivingModel(small, 6), state={"step": 8})
    assert load(saved).state == {"step": 8}
    assert sorted(p.name for p in saved.iterdir()) == [MANIFEST, MODEL]
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("fails_at", range(1, 12))
def test_a_crash_while_replacing_leaves_a_whole_one(saved, small, monkeypatch, fails_at):
    """Every call that changes the disk fails in turn, as if the process had died there."""

    class Crash(BaseException):
        pass

    calls = 0

    def crashing(original):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise Crash
            return original(*args, **kwargs)

        return call

    for module, name in ((os, "rename"), (os, "fsync"), (checkpoint.shutil, "rmtree"), (checkpoint, "write_file")):
        monkeypatch.setattr(module, name, crashing(getattr(module, name)))
    try:
        save(saved, DrivingModel(small, 6), state={"step": 8})
    except Crash:
        pass
    else:
        assert calls < fails_at
    monkeypatch.undo()
    assert exists(saved)
    assert load(saved).state["step"] in (7, 8)
    save(saved, DrivingModel(small, 9), state={"step": 9})
    assert load(saved).state == {"step": 9}
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_full_disk_is_an_error_and_keeps_the_old_one(saved, small, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        save(saved, DrivingModel(small, 6), state={"step": 8})
    assert load(saved).state == {"step": 7}
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_exists(tmp_path, saved):
    assert exists(saved)
    assert not exists(tmp_path / "other")


def test_load_rejects_a_missing_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"checkpoint\.json: file: came No such file"):
        load(tmp_path / "none")


@pytest.mark.parametrize("name", [MODEL, STATE, MANIFEST])
def test_load_rejects_a_changed_byte(saved, name):
    blob = bytearray((saved / name).read_bytes())
    at = blob.index(b'"layers": 3') + 10 if name == MANIFEST else len(blob) - 1
    blob[at] ^= 1
    (saved / name).write_bytes(blob)
    with pytest.raises(InputError, match=rf"{name}: sha256: came \w+, expected \w+"):
        load(saved)


@pytest.mark.parametrize("name", [MODEL, STATE, MANIFEST])
def test_load_rejects_a_cut_file(saved, name):
    blob = (saved / name).read_bytes()
    (saved / name).write_bytes(blob[: len(blob) // 2])
    with pytest.raises(InputError, match=f"{name}: (size|file): came"):
        load(saved)


@pytest.mark.parametrize("name", [MODEL, STATE])
def test_load_rejects_a_missing_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(InputError, match=f"{name}: file: came No such file"):
        load(saved)


def rewrite(path, change):
    """Another manifest with a right checksum, as another version or a tool might write it."""
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    (path / MANIFEST).write_bytes(sealed(manifest))


def test_load_rejects_another_format(saved):
    rewrite(saved, lambda manifest: manifest.update(format=99))
    with pytest.raises(InputError, match="format: came 99, expected 1"):
        load(saved)


def test_load_rejects_an_unknown_config_key(saved):
    rewrite(saved, lambda manifest: manifest["config"].update(layer=3))
    with pytest.raises(InputError, match="Did you mean layers"):
        load(saved)


@pytest.mark.parametrize("change", [{"layers": 4}, {"layers": 2}, {"expert_hidden": 48}])
def test_load_rejects_parameters_that_do_not_fit_the_config(saved, change):
    rewrite(saved, lambda manifest: manifest["config"].update(change))
    with pytest.raises(InputError, match=r"model.safetensors: backbone\.layers\.[\w.]+: came"):
        load(saved)


def test_load_rejects_another_config_than_asked(saved, small):
    with pytest.raises(InputError, match=r"config\.experts: came 4, expected 8"):
        load(saved, replace(small, experts=8))


def test_nothing_is_unpickled(saved):
    import pickle

    (saved / MODEL).write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(InputError, match="size"):
        load(saved)


@pytest.mark.parametrize(("field", "value"), [("text_tokens", 700), ("accel_bins", 35), ("image_codes", 64)])
def test_load_rejects_another_vocabulary_and_names_the_field_to_change(saved, small, field, value):
    expected = f"config.{field}: came {getattr(small, field)}, expected {value}. Its vocabulary .* change {field} to"
    with pytest.raises(InputError, match=expected):
        load(saved, replace(small, **{field: value}))
    rewrite(saved, lambda manifest: manifest["config"].update({field: value}))
    with pytest.raises(InputError, match=rf"vocabulary\.\w+: came \d+, expected \d+. Change .*config\.{field}"):
        load(saved)


@pytest.mark.parametrize(("name", "value"), [("special", ["<plan>"]), ("text_sha256", "0")])
def test_load_rejects_tokens_that_mean_something_else(saved, name, value):
    rewrite(saved, lambda manifest: manifest["vocabulary"].update({name: value}))
    with pytest.raises(InputError, match=rf"vocabulary\.{name}: .*Train again"):
        load(saved)
    rewrite(saved, lambda manifest: manifest.pop("vocabulary"))
    with pytest.raises(InputError, match="vocabulary: came None, expected the layout"):
        load(saved)
