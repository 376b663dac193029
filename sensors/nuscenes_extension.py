"""What a simulated scene knows beyond nuScenes' tables: `vla_extension/<scene>.json`, which the devkit ignores.

Traffic lights with their states, the map as polygons, the route, what it asks for in words, why the expert did what it
did, and what happened. All instants are those of the tables, all coordinates in their world frame, in metres to the
millimetre. A state holds from its instant until the next one: of the lights, of command and instruction.
"""

import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from sensors.clip import ROUTE_COMMANDS
from sensors.errors import InputError

FOLDER = "vla_extension"
LAYERS = ("drivable", "intersection", "crossing", "walkway")
DECIMALS = 3


@dataclass(frozen=True)
class MapLane:
    """centreline_m float64 [V, 2] in the direction of travel; a way through a junction is a lane too."""

    id: str
    width_m: float
    limit_mps: float
    on_route: bool
    centreline_m: np.ndarray


@dataclass(frozen=True)
class SceneExtension:
    """See the module. Letters: R route vertices, S signals, L changes of lights, C of cues, Q plans, E events.

    scenario, town, weather   names
    seed
    goal_m                    arc length of the goal on the route
    route_m          float64 [R, 2]
    lanes            tuple of MapLane
    areas            tuple of (layer of LAYERS, polygon float64 [V, 2]), without holes but for bridges
    signals_xyyaw    float64 [S, 3]  where each signal stands and the way those drive who look at it
    lights_time_us   int64 [L];  lights: L strings of S letters: r red, u red and amber, y amber, g G green, "" unknown
    cue_time_us      int64 [C];  commands: one of ROUTE_COMMANDS each; instructions: in words
    plan_time_us     int64 [Q];  reasons: why the expert's plan of that instant is as it is
    plans            float64 [Q, K, 3]  the plan: x, y, yaw in the ego frame of its instant, plan_after_s [K] later;
                     not what was driven where noise, or somebody else, was at the wheel
    event_time_us    int64 [E];  events: E tuples (kind, with whom, fault)
    """

    scenario: str
    town: str
    weather: str
    seed: int
    goal_m: float
    route_m: np.ndarray
    lanes: tuple[MapLane, ...]
    areas: tuple[tuple[str, np.ndarray], ...]
    signals_xyyaw: np.ndarray
    lights_time_us: np.ndarray
    lights: tuple[str, ...]
    cue_time_us: np.ndarray
    commands: tuple[str, ...]
    instructions: tuple[str, ...]
    plan_time_us: np.ndarray
    reasons: tuple[str, ...]
    plan_after_s: np.ndarray
    plans: np.ndarray
    event_time_us: np.ndarray
    events: tuple[tuple[str, str, str], ...]

    def cue_at(self, time_us: int) -> tuple[str, str]:
        """(command, instruction) at an instant; those of the first before it."""
        k = max(int(np.searchsorted(self.cue_time_us, time_us, side="right")) - 1, 0)
        return (self.commands[k], self.instructions[k]) if len(self.commands) else ("follow", "")

    def lights_at(self, time_us: int) -> str:
        """A letter for each signal at an instant; those of the first before it."""
        k = max(int(np.searchsorted(self.lights_time_us, time_us, side="right")) - 1, 0)
        return self.lights[k] if self.lights else ""

    def reason_at(self, time_us: int) -> str:
        """Why the latest plan made at or before an instant is as it is; "" before the first."""
        k = int(np.searchsorted(self.plan_time_us, time_us, side="right")) - 1
        return self.reasons[k] if k >= 0 else ""

    def plan_at(self, time_us: int) -> np.ndarray | None:
        """The expert's plan [K, 3] of exactly this instant; None where it made none then."""
        k = int(np.searchsorted(self.plan_time_us, time_us))
        return self.plans[k] if k < len(self.plan_time_us) and self.plan_time_us[k] == time_us else None

    @cached_property
    def route_points(self) -> np.ndarray:
        """x, y [V, 2] about a metre apart along the middle of all lanes that lie on the route."""
        lines = [lane.centreline_m for lane in self.lanes if lane.on_route and len(lane.centreline_m) > 1]
        return np.concatenate([_by_metre(line) for line in lines]) if lines else np.zeros((0, 2))

    def validate(self, where: object = "extension") -> "SceneExtension":
        """Self, or an InputError that names the first bad field."""
        for name, shape in (("route_m", (2,)), ("signals_xyyaw", (3,))):
            _check(where, name, getattr(self, name), shape)
        for lane in self.lanes:
            _check(where, f"centreline of lane {lane.id}", lane.centreline_m, (2,))
        for k, (layer, polygon) in enumerate(self.areas):
            _check(where, f"areas[{k}]", polygon, (2,))
            if layer not in LAYERS:
                raise InputError(where, f"areas[{k}]", layer, f"one of {', '.join(LAYERS)}")
        for times, *columns in (
            ("lights_time_us", "lights"),
            ("cue_time_us", "commands", "instructions"),
            ("plan_time_us", "reasons", "plans"),
            ("event_time_us", "events"),
        ):
            time_us = getattr(self, times)
            if time_us.ndim != 1 or time_us.dtype != np.int64 or (np.diff(time_us) < 0).any():
                raise InputError(where, times, time_us, "integers in order of time")
            for name in columns:
                if len(getattr(self, name)) != len(time_us):
                    raise InputError(where, name, f"{len(getattr(self, name))} rows", f"{len(time_us)} as in {times}")
        shape = (len(self.plan_time_us), len(self.plan_after_s), 3)
        if self.plans.shape != shape or not np.isfinite(self.plans).all():
            raise InputError(where, "plans", f"shape {self.plans.shape}", f"finite numbers {shape}")
        unknown = sorted(set(self.commands) - set(ROUTE_COMMANDS))
        if unknown:
            raise InputError(where, "commands", unknown[0], f"one of {', '.join(ROUTE_COMMANDS)}")
        wrong = [states for states in self.lights if len(states) != len(self.signals_xyyaw)]
        if wrong:
            raise InputError(where, "lights", wrong[0], f"{len(self.signals_xyyaw)} letters, one a signal")
        return self

    def to_json(self) -> bytes:
        """As the file has it."""
        values = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return json.dumps(values, allow_nan=False, separators=(",", ":")).encode()


def read_extension(dataroot: Path, scene: str) -> SceneExtension | None:
    """The extension of a scene, None where there is none; one that is damaged is an InputError."""
    path = Path(dataroot) / FOLDER / f"{scene}.json"
    return extension_from_json(path.read_bytes(), path) if path.is_file() else None


def extension_from_json(content: bytes | str, where: object) -> SceneExtension:
    """What `to_json` made; anything else is an InputError."""
    expected = "the JSON of a scene extension"
    try:
        values = json.loads(content)
        made = {field.name: values[field.name] for field in fields(SceneExtension)}
        for name in ("route_m", "signals_xyyaw"):
            made[name] = np.array(made[name], np.float64).reshape(-1, 2 if name == "route_m" else 3)
        made["plan_after_s"] = np.array(made["plan_after_s"], np.float64)
        made["plans"] = np.array(made["plans"], np.float64).reshape(len(made["plans"]), len(made["plan_after_s"]), 3)
        for name in (name for name in made if name.endswith("time_us")):
            made[name] = np.array(made[name], np.int64)
        made["lanes"] = tuple(_lane(row) for row in made["lanes"])
        made["areas"] = tuple((layer, np.array(polygon, np.float64)) for layer, polygon in made["areas"])
        made["events"] = tuple((kind, actor, fault) for kind, actor, fault in made["events"])
        for name in ("lights", "commands", "instructions", "reasons"):
            made[name] = tuple(made[name])
        return SceneExtension(**made).validate(where)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(where, "content", f"{type(error).__name__}: {error}", expected, "Record it again.") from error


def _lane(row: dict) -> MapLane:
    made = {field.name: row[field.name] for field in fields(MapLane)}
    return MapLane(**made | {"centreline_m": np.array(made["centreline_m"], np.float64)})


def _plain(value: object) -> object:
    """Numbers, strings, lists and objects of JSON."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype.kind == "i" else value.round(DECIMALS).tolist()
    if isinstance(value, MapLane):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return round(value, DECIMALS) if isinstance(value, float) else value


def _by_metre(line: np.ndarray) -> np.ndarray:
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    at = np.linspace(0.0, along[-1], max(2, round(along[-1]) + 1))
    return np.stack([np.interp(at, along, line[:, axis]) for axis in (0, 1)], axis=1)


def _check(where: object, name: str, value: np.ndarray, shape: tuple[int, ...]) -> None:
    if value.ndim != 2 or value.shape[1:] != shape or not np.isfinite(value).all():
        raise InputError(where, name, f"shape {value.shape}", f"finite numbers [V, {shape[0]}]")
