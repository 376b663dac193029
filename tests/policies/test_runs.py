import errno
import json
import shutil

import numpy as np
import pytest

from policies.cli import main
from policies.runs import Run, git_commit, write_json
from sensors.errors import InputError
from sim.report.page import write_report
from sim.rollout_log import EpisodeRecorder


def some_log(name: str, policy: str = "p"):
    recorder = EpisodeRecorder(name, "drive", policy, 0)
    for k in range(20):
        recorder.frame(k * 100_000, np.array([0.1 * k, 0.0, 0.0]), 1.0, (0.0, 0.0))
    return recorder.finish("time")


def test_a_failed_scene_is_counted_shown_and_in_no_mean(tmp_path):
    run = Run.create("drive", tmp_path / "run", {}, [0, 1])
    with run.episode("good", "p", 0) as episode:
        episode.log = some_log("good")
    with run.episode("bad", "p", 1) as episode:
        raise RuntimeError("the wheel came off")
    run.score(["p"])
    run.save()
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary["scenes"] == {"asked": 2, "finished": 1, "failed": 1}
    assert summary["metrics"]["n_failed"] == 1
    assert summary["metrics"]["time_on_course_s.n"] == 1
    assert "RuntimeError: the wheel came off" in summary["episodes"][1]["error"]
    assert "the wheel came off" in (run.path / "episodes" / "bad.error.txt").read_text()
    assert "1 FAILED" in run.headline()
    assert not run.whole
    assert "the wheel came off" in write_report(run.path).read_text()


def test_a_run_without_scenes_says_so(tmp_path):
    run = Run.create("drive", tmp_path / "run", {}, [])
    assert run.headline() == "NO SCENE was run"
    assert not run.whole


def test_what_is_finished_survives_an_interrupt(tmp_path):
    run = Run.create("drive", tmp_path / "run", {}, [0, 1])
    with run.episode("good", "p", 0) as episode:
        episode.log = some_log("good")
    with pytest.raises(KeyboardInterrupt), run.episode("cut", "p", 1):
        raise KeyboardInterrupt
    summary = json.loads((run.path / "summary.json").read_text())
    assert [row["name"] for row in summary["episodes"]] == ["good"]


def test_a_full_disk_is_told_in_a_line(tmp_path, monkeypatch, capsys):
    def no_room(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "where/report.html")

    arguments = ["drive", "--suite", "course", "--episodes", "1", "--seconds", "0.5", "--policy", "constant-velocity"]
    arguments += ["--quiet", "--videos", "0", "--clips", "0", "--image-size", "32x32", "--out", str(tmp_path / "run")]
    monkeypatch.setattr("policies.cli_parts.write_report", no_room)
    assert main(arguments) == 2
    assert "No space left on device: 'where/report.html'; what was finished is kept" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(arguments) == 0  # goes on with it


def test_a_run_directory_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "precious.txt").touch()
    with pytest.raises(InputError, match="not empty"):
        Run.create("drive", tmp_path, {}, [])
    with pytest.raises(InputError, match="new or empty folder"):
        Run.create("drive", tmp_path / "precious.txt", {}, [])


def test_json_is_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_the_commit_is_a_commit():
    commit = git_commit().removesuffix("+changes")
    assert commit == "" or (len(commit) == 40 and int(commit, 16) >= 0)


@pytest.mark.parametrize(
    "verb", ["drive", "record", "train", "replay", "score", "failures", "compare", "report", "doctor"]
)
def test_every_verb_helps_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as exit_of:
        main([verb, "--help"])
    assert exit_of.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text
    assert f"vla {verb}" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["drive", "--image-size", "160"], "expected WIDTHxHEIGHT"),
        (["drive", "--episodes", "0"], "at least 1"),
        (["drive", "--seconds", "-3"], "between 0.1 and 86400"),
        (["drive", "--policy", "log"], "town-expert"),
        (["drive", "--videos", "-1"], "at least 0"),
        (["fly"], "drive"),
    ],
)
def test_arguments_rejected(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit_of:
        main(arguments)
    assert exit_of.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["drive", "--policy", "vla", "--checkpoint", "nowhere"], "nowhere"),
        (["drive", "--suite", "town-smok"], "Did you mean town-smoke?"),
        (["drive", "--suite", "town-smoke", "--seed", "4", "--episodes", "2"], "0 to 4"),
        (["drive", "--scenario", "town-val/200"], "town-val/0 to town-val/199"),
        (["drive", "--town", "gird"], "Did you mean grid?"),
        (["drive", "--weather", "nigth"], "Did you mean night?"),
        (["drive", "--suite", "course", "--weather", "night"], "clear days only"),
        (["drive", "--suite", "course", "--policy", "town-expert"], "The expert here is pure-pursuit"),
        (["drive", "--policy", "pure-pursuit"], "The expert here is town-expert"),
        (["drive", "--net", "my.net.xml"], "no file my.net.xml"),
        (["drive", "--net", "my.txt"], "NAME.net.xml"),
        (["drive", "--videos", "6"], "at most 5"),
        (["drive", "--scenario", "town-val/1", "--episodes", "2"], "beside --scenario"),
        (["drive", "--policy", "constant-velocity", "--checkpoint", "x"], "has no weights"),
        (["drive", "--policy", "vla", "--checkpoint", "nowhere"], "checkpoint.json"),
        (["train", "tiny", "data.dataroot=nowhere"], "no such folder"),
        (["report", "nowhere"], "summary.json"),
        (["doctor", "--dataroot", "nowhere"], "no such folder"),
    ],
)
def test_input_rejected(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments]) == 2
    assert words in capsys.readouterr().err


LONELY = """<net version="1.20"><edge id="a" from="p" to="q"><lane id="a_0" index="0" speed="13.9" length="60"
shape="0,0 60,0"/></edge><junction id="q" type="dead_end" x="60" y="0" incLanes="a_0" intLanes="" shape="60,-3 60,3
63,0"/></net>"""


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("my.net.xml", b"<net><edge", "an XML file that netconvert made"),
        ("my.net.xml", b"<routes/>", "netconvert or netgenerate"),
        ("my.net.xml.gz", b"\x1f\x8b damaged", "an XML file that netconvert made"),
        ("my.net.xml", b"<net></net>", "at least one edge that allows passenger cars"),
        ("my.net.xml", LONELY.encode(), "a network with a route of"),
    ],
)
def test_networks_rejected(name, content, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    assert main(["drive", "--net", name]) == 2
    message = capsys.readouterr().err
    assert name in message
    assert words in message
    assert not (tmp_path / "runs").exists()


def test_doctor_tells_what_is_there(course_dataroot, capsys):
    assert main(["doctor", "--dataroot", str(course_dataroot)]) == 0
    text = capsys.readouterr().out
    for words in ("python", "torch", "OpenCV", "FP8", "scene-1000", "72 images"):
        assert words in text


def test_doctor_tells_of_broken_images_and_of_a_map_of_another_version(course_dataroot, tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(course_dataroot, root)
    for image in (root / "samples" / "CAM_BACK").glob("*.jpg"):
        image.write_bytes(image.read_bytes()[:100])
    location = json.loads((root / "v1.0-mini" / "log.json").read_text())[0]["location"]
    (root / "maps" / "expansion").mkdir()
    (root / "maps" / "expansion" / f"{location}.json").write_text('{"version": "1.0"}')
    assert main(["doctor", "--dataroot", str(root)]) == 0
    text = capsys.readouterr().out
    assert "100 bytes without the end of a JPEG" in text
    assert "version: came 1.0, expected 1.3 or later" in text
