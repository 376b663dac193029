"""What of a drive through a town is written down beside its images: its scene's extension."""

import numpy as np

from policies.protocol import Plan
from sensors.nuscenes_extension import MapLane, SceneExtension
from sim.stage import Stage
from sim.tracker import PLAN_TIME_S


class SceneNotes:
    """What of a drive through a town becomes its scene's extension."""

    def __init__(self, stage: Stage, later_us: int):
        self._stage, self._later_us = stage, later_us
        self._signals = stage.signals()
        self._lights: list[tuple[int, str]] = []
        self._cues: list[tuple[int, tuple[str, str]]] = []
        self._plans: list[tuple[int, Plan]] = []

    def add(self, stage: Stage, now_us: int, plan: Plan | None) -> None:
        """An instant of the stage, as it is or imagined, and the expert's plan where it made one."""
        lights = "".join(stage.world.lights[s.light][s.index] for s in self._signals)
        if not self._lights or self._lights[-1][1] != lights:
            self._lights.append((now_us, lights))
        if plan is not None:
            cue = stage.cue()
            self._plans.append((now_us, plan))
            if not self._cues or self._cues[-1][1] != cue:
                self._cues.append((now_us, cue))

    def extension(self, last_us: int) -> SceneExtension:
        stage, around = self._stage, self._stage.around

        def times(rows: list) -> np.ndarray:
            return np.array([row[0] for row in rows], np.int64) + self._later_us

        lights = [row for row in self._lights if row[0] <= last_us]
        events = [(e.time_us, (e.kind, e.actor, e.fault)) for e in stage.world.events]
        return SceneExtension(
            scenario=stage.name,
            town=around.town,
            weather=around.weather,
            seed=stage.seed,
            goal_m=around.goal_m,
            route_m=around.route_m,
            lanes=tuple(MapLane(e.id, e.width_m, e.limit_mps, e.on_route, e.centreline_m) for e in around.lanes),
            areas=around.areas,
            signals_xyyaw=np.array([(s.x_m, s.y_m, s.yaw_rad) for s in self._signals]).reshape(-1, 3),
            lights_time_us=times(lights),
            lights=tuple(states for _, states in lights),
            cue_time_us=times(self._cues),
            commands=tuple(command for _, (command, _) in self._cues),
            instructions=tuple(instruction for _, (_, instruction) in self._cues),
            plan_time_us=times(self._plans),
            reasons=tuple(plan.reason for _, plan in self._plans),
            plan_after_s=PLAN_TIME_S,
            plans=np.stack([plan.xyyaw_in_ego for _, plan in self._plans]),
            event_time_us=times(events),
            events=tuple(event for _, event in events),
        )
