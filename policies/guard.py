"""What keeps a training from ruin: steps that are not finite are skipped, and from a spike of the loss it goes back.

A spike is a loss above `spike` times the median of the last WINDOW ordinary ones, PATIENCE steps in a row. Training
then goes on from its last checkpoint and passes over the batches that did it. Both are counted, and bounded: a training
that needs more of it needs another recipe.
"""

import math
import statistics
from dataclasses import asdict, dataclass, field

from sensors.errors import InputError

WINDOW, PATIENCE = 50, 5
LEAST = 20  # ordinary losses before any is judged


@dataclass
class Guard:
    """Part of a training's state: JSON values all of it.

    skipped      steps in a row that were skipped, the last one included
    recent       the last ordinary losses
    high         [step, loss] of those in a row that were far above the median, the last one included
    passed_over  numbers of draws that no step learns from any more, ascending
    events       rewinds, as they stand in the log
    """

    skipped: int = 0
    recent: list[float] = field(default_factory=list)
    high: list[list] = field(default_factory=list)
    passed_over: list[int] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)

    def to_dict(self) -> dict:
        return asdict(self)

    def draw(self, step: int) -> int:
        """Number of the draw of examples that a step learns from: the step's own, where none was passed over."""
        for passed in self.passed_over:
            step += passed <= step
        return step

    def finite(self, figures: dict[str, float], most: int, where: object) -> bool:
        """Whether a step with these figures (loss, norms) is to be taken; more than `most` in a row that are not is an
        InputError that names the first figure at fault."""
        bad = [name for name, value in figures.items() if not math.isfinite(value)]
        self.skipped = self.skipped + 1 if bad else 0
        if self.skipped > most:
            came = f"{bad[0].replace('_', ' ')} {figures[bad[0]]}, for {self.skipped} steps in a row"
            raise InputError(where, bad[0], came, "finite", "Lower train.learning_rate, and use a new --out folder.")
        return not bad

    def watch(self, step: int, loss: float, spike: float) -> None:
        """Take in the loss of a step that was taken, by its number from 0. spike 0: nothing is watched."""
        if spike and len(self.recent) >= LEAST and loss > spike * statistics.median(self.recent):
            self.high.append([step, loss])
        elif spike:
            self.high, self.recent = [], [*self.recent, loss][-WINDOW:]

    @property
    def spiked(self) -> bool:
        return len(self.high) >= PATIENCE

    def after(self, spiked: "Guard", to_step: int) -> None:
        """Become the guard of a training that went back from where `spiked` was its guard to `to_step`, as self was
        then."""
        steps, losses = zip(*spiked.high, strict=True)
        bad = [spiked.draw(step) for step in steps]
        event = {"event": "rewind", "step": to_step, "from_step": steps[-1] + 1, "losses": losses}
        event |= {"median_loss": statistics.median(spiked.recent), "draws_passed_over": bad}
        self.passed_over = sorted({*spiked.passed_over, *bad})
        self.events = [*spiked.events, event]

    def require_hope(self, most: int, where: object) -> None:
        """An InputError if there was a spike after `most` rewinds."""
        if len(self.events) >= most:
            came = f"above train.spike times its median for {len(self.high)} steps, after {len(self.events)} rewinds"
            raise InputError(where, "loss", came, f"at most {most} rewinds", "Lower train.learning_rate.")
