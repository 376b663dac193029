"""How good the re-projected images of a closed-loop replay are: figures and pictures of its run."""

from collections.abc import Sequence

import cv2
import numpy as np

from policies.runs import Run
from sensors.errors import InputError
from sim.log_env import LogScenario
from sim.novel_view import NovelView
from sim.render_gl import get_renderer
from sim.view_quality import HeldOut, figures, held_out

MOST_SCENES, INSTANTS = 5, 8
FRONT = "CAM_FRONT"
QUALITY = 90


def measure_views(
    run: Run, policy: str, starts: Sequence[LogScenario], image_size: tuple[int, int], renderer: str
) -> list[str]:
    """Hold recorded images of the first scenes out, make them of their neighbours, and put what came of it into the
    run: figures beside those of this policy, and for each scene the front camera, made above recorded.

    A broken image costs its scene's part of that, not the run: what was wrong is returned, a line each.
    """
    found: list[HeldOut] = []
    problems: list[str] = []
    pictures = run.summary.setdefault("pictures", [])
    for start in [start for start in starts if start.drive.has_images and start.views == "auto"][:MOST_SCENES]:
        rig = tuple(camera.resize(*image_size)[1] for camera in start.drive.cameras)
        try:
            of_scene = held_out(NovelView(get_renderer(renderer, rig), start.drive), INSTANTS)
        except InputError as error:
            problems.append(f"{start.name}: re-projected images not measured: {error}")
            continue
        found += of_scene
        front = [each for each in of_scene if each.camera == FRONT]
        if front:
            path = f"media/{start.name}-held-out.jpg"
            _write(run, path, front[len(front) // 2])
            words = f"{start.name}, front: made of the images before and after; below it the recorded one"
            pictures.append({"path": path, "words": words})
    if found:
        run.summary.setdefault("pairs", {}).setdefault(policy, {}).update(figures(found))
    return problems


def _write(run: Run, path: str, held: HeldOut) -> None:
    both = np.concatenate([held.made, held.truth])
    cv2.imwrite(str(run.path / path), cv2.cvtColor(both, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
