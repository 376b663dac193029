"""The paired comparison of two runs as a page: both means, the interval of their difference, the verdict in words."""

from collections.abc import Sequence
from pathlib import Path

from sensors.errors import InputError
from sim.metrics.protocols import Difference
from sim.report.summary import LABELS
from sim.report.templates import write_page


def write_comparison(out: Path, words: Sequence[str], found: Sequence[Difference]) -> Path:
    """Write the page: `words` say what is compared; every difference with a drawing of its interval about 0."""
    rows = []
    for d in found:
        reach = max(abs(d.low), abs(d.high), 1e-12)
        label, unit = LABELS.get(d.metric, (d.metric, ""))
        at = {name: 50 + 48 * value / reach for name, value in (("low", d.low), ("mean", d.b - d.a), ("high", d.high))}
        rows.append({"d": d, "words": label, "unit": unit, "at": at})
    try:
        return write_page(out, "comparison.html.j2", words=words, rows=rows)
    except OSError as error:
        raise InputError("--html", "file", f"{out} ({error.strerror})", "a file that can be written") from None
