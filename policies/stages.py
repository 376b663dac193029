"""From nothing to a policy with its scores: the stages of a file, one `vla` command each, run in turn and resumed.

    name: tiny-town
    stages:
      record: record --suite town-train --out {out}/town
      train: train tiny-town data.dataroot={out}/town --workers {cores} --out {out}/train

{out} is the folder that all of it is made in, {cores} the number of this machine's. A stage that was finished is passed
over; one that was not goes on where it was, as its verb does. `stages.json` says what each took.
"""

import json
import os
import shlex
import subprocess
import sys
import time
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


def load_stages(name_or_path: str, out: Path) -> Stages:
    """A shipped file by its name, or one's own; what is not as in the module's docstring is an InputError."""
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
    if not isinstance(values, dict) or set(values) != {"name", "stages"} or not isinstance(values["stages"], dict):
        came = sorted(values) if isinstance(values, dict) else type(values).__name__
        raise InputError(path, "YAML", came, "name, and stages: a mapping of names to commands")
    wrong = [name for name, command in values["stages"].items() if not isinstance(command, str) or not command.strip()]
    if wrong or not values["stages"]:
        raise InputError(path, "stages", wrong or "none", "a command of vla each")
    given = {"out": str(out), "cores": str(len(os.sched_getaffinity(0)))}
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
                raise InputError(notes, name, came, expected, "It was made by another file: use a new --out folder.")
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


def _filled(path: Path, part: str, given: dict[str, str]) -> str:
    try:
        return part.format_map(given)
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(path, "placeholder", f"{part!r}: {error}", f"one of {{{'}, {'.join(given)}}}") from None
