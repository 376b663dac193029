"""A scene at the rate of its cameras: a frame at every capture of the camera that fires last, sweeps included.

The other cameras contribute what they took since the frame before; one that took nothing is masked. Boxes between two
keyframes are those of the later one, moved back along the way from the earlier one, as the devkit's get_boxes does.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sensors.clip import Boxes
from sensors.frames import interpolate
from sensors.nuscenes_scene import Keyframe, RecordedScene


def with_sweeps(scene: RecordedScene, cameras: tuple[str, ...]) -> RecordedScene:
    """The scene with its keyframes and all that lies between them as keyframes."""
    last = max(cameras, key=lambda name: float(np.median(_keys_us(scene, name)[: len(scene.now_us)])))
    track = scene.tracks[last]
    poses = track.T_world_from_ego
    return replace(scene, keyframes=_Instants(scene, cameras, last), now_us=track.time_us, T_world_from_ego_now=poses)


def _keys_us(scene: RecordedScene, camera: str) -> np.ndarray:
    track = scene.tracks[camera]
    return track.time_us[track.is_keyframe]


class _Instants(Sequence[Keyframe]):
    """Frames made when they are asked for; `token` is that of the last camera's capture."""

    def __init__(self, scene: RecordedScene, cameras: tuple[str, ...], last: str):
        self._scene, self._tracks, self._last = scene, {name: scene.tracks[name] for name in cameras}, last
        self._time_us = scene.tracks[last].time_us
        gaps_us = np.diff(self._time_us)
        self._before_us = int(self._time_us[0] - (np.median(gaps_us) if len(gaps_us) else 100_000))

    def __len__(self) -> int:
        return len(self._time_us)

    def __getitem__(self, k):
        numbers = range(len(self))[k]
        return tuple(map(self._made, numbers)) if isinstance(numbers, range) else self._made(numbers)

    def _made(self, k: int) -> Keyframe:
        now_us, since_us = int(self._time_us[k]), int(self._time_us[k - 1]) if k else self._before_us
        captures = {}
        for name, track in self._tracks.items():
            row = int(np.searchsorted(track.time_us, now_us, side="right")) - 1
            if row >= 0 and track.time_us[row] > since_us:
                captures[name] = track[row]
        now = captures[self._last]
        return Keyframe(now.token, now_us, now.T_world_from_ego, captures, self._boxes(now_us), now.q_wxyz)

    def _boxes(self, now_us: int) -> Boxes:
        scene = self._scene
        after = min(int(np.searchsorted(scene.now_us, now_us)), len(scene.now_us) - 1)
        boxes = scene.keyframes[after].boxes
        if not after or scene.now_us[after] <= now_us:
            return boxes
        before = scene.keyframes[after - 1].boxes
        share = float(now_us - scene.now_us[after - 1]) / float(scene.now_us[after] - scene.now_us[after - 1])
        earlier, poses = dict(zip(before.ids, before.T_world_from_box, strict=True)), boxes.T_world_from_box.copy()
        for i, name in enumerate(boxes.ids):
            if name in earlier:
                poses[i] = interpolate(earlier[name], poses[i], share)
        return replace(boxes, T_world_from_box=poses)
