"""The report as a person uses it, in headless Chromium: it loads without a complaint, plays, sorts and filters."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from headless_browser import CHROMIUM, Browser, browser
from made_up_run import make_run

from sim.report.page import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
TABLE = "document.querySelector('#rows')"
SHOWN = f"[...{TABLE}.rows].filter(row => !row.hidden)"
ARTICLES = "[...document.querySelectorAll('article')].filter(article => !article.hidden).map(article => article.id)"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("browsed") / "run"
    make_run(run, failed=True)
    return write_report(run)


@pytest.fixture
def opened(page: Browser, report: Path) -> Browser:
    page.complaints.clear()
    page.open(report)
    return page


def texts(page: Browser, column: int) -> list[str]:
    return page.run(f"{SHOWN}.map(row => row.cells[{column}].textContent.trim())")


def test_no_console_message_at_any_width_and_in_the_dark(page: Browser, report: Path):
    page.complaints.clear()
    for width, dark in ((1280, False), (390, False), (1280, True)):
        page.open(report, width, dark=dark)
        assert page.run("document.documentElement.scrollWidth") == width  # nothing sticks out
    assert page.complaints == []


def test_a_broken_page_is_noticed(page: Browser, report: Path, tmp_path: Path):
    broken = tmp_path / "broken.html"
    html = report.read_text(encoding="utf-8").replace("</body>", "<script>undefined_thing()</script><img src=x></body>")
    broken.write_text(html, encoding="utf-8")
    page.complaints.clear()
    page.open(broken)
    assert any("undefined_thing" in complaint for complaint in page.complaints)
    assert any("Content Security Policy" in complaint for complaint in page.complaints), page.complaints


@pytest.mark.parametrize(("place", "width", "shortest_s"), [("#failures ~ .clips", 480, 2.0), ("article", 96, 1.4)])
def test_videos_play(opened: Browser, place: str, width: int, shortest_s: float):
    opened.run(f"document.querySelector('{place} video').scrollIntoView()")
    script = f"""(async () => {{
        const video = document.querySelector('{place} video');
        await video.play();
        await new Promise(done => video.addEventListener('timeupdate', () => video.currentTime > 0.2 && done()));
        return [video.error, video.videoWidth, video.duration, video.paused];
    }})()"""
    error, found_width, duration_s, paused = opened.run(script)
    assert error is None
    assert not paused
    assert found_width == width
    assert duration_s >= shortest_s
    assert opened.complaints == []


def test_a_click_on_a_heading_sorts_and_another_turns_it_round(opened: Browser):
    head = f"{TABLE}.closest('table').tHead.rows[0].cells[{{}}].querySelector('button')"
    before = texts(opened, 2)
    opened.click(head.format(2))
    assert texts(opened, 2) == sorted(before)
    opened.click(head.format(2))
    assert texts(opened, 2) == sorted(before, reverse=True)
    opened.click(head.format(4))  # the failed one has no length: it stays at the end, whichever way
    assert texts(opened, 4)[-1] == "n/a"
    assert opened.run(f"{TABLE}.closest('table').tHead.rows[0].cells[4].ariaSort") == "ascending"
    opened.click(head.format(4))
    assert texts(opened, 4) == ["10.50", "9.50", "9.50", "n/a"]


def choose(page: Browser, name: str, value: str) -> None:
    select = f"document.querySelector('form.filters select[name={name}]')"
    page.run(f"({select}.value = '{value}', {select}.dispatchEvent(new Event('input', {{bubbles: true}})))")


def test_filters_show_what_was_asked_for_and_nothing_else(opened: Browser):
    assert opened.run("document.querySelector('output').textContent") == "4 rows"
    choose(opened, "policy", "second")
    assert texts(opened, 1) == ["second", "second"]
    assert opened.run(ARTICLES) == ["episode-3", "episode-4"]
    choose(opened, "outcome", "failure of the code")
    assert texts(opened, 0) == ["second-1"]
    assert opened.run("document.querySelector('output').textContent") == "1 of 4 rows"
    opened.click("document.querySelector('form.filters button')")
    opened.run("new Promise(done => setTimeout(done, 50))")
    assert len(texts(opened, 0)) == 4
    opened.type("document.querySelector('form.filters input')", "OFF first")
    assert texts(opened, 0) == ["first-1"]
    assert opened.run(ARTICLES) == ["episode-2"]


def test_linked_films_load_from_beside_the_page(page: Browser, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("sim.report.page.EMBEDDED_BYTES", 1000)
    make_run(tmp_path / "run")
    page.complaints.clear()
    page.open(write_report(tmp_path / "run"))
    loaded = """(async () => {
        const video = document.querySelector('article video');
        video.scrollIntoView();
        if (video.readyState < 1) await new Promise(done => video.addEventListener('loadedmetadata', done));
        const image = document.querySelector('article img');
        image.scrollIntoView();
        await image.decode();
        return [video.getAttribute('src'), video.videoWidth, image.naturalWidth];
    })()"""
    assert page.run(loaded) == ["media/a.mp4", 96, 90]
    assert page.complaints == []
