"""Each kind of bad input is one error that names the file and the field; on a copy of the real dataroot."""

import json
import math

import cv2
import numpy as np
import pytest
from real_data import DATAROOT

from sensors import nuscenes_source
from sensors.errors import BrokenFile, InputError
from sensors.nuscenes_index import NuscenesIndex
from sensors.nuscenes_source import CAMERAS, NuscenesSource, jpeg_size
from sensors.source import check_source

VERSION = "v1.0-mini"


@pytest.fixture
def copied(tmp_path):
    """A dataroot with the real tables and CAN bus files copied, the images linked one by one as hard copies."""
    if not DATAROOT.is_dir():
        pytest.skip(f"real nuScenes data is not at {DATAROOT}")
    for path in DATAROOT.rglob("*"):
        to = tmp_path / path.relative_to(DATAROOT)
        if path.is_dir():
            to.mkdir(parents=True)
        elif path.suffix != ".png" and not path.name.endswith("zoesensors.json"):
            to.write_bytes(path.read_bytes())
    return tmp_path


def edit(path, change):
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def front(rows, k=0):
    return [row for row in rows if "__CAM_FRONT__" in row["filename"]][k]


BAD_TABLES = {
    "quaternion": (
        "ego_pose",
        lambda rows: rows[1].update(rotation=[1.0, 0.5, 0.0, 0.0]),
        ("rotation", "length 1.118"),
    ),
    "nan pose": (
        "ego_pose",
        lambda rows: rows[1].update(translation=[math.nan, 0, 0]),
        ("translation", "nan", "finite"),
    ),
    "two numbers": ("ego_pose", lambda rows: rows[1].update(translation=[1, 2]), ("translation", "[1, 2]", "3 finite")),
    "annotation": (
        "sample_annotation",
        lambda rows: rows[7].update(rotation=[0, 0, 0, 0]),
        ("rotation", "length 0", "unit quaternion"),
    ),
    "size": ("sample_annotation", lambda rows: rows[7].update(size=["a", 1, 2]), ("size", "'a'", "3 finite numbers")),
    "no calibration": (
        "calibrated_sensor",
        lambda rows: rows[1].update(camera_intrinsic=[]),
        ("camera_intrinsic", "[]", "3x3"),
    ),
    "dangling": ("sample_data", lambda rows: rows[1].update(ego_pose_token="gone"), ("ego_pose_token", "'gone'")),
    "dangling sample": (
        "scene",
        lambda rows: rows[0].update(first_sample_token="gone"),
        ("first_sample_token", "gone"),
    ),
    "missing field": ("sample_data", lambda rows: rows[3].pop("timestamp"), ("timestamp", "no such field", "int")),
    "kind": ("sample", lambda rows: rows[0].update(timestamp="early"), ("timestamp", "'early'", "int")),
    "no object": ("sensor", lambda rows: rows.insert(0, 3), ("record 0", "int", "object")),
    "twice": ("sensor", lambda rows: rows.append(rows[0]), ("token", "1 repeated", "unique")),
    "backwards": (
        "sample_data",
        lambda rows: front(rows).update(timestamp=front(rows)["timestamp"] + 700_000),
        ("timestamp", "CAM_FRONT", "after", "increasing time"),
    ),
    "standing still": (
        "sample_data",
        lambda rows: [row for row in rows if "__CAM_FRONT__" in row["filename"]][1].update(
            timestamp=front(rows)["timestamp"]
        ),
        ("timestamp", "CAM_FRONT", "after", "increasing time"),
    ),
    "a second sample of one time": (
        "sample",
        lambda rows: next(row for row in rows if row["prev"]).update(
            timestamp=next(row for row in rows if not row["prev"])["timestamp"]
        ),
        ("timestamp", "us after", "increasing time"),
    ),
    "loop": ("sample", lambda rows: rows[5].update(next=rows[0]["token"]), None),
    "too few": ("scene", lambda rows: rows[0].update(nbr_samples=41), ("nbr_samples", "41", "leads through 40")),
    "other size": ("sample_data", lambda rows: front(rows).update(width=800), ("width", "800", "as before")),
    "absolute": ("sample_data", lambda rows: front(rows).update(filename="/etc/passwd"), ("filename", "/etc/passwd")),
    "dots": ("sample_data", lambda rows: front(rows).update(filename="samples/../../x"), ("filename", "../../x")),
    "empty": ("map", lambda rows: rows[0].update(filename=""), ("filename", "inside")),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_rejected(copied, case):
    table, change, says = BAD_TABLES[case]
    path = copied / VERSION / f"{table}.json"
    edit(path, change)
    with pytest.raises(InputError) as error:
        NuscenesSource(copied, VERSION)
    message = str(error.value)
    where = f"{table}.json" if says else "scene.json"
    assert where in message
    for part in says or ("nbr_samples", "leads through more"):
        assert part in message, message


def test_missing_and_truncated_tables_are_rejected(copied):
    path = copied / VERSION / "ego_pose.json"
    whole = path.read_bytes()
    for content, says in (
        (whole[: len(whole) // 2], "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{}", "dict"),
        (b"", "0 by"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"ego_pose.json: content: came .*{says}.*, expected .*JSON list"):
            NuscenesIndex(copied, VERSION)
    path.unlink()
    with pytest.raises(InputError, match=r"ego_pose.json: file: came No such file"):
        NuscenesIndex(copied, VERSION)
    with pytest.raises(InputError, match="dataroot: came no such folder"):
        NuscenesIndex(copied / "nowhere", VERSION)


def test_a_link_out_of_the_dataroot_is_rejected(copied, tmp_path_factory):
    [inside] = (copied / "samples" / "CAM_FRONT").glob("*.jpg")
    outside = tmp_path_factory.mktemp("outside") / "secret.jpg"
    outside.write_bytes(inside.read_bytes())
    inside.unlink()
    inside.symlink_to(outside)
    source = NuscenesSource(copied, VERSION, scenes=("scene-0061",))
    with pytest.raises(InputError, match=r"sample_data.json: filename: came samples/CAM_FRONT/.*inside"):
        source.clip("scene-0061", 0)


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[: len(data) // 2], "without the end of a JPEG"),
        (lambda data: data[: len(data) // 2] + bytes(len(data) // 2), "without the end of a JPEG"),
        (lambda data: data[:-2], "without the end of a JPEG"),
        (lambda data: b"", "0 bytes"),
        (lambda data: b"GIF89a" + data, "without the end of a JPEG"),
        (lambda data: cv2.imencode(".jpg", np.zeros((90, 160, 3), np.uint8))[1].tobytes(), "image size: came 160 x 90"),
    ],
)
def test_bad_jpegs_are_rejected(copied, change, says):
    [path] = (copied / "samples" / "CAM_BACK").glob("*.jpg")
    rewrite(path, change)
    source = NuscenesSource(copied, VERSION, scenes=("scene-0061",))
    with pytest.raises(BrokenFile, match=says) as error:
        source.clip("scene-0061", 0)
    assert path.name in str(error.value)


def test_a_jpeg_size_only_at_its_own_end_marker():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    for flags in ((), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)):
        data = cv2.imencode(".jpg", pixels, flags)[1].tobytes()
        assert jpeg_size(data) == (56, 40)
        assert jpeg_size(data + b"trailing") == (56, 40)
        assert not any(jpeg_size(data[:n]) for n in range(len(data)))
        # A thumbnail (with an end marker of its own) in an application segment must not count.
        segment = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data
        with_thumbnail = data[:2] + segment + data[2:]
        assert jpeg_size(with_thumbnail) == (56, 40)
        assert not jpeg_size(with_thumbnail[: len(with_thumbnail) - len(data) // 2])


def test_the_orientation_tag_is_ignored(tmp_path):
    """Calibration speaks of stored pixels; a tag "turned by 180 degrees" must not turn them."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8] = 200
    data = cv2.imencode(".jpg", pixels)[1].tobytes()
    tiff = b"II*\0" + bytes([8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0, 1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0])
    segment = b"\xff\xe1" + (len(tiff) + 8).to_bytes(2, "big") + b"Exif\0\0" + tiff
    path = tmp_path / "turned.jpg"
    path.write_bytes(data[:2] + segment + data[2:])
    assert cv2.imread(str(path))[0, 0, 0] < 50  # OpenCV does turn it, so the tag is well formed
    assert nuscenes_source.decode_jpeg(path.read_bytes(), path, 24, 16)[0, 0, 0] > 150


def test_a_stale_bus_signal_is_no_state(copied):
    """0.2 s old is still the state, anything older is not."""
    now_us = int(NuscenesSource(copied, VERSION).frame_times_us("scene-0103")[5])
    for age_us, known in ((200_000, True), (200_001, False)):

        def cut(rows, age_us=age_us):
            rows[:] = [row for row in rows if row["utime"] < now_us - 300_000]
            rows.append({**rows[-1], "utime": now_us - age_us})

        edit(copied / "can_bus" / "scene-0103_pose.json", cut)
        vehicle = NuscenesSource(copied, VERSION).clip("scene-0103", 5).vehicle
        assert math.isfinite(vehicle.speed_mps) == math.isfinite(vehicle.yaw_rate_radps) == known
        assert math.isfinite(vehicle.steering_rad)


def test_a_missing_image_is_masked_and_never_made_up(copied):
    [path] = (copied / "samples" / "CAM_BACK").glob("*.jpg")
    path.unlink()
    clip = NuscenesSource(copied, VERSION, scenes=("scene-0061",), steps=1).clip("scene-0061", 0)
    n = CAMERAS.index("CAM_BACK")
    assert clip.image_mask[0].tolist() == [i != n for i in range(6)]
    assert not clip.images[0, n].any()


BAD_CAN = {
    "nan": ("ms_imu", lambda rows: rows[9]["linear_accel"].__setitem__(1, math.nan), "linear_accel[9]"),
    "rate": ("ms_imu", lambda rows: rows[9].update(rotation_rate=[1, 2]), "rotation_rate[9]"),
    "time": ("ms_imu", lambda rows: rows[9].update(utime=rows[8]["utime"]), "utime[9]"),
    "no time": ("pose", lambda rows: rows[2].pop("utime"), "utime[2]"),
    "field": ("pose", lambda rows: rows[2].pop("vel"), "vel[2]"),
    "text": ("steeranglefeedback", lambda rows: rows[4].update(value="left"), "value[4]"),
}


@pytest.mark.parametrize("case", BAD_CAN)
def test_bad_can_messages_are_rejected(copied, case):
    message, change, field = BAD_CAN[case]
    edit(copied / "can_bus" / f"scene-0103_{message}.json", change)
    source = NuscenesSource(copied, VERSION)
    with pytest.raises(InputError) as error:
        source.clip("scene-0103", 5)
    assert f"scene-0103_{message}.json: {field}: came" in str(error.value)


def test_a_scene_without_one_of_the_cameras_is_rejected(copied):
    def drop(rows):
        rows[:] = [row for row in rows if "__CAM_BACK__" not in row["filename"]]

    edit(copied / VERSION / "sample_data.json", drop)
    with pytest.raises(InputError, match=r"sample_data.json: channels of scene-0103: came no key frame of CAM_BACK,"):
        NuscenesSource(copied, VERSION)


def test_a_keyframe_that_lacks_one_camera_masks_it(copied):
    def drop(rows):
        gone = [row for row in rows if "__CAM_BACK__" in row["filename"]][5]
        rows.remove(gone)

    edit(copied / VERSION / "sample_data.json", drop)
    source = NuscenesSource(copied, VERSION, scenes=("scene-0103",))
    assert check_source(source, frames_per_scene=40) == 40


def test_decoded_images_are_kept_and_bounded(copied, monkeypatch):
    source = NuscenesSource(copied, VERSION, steps=1, image_size=(80, 45))
    source.clip("scene-0061", 0)
    monkeypatch.setattr(nuscenes_source, "picture", lambda *_: pytest.fail("decoded twice"))
    source.clip("scene-0061", 0)
    kept = nuscenes_source._Recent(3)
    for key in range(10):
        assert kept.get(key, lambda key=key: key) == key
    assert len(kept._values) == 3
