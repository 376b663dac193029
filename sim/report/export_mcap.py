"""An episode's log as an MCAP file that Foxglove shows: JSON messages of its published schemas.

Topics: /map, /red, /actors, /plan (foxglove.SceneUpdate), /ego (foxglove.PoseInFrame), /tf (foxglove.FrameTransform),
/motion (vla.Motion: speed, acceleration, curvature), /words (foxglove.Log), /film (foxglove.CompressedImage).
Frames: "world", and "ego" at the rear axle on the ground.
"""

import base64
import json
from pathlib import Path

import numpy as np

from sim.report import log_scene
from sim.report.log_scene import EGO, PLAN, RED, ROUTE, actor_colour, actor_height_m
from sim.rollout_log import EpisodeLog, atomic_path

LINE_STRIP = 0  # foxglove.LinePrimitive.type
INFO, ERROR = 2, 4  # foxglove.Log.level
NEVER = {"sec": 0, "nsec": 0}  # a lifetime of zero lasts until it is replaced
NUMBER, TEXT, INTEGER, TRUTH = {"type": "number"}, {"type": "string"}, {"type": "integer"}, {"type": "boolean"}


def _object(title: str = "", **properties: dict) -> dict:
    return {"type": "object", "properties": properties} | ({"title": title} if title else {})


def _list(items: dict) -> dict:
    return {"type": "array", "items": items}


TIME = _object(sec=INTEGER, nsec=INTEGER)
VECTOR = _object(x=NUMBER, y=NUMBER, z=NUMBER)
QUATERNION = _object(x=NUMBER, y=NUMBER, z=NUMBER, w=NUMBER)
POSE = _object(position=VECTOR, orientation=QUATERNION)
COLOUR = _object(r=NUMBER, g=NUMBER, b=NUMBER, a=NUMBER)
CUBE = _object(pose=POSE, size=VECTOR, color=COLOUR)
LINE = _object(
    type=INTEGER,
    pose=POSE,
    thickness=NUMBER,
    scale_invariant=TRUTH,
    points=_list(VECTOR),
    color=COLOUR,
    colors=_list(COLOUR),
    indices=_list(INTEGER),
)
ENTITY = _object(
    timestamp=TIME,
    frame_id=TEXT,
    id=TEXT,
    lifetime=TIME,
    frame_locked=TRUTH,
    metadata=_list(_object(key=TEXT, value=TEXT)),
    cubes=_list(CUBE),
    lines=_list(LINE),
)
DELETION = _object(timestamp=TIME, type=INTEGER, id=TEXT)
# schema's name: its JSON schema, the published one less the primitives that are not used here
SCHEMAS = {
    "foxglove.SceneUpdate": _object("foxglove.SceneUpdate", deletions=_list(DELETION), entities=_list(ENTITY)),
    "foxglove.PoseInFrame": _object("foxglove.PoseInFrame", timestamp=TIME, frame_id=TEXT, pose=POSE),
    "foxglove.FrameTransform": _object(
        "foxglove.FrameTransform",
        timestamp=TIME,
        parent_frame_id=TEXT,
        child_frame_id=TEXT,
        translation=VECTOR,
        rotation=QUATERNION,
    ),
    "foxglove.CompressedImage": _object(
        "foxglove.CompressedImage",
        timestamp=TIME,
        frame_id=TEXT,
        data={"type": "string", "contentEncoding": "base64"},
        format=TEXT,
    ),
    "foxglove.Log": _object(
        "foxglove.Log", timestamp=TIME, level=INTEGER, message=TEXT, name=TEXT, file=TEXT, line=INTEGER
    ),
    "vla.Motion": _object("vla.Motion", timestamp=TIME, **dict.fromkeys(log_scene.SERIES, NUMBER)),
}
TOPICS = {
    "/map": "foxglove.SceneUpdate",
    "/red": "foxglove.SceneUpdate",
    "/actors": "foxglove.SceneUpdate",
    "/plan": "foxglove.SceneUpdate",
    "/ego": "foxglove.PoseInFrame",
    "/tf": "foxglove.FrameTransform",
    "/motion": "vla.Motion",
    "/words": "foxglove.Log",
    "/film": "foxglove.CompressedImage",
}


def write_mcap(log: EpisodeLog, path: Path, film: Path | None = None) -> None:
    """Write atomically. Needs the package mcap."""
    from mcap.writer import Writer

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        writer = Writer(file)
        writer.start(profile="", library="vla-drive")
        schemas = {
            name: writer.register_schema(name, "jsonschema", json.dumps(schema).encode())
            for name, schema in SCHEMAS.items()
        }
        channels = {
            topic: writer.register_channel(topic, "json", schemas[schema], {"policy": log.policy, "scene": log.name})
            for topic, schema in TOPICS.items()
        }
        for frame, topic, message in _messages(log, film):
            time_ns = int(log.time_us[frame]) * 1000
            data = json.dumps(message, separators=(",", ":")).encode()
            writer.add_message(channels[topic], time_ns, data, time_ns)
        writer.finish()


def _messages(log: EpisodeLog, film: Path | None):
    """(frame, topic, message) in order of time; the map at the first frame."""
    pictures = dict(log_scene.film_pictures(film, log)) if film else {}
    words: dict[int, list[log_scene.Remark]] = {}
    for remark in log_scene.remarks(log):
        words.setdefault(remark.frame, []).append(remark)
    for frame in range(len(log)):
        stamp = _stamp(log, frame)
        if frame == 0:
            yield frame, "/map", {"deletions": [], "entities": [_entity("map", stamp, lines=_map(log))]}
        pose = _pose(*log.ego_xyyaw_in_world[frame])
        yield frame, "/ego", {"timestamp": stamp, "frame_id": "world", "pose": pose}
        frames = {"parent_frame_id": "world", "child_frame_id": "ego"}
        yield (
            frame,
            "/tf",
            {"timestamp": stamp, **frames, "translation": pose["position"], "rotation": pose["orientation"]},
        )
        yield frame, "/actors", {"deletions": [], "entities": [_ego(log, stamp), _actors(log, frame, stamp)]}
        if log_scene.red_changes(log, frame):
            red = [_line(xy, RED, 0.2, 0.04) for xy in log_scene.red_ways(log, frame)]
            yield frame, "/red", {"deletions": [], "entities": [_entity("red", stamp, lines=red)]}
        _, plan = log.plan_at(frame)
        if len(plan):
            points = np.concatenate([log.ego_xyyaw_in_world[frame : frame + 1, :2], plan[:, :2]])
            line = _line(points, PLAN, 0.5, 0.06)
            yield frame, "/plan", {"deletions": [], "entities": [_entity("plan", stamp, lines=[line])]}
        values = {name: float(column[frame]) for name, column in log_scene.series(log).items()}
        yield frame, "/motion", {"timestamp": stamp, **{k: v for k, v in values.items() if np.isfinite(v)}}
        for remark in words.get(frame, ()):
            level = ERROR if remark.alarm else INFO
            about = {"message": remark.words, "name": remark.topic, "file": "", "line": 0}
            yield frame, "/words", {"timestamp": stamp, "level": level, **about}
        if frame in pictures:
            data = base64.b64encode(pictures[frame]).decode()
            yield frame, "/film", {"timestamp": stamp, "frame_id": "film", "data": data, "format": "jpeg"}


def _stamp(log: EpisodeLog, frame: int) -> dict:
    sec, rest_us = divmod(int(log.time_us[frame]), 1_000_000)
    return {"sec": sec, "nsec": rest_us * 1000}


def _pose(x: float, y: float, yaw: float, z: float = 0.0) -> dict:
    turn = {"x": 0.0, "y": 0.0, "z": float(np.sin(yaw / 2)), "w": float(np.cos(yaw / 2))}
    return {"position": {"x": float(x), "y": float(y), "z": float(z)}, "orientation": turn}


def _colour(rgb: tuple[int, int, int]) -> dict:
    return {**dict(zip("rgb", (value / 255 for value in rgb), strict=True)), "a": 1.0}


def _entity(name: str, stamp: dict, frame_id: str = "world", cubes: list | None = None, lines: list | None = None):
    about = {"timestamp": stamp, "frame_id": frame_id, "id": name, "lifetime": NEVER, "frame_locked": True}
    return {**about, "metadata": [], "cubes": cubes or [], "lines": lines or []}


def _line(xy: np.ndarray, rgb: tuple[int, int, int], thickness_m: float, z_m: float = 0.0) -> dict:
    points = [{"x": float(x), "y": float(y), "z": z_m} for x, y in xy]
    about = {"type": LINE_STRIP, "pose": _pose(0, 0, 0), "thickness": thickness_m, "scale_invariant": False}
    return {**about, "points": points, "color": _colour(rgb), "colors": [], "indices": []}


def _map(log: EpisodeLog) -> list[dict]:
    lines = [_line(xy, rgb, 0.12) for rgb, xy in log_scene.map_lines(log)]
    route = log.route_xy_in_world_m
    return lines + ([_line(route, ROUTE, 0.8, 0.02)] if len(route) > 1 else [])


def _ego(log: EpisodeLog, stamp: dict) -> dict:
    x, y, z = log_scene.ego_centre(log)
    size = {"x": log.ego_length_m, "y": log.ego_width_m, "z": log_scene.EGO_HEIGHT_M}
    return _entity("ego", stamp, "ego", cubes=[{"pose": _pose(x, y, 0.0, z), "size": size, "color": _colour(EGO)}])


def _actors(log: EpisodeLog, frame: int, stamp: dict) -> dict:
    """One entity, replaced at each frame: whoever is no longer there is not in it."""
    rows, cubes = log.actors_at(frame), []
    columns = (log.actor_xyyaw_in_world[rows], log.actor_size_lw_m[rows], log.actor_category[rows].tolist())
    for (x, y, yaw), (length, width), category in zip(*columns, strict=True):
        height = actor_height_m(category)
        size = {"x": float(length), "y": float(width), "z": height}
        cubes.append({"pose": _pose(x, y, yaw, height / 2), "size": size, "color": _colour(actor_colour(category))})
    return _entity("actors", stamp, cubes=cubes)
