"""The CAN bus files of one scene, read and written: `can_bus/<scene>_<message>.json`.

`ms_imu` (100 Hz) is in ego axes (x forward, y left, z up) with gravity included: on scene-0103 its z rate is the yaw
rate of the poses (correlation 0.996, slope 1.00), its x the derivative of speed (0.988), its y speed times yaw rate
(0.94), and z averages 9.79 m/s2. `pose` (50 Hz) gives speed (vel[0]; 1.7 % below the poses there) and yaw rate
(rotation_rate[2]), `steeranglefeedback` (100 Hz) the angle of the steering wheel in radians. `vehicle_monitor` (2 Hz;
km/h, degrees) is written for the devkit's sake and not read. null in a written message is a signal nobody measured.

The state at an instant is that of the latest message at or before it. Converters that take the one before that, as
BEVFormer's does (its pull request 244), lag by a message, 20 ms of `pose`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sensors.clip import VehicleState
from sensors.errors import InputError
from sensors.frames import quaternion_from_rotation
from sensors.imu import ImuWindow
from sensors.nuscenes_tables import read_json

CAN_MESSAGES = ("ms_imu", "pose", "steeranglefeedback", "vehicle_monitor")
# Numbers of scenes whose CAN bus nuScenes refuses (`can_blacklist` of the devkit's NuScenesCanBus).
REFUSED = frozenset((*range(161, 169), *range(170, 177), *range(309, 315)))
STALE_US = 200_000  # a bus signal older than this says nothing about now
# Steering wheel over road wheels of the recording car, a Renault Zoe. Public converters of nuScenes use 16.6 (with a
# wheelbase of 2.588 m). A kinematic bicycle of that wheelbase, fitted to the yaw rate of scene-0103, gives 16.9 to 17.2
# depending on the lag assumed; understeer would raise it.
STEERING_RATIO = 16.6

MONITOR_PERIOD_US = 500_000  # of vehicle_monitor, as recorded
MONITOR_UNKNOWN = (
    *("available_distance", "battery_level", "brake", "brake_switch", "gear_position", "left_signal"),
    *("rear_left_rpm", "rear_right_rpm", "right_signal", "steering_speed", "throttle"),
)


@dataclass(frozen=True)
class Bus:
    """The CAN bus of one scene: the whole IMU track, and signals as (time_us [M], value [M])."""

    imu: ImuWindow
    speed_mps: tuple[np.ndarray, np.ndarray]
    yaw_rate_radps: tuple[np.ndarray, np.ndarray]
    steering_rad: tuple[np.ndarray, np.ndarray]

    def vehicle_at(self, now_us: int) -> VehicleState:
        """Each signal's latest value at or before now, NaN if it is older than STALE_US."""

        def latest(signal):
            time_us, value = signal
            k = int(np.searchsorted(time_us, now_us, side="right")) - 1
            return float(value[k]) if k >= 0 and now_us - time_us[k] <= STALE_US else float("nan")

        return VehicleState(latest(self.speed_mps), latest(self.yaw_rate_radps), latest(self.steering_rad))


def can_is_refused(scene: str) -> bool:
    """Whether nuScenes says that this scene's CAN bus is not to be used, files or not."""
    number = scene.removeprefix("scene-")
    return number.isdigit() and len(number) == 4 and int(number) in REFUSED


def read_bus(dataroot: Path, scene: str) -> Bus:
    """The bus of a scene from its three files; one that isn't there leaves its signals empty, as all are of a scene
    whose bus is refused. A bad message is an InputError."""
    folder = Path(dataroot) / "can_bus"
    if can_is_refused(scene):
        nothing = np.zeros(0, np.int64), np.zeros(0)
        return Bus(ImuWindow.empty(), nothing, nothing, nothing)
    imu_path, pose_path, steering_path = (folder / f"{scene}_{message}.json" for message in CAN_MESSAGES[:3])
    imu_us, accel_mps2, gyro_radps = _messages(imu_path, {"linear_accel": (3,), "rotation_rate": (3,)})
    pose_us, velocity_mps, rate_radps = _messages(pose_path, {"vel": (3,), "rotation_rate": (3,)})
    wheel_us, wheel_rad = _messages(steering_path, {"value": ()})
    return Bus(
        ImuWindow(imu_us, accel_mps2, gyro_radps),
        (pose_us, velocity_mps[:, 0]),
        (pose_us, rate_radps[:, 2]),
        (wheel_us, wheel_rad / STEERING_RATIO),
    )


def _messages(path: Path, fields: dict[str, tuple[int, ...]]) -> list[np.ndarray]:
    """`utime` [M] and float64 [M, *shape] of each field of one CAN bus file; all empty where there is no file.

    A message without the field, numbers that are not finite and time that does not increase are InputErrors.
    """
    rows = read_json(path) if path.exists() else []
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or type(row.get("utime")) is not int:
            raise InputError(path, f"utime[{i}]", row, "a message with an integer utime in microseconds")
    time_us = np.array([row["utime"] for row in rows], np.int64)
    back = np.flatnonzero(np.diff(time_us) <= 0)
    if len(back):
        i = int(back[0]) + 1
        raise InputError(path, f"utime[{i}]", f"{time_us[i]} after {time_us[i - 1]}", "increasing time")
    return [time_us, *(_column(path, rows, field, shape) for field, shape in fields.items())]


def _column(path: Path, rows: list[dict], field: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 [M, *shape] of one field; looked at message by message only where the whole is not as it should be."""
    try:
        values = np.array([row[field] for row in rows]).reshape(len(rows), *shape)
        if (values.dtype.kind in "iuf" and np.isfinite(values).all()) or not rows:
            return values.astype(np.float64)
    except (KeyError, ValueError):
        pass  # ragged or absent: the message that is to blame is found below
    expected = f"{shape[0]} finite numbers" if shape else "a finite number"
    for i, row in enumerate(rows):
        value = row.get(field, "no such field")
        numbers = value if shape and isinstance(value, list) else [value]
        if len(numbers) != (shape or (1,))[0] or not all(type(n) in (int, float) and np.isfinite(n) for n in numbers):
            raise InputError(path, f"{field}[{i}]", value, expected)
    raise InputError(path, field, "values of mixed types", expected)


def pose_fields(T: np.ndarray) -> dict[str, list[float]]:
    """`rotation` (w, x, y, z) and `translation` of a pose [4, 4], as records of nuScenes spell them."""
    return {"rotation": quaternion_from_rotation(T[:3, :3]).tolist(), "translation": T[:3, 3].tolist()}


def can_files(
    where: object,
    imu: ImuWindow,
    time_us: np.ndarray,
    T_world_from_ego: np.ndarray,
    speed_mps: np.ndarray,
    yaw_rate_radps: np.ndarray,
    steering_us: np.ndarray,
    steering_rad: np.ndarray,
) -> dict[str, list[dict] | dict]:
    """Content of every CAN bus file of a scene by message, `meta` included, from its whole IMU track; at times [M], ego
    poses [M, 4, 4] and vehicle state [M]; and at times of its own the steering, the angle of the road wheels."""
    imu.validate(where)
    signals = {"speed_mps": speed_mps, "yaw_rate_radps": yaw_rate_radps}
    steering = {"steering_us": steering_us, "steering_rad": steering_rad}
    for name, value in {"time_us": time_us, **signals, **steering}.items():
        count = len(steering_us) if name in steering else len(time_us)
        if value.shape != (count,) or not np.isfinite(value).all():
            raise InputError(where, name, f"{value.shape} {value}", f"{count} finite numbers")
    if T_world_from_ego.shape != (len(time_us), 4, 4) or not np.isfinite(T_world_from_ego).all():
        raise InputError(where, "T_world_from_ego", T_world_from_ego.shape, f"{len(time_us)} finite poses [4, 4]")
    for name, value in {"time_us": time_us, "steering_us": steering_us}.items():
        if (np.diff(value) <= 0).any() or not len(imu) + len(time_us) + len(steering_us):
            raise InputError(where, name, value, "at least one, increasing")
    messages = _messages_of(imu, time_us, T_world_from_ego, **signals, **steering)
    return {**messages, "meta": {name.upper(): _statistics(rows) for name, rows in messages.items() if rows}}


def _messages_of(
    imu, time_us, T_world_from_ego, speed_mps, yaw_rate_radps, steering_us, steering_rad
) -> dict[str, list[dict]]:
    """The messages of each file, with fields and units as nuScenes has them."""
    # `pose` repeats the latest IMU sample, as in the recorded files.
    held = np.searchsorted(imu.time_us, time_us, side="right") - 1
    pose = []
    for k, T in enumerate(T_world_from_ego):
        fields, seen = pose_fields(T), held[k] >= 0
        rate_radps = imu.gyro_radps[held[k], :2].tolist() if seen else [0.0, 0.0]
        pose.append(
            {
                "accel": imu.accel_mps2[held[k]].tolist() if seen else None,
                "orientation": fields["rotation"],
                "pos": fields["translation"],
                "rotation_rate": [*rate_radps, float(yaw_rate_radps[k])],
                "utime": int(time_us[k]),
                "vel": [float(speed_mps[k]), 0.0, 0.0],
            }
        )
    samples = zip(imu.time_us.tolist(), imu.accel_mps2.tolist(), imu.gyro_radps.tolist(), strict=True)
    inertial = [{"linear_accel": a, "q": None, "rotation_rate": g, "utime": t} for t, a, g in samples]
    wheel = [{"utime": int(t), "value": _wheel(a)} for t, a in zip(steering_us, steering_rad.tolist(), strict=True)]
    turned = np.searchsorted(steering_us, time_us, side="right") - 1
    first_us, last_us = (time_us[0], time_us[-1]) if len(time_us) else (1, 0)
    at = np.searchsorted(time_us, np.arange(first_us, last_us + 1, MONITOR_PERIOD_US))
    monitor = [
        {
            **dict.fromkeys(MONITOR_UNKNOWN),
            "steering": float(np.degrees(_wheel(float(steering_rad[turned[k]])))) if turned[k] >= 0 else None,
            "utime": int(time_us[k]),
            "vehicle_speed": float(speed_mps[k] * 3.6),
            "yaw_rate": float(np.degrees(yaw_rate_radps[k])),
        }
        for k in np.unique(at)
    ]
    return {"ms_imu": inertial, "pose": pose, "steeranglefeedback": wheel, "vehicle_monitor": monitor}


def _wheel(steering_rad: float) -> float:
    """Angle of the steering wheel; of those that round to it, one that reading divides to just these road wheels."""
    wheel_rad = steering_rad * STEERING_RATIO
    near = (wheel_rad, np.nextafter(wheel_rad, np.inf), np.nextafter(wheel_rad, -np.inf))
    return float(next((each for each in near if each / STEERING_RATIO == steering_rad), wheel_rad))


def _statistics(rows: list[dict]) -> dict:
    """What the meta file says of one message: count, span, frequency, and statistics of every signal measured."""
    span_s = (rows[-1]["utime"] - rows[0]["utime"]) / 1e6
    signals = {}
    for field in rows[0]:
        if all(row[field] is not None for row in rows):
            values = np.array([row[field] for row in rows], np.float64)
            signals[field] = {name: float(getattr(values, name)()) for name in ("max", "mean", "min", "std")}
    frequency = len(rows) / span_s if span_s else None
    return {"message_count": len(rows), "message_freq": frequency, "timespan": span_s, "var_stats": signals}
