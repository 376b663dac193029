"""Whether a policy does as it is told and knows why: asked along the expert's drives, and from the command line."""

import json

import pytest
from lamp_reader import LampReader, straight_plan
from test_pairs import aside_plan
from word_reader import WordReader

from policies.cli import main
from policies.language import REASONS_FILE, Given, Listener, ask, category, confusion, reason_figures
from policies.pairs import WORD_KINDS, tells_lane, tells_slow
from policies.runs import Run
from policies.vision import PAIRS_FILE, not_asked
from sensors.errors import InputError
from sim.report.page import write_report
from sim.scenarios import get_scenario

SECONDS = 11.5


class CommandReader(LampReader):
    """Turns as the command says, and hears no word."""

    image_size, clip_steps = (64, 36), 1


def asked(policy, path, seconds: float = SECONDS, driven: int = 0) -> tuple[Run, dict[str, float]]:
    run = Run.create("eval-language", path, {}, [0])
    ask(run, policy, [get_scenario("town-val/9")], driven, ("words-only",), seconds, "cv", progress=False)
    return run, run.summary["pairs"][policy.name]


def test_who_reads_words_passes_what_words_tell_and_nothing_that_must_be_seen(tmp_path) -> None:
    run, flat = asked(WordReader(), tmp_path / "run")
    assert {kind for kind in WORD_KINDS if flat[f"pair.{kind}.n"]} >= {"turn", "slow", "stop", "stop_whom", "lane"}
    for kind in WORD_KINDS:
        if flat[f"pair.{kind}.n"]:
            passes = kind not in ("turn_command", "stop_whom")
            assert flat[f"pair.{kind}"] == flat[f"blank.{kind}"] == float(passes), kind
    assert not_asked(flat) == [kind for kind in WORD_KINDS if not flat[f"pair.{kind}.n"]]
    kept = json.loads((run.path / PAIRS_FILE).read_text())
    assert {"bus", "truck", "car"} & {row["versions"][1].split()[-1] for row in kept if row["kind"] == "stop_whom"}
    given = json.loads((run.path / REASONS_FILE).read_text())
    meant = [category(row["meant"]) for row in given]
    assert {row["where"] for row in given} == {"imagined"}
    assert flat["reason.imagined"] == pytest.approx(meant.count("drive: free road") / len(meant))
    assert len(set(meant)) > 1
    rows = run.summary["confusions"]["imagined"]
    assert sum(n for _, _, n in rows) == flat["reason.imagined.n"] == len(given)
    run.score([WordReader.name, "town-expert"], ("drive",))
    run.save()
    page = write_report(run.path).read_text()
    assert "asked to slow down or not" in page
    assert "what the expert would say there" in page


def test_who_knows_commands_only_passes_turns_by_command_and_no_words(tmp_path) -> None:
    _, flat = asked(CommandReader(), tmp_path / "run")
    told = {kind: flat.get(f"pair.{kind}") for kind in WORD_KINDS}
    assert told["turn"] == told["turn_command"] == 1.0
    assert {told[kind] for kind in ("turn_words", "slow", "stop", "stop_whom", "lane")} <= {0.0, None}
    assert flat["reason.imagined"] == 0.0, "who says nothing is not right"


def test_reasons_of_its_own_drives_are_kept_beside_the_expert_s(tmp_path) -> None:
    run, flat = asked(WordReader(), tmp_path / "run", seconds=3.0, driven=1)
    names = ["word-reader", "word-reader-words-only"]
    assert [row["policy"] for row in run.summary["episodes"]] == ["town-expert", *names]
    given = [Given(**row) for row in json.loads((run.path / REASONS_FILE).read_text())]
    driven = [one for one in given if one.where == "driven"]
    assert [one.at_s for one in driven] == pytest.approx([0.5 * k for k in range(len(driven))])
    assert flat["reason.driven.n"] == len(driven)
    run.score([*names, "town-expert"], ("drive", "junctions"))
    assert run.summary["policies"][names[1]]["junction.followed.n"] == 0


def test_reasons_count_by_action_and_cause_and_the_interval_is_over_drives() -> None:
    def given(said: str, meant: str) -> Given:
        return Given("driven", "town-val/0", 0.0, said, meant)

    right = given("stop: red light, 12 m", "stop: red light, 20 m")
    half, wrong = given("stop: amber light, 3 m", "stop: red light, 3 m"), given("", "drive: curve")
    flat = reason_figures("driven", [[right, right, half], [wrong], []])
    assert (flat["reason.driven"], flat["reason.driven_action"]) == (0.5, 0.75)
    assert (flat["reason.driven.n"], flat["reason.driven_action.n"]) == (4, 4)
    assert (flat["reason.driven.ci95_low"], flat["reason.driven.ci95_high"]) == pytest.approx((0.0, 2 / 3))
    assert reason_figures("driven", [[]]) == {"reason.driven.n": 0, "reason.driven_action.n": 0}
    rows = [("stop: red light", "stop: red light", 2), ("stop: red light", "stop: amber light", 1)]
    assert confusion([right, right, half, wrong]) == [*rows, ("drive: curve", "(nothing)", 1)]


def test_words_are_told_apart_only_by_what_is_done() -> None:
    usual = straight_plan(20.0)
    assert tells_slow(usual, straight_plan(16.0))
    assert not tells_slow(usual, straight_plan(17.5))
    assert not tells_slow(straight_plan(5.0), straight_plan(3.5)), "too little to tell"
    assert not tells_slow(usual, usual)
    for left in (1, -1):
        assert tells_lane(usual, aside_plan(20.0, left * 3.0), left)
        assert not tells_lane(usual, aside_plan(20.0, -left * 3.0), left)
        assert not tells_lane(usual, aside_plan(20.0, left * 1.0), left)


def test_a_listener_refuses_what_it_cannot_hear() -> None:
    with pytest.raises(InputError, match="Did you mean words-only"):
        Listener(WordReader(), "word-only")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "town-vall"], "Did you mean town-val"),
        (["--episodes", "2", "--closed-loop", "3"], "at most --episodes, 2"),
        ([], "checkpoint"),
    ],
)
def test_eval_language_rejects(tmp_path, capsys, arguments: list[str], message: str) -> None:
    out = tmp_path / "run"
    assert main(["eval-language", "--checkpoint", str(tmp_path / "none"), *arguments, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_from_the_command_line_pairs_reasons_and_junctions_stand_in_one_table(
    tiny_checkpoint, tmp_path, capsys
) -> None:
    out = tmp_path / "run"
    arguments = ["--checkpoint", str(tiny_checkpoint), "--suite", "town-smoke", "--episodes", "1", "--seconds", "2"]
    arguments += ["--heard", "silent", "--renderer", "cv", "--quiet", "--out", str(out)]
    assert main(["eval-language", *arguments]) == 1, "no turn within two seconds"
    said = capsys.readouterr().out
    assert "NO PAIR of turn" in said
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["policies"]) == ["vla", "vla-silent", "town-expert"]
    assert summary["scenes"] == {"asked": 3, "finished": 3, "failed": 0}
    metrics = summary["metrics"]
    assert metrics["reason.driven.n"] == 4
    assert 0.0 <= metrics["reason.imagined"] <= 1.0
    assert metrics["junction.followed.n"] == 0
