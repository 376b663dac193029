"""A plain folder says the same as the nuScenes dataroot that it was made of; each kind of bad content is refused."""

import json
import math
import shutil

import numpy as np
import pytest
from made_up_drive import HEIGHT, VERSION, WIDTH, record

from sensors.errors import BrokenFile, InputError
from sensors.folder_source import RECORDING, FolderSource
from sensors.nuscenes_source import CAMERAS, NuscenesSource
from sensors.source import check_source

SCENES = ("scene-0001", "scene-0002")


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded")
    for name in SCENES:
        record(path, name)
    return path


@pytest.fixture(scope="module")
def made(dataroot, tmp_path_factory):
    """The same as plain folders, one a scene."""
    folder, source = tmp_path_factory.mktemp("plain"), NuscenesSource(dataroot, VERSION, imu_window_us=10_000_000)
    for name in SCENES:
        (folder / name / "images").mkdir(parents=True)
        (folder / name / RECORDING).write_text(json.dumps(content(source, name, folder / name)))
    return folder


@pytest.fixture
def plain(made, tmp_path):
    return shutil.copytree(made, tmp_path / "plain")


def content(source, name, folder):
    scene, frames = source.scene(name), []
    for k, keyframe in enumerate(scene.keyframes):
        images, boxes = {}, keyframe.boxes
        for channel, capture in keyframe.captures.items():
            file = f"images/{channel}-{k}.jpg"
            shutil.copy(source.index.path(capture.filename), folder / file)
            images[channel] = {"file": file, "time_us": capture.time_us}
        vehicle = vars(source.vehicle(name, keyframe.now_us))
        rows = [
            {"id": b, "category": c, "T_world_from_box": T.tolist(), "size_lwh_m": s.tolist()}
            for b, c, T, s in zip(boxes.ids, boxes.categories, boxes.T_world_from_box, boxes.size_lwh_m, strict=True)
        ]
        frame = {"time_us": keyframe.now_us, "T_world_from_ego": keyframe.T_world_from_ego_now.tolist()}
        frames.append(
            frame | {"images": images, "boxes": rows} | {k: v for k, v in vehicle.items() if math.isfinite(v)}
        )
    cameras = {
        c.name: {"width": c.width, "height": c.height, "K": c.K.tolist(), "T_ego_from_cam": c.T_ego_from_cam.tolist()}
        for c in source.clip(name, 0).cameras
    }
    imu = source.imu(name, frames[-1]["time_us"])
    samples = {"time_us": imu.time_us, "accel_mps2": imu.accel_mps2, "gyro_radps": imu.gyro_radps}
    imu = {name: values.tolist() for name, values in samples.items()}
    return {"location": scene.location, "cameras": cameras, "frames": frames[::-1], "imu": imu}  # in any order


def edit(folder, change):
    path = folder / SCENES[0] / RECORDING
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("threads", [0, 2])
def test_a_folder_passes_the_checker_and_says_what_the_dataroot_does(dataroot, made, threads):
    source, other = FolderSource(made, threads=threads), NuscenesSource(dataroot, VERSION, threads=threads)
    assert check_source(source) == 6
    assert source.scenes == other.scenes == SCENES
    for scene in SCENES:
        assert source.scene(scene).location == other.scene(scene).location
        assert source.images(scene) == other.images(scene) == (18, 18)
        np.testing.assert_array_equal(source.frame_times_us(scene), other.frame_times_us(scene))
        for frame in range(3):
            clip, theirs = source.clip(scene, frame), other.clip(scene, frame)
            for name in ("images", "image_mask", "time_us", "T_world_from_ego_now"):
                np.testing.assert_array_equal(getattr(clip, name), getattr(theirs, name), err_msg=name)
            # Poses at captures are interpolated, a chord of the curve; before the first frame they are its own.
            known = clip.time_us >= source.frame_times_us(scene)[0]
            np.testing.assert_allclose(clip.T_world_from_ego[known], theirs.T_world_from_ego[known], rtol=0, atol=0.05)
            for T in clip.T_world_from_ego[~known]:
                np.testing.assert_array_equal(T, source.scene(scene).T_world_from_ego_now[0])
            np.testing.assert_equal(vars(clip.vehicle), vars(theirs.vehicle))
            np.testing.assert_array_equal(clip.imu.accel_mps2, theirs.imu.accel_mps2)
            ours, boxes = source.future(scene, frame).boxes_now, other.future(scene, frame).boxes_now
            assert (len(ours), ours.categories) == (len(boxes), boxes.categories)
            np.testing.assert_allclose(ours.T_world_from_box, boxes.T_world_from_box, rtol=0, atol=1e-9)
            np.testing.assert_allclose(ours.velocity_in_world_mps, boxes.velocity_in_world_mps, atol=1e-6)


def test_one_recording_in_the_folder_itself_takes_its_name(plain):
    source = FolderSource(plain / SCENES[1])
    assert source.scenes == (SCENES[1],)
    assert check_source(source, frames_per_scene=2) == 2
    assert FolderSource(plain, scenes=SCENES[1:]).scenes == SCENES[1:]
    assert source.map_path(SCENES[1]) is None
    assert source.extension(SCENES[1]) is None


def test_words_of_a_frame_are_the_clips(plain):
    edit(plain, lambda value: value["frames"][0].update(command="left", instruction="turn left"))
    source = FolderSource(plain)
    assert [(clip.command, clip.instruction) for clip in (source.clip(SCENES[0], k) for k in (1, 2))] == [
        ("follow", ""),
        ("left", "turn left"),
    ]


def test_a_missing_image_is_masked_and_one_of_another_size_is_refused(plain):
    (plain / SCENES[0] / "images" / "CAM_BACK-1.jpg").unlink()
    source = FolderSource(plain, steps=1)
    n = CAMERAS.index("CAM_BACK")
    assert source.images(SCENES[0]) == (17, 18)
    assert source.clip(SCENES[0], 1).image_mask[0].tolist() == [k != n for k in range(6)]
    edit(plain, lambda value: value["cameras"]["CAM_FRONT"].update(width=2 * WIDTH))
    with pytest.raises(BrokenFile, match=f"{WIDTH} x {HEIGHT} px, expected {2 * WIDTH}"):
        FolderSource(plain, steps=1, image_size=(WIDTH, HEIGHT)).clip(SCENES[0], 0)


def first(value):
    return value["frames"][0]


BAD = {
    "no cameras": (lambda value: value.pop("cameras"), "cameras: came nothing, expected dict"),
    "no frames": (lambda value: value.update(frames=[]), "frames: came none"),
    "no object": (lambda value: value["frames"].append(3), r"frames\[3\]: came int, expected an object"),
    "no time": (lambda value: first(value).pop("time_us"), r"frames\[0\].time_us: came nothing, expected int"),
    "a time twice": (
        lambda value: first(value).update(time_us=value["frames"][1]["time_us"]),
        r"frames\[\d\].time_us: came \d+, the time of frames\[\d\] too",
    ),
    "no pose": (lambda value: first(value).update(T_world_from_ego=[[1]]), "T_world_from_ego: came .* 4 x 4 finite"),
    "a mirror": (
        lambda value: first(value)["T_world_from_ego"][2].__setitem__(2, -1.0),
        "T_world_from_ego: .* a rigid 4x4",
    ),
    "another camera": (
        lambda value: first(value)["images"].update(CAM_TOP={"file": "x.jpg"}),
        "images: came CAM_TOP, expected one of CAM_FRONT",
    ),
    "too late": (
        lambda value: first(value)["images"]["CAM_FRONT"].update(time_us=first(value)["time_us"] + 1),
        "images.CAM_FRONT.time_us: came .* not later than the frame",
    ),
    "outside": (
        lambda value: first(value)["images"]["CAM_FRONT"].update(file="../secret.jpg"),
        "filename: came ../secret.jpg, expected a path inside",
    ),
    "no lens": (lambda value: value["cameras"]["CAM_FRONT"].update(K=[[1, 2, 3]]), "CAM_FRONT.K: .* 3 x 3 finite"),
    "a lens unknown": (
        lambda value: value["cameras"]["CAM_FRONT"].update(distortion="prism"),
        "distortion: came prism, expected one of none",
    ),
    "a command unknown": (lambda value: first(value).update(command="up"), "command: came up, expected one of follow"),
    "a speed in words": (lambda value: first(value).update(speed_mps="fast"), "speed_mps: came 'fast', expected int"),
    "a box twice": (
        lambda value: first(value)["boxes"].append(first(value)["boxes"][0]),
        "boxes: came an id twice",
    ),
    "imu": (lambda value: value["imu"]["time_us"].reverse(), "imu: time_us.* expected increasing time"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recordings_are_refused(plain, case):
    change, says = BAD[case]
    edit(plain, change)
    with pytest.raises(InputError, match=says) as error:
        FolderSource(plain)
    assert RECORDING in str(error.value)


def test_folders_without_a_recording_are_refused(plain, tmp_path):
    (plain / SCENES[0] / RECORDING).write_text("{")
    with pytest.raises(InputError, match="content: came no JSON"):
        FolderSource(plain)
    for folder, says in ((tmp_path, "recording.json in it"), (tmp_path / "nowhere", "no such folder")):
        shutil.rmtree(plain, ignore_errors=True)
        with pytest.raises(InputError, match=says):
            FolderSource(folder)


def test_other_cameras_in_another_scene_are_refused(plain):
    edit(
        plain, lambda value: (value["cameras"].pop("CAM_BACK"), [f["images"].pop("CAM_BACK") for f in value["frames"]])
    )
    with pytest.raises(InputError, match="2 sets of names"):
        FolderSource(plain)


def test_a_link_out_of_the_folder_is_refused(plain, tmp_path):
    path = plain / SCENES[0] / "images" / "CAM_FRONT-0.jpg"
    path.rename(tmp_path / "secret.jpg")
    path.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(InputError, match="Links may not lead out"):
        FolderSource(plain).clip(SCENES[0], 0)
