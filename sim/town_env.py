"""Gymnasium environment: drive a route through a town among SUMO's traffic with six cameras and an IMU.

`register_town()` in each process that makes it, then `gymnasium.make(TOWN_ENV_ID)`.
"""

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from sensors.clip import ROUTE_COMMANDS
from sensors.errors import InputError
from sim.env import CameraEnv
from sim.scenarios import Scenario, get_scenario
from sim.scene import Scene
from sim.town_scene import town_backdrop, town_scene_at
from sim.town_world import TownWorld
from sim.weather import WEATHERS
from sim.world import PERIOD_US, Event

TOWN_ENV_ID = "vla_drive/Town-v0"
ENDS = ("collision", "off_road", "route_left", "route_completed")
PENALTY = {
    "collision": 20.0,
    "off_road": 20.0,
    "route_left": 20.0,
    "red_light": 10.0,
    "wrong_way": 5.0,
    "stop_line": 2.0,
}
OPTIONS = ("scenario", "initial_speed_mps")


def register_town() -> None:
    """Make `gymnasium.make("vla_drive/Town-v0")` work in this process; calling it again does nothing."""
    if TOWN_ENV_ID not in gymnasium.registry:
        gymnasium.register(id=TOWN_ENV_ID, entry_point="sim.town_env:TownEnv")


class TownEnv(CameraEnv):
    """Drive a route through a town, 10 steps a second. Observations are as in `sim.env.CourseEnv`, and

        command      int64 []: index in sensors.clip.ROUTE_COMMANDS of what the route asks for

    scenario     a Scenario, or a name such as "town-val/7": what an episode is made of; a reset with another seed keeps
                 all of it but the seed. The option "scenario" of reset changes it for good.
    action       float [2]: acceleration (m/s2) and path curvature (1/m, positive to the left) for 0.1 s, within the
                 vehicle's limits; or with `bins`, (accelerations, curvatures) increasing, integers [2]: indices in them
    reward       metres advanced along the route, less PENALTY for each event that begins and is the ego's fault
    terminated   at a collision, when a wheel leaves the road, when the route is left, and when it is completed
    truncated    at time_limit_s (the scenario's, unless given), and when the ego has not got on for two minutes
    info         scenario, instruction (text), events (kinds of this step), progress_m, route_m, and a bool per outcome
    """

    world: TownWorld

    def __init__(
        self,
        scenario: Scenario | str = "town-train/0",
        image_size: tuple[int, int] = (400, 225),
        cameras: bool = True,
        time_limit_s: float | None = None,
        render_mode: str | None = None,
        bins: tuple[np.ndarray, np.ndarray] | None = None,
        renderer: str = "cv",
    ):
        self.scenario = _scenario(scenario)
        limit = self.scenario.time_limit_s if time_limit_s is None else time_limit_s
        super().__init__(TownWorld(), image_size, cameras, limit, render_mode, renderer)
        members = dict(self.observation_space.spaces)
        self.observation_space = spaces.Dict(
            members | {"command": spaces.Box(0, len(ROUTE_COMMANDS) - 1, (), np.int64)}
        )
        self._given_limit_s, self._bins = time_limit_s, None
        if bins is not None:
            self._bins = tuple(np.asarray(centres, np.float64) for centres in bins)
            for centres in self._bins:
                if centres.ndim != 1 or len(centres) < 2 or not (np.diff(centres) > 0).all():
                    raise InputError("TownEnv", "bins", f"shape {centres.shape}", "two increasing lists of numbers")
            self.action_space = spaces.MultiDiscrete([len(centres) for centres in self._bins])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """(observation, info). Without a seed it is the scenario's first, then the generator's of the last one."""
        fresh = seed is None and self._np_random is None
        super().reset(seed=self.scenario.seed if fresh else seed)
        options = options or {}
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise InputError("TownEnv.reset", "options", ", ".join(unknown), f"only {', '.join(OPTIONS)}")
        if "scenario" in options:
            self.scenario = _scenario(options["scenario"])
        elif not fresh:
            drawn = int(self.np_random.integers(2**31)) if seed is None else seed
            self.scenario = replace(self.scenario, seed=drawn)
        if self._given_limit_s is None:
            self.time_limit_s = self.scenario.time_limit_s
        self.weather = WEATHERS[self.scenario.weather]
        self.world.reset(self.scenario, float(options.get("initial_speed_mps", 0.0)))
        self._backdrop = town_backdrop(self.world.town_map, self.scenario.seed) if self._renderer else None
        self._steps, self._running = 0, True
        self._progress_m = self.world.place.progress_m
        return self._observe(), self._info(())

    def step(self, action):
        """One control period of 0.1 s; gymnasium's five results. An error after the episode's end and before reset."""
        events = self.world.step(*self._controls(self._unbinned(action)))
        self._steps += 1
        progress = self.world.place.progress_m
        reward, self._progress_m = progress - self._progress_m, progress
        reward -= sum(PENALTY.get(event.kind, 0.0) for event in events if event.fault == "ego")
        kinds = {event.kind for event in events}
        terminated = not kinds.isdisjoint(ENDS)
        late = self._steps * PERIOD_US * 1e-6 >= self.time_limit_s
        truncated = not terminated and (late or "blocked" in kinds)
        self._running = not (terminated or truncated)
        return self._observe(), float(reward), terminated, truncated, self._info(events)

    def close(self) -> None:
        """Ends the simulation, so that this process may have another."""
        self.world.close()
        super().close()

    def _scene(self, time_us: int) -> Scene:
        return town_scene_at(self.world, self._backdrop, time_us, self.weather)

    def _unbinned(self, action):
        if self._bins is None:
            return action
        action = np.asarray(action)
        limits = [len(centres) for centres in self._bins]
        if action.shape != (2,) or action.dtype.kind not in "iu" or (action < 0).any() or (action >= limits).any():
            raise InputError("TownEnv.step", "action", action.tolist(), f"two integers below {limits}")
        return np.array([centres[k] for centres, k in zip(self._bins, action, strict=True)])

    def _observe(self) -> dict[str, np.ndarray]:
        return super()._observe() | {"command": np.array(ROUTE_COMMANDS.index(self.world.command), np.int64)}

    def _info(self, events: tuple[Event, ...]) -> dict[str, Any]:
        kinds = [event.kind for event in events]
        return {
            "scenario": self.scenario.name,
            "world_seed": self.scenario.seed,
            "time_s": self._steps * PERIOD_US * 1e-6,
            "progress_m": self._progress_m,
            "route_m": self.world.route.length_m,
            "instruction": self.world.instruction,
            "events": kinds,
            "collision": "collision" in kinds,
            "off_road": "off_road" in kinds,
            "route_completed": "route_completed" in kinds,
        }


def _scenario(given: Scenario | str) -> Scenario:
    return get_scenario(given) if isinstance(given, str) else given.validate()
