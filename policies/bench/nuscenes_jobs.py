"""Measurements of nuScenes logs, each alone on a core (`policies.bench.pinned`); run as a program."""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from policies.bench.log_tables import VERSION
from policies.bench.pinned import serve
from sensors.camera import Camera
from sensors.nuscenes_source import NuscenesSource, picture, reduction

RECORDED, WANTED, CAMERAS = (1600, 900), (400, 225), 6
WALK = 1000  # keyframes drawn at random, with their boxes and what follows them
JPEG_QUALITY = 80  # quantised as nuScenes is; a picture of `detailed` is a quarter larger


def detailed(width: int, height: int, seed: int = 0) -> np.ndarray:
    """RGB [height, width, 3] with as much detail at all scales as photographs have: spectra fall with the frequency."""
    rng, image = np.random.default_rng(seed), np.zeros((height, width, 3))
    for octave in (1, 2, 4, 8, 16, 32, 64):
        noise = rng.normal(scale=3 * octave**0.5, size=(height // octave + 1, width // octave + 1, 3))
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(image + 128, 0, 255).astype(np.uint8)


def decode(ready: Callable[[], None], rounds: int) -> dict[str, float]:
    """Least seconds for the six images of an instant at WANTED, each way in turn.

    ours    `sensors.nuscenes_source.picture`
    pillow  Pillow's decoder, then its bilinear resize
    scaled  libjpeg's scaled decoding alone, as OpenCV calls it: neither checked nor turned into RGB
    """
    cv2.setNumThreads(1)
    settings = (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
    shown = detailed(*RECORDED)
    shifted = (np.roll(shown, k * RECORDED[0] // CAMERAS, axis=1) for k in range(CAMERAS))
    files = [cv2.imencode(".jpg", image, settings)[1].tobytes() for image in shifted]
    K = np.array([[1250.0, 0, RECORDED[0] / 2], [0, 1250.0, RECORDED[1] / 2], [0, 0, 1]])
    camera = Camera("CAM_FRONT", *RECORDED, K, np.eye(4), "none", ())
    scaled = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}[reduction(*RECORDED, *WANTED)]
    ways = {
        "ours": lambda data: picture(data, "here", camera, WANTED),
        "pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).resize(WANTED, Image.Resampling.BILINEAR)),
        "scaled": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), scaled),
    }
    took = {name: [] for name in ways}
    ready()
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            for data in files:
                way(data)
            took[name].append(time.perf_counter() - begun)
    return {name: min(seconds) for name, seconds in took.items()} | {"file_bytes": float(np.mean([*map(len, files)]))}


def load_by_devkit(ready: Callable[[], None], dataroot: str) -> dict[str, float]:
    """Seconds, and growth of resident memory, of the official devkit's one load."""
    from nuscenes.nuscenes import NuScenes  # one of the extra [dev]

    ready()
    before, begun = resident_mb(), time.perf_counter()
    devkit = NuScenes(VERSION, dataroot, verbose=False)
    return {"seconds": time.perf_counter() - begun, "mb": resident_mb() - before, "samples": len(devkit.sample)}


def open_log(ready: Callable[[], None], dataroot: str, cache: str) -> dict[str, float]:
    """Seconds to open all scenes, and growth of resident memory by that and by a walk through `WALK` keyframes."""
    os.environ["XDG_CACHE_HOME"] = cache
    ready()
    before, begun = resident_mb(), time.perf_counter()
    source = NuscenesSource(dataroot, VERSION)
    seconds = time.perf_counter() - begun
    frames = [(scene, frame) for scene in source.scenes for frame in range(len(source.frame_times_us(scene)))]
    for k in np.random.default_rng(0).integers(0, len(frames), WALK):
        source.future(*frames[k])
    return {"seconds": seconds, "mb": resident_mb() - before, "samples": len(frames)}


def resident_mb() -> float:
    """Memory of this process, what it has mapped and looked at included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    serve({"decode": decode, "load_by_devkit": load_by_devkit, "open_log": open_log})
