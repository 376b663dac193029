"""Gymnasium environment: drive a route through a town among SUMO's traffic with six cameras and an IMU.

>>> import gymnasium
>>> import numpy as np
>>> env = gymnasium.make("sim.gym_envs:vla_drive/Town-v0", scenario="town-smoke/0", cameras=False, action_mode="plan")
>>> observation, info = env.reset()
>>> info["scenario"], observation["imu_accel_mps2"].shape
('town-smoke/0', (50, 3))
>>> seconds = np.arange(1, 9) * 0.5
>>> straight_on = np.stack([2.0 * seconds, 0 * seconds, 0 * seconds, 2.0 + 0 * seconds], axis=1)  # x, y, yaw, speed
>>> observation, reward, terminated, truncated, info = env.step(straight_on)
>>> terminated, truncated, round(info["time_s"], 1)
(False, False, 0.5)
>>> env.close()

A process has one town at a time, since SUMO is a library with one simulation: close an environment before the next, and
make vectors of them with vectorization_mode="async", vector_kwargs={"context": "spawn"}.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces

from sensors.clip import ROUTE_COMMANDS
from sim.env import CameraEnv, checked_options, weather_of
from sim.faults import Sensing
from sim.scenarios import Scenario, get_scenario
from sim.scene import Scene
from sim.town_scene import town_backdrop, town_scenes_at
from sim.town_world import TownWorld
from sim.vehicle import VehicleParams
from sim.world import PERIOD_US, Event

ENDS = ("collision", "off_road", "route_left", "route_completed")
PENALTY = {
    "collision": 20.0,
    "off_road": 20.0,
    "route_left": 20.0,
    "red_light": 10.0,
    "wrong_way": 5.0,
    "stop_line": 2.0,
}


class TownEnv(CameraEnv):
    """Drive a route through a town, 10 control periods a second.

    scenario     a Scenario, or a name such as "town-val/7": what an episode is made of; a reset with another seed keeps
                 all of it but the seed
    observation  as in `sim.env`, and command int64 []: what the route asks for, an index in sensors.clip.ROUTE_COMMANDS
    action       see `sim.actions`
    reward       metres advanced along the route, less PENALTY for each event that begins and is the ego's fault
    terminated   at a collision, when a wheel leaves the road, when the route is left, and when it is completed
    truncated    at time_limit_s (the scenario's, unless given), and when the ego has not got on for two minutes: both
                 end the episode, not the task
    reset        options: scenario (from now on), initial_speed_mps, weather (of this episode; else the scenario's)
    info         scenario, world_seed, time_s, progress_m, route_m, instruction (text), events (kinds of this step), and
                 a bool for collision, off_road and route_completed in this step
    """

    world: TownWorld

    def __init__(
        self,
        scenario: Scenario | str = "town-train/0",
        image_size: tuple[int, int] = (400, 225),
        cameras: bool = True,
        time_limit_s: float | None = None,
        render_mode: str | None = None,
        bins: Sequence[Sequence[float]] | None = None,
        renderer: str = "cv",
        action_mode: str = "control",
        sensing: Sensing | str = "ideal",
        vehicle: VehicleParams | None = None,
    ):
        self.scenario, self._given_limit_s = _scenario(scenario), time_limit_s
        limit = self.scenario.time_limit_s if time_limit_s is None else time_limit_s
        world = TownWorld(vehicle)
        super().__init__(world, image_size, cameras, limit, render_mode, renderer, action_mode, bins, sensing)
        members = dict(self.observation_space.spaces)
        self.observation_space = spaces.Dict(
            members | {"command": spaces.Box(0, len(ROUTE_COMMANDS) - 1, (), np.int64)}
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """(observation, info). Without a seed it is the scenario's first, then the generator's of the last one."""
        fresh = seed is None and self._np_random is None
        options = checked_options("TownEnv.reset", options, ("scenario", "initial_speed_mps", "weather"))
        scenario = _scenario(options["scenario"]) if "scenario" in options else self.scenario
        weather = weather_of(options.get("weather", scenario.weather))
        super().reset(seed=self.scenario.seed if fresh else seed)
        if "scenario" not in options and not fresh:
            drawn = int(self.np_random.integers(2**31)) if seed is None else seed
            scenario = replace(scenario, seed=drawn)
        self.scenario, self.weather = scenario, weather
        if self._given_limit_s is None:
            self.time_limit_s = self.scenario.time_limit_s
        self.world.reset(self.scenario, float(options.get("initial_speed_mps", 0.0)))
        self._backdrop = town_backdrop(self.world.town_map, self.scenario.seed) if self._renderer else None
        self._progress_m = self.world.place.progress_m
        return self._begin(self.scenario.seed)

    def close(self) -> None:
        """Ends the simulation, so that this process may have another."""
        self.world.close()
        super().close()

    def _worth(self, events: tuple[Event, ...]) -> float:
        progress = self.world.place.progress_m
        advanced, self._progress_m = progress - self._progress_m, progress
        return advanced - sum(PENALTY.get(event.kind, 0.0) for event in events if event.fault == "ego")

    def _over(self, events: tuple[Event, ...]) -> tuple[bool, bool]:
        kinds = {event.kind for event in events}
        return not kinds.isdisjoint(ENDS), "blocked" in kinds

    def _scene(self, time_us: int) -> Scene:
        return self._scenes([time_us])[0]

    def _scenes(self, times_us: Sequence[int]) -> list[Scene]:
        return town_scenes_at(self.world, self._backdrop, times_us, self.weather)

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
