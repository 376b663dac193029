"""Measurements of nuScenes logs, each alone on a core (`policies.bench.pinned`); run as a program."""

import io
import time
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from policies.bench.pinned import serve
from sensors.camera import Camera
from sensors.nuscenes_source import picture, reduction

RECORDED, WANTED, CAMERAS = (1600, 900), (400, 225), 6
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
    files = [cv2.imencode(".jpg", detailed(*RECORDED, seed), settings)[1].tobytes() for seed in range(CAMERAS)]
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


if __name__ == "__main__":
    serve({"decode": decode})
