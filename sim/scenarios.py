"""Scenarios of the town and suites of them: which town, which seed, how much traffic, which hazard, which weather."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sensors.errors import InputError, unknown_name
from sim.hazards import HAZARDS
from sim.weather import WEATHERS

ROUTE_M = (320.0, 650.0)
SHORT_ROUTE_M, HAZARD_ROUTE_M = (150.0, 320.0), (150.0, 700.0)
MERGE_ROUTE_M = (600.0, 1100.0)  # the ramps are far apart
HAZARD_LENGTH = 100
COURSE = "course"  # not of a town: its episodes are seeds
# Where a hazard can happen: two lanes side by side, a sidewalk, a light, a motorway, a roundabout.
HAZARD_TOWNS = {
    "cut-in": ("grid", "ring"),
    "jaywalker": ("grid", "irregular", "ring"),
    "hard-braking-lead": ("grid", "irregular", "ring"),
    "occluded-crossing": ("grid", "irregular", "ring"),
    "red-light-runner": ("grid", "irregular"),
    "blocked-lane": ("grid", "irregular", "ring"),
    "unprotected-left": ("grid", "irregular"),
    "merge": ("ring",),
    "roundabout": ("ring",),
}
# No seed of one suite is another's. Some towns are only there to learn from, and one is only in the test.
SEEN_TOWNS, UNSEEN_TOWN = ("grid", "irregular", "ring"), "oldtown"
TRAIN_TOWNS = (
    *SEEN_TOWNS,
    *("blocks", "suburb", "star", "market", "harbour"),
    *("terrace", "hamlet", "valley", "abbey", "castle", "mill", "fair", "quay"),
)
FIRST_SEED = {"town-smoke": 1, "town-val": 100_000, "town-test": 200_000, "hazard": 300_000, "town-train": 1_000_000}
# Of town-train, town-val and town-test alike; each scenario draws its own from its seed. The weather changes pictures,
# not who is where and does what. town-smoke and the hazards have clear days.
WEATHER_SHARES = {
    "clear": 0.40,
    "overcast": 0.15,
    "haze": 0.10,
    "rain": 0.15,
    "dusk": 0.10,
    "night": 0.05,
    "night-rain": 0.05,
}
LENGTH = {"town-smoke": 5, "town-val": 200, "town-test": 200, "town-train": 100_000}


@dataclass(frozen=True)
class Scenario:
    """One episode of the town, whole but for who drives it.

    town       name of a shipped town, or the path of a network
    vehicles, walkers  how many others live in the town
    route_m    shortest and longest route
    hazard     name in sim.hazards.HAZARDS, "" for none in particular
    weather    name in sim.weather.WEATHERS
    time_limit_s  long enough to wait at every light of the route
    """

    name: str
    town: str
    seed: int
    vehicles: int = 60
    walkers: int = 40
    route_m: tuple[float, float] = ROUTE_M
    hazard: str = ""
    weather: str = "clear"
    time_limit_s: float = 300.0

    def validate(self) -> "Scenario":
        """Self, or an InputError that names the first bad field."""
        for name in ("vehicles", "walkers"):
            if not 0 <= getattr(self, name) <= 500:
                raise InputError(f"scenario {self.name}", name, getattr(self, name), "a number from 0 to 500")
        if not 0 < self.route_m[0] < self.route_m[1]:
            raise InputError(f"scenario {self.name}", "route_m", self.route_m, "(shortest, longest) in metres")
        if self.hazard and self.hazard not in HAZARDS:
            raise unknown_name(f"scenario {self.name}", "hazard", self.hazard, HAZARDS)
        if self.weather not in WEATHERS:
            raise unknown_name(f"scenario {self.name}", "weather", self.weather, WEATHERS)
        if not self.time_limit_s > 0:
            raise InputError(f"scenario {self.name}", "time_limit_s", self.time_limit_s, "a time above 0 s")
        return self


def _smoke(k: int) -> Scenario:
    town = (*SEEN_TOWNS, "grid", "irregular")[k]
    return Scenario(f"town-smoke/{k}", town, FIRST_SEED["town-smoke"] + k, 40, 20, SHORT_ROUTE_M, time_limit_s=120.0)


def _weather(seed: int) -> str:
    draw = np.random.default_rng([seed, 7]).random()
    ends = np.cumsum(list(WEATHER_SHARES.values()))
    return list(WEATHER_SHARES)[min(int(np.searchsorted(ends, draw, side="right")), len(ends) - 1)]


def _train(k: int) -> Scenario:
    many, seed = k // len(TRAIN_TOWNS), FIRST_SEED["town-train"] + k
    vehicles, walkers, town = 30 + 10 * (many % 5), 20 + 20 * (many // 5 % 3), TRAIN_TOWNS[k % len(TRAIN_TOWNS)]
    return Scenario(f"town-train/{k}", town, seed, vehicles, walkers, weather=_weather(seed))


def _val(k: int) -> Scenario:
    seed = FIRST_SEED["town-val"] + k
    return Scenario(f"town-val/{k}", SEEN_TOWNS[k % 3], seed, weather=_weather(seed))


def _test(k: int) -> Scenario:
    seed = FIRST_SEED["town-test"] + k
    return Scenario(f"town-test/{k}", (*SEEN_TOWNS, UNSEEN_TOWN)[k % 4], seed, weather=_weather(seed))


def _of_hazard(name: str) -> Callable[[int], Scenario]:
    towns = HAZARD_TOWNS[name]
    first = FIRST_SEED["hazard"] + HAZARD_LENGTH * list(HAZARDS).index(name)
    route_m = MERGE_ROUTE_M if name == "merge" else HAZARD_ROUTE_M

    def scenario(k: int) -> Scenario:
        return Scenario(f"hazard-{name}/{k}", towns[k % len(towns)], first + k, 25, 15, route_m, name)

    return scenario


SUITES: dict[str, Callable[[int], Scenario]] = {
    "town-smoke": _smoke,
    "town-train": _train,
    "town-val": _val,
    "town-test": _test,
    **{f"hazard-{name}": _of_hazard(name) for name in HAZARDS},
}


def get_scenario(name: str) -> Scenario:
    """The scenario SUITE/NUMBER."""
    suite, _, number = name.partition("/")
    length = suite_length(suite)
    if not number.isdecimal() or int(number) >= length:
        raise InputError("scenario", "name", name, f"{suite}/0 to {suite}/{length - 1}")
    return SUITES[suite](int(number))


def suite_length(suite: str) -> int:
    """How many scenarios a suite has; an unknown one is an InputError that names the nearest."""
    if suite not in SUITES:
        raise unknown_name("suite", "name", suite, SUITES)
    return LENGTH.get(suite, HAZARD_LENGTH)
