"""Light and air: what weather does to colours. All renderers compute a pixel's colour by the same formulas.

    light  = ambient + direct max(0, n . SUN) + beam(p) BEAM_COLOUR         n: outward normal; p: point in the ego frame
    lit    = paint . light, or the lamp's own colour for a lamp that shines
    colour = lit (1 - wet) e^(-d/haze_m) + horizon (1 - (1 - wet) e^(-d/haze_m))              d: depth along the axis
             (half of it for a lamp that shines: light carries further than paint)
    wet    = 0.55 rain (1 - |ray_z|)^3 on the ground, 0 elsewhere           a wet road mirrors the sky at a flat angle

The ground's paint is as it looks by day: its light is divided by what a level face gets on a clear day.
"""

from dataclasses import dataclass, fields
from functools import cached_property, lru_cache

import cv2
import numpy as np

from sensors.errors import InputError

SUN = np.array([0.45, 0.32, 0.83]) / np.linalg.norm([0.45, 0.32, 0.83])  # direction to the sun, world
AMBIENT, DIRECT = 0.58, 0.47  # light of a clear day
BEAM_COLOUR = np.array([1.0, 0.95, 0.84])
BEAM_FROM_M = 3.4  # the ego's headlamps lie this far ahead of its origin, the rear axle
RAIN_CELLS, RAIN_SHARE = 256, 0.6
# What daylight 0 (night), 0.4 (dusk) and 1 (day) look like.
DAYLIGHT = np.array([0.0, 0.4, 1.0])
ZENITH = np.array([[9, 11, 22], [62, 68, 116], [92, 142, 206]], float)
HORIZON = np.array([[22, 25, 36], [214, 146, 108], [206, 218, 226]], float)
OVERCAST = np.array([[14, 15, 20], [112, 110, 118], [186, 192, 196]], float)
AMBIENT_LIGHT = np.array([[0.15, 0.17, 0.22], [0.36, 0.33, 0.40], [AMBIENT] * 3])
DIRECT_LIGHT = np.array([[0.02, 0.02, 0.03], [0.30, 0.19, 0.11], [DIRECT] * 3])


@dataclass(frozen=True)
class Weather:
    """The default is a clear day; WEATHERS names others.

    sun      0...1  share of sunlight that comes through the clouds; without it nothing throws a hard shadow
    haze_m   distance at which a colour is 63 % horizon, above 0
    rain     0...1  streaks in the air and a wet road
    daylight 0...1  1 day, 0.4 dusk, 0 night; below 0.5 vehicles, the ego too, have their headlamps on
    """

    sun: float = 1.0
    haze_m: float = 260.0
    rain: float = 0.0
    daylight: float = 1.0

    def validate(self, where: object = "weather") -> "Weather":
        """Self, or an InputError that names the first bad field."""
        for name in (f.name for f in fields(self)):
            value, haze = getattr(self, name), name == "haze_m"
            if not (5.0 <= value <= 1e5 if haze else 0.0 <= value <= 1.0):  # NaN fails too
                raise InputError(where, name, value, "5 to 100,000 m" if haze else "0 to 1")
        return self

    @property
    def headlamps(self) -> bool:
        return self.daylight < 0.5

    @property
    def beam(self) -> float:
        """Strength of the ego's headlamps, 0...1."""
        return float(np.clip((0.5 - self.daylight) / 0.4, 0.0, 1.0))

    @cached_property
    def zenith(self) -> np.ndarray:
        """Colour [3] of the sky overhead."""
        clear, grey = _by_daylight(ZENITH, self.daylight), _by_daylight(OVERCAST, self.daylight)
        return grey * 0.9 + (clear - grey * 0.9) * self.sun

    @cached_property
    def horizon(self) -> np.ndarray:
        """Colour [3] of the sky at the horizon, and of haze."""
        clear, grey = _by_daylight(HORIZON, self.daylight), _by_daylight(OVERCAST, self.daylight)
        return grey + (clear - grey) * self.sun

    @cached_property
    def direct(self) -> np.ndarray:
        return _by_daylight(DIRECT_LIGHT, self.daylight) * self.sun

    @cached_property
    def ambient(self) -> np.ndarray:
        """Clouds scatter what they hold back."""
        return _by_daylight(AMBIENT_LIGHT, self.daylight) + 0.6 * (1 - self.sun) * _by_daylight(
            DIRECT_LIGHT, self.daylight
        )

    @cached_property
    def ground(self) -> np.ndarray:
        """Light [3] on the ground, without the beam; a wet road is darker."""
        clear_day = AMBIENT + DIRECT * SUN[2]
        return (self.ambient + self.direct * SUN[2]) / clear_day * (1 - 0.3 * self.rain)

    def wet(self, steep: np.ndarray) -> np.ndarray:
        """Share [...] of the sky in what a wet road shows along rays whose unit direction has this z component."""
        return 0.55 * self.rain * (1 - np.abs(steep)) ** 3

    @property
    def streak(self) -> np.ndarray:
        """Colour [3] of falling rain."""
        return 0.5 * self.horizon + 90 * (0.15 + 0.85 * self.daylight)

    @property
    def shadow(self) -> float:
        """What is left of the ground's light under a solid."""
        return 0.45 + 0.35 * (1 - self.sun * min(1.0, self.daylight / 0.4))


WEATHERS = {
    "clear": Weather(),
    "overcast": Weather(sun=0.0, haze_m=200.0),
    "haze": Weather(sun=0.35, haze_m=55.0),
    "rain": Weather(sun=0.0, haze_m=110.0, rain=0.8, daylight=0.8),
    "dusk": Weather(sun=0.9, haze_m=180.0, daylight=0.4),
    "night": Weather(sun=0.8, haze_m=220.0, daylight=0.0),
    "night-rain": Weather(sun=0.0, haze_m=110.0, rain=0.8, daylight=0.0),
}


def beam_at(points_in_ego_m: np.ndarray) -> np.ndarray:
    """Light [...] of the ego's headlamps at full strength on points [..., 2 or 3]: a cone ahead that fades with range.

    beam = 1.25 e^(-s/26) / (1 + (y / (1.6 + 0.3 s))^4) for s = x - BEAM_FROM_M > 0, else 0
    """
    s, y = points_in_ego_m[..., 0] - BEAM_FROM_M, points_in_ego_m[..., 1]
    ahead = np.maximum(s, 0.0)
    across = (y / (1.6 + 0.3 * ahead)) ** 2
    return np.where(s > 0, 1.25 * np.exp(-ahead / 26.0) / (1 + across * across), 0.0)


@lru_cache(maxsize=1)
def rain_tile() -> np.ndarray:
    """Opacity float32 [RAIN_CELLS, RAIN_CELLS] of rain streaks; it repeats in both directions."""
    rng = np.random.default_rng(0)
    tile = np.zeros((3 * RAIN_CELLS, 3 * RAIN_CELLS), np.float32)
    for _ in range(260):
        x, y = rng.integers(0, RAIN_CELLS, 2)
        length, opacity = int(rng.integers(6, 22)), float(rng.uniform(0.1, 0.42))
        for dx, dy in np.ndindex(3, 3):
            at = int(x + dx * RAIN_CELLS), int(y + dy * RAIN_CELLS)
            cv2.line(tile, at, (at[0] + length // 6, at[1] + length), opacity, 1)
    return tile[RAIN_CELLS : 2 * RAIN_CELLS, RAIN_CELLS : 2 * RAIN_CELLS].copy()


def rain_offset(time_us: int, camera: int) -> np.ndarray:
    """Where the rain tile lies in the image of a camera, int [2] (column, row)."""
    return np.random.default_rng([int(time_us), camera]).integers(0, RAIN_CELLS, 2)


def streaks(height: int, width: int, time_us: int, camera: int) -> np.ndarray:
    """Opacity float32 [H, W] of rain in an image; a tile is RAIN_SHARE of the image's width."""
    column, row = rain_offset(time_us, camera)
    cells = RAIN_CELLS / (RAIN_SHARE * width)
    rows = (np.arange(height) * cells + row).astype(int) % RAIN_CELLS
    columns = (np.arange(width) * cells + column).astype(int) % RAIN_CELLS
    return rain_tile()[rows[:, None], columns]


def _by_daylight(table: np.ndarray, daylight: float) -> np.ndarray:
    return np.array([np.interp(daylight, DAYLIGHT, table[:, k]) for k in range(3)])
