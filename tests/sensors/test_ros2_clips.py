"""The synchroniser: what is missing is masked, what is old is left out, nothing is invented."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors import frames
from sensors.camera import Camera
from sensors.errors import InputError
from sensors.ros2_messages import OdometrySample
from sensors.ros2_source import OFF_STRIDE_US, STRIDE_US, ClipAssembler, Limits, StaleInput, Stream

quick = settings(deadline=None, derandomize=True, max_examples=40)
NOW_US = 1_700_000_000_000_000

# Streams -----------------------------------------------------------------------------------------


@quick
@given(st.lists(st.integers(0, 400), max_size=60), st.integers(1, 200), st.integers(1, 20))
def test_stream_is_its_slow_twin(times, keep_us, capacity):
    stream, kept, refused = Stream(keep_us, capacity, ahead_us=50), [], 0
    now_us = 250
    for time_us in times:
        good = time_us <= now_us + 50 and (not kept or time_us > kept[-1])
        assert stream.add(time_us, f"v{time_us}", now_us, 0) == good
        kept, refused = [*kept, time_us] if good else kept, refused + (not good)
    assert stream.not_increasing + stream.ahead == refused
    assert stream.accepted + refused == len(times)
    expected = [t for t in kept if t >= kept[-1] - keep_us][-capacity:]
    assert stream.times_us == expected
    assert stream.values == [f"v{t}" for t in expected]


@quick
@given(st.sets(st.integers(0, 200), max_size=20), st.integers(0, 200), st.integers(1, 50), st.integers(0, 200))
def test_nearest_is_its_slow_twin(times, at_us, tolerance_us, until_us):
    stream = Stream(1000, 100, 1000)
    for time_us in sorted(times):
        stream.add(time_us, None, 0, 0)
    fits = [t for t in sorted(times) if abs(t - at_us) <= tolerance_us and t <= until_us]
    found = stream.nearest(at_us, tolerance_us, until_us)
    if not fits:
        assert found is None
    else:
        assert stream.times_us[found] == min(fits, key=lambda t: abs(t - at_us))


def test_one_wild_stamp_does_not_lock_a_stream():
    stream = Stream(1_000_000, 100, 50_000)
    assert not stream.add(NOW_US * 2, None, NOW_US, 0)
    assert stream.add(NOW_US, None, NOW_US, 0)
    assert stream.ahead == 1


@pytest.mark.parametrize(
    "changes",
    [{"tolerance_us": 0}, {"tolerance_us": 125_000}, {"min_cameras": 0}, {"min_cameras": 7}]
    + [{name: 0} for name in ("camera_age_us", "odometry_age_us", "imu_age_us", "ahead_us")],
)
def test_limits_reject(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        Limits(**changes).validate(6)


# Clips -------------------------------------------------------------------------------------------

NAMES = ("A", "B", "C")
FRAME_US = 83_333


def motion(time_us: int) -> np.ndarray:
    return frames.matrix_from_xy_yaw((time_us - NOW_US) * 1e-5, 0.0, 0.0)


def coded(name: str, time_us: int) -> np.ndarray:
    """A picture that says which camera took it and when, in its bytes."""
    code = np.frombuffer(int(time_us).to_bytes(8, "big") + name.encode() + bytes(3), np.uint8)
    return np.tile(code[:12].reshape(2, 2, 3), (1, 1, 1))


def small_cameras(names=NAMES) -> tuple[Camera, ...]:
    K = np.array([[2.0, 0, 0.5], [0, 2.0, 0.5], [0, 0, 1]])
    return tuple(Camera(name, 2, 2, K, np.eye(4)) for name in names)


def rig(steps=2, min_cameras=1, **limits) -> ClipAssembler:
    return ClipAssembler(small_cameras(), steps, Limits(min_cameras=min_cameras, **limits))


def feed(assembler: ClipAssembler, until_us: int, drop=lambda name, k: False, since_us=NOW_US - 2_000_000):
    """Cameras at 12 Hz that fire 30 ms apart, odometry at 50 Hz, IMU at 100 Hz; returns what was sent."""
    messages = [(t, "odometry", t) for t in range(since_us, until_us + 1, 20_000)]
    messages += [(t, "imu", t) for t in range(since_us, until_us + 1, 10_000)]
    for n, name in enumerate(assembler.images):
        times = range(since_us + 30_000 * n // 2, until_us + 1, FRAME_US)
        messages += [(t, name, t) for k, t in enumerate(times) if not drop(name, k)]
    sent = {name: [] for name in assembler.images}
    for time_us, name, _ in sorted(messages):
        clock = (time_us, time_us)
        if name == "odometry":
            sample = OdometrySample(time_us, motion(time_us), 10.0, 0.1, "map")
            assembler.odometry.add(time_us, sample, *clock)
        elif name == "imu":
            assembler.imu.add(time_us, (np.array([0, 0, 9.8]), np.zeros(3)), *clock)
        else:
            assembler.images[name].add(time_us, coded(name, time_us), *clock)
            sent[name].append(time_us)
    return sent


def test_clip_of_a_healthy_rig_is_complete():
    assembler = rig(steps=3)
    feed(assembler, NOW_US)
    clip = assembler.clip(NOW_US, NOW_US).validate()
    assert clip.now_us == NOW_US
    assert clip.image_mask.all()
    assert np.abs(np.diff(clip.time_us, axis=0) - STRIDE_US).max() <= 60_000
    assert len(clip.imu) == 100
    assert (clip.vehicle.speed_mps, clip.vehicle.yaw_rate_radps) == (10.0, 0.1)
    assert np.isnan(clip.vehicle.steering_rad)


@quick
@given(st.randoms(use_true_random=False), st.floats(0, 0.9), st.integers(1, 4), st.integers(0, 200_000))
def test_nothing_is_invented_and_nothing_there_is_left_out(random, loss, steps, late_us):
    assembler = rig(steps=steps)
    lost = {(name, k): random.random() < loss for name in NAMES for k in range(40)}
    sent = feed(assembler, NOW_US, lambda name, k: lost[name, k])
    now_us = NOW_US + late_us
    try:
        clip = assembler.clip(now_us, now_us).validate()
    except StaleInput:
        assert not any(now_us - t <= 250_000 and t <= NOW_US for times in sent.values() for t in times)
        return
    for t in range(steps):
        for n, name in enumerate(NAMES):
            time_us = int(clip.time_us[t, n])
            if clip.image_mask[t, n]:
                assert time_us in sent[name]
                assert np.array_equal(clip.images[t, n], coded(name, time_us))
                assert t < steps - 1 or now_us - time_us <= 250_000
            else:
                assert not clip.images[t, n].any()
            np.testing.assert_allclose(clip.T_world_from_ego[t, n], motion(time_us), atol=1e-9)
    for t in range(steps):  # earlier steps: masked only if no picture lies near the instant of the step
        shown = [n for n in range(3) if clip.image_mask[t, n]]
        instant_us = int(clip.time_us[t, 0])  # the first camera's, or the scheduled one
        for n in set(range(3)) - set(shown) if t < steps - 1 else ():
            assert not any(abs(s - instant_us) <= 60_000 for s in sent[NAMES[n]])


def test_complete_sets_at_12_hz_with_two_percent_drops():
    random = np.random.default_rng(0)
    lost = random.random((3, 800)) < 0.02
    whole = 0
    assembler = rig()
    for k in range(100):
        since_us = NOW_US + k * 500_000
        feed(assembler, since_us + 480_000, lambda name, i, k=k: lost[NAMES.index(name), i + 6 * k], since_us)
        whole += assembler.clip(since_us + 490_000, since_us + 490_000).image_mask[-1].all()
    assert whole >= 99


def test_a_stopped_camera_is_masked_in_the_newest_step_only():
    assembler = rig(steps=2)
    feed(assembler, NOW_US, lambda name, k: name == "B" and k >= 20)
    clip = assembler.clip(NOW_US, NOW_US).validate()
    assert clip.image_mask.tolist() == [[True, True, True], [True, False, True]]


def test_a_picture_beside_a_young_one_may_be_too_old():
    assembler = rig(steps=1, camera_age_us=250_000)
    for time_us in range(NOW_US - 400_000, NOW_US + 1, 20_000):
        assembler.odometry.add(time_us, OdometrySample(time_us, motion(time_us), 1.0, 0.0, "map"), NOW_US, NOW_US)
    # C is alive, but its young picture lies far from the others' and the one beside them is too old.
    for name, ago_us in (("A", 230_000), ("B", 249_000), ("C", 251_000), ("C", 100_000)):
        assembler.images[name].add(NOW_US - ago_us, coded(name, NOW_US - ago_us), NOW_US, NOW_US)
    assert assembler.clip(NOW_US, NOW_US).validate().image_mask.tolist() == [[True, True, False]]


def test_another_camera_is_the_reference_when_the_first_stops():
    assembler = rig(steps=2)
    feed(assembler, NOW_US, lambda name, k: name == "A" and k >= 12)
    clip = assembler.clip(NOW_US, NOW_US).validate()
    assert clip.image_mask[-1].tolist() == [False, True, True]


def test_before_the_first_pose_everything_is_masked_and_the_pose_repeated():
    assembler = rig(steps=3)
    feed(assembler, NOW_US, since_us=NOW_US - 700_000)
    clip = assembler.clip(NOW_US, NOW_US).validate()
    assert clip.image_mask.any(axis=1).tolist() == [False, True, True]
    assert np.array_equal(clip.T_world_from_ego[0], clip.T_world_from_ego[1])


@pytest.mark.parametrize("apart_us", [400_000, 600_000])
def test_uneven_keyframes_still_make_history(apart_us):
    assembler = rig(steps=2, camera_age_us=700_000, odometry_age_us=1_000_000)
    for time_us in (NOW_US - apart_us, NOW_US):
        assembler.odometry.add(time_us, OdometrySample(time_us, motion(time_us), 1.0, 0.0, "map"), NOW_US, NOW_US)
        for name in NAMES:
            assembler.images[name].add(time_us, coded(name, time_us), NOW_US, NOW_US)
    clip = assembler.clip(NOW_US, NOW_US).validate()
    assert clip.image_mask.all()
    assert clip.time_us.tolist() == [[NOW_US - apart_us] * 3, [NOW_US] * 3]


def test_a_gap_in_the_odometry_is_not_bridged():
    assembler = rig(steps=2)
    for time_us in (NOW_US - 900_000, NOW_US - 300_000, NOW_US - 150_000, NOW_US):
        assembler.odometry.add(time_us, OdometrySample(time_us, motion(time_us), 1.0, 0.0, "map"), NOW_US, NOW_US)
    for time_us in (NOW_US - 600_000, NOW_US - 100_000):
        for name in NAMES:
            assembler.images[name].add(time_us, coded(name, time_us), NOW_US, NOW_US)
    assert assembler.clip(NOW_US, NOW_US).validate().image_mask.any(axis=1).tolist() == [False, True]


@pytest.mark.parametrize("by_steady", [False, True])
def test_stale_inputs_give_no_clip(by_steady):
    """Also when the clock of the stamps has stopped together with the sensors."""
    assembler = rig(min_cameras=3)
    with pytest.raises(StaleInput, match="odometry: none yet"):
        assembler.clip(NOW_US, NOW_US)
    feed(assembler, NOW_US)
    assembler.clip(NOW_US, NOW_US)

    def after(later_us):
        return (NOW_US, NOW_US + later_us) if by_steady else (NOW_US + later_us, NOW_US)

    assembler.clip(*after(150_000))
    with pytest.raises(StaleInput, match="odometry: 201 ms old"):
        assembler.clip(*after(201_000))
    pose_us = after(300_000)[0] + 1
    assembler.odometry.add(pose_us, OdometrySample(pose_us, motion(pose_us), 1.0, 0.0, "map"), *after(300_000))
    with pytest.raises(StaleInput, match="cameras: 0 of 3"):
        assembler.clip(*after(300_000))


def test_a_stale_imu_is_not_shown():
    assembler = rig(imu_age_us=100_000)
    feed(assembler, NOW_US)
    assert len(assembler.clip(NOW_US + 90_000, NOW_US).imu)
    assert not len(assembler.clip(NOW_US + 110_000, NOW_US).imu)


def test_min_cameras_is_kept():
    assembler = rig(min_cameras=3)
    feed(assembler, NOW_US, lambda name, k: name == "C" and k >= 20)
    with pytest.raises(StaleInput, match="cameras: 2 of 3 fresh, at least 3"):
        assembler.clip(NOW_US, NOW_US)


def test_buffers_stay_bounded():
    assembler = rig(steps=2)
    feed(assembler, NOW_US, since_us=NOW_US - 20_000_000)
    span_us = STRIDE_US + 250_000 + 2 * OFF_STRIDE_US
    assert all(len(stream.times_us) <= span_us / FRAME_US + 1 for stream in assembler.images.values())
    assert len(assembler.imu.times_us) <= 121
