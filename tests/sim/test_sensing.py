import numpy as np
import pytest

from sensors.errors import InputError
from sensors.frames import apply
from sim.sensing import EXPOSURE_BEFORE_US, imu_of_motion, nuscenes_rig
from sim.tyres import Tyres
from sim.vehicle import EgoState, VehicleParams, step
from sim.world import PERIOD_US

NAMES = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")


def drive(state, accel, curvature, steps=20):
    states = [state]
    for _ in range(steps):
        states.append(step(states[-1], accel, curvature, 0.01, VehicleParams()))
    return imu_of_motion(np.arange(steps + 1, dtype=np.int64) * 10_000, states)


def test_imu_at_rest_reads_gravity():
    imu = drive(EgoState(0, 0, 1.0, 0.0), 0.0, 0.0).validate()
    assert (imu.accel_mps2 == (0, 0, 9.80665)).all()
    assert (imu.gyro_radps == 0).all()
    assert imu.time_us.tolist() == list(range(10_000, 200_001, 10_000))


@pytest.mark.parametrize("radius", [15.0, -40.0])
def test_imu_on_a_circular_arc(radius):
    imu = drive(EgoState(0, 0, 0.3, 9.0, 1 / radius), 0.0, 1 / radius)
    assert imu.accel_mps2[:, 0] == pytest.approx(0.0, abs=1e-12)
    assert imu.accel_mps2[:, 1] == pytest.approx(81 / radius)
    assert imu.gyro_radps == pytest.approx(np.tile([0, 0, 9 / radius], (20, 1)))


def test_imu_feels_braking_and_agrees_with_differentiated_positions():
    states = [EgoState(0, 0, 0.3, 9.0, 0.05)]
    for _ in range(40):
        states.append(step(states[-1], -2.0, 0.05, 0.01, VehicleParams()))
    imu = imu_of_motion(np.arange(41, dtype=np.int64) * 10_000, states)
    assert imu.accel_mps2[:, 0] == pytest.approx(-2.0)
    xy = np.array([(s.x_m, s.y_m) for s in states])
    accel_in_world = np.diff(xy, n=2, axis=0) / 0.01**2  # at states 1..39
    c, s = np.array([(np.cos(v.yaw_rad), np.sin(v.yaw_rad)) for v in states[1:-1]]).T
    lateral = -s * accel_in_world[:, 0] + c * accel_in_world[:, 1]
    assert imu.accel_mps2[:-1, 1] == pytest.approx(lateral, abs=0.01)


def test_imu_feels_what_slipping_tyres_do_as_differentiated_positions_say():
    params, states = VehicleParams(tyres=Tyres(), accel_lag_s=0.2), [EgoState(0, 0, 0.3, 18.0)]
    for _ in range(60):
        states.append(step(states[-1], -1.0, 0.02, 0.01, params))
    imu = imu_of_motion(np.arange(61, dtype=np.int64) * 10_000, states)
    xy = np.array([(s.x_m, s.y_m) for s in states])
    accel_in_world = np.diff(xy, n=2, axis=0) / 0.01**2  # at states 1..59
    c, s = np.array([(np.cos(v.yaw_rad), np.sin(v.yaw_rad)) for v in states[1:-1]]).T
    ahead, left = accel_in_world.T
    in_ego = np.stack([c * ahead + s * left, c * left - s * ahead], axis=1)
    between = (imu.accel_mps2[:-1, :2] + imu.accel_mps2[1:, :2]) / 2  # of the intervals beside each state
    assert between[10:] == pytest.approx(in_ego[10:], abs=0.06)
    assert abs(states[-1].slip) > 0.01
    assert imu.gyro_radps[:, 2] == pytest.approx([s.yaw_rate_radps for s in states[1:]])


def test_rig_has_six_cameras_that_look_where_their_names_say():
    rig = nuscenes_rig(160, 96)
    assert tuple(c.name for c in rig) == NAMES
    for camera, yaw_deg in zip(rig, (0, -55, -110, 180, 110, 55), strict=True):
        camera.validate()
        assert (camera.width, camera.height) == (160, 96)
        ahead = 20 * np.array([np.cos(np.radians(yaw_deg)), np.sin(np.radians(yaw_deg)), 0])
        point = camera.T_ego_from_cam[:3, 3] + ahead
        T_cam_from_ego = np.linalg.inv(camera.T_ego_from_cam)
        uv, valid = camera.project(apply(T_cam_from_ego, point))
        assert valid
        assert uv == pytest.approx((79.5, 47.5), abs=0.2)  # the image's middle
        higher, _ = camera.project(apply(T_cam_from_ego, point + np.array([0, 0, 1.0])))
        assert higher[1] < uv[1]  # up in the world is up in the image
        side, _ = camera.project(apply(T_cam_from_ego, point + np.cross([0, 0, 1.0], ahead) / 20))
        assert side[0] < uv[0]  # left of the axis is left in the image


def test_rig_is_nuscenes_like_and_keeps_calibration_when_cropped():
    native = nuscenes_rig(1600, 900)
    assert native[0].K[0, 0] == 1266.0
    assert native[3].K[0, 0] == 809.0
    small = nuscenes_rig(160, 96)  # 5:3, so columns are cropped to 1500 of 1600
    assert small[0].K[0, 0] == pytest.approx(1266 * 160 / 1500)
    assert small[0].K[0, 0] == pytest.approx(small[0].K[1, 1])
    tall = nuscenes_rig(64, 64)
    assert tall[0].K[0, 0] == pytest.approx(tall[0].K[1, 1])
    spans = [2 * np.degrees(np.arctan(0.5 * c.width / c.K[0, 0])) for c in native]
    assert spans[0] == pytest.approx(64.6, abs=0.5)
    assert sum(spans) > 360  # all round


def test_exposures_differ_and_lie_within_the_last_period():
    assert len(set(EXPOSURE_BEFORE_US.tolist())) == 6
    assert EXPOSURE_BEFORE_US.min() >= 0
    assert EXPOSURE_BEFORE_US.max() <= PERIOD_US
    assert EXPOSURE_BEFORE_US.max() - EXPOSURE_BEFORE_US.min() >= 40_000


def test_rig_rejects():
    with pytest.raises(InputError, match="width, height"):
        nuscenes_rig(0, 96)
