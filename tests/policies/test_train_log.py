"""What a training says while it runs, and what its report makes of it."""

import errno
import io
import json
from contextlib import closing
from types import SimpleNamespace

import pytest

from policies.train_log import StepLog, View, curves, duration, happened, read_steps
from sensors.errors import InputError
from sim.report.training import charts, events


def record(step: int, **more: float) -> dict:
    told = {"step": step, "loss": 10.0 - step, "loss_action": 2.0, "loss_reason": 0.5, "gradient_norm": 1.0}
    told |= {"gradient_norm_vision": 0.5, "expert_load_1": 1.5, "busiest_expert": 1.5, "learning_rate": 1e-3}
    return told | {"step_s": 0.5, "loader_share": 0.1} | more


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_one_block_that_is_drawn_over_itself():
    out = Terminal()
    view = View(4, 8, "clips", True, out)
    view.show(record(1), 0)
    first = out.getvalue()
    assert "step 1 of 4, 25%, 16.0 clips/s, loader 10%, 2 s to go" in first
    assert "loss     9 (action 2, reason 0.5)" in first
    assert "(vision 0.5), rate 1.00e-03" in first
    assert "busiest x even (1 1.5)" in first
    view.show(record(2), 0)  # too soon to draw again
    assert out.getvalue() == first
    view.show(record(4, skipped=1, loss=None, broken=3), 2)
    assert f"\x1b[{first.count(chr(10))}F" in out.getvalue()
    assert "1 steps skipped, 2 rewinds, 3 broken examples passed over" in out.getvalue()


def test_a_training_by_its_own_drives_says_what_they_are_worth():
    out = Terminal()
    drives = {"reward": 0.25, "reward_progress": 0.5, "gated": 0.5, "gated_red_light": 0.25, "kl": 0.01}
    View(4, 16, "drives", True, out).show(record(1, **drives, entropy=3.0, clipped=0.1), 0)
    assert "32.0 drives/s" in out.getvalue()
    assert "reward   0.25 (progress 0.5), gated 50% (red light 0.25)" in out.getvalue()
    assert "policy   KL 0.01, entropy 3, clipped 10.0%" in out.getvalue()


def test_elsewhere_there_are_plain_lines_and_quiet_says_nothing():
    out, quiet = io.StringIO(), Terminal()
    view, silent = View(2, 8, "clips", True, out), View(2, 8, "clips", False, quiet)
    for step in (1, 2):
        view.show(record(step), 0)
        silent.show(record(step), 0)
    assert out.getvalue().count("\n") == 2
    assert "\x1b" not in out.getvalue()
    assert not quiet.getvalue()


def test_a_log_forgets_what_is_done_again_and_keeps_events(tmp_path):
    log = StepLog(tmp_path, 0, [])
    for step in (1, 2, 3):
        log.write(record(step))
    log.close()
    with log.path.open("a") as file:
        file.write('{"step": 4, "los')  # shot while writing
    rewind = {"event": "rewind", "step": 2, "from_step": 4}
    StepLog(tmp_path, 2, [rewind]).close()
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert lines == [record(1), record(2), rewind]
    assert [line["step"] for line in read_steps(log.path)] == [1, 2]


def test_a_log_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    def full(text):
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(StepLog(tmp_path, 0, [])) as log:
        monkeypatch.setattr(log, "_file", SimpleNamespace(write=full, close=log._file.close))
        with pytest.raises(InputError, match=r"train.jsonl: file: came No space left.*Is the disk full"):
            log.write(record(1))


def test_curves_are_means_of_consecutive_steps_without_those_skipped():
    records = [record(step) for step in range(1, 401)] + [record(401, loss=None, skipped=1)]
    drawn = curves(records)
    assert drawn["loss"][0] == [2, pytest.approx(8.5)]
    assert drawn["loss"][-1][0] == 400
    assert "skipped" not in drawn
    told, more = events({"events": happened(records, [])})
    assert (told[0]["step"], more) == (401, 0)
    assert "not finite" in told[0]["words"]


def test_charts_share_what_belongs_together():
    drawn = {chart["name"]: chart for chart in charts(curves([record(step) for step in (1, 2)]))}
    assert next(iter(drawn)) == "loss"
    assert [line["name"] for line in drawn["gradient norm"]["lines"]] == ["all", "vision"]
    assert drawn["loss"]["lines"][0]["points"] == "50.00,0.00 100.00,30.00"
    assert not any(name == "busiest expert" for name in drawn)
    words = {"event": "rewind", "step": 2, "from_step": 9, "losses": [90.0], "median_loss": 2.0}
    told, _ = events({"events": [words | {"draws_passed_over": [7, 8]}]})
    back, passed = "went back to here from step 9: losses 90 where 2 was ordinary", "batches 7, 8 are passed over"
    assert told[0]["words"] == f"{back}; {passed}"


@pytest.mark.parametrize(("seconds", "words"), [(4, "4 s"), (600, "10 min"), (12_000, "3 h 20 min")])
def test_durations_are_short(seconds, words):
    assert duration(seconds) == words
