"""From nothing to a policy with its scores: the stages of a file, one `vla` command each, run in turn and resumed.

    name: tiny-town
    given:
      steps: 9000
    stages:
      record: record --suite town-train --out {out}/town
      train: train tiny-town data.dataroot={out}/town train.steps={steps} --workers {cores} --out {out}/train

{out} is the folder that all of it is made in, {cores} the number of this machine's; what else the commands name in
braces stands in `given`, which may be left out, with a value that `vla make tiny-town steps=100` replaces. A stage that
was finished is passed over; one that was not goes on where it was, as its verb does. `stages.json` says what each took.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from policies.runs import write_json
from sensors.errors import InputError, nearest

SHIPPED = Path(__file__).parent / "stages"


@dataclass(frozen=True)
class Stages:
    """name; stages: name -> arguments of `vla`, in order."""

    name: str
    stages: dict[str, list[str]]


def shipped_stages() -> list[str]:
    """Names of the files that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_stages(name_or_path: str, out: Path, overrides: Sequence[str] = ()) -> Stages:
    """A shipped file by its name, or one's own, with KEY=VALUE in the place of what is `given` there; what is not as in
    the module's docstring is an InputError."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = SHIPPED / f"{name_or_path}.yaml"
    if not path.is_file():
        names = shipped_stages()
        hint = nearest(name_or_path, names)
        raise InputError("vla make", "name", name_or_path, f"a YAML file or one of: {', '.join(names)}", hint)
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(path, "YAML", str(error).replace("\n", " "), "a YAML mapping") from None
    if isinstance(values, dict):
        values.setdefault("given", {})
    keys = {"name": str, "given": dict, "stages": dict}
    if not isinstance(values, dict) or any(type(values.get(key)) is not kind for key, kind in keys.items()):
        came = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise InputError(path, "YAML", came, "name, and stages: a mapping of names to commands; and given: to values")
    if unknown := sorted(set(values) - set(keys)):
        raise InputError(path, unknown[0], "an unknown key", f"one of {', '.join(keys)}", nearest(unknown[0], keys))
    wrong = [name for name, command in values["stages"].items() if not isinstance(command, str) or not command.strip()]
    if wrong or not values["stages"]:
        raise InputError(path, "stages", wrong or "none", "a command of vla each")
    given = _replaced(path, values["given"], overrides)
    given |= {"out": str(out), "cores": str(len(os.sched_getaffinity(0)))}
    commands = {name: [_filled(path, part, given) for part in shlex.split(c)] for name, c in values["stages"].items()}
    return Stages(values["name"], commands)


def make(stages: Stages, out: Path) -> int:
    """Run what is not yet done; the exit status of the first stage that fails, 0 if none does."""
    out.mkdir(parents=True, exist_ok=True)
    notes = out / "stages.json"
    done = json.loads(notes.read_text()) if notes.exists() else {}
    for name, arguments in stages.stages.items():
        if name in done:
            if done[name]["arguments"] != arguments:
                came, expected = shlex.join(done[name]["arguments"]), shlex.join(arguments)
                raise InputError(
                    notes,
                    name,
                    came,
                    expected,
                    "It was made by another file, or with other values: use a new --out folder.",
                )
            print(f"{name}: done, {done[name]['minutes']:.1f} minutes")
            continue
        print(f"{name}: vla {shlex.join(arguments)}", flush=True)
        begun = time.monotonic()
        status = subprocess.run([sys.executable, "-m", "policies.cli", *arguments], check=False).returncode
        minutes = (time.monotonic() - begun) / 60
        if status:
            print(f"{name}: ended with exit status {status} after {minutes:.1f} minutes; the same command goes on here")
            return status
        done[name] = {"arguments": arguments, "minutes": round(minutes, 2)}
        write_json(notes, done)
    print(f"{stages.name}: {sum(row['minutes'] for row in done.values()):.0f} minutes in all")
    return 0


def _replaced(path: Path, given: dict, overrides: Sequence[str]) -> dict[str, str]:
    """What is given, as text, and of it what the command line says instead."""
    plain = all(isinstance(name, str) and name.isidentifier() for name in given)
    if not plain or not all(isinstance(value, str | int | float) for value in given.values()):
        raise InputError(path, "given", given, "names with a text or a number each")
    given = {name: str(value) for name, value in given.items()}
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or name not in given:
            expected = f"KEY=VALUE with one of {', '.join(given)}" if given else "none: this file has nothing given"
            raise InputError("vla make", "override", override, expected, nearest(name, given))
        given[name] = value
    return given


def _filled(path: Path, part: str, given: dict[str, str]) -> str:
    try:
        return part.format_map(given)
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(path, "placeholder", f"{part!r}: {error}", f"one of {{{'}, {'.join(given)}}}") from None
