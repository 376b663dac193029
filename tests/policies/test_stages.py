import json

import pytest
import yaml
from test_train import SMALL

from policies.cli import _parser, main
from policies.recipes import load_recipe
from policies.stages import load_stages, shipped_stages
from sensors.errors import InputError
from vla.checkpoint import save
from vla.model import DrivingModel

RECORD = "record --steps 4 --scene-steps 4 --image-size 32x32 --workers 1 --videos 0 --quiet --out {out}/course"


def written(tmp_path, **stages):
    lines = [f"  {name}: {command}" for name, command in stages.items()]
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(["name: mine", "stages:", *lines]))
    return path


@pytest.mark.timeout(120)
def test_stages_run_in_turn_stop_at_the_first_that_fails_and_go_on_there(tmp_path, capfd):
    out = tmp_path / "out"
    path = written(tmp_path, record=RECORD, leaderboard="leaderboard {out}/nothing", never="leaderboard {out}/nothing")
    assert main(["make", str(path), "--out", str(out)]) == 2
    said = capfd.readouterr()
    assert "leaderboard: ended with exit status 2" in said.out
    assert "never" not in said.out
    assert (out / "course" / "v1.0-mini" / "scene.json").is_file()
    assert list(json.loads((out / "stages.json").read_text())) == ["record"]
    written(tmp_path, record=RECORD)
    assert main(["make", str(path), "--out", str(out)]) == 0
    assert "record: done" in capfd.readouterr().out
    written(tmp_path, record=RECORD.replace("--steps 4", "--steps 8"))
    assert main(["make", str(path), "--out", str(out)]) == 2
    assert "use a new --out folder" in capfd.readouterr().err


@pytest.mark.parametrize("name", shipped_stages())
def test_shipped_stages_are_commands_of_vla_with_recipes_that_it_has(name, tmp_path):
    for arguments in load_stages(name, tmp_path).stages.values():
        assert not any("{" in argument for argument in arguments)
        options = _parser().parse_args(arguments)
        assert str(options.out).startswith(str(tmp_path))
        if options.verb == "train":
            load_recipe(options.recipe, options.overrides)


def test_what_is_given_is_replaced_from_the_command_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ngiven: {town: data/town, rate: 1.0e-3}\nstages:\n  one: train x a={town} b={rate}\n")
    assert load_stages(str(path), tmp_path).stages["one"] == ["train", "x", "a=data/town", "b=0.001"]
    assert load_stages(str(path), tmp_path, ["town=a b"]).stages["one"] == ["train", "x", "a=a b", "b=0.001"]
    for wrong, words in (("twon=x", "Did you mean town"), ("town", "KEY=VALUE"), ("out=x", "one of town, rate")):
        with pytest.raises(InputError, match=words):
            load_stages(str(path), tmp_path, [wrong])
    with pytest.raises(InputError, match="nothing given"):
        load_stages(str(written(tmp_path, one="doctor")), tmp_path, ["town=x"])


def test_each_round_of_dagger_learns_from_all_that_was_recorded_and_drives_what_no_other_did(tmp_path):
    stages = load_stages("dagger", tmp_path, ["town=data/mine", "start=the/start"]).stages
    options = {name: _parser().parse_args(arguments) for name, arguments in stages.items()}
    driver, recorded, first = "the/start", [], set()
    for k in (1, 2, 3):
        student = options[f"record-{k}"]
        assert str(student.student) == driver
        recorded.append(str(student.out))
        first.add(student.seed)
        recipe = load_recipe(options[f"train-{k}"].recipe, options[f"train-{k}"].overrides)
        assert (recipe.data.dataroot, list(recipe.data.more_dataroots)) == ("data/mine", recorded)
        assert recipe.train.start_from == driver
        driver = f"{options[f'train-{k}'].out}/checkpoint"
        assert str(options[f"score-{k}"].checkpoint) == driver
    assert len(first) == 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dagger_goes_from_a_policy_and_its_recording_to_three_rounds_with_scores(tmp_path):
    recipe = load_recipe("tiny", [*SMALL, "data.dataroot=none", "train.checkpoint_every=2"])
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe.to_dict()))))
    town, out, start = tmp_path / "town", tmp_path / "out", tmp_path / "start"
    save(start, DrivingModel(recipe.model))
    scenes = ["--steps", "8", "--scene-steps", "4", "--image-size", "64x32", "--videos", "0", "--quiet"]
    assert main(["record", "--suite", "town-train", "--hz", "2", *scenes, "--out", str(town)]) == 0
    few = ["image=64x32", "keyframes=8", "scene=4", "steps=2", "episodes=1", "seconds=2"]
    given = [f"start={start}", f"town={town}", f"recipe={tmp_path / 'small.yaml'}", *few]
    assert main(["make", "dagger", *given, "--out", str(out)]) == 0
    assert len(json.loads((out / "stages.json").read_text())) == 10
    examples = [
        json.loads((out / f"train-{k}" / "summary.json").read_text())["metrics"]["train.examples"] for k in (1, 2, 3)
    ]
    assert examples == [12, 20, 28]  # four of a scene of the expert's, another being held out, and eight more a round
    assert "route_completion" in json.loads((out / "score-3" / "summary.json").read_text())["metrics"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a", "stages"),
        ("name: a\nstages:\n  one: 3", "stages"),
        ("name: a\nstages:\n  one: record --out {there}", "placeholder"),
        ("name: [", "YAML"),
        ("name: a\ngiven: [3]\nstages: {one: doctor}", "given: to values"),
        ("name: a\ngiven: {a: [3]}\nstages: {one: doctor}", "a text or a number each"),
        ("name: a\ngivne: {a: 3}\nstages: {one: doctor}", "Did you mean given"),
    ],
)
def test_files_that_are_none_are_refused(text, words, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        load_stages(str(path), tmp_path)


def test_an_unknown_name_says_which_there_are(capsys):
    assert main(["make", "tiny-twon"]) == 2
    assert "tiny-town" in capsys.readouterr().err
