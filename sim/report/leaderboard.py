"""Several runs beside each other: one table a suite, a row for each policy of each run.

Runs on different suites never stand in one table. Where the rows of a suite drove different scenes, the page says so:
means over different scenes are not compared, `vla compare` pairs what both have.
"""

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from sensors.errors import InputError
from sim.report.summary import LABELS, cell, number, policies_of, read_summary, role
from sim.report.templates import write_page

# metric: whether more of it is better. A table has those that any row of it has, its rows in the order of the first.
COLUMNS = {
    "carla_2_1.driving_score": True,
    "nuplan.score": True,
    "epdms.strict": True,
    "pdms.strict": True,
    "hugsim.hd": True,
    "neuroncap.score": True,
    "alpasim.score": True,
    "route_completion": True,
    "time_on_course_s": True,
    "at_fault_collision_rate": False,
    "off_road_rate": False,
    "red_light_rate": False,
    "incidents_per_km": False,
    "comfort_rate": True,
    "mean_speed_mps": True,
    "ade_3s_m": False,
    "fde_3s_m": False,
    "nuscenes.uniad.l2_3s_m": False,
    "nuscenes.stp3.l2_3s_m": False,
}


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The run directories among these paths and right below them, each once; a path without any is an InputError."""
    found: dict[Path, None] = {}
    for path in paths:
        here = [path] if (path / "summary.json").is_file() else sorted(p.parent for p in path.glob("*/summary.json"))
        if not here:
            raise InputError(path, "folder", "no summary.json in it or below", "a run directory, or a folder of some")
        found |= dict.fromkeys(here)
    return list(found)


def rows_of(run: Path) -> list[dict]:
    """One row for each policy of a run that drove and was scored; none for a training."""
    summary = read_summary(run / "summary.json")
    rows = []
    for place, (policy, flat) in enumerate(policies_of(summary).items()):
        mine = [row for row in summary["episodes"] if row["policy"] == policy]
        suites = sorted({row.get("suite", "") for row in mine if row["log"]} - {""})
        if not mine or not suites or not any(f"{key}.n" in flat for key in COLUMNS):
            continue
        scenes = frozenset(row.get("scene", row["name"]) for row in mine)
        rows.append(
            {
                "run": run,
                "policy": policy,
                "role": role(policy, place),
                "own": place == 0,
                "suite": " + ".join(suites),
                "scenes": scenes,
                "failed": sum(not row["log"] for row in mine),
                "date": summary.get("started") or _written(run),
                "commit": summary["git_commit"],
                "cells": {key: cell(flat, key) for key in COLUMNS},
            }
        )
    return rows


def tables(runs: Sequence[Path]) -> list[dict]:
    """A table a suite: its name, columns (key, words, unit, whether more is better) and rows, the best first.

    A baseline that drove the same scenes to the same figures in several runs stands there once. No scored run at all is
    an InputError.
    """
    suites: dict[str, list[dict]] = {}
    for run in runs:
        for row in rows_of(run):
            others = suites.setdefault(row["suite"], [])
            if row["own"] or not any(_same(row, other) for other in others):
                others.append(row)
    if not suites:
        raise InputError(", ".join(map(str, runs)), "runs", "none that was scored", "drives or replays", "vla score")
    return [_table(suite, rows) for suite, rows in sorted(suites.items())]


def _same(a: dict, b: dict) -> bool:
    return all(a[key] == b[key] for key in ("policy", "scenes", "cells"))


def _table(suite: str, rows: list[dict]) -> dict:
    keys = [key for key in COLUMNS if any(row["cells"][key] and row["cells"][key]["value"] is not None for row in rows)]
    if keys:
        sign = -1 if COLUMNS[keys[0]] else 1

        def order(row: dict) -> tuple[bool, float]:
            value = (row["cells"][keys[0]] or {}).get("value")
            return value is None, sign * (value or 0.0)

        rows = sorted(rows, key=order)
    return {
        "suite": suite,
        "columns": [(key, *LABELS[key], COLUMNS[key]) for key in keys],
        "rows": rows,
        "same_scenes": len({row["scenes"] for row in rows}) == 1,
    }


def _written(run: Path) -> str:
    """When the summary of a run that does not say when it began was written."""
    return datetime.fromtimestamp((run / "summary.json").stat().st_mtime).isoformat(timespec="seconds")


def write_leaderboard(runs: Sequence[Path], out: Path) -> list[dict]:
    """Write the page and return its tables; links to the runs' reports are relative to it."""
    found = tables(runs)
    for row in (row for table in found for row in table["rows"]):
        report = row["run"] / "report.html"
        row["link"] = Path(os.path.relpath(report, out.parent)).as_posix() if report.is_file() else None
    filters = {key: sorted({row[key] for table in found for row in table["rows"]}) for key in ("policy", "role")}
    try:
        write_page(out, "leaderboard.html.j2", tables=found, filters=filters, count=len(runs))
    except OSError as error:
        raise InputError("--out", "file", f"{out} ({error.strerror})", "a file that can be written") from None
    return found


def lines(found: Sequence[dict]) -> list[str]:
    """The tables as text: a row for each policy of each run, the first few metrics."""
    out = []
    for table in found:
        columns = table["columns"][:5]
        width = max(len(f"{row['run'].name} {row['policy']}") for row in table["rows"])
        out.append(f"{table['suite']}" + ("" if table["same_scenes"] else ", not all on the same scenes"))
        out.append(f"  {'':{width}s} {'scenes':>6s}" + "".join(f"  {key:>24s}" for key, *_ in columns))
        for row in table["rows"]:
            values = [(row["cells"][key] or {}).get("value") for key, *_ in columns]
            cells = "".join(f"  {'not available' if value is None else number(value):>24s}" for value in values)
            name = f"{row['run'].name} {row['policy']}"
            failed = f"  {row['failed']} FAILED" if row["failed"] else ""
            out.append(f"  {name:{width}s} {len(row['scenes']):6d}{cells}{failed}")
    return out
