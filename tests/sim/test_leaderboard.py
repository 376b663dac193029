"""Runs beside each other: a table a suite, the best first, what cannot be compared said in words."""

import json
from pathlib import Path

import pytest
from headless_browser import CHROMIUM, browser
from made_up_run import make_run

from sensors.errors import InputError
from sim.metrics.protocols import Difference
from sim.report.comparison import write_comparison
from sim.report.leaderboard import find_runs, lines, tables, write_leaderboard
from sim.report.page import write_report


def scored(path: Path, suite: str = "course", gain: float = 0.0, **changes) -> Path:
    """A run whose own policy drove `gain` better than "second" does in every such run."""
    summary = make_run(path)
    for row in summary["episodes"]:
        row |= {"suite": suite, "scene": f"seed-{row['seed']}"}
    for name, flat in summary["policies"].items():
        flat |= {"nuplan.score.n": 2, "nuplan.score": 0.5 + gain * (name == "first")}
        flat |= {"nuplan.score.ci95_low": 0.4, "nuplan.score.ci95_high": 0.95}
    (path / "summary.json").write_text(json.dumps(summary | {"started": "2026-11-25T10:00:00"} | changes))
    return path


def test_runs_of_a_suite_stand_in_one_table_the_best_first(tmp_path: Path):
    runs = [scored(tmp_path / "a", gain=0.1), scored(tmp_path / "b", gain=0.3), scored(tmp_path / "c", "town")]
    course, town = tables(runs)
    assert (course["suite"], town["suite"]) == ("course", "town")
    assert [(row["run"].name, row["policy"]) for row in course["rows"]] == [
        ("b", "first"),
        ("a", "first"),
        ("a", "second"),
    ]
    assert course["columns"][0][0] == "nuplan.score"
    assert course["same_scenes"]
    assert [row["role"] for row in course["rows"]] == ["the policy", "the policy", ""]
    text = "\n".join(lines([course]))
    assert text.index("b first") < text.index("a first")


def test_less_is_better_where_it_is(tmp_path: Path):
    runs = [scored(tmp_path / "a"), scored(tmp_path / "b")]
    for run, value in zip(runs, (2.0, 1.0), strict=True):
        summary = json.loads((run / "summary.json").read_text())
        summary["policies"] = {"first": {"ade_3s_m": value, "ade_3s_m.n": 2}}
        (run / "summary.json").write_text(json.dumps(summary))
    assert [row["run"].name for row in tables(runs)[0]["rows"]] == ["b", "a"]


def test_other_scenes_and_failed_ones_are_said(tmp_path: Path):
    runs = [scored(tmp_path / "a"), scored(tmp_path / "b", gain=0.2)]
    summary = json.loads((runs[1] / "summary.json").read_text())
    for row in summary["episodes"]:
        row["scene"] += "0"
    summary["episodes"][0] |= {"log": None, "error": "ValueError: x", "ended_by": "failure"}
    (runs[1] / "summary.json").write_text(json.dumps(summary))
    out = tmp_path / "board.html"
    found = write_leaderboard(runs, out)
    assert not found[0]["same_scenes"]
    assert "Not all rows are of the same scenes" in out.read_text()
    assert "1 failed" in out.read_text()
    assert "1 FAILED" in "\n".join(lines(found))


def test_a_folder_of_runs_is_all_of_them(tmp_path: Path):
    runs = [scored(tmp_path / "runs" / name) for name in "ab"]
    (tmp_path / "runs" / "notes").mkdir()
    assert find_runs([tmp_path / "runs", runs[0]]) == runs
    with pytest.raises(InputError, match=r"no summary\.json"):
        find_runs([tmp_path / "runs" / "notes"])


def test_a_run_that_was_never_scored_is_no_table(tmp_path: Path):
    with pytest.raises(InputError, match="vla score"):
        tables([scored(tmp_path / "a", policies={}, metrics={})])


def test_write_leaderboard_rejects_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(InputError, match="a file that can be written"):
        write_leaderboard([scored(tmp_path / "a")], tmp_path / "nowhere" / "board.html")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_pages_in_a_browser(tmp_path: Path):
    runs = [scored(tmp_path / "a", gain=0.1), scored(tmp_path / "b", gain=0.3), scored(tmp_path / "c", "town")]
    write_report(runs[1])
    write_leaderboard(runs, tmp_path / "board.html")
    differences = [Difference("nuplan.score", 0.5, 0.7, 0.1, 0.3, 9), Difference("distance_m", 80, 79, -3, 1, 9)]
    compared = write_comparison(tmp_path / "compared.html", ["a: x, b: y"], differences)
    rows = "[...document.querySelector('.board').tBodies[0].rows].filter(r => !r.hidden)"
    rows += ".map(r => r.cells[0].textContent)"
    with browser(tmp_path / "profile") as page:
        page.open(tmp_path / "board.html", 390)
        assert page.run("document.documentElement.scrollWidth") == 390
        assert page.run(rows) == ["b", "a", "a"]
        page.click("document.querySelector('.board th button')")
        assert page.run(rows) == ["a", "a", "b"]
        page.type("document.querySelector('input')", "first")
        assert page.run(rows) == ["a", "b"]
        page.open(compared)
        verdicts = page.run("[...document.querySelectorAll('tbody tr')].map(row => row.lastElementChild.textContent)")
        assert verdicts == ["these two differ", "they do not differ"]
        link = page.run("document.querySelectorAll('a').length")
        assert link == 0
        page.open(tmp_path / "board.html")
        page.click("document.querySelector('.board a')")
        page.run("new Promise(done => setTimeout(done, 300))")
        assert page.run("location.pathname").endswith("/b/report.html")
        assert page.complaints == []
