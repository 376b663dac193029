"""What a policy learned from, and whether it is scored on that: no figure may come from scenes that were learned.

A recorded scene goes by its name and location; one of a town by town and seed, which its extension tells, whatever it
was recorded as. A suite that promises a town that was never seen keeps its promise only for a policy that learned
nothing there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sensors.errors import InputError
from sensors.nuscenes_source import RecordedSource
from sim.scenarios import COURSE, UNSEEN_TOWN, Scenario

ALLOW_FLAG = "--allow-seen"
MOST_NAMED = 3
RECORDED = -1
Key = tuple[str, str, int]  # (name, location, RECORDED) of a recorded scene, ("", town, seed) of one that was simulated


@dataclass(frozen=True)
class Learned:
    """names: what the scenes are called, by what they are."""

    names: dict[Key, str]

    @classmethod
    def of(cls, places: Iterable[tuple[RecordedSource, str]]) -> "Learned":
        """All of these scenes."""
        return cls(dict(_known(source, scene) for source, scene in places))

    @classmethod
    def of_starts(cls, starts: Iterable[int | Scenario]) -> "Learned":
        """All of these seeds of the course and scenarios of towns."""
        return cls(dict(_start(start) for start in starts))

    @classmethod
    def from_json(cls, rows: list) -> "Learned":
        """Of what `to_json` made."""
        return cls({(scene, town, seed): name for name, scene, town, seed in rows})

    def to_json(self) -> list:
        """[name, scene, town, seed] of each, for a checkpoint."""
        return sorted([name, *key] for key, name in self.names.items())

    def __or__(self, other: "Learned") -> "Learned":
        return Learned(self.names | other.names)

    @property
    def towns(self) -> set[str]:
        return {town for _, town, seed in self.names if seed != RECORDED}

    def require_apart(self, held_out: "Learned", where: object) -> None:
        """An InputError if a scene that is held out is one of these."""
        both = [held_out.names[key] for key in held_out.names if key in self.names]
        if both:
            fix = "Record others (vla record --seed), or leave out the dataroot or the checkpoint that has them."
            raise InputError(where, "held-out scenes", f"{_listed(both)}, learned from too", "scenes of their own", fix)

    def seen_of(self, starts: Sequence[int | Scenario]) -> list[str]:
        """Which seeds of the course and scenarios of towns were learned, or promise a town that was not but was."""
        seen = []
        for start in starts:
            key, name = _start(start)
            if key in self.names:
                seen.append(name)
            elif isinstance(start, Scenario) and start.town == UNSEEN_TOWN in self.towns:
                seen.append(f"{name} (in {start.town}, which was to be unseen)")
        return seen

    def seen_in(self, source: RecordedSource) -> list[str]:
        """Which scenes of a dataroot were learned."""
        keys = ((scene, _known(source, scene)[0]) for scene in source.scenes)
        return [scene for scene, key in keys if key in self.names]


def refuse_seen(seen: list[str], allowed: bool, verb: str) -> None:
    """An InputError if a policy is to be scored on what it learned, or loud words if that is `allowed`."""
    if seen and not allowed:
        fix = f"Choose others, or run it on them on purpose with {ALLOW_FLAG}."
        raise InputError(verb, "scenes", f"{_listed(seen)}, which it learned from", "scenes that it has not seen", fix)
    if seen:
        print(f"SEEN IN TRAINING, so no score of how well it does elsewhere: {_listed(seen)}", flush=True)


def _start(start: int | Scenario) -> tuple[Key, str]:
    """What a seed of the course or a scenario is, and what it is called."""
    if not isinstance(start, Scenario):
        return (f"scene-{start:04d}", COURSE, RECORDED), f"seed {start}"
    return ("", Path(start.town).name.partition(".")[0], start.seed), start.name


def _known(source: RecordedSource, scene: str) -> tuple[Key, str]:
    """What a scene is, and what it is called."""
    extension = source.extension(scene)
    if extension is None:
        return (scene, source.scene(scene).location, RECORDED), scene
    return ("", extension.town, extension.seed), extension.scenario


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
