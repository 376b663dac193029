"""Drives to learn from: groups of them from one start each, every plan drawn, and kept with what was seen.

Drives of a group begin alike (town, seed, traffic) and differ in what is drawn alone: by (seed of the recipe, update,
start, member), so it makes no difference which process drives. The expert drives from the same start, unseeing, to say
how far one could have got.
"""

import traceback
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from policies.expert import PurePursuit
from policies.grpo_recipe import GrpoRecipe, RolloutConfig
from policies.protocol import Plan, Privileged
from policies.rewards import Outcome, outcome_of
from policies.rollout import drive_episode, quiet_env
from policies.town_expert import TownExpert
from policies.transforms import image_size, plan_from_tokens, stop_plan, to_batch
from policies.vla_policy import tokenizer_beside
from sensors.clip import Clip
from sensors.collate import Batch
from sensors.errors import InputError
from sim.scenarios import COURSE, Scenario, get_scenario, suite_length
from vla.action_tokens import ActionTokenizer
from vla.checkpoint import load, load_image_tokenizer
from vla.image_tokens import ImageTokenizer
from vla.model import DrivingModel

MOST_FAILED = 0.25  # of the drives of an update
UNSEEN = (32, 32)  # px of images that nobody draws
Start = int | Scenario


@dataclass(frozen=True)
class Experience:
    """A drive as it is learned from.

    kind, seen  the class and the fields of the batch of P clips that plans were made for; images are uint8
    tokens      int64 [P, 2K]  of these plans
    """

    kind: type[Batch]
    seen: tuple[np.ndarray, ...]
    tokens: np.ndarray
    outcome: Outcome

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: slice) -> Batch:
        """Some of the clips."""
        return self.kind(*(torch.from_numpy(each[rows]) for each in self.seen))


@dataclass(frozen=True)
class Group:
    """Drives from one start, and how far the expert got from there."""

    start: Start
    expert_m: float
    drives: tuple[Experience, ...]


class Explorer:
    """A policy that draws its plans at a temperature, and keeps what it saw and said since `reset`.

    Each plan is made for its clip alone: nothing is remembered between plans, so that its probability can be worked
    out again from the clip. invalid: whether there was no plan somewhere; a stop was driven then, and is not kept.
    """

    name = "vla"
    privileged = False
    needs_images = True

    def __init__(
        self, model: DrivingModel, codes: ImageTokenizer | None, temperature: float, draws: tuple[int, ...] = (0,)
    ):
        self.model, self.config, self._codes, self._temperature = model, model.config, codes, temperature
        self.clip_steps, self.image_size = model.config.steps, image_size(model.config)
        self._tokenizer = ActionTokenizer(model.config)
        self._seed = int(np.random.default_rng(draws).integers(2**62))
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Begin anew; what is drawn depends on `draws`, since a drive's seed is that of its whole group."""
        self._generator = torch.Generator().manual_seed(self._seed)
        self._seen: list[Batch] = []
        self._said: list[np.ndarray] = []
        self.invalid = False

    def plan(self, clip: Clip, privileged: Privileged) -> Plan:
        batch = to_batch([clip], self.config, self._codes)
        decoded = self.model.decode(batch, self._generator, self._temperature)
        if not decoded.valid[0]:
            self.invalid = True
            return stop_plan(clip, "logits that are not finite")
        tokens = decoded.tokens.numpy()
        self._seen.append(batch)
        self._said.append(tokens)
        return plan_from_tokens(tokens[0], clip, self._tokenizer)

    def experience(self, outcome: Outcome) -> Experience:
        """The drive since `reset`, of which this came; in numpy, which crosses between processes as it is."""
        kind = type(self._seen[0]) if self._seen else Batch
        names = [field.name for field in fields(kind)] if self._seen else []
        seen = tuple(torch.cat([getattr(batch, name) for batch in self._seen]).numpy() for name in names)
        tokens = np.concatenate([*self._said, np.empty((0, self.config.action_tokens), np.int64)])
        return Experience(kind, seen, tokens, outcome)


def starts_of(rollouts: RolloutConfig, update: int) -> list[Start]:
    """What the groups of an update start from; after the last scenario of a suite comes its first."""
    numbers = range(rollouts.first + update * rollouts.groups, rollouts.first + (update + 1) * rollouts.groups)
    if rollouts.suite == COURSE:
        return list(numbers)
    length = suite_length(rollouts.suite)
    return [get_scenario(f"{rollouts.suite}/{number % length}") for number in numbers]


def explore(checkpoint: Path, recipe: GrpoRecipe, update: int, start: Start, member: int) -> Experience:
    """One drive, by the weights that a checkpoint has in this update."""
    rollouts = recipe.rollouts
    seed = start.seed if isinstance(start, Scenario) else start
    model, codes = _driver(checkpoint, update)
    policy = Explorer(model, codes, rollouts.temperature, (recipe.seed, update, seed, member))
    of_town = start if isinstance(start, Scenario) else None
    env = quiet_env(policy.image_size, rollouts.seconds, of_town, rollouts.renderer)
    try:
        log = drive_episode(policy, env, start)
    finally:
        env.close()
    return policy.experience(outcome_of(log, policy.invalid))


def expert_m(rollouts: RolloutConfig, start: Start) -> float:
    """How far the expert gets along the route in the same time."""
    of_town = start if isinstance(start, Scenario) else None
    env = quiet_env(UNSEEN, rollouts.seconds, of_town, seen=False)
    try:
        return outcome_of(drive_episode(TownExpert() if of_town else PurePursuit(), env, start)).moved_m
    finally:
        env.close()


def drive_groups(
    checkpoint: Path, recipe: GrpoRecipe, update: int, pool: Executor | None, progress: bool
) -> tuple[list[Group], int]:
    """(all groups of an update, how many drives failed); more than MOST_FAILED of them end it.

    A drive that fails is left out, and so is a group of which fewer than two are left, or whose expert failed.
    """
    rollouts, jobs = recipe.rollouts, []
    for start in starts_of(rollouts, update):
        jobs.append((expert_m, rollouts, start))
        jobs += [(explore, checkpoint, recipe, update, start, member) for member in range(rollouts.group)]
    waiting = [job if pool is None else pool.submit(_tried, *job) for job in jobs]
    # Only on a terminal, where the line is taken away again.
    bar = tqdm(
        total=len(jobs), desc=f"update {update + 1}", unit="drive", leave=False, disable=None if progress else True
    )
    done = []
    with bar:
        for job in waiting:
            done.append(_tried(*job) if pool is None else job.result())
            bar.update()
    failed = [each for each in done if isinstance(each, str)]
    if len(failed) > MOST_FAILED * len(done):
        raise RuntimeError(
            f"{len(failed)} of {len(done)} drives of update {update + 1} failed, the first so:\n{failed[0]}"
        )
    groups, size = [], 1 + rollouts.group
    for k, start in enumerate(starts_of(rollouts, update)):
        reach_m, *drives = done[k * size : (k + 1) * size]
        drives = tuple(drive for drive in drives if isinstance(drive, Experience))
        if not isinstance(reach_m, str) and len(drives) >= 2:
            groups.append(Group(start, reach_m, drives))
    return groups, len(failed)


def _tried(function, *arguments: object) -> object:
    """What a function returns; a drive's failure must not cost the others, so it is a text: the traceback."""
    try:
        return function(*arguments)
    except InputError:
        raise
    except Exception:
        return traceback.format_exc()


@lru_cache(maxsize=1)
def _driver(checkpoint: Path, update: int) -> tuple[DrivingModel, ImageTokenizer | None]:
    """The checkpoint's model, read once an update, and the tokenizer beside it, where it reads codes."""
    model = load(checkpoint).model.eval()
    if model.config.image_input == "patches":
        return model, None
    return model, load_image_tokenizer(tokenizer_beside(checkpoint)).model
