"""The index and the source against the official devkit, on real data; each kind of bad input on a small recording."""

import json
import math

import cv2
import numpy as np
import pytest
from nuscenes.can_bus.can_bus_api import NuScenesCanBus
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import view_points
from pyquaternion import Quaternion
from real_data import DATAROOT, needs_data

from policies.bench.nuscenes_jobs import detailed
from sensors.errors import BrokenFile, InputError
from sensors.frames import apply, interpolate_at, inverse, matrix
from sensors.nuscenes_can import CAN_MESSAGES, STEERING_RATIO, can_is_refused, read_bus
from sensors.nuscenes_source import CAMERAS, NuscenesSource, decode_jpeg, reduction
from sensors.source import check_source

VERSION = "v1.0-mini"
REDUCED_LEVELS = 1.0  # of 255, on average: what decoding at the scale needed may change


@pytest.fixture(scope="module")
def devkit():
    return NuScenes(VERSION, str(DATAROOT), verbose=False)


@pytest.fixture(scope="module")
def source():
    return NuscenesSource(DATAROOT, VERSION, image_size=(400, 225))


def samples(devkit, scene):
    token = scene_row(devkit, scene)["first_sample_token"]
    while token:
        yield devkit.get("sample", token)
        token = devkit.get("sample", token)["next"]


def pose(record):
    return matrix(np.array(record["translation"]), Quaternion(record["rotation"]).rotation_matrix)


@needs_data
def test_real_data_pass_the_source_checker(source):
    assert check_source(source, frames_per_scene=5) == 6
    assert source.scenes == ("scene-0103", "scene-0061")


@needs_data
def test_poses_calibration_and_boxes_are_the_devkits(devkit, source):
    seen = 0
    for name in source.scenes:
        scene = source.index.scene(name)
        assert scene.location == devkit.get("log", scene_row(devkit, name)["log_token"])["location"]
        for keyframe, sample in zip(scene.keyframes, samples(devkit, name), strict=True):
            assert keyframe.token == sample["token"]
            assert keyframe.captures.keys() == sample["data"].keys()
            for channel, token in sample["data"].items():
                data = devkit.get("sample_data", token)
                capture = keyframe.captures[channel]
                assert (capture.time_us, capture.filename) == (data["timestamp"], data["filename"])
                expected = pose(devkit.get("ego_pose", data["ego_pose_token"]))
                np.testing.assert_allclose(capture.T_world_from_ego, expected, rtol=0, atol=1e-9)
                calibration = devkit.get("calibrated_sensor", data["calibrated_sensor_token"])
                if channel in scene.cameras:
                    camera = scene.cameras[channel]
                    np.testing.assert_array_equal(camera.K, calibration["camera_intrinsic"])
                    np.testing.assert_allclose(camera.T_ego_from_cam, pose(calibration), rtol=0, atol=1e-12)
                    assert (camera.width, camera.height) == (data["width"], data["height"])
            seen += check_boxes(devkit, keyframe.boxes, sample)
    assert seen == len(devkit.sample_annotation)


def scene_row(devkit, name):
    return next(row for row in devkit.scene if row["name"] == name)


def check_boxes(devkit, boxes, sample):
    for i, token in enumerate(sample["anns"]):
        box, row = devkit.get_box(token), devkit.get("sample_annotation", token)
        assert (boxes.ids[i], boxes.categories[i]) == (row["instance_token"], box.name)
        np.testing.assert_array_equal(boxes.size_lwh_m[i], box.wlh[[1, 0, 2]])
        np.testing.assert_allclose(
            boxes.T_world_from_box[i], matrix(box.center, box.rotation_matrix), rtol=0, atol=1e-9
        )
        np.testing.assert_allclose(
            boxes.velocity_in_world_mps[i], devkit.box_velocity(token)[:2], rtol=1e-6, atol=1e-9
        )  # the devkit subtracts seconds since 1970 in float64: 2e-7 s of 0.5 s
    return len(sample["anns"])


@needs_data
@pytest.mark.parametrize("channel", CAMERAS)
def test_boxes_and_lidar_reproject_as_the_devkit_does(devkit, channel):
    """World -> pixel through our frames and camera model, against view_points and the chain of the devkit."""
    scene = NuscenesSource(DATAROOT, VERSION, scenes=("scene-0061",)).index.scene("scene-0061")
    keyframe, sample, camera = scene.keyframes[0], next(samples(devkit, "scene-0061")), scene.cameras[channel]
    T_cam_from_world = inverse(keyframe.captures[channel].T_world_from_ego @ camera.T_ego_from_cam)

    # Boxes: every corner in front of the camera, inside the image or not.
    _, in_cam, K = devkit.get_sample_data(sample["data"][channel], selected_anntokens=sample["anns"], box_vis_level=0)
    theirs = {box.token: box for box in in_cam}
    compared = 0
    for i, token in enumerate(sample["anns"]):
        if token not in theirs:
            continue
        length, width, height = keyframe.boxes.size_lwh_m[i]
        corners_in_box = np.array(
            [[x, y, z] for x in (-length, length) for y in (-width, width) for z in (-height, height)]
        )
        corners = apply(T_cam_from_world @ keyframe.boxes.T_world_from_box[i], corners_in_box / 2)
        uv, valid = camera.project(corners)
        expected_points = theirs[token].corners()
        expected = view_points(expected_points, K, normalize=True)[:2].T
        order = [int(np.argmin(np.linalg.norm(expected_points.T - corner, axis=1))) for corner in corners]
        assert sorted(order) == list(range(8))
        np.testing.assert_array_equal(valid, expected_points[2, order] > 1e-3)
        # Pixels of a point near the image plane are ill-conditioned; 0.1 m keeps them below 1e6 px.
        near = corners[:, 2] > 0.1
        np.testing.assert_allclose(uv[near], expected[order][near], rtol=0, atol=1e-6)
        compared += int(near.sum())
    assert compared >= 8

    # Lidar, with the devkit's own float64 chain: its file reader makes float32, which would hide the comparison.
    data = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
    cloud = LidarPointCloud.from_file(str(DATAROOT / data["filename"]))
    points = cloud.points[:3].T.astype(np.float64)
    lidar = devkit.get("calibrated_sensor", data["calibrated_sensor_token"])
    T_world_from_lidar = keyframe.captures["LIDAR_TOP"].T_world_from_ego @ pose(lidar)
    uv, valid = camera.project(apply(T_cam_from_world @ T_world_from_lidar, points))
    cloud.points = cloud.points.astype(np.float64)
    expected, depth = chain(devkit, cloud, data, sample["data"][channel])
    near = depth > 1.0  # as map_pointcloud_to_image
    assert valid[near].all()
    assert near.sum() > 1000
    # Ten image widths off, a pixel is in the ten thousands and 1e-6 of it is near the last bits of the chain.
    shown = near & (np.abs(expected) < 16_000).all(axis=1)
    np.testing.assert_allclose(uv[shown], expected[shown], rtol=0, atol=1e-6)


def chain(devkit, cloud, lidar, camera_token):
    """The five steps of NuScenesExplorer.map_pointcloud_to_image, before it drops points; pixels [n, 2], depths [n]."""
    camera = devkit.get("sample_data", camera_token)
    calibration = devkit.get("calibrated_sensor", lidar["calibrated_sensor_token"])
    ego = devkit.get("ego_pose", lidar["ego_pose_token"])
    for record in (calibration, ego):
        cloud.rotate(Quaternion(record["rotation"]).rotation_matrix)
        cloud.translate(np.array(record["translation"]))
    calibration = devkit.get("calibrated_sensor", camera["calibrated_sensor_token"])
    ego = devkit.get("ego_pose", camera["ego_pose_token"])
    for record in (ego, calibration):
        cloud.translate(-np.array(record["translation"]))
        cloud.rotate(Quaternion(record["rotation"]).rotation_matrix.T)
    pixels = view_points(cloud.points[:3], np.array(calibration["camera_intrinsic"]), normalize=True)
    return pixels[:2].T, cloud.points[2]


@needs_data
def test_now_is_the_latest_capture_with_a_pose(devkit, source):
    times = source.frame_times_us("scene-0103")
    late = 0
    for frame, sample in enumerate(samples(devkit, "scene-0103")):
        clip = source.clip("scene-0103", frame)
        last = max(sample["timestamp"], int(clip.time_us[-1].max()))
        assert clip.now_us == times[frame] == last
        late += last > sample["timestamp"]
        record = "LIDAR_TOP" if last == sample["timestamp"] else "CAM_BACK_LEFT"
        token = devkit.get("sample_data", sample["data"][record])["ego_pose_token"]
        np.testing.assert_allclose(clip.T_world_from_ego_now, pose(devkit.get("ego_pose", token)), atol=1e-9, rtol=0)
    assert late == 12  # CAM_BACK_LEFT fires up to 0.8 ms after the sample


@needs_data
def test_steps_before_the_start_are_masked_with_scheduled_times(source):
    clip = NuscenesSource(DATAROOT, VERSION, steps=4, image_size=(80, 45)).clip("scene-0061", 0).validate()
    assert clip.image_mask.tolist() == [[False] * 6] * 3 + [[True] * 6]
    assert not clip.images[:3].any()
    assert clip.images[3].any(axis=(1, 2, 3)).all()
    assert (np.diff(clip.time_us, axis=0) == 500_000).all()
    np.testing.assert_array_equal(clip.T_world_from_ego[0], clip.T_world_from_ego[3])


@needs_data
def test_absent_images_are_masked_and_counted(source):
    clip = source.clip("scene-0103", 20)
    assert not clip.image_mask.any()
    assert not clip.images.any()
    stock = {scene.name: scene for scene in source.index.inventory()}
    assert stock["scene-0103"].images == 0
    assert stock["scene-0103"].images_missing == dict.fromkeys(stock["scene-0103"].images_missing, 40)
    assert stock["scene-0103"].can_present == CAN_MESSAGES
    assert stock["scene-0061"].images_present == dict.fromkeys(CAMERAS, 1)
    assert stock["scene-0061"].can_missing == CAN_MESSAGES
    assert all(scene.map_present for scene in stock.values())
    assert [stock[name].annotations for name in ("scene-0103", "scene-0061")] == [2090, 69]


@needs_data
def test_images_are_the_files_pixels(source):
    full = NuscenesSource(DATAROOT, VERSION, scenes=("scene-0061",), steps=1).clip("scene-0061", 0)
    small = source.clip("scene-0061", 0)
    for n, name in enumerate(CAMERAS):
        [path] = (DATAROOT / "samples" / name).glob("*.jpg")
        rgb = cv2.imread(str(path))[..., ::-1]
        np.testing.assert_array_equal(full.images[0, n], rgb)
        expected, camera = full.cameras[n].resize(400, 225, rgb)
        assert np.abs(small.images[-1, n].astype(float) - expected).mean() < REDUCED_LEVELS
        np.testing.assert_array_equal(small.cameras[n].K, camera.K)


def test_reduction_keeps_whole_pixels_and_enough_of_them():
    assert reduction(1600, 900, 400, 225) == 4
    assert reduction(1600, 900, 160, 96) == 4
    assert reduction(1600, 900, 320, 192) == 2  # 400 x 225 would be enough, but coarse
    assert reduction(1600, 900, 704, 256) == 2
    assert reduction(1600, 900, 100, 50) == 4  # 900 px are no whole number of 8
    assert reduction(1600, 896, 100, 50) == 8
    assert reduction(1600, 900, 801, 450) == 1
    assert reduction(401, 225, 100, 50) == 1


def test_a_reduced_jpeg_shows_what_the_whole_one_does():
    """Every reduction, on a picture that needs no data set; see REDUCED_LEVELS."""
    data = cv2.imencode(".jpg", detailed(800, 448), (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes()
    whole = decode_jpeg(data, "here", 800, 448)
    for wanted in ((400, 224), (160, 96), (200, 112), (80, 48), (100, 56), (50, 28)):
        reduced = decode_jpeg(data, "here", 800, 448, wanted)
        assert reduced.size < whole.size
        one, other = (cv2.resize(each, wanted, interpolation=cv2.INTER_AREA).astype(float) for each in (reduced, whole))
        assert np.abs(one - other).mean() < REDUCED_LEVELS, wanted
    with pytest.raises(BrokenFile, match="800 x 448 px, expected 799 x 448"):
        decode_jpeg(data, "here", 799, 448, (100, 56))


@needs_data
def test_bus_agrees_with_the_motion_of_the_poses(source):
    """Speed, yaw rate and IMU of every frame against finite differences of ego poses around it."""
    times = source.frame_times_us("scene-0103")
    poses = np.array([k.T_world_from_ego_now for k in source.index.scene("scene-0103").keyframes])
    speeds, yaw_rates, steering = [], [], []
    for frame in range(1, len(times) - 1):
        clip = source.clip("scene-0103", frame)
        assert 95 <= len(clip.imu) <= 101 or frame < 2
        assert clip.imu.time_us[0] > clip.now_us - 1_000_000
        a, b = (interpolate_at(times, poses, clip.now_us + d) for d in (-200_000, 200_000))
        step = inverse(a) @ b
        speeds.append((clip.vehicle.speed_mps, step[0, 3] / 0.4))
        yaw_rates.append((clip.vehicle.yaw_rate_radps, math.atan2(step[1, 0], step[0, 0]) / 0.4))
        steering.append((math.tan(clip.vehicle.steering_rad) / 2.588, clip.vehicle.yaw_rate_radps / speeds[-1][0]))
    speeds, yaw_rates, steering = map(np.array, (speeds, yaw_rates, steering))
    assert np.corrcoef(speeds.T)[0, 1] > 0.99
    assert (speeds[:, 0] @ speeds[:, 1]) / (speeds[:, 0] @ speeds[:, 0]) == pytest.approx(1.0, abs=0.03)
    assert np.corrcoef(yaw_rates.T)[0, 1] > 0.9
    assert np.corrcoef(steering.T)[0, 1] > 0.9
    slope = (steering[:, 0] @ steering[:, 1]) / (steering[:, 0] @ steering[:, 0])
    assert slope == pytest.approx(1.0, abs=0.1)  # the steering ratio
    imu = source.clip("scene-0103", 20).imu
    assert np.linalg.norm(imu.accel_mps2.mean(axis=0)) == pytest.approx(9.8, abs=0.4)
    first = source.clip("scene-0103", 0)  # the bus files begin 3 ms after the first keyframe
    assert len(first.imu) == 0
    assert math.isnan(first.vehicle.speed_mps)


@needs_data
def test_bus_values_are_the_devkits_at_every_keyframe_and_do_not_lag(source):
    """The latest message at or before each keyframe, not the one before it; the IMU's window message by message."""
    can, name = NuScenesCanBus(str(DATAROOT)), "scene-0103"
    messages = {kind: can.get_messages(name, kind) for kind in CAN_MESSAGES[:3]}
    for frame, now_us in enumerate(source.frame_times_us(name).tolist()):
        clip = source.clip(name, frame)
        latest = {kind: [row for row in rows if row["utime"] <= now_us][-1:] for kind, rows in messages.items()}
        for [pose] in filter(None, [latest["pose"]]):
            assert (clip.vehicle.speed_mps, clip.vehicle.yaw_rate_radps) == (pose["vel"][0], pose["rotation_rate"][2])
        for [wheel] in filter(None, [latest["steeranglefeedback"]]):
            assert clip.vehicle.steering_rad == wheel["value"] / STEERING_RATIO
        window = [row for row in messages["ms_imu"] if now_us - 1_000_000 < row["utime"] <= now_us]
        np.testing.assert_array_equal(clip.imu.time_us, [row["utime"] for row in window])
        if window:
            np.testing.assert_array_equal(clip.imu.accel_mps2, [row["linear_accel"] for row in window])
            np.testing.assert_array_equal(clip.imu.gyro_radps, [row["rotation_rate"] for row in window])


def test_scenes_whose_bus_is_refused_are_the_devkits(tmp_path):
    """Files or not, nothing of such a bus is used."""
    (tmp_path / "can_bus").mkdir()
    refused = NuScenesCanBus(str(tmp_path)).can_blacklist
    assert [k for k in range(1, 1200) if can_is_refused(f"scene-{k:04d}")] == sorted(refused)
    rows = [{"utime": 10, "vel": [1, 0, 0], "rotation_rate": [0, 0, 1]}]
    for name in ("scene-0161", "scene-0160"):
        (tmp_path / "can_bus" / f"{name}_pose.json").write_text(json.dumps(rows))
    speeds = [read_bus(tmp_path, name).vehicle_at(20).speed_mps for name in ("scene-0161", "scene-0160")]
    assert math.isnan(speeds[0])
    assert speeds[1] == 1.0
    assert not len(read_bus(tmp_path, "scene-0161").imu)


@needs_data
def test_future_holds_every_later_keyframe(source):
    times = source.frame_times_us("scene-0103")
    future = source.future("scene-0103", 3)
    np.testing.assert_array_equal(future.time_us, times[4:])
    at = interpolate_at(future.time_us, future.T_world_from_ego, int(times[3]) + 3_000_000)
    assert np.isfinite(at).all()
    assert len(source.future("scene-0103", 39).time_us) == 0


@needs_data
def test_unknown_scene_is_rejected(source):
    with pytest.raises(InputError, match="Did you mean scene-0103"):
        NuscenesSource(DATAROOT, VERSION, scenes=("scene-0130",))
    with pytest.raises(InputError, match="frame: came -1"):
        source.clip("scene-0103", -1)
    with pytest.raises(InputError, match=r"one of v1\.0-mini"):
        NuscenesSource(DATAROOT, "v1.0-mimi")
