"""The figures of nuScenes logs: `vla bench nuscenes`. Each alone on one core, beside its peer, in the same run.

ratio.open_vs_devkit            time of `NuScenes(...)` of the devkit over opening an index that is there
ratio.memory_vs_devkit          growth of resident memory, ours, a walk through 1,000 keyframes included, over theirs
ratio.devkit_vs_build           time of that load over making the index, which is done once
open_s.N_scenes, build_s.N_scenes   ours; N is 850, the size of v1.0-trainval, or a tenth of it where quick
ratio.decode_vs_pillow          time of Pillow's decode and resize over ours, six cameras of 1600x900 to 400x225
ratio.decode_vs_scaled          time of libjpeg's scaled decoding alone over ours
decode_ms.clip                  ours
"""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

from policies.bench.log_tables import TRAINVAL, write_log_tables
from policies.bench.pinned import run_pinned

OPENINGS = 3
EXTRA = "pip install -c constraints.txt -e '.[dev]'"
JOBS = "policies.bench.nuscenes_jobs"
Say = Callable[[str], None]


def nuscenes_figures(quick: bool, say: Say) -> dict[str, float]:
    """All figures, of shorter measurements with `quick`; `say` is told what is done and left out."""
    return {name: value for measure in MEASURES for name, value in measure(quick, say).items()}


def decode_figures(quick: bool, say: Say) -> dict[str, float]:
    """What six images cost."""
    [took] = run_pinned(JOBS, [("decode", {"rounds": 10 if quick else 50})])
    ours_ms, pillow_ms, kb = 1e3 * took["ours"], 1e3 * took["pillow"], 1e-3 * took["file_bytes"]
    say(f"six JPEGs of {kb:.0f} kB: {ours_ms:.1f} ms, by Pillow {pillow_ms:.1f} ms")
    return {
        "ratio.decode_vs_pillow": took["pillow"] / took["ours"],
        "ratio.decode_vs_scaled": took["scaled"] / took["ours"],
        "decode_ms.clip": ours_ms,
    }


def open_figures(quick: bool, say: Say) -> dict[str, float]:
    """What opening tables costs, made up ones of nuScenes' size."""
    scenes = TRAINVAL // 10 if quick else TRAINVAL
    with tempfile.TemporaryDirectory() as folder:
        dataroot, cache = Path(folder) / "dataroot", Path(folder) / "cache"
        write_log_tables(dataroot, scenes)
        size_mb = sum(path.stat().st_size for path in dataroot.rglob("*.json")) / 1e6
        say(f"tables of {scenes} scenes, {size_mb:.0f} MB")
        how = {"dataroot": str(dataroot), "cache": str(cache)}
        build, *opened = (run_pinned(JOBS, [("open_log", how)])[0] for _ in range(1 + OPENINGS))
        ours = min(opened, key=lambda result: result["seconds"])
        say(f"made in {build['seconds']:.1f} s, opened in {1e3 * ours['seconds']:.1f} ms, {ours['mb']:.0f} MB resident")
        figures = {f"open_s.{scenes}_scenes": ours["seconds"], f"build_s.{scenes}_scenes": build["seconds"]}
        if importlib.util.find_spec("nuscenes") is None:
            say(f"left out, all beside the devkit: it is not installed, {EXTRA}")
            return figures
        [devkit] = run_pinned(JOBS, [("load_by_devkit", {"dataroot": str(dataroot)})])
        say(f"the devkit: {devkit['seconds']:.1f} s, {devkit['mb']:.0f} MB resident")
        return {
            "ratio.open_vs_devkit": devkit["seconds"] / ours["seconds"],
            "ratio.memory_vs_devkit": ours["mb"] / devkit["mb"],
            "ratio.devkit_vs_build": devkit["seconds"] / build["seconds"],
        } | figures


MEASURES: tuple[Callable[[bool, Say], dict[str, float]], ...] = (open_figures, decode_figures)
