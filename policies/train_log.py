"""What a training says while it runs: `train.jsonl` always, TensorBoard where it is installed, and a view of it all.

A line of `train.jsonl` is one step; or, with the key "event", what happened after the step that it names. Where a
training goes back, the steps that it does again stand there once, as they were last.
"""

import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from sensors.errors import InputError
from sim.rollout_log import atomic_path

CURVE_POINTS = 200
SMOOTHED = 20  # steps that the view's figures are means of
REDRAWN_S, LINE_EVERY_S = 0.5, 30.0  # on a terminal; elsewhere
UP, CLEAR = "\x1b[{}F", "\x1b[J"


class StepLog:
    """The log of a run directory, open from the end of step `step`; `events` are those up to there. None: no log."""

    def __init__(self, run_dir: Path | None, step: int, events: list[dict]):
        self.path = None if run_dir is None else run_dir / "train.jsonl"
        self._file, self.board = None, None
        self.go_back(step, events)

    def go_back(self, step: int, events: list[dict]) -> None:
        """Forget the steps after `step`: they are done again."""
        self.close()
        if self.path is None:
            return
        kept = [record for record in read_steps(self.path) if record["step"] <= step]
        with told_if_full(self.path):
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in _merged(kept, events)))
            self._file = self.path.open("a")
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter  # imports tensorboard

            self.board = SummaryWriter(str(self.path.with_name("tensorboard")), purge_step=step + 1)

    def write(self, record: dict) -> None:
        if self._file is None:
            return
        with told_if_full(self.path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        if self.board is not None:
            for name, value in record.items():
                if value is not None:
                    self.board.add_scalar(name, value, record["step"])

    def close(self) -> None:
        if self._file is not None:
            with told_if_full(self.path):
                self._file.close()
        if self.board is not None:
            self.board.close()


@contextmanager
def told_if_full(path: Path) -> Iterator[None]:
    """A file that can't be written (a full disk, no permission) is an InputError."""
    try:
        yield
    except OSError as error:
        expected, fix = "a place that can be written", "Is the disk full? With room, the same command goes on."
        raise InputError(path, "file", error.strerror, expected, fix) from error


def read_steps(path: Path) -> list[dict]:
    """The records of steps in a log, in order; a last line that was cut is none."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return [record for record in records if "event" not in record]


def curves(records: list[dict]) -> dict[str, list[list[float]]]:
    """[step, value] by name of all that the records of steps tell but `step`, thinned to means of consecutive ones."""
    names = dict.fromkeys(name for record in records for name in record if name not in ("step", "skipped", "broken"))
    drawn = {}
    for name in names:
        points = [[record["step"], record[name]] for record in records if record.get(name) is not None]
        size = max(1, math.ceil(len(points) / CURVE_POINTS))
        parts = [points[start : start + size] for start in range(0, len(points), size)]
        drawn[name] = [[part[-1][0], sum(value for _, value in part) / len(part)] for part in parts]
    return {name: points for name, points in drawn.items() if points}


def happened(records: list[dict], events: list[dict]) -> list[dict]:
    """What a report is to tell beside the curves: `events`, and the steps that were skipped, in order."""
    skips = [{"event": "skip", "step": record["step"]} for record in records if "skipped" in record]
    return sorted([*events, *skips], key=lambda event: event["step"])


def _merged(records: list[dict], events: list[dict]) -> list[dict]:
    """Each event after the record of the step that it names."""
    after = {}
    for event in events:
        after.setdefault(event["step"], []).append(event)
    lines = after.get(0, [])
    for record in records:
        lines = [*lines, record, *after.get(record["step"], [])]
    return lines


class View:
    """One block of lines that is drawn over itself on a terminal; elsewhere a line now and then."""

    def __init__(self, steps: int, batch_size: int, unit: str, shown: bool, out: TextIO = sys.stderr):
        self.steps, self.batch_size, self.unit, self.shown, self.out = steps, batch_size, unit, shown, out
        self.live = shown and out.isatty()
        self.recent: deque[dict] = deque(maxlen=SMOOTHED)
        self.skipped, self.broken, self.rewinds, self._drawn, self._at = 0, 0, 0, 0, -1e9

    def show(self, record: dict, rewinds: int) -> None:
        """Take in the record of a step, and draw if it is time or the end."""
        self.recent.append(record)
        self.skipped, self.rewinds = self.skipped + ("skipped" in record), rewinds
        self.broken += record.get("broken", 0)
        due = time.monotonic() - self._at >= (REDRAWN_S if self.live else LINE_EVERY_S)
        if not self.shown or not (due or record["step"] == self.steps):
            return
        self._at = time.monotonic()
        block = self.block()
        if self.live:
            self.out.write((UP.format(self._drawn) if self._drawn else "") + CLEAR + "\n".join(block) + "\n")
            self._drawn = len(block)
        else:
            self.out.write("  ".join((block[0], block[1], block[-1])) + "\n")
        self.out.flush()

    def block(self) -> list[str]:
        """What there is to see now: how far, losses, gradients, experts, events."""
        last, step_s = self.recent[-1], self._mean("step_s")
        done = f"step {last['step']} of {self.steps}, {last['step'] / self.steps:.0%}"
        speed = f"{self.batch_size / step_s:.1f} {self.unit}/s, loader {self._mean('loader_share'):.0%}"
        left_s = (self.steps - last["step"]) * step_s
        norms = f"{self._mean('gradient_norm'):.3g}{self._listed('gradient_norm_')}"
        return [
            f"train    {done}, {speed}, {duration(left_s)} to go",
            f"loss     {self._mean('loss'):.4g}{self._listed('loss_')}",
            *self._drives(),
            f"gradient {norms}, rate {last['learning_rate']:.2e}",
            *([f"experts  busiest x even{self._listed('expert_load_')}"] if "busiest_expert" in last else []),
            f"events   {self.skipped} steps skipped, {self.rewinds} rewinds, {self.broken} broken examples passed over",
        ]

    def _drives(self) -> list[str]:
        """Of a training that learns from its own drives: what they are worth, and how far it went from its start."""
        if "reward" not in self.recent[-1]:
            return []
        gated = f"gated {self._mean('gated'):.0%}{self._listed('gated_')}"
        policy = f"KL {self._mean('kl'):.3g}, entropy {self._mean('entropy'):.3g}, clipped {self._mean('clipped'):.1%}"
        return [f"reward   {self._mean('reward'):.4g}{self._listed('reward_')}, {gated}", f"policy   {policy}"]

    def _listed(self, prefix: str) -> str:
        names = [name for name in self.recent[-1] if name.startswith(prefix)]
        each = (f"{name.removeprefix(prefix).replace('_', ' ')} {self._mean(name):.3g}" for name in names)
        return f" ({', '.join(each)})" if names else ""

    def _mean(self, name: str) -> float:
        values = [r[name] for r in self.recent if r.get(name) is not None]
        return sum(values) / len(values) if values else float("nan")


def duration(seconds: float) -> str:
    """In words that are short: 42 s, 7 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def short(count: int, unit: str = "") -> str:
    """With three figures: 1.23M, 45.6 GB."""
    for factor, letter in ((1e9, "G" if unit else "B"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g}{' ' if unit else ''}{letter}{unit}"
    return f"{count} {unit}".strip()
