"""Whether a policy looks: asked along the expert's drives, and from the command line."""

import json

import pytest
from lamp_reader import LampReader

from policies.cli import main
from policies.runs import Run
from policies.vision import PAIRS_FILE, ask, not_asked
from sim.report.page import write_report
from sim.scenarios import get_scenario

SECONDS = "2"


def test_who_reads_the_lamp_passes_the_lights_and_not_with_black_cameras(tmp_path) -> None:
    run = Run.create("eval-vision", tmp_path / "run", {}, [1])
    answers = ask(run, LampReader(), [get_scenario("town-smoke/0")], 11.5, "cv", progress=False)
    flat = run.summary["pairs"]["lamp-reader"]
    assert {answer.kind for answer in answers} == {"red_light", "obstacle", "turn"}
    assert (flat["pair.red_light"], flat["blank.red_light"], flat["pair.red_light.n"]) == (1.0, 0.0, 1)
    assert (flat["pair.obstacle"], flat["blank.obstacle"]) == (0.0, 0.0)
    assert (flat["pair.turn"], flat["blank.turn"]) == (1.0, 1.0), "words are not pictures"
    assert not_asked(flat) == ["lead"]
    assert run.headline() == "1 of 1 scenes finished"
    kept = json.loads((run.path / PAIRS_FILE).read_text())
    assert [row["kind"] for row in kept] == [answer.kind for answer in answers]
    light = next(row for row in kept if row["kind"] == "red_light")
    assert light["versions"] == ["green", "red"]
    assert light["driven_m"][0] > light["gap_m"] > light["driven_m"][1]
    names = {shown["path"] for shown in run.summary["pictures"]}
    assert names == {f"media/pair-{n}.jpg" for n in ("red_light-passed", "obstacle-failed", "turn-passed")}
    run.score(["lamp-reader", "town-expert"], ("drive",))
    run.save()
    assert run.summary["metrics"] == flat
    page = write_report(run.path).read_text()
    assert page.count("data:image/jpeg") == 3
    assert "green against red, told apart" in page
    assert "No pair of lead was asked." in page


def test_from_the_command_line_pairs_and_damaged_drives_stand_in_one_table(tiny_checkpoint, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    arguments = ["--checkpoint", str(tiny_checkpoint), "--suite", "town-smoke", "--episodes", "1", "--seconds", SECONDS]
    arguments += ["--damage", "blank", "--renderer", "cv", "--quiet", "--out", str(out)]
    assert main(["eval-vision", *arguments]) == 1, "no light and no turn within two seconds"
    said = capsys.readouterr().out
    assert "NO PAIR of red_light" in said
    assert "NO PAIR of obstacle" not in said
    summary = json.loads((out / "summary.json").read_text())
    drivers = ["vla", "vla-blank", "constant-velocity", "ego-status"]
    assert list(summary["policies"]) == [*drivers, "town-expert"]
    assert summary["scenes"] == {"asked": 5, "finished": 5, "failed": 0}
    metrics = summary["metrics"]
    assert (metrics["pair.obstacle.n"], metrics["blank.obstacle"]) == (1, 0.0)
    assert metrics["pair.obstacle.ci95_low"] <= metrics["pair.obstacle"] <= metrics["pair.obstacle.ci95_high"]
    assert metrics["pair.lead.n"] == 0
    assert "pair.lead" not in metrics
    assert metrics["carla_2_1.driving_score.n"] == 1
    assert main(["score", str(out), "--protocol", "plain"]) == 0
    assert json.loads((out / "summary.json").read_text())["metrics"]["pair.obstacle"] == metrics["pair.obstacle"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "town-vall"], "Did you mean town-val"),
        (["--episodes", "500"], "0 to 199"),
        (["--episodes", "2", "--closed-loop", "3"], "at most --episodes, 2"),
        ([], "checkpoint"),
    ],
)
def test_eval_vision_rejects(tmp_path, capsys, arguments: list[str], message: str) -> None:
    out = tmp_path / "run"
    assert main(["eval-vision", "--checkpoint", str(tmp_path / "none"), *arguments, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
