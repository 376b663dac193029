"""The episodes of a run as files of other viewers, by format."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sensors.errors import InputError, nearest, unknown_name
from sim.report.export_mcap import write_mcap
from sim.report.export_rrd import write_rrd
from sim.report.summary import inside, read_summary
from sim.rollout_log import EpisodeLog, read_episode


@dataclass(frozen=True)
class Format:
    """What reads it, in words; the module that writing needs, and the package that has it; the function that writes."""

    words: str
    module: str
    package: str
    write: Callable[[EpisodeLog, Path, Path | None], None]


FORMATS = {
    "rrd": Format("the Rerun viewer", "rerun", "rerun-sdk", write_rrd),
    "mcap": Format("Foxglove", "mcap", "mcap", write_mcap),
}


def get_format(name: str) -> Format:
    """The format of this name; an unknown one, or one whose package is not installed, is an InputError with the fix."""
    if name not in FORMATS:
        raise unknown_name("--to", "format", name, FORMATS)
    found = FORMATS[name]
    if find_spec(found.module) is None:
        fix = "Install the extra: pip install -c constraints.txt -e '.[viz]'"
        raise InputError("--to", name, f"no package {found.package}", f"{found.package}, which writes it", fix)
    return found


def export_run(run_dir: Path, name: str, out: Path, episodes: Sequence[str] = ()) -> Iterator[Path]:
    """Write OUT/EPISODE.FORMAT of the named episodes (all that have a log, if none is named), each path as it is done.

    A film of the episode goes with it. An unknown name, or no log at all, is an InputError.
    """
    form, summary = get_format(name), read_summary(run_dir / "summary.json")
    rows = {row["name"]: row for row in summary["episodes"] if row["log"]}
    for episode in episodes:
        if episode not in rows:
            expected = f"one of its {len(rows)} episodes with a log"
            raise InputError(run_dir, "--episode", episode, expected, nearest(episode, rows))
    if not rows:
        raise InputError(run_dir / "summary.json", "episodes", "none with a log", "at least one")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("--out", "folder", f"{out} ({error.strerror})", "a folder that can be made") from None
    for row in [rows[episode] for episode in episodes or rows]:
        path = out / f"{row['name']}.{name}"
        film = inside(run_dir, row["video"]) if row["video"] else None
        form.write(read_episode(inside(run_dir, row["log"])), path, film)
        yield path
