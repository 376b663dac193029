"""The figures of nuScenes logs: `vla bench nuscenes`. Each alone on one core, beside its peer, in the same run.

ratio.open_vs_devkit            time of `NuScenes(...)` of the devkit over opening an index that is there
ratio.memory_vs_devkit          growth of resident memory, ours, a walk through 1,000 keyframes included, over theirs
ratio.devkit_vs_build           time of that load over making the index, which is done once
open_s.N_scenes, build_s.N_scenes   ours; N is 850, the size of v1.0-trainval, or a tenth of it where quick
ratio.decode_vs_pillow          time of Pillow's decode and resize over ours, six cameras of 1600x900 to 400x225
ratio.decode_vs_scaled          time of libjpeg's scaled decoding alone over ours
decode_ms.clip                  ours
steps_per_s.log_env.400x225     closed loop through a scene recorded in the town, six cameras re-projected a step
steps_per_s.log_env.drawn.400x225   the same with nothing re-projected
log_env.deterministic           1: two processes see the same, to the bit
novel_view.psnr_db, .copied_psnr_db, .ssim, .hole_share   of held-out images of that recording, see `sim.view_quality`
"""

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from policies.bench.log_tables import TRAINVAL, VERSION, write_log_tables
from policies.bench.pinned import run_pinned
from sensors.errors import InputError
from sim.gl_device import gl_name

OPENINGS = 3
EXTRA = "pip install -c constraints.txt -e '.[dev]'"
JOBS, LOG_JOBS = "policies.bench.nuscenes_jobs", "policies.bench.log_env_jobs"
SIZE, RECORDED_STEPS = (400, 225), 40
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


def closed_loop_figures(quick: bool, say: Say) -> dict[str, float]:
    """What driving through a recorded scene costs, and what its images are worth; the scene is recorded before."""
    try:
        renderer = "gl"
        say(f"closed loop: OpenGL by {gl_name()}")
    except InputError as error:
        renderer = "cv"
        say(f"closed loop: OpenCV, since {error}")
    with tempfile.TemporaryDirectory() as folder:
        dataroot = record_town(Path(folder), RECORDED_STEPS // 2 if quick else RECORDED_STEPS)
        where = {"dataroot": str(dataroot), "version": VERSION, "renderer": renderer, "size": list(SIZE)}
        rounds = 1 if quick else 3
        job = ("drive_through", where | {"views": "auto", "rounds": rounds})
        shown, again = (run_pinned(LOG_JOBS, [job])[0] for _ in range(2))
        [drawn] = run_pinned(LOG_JOBS, [("drive_through", where | {"views": "rendered", "rounds": rounds})])
        say(f"images: {', '.join(f'{count} {how}' for how, count in shown['views'].items())}")
        [views] = run_pinned(LOG_JOBS, [("hold_out", where | {"instants": 4 if quick else 24})])
    return {
        "steps_per_s.log_env.400x225": float(np.median(shown["steps_per_s"] + again["steps_per_s"])),
        "steps_per_s.log_env.drawn.400x225": float(np.median(drawn["steps_per_s"])),
        "log_env.deterministic": float(shown["digest"] == again["digest"]),
    } | views


def record_town(folder: Path, steps: int) -> Path:
    """A dataroot of one scene of the town, so many keyframes with sweeps between them, by `vla record`."""
    out, size = folder / "town", "{}x{}".format(*SIZE)
    words = ["--suite", "town-smoke", "--steps", str(steps), "--scene-steps", str(steps), "--image-size", size]
    words += ["--workers", "1", "--videos", "0", "--version", VERSION, "--out", str(out), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "policies.cli", "record", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"vla record failed:\n{done.stderr.strip()[-2000:]}")
    return out


MEASURES: tuple[Callable[[bool, Say], dict[str, float]], ...] = (
    open_figures,
    decode_figures,
    closed_loop_figures,
)
