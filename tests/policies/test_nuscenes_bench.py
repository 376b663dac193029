"""`vla bench nuscenes`: its names, and measurements of a fraction of a second."""

import importlib.util

import pytest
from nuscenes.nuscenes import NuScenes

from policies.bench import nuscenes_bench
from policies.bench.log_tables import VERSION, write_log_tables
from policies.bench.nuscenes_bench import JOBS, nuscenes_figures
from policies.bench.pinned import run_pinned

MADE_UP = {
    "open_log": {"seconds": 0.01, "mb": 8.0, "samples": 82},
    "load_by_devkit": {"seconds": 2.0, "mb": 400.0, "samples": 82},
    "decode": {"ours": 0.01, "pillow": 0.08, "scaled": 0.009, "file_bytes": 150e3},
}
BESIDE_DEVKIT = {"ratio.open_vs_devkit", "ratio.memory_vs_devkit", "ratio.devkit_vs_build"}
CLOSED_LOOP = {"steps_per_s": [20.0], "digest": "a", "views": {"re-projected": 6}}
MADE_UP |= {"drive_through": CLOSED_LOOP, "hold_out": {"novel_view.psnr_db": 25.0}}
NAMES = {"steps_per_s.log_env.400x225", "steps_per_s.log_env.drawn.400x225", "log_env.deterministic"}
NAMES |= {"novel_view.psnr_db"}
NAMES |= {"open_s.85_scenes", "build_s.85_scenes", "ratio.decode_vs_pillow", "ratio.decode_vs_scaled", "decode_ms.clip"}


def test_figures_have_their_names(monkeypatch):
    said = []
    monkeypatch.setattr(nuscenes_bench, "run_pinned", lambda _, jobs: [MADE_UP[name] for name, _ in jobs])
    monkeypatch.setattr(nuscenes_bench, "write_log_tables", lambda *_: None)
    monkeypatch.setattr(nuscenes_bench, "record_town", lambda folder, steps: folder)
    figures = nuscenes_figures(True, said.append)
    assert figures.keys() == NAMES | BESIDE_DEVKIT
    assert figures["ratio.decode_vs_pillow"] == pytest.approx(8)
    assert figures["ratio.open_vs_devkit"] == pytest.approx(200)
    assert figures["ratio.memory_vs_devkit"] == pytest.approx(0.02)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert nuscenes_figures(True, said.append).keys() == NAMES
    assert any("left out" in line for line in said)


def test_made_up_tables_are_the_devkits_and_open_alike(tmp_path):
    """The devkit and we find the same in them; the second opening needs no tables."""
    write_log_tables(tmp_path / "data", 2)
    devkit = NuScenes(VERSION, str(tmp_path / "data"), verbose=False)
    assert (len(devkit.sample), len(devkit.sample_annotation)) == (82, 2 * 76 * 18)
    assert 3000 < len(devkit.sample_data) / 2 < 3300
    how = {"dataroot": str(tmp_path / "data"), "cache": str(tmp_path / "cache")}
    for _ in range(2):
        assert run_pinned(JOBS, [("open_log", how)])[0]["samples"] == 82
    assert len(list((tmp_path / "cache").rglob("*.columns"))) == 1


def test_reduced_decoding_is_faster_than_pillow():
    [took] = run_pinned(JOBS, [("decode", {"rounds": 3})])
    assert 50e3 < took["file_bytes"] < 500e3
    assert took["pillow"] > took["ours"] > 0.5 * took["scaled"] > 0
