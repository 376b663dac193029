"""PDMS (NAVSIM v1) and EPDMS (v2): sub-scores of simulated trajectories, and totals.

Letters as in `pdm_scene`: P proposals, K = 41 states, A actors, T instants. A score is a pair (value, valid), each of
shape [P] (or scalars in the totals); where the scene does not hold what a score needs, valid is False and value NaN.

    NC   no collision at fault            0, .5, 1      TTC  time to collision            0, 1
    DAC  drivable area                    0, 1          EP   progress, against the best   0 .. 1
    DDC  driving direction                0, .5, 1      LK   lane keeping                 0, 1
    TLC  red lights                       0, 1          C, HC, EC  comfort: of the plan, with its history, of two plans

Where "compat" and "strict" differ: an object's speed is the one it had when first seen (NAVSIM keeps the first record
of each track), in strict the one at contact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sensors.errors import InputError
from sim.metrics.pdm import (
    DT_S,
    HEADING,
    PACIFICA,
    VX,
    Footprint,
    check_variant,
    comfort,
    extended_comfort,
    finite,
    history_comfort,
)
from sim.metrics.pdm_scene import (
    CENTRE,
    FRONT_LEFT,
    FRONT_RIGHT,
    STATES,
    Actors,
    Areas,
    PdmScene,
    angle_to,
    boxes_touch,
    ego_areas,
    ego_points,
    project_on_line,
    rectangles_touch_polygon,
)

Score = tuple[np.ndarray, np.ndarray]  # (value, valid), float64 and bool of one shape

AHEAD_RAD, BEHIND_RAD = np.deg2rad(30.0), np.deg2rad(150.0)
STOPPED_MPS, TTC_STOPPED_MPS = 0.05, 0.005
TTC_STEPS = (0, 3, 6, 9)  # the ego is moved on by 0, .3, .6, .9 s at its present velocity
DDC_STEPS, DDC_COMPLIANT_M, DDC_VIOLATION_M = 10, 2.0, 6.0
LK_DEVIATION_M, LK_SAMPLES = 0.5, 20
MIN_PROGRESS_M = 5.0
MULTIPLIERS = {"v1": ("NC", "DAC"), "v2": ("NC", "DAC", "DDC", "TLC")}
WEIGHTS = {"v1": {"EP": 5, "TTC": 5, "C": 2}, "v2": {"EP": 5, "TTC": 5, "LK": 2, "HC": 2, "EC": 2}}


@dataclass(frozen=True)
class Judged:
    """What several sub-scores share.

    states [P, K, 7], points [P, K, 6, 2], areas (or None without a map), whether lanes are known, actors that come near
    the ego at all
    """

    states: np.ndarray
    points: np.ndarray
    areas: Areas | None
    lanes_known: bool
    actors: Actors
    vehicle: Footprint

    @cached_property
    def touching(self) -> np.ndarray:
        """Which objects the ego touches at each instant, bool [P, K, A]."""
        if "about_to_touch" in vars(self):  # whose first is at once
            return self.about_to_touch[:, :, 0]
        return _contacts(self, self.states.shape[1], (0,))[:, :, 0]

    @cached_property
    def about_to_touch(self) -> np.ndarray:
        """And which it would, moved on by TTC_STEPS, bool [P, K, 4, A]."""
        return _contacts(self, self.states.shape[1], TTC_STEPS)

    @cached_property
    def direction(self) -> Score:
        return _driving_direction(self)


def judge(states: np.ndarray, scene: PdmScene, vehicle: Footprint = PACIFICA, areas: Areas | None = None) -> Judged:
    """What the sub-scores of states [P, 41, 7] share, whatever version and variant; `areas` if they are known."""
    points = ego_points(states, vehicle)
    if areas is None and scene.layers is not None:
        areas = ego_areas(points, scene.layers)
    actors = scene.actors
    if len(actors.ids):
        # TTC looks 0.9 s ahead of the last state; whatever stays out of that reach can be left out exactly.
        reach = np.abs(states[..., VX]).max() * TTC_STEPS[-1] * DT_S
        radius = np.hypot(*actors.size_lw_m.T)[:, None, None] / 2 + reach
        low, high = points.min(axis=(0, 1, 2)), points.max(axis=(0, 1, 2))
        xy = actors.xyh[..., :2]
        near = ((xy > low - radius) & (xy < high + radius)).all(axis=-1) & actors.present
        actors = actors.take(near.any(axis=1))
    lanes_known = scene.layers is not None and scene.layers.lanes_known
    return Judged(states, points, areas, lanes_known, actors, vehicle)


def _contacts(judged: Judged, steps: int, ahead: Sequence[int]) -> np.ndarray:
    """Whether ego k, moved on by h * 0.1 s, touches object a at instant k + h: bool [P, steps, len(ahead), A].

    An object that the scene does not hold at k + h is absent. Circles first, then separating axes for what is left.
    """
    states, actors, vehicle = judged.states[:, :steps], judged.actors, judged.vehicle
    instants = actors.present.shape[1]
    at = np.arange(steps)[:, None] + np.asarray(ahead)  # [steps, H]
    present = actors.present[:, np.minimum(at, instants - 1)] & (at < instants)  # [A, steps, H]
    objects = actors.xyh[:, np.minimum(at, instants - 1)]  # [A, steps, H, 3]
    heading = states[..., HEADING]
    direction = np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    moved = direction[:, :, None] * np.abs(states[..., VX, None, None]) * (np.asarray(ahead) * DT_S)[:, None]
    centre = judged.points[:, :steps, CENTRE, None] + moved  # [P, steps, H, 2]
    ego_radius = np.hypot(vehicle.length_m, vehicle.width_m) / 2
    radius = (np.hypot(*actors.size_lw_m.T) / 2 + ego_radius) ** 2
    dx = centre[..., 0, None] - np.moveaxis(objects[..., 0], 0, -1)
    dy = centre[..., 1, None] - np.moveaxis(objects[..., 1], 0, -1)
    touch = (dx * dx + dy * dy <= radius) & np.moveaxis(present, 0, -1)
    p, k, h, a = np.nonzero(touch)
    half = np.broadcast_to([vehicle.length_m / 2, vehicle.width_m / 2], (len(p), 2))
    pose = objects[a, k, h]
    touch[p, k, h, a] = boxes_touch(
        centre[p, k, h], heading[p, k], half, pose[:, :2], pose[:, 2], actors.size_lw_m[a] / 2
    )
    return touch


def _first(contact: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Proposal, object and index of the first contact [P, N, A] of each pair that is not ignored [P, A].

    Only the first one counts: a contact either ends the matter (at fault) or has the object ignored from then on.
    """
    p, a = np.nonzero(contact.any(axis=1) & ~ignored)
    return p, a, contact[p, :, a].argmax(axis=1)


def _object_speed(actors: Actors, a: np.ndarray, instant: np.ndarray, variant: str) -> np.ndarray:
    if variant == "compat":
        instant = actors.present.argmax(axis=1)[a]
    return actors.speed_mps[a, instant]


def _ignored(judged: Judged, version: str) -> np.ndarray:
    """Objects [P, A] that the ego touches before it moves; v2 resets that list when the traffic policy takes over."""
    if version == "v2":
        return np.zeros((len(judged.states), len(judged.actors.ids)), dtype=bool)
    return judged.touching[:, 0]


@dataclass(frozen=True)
class Contacts:
    """C first contacts: proposal, object and instant of each (int [C]), and what it was like (bool [C] each).

    At most one of stopped (the ego stands), hit_stopped (the object does), behind, front and lateral is True.
    """

    proposal: np.ndarray
    actor: np.ndarray
    instant: np.ndarray
    stopped: np.ndarray
    hit_stopped: np.ndarray
    behind: np.ndarray
    front: np.ndarray
    lateral: np.ndarray


def first_contacts(judged: Judged, version: str = "v1", variant: str = "strict") -> Contacts:
    """The first contact of each pair of proposal and object, over as many instants as both are known."""
    states, actors, vehicle = judged.states, judged.actors, judged.vehicle
    p, a, k = _first(judged.touching, _ignored(judged, version))
    ego, pose = states[p, k], actors.xyh[a, k]
    ego_stopped = np.abs(ego[:, VX]) <= STOPPED_MPS
    object_stopped = ~actors.is_agent[a] | (_object_speed(actors, a, k, variant) <= STOPPED_MPS)
    behind = angle_to(ego, pose[:, :2]) > BEHIND_RAD
    bumper = (judged.points[p, k, FRONT_LEFT] + judged.points[p, k, FRONT_RIGHT]) / 2
    bumper_half = np.broadcast_to([0.0, vehicle.width_m / 2], (len(p), 2))
    front = boxes_touch(bumper, ego[:, HEADING], bumper_half, pose[:, :2], pose[:, 2], actors.size_lw_m[a] / 2)
    moving = ~ego_stopped & ~object_stopped
    return Contacts(
        *(p, a, k, ego_stopped, ~ego_stopped & object_stopped),
        *(moving & behind, moving & ~behind & front, moving & ~behind & ~front),
    )


def no_collision(judged: Judged, version: str = "v1", variant: str = "strict") -> Score:
    """NC of any number of instants."""
    states, actors = judged.states, judged.actors
    contacts = first_contacts(judged, version, variant)
    p, a, k = contacts.proposal, contacts.actor, contacts.instant
    lateral, fault = contacts.lateral, contacts.hit_stopped | contacts.front
    value, certain = np.ones(len(states)), np.ones(len(states))
    penalty = np.where(actors.is_agent[a], 0.0, 0.5)
    np.minimum.at(certain, p[fault], penalty[fault])
    if judged.areas is not None:
        fault |= lateral & (judged.areas.multi_lane | judged.areas.non_drivable)[p, k]
        np.minimum.at(value, p[fault], penalty[fault])
        if judged.lanes_known:
            return value, np.ones(len(states), dtype=bool)
        certain = value
    unknown = np.ones(len(states))  # without lanes, whose fault a lateral contact is cannot be told
    np.minimum.at(unknown, p[lateral], penalty[lateral])
    valid = certain <= unknown
    return np.where(valid, certain, np.nan), valid


def _time_to_collision(judged: Judged, version: str) -> Score:
    states, actors = judged.states, judged.actors
    steps = states.shape[1] if version == "v1" else states.shape[1] - TTC_STEPS[-1]
    contact = judged.about_to_touch[:, :steps] & (np.abs(states[:, :steps, VX]) >= TTC_STOPPED_MPS)[:, :, None, None]
    flat = contact.reshape(len(states), steps * len(TTC_STEPS), -1)
    p, a, index = _first(flat, _ignored(judged, version))
    k, h = np.divmod(index, len(TTC_STEPS))
    angle = angle_to(states[p, k], actors.xyh[a, k + np.asarray(TTC_STEPS)[h], :2])
    ahead, beside = angle < AHEAD_RAD, ~(angle < AHEAD_RAD) & ~(angle > BEHIND_RAD)
    failed = np.zeros(len(states), dtype=bool)
    failed[p[ahead]] = True
    valid = np.ones(len(states), dtype=bool)
    if judged.areas is not None:
        areas = judged.areas
        tight = areas.multi_lane | areas.non_drivable | areas.rear_axle_in_intersection
        failed[p[beside & tight[p, k]]] = True
    if not judged.lanes_known:
        valid[p[beside]] = False
        valid |= failed
    return np.where(valid, 1.0 - failed, np.nan), valid


def _drivable_area(judged: Judged) -> Score:
    off = judged.areas.non_drivable.any(axis=1)
    return 1.0 - off, np.ones(len(off), dtype=bool)


def _driving_direction(judged: Judged) -> Score:
    centre = judged.points[:, :, CENTRE]
    step = np.zeros(centre.shape[:2])
    step[:, 1:] = np.linalg.norm(np.diff(centre, axis=1), axis=-1)
    step[~judged.areas.oncoming | judged.areas.centre_in_intersection] = 0.0
    padded = np.concatenate([np.zeros((len(step), DDC_STEPS)), step], axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, DDC_STEPS + 1, axis=1)
    worst = windows.sum(axis=-1).max(axis=1)
    value = np.where(worst < DDC_COMPLIANT_M, 1.0, np.where(worst < DDC_VIOLATION_M, 0.5, 0.0))
    return value, np.ones(len(step), dtype=bool)


def _red_lights(judged: Judged, red_lights: Sequence[Sequence[np.ndarray]]) -> Score:
    samples = judged.states.shape[1]
    lit: dict[int, tuple[np.ndarray, list[int]]] = {}  # a light that stays red is one array, tested once
    for k in range(samples):
        for polygon in red_lights[k]:
            lit.setdefault(id(polygon), (polygon, []))[1].append(k)
    value = np.ones(len(judged.states))
    for polygon, at in lit.values():
        corners = judged.points[:, at, :CENTRE]
        touched = rectangles_touch_polygon(corners.reshape(-1, 4, 2), polygon).reshape(len(value), -1)
        value[touched.any(axis=1)] = 0.0
    return value, np.ones(len(value), dtype=bool)


def _lane_keeping(judged: Judged, centreline: np.ndarray) -> Score:
    distance = project_on_line(judged.points[:, :, CENTRE], centreline)[1]
    off, frozen = distance > LK_DEVIATION_M, judged.areas.centre_in_intersection
    run, longest = np.zeros(len(off), dtype=np.int64), np.zeros(len(off), dtype=np.int64)
    for k in range(off.shape[1]):
        run = np.where(frozen[:, k], run, np.where(off[:, k], run + 1, 0))
        longest = np.maximum(longest, run)
    return np.where(longest >= LK_SAMPLES, 0.0, 1.0), np.ones(len(off), dtype=bool)


def progress(progress_m: np.ndarray, multiplier: np.ndarray, version: str) -> np.ndarray:
    """EP [P] of proposals scored together (agent and PDM-Closed reference), from metres and multiplier product [P].

    M = max_i progress_i multiplier_i; v1: progress multiplier / M, v2: clip(progress / M, 0, 1); up to M = 5 m all
    of them get 1 (in v1 those with multiplier 0 get 0).
    """
    best = float(np.max(progress_m * multiplier))
    if best > MIN_PROGRESS_M:
        return progress_m * multiplier / best if version == "v1" else np.clip(progress_m / best, 0.0, 1.0)
    return np.where(multiplier == 0.0, 0.0, 1.0) if version == "v1" else np.ones(len(progress_m))


def _progress_score(judged: Judged, centreline: np.ndarray, multiplier: Score, version: str) -> Score:
    ends = project_on_line(judged.points[:, [0, -1], CENTRE], centreline)[0]
    valid = np.full(len(ends), multiplier[1].all())  # the best is among all of them, so all must be known
    value = progress(np.maximum(ends[:, 1] - ends[:, 0], 0.0), multiplier[0], version)
    return np.where(valid, value, np.nan), valid


def sub_scores(
    states: np.ndarray,
    scene: PdmScene,
    version: str = "v2",
    variant: str = "compat",
    *,
    history: tuple[np.ndarray, np.ndarray] | None = None,
    vehicle: Footprint = PACIFICA,
    judged: Judged | None = None,
) -> dict[str, Score]:
    """Sub-scores of simulated states [P, 41, 7], each (value [P], valid [P]); EP is relative to the P proposals.

    `history` is the recorded past for HC, (int64 [H] us, states [H, 7 or 8]). Keys are those of MULTIPLIERS and
    WEIGHTS of the version, but EC, and DDC in v1 too, where it has no weight. Actors must reach as far as a score
    looks (41 instants, 50 for TTC in v1), otherwise it is not available. `judged` saves work where it is at hand.
    """
    check_variant(variant)
    if version not in MULTIPLIERS:
        raise InputError("score", "version", repr(version), " or ".join(MULTIPLIERS))
    expected = f"[P, {STATES}, 7], P >= 1"
    states = finite("score", "states", states, expected, None, STATES, 7)
    if states.ndim != 3 or not len(states):
        raise InputError("score", "states", f"shape {states.shape}", expected)
    count = len(states)
    missing = (np.full(count, np.nan), np.zeros(count, dtype=bool))
    judged = judged or judge(states, scene, vehicle)
    mapped, lined = judged.areas is not None, scene.centreline is not None
    instants = scene.actors.present.shape[1]
    needed = STATES + (TTC_STEPS[-1] if version == "v1" else 0)
    ttc = _time_to_collision(judged, version) if instants >= needed else missing  # first: it knows the contacts of NC
    scores = {
        "NC": no_collision(judged, version, variant) if instants >= STATES else missing,
        "TTC": ttc,
        "DAC": _drivable_area(judged) if mapped else missing,
        "DDC": judged.direction if judged.lanes_known else missing,
    }
    if version == "v2":
        lights = scene.red_lights
        scores["TLC"] = _red_lights(judged, lights) if lights is not None and len(lights) >= STATES else missing
        scores["LK"] = _lane_keeping(judged, scene.centreline) if judged.lanes_known and lined else missing
        scores["HC"] = history_comfort(states, *(history or (None, None)), variant)
    else:
        calm = np.all(list(comfort(states, variant, at="rear_axle").values()), axis=0)
        scores["C"] = (calm.astype(np.float64), np.ones(count, dtype=bool))
    multiplier = product(scores, MULTIPLIERS[version])
    scores["EP"] = _progress_score(judged, scene.centreline, multiplier, version) if lined else missing
    return scores


def plan_scores(
    states: np.ndarray,
    reference: np.ndarray,
    scene: PdmScene,
    version: str = "v2",
    variant: str = "compat",
    *,
    history: tuple[np.ndarray, np.ndarray] | None = None,
    earlier: tuple[np.ndarray, float] | None = None,
    vehicle: Footprint = PACIFICA,
) -> dict[str, Score]:
    """All sub-scores, as scalars, of one plan's states [41, 7] next to the simulated PDM-Closed reference [41, 7].

    `earlier` is what EC compares with: (states [41, 7] of the plan before, seconds between the two).
    """
    pair = sub_scores(np.stack([reference, states]), scene, version, variant, history=history, vehicle=vehicle)
    scores = {name: (value[1], valid[1]) for name, (value, valid) in pair.items()}
    if version == "v2":
        ec = (float("nan"), False) if earlier is None else extended_comfort(states, *earlier, variant)
        scores["EC"] = (np.float64(ec[0]), np.bool_(ec[1]))
    return scores


def product(scores: Mapping[str, Score], names: Sequence[str]) -> Score:
    """Product of the named scores; not available where one of them is not."""
    value = np.prod([np.asarray(scores[n][0], dtype=np.float64) for n in names], axis=0)
    valid = np.all([np.asarray(scores[n][1]) for n in names], axis=0)
    return np.where(valid, value, np.nan), valid


def total(scores: Mapping[str, Score], version: str, without: Sequence[str] = ()) -> Score:
    """PDMS (v1) or EPDMS (v2): product of the multipliers times the weighted mean; not available where a part is not.

    v1: NC DAC (5 EP + 5 TTC + 2 C) / 12; v2: NC DAC DDC TLC (5 EP + 5 TTC + 2 LK + 2 HC + 2 EC) / 16. `without`
    leaves weighted terms out of sum and weight, as PDM-Closed does with EC, which a first plan cannot have.
    """
    weights = {name: w for name, w in WEIGHTS[version].items() if name not in without}
    value, valid = product(scores, MULTIPLIERS[version])
    weighted = sum(w * np.asarray(scores[name][0], dtype=np.float64) for name, w in weights.items())
    valid = valid & np.all([np.asarray(scores[name][1]) for name in weights], axis=0)
    return np.where(valid, value * weighted / sum(weights.values()), np.nan), valid
