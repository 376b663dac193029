"""Learning from one's own drives: the objective, the loop, resumption, and that reward rises."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_train import SMALL, assert_equal, weights, without_time
from torch.nn import functional as F

import policies.explore
import policies.grpo
from policies.cli import main
from policies.explore import Experience, Explorer, Group, starts_of
from policies.grpo import GrpoTrainer, advantages, distributions, divergence, gain, grpo, of_tokens
from policies.noise import noise_clip
from policies.protocol import NOTHING, check_policy
from policies.recipes import load_recipe
from policies.rewards import Outcome
from policies.train_log import read_steps
from policies.transforms import to_batch
from policies.vla_policy import VlaPolicy
from sensors.errors import InputError
from vla.checkpoint import load, save
from vla.model import DrivingModel

QUICK = ["rollouts.suite=course", "rollouts.first=7", "rollouts.groups=1", "rollouts.group=2", "rollouts.seconds=1"]
QUICK += ["rollouts.renderer=cv", "train.passes=1", "train.steps=1", "train.checkpoint_every=1", "train.batch_size=8"]
FAR_M = 100.0


def small_model(*more: str) -> DrivingModel:
    return DrivingModel(load_recipe("tiny", [*SMALL, "data.dataroot=none", *more]).model, seed=1)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "checkpoint"
    save(path, small_model(), extra={"learned": [["seed 3", "scene-0003", "course", -1]]})
    return path


def recipe_of(start, *more: str):
    return load_recipe("grpo", [f"rollouts.start_from={start}", *QUICK, *more])


def made_up(model: DrivingModel, draws: int, worth, clips: int = 2) -> tuple[Experience, ...]:
    """Drives of so many noise clips each, which moved as far as `worth` (accelerations [P, K] to 0 .. 1) says."""
    drives = []
    for k in range(draws):
        policy = Explorer(model, None, 1.0, (k, int(1e6 * model.head.weight.abs().sum())))
        for seed in range(clips):
            policy.plan(noise_clip(model.config, seed), NOTHING)
        accel = policy._tokenizer.decode(np.concatenate(policy._said))[0]
        drives.append(policy.experience(Outcome(False, False, False, False, FAR_M * float(worth(accel)), 1.0)))
    return tuple(drives)


def faster_is_better(accel: np.ndarray) -> float:
    return float((accel > 0).mean())


@pytest.mark.parametrize("decoding", ["autoregressive", "parallel"])
def test_probabilities_are_those_that_the_plan_was_drawn_by(decoding):
    model = small_model(f"model.action_decoding={decoding}").eval()
    batch = to_batch([noise_clip(model.config, k) for k in range(3)], model.config)
    said = model.decode(batch, torch.Generator().manual_seed(0), 1.0)
    tokens = said.tokens.clone()
    with torch.no_grad():
        among = distributions(model, batch, tokens, 1.0)
        total = of_tokens(among, tokens, model.slots).sum(dim=1)
        colder = distributions(model, batch, tokens, 0.5)
    torch.testing.assert_close(total, said.logprob.clone(), rtol=1e-4, atol=1e-4)
    for one, other in zip(among, colder, strict=True):
        torch.testing.assert_close(one.exp().sum(-1), torch.ones_like(one[..., 0]))
        assert (other.max(dim=-1).values >= one.max(dim=-1).values).all()


def test_the_gain_is_its_equation_and_has_no_gradient_where_it_is_clipped():
    generator = torch.Generator().manual_seed(0)
    driven = torch.randn(6, 4, generator=generator)
    now = (driven + 0.4 * torch.randn(6, 4, generator=generator)).requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 0.5, -2.0, 0.0, 3.0])
    gained = gain(now, driven, advantage, 0.2)
    gained.sum().backward()
    for i, A in enumerate(advantage.tolist()):
        for t in range(4):
            rho = float((now.detach()[i, t] - driven[i, t]).exp())
            value = min(rho * A, min(max(rho, 0.8), 1.2) * A)
            assert gained[i, t].detach().item() == pytest.approx(value, rel=1e-5, abs=1e-6)
            held = (A > 0 and rho > 1.2) or (A < 0 and rho < 0.8) or A == 0
            assert now.grad[i, t].item() == pytest.approx(0.0 if held else rho * A, rel=1e-4, abs=1e-6)


def test_divergence_is_that_of_torch_and_zero_from_itself():
    p, q = (
        tuple(torch.randn(2, 3, n, generator=torch.Generator().manual_seed(k)).log_softmax(-1) for n in (5, 7))
        for k in (0, 1)
    )
    assert divergence(p, p).abs().max() < 1e-6
    found = divergence(p, q)
    assert found.shape == (2, 6)
    assert (found > 0).all()
    theirs = F.kl_div(q[1], p[1], reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(found[:, 1::2], theirs)


def test_advantages_have_no_mean_and_no_more_than_one_of_spread():
    assert advantages([0.2, 0.2, 0.2]) == pytest.approx([0, 0, 0], abs=1e-12)
    found = advantages([0.0, 0.5, 1.0])
    assert found.mean() == pytest.approx(0)
    assert found.std() == pytest.approx(1)
    assert np.abs(advantages([0.5, 0.5001])).max() < 0.01  # noise is not blown up


def test_a_step_makes_the_better_of_two_plans_likelier_and_the_worse_less_likely(start, tmp_path):
    trainer = GrpoTrainer(recipe_of(start, "train.learning_rate=1e-3", "train.warmup_steps=0"), tmp_path, load(start))
    trainer.model.eval()
    pair = made_up(trainer.model, 2, faster_is_better, clips=1)
    drives = tuple(
        replace(drive, outcome=replace(drive.outcome, moved_m=m)) for drive, m in zip(pair, (FAR_M, 0.0), strict=True)
    )
    trainer.take([Group(7, FAR_M, drives)])
    before = [part.driven.sum().item() for part in trainer._plans]
    trainer._gradients(trainer._plans)
    trainer._descend(trainer.clipping.norms(), 1e-3)
    trainer.take([Group(7, FAR_M, drives)])
    after = [part.driven.sum().item() for part in trainer._plans]
    assert after[0] > before[0]
    assert after[1] < before[1]


def test_what_lies_beyond_reach_is_held_by_the_divergence_alone(start, tmp_path):
    trainer = GrpoTrainer(recipe_of(start, "train.reach_s=0.5"), tmp_path, load(start))
    trainer.model.eval()
    trainer.take([Group(7, FAR_M, made_up(trainer.model, 3, faster_is_better))])
    (loss, _), part = trainer._loss(trainer._plans[0]), trainer._plans[0]
    for places, moves in ((slice(0, 2), True), (slice(2, None), False)):
        changed = part.driven.clone()
        changed[:, places] -= 0.1
        assert (trainer._loss(replace(part, driven=changed))[0] != loss) == moves


def test_all_drives_of_an_update_weigh_alike_in_however_many_parts(start, tmp_path):
    made = []
    for size in (1, 2, 8):
        trainer = GrpoTrainer(recipe_of(start, f"train.batch_size={size}"), tmp_path, load(start))
        trainer.model.eval()
        long, short = made_up(trainer.model, 1, faster_is_better, 3), made_up(trainer.model, 1, lambda accel: 0.0, 1)
        trainer.take([Group(7, FAR_M, (*long, *short))])
        total = sum(part.weight.sum().item() for part in trainer._plans)
        assert total == pytest.approx(len(trainer._plans))
        figures = trainer._gradients(trainer._plans)
        gradients = {name: p.grad.clone() for name, p in trainer._trained.items() if p.grad is not None}
        made.append((figures, gradients))
    for figures, gradients in made[1:]:
        assert figures == pytest.approx(made[0][0], rel=1e-4, abs=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, made[0][1][name], rtol=1e-4, atol=1e-6)


def test_an_explorer_is_a_policy_whose_draws_are_its_own(start):
    model = load(start).model
    clips = [(noise_clip(model.config, k), NOTHING) for k in range(2)]
    check_policy(Explorer(model, None, 1.0, (0, 1)), clips)
    one, same, other = (Explorer(model, None, 1.0, draws).plan(*clips[0]) for draws in ((0, 1), (0, 1), (0, 2)))
    assert one.tokens == same.tokens != other.tokens


def test_a_plan_that_is_none_is_not_learned_from_and_gates_the_drive(start):
    model = small_model()
    policy = Explorer(model, None, 1.0)
    policy.plan(noise_clip(model.config, 0), NOTHING)
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    assert policy.plan(noise_clip(model.config, 1), NOTHING).fallback
    assert len(policy._said) == 1
    assert policy.invalid


@pytest.mark.timeout(240)
def test_an_update_from_the_command_line_learns_says_and_reports(start, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "grpo", f"rollouts.start_from={start}", *QUICK, "--out", str(out), "--quiet"]) == 0
    (record,) = read_steps(out / "train.jsonl")
    assert {"reward", "gated", "gated_at_fault", "kl", "entropy", "clipped", "learning_rate"} <= set(record)
    assert (record["drives"], record["plans"]) == (2, 4)
    assert record["kl"] == pytest.approx(0, abs=1e-6)
    assert not torch.equal(weights(out)["head.weight"], load(start).model.state_dict()["head.weight"])
    page = (out / "report.html").read_text()
    assert "share of drives without reward, by cause" in page
    assert "reward of its drives" in page
    policy = VlaPolicy(out / "checkpoint")
    assert policy.learned.seen_of([3, 7, 8]) == ["seed 3", "seed 7"]
    capsys.readouterr()
    assert main(["train", "grpo", f"rollouts.start_from={start}", *QUICK, "train.kl=0.5", "--out", str(out)]) == 2
    assert "another recipe: train.kl" in capsys.readouterr().err


@pytest.mark.timeout(240)
def test_an_interrupted_training_ends_with_the_same_weights(start, tmp_path, monkeypatch):
    recipe = recipe_of(start, "train.steps=4", "train.passes=2", "train.checkpoint_every=2", "train.learning_rate=1e-3")
    grpo(recipe, tmp_path / "whole", progress=False)
    step = GrpoTrainer._one_step

    def dies_in_the_second_update(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patched:
        patched.setattr(GrpoTrainer, "_one_step", dies_in_the_second_update)
        with pytest.raises(KeyboardInterrupt):
            grpo(recipe, tmp_path / "cut", progress=False)
    grpo(recipe, tmp_path / "cut", progress=False)
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    logs = [read_steps(tmp_path / name / "train.jsonl") for name in ("whole", "cut")]
    assert [without_time(r) for r in logs[0]] == [without_time(r) for r in logs[1]]
    assert logs[0][1]["kl"] > 0


def test_some_drives_may_fail_and_are_counted_but_not_many(start, tmp_path, monkeypatch):
    def fails(checkpoint, recipe, update, start, member):
        if member in failing:
            raise ZeroDivisionError("of a drive")
        return drive

    (drive,) = made_up(load(start).model, 1, faster_is_better)
    monkeypatch.setattr(policies.explore, "explore", fails)
    monkeypatch.setattr(policies.explore, "expert_m", lambda rollouts, start: FAR_M)
    recipe, failing = recipe_of(start, "rollouts.group=4"), {2}
    groups, failed = policies.explore.drive_groups(tmp_path, recipe, 0, None, False)
    assert (failed, [len(group.drives) for group in groups]) == (1, [3])
    failing = {0, 1, 2}
    with pytest.raises(RuntimeError, match=r"3 of 5 drives of update 1 failed.*(?s:.)*of a drive"):
        policies.explore.drive_groups(tmp_path, recipe, 0, None, False)


def test_updates_start_where_no_other_did_and_wrap_at_the_end_of_a_suite():
    rollouts = load_recipe("grpo", ["rollouts.groups=3"]).rollouts
    names = [start.name for update in (0, 1) for start in starts_of(rollouts, update)]
    assert names == [f"town-train/{k}" for k in range(20_000, 20_006)]
    assert [start.name for start in starts_of(replace(rollouts, first=99_999), 0)][1] == "town-train/0"
    assert starts_of(replace(rollouts, suite="course", first=2), 1) == [5, 6, 7]


def test_what_is_frozen_stays(start, tmp_path):
    trainer = GrpoTrainer(recipe_of(start, "train.freeze=[encoder.]"), tmp_path, load(start))
    assert not any(name.startswith("encoder.") for name in trainer._trained)


def test_a_dry_run_says_what_it_would_cost_and_leaves_nothing(start, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "grpo", f"rollouts.start_from={start}", *QUICK, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "drives      2 an update, of at most 1 s; 2 in all" in told
    assert "s an update" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stepz=7", "Did you mean train.steps?"),
        ("rollouts.group=1", "rollouts.group: came 1, expected at least 2"),
        ("rollouts.suite=town-trian", "Did you mean town-train?"),
        ("rollouts.renderer=egl", "rollouts.renderer"),
        ("rollouts.seconds=0.5", "rollouts.seconds"),
        ("rollouts.temperature=0", "rollouts.temperature"),
        ("rollouts.first=100000", "rollouts.first + groups"),
        ("train.steps=7", "train.steps: came 7, expected a multiple of train.passes, 2"),
        ("train.checkpoint_every=5", "train.checkpoint_every: came 5, expected a multiple"),
        ("train.accumulate=2", "train.accumulate: came 2"),
        ("train.spike=3", "train.spike"),
        ("train.clip_ratio=1", "train.clip_ratio"),
        ("train.kl=-1", "train.kl"),
        ("train.reach_s=0", "train.reach_s"),
        ("train.device=tpu", "train.device"),
        ("reward.progress=0", "reward: came progress 0.0"),
        ("seed=-1", "seed"),
        ("data.dataroot=x", "data: came an unknown key"),
    ],
)
def test_recipe_of_drives_rejects(override, words):
    with pytest.raises(InputError) as error:
        load_recipe("grpo", [override])
    assert words in str(error.value)


def test_without_a_policy_to_start_from_one_is_asked_for(tmp_path, capsys):
    assert main(["train", "grpo", "rollouts.start_from=nowhere", "--out", str(tmp_path / "run"), "--quiet"]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_drive_and_learn_what_one_does(start, tmp_path):
    recipe = recipe_of(start, "train.steps=2", "rollouts.seconds=2", "rollouts.group=3")
    for workers in (1, 2):
        grpo(recipe, tmp_path / str(workers), progress=False, workers=workers)
    assert_equal(weights(tmp_path / "1"), weights(tmp_path / "2"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_reward_rises_on_a_toy_task(start, tmp_path, monkeypatch):
    """Two clips, and the more of the plan speeds up the better."""

    def toy(checkpoint, recipe, update, pool, progress):
        drives = made_up(load(checkpoint).model.eval(), 16, faster_is_better)
        return [Group(7, FAR_M, drives)], 0

    monkeypatch.setattr(policies.grpo, "drive_groups", toy)
    more = ["train.steps=60", "train.passes=2", "train.learning_rate=2e-3", "train.checkpoint_every=60", "train.kl=0.0"]
    grpo(recipe_of(start, *more, "train.batch_size=32", "train.reach_s=4"), tmp_path, progress=False)
    rewards = [record["reward"] for record in read_steps(tmp_path / "train.jsonl")]
    assert np.mean(rewards[-6:]) > np.mean(rewards[:6]) + 0.2
    assert json.loads((tmp_path / "summary.json").read_text())["metrics"]["train.kl"] > 0
