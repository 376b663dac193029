import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from sensors.clip import Boxes
from sensors.errors import InputError
from sensors.frames import matrix_from_xy_yaw
from sim.metrics.protocols import episode_figures, summarize
from sim.report.page import write_report
from sim.report.video import VideoWriter
from sim.rollout_log import EpisodeLog, EpisodeRecorder, write_episode

CHROMIUM = shutil.which("chromium")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
QUIET += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr"]
HALF_S = np.arange(1, 7) * 0.5


def episode(name: str, policy: str, seed: int, kind: str = "drive", frames: int = 20) -> EpisodeLog:
    lines = [
        ("lane_edge", np.array([[-900.0, 4], [0, 4], [50, 4], [900, 4]])),
        ("centre", np.array([[0.0, 0], [9, 0]])),
    ]
    recorder = EpisodeRecorder(name, kind, policy, seed, lines)
    for k in range(frames):
        car = matrix_from_xy_yaw([20.0 + k], [2.0], [0.1])
        actors = Boxes(("a",), ("vehicle.car",), car, np.array([[4.5, 1.9, 1.6]]), np.zeros((1, 2)))
        recorder.frame(
            500_000 * k, (4.0 * k, 0, 0), 8.0, (0, 0), actors, ("off_road",) * (k == frames - 1 and seed > 0)
        )
        recorder.plan(HALF_S, np.stack([4 * k + 8 * HALF_S, 0.3 * HALF_S, 0 * HALF_S], axis=1))
    return recorder.finish("off_road" if seed else "time")


def make_run(run: Path, kind: str = "drive", failed: bool = False) -> dict:
    """A run of two policies and two seeds; the first episode has pictures, the last may have failed."""
    (run / "episodes").mkdir(parents=True)
    (run / "media").mkdir()
    logs, rows = [], []
    for policy in ("first", "second"):
        for seed in (0, 1):
            log = episode(f"{policy}-{seed}", policy, seed, kind, frames=20 + 2 * seed)
            write_episode(run / f"episodes/{log.name}.npz", log)
            logs.append((policy, episode_figures(log, [kind])))
            rows.append(
                {"name": log.name, "policy": policy, "seed": seed, "log": f"episodes/{log.name}.npz", "video": None}
                | {"sheets": [], "ended_by": log.ended_by, "error": ""}
                | {"scores": {name: [value, weight] for name, (value, ok, weight) in logs[-1][1].items() if ok}}
            )
    with VideoWriter(run / "media/a.mp4", 10) as video:
        for k in range(15):
            video.write(np.full((64, 96, 3), 10 * k, np.uint8))
    cv2.imwrite(str(run / "media/a_000.jpg"), np.full((60, 90, 3), 99, np.uint8))
    rows[0] |= {"video": "media/a.mp4", "sheets": ["media/a_000.jpg"]}
    if failed:
        rows[-1] |= {"log": None, "ended_by": "failure", "error": "ValueError: <script>alert(1)</script>"}
        logs.pop()
    summary = {
        "command": ["vla", kind, "--policy", "first"],
        "config": {"seconds": 10, "note": "</pre><b>"},
        "version": "0.1.0",
        "git_commit": "0123456789abcdef",
        "seeds": [0, 1],
        "scenes": {"asked": 4, "finished": 4 - failed, "failed": int(failed)},
        "metrics": summarize([figures for _, figures in logs]),
        "policies": {p: summarize([figures for name, figures in logs if name == p]) for p in ("first", "second")},
        "episodes": rows,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    return summary


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
    assert page.count("<svg") == 4
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
    low_x, low_y, width, height = map(float, re.search(r'viewBox="([^"]+)"', page).group(1).split())
    assert (low_x, low_y) == (-width / 2, -height / 2)
    assert width >= 1.6 * height - 0.01
    track = np.array([pair.split(",") for pair in re.search(r'"track" points="([^"]+)"', page).group(1).split()], float)
    assert np.allclose(np.diff(track[:, 0]), 4.0)
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


PROBE = """<script>
addEventListener("load", async () => {
  const video = document.querySelector("video"), table = document.querySelectorAll("table.sortable")[1];
  const seeds = () => [...table.tBodies[0].rows].map(row => row.cells[2].textContent.trim()).join("");
  const asc = (table.tHead.rows[0].cells[2].querySelector("button").click(), seeds());
  const desc = (table.tHead.rows[0].cells[2].querySelector("button").click(), seeds());
  const error = video.error ? video.error.message : "";
  document.body.dataset.probe = [video.readyState, video.duration, video.videoWidth, error, asc, desc].join("|");
});
</script></body>"""


def browse(page: Path, profile: Path) -> subprocess.CompletedProcess:
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_report_in_chromium(tmp_path: Path) -> None:
    """No console message, the video has a picture, the table sorts; and a broken page is noticed by the same means."""
    make_run(tmp_path / "run", failed=True)
    report = write_report(tmp_path / "run")
    html = report.read_text(encoding="utf-8")
    report.write_text(html.replace("</body>", PROBE), encoding="utf-8")
    shown = browse(report, tmp_path / "profile")
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] == []
    ready, duration, width, error, up, down = re.search('data-probe="([^"]*)"', shown.stdout).group(1).split("|")
    assert int(ready) >= 1, "the video has no metadata"
    assert float(duration) == pytest.approx(1.5, abs=0.11)
    assert (width, error, up, down) == ("96", "", "0011", "1100")

    report.write_text(html.replace("</body>", "<script>undefined_thing()</script></body>"), encoding="utf-8")
    shown = browse(report, tmp_path / "profile2")
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] != []
