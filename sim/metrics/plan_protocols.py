"""PDMS and EPDMS of an episode: every plan of its log, simulated and judged against what the others then did.

A plan is scored where the log knows the others for as long as the score looks: at every plan of a drive, which is
followed for 5 s after its end, and up to 5 s before the end of a recording. The plan is the unit, as a scene is
NAVSIM's: an episode's figure is the mean of the plans that can be judged. Where a map has no lanes some cannot (whose
fault is a touch from the side?). `pdms.judged_share` says how many could: times that share, the figure is what it would
be if all others had scored 0.

What differs from NAVSIM, which scores single moments of a recording: the first plan, without a past, has no EPDMS; the
second and third have a history shorter than 1.5 s. Its second stage begins in synthetic scenes around where the first
plan led. A log has none, but a drive went on from there: `epdms_two_stage.*` takes the drive 4 s later for the one
scene of the second stage. A recording did not go where the plan led, and has no such figure.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sim.metrics.log_view import LogView
from sim.metrics.pdm import HEADING, STEER, VX, YAW_RATE, resample_plan, rollout
from sim.metrics.pdm_closed import foresee, proposal_scores
from sim.metrics.pdm_proposals import proposals
from sim.metrics.pdm_scene import STATES, PdmScene, ego_areas, ego_points
from sim.metrics.pdm_scores import TTC_STEPS, Score, extended_comfort, judge, sub_scores, total
from sim.metrics.pdm_traffic import react
from sim.metrics.pdm_two_stage import human_filter, two_stage, two_stage_mean

HORIZON_S = 4.0
HISTORY_S, HISTORY_STEP_S = (1.5, 1.0, 0.5, 0.0), 0.5
INSTANTS = {"v1": STATES + TTC_STEPS[-1], "v2": STATES}
Figure = tuple[float, bool]


def plan_frames(view: LogView, version: str) -> np.ndarray:
    """The frames whose plans the log can judge: the others are known for long enough."""
    known_s = (view.log.scene_time_us[-1] - view.log.time_us) * 1e-6
    frames = np.unique(view.log.plan_frame)
    return frames[known_s[frames] >= (INSTANTS[version] - 1) * 0.1 - 1e-6]


def plan_totals(view: LogView, variant: str, versions: Sequence[str] = ("v1", "v2")) -> dict[str, list[Figure]]:
    """PDMS ("v1") and EPDMS ("v2") of each of the plans, (value, valid)."""
    frames = plan_frames(view, "v2")
    late = set(frames) - set(plan_frames(view, "v1"))
    nothing = {version: [(float("nan"), False)] * (len(frames) - (version == "v2")) for version in versions}
    plans = [_reference(view, int(frame)) for frame in frames]
    if not len(frames) or view.layers is None or view.way_m is None or any(plan is None for plan in plans):
        return nothing
    vehicle = view.vehicle(variant)
    starts = np.stack([_start(view, int(frame), variant) for frame in frames])
    scenes = [view.scene(int(frame)) for frame in frames]
    foreseen = [foresee(start, scene, vehicle) for start, scene in zip(starts, scenes, strict=True)]
    offered = proposals(starts, foreseen, view.limit_mps[frames], variant, vehicle)
    poses = np.concatenate([offered, np.stack(plans)[:, None]], axis=1)  # [Q, 15 + 1, 41, 3]
    each = poses.shape[1]
    states = rollout(
        poses.reshape(-1, STATES, 3),
        np.repeat(starts[:, VX], each),
        initial=np.repeat(starts, each, axis=0),
        variant=variant,
        vehicle=vehicle,
    ).reshape(*poses.shape[:3], 7)
    totals: dict[str, list[Figure]] = {version: [] for version in versions}
    answered = scenes
    if "v2" in versions and view.layers.lanes_known and view.log.lights != "unknown":
        answered = _answered(view, scenes, states[:, -1], variant)
    for q, frame in enumerate(frames):
        areas = ego_areas(ego_points(states[q], vehicle), view.layers)
        judged = judge(states[q, :-1], foreseen[q], vehicle, areas.take(slice(-1)))
        for version in versions:
            if version == "v2" and (q == 0 or scenes[q].red_lights is None or not view.layers.lanes_known):
                totals[version] += [] if q == 0 else [(float("nan"), False)]
                continue
            if version == "v1" and frame in late:
                continue
            score = proposal_scores(states[q, :-1], foreseen[q], version, variant, vehicle, judged)
            best = int(np.argmax(score))
            pair = [best, -1]
            scene = answered[q] if version == "v2" else scenes[q]
            past = _history(view, int(frame), variant) if version == "v2" else None
            both = judge(states[q, pair], scene, vehicle, areas.take(pair))
            scores = sub_scores(both.states, scene, version, variant, history=past, vehicle=vehicle, judged=both)
            mine = {name: (value[1], valid[1]) for name, (value, valid) in scores.items()}
            if version == "v2":
                apart_s = float(view.log.time_us[frame] - view.log.time_us[frames[q - 1]]) * 1e-6
                mine["EC"] = extended_comfort(states[q, -1], states[q - 1, -1], apart_s, variant)
                mine = _filtered(view, int(frame), scenes[q], mine, variant)
            value, valid = total(mine, version)
            totals[version].append((float(value), bool(valid)))
    return totals


def pdm_scores(view: LogView) -> dict[str, tuple[float, bool, float]]:
    """pdms.compat, pdms.strict, epdms.compat, epdms.strict: (mean over judged plans, any, how many).

    Also epdms_two_stage.compat and .strict, and `pdms.judged_share` of all its plans.
    """
    figures = {}
    for variant in ("compat", "strict"):
        totals = plan_totals(view, variant)
        for name, version in (("epdms", "v2"), ("pdms", "v1")):
            values = [value for value, valid in totals[version] if valid]
            mean = float(np.mean(values)) if values else float("nan")
            figures[f"{name}.{variant}"] = (mean, bool(values), len(values))
        figures[f"epdms_two_stage.{variant}"] = (*_two_stages(view, totals["v2"]), 1)
    share = len(values) / max(len(totals["v1"]), 1)
    return figures | {"pdms.judged_share": (share, bool(totals["v1"]), len(totals["v1"]))}


def _two_stages(view: LogView, totals: Sequence[Figure]) -> Figure:
    """EPDMS in two stages of a drive, from that of its plans but the first: each plan and the one before it, with what
    the drive then was 4 s after each."""
    log = view.log
    if log.kind != "drive" or not all(valid for _, valid in totals):
        return float("nan"), False
    frames = plan_frames(view, "v2")[1:]
    first = dict(zip(frames.tolist(), totals, strict=True))
    whole: dict[int, Score] = {}
    for frame, score in first.items():
        after_us = log.time_us[frames] - log.time_us[frame] - round(HORIZON_S * 1e6)
        k = int(np.searchsorted(after_us, -50_000))
        if k < len(frames) and after_us[k] < 50_000:
            second = np.array([first[frames[k]][0]]), np.array([first[frames[k]][1]])
            end, start = _reference(view, frame)[-1, :2], log.ego_xyyaw_in_world[frames[k], :2]
            whole[frame] = two_stage(score, end, second, start[None])
    now = list(whole)
    groups = [(whole[frame], whole[before]) for before, frame in pairwise(now)]
    value, valid = two_stage_mean(groups)
    return float(value), bool(valid)


def _reference(view: LogView, frame: int) -> np.ndarray | None:
    """Poses [41, 3] of the plan made at a frame, from the present one on; None where it ends before 4 s."""
    time_s, xyyaw = view.log.plan_at(frame)
    if time_s[-1] < HORIZON_S - 1e-6:
        return None
    knots = np.concatenate([view.log.ego_xyyaw_in_world[frame][None], xyyaw])
    return resample_plan(knots, np.append(0.0, time_s))


def _start(view: LogView, frame: int, variant: str) -> np.ndarray:
    """State [7] from which a plan is simulated; NAVSIM knows neither wheel angle nor yaw rate of the recording."""
    state = view.states[frame, :7].copy()
    if variant == "compat":
        state[[STEER, YAW_RATE]] = 0.0
    return state


def _history(view: LogView, frame: int, variant: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The recorded past of a frame as HC takes it, 0.5 s apart: (time_us [H], states [H, 8]); None without one."""
    log = view.log
    at_us = log.time_us[frame] - (np.array(HISTORY_S) * 1e6).astype(np.int64)
    at_us = at_us[at_us >= log.time_us[0] - 1000]
    frames = np.unique([int(np.abs(log.time_us - t).argmin()) for t in at_us])
    if len(frames) < 2:
        return None
    states = view.states[frames].copy()
    states[:, HEADING] = np.unwrap(states[:, HEADING])
    return log.time_us[frames], states if variant == "compat" else states[:, :7]


def _answered(view: LogView, scenes: Sequence[PdmScene], states: np.ndarray, variant: str) -> list[PdmScene]:
    """The scenes [Q] with the others as they answer to simulated states [Q, 41, 7]."""
    flags = [view.vehicles(scene) for scene in scenes]
    return react(scenes, flags, states, view.log.surroundings.lanes, variant, view.vehicle(variant))


def _filtered(view: LogView, frame: int, scene: PdmScene, scores: dict[str, Score], variant: str) -> dict[str, Score]:
    """The human filter, where there is a recorded human: in a replay, since who drives a recording is elsewhere."""
    log = view.log
    time_s = (log.human_time_us - log.time_us[frame]) * 1e-6
    if log.kind != "replay" or not len(time_s) or time_s[-1] < HORIZON_S - 1e-6:
        return scores
    start = _start(view, frame, variant)
    poses = resample_plan(log.human_xyyaw_in_world, time_s)
    states = rollout(poses, start[VX], initial=start, variant=variant, vehicle=view.vehicle(variant))
    (scene,) = _answered(view, [scene], states[None], variant)
    human = sub_scores(states[None], scene, "v2", variant, vehicle=view.vehicle(variant))
    return human_filter(scores, {name: (value[0], valid[0]) for name, (value, valid) in human.items()})
