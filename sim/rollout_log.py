"""The log of one episode: everything that scoring and the report need, so that a corrected metric needs no new drive.

Columns of a compressed .npz (`sim.log_packing`), never a pickle; `sim.log_schema` lists them. Images are not kept; a
minute at 10 Hz among 100 actors is below 1 MB.
"""

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from sensors.clip import Boxes
from sensors.errors import InputError
from sim.log_packing import in_ticks, pack, unpack
from sim.log_schema import COLUMNS, READABLE, SCHEMA, VERSION, check_columns
from sim.surroundings import Surroundings, split_lines
from sim.views import Shown

# What zipfile, zlib and numpy raise on damaged bytes; zipfile a RuntimeError where a flag seems to ask for a password.
UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError)
UNREADABLE += (ValueError, LookupError, RuntimeError, TypeError, SyntaxError)


@dataclass(frozen=True)
class EpisodeLog:
    """One episode, driven (the policy moved the ego) or replayed (the ego track is the recording).

    name, policy, suite   str             the scene, who drove, what the scene belongs to
    town, weather         str             their names, "" where they have none
    kind                  "drive" or "replay"
    lights                one of sim.surroundings.LIGHTS
    seed                  int
    ego_length_m, ego_width_m, ego_wheelbase_m   float
    ego_centre_m          float           rear axle to the centre of the box
    goal_m                float           arc length of the goal on the route; 0 where there is no route
    ended_by              why it ended, for example "time" or "off_road"
    error                 "" or the message of what made the episode fail
    time_us               int64   [F]     strictly increasing
    scene_time_us         int64   [N]     time_us, and instants after the end at which the others are still known
    ego_xyyaw_in_world    float64 [F, 3]  m, m, rad; rear axle
    speed_mps             float64 [F]
    action                float64 [F, 2]  (accel_mps2, curvature_1pm) taken at the frame; NaN where none was
    actor_frame           int64   [A]     not decreasing; index into scene_time_us
    actor_id, actor_category  str [A]
    actor_xyyaw_in_world  float64 [A, 3]  centre of the box
    actor_size_lw_m       float64 [A, 2]  length, width
    actor_speed_mps       float64 [A]     NaN where unknown
    plan_frame            int64   [Q]     not decreasing; the plan made at a frame is its run of rows
    plan_time_s           float64 [Q]     after the frame, increasing within a plan
    plan_xyyaw_in_world   float64 [Q, 3]
    token_frame           int64   [K]     not decreasing; the action tokens of the plan made at a frame, if it had any
    token                 int64   [K]
    reason_frame          int64   [Y]     increasing; a frame at which a plan was made that says why
    reason                str     [Y]     for example "stop: red light, 12 m"
    cue_frame             int64   [G]     increasing; a frame from which on the two that follow hold, until the next
    command, instruction  str     [G]     what the route asks for, one of ROUTE_COMMANDS, and in words
    event_frame           int64   [E]     not decreasing
    event                 str     [E]     one of EVENTS
    event_actor           str     [E]     whom a collision was with, else ""
    event_speed_mps       float64 [E]     relative speed at the impact, or the ego's; NaN where unknown
    event_fault           str     [E]     one of FAULTS: whom the world blames, if it says so
    red_frame, red_lane   int64   [I]     a lane that is red at an instant (index into scene_time_us), not decreasing
    view_frame            int64   [S]     not decreasing; a frame at which a camera in a recorded scene was looked at
    view_camera, view_how str     [S]     which, and how its image came about, one of sim.views.HOWS
    view_hole_share       float64 [S]     the share of it that was drawn where no recorded image shows it
    line_kind             str     [L]     for example "lane_edge" or "centre"
    line_index            int64   [V]     not decreasing; the line that a vertex belongs to
    line_xy_in_world_m    float64 [V, 2]
    lane_*, area_*, route_*, human_*      see sim.surroundings; `*_index` says to which lane or area a vertex belongs
    """

    name: str
    kind: str
    policy: str
    suite: str
    town: str
    weather: str
    lights: str
    seed: int
    ended_by: str
    error: str
    ego_length_m: float
    ego_width_m: float
    ego_wheelbase_m: float
    ego_centre_m: float
    goal_m: float
    time_us: np.ndarray
    scene_time_us: np.ndarray
    ego_xyyaw_in_world: np.ndarray
    speed_mps: np.ndarray
    action: np.ndarray
    actor_frame: np.ndarray
    actor_id: np.ndarray
    actor_category: np.ndarray
    actor_xyyaw_in_world: np.ndarray
    actor_size_lw_m: np.ndarray
    actor_speed_mps: np.ndarray
    plan_frame: np.ndarray
    plan_time_s: np.ndarray
    plan_xyyaw_in_world: np.ndarray
    token_frame: np.ndarray
    token: np.ndarray
    reason_frame: np.ndarray
    reason: np.ndarray
    cue_frame: np.ndarray
    command: np.ndarray
    instruction: np.ndarray
    event_frame: np.ndarray
    event: np.ndarray
    event_actor: np.ndarray
    event_speed_mps: np.ndarray
    event_fault: np.ndarray
    red_frame: np.ndarray
    red_lane: np.ndarray
    view_frame: np.ndarray
    view_camera: np.ndarray
    view_how: np.ndarray
    view_hole_share: np.ndarray
    line_kind: np.ndarray
    line_index: np.ndarray
    line_xy_in_world_m: np.ndarray
    lane_id: np.ndarray
    lane_width_m: np.ndarray
    lane_limit_mps: np.ndarray
    lane_on_route: np.ndarray
    lane_index: np.ndarray
    lane_xy_in_world_m: np.ndarray
    area_layer: np.ndarray
    area_index: np.ndarray
    area_xy_in_world_m: np.ndarray
    route_xy_in_world_m: np.ndarray
    human_time_us: np.ndarray
    human_xyyaw_in_world: np.ndarray

    def __len__(self) -> int:
        return len(self.time_us)

    @property
    def time_s(self) -> np.ndarray:
        """float64 [F], seconds since the first frame."""
        return (self.time_us - self.time_us[:1]) / 1e6

    def plan_at(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """(time_s [K], xyyaw_in_world [K, 3]) of the plan made at a frame; K = 0 where none was."""
        i, j = np.searchsorted(self.plan_frame, (frame, frame + 1))
        return self.plan_time_s[i:j], self.plan_xyyaw_in_world[i:j]

    def tokens_at(self, frame: int) -> np.ndarray:
        """int64 [K], the action tokens of the plan made at a frame; empty where it had none."""
        return self.token[slice(*np.searchsorted(self.token_frame, (frame, frame + 1)))]

    def reason_at(self, frame: int) -> str:
        """Why the plan made at a frame is as it is; "" where none was made or none was given."""
        return next(iter(self.reason[slice(*np.searchsorted(self.reason_frame, (frame, frame + 1)))].tolist()), "")

    def cue_at(self, frame: int) -> tuple[str, str]:
        """(command, instruction) that hold at a frame; ("", "") where none were given."""
        k = int(np.searchsorted(self.cue_frame, frame, side="right")) - 1
        return (str(self.command[k]), str(self.instruction[k])) if k >= 0 else ("", "")

    def shown(self) -> list[Shown]:
        """How each image of a recorded scene that was looked at came about."""
        return [Shown(*row) for row in zip(self.view_how.tolist(), self.view_hole_share.tolist(), strict=True)]

    def actors_at(self, frame: int) -> slice:
        """The rows of the actor columns that belong to a frame."""
        return slice(*np.searchsorted(self.actor_frame, (frame, frame + 1)))

    def lines(self) -> list[tuple[str, np.ndarray]]:
        """(kind, xy [V', 2]) of each map line."""
        parts = split_lines(self.line_index, self.line_xy_in_world_m, len(self.line_kind))
        return list(zip(self.line_kind.tolist(), parts, strict=True))

    @cached_property
    def surroundings(self) -> Surroundings:
        """What the recorder was given."""
        return Surroundings.from_columns(vars(self))

    def validate(self, where: object = "episode log") -> "EpisodeLog":
        """Self, or an InputError that names the first bad column."""
        check_columns(self, where)
        return self


class EpisodeRecorder:
    """Collects an episode frame by frame; `finish` makes the log, at any time and as often as one likes."""

    def __init__(
        self,
        name: str,
        kind: str,
        policy: str,
        seed: int,
        lines: Sequence[tuple[str, np.ndarray]] = (),
        surroundings: Surroundings | None = None,
    ) -> None:
        columns = (surroundings or Surroundings()).to_columns()
        self._head = {"name": name, "kind": kind, "policy": policy, "seed": int(seed)}
        self._head |= {key: value for key, value in columns.items() if key not in COLUMNS}
        self._rows: dict[str, list] = {column: list(columns.get(column, ())) for column in COLUMNS}
        for index, (line_kind, xy) in enumerate(lines):
            self._rows["line_kind"].append(line_kind)
            self._rows["line_index"].extend([index] * len(xy))
            self._rows["line_xy_in_world_m"].extend(np.asarray(xy, np.float64))

    def __len__(self) -> int:
        return len(self._rows["time_us"])

    def frame(
        self,
        time_us: int,
        ego_xyyaw: np.ndarray,
        speed_mps: float,
        action: tuple[float, float] | None = None,
        actors: Boxes | None = None,
        events: Sequence[str | tuple[str, str, float, str]] = (),
        red_lanes: Sequence[int] = (),
        cue: tuple[str, str] = ("", ""),
    ) -> None:
        """One instant: ego pose in the world [3], the action (accel_mps2, curvature_1pm) taken, actors, events, lights.

        An event is its name, or (name, actor, relative speed in m/s, fault); red_lanes: indices of lanes that are red;
        cue: (route command, instruction), kept where it changes.
        """
        rows, frame = self._rows, len(self)
        if len(rows["scene_time_us"]) > frame:
            raise ValueError("frame() after afterwards(): the episode is over")
        rows["time_us"].append(int(time_us))
        rows["ego_xyyaw_in_world"].append(np.array(ego_xyyaw, np.float64))
        rows["speed_mps"].append(float(speed_mps))
        rows["action"].append(np.full(2, np.nan) if action is None else np.array(action, np.float64))
        for event in events:
            name, actor, relative_mps, fault = (event, "", np.nan, "") if isinstance(event, str) else event
            rows["event_frame"].append(frame)
            rows["event"].append(name)
            rows["event_actor"].append(actor)
            rows["event_speed_mps"].append(float(relative_mps))
            rows["event_fault"].append(fault)
        if cue != ((rows["command"] or [""])[-1], (rows["instruction"] or [""])[-1]):
            rows["cue_frame"].append(frame)
            rows["command"].append(cue[0])
            rows["instruction"].append(cue[1])
        self.afterwards(time_us, actors, red_lanes)

    def afterwards(self, time_us: int, actors: Boxes | None, red_lanes: Sequence[int] = ()) -> None:
        """An instant after the last frame: what the others do then. The last plans are judged against it."""
        rows, frame = self._rows, len(self._rows["scene_time_us"])
        rows["scene_time_us"].append(int(time_us))
        rows["red_frame"].extend([frame] * len(red_lanes))
        rows["red_lane"].extend(red_lanes)
        if actors is None or not len(actors):
            return
        T = actors.T_world_from_box
        rows["actor_frame"].extend([frame] * len(actors))
        rows["actor_id"].extend(actors.ids)
        rows["actor_category"].extend(actors.categories)
        xyyaw = np.stack([T[:, 0, 3], T[:, 1, 3], np.arctan2(T[:, 1, 0], T[:, 0, 0])], axis=1)
        rows["actor_xyyaw_in_world"].extend(in_ticks("actor_xyyaw_in_world", xyyaw))
        rows["actor_size_lw_m"].extend(np.array(actors.size_lwh_m[:, :2], np.float64))
        speed = np.hypot(*np.asarray(actors.velocity_in_world_mps, np.float64).T)
        rows["actor_speed_mps"].extend(in_ticks("actor_speed_mps", speed))

    def views(self, cameras: Sequence[str], shown: Sequence[Shown]) -> None:
        """How the images of the last frame came about, of these cameras."""
        for camera, each in zip(cameras, shown, strict=True):
            row = {"frame": len(self) - 1, "camera": camera, "how": each.how, "hole_share": each.hole_share}
            for name, value in row.items():
                self._rows[f"view_{name}"].append(value)

    def plan(
        self, time_s: np.ndarray, xyyaw_in_world: np.ndarray, tokens: Sequence[int] = (), reason: str = ""
    ) -> None:
        """The plan made at the last frame: times after it [K], poses [K, 3], the action tokens it came from, why.

        Once per frame, else a ValueError.
        """
        frame = len(self) - 1
        if frame < 0 or (self._rows["plan_frame"] and self._rows["plan_frame"][-1] == frame):
            raise ValueError(f"plan() comes once after each frame(); there are {frame + 1} frames")
        self._rows["plan_frame"].extend([frame] * len(time_s))
        self._rows["plan_time_s"].extend(np.asarray(time_s, np.float64))
        self._rows["plan_xyyaw_in_world"].extend(np.array(xyyaw_in_world, np.float64))
        self._rows["token_frame"].extend([frame] * len(tokens))
        self._rows["token"].extend(tokens)
        if reason:
            self._rows["reason_frame"].append(frame)
            self._rows["reason"].append(reason)

    def finish(self, ended_by: str, error: str = "") -> EpisodeLog:
        """The validated log of what was recorded; `error` is not empty where the episode failed."""
        columns = {
            name: np.array(self._rows[name], str if dtype == "U" else dtype).reshape(-1, *shape)
            for name, (dtype, _, shape) in COLUMNS.items()
        }
        return EpisodeLog(**self._head, ended_by=ended_by, error=error, **columns).validate(self._head["name"])


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes it when the block ends well and vanishes when it does not."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_episode(path: Path, log: EpisodeLog) -> None:
    """Write atomically; the same log gives the same bytes."""
    log.validate(path)
    head = {f.name: getattr(log, f.name) for f in fields(log) if f.name not in COLUMNS}
    head = json.dumps({"schema": SCHEMA, "version": VERSION, **head}, sort_keys=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, head=np.array(head), **pack({name: getattr(log, name) for name in COLUMNS}))


def read_episode(path: Path) -> EpisodeLog:
    """The log at `path`; truncated, foreign or of another version is an InputError that says which."""
    fix = "Was the run interrupted? Run it again."
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as columns:
            arrays = unpack({name: np.asarray(columns[name]) for name in columns.files})
    except FileNotFoundError:
        raise InputError(path, "file", "nothing", "an episode log (.npz)", fix) from None
    except UNREADABLE as error:
        raise InputError(path, "file", f"unreadable ({error})", "a whole episode log (.npz)", fix) from None
    try:
        head = json.loads(str(arrays.pop("head")))
        schema, version = head.pop("schema"), head.pop("version")
    except (KeyError, ValueError, TypeError, AttributeError):
        raise InputError(path, "head", "missing or unreadable", f"the head of a {SCHEMA}") from None
    if schema != SCHEMA or version not in READABLE:
        raise InputError(path, "version", f"{schema} {version}", f"{SCHEMA} {VERSION}", "Record the run again.")
    arrays |= {name: np.zeros(0, COLUMNS[name][0]) for name in READABLE[version] if name not in arrays}
    expected = {f.name for f in fields(EpisodeLog)}
    for name in sorted(expected - set(head) - set(arrays)):
        raise InputError(path, name, "nothing", f"a column of {SCHEMA} {VERSION}")
    for name in sorted((set(head) | set(arrays)) - expected):
        raise InputError(path, name, "an unknown column", f"the columns of {SCHEMA} {VERSION}")
    return EpisodeLog(**head, **arrays).validate(path)
