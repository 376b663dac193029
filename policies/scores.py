"""Scoring of finished runs: every protocol from the logs alone, again and again, and whether two runs differ."""

import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import threadpoolctl
from tqdm import tqdm

from policies.runs import UNFINISHED, Run
from sensors.errors import InputError
from sim.metrics.protocols import PROTOCOLS, Difference, Figure, compare_figures
from sim.report.summary import read_summary

WORTH_A_POOL = 4  # logs; a worker takes seconds to start


def open_run(path: Path) -> Run:
    """A finished run as it is on disk; a folder that is none, or a run without a log, is an InputError."""
    summary = read_summary(path / "summary.json")
    if not summary["episodes"]:
        raise InputError(path / "summary.json", "episodes", "none", "a run with episodes", "vla drive makes one.")
    if not any(row["log"] for row in summary["episodes"]):
        came = f"{len(summary['episodes'])} episodes, all of them failed"
        raise InputError(path / "summary.json", "episodes", came, "at least one that finished")
    return Run(path, summary)


def score_run(path: Path, names: Sequence[str], progress: bool = True) -> Run:
    """Score every log of a run by the named protocols and save the summary; media and logs are left as they are.

    Logs are shared out among the cores. A log that cannot be read is an InputError and nothing is changed.
    """
    run = open_run(path)
    cores = len(os.sched_getaffinity(0))
    logs = sum(bool(row["log"]) for row in run.summary["episodes"])
    order = list(dict.fromkeys([*run.summary["policies"], *(row["policy"] for row in run.summary["episodes"])]))
    bar = partial(tqdm, total=logs, unit="log", desc="score", disable=not progress)
    if cores < 2 or logs < WORTH_A_POOL:
        run.score(order, names, lambda *work: bar(map(*work)))
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(cores, spawn, threadpoolctl.threadpool_limits, (1, "blas")) as pool:
            run.score(order, names, lambda *work: bar(pool.map(*work)))
    run.save()
    return run


def interrupted(run: Run) -> list[str]:
    """Names of the episodes that were under way when the run was killed: recorded in part, in no row and no score."""
    names = {log.name.removesuffix(UNFINISHED) for log in (run.path / "episodes").glob(f"*{UNFINISHED}")}
    return sorted(names - {row["name"] for row in run.summary["episodes"]})


def table(summary: dict) -> list[str]:
    """Lines: each metric of the run's policies, the first one's n and 95 % interval; what is not available, by name."""
    policies = list(summary["policies"])
    width = max(14, *(len(policy) for policy in policies))
    lines = [f"  {'':34s}" + "".join(f" {policy:>{width}s}" for policy in policies) + "     n  95 % interval"]
    own = summary["policies"][policies[0]]
    names, lacking = [key.removesuffix(".n") for key in own if key.endswith(".n")], []
    for name in names:
        if not any(name in summary["policies"][policy] for policy in policies):
            lacking.append(name)
            continue
        flats = [summary["policies"][policy] for policy in policies]
        cells = [f"{flat[name]:{width}.3f}" if name in flat else f"{'not available':>{width}s}" for flat in flats]
        low, high = own.get(f"{name}.ci95_low"), own.get(f"{name}.ci95_high")
        interval = f"  {low:.3f} to {high:.3f}" if None not in (low, high) and own[f"{name}.n"] > 1 else ""
        lines.append(f"  {name:34s} " + " ".join(cells) + f" {own[f'{name}.n']:5d}{interval}")
    for protocol in PROTOCOLS.values():  # in one word where all of it is
        if len(protocol.names) > 1 and set(protocol.names) <= set(lacking):
            lacking = [name for name in lacking if name not in protocol.names] + [protocol.words]
    return [*lines, f"  not available from these logs: {', '.join(lacking)}"] if lacking else lines


def compare_runs(a: Path, b: Path) -> tuple[list[str], list[Difference]]:
    """What is compared, in words, and the paired difference of every metric that both runs have.

    The run's own policy (the first of its summary) stands for it. Different suites, no common scene, or a run that was
    never scored: an InputError.
    """
    sides = [_scored_scenes(path) for path in (a, b)]
    suites = [{suite for suite, _ in figures} for _, figures, _ in sides]
    if suites[0] != suites[1]:
        raise InputError(b, "suite", ", ".join(sorted(suites[1])), ", ".join(sorted(suites[0])), "Compare like runs.")
    (name_a, figures_a, failed_a), (name_b, figures_b, failed_b) = sides
    common = set(figures_a) & set(figures_b)
    if not common:
        came, expected = (", ".join(sorted(scene for _, scene in f)[:3]) for f in (figures_b, figures_a))
        raise InputError(b, "scenes", f"{came} ...", f"some of {expected} ...", "Run both on the same scenes.")
    words = [
        f"a: {a} ({name_a}), b: {b} ({name_b}), {len(common)} common scenes",
        *(
            f"  left out of {side}: {len(own) - len(common)} scenes without a partner, {failed} FAILED"
            for side, own, failed in (("a", figures_a, failed_a), ("b", figures_b, failed_b))
            if failed or len(own) > len(common)
        ),
    ]
    return words, compare_figures(figures_a, figures_b)


def _scored_scenes(path: Path) -> tuple[str, dict[tuple[str, str], dict[str, Figure]], int]:
    """(policy, {(suite, scene): figures}, failed scenes) of a run's own policy."""
    summary = open_run(path).summary
    policy = next(iter(summary["policies"]), summary["episodes"][0]["policy"])
    rows = [row for row in summary["episodes"] if row["policy"] == policy]
    figures = {}
    for row in rows:
        if row["log"] and "scores" not in row:
            raise InputError(path / "summary.json", "scores", "none", "a scored run", f"vla score {path}")
        if row["log"]:
            scores = row["scores"].items()
            figures[row["suite"], row["scene"]] = {name: (value, True, weight) for name, (value, weight) in scores}
    return policy, figures, sum(not row["log"] for row in rows)


def differences(found: Sequence[Difference]) -> list[str]:
    """A line each: both means, the interval of the difference, and the verdict in words."""
    lines = [f"  {'':34s} {'a':>10s} {'b':>10s} {'b - a':>10s}  95 % interval of b - a      n"]
    for d in found:
        verdict = "these two differ" if d.differ else "they do not differ"
        between = f"{d.low:.3f} to {d.high:.3f}"
        lines.append(f"  {d.metric:34s} {d.a:10.3f} {d.b:10.3f} {d.b - d.a:10.3f}  {between:24s} {d.n:4d}  {verdict}")
    return lines


def to_json(found: Sequence[Difference]) -> str:
    """The same as one JSON object, metric to figures."""
    rows = {d.metric: {"a": d.a, "b": d.b, "low": d.low, "high": d.high, "n": d.n, "differ": d.differ} for d in found}
    return json.dumps(rows, indent=2)
