"""Gymnasium environment: drive through a recorded nuScenes scene with its six cameras, among those who were recorded.

>>> import gymnasium
>>> env = gymnasium.make(
...     "sim.gym_envs:vla_drive/NuScenesLog-v0", dataroot="data/nuscenes", scene="scene-0103", action_mode="plan"
... )  # doctest: +SKIP
>>> observation, info = env.reset()  # doctest: +SKIP
>>> info["scene"], info["views"][0]  # doctest: +SKIP
('scene-0103', 'rendered')

Any number of them may run in a process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from sensors.clip import ROUTE_COMMANDS
from sensors.errors import InputError, unknown_name
from sensors.nuscenes_source import NuscenesSource
from sensors.recorded_drive import RecordedDrive, recorded_drive
from sim.env import CameraEnv, checked_options
from sim.faults import Sensing
from sim.log_scene import log_backdrop, log_scenes_at
from sim.log_world import LogWorld
from sim.novel_view import NovelView
from sim.scene import Scene
from sim.vehicle import VehicleParams
from sim.views import RENDERED, Shown
from sim.world import PERIOD_US, Event

VIEWS = ("auto", "rendered")
ENDS = ("collision", "off_road", "route_left", "route_completed")
PENALTY = 20.0


@dataclass(frozen=True)
class LogScenario:
    """What an episode through a recorded scene is made of."""

    drive: RecordedDrive
    traffic: str = "reactive"
    views: str = "auto"
    seed: int = 0

    @property
    def name(self) -> str:
        return self.drive.name


class LogEnv(CameraEnv):
    """Drive through a recorded scene, 10 control periods a second.

    dataroot, version, scene   of a nuScenes dataroot; or `drive`, a scene that was read already
    views        "auto": recorded images, re-projected to where the car is (`sim.novel_view`), if every camera has some;
                 "rendered": none, all is drawn
    traffic      "reactive": who has to, answers (`sim.traffic_log`); "replay": all drive as recorded
    observation  as in `sim.env`, and command int64 []: what the route asks for, an index in sensors.clip.ROUTE_COMMANDS
    action       see `sim.actions`
    reward       metres advanced along the route, less PENALTY for what ends the episode and is the ego's fault
    terminated   at a collision, off the road, more than sim.log_world.VALID_M beside where the recorded car drove, and
                 when the route is completed
    truncated    at time_limit_s, at most the length of the recording
    reset        seeds change nothing; options: initial_speed_mps
    info         scene, time_s, progress_m, off_path_m, instruction (text), views and hole_share (a list each: how the
                 latest images came about, a word of sim.views, and the share of each that was drawn), events (kinds of
                 this step), and a bool for collision, off_road, route_left and route_completed in this step
    """

    world: LogWorld

    def __init__(
        self,
        dataroot: str | Path | None = None,
        version: str = "v1.0-mini",
        scene: str = "",
        drive: RecordedDrive | None = None,
        traffic: str = "reactive",
        views: str = "auto",
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
        if (drive is None) == (dataroot is None):
            came = "both" if drive is not None else "neither"
            raise InputError("LogEnv", "dataroot, drive", came, "dataroot and scene, or a drive that was read")
        self.drive = drive or recorded_drive(NuscenesSource(dataroot, version, (scene,), 1), scene)
        world = LogWorld(traffic, vehicle)
        limit = self.drive.seconds if time_limit_s is None else min(time_limit_s, self.drive.seconds)
        limit = int(limit * 1e6) // PERIOD_US * PERIOD_US * 1e-6
        rig = tuple(camera.resize(*image_size)[1] for camera in self.drive.cameras)
        common = (image_size, cameras, limit, render_mode, renderer, action_mode, bins, sensing)
        super().__init__(world, *common, rig=rig, exposure_before_us=self.drive.exposure_before_us)
        if views not in VIEWS:
            raise unknown_name("LogEnv", "views", views, VIEWS)
        if views == "auto" and self._renderer and self.drive.has_images:
            self._renderer = NovelView(self._renderer, self.drive)
        members = dict(self.observation_space.spaces)
        self.observation_space = spaces.Dict(
            members | {"command": spaces.Box(0, len(ROUTE_COMMANDS) - 1, (), np.int64)}
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """(observation, info); the same scene again."""
        super().reset(seed=seed)
        options = checked_options("LogEnv.reset", options, ("initial_speed_mps",))
        speed = options.get("initial_speed_mps")
        self.world.reset(self.drive, None if speed is None else float(speed))
        self._backdrop = log_backdrop(self.world.surroundings) if self._renderer else None
        self._progress_m = self.world.progress_m
        return self._begin(0 if seed is None else seed)

    @property
    def shown(self) -> tuple[Shown, ...]:
        if isinstance(self._renderer, NovelView):
            return self._renderer.shown
        return (Shown(RENDERED, 1.0),) * len(self.cameras) if self._renderer else ()

    def _worth(self, events: tuple[Event, ...]) -> float:
        progress = self.world.progress_m
        advanced, self._progress_m = progress - self._progress_m, progress
        bad = [e for e in events if e.kind in ENDS[:-1] and e.fault == "ego"]
        return advanced - PENALTY * len(bad)

    def _over(self, events: tuple[Event, ...]) -> tuple[bool, bool]:
        return not {event.kind for event in events}.isdisjoint(ENDS), False

    def _scene(self, time_us: int) -> Scene:
        return self._scenes([time_us])[0]

    def _scenes(self, times_us: Sequence[int]) -> list[Scene]:
        return log_scenes_at(self.world, self._backdrop, times_us, self.weather)

    def _observe(self) -> dict[str, np.ndarray]:
        return super()._observe() | {"command": np.array(ROUTE_COMMANDS.index(self.world.command), np.int64)}

    def _info(self, events: tuple[Event, ...]) -> dict[str, Any]:
        kinds = [event.kind for event in events]
        return {
            "scene": self.drive.name,
            "time_s": self._steps * PERIOD_US * 1e-6,
            "progress_m": self.world.progress_m,
            "off_path_m": self.world.off_path_m,
            "instruction": self.world.instruction,
            "views": [each.how for each in self.shown],
            "hole_share": [each.hole_share for each in self.shown],
            "events": kinds,
            **{kind: kind in kinds for kind in ENDS},
        }
