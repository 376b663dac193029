"""How good re-projected images are: every second recorded one is held out and made of its neighbours.

psnr_db     10 log10(255^2 / mean squared error), mean over images
ssim        structural similarity of brightness (Wang et al. 2004; Gaussian window of 1.5 px), mean over images
hole_share  of the pixels, that no neighbour shows
copied_psnr_db   psnr_db of the neighbour as it is, which anything worth its name is above
"""

from dataclasses import dataclass

import cv2
import numpy as np

from sim.log_scene import log_backdrop
from sim.log_surroundings import LogSurroundings
from sim.log_world import actors_of
from sim.novel_view import NovelView
from sim.scene import Backdrop, Scene, actor_solids, shadows
from sim.vehicle import VehicleParams
from sim.world import Actor

LEAST_MOVED_M = 0.2  # between the neighbours: of a car that stands, an image is its neighbour
BLUR = (11, 11), 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@dataclass(frozen=True)
class HeldOut:
    """One image that was held out: camera, its number, what was made of its neighbours, and the truth."""

    camera: str
    shot: int
    made: np.ndarray
    truth: np.ndarray
    hole_share: float
    copied: np.ndarray


def held_out(view: NovelView, most: int) -> list[HeldOut]:
    """Images of up to `most` instants of a recorded drive, evenly over where the car moved, of all cameras; none where
    a camera has too few to be held out."""
    drive = view.drive
    backdrop, actors = log_backdrop(LogSurroundings.of(drive, VehicleParams())), actors_of(drive)
    odd = [np.arange(1, len(shots) - 1, 2) for shots in drive.shots]
    if not all(map(len, odd)):
        return []
    most_shots = int(np.argmax([len(shots) for shots in drive.shots]))
    moving = [s for s in odd[most_shots] if _moved_m(view, most_shots, s) > LEAST_MOVED_M]
    spread = np.unique(np.linspace(0, len(moving) - 1, min(most, len(moving))).round().astype(int))
    found = []
    for s in (moving[k] for k in spread):
        # A camera may lack images that others have, so each has its own number of the same instant.
        at_us = drive.shots[most_shots].time_us[s]
        chosen = [
            int(mine[np.abs(shots.time_us[mine] - at_us).argmin()])
            for mine, shots in zip(odd, drive.shots, strict=True)
        ]
        scenes = [_scene(view, backdrop, actors, n, k) for n, k in enumerate(chosen)]
        poses = np.stack([shots.T_world_from_ego[k] for k, shots in zip(chosen, drive.shots, strict=True)])
        drawn = view.renderer.render_rgb(scenes, poses)
        for n, (k, camera) in enumerate(zip(chosen, view.cameras, strict=True)):
            without = frozenset(range(1, len(drive.shots[n]), 2))
            made, shown = view.view(n, poses[n] @ camera.T_ego_from_cam, scenes[n], drawn[n], without)
            truth, copied = view.recorded(n, k), view.recorded(n, k - 1)
            found.append(HeldOut(camera.name, k, made, truth, shown.hole_share, copied))
    return found


def _scene(view: NovelView, backdrop: Backdrop, actors: tuple[Actor, ...], n: int, k: int) -> Scene:
    """What stands and moves around the car at shot k of camera n."""
    poses, there = view.actors_at(n, k)
    seen, poses = [actors[a] for a in np.flatnonzero(there)], poses[there]
    time_us = int(view.drive.shots[n].time_us[k])
    return Scene(backdrop, actor_solids(seen, poses), shadows(seen, poses), time_us=time_us)


def figures(found: list[HeldOut]) -> dict[str, float]:
    """The module's figures, flat, and n: how many images; nothing else of none."""
    flat: dict[str, float] = {"novel_view.psnr_db.n": len(found)}
    if found:
        flat["novel_view.psnr_db"] = float(np.mean([psnr_db(each.made, each.truth) for each in found]))
        flat["novel_view.copied_psnr_db"] = float(np.mean([psnr_db(each.copied, each.truth) for each in found]))
        flat["novel_view.ssim"] = float(np.mean([ssim(each.made, each.truth) for each in found]))
        flat["novel_view.hole_share"] = float(np.mean([each.hole_share for each in found]))
    return flat


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """Of two images uint8; those that are equal have 100 dB."""
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return min(10 * float(np.log10(255**2 / max(error, 1e-12))), 100.0)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Of two images uint8 [H, W, 3]."""
    x, y = (cv2.cvtColor(each, cv2.COLOR_RGB2GRAY).astype(np.float32) for each in (a, b))
    mx, my = cv2.GaussianBlur(x, *BLUR), cv2.GaussianBlur(y, *BLUR)
    vx, vy = cv2.GaussianBlur(x * x, *BLUR) - mx * mx, cv2.GaussianBlur(y * y, *BLUR) - my * my
    both = cv2.GaussianBlur(x * y, *BLUR) - mx * my
    return float(np.mean((2 * mx * my + C1) * (2 * both + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2))))


def _moved_m(view: NovelView, n: int, s: int) -> float:
    """How far the car went between the neighbours of a shot of camera n."""
    poses = view.drive.shots[n].T_world_from_ego
    return float(np.linalg.norm(poses[s + 1, :3, 3] - poses[s - 1, :3, 3]))
