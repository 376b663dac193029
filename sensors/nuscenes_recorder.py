"""One scene as the rows and files of a nuScenes dataroot, keyframe by keyframe, with sweeps between them.

`SceneRecorder` knows the tables; `sensors.nuscenes_writer`, which hands it out, knows how they get to the disk.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

import cv2
import numpy as np

from sensors.camera import Camera
from sensors.clip import Boxes
from sensors.errors import InputError
from sensors.imu import ImuWindow
from sensors.nuscenes_can import can_files, pose_fields
from sensors.nuscenes_extension import FOLDER as EXTENSION_FOLDER
from sensors.nuscenes_extension import SceneExtension
from sensors.nuscenes_source import jpeg_size

APPENDED = ("log", "scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "instance", "sample_annotation")
SHARED = (
    "sensor",
    "category",
    "visibility",
    "attribute",
    "map",
    "camera_distortion",
)  # small; rows used by many scenes
VISIBILITY = ("v0-40", "v40-60", "v60-80", "v80-100")
ATTRIBUTES = (
    *("vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider"),
    *("pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving"),
)

Images = np.ndarray | Sequence[np.ndarray | bytes | None]


@dataclass(frozen=True)
class StagedScene:
    """A whole scene that waits to become part of its dataroot: files in the staging folder, rows of every table."""

    name: str
    rows: dict[str, list[dict]]


class SceneRecorder:
    """Takes one scene, keyframe by keyframe; images go to the staging folder at once, rows stay in memory.

    Between keyframes there may be sweeps, images alone; a scene ends with a keyframe. `discard` removes what is staged.
    """

    def __init__(
        self,
        staging: Path,
        version: str,
        name: str,
        cameras: tuple[Camera, ...],
        jpeg_quality: int,
        starts_us: frozenset[int],
        spelling: Mapping[bytes, tuple[float, ...]],
    ):
        self.name, self.cameras = name, cameras
        self._staging, self._version, self._quality, self._starts_us = staging, version, jpeg_quality, starts_us
        self._spelling = spelling
        self._rows: dict[str, list[dict]] = {table: [] for table in (*APPENDED, *SHARED)}
        self._last_us: np.ndarray | None = None
        self._last_data: list[dict] = []  # each camera's latest
        self._sweeps: list[dict] = []  # since the last keyframe, whose sample is yet to come
        self._annotations: dict[str, list[dict]] = {}  # by box id
        self._categories: dict[str, str] = {}
        self.discard()  # what a process left that was killed in this scene
        for camera in cameras:
            self._calibrate(camera.validate(name))

    def keyframe(
        self,
        now_us: int,
        images: Images,
        time_us: np.ndarray,
        T_world_from_ego: np.ndarray,
        T_world_from_ego_now: np.ndarray,
        boxes: Boxes,
    ) -> None:
        """One sample: a picture of each camera, their times int64 [N], not later than now, and ego poses [N, 4, 4]; the
        ego pose at now; the boxes at now (velocities follow from their tracks). A picture is uint8 [H, W, 3] RGB, bytes
        of a JPEG, which are kept as they are, or None, which leaves its file out."""
        where = f"{self.name} keyframe {len(self._rows['sample'])}"
        self._check(where, now_us, images, time_us)
        now_us, sample = int(now_us), self._token("sample", now_us)
        row = {"token": sample, "timestamp": now_us, "prev": "", "next": "", "scene_token": self._token("scene")}
        _link(self._rows["sample"][-1:], row)
        self._rows["sample"].append(row)
        self._pose(where, sample, now_us, T_world_from_ego_now)
        self._capture(where, sample, images, time_us, T_world_from_ego)
        for row in self._sweeps:
            row["sample_token"] = sample
        self._sweeps = []
        self._annotate(where, sample, boxes)
        self._last_us = np.array([*time_us, now_us])

    def sweep(self, images: Images, time_us: np.ndarray, T_world_from_ego: np.ndarray) -> None:
        """Images between two keyframes, as `keyframe` takes them; nuScenes files them under the sample that follows."""
        where = f"{self.name} sweep after keyframe {len(self._rows['sample']) - 1}"
        if self._last_us is None:
            raise InputError(where, "sweep", "before the first keyframe", "a keyframe first")
        self._check(where, int(np.max(time_us)), images, time_us)
        self._capture(where, "", images, time_us, T_world_from_ego)
        self._sweeps += self._last_data
        self._last_us = np.array([*time_us, max(self._last_us[-1], np.max(time_us))])

    def extension(self, extension: SceneExtension) -> None:
        """What nuScenes has no place for. Call it once, or not at all."""
        content = extension.validate(self.name).to_json()
        write_file(self._staging / EXTENSION_FOLDER / f"{self.name}.json", content)

    def discard(self) -> None:
        """Remove everything that is staged."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def can(
        self,
        imu: ImuWindow,
        time_us: np.ndarray,
        T_world_from_ego: np.ndarray,
        speed_mps: np.ndarray,
        yaw_rate_radps: np.ndarray,
        steering_rad: np.ndarray,
        steering_us: np.ndarray | None = None,
    ) -> None:
        """The CAN bus of the whole scene: its IMU track, and at times [M] ego poses [M, 4, 4] and vehicle state [M]
        (steering is the angle of the road wheels, at times of its own if they are given). Call it once."""
        steering_us = time_us if steering_us is None else steering_us
        state = speed_mps, yaw_rate_radps, steering_us, steering_rad
        files = can_files(f"{self.name} CAN bus", imu, time_us, T_world_from_ego, *state)
        for message, content in files.items():
            path = self._staging / "can_bus" / f"{self.name}_{message}.json"
            write_file(path, json.dumps(content, allow_nan=False).encode())

    def finish(self, description: str, location: str, map_png: bytes) -> StagedScene:
        """The whole scene; the map raster (`map_png`) is staged, named by its content and shared."""
        samples = self._rows["sample"]
        if not samples:
            raise InputError(self.name, "keyframes", "none", "at least one")
        if self._sweeps:
            raise InputError(self.name, "sweeps", "some after the last keyframe", "a keyframe at the end")
        map_token = _digest(map_png)
        map_file = f"maps/{map_token}.png"
        write_file(self._staging / map_file, map_png)
        log, rows = self._token("log"), self._rows
        day = datetime.fromtimestamp(samples[0]["timestamp"] / 1e6, UTC).strftime("%Y-%m-%d")
        rows["log"] = [_row(log, logfile=self.name, vehicle="vla-drive", date_captured=day, location=location)]
        rows["map"] = [_row(map_token, category="semantic_prior", filename=map_file, log_tokens=[log])]
        scene = _row(self._token("scene"), log_token=log, nbr_samples=len(samples), name=self.name)
        ends = {"first_sample_token": samples[0]["token"], "last_sample_token": samples[-1]["token"]}
        rows["scene"] = [{**scene, **ends, "description": description}]
        rows["visibility"] = [_row(str(k), level=v, description=v) for k, v in enumerate(VISIBILITY, 1)]
        rows["attribute"] = [_row(_digest(name.encode()), name=name, description=name) for name in ATTRIBUTES]
        rows["category"] = [
            _row(_digest(name.encode()), name=name, description=name) for name in sorted(set(self._categories.values()))
        ]
        rows["instance"] = [
            {
                **_row(self._token("instance", key), category_token=_digest(self._categories[key].encode())),
                "nbr_annotations": len(track),
                "first_annotation_token": track[0]["token"],
                "last_annotation_token": track[-1]["token"],
            }
            for key, track in self._annotations.items()
        ]
        return StagedScene(self.name, rows)

    def _token(self, table: str, *key: object) -> str:
        """32 hexadecimal digits that depend on nothing but the names: recording again gives the same files."""
        return _digest("/".join(map(str, (self._version, table, self.name, *key))).encode())

    def _check(self, where: str, now_us: int, images: Images, time_us: np.ndarray) -> None:
        if len(images) != len(self.cameras) or np.shape(time_us) != (len(self.cameras),):
            came = f"{len(images)} images, time_us {np.shape(time_us)}"
            raise InputError(where, "images", came, f"one per camera, {len(self.cameras)}")
        for image, camera in zip(images, self.cameras, strict=True):
            if isinstance(image, bytes):
                if jpeg_size(image) != (camera.width, camera.height):
                    came, expected = jpeg_size(image) or "no whole JPEG", f"a JPEG, {camera.width} x {camera.height} px"
                    raise InputError(where, f"image of {camera.name}", came, expected)
            elif image is not None and (image.shape, image.dtype) != ((camera.height, camera.width, 3), np.uint8):
                expected = f"uint8 ({camera.height}, {camera.width}, 3)"
                raise InputError(where, f"image of {camera.name}", f"{image.dtype} {image.shape}", expected)
        if (np.asarray(time_us) > now_us).any():
            raise InputError(where, "time_us", f"{np.max(time_us)} us", f"nothing later than now, {now_us} us")
        if self._last_us is None and now_us in self._starts_us:
            expected = "a time of its own: the devkit's list_scenes can't sort scenes that begin together"
            raise InputError(where, "now_us", f"{now_us}, where another scene begins", expected)
        if self._last_us is not None and (np.array([*time_us, now_us]) <= self._last_us).any():
            raise InputError(where, "time_us, now_us", [*time_us, now_us], f"all later than {self._last_us}")

    def _calibrate(self, camera: Camera) -> None:
        sensor, token = _digest(camera.name.encode()), self._token("calibrated_sensor", camera.name)
        self._rows["sensor"].append(_row(sensor, channel=camera.name, modality="camera"))
        pose = self._pose_fields(camera.T_ego_from_cam)
        self._rows["calibrated_sensor"].append(
            {**_row(token, sensor_token=sensor), **pose, "camera_intrinsic": camera.K.tolist()}
        )
        if camera.distortion != "none":
            fields = {"model": camera.distortion, "coefficients": list(camera.coefficients)}
            self._rows["camera_distortion"].append(_row(token, calibrated_sensor_token=token, **fields))

    def _pose(self, where: str, token: str, time_us: int, T_world_from_ego: np.ndarray) -> None:
        if T_world_from_ego.shape != (4, 4) or not np.isfinite(T_world_from_ego).all():
            raise InputError(where, "T_world_from_ego", T_world_from_ego, "a finite pose [4, 4]")
        self._rows["ego_pose"].append({**_row(token, timestamp=time_us), **self._pose_fields(T_world_from_ego)})

    def _capture(
        self, where: str, sample: str, images: Images, time_us: np.ndarray, T_world_from_ego: np.ndarray
    ) -> None:
        """A record, a pose and a file for each camera; `sample` is "" for a sweep."""
        before, self._last_data = self._last_data, []
        for n, camera in enumerate(self.cameras):
            row = self._data(camera, sample, int(time_us[n]))
            _link(before[n : n + 1], row)
            self._last_data.append(row)
            self._pose(where, row["token"], row["timestamp"], T_world_from_ego[n])
            if images[n] is not None:
                jpeg = images[n] if isinstance(images[n], bytes) else self._encoded(images[n], row["filename"])
                write_file(self._staging / row["filename"], jpeg, synced=False)
        self._rows["sample_data"] += self._last_data

    def _encoded(self, image: np.ndarray, filename: str) -> np.ndarray:
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        good, jpeg = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, self._quality))
        if not good:
            raise RuntimeError(f"OpenCV could not encode {filename}")
        return jpeg

    def _pose_fields(self, T: np.ndarray) -> dict[str, list[float]]:
        """As a table spells a pose; a rotation that came as a quaternion, by that quaternion."""
        q_wxyz = self._spelling.get(T[:3, :3].tobytes())
        return pose_fields(T) | ({} if q_wxyz is None else {"rotation": list(q_wxyz)})

    def _data(self, camera: Camera, sample: str, time_us: int) -> dict:
        token, folder = self._token("sample_data", camera.name, time_us), "samples" if sample else "sweeps"
        return {
            **_row(token, sample_token=sample, ego_pose_token=token, timestamp=time_us, fileformat="jpg"),
            "calibrated_sensor_token": self._token("calibrated_sensor", camera.name),
            "is_key_frame": bool(sample),
            "height": camera.height,
            "width": camera.width,
            "filename": f"{folder}/{camera.name}/{self.name}__{camera.name}__{time_us}.jpg",
            "prev": "",
            "next": "",
        }

    def _annotate(self, where: str, sample: str, boxes: Boxes) -> None:
        if len(set(boxes.ids)) != len(boxes):
            raise InputError(where, "boxes.ids", boxes.ids, "different ids")
        for box, category, T, size_lwh_m in zip(
            boxes.ids, boxes.categories, boxes.T_world_from_box, boxes.size_lwh_m, strict=True
        ):
            if not np.isfinite(T).all() or not (np.isfinite(size_lwh_m) & (size_lwh_m > 0)).all():
                raise InputError(where, f"box {box}", f"size {size_lwh_m}, pose {T.tolist()}", "finite, size > 0")
            if self._categories.setdefault(box, category) != category:
                raise InputError(where, f"category of box {box}", category, f"{self._categories[box]} as before")
            track = self._annotations.setdefault(box, [])
            length, width, height = size_lwh_m.tolist()
            row = {
                **_row(self._token("sample_annotation", box, len(track)), sample_token=sample),
                "instance_token": self._token("instance", box),
                "visibility_token": "",
                "attribute_tokens": [],
                **pose_fields(T),
                "size": [width, length, height],
                **{"prev": "", "next": "", "num_lidar_pts": -1, "num_radar_pts": -1},
            }
            _link(track[-1:], row)
            track.append(row)
            self._rows["sample_annotation"].append(row)


def _row(token: str, **fields: object) -> dict:
    return {"token": token, **fields}


def _link(previous: list[dict], row: dict) -> None:
    """Set prev of `row` and next of the row before it, if there is one."""
    for before in previous:
        before["next"], row["prev"] = row["token"], before["token"]


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def map_png(drivable_mask: np.ndarray) -> bytes:
    """The PNG of a mask uint8 [H, W], 255 where one may drive, at 0.1 m per pixel; as the devkit's MapMask has it,
    world (x, y) in metres is column 10 x, row H - 10 y, so the world's positive quadrant is shown."""
    if drivable_mask.ndim != 2 or drivable_mask.dtype != np.uint8:
        came = f"{drivable_mask.dtype} {drivable_mask.shape}"
        raise InputError("map_png", "drivable_mask", came, "uint8 [H, W]")
    good, png = cv2.imencode(".png", drivable_mask)
    if not good:
        raise RuntimeError(f"OpenCV could not encode a map of {drivable_mask.shape}")
    return png.tobytes()


def write_file(path: Path, content: bytes, synced: bool = True) -> None:
    """A new file, on the disk when this returns, or unless `synced` on its way there (a thousand images are brought
    there faster at once). The system names no file when a disk is full, so we do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            rest = memoryview(content).cast("B")
            while rest:
                rest = rest[os.write(handle, rest) :]
            if synced:
                os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        error.filename = str(path)
        raise
