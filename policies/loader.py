"""What each step of a training learns from, made in this process or ahead of it by others.

Which examples a draw has, and how they are varied, depends on the recipe and on the draw's number alone. So it makes no
difference who makes it: with `train.loader_workers` spawned processes make the draws to come, in their order, a bounded
number of them ahead (torch's DataLoader), and end with this one.

An example whose file is broken is passed over, and another takes its place, drawn by the same rule and as reproducibly.
"""

import pickle
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.shared_memory import SharedMemory
from weakref import finalize

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from policies.data import Example, TrainingSet
from policies.recipes import Recipe
from policies.streams import Streams
from policies.transforms import speed_at_now, to_batch
from policies.workers import work_alone
from sensors.collate import Batch
from sensors.errors import BrokenFile, InputError
from vla.config import ModelConfig
from vla.parallel import Replicas
from vla.sentences import sentences_of

AHEAD = 2  # draws that each process makes ahead
MOST_BROKEN = 0.01  # of the examples
TRIES, NAMED = 100, 5


@dataclass(frozen=True)
class Made:
    """Clips, the action tokens that the model is to say, and their reasons and surroundings where they are asked for.

    batch, tokens  of B clips
    told           int64 [B, R]  tokens of the reasons, or None
    around         the two of `sensors.surroundings.surroundings`, and of `in_images`, [B, ...] each, or None
    broken         (example, file) of those that others were taken for
    """

    batch: Batch
    tokens: Tensor
    told: Tensor | None
    around: tuple[Tensor, ...] | None
    broken: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class HeldOut:
    """Examples to look at, made as they are.

    plans      float64 [B, K, 3]  what a decoded plan is measured against
    speed_mps  float64 [B]        that it begins with
    """

    made: Made
    plans: np.ndarray
    speed_mps: np.ndarray


class Draws:
    """By the number of a draw, one replica's share of it in `train.accumulate` parts: a list of Made.

    Or, since another process may be asked, the InputError that making it ended with.
    """

    def __init__(self, examples: TrainingSet, recipe: Recipe, replicas: Replicas):
        self.examples, self.recipe, self.replicas = examples, recipe, replicas
        chances = examples.chances(recipe.data)
        self._chances = None if chances is None else np.cumsum(chances)
        self.streams = None
        if recipe.data.shuffle:
            order = examples.shards(), recipe.train.batch_size, recipe.seed, recipe.data.shuffle
            self.streams = Streams(*order, chances)
            self.streams.require_apart(replicas.count)

    def __getitem__(self, draw: int) -> list[Made] | InputError:
        try:
            share = self.replicas.share(list(enumerate(self.indices(draw))))
            return [self._made(draw, part) for part in in_parts(share, self.recipe.train.accumulate)]
        except InputError as error:
            return error

    def indices(self, draw: int) -> list[int]:
        """The examples of a draw: of shuffled epochs, or by their chances, or of shards one after the other."""
        if self.streams is not None:
            return self.streams.indices(draw)
        size, seed = self.recipe.train.batch_size, self.recipe.seed
        if self._chances is None:
            return shuffled(len(self.examples), size, seed, draw)
        return self._chosen(np.random.default_rng([seed, draw, 2]).random(size)).tolist()

    def _chosen(self, draws: np.ndarray) -> np.ndarray:
        """The examples that uniform draws in [0, 1) mean."""
        if self._chances is None:
            return (draws * len(self.examples)).astype(int)
        return np.searchsorted(self._chances, draws).clip(max=len(self.examples) - 1)

    def _made(self, draw: int, share: Sequence[tuple[int, int]]) -> Made:
        examples, broken = zip(*(self._example(draw, *at) for at in share), strict=True)
        return replace(made_of(examples, self.recipe.model, self.examples.has_reasons), broken=sum(broken, ()))

    def _example(self, draw: int, place: int, index: int) -> tuple[Example, tuple[tuple[int, str], ...]]:
        """One example, varied as its place in the draw has it, whichever replica learns from it; what was broken."""
        seed, broken = self.recipe.seed, ()
        rng, others = np.random.default_rng([seed, draw, 0, place]), np.random.default_rng([seed, draw, 3, place])
        for tried in range(TRIES):
            try:
                return self.examples.varied(index, rng, self.recipe), broken
            except BrokenFile as error:
                broken = (*broken, (index, error.where))
                if self.streams is not None:
                    index = self.streams.instead(draw, place, others, tried)
                else:
                    index = int(self._chosen(others.random(1))[0])
        raise _too_many(dict(broken), len(self.examples), _roots(self.recipe))


class Feed:
    """The draws of a training, one after the other, from this process or from others that are ahead of it.

    skipped  how many examples of the last draw were passed over, as their files are broken
    """

    def __init__(self, draws: Draws):
        self._draws, self._recipe = draws, draws.recipe
        self._broken: dict[int, str] = {}
        self._ahead: Iterator | None = None
        self._told: _Told | None = None
        self._next, self.skipped = -1, 0

    def parts(self, draw: int) -> list[Made]:
        """This replica's share of a draw; more than MOST_BROKEN broken examples are an InputError that names files."""
        made = self._draws[draw] if not self._recipe.train.loader_workers else self._taken(draw)
        if isinstance(made, InputError):
            raise made
        broken = [each for part in made for each in part.broken]
        self._broken |= dict(broken)
        self.skipped = len(broken)
        require_few(self._broken, len(self._draws.examples), _roots(self._recipe))
        return made

    def _taken(self, draw: int) -> list[Made] | InputError:
        """A draw that others made; for any but the next one they begin anew."""
        if draw != self._next:
            self._told = self._told or _Told(self._draws)
            self._ahead = iter(
                DataLoader(
                    self._told,
                    batch_size=None,
                    sampler=range(draw, draw + self._recipe.train.steps),
                    num_workers=self._recipe.train.loader_workers,
                    collate_fn=_as_it_is,
                    worker_init_fn=_begin,
                    multiprocessing_context="spawn",
                    prefetch_factor=AHEAD,
                    generator=torch.Generator(),  # else it takes a number from the global one
                )
            )
        self._next = draw + 1
        return next(self._ahead)


class _Told:
    """Draws for processes to come, in memory that they share; it goes when this one does, whatever ends it.

    Draws know every example by name: megabytes. Whoever spawns a process waits until it has read all that it is told,
    which is when it has imported torch; of so many only the name of the memory, and all of them begin at once.
    """

    def __init__(self, draws: Draws):
        content = pickle.dumps(draws)
        self._memory = SharedMemory(create=True, size=len(content))
        self._memory.buf[: len(content)] = content
        self._draws = draws
        finalize(self, _forget, self._memory)

    def __getstate__(self) -> str:
        return self._memory.name

    def __setstate__(self, name: str) -> None:
        memory = SharedMemory(name)
        self._draws = pickle.loads(memory.buf)
        memory.close()

    def __getitem__(self, draw: int) -> list[Made] | InputError:
        return self._draws[draw]


def _forget(memory: SharedMemory) -> None:
    memory.close()
    memory.unlink()


def require_few(broken: dict[int, str], examples: int, where: str) -> None:
    """An InputError that names files if more than MOST_BROKEN of so many examples are broken: {example: file}."""
    if len(broken) > MOST_BROKEN * examples:
        raise _too_many(broken, examples, where)


def made_of(examples: Sequence[Example], model: ModelConfig, has_reasons: bool) -> Made:
    """Examples as one batch."""
    told, around = None, None
    if model.reason_places and has_reasons:
        told = torch.tensor([sentences_of(model).reason(e.reason) for e in examples])
    if examples[0].around:
        around = tuple(stacked(each) for each in zip(*(e.around for e in examples), strict=True))
    batch = to_batch([e.clip for e in examples], model)
    return Made(batch, stacked([e.tokens for e in examples]), told, around, ())


def looks(examples: TrainingSet, model: ModelConfig, size: int) -> Iterator[HeldOut]:
    """All examples whose files are whole, so many at a time."""
    for at in range(0, len(examples), size):
        found = readable(examples, range(at, min(at + size, len(examples))))
        if found:
            plans, speeds = [e.plan for e in found], [speed_at_now(e.clip) for e in found]
            yield HeldOut(made_of(found, model, examples.has_reasons), np.stack(plans), np.array(speeds))


def readable(examples: TrainingSet, indices: Iterable[int]) -> list[Example]:
    """Those of these examples, as recorded, whose files are whole."""
    found = []
    for index in indices:
        with suppress(BrokenFile):
            found.append(examples[index])
    return found


def shuffled(examples: int, size: int, seed: int, draw: int) -> list[int]:
    """Which examples a draw of `size` has: consecutive places in an endless sequence of shuffled epochs."""
    places = range(draw * size, (draw + 1) * size)
    epochs = {place // examples for place in places}
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(examples) for epoch in epochs}
    return [int(orders[place // examples][place % examples]) for place in places]


def in_parts(items: Sequence, count: int) -> list[Sequence]:
    """What a replica learns from in so many parts of one size."""
    if len(items) % count:
        fix = "Change train.batch_size, train.accumulate, or the number of workers."
        raise InputError("train.accumulate", "parts", f"{len(items)} clips of a worker in {count}", "as many", fix)
    size = len(items) // count
    return [items[start : start + size] for start in range(0, len(items), size)]


def stacked(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _too_many(broken: dict[int, str], examples: int, where: str) -> InputError:
    files = list(dict.fromkeys(broken.values()))
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    came = f"{len(broken)} of {examples} examples with a broken one: {', '.join(files[:NAMED])}{more}"
    return InputError(where, "files", came, f"at most {MOST_BROKEN:.0%} of them", "Copy or record them again.")


def _roots(recipe: Recipe) -> str:
    return ", ".join((recipe.data.dataroot, *recipe.data.more_dataroots))


def _as_it_is(made: list[Made] | InputError) -> list[Made] | InputError:
    return made


def _begin(_: int) -> None:
    work_alone()
