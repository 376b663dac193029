"""The v1.0 tables of a nuScenes dataroot, read, checked and linked: scene -> keyframes -> captures, poses, boxes.

Only what the stack uses is read; a table, field or token that is missing or wrong is an InputError that names the file,
the record and the field. Layout: https://www.nuscenes.org/nuscenes#data-format.

Every `filename` stays inside the dataroot: absolute paths and `..` are refused when the tables are read, links that
lead out of it when the file is asked for (`path`).

One table of ours stands beside the official ones, `camera_distortion.json`, rows {token, calibrated_sensor_token,
model, coefficients} with the names of `sensors.camera`. nuScenes itself ships undistorted images and has no such table.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np

from sensors.camera import Camera
from sensors.clip import Boxes
from sensors.errors import InputError, nearest
from sensors.frames import UNIT_TOLERANCE, matrix, rotation_from_quaternion

MAX_STEP_S = 1.5  # longest time between two annotations that still gives a velocity, as in the devkit's box_velocity
CAN_MESSAGES = ("ms_imu", "pose", "steeranglefeedback", "vehicle_monitor")
FIELDS = {
    "scene": {"name": str, "description": str, "log_token": str, "first_sample_token": str, "nbr_samples": int},
    "sample": {"timestamp": int, "next": str, "scene_token": str},
    "sample_data": {
        **dict.fromkeys(("sample_token", "ego_pose_token", "calibrated_sensor_token", "filename"), str),
        **dict.fromkeys(("timestamp", "width", "height"), int),
        "is_key_frame": bool,
    },
    "ego_pose": {"timestamp": int, "rotation": list, "translation": list},
    "calibrated_sensor": {"sensor_token": str, "rotation": list, "translation": list, "camera_intrinsic": list},
    "sensor": {"channel": str, "modality": str},
    "sample_annotation": {
        **dict.fromkeys(("sample_token", "instance_token", "prev", "next"), str),
        **dict.fromkeys(("rotation", "translation", "size"), list),
    },
    "instance": {"category_token": str},
    "category": {"name": str},
    "log": {"location": str},
    "map": {"filename": str, "log_tokens": list},
}


@dataclass(frozen=True)
class Capture:
    """One key-frame record of one sensor: when, where the car was (`q_wxyz`: the rotation as the table spells it, which
    a matrix does not give back to the last bit), and the file that holds it."""

    channel: str
    token: str
    time_us: int
    T_world_from_ego: np.ndarray
    filename: str
    width: int
    height: int
    q_wxyz: tuple[float, ...]


@dataclass(frozen=True)
class Keyframe:
    """One sample. `now_us` is the latest of the instants at which LIDAR_TOP, a camera or the sample itself has an ego
    pose; `T_world_from_ego_now` is that pose. In nuScenes that is the sample's own time stamp (LIDAR_TOP's), except
    where the last camera, CAM_BACK_LEFT, fires up to 1 ms after it. A recording without lidar stores the pose of the
    sample as the ego_pose of the sample's token."""

    token: str
    now_us: int
    T_world_from_ego_now: np.ndarray
    captures: dict[str, Capture]
    boxes: Boxes
    q_wxyz_now: tuple[float, ...]


@dataclass(frozen=True)
class RecordedScene:
    name: str
    description: str
    location: str
    keyframes: tuple[Keyframe, ...]
    cameras: dict[str, Camera]


@dataclass(frozen=True)
class SceneInventory:
    """What one scene holds and lacks: image files by channel, CAN bus files by message, the map raster."""

    name: str
    location: str
    keyframes: int
    annotations: int
    images_present: dict[str, int]
    images_missing: dict[str, int]
    can_present: tuple[str, ...]
    can_missing: tuple[str, ...]
    map_present: bool

    @property
    def images(self) -> int:
        return sum(self.images_present.values())


def read_json(path: Path) -> list:
    """The JSON list in a file; a file that is missing, cut off or no list is an InputError."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(path, "file", error.strerror, "a JSON list of records", "Is the download complete?") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        came = f"{path.stat().st_size} bytes that are not JSON: {error}"
        raise InputError(path, "content", came, "a complete JSON list", "The file is cut off or damaged.") from error
    if not isinstance(value, list):
        raise InputError(path, "content", type(value).__name__, "a JSON list of records")
    return value


def one_of(where: object, field: str, came: str, known: tuple[str, ...]) -> str:
    """`came` if it is known, else an InputError with the nearest name."""
    if came in known:
        return came
    listed = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
    raise InputError(where, field, came, f"one of {listed or 'none'}", nearest(came, known))


class NuscenesIndex:
    """All scenes of `<dataroot>/<version>`; `scene` links one of them and keeps it."""

    def __init__(self, dataroot: str | Path, version: str):
        self.dataroot, self.version = Path(dataroot), version
        if not self.dataroot.is_dir():
            raise InputError(self.dataroot, "dataroot", "no such folder", "a nuScenes dataroot")
        versions = tuple(sorted(p.parent.name for p in self.dataroot.glob("*/scene.json") if p.parent.name[0] != "."))
        if not (self.dataroot / version).is_dir():
            one_of(self.dataroot, "version", version, versions)
        self._inside: dict[str, Path] = {}  # file names found to lie within the dataroot
        self._rows = {table: self._read(table, fields) for table, fields in FIELDS.items()}
        self._by_token = {table: self._tokens(table, rows) for table, rows in self._rows.items()}
        self._keyframe_data = _by_sample(self._rows["sample_data"])
        self._annotations = _by_sample(self._rows["sample_annotation"])
        self._distortion = self._read_distortion()
        self._scene_rows = {row["name"]: row for row in self._rows["scene"]}
        self._linked: dict[str, RecordedScene] = {}
        self.scenes: tuple[str, ...] = tuple(self._scene_rows)

    def table_path(self, table: str) -> Path:
        return self.dataroot / self.version / f"{table}.json"

    def can_path(self, scene: str, message: str) -> Path:
        return self.dataroot / "can_bus" / f"{scene}_{message}.json"

    def path(self, filename: str, table: str = "sample_data") -> Path:
        """Where a table's `filename` lies; outside the dataroot, links included, is an InputError."""
        if filename in self._inside:
            return self._inside[filename]
        parts, root = PurePosixPath(filename).parts, self.dataroot.resolve()
        path = root / filename
        if not parts or filename[0] == "/" or ".." in parts or not path.resolve().is_relative_to(root):
            expected, fix = f"a path inside {self.dataroot}", "Links may not lead out of it."
            raise InputError(self.table_path(table), "filename", filename, expected, fix)
        return self._inside.setdefault(filename, path)

    def map_path(self, scene: str) -> Path | None:
        """The raster of where one may drive, or None without one."""
        rows = (m for m in self._rows["map"] if self._scene_rows[scene]["log_token"] in m["log_tokens"])
        return next((p for m in rows if (p := self.path(m["filename"], "map")).is_file()), None)

    def scene(self, name: str) -> RecordedScene:
        """One scene, linked; keyframes in order of time."""
        one_of(self.table_path("scene"), "scene", name, self.scenes)
        if name not in self._linked:
            self._linked[name] = self._link(self._scene_rows[name])
        return self._linked[name]

    def inventory(self) -> list[SceneInventory]:
        """What every scene holds and lacks; nothing but the existence of files is looked at."""
        return [self._take_stock(self.scene(name)) for name in self.scenes]

    def _read(self, table: str, fields: dict[str, type]) -> list[dict]:
        """Rows of one table with every field of its type; of sample_data only the key frames."""
        path = self.table_path(table)
        rows = read_json(path)
        wanted = {"token": str, **fields}.items()
        for i, row in enumerate(rows):
            if not isinstance(row, dict):
                raise InputError(path, f"record {i}", type(row).__name__, "an object")
            for field, kind in wanted:
                if type(row.get(field)) is not kind:  # a bool is no time stamp
                    came = repr(row[field]) if field in row else "no such field"
                    raise InputError(path, f"{field} of record {i} ({row.get('token')})", came, kind.__name__)
            if "filename" in fields and (row["filename"][:1] in ("", "/") or ".." in row["filename"]):
                self.path(row["filename"], table)
        return [row for row in rows if row["is_key_frame"]] if table == "sample_data" else rows

    def _tokens(self, table: str, rows: list[dict]) -> dict[str, dict]:
        by_token = {row["token"]: row for row in rows}
        if len(by_token) != len(rows):
            raise InputError(self.table_path(table), "token", f"{len(rows) - len(by_token)} repeated", "unique tokens")
        return by_token

    def _get(self, table: str, token: str, from_table: str, field: str, from_token: str) -> dict:
        """The row behind a reference; dangling is an InputError at the referring field."""
        row = self._by_token[table].get(token)
        if row is None:
            where, field = self.table_path(from_table), f"{field} of {from_token}"
            raise InputError(where, field, repr(token), f"the token of a record in {table}.json")
        return row

    def _read_distortion(self) -> dict[str, tuple[str, tuple[float, ...]]]:
        path = self.table_path("camera_distortion")
        if not path.exists():
            return {}
        fields = {"calibrated_sensor_token": str, "model": str, "coefficients": list}
        rows = self._read("camera_distortion", fields)
        return {r["calibrated_sensor_token"]: (r["model"], tuple(r["coefficients"])) for r in rows}

    def _array(self, table: str, rows: list[dict], field: str, shape: tuple[int, ...]) -> np.ndarray:
        """float64 [M, *shape] of one field; a row of another shape or not finite is an InputError naming its token."""
        try:
            values = np.array([row[field] for row in rows], dtype=np.float64)
        except (TypeError, ValueError):
            values = np.zeros(0)
        if values.shape == (len(rows), *shape):
            bad = np.flatnonzero(~np.isfinite(values.reshape(len(rows), -1)).all(axis=1))
        else:
            bad = [i for i, row in enumerate(rows) if not _is_numbers(row[field], shape)]
        if len(bad):
            row = rows[bad[0]]
            expected = f"{' x '.join(map(str, shape))} finite numbers"
            raise InputError(self.table_path(table), f"{field} of {row['token']}", row[field], expected)
        return values.reshape(len(rows), *shape)

    def _poses(self, table: str, rows: list[dict]) -> np.ndarray:
        """T [M, 4, 4] of the rows' rotation (w, x, y, z) and translation."""
        q, t = self._array(table, rows, "rotation", (4,)), self._array(table, rows, "translation", (3,))
        norm = np.linalg.norm(q, axis=1)
        bad = np.flatnonzero(np.abs(norm - 1) > UNIT_TOLERANCE)
        if len(bad):
            came = f"{rows[bad[0]]['rotation']} of length {norm[bad[0]]:.6g}"
            where, field = self.table_path(table), f"rotation of {rows[bad[0]]['token']}"
            raise InputError(where, field, came, "a unit quaternion (w, x, y, z)")
        return matrix(t, rotation_from_quaternion(q))

    def _link(self, row: dict) -> RecordedScene:
        log = self._get("log", row["log_token"], "scene", "log_token", row["token"])
        samples = self._samples(row)
        captures = [self._captures(sample) for sample in samples]
        boxes = self._boxes(samples)
        keyframes = tuple(map(self._keyframe, samples, captures, boxes))
        for channel in sorted({channel for found in captures for channel in found}):
            of_channel = [found[channel] for found in captures if channel in found]
            self._check_time("sample_data", channel, [(c.token, c.time_us) for c in of_channel])
        self._check_time("sample", row["name"], [(keyframe.token, keyframe.now_us) for keyframe in keyframes])
        return RecordedScene(row["name"], row["description"], log["location"], keyframes, self._cameras(samples))

    def _samples(self, row: dict) -> list[dict]:
        """The scene's samples along `next`, which must end after nbr_samples of them."""
        samples, token, referrer = [], row["first_sample_token"], ("scene", "first_sample_token", row["token"])
        while token or not samples:
            sample = self._get("sample", token, *referrer)
            samples.append(sample)
            if sample["scene_token"] != row["token"]:
                where, field = self.table_path("sample"), f"scene_token of {token}"
                raise InputError(where, field, sample["scene_token"], f"{row['token']}, {row['name']}")
            if len(samples) > row["nbr_samples"]:
                break
            token, referrer = sample["next"], ("sample", "next", sample["token"])
        if len(samples) != row["nbr_samples"]:
            came = f"{row['nbr_samples']}, but `next` leads through {'more' if token else len(samples)}"
            raise InputError(self.table_path("scene"), f"nbr_samples of {row['token']}", came, "the number of samples")
        return samples

    def _captures(self, sample: dict) -> dict[str, Capture]:
        """The sample's key frames by channel, each with its own ego pose."""
        found, rows, field = {}, self._keyframe_data[sample["token"]], "ego_pose_token"
        poses = [self._get("ego_pose", row[field], "sample_data", field, row["token"]) for row in rows]
        for row, pose, T in zip(rows, poses, self._poses("ego_pose", poses), strict=True):
            channel, file = self._sensor(row)["channel"], (row["filename"], row["width"], row["height"])
            found[channel] = Capture(channel, row["token"], row["timestamp"], T, *file, tuple(pose["rotation"]))
        return found

    def _sensor(self, data: dict) -> dict:
        token = data["calibrated_sensor_token"]
        calibrated = self._get("calibrated_sensor", token, "sample_data", "calibrated_sensor_token", data["token"])
        return self._get("sensor", calibrated["sensor_token"], "calibrated_sensor", "sensor_token", token)

    def _keyframe(self, sample: dict, captures: dict[str, Capture], boxes: Boxes) -> Keyframe:
        seen = (c for name, c in captures.items() if name[:4] in ("CAM_", "LIDA"))
        poses = [(c.time_us, c.T_world_from_ego, c.q_wxyz) for c in seen]
        if sample["token"] in self._by_token["ego_pose"]:
            row = self._by_token["ego_pose"][sample["token"]]
            poses.append((row["timestamp"], self._poses("ego_pose", [row])[0], tuple(row["rotation"])))
        if not poses:
            expected = "a key frame of a camera or of LIDAR_TOP"
            raise InputError(self.table_path("sample_data"), f"sample_token {sample['token']}", "no record", expected)
        now_us, T_world_from_ego_now, q_wxyz_now = max(poses, key=lambda pose: pose[0])
        return Keyframe(sample["token"], now_us, T_world_from_ego_now, captures, boxes, q_wxyz_now)

    def _check_time(self, table: str, track: str, instants: list[tuple[str, int]]) -> None:
        for (_, before_us), (token, time_us) in pairwise(instants):
            if time_us <= before_us:
                field, came = f"timestamp of {token} ({track})", f"{time_us} us after {before_us} us"
                raise InputError(self.table_path(table), field, came, "increasing time")

    def _cameras(self, samples: list[dict]) -> dict[str, Camera]:
        """The scene's cameras by channel; calibration and image size must stay the same throughout it."""
        first: dict[str, tuple] = {}
        for row in (row for sample in samples for row in self._keyframe_data[sample["token"]]):
            sensor = self._sensor(row)
            now = row["calibrated_sensor_token"], row["width"], row["height"]
            if sensor["modality"] == "camera" and first.setdefault(sensor["channel"], now) != now:
                field = f"calibrated_sensor_token, width, height of {row['token']} ({sensor['channel']})"
                raise InputError(self.table_path("sample_data"), field, now, f"{first[sensor['channel']]} as before")
        return {channel: self._camera(channel, *calibration) for channel, calibration in first.items()}

    def _camera(self, channel: str, token: str, width: int, height: int) -> Camera:
        row, path = self._by_token["calibrated_sensor"][token], self.table_path("calibrated_sensor")
        if not row["camera_intrinsic"]:
            field = f"camera_intrinsic of {token} ({channel})"
            raise InputError(path, field, "[]", "a 3x3 matrix", "A camera without calibration can't be used.")
        K = self._array("calibrated_sensor", [row], "camera_intrinsic", (3, 3))[0]
        T_ego_from_cam = self._poses("calibrated_sensor", [row])[0]
        model, coefficients = self._distortion.get(token, ("none", ()))
        return Camera(channel, width, height, K, T_ego_from_cam, model, coefficients).validate(f"{path} {token}")

    def _boxes(self, samples: list[dict]) -> list[Boxes]:
        """The annotations of every sample; the poses of the whole scene are made in one go."""
        groups = [self._annotations[sample["token"]] for sample in samples]
        rows = [row for group in groups for row in group]
        if not rows:
            return [Boxes.empty() for _ in groups]
        T_world_from_box = self._poses("sample_annotation", rows)
        size_lwh_m = self._array("sample_annotation", rows, "size", (3,))[:, [1, 0, 2]]  # stored w, l, h
        velocity_in_world_mps = np.array([self._velocity(row) for row in rows])
        ends = np.cumsum([len(group) for group in groups])
        return [
            Boxes(
                tuple(row["instance_token"] for row in group),
                tuple(self._category(row) for row in group),
                T_world_from_box[end - len(group) : end],
                size_lwh_m[end - len(group) : end],
                velocity_in_world_mps[end - len(group) : end],
            )
            for group, end in zip(groups, ends, strict=True)
        ]

    def _category(self, annotation: dict) -> str:
        token = annotation["instance_token"]
        instance = self._get("instance", token, "sample_annotation", "instance_token", annotation["token"])
        return self._get("category", instance["category_token"], "instance", "category_token", token)["name"]

    def _velocity(self, row: dict) -> np.ndarray:
        """[2] in the world, as the devkit's box_velocity: centred difference where both neighbours exist."""
        ends = [
            self._get("sample_annotation", row[side], "sample_annotation", side, row["token"]) if row[side] else row
            for side in ("prev", "next")
        ]
        first, last = (
            self._get("sample", r["sample_token"], "sample_annotation", "sample_token", r["token"]) for r in ends
        )
        seconds = 1e-6 * (last["timestamp"] - first["timestamp"])
        if not 0 < seconds <= MAX_STEP_S * (2 if row["prev"] and row["next"] else 1):
            return np.full(2, np.nan)
        return np.subtract(ends[1]["translation"][:2], ends[0]["translation"][:2]) / seconds

    def _take_stock(self, scene: RecordedScene) -> SceneInventory:
        present, missing = dict.fromkeys(scene.cameras, 0), dict.fromkeys(scene.cameras, 0)
        for capture in (c for k in scene.keyframes for c in k.captures.values() if c.channel in scene.cameras):
            (present if self.path(capture.filename).is_file() else missing)[capture.channel] += 1
        can = tuple(message for message in CAN_MESSAGES if self.can_path(scene.name, message).is_file())
        return SceneInventory(
            name=scene.name,
            location=scene.location,
            keyframes=len(scene.keyframes),
            annotations=sum(len(k.boxes) for k in scene.keyframes),
            images_present=present,
            images_missing=missing,
            can_present=can,
            can_missing=tuple(message for message in CAN_MESSAGES if message not in can),
            map_present=self.map_path(scene.name) is not None,
        )


def _is_numbers(value: object, shape: tuple[int, ...]) -> bool:
    try:
        return np.array(value, dtype=np.float64).shape == shape
    except (TypeError, ValueError):
        return False


def _by_sample(rows: list[dict]) -> dict[str, list[dict]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row["sample_token"]].append(row)
    return groups
