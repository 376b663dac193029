"""The figures of nuScenes logs: `vla bench nuscenes`. Each alone on one core, beside its peer, in the same run.

ratio.decode_vs_pillow          time of Pillow's decode and resize over ours, six cameras of 1600x900 to 400x225
ratio.decode_vs_scaled          time of libjpeg's scaled decoding alone over ours
decode_ms.clip                  ours
"""

from collections.abc import Callable

from policies.bench.pinned import run_pinned

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


MEASURES: tuple[Callable[[bool, Say], dict[str, float]], ...] = (decode_figures,)
