"""The tables of nuScenes linked to columns in which every scene, keyframe and track of a sensor is a run of rows.

    scene     S  first_keyframe [S + 1], first_track [S + 1]
    keyframe  K  in order of scene and time: token, now_us, now_pose [K, 7], first_capture [K + 1], first_box [K + 1];
                 keyframe.captures: rows of its captures, in the order of the table
    track     N  all captures of one sensor in one scene: channel, calibration, size [N, 2], first_capture [N + 1]
    capture   M  in order of track and time: token, time_us, is_keyframe, pose [M, 7], pattern
    pattern      file names with a NUL in the place of the time stamp
    box       B  in order of keyframe: pose [B, 7], size_lwh_m [B, 3], velocity_in_world_mps [B, 2], instance
    instance     token, category
    calibration  token, channel, is_camera, pose [C, 7], K [C, 9] (NaN without one)

A pose is a quaternion (w, x, y, z) and a translation. `about` has what is small: scenes, categories, channels,
distortions, and of each scene that can't be used its problem, the parts of an InputError.
"""

import numpy as np

from sensors.columns import Columns, pack_strings
from sensors.errors import InputError
from sensors.nuscenes_tables import Table, as_numbers, check_inside

MAX_STEP_S = 1.5  # longest time between two annotations that still gives a velocity, as in the devkit's box_velocity
POSED = ("CAM_", "LIDA")  # how channels begin whose ego poses can be that of a keyframe


def link(dataroot: object, tables: dict[str, Table]) -> Columns:
    """All of it, in memory. What is wrong with a record is an InputError, with a scene a problem of that scene."""
    return _Linker(dataroot, tables).columns()


class _Linker:
    def __init__(self, dataroot: object, tables: dict[str, Table]):
        self._dataroot, self._tables = dataroot, tables
        self._names = tables["scene"]["name"]
        self._problems: dict[int, InputError] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._channels, self._channel_of_sensor = _numbered(tables["sensor"]["channel"])

    def columns(self) -> Columns:
        self._keyframes()
        self._calibrations()
        repeated = self._captures()
        self._now()
        self._boxes()
        categories, category_of = _numbered(self._tables["category"]["name"])
        instances = self._tables["instance"]
        self._arrays |= pack_strings("instance.token", instances.tokens)
        self._arrays["instance.category"] = category_of[instances["category_token"]]
        problems = {}
        for s, e in sorted(self._problems.items()):
            problems[self._names[s]] = [e.where, e.field, e.came, e.expected, e.fix]
        about = {
            "scenes": self._scenes(),
            "channels": self._channels,
            "categories": categories,
            "distortions": self._distortions(),
            "repeated_sweeps": repeated,
            "problems": problems,
        }
        return Columns(about, self._arrays)

    def _problem(self, scene: int, table: str, field: str, came: object, expected: object, fix: str = "") -> None:
        """The first one of a scene counts."""
        self._problems.setdefault(int(scene), InputError(self._tables[table].path, field, came, expected, fix))

    def _scenes(self) -> list:
        """[name, description, location, names of map rasters] of each."""
        scenes, logs, maps = (self._tables[name] for name in ("scene", "log", "map"))
        for filename in maps["filename"]:
            check_inside(maps.path, filename, self._dataroot)
        rasters: dict[str, list[str]] = {}
        for filename, tokens in zip(maps["filename"], maps["log_tokens"], strict=True):
            for token in dict.fromkeys(filter(lambda token: isinstance(token, str), tokens)):
                rasters.setdefault(token, []).append(filename)
        columns = (scenes["name"], scenes["description"], scenes["log_token"].tolist())
        return [
            [name, description, logs["location"][log], rasters.get(logs.tokens[log], [])]
            for name, description, log in zip(*columns, strict=True)
        ]

    def _keyframes(self) -> None:
        """Each scene's samples along `next`, which must end after nbr_samples of them."""
        scenes, samples = self._tables["scene"], self._tables["sample"]
        if len(set(self._names)) != len(self._names):
            raise InputError(scenes.path, "name", "one of them twice", "different names of scenes")
        first = samples.rows(scenes["first_sample_token"], scenes, "first_sample_token")
        following = samples.rows(samples["next"], samples, "next", optional=True)
        self._sample, ends = [], [0]
        for s, (sample, count) in enumerate(zip(first.tolist(), scenes["nbr_samples"].tolist(), strict=True)):
            self._sample += self._chain(s, sample, following, count)
            ends.append(len(self._sample))
        self._sample = np.array(self._sample, np.int32)
        self._scene_of_keyframe = np.repeat(np.arange(len(scenes)), np.diff(ends))
        self._keyframe_of = np.full(len(samples), -1, np.int32)
        self._keyframe_of[self._sample] = np.arange(len(self._sample))
        time_us = samples["timestamp"][self._sample]
        for k in np.flatnonzero((np.diff(time_us) <= 0) & (np.diff(self._scene_of_keyframe) == 0)) + 1:
            field, came = (
                f"timestamp of {samples.tokens[self._sample[k]]}",
                f"{time_us[k]} us after {time_us[k - 1]} us",
            )
            self._problem(self._scene_of_keyframe[k], "sample", field, came, "increasing time")
        self._arrays["scene.first_keyframe"] = np.array(ends, np.int64)
        self._arrays |= pack_strings("keyframe.token", [samples.tokens[k] for k in self._sample])

    def _chain(self, s: int, sample: int, following: np.ndarray, count: int) -> list[int]:
        """Sample rows of a scene; none if they are not as the scene says."""
        scenes, samples, found = self._tables["scene"], self._tables["sample"], []
        while sample >= 0 and len(found) <= count:
            found.append(sample)
            came = int(samples["scene_token"][sample])
            if came != s:
                field, expected = f"scene_token of {samples.tokens[sample]}", f"{scenes.tokens[s]}, {self._names[s]}"
                self._problem(s, "sample", field, scenes.tokens[came], expected)
                return []
            sample = int(following[sample])
        if len(found) != count:
            came = f"{count}, but `next` leads through {'more' if len(found) > count else len(found)}"
            self._problem(s, "scene", f"nbr_samples of {scenes.tokens[s]}", came, "the number of samples")
            return []
        return found

    def _calibrations(self) -> None:
        table, sensors = self._tables["calibrated_sensor"], self._tables["sensor"]
        K = np.full((len(table), 9), np.nan)
        for k, value in enumerate(table["camera_intrinsic"]):
            if value:
                numbers = as_numbers([value], 3, 3)
                if numbers is None:
                    raise InputError(
                        table.path, f"camera_intrinsic of {table.tokens[k]}", value, "3 x 3 finite numbers"
                    )
                K[k] = numbers.reshape(9)
        cameras = np.array([modality == "camera" for modality in sensors["modality"]], bool)
        self._arrays |= {
            "calibration.channel": self._channel_of_sensor[table["sensor_token"]],
            "calibration.is_camera": cameras[table["sensor_token"]],
            "calibration.pose": _poses(table),
            "calibration.K": K,
            **pack_strings("calibration.token", table.tokens),
        }

    def _distortions(self) -> dict[str, list]:
        """[model, coefficients] by token of a calibration."""
        if "camera_distortion" not in self._tables:
            return {}
        table = self._tables["camera_distortion"]
        columns = (table["calibrated_sensor_token"], table["model"], table["coefficients"])
        return {token: [model, coefficients] for token, model, coefficients in zip(*columns, strict=True)}

    def _captures(self) -> dict[str, int]:
        """Tracks and captures; how many sweeps of each scene were left out, since they repeat a time stamp."""
        data, arrays = self._tables["sample_data"], self._arrays
        keyframe, time_us, is_key = self._keyframe_of[data["sample_token"]], data["timestamp"], data["is_key_frame"]
        scene = self._scene_of_keyframe[keyframe] if len(self._scene_of_keyframe) else np.zeros(len(data), np.int64)
        channel = arrays["calibration.channel"][data["calibrated_sensor_token"]]
        track = scene * len(self._channels) + channel
        order = np.lexsort((~is_key, time_us, track))
        order = order[keyframe[order] >= 0]
        self._check_order(track, keyframe)
        repeats = np.zeros(len(order), bool)
        repeats[1:] = (np.diff(time_us[order]) == 0) & (np.diff(track[order]) == 0) & ~is_key[order[1:]]
        left_out = np.unique(scene[order[repeats]], return_counts=True)
        self._row = row = order[~repeats]  # of sample_data, by capture
        tracks, first = np.unique(track[row], return_index=True)
        arrays |= {
            "scene.first_track": np.searchsorted(tracks // len(self._channels), np.arange(len(self._names) + 1)),
            "track.channel": (tracks % len(self._channels)).astype(np.int32),
            "track.calibration": data["calibrated_sensor_token"][row[first]],
            "track.size": np.stack([data["width"], data["height"]], axis=1)[row[first]],
            "track.first_capture": np.append(first, len(row)),
            "capture.time_us": time_us[row],
            "capture.is_keyframe": is_key[row],
            "capture.pose": _poses(self._tables["ego_pose"])[data["ego_pose_token"][row]],
            **pack_strings("capture.token", [data.tokens[k] for k in row.tolist()]),
        }
        self._check_constant(np.repeat(np.arange(len(tracks)), np.diff(np.append(first, len(row)))))
        self._name_files()
        # The captures of each keyframe, in the order of the table.
        keys = np.flatnonzero(is_key[row])
        keys = keys[np.lexsort((row[keys], keyframe[row[keys]]))]
        arrays["keyframe.captures"] = keys
        arrays["keyframe.first_capture"] = np.searchsorted(keyframe[row[keys]], np.arange(len(self._sample) + 1))
        return {self._names[s]: int(n) for s, n in zip(*left_out, strict=True)}

    def _check_order(self, track: np.ndarray, keyframe: np.ndarray) -> None:
        """Of each sensor, a keyframe has one capture, later than that of the keyframe before."""
        data = self._tables["sample_data"]
        keys = np.flatnonzero(data["is_key_frame"] & (keyframe >= 0))
        keys = keys[np.lexsort((keys, keyframe[keys], track[keys]))]
        same = np.diff(track[keys]) == 0
        time_us = data["timestamp"][keys]
        for k in np.flatnonzero(same & (np.diff(time_us) <= 0)) + 1:
            row, channel = keys[k], self._channels[track[keys[k]] % len(self._channels)]
            field, came = f"timestamp of {data.tokens[row]} ({channel})", f"{time_us[k]} us after {time_us[k - 1]} us"
            self._problem(self._scene_of_keyframe[keyframe[row]], "sample_data", field, came, "increasing time")
        for k in np.flatnonzero(same & (np.diff(keyframe[keys]) == 0)) + 1:
            row, channel = keys[k], self._channels[track[keys[k]] % len(self._channels)]
            field, came = f"sample_token of {data.tokens[row]} ({channel})", "a second key frame of its sample"
            self._problem(self._scene_of_keyframe[keyframe[row]], "sample_data", field, came, "one key frame a sensor")

    def _check_constant(self, track: np.ndarray) -> None:
        """Calibration and image size of a camera stay the same throughout a scene."""
        data, arrays, row = self._tables["sample_data"], self._arrays, self._row
        columns = (data["calibrated_sensor_token"], data["width"], data["height"])
        firsts = (arrays["track.calibration"], arrays["track.size"][:, 0], arrays["track.size"][:, 1])
        changed = np.zeros(len(row), bool)
        for column, first in zip(columns, firsts, strict=True):
            changed |= column[row] != first[track]
        changed &= arrays["calibration.is_camera"][columns[0][row]]
        tokens = self._tables["calibrated_sensor"].tokens
        for k in np.flatnonzero(changed):
            channel = self._channels[arrays["track.channel"][track[k]]]
            now, before = ((tokens[of[0]], *map(int, of[1:])) for of in self._sizes(columns, firsts, row[k], track[k]))
            field = f"calibrated_sensor_token, width, height of {data.tokens[row[k]]} ({channel})"
            scene = np.searchsorted(arrays["scene.first_track"], track[k], side="right") - 1
            self._problem(scene, "sample_data", field, now, f"{before} as before")

    @staticmethod
    def _sizes(columns: tuple, firsts: tuple, row: int, track: int) -> tuple[tuple, tuple]:
        return tuple(column[row] for column in columns), tuple(first[track] for first in firsts)

    def _name_files(self) -> None:
        """Patterns of the file names; there are few, as names hold the time stamp."""
        data, patterns = self._tables["sample_data"], {}
        names = data["filename"]
        for name in names:
            if name[:1] in ("", "/") or ".." in name or "\0" in name:
                check_inside(data.path, name, self._dataroot)
        times = self._arrays["capture.time_us"].tolist()
        which = [
            patterns.setdefault(names[row].replace(str(time_us), "\0", 1), len(patterns))
            for row, time_us in zip(self._row.tolist(), times, strict=True)
        ]
        self._arrays["capture.pattern"] = np.array(which, np.int32)
        self._arrays |= pack_strings("pattern", list(patterns))

    def _now(self) -> None:
        """The latest pose of each keyframe, of its cameras, LIDAR_TOP or the sample itself."""
        arrays, poses, samples = self._arrays, self._tables["ego_pose"], self._tables["sample"]
        K = len(self._sample)
        posed = np.array([name[:4] in POSED for name in self._channels], bool)
        track = np.searchsorted(arrays["track.first_capture"], arrays["keyframe.captures"], side="right") - 1
        usable = posed[arrays["track.channel"][track]]
        keyframe = np.repeat(np.arange(K), np.diff(arrays["keyframe.first_capture"]))[usable]
        capture = arrays["keyframe.captures"][usable]
        time_us = arrays["capture.time_us"][capture]
        latest = np.lexsort((np.arange(len(capture)), -time_us, keyframe))
        found, at = np.unique(keyframe[latest], return_index=True)
        now_us, pose = np.full(K, np.iinfo(np.int64).min), np.zeros((K, 7))
        now_us[found], pose[found] = time_us[latest[at]], arrays["capture.pose"][capture[latest[at]]]
        own = np.array([poses.row_of.get(samples.tokens[k], -1) for k in self._sample], np.int64)
        later = np.flatnonzero(own >= 0)
        later = later[poses["timestamp"][own[later]] > now_us[later]]
        now_us[later] = poses["timestamp"][own[later]]
        pose[later] = np.concatenate([poses["rotation"], poses["translation"]], axis=1)[own[later]]
        arrays |= {"keyframe.now_us": now_us, "keyframe.now_pose": pose}
        for k in np.flatnonzero(now_us == np.iinfo(np.int64).min):
            field = f"sample_token {samples.tokens[self._sample[k]]}"
            expected = "a key frame of a camera or of LIDAR_TOP"
            self._problem(self._scene_of_keyframe[k], "sample_data", field, "no record", expected)
        for k in np.flatnonzero((np.diff(now_us) <= 0) & (np.diff(self._scene_of_keyframe) == 0)) + 1:
            scene = self._scene_of_keyframe[k]
            field = f"timestamp of {samples.tokens[self._sample[k]]} ({self._names[scene]})"
            self._problem(scene, "sample", field, f"{now_us[k]} us after {now_us[k - 1]} us", "increasing time")

    def _boxes(self) -> None:
        rows = self._tables["sample_annotation"]
        keyframe = self._keyframe_of[rows["sample_token"]]
        order = np.argsort(keyframe, kind="stable")
        order = order[np.searchsorted(keyframe[order], 0) :]
        self._arrays |= {
            "keyframe.first_box": np.searchsorted(keyframe[order], np.arange(len(self._sample) + 1)),
            "box.pose": _poses(rows)[order],
            "box.size_lwh_m": rows["size"][order][:, [1, 0, 2]],  # stored w, l, h
            "box.velocity_in_world_mps": self._velocities(rows)[order],
            "box.instance": rows["instance_token"][order],
        }

    def _velocities(self, rows: Table) -> np.ndarray:
        """[B, 2] in the world, as the devkit's box_velocity: centred difference where both neighbours exist."""
        here = np.arange(len(rows))
        before, after = (rows.rows(rows[side], rows, side, optional=True) for side in ("prev", "next"))
        both = (before >= 0) & (after >= 0)
        first, last = np.where(before >= 0, before, here), np.where(after >= 0, after, here)
        time_us = self._tables["sample"]["timestamp"][rows["sample_token"]]
        seconds = 1e-6 * (time_us[last] - time_us[first])
        known = (seconds > 0) & (seconds <= MAX_STEP_S * np.where(both, 2, 1))
        moved = rows["translation"][last, :2] - rows["translation"][first, :2]
        return np.divide(moved, seconds[:, None], out=np.full((len(rows), 2), np.nan), where=known[:, None])


def _poses(table: Table) -> np.ndarray:
    """[M, 7]: quaternion, translation."""
    return np.concatenate([table["rotation"], table["translation"]], axis=1)


def _numbered(names: list[str]) -> tuple[list[str], np.ndarray]:
    """The different names, and which of them each is, int32."""
    different = list(dict.fromkeys(names))
    number = {name: k for k, name in enumerate(different)}
    return different, np.array([number[name] for name in names], np.int32)
