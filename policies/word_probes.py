"""Where in a drive a minimal pair of what is said can be asked for.

Found from the world, never from what a policy does; asked only where the expert's own plans for the two versions tell
them apart by what is asked of the policy. The wordings are drawn from those of `sim.town_words`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from policies.imagine import fitting_wishes, parked_ahead
from policies.pairs import tells_lane, tells_red, tells_slow
from policies.probes import MOVES_MPS, Probe, Probes, Version, in_its_lane
from policies.protocol import Privileged
from policies.town_expert import TownExpert
from policies.wishes import LANES
from sim.imagined import Imagined, Wish
from sim.scene import Otherwise
from sim.town_words import WISHED_KINDS, wish_words
from sim.town_world import TownWorld
from sim.tracker import Plan
from sim.world import PAINTS, Actor

ROUTE = "the route"  # the version in which nobody wishes for anything
PARKED_M = (8.0, 20.0)  # from the front bumper to who is spoken of


class WordProbes(Probes):
    """As Probes, of what is said."""

    def at(self, world: TownWorld) -> Iterator[Probe]:
        if not in_its_lane(world) or world.ego.speed_mps < MOVES_MPS:
            return
        for probe in self._turns(world):
            yield from self._told_by_one(probe)
        for kind, make in (("slow", _slow), ("stop", _stop), ("stop_whom", _stop_whom), ("lane", _lane)):
            yield from self._now_and_then(kind, world.time_us, partial(make, world, self._rng))

    def _told_by_one(self, turn: Probe) -> Iterator[Probe]:
        """The pair of a turn as it is, by words alone, and by the command alone."""
        which = int(self._rng.integers(1000))
        spoken = (replace(version, cue=("follow", wish_words(version.words, which))) for version in turn.versions)
        silent = (replace(version, cue=(version.words, "")) for version in turn.versions)
        yield turn
        yield replace(turn, kind="turn_words", versions=tuple(spoken))
        yield replace(turn, kind="turn_command", versions=tuple(silent))


def _slow(world: TownWorld, rng: np.random.Generator) -> Probe | None:
    return _fair(world, "slow", (None, _said(rng, "slow")), (), tells_slow)


def _stop(world: TownWorld, rng: np.random.Generator) -> Probe | None:
    named, gap_m, parked = _parked(world, rng)
    wishes = None, _said(rng, "stop behind", named)
    return _fair(world, "stop", wishes, parked, partial(tells_red, line_m=gap_m), gap_m)


def _stop_whom(world: TownWorld, rng: np.random.Generator) -> Probe | None:
    named, gap_m, parked = _parked(world, rng)
    other = str(rng.choice([kind for kind in WISHED_KINDS if kind != named]))
    which = int(rng.integers(1000))
    wishes = (Wish("stop behind", wish_words("stop behind", which, of), of) for of in (other, named))
    return _fair(world, "stop_whom", tuple(wishes), parked, partial(tells_red, line_m=gap_m), gap_m)


def _lane(world: TownWorld, rng: np.random.Generator) -> Probe | None:
    kinds = [kind for kind in fitting_wishes(world) if kind in LANES]
    if not kinds or world.command.startswith("lane"):
        return None
    kind = kinds[int(rng.integers(len(kinds)))]
    return _fair(world, "lane", (None, _said(rng, kind)), (), partial(tells_lane, left=LANES[kind]))


def _said(rng: np.random.Generator, kind: str, of: str = "") -> Wish:
    return Wish(kind, wish_words(kind, int(rng.integers(1000)), of), of)


def _parked(world: TownWorld, rng: np.random.Generator) -> tuple[str, float, tuple[Actor, ...]]:
    """Who might be parked ahead: its kind, how far ahead, and itself, if it can be there."""
    named, gap_m = str(rng.choice(WISHED_KINDS)), float(rng.uniform(*PARKED_M))
    parked = parked_ahead(world, named, gap_m, PAINTS[int(rng.integers(len(PAINTS)))])
    return named, gap_m, () if parked is None else (parked,)


def _fair(
    world: TownWorld,
    kind: str,
    wishes: tuple[Wish | None, Wish],
    guests: tuple[Actor, ...],
    passed: Callable[[Plan, Plan], bool],
    gap_m: float = 0.0,
) -> Probe | None:
    """The pair of two wishes, the first perhaps none, if the expert passes it."""
    nobody = frozenset(actor.instance for actor in world.actors)
    worlds = [world.imagined(Imagined(world.ego, gone=nobody, guests=guests, wish=wish)) for wish in wishes]
    if not passed(*map(_expected, worlds)):
        return None
    # The command is that of the wish in both: nothing but the words differs.
    command, seen = worlds[1].command, Otherwise(nobody, added=guests)
    names = [ROUTE if wish is None else f"behind the {wish.of}" if wish.of else wish.kind for wish in wishes]
    pair = (Version(n, seen, (command, there.instruction)) for n, there in zip(names, worlds, strict=True))
    return Probe(kind, tuple(pair), passed, gap_m)


def _expected(world: TownWorld) -> Plan:
    """What the expert would do there."""
    return TownExpert().plan(None, Privileged(world=world))
