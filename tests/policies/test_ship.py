import json

import pytest
import torch
from test_train import small_recipe

from policies.cli import main
from policies.ship import CARD, ship
from policies.ship import main as ship_main
from policies.train import train
from vla.checkpoint import load


@pytest.mark.timeout(120)
def test_what_is_shipped_is_the_weights_and_a_card_of_what_was_measured(course_dataroot, tmp_path, capsys):
    trained, driven, out = tmp_path / "trained", tmp_path / "driven", tmp_path / "shipped"
    train(small_recipe(course_dataroot, "train.steps=2"), trained, progress=False)
    checkpoint = trained / "checkpoint"
    arguments = ["--policy", "vla", "--episodes", "1", "--seconds", "1", "--videos", "0", "--clips", "0", "--quiet"]
    arguments = ["drive", "--suite", "course", "--checkpoint", str(checkpoint), *arguments]
    assert main([*arguments, "--workers", "1", "--out", str(driven)]) == 0
    ship(trained, driven, out)
    shipped = load(out)
    assert not shipped.state_tensors
    for name, value in load(checkpoint).model.state_dict().items():
        assert torch.equal(shipped.model.state_dict()[name], value)
    text, summary = (out / CARD).read_text(), json.loads((driven / "summary.json").read_text())
    assert f"{summary['metrics']['time_on_course_s']:.3f}" in text
    assert "1 episodes a policy, 0 failed" in text
    assert "learning_rate" in text
    again = tmp_path / "again"  # another drive with what is shipped: its scores take the place of the first
    assert main([*arguments, "--seed", "5", "--checkpoint", str(out), "--workers", "1", "--out", str(again)]) == 0
    told = json.loads((again / "summary.json").read_text())
    (again / "summary.json").write_text(json.dumps(told | {"earlier_commits": ["0123456789ab"]}))
    assert ship_main([str(again), str(out)]) == 0
    rewritten = (out / CARD).read_text()
    assert f"{told['metrics']['distance_m']:.3f}" in rewritten
    assert f"{summary['metrics']['distance_m']:.3f}" not in rewritten
    assert "begun at 0123456789:" in rewritten
    assert [text.partition("## Scores")[0], text.partition("## Training")[2]] == [
        rewritten.partition("## Scores")[0],
        rewritten.partition("## Training")[2],
    ]
    assert ship_main([str(trained), str(driven), "x", "y"]) == 2
    train(small_recipe(course_dataroot, "train.steps=1"), tmp_path / "other", progress=False)
    capsys.readouterr()
    assert ship_main([str(tmp_path / "other"), str(driven), str(tmp_path / "no")]) == 2
    assert "weights: came" in capsys.readouterr().err
