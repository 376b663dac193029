"""What the writer writes, read back by the official devkit and by our source; and what an interruption leaves."""

import json
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from made_up_drive import HEIGHT, START_US, VERSION, WIDTH, boxes, bus, keyframe, mask, record, rig
from nuscenes.can_bus.can_bus_api import NuScenesCanBus
from nuscenes.nuscenes import NuScenes
from pyquaternion import Quaternion

from sensors.clip import Boxes
from sensors.errors import InputError
from sensors.frames import quaternion_from_rotation, yaw
from sensors.imu import ImuWindow
from sensors.nuscenes_index import NuscenesIndex
from sensors.nuscenes_source import CAMERAS, NuscenesSource, decode_jpeg
from sensors.nuscenes_writer import NuscenesWriter
from sensors.source import check_source


def load(dataroot):
    return NuScenes(VERSION, str(dataroot), verbose=False)


def samples(devkit, name):
    token = next(row for row in devkit.scene if row["name"] == name)["first_sample_token"]
    while token:
        yield devkit.get("sample", token)
        token = devkit.get("sample", token)["next"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    dataroot = tmp_path_factory.mktemp("recorded")
    record(dataroot, "scene-0001")
    record(dataroot, "scene-0002", keyframes=2)
    return dataroot


def test_source_reads_equal_values(recorded):
    source = NuscenesSource(recorded, VERSION)
    assert check_source(source) == 5
    imu, bus_us, _, speed, yaw_rate, steering = bus(3)
    for k in range(3):
        now_us, images, time_us, T_world_from_ego, T_now, seen = keyframe(k)
        clip, future = source.clip("scene-0001", k), source.future("scene-0001", k)
        assert clip.now_us == now_us
        np.testing.assert_allclose(clip.T_world_from_ego_now, T_now, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(clip.T_world_from_ego_now[:3, 3], T_now[:3, 3])
        np.testing.assert_array_equal(clip.time_us[-1], time_us)
        np.testing.assert_allclose(clip.T_world_from_ego[-1], T_world_from_ego, rtol=0, atol=1e-12)
        assert clip.image_mask[-1].all()
        for n, image in enumerate(images):
            assert np.abs(clip.images[-1, n].astype(int) - image).mean() < 6  # JPEG
            coded = cv2.imdecode(cv2.imencode(".jpg", image[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 95))[1], 1)
            np.testing.assert_array_equal(clip.images[-1, n], coded[..., ::-1])
        for ours, written in zip(clip.cameras, rig(), strict=True):
            np.testing.assert_array_equal(ours.K, written.K)
            np.testing.assert_allclose(ours.T_ego_from_cam, written.T_ego_from_cam, rtol=0, atol=1e-12)
            assert (ours.name, ours.width, ours.height, ours.distortion) == (written.name, WIDTH, HEIGHT, "none")
        window = imu.window(now_us - 1_000_000, now_us)
        for field in ("time_us", "accel_mps2", "gyro_radps"):
            np.testing.assert_array_equal(getattr(clip.imu, field), getattr(window, field))
        at = int(np.searchsorted(bus_us, now_us, side="right")) - 1
        state = (clip.vehicle.speed_mps, clip.vehicle.yaw_rate_radps)
        assert state == (speed[at], yaw_rate[at])
        assert clip.vehicle.steering_rad == pytest.approx(steering[at], rel=1e-15)
        assert future.boxes_now.categories == seen.categories
        np.testing.assert_array_equal(future.boxes_now.size_lwh_m, seen.size_lwh_m)
        np.testing.assert_allclose(future.boxes_now.T_world_from_box, seen.T_world_from_box, rtol=0, atol=1e-12)
        np.testing.assert_allclose(future.boxes_now.velocity_in_world_mps[0], [1.8, 0.0], atol=1e-9)
        np.testing.assert_array_equal(future.time_us, START_US + 500_000 * np.arange(k + 1, 3))
        for j, T in enumerate(future.T_world_from_ego):
            np.testing.assert_allclose(T, keyframe(k + 1 + j)[4], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "coefficients"),
    [("brown_conrady", (-0.31, 0.12, 1e-4, -2e-4, 0.01)), ("fisheye", (0.03, -0.01, 0.002, -1e-4))],
)
def test_distortion_survives(tmp_path, model, coefficients):
    record(tmp_path, "scene-0001", keyframes=1, cameras=rig(model, coefficients), can=False)
    for camera in NuscenesSource(tmp_path, VERSION, steps=1).clip("scene-0001", 0).cameras:
        assert (camera.distortion, camera.coefficients) == (model, coefficients)
    assert len(load(tmp_path).calibrated_sensor) == 6  # the devkit isn't disturbed


def test_devkit_reads_equal_values(recorded):
    devkit = load(recorded)
    assert [row["name"] for row in devkit.scene] == ["scene-0001", "scene-0002"]
    for k, sample in enumerate(samples(devkit, "scene-0001")):
        now_us, images, time_us, T_world_from_ego, T_now, seen = keyframe(k)
        assert sample["timestamp"] == now_us
        assert sorted(sample["data"]) == sorted(CAMERAS)
        ego_now = devkit.get("ego_pose", sample["token"])
        assert (ego_now["timestamp"], ego_now["translation"]) == (now_us, T_now[:3, 3].tolist())
        assert ego_now["rotation"] == quaternion_from_rotation(T_now[:3, :3]).tolist()
        for n, camera in enumerate(rig()):
            data = devkit.get("sample_data", sample["data"][camera.name])
            path, _, K = devkit.get_sample_data(data["token"])
            assert data["timestamp"] == time_us[n]
            np.testing.assert_array_equal(K, camera.K)
            record_ = devkit.get("ego_pose", data["ego_pose_token"])
            assert record_["timestamp"] == time_us[n]
            assert record_["translation"] == T_world_from_ego[n, :3, 3].tolist()
            R = Quaternion(record_["rotation"]).rotation_matrix
            np.testing.assert_allclose(R, T_world_from_ego[n, :3, :3], rtol=0, atol=1e-12)
            assert decode_jpeg(Path(path).read_bytes(), path, WIDTH, HEIGHT).shape == images[n].shape
            assert devkit.get("sample_data", data["next"])["prev"] == data["token"] if k < 2 else data["next"] == ""
        found = {row["instance_token"]: devkit.get_box(row["token"]) for row in map(annotation(devkit), sample["anns"])}
        assert len(found) == len(seen)
        for box, T, size in zip(found.values(), seen.T_world_from_box, seen.size_lwh_m, strict=True):
            assert box.center.tolist() == T[:3, 3].tolist()
            assert box.wlh.tolist() == [size[1], size[0], size[2]]
            assert box.orientation.yaw_pitch_roll[0] == pytest.approx(float(yaw(T)), abs=1e-12)


def annotation(devkit):
    return lambda token: devkit.get("sample_annotation", token)


def test_devkit_walks_every_reference(recorded):
    """Each token in each table leads to a record, and prev and next undo each other."""
    devkit = load(recorded)
    for table in devkit.table_names:
        for row in getattr(devkit, table):
            for field, value in row.items():
                target = field.removesuffix("_token").removeprefix("first_").removeprefix("last_")
                if field.endswith("_token") and value and field not in ("map_token",):
                    devkit.get("sample_annotation" if target == "annotation" else target, value)
            if row.get("next"):
                assert devkit.get(table, row["next"])["prev"] == row["token"]
            if row.get("prev"):
                assert devkit.get(table, row["prev"])["next"] == row["token"]
    for instance in devkit.instance:
        track = [instance["first_annotation_token"]]
        while devkit.get("sample_annotation", track[-1])["next"]:
            track.append(devkit.get("sample_annotation", track[-1])["next"])
        assert (len(track), track[-1]) == (instance["nbr_annotations"], instance["last_annotation_token"])
    assert len(devkit.instance) == 4
    assert {row["name"] for row in devkit.category} == {"vehicle.car", "human.pedestrian.adult"}
    [town] = devkit.map
    assert len(town["log_tokens"]) == 2
    on_mask = town["mask"].is_on_mask(np.array([10.0, 10.0]), np.array([30.0, 55.0]))
    assert on_mask.tolist() == [True, False]


@pytest.mark.filterwarnings("ignore:.*utcfromtimestamp:DeprecationWarning")  # the devkit's, on Python 3.12
def test_devkit_lists_and_renders(recorded, tmp_path, capsys):
    matplotlib.use("Agg")
    devkit = load(recorded)
    devkit.list_scenes()
    sample = next(samples(devkit, "scene-0001"))
    devkit.list_sample(sample["token"])
    assert "scene-0001, a left curve" in capsys.readouterr().out
    devkit.render_sample(sample["token"], out_path=str(tmp_path / "sample.png"), verbose=False)
    picture = tmp_path / "camera.png"
    devkit.render_sample_data(sample["data"]["CAM_FRONT"], out_path=str(picture), verbose=False)
    matplotlib.pyplot.close("all")
    assert cv2.imread(str(picture)).std() > 10
    assert cv2.imread(str(tmp_path / "sample.png")).std() > 10


def test_devkit_reads_the_can_bus(recorded):
    can = NuScenesCanBus(str(recorded))
    imu, time_us, T_world_from_ego, speed, yaw_rate, steering = bus(3)
    read = {message: can.get_messages("scene-0001", message) for message in can.can_messages[:4]}
    assert [m["utime"] for m in read["ms_imu"]] == imu.time_us.tolist()
    assert [m["linear_accel"] for m in read["ms_imu"]] == imu.accel_mps2.tolist()
    assert [m["rotation_rate"] for m in read["ms_imu"]] == imu.gyro_radps.tolist()
    assert [m["pos"] for m in read["pose"]] == T_world_from_ego[:, :3, 3].tolist()
    assert [m["vel"][0] for m in read["pose"]] == speed.tolist()
    assert [m["rotation_rate"][2] for m in read["pose"]] == yaw_rate.tolist()
    assert read["pose"][1]["accel"] == imu.accel_mps2[2].tolist()
    assert [m["value"] / 16.6 for m in read["steeranglefeedback"]] == pytest.approx(steering.tolist())
    assert [m["utime"] for m in read["vehicle_monitor"]] == time_us[::25].tolist()
    assert read["vehicle_monitor"][1]["vehicle_speed"] == speed[25] * 3.6
    meta = can.get_messages("scene-0001", "meta")
    assert meta["ms_imu"]["message_count"] == len(imu)
    assert meta["pose"]["message_freq"] == pytest.approx(50, rel=0.02)
    can.print_all_message_stats("scene-0001")


@pytest.mark.parametrize("period_us", [400_000, 1_200_000, 1_600_000])
def test_velocities_are_the_devkits_for_every_gap(tmp_path, period_us):
    with NuscenesWriter(tmp_path, VERSION).scene("scene-0001", "", rig(), "testtown", mask()) as scene:
        for k in range(4):
            scene.keyframe(*keyframe(k, START_US + k * (period_us - 500_000)))
    devkit = load(tmp_path)
    known = 0
    for seen, sample in zip(NuscenesIndex(tmp_path, VERSION).scene("scene-0001").keyframes, devkit.sample, strict=True):
        for velocity, token in zip(seen.boxes.velocity_in_world_mps, sample["anns"], strict=True):
            np.testing.assert_allclose(velocity, devkit.box_velocity(token)[:2], rtol=1e-5, atol=1e-9)
            known += int(np.isfinite(velocity).all())
    assert known == {400_000: 7, 1_200_000: 5, 1_600_000: 0}[period_us]


def test_a_scene_without_can_bus_has_no_imu_and_no_state(tmp_path):
    record(tmp_path, "scene-0001", can=False)
    clip = NuscenesSource(tmp_path, VERSION).clip("scene-0001", 2)
    assert len(clip.imu) == 0
    assert np.isnan([clip.vehicle.speed_mps, clip.vehicle.yaw_rate_radps, clip.vehicle.steering_rad]).all()


def test_recording_again_gives_the_same_files(recorded, tmp_path):
    record(tmp_path, "scene-0001")
    record(tmp_path, "scene-0002", keyframes=2)
    assert contents(tmp_path) == contents(recorded)


def contents(dataroot):
    return {str(p.relative_to(dataroot)): p.read_bytes() for p in dataroot.rglob("*") if p.is_file()}


def test_names(tmp_path):
    writer = NuscenesWriter(tmp_path, VERSION)
    assert (writer.scenes, writer.free_scene_name()) == ((), "scene-0001")
    record(tmp_path, "scene-0001", keyframes=1)
    assert (writer.scenes, writer.free_scene_name()) == (("scene-0001",), "scene-0002")
    (tmp_path / "can_bus" / "scene-0002_pose.json").write_text("[]")  # somebody's: not ours to overwrite
    assert writer.free_scene_name() == "scene-0003"


@pytest.mark.parametrize(
    ("name", "says"),
    [("drive-1", "drive-1"), ("scene-1", "four digits"), ("scene-0165", "CAN bus reader"), ("scene-0001", "already")],
)
def test_scene_names_are_rejected(recorded, name, says):
    before = contents(recorded)
    with pytest.raises(InputError, match=says):
        record(recorded, name)
    assert contents(recorded) == before


def test_foreign_tables_and_bad_settings_are_rejected(tmp_path):
    (tmp_path / VERSION).mkdir()
    with pytest.raises(InputError, match="a folder from elsewhere"):
        NuscenesWriter(tmp_path, VERSION)
    with pytest.raises(InputError, match="version"):
        NuscenesWriter(tmp_path, "../v1.0")
    with pytest.raises(InputError, match="jpeg_quality"):
        NuscenesWriter(tmp_path, "v1.0", jpeg_quality=0)


def with_argument(index, value):
    arguments = list(keyframe(1))
    arguments[index] = value
    return arguments


def changed_boxes(**fields):
    b = boxes(0)
    return Boxes(**{name: fields.get(name, getattr(b, name)) for name in b.__dataclass_fields__})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (with_argument(1, keyframe(1)[1][:5]), "images: came 5 images"),
        (with_argument(1, keyframe(1)[1][:, :10]), "image of CAM_FRONT: came uint8 \\(10"),
        (with_argument(1, keyframe(1)[1].astype(float)), "image of CAM_FRONT: came float64"),
        (with_argument(2, keyframe(1)[2] + 1), "time_us: came .* nothing later than now"),
        (keyframe(0), "time_us, now_us: came .* all later than"),
        (with_argument(3, keyframe(1)[3] * np.nan), "T_world_from_ego: came .*nan"),
        (with_argument(4, np.eye(3)), "T_world_from_ego: came"),
        (with_argument(5, changed_boxes(ids=("a", "a"))), "boxes.ids"),
        (with_argument(5, changed_boxes(categories=("vehicle.car", "vehicle.bus"))), "category of box walker"),
        (with_argument(5, changed_boxes(size_lwh_m=np.zeros((2, 3)))), "box car-1: came size"),
    ],
)
def test_keyframe_rejects(tmp_path, arguments, says):
    with (  # noqa: PT012 - the recorder is closed by the error
        pytest.raises(InputError, match=says),
        NuscenesWriter(tmp_path, VERSION).scene("scene-0001", "", rig(), "testtown", mask()) as scene,
    ):
        scene.keyframe(*keyframe(0))
        scene.keyframe(*arguments)
    assert left(tmp_path) == []


def left(dataroot):
    """Every file but the lock."""
    return [path for path in dataroot.rglob("*") if path.is_file() and not path.name.endswith(".lock")]


@pytest.mark.parametrize(
    ("index", "value", "says"),
    [
        (0, ImuWindow(np.arange(2), np.full((2, 3), np.nan), np.zeros((2, 3))), r"accel_mps2\[0\]"),
        (1, np.zeros(0, np.int64), "speed_mps"),
        (2, np.eye(4), "T_world_from_ego"),
        (3, np.full(75, np.nan), "speed_mps: came .*nan"),
        (1, np.zeros(75, np.int64), "time_us: came"),
    ],
)
def test_can_rejects(tmp_path, index, value, says):
    arguments = list(bus(3))
    arguments[index] = value
    with (  # noqa: PT012 - the recorder is closed by the error
        pytest.raises(InputError, match=says),
        NuscenesWriter(tmp_path, VERSION).scene("scene-0001", "", rig(), "testtown", mask()) as scene,
    ):
        scene.keyframe(*keyframe(0))
        scene.can(*arguments)
    assert left(tmp_path) == []


def test_scenes_that_begin_together_are_rejected(tmp_path):
    record(tmp_path, "scene-0001", keyframes=1)
    with (
        pytest.raises(InputError, match=r"scene-0002 keyframe 0: now_us: came .* where another scene begins"),
        NuscenesWriter(tmp_path, VERSION).scene("scene-0002", "", rig(), "testtown", mask()) as scene,
    ):
        scene.keyframe(*keyframe(0))


def test_an_empty_scene_and_a_bad_mask_are_rejected(tmp_path):
    with pytest.raises(InputError, match="keyframes: came none"):
        record(tmp_path, "scene-0001", keyframes=0, can=False)
    with (
        pytest.raises(InputError, match="drivable_mask"),
        NuscenesWriter(tmp_path, VERSION).scene("scene-0001", "", rig(), "testtown", mask()[0]),
    ):
        pass
    assert left(tmp_path) == []


def test_tables_stay_json_line_by_line(recorded):
    """Appending must give what writing everything at once would."""
    for path in (recorded / VERSION).glob("*.json"):
        rows = json.loads(path.read_text())
        assert path.read_text() == "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]"
        assert not rows or len({row["token"] for row in rows}) == len(rows)
