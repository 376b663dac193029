"""What the log of an episode is made of: columns, their types, and how they hang together.

Letters: F frames, N instants of the others (the frames, and those after the end), A actor rows, Q plan rows, K tokens,
Y reasons, G cues, E events, I red lights, S views, L map lines, V their vertices; and of `sim.surroundings`: M lanes, W
vertices of all lanes, P areas, U vertices of all areas, R route vertices, H instants of the human's drive. Actors,
plans, their tokens and reasons, cues, events, lights and views are in long form: one row each, its frame in the
`*_frame` column.
"""

import numpy as np

from sensors.clip import ROUTE_COMMANDS
from sensors.errors import InputError
from sim.surroundings import COLUMNS as SURROUNDINGS
from sim.surroundings import LAYERS, LIGHTS, NUMBERS
from sim.views import HOWS

SCHEMA, VERSION = "vla-drive episode log", 5
READABLE = {4: ("view_frame", "view_camera", "view_how", "view_hole_share"), VERSION: ()}  # what older ones lack
KINDS = ("drive", "replay")
# A closed set, since a misspelt event would score as a perfect drive; what each means, the worlds say.
EVENTS = ("collision", "off_road", "wrong_way", "stop_line", "red_light", "speeding", "blocked", "route_left")
EVENTS += ("route_completed",)
FAULTS = ("", "ego", "other")

# column: (dtype, letter of its rows, shape of a row); dtype "U" is a string of any length
COLUMNS = {
    "time_us": ("int64", "F", ()),
    "scene_time_us": ("int64", "N", ()),
    "ego_xyyaw_in_world": ("float64", "F", (3,)),
    "speed_mps": ("float64", "F", ()),
    "action": ("float64", "F", (2,)),
    "actor_frame": ("int64", "A", ()),
    "actor_id": ("U", "A", ()),
    "actor_category": ("U", "A", ()),
    "actor_xyyaw_in_world": ("float64", "A", (3,)),
    "actor_size_lw_m": ("float64", "A", (2,)),
    "actor_speed_mps": ("float64", "A", ()),
    "plan_frame": ("int64", "Q", ()),
    "plan_time_s": ("float64", "Q", ()),
    "plan_xyyaw_in_world": ("float64", "Q", (3,)),
    "token_frame": ("int64", "K", ()),
    "token": ("int64", "K", ()),
    "reason_frame": ("int64", "Y", ()),
    "reason": ("U", "Y", ()),
    "cue_frame": ("int64", "G", ()),
    "command": ("U", "G", ()),
    "instruction": ("U", "G", ()),
    "event_frame": ("int64", "E", ()),
    "event": ("U", "E", ()),
    "event_actor": ("U", "E", ()),
    "event_speed_mps": ("float64", "E", ()),
    "event_fault": ("U", "E", ()),
    "red_frame": ("int64", "I", ()),
    "red_lane": ("int64", "I", ()),
    "view_frame": ("int64", "S", ()),
    "view_camera": ("U", "S", ()),
    "view_how": ("U", "S", ()),
    "view_hole_share": ("float64", "S", ()),
    "line_kind": ("U", "L", ()),
    "line_index": ("int64", "V", ()),
    "line_xy_in_world_m": ("float64", "V", (2,)),
    **SURROUNDINGS,
}
FINITE = ("ego_xyyaw_in_world", "speed_mps", "actor_xyyaw_in_world", "actor_size_lw_m")
FINITE += ("plan_time_s", "plan_xyyaw_in_world", "line_xy_in_world_m", "lane_width_m", "lane_xy_in_world_m")
FINITE += ("view_hole_share", "area_xy_in_world_m", "route_xy_in_world_m", "human_xyyaw_in_world")
CLOSED = (("event", EVENTS), ("event_fault", FAULTS), ("area_layer", LAYERS), ("command", ("", *ROUTE_COMMANDS)))
CLOSED += (("view_how", HOWS),)


def check_columns(log, where: object) -> None:
    """An InputError that names the first bad column of a `sim.rollout_log.EpisodeLog`."""
    for name in ("name", "policy", "suite", "town", "weather", "ended_by", "error"):
        if not isinstance(getattr(log, name), str):
            raise InputError(where, name, repr(getattr(log, name)), "a string")
    if not isinstance(log.seed, int):
        raise InputError(where, "seed", repr(log.seed), "an integer")
    for name in NUMBERS:
        value = getattr(log, name)
        if not isinstance(value, float) or not np.isfinite(value):
            raise InputError(where, name, repr(value), "a finite number")
    for name, known in (("kind", KINDS), ("lights", LIGHTS)):
        if getattr(log, name) not in known:
            raise InputError(where, name, repr(getattr(log, name)), f"one of {', '.join(known)}")
    rows: dict[str, int] = {}
    for name, (dtype, letter, shape) in COLUMNS.items():
        column = getattr(log, name)
        right = column.dtype.kind == "U" if dtype == "U" else column.dtype == dtype
        count = rows.setdefault(letter, len(column) if column.ndim else -1)
        if not right or column.shape != (count, *shape):
            raise InputError(where, name, f"{column.dtype} {column.shape}", f"{dtype} {(count, *shape)}")
    for name in FINITE:
        if not np.isfinite(getattr(log, name)).all():
            raise InputError(where, name, "NaN or infinity", "finite numbers")
    _check_order(log, where)
    for name, known in CLOSED:
        unknown = sorted(set(getattr(log, name).tolist()) - set(known))
        if unknown:
            raise InputError(where, name, unknown[0], f"one of {', '.join(known)}")


def _check_order(log, where: object) -> None:
    for name in ("time_us", "scene_time_us", "human_time_us"):
        time_us = getattr(log, name)
        if (np.diff(time_us) <= 0).any():
            frame = int(np.argmax(np.diff(time_us) <= 0)) + 1
            came = f"{time_us[frame]} after {time_us[frame - 1]}"
            raise InputError(where, f"{name}[{frame}]", came, "strictly increasing time")
    if not np.array_equal(log.scene_time_us[: len(log)], log.time_us):
        raise InputError(where, "scene_time_us", "other instants", "those of time_us first")
    if len(log.red_lane) and not 0 <= log.red_lane.min() <= log.red_lane.max() < len(log.lane_id):
        raise InputError(where, "red_lane", log.red_lane, f"inside 0..{len(log.lane_id) - 1}")
    for name, count in (
        ("actor_frame", len(log.scene_time_us)),
        ("red_frame", len(log.scene_time_us)),
        ("plan_frame", len(log)),
        ("token_frame", len(log)),
        ("reason_frame", len(log)),
        ("cue_frame", len(log)),
        ("event_frame", len(log)),
        ("view_frame", len(log)),
        ("line_index", len(log.line_kind)),
        ("lane_index", len(log.lane_id)),
        ("area_index", len(log.area_layer)),
    ):
        column = getattr(log, name)
        if (np.diff(column) < 0).any() or (len(column) and not 0 <= column[0] <= column[-1] < count):
            raise InputError(where, name, column, f"not decreasing, inside 0..{count - 1}")
    same_plan = np.diff(log.plan_frame) == 0
    if (np.diff(log.plan_time_s)[same_plan] <= 0).any():
        raise InputError(where, "plan_time_s", "time that stands or runs back", "increasing time within a plan")
