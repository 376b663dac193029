import json

import pytest

from policies.cli import main
from policies.stages import load_stages, shipped_stages
from sensors.errors import InputError

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
def test_shipped_stages_are_commands_of_vla(name, tmp_path, monkeypatch):
    for arguments in load_stages(name, tmp_path).stages.values():
        with pytest.raises(SystemExit) as ended:
            main([arguments[0], "--help"])
        assert ended.value.code == 0
        assert not any("{" in argument for argument in arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a", "stages"),
        ("name: a\nstages:\n  one: 3", "stages"),
        ("name: a\nstages:\n  one: record --out {there}", "placeholder"),
        ("name: [", "YAML"),
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
