"""`vla bench nuscenes`: its names, and measurements of a fraction of a second."""

import pytest

from policies.bench import nuscenes_bench
from policies.bench.nuscenes_bench import JOBS, nuscenes_figures
from policies.bench.pinned import run_pinned

MADE_UP = {"decode": {"ours": 0.01, "pillow": 0.08, "scaled": 0.009, "file_bytes": 150e3}}
NAMES = {"ratio.decode_vs_pillow", "ratio.decode_vs_scaled", "decode_ms.clip"}


def test_figures_have_their_names(monkeypatch):
    monkeypatch.setattr(nuscenes_bench, "run_pinned", lambda _, jobs: [MADE_UP[name] for name, _ in jobs])
    figures = nuscenes_figures(True, print)
    assert figures.keys() == NAMES
    assert figures["ratio.decode_vs_pillow"] == pytest.approx(8)


def test_reduced_decoding_is_faster_than_pillow():
    [took] = run_pinned(JOBS, [("decode", {"rounds": 2})])
    assert 50e3 < took["file_bytes"] < 500e3
    assert took["pillow"] > 2 * took["ours"] > took["scaled"]
