"""A nuScenes scene as messages: complete, in order, and to the last bit what the tables say."""

from collections import Counter

import numpy as np
import pytest
import ros_message_stand_ins as fake
from real_data import DATAROOT, needs_data

from sensors.nuscenes_index import NuscenesIndex
from sensors.nuscenes_source import CAMERAS, NuscenesSource
from sensors.ros2_messages import imu_from_message, odometry_from_message, time_us_from_stamp
from sensors.ros2_recording import messages_of
from sensors.ros2_topics import IMU, KEYFRAME, ODOMETRY, STEERING, image_topic, info_topic


@needs_data
@pytest.mark.parametrize(("name", "images"), [("scene-0061", 1), ("scene-0103", 0)])
def test_a_real_scene_is_complete_and_exact(name, images):
    index = NuscenesIndex(DATAROOT, "v1.0-mini")
    scene, source = index.scene(name), NuscenesSource(DATAROOT, "v1.0-mini", (name,), steps=1)
    sent = messages_of(index, scene)
    count = Counter(each.topic for each in sent)
    times_us = [each.time_us for each in sent]
    assert times_us == sorted(times_us)
    assert count[KEYFRAME] == len(scene.keyframes)
    assert {count[info_topic(camera)] for camera in CAMERAS} == {len(scene.keyframes)}
    assert {count[image_topic(camera)] for camera in CAMERAS} == {images}
    samples = [odometry_from_message(fake.message(each.fields())) for each in sent if each.topic == ODOMETRY]
    assert np.diff([sample.time_us for sample in samples]).max(initial=0) <= 20_000
    at = {sample.time_us: sample for sample in samples}
    for keyframe in scene.keyframes:
        assert np.array_equal(at[keyframe.now_us].T_world_from_ego, keyframe.T_world_from_ego_now)
        vehicle = source.vehicle(name, keyframe.now_us)
        motion = at[keyframe.now_us].speed_mps, at[keyframe.now_us].yaw_rate_radps
        assert np.array_equal(motion, (vehicle.speed_mps, vehicle.yaw_rate_radps), equal_nan=True)
        for camera in CAMERAS:
            capture = keyframe.captures[camera]
            assert np.array_equal(at[capture.time_us].T_world_from_ego, capture.T_world_from_ego)
    bus = source.imu(name, scene.keyframes[-1].now_us)
    imu = [imu_from_message(fake.message(each.fields()), np.eye(3)) for each in sent if each.topic == IMU]
    assert len(bus) == 0 or np.array_equal([accel for _, accel, _ in imu][-len(bus) :], bus.accel_mps2)
    assert bool(count[STEERING]) == bool(count[IMU]) == (name == "scene-0103")
    for each in sent:
        stamp = each.fields().get("stamp") or each.fields().get("header", {}).get("stamp")
        assert stamp is None or time_us_from_stamp(fake.message(stamp)) == each.time_us
