"""A run's summary.json, read and checked, and its figures as tables: what a metric is called, its n and interval.

RUN/summary.json    command, config, version, git_commit, seeds, scenes {asked, finished, failed}, metrics {flat},
                    optionally started, earlier_commits [commit, ...] (of a run that was gone on with), policies
                    {name: {flat}} (the first is the run's own), curves
                    {name: [[step, value], ...]}, of a training also events [{event, step, ...}], situations
                    {name: examples} and wrong [words] (why its result is of no use), pairs {policy: {flat}} (figures
                    that no log has), pictures [{path, words}] and confusions {words: [[meant, said, times], ...]},
                    episodes [{name, policy, seed, log, video, sheets, ended_by, error}] with paths relative to RUN;
                    log and video may be null
RUN/episodes/*.npz  RUN/media/*.mp4, *.jpg
"""

import json
from pathlib import Path

from sensors.errors import InputError
from sim.metrics.protocols import PROTOCOLS
from sim.views import DOUBTFUL_SHARE, HOWS, RENDERED

SUMMARY_TYPES = {
    "command": list,
    "config": dict,
    "version": str,
    "git_commit": str,
    "seeds": list,
    "scenes": dict,
    "metrics": dict,
    "episodes": list,
}
EPISODE_KEYS = ("name", "policy", "seed", "log", "video", "sheets", "ended_by", "error")
PAIRS = {
    "red_light": "light green or red",
    "lead": "somebody ahead or nobody",
    "obstacle": "lane free or not",
    "turn": "one way or another",
    "turn_words": "one way or another, in words alone",
    "turn_command": "one way or another, by command alone",
    "slow": "asked to slow down or not",
    "stop": "asked to stop behind somebody or not",
    "stop_whom": "asked to stop behind who is there or somebody else",
    "lane": "asked to change lanes or not",
}
LABELS = {  # metric: (words, unit)
    **{f"pair.{kind}": (f"pairs told apart: {words}", "") for kind, words in PAIRS.items()},
    **{f"blank.{kind}": (f"behind black cameras: {words}", "") for kind, words in PAIRS.items()},
    "reason.driven": ("reason right, where the policy drives", ""),
    "reason.driven_action": ("its action right, where the policy drives", ""),
    "reason.imagined": ("reason right, in moments that might be", ""),
    "reason.imagined_action": ("its action right, in moments that might be", ""),
    "junction.followed": ("junctions left by the way told", ""),
    "novel_view.psnr_db": ("images re-projected: likeness to held-out ones", "dB"),
    "novel_view.copied_psnr_db": ("the same of the nearest image as it is", "dB"),
    "novel_view.ssim": ("images re-projected: structural similarity", ""),
    "novel_view.hole_share": ("images re-projected: share that had to be drawn", ""),
    "time_on_course_s": ("time on course", "s"),
    "distance_m": ("distance", "m"),
    "collision_rate": ("collision rate", ""),
    "off_road_rate": ("off-road rate", ""),
    "mean_speed_mps": ("mean speed", "m/s"),
    "max_abs_accel_mps2": ("largest acceleration", "m/s²"),
    "max_abs_jerk_mps3": ("largest jerk", "m/s³"),
    "route_completion": ("route completion", ""),
    "at_fault_collision_rate": ("at-fault collision rate", ""),
    "red_light_rate": ("red-light rate", ""),
    "comfort_rate": ("comfort rate", ""),
    "incidents_per_km": ("incidents per km", ""),
    "km_between_incidents": ("distance between incidents", "km"),
    "ade_3s_m": ("average displacement over 3 s", "m"),
    "fde_3s_m": ("displacement at 3 s", "m"),
    "ade_1s_m": ("average displacement over 1 s", "m"),
    "pdms.compat": ("PDMS, compat", ""),
    "pdms.strict": ("PDMS, strict", ""),
    "epdms.compat": ("EPDMS, compat", ""),
    "epdms.strict": ("EPDMS, strict", ""),
    "nuplan.score": ("nuPlan", ""),
    "carla_2_0.driving_score": ("CARLA 2.0 driving score", "%"),
    "carla_2_1.driving_score": ("CARLA 2.1 driving score", "%"),
    "hugsim.hd": ("HUGSIM HD", ""),
    "neuroncap.score": ("NeuroNCAP", "stars"),
    "alpasim.score": ("AlpaSim", ""),
    "nuscenes.uniad.l2_3s_m": ("L2 at 3 s, UniAD", "m"),
    "nuscenes.stp3.l2_3s_m": ("L2 over 3 s, ST-P3 and VAD", "m"),
}
COUNTS = {"n_episodes": "episodes", "n_failed": "failed episodes", "n_keyframes": "keyframes scored"}
ROLES = {  # of a policy that is not the run's own
    "constant-velocity": "baseline",
    "ego-status": "baseline, no images",
    "pure-pursuit": "expert",
    "town-expert": "expert",
    "log": "recorded driver",
}


def read_summary(path: Path) -> dict:
    """What summary.json says, its fields checked; an InputError names the first bad one."""

    def no_number(word: str) -> None:
        raise ValueError(f"{word} is not a number of JSON")

    try:
        summary = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_number)
    except FileNotFoundError:
        raise InputError(path, "file", "nothing", "a run directory with summary.json") from None
    except (OSError, ValueError) as error:
        raise InputError(path, "file", f"unreadable ({error})", "JSON", "Was the run interrupted?") from None
    if not isinstance(summary, dict):
        raise InputError(path, "file", type(summary).__name__, "an object")
    for key, kind in SUMMARY_TYPES.items():
        if not isinstance(summary.get(key), kind):
            raise InputError(path, key, repr(summary.get(key)), f"a {kind.__name__}")
    for key in ("asked", "finished", "failed"):
        if not isinstance(summary["scenes"].get(key), int):
            raise InputError(path, f"scenes.{key}", repr(summary["scenes"].get(key)), "a count")
    for k, episode in enumerate(summary["episodes"]):
        for key in EPISODE_KEYS:
            if key not in episode:
                raise InputError(path, f"episodes[{k}].{key}", "nothing", "a value (log and video may be null)")
    return summary


def inside(run_dir: Path, relative: str) -> Path:
    """The path of a file that summary.json names, which must be inside the run directory."""
    path = (run_dir / relative).resolve()
    if not path.is_relative_to(run_dir.resolve()):
        raise InputError(run_dir / "summary.json", "episodes", relative, "a path inside the run directory")
    return path


def problems(summary: dict) -> list[str]:
    """What must not be overlooked: printed in red in the headline."""
    scenes = summary["scenes"]
    words = []
    if not scenes["asked"]:
        words.append("No scene was asked for: this run measured nothing.")
    elif not scenes["finished"]:
        words.append(f"None of {scenes['asked']} scenes finished: this run measured nothing.")
    if scenes["failed"]:
        words.append(f"{scenes['failed']} of {scenes['asked']} scenes failed; they enter no mean.")
    fallbacks = sum(episode.get("fallbacks", 0) for episode in summary["episodes"])
    if fallbacks:
        words.append(f"{fallbacks} plans were fallbacks: the policy made nothing of what it saw, and braked.")
    words += _of_views(summary)
    missing = scenes["asked"] - scenes["finished"] - scenes["failed"]
    if missing > 0:
        words.append(f"{missing} of {scenes['asked']} scenes were never run.")
    words += [f"Not usable: {what}." for what in summary.get("wrong", [])]
    for flat in summary.get("pairs", {}).values():
        empty = [key.removesuffix(".n").split(".") for key in flat if key.endswith(".n") and not flat[key]]
        words += [f"No {'reason' if kind == 'reason' else 'pair'} of {name} was asked." for kind, name in empty]
    return list(dict.fromkeys(words))


def _of_views(summary: dict) -> list[str]:
    """How the images of recorded scenes came about that are not as recorded."""
    rows = [episode["views"] for episode in summary["episodes"] if episode.get("views")]
    counts = {how: sum(row[how] for row in rows) for how in (*HOWS, "doubtful")}
    images = sum(counts[how] for how in HOWS)
    words = []
    if counts[RENDERED]:
        came = f"{counts[RENDERED]} of {images} images of recorded scenes were drawn"
        words.append(f"{came}, since none was recorded near: who looks at them is not tested on real ones.")
    if counts["doubtful"]:
        share = f"more than {100 * DOUBTFUL_SHARE:.0f} %"
        words.append(f"{counts['doubtful']} of {images} images were re-projected with {share} drawn: doubtful.")
    return words


def policies_of(summary: dict) -> dict[str, dict]:
    """Flat figures by policy, the run's own first; one entry for a run that is not told apart by policy."""
    names = sorted({episode["policy"] for episode in summary["episodes"]}) or ["this run"]
    return summary.get("policies") or {", ".join(names): summary["metrics"]}


def score_table(summary: dict) -> dict:
    """Policies as columns, metrics as rows; a cell is None where the run has no such number."""
    policies = policies_of(summary)
    keys = dict.fromkeys([*COUNTS, *LABELS])
    keys |= dict.fromkeys(key.removesuffix(".n") for flat in policies.values() for key in flat)
    rows = []
    for key in keys:
        cells = [cell(flat, key) for flat in policies.values()]
        if not key.endswith((".ci95_low", ".ci95_high")) and any(cells):
            words, unit = LABELS.get(key, (COUNTS.get(key, key), ""))
            rows.append({"key": key, "words": words, "unit": unit, "cells": cells})
    heads = [{"name": name, "role": role(name, k)} for k, name in enumerate(policies)]
    return {"policies": heads, "rows": rows, "groups": _groups(rows)}


def role(policy: str, place: int) -> str:
    """What a policy is there for, in words; the first of a run is its own."""
    words = ROLES.get(policy, "")
    return words if place else ", ".join(filter(None, ("the policy", words)))


def _groups(rows: list[dict]) -> list[dict]:
    """The rows by protocol, the plain figures first; of the others, what nobody has stands by name only."""
    of = {name: key for key, protocol in PROTOCOLS.items() if not protocol.quick for name in protocol.names}
    groups = []
    for key in ("", *(key for key, protocol in PROTOCOLS.items() if not protocol.quick)):
        mine = [row for row in rows if of.get(row["key"], "") == key]
        shown = [row for row in mine if not key or any(cell and cell["value"] is not None for cell in row["cells"])]
        lacking = [row["words"] for row in mine if row not in shown]
        if mine:
            words = PROTOCOLS[key].words if key else ""
            groups.append({"words": words, "rows": shown, "lacking": lacking})
    return groups


def cell(flat: dict, key: str) -> dict | None:
    """value, n, low and high of one figure; None where the flat figures have nothing of it."""
    if key not in flat and f"{key}.n" not in flat:
        return None
    return {
        "value": flat.get(key),
        "n": flat.get(f"{key}.n"),
        "low": flat.get(f"{key}.ci95_low"),
        "high": flat.get(f"{key}.ci95_high"),
    }


def number(value: float | None) -> str:
    """Counts as they are, measurements with three to four figures: more is more than the reader can use."""
    if value is None:
        return "n/a"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3}f}"
