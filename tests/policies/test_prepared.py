"""Examples made ready once are those that would be read each time."""

import json
import shutil
from dataclasses import fields

import numpy as np
import pytest
import torch
from test_train import assert_equal, small_recipe, weights

from policies.cli import main
from policies.data import recorded_sets
from policies.loader import made_of
from policies.prepared import AROUND, MANIFEST, PreparedDraws, is_prepared, open_prepared, prepare
from policies.train import Trainer, train
from sensors.collate import Batch
from sensors.errors import InputError
from vla.parallel import Replicas

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ready(course_dataroot, tmp_path_factory):
    """The examples of the course, as the small recipe reads them."""
    out = tmp_path_factory.mktemp("prepared") / "ready"
    prepare(small_recipe(course_dataroot), out, quality=100, progress=False)
    return out


def test_they_are_the_recorded_ones_but_for_what_jpeg_loses(course_dataroot, ready):
    recipe = small_recipe(ready)
    for recorded, prepared in zip(
        recorded_sets(small_recipe(course_dataroot)), open_prepared(recipe, CPU), strict=True
    ):
        assert len(recorded) == len(prepared) > 0
        assert recorded.learned == prepared.learned
        assert recorded.situations() == prepared.situations()
        wanted = made_of([recorded.recorded(k, True) for k in range(len(recorded))], recipe.model, recorded.has_reasons)
        found = prepared.made(torch.arange(len(prepared)), recorded.has_reasons, around=True)
        assert torch.equal(wanted.tokens, found.tokens)
        for name, a, b in zip(AROUND, wanted.around, found.around, strict=True):
            assert torch.equal(a, b), name
        for name in (field.name for field in fields(Batch)):
            a, b = getattr(wanted.batch, name), getattr(found.batch, name)
            assert a.dtype == b.dtype
            if name != "images":
                assert torch.equal(a, b), name
        off = (wanted.batch.images.float() - found.batch.images.float()).abs()
        assert off.mean() < 1.5


def test_light_is_varied_and_cameras_are_lost_as_the_recipe_has_it(ready):
    recipe = small_recipe(ready, "train.camera_dropout=0.5", "train.batch_size=8")
    examples, _ = open_prepared(recipe, CPU)
    draws = PreparedDraws(examples, recipe, Replicas())
    (made,) = draws[3]
    (again,), (another,) = draws[3], draws[4]
    assert torch.equal(made.batch.images, again.batch.images)
    assert not torch.equal(made.batch.images, another.batch.images)
    plain = examples.made(torch.tensor(draws.indices(3)), told=False, around=False).batch
    shown = made.batch.image_mask
    assert shown[:, :, 0].all()
    assert 0.3 < shown[:, :, 1:].float().mean() < 0.7
    assert not made.batch.images[~shown].any()
    for b, n in ((b, n) for b in range(8) for n in range(shown.shape[2]) if shown[b, 0, n]):
        x, y = plain.images[b, :, n].float().flatten(), made.batch.images[b, :, n].float().flatten()
        inside = (y > 0) & (y < 255)
        slope, offset = np.polyfit(x[inside], y[inside], 1)
        assert 0.74 < slope < 1.26
        assert (slope * x[inside] + offset - y[inside]).abs().max() < 1.1


def test_a_training_learns_from_them_and_resumes_to_the_bit(ready, tmp_path, monkeypatch):
    recipe = small_recipe(ready, "train.steps=6", "train.checkpoint_every=2")
    train(recipe, tmp_path / "whole", progress=False)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["metrics"]["val.keyframes"] > 0
    one_step = Trainer._one_step

    def dies(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return one_step(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_one_step", dies)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "cut", progress=False)
    train(recipe, tmp_path / "cut", progress=False)
    assert_equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_what_they_do_not_hold_is_told(ready, course_dataroot, tmp_path):
    for more, match in (
        (["train.mirror=0.5"], "train.mirror"),
        (["data.crop=0.2"], "data.crop"),
        (["model.image_width=96"], "model.image_width"),
        ([f"data.more_dataroots=[{course_dataroot}]"], "none there"),
    ):
        with pytest.raises(InputError, match=match):
            open_prepared(small_recipe(ready, *more), CPU)
    with pytest.raises(InputError, match=r"data\.crop"):
        prepare(small_recipe(course_dataroot, "data.crop=0.2"), tmp_path / "cropped", progress=False)
    copy = tmp_path / "ready"
    copy.mkdir()
    for path in ready.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    part = next(copy.glob("part-*.npz"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(InputError, match="sha256"):
        open_prepared(small_recipe(copy), CPU)
    part.unlink()
    with pytest.raises(InputError, match="not there"):
        open_prepared(small_recipe(copy), CPU)
    (copy / MANIFEST).write_text("{")
    with pytest.raises(InputError, match="no JSON"):
        open_prepared(small_recipe(copy), CPU)


def test_the_command_prepares_and_refuses_what_is_of_no_use(course_dataroot, tmp_path, capsys):
    sizes = ["model.image_width=64", "model.image_height=32"]
    asked = ["data", "prepare", "tiny", *sizes, "data.val_scenes=1", f"data.dataroot={course_dataroot}"]
    out = tmp_path / "ready"
    assert main([*asked, "--out", str(out)]) == 0
    assert "examples" in capsys.readouterr().out
    assert main([*asked, "--out", str(out)]) == 2
    assert "another folder" in capsys.readouterr().err
    assert main(["data", "prepare", "text-tokens", "--out", str(tmp_path / "no")]) == 2


def test_broken_images_are_left_out_and_an_interrupted_preparation_goes_on(course_dataroot, tmp_path, monkeypatch):
    root = tmp_path / "course"
    shutil.copytree(course_dataroot, root)
    broken = sorted((root / "samples" / "CAM_FRONT").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:100])
    recipe, whole, cut = small_recipe(root), tmp_path / "whole", tmp_path / "cut"
    monkeypatch.setattr("policies.loader.MOST_BROKEN", 0.2)
    monkeypatch.setattr("policies.prepared.PART", 5)
    held = prepare(recipe, whole, progress=False)
    manifest = json.loads((whole / MANIFEST).read_bytes())
    assert 0 < len(manifest["broken"]) < held
    assert all("CAM_FRONT" in name for name in manifest["broken"])
    assert held == sum(map(len, open_prepared(small_recipe(whole), CPU)))

    def full(*_):
        raise OSError(28, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr("policies.prepared._sha256", full)
        with pytest.raises(OSError, match="no space"):
            prepare(recipe, cut, progress=False)
    assert not is_prepared(cut)
    with pytest.raises(InputError, match="another recipe"):
        prepare(small_recipe(root, "model.scene_tokens=8"), cut, progress=False)
    assert prepare(recipe, cut, progress=False) == held
    assert sorted(p.name for p in cut.iterdir()) == sorted(p.name for p in whole.iterdir())
    for path in whole.iterdir():
        assert path.read_bytes() == (cut / path.name).read_bytes()
    monkeypatch.setattr("policies.loader.MOST_BROKEN", 0.01)
    with pytest.raises(InputError, match="CAM_FRONT"):
        prepare(recipe, tmp_path / "refused", progress=False)
