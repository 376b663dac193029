"""SE(3): exact inverses, quaternions against pyquaternion, named frames."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyquaternion import Quaternion

from sensors import frames
from sensors.errors import InputError
from sensors.frames import Transform

few = settings(deadline=None, derandomize=True, max_examples=60)
# Away from the zero quaternion, and including the axes, where Shepperd's method changes its branch.
quaternions = (
    st.lists(st.floats(-1, 1).map(lambda v: round(v, 3)), min_size=4, max_size=4)
    .map(np.array)
    .filter(lambda q: np.linalg.norm(q) > 0.1)
    .map(lambda q: q / np.linalg.norm(q))
)
points = st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3).map(np.array)
poses = st.builds(lambda t, q: frames.matrix(t, frames.rotation_from_quaternion(q)), points, quaternions)


@few
@given(quaternions)
def test_quaternion_round_trip(q):
    R = frames.rotation_from_quaternion(q)
    np.testing.assert_allclose(R, Quaternion(q).rotation_matrix, rtol=0, atol=1e-14)
    np.testing.assert_allclose(R @ R.T, np.eye(3), rtol=0, atol=1e-14)
    back = frames.quaternion_from_rotation(R)
    assert back[0] >= 0
    np.testing.assert_allclose(abs(back @ q), 1.0, rtol=0, atol=1e-14)
    np.testing.assert_allclose(frames.rotation_from_quaternion(back), R, rtol=0, atol=1e-14)
    np.testing.assert_allclose(abs(Quaternion(matrix=R).elements @ back), 1.0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("q", [*np.eye(4), [0, 0.6, 0.8, 0], [0, 0, 0.6, -0.8], [1e-9, 1, 0, 0]])
def test_half_turns_round_trip(q):
    q = np.array(q) / np.linalg.norm(q)
    assert abs(frames.quaternion_from_rotation(frames.rotation_from_quaternion(q)) @ q) == pytest.approx(1, abs=1e-14)


def test_rotations_come_in_batches():
    q = np.random.default_rng(0).normal(size=(2, 3, 4))
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    R = frames.rotation_from_quaternion(q)
    assert R.shape == (2, 3, 3, 3)
    np.testing.assert_array_equal(R[1, 2], frames.rotation_from_quaternion(q[1, 2]))
    T = frames.matrix(np.zeros((2, 3, 3)), R)
    np.testing.assert_array_equal(frames.inverse(T)[0, 1], frames.inverse(T[0, 1]))
    np.testing.assert_array_equal(frames.matrix(np.arange(3.0), R)[1, 1, :3, 3], np.arange(3.0))


@few
@given(poses, poses, points)
def test_inverse_and_composition(T_a_from_b, T_b_from_c, point):
    np.testing.assert_allclose(T_a_from_b @ frames.inverse(T_a_from_b), np.eye(4), rtol=0, atol=1e-11)
    np.testing.assert_allclose(frames.inverse(T_a_from_b), np.linalg.inv(T_a_from_b), rtol=0, atol=1e-9)
    there = frames.apply(T_a_from_b, point)
    np.testing.assert_allclose(there, (T_a_from_b @ [*point, 1])[:3], rtol=0, atol=1e-10)
    np.testing.assert_allclose(frames.apply(frames.inverse(T_a_from_b), there), point, rtol=0, atol=1e-10)
    stepwise = frames.apply(T_a_from_b, frames.apply(T_b_from_c, point))
    np.testing.assert_allclose(frames.apply(T_a_from_b @ T_b_from_c, point), stepwise, rtol=0, atol=1e-10)


@few
@given(poses, poses, points)
def test_transform_carries_its_frames(T_a_from_b, T_b_from_c, point):
    world_from_ego = Transform("world", "ego", T_a_from_b)
    ego_from_cam = Transform("ego", "cam", T_b_from_c)
    world_from_cam = world_from_ego @ ego_from_cam
    assert (world_from_cam.target, world_from_cam.source) == ("world", "cam")
    np.testing.assert_array_equal(world_from_cam.matrix, T_a_from_b @ T_b_from_c)
    back = world_from_cam.inverse()
    assert (back.target, back.source) == ("cam", "world")
    np.testing.assert_allclose(back.apply(world_from_cam.apply(point)), point, rtol=0, atol=1e-9)


def test_transform_rejects_frames_that_do_not_cancel():
    T = np.eye(4)
    with pytest.raises(ValueError, match=r"world_from_ego @ lidar_from_cam"):
        Transform("world", "ego", T) @ Transform("lidar", "cam", T)
    with pytest.raises(ValueError, match="do not cancel"):
        Transform("world", "ego", T) @ Transform("world", "ego", T)
    assert (Transform("world", "ego", T) @ Transform("world", "ego", T).inverse()).source == "world"


def test_from_pose_is_pyquaternions():
    q = Quaternion(axis=[0.2, -0.4, 1.0], angle=1.1)
    T = Transform.from_pose("world", "ego", [1, 2, 3], q.elements)
    np.testing.assert_allclose(T.matrix[:3, :3], q.rotation_matrix, rtol=0, atol=1e-14)
    assert T.matrix[:, 3].tolist() == [1, 2, 3, 1]


@pytest.mark.parametrize("q", [[1, 0.5, 0, 0], [0, 0, 0, 0], [np.nan, 0, 0, 1], [1.002, 0, 0, 0]])
def test_quaternion_rejects_other_lengths(q):
    with pytest.raises(InputError, match=r"ego_pose: rotation: came a quaternion of length .*, expected a unit"):
        frames.rotation_from_quaternion(np.array([[1.0, 0, 0, 0], q]), "ego_pose")


def test_quaternion_rejects_three_numbers():
    with pytest.raises(InputError, match="4 numbers"):
        frames.rotation_from_quaternion(np.zeros(3))


@few
@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(-3.1, 3.1))
def test_planar_pose(x, y, heading):
    T = frames.matrix_from_xy_yaw(x, y, heading)
    q = Quaternion(axis=[0, 0, 1], angle=heading)
    np.testing.assert_allclose(T, frames.matrix([x, y, 0], q.rotation_matrix), rtol=0, atol=1e-14)
    assert float(frames.yaw(T)) == pytest.approx(heading, abs=1e-14)
    assert frames.matrix_from_xy_yaw(np.full(3, x), y, heading).shape == (3, 4, 4)


@few
@given(st.floats(-100, 100))
def test_wrap(angle):
    wrapped = float(frames.wrap(angle))
    assert -np.pi <= wrapped < np.pi
    assert np.cos(wrapped - angle) == pytest.approx(1, abs=1e-12)


@few
@given(poses, poses, st.floats(0, 1))
def test_interpolation_is_pyquaternions_slerp(T_0, T_1, fraction):
    q0, q1 = (Quaternion(matrix=T[:3, :3], rtol=1e-9, atol=1e-9) for T in (T_0, T_1))
    expected = Quaternion.slerp(q0, q1, fraction).rotation_matrix
    T = frames.interpolate(T_0, T_1, fraction)
    if abs(q0.elements @ q1.elements) > 1e-6:  # half a turn apart, both ways are shortest
        np.testing.assert_allclose(T[:3, :3], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(T[:3, 3], (1 - fraction) * T_0[:3, 3] + fraction * T_1[:3, 3], rtol=0, atol=1e-12)
    np.testing.assert_allclose(frames.interpolate(T_0, T_1, 0.0), T_0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(frames.interpolate(T_0, T_1, 1.0), T_1, rtol=0, atol=1e-12)


def test_slerp_turns_at_a_constant_rate_the_short_way():
    T_0, T_1 = frames.matrix_from_xy_yaw(0, 0, 3.0), frames.matrix_from_xy_yaw(1, 0, -3.0)
    for fraction in (0.0, 0.25, 0.5, 0.9):
        turned = frames.wrap(frames.yaw(frames.interpolate(T_0, T_1, fraction)) - 3.0)
        assert float(turned) == pytest.approx(fraction * (2 * np.pi - 6.0), abs=1e-12)
    nearly = frames.matrix_from_xy_yaw(0, 0, 3.0 + 1e-9)
    assert float(frames.yaw(frames.interpolate(T_0, nearly, 0.5))) == pytest.approx(3.0 + 5e-10, abs=1e-12)


def test_interpolate_at_a_time():
    time_us = np.array([0, 100, 400], np.int64) + 1_600_000_000_000_000
    track = frames.matrix_from_xy_yaw(np.array([0.0, 1.0, 7.0]), 0.0, np.array([0.0, 0.1, 0.4]))
    for k in range(3):
        np.testing.assert_array_equal(frames.interpolate_at(time_us, track, int(time_us[k])), track[k])
    middle = frames.interpolate_at(time_us, track, int(time_us[0]) + 250)
    np.testing.assert_allclose(middle, frames.matrix_from_xy_yaw(4.0, 0.0, 0.25), rtol=0, atol=1e-12)
    for outside in (-1, 401):
        with pytest.raises(ValueError, match="outside the track"):
            frames.interpolate_at(time_us, track, int(time_us[0]) + outside)
