"""Pictures for the report and the video: camera mosaics with the plan on the ground, and a small bird's-eye view.

Images are uint8 [H, W, 3] RGB. A tile is at least 320 px wide whatever the policy saw, so that labels stay legible, and
the plan is drawn after the tile was scaled, with the camera scaled alike.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from sensors.camera import Camera
from sensors.clip import Boxes, Clip
from sensors.errors import InputError
from sensors.frames import apply, inverse
from sim.vehicle import VehicleParams

LAYOUT = (
    ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)
TILE_WIDTH_PX = (320, 480)
CAR = VehicleParams()  # the nuScenes car, also where the log does not say
NEAR_M = 0.3  # the ribbon is cut here: nearer ground would fill the image
SPACING_M = 0.5  # of the ribbon's cross-sections
SUBPIXEL_BITS = 4

PLAN, PLAN_EDGE = (38, 166, 255), (235, 247, 255)
PAPER, INK, FAINT = (24, 27, 32), (226, 230, 235), (98, 106, 118)
ROAD, CENTRE, TRACK = (96, 104, 117), (52, 57, 65), (150, 158, 170)
EGO, ACTOR, PERSON = (245, 247, 250), (240, 164, 70), (240, 98, 120)
ALARM = (214, 60, 48)
# part of the name of a map line's kind: colour, thickness in px; the first that fits
LINE_STYLES = {
    "edge": (ROAD, 2),
    "route": ((24, 74, 112), 5),
    "red": (ALARM, 3),
    "amber": ((235, 180, 50), 3),
    "green": ((50, 180, 80), 3),
    "": (tuple(c // 2 + 14 for c in ROAD), 1),
}


def draw_plan(image: np.ndarray, camera: Camera, T_capture_from_now: np.ndarray, xy_in_ego_m: np.ndarray) -> np.ndarray:
    """The image with the plan as a ribbon of the ego's width on the ground z = 0; a copy.

    xy_in_ego_m         float64 [K, 2]  plan in the ego frame of now; the ribbon starts at the ego itself
    T_capture_from_now  float64 [4, 4]  ego frame of now to the ego frame at the camera's capture
    """
    if image.shape != (camera.height, camera.width, 3):
        raise ValueError(f"image {image.shape} is not of {camera.name}: {camera.height} x {camera.width} x 3")
    out = image.copy()
    edges_in_ego_m = _ribbon(xy_in_ego_m, CAR.width_m)
    if edges_in_ego_m is None:
        return out
    edges_in_cam_m = apply(inverse(camera.T_ego_from_cam) @ T_capture_from_now, edges_in_ego_m)  # [2, M, 3]
    if (edges_in_cam_m[..., 2] < NEAR_M).all():  # behind the camera
        return out
    mask = np.zeros(image.shape[:2], np.uint8)
    for k in range(edges_in_cam_m.shape[1] - 1):
        quad = np.stack(
            [edges_in_cam_m[0, k], edges_in_cam_m[0, k + 1], edges_in_cam_m[1, k + 1], edges_in_cam_m[1, k]]
        )
        polygon = _project_clipped(quad, camera)
        if polygon is not None:
            cv2.fillPoly(mask, [polygon], 255, cv2.LINE_AA, SUBPIXEL_BITS)
    weight = (mask / 255.0 * 0.55)[..., None]
    out = np.rint(out * (1 - weight) + np.array(PLAN) * weight).astype(np.uint8)
    for edge in edges_in_cam_m:
        for k in range(len(edge) - 1):
            segment = _project_clipped(edge[k : k + 2], camera)
            if segment is not None:
                cv2.polylines(out, [segment], False, PLAN_EDGE, 1, cv2.LINE_AA, SUBPIXEL_BITS)
    return out


def mosaic(
    images: np.ndarray,
    names: Sequence[str],
    mask: np.ndarray | None = None,
    tile_width: int | None = None,
    notes: Sequence[str] = (),
) -> np.ndarray:
    """Labelled tiles in the order of LAYOUT, uint8 [2 h, 3 w, 3], from images [N, H, W, 3] and their channel names.

    A tile whose bool [N] `mask` is False, or whose camera the rig lacks, is hatched and says so. A name outside LAYOUT
    is an InputError. notes: N words to stand beside the names, or none.
    """
    unknown = [name for name in names if not any(name in row for row in LAYOUT)]
    if unknown:
        raise InputError("mosaic", "names", unknown[0], f"one of {', '.join(sum(LAYOUT, ()))}")
    height, width = tile_size(images.shape[2], images.shape[1], tile_width)
    rows = []
    for row in LAYOUT:
        tiles = []
        for name in row:
            n = list(names).index(name) if name in names else -1
            if n < 0 or (mask is not None and not mask[n]):
                tile = _no_image(height, width, "no camera" if n < 0 else "no image")
            else:
                shrink = images.shape[2] > width
                how = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
                tile = cv2.resize(images[n], (width, height), interpolation=how)
            words = name.removeprefix("CAM_").replace("_", " ").lower()
            tiles.append(_label(tile, f"{words}: {notes[n]}" if notes and n >= 0 else words))
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows, axis=0)


def tile_size(image_width: int, image_height: int, tile_width: int | None = None) -> tuple[int, int]:
    """(height, width) of a mosaic tile: the width asked for, else the image's own within TILE_WIDTH_PX; both even."""
    width = tile_width or int(np.clip(image_width, *TILE_WIDTH_PX))
    width += width % 2
    height = round(width * image_height / image_width)
    return height + height % 2, width


def clip_mosaic(
    clip: Clip, xy_in_ego_m: np.ndarray | None = None, tile_width: int | None = None, notes: Sequence[str] = ()
) -> np.ndarray:
    """Mosaic of the clip's last step, with the plan [K, 2] (ego frame of now) drawn into every image that is there."""
    first = clip.cameras[0]
    height, width = tile_size(first.width, first.height, tile_width)
    tiles = np.zeros((len(clip.cameras), height, width, 3), np.uint8)
    for n, camera in enumerate(clip.cameras):
        if not clip.image_mask[-1, n]:
            continue
        tiles[n], scaled = camera.resize(width, height, clip.images[-1, n])
        if xy_in_ego_m is not None:
            T_capture_from_now = inverse(clip.T_world_from_ego[-1, n]) @ clip.T_world_from_ego_now
            tiles[n] = draw_plan(tiles[n], scaled, T_capture_from_now, xy_in_ego_m)
    return mosaic(tiles, [camera.name for camera in clip.cameras], clip.image_mask[-1], width, notes)


def bird_eye_image(
    T_world_from_ego: np.ndarray,
    lines: Sequence[tuple[str, np.ndarray]] = (),
    boxes: Boxes | None = None,
    xy_in_ego_m: np.ndarray | None = None,
    track_in_world_m: np.ndarray | None = None,
    size_px: tuple[int, int] = (384, 384),
    ahead_m: float = 45.0,
    behind_m: float = 15.0,
) -> np.ndarray:
    """Raster uint8 [h, w, 3] seen from above, ego's x axis up, of `size_px` (h, w).

    In the world: lines (kind of LINE_STYLES, xy [V, 2]), boxes, the track so far [M, 2]. In ego: the plan [K, 2].
    """
    height, width = size_px
    scale = height / (ahead_m + behind_m)  # px per metre
    image = np.full((height, width, 3), PAPER, np.uint8)
    T_ego_from_world = inverse(T_world_from_ego)

    def pixels(xy_in_ego: np.ndarray) -> np.ndarray:
        uv = np.stack([width / 2 - xy_in_ego[:, 1] * scale, (ahead_m - xy_in_ego[:, 0]) * scale], axis=1)
        return _fixed_point(uv)

    def from_world(xy: np.ndarray) -> np.ndarray:
        return apply(T_ego_from_world, np.column_stack([xy, np.full(len(xy), T_world_from_ego[2, 3])]))[:, :2]

    def polyline(xy_in_ego: np.ndarray, colour: tuple[int, int, int], thickness: int) -> None:
        cv2.polylines(image, [pixels(xy_in_ego)], False, colour, thickness, cv2.LINE_AA, SUBPIXEL_BITS)

    for kind, xy in lines:
        polyline(from_world(xy), *next(style for name, style in LINE_STYLES.items() if name in kind))
    if track_in_world_m is not None and len(track_in_world_m):
        polyline(from_world(track_in_world_m), TRACK, 1)
    for k in range(len(boxes) if boxes is not None else 0):
        colour = PERSON if boxes.categories[k].startswith("human") else ACTOR
        corners = _rectangle(boxes.size_lwh_m[k, 0], boxes.size_lwh_m[k, 1])
        in_world = apply(boxes.T_world_from_box[k], np.column_stack([corners, np.zeros(4)]))[:, :2]
        cv2.fillPoly(image, [pixels(from_world(in_world))], colour, cv2.LINE_AA, SUBPIXEL_BITS)
    ego = _rectangle(CAR.length_m, CAR.width_m)
    ego[:, 0] += CAR.centre_m
    cv2.fillPoly(image, [pixels(ego)], EGO, cv2.LINE_AA, SUBPIXEL_BITS)
    if xy_in_ego_m is not None and len(xy_in_ego_m):
        polyline(np.concatenate([np.zeros((1, 2)), xy_in_ego_m]), PLAN, 3)
    return image


def beside(mosaic_image: np.ndarray, bird_eye: np.ndarray, caption: str = "") -> np.ndarray:
    """One frame for the video: mosaic on the left, bird's-eye view scaled to its height on the right, caption in it."""
    height = mosaic_image.shape[0]
    width = round(bird_eye.shape[1] * height / bird_eye.shape[0])
    right = cv2.resize(bird_eye, (width + width % 2, height), interpolation=cv2.INTER_AREA)
    return np.concatenate([mosaic_image, _label(right, caption) if caption else right], axis=1)


def captioned(image: np.ndarray, words: str, alarm: bool = False) -> np.ndarray:
    """A copy with words in the upper left corner; in a frame of the colour of alarm once something went wrong."""
    out = _label(image, words, ALARM if alarm else PAPER)
    if alarm:
        cv2.rectangle(out, (0, 0), (out.shape[1] - 1, out.shape[0] - 1), ALARM, 6)
    return out


def _ribbon(xy_in_ego_m: np.ndarray, width_m: float) -> np.ndarray | None:
    """Left and right edge [2, M, 3] of the path from the ego through xy [K, 2], None where it is shorter than 1 cm."""
    path = np.concatenate([np.zeros((1, 2)), np.asarray(xy_in_ego_m, np.float64)])
    if not np.isfinite(path).all():
        raise InputError("draw_plan", "xy_in_ego_m", "NaN or infinity", "finite positions")
    lengths = np.hypot(*np.diff(path, axis=0).T)
    path, lengths = path[np.concatenate([[True], lengths > 1e-9])], lengths[lengths > 1e-9]
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    if along[-1] < 0.01:
        return None
    at = np.linspace(0, along[-1], int(np.ceil(along[-1] / SPACING_M)) + 1)
    centre = np.stack([np.interp(at, along, path[:, c]) for c in (0, 1)], axis=1)
    tangent = np.gradient(centre, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    left = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) * width_m / 2
    return np.stack([np.column_stack([centre + side * left, np.zeros(len(at))]) for side in (1, -1)])


def _project_clipped(points_in_cam_m: np.ndarray, camera: Camera) -> np.ndarray | None:
    """Fixed-point pixels int32 [M, 2] of a polygon or segment cut at z = NEAR_M; None where nothing can be drawn.

    Sutherland and Hodgman 1974 against one plane; a segment is the polygon there and back.
    """
    kept = []
    for a, b in zip(points_in_cam_m, np.roll(points_in_cam_m, -1, axis=0), strict=True):
        if a[2] >= NEAR_M:
            kept.append(a)
        if (a[2] >= NEAR_M) != (b[2] >= NEAR_M):
            kept.append(a + (b - a) * (NEAR_M - a[2]) / (b[2] - a[2]))
    if len(kept) < 2:
        return None
    uv, valid = camera.project(np.array(kept))
    return _fixed_point(uv) if valid.all() else None


def _fixed_point(uv: np.ndarray) -> np.ndarray:
    """Pixels [M, 2] as OpenCV's fixed-point int32, kept where its arithmetic does not overflow."""
    return np.rint(np.clip(uv, -1e5, 1e5) * (1 << SUBPIXEL_BITS)).astype(np.int32)


def _rectangle(length: float, width: float) -> np.ndarray:
    return np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * (length / 2, width / 2)


def _no_image(height: int, width: int, words: str) -> np.ndarray:
    """A tile with diagonal hatching and the reason in its middle: never mistaken for a dark image."""
    v, u = np.mgrid[:height, :width]
    tile = np.where(((u + v) % 16 < 2)[..., None], np.uint8(FAINT), np.uint8(PAPER))
    (w, h), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 1)
    x, y = (width - w) // 2, (height + h) // 2
    cv2.rectangle(tile, (x - 8, y - h - 8), (x + w + 8, y + 8), PAPER, -1)
    cv2.putText(tile, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.6, INK, 1, cv2.LINE_AA)
    return tile


def _label(tile: np.ndarray, words: str, paper: tuple[int, int, int] = PAPER) -> np.ndarray:
    """A copy with words on a strip in the upper left corner and a thin frame."""
    tile = tile.copy()
    (w, h), base = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)
    cv2.rectangle(tile, (0, 0), (w + 11, h + base + 6), paper, -1)
    cv2.putText(tile, words, (6, h + 5), cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
    cv2.rectangle(tile, (0, 0), (tile.shape[1] - 1, tile.shape[0] - 1), PAPER, 1)
    return tile
