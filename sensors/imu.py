"""A window of inertial measurements, kept at the sensor's own rate, and what a real sensor adds to the truth.

The accelerometer measures specific force f = R_ego_from_world (a - g), so a car at rest on level ground reads
(0, 0, +9.81) m/s2. Axes are those of the ego frame.
"""

from dataclasses import dataclass

import numpy as np

from sensors.errors import InputError

GRAVITY_MPS2 = 9.80665  # standard gravity, CODATA
UG_MPS2, MDPS_RADPS = GRAVITY_MPS2 * 1e-6, np.radians(1e-3)


@dataclass(frozen=True)
class ImuWindow:
    """J samples in order of time; J may be 0 (no IMU on this source).

    time_us     int64   [J]     strictly increasing
    accel_mps2  float64 [J, 3]  specific force in ego axes, gravity included
    gyro_radps  float64 [J, 3]  angular rate in ego axes
    """

    time_us: np.ndarray
    accel_mps2: np.ndarray
    gyro_radps: np.ndarray

    @classmethod
    def empty(cls) -> "ImuWindow":
        return cls(np.zeros(0, np.int64), np.zeros((0, 3)), np.zeros((0, 3)))

    def __len__(self) -> int:
        return len(self.time_us)

    def validate(self, where: object = "imu") -> "ImuWindow":
        """Self, or an InputError that names the first bad field."""
        if self.time_us.ndim != 1 or self.time_us.dtype != np.int64:
            raise InputError(where, "time_us", f"{self.time_us.dtype} {self.time_us.shape}", "int64 [J]")
        for name in ("accel_mps2", "gyro_radps"):
            value = getattr(self, name)
            if value.shape != (len(self), 3):
                raise InputError(where, name, f"shape {value.shape}", f"({len(self)}, 3), one row per time stamp")
            bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
            if len(bad):
                raise InputError(where, f"{name}[{bad[0]}]", value[bad[0]], "finite numbers")
        back = np.flatnonzero(np.diff(self.time_us) <= 0)
        if len(back):
            k = int(back[0])
            raise InputError(
                where, f"time_us[{k + 1}]", f"{self.time_us[k + 1]} after {self.time_us[k]}", "increasing time"
            )
        return self

    def window(self, after_us: int, until_us: int) -> "ImuWindow":
        """The samples with after_us < time <= until_us (views, no copy)."""
        i, j = np.searchsorted(self.time_us, (after_us, until_us), side="right")
        return ImuWindow(self.time_us[i:j], self.accel_mps2[i:j], self.gyro_radps[i:j])

    def resample(self, time_us: np.ndarray) -> "ImuWindow":
        """Linear interpolation at `time_us` [M]; times outside the window are an InputError, never extrapolated."""
        time_us = np.asarray(time_us, np.int64)
        if len(time_us) and (not len(self) or time_us.min() < self.time_us[0] or time_us.max() > self.time_us[-1]):
            span = f"[{self.time_us[0]}, {self.time_us[-1]}] us" if len(self) else "an empty window"
            raise InputError(
                "imu.resample", "time_us", f"[{time_us.min()}, {time_us.max()}] us", f"times inside {span}"
            )
        # Relative to the first sample: microseconds since 1970 do not fit a float64 product exactly.
        at, base = (time_us - self.time_us[0], self.time_us - self.time_us[0]) if len(self) else (time_us, time_us)

        def columns(values):
            return np.stack([np.interp(at, base, values[:, c]) for c in range(3)], axis=1) if len(at) else values[:0]

        return ImuWindow(time_us, columns(self.accel_mps2), columns(self.gyro_radps))


@dataclass(frozen=True)
class ImuErrors:
    """The errors of an IMU in the units of data sheets; all zero is an ideal one.

    reading = truth + bias + white noise,  bias = turn-on bias + random walk, each axis its own. At an output rate f a
    noise density n gives samples a standard deviation n sqrt(f), and in t seconds a walk w spreads by w sqrt(t)
    (Woodman 2007, An introduction to inertial navigation, section 3.2).

    accel_bias_mg, gyro_bias_dps                      standard deviation of the turn-on bias (mg, deg/s)
    accel_noise_ug_rthz, gyro_noise_mdps_rthz         noise density (ug / sqrt(Hz), mdeg/s / sqrt(Hz))
    accel_walk_ug_rts, gyro_walk_mdps_rts             walk of the bias (ug / sqrt(s), mdeg/s / sqrt(s))
    rate_hz                                           output data rate
    """

    accel_bias_mg: float = 0.0
    gyro_bias_dps: float = 0.0
    accel_noise_ug_rthz: float = 0.0
    gyro_noise_mdps_rthz: float = 0.0
    accel_walk_ug_rts: float = 0.0
    gyro_walk_mdps_rts: float = 0.0
    rate_hz: float = 100.0

    def validate(self, where: object = "imu errors") -> "ImuErrors":
        """Self, or an InputError that names the first bad field."""
        for name, value in vars(self).items():
            low = 1e-3 if name == "rate_hz" else 0.0
            if not low <= value <= 1e6:
                raise InputError(where, name, value, f"a number in [{low:g}, 1e+06]")
        return self


class FaultyImu:
    """One IMU from the moment it is switched on: `read` what it makes of the truth, window after window.

    Two windows give what their union would. `bias` [2, 3] is that of the last sample: m/s2, rad/s.
    """

    def __init__(self, errors: ImuErrors, rng: np.random.Generator):
        e, self._rng = errors.validate(), rng
        units = np.array([[UG_MPS2], [MDPS_RADPS]])
        self.bias = rng.standard_normal((2, 3)) * (1e3 * units * [[e.accel_bias_mg], [e.gyro_bias_dps]])
        noise = units * np.sqrt(e.rate_hz) * [[e.accel_noise_ug_rthz], [e.gyro_noise_mdps_rthz]]
        walk = units / np.sqrt(e.rate_hz) * [[e.accel_walk_ug_rts], [e.gyro_walk_mdps_rts]]
        self._spread = np.stack([walk, noise])  # [2, 2, 1]

    def read(self, truth: ImuWindow) -> ImuWindow:
        """The readings at the times of the truth, which are taken to be 1 / rate_hz apart."""
        if not len(truth):
            return truth
        steps, noise = np.moveaxis(self._rng.standard_normal((len(truth), 2, 2, 3)) * self._spread, 1, 0)
        bias = self.bias + np.cumsum(steps, axis=0)
        self.bias = bias[-1]
        error = bias + noise
        return ImuWindow(truth.time_us, truth.accel_mps2 + error[:, 0], truth.gyro_radps + error[:, 1])
