"""The expert drives, scene after scene, on all cores; nuScenes format comes out, and an interrupted recording goes on.

Scenes are staged by several processes and committed here, in the order of their numbers and many at once, so the
dataroot does not depend on how many processes there are. `recording.json` beside the tables says what was recorded and
which scenes were discarded.
"""

import json
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path

from tqdm import tqdm

from policies.distributed import sharing
from policies.runs import Run
from policies.shoot import COURSE, NUMBERS, Recording, Shot, shoot
from sensors.errors import InputError
from sensors.nuscenes_recorder import StagedScene
from sensors.nuscenes_tables import read_json
from sim.scenarios import suite_length

KEYFRAMES_HZ = 2
MAX_IN_VAIN = 20
# Tables are written anew at each commit: so often, or for this share of time, but then at least so often.
COMMIT_EVERY_S, COMMIT_SHARE, COMMIT_WITHIN_S = 30.0, 0.05, 300.0
SAME = ("suite", "hz", "image_size", "keyframes", "student", "imagined")  # of all scenes of a dataroot


def record(
    run: Run,
    recording: Recording,
    keyframes: int,
    first: int = 1,
    videos: int = 0,
    workers: int = 1,
    progress: bool = True,
    address: str | None = None,
) -> None:
    """Record scenes of numbers from `first` on into the run directory, which is the dataroot too, until it holds at
    least so many keyframes; the first `videos` new scenes are filmed.

    A scene that is there already is left as it is, so an interrupted recording goes on where it was. One that the
    expert does not get through cleanly is discarded; MAX_IN_VAIN of them in a row end the recording.
    """
    writer = recording.writer
    with writer.session():
        notes = _checked_notes(recording)
        there = _keyframes_there(recording)
        tally = Tally(run, recording, notes, keyframes, there, progress)
        with tally, sharing(workers, address) as pool:
            for shot in _shots(recording, first, notes, there, pool, workers, run.path, videos, tally):
                tally.take(shot)
    scenes, held = len(tally.numbers), sum(tally.numbers.values())
    per_scene = recording.keyframes or max(keyframes - held, 1)
    missing = max(-(-(keyframes - held) // per_scene), 0)
    run.summary["scenes"] = {"asked": scenes + missing, "finished": scenes, "failed": missing}
    run.score([recording.expert.name])
    run.summary["metrics"] |= {"n_scenes": scenes, "n_keyframes": held, "n_discarded": tally.discarded}
    run.summary["discarded"] = notes["discarded"]
    if missing:
        run.summary["fell_short"] = tally.why_short


class Tally:
    """What a recording has so far: scenes in the order of their numbers, and those that wait to be committed."""

    def __init__(self, run: Run, recording: Recording, notes: dict, wanted: int, there: dict[int, int], progress: bool):
        self._run, self._recording, self._notes, self._wanted, self._there = run, recording, notes, wanted, there
        self.numbers: dict[int, int] = {}  # scene -> keyframes
        self.discarded, self._in_vain = 0, 0
        self._waiting: list[tuple[StagedScene, dict]] = []
        self._bar = tqdm(total=wanted, unit="keyframe", desc="record", disable=not progress)
        self._committed_s, self._took_s = time.monotonic(), 0.0

    @property
    def complete(self) -> bool:
        return sum(self.numbers.values()) >= self._wanted or self._in_vain == MAX_IN_VAIN

    @property
    def why_short(self) -> str:
        """Of a recording that is not complete."""
        suite, wanted = self._recording.suite, self._wanted
        if self._in_vain == MAX_IN_VAIN:
            return f"no {wanted} keyframes: {MAX_IN_VAIN} scenes in a row were discarded, see {self._run.path}"
        return f"no {wanted} keyframes: the scenes of {suite} are at an end. Begin at an earlier one with --seed."

    def take(self, shot: Shot) -> None:
        """The next scene: new, discarded, or there already."""
        if shot.keyframes:
            self.numbers[shot.number] = shot.keyframes
            self._in_vain = 0
            self._bar.update(shot.keyframes)
        else:
            self._notes["discarded"][str(shot.number)] = shot.ended_by
            self.discarded += 1
            self._in_vain += 1
        if shot.staged is not None:
            self._waiting.append((shot.staged, shot.row))
        waits_s = min(max(COMMIT_EVERY_S, self._took_s / COMMIT_SHARE), COMMIT_WITHIN_S)
        if time.monotonic() - self._committed_s > waits_s:
            self._commit()

    def __enter__(self) -> "Tally":
        return self

    def __exit__(self, *error: object) -> None:
        """However it ends, what is whole is kept."""
        self._bar.close()
        self._commit()

    def _commit(self) -> None:
        begun_s = time.monotonic()
        if self._waiting or self._notes["discarded"] != self._notes["kept_discarded"]:
            self._notes["kept_discarded"] = dict(self._notes["discarded"])
            content = {key: value for key, value in self._notes.items() if key != "kept_discarded"}
            content = json.dumps(content, indent=1).encode()
            self._recording.writer.commit([staged for staged, _ in self._waiting], content)
        for _, row in self._waiting:
            self._run.add(row)
        self._waiting, self._committed_s = [], time.monotonic()
        self._took_s = self._committed_s - begun_s


def _shots(
    recording: Recording,
    first: int,
    notes: dict,
    there: dict[int, int],
    pool: Executor | None,
    workers: int,
    run_path: Path,
    videos: int,
    tally: Tally,
) -> Iterator[Shot]:
    """Scenes in the order of their numbers until the tally is complete, each known already or made now; with a pool
    the next ones are under way meanwhile."""
    known = NUMBERS if recording.suite == COURSE else NUMBERS[: suite_length(recording.suite)]
    numbers = iter([n for n in known if n >= first])
    ahead: deque[Shot | Future] = deque()
    new = 0
    while not tally.complete:
        while len(ahead) < (2 * workers if pool is not None else 1):
            number = next(numbers, None)
            if number is None:
                break
            if number in there:
                ahead.append(Shot(number, "", there[number]))
            elif str(number) in notes["discarded"]:
                ahead.append(Shot(number, notes["discarded"][str(number)]))
            else:
                work = (recording, number, run_path, new < videos)
                ahead.append(shoot(*work) if pool is None else pool.submit(shoot, *work))
                new += 1
        if not ahead:
            return
        shot = ahead.popleft()
        yield shot if isinstance(shot, Shot) else shot.result()


def _checked_notes(recording: Recording) -> dict:
    """`recording.json` of the dataroot, or a new one. A dataroot of another suite, rate or size is an InputError: what
    is trained on must not end up beside what is tested on unseen."""
    dataroot, writer = recording.dataroot, recording.writer
    mine = {name: getattr(recording, name) for name in SAME} | {"discarded": {}}
    mine["image_size"] = list(recording.image_size)
    others = [p.parent.name for p in dataroot.glob("*/scene.json") if p.parent.name[0] != "."]
    others = sorted(set(others) - {recording.version})
    if others:
        came = f"{recording.version} into a dataroot that holds {others[0]}"
        raise InputError(dataroot, "--version", came, "one version a dataroot", "Name another --out.")
    content = writer.notes()
    if content is not None:
        notes = json.loads(content)
        for name in SAME:
            if notes[name] != mine[name]:
                came = f"{mine[name]} into a recording of {notes[name]}"
                raise InputError(dataroot, name, came, "the same as before", "Name another --out.")
        mine = notes
    elif writer.scenes:
        raise InputError(dataroot, "recording.json", "none beside its scenes", "a recording", "Name another --out.")
    return mine | {"kept_discarded": dict(mine["discarded"])}


def _keyframes_there(recording: Recording) -> dict[int, int]:
    """Number of each complete scene -> how many keyframes it has."""
    path = recording.writer.tables / "scene.json"
    rows = read_json(path) if path.exists() else []
    return {int(row["name"].rpartition("-")[2]): row["nbr_samples"] // recording.samples for row in rows}
