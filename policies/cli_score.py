"""The verbs of finished runs: score one again, say what went wrong, compare two, report again, rank several."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from policies.cli_drive import starts_of
from policies.cli_parts import whole
from policies.cli_replay import starts_of_replay
from policies.refilm import film_failures
from policies.scores import compare_runs, differences, interrupted, score_run, table, to_json
from sensors.errors import InputError
from sim.metrics.protocols import PROTOCOLS, QUICK, get_protocol
from sim.report.comparison import write_comparison
from sim.report.failure_clips import MOST_CLIPS
from sim.report.failure_table import BY, NONE, as_json, struck
from sim.report.failure_table import table as failure_lines
from sim.report.leaderboard import find_runs, lines, write_leaderboard
from sim.report.page import write_report
from sim.report.summary import read_summary
from sim.stage import Start

DRIVEN_WITH = ("suite", "scenario", "town", "net", "weather", "seed", "episodes", "seconds", "image_size", "renderer")
EPILOGS = {
    "report": """examples:
  vla report runs/20260101-120000-drive                  write its report.html again
  vla report runs/20260101-120000-drive --clips 12       film 12 failures with six cameras first""",
    "score": """examples:
  vla score runs/20260101-120000-drive                   every protocol, from the logs alone
  vla score runs/20260101-120000-drive --protocol pdm nuplan""",
    "failures": """examples:
  vla failures runs/20260101-120000-drive                what went wrong with the run's own policy, by town
  vla failures runs/20260101-120000-drive --by command --list   and each of them, what was told and said""",
    "compare": """examples:
  vla compare runs/mine runs/theirs                      on their common scenes, paired
  vla compare runs/mine runs/theirs --html compare.html  the same as a page""",
    "leaderboard": """examples:
  vla leaderboard runs                                   every run in a folder, a table a suite
  vla leaderboard runs/mine runs/theirs --out board.html""",
}


def add_score_verbs(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare them; `verb` makes one subcommand from (name, function, help)."""
    sub = verb("report", _report, "write the report of a finished run again")
    sub.add_argument("run_directory", type=Path, metavar="RUN")
    words = "drive up to N failures again, from their logs, and film them with six cameras (default 0: from above only)"
    sub.add_argument("--clips", type=whole, default=0, metavar="N", help=words)
    sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = verb("score", _score, "score a finished run again, from its logs alone")
    sub.add_argument("run_directory", type=Path, metavar="RUN")
    words = f"all (default) or some of {', '.join(PROTOCOLS)}; a drive or replay scores {', '.join(QUICK)} by itself"
    sub.add_argument("--protocol", nargs="+", default=["all"], metavar="NAME", help=words)
    sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = verb("failures", _failures, "say what went wrong in a finished run: in how many episodes, where, in which")
    sub.add_argument("run_directory", type=Path, metavar="RUN")
    sub.add_argument("--by", choices=BY, default="town", help="a column each (default town)")
    sub.add_argument("--policy", metavar="NAME", help="whose (default: the run's own)")
    sub.add_argument("--list", action="store_true", help="each of them with what the policy was told and said")
    sub.add_argument("--json", type=Path, metavar="FILE", help="write every one with what was so there too")

    sub = verb("compare", _compare, "say of each metric whether two runs differ, over the scenes that both have")
    sub.add_argument("run_directory", type=Path, metavar="RUN_A")
    sub.add_argument("other_directory", type=Path, metavar="RUN_B")
    sub.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    sub.add_argument("--html", type=Path, metavar="FILE", help="write them as a page there too")

    sub = verb("leaderboard", _leaderboard, "put several runs beside each other, a table a suite")
    sub.add_argument("run_directories", type=Path, nargs="+", metavar="RUN", help="run directories, or folders of some")
    words = "the page (default leaderboard.html)"
    sub.add_argument("--out", type=Path, default=Path("leaderboard.html"), metavar="FILE", help=words)


def _report(options: argparse.Namespace) -> int:
    run, problems = options.run_directory, []
    if options.clips:
        problems = film_failures(run, _starts_of_run(run), options.clips, progress=not options.quiet)
    print(*problems, f"report: {write_report(run, max(options.clips, MOST_CLIPS))}", sep="\n")
    return 1 if problems else 0


def _starts_of_run(run_dir: Path) -> list[Start]:
    """What a drive was driven from, by its own arguments; another run is an InputError."""
    summary = read_summary(run_dir / "summary.json")
    if summary.get("verb") == "replay" and summary["config"].get("closed_loop") and summary["config"].get("dataroot"):
        return starts_of_replay(argparse.Namespace(**summary["config"]))
    if summary.get("verb") != "drive":
        came = f"a run of vla {summary.get('verb', 'something else')}"
        raise InputError(run_dir, "--clips", came, "a drive, or a closed loop on a dataroot: a world to drive in again")
    for key in DRIVEN_WITH:
        if key not in summary["config"]:
            where = run_dir / "summary.json"
            raise InputError(where, f"config.{key}", "nothing", "how it was driven", "Drive it again.")
    return starts_of(argparse.Namespace(**summary["config"]))


def _score(options: argparse.Namespace) -> int:
    names = tuple(PROTOCOLS) if "all" in options.protocol else tuple(dict.fromkeys(options.protocol))
    for name in names:
        get_protocol(name)
    run = score_run(options.run_directory, names, not options.quiet)
    cut = interrupted(run)
    words = f", {len(cut)} INTERRUPTED and in no score: {', '.join(cut[:3])}{' ...' if len(cut) > 3 else ''}"
    print(run.headline() + (words if cut else ""), *table(run.summary), sep="\n")
    print(f"report: {write_report(run.path)}")
    return 0 if run.whole and not cut else 1


def _failures(options: argparse.Namespace) -> int:
    episodes = read_summary(options.run_directory / "summary.json")["episodes"]
    policies = list(dict.fromkeys(row["policy"] for row in episodes))
    whose = options.policy or next(iter(policies), "")
    if whose not in policies:
        expected = f"one that was driven: {', '.join(policies) or 'none was'}"
        raise InputError(options.run_directory, "--policy", whose or "nothing", expected)
    rows = [row for row in episodes if row["policy"] == whose]
    found = struck(options.run_directory, rows)
    print(
        f"{whose}: {len(rows)} episodes, in how many of them what went wrong",
        *failure_lines(found, options.by),
        sep="\n",
    )
    if options.list:
        print(*(each.line() for each in found if each.kind != NONE), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(as_json(found), indent=1))
    return 0


def _compare(options: argparse.Namespace) -> int:
    words, found = compare_runs(options.run_directory, options.other_directory)
    if not found:
        came = "no metric that both have on two scenes or more"
        fix = "Run vla score on both; an interval needs two common scenes."
        raise InputError(options.other_directory, "scores", came, "figures to compare", fix)
    print(*words, *differences(found), sep="\n")
    if options.json:
        options.json.write_text(to_json(found))
    if options.html:
        print(f"page: {write_comparison(options.html, words, found)}")
    return 0


def _leaderboard(options: argparse.Namespace) -> int:
    print(*lines(write_leaderboard(find_runs(options.run_directories), options.out)), sep="\n")
    print(f"page: {options.out}")
    return 0
