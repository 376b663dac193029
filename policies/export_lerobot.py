"""Recorded scenes as a LeRobot dataset of version 3.0: numbers as parquet, cameras as MP4.

    meta/info.json, meta/stats.json, meta/tasks.parquet, meta/episodes/chunk-000/file-000.parquet
    data/chunk-C/file-F.parquet, videos/KEY/chunk-C/file-F.mp4    of one episode each
    meta/cameras.json        of our own: lens and place of every camera, by scene

An episode is a scene up to its last keyframe but one, as of the last nobody knows what was done then:

    observation.state        x, y, yaw of the car in the frame of its first pose, and its speed
    action                   the motion to the next keyframe: x, y, yaw in the frame of the car now
    observation.image_mask   which cameras delivered; the picture of one that did not is black
    observation.time_us      the recorded instant; `timestamp` is frame_index / fps, as in the videos
    task                     the instruction, or the command of the route

info.json is written last: a folder without it was interrupted. Layout: https://huggingface.co/docs/lerobot
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from policies.runs import write_json
from policies.transforms import speed_at_now
from sensors.camera import Camera
from sensors.errors import InputError
from sensors.frames import inverse, xy_yaw
from sensors.nuscenes_source import RecordedSource
from sim.report.video import VideoWriter

CHUNK = 1000  # files in a folder
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
STATE, ACTION = ("x_m", "y_m", "yaw_rad", "speed_mps"), ("x_m", "y_m", "yaw_rad")
EVERY = 8  # pixels, of which one makes the statistics of a camera
COUNTERS = ("frame_index", "episode_index", "index", "task_index")
Say = Callable[[str], None]


def write_lerobot(source: RecordedSource, out: Path, say: Say = lambda text: None) -> None:
    """Write all scenes of a source to a folder, new or empty. Needs the package pyarrow."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("--out", "folder", f"{out}, which is not empty", "a new or empty folder", "Name another.")
    long_enough = [scene for scene in source.scenes if len(source.frame_times_us(scene)) > 1]
    for scene in sorted(set(source.scenes) - set(long_enough)):
        say(f"{scene}: left out, since a single keyframe has no action")
    if not long_enough:
        raise InputError(source.name, "scenes", "none with two keyframes", "at least one")
    dataset = _Dataset(source, out, _fps(source, long_enough))
    for scene in long_enough:
        dataset.add(scene)
        say(f"{scene}: episode {len(dataset.episodes) - 1}")
    dataset.finish()


def _fps(source: RecordedSource, scenes: list[str]) -> int:
    periods_us = np.concatenate([np.diff(source.frame_times_us(scene)) for scene in scenes])
    return max(1, round(1e6 / float(np.median(periods_us))))


class _Dataset:
    """One dataset under construction. `keys`: the feature of each camera, none if no scene has any image."""

    def __init__(self, source: RecordedSource, out: Path, fps: int):
        self._source, self._out, self._fps = source, out, fps
        self._cameras = source.clip(source.scenes[0], 0).cameras
        seen = any(source.images(scene)[0] for scene in source.scenes)
        self.keys = [f"observation.images.{camera.name.lower()}" for camera in self._cameras] if seen else []
        self.episodes: list[dict] = []
        self._tasks: dict[str, int] = {}
        self._lenses: dict[str, dict] = {}
        self._total, self._numbers, self._pixels = 0, [], _Pixels(len(self.keys))

    def add(self, scene: str) -> None:
        """One scene as the next episode."""
        import pyarrow.parquet

        source, episode = self._source, len(self.episodes)
        recorded, count = source.scene(scene), len(source.frame_times_us(scene)) - 1
        place = {"chunk_index": episode // CHUNK, "file_index": episode % CHUNK}
        columns: dict[str, list] = {name: [] for name in (*_numeric(len(self._cameras)), *COUNTERS, "timestamp")}
        with ExitStack() as open_videos:
            paths = [self._made(VIDEO_PATH.format(video_key=key, **place)) for key in self.keys]
            videos = [open_videos.enter_context(VideoWriter(path, self._fps)) for path in paths]
            T_first = recorded.T_world_from_ego_now[0]
            for frame in range(count):
                clip = source.clip(scene, frame)
                T_now, T_next = clip.T_world_from_ego_now, recorded.T_world_from_ego_now[frame + 1]
                columns["observation.state"].append([*xy_yaw(inverse(T_first) @ T_now), speed_at_now(clip)])
                columns["action"].append(xy_yaw(inverse(T_now) @ T_next))
                columns["observation.image_mask"].append(clip.image_mask[-1])
                columns["observation.time_us"].append(clip.now_us)
                task = self._tasks.setdefault(clip.instruction or clip.command, len(self._tasks))
                for name, value in zip(COUNTERS, (frame, episode, self._total + frame, task), strict=True):
                    columns[name].append(value)
                columns["timestamp"].append(frame / self._fps)
                for video, image in zip(videos, clip.images[-1], strict=bool(videos)) if videos else ():
                    video.write(image)
                self._pixels.add(clip.images[-1], clip.image_mask[-1])
        table = _table(columns, len(self._cameras))
        pyarrow.parquet.write_table(table, self._made(DATA_PATH.format(**place)))
        self._numbers.append({name: np.array(columns[name], np.float64) for name in columns})
        told = sorted(set(columns["task_index"]))
        self._lenses[scene] = {camera.name: _lens(camera) for camera in recorded.cameras.values()}
        self.episodes.append(
            {
                "episode_index": episode,
                "tasks": [list(self._tasks)[k] for k in told],
                "length": count,
                "dataset_from_index": self._total,
                "dataset_to_index": self._total + count,
                **{f"data/{name}": value for name, value in place.items()},
                **{f"meta/episodes/{name}": 0 for name in place},
                **{f"videos/{key}/{name}": value for key in self.keys for name, value in place.items()},
                **{f"videos/{key}/from_timestamp": 0.0 for key in self.keys},
                **{f"videos/{key}/to_timestamp": count / self._fps for key in self.keys},
                "scene": scene,
            }
        )
        self._total += count

    def finish(self) -> None:
        """What tells of all episodes."""
        import pyarrow as pa
        import pyarrow.parquet

        episodes = pa.Table.from_pylist(self.episodes)
        pyarrow.parquet.write_table(episodes, self._made("meta/episodes/chunk-000/file-000.parquet"))
        pyarrow.parquet.write_table(_tasks(list(self._tasks)), self._made("meta/tasks.parquet"))
        write_json(self._made("meta/cameras.json"), self._lenses)
        write_json(self._made("meta/stats.json"), self._statistics())
        info = {
            "codebase_version": "v3.0",
            "robot_type": "vehicle",
            "total_episodes": len(self.episodes),
            "total_frames": self._total,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self._fps,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.keys else None,
            "features": self._features(),
        }
        write_json(self._made("meta/info.json"), info)

    def _made(self, name: str) -> Path:
        path = self._out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _features(self) -> dict[str, dict]:
        # A video of yuv420p has even sides; the writer repeats a row or a column.
        width, height = (side + side % 2 for side in (self._cameras[0].width, self._cameras[0].height))
        about = {"video.height": height, "video.width": width, "video.codec": "h264", "video.pix_fmt": "yuv420p"}
        about |= {"video.is_depth_map": False, "video.fps": self._fps, "video.channels": 3, "has_audio": False}
        shape = {"shape": [height, width, 3], "names": ["height", "width", "channels"]}
        features = {key: {"dtype": "video", **shape, "info": about} for key in self.keys}
        names = {"observation.state": STATE, "action": ACTION}
        names["observation.image_mask"] = [camera.name for camera in self._cameras]
        for name, (dtype, size) in _numeric(len(self._cameras)).items():
            features[name] = {"dtype": dtype, "shape": [size], "names": list(names[name]) if name in names else None}
        counters = {name: {"dtype": "int64", "shape": [1], "names": None} for name in COUNTERS}
        return features | {"timestamp": {"dtype": "float32", "shape": [1], "names": None}} | counters

    def _statistics(self) -> dict[str, dict]:
        """min, max, mean, std and count of every feature; of a camera by channel, in [0, 1]."""
        found = {}
        for name in self._numbers[0]:
            values = np.concatenate([columns[name] for columns in self._numbers]).reshape(self._total, -1)
            figures = {how: getattr(values, how)(axis=0).tolist() for how in ("min", "max", "mean", "std")}
            found[name] = figures | {"count": [self._total]}
        return found | {key: self._pixels.of(n) for n, key in enumerate(self.keys)}


class _Pixels:
    """Running statistics of the pixels of each camera, of the images that are there."""

    def __init__(self, cameras: int):
        self._low, self._high = np.full((cameras, 3), np.inf), np.full((cameras, 3), -np.inf)
        self._sums, self._counts = np.zeros((cameras, 2, 3)), np.zeros((cameras, 2))

    def add(self, images: np.ndarray, mask: np.ndarray) -> None:
        for n in np.flatnonzero(mask[: len(self._low)]):
            pixels = images[n, ::EVERY, ::EVERY].reshape(-1, 3) / 255.0
            self._low[n], self._high[n] = (
                np.minimum(self._low[n], pixels.min(0)),
                np.maximum(self._high[n], pixels.max(0)),
            )
            self._sums[n] += pixels.sum(0), (pixels**2).sum(0)
            self._counts[n] += len(pixels), 1

    def of(self, camera: int) -> dict[str, list]:
        pixels, images = self._counts[camera]
        if not images:
            return {"count": [0]}
        mean, square = self._sums[camera] / pixels
        figures = {"min": self._low[camera], "max": self._high[camera], "mean": mean}
        figures["std"] = np.sqrt(np.maximum(square - mean**2, 0.0))
        return {how: value.reshape(3, 1, 1).tolist() for how, value in figures.items()} | {"count": [int(images)]}


def _numeric(cameras: int) -> dict[str, tuple[str, int]]:
    """(dtype, size) of the features that are no counters."""
    return {
        "observation.state": ("float32", len(STATE)),
        "action": ("float32", len(ACTION)),
        "observation.image_mask": ("bool", cameras),
        "observation.time_us": ("int64", 1),
    }


def _table(columns: dict[str, list], cameras: int):
    """The rows of an episode; a feature of one number is a column, of several a list."""
    import pyarrow as pa

    arrays = {name: pa.array(columns[name], pa.int64()) for name in COUNTERS}
    arrays["timestamp"] = pa.array(columns["timestamp"], pa.float32())
    kinds = {"float32": pa.float32(), "bool": pa.bool_(), "int64": pa.int64()}
    for name, (dtype, size) in _numeric(cameras).items():
        values = np.array(columns[name], dtype).ravel()
        flat = pa.array(values, kinds[dtype])
        arrays[name] = flat if size == 1 else pa.FixedSizeListArray.from_arrays(flat, size)
    return pa.table(arrays)


def _tasks(texts: list[str]):
    """task_index by task, which is the index of a table of pandas."""
    import pyarrow as pa

    def column(name: str, kind: str, numpy: str) -> dict:
        return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}

    columns = [column("task_index", "int64", "int64"), column("task", "unicode", "object")]
    about = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": pa.array(range(len(texts)), pa.int64()), "task": pa.array(texts, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(about)})


def _lens(camera: Camera) -> dict:
    fields = {name: getattr(camera, name).tolist() for name in ("K", "T_ego_from_cam")}
    lens = {"distortion": camera.distortion, "coefficients": list(camera.coefficients)}
    return {"width": camera.width, "height": camera.height, **fields, **lens}
