"""What is drawn how often."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from policies.data import TrainingSet
from policies.recipes import DataConfig
from sensors.clip import VehicleState
from sensors.errors import InputError
from sensors.imu import ImuWindow
from vla.action_tokens import ActionTokenizer
from vla.config import ModelConfig

REASONS = ("stop: red light", "drive: curve", "drive: curve", "")  # of four frames in turn


class StandIn:
    """As much of a source as TrainingSet asks for: every frame knows a plan, odd ones have no IMU."""

    def __init__(self, name: str, frames: int, reasons: tuple[str, ...]):
        self.name, self.frames, self.reasons = name, frames, reasons
        self.index = SimpleNamespace(dataroot=name)

    def frame_times_us(self, scene: str) -> np.ndarray:
        return np.arange(self.frames, dtype=np.int64)

    def extension(self, scene: str) -> SimpleNamespace:
        return SimpleNamespace(
            scenario=scene,
            town=self.name,
            seed=0,
            plan_time_us=self.frame_times_us(scene),
            plan_after_s=0.5 * np.arange(1, 9),
            reasons=self.reasons,
            reason_at=lambda now_us: self.reasons[now_us % len(self.reasons)],
            cue_at=lambda now_us: ("follow", ""),
        )

    def vehicle(self, scene: str, now_us: int) -> VehicleState:
        return VehicleState(5.0)

    def imu(self, scene: str, now_us: int) -> ImuWindow:
        return ImuWindow(*(np.zeros((1 - now_us % 2, *more)) for more in ((), (3,), (3,))))


def drawn(config: DataConfig, draws: int = 40_000) -> tuple[Counter, Counter, Counter]:
    """How often, of 400 examples of one root and 100 of another: roots, (root, reason), (reason known, IMU known)."""
    parts = [(StandIn("large", 400, REASONS), ["a"]), (StandIn("small", 100, ("",)), ["a"])]
    examples = TrainingSet(parts, ActionTokenizer(ModelConfig.tiny()), ModelConfig.tiny())
    chances = examples.chances(config)
    assert chances.sum() == pytest.approx(1.0)
    chosen = np.random.default_rng(0).choice(len(examples), draws, p=chances)
    items = [(source, frame) for source, [scene] in parts for frame in range(source.frames)]
    roots, reasons, kinds = Counter(), Counter(), Counter()
    for source, frame in (items[k] for k in chosen):
        reason = source.reasons[frame % len(source.reasons)]
        roots[source.name] += 1 / draws
        reasons[source.name, reason] += 1 / draws
        kinds[bool(reason), frame % 2 == 0] += 1 / draws
    return roots, reasons, kinds


def test_parts_are_drawn_as_their_sizes_and_balances_say():
    near = {"abs": 0.01}
    assert TrainingSet.chances(SimpleNamespace(), DataConfig("")) is None
    roots, _, _ = drawn(DataConfig("", balance_datasets=1.0))
    assert roots == pytest.approx({"large": 0.5, "small": 0.5}, **near)
    roots, _, _ = drawn(DataConfig("", balance_datasets=0.5))
    assert roots == pytest.approx({"large": 2 / 3, "small": 1 / 3}, **near)  # 20 to 10
    roots, reasons, _ = drawn(DataConfig("", balance=1.0))  # three situations: stop, drive, none known
    assert reasons["large", "stop: red light"] == pytest.approx(1 / 3, **near)
    assert reasons["large", "drive: curve"] == pytest.approx(1 / 3, **near)
    assert reasons["large", ""] == pytest.approx(reasons["small", ""], **near)  # alike within a part
    _, _, kinds = drawn(DataConfig("", balance_modalities=1.0))
    assert kinds == pytest.approx({(a, b): 1 / 4 for a in (True, False) for b in (True, False)}, **near)
    roots, reasons, _ = drawn(DataConfig("", balance_datasets=1.0, balance=1.0))  # a root first, then its situations
    assert roots == pytest.approx({"large": 0.5, "small": 0.5}, **near)
    assert reasons["large", ""] == pytest.approx(1 / 6, **near)


def test_a_set_without_examples_is_refused():
    with pytest.raises(InputError, match="small: scenes: came 1 scenes without one, expected at least one frame"):
        TrainingSet([(StandIn("small", 0, ("",)), ["a"])], ActionTokenizer(ModelConfig.tiny()), ModelConfig.tiny())
