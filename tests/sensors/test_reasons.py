"""Reasons: what the grammar makes it reads, and nothing else."""

import pytest

from sensors.errors import InputError
from sensors.reasons import KINDS, REASONS, WITH_DISTANCE, Reason, parse_reason, reason
from sim.traffic_sumo import KINDS as TRAFFIC_KINDS
from sim.traffic_sumo import PEDESTRIAN


def test_every_reason_is_read_back() -> None:
    assert set(WITH_DISTANCE) <= set(REASONS)
    for action, causes in REASONS.items():
        for cause in causes:
            for distance_m in (0, 7, 120) if action in WITH_DISTANCE else (None,):
                made = Reason(action, cause, distance_m)
                assert parse_reason(made.text) == made


def test_the_text_is_as_documented() -> None:
    assert reason("stop", "red light", 11.7) == "stop: red light, 12 m"
    assert reason("follow", "car", -0.4) == "follow: car, 0 m"
    assert reason("drive", "free road") == "drive: free road"


def test_everybody_in_the_traffic_has_a_word() -> None:
    categories = {*(kind.category for kind in TRAFFIC_KINDS.values()), PEDESTRIAN}
    assert {category.split(".")[1] for category in categories} == set(KINDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "action"),
        ("stop", "action"),
        ("stopp: red light, 3 m", "Did you mean stop: red light"),
        ("stop: red lihgt, 3 m", "Did you mean stop: red light"),
        ("stop: car, 3 m", "cause of stop"),
        ("stop: red light", "distance of stop"),
        ("stop: red light, 3", "distance of stop"),
        ("stop: red light, 3.0 m", "distance of stop"),
        ("stop: red light, -3 m", "distance of stop"),
        ("stop: red light, 03 m", "distance of stop"),
        ("drive: free road, 3 m", "distance of drive"),
    ],
)
def test_parse_reason_rejects(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_reason(text)
