import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from policies.cli import main
from policies.recipes import load_recipe
from policies.split import Learned
from policies.train import Trainer, train
from policies.vla_policy import VlaPolicy
from policies.workers import companions
from sensors.errors import InputError
from sensors.nuscenes_source import NuscenesSource
from sim.road_network import network_path
from sim.scenarios import UNSEEN_TOWN, get_scenario
from vla.checkpoint import load
from vla.model import DrivingModel
from vla.parallel import Replicas

SMALL = [
    "model.image_width=64",
    "model.image_height=32",
    "model.encoder_width=32",
    "model.encoder_heads=2",
    "model.encoder_hidden=32",
    "model.encoder_layers=1",
    "model.fusion_layers=1",
    "model.scene_tokens=4",
    "model.width=32",
    "model.layers=2",
    "model.heads=2",
    "model.kv_heads=1",
    "model.head_dim=16",
    "model.dense_hidden=32",
    "model.experts=4",
    "model.expert_hidden=16",
    "data.val_scenes=1",
    "train.batch_size=4",
    "train.warmup_steps=2",
]


def small_recipe(dataroot: Path, *more: str):
    return load_recipe("tiny", [*SMALL, f"data.dataroot={dataroot}", *more])


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load(path / "checkpoint").model.state_dict()


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def without_time(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in ("step_s", "loader_share")}


def test_training_learns_scores_and_reports(course_dataroot, tmp_path):
    recipe = small_recipe(course_dataroot, "train.steps=40", "train.learning_rate=3e-3", "train.checkpoint_every=40")
    report = train(recipe, tmp_path / "run", progress=False)
    records = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 41))
    assert sum(r["loss"] for r in records[-5:]) < 0.8 * sum(r["loss"] for r in records[:5])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metrics"]["val.keyframes"] > 0
    assert summary["metrics"]["train.examples"] > 0
    assert summary["config"]["train"]["steps"] == 40
    assert "train.jsonl" not in report.read_text()
    assert "gradient norm" in report.read_text()
    assert set(summary["curves"]) >= {"loss", "learning_rate"}


ALL_AT_ONCE = [
    "data.shuffle=5",
    "train.batch_size=2",
    "train.dtype=bf16",
    "train.ema=0.9",
    "train.clip_by=parts",
    "train.precision=fp8-sim",
    "train.fp8_recipe=delayed",
    "losses.scene_trajectory_nce=0.1",
    "losses.scene_text_siglip=0.1",
    "train.freeze=[encoder.,backbone.layers.*.attention.]",
]


@pytest.mark.parametrize("more", [[], ALL_AT_ONCE], ids=["plain", "all that has a state of its own"])
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(course_dataroot, tmp_path, monkeypatch, more):
    recipe = small_recipe(course_dataroot, "train.steps=6", "train.checkpoint_every=2", *more)
    train(recipe, tmp_path / "whole", progress=False)
    one_step = Trainer._one_step

    def dies_in_step_5(self):
        if self.step == 4 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            raise KeyboardInterrupt
        return one_step(self)

    monkeypatch.setattr(Trainer, "_one_step", dies_in_step_5)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "broken", progress=False)
    train(recipe, tmp_path / "broken", progress=False)
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    logs = [
        [without_time(json.loads(line)) for line in (tmp_path / run / "train.jsonl").read_text().splitlines()]
        for run in ("whole", "broken")
    ]
    assert logs[0] == logs[1]


def test_layers_computed_again_learn_the_same_bit_for_bit(course_dataroot, tmp_path):
    more = ["train.steps=3", "train.ema=0.9", "model.expert_dropout=0.2"]
    for name, recompute in (("plain", "false"), ("again", "true")):
        recipe = small_recipe(course_dataroot, *more, f"train.recompute={recompute}")
        train(recipe, tmp_path / name, progress=False)
    assert_equal(weights(tmp_path / "plain"), weights(tmp_path / "again"))


def test_layers_are_not_computed_again_in_8_bits(course_dataroot):
    with pytest.raises(InputError, match=r"precision: came fp8-sim, expected torch or auto, with train\.recompute"):
        small_recipe(course_dataroot, "train.recompute=true", "train.precision=fp8-sim")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kill_9_loses_at_most_the_steps_since_the_last_checkpoint(course_dataroot, tmp_path):
    more = ["train.steps=30", "train.checkpoint_every=2", "train.ema=0.9", "train.spike=3"]
    recipe = small_recipe(course_dataroot, *more)
    train(recipe, tmp_path / "whole", progress=False)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "policies.cli", "train", "tiny", *SMALL, f"data.dataroot={course_dataroot}"]
    command += [*more, "--out", str(out), "--quiet"]
    root = Path(__file__).resolve().parents[2]
    for seen in (2, 9, 17):  # steps in the log at which it is shot
        process = subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
        log = out / "train.jsonl"
        while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > seen):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    train(recipe, out, progress=False)
    assert_equal(weights(tmp_path / "whole"), weights(out))


def test_another_recipe_in_the_same_run_directory_is_refused(course_dataroot, tmp_path):
    train(small_recipe(course_dataroot, "train.steps=1"), tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="another recipe"):
        train(small_recipe(course_dataroot, "train.steps=2"), tmp_path / "run", progress=False)


def test_a_recipe_of_before_a_setting_existed_is_the_same_recipe(course_dataroot, tmp_path):
    recipe = small_recipe(course_dataroot, "train.steps=1")
    train(recipe, tmp_path / "run", progress=False)
    recorded = json.loads((tmp_path / "run" / "recipe.json").read_text())
    del recorded["losses"], recorded["train"]["dtype"]
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(recorded))
    assert Trainer(recipe, tmp_path / "run").resume()


def test_a_collapsed_router_stops_the_training_within_20_steps(course_dataroot, tmp_path):
    trainer = Trainer(small_recipe(course_dataroot, "train.batch_size=2", "model.experts=8"), tmp_path)
    with torch.no_grad():  # whatever comes, two experts answer
        trainer.model.backbone.layers[1].mlp.bias[:2] += 100.0
    for _ in range(trainer.monitor.patience - 1):
        trainer._one_step()
    with pytest.raises(InputError, match=r"step 9: router of backbone layer 1: came 100% .* experts \[0, 1\]"):
        trainer._one_step()


def test_a_gpu_that_is_not_there_is_refused(course_dataroot, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"train\.device: came cuda, expected a GPU"):
        Trainer(small_recipe(course_dataroot, "train.device=cuda"), tmp_path)


def test_too_few_scenes_are_refused(course_dataroot, tmp_path):
    with pytest.raises(InputError, match="3 scenes, expected at least 4"):
        Trainer(small_recipe(course_dataroot, "data.val_scenes=3"), tmp_path)


def test_scenes_too_short_for_a_plan_are_refused(course_dataroot, tmp_path):
    with pytest.raises(InputError, match="10 s of future"):
        Trainer(small_recipe(course_dataroot, "model.plan_steps=20"), tmp_path)


@pytest.mark.timeout(120)
def test_two_workers_learn_what_one_learns(course_dataroot, tmp_path):
    more = ["train.steps=4", "train.camera_dropout=0.2", "data.balance=0.5", "losses.surroundings=0.5"]
    more += ["train.freeze=[scene.,backbone.layers.0.]"]
    for workers in (1, 2):  # and one of them learns from a clip at a time what the other learns from all at once
        recipe = small_recipe(course_dataroot, *more, f"train.accumulate={workers}")
        train(recipe, tmp_path / str(workers), progress=False, workers=workers)
    one, two = (
        [json.loads(line) for line in (tmp_path / str(k) / "train.jsonl").read_text().splitlines()] for k in (1, 2)
    )
    assert len(one) == len(two) == 4
    for mine, theirs in zip(one, two, strict=True):
        for name in ("loss", "loss_action", "gradient_norm", "busiest_expert"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-5), name
    alone, shared, before = weights(tmp_path / "1"), weights(tmp_path / "2"), DrivingModel(recipe.model, 0).state_dict()
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-4)
    stayed = {name for name in shared if torch.equal(shared[name], before[name])}
    frozen = {name for name in shared if name.startswith(("scene.", "backbone.layers.0."))}
    assert stayed - {"vehicle.signals.0.missing"} == frozen  # no clip lacks its speed


def test_replicas_share_the_largest_number(monkeypatch):
    def with_another(flat, kind, group):
        assert kind == torch.distributed.ReduceOp.MAX
        flat.copy_(torch.maximum(flat, torch.tensor([2.0, 2.0, 2.0])))

    monkeypatch.setattr(torch.distributed, "all_reduce", with_another)
    mine = torch.tensor([[1.0, 3.0]]), torch.tensor(0.0)
    Replicas(0, 2).largest(mine)
    assert [tensor.tolist() for tensor in mine] == [[[2.0, 3.0]], 2.0]


def _dies(rank, meeting):
    Replicas.join(rank, 2, meeting)
    os._exit(7)


def _lives():
    with companions(2, _dies) as meeting:
        replicas = Replicas.join(0, 2, meeting)
        try:
            replicas.average([torch.ones(3)])
        finally:
            replicas.leave()


@pytest.mark.timeout(60)
def test_a_worker_that_dies_is_named():
    with pytest.raises(InputError, match=r"worker 1 of 2: came an end with exit status 7"):
        _lives()


def test_a_batch_that_workers_cannot_share_is_refused():
    with pytest.raises(InputError, match="batch_size"):
        Replicas(0, 3).share([1, 2, 3, 4])


def other_seeds(dataroot: Path, to: Path) -> Path:
    """The same recordings, of courses 100 further on by their names."""
    shutil.copytree(dataroot, to)
    table = to / "v1.0-mini" / "scene.json"
    table.write_text(table.read_text().replace("scene-10", "scene-11"))
    return to


def test_training_goes_on_from_a_checkpoint_with_more_data(course_dataroot, tmp_path):
    train(small_recipe(course_dataroot, "train.steps=2"), tmp_path / "first", progress=False)
    others = other_seeds(course_dataroot, tmp_path / "others")
    start_from = f"train.start_from={tmp_path / 'first' / 'checkpoint'}"
    with pytest.raises(InputError, match=r"held-out scenes: came scene-1002, learned from too"):
        Trainer(small_recipe(course_dataroot, f"data.more_dataroots=[{course_dataroot}]"), tmp_path / "second")
    with pytest.raises(InputError, match=r"held-out scenes: came scene-1001, learned from too"):
        Trainer(small_recipe(course_dataroot, start_from, "data.val_scenes=2"), tmp_path / "second")
    more = [start_from, f"data.more_dataroots=[{others}]"]
    trainer = Trainer(small_recipe(course_dataroot, "train.steps=2", *more), tmp_path / "second")
    assert_equal(trainer.model.state_dict(), weights(tmp_path / "first"))
    alone = Trainer(small_recipe(course_dataroot, "train.steps=2"), tmp_path / "third")
    assert len(trainer.train_set) > 2 * len(alone.train_set)  # of the added one no scene is held out
    trainer.save()
    policy = VlaPolicy(trainer.checkpoint_path)
    assert policy.learned.seen_of([999, 1000, 1001, 1002, 1100, 1102]) == [
        f"seed {k}" for k in (1000, 1001, 1100, 1102)
    ]
    assert policy.learned.seen_in(NuscenesSource(course_dataroot, "v1.0-mini")) == ["scene-1000", "scene-1001"]


def test_training_goes_on_from_a_checkpoint_with_clips_of_another_length_and_larger_images(course_dataroot, tmp_path):
    recipe = small_recipe(course_dataroot, "train.steps=1", "model.steps=1")
    train(recipe, tmp_path / "first", progress=False)
    start_from = f"train.start_from={tmp_path / 'first' / 'checkpoint'}"
    other = "model.steps=3", "model.image_width=160", "model.image_height=96"
    longer = Trainer(small_recipe(course_dataroot, start_from, *other), tmp_path / "second")
    assert longer.model.config.image_width == 160 != recipe.model.image_width
    assert_equal(longer.model.state_dict(), weights(tmp_path / "first"))
    with pytest.raises(InputError, match=r"config\.width: came"):
        Trainer(small_recipe(course_dataroot, start_from, "model.steps=3", "model.width=128"), tmp_path / "third")


def test_a_score_on_what_was_learned_is_refused_unless_it_is_allowed(course_dataroot, tmp_path, capsys):
    trainer = Trainer(small_recipe(course_dataroot), tmp_path)
    trainer.save()
    policy = ["--policy", "vla", "--checkpoint", str(trainer.checkpoint_path), "--quiet"]
    replayed = ["replay", "--dataroot", str(course_dataroot), *policy]
    for command in (["drive", "--suite", "course", "--seed", "1000", *policy], replayed):
        assert main([*command, "--out", str(tmp_path / "run")]) == 2
        assert "which it learned from, expected scenes that it has not seen" in capsys.readouterr().err
    assert main([*replayed, "--scene", "scene-1001", "--allow-seen", "--out", str(tmp_path / "seen")]) == 0
    assert "1 SEEN IN TRAINING" in capsys.readouterr().out


def test_what_a_policy_learned_is_known_again_in_towns():
    learned = Learned({("", "grid", 1_000_000): "town-train/0", ("scene-0061", "singapore-onenorth", -1): "scene-0061"})
    assert Learned.from_json(json.loads(json.dumps(learned.to_json()))) == learned
    test = get_scenario("town-test/3")
    assert test.town == UNSEEN_TOWN
    assert learned.seen_of([get_scenario("town-train/0"), get_scenario("town-train/1"), test]) == ["town-train/0"]
    there = Learned({("", UNSEEN_TOWN, 7): "mine"})
    assert there.seen_of([test, get_scenario("town-test/0")]) == [
        f"town-test/3 (in {UNSEEN_TOWN}, which was to be unseen)"
    ]
    own = replace(test, name="own/8", town=str(network_path(UNSEEN_TOWN)), seed=8)
    assert there.seen_of([own, replace(own, seed=7)]) == ["own/8"]


def test_values_may_stand_behind_options(course_dataroot, tmp_path, capsys):
    words = [*SMALL, f"data.dataroot={course_dataroot}", "train.steps=1"]
    assert main(["train", "tiny", *words[:3], "--dry-run", *words[3:]]) == 0
    assert "in all" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "tiny", "--dry-run", "train"])
    assert "unrecognized arguments: train" in capsys.readouterr().err
