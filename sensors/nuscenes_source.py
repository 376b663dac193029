"""Clips from a nuScenes dataroot (v1.0 tables, camera JPEGs, CAN bus extension).

A frame is a keyframe (a sample, about 2 Hz); a clip holds the last `steps` of them. The clip's instant is the
keyframe's `now_us` (see `sensors.nuscenes_scene.Keyframe`).

Steps before the start of a scene are masked: image_mask False, the camera's first pose, and scheduled times that lie
whole keyframe periods (the scene's median) before its first capture. So are those that lie more than LATE periods
further back than they should, after a gap: at now's pose, whole periods before now. An image file that isn't there is
masked too.

The IMU window, speed, yaw rate and steering come from the CAN bus extension (`sensors.nuscenes_can`); without it the
window is empty and the state NaN. Command and instruction come from the extension of a simulated scene
(`sensors.nuscenes_extension`); nuScenes records none: its description tells of the future, so it is no instruction.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future as Promise
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from sensors.camera import Camera
from sensors.clip import Clip, Future, VehicleState
from sensors.errors import BrokenFile, InputError
from sensors.imu import ImuWindow
from sensors.nuscenes_can import Bus, read_bus
from sensors.nuscenes_expansion import MapExpansion, expansion_path, read_expansion
from sensors.nuscenes_extension import SceneExtension, read_extension
from sensors.nuscenes_index import NuscenesIndex
from sensors.nuscenes_scene import Capture, Keyframe, RecordedScene
from sensors.nuscenes_sweeps import with_sweeps

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
LATE = 2  # periods
SCENES_KEPT = 64  # views of the index, with cameras
BUSES_KEPT = 256  # scenes; 0.2 MB each, and slow to parse
# Inside the entropy-coded part of a JPEG, FF is followed by 00 (a data byte FF) or D0..D7 (restart); FF FF is padding.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a frame header, which says the size
_REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}


class _Recent:
    """The last `capacity` values made, by key."""

    def __init__(self, capacity: int):
        self.capacity, self._values = capacity, OrderedDict()

    def __reduce__(self):
        return _Recent, (self.capacity,)  # another process makes its own

    def get(self, key, make):
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        while len(self._values) > self.capacity:
            self._values.popitem(last=False)
        return self._values[key]


class _Threads:
    """So many threads that work ahead; none work at once, where they are asked to. Another process has its own."""

    def __init__(self, count: int):
        self.count, self._pool = count, None

    def __reduce__(self):
        return _Threads, (self.count,)

    def begin(self, work: Callable[[], object]) -> Promise:
        if self._pool is None and self.count:
            self._pool = ThreadPoolExecutor(self.count, "decode")
        if self._pool is not None:
            return self._pool.submit(work)
        promise = Promise()
        promise.set_result(work())
        return promise


class RecordedSource:
    """`sensors.source.Source` over the keyframes of recorded scenes, wherever they come from.

    steps          keyframes per clip, T
    image_size     (width, height) px to which image and calibration are brought; None keeps the recorded size.
                   Images are decoded no larger than that takes, see `reduction`
    imu_window_us  how far back the clip's IMU window reaches
    threads        that decode images, those of the next keyframe ahead of time; 0: none, one after the other

    Decoded images are kept for the latest keyframes, so that walking a scene decodes each file once. Who derives from
    it says what a scene is (`_recorded`), what its bus says (`_read_bus`), and reads its files (`_file`).
    """

    def __init__(
        self,
        name: str,
        scenes: tuple[str, ...],
        cameras: tuple[str, ...],
        steps: int,
        image_size: tuple[int, int] | None,
        imu_window_us: int,
        threads: int,
    ):
        if steps < 1:
            raise InputError(type(self).__name__, "steps", steps, "at least 1")
        self.name, self.scenes, self._names = name, scenes, cameras
        self.steps, self.image_size, self.imu_window_us = steps, image_size, imu_window_us
        self._opened = _Recent(SCENES_KEPT)
        self._images = _Recent(len(cameras) * (steps + 2))
        self._threads = _Threads(threads)
        self._buses = _Recent(BUSES_KEPT)
        self._extensions = _Recent(BUSES_KEPT)

    def frame_times_us(self, scene: str) -> np.ndarray:
        return self.scene(scene).now_us

    def scene(self, scene: str) -> RecordedScene:
        """All of one of the scenes."""
        if scene not in self.scenes:
            raise InputError(self.name, "scene", scene, f"one of {', '.join(self.scenes)}")
        return self._opened.get(scene, lambda: self._read(scene))[0]

    def clip(self, scene: str, frame: int) -> Clip:
        recorded, cameras, shown = self._rig(scene, frame)
        keyframes = [recorded.keyframes[max(frame + k, 0)] for k in range(1 - self.steps, 1)]
        now, period_us = keyframes[-1], recorded.period_us
        missing = [min(frame + k, 0) for k in range(1 - self.steps, 1)]  # periods before what stands in for the step
        for t, back in enumerate(range(self.steps - 1, -1, -1)):
            if now.now_us - keyframes[t].now_us > (back + LATE) * period_us:
                keyframes[t], missing[t] = now, -back
        T, N, (width, height) = self.steps, len(cameras), (shown[0].width, shown[0].height)
        images = np.zeros((T, N, height, width, 3), np.uint8)
        mask = np.zeros((T, N), bool)
        time_us = np.zeros((T, N), np.int64)
        T_world_from_ego = np.zeros((T, N, 4, 4))
        promised = [self._begin(scene, keyframe, cameras) for keyframe in keyframes]
        if self._threads.count and frame + 1 < len(recorded.keyframes):
            self._begin(scene, recorded.keyframes[frame + 1], cameras)
        for t in range(T):
            keyframe = keyframes[t]
            for n, camera in enumerate(cameras):
                capture = keyframe.captures.get(camera.name)
                time_us[t, n] = keyframe.now_us if capture is None else capture.time_us
                T_world_from_ego[t, n] = keyframe.T_world_from_ego_now if capture is None else capture.T_world_from_ego
                image = None if missing[t] or capture is None else promised[t][n].result()
                if image is not None:
                    images[t, n], mask[t, n] = image, True
            time_us[t] += missing[t] * period_us
        imu, vehicle = self.imu(scene, now.now_us), self.vehicle(scene, now.now_us)
        car = (imu, vehicle, *self._cue(scene, frame, now.now_us))
        return Clip(now.now_us, now.T_world_from_ego_now, shown, images, mask, time_us, T_world_from_ego, *car)

    def future(self, scene: str, frame: int) -> Future:
        """The ego pose at `now_us` of every later keyframe, and the boxes annotated at this one."""
        recorded, _, _ = self._rig(scene, frame)
        later = slice(frame + 1, None)
        boxes = recorded.keyframes[frame].boxes
        return Future(recorded.now_us[later], recorded.T_world_from_ego_now[later], boxes)

    def extension(self, scene: str) -> SceneExtension | None:
        """What a simulated scene knows beyond its format; None for any other."""
        return None

    def map_path(self, scene: str) -> Path | None:
        """The raster of where one may drive, None without one."""
        return None

    def expansion(self, scene: str) -> MapExpansion | None:
        """Lanes and areas of the place, None where nobody drew them."""
        return None

    def images(self, scene: str) -> tuple[int, int]:
        """(how many images of the keyframes are there, how many are spoken of)."""
        keyframes = self.scene(scene).keyframes
        names = [c.filename for k in keyframes for name, c in k.captures.items() if name in self._names]
        return sum(self._file(scene, name)[1] is not None for name in names), len(names)

    def imu(self, scene: str, now_us: int) -> ImuWindow:
        """What the IMU says up to an instant; empty where there is none."""
        return self.bus(scene).imu.window(now_us - self.imu_window_us, now_us)

    def vehicle(self, scene: str, now_us: int) -> VehicleState:
        """What the bus says of the car at an instant, NaN where it is silent."""
        return self.bus(scene).vehicle_at(now_us)

    def jpeg(self, scene: str, capture: Capture) -> bytes | None:
        """The file of a capture as it is, None where there is none."""
        return self._file(scene, capture.filename)[1]

    def shard(self, scene: str) -> str:
        """Name of what a scene is read from; scenes of one name lie together."""
        return scene

    def _cue(self, scene: str, frame: int, now_us: int) -> tuple[str, str]:
        """(command, instruction) at a frame."""
        extension = self.extension(scene)
        return extension.cue_at(now_us) if extension is not None else ("follow", "")

    def _rig(self, scene: str, frame: int) -> tuple[RecordedScene, tuple[Camera, ...], tuple[Camera, ...]]:
        """A scene that has this frame, its cameras as they recorded, and as they are shown."""
        last = len(self.scene(scene).keyframes) - 1
        if not 0 <= frame <= last:
            raise InputError(f"{self.name} {scene}", "frame", frame, f"0 to {last}")
        return self._opened.get(scene, lambda: self._read(scene))

    def _read(self, scene: str) -> tuple[RecordedScene, tuple[Camera, ...], tuple[Camera, ...]]:
        recorded = self._recorded(scene)
        cameras = tuple(recorded.cameras[name] for name in self._names)
        size = self.image_size
        return recorded, cameras, cameras if size is None else tuple(camera.resize(*size)[1] for camera in cameras)

    def _begin(self, scene: str, keyframe: Keyframe, cameras: tuple[Camera, ...]) -> list[Promise | None]:
        """The images of a keyframe to come: RGB [H, W, 3] at the size asked for, or None where there is no file."""

        def begin(capture: Capture, camera: Camera) -> Promise:
            def decode() -> np.ndarray | None:
                where, data = self._file(scene, capture.filename)
                return None if data is None else picture(data, where, camera, self.image_size)

            return self._images.get(capture.token, lambda: self._threads.begin(decode))

        captures = [keyframe.captures.get(camera.name) for camera in cameras]
        return [c and begin(c, camera) for c, camera in zip(captures, cameras, strict=True)]

    def bus(self, scene: str) -> Bus:
        """What the car's bus says, from the first to the last message."""
        return self._buses.get(scene, lambda: self._read_bus(scene))

    def _recorded(self, scene: str) -> RecordedScene:
        raise NotImplementedError

    def _read_bus(self, scene: str) -> Bus:
        raise NotImplementedError

    def _file(self, scene: str, filename: str) -> tuple[object, bytes | None]:
        """(where it lies, content) of a file of a scene; None where there is none."""
        raise NotImplementedError


class NuscenesSource(RecordedSource):
    """The scenes of `<dataroot>/<version>`, all of them by default.

    sweeps  frames at the rate of the cameras, 12 Hz in nuScenes, see `sensors.nuscenes_sweeps`; else the keyframes

    Cameras are in the order of CAMERAS, clockwise from the front. The tables are checked here, image files when a clip
    asks for them.
    """

    def __init__(
        self,
        dataroot: str | Path,
        version: str,
        scenes: tuple[str, ...] | None = None,
        steps: int = 2,
        image_size: tuple[int, int] | None = None,
        imu_window_us: int = 1_000_000,
        threads: int = 0,
        sweeps: bool = False,
    ):
        self.index = NuscenesIndex(dataroot, version)
        names = self.index.scenes if scenes is None else tuple(scenes)
        super().__init__(f"nuscenes {version}", names, CAMERAS, steps, image_size, imu_window_us, threads)
        self._sweeps = sweeps
        for name in self.scenes:
            require_usable(self.index, name)

    def frame_times_us(self, scene: str) -> np.ndarray:
        return super().frame_times_us(scene) if self._sweeps else self.index.frame_times_us(scene)

    def extension(self, scene: str) -> SceneExtension | None:
        return self._extensions.get(scene, lambda: read_extension(self.index.dataroot, scene))

    def map_path(self, scene: str) -> Path | None:
        return self.index.map_path(scene)

    def expansion(self, scene: str) -> MapExpansion | None:
        path = expansion_path(self.index.dataroot, self.scene(scene).location)
        return read_expansion(path) if path.is_file() else None

    def images(self, scene: str) -> tuple[int, int]:
        [stock] = self.index.inventory([scene])
        missing = sum(stock.images_missing[name] for name in CAMERAS)
        there = sum(stock.images_present[name] for name in CAMERAS)
        return there, there + missing

    def _recorded(self, scene: str) -> RecordedScene:
        recorded = self.index.scene(scene)
        return with_sweeps(recorded, CAMERAS) if self._sweeps else recorded

    def _file(self, scene: str, filename: str) -> tuple[object, bytes | None]:
        path = self.index.path(filename)
        return path, read_bytes(path) if path.is_file() else None

    def _read_bus(self, scene: str) -> Bus:
        return read_bus(self.index.dataroot, scene)


def require_usable(index: NuscenesIndex, scene: str) -> None:
    """An InputError if a scene can't be used, or lacks one of the cameras."""
    index.check(scene)
    lacking = [name for name in CAMERAS if name not in index.channels(scene)]
    if lacking:
        where, came = index.table_path("sample_data"), f"no key frame of {', '.join(lacking)}"
        raise InputError(where, f"channels of {scene}", came, f"all of {', '.join(CAMERAS)}")


def read_bytes(path: Path) -> bytes:
    """Of a file; one that cannot be read is a BrokenFile."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BrokenFile(path, "file", error.strerror, "a readable JPEG") from error


def picture(data: bytes, where: object, camera: Camera, size: tuple[int, int] | None = None) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a camera's JPEG at (width, height) `size`, or its own; decoded no larger than needed.

    Every source makes its images here, so that the same file gives the same pixels, wherever it comes from.
    """
    image = decode_jpeg(data, where, camera.width, camera.height, size)
    if size is None:
        return image
    return camera.resize(image.shape[1], image.shape[0])[1].resize(*size, image)[0]


def decode_jpeg(
    data: bytes, where: object, width: int, height: int, wanted: tuple[int, int] | None = None
) -> np.ndarray:
    """RGB uint8 [height, width, 3]; bytes that are cut off, no JPEG or of another size are a BrokenFile.

    wanted: (width, height) that the image will be shrunk to; then it may come smaller already, see `reduction`.

    OpenCV fills what a cut file lacks with grey and says nothing, so the end of the image is looked for first. The
    orientation tag is ignored: the calibration speaks of the stored pixels.
    """
    size = jpeg_size(data)
    if size is None:
        raise BrokenFile(where, "image", f"{len(data)} bytes without the end of a JPEG", "a complete JPEG")
    if size != (width, height):
        came, expected = f"{size[0]} x {size[1]} px", f"{width} x {height} px, as its calibration says"
        raise BrokenFile(where, "image size", came, expected)
    times = 1 if wanted is None else reduction(width, height, *wanted)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[times] | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise BrokenFile(where, "image", f"{len(data)} bytes that do not decode", "a complete JPEG")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def reduction(width: int, height: int, wanted_width: int, wanted_height: int) -> int:
    """By how much, 1, 2, 4 or 8, a JPEG may be reduced while it is decoded (ITU-T T.81: fewer coefficients of each
    block), which costs a fraction of decoding all of it, if it is shrunk to the wanted size afterwards.

    What is decoded is whole pixels in both directions, so that the calibration scales with it, and at least as large as
    wanted; by 4 or 8 exactly as large, or twice: in between, pixels as coarse as that would be divided unevenly. Then
    the result is on average within one grey level of decoding everything and shrinking that by its area.
    """
    for times in (8, 4, 2):
        ratio = min(width / times / wanted_width, height / times / wanted_height)
        exact = (width, height) == (times * wanted_width, times * wanted_height)
        if width % times == 0 == height % times and (exact or ratio >= (1 if times == 2 else 2)):
            return times
    return 1


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) px of a JPEG that runs from its start to its end marker (ITU-T T.81, annex B), else None.

    Segments are skipped by their length, so a thumbnail's end marker doesn't count; what follows the end is ignored.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, size = 2, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding before a marker
            at += 1
            continue
        if marker in _FRAMES and at + 9 <= len(data):
            size = int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # start of scan: entropy-coded data follow
            found = _NEXT_MARKER.search(data, at)
            if found is None:
                return None
            at = found.start()
            if data[at + 1] == 0xD9:
                return size
    return None
