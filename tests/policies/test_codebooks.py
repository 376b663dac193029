"""Codebooks of text and of driving: made from recipes, checked on what was held out, refused where they are no good."""

import json
from dataclasses import replace

import numpy as np
import pytest

from policies import codebooks
from policies.cli import main
from policies.codebooks import check_actions, check_text, chunks_of, load_codes
from policies.recipes import load_recipe
from policies.text_corpus import corpus
from sensors.clip import VehicleState
from sensors.errors import InputError
from vla.action_codes import STEPS, DctCodes, SegmentCodes
from vla.action_tokens import integrate
from vla.config import ModelConfig
from vla.text_tokens import SHIPPED, TextTokenizer, shipped_text

SECONDS = 30.0
SILENT = "scene-silent"


class Drives:
    """As a source tells what was driven: smooth speeds and bends drawn for each scene; one scene has no bus."""

    name = "drives"
    scenes = (*(f"scene-{k}" for k in range(10)), SILENT, "scene-11")

    def frame_times_us(self, scene: str) -> np.ndarray:
        return np.arange(0, round(1e6 * SECONDS) + 1, 500_000, dtype=np.int64)

    def vehicle(self, scene: str, now_us: int) -> VehicleState:
        if scene == SILENT:
            return VehicleState()
        speed, curvature = self.drive(scene, now_us * 1e-6)
        return VehicleState(speed, speed * curvature, 0.0)

    @staticmethod
    def drive(scene: str, time_s: float) -> tuple[float, float]:
        a, b, c = np.random.default_rng(int(scene.split("-")[1])).uniform(0.3, 1.0, 3)
        return float(6.0 + 3.0 * np.sin(a * time_s)), float(0.05 * c * np.sin(b * time_s))

    def extension(self, scene: str):
        return None


def small(*overrides: str) -> list[str]:
    return ["data.dataroot=x", "data.val_scenes=1", "actions.dct=1100", "actions.segments=64", *overrides]


def test_chunks_are_what_the_bus_tells_and_a_silent_one_tells_none() -> None:
    source = Drives()
    v0, accel, curvature = chunks_of(source, ("scene-3",), 10)
    assert accel.shape == curvature.shape == (len(v0), STEPS)
    times = np.arange(0, len(v0))
    assert v0 == pytest.approx([source.drive("scene-3", float(t))[0] for t in times])
    _, _, _, speed = integrate(v0[2], accel[2], curvature[2], 0.1)
    assert speed[-1] == pytest.approx(source.drive("scene-3", 2.0 + 6.4)[0])
    assert curvature[2, 5] == pytest.approx(source.drive("scene-3", 2.5)[1])
    with pytest.raises(InputError, match=r"drives: came 0 chunks of 6\.4 s in 1 scenes"):
        chunks_of(source, (SILENT,), 10)


def test_action_codes_are_made_checked_and_made_again_to_the_byte(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(codebooks, "open_source", lambda *_: Drives())
    made = []
    for name in ("one", "two"):
        arguments = ["train", "action-codes", *small("actions.stride=10"), "--out", str(tmp_path / name)]
        assert main(arguments) == 0, capsys.readouterr().out
        made.append([(tmp_path / name / file).read_bytes() for file in ("dct.json", "segments.json")])
    assert made[0] == made[1]
    metrics = json.loads((tmp_path / "one" / "summary.json").read_text())["metrics"]
    assert metrics["actions.dct.ade_m"] < 0.1
    assert metrics["actions.segments.ade_m"] < 0.5
    assert metrics["actions.dct.held_out"] == len(chunks_of(Drives(), ("scene-11",), 10)[0])
    capsys.readouterr()
    assert main(["check-tokenizer", str(tmp_path / "one" / "segments.json"), "--dataroot", "x"]) == 0
    assert "actions.segments.ade_m" in capsys.readouterr().out
    assert isinstance(load_codes(tmp_path / "one" / "dct.json"), DctCodes)


def test_codes_that_lose_too_much_are_refused(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(codebooks, "open_source", lambda *_: Drives())
    chunks = chunks_of(Drives(), ("scene-1", "scene-2"), 10)
    wrong = check_actions(SegmentCodes.trained(*chunks, size=2), chunks).wrong
    assert len(wrong) == 1
    assert wrong[0].startswith("segments loses")
    assert (
        main(
            ["train", "action-codes", *small("actions.segments=2", "actions.stride=10"), "--out", str(tmp_path / "run")]
        )
        == 1
    )
    assert "NOT USABLE:\n  segments loses" in capsys.readouterr().out
    assert "Not usable: segments loses" in (tmp_path / "run" / "report.html").read_text()
    unused = SegmentCodes(np.concatenate([SegmentCodes.trained(*chunks, size=64).paths, np.full((400, 8, 3), 90.0)]))
    assert "64 at least" not in check_actions(unused, chunks).wrong[0]
    assert "of 464 codes of segments occur" in check_actions(unused, chunks).wrong[0]


def test_text_is_checked_on_every_sentence_and_for_room() -> None:
    check, model = check_text(shipped_text(), corpus()), ModelConfig.tiny()
    assert not check.wrong
    assert (check.figures["text.longest_reason"], check.figures["text.longest_instruction"]) == (10, 13)
    tight = replace(model, reason_tokens=9, instruction_tokens=13, text_tokens=600)
    assert len(check_text(shipped_text(), corpus(), tight).wrong) == 3
    poor = TextTokenizer.trained(["Turn left."], 300)
    assert any("a reason takes" in words for words in check_text(poor, corpus()).wrong)
    strange = TextTokenizer.trained([*corpus(), *("zzzz qqqq xxxx jjjj " * k for k in range(1, 400))], 640)
    assert not any("come back" in words for words in check_text(strange, corpus()).wrong)


def test_the_recipe_makes_the_shipped_text_to_the_byte_and_no_other_goes_on_there(tmp_path, capsys) -> None:
    out = tmp_path / "run"
    for _ in range(2):
        assert main(["train", "text-tokens", "--out", str(out)]) == 0
        assert (out / "text_tokens.json").read_bytes() == SHIPPED.read_bytes()
    assert main(["train", "text-tokens", "text.codes=500", "--out", str(out)]) == 2
    assert "text.codes: came 500, expected 640, as this training was begun with" in capsys.readouterr().err


def test_sentences_of_one_s_own_make_other_codes(tmp_path, capsys) -> None:
    own = tmp_path / "own.txt"
    own.write_text("Bitte links abbiegen.\n\nHinter dem Bus anhalten.\n" * 40, encoding="utf-8")
    out = tmp_path / "run"
    assert main(["train", "text-tokens", f"text.more_sentences={own}", "--out", str(out)]) == 0
    text = load_codes(out / "text_tokens.json")
    assert len(text.encode("Bitte links abbiegen.")) < len(shipped_text().encode("Bitte links abbiegen."))
    assert main(["check-tokenizer", str(out / "text_tokens.json")]) == 0
    assert capsys.readouterr().out.endswith("usable\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "text-tokens", "text.codes=100"], "text.codes: came 100, expected at least 256"),
        (["train", "text-tokens", "text.code=300"], "unknown key"),
        (["train", "text-tokens", "text.more_sentences=none.txt"], "text.more_sentences: came"),
        (["train", "text-tokens", "--workers", "2"], "expected 1 for a codebook"),
        (["train", "text-tokens", "--dry-run"], "the recipe of a policy"),
        (["train", "action-codes", "data.dataroot=x", "actions.dct=1000"], "actions.dct: came 1000"),
        (["check-tokenizer", "none"], "--dataroot: came nothing"),
    ],
)
def test_codebooks_reject(tmp_path, capsys, arguments: list[str], message: str) -> None:
    out = ["--out", str(tmp_path / "run")] if arguments[0] == "train" else []
    assert main([*arguments, *out]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_codebook_is_said(tmp_path) -> None:
    path = tmp_path / "codes.json"
    for content in ("{", '{"a": 1}', "[1, 2]", '"text"'):
        path.write_text(content)
        with pytest.raises(InputError):
            load_codes(path)


def test_the_shipped_recipes_are_of_their_kind() -> None:
    assert load_recipe("text-tokens", []).text.codes == shipped_text().size
    assert load_recipe("action-codes", []).data.val_scenes == 6
