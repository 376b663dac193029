"""The run directory: what every long command leaves behind.

runs/<time>-<verb>/
    summary.json   command, config, version, git commit, seeds, counts, metrics as {"name": number}
    episodes/      one rollout log an episode; NAME.unfinished.npz is what a killed or failed one had recorded
    media/         videos and contact sheets
    report.html    everything in one page
"""

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from policies.media import EpisodeMedia
from sensors.errors import InputError
from sim.metrics.protocols import QUICK, figures_of_file, get_protocol, summarize
from sim.report.summary import inside, read_summary
from sim.rollout_log import EpisodeLog, EpisodeRecorder, atomic_path, write_episode
from sim.tracker import FALLBACK
from sim.views import counted

ANEW = frozenset({"out", "workers", "address", "clips"})  # of a config: which episodes there are does not depend on it
KEEP_EVERY_S = 10.0  # between two writes of an episode under way
UNFINISHED = ".unfinished.npz"


def write_json(path: Path, value: object) -> None:
    """Write atomically: a reader sees the old file or the whole new one, never half. NaN is a ValueError."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False))


def git_commit() -> str:
    """Commit of the checkout this code runs from, "+changes" if the tree differs from it; "" outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return ""
    commit, changes = (
        subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=False).stdout.strip()
        for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    )
    return f"{commit}+changes" if commit and changes else commit


def package_version() -> str:
    try:
        return version("vla-drive")
    except PackageNotFoundError:
        return "not installed"


def default_path(verb: str) -> Path:
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{verb}"


@dataclass
class Episode:
    """One episode under way: `media` to film it with, if it is filmed; `log` to be set when it is done."""

    media: EpisodeMedia | None
    unfinished: Path
    log: EpisodeLog | None = None
    kept_at_s: float = field(default_factory=time.monotonic)

    def keep(self, recorder: EpisodeRecorder) -> None:
        """Write what was recorded so far, if that was not done for a while: a killed drive leaves a readable log."""
        if time.monotonic() - self.kept_at_s >= KEEP_EVERY_S:
            write_episode(self.unfinished, recorder.finish("unfinished"))
            self.kept_at_s = time.monotonic()


def new_row(name: str, policy: str, seed: int, scene: str = "") -> dict:
    """What the summary says of an episode of which nothing is known yet."""
    row = {"name": name, "policy": policy, "seed": seed, "log": None, "video": None, "sheets": []}
    return row | {"suite": "", "scene": scene or name.removeprefix(f"{policy}-"), "ended_by": "", "error": ""}


@contextmanager
def kept(path: Path, row: dict, fps: int) -> Iterator[Episode]:
    """An episode whose log and media are written under a run directory, and told in its row, if the block ends well."""
    name = row["name"]
    with EpisodeMedia(path, name, fps) if fps else nullcontext() as media:
        episode = Episode(media, path / "episodes" / f"{name}{UNFINISHED}")
        yield episode
    write_episode(path / "episodes" / f"{name}.npz", episode.log)
    episode.unfinished.unlink(missing_ok=True)
    if media is not None and media.video:
        row |= {"video": media.video, "sheets": media.write_sheets()}
    row |= {"log": f"episodes/{name}.npz", "ended_by": episode.log.ended_by}
    row |= {"suite": episode.log.suite, "scene": episode.log.name}
    if len(episode.log.view_how):
        row["views"] = counted(episode.log.shown())
    row["fallbacks"] = sum(reason.startswith(FALLBACK) for reason in episode.log.reason.tolist())


@contextmanager
def tried(path: Path, row: dict, fps: int) -> Iterator[Episode]:
    """As `kept`, but this is the border at which any exception becomes a failed scene: its row and a file say why."""
    try:
        with kept(path, row, fps) as episode:
            yield episode
    except Exception as error:
        (path / "episodes" / f"{row['name']}.error.txt").write_text(traceback.format_exc())
        row |= failure(error)


def failure(error: Exception) -> dict:
    """What the row of an episode says that failed."""
    return {"ended_by": "failure", "error": f"{type(error).__name__}: {error}"}


@dataclass
class Run:
    """One run directory under construction. `summary` is what summary.json will say."""

    path: Path
    summary: dict = field(default_factory=dict)

    @classmethod
    def create(cls, verb: str, out: Path | None, config: dict, seeds: list[int], resume: bool = False) -> "Run":
        """A run directory, new or empty unless the verb can `resume`; anything else there is an InputError."""
        path = out or default_path(verb)
        if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not resume)):
            raise InputError("--out", "folder", f"{path}, which is not empty", "a new or empty folder", "Name another.")
        try:
            (path / "episodes").mkdir(parents=True, exist_ok=True)
            (path / "media").mkdir(exist_ok=True)
        except OSError as error:
            came = f"{path}, {error.strerror.lower()}"
            raise InputError("--out", "folder", came, "a folder that can be written", "Name another.") from error
        run = cls(path)
        run.summary = {
            "verb": verb,
            "command": ["vla", *sys.argv[1:]],
            "started": datetime.now().isoformat(timespec="seconds"),
            "config": config,
            "version": package_version(),
            "git_commit": git_commit(),
            "seeds": seeds,
            "scenes": {"asked": 0, "finished": 0, "failed": 0},
            "metrics": {},
            "policies": {},
            "episodes": [],
        }
        if resume and (path / "summary.json").exists():
            earlier = json.loads((path / "summary.json").read_text())
            run.summary["episodes"] = [row for row in earlier["episodes"] if row["log"]]
            commits = [*earlier.get("earlier_commits", []), earlier["git_commit"]]
            if others := [each for each in dict.fromkeys(commits) if each != run.summary["git_commit"]]:
                run.summary["earlier_commits"] = others
        return run

    @classmethod
    def again(cls, verb: str, out: Path | None, config: dict, seeds: list[int]) -> "Run":
        """As `create`, or one of the same verb and config to be gone on with: its finished episodes stay. One of others
        is an InputError; only what is in ANEW may differ."""
        begun = out is not None and (out / "summary.json").is_file()
        if begun:
            earlier = read_summary(out / "summary.json")
            then, now = ({**of, "verb": its} for of, its in ((earlier["config"], earlier.get("verb")), (config, verb)))
            for key in sorted(now.keys() - ANEW):
                if then.get(key) != json.loads(json.dumps(now[key])):
                    fix = "Name another folder, or ask for the same again to go on with it."
                    raise InputError("--out", key, now[key], f"{then.get(key)}, as {out} was begun with", fix)
        run = cls.create(verb, out, config, seeds, resume=begun)
        run.summary["episodes"] = [row for row in run.summary["episodes"] if inside(run.path, row["log"]).is_file()]
        run.summary["scenes"] |= dict.fromkeys(("asked", "finished"), len(run.summary["episodes"]))
        run.save()
        return run

    @contextmanager
    def episode(self, name: str, policy: str, seed: int, fps: int = 0, scene: str = "") -> Iterator[Episode]:
        """One episode of the run: its log and media are written, it is counted, and a failure is recorded, not raised.

        One bad scene must not cost the others, and is never averaged away, since it is counted here and shown in the
        headline. fps > 0 films the episode.
        """
        row = new_row(name, policy, seed, scene)
        with tried(self.path, row, fps) as episode:
            yield episode
        self.add(row)

    def add(self, row: dict) -> None:
        """Count an episode that was kept, or failed, and save the summary."""
        scenes = self.summary["scenes"]
        scenes["asked"] += 1
        scenes["finished" if row["log"] else "failed"] += 1
        self.summary["episodes"].append(row)
        self.save()

    def score(self, policies: Sequence[str], names: Sequence[str] = (), each: Callable = map) -> None:
        """Metrics of every policy that drove, from its logs; those of the first are the run's own.

        `names` are protocols of sim.metrics.protocols, without any the quick ones of these logs; what others scored
        before stays, and so does what the summary has in `pairs`. `each` maps a function over logs, perhaps on several
        cores. An episode's own figures are kept in its row: {metric: [value, weight]}.
        """
        rows = [row for row in self.summary["episodes"] if row["log"]]
        paths = [self.path / row["log"] for row in rows]
        for row, (kind, figures) in zip(
            rows, each(figures_of_file, paths, [tuple(names or QUICK)] * len(paths)), strict=True
        ):
            known = {name: [value, weight] for name, (value, valid, weight) in figures.items() if valid}
            row["scores"] = {k: v for k, v in row.get("scores", {}).items() if k not in figures} | known
            row["kind"] = kind
        kinds = {row["kind"] for row in rows}
        asked = names or [name for name in QUICK if kinds & {*get_protocol(name).kinds}]
        metrics = [metric for name in asked for metric in get_protocol(name).names]
        for policy in policies:
            mine = [row for row in self.summary["episodes"] if row["policy"] == policy]
            scored = [{k: (v, True, w) for k, (v, w) in row["scores"].items()} if row["log"] else None for row in mine]
            driven = summarize(scored, metrics) if mine else {}
            self.summary["policies"][policy] = self.summary.get("pairs", {}).get(policy, {}) | driven
        self.summary["metrics"] = self.summary["policies"][policies[0]]

    def save(self) -> None:
        write_json(self.path / "summary.json", self.summary)

    @property
    def whole(self) -> bool:
        """True if at least one scene was asked for and every one finished."""
        scenes = self.summary["scenes"]
        return scenes["asked"] > 0 and scenes["finished"] == scenes["asked"]

    def headline(self) -> str:
        scenes = self.summary["scenes"]
        if not scenes["asked"]:
            return "NO SCENE was run"
        text = f"{scenes['finished']} of {scenes['asked']} scenes finished"
        text += f", {scenes['failed']} FAILED" if scenes["failed"] else ""
        seen = len(self.summary.get("seen_in_training", []))
        text += f", {seen} SEEN IN TRAINING" if seen else ""
        fallbacks = sum(row.get("fallbacks", 0) for row in self.summary["episodes"])
        return f"{text}, {fallbacks} plans were FALLBACKS" if fallbacks else text
