"""Every protocol by name: from the logs of a run to {metric: (value, valid)}, and whether two runs differ.

A protocol is a function of one log; a run's figure is the mean over its episodes of those that are available (`.n` of
them), each weighted by what the protocol counts (plans of a replay, kilometres, else 1). What a log cannot support is
not available, never 1. The interval is the percentile bootstrap over episodes (Efron 1979).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sensors.errors import InputError, nearest
from sim.metrics import drive_protocols, driving
from sim.metrics.drive_protocols import Drive
from sim.metrics.junctions import junctions
from sim.metrics.log_view import LogView
from sim.metrics.open_loop import keyframe_errors
from sim.metrics.plan_protocols import pdm_scores
from sim.metrics.replay_protocols import nuscenes
from sim.rollout_log import EpisodeLog, read_episode

Figure = tuple[float, bool, float]  # value, valid, weight
NOT_AVAILABLE: Figure = (float("nan"), False, 0.0)
RESAMPLES = 2000
MISSING_IS_ZERO = ("bench2drive.driving_score", "bench2drive.success_rate")  # what did not finish counts, as 0
PER_KM, BETWEEN_KM = "incidents_per_km", "km_between_incidents"


@dataclass(frozen=True)
class Protocol:
    """In words; the kinds of log that can support it; what it makes of one; its metrics; `quick`: part of every run."""

    words: str
    kinds: tuple[str, ...]
    figures: Callable[["Prepared"], dict[str, tuple]]
    names: tuple[str, ...]
    quick: bool = False


class Prepared:
    """One log, and what protocols share of it, made when first asked for."""

    def __init__(self, log: EpisodeLog):
        self.log, self.view = log, LogView(log)
        self._drive: Drive | None = None

    @property
    def drive(self) -> Drive:
        self._drive = self._drive or Drive(self.view)
        return self._drive


def _simple(kind: str) -> Callable[[Prepared], dict[str, tuple]]:
    def figures(prepared: Prepared) -> dict[str, tuple]:
        weight = len(keyframe_errors(prepared.log)[0]) if kind == "replay" else 1
        return {name: (*metric(prepared.log), weight) for name, metric in driving.METRICS[kind].items()}

    return figures


def _plain(prepared: Prepared) -> dict[str, tuple]:
    figures = drive_protocols.plain(prepared.drive)
    return figures | {PER_KM: (*figures[PER_KM], float(prepared.drive.step_m.sum()) / 1000)}


def _pdm(prepared: Prepared) -> dict[str, tuple]:
    """An episode of a drive counts once, however early it ended; a recording counts by its plans."""
    figures = pdm_scores(prepared.view)
    return {n: (v, ok, count if prepared.log.kind == "replay" else 1) for n, (v, ok, count) in figures.items()}


PLAIN = ("route_completion", "at_fault_collision_rate", "red_light_rate", "comfort_rate", PER_KM, BETWEEN_KM)
PDM = ("pdms.compat", "pdms.strict", "epdms.compat", "epdms.strict")
PDM += ("epdms_two_stage.compat", "epdms_two_stage.strict", "pdms.judged_share")
B2D = ("driving_score", "success_rate", "efficiency", "comfort_compat", "comfort_strict")
L2 = tuple(f"l2_{s}s_m" for s in (1, 2, 3)) + tuple(f"{n}_{s}s" for n in ("obj_col", "obj_box_col") for s in (1, 2, 3))
NUSCENES = tuple(f"nuscenes.{c}.{name}" for c in ("uniad", "stp3", "hybrid") for name in L2)
NUSCENES += ("nuscenes.turning.l2_3s_m", "nuscenes.off_road_rate")
DRIVE, REPLAY, BOTH = ("drive",), ("replay",), ("drive", "replay")
PROTOCOLS = {
    "drive": Protocol("plain figures of the drive", DRIVE, _simple("drive"), tuple(driving.METRICS["drive"]), True),
    "replay": Protocol("plain open loop", REPLAY, _simple("replay"), tuple(driving.METRICS["replay"]), True),
    "plain": Protocol("route, faults, lights, comfort", DRIVE, _plain, PLAIN, True),
    "pdm": Protocol("NAVSIM: PDMS and EPDMS of every plan", BOTH, _pdm, PDM),
    "nuplan": Protocol("nuPlan closed loop", DRIVE, lambda p: drive_protocols.nuplan(p.drive), ("nuplan.score",)),
    "carla": Protocol(
        "CARLA leaderboard 2.0 and 2.1",
        DRIVE,
        lambda p: drive_protocols.carla(p.drive),
        ("carla_2_0.driving_score", "carla_2_1.driving_score"),
    ),
    "bench2drive": Protocol(
        "Bench2Drive", DRIVE, lambda p: drive_protocols.bench2drive(p.drive), tuple(f"bench2drive.{n}" for n in B2D)
    ),
    "hugsim": Protocol("HUGSIM", DRIVE, lambda p: drive_protocols.hugsim(p.drive), ("hugsim.hd", "hugsim.hd_strict")),
    "neuroncap": Protocol("NeuroNCAP", DRIVE, lambda p: drive_protocols.neuroncap(p.drive), ("neuroncap.score",)),
    "alpasim": Protocol("AlpaSim", DRIVE, lambda p: drive_protocols.alpasim(p.drive), ("alpasim.score",)),
    "junctions": Protocol("junctions left as told", DRIVE, lambda p: junctions(p.drive), ("junction.followed",)),
    "nuscenes": Protocol("nuScenes open loop, three conventions", REPLAY, lambda p: nuscenes(p.view), NUSCENES),
}
QUICK = tuple(name for name, protocol in PROTOCOLS.items() if protocol.quick)


def get_protocol(name: str) -> Protocol:
    """The protocol of this name, or an InputError that says which was meant."""
    if name not in PROTOCOLS:
        expected = f"all or one of {', '.join(PROTOCOLS)}"
        raise InputError("--protocol", "name", name, expected, nearest(name, PROTOCOLS))
    return PROTOCOLS[name]


def episode_figures(log: EpisodeLog, names: Iterable[str]) -> dict[str, Figure]:
    """Every metric of the named protocols for one log: (value, valid, weight); what it cannot support is not valid."""
    prepared, out = Prepared(log), {}
    for name in names:
        protocol = get_protocol(name)
        out |= dict.fromkeys(protocol.names, NOT_AVAILABLE)
        if log.kind in protocol.kinds and (len(log) >= 2 or (protocol.quick and protocol is not PROTOCOLS["plain"])):
            found = protocol.figures(prepared)
            out |= {metric: _figure(*figure) for metric, figure in found.items()}
    return out


def _figure(value: float, valid: bool, weight: float = 1.0) -> Figure:
    return (float(value), True, float(weight)) if valid and np.isfinite(value) and weight > 0 else NOT_AVAILABLE


def figures_of_file(path: Path, names: Sequence[str]) -> tuple[str, dict[str, Figure]]:
    """(kind, `episode_figures`) of the log at a path: one piece of work for one core."""
    log = read_episode(path)
    return log.kind, episode_figures(log, names)


def score(logs: Sequence[EpisodeLog], names: Iterable[str] = tuple(PROTOCOLS)) -> dict[str, tuple[float, bool]]:
    """{metric: (value, valid)} of the run that these logs make; failed episodes are in no mean. No log: InputError."""
    if not logs:
        raise InputError("score", "logs", "none", "at least one episode log", "Was the run empty?")
    names = tuple(names)
    metrics = [metric for name in names for metric in get_protocol(name).names]
    flat = summarize([None if log.error else episode_figures(log, names) for log in logs], metrics, resamples=0)
    return {metric: (flat.get(metric, float("nan")), metric in flat) for metric in metrics}


def summarize(
    rows: Sequence[dict[str, Figure] | None], metrics: Iterable[str] = (), seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, float]:
    """Flat figures of a run from those of its episodes, None for a failed one: it counts in n_failed and in no mean,
    but for Bench2Drive, where a route that is missing has 0.

    Per metric the weighted mean, `.n` episodes in it, `.ci95_low`, `.ci95_high`; one of `metrics` that no episode has
    gets `.n` = 0 and no value. `n_keyframes`: of a replay, those in its means.
    """
    whole = [row for row in rows if row is not None]
    flat: dict[str, float] = {"n_episodes": len(rows), "n_failed": len(rows) - len(whole)}
    if "ade_3s_m" in metrics:
        flat["n_keyframes"] = int(sum(row["ade_3s_m"][2] for row in whole if "ade_3s_m" in row))
    for metric in dict.fromkeys([*metrics, *(name for row in whole for name in row)]):
        known = [row[metric] for row in whole if metric in row and row[metric][1]]
        if metric in MISSING_IS_ZERO and known:
            known += [(0.0, True, 1.0)] * flat["n_failed"]
        values, weights = np.array([k[0] for k in known]), np.array([k[2] for k in known], dtype=np.float64)
        flat |= driving.mean_with_interval(metric, values, weights, np.random.default_rng(seed), resamples)
    return flat | _between_incidents(flat) if f"{PER_KM}.n" in flat else flat


def _between_incidents(flat: dict[str, float]) -> dict[str, float]:
    """Kilometres between incidents, of a run: the inverse of incidents per km, and of its interval where that is not 0.

    A run without an incident has no such figure, however far it went.
    """
    inverse = {f"{BETWEEN_KM}.n": flat[f"{PER_KM}.n"]}
    for mine, other in (("", ""), (".ci95_low", ".ci95_high"), (".ci95_high", ".ci95_low")):
        if flat.get(PER_KM, 0.0) > 0.0 and flat.get(PER_KM + other, 0.0) > 0.0:
            inverse[BETWEEN_KM + mine] = 1.0 / flat[PER_KM + other]
    return inverse


@dataclass(frozen=True)
class Difference:
    """Means of two runs over the n scenes that both have, and the 95 % interval (low, high) of b minus a, paired."""

    metric: str
    a: float
    b: float
    low: float
    high: float
    n: int

    @property
    def differ(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.low > 0.0 or self.high < 0.0


def compare_figures(
    a: dict[str, dict[str, Figure]], b: dict[str, dict[str, Figure]], seed: int = 0, resamples: int = RESAMPLES
) -> list[Difference]:
    """Every metric available in at least two common scenes ({scene: figures}), resampled as pairs of one scene."""
    scenes, found = [scene for scene in a if scene in b], []
    for metric in dict.fromkeys(name for scene in scenes for name in a[scene] if name in b[scene]):
        pairs = [(a[s][metric], b[s][metric]) for s in scenes if metric in a[s] and metric in b[s]]
        pairs = [(x, y) for x, y in pairs if x[1] and y[1] and x[2] > 0 and y[2] > 0]
        if len(pairs) < 2:
            continue
        value, weight = np.array([[(x[0], y[0]), (x[2], y[2])] for x, y in pairs], dtype=np.float64).transpose(1, 2, 0)
        draws = np.random.default_rng(seed).integers(0, len(pairs), (resamples, len(pairs)))
        means = (value * weight)[:, draws].sum(axis=2) / weight[:, draws].sum(axis=2)
        low, high = np.percentile(means[1] - means[0], (2.5, 97.5))
        mean_a, mean_b = np.average(value, weights=weight, axis=1)
        found.append(Difference(metric, float(mean_a), float(mean_b), float(low), float(high), len(pairs)))
    return found
