"""Group relative policy optimisation (Shao et al. 2024, DeepSeekMath) on closed-loop drives.

An update drives groups of drives (`policies.explore`), each worth its reward (`policies.rewards`). A drive that was
worth more than its group's mean makes all that was said in it likelier, one that was worth less makes it less likely:

    J = mean over drives i of mean over their plans of
            mean over tokens t within reach of   min(rho_it A_i, clip(rho_it, 1 - e, 1 + e) A_i)
            - b mean over all tokens t of        KL(pi(. | before t) || pi_start(. | before t))

    A_i = (r_i - mean r) / max(std r, LEAST_SPREAD)      in the group of i
    rho_it = pi(t) / pi_driven(t)                        pi_driven: by which it drove

Within reach is what of a plan moved the car before the next one came: what lies further took no part in the reward,
and would only learn noise. The divergence is over all tokens that may stand at a place, where the paper draws one: our
bins are few.

A run directory holds, beside what `policies.training_loop` keeps, `start/`, the policy that it began with and stays
near, and `driver/`, by which drives are driven. Drives depend on (seed, update) and the weights alone, and a checkpoint
is only written between updates, so a resumed training ends with the same weights as an uninterrupted one.
"""

import math
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from policies.descent import part_of
from policies.distributed import sharing
from policies.explore import Experience, Group, drive_groups, explore, starts_of
from policies.freezing import freeze
from policies.grpo_recipe import GrpoRecipe
from policies.rewards import GATES, progress, reward
from policies.runs import Run
from policies.split import Learned
from policies.train import device_of
from policies.train_log import curves, duration, happened, short
from policies.training_loop import TrainingLoop, require_recipe
from policies.vla_policy import SHIPPED, tokenizer_beside
from sensors.collate import Batch
from sensors.errors import InputError
from sim.report.page import write_report
from vla.auxiliary import LossConfig
from vla.checkpoint import Loaded, exists, load, load_image_tokenizer, save
from vla.cost import activations
from vla.losses import Loss
from vla.model import DrivingModel

LEAST_SPREAD = 0.02  # of rewards in a group: smaller differences are not blown up
LAST = 10  # updates that the summary's figures are means of
FLOAT, ADAMW = 4, 8  # bytes of a parameter or a gradient, and of its two moments
Distributions = tuple[Tensor, Tensor]  # log-probabilities of accelerations [N, K, A] and of curvatures [N, K, C]


@dataclass(frozen=True)
class Part:
    """N plans that are learned from at a time.

    tokens [N, 2K], advantage [N] of their drives; weight [N], of which the mean over all parts is 1 a part;
    driven float [N, 2K]: log-probability of each token when it was drawn.
    """

    batch: Batch
    tokens: Tensor
    advantage: Tensor
    weight: Tensor
    driven: Tensor


def advantages(rewards: Sequence[float]) -> np.ndarray:
    """float64 [G]: how much better than its group each drive was, see the module's docstring."""
    r = np.asarray(rewards, np.float64)
    return (r - r.mean()) / max(r.std(), LEAST_SPREAD)


def distributions(model: DrivingModel, batch: Batch, tokens: Tensor, temperature: float) -> Distributions:
    """Log-probabilities at a temperature of all that may stand at each place of plans [N, 2K], given what stands before
    it there."""
    hidden = model.hidden(batch, tokens)
    logits = (F.linear(hidden[:, k::2], model.head.weight[slot]).float() for k, slot in enumerate(model.slots))
    accel, curvature = ((each / temperature).log_softmax(dim=-1) for each in logits)
    return accel, curvature


def of_tokens(among: Distributions, tokens: Tensor, slots: tuple[slice, slice]) -> Tensor:
    """float [N, 2K]: the log-probability of each token."""
    places = ((tokens[:, k::2] - slot.start)[..., None] for k, slot in enumerate(slots))
    chosen = [each.gather(-1, place)[..., 0] for each, place in zip(among, places, strict=True)]
    return torch.stack(chosen, dim=-1).flatten(1)


def divergence(p: Distributions, q: Distributions) -> Tensor:
    """float [N, 2K]: KL(p || q) = sum p (log p - log q) at each place."""
    each = [(mine.exp() * (mine - other)).sum(dim=-1) for mine, other in zip(p, q, strict=True)]
    return torch.stack(each, dim=-1).flatten(1)


def gain(now: Tensor, driven: Tensor, advantage: Tensor, clip_ratio: float) -> Tensor:
    """float [N, L], to be raised: min(rho A, clip(rho, 1 - e, 1 + e) A), rho = exp(now - driven).

    now, driven: log-probabilities [N, L] of tokens; advantage [N]; e: clip_ratio.
    """
    ratio, A = (now - driven).exp(), advantage[:, None]
    return torch.minimum(ratio * A, ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * A)


class GrpoTrainer(TrainingLoop):
    """Learns from its own drives; `start` is what it begins with, `pool` shares its drives."""

    recipe: GrpoRecipe

    def __init__(
        self, recipe: GrpoRecipe, path: Path, start: Loaded, pool: Executor | None = None, progress: bool = False
    ):
        self.device, self.config = device_of(recipe.name, recipe.train.device), start.model.config
        self.start = start.model.eval().requires_grad_(False).to(self.device)
        model = DrivingModel(self.config)
        model.load_state_dict(start.model.state_dict())
        freeze(model, recipe.train.freeze, recipe.name)
        super().__init__(recipe, path, model.to(self.device), recipe.rollouts.groups * recipe.rollouts.group)
        self.pool, self.progress = pool, progress
        updates = range(recipe.train.steps // recipe.train.passes)
        learned = Learned.of_starts(one for update in updates for one in starts_of(recipe.rollouts, update))
        self.extra["learned"] = (Learned.from_json(start.extra.get("learned", [])) | learned).to_json()
        self._plans: list[Part] = []
        self._told: dict[str, float] = {}

    def _load(self, path: Path) -> Loaded:
        return load(path, self.config)

    def _part_of(self, name: str) -> str:
        return part_of(name)

    @property
    def pace(self) -> tuple[int, str]:
        return self.examples, "drives"

    def _parts(self) -> list[Part]:
        """The plans of this update, driven anew in its first pass."""
        self.model.eval()  # learns as it drives: nothing is dropped, and routers stay as they are
        if self.step % self.recipe.train.passes == 0:
            update = self.step // self.recipe.train.passes
            save(self.path / "driver", self.model)
            with _one_thread():  # what drives elsewhere has one too, and sums alike
                driven = drive_groups(self.path / "driver", self.recipe, update, self.pool, self.progress)
            self.take(*driven)
        return self._plans

    def take(self, groups: list[Group], failed: int = 0) -> None:
        """Make these what is learned from until the next update."""
        config = self.recipe.reward
        worth = [[reward(drive.outcome, group.expert_m, config) for drive in group.drives] for group in groups]
        pairs = [
            (d, A) for g, r in zip(groups, worth, strict=True) for d, A in zip(g.drives, advantages(r), strict=True)
        ]
        self._plans = self._split([(drive, float(A)) for drive, A in pairs if len(drive)])
        self._told = _told(groups, worth) | ({"broken": failed} if failed else {})

    def _split(self, drives: list[tuple[Experience, float]]) -> list[Part]:
        """Parts of at most batch_size plans of one drive each, in which all drives weigh alike."""
        size = self.recipe.train.batch_size
        pieces = [
            (drive, slice(start, start + size), advantage)
            for drive, advantage in drives
            for start in range(0, len(drive), size)
        ]
        if not pieces:
            fix = "Does it drive, by vla drive --policy vla --checkpoint?"
            raise InputError(self.path, "drives", "none with a plan", "plans to learn from", fix)
        return [self._part(*piece, len(pieces) / len(drives)) for piece in pieces]

    @torch.no_grad()
    def _part(self, drive: Experience, rows: slice, advantage: float, share: float) -> Part:
        """These plans of a drive, which has this share of the weight."""
        batch, tokens = drive.batch(rows), torch.from_numpy(drive.tokens[rows])
        known = (torch.full((len(tokens),), each) for each in (advantage, share / len(drive)))
        among = self._distributions(self.model, batch, tokens)
        return Part(batch, tokens, *known, of_tokens(among, tokens.to(self.device), self.model.slots).cpu())

    def _distributions(self, model: DrivingModel, batch: Batch, tokens: Tensor) -> Distributions:
        tokens = tokens.to(self.device)
        return distributions(model, batch.to(self.device), tokens, self.recipe.rollouts.temperature)

    def _loss(self, part: Part) -> Loss:
        config = self.recipe.train
        among = self._distributions(self.model, part.batch, part.tokens)
        with torch.no_grad():
            near = self._distributions(self.start, part.batch, part.tokens)
        tokens, advantage, weight, driven = (
            each.to(self.device) for each in (part.tokens, part.advantage, part.weight, part.driven)
        )
        now, kl = of_tokens(among, tokens, self.model.slots), divergence(among, near)
        within = slice(0, 2 * math.ceil(config.reach_s / self.config.plan_dt_s))
        gained = gain(now[:, within], driven[:, within], advantage, config.clip_ratio)
        loss = -(weight * (gained.mean(dim=1) - config.kl * kl.mean(dim=1))).sum()
        with torch.no_grad():
            clipped = ((now - driven).exp() - 1).abs() > config.clip_ratio
            entropy = torch.stack([-(each.exp() * each).sum(dim=-1) for each in among], dim=-1).flatten(1)
            figures = {"kl": kl, "entropy": entropy, "clipped": clipped[:, within].float()}
            return loss, {name: (weight * value.mean(dim=1)).sum() for name, value in figures.items()}

    def _after(self, taken: bool) -> dict:
        return self._told


def _told(groups: list[Group], worth: list[list[float]]) -> dict[str, float]:
    """Of an update's drives: mean reward and what it is made of, share of gated ones by cause, and of groups in which
    all drives were worth the same, which teach nothing."""
    drives = [(drive.outcome, group.expert_m) for group in groups for drive in group.drives]
    told = {
        "reward": np.mean([one for rewards in worth for one in rewards]),
        "reward_best_of_group": np.mean([max(rewards) for rewards in worth]),
        "reward_progress": np.mean([progress(*drive) for drive in drives]),
        "reward_comfort": np.mean([outcome.comfort for outcome, _ in drives]),
        "gated": np.mean([outcome.gated for outcome, _ in drives]),
        **{f"gated_{gate}": np.mean([getattr(outcome, gate) for outcome, _ in drives]) for gate in GATES},
        "groups_alike": np.mean([max(rewards) - min(rewards) < 1e-9 for rewards in worth]),
        "drives": len(drives),
        "plans": sum(len(drive) for group in groups for drive in group.drives),
    }
    return {name: float(value) for name, value in told.items()}


@contextmanager
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begun(recipe: GrpoRecipe, path: Path) -> Loaded:
    """What the training in a run directory begins with, kept there with the tokenizer of a model that reads codes."""
    kept = path / "start"
    if not exists(kept):
        given = Path(recipe.rollouts.start_from or SHIPPED)
        loaded = load(given)
        if loaded.model.config.image_input != "patches":
            save(tokenizer_beside(kept), load_image_tokenizer(tokenizer_beside(given)).model)
        save(kept, loaded.model, extra={"learned": loaded.extra.get("learned", [])})
    return load(kept)


def grpo(recipe: GrpoRecipe, out: Path, progress: bool = True, workers: int = 1, address: str | None = None) -> Path:
    """Train in a run directory, new or begun, to the last step; returns the path of its report. The workers, with an
    address those of a Ray cluster, share the drives, and what comes out does not depend on how many they are."""
    run = Run.create("train", out, recipe.to_dict(), [recipe.seed], resume=True)
    require_recipe(recipe, out)
    start = _begun(recipe, out)
    with sharing(workers, address) as pool:
        trainer = GrpoTrainer(recipe, out, start, pool, progress)
        if trainer.resume() and progress:
            print(f"resuming at step {trainer.step} of {recipe.train.steps}")
        records = trainer.run(progress)
    run.summary["curves"] = curves(records)
    run.summary["events"] = happened(records, trainer.guard.events)
    firsts = records[:: recipe.train.passes]  # each update once
    ends = {"first": firsts[:LAST], "last": firsts[-LAST:]}
    run.summary["metrics"] = {
        f"train.{name}_{which}": float(np.mean([record[name] for record in some]))
        for which, some in ends.items()
        for name in ("reward", "gated", "reward_progress", "reward_comfort")
    } | {
        "train.kl": next(record["kl"] for record in reversed(records) if record["kl"] is not None),
        "train.drives": sum(record["drives"] for record in firsts),
        "train.broken": sum(record.get("broken", 0) for record in firsts),
        "train.minutes": sum(record["step_s"] for record in records) / 60,
    }
    run.summary["scenes"] = {"asked": 1, "finished": 1, "failed": 0}
    run.save()
    return write_report(out)


def dry_run_grpo(recipe: GrpoRecipe, workers: int = 1) -> list[str]:
    """What a training would cost, in words, from one drive of its own and what learning from it takes; nothing is left
    of it."""
    with TemporaryDirectory() as folder:
        path, config = Path(folder), recipe.train
        trainer = GrpoTrainer(recipe, path, _begun(recipe, path))
        save(path / "driver", trainer.model)
        start, begun = starts_of(recipe.rollouts, 0)[0], time.perf_counter()
        with _one_thread():
            drive = explore(path / "driver", recipe, 0, start, 0)
        drive_s, begun = time.perf_counter() - begun, time.perf_counter()
        trainer.take([Group(start, 0.0, (drive,))])
        before_s, begun = time.perf_counter() - begun, time.perf_counter()
        trainer._gradients(trainer._plans)
        learn_s = before_s + config.passes * (time.perf_counter() - begun)
    updates, drives = config.steps // config.passes, trainer.examples
    update_s = drives * (drive_s / workers + learn_s)
    count, learn = (sum(p.numel() for p in some) for some in (trainer.model.parameters(), trainer._trained.values()))
    memory = {
        "weights, and the start's": 2 * FLOAT * count,
        "gradients": FLOAT * learn,
        "optimizer": ADAMW * learn,
        "clips of an update": drives * sum(each.nbytes for each in drive.seen),
        "activations (estimated)": config.batch_size * activations(trainer.config, LossConfig(), "fp32").total,
    }
    kept = ", ".join(f"{name} {short(size, 'B')}" for name, size in memory.items())
    said = f"{drives * drive.tokens.size:,} in an update, if its drives were like the one tried, of {len(drive)} plans"
    took = f"{drive_s:.1f} s to drive it, {learn_s:.1f} s to learn from it"
    return [
        f"parameters  {short(count)}, {short(learn)} learn",
        f"memory      {short(sum(memory.values()), 'B')}: {kept}; a model more in each worker",
        f"drives      {drives} an update, of at most {recipe.rollouts.seconds:g} s; {drives * updates:,} in all",
        f"tokens      {said}",
        f"time        {update_s:.0f} s an update ({took}), {duration(update_s * updates)} for {updates} updates",
    ]
