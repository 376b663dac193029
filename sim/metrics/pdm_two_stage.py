"""What EPDMS makes of its sub-scores: the human filter, and the second stage.

The second stage scores scenes that begin where the first plan may have led.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from sim.metrics.pdm_scores import Score

KERNEL_SIGMA2_M2 = 0.1
# The reference lists EP and HC too; neither can trigger: alone the human's EP is 1, and HC gets no history.
HUMAN_FILTERED = ("NC", "DAC", "DDC", "TLC", "TTC", "LK")


def human_filter(agent: Mapping[str, Score], human: Mapping[str, Score]) -> dict[str, Score]:
    """The agent's v2 sub-scores, with 1 where the recorded human scores exactly 0 (original scenes only).

    The human is scored alone (P = 1), by `sub_scores`. Where its score is not available, neither is the agent's,
    unless that is 1 anyway.
    """
    filtered = dict(agent)
    for name in HUMAN_FILTERED:
        value, valid = (np.asarray(part) for part in agent[name])
        human_value, human_valid = (np.asarray(part) for part in human[name])
        raised = np.where(human_valid & (human_value == 0.0), 1.0, value)
        known = valid & (human_valid | (value == 1.0))
        filtered[name] = (np.where(known, raised, np.nan), known)
    return filtered


def two_stage(first: Score, endpoint_m: np.ndarray, second: Score, starts_m: np.ndarray) -> Score:
    """First-stage score times the kernel-weighted second stage: s_1 sum_j w_j s_2,j.

    w_j ~ exp(-|endpoint - start_j|^2 / (2 * 0.1 m2)) from the endpoint [2] of the first plan after 4 s to the starts
    [N, 2] of the second; uniform where they vanish. Not available without a second stage or with a part missing.
    """
    values, valid = np.asarray(second[0], dtype=np.float64), np.asarray(second[1])
    if not len(values) or not valid.all() or not first[1]:
        return np.float64(np.nan), np.bool_(False)
    weight = np.exp(-((np.asarray(starts_m) - endpoint_m) ** 2).sum(axis=-1) / (2 * KERNEL_SIGMA2_M2))
    weight = np.full(len(values), 1.0) if np.isclose(weight.sum(), 0.0) else weight
    return np.float64(first[0] * (weight * values).sum() / weight.sum()), np.bool_(True)


def two_stage_mean(groups: Sequence[tuple[Score, Score]]) -> Score:
    """Mean over groups of the mean of each (now, 0.5 s before) pair; not available if there is none or one is not."""
    if not groups or not all(bool(score[1]) for pair in groups for score in pair):
        return np.float64(np.nan), np.bool_(False)
    return np.mean([np.mean([score[0] for score in pair]) for pair in groups]), np.bool_(True)
