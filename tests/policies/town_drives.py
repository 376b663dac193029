"""Drives of the town's expert without cameras, one or many in parallel, and what a figure is made of."""

import multiprocessing
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from policies.protocol import Privileged
from policies.rollout import REPLAN_EVERY
from policies.town_expert import TownExpert
from policies.town_view import Others
from sim.scenarios import Scenario, get_scenario
from sim.town_env import ENDS
from sim.town_world import TownWorld
from sim.tracker import PlanTracker
from sim.world import Event

EXTRAS = ("vehicle-", "walker-")  # everybody else has a part in the hazard
LON_ACCEL_MPS2, JERK_MPS3 = (-4.05, 2.40), 8.37  # the comfort bounds of nuPlan


@dataclass(frozen=True)
class Drive:
    """uncomfortable: share of steps beyond nuPlan's bounds of longitudinal acceleration, of jerk."""

    name: str
    events: tuple[Event, ...]
    reasons: tuple[str, ...]
    progress_m: float
    seconds: float
    mean_mps: float
    uncomfortable: tuple[float, float]

    @property
    def kinds(self) -> set[str]:
        return {event.kind for event in self.events}

    def hits(self, hazard: bool) -> bool:
        """Whether it collided with somebody who has a part in the hazard, or with anybody else."""
        return any(e.kind == "collision" and e.actor.startswith(EXTRAS) != hazard for e in self.events)


class Inattentive(TownExpert):
    """As the expert, but it does not see those who make the hazard: what happens if nobody reacts."""

    def look(self, world: TownWorld) -> Others:
        seen = super().look(world)
        keep = np.array([world.actors[k].id.startswith(EXTRAS) for k in seen.index], bool)
        return Others(*(getattr(seen, name)[keep] for name in Others.__dataclass_fields__))


def drive(
    world: TownWorld, scenario: Scenario, seconds: float = np.inf, every: int = REPLAN_EVERY, expert: type = TownExpert
) -> Drive:
    """One episode, as `policies.rollout` drives it, to its end or for this long."""
    world.reset(scenario)
    driver, tracker, reasons, speeds = expert(), PlanTracker(), [], [world.ego.speed_mps]
    driver.reset(scenario.seed)
    for step in range(round(min(seconds, scenario.time_limit_s) * 10)):
        pose, speed_mps = world.ego.T_world_from_ego, world.ego.speed_mps
        if step % every == 0:
            plan = driver.plan(None, Privileged(world=world)).validate(scenario.name)
            reasons.append(plan.reason)
            tracker.follow(plan, pose, world.time_us, speed_mps)
        command = tracker.command(pose, world.time_us, speed_mps)
        kinds = {event.kind for event in world.step(command.accel_mps2, command.curvature_1pm)}
        speeds.append(world.ego.speed_mps)
        if kinds.intersection((*ENDS, "blocked")):
            break
    accel = np.diff(speeds) / 0.1
    beyond = (accel < LON_ACCEL_MPS2[0]) | (accel > LON_ACCEL_MPS2[1])
    rough = np.abs(np.diff(accel)) / 0.1 >= JERK_MPS3
    return Drive(
        scenario.name,
        world.events,
        tuple(reasons),
        world.place.progress_m,
        (len(speeds) - 1) / 10,
        float(np.mean(speeds)),
        (float(beyond.mean()), float(rough.mean())),
    )


def drive_all(names: Iterable[str], expert: type = TownExpert, processes: int = 2) -> list[Drive]:
    """Whole episodes, in the order of their names; each process has a world of its own."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return pool.map(_drive_alone, [(name, expert) for name in names], chunksize=1)


def _drive_alone(job: tuple[str, type]) -> Drive:
    world = TownWorld()
    try:
        return drive(world, get_scenario(job[0]), expert=job[1])
    finally:
        world.close()


def table_row(drives: list[Drive]) -> str:
    """A suite in figures: completed, collisions (the ego's fault), other events, speed, discomfort."""
    n = len(drives)
    kinds = sorted({kind for d in drives for kind in d.kinds} - {"route_completed", "collision"})
    events = ", ".join(f"{kind} {sum(kind in d.kinds for d in drives)}" for kind in kinds) or "none"
    own = sum(any(e.kind == "collision" and e.fault == "ego" for e in d.events) for d in drives)
    beyond = np.mean([d.uncomfortable for d in drives], axis=0)
    done = sum("route_completed" in d.kinds for d in drives) / n
    return (
        f"{drives[0].name.split('/')[0]:26s} n {n}  completed {done:.3f}"
        f"  collisions {sum('collision' in d.kinds for d in drives)} (own fault {own})  other events: {events}"
        f"  mean {np.mean([d.mean_mps for d in drives]):.2f} m/s"
        f"  beyond comfort: acceleration {beyond[0]:.4f}, jerk {beyond[1]:.4f} of steps"
    )
