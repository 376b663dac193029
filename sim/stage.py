"""A world just reset, course, town or recording, as a drive reads it: one shape for who drives, films and records."""

from dataclasses import dataclass

import numpy as np

from sensors.clip import Boxes
from sim.env import CameraEnv
from sim.log_env import LogScenario
from sim.scenarios import Scenario
from sim.surroundings import Surroundings, course_lines, of_course
from sim.town_env import ENDS
from sim.town_map import Signal
from sim.town_surroundings import TownSurroundings
from sim.world import EgoWorld

Start = int | Scenario | LogScenario  # a seed of the course, a town's scenario, a recorded scene
SEEN_M = 100.0  # nothing further from the ego is written down


@dataclass(frozen=True)
class Stage:
    """`begin` makes it; the methods speak of the world as it is when they are called.

    name    of the scene, for example "town-smoke/0"
    around  what the drive is judged against
    lines   tuple of (kind, xy [V, 2]): the map as it is drawn
    """

    name: str
    seed: int
    world: EgoWorld
    around: Surroundings
    lines: tuple[tuple[str, np.ndarray], ...]
    _town: TownSurroundings | None = None

    def boxes(self, time_us: int) -> Boxes:
        """Those within SEEN_M of the ego at an instant of the last period."""
        boxes, ego = self.world.boxes_at(time_us), self.world.ego
        away = np.hypot(*(boxes.T_world_from_box[:, :2, 3] - (ego.x_m, ego.y_m)).T)
        return boxes.take(np.flatnonzero(away < SEEN_M))

    def red_lanes(self) -> list[int]:
        """Indices in around.lanes of the ways through junctions on the route that are red."""
        return self._town.red_lanes() if self._town else self.world.red_lanes()

    def stop_lines(self) -> list[tuple[str, np.ndarray]]:
        """Lines to draw in the colour of their light: ("red", "amber" or "green", ends [2, 2])."""
        return self._town.stop_lines() if self._town else []

    def signals(self) -> tuple[Signal, ...]:
        """The signals of a town's traffic lights within REACH_M of the route."""
        return self._town.signals if self._town else ()

    def cue(self) -> tuple[str, str]:
        """(route command, instruction)."""
        return self.world.command, self.world.instruction


def name_of(start: Start) -> str:
    """What the scene of an episode is called that starts like this."""
    return f"seed-{start:04d}" if isinstance(start, int) else start.name


def begin(env: CameraEnv, start: Start, options: dict | None = None) -> tuple[dict, Stage]:
    """Reset an environment to the start of an episode of its kind of world: (observation, stage)."""
    if isinstance(start, LogScenario):
        observation, _ = env.reset(seed=start.seed, options=options)
        world = env.unwrapped.world
        return observation, Stage(start.name, start.seed, world, world.surroundings.around, world.surroundings.lines)
    if isinstance(start, Scenario):
        observation, _ = env.reset(seed=start.seed, options={**(options or {}), "scenario": start})
        town = TownSurroundings.of(env.unwrapped.world)
        return observation, Stage(start.name, start.seed, env.unwrapped.world, town.around, town.lines, town)
    observation, _ = env.reset(seed=start, options=options)
    world = env.unwrapped.world
    around = of_course(world, env.unwrapped.time_limit_s)
    return observation, Stage(name_of(start), start, world, around, tuple(course_lines(world.road)))


def why_ended(kinds: list[str], terminated: bool) -> str:
    """What an episode that ended with these events ended by: the one that ends it, "blocked", or "time"."""
    ends = ENDS if terminated else ("blocked",)
    return next((kind for kind in ends if kind in kinds), "time")
