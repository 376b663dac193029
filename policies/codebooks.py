"""Codebooks that are no networks, made from recipes: text as byte pairs, chunks of driving as few codes.

Each is checked before anything is trained on it, text on every sentence that it was made for, codes of driving on
scenes that are held out; what fails is refused, with its figures.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.data import split_scenes
from policies.recipes import ActionConfig, ActionRecipe, TextRecipe
from policies.runs import Run, write_json
from policies.text_corpus import corpus, reasons
from policies.training_loop import require_recipe
from sensors.errors import InputError
from sensors.nuscenes_source import NuscenesSource
from sensors.pack_source import open_source
from sim.report.page import write_report
from sim.rollout_log import atomic_path
from vla.action_codes import DT_S, STEPS, DctCodes, SegmentCodes, round_trip
from vla.config import ModelConfig
from vla.text_tokens import BYTES, TextTokenizer

TEXT_FILE = "text_tokens.json"
ACTION_FILES = {"dct": "dct.json", "segments": "segments.json"}
MOST_ADE_M = {"dct": 0.1, "segments": 0.5}  # mean error of a chunk of 6.4 s
LEAST_USED = {"text": 0.5, "dct": 0.02, "segments": 0.25}  # share of the codes; most of dct's are single numbers
MOST_CHUNKS, LEAST_CHUNKS = 2000, 20  # that are checked with
MOVES_MPS, MOST_ACCEL_MPS2, MOST_CURVATURE_1PM = 0.5, 8.0, 0.3  # beyond these a bus is wrong, or nobody drives so

Chunks = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Check:
    """figures, flat; wrong: what makes a codebook useless, in words, none if it is usable."""

    figures: dict[str, float]
    wrong: tuple[str, ...]


def train_text(recipe: TextRecipe, out: Path) -> tuple[Path, Check]:
    """Make RUN/text_tokens.json; (its report, its check). The same recipe makes the same file, byte for byte."""
    run = _begun(recipe, out, 0)
    sentences = [*corpus(), *_more(recipe.text.more_sentences)]
    text = TextTokenizer.trained(sentences, recipe.text.codes)
    with atomic_path(out / TEXT_FILE) as temporary:
        text.save(temporary)
    return _closed(run, check_text(text, sentences))


def check_text(text: TextTokenizer, sentences: Sequence[str], model: ModelConfig | None = None) -> Check:
    """Whether every sentence comes back, and fits where a model has places for it."""
    model = model or ModelConfig.tiny()
    said, different = set(reasons()), sorted(set(sentences))
    codes = [text.encode(sentence) for sentence in different]
    lost = sum(text.decode(each) != sentence for each, sentence in zip(codes, different, strict=True))
    lengths = np.array([len(each) for each in codes])
    of_reasons = np.array([sentence in said for sentence in different])
    pairs = {code for each in codes for code in each if code >= BYTES}
    used = len(pairs) / max(text.size - BYTES, 1)
    longest_reason = int(lengths[of_reasons].max(initial=0))
    longest_instruction = int(lengths[~of_reasons].max(initial=0))
    figures = {
        "text.codes": text.size,
        "text.sentences": len(different),
        "text.codes_a_sentence": float(lengths.mean()),
        "text.longest_reason": longest_reason,
        "text.longest_instruction": longest_instruction,
        "text.pairs_used": used,
        "text.lost": lost,
    }
    rules = (
        (lost > 0, f"{lost} sentences do not come back as they were"),
        (longest_reason > model.reason_tokens, f"a reason takes {longest_reason} codes of {model.reason_tokens}"),
        (
            longest_instruction >= model.instruction_tokens,
            f"an instruction takes {longest_instruction} codes of {model.instruction_tokens - 1}",
        ),
        (text.size > model.text_tokens, f"{text.size} codes, where a model has {model.text_tokens}"),
        (used < LEAST_USED["text"], f"{used:.0%} of the pairs occur, of at least {LEAST_USED['text']:.0%}"),
    )
    return Check(figures, tuple(words for broken, words in rules if broken))


def train_actions(recipe: ActionRecipe, out: Path) -> tuple[Path, Check]:
    """Make RUN/dct.json and RUN/segments.json of recorded drives; (the report, what they lose on held-out ones)."""
    run = _begun(recipe, out, recipe.seed)
    source, c = open_source(recipe.data.dataroot, recipe.data.version, 1), recipe.actions
    learned, held_out = split_scenes(source.scenes, recipe.data)
    train, asked = (chunks_of(source, scenes, c.stride) for scenes in (learned, held_out))
    made = {
        "dct": DctCodes.trained(*train, size=c.dct),
        "segments": SegmentCodes.trained(*train, size=c.segments, seed=recipe.seed),
    }
    for kind, codes in made.items():
        with atomic_path(out / ACTION_FILES[kind]) as temporary:
            codes.save(temporary)
    checks = [check_actions(codes, asked) for codes in made.values()]
    figures = {"actions.chunks": len(train[0]), **checks[0].figures, **checks[1].figures}
    return _closed(run, Check(figures, checks[0].wrong + checks[1].wrong))


def check_actions(codes: DctCodes | SegmentCodes, chunks: Chunks) -> Check:
    """What chunks lose in codes and back, on at most MOST_CHUNKS of them, evenly taken."""
    kind = "dct" if isinstance(codes, DctCodes) else "segments"
    taken = np.linspace(0, len(chunks[0]) - 1, min(len(chunks[0]), MOST_CHUNKS)).round().astype(int)
    chunks = tuple(column[taken] for column in chunks)
    lost = round_trip(codes, *chunks)
    used = len({int(code) for chunk in zip(*chunks, strict=True) for code in codes.encode(*chunk)}) / codes.size
    figures = {"ade_m": lost.ade_m, "fde_m": lost.fde_m, "arrival_s": lost.time_s, "codes_a_chunk": lost.codes}
    figures |= {"codes_most": lost.codes_max, "used": used, "held_out": len(taken)}
    rules = (
        (lost.ade_m > MOST_ADE_M[kind], f"{kind} loses {lost.ade_m:.2f} m, of at most {MOST_ADE_M[kind]} m"),
        (
            used < LEAST_USED[kind],
            f"{used:.1%} of {codes.size} codes of {kind} occur, of {LEAST_USED[kind]:.0%} at least",
        ),
    )
    named = {f"actions.{kind}.{name}": value for name, value in figures.items()}
    return Check(named, tuple(words for broken, words in rules if broken))


def chunks_of(source: NuscenesSource, scenes: Sequence[str], stride: int) -> Chunks:
    """(v0 [M], acceleration [M, STEPS], curvature [M, STEPS]) of what was driven, from the CAN bus; chunks in which it
    is silent, or speaks of what no car does, are left out. Fewer than LEAST_CHUNKS are an InputError."""
    rows = [row for scene in scenes for row in _chunks(source, scene, stride)]
    if len(rows) < LEAST_CHUNKS:
        came = f"{len(rows)} chunks of {STEPS * DT_S:g} s in {len(scenes)} scenes"
        fix = "It takes drives with a CAN bus; those of what might be are none."
        raise InputError(source.name, "drives", came, f"at least {LEAST_CHUNKS}", fix)
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def _chunks(source: NuscenesSource, scene: str, stride: int) -> Iterable[tuple[float, np.ndarray, np.ndarray]]:
    times_us = source.frame_times_us(scene)
    instants = range(int(times_us[0]), int(times_us[-1]) + 1, round(DT_S * 1e6))
    states = [source.vehicle(scene, time_us) for time_us in instants]
    speed, rate = (np.array([getattr(state, name) for state in states]) for name in ("speed_mps", "yaw_rate_radps"))
    accel, moves = np.diff(speed) / DT_S, speed[:-1] > MOVES_MPS
    curvature = np.where(moves, rate[:-1] / np.where(moves, speed[:-1], 1.0), 0.0)
    with np.errstate(invalid="ignore"):
        fair = (np.abs(accel) < MOST_ACCEL_MPS2) & (np.abs(curvature) < MOST_CURVATURE_1PM)
    for k in range(0, len(accel) - STEPS + 1, stride):
        if fair[k : k + STEPS].all():
            yield max(float(speed[k]), 0.0), accel[k : k + STEPS], curvature[k : k + STEPS]


def check_codebook_file(path: Path, dataroot: Path | None, version: str) -> Check:
    """What a file that `vla train` made is worth: text on its corpus, codes of driving on the drives of a dataroot."""
    codes = load_codes(path)
    if isinstance(codes, TextTokenizer):
        return check_text(codes, corpus())
    if dataroot is None:
        raise InputError("vla check-tokenizer", "--dataroot", "nothing", "recorded drives that it was not made of")
    source = open_source(str(dataroot), version, 1)
    return check_actions(codes, chunks_of(source, source.scenes, ActionConfig.stride))


def load_codes(path: Path) -> TextTokenizer | DctCodes | SegmentCodes:
    """Whichever of them the file holds; anything else is an InputError."""
    try:
        held = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(path, "codebook", error, "a JSON file that vla train made") from error
    if isinstance(held, list):
        return SegmentCodes.load(path)
    return DctCodes.load(path) if "bpe" in held else TextTokenizer.load(path)


def _more(path: str) -> list[str]:
    """The sentences of a file, one a line."""
    if not path:
        return []
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, "text.more_sentences", error, "a text file with one sentence a line") from error


def _begun(recipe: TextRecipe | ActionRecipe, out: Path, seed: int) -> Run:
    """A run directory, new, or of the same recipe: what it makes is made anew, and the same."""
    run = Run.create("train", out, recipe.to_dict(), [seed], resume=True)
    require_recipe(recipe, out)
    return run


def _closed(run: Run, check: Check) -> tuple[Path, Check]:
    write_json(run.path / "recipe.json", run.summary["config"])
    run.summary |= {
        "metrics": check.figures,
        "wrong": list(check.wrong),
        "scenes": {"asked": 1, "finished": 1, "failed": 0},
    }
    run.save()
    return write_report(run.path), check
