import json
import re
from pathlib import Path

import numpy as np
import pytest
from made_up_run import make_run

from sensors.errors import InputError
from sim.report.page import write_report


def page_of(run: Path, **changes: object) -> str:
    if changes:
        summary = json.loads((run / "summary.json").read_text()) | changes
        (run / "summary.json").write_text(json.dumps(summary))
    return write_report(run).read_text(encoding="utf-8")


def cells(page: str, metric: str) -> list[str]:
    row = re.search(rf'<tr><th[^>]*title="{metric}".*?</tr>', page, re.DOTALL).group()
    return [re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", cell)).strip() for cell in re.findall("<td.*?</td>", row)]


def test_report_shows_the_scores_of_each_policy_with_n_and_interval(tmp_path: Path) -> None:
    summary = make_run(tmp_path)
    page = page_of(tmp_path)
    assert cells(page, "time_on_course_s") == ["10.00 9.50 to 10.50 · n = 2"] * 2
    assert cells(page, "n_episodes") == ["2", "2"]
    assert "vla drive" in page
    assert 'role="alert"' not in page
    assert page.count("<article") == 4
    assert page.count('class="timeline"') == page.count('class="ego"') == 4
    assert summary["metrics"]["time_on_course_s"] == 10.0


def test_report_of_a_replay_joins_plans_to_the_log(tmp_path: Path) -> None:
    make_run(tmp_path, "replay")
    page = page_of(tmp_path)
    assert cells(page, "fde_3s_m")[0].startswith("0.900 ")  # the plan drifts 0.3 m a second to the side
    assert page.count('class="miss"') >= 4 * 13
    assert "collision rate" not in page


def test_report_is_self_contained(tmp_path: Path) -> None:
    make_run(tmp_path)
    page = page_of(tmp_path)
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", page)
    assert not re.search(r"url\(|@import|https?://", page)
    assert "data:video/mp4;base64," in page
    assert "data:image/jpeg;base64," in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episodes", "media", "report.html", "summary.json"]


def test_plot_is_about_its_middle_with_y_up(tmp_path: Path) -> None:
    make_run(tmp_path)
    page = page_of(tmp_path)
    low_x, low_y, width, height = map(float, re.search(r'viewBox="(-[^"]+)"', page).group(1).split())
    assert (low_x, low_y) == (-width / 2, -height / 2)
    assert width >= 1.6 * height - 0.01
    track = np.array([pair.split(",") for pair in re.search(r'"track" points="([^"]+)"', page).group(1).split()], float)
    assert np.ptp(track[:, 0]) == pytest.approx(19 * 4.0)
    plan = np.array([pair.split(",") for pair in re.search(r'"plan" points="([^"]+)"', page).group(1).split()], float)
    assert plan[-1, 1] < plan[0, 1]  # to the left of the heading is up on the page
    edge = np.array([pair.split(",") for pair in re.search(r'"edge" points="([^"]+)"', page).group(1).split()], float)
    assert edge[0, 1] == pytest.approx(track[0, 1] - 4, abs=0.02)


def test_failures_stand_in_the_headline_and_are_escaped(tmp_path: Path) -> None:
    make_run(tmp_path, failed=True)
    page = page_of(tmp_path)
    assert "1 of 4 scenes failed; they enter no mean." in page
    assert page.index('role="alert"') < page.index("<h2")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "</pre><b>" not in page


@pytest.mark.parametrize(
    ("scenes", "words"),
    [
        ({"asked": 0, "finished": 0, "failed": 0}, "No scene was asked for"),
        ({"asked": 2, "finished": 0, "failed": 2}, "None of 2 scenes finished"),
        ({"asked": 5, "finished": 3, "failed": 1}, "1 of 5 scenes were never run"),
    ],
)
def test_a_run_that_measured_too_little_says_so(tmp_path: Path, scenes: dict, words: str) -> None:
    make_run(tmp_path)
    page = page_of(tmp_path, scenes=scenes, metrics={}, policies={}, episodes=[])
    assert words in page
    assert 'role="alert"' in page
    assert "There is no episode." in page


def test_what_has_no_value_is_not_available(tmp_path: Path) -> None:
    make_run(tmp_path)
    page = page_of(tmp_path, policies={"first": {"ade_3s_m.n": 0}, "second": {"odd_name": 3.25, "odd_name.n": 4}})
    assert cells(page, "ade_3s_m") == ["not available n = 0", "n/a"]
    assert cells(page, "odd_name") == ["n/a", "3.25 n = 4"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"command": []}', '{"command": NaN}'])
def test_write_report_rejects_a_broken_summary(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(InputError, match=r"summary\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_write_report_rejects_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a run directory with summary\.json"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"log": "../x.npz"}, "inside the run directory"),
        ({"video": "media/none.mp4"}, "a picture or video of this run"),
        ({"sheets": ["episodes/first-0.npz"]}, r"one of \.mp4"),
        ({"log": "media/a_000.jpg"}, "a whole episode log"),
    ],
)
def test_write_report_rejects_a_bad_episode(tmp_path: Path, change: dict, words: str) -> None:
    rows = make_run(tmp_path)["episodes"]
    rows[0] |= change
    with pytest.raises(InputError, match=words):
        page_of(tmp_path, episodes=rows)
    assert not (tmp_path / "report.html").exists()


def test_write_report_rejects_a_missing_key(tmp_path: Path) -> None:
    rows = make_run(tmp_path)["episodes"]
    del rows[1]["error"]
    with pytest.raises(InputError, match=r"episodes\[1\]\.error"):
        page_of(tmp_path, episodes=rows)
    with pytest.raises(InputError, match=r"scenes\.failed"):
        page_of(tmp_path, episodes=[], scenes={"asked": 1, "finished": 1})
