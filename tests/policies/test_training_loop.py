"""What the loop does beside learning: micro-batches, clipping by part, averaged weights, skips, rewinds, bad input."""

import errno
import json
from dataclasses import replace

import pytest
import torch
from test_train import assert_equal, small_recipe, weights, without_time

import policies.guard
import vla.checkpoint
from policies.descent import Average, Clipping, learning_rate, part_of
from policies.guard import Guard
from policies.loader import Draws
from policies.train import Trainer, train
from policies.train_log import read_steps
from sensors.errors import InputError
from vla.checkpoint import load
from vla.model import DrivingModel

REASON = "drive: curve"


def gradients_of(trainer: Trainer) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    figures = trainer._gradients(trainer._parts())
    return figures, {name: p.grad.clone() for name, p in trainer._trained.items() if p.grad is not None}


def test_micro_batches_sum_to_the_gradient_of_the_batch(course_dataroot, tmp_path, monkeypatch):
    example = Draws._example

    def some_say_why(self, draw, place, index):  # so that the parts have unlike numbers of words
        found, broken = example(self, draw, place, index)
        return replace(found, reason=REASON if place in (0, 1, 2) else ""), broken

    monkeypatch.setattr(Draws, "_example", some_say_why)
    made = []
    for count in (1, 2, 4):
        more = [f"train.accumulate={count}", "losses.surroundings=0.5", "model.expert_dropout=0.2"]
        trainer = Trainer(small_recipe(course_dataroot, *more), tmp_path)
        trainer.train_set.has_reasons = True
        made.append(gradients_of(trainer))
    (figures, whole), *others = made
    assert figures["loss_reason"] > 0
    for named, parts in others:
        assert named == pytest.approx(figures, rel=1e-4, abs=1e-6)
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-5)


def test_a_batch_that_micro_batches_cannot_share_is_refused(course_dataroot, tmp_path):
    with pytest.raises(InputError, match="multiple of 3"):
        small_recipe(course_dataroot, "train.accumulate=3")


def test_each_part_is_clipped_by_its_own_norm():
    named = {"encoder.a": 3.0, "embedding.b": 0.1, "backbone.c": 40.0, "vehicle.d": 30.0}
    trained = {name: torch.nn.Parameter(torch.zeros(1)) for name in named}
    for name, p in trained.items():
        p.grad = torch.tensor([named[name]])
    clipping = Clipping(trained, part_of, 1.0, by_part=True)
    norms = clipping.norms()
    assert norms == pytest.approx(
        {
            "gradient_norm": (9 + 0.01 + 2500) ** 0.5,
            "gradient_norm_vision": 3.0,
            "gradient_norm_text": 0.1,
            "gradient_norm_backbone": 50.0,
        }
    )
    clipping.clip(norms)
    came = [p.grad.item() for p in trained.values()]
    assert came == pytest.approx([1.0, 0.1, 0.8, 0.6], rel=1e-5)
    Clipping(trained, part_of, 0.5, by_part=False).clip({"gradient_norm": 1.0})
    assert trained["embedding.b"].grad.item() == pytest.approx(0.05)


def test_every_part_of_a_driving_model_has_parameters(course_dataroot):
    model = DrivingModel(small_recipe(course_dataroot).model)
    parts = [part_of(name) for name, _ in model.named_parameters()]
    assert {*parts} == {"vision", "text", "backbone"}


def test_rates_of_the_schedules():
    def rates(schedule):
        return [learning_rate(schedule, 1.0, step, 100, 10, 0.2) for step in (0, 9, 50, 80, 95, 99)]

    assert rates("constant") == [0.1, 1, 1, 1, 1, 1]
    assert rates("cosine")[2:4] == pytest.approx([0.5, 0.0954915])
    assert rates("wsd") == pytest.approx([0.1, 1, 1, 1, 1 - 0.75**0.5, 1 - 0.95**0.5])


def test_averaged_weights_follow_their_equation():
    model = torch.nn.BatchNorm1d(1)  # parameters, a float buffer, and a count
    average = Average(model, 0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(1.0)
        model.num_batches_tracked.fill_(7)
    average.update(model, 0)  # decay (1 + 0) / (10 + 0)
    assert average.model.weight.item() == pytest.approx(0.1 * 1 + 0.9 * 3)
    assert average.model.num_batches_tracked.item() == 7
    average.update(model, 1000)
    assert average.model.weight.item() == pytest.approx(0.5 * 2.8 + 0.5 * 3)


def test_a_checkpoint_holds_averaged_weights_and_those_to_go_on_from(course_dataroot, tmp_path):
    recipe = small_recipe(course_dataroot, "train.steps=2", "train.ema=0.9", "train.batch_size=2")
    trainer = Trainer(recipe, tmp_path)
    trainer.run(progress=False)
    loaded = load(tmp_path / "checkpoint")
    assert_equal(loaded.model.state_dict(), trainer.average.model.state_dict())
    name = "encoder.fusion.0.attention.q.weight"
    assert torch.equal(loaded.state_tensors[f"weights.{name}"], trainer.model.state_dict()[name])
    assert not torch.equal(loaded.state_tensors[f"weights.{name}"], loaded.model.state_dict()[name])


def test_a_step_that_is_not_finite_is_skipped_and_too_many_stop_the_training(course_dataroot, tmp_path, monkeypatch):
    loss_of, bad = Trainer._loss, {1}

    def sometimes_nan(self, part):
        loss, named = loss_of(self, part)
        return (loss * float("nan") if self.step in bad else loss), named

    monkeypatch.setattr(Trainer, "_loss", sometimes_nan)
    recipe = small_recipe(course_dataroot, "train.steps=9", "train.most_skipped=2", "train.batch_size=2")
    trainer = Trainer(recipe, tmp_path)
    trainer._one_step()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    record = trainer._one_step()
    assert (record["skipped"], record["loss"], record["step"]) == (1, None, 2)
    assert_equal(trainer.model.state_dict(), before)
    assert "skipped" not in trainer._one_step()
    bad |= {3, 4, 5}
    trainer._one_step()
    trainer._one_step()
    with pytest.raises(InputError, match=r"step 5: loss: came loss nan, for 3 steps in a row, expected finite"):
        trainer._one_step()


def test_a_guard_judges_a_loss_only_by_ordinary_ones():
    guard = Guard()
    for step in range(30):
        guard.watch(step, 1.0, 2.0)
    for step in range(30, 34):
        guard.watch(step, 9.0, 2.0)
    assert not guard.spiked
    guard.watch(34, 1.0, 2.0)
    assert not guard.high
    for step in range(35, 40):
        guard.watch(step, 9.0, 2.0)
    assert guard.spiked
    new = Guard(recent=[1.0])
    new.after(guard, 32)
    assert [new.draw(step) for step in (34, 35, 36)] == [34, 40, 41]
    assert new.events[0]["from_step"] == 40
    again = Guard(high=[[36, 9.0]], recent=[1.0], passed_over=new.passed_over)
    newer = Guard()
    newer.after(again, 32)
    assert [newer.draw(step) for step in (35, 36)] == [40, 42]


@pytest.fixture
def two_bad_batches(monkeypatch):
    """Batches 7 and 8 are poison, whichever steps learn from them; two losses in a row are a spike."""
    loss_of = Trainer._loss

    def poisoned(self, part):
        loss, named = loss_of(self, part)
        return loss * (100.0 if self.draw in (7, 8) else 1.0), named

    monkeypatch.setattr(Trainer, "_loss", poisoned)
    monkeypatch.setattr(policies.guard, "LEAST", 4)
    monkeypatch.setattr(policies.guard, "PATIENCE", 2)


REWINDS = ["train.steps=10", "train.checkpoint_every=4", "train.spike=5", "train.ema=0.9", "train.batch_size=2"]


def test_a_spike_sends_the_training_back_and_past_its_batches(course_dataroot, tmp_path, monkeypatch, two_bad_batches):
    recipe = small_recipe(course_dataroot, *REWINDS)
    trainer = Trainer(recipe, tmp_path / "never")
    trainer.guard.passed_over = [7, 8]
    trainer.run(progress=False)
    train(recipe, tmp_path / "spiked", progress=False)
    assert_equal(weights(tmp_path / "never"), weights(tmp_path / "spiked"))
    log = tmp_path / "spiked" / "train.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    event = lines.pop(4)
    assert (event["event"], event["step"], event["from_step"]) == ("rewind", 4, 9)
    assert event["draws_passed_over"] == [7, 8]
    assert [without_time(line) for line in lines] == [
        without_time(record) for record in read_steps(tmp_path / "never" / "train.jsonl")
    ]
    one_step, after = Trainer._one_step, Guard.after

    def dies_in_the_rewind(self, *told):
        after(self, *told)
        if not (tmp_path / "died first").exists():
            (tmp_path / "died first").touch()
            raise KeyboardInterrupt  # the checkpoint does not know of it yet

    def dies_after_the_rewind(self):
        if self.step == 6 and self.guard.events and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            raise KeyboardInterrupt
        return one_step(self)

    monkeypatch.setattr(Guard, "after", dies_in_the_rewind)
    monkeypatch.setattr(Trainer, "_one_step", dies_after_the_rewind)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "cut", progress=False)
    train(recipe, tmp_path / "cut", progress=False)
    assert_equal(weights(tmp_path / "spiked"), weights(tmp_path / "cut"))
    assert len((tmp_path / "cut" / "train.jsonl").read_text().splitlines()) == 11


def test_too_many_rewinds_stop_the_training(course_dataroot, tmp_path, two_bad_batches):
    with pytest.raises(InputError, match="at most 0 rewinds"):
        train(small_recipe(course_dataroot, *REWINDS, "train.most_rewinds=0"), tmp_path, progress=False)


def test_another_architecture_is_not_resumed(course_dataroot, tmp_path):
    trainer = Trainer(small_recipe(course_dataroot), tmp_path)
    trainer.resume()
    with pytest.raises(InputError, match=r"model.width: came 64, expected 32.* architecture: use a new --out folder"):
        Trainer(small_recipe(course_dataroot, "model.width=64", "train.steps=9"), tmp_path).resume()


def test_a_full_disk_leaves_the_last_checkpoint(course_dataroot, tmp_path, monkeypatch):
    recipe = small_recipe(course_dataroot, "train.steps=4", "train.checkpoint_every=2", "train.batch_size=2")
    write = vla.checkpoint.write_file

    def full_from_step_4_on(path, blob):
        if (tmp_path / "checkpoint").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, blob)

    monkeypatch.setattr(vla.checkpoint, "write_file", full_from_step_4_on)
    with pytest.raises(InputError, match=r"checkpoint: came No space left on device.*Is the disk full"):
        train(recipe, tmp_path, progress=False)
    assert load(tmp_path / "checkpoint").state["step"] == 2
    assert not (tmp_path / ".checkpoint.partial").exists()


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("train.accumulate=0", "train.accumulate"),
        ("train.schedule=cosin", "Did you mean cosine"),
        ("train.clip_by=half", "train.clip_by"),
        ("train.decay_share=0", "train.decay_share"),
        ("train.ema=1", "train.ema"),
        ("train.spike=0.5", "train.spike"),
        ("train.most_skipped=-1", "train.most_skipped"),
        ("train.validate_every=-1", "train.validate_every"),
    ],
)
def test_recipe_of_a_loop_rejects(course_dataroot, override, field):
    with pytest.raises(InputError, match=field):
        small_recipe(course_dataroot, override)
