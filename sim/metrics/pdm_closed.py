"""PDM-Closed (Dauner et al. 2023): the rule-based planner whose progress EP is measured against.

    15 proposals -> rollout -> sub-scores -> the best one is the reference

Letters: P = 15 proposals, T instants 0.1 s apart, A actors. Source: NAVSIM `abstract_pdm_closed_planner.py`.
"""

from dataclasses import dataclass, replace

import numpy as np

from sim.metrics.pdm import DT_S, HEADING, PACIFICA, VX, Footprint, check_variant, rollout
from sim.metrics.pdm_proposals import FORECAST_HOLD, proposals
from sim.metrics.pdm_scene import CENTRE, STATES, Actors, PdmScene, boxes_touch, ego_points, project_on_line
from sim.metrics.pdm_scores import MULTIPLIERS, Judged, Score, product, progress, sub_scores, total

FORECAST_INSTANTS = 51


@dataclass(frozen=True)
class PdmClosed:
    """The 15 proposals and the best of them.

    proposals float64 [P, 41, 3]  reference poses along the paths
    states    float64 [P, 41, 7]  as simulated from the ego's state
    score     float64 [P]         total, without what a first plan cannot have
    best      int                 the first proposal of the highest score
    """

    proposals: np.ndarray
    states: np.ndarray
    score: np.ndarray
    best: int

    @property
    def reference(self) -> np.ndarray:
        """States [41, 7] of the best proposal."""
        return self.states[self.best]


def constant_velocity(actors: Actors, instants: int = FORECAST_INSTANTS, hold: int = FORECAST_HOLD) -> Actors:
    """What PDM-Closed foresees: actors present at t = 0, agents going straight on; `hold` instants share one pose."""
    seen = actors.take(actors.present[:, 0])
    time_s = (np.arange(instants) // hold * hold) * DT_S
    speed = np.where(seen.is_agent, seen.speed_mps[:, 0], 0.0)
    xyh = np.repeat(seen.xyh[:, :1], instants, axis=1)
    xyh[..., 0] += np.cos(xyh[..., 2]) * speed[:, None] * time_s
    xyh[..., 1] += np.sin(xyh[..., 2]) * speed[:, None] * time_s
    present = np.ones((len(seen.ids), instants), dtype=bool)
    return replace(seen, xyh=xyh, present=present, speed_mps=np.repeat(seen.speed_mps[:, :1], instants, axis=1))


def pdm_closed(
    ego: np.ndarray,
    scene: PdmScene,
    speed_limit_mps: float | None = None,
    version: str = "v2",
    variant: str = "compat",
    vehicle: Footprint = PACIFICA,
) -> PdmClosed:
    """PDM-Closed from the ego's state [7]: it sees the actors of t = 0 and the lights, and picks its best proposal.

    The scene must hold map and centre line (ValueError otherwise: the reference is then not available). Unknown
    lights do not stop it. Its own choice counts HC as 1 and leaves EC out, as in NAVSIM: it has no history.
    """
    check_variant(variant)
    if scene.layers is None or scene.centreline is None:
        raise ValueError("PDM-Closed needs a map and a centre line")
    foreseen = foresee(ego, scene, vehicle)
    poses = proposals(ego[None], [foreseen], speed_limit_mps, variant, vehicle)[0]
    states = rollout(poses, ego[VX], initial=ego, variant=variant, vehicle=vehicle)
    score = proposal_scores(states, foreseen, version, variant, vehicle)
    return PdmClosed(poses, states, score, int(np.argmax(score)))


def foresee(ego: np.ndarray, scene: PdmScene, vehicle: Footprint = PACIFICA) -> PdmScene:
    """The scene as PDM-Closed sees it from the ego's state [7]: constant velocities, less whom it touches."""
    lights = scene.red_lights if scene.red_lights is not None else [()] * STATES
    actors = constant_velocity(scene.actors)
    return replace(scene, actors=actors.take(~_touching(ego, actors, vehicle)), red_lights=lights)


def proposal_scores(
    states: np.ndarray,
    foreseen: PdmScene,
    version: str,
    variant: str,
    vehicle: Footprint = PACIFICA,
    judged: Judged | None = None,
) -> np.ndarray:
    """Score [P] of simulated proposals [P, 41, 7] by PDM-Closed's own lights; the first of the best is its choice."""
    scores: dict[str, Score] = sub_scores(states, foreseen, version, variant, vehicle=vehicle, judged=judged)
    if version == "v2":
        scores["HC"] = (np.ones(len(states)), np.ones(len(states), dtype=bool))
    if not foreseen.layers.lanes_known:  # a contact that nobody can judge does not count against a proposal
        scores = {name: (np.where(valid, value, 1.0), np.ones_like(valid)) for name, (value, valid) in scores.items()}
        ends = project_on_line(ego_points(states[:, [0, -1]], vehicle)[:, :, CENTRE], foreseen.centreline)[0]
        advance_m = np.maximum(ends[:, 1] - ends[:, 0], 0.0)
        scores["EP"] = (progress(advance_m, product(scores, MULTIPLIERS[version])[0], version), scores["NC"][1])
    return total(scores, version, without=("EC",))[0]


def _touching(ego: np.ndarray, actors: Actors, vehicle: Footprint) -> np.ndarray:
    """Actors that the ego overlaps at t = 0, bool [A]; they are left out of planning."""
    count = len(actors.ids)
    centre = np.broadcast_to(ego_points(ego, vehicle)[CENTRE], (count, 2))
    half = np.broadcast_to([vehicle.length_m / 2, vehicle.width_m / 2], (count, 2))
    pose = actors.xyh[:, 0]
    return boxes_touch(centre, np.full(count, ego[HEADING]), half, pose[:, :2], pose[:, 2], actors.size_lw_m / 2)
