from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from sensors.camera import Camera
from sensors.clip import Boxes, Clip
from sensors.errors import InputError
from sensors.frames import matrix, matrix_from_xy_yaw
from sim.report.pictures import (
    ACTOR,
    EGO,
    LAYOUT,
    NEAR_M,
    PAPER,
    PLAN,
    beside,
    bird_eye_image,
    clip_mosaic,
    draw_plan,
    mosaic,
    tile_size,
)
from sim.report.video import VideoWriter

NAMES = tuple(name for row in LAYOUT for name in row)
HEADING_DEG = {"FRONT": 0, "FRONT_LEFT": 55, "FRONT_RIGHT": -55, "BACK": 180, "BACK_LEFT": 110, "BACK_RIGHT": -110}


def camera(name: str = "CAM_FRONT", width: int = 320, height: int = 192, **kwargs) -> Camera:
    """1.6 m above the rear axle, looking along its heading."""
    yaw = np.deg2rad(HEADING_DEG[name.removeprefix("CAM_")])
    optical = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # columns: right, down, forward in ego axes
    R = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]) @ optical
    K = np.array([[0.8 * width, 0, width / 2 - 0.5], [0, 0.8 * width, height / 2 - 0.5], [0, 0, 1]])
    return Camera(name, width, height, K, matrix(np.array([1.0, 0, 1.6]), R), **kwargs).validate()


def pixel_of(cam: Camera, in_ego: tuple[float, float, float]) -> tuple[int, int]:
    in_cam = np.linalg.inv(cam.T_ego_from_cam) @ (*in_ego, 1)
    uv, valid = cam.project(in_cam[:3])
    assert valid
    return round(float(uv[1])), round(float(uv[0]))


def grey(cam: Camera) -> np.ndarray:
    return np.full((cam.height, cam.width, 3), 128, np.uint8)


def sample_clip(width: int = 160, height: int = 96, lag_m: float = 0.0) -> Clip:
    cameras = tuple(camera(name, width, height) for name in NAMES)
    images = np.stack([np.full((height, width, 3), 20 * (n + 1), np.uint8) for n in range(6)])
    poses = np.broadcast_to(matrix_from_xy_yaw(-lag_m, 0, 0), (1, 6, 4, 4)).copy()
    mask = np.ones((1, 6), bool)
    mask[0, 4] = False  # CAM_BACK
    images[4] = 0
    return Clip(0, np.eye(4), cameras, images[None], mask, np.zeros((1, 6), np.int64), poses).validate()


# Pictures ----------------------------------------------------------------------------------------

AHEAD = np.stack([np.linspace(1, 30, 30), np.zeros(30)], axis=1)


@pytest.mark.parametrize(
    "distortion",
    [{}, {"distortion": "fisheye", "coefficients": (-0.02, 0.0, 0.0, 0.0)}],
    ids=["pinhole", "fisheye"],
)
def test_plan_lies_on_the_ground_where_the_camera_sees_it(distortion: dict) -> None:
    cam = camera(**distortion)
    out = draw_plan(grey(cam), cam, np.eye(4), AHEAD)
    for x, y in ((8, 0), (8, 0.7), (8, -0.7), (20, 0)):
        assert (out[pixel_of(cam, (x, y, 0))] != 128).any(), (x, y)
    for x, y in ((8, 1.4), (8, -1.4), (35, 0)):
        assert (out[pixel_of(cam, (x, y, 0))] == 128).all(), (x, y)
    assert (out[pixel_of(cam, (25, 0, 2.0))] == 128).all()  # above the road
    assert (out[pixel_of(cam, (8, 0, 0))] > (0, 120, 180)).all()  # tinted towards the colour of the plan


def test_plan_bends_to_the_left_for_a_left_turn() -> None:
    cam, angle = camera(), np.linspace(0.05, 1.2, 24)
    out = draw_plan(grey(cam), cam, np.eye(4), 15 * np.stack([np.sin(angle), 1 - np.cos(angle)], axis=1))
    u = np.flatnonzero((out != 128).any(axis=(0, 2)))
    assert cam.width / 2 - u.min() > 2 * (u.max() - cam.width / 2)


def test_plan_is_drawn_from_where_the_camera_was() -> None:
    """At the capture the ego stood 5 m to the right of where it is now, so the plan lies 5 m to its left."""
    cam, sideways = camera(), matrix_from_xy_yaw(0.0, 5.0, 0.0)
    out = draw_plan(grey(cam), cam, sideways, AHEAD)
    assert (out[pixel_of(cam, (12, 5, 0))] != 128).any()
    assert (out[pixel_of(cam, (12, 0, 0))] == 128).all()


def test_plan_ahead_is_not_seen_behind_and_input_is_kept() -> None:
    cam = camera("CAM_BACK")
    image = grey(cam)
    assert np.array_equal(draw_plan(image, cam, np.eye(4), AHEAD), image)
    front = camera()
    image = grey(front)
    draw_plan(image, front, np.eye(4), AHEAD)
    assert (image == 128).all()


def test_plan_is_cut_at_the_near_plane() -> None:
    """A plan that starts behind the camera and passes under it reaches the lower edge, not the upper one."""
    cam = camera()
    out = draw_plan(grey(cam), cam, np.eye(4), np.concatenate([[[-10.0, 0.2]], AHEAD]))
    drawn = (out != 128).any(axis=2)
    assert drawn[-1].any()
    assert not drawn[: cam.height // 2 - 2].any()
    low = replace(cam, K=np.array([[80.0, 0, 160], [0, 80, 96], [0, 0, 1]]), T_ego_from_cam=cam.T_ego_from_cam.copy())
    low.T_ego_from_cam[2, 3] = 0.3  # sees the ground from 0.25 m on, so the near plane is in the image
    rows = np.flatnonzero((draw_plan(grey(low), low, np.eye(4), AHEAD) != 128).any(axis=(1, 2)))
    assert rows.max() == pytest.approx(96 + 80 * 0.3 / NEAR_M, abs=1)


@pytest.mark.parametrize("plan", [np.zeros((0, 2)), np.zeros((6, 2)), np.full((6, 2), 1e-4)])
def test_plan_of_a_standing_car_draws_nothing(plan: np.ndarray) -> None:
    cam = camera()
    assert (draw_plan(grey(cam), cam, np.eye(4), plan) == 128).all()


def test_draw_plan_rejects_nan_and_another_size() -> None:
    cam = camera()
    with pytest.raises(InputError, match="NaN"):
        draw_plan(grey(cam), cam, np.eye(4), np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="is not of CAM_FRONT"):
        draw_plan(grey(cam)[:-1], cam, np.eye(4), AHEAD)


def test_mosaic_puts_each_camera_in_its_place_whatever_the_order() -> None:
    order = np.array([3, 0, 5, 1, 4, 2])
    images = np.stack([np.full((96, 160, 3), 30 * (n + 1), np.uint8) for n in order])
    picture = mosaic(images, [NAMES[n] for n in order])
    height, width = tile_size(160, 96)
    assert picture.shape == (2 * height, 3 * width, 3)
    for n in range(6):
        row, column = divmod(n, 3)
        centre = picture[row * height + height // 2, column * width + width // 2]
        assert (centre == 30 * (n + 1)).all(), NAMES[n]


def test_masked_and_absent_cameras_are_hatched() -> None:
    images = np.full((5, 96, 160, 3), 200, np.uint8)
    picture = mosaic(images, NAMES[:5], np.array([True, True, False, True, True]))
    height, width = tile_size(160, 96)
    whole, masked = picture[:height, :width], picture[:height, 2 * width :]
    absent = picture[height:, 2 * width :]
    assert (whole[height // 2 :] == 200).mean() > 0.95
    for tile in (masked, absent):
        assert not (tile == 200).all(axis=2).any()
        assert len(np.unique(tile[height // 2 :].reshape(-1, 3), axis=0)) > 1
    assert not np.array_equal(masked[30:], absent[30:])  # "no image" is not "no camera"


def test_mosaic_rejects_an_unknown_camera() -> None:
    with pytest.raises(InputError, match="CAM_TOP"):
        mosaic(np.zeros((1, 96, 160, 3), np.uint8), ["CAM_TOP"])


@pytest.mark.parametrize(
    ("size", "tile"),
    [((160, 96), (192, 320)), ((1600, 900), (270, 480)), ((400, 225), (226, 400)), ((321, 7), (8, 322))],
)
def test_tiles_are_legible_and_even(size: tuple[int, int], tile: tuple[int, int]) -> None:
    assert tile_size(*size) == tile


@pytest.mark.parametrize("size", [(160, 96), (1600, 900)])
def test_clip_mosaic_draws_the_plan_in_the_front_tile(size: tuple[int, int]) -> None:
    clip = sample_clip(*size)
    without, picture = clip_mosaic(clip), clip_mosaic(clip, AHEAD)
    height, width = tile_size(*size)
    changed = (without != picture).any(axis=2)
    assert changed[:height, width : 2 * width].mean() > 0.02
    assert not changed[height:, width : 2 * width].any()  # CAM_BACK is masked: nothing is drawn where nothing was seen
    assert not np.array_equal(picture, clip_mosaic(sample_clip(*size, lag_m=2.0), AHEAD))


def test_bird_eye_image_is_to_scale() -> None:
    T_world_from_ego = matrix_from_xy_yaw(100.0, 50.0, np.pi / 2)  # ego x is world y
    boxes = Boxes(
        ("a",),
        ("vehicle.car",),
        matrix_from_xy_yaw([90.0], [70.0], [1.0]),
        np.array([[4.5, 1.9, 1.6]]),
        np.zeros((1, 2)),
    )
    image = bird_eye_image(T_world_from_ego, [], boxes, np.array([[20.0, -8.0]]), size_px=(300, 300))
    pixel_per_m = 300 / 60

    def at(x_ahead: float, y_left: float) -> tuple[int, ...]:
        return tuple(image[int((45 - x_ahead) * pixel_per_m), int(150 - y_left * pixel_per_m)])

    assert at(20, 10) == ACTOR  # 20 m ahead, 10 m to the left
    assert at(10, -4) == PLAN
    assert at(2.5, 0.5) == EGO
    assert at(20, -20) == PAPER


def test_beside_is_one_even_frame() -> None:
    frame = beside(clip_mosaic(sample_clip()), bird_eye_image(np.eye(4)), "t 1.0 s")
    assert frame.shape == (384, 960 + 384, 3)


# Video -------------------------------------------------------------------------------------------


def write_video(path: Path, frames: int = 12, size: tuple[int, int] = (64, 96)) -> None:
    with VideoWriter(path, 10) as video:
        for k in range(frames):
            image = np.zeros((*size, 3), np.uint8)
            image[:, : 8 * k] = (200, 40, 40)
            video.write(image)


def test_video_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, size=(63, 95))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 10)
    assert len(frames) == 12
    assert frames[0].shape == (64, 96, 3)
    assert np.abs(frames[6][32, 20].astype(int) - (200, 40, 40)).max() < 25
    assert frames[6][32, 80].max() < 25
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_video_of_the_same_frames_is_the_same(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    write_video(tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_video_leaves_nothing_when_the_drive_fails_or_has_no_frame(tmp_path: Path) -> None:
    def fail() -> None:
        with VideoWriter(tmp_path / "a.mp4", 10) as video:
            video.write(np.zeros((32, 32, 3), np.uint8))
            raise RuntimeError("policy failed")

    with pytest.raises(RuntimeError, match="policy failed"):
        fail()
    with VideoWriter(tmp_path / "b.mp4", 10) as video:
        assert video.frames == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("shape", "dtype"), [((32, 34, 3), np.uint8), ((32, 32), np.uint8), ((32, 32, 4), np.uint8), ((32, 32, 3), float)]
)
def test_video_rejects_another_frame(tmp_path: Path, shape: tuple[int, ...], dtype: type) -> None:
    video = VideoWriter(tmp_path / "a.mp4", 10)

    def write() -> None:
        with video:
            video.write(np.zeros((32, 32, 3), np.uint8))
            video.write(np.zeros(shape, dtype))

    with pytest.raises(ValueError, match="video frame is"):
        write()
    assert list(tmp_path.iterdir()) == []
