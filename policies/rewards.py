"""What a drive is worth to a policy that learns from its own drives: safety and validity gate it, progress and comfort
fill it. Pure functions of what was logged."""

from dataclasses import dataclass

from policies.grpo_recipe import RewardConfig
from sim.metrics.closed_loop import bench2drive_comfort, nuplan_progress
from sim.metrics.drive_protocols import Drive
from sim.metrics.log_view import LogView
from sim.metrics.pdm import VX
from sim.rollout_log import EpisodeLog

ACCEL, YAW_RATE = 4, 6  # columns of LogView.states
GATES = ("at_fault", "left_road", "red_light", "invalid")


@dataclass(frozen=True)
class Outcome:
    """What came of a drive, as far as it is rewarded.

    at_fault   the ego is to blame for a collision, by nuPlan's rule; so it is where that cannot be told
    left_road  a wheel left the road, or the ego went against the traffic
    red_light  it ran one
    invalid    somewhere the model had no plan (its logits were not finite), and a fallback drove
    moved_m    how far it got along its route, at least 0
    comfort    share of its pieces of 2 s that keep nuPlan's bounds, 0 .. 1; 0 of a drive too short to tell
    """

    at_fault: bool
    left_road: bool
    red_light: bool
    invalid: bool
    moved_m: float
    comfort: float

    @property
    def gated(self) -> bool:
        return any(getattr(self, gate) for gate in GATES)


def outcome_of(log: EpisodeLog, invalid: bool = False) -> Outcome:
    """The outcome of a logged drive that has a route."""
    drive = Drive(LogView(log))
    fault, known = drive.at_fault
    states, along_m = drive.states[0], drive.view.along_m
    comfort, told = bench2drive_comfort(
        states[:, ACCEL], states[:, VX] * states[:, YAW_RATE], states[:, YAW_RATE], "strict"
    )
    return Outcome(
        at_fault=fault > 0 if known else drive.collided,
        left_road=bool({"off_road", "wrong_way"} & set(log.event.tolist())),
        red_light="red_light" in log.event,
        invalid=invalid,
        moved_m=max(0.0, float(along_m[-1] - along_m[0])),
        comfort=comfort if told else 0.0,
    )


def progress(outcome: Outcome, expert_m: float) -> float:
    """0 .. 1: how far the ego got, beside the expert from the same start in the same time; nuPlan's EP."""
    return nuplan_progress(outcome.moved_m, expert_m)["EP"][0]


def reward(outcome: Outcome, expert_m: float, weights: RewardConfig) -> float:
    """What a drive is worth, 0 .. 1:

        r = (1 - a)(1 - l)(1 - s)(1 - v) (w_p p + w_c c) / (w_p + w_c)

    a, l, s, v: at_fault, left_road, red_light, invalid (0 or 1); p: progress; c: comfort; w: their weights. As PDMS
    (Dauner et al. 2024, NAVSIM) does it: what must not be multiplies, what is good adds. So whoever breaks a
    rule gets 0, and whoever is so careful as to stand gets little.
    """
    if outcome.gated:
        return 0.0
    p, c = weights.progress, weights.comfort
    return (p * progress(outcome, expert_m) + c * outcome.comfort) / (p + c)
