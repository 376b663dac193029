"""Recorded images seen from elsewhere: exact where nothing changed, right on the ground, others moved, holes told."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from made_up_log import LANE_Y_M, START_X_M, along, made_up_drive, map_png

from sensors.camera import Camera
from sensors.errors import InputError
from sensors.frames import matrix_from_xy_yaw
from sensors.recorded_drive import RecordedDrive, Shots
from sim.log_env import LogEnv
from sim.log_world import actors_of
from sim.novel_view import NovelView
from sim.render_cv import RendererCv
from sim.roads import Surface
from sim.scene import PROP_INSTANCE, Backdrop, Scene, actor_solids, shadows
from sim.solids import Faces, building, placed
from sim.view_quality import figures, held_out, psnr_db, ssim
from sim.views import RECORDED, RENDERED, REPROJECTED, Shown, counted

SIZE = (160, 90)
FRONT = 0


def backdrop() -> Backdrop:
    """A road with stripes across and along it, between houses."""
    y = LANE_Y_M

    def strip(kind, x0, x1, y0, y1):
        return Surface(kind, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float))

    ground = [strip("asphalt", 0, 500, y - 7, y + 7)]
    ground += [strip("marking", x, x + 1.5, y - 7, y + 7) for x in range(100, 400, 6)]
    ground += [strip("marking", 0, 500, y + d, y + d + 0.4) for d in (-3.0, 2.6)]
    where = [(x, y + side * 16.0) for x in range(110, 330, 17) for side in (-1, 1)]
    houses = [placed(building((9.0, 9.0, 6.4), 0.1), *at, 0.0, PROP_INSTANCE + k) for k, at in enumerate(where)]
    return Backdrop(tuple(ground), Faces.join(houses))


class Filmed:
    """A made-up drive at 2 m/s whose images are drawn, so that the truth is known from anywhere."""

    def __init__(self, folder, others: dict):
        drive = made_up_drive(map_png(folder), 2.0, others)
        self.rig = tuple(camera.resize(*SIZE)[1] for camera in drive.cameras)
        self.renderer, self.backdrop = RendererCv(self.rig), backdrop()
        self.actors, self.tracks = actors_of(drive), drive.actors()
        shots = []
        images = [self.truth(T, self.others(k, drive)) for k, T in enumerate(drive.T_world_from_ego)]
        for n, camera in enumerate(drive.cameras):
            paths = tuple(folder / f"{camera.name}{k}.jpg" for k in range(len(images)))
            for path, image in zip(paths, images, strict=True):
                cv2.imwrite(str(path), image[n][..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 98))
            shots.append(Shots(drive.time_us, drive.T_world_from_ego, paths))
        self.drive: RecordedDrive = replace(drive, cameras=self.rig, shots=tuple(shots))

    def others(self, k: int, drive: RecordedDrive | None = None) -> dict[int, tuple[float, float, float]]:
        boxes = (drive or self.drive).boxes[k]
        numbers = {actor.id: number for number, actor in enumerate(self.actors)}
        return {numbers[i]: (*T[:2, 3], 0.0) for i, T in zip(boxes.ids, boxes.T_world_from_box, strict=True)}

    def scene(self, others: dict, time_us: int = 0) -> Scene:
        who, poses = [self.actors[a] for a in others], np.array(list(others.values())).reshape(-1, 3)
        return Scene(self.backdrop, actor_solids(who, poses), shadows(who, poses), time_us=time_us)

    def truth(self, T_world_from_ego: np.ndarray, others: dict) -> np.ndarray:
        return self.renderer.render_rgb(
            [self.scene(others)] * len(self.rig), np.stack([T_world_from_ego] * len(self.rig))
        )

    def seen(self, T: np.ndarray, others: dict, time_us: int) -> tuple[np.ndarray, tuple[Shown, ...]]:
        view = NovelView(self.renderer, self.drive)
        images = view.render_rgb([self.scene(others, time_us)] * len(self.rig), np.stack([T] * len(self.rig)))
        return images, view.shown


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    others = {"ahead": ("vehicle.car", *along(12.0, 2.0)), "parked": ("vehicle.car", *along(16.0, 0.0, LANE_Y_M - 5.0))}
    return Filmed(tmp_path_factory.mktemp("film"), others)


def at_keyframe(filmed: Filmed, k: int, left_m: float = 0.0, yaw: float = 0.0) -> tuple[np.ndarray, dict, int]:
    x = float(filmed.drive.T_world_from_ego[k, 0, 3])
    return matrix_from_xy_yaw(x, LANE_Y_M + left_m, yaw), filmed.others(k), int(filmed.drive.time_us[k])


def test_where_and_when_it_was_taken_an_image_is_the_recorded_one(filmed):
    images, shown = filmed.seen(*at_keyframe(filmed, 5))
    assert {each.how for each in shown} == {RECORDED}
    for n, shots in enumerate(filmed.drive.shots):
        assert np.array_equal(images[n], cv2.imread(str(shots.paths[5]))[..., ::-1])


def test_beside_the_recorded_way_it_is_nearer_to_the_truth_than_any_recorded_image(filmed):
    T, others, now = at_keyframe(filmed, 8, left_m=0.8, yaw=0.03)
    images, shown = filmed.seen(T, others, now)
    truth, there = filmed.truth(T, others), filmed.truth(filmed.drive.T_world_from_ego[8], others)
    assert {each.how for each in shown} == {REPROJECTED}
    made, copied = ([psnr_db(a[n], truth[n]) for n in range(6)] for a in (images, there))
    assert np.mean(made) > np.mean(copied) + 3.0
    assert made[FRONT] > copied[FRONT] + 3.0
    assert max(each.hole_share for each in shown) < 0.15


def test_who_is_elsewhere_is_cut_out_and_put_there(filmed):
    T, others, now = at_keyframe(filmed, 8)
    others = {**others, 0: (others[0][0] - 3.0, others[0][1] + 0.7, 0.0)}
    images, _ = filmed.seen(T, others, now)
    truth, was = filmed.truth(T, others)[FRONT], filmed.truth(T, filmed.others(8))[FRONT]
    changed = np.abs(truth.astype(int) - was).sum(axis=-1) > 60
    left = np.abs(images[FRONT].astype(int) - truth).sum(axis=-1)[changed] > 60
    assert changed.sum() > 300
    assert left.mean() < 0.35


def test_what_no_image_shows_is_drawn_and_counted(filmed):
    T, others, now = at_keyframe(filmed, 8, left_m=1.0, yaw=0.5)
    images, shown = filmed.seen(T, others, now)
    drawn = filmed.truth(T, others)
    assert shown[FRONT].hole_share > 0.1
    same = (images[FRONT] == drawn[FRONT]).all(axis=-1).mean()
    assert same >= shown[FRONT].hole_share - 1e-9
    assert counted([*shown, Shown(RENDERED, 1.0)])[RENDERED] == 1


def test_far_from_every_image_all_is_drawn(filmed):
    T, others, now = at_keyframe(filmed, 8, left_m=40.0)
    images, shown = filmed.seen(T, others, now)
    assert {(each.how, each.hole_share) for each in shown} == {(RENDERED, 1.0)}
    assert np.array_equal(images, filmed.truth(T, others))


def test_held_out_images_are_made_of_their_neighbours(filmed):
    found = held_out(NovelView(filmed.renderer, filmed.drive), 3)
    flat = figures(found)
    assert flat["novel_view.psnr_db.n"] == 3 * 6
    assert {each.shot % 2 for each in found} == {1}
    assert flat["novel_view.psnr_db"] > flat["novel_view.copied_psnr_db"] + 2.0
    assert 0.5 < flat["novel_view.ssim"] < 1.0
    assert 0.0 <= flat["novel_view.hole_share"] < 0.1


def test_a_camera_that_lacks_images_is_held_out_at_the_same_instants(filmed):
    shots = list(filmed.drive.shots)
    kept = [k for k in range(len(shots[2])) if k not in (4, 5, 11)]
    lacking = Shots(shots[2].time_us[kept], shots[2].T_world_from_ego[kept], tuple(shots[2].paths[k] for k in kept))
    shots[2] = lacking
    found = held_out(NovelView(filmed.renderer, replace(filmed.drive, shots=tuple(shots))), 3)
    assert len(found) == 3 * 6
    for each, whole in zip(found[2::6], found[1::6], strict=True):
        late_us = lacking.time_us[each.shot] - filmed.drive.shots[1].time_us[whole.shot]
        assert each.camera == filmed.rig[2].name
        assert abs(late_us) <= 1_500_000
    one = [replace(s, time_us=s.time_us[:1], T_world_from_ego=s.T_world_from_ego[:1], paths=s.paths[:1]) for s in shots]
    assert held_out(NovelView(filmed.renderer, replace(filmed.drive, shots=tuple(one))), 3) == []


def test_likeness_of_an_image_to_itself_and_to_noise():
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    assert (psnr_db(image, image), ssim(image, image)) == (100.0, pytest.approx(1.0))
    assert psnr_db(image, np.clip(image.astype(int) + 10, 0, 255).astype(np.uint8)) == pytest.approx(28.13, abs=0.3)
    assert ssim(image, 255 - image) < 0.0


def test_the_environment_shows_them_and_says_so(filmed):
    env = LogEnv(drive=filmed.drive, image_size=SIZE)
    observation, info = env.reset()
    assert set(info["views"]) <= {RECORDED, REPROJECTED}
    for _ in range(5):
        observation, _, _, _, info = env.step(np.array([0.0, 0.01]))
    assert info["views"] == [REPROJECTED] * 6
    again = LogEnv(drive=filmed.drive, image_size=SIZE)
    again.reset()
    for _ in range(5):
        other, *_ = again.step(np.array([0.0, 0.01]))
    assert np.array_equal(observation["images"], other["images"])
    drawn = LogEnv(drive=filmed.drive, image_size=SIZE, views="rendered")
    assert drawn.reset()[1]["views"] == [RENDERED] * 6


def test_images_through_a_lens_are_refused(filmed):
    bent: tuple[Camera, ...] = tuple(
        replace(camera, distortion="fisheye", coefficients=(0.0, 0.0, 0.0, 0.0)) for camera in filmed.rig
    )
    with pytest.raises(InputError, match="--views rendered"):
        NovelView(RendererCv(bent), filmed.drive)


def test_a_start_before_every_image_uses_what_is_near(filmed):
    assert float(filmed.drive.T_world_from_ego[0, 0, 3]) == START_X_M
    _, shown = filmed.seen(matrix_from_xy_yaw(START_X_M - 3.0, LANE_Y_M, 0.0), {}, int(filmed.drive.time_us[0]))
    assert shown[FRONT].how == REPROJECTED
