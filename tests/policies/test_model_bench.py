"""The bench of the brain: how a ratio is taken, that both sides do the same, and which figures there are."""

import pytest
import torch

from policies.bench import model_bench
from policies.bench.model_bench import model_figures, ratio_of

NAMES = {
    "hf_ratio.decode.tiny",
    "hf_ratio.decode.44m",
    "hf_ratio.generate.tiny",
    "hf_ratio.train_step.tiny",
    "hf_ratio.driving_loss.tiny",
    "parity.max_abs_logit",
    "ratio.parallel_action",
    "ratio.streaming_tick",
    "ratio.asymmetric_encoder",
    "ratio.moe_dense",
    "tick_ms.p50",
    "tick_ms.p99",
}


def test_ratio_is_plain_over_ours_and_takes_turns(monkeypatch):
    order, spans = [], {"plain": 3.0, "ours": 2.0}
    works = {name: (lambda name=name: order.append(name)) for name in spans}

    def seconds(work):
        work()
        return spans[order[-1]]

    monkeypatch.setattr(model_bench, "_seconds", seconds)
    assert ratio_of(works["plain"], works["ours"], 4) == 1.5
    assert order[2:] == ["ours", "plain", "plain", "ours"] * 2


def test_tick_is_timed_from_clip_to_plan():
    said = []
    figures = model_bench._tick(1, said.append)
    assert 0 < figures["tick_ms.p50"] <= figures["tick_ms.p99"]
    assert "of 40" in said[0]


def test_bf16_is_timed_beside_fp32_on_the_same_step(monkeypatch):
    seen, loss = [], model_bench.DrivingModel.loss

    def watched(self, batch, tokens):
        seen.append((torch.is_autocast_enabled("cpu"), len(tokens), tokens.sum().item()))
        return loss(self, batch, tokens)

    monkeypatch.setattr(model_bench.DrivingModel, "loss", watched)
    for work in model_bench._bf16_works(2):
        work()
    (plain, *rest), (cast, *same) = seen
    assert (plain, cast) == (False, True)
    assert rest == same


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_figures_and_parity():
    pytest.importorskip("transformers", reason="Hugging Face Transformers, the reference, is not installed")
    figures = model_figures(True, print)
    assert figures.keys() == NAMES
    assert figures["parity.max_abs_logit"] <= 1e-5
