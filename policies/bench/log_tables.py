"""Tables of nuScenes' format and size without nuScenes: scenes of 20 s with twelve sensors, alike but for their tokens.

TRAINVAL scenes have what v1.0-trainval has: 34,149 samples, 2.6 million records of sensors and as many poses, 1.2
million boxes. There are no sensor files.
"""

import json
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

import cv2
import numpy as np

VERSION, TRAINVAL, LONGER = "v1.0-bench", 850, 149  # so many scenes have 41 samples, the others 40
CAMERAS = ("FRONT", "FRONT_RIGHT", "BACK_RIGHT", "BACK", "BACK_LEFT", "FRONT_LEFT")
RADARS = ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "BACK_LEFT", "BACK_RIGHT")
RATES_HZ = {f"CAM_{name}": 12 for name in CAMERAS} | {"LIDAR_TOP": 20} | {f"RADAR_{name}": 13 for name in RADARS}
SAMPLE_US, INSTANCES, SEEN = 500_000, 76, 18  # between samples; objects a scene, and samples that each is seen in
START_US = 1_531_883_530_000_000
MAP = "maps/bench.png"
Row = dict[str, object]


def write_log_tables(dataroot: Path, scenes: int) -> None:
    """`<dataroot>/<VERSION>` with all that the official devkit wants."""
    folder = dataroot / VERSION
    for made in (folder, dataroot / "maps"):
        made.mkdir(parents=True)
    cv2.imwrite(str(dataroot / MAP), np.zeros((8, 8), np.uint8))
    shared = {
        "category": [{"token": "car", "name": "vehicle.car", "description": ""}],
        "attribute": [{"token": "moving", "name": "vehicle.moving", "description": ""}],
        "visibility": [{"token": "4", "level": "v80-100", "description": ""}],
        "sensor": [
            {"token": name, "channel": name, "modality": {"C": "camera", "L": "lidar", "R": "radar"}[name[0]]}
            for name in RATES_HZ
        ],
        "log": [{"token": "log", "logfile": "", "vehicle": "n", "date_captured": "2026-01-01", "location": "nowhere"}],
        "map": [{"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": MAP}],
    }
    for table, rows in shared.items():
        (folder / f"{table}.json").write_text(json.dumps(rows))
    for table, rows_of in _MADE.items():
        rows = chain.from_iterable(map(rows_of, range(scenes)))
        with open(folder / f"{table}.json", "w") as file:
            file.write("[\n")
            # The official tables have a line for each field and each number.
            lines = (json.dumps(row).replace(", ", ",\n") for row in rows)
            file.writelines(f"{comma}{line}" for comma, line in zip(_commas(), lines, strict=False))
            file.write("\n]")


def _commas() -> Iterator[str]:
    yield ""
    while True:
        yield ",\n"


def _token(kind: str, *numbers: int) -> str:
    """32 hexadecimal digits."""
    return (kind.encode().hex() + "".join(f"{n:08x}" for n in numbers)).ljust(32, "0")


def _samples_us(scene: int) -> range:
    start_us = START_US + scene * 60_000_000
    return range(start_us, start_us + SAMPLE_US * (41 if scene < LONGER else 40), SAMPLE_US)


def _linked(rows: list[Row]) -> list[Row]:
    """With tokens of the rows before and after."""
    for row in rows:
        row |= {"prev": "", "next": ""}
    for before, after in pairwise(rows):
        before["next"], after["prev"] = after["token"], before["token"]
    return rows


def _scene(scene: int) -> list[Row]:
    count = len(_samples_us(scene))
    first, last = _token("s", scene, 0), _token("s", scene, count - 1)
    about = {"token": _token("c", scene), "log_token": "log", "nbr_samples": count, "description": "a drive"}
    return [about | {"name": f"scene-{scene:04d}", "first_sample_token": first, "last_sample_token": last}]


def _sample(scene: int) -> list[Row]:
    times = enumerate(_samples_us(scene))
    return _linked(
        [{"token": _token("s", scene, k), "timestamp": us, "scene_token": _token("c", scene)} for k, us in times]
    )


def _calibrated_sensor(scene: int) -> list[Row]:
    K = [[1266.4, 0.0, 816.3], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]]
    pose = {"translation": [1.5, 0.25, 1.5], "rotation": [0.5, -0.5, 0.5, -0.5]}
    return [
        {"token": _token("k", scene, c), "sensor_token": name, **pose, "camera_intrinsic": K if name[0] == "C" else []}
        for c, name in enumerate(RATES_HZ)
    ]


def _times(scene: int) -> Iterator[tuple[int, int, int, bool]]:
    """Sensor, number, time and whether it is a key frame of every record: of those at or before a sample the last."""
    samples = _samples_us(scene)
    for c, hz in enumerate(RATES_HZ.values()):
        times_us = range(samples[0] - c * 1000, samples[-1] + 1, 1_000_000 // hz)
        keys = set((np.searchsorted(np.array(times_us), np.array(samples), side="right") - 1).tolist())
        yield from ((c, n, us, n in keys) for n, us in enumerate(times_us))


def _sample_data(scene: int) -> list[Row]:
    samples, channels, rows = _samples_us(scene), list(RATES_HZ), [[] for _ in RATES_HZ]
    for c, n, us, is_key in _times(scene):
        camera, channel, token = channels[c][0] == "C", channels[c], _token("d", scene, c, n)
        folder, ending = "samples" if is_key else "sweeps", "jpg" if camera else "pcd"
        rows[c].append(
            {
                "token": token,
                "sample_token": _token("s", scene, min(-(-(us - samples[0]) // SAMPLE_US), len(samples) - 1)),
                "ego_pose_token": token,
                "calibrated_sensor_token": _token("k", scene, c),
                "timestamp": us,
                "fileformat": ending,
                "is_key_frame": is_key,
                "height": 900 if camera else 0,
                "width": 1600 if camera else 0,
                "filename": f"{folder}/{channel}/n-2026-01-01-00-{scene:04d}__{channel}__{us}.{ending}",
            }
        )
    return list(chain.from_iterable(map(_linked, rows)))


def _ego_pose(scene: int) -> list[Row]:
    start_us = _samples_us(scene)[0]
    pose = {"rotation": [0.5720320396729045, -0.0016977771610471074, 0.011798001930183783, -0.8201446642457809]}
    return [
        {"token": _token("d", scene, c, n), "timestamp": us, **pose, "translation": [9e-6 * (us - start_us), 1.25, 0.0]}
        for c, n, us, _ in _times(scene)
    ]


def _instance(scene: int) -> list[Row]:
    ends = ("first_annotation_token", 0), ("last_annotation_token", SEEN - 1)
    return [
        {"token": _token("i", scene, i), "category_token": "car", "nbr_annotations": SEEN}
        | {name: _token("a", scene, i, k) for name, k in ends}
        for i in range(INSTANCES)
    ]


def _sample_annotation(scene: int) -> list[Row]:
    rows: list[Row] = []
    for i in range(INSTANCES):
        first = i % (40 - SEEN)
        about = {"instance_token": _token("i", scene, i), "visibility_token": "4", "attribute_tokens": ["moving"]}
        about |= {"size": [1.9, 4.6, 1.7], "rotation": [0.9831098797903927, 0.0, 0.0, -0.18301629506281616]}
        about |= {"num_lidar_pts": 10, "num_radar_pts": 1}
        rows += _linked(
            [
                {"token": _token("a", scene, i, k), "sample_token": _token("s", scene, first + k), **about}
                | {"translation": [373.256 + k, 1130.419 + i, 0.8]}
                for k in range(SEEN)
            ]
        )
    return rows


_MADE = {
    "scene": _scene,
    "sample": _sample,
    "calibrated_sensor": _calibrated_sensor,
    "ego_pose": _ego_pose,
    "sample_data": _sample_data,
    "instance": _instance,
    "sample_annotation": _sample_annotation,
}
