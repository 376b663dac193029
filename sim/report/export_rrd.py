"""An episode's log as a recording of the Rerun viewer (.rrd), SDK 0.23: world, ego, plans, series, words, film.

Entities: /world (map, route, red ways, actors, plan, ego), /series (speed, acceleration, curvature), /words, /film.
Timeline "time": seconds since the start of the episode.
"""

from pathlib import Path

import numpy as np

from sensors.frames import matrix_from_xy_yaw
from sim.report import log_scene
from sim.report.log_scene import EGO, PLAN, RED, ROUTE, actor_colour, actor_height_m
from sim.rollout_log import EpisodeLog, atomic_path

LIFT_M = {"route": 0.02, "red": 0.04, "plan": 0.06}  # above the ground, so that none hides the other


def write_rrd(log: EpisodeLog, path: Path, film: Path | None = None) -> None:
    """Write atomically. Needs the package rerun-sdk."""
    import rerun
    from rerun import blueprint

    with atomic_path(path) as temporary:
        recording = rerun.RecordingStream("vla-drive", recording_id=f"{log.policy} {log.suite} {log.name}")
        recording.save(str(temporary))
        recording.send_blueprint(_layout(blueprint, film is not None))
        _log_still(rerun, recording, log)
        for frame in range(len(log)):
            recording.set_time("time", duration=float(log.time_s[frame]))
            _log_frame(rerun, recording, log, frame)
        for remark in log_scene.remarks(log):
            recording.set_time("time", duration=float(log.time_s[remark.frame]))
            level = rerun.TextLogLevel.ERROR if remark.alarm else rerun.TextLogLevel.INFO
            recording.log(f"words/{remark.topic}", rerun.TextLog(remark.words, level=level))
        for frame, jpeg in log_scene.film_pictures(film, log) if film else ():
            recording.set_time("time", duration=float(log.time_s[frame]))
            recording.log("film", rerun.EncodedImage(contents=jpeg, media_type="image/jpeg"))
        recording.flush()
        recording.disconnect()


def _layout(blueprint, filmed: bool):
    """The world on the left; beside it film, series and words."""
    beside = [
        blueprint.TimeSeriesView(origin="/series", name="series"),
        blueprint.TextLogView(origin="/words", name="words"),
    ]
    if filmed:
        beside.insert(0, blueprint.Spatial2DView(origin="/film", name="film"))
    world = blueprint.Spatial3DView(origin="/world", name="world")
    return blueprint.Blueprint(blueprint.Horizontal(world, blueprint.Vertical(*beside)), collapse_panels=True)


def _log_still(rerun, recording, log: EpisodeLog) -> None:
    recording.log("world", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    lines = log_scene.map_lines(log)
    strips, colours = [_lifted(xy, 0.0) for _, xy in lines], [rgb for rgb, _ in lines]
    recording.log("world/map", rerun.LineStrips3D(strips, colors=colours, radii=0.06), static=True)
    if len(log.route_xy_in_world_m) > 1:
        route = [_lifted(log.route_xy_in_world_m, LIFT_M["route"])]
        recording.log("world/route", rerun.LineStrips3D(route, colors=[ROUTE], radii=0.4), static=True)
    half = [log.ego_length_m / 2, log.ego_width_m / 2, log_scene.EGO_HEIGHT_M / 2]
    box = rerun.Boxes3D(centers=[log_scene.ego_centre(log)], half_sizes=[half], colors=[EGO], fill_mode="solid")
    recording.log("world/ego/box", box, static=True)
    track = [_lifted(log.ego_xyyaw_in_world[:, :2], LIFT_M["route"])]
    recording.log("world/track", rerun.LineStrips3D(track, colors=[EGO], radii=0.08), static=True)


def _log_frame(rerun, recording, log: EpisodeLog, frame: int) -> None:
    x, y, yaw = log.ego_xyyaw_in_world[frame]
    turn = matrix_from_xy_yaw(x, y, yaw)[:3, :3]  # its quaternions ask for numpy 2
    recording.log("world/ego", rerun.Transform3D(translation=[x, y, 0.0], mat3x3=turn))
    rows = log.actors_at(frame)
    xyyaw, size = log.actor_xyyaw_in_world[rows], log.actor_size_lw_m[rows]
    categories = log.actor_category[rows].tolist()
    heights = np.array([actor_height_m(category) for category in categories])
    zero = np.zeros(len(xyyaw))
    boxes = rerun.Boxes3D(
        centers=np.column_stack([xyyaw[:, :2], heights / 2]),
        half_sizes=np.column_stack([size, heights]) / 2,
        quaternions=np.column_stack([zero, zero, np.sin(xyyaw[:, 2] / 2), np.cos(xyyaw[:, 2] / 2)]),
        colors=[actor_colour(category) for category in categories],
        labels=log.actor_id[rows].tolist(),
        show_labels=False,
    )
    recording.log("world/actors", boxes)
    if log_scene.red_changes(log, frame):
        red = [_lifted(xy, LIFT_M["red"]) for xy in log_scene.red_ways(log, frame)]
        recording.log("world/red", rerun.LineStrips3D(red, colors=[RED], radii=0.1))
    _, plan = log.plan_at(frame)
    if len(plan):
        points = np.concatenate([log.ego_xyyaw_in_world[frame : frame + 1, :2], plan[:, :2]])
        strip = [_lifted(points, LIFT_M["plan"])]
        recording.log("world/plan", rerun.LineStrips3D(strip, colors=[PLAN], radii=0.25))
    for name, values in log_scene.series(log).items():
        if np.isfinite(values[frame]):
            recording.log(f"series/{name}", rerun.Scalars(float(values[frame])))


def _lifted(xy: np.ndarray, z_m: float) -> np.ndarray:
    return np.column_stack([xy, np.full(len(xy), z_m)])
