"""A look into a checkpoint: its figures, and a page that draws them; see `vla.diagnostics`.

A driving model is looked at while it reads clips: of a dataroot with the plans that were driven, or of noise with its
own plans. An image tokenizer is looked at with the images of the same clips.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from policies.data import TrainingSet
from policies.noise import noise_clip
from policies.train_images import MOST_CHECKED, check_on, images_of
from policies.transforms import image_size, to_batch
from sensors.collate import Batch
from sensors.errors import InputError
from sensors.pack_source import open_source
from sim.report.templates import write_page
from vla.action_tokens import ActionTokenizer
from vla.checkpoint import is_image_tokenizer, load, load_image_tokenizer
from vla.diagnostics import TIME_SPAN_S, Inspection, code_counts, inspect_model
from vla.image_tokens import ImageTokenizer
from vla.model import DrivingModel

CLIPS = 8
BAR, ROW = 1000.0, 34.0  # width of a bar in the drawing's units, and how far bars are apart
CELL = 10.0  # side of a patch in the drawing
BINS = 100  # bars of codes sorted by use


@dataclass(frozen=True)
class Looked:
    """figures by name, and what the page's template is given."""

    figures: dict[str, float]
    page: dict[str, object]


def inspect(checkpoint: Path, dataroot: Path | None, version: str, tokenizer: Path | None) -> Looked:
    """Look into a checkpoint of a driving model or of an image tokenizer.

    tokenizer: of the codes, for a driving model that reads codes; its codebook is looked into as well.
    """
    if is_image_tokenizer(checkpoint):
        if tokenizer is not None:
            raise InputError("--tokenizer", "checkpoint", tokenizer, "none, since CHECKPOINT is an image tokenizer")
        codes, model = load_image_tokenizer(checkpoint).model, None
    else:
        model = load(checkpoint).model
        codes = None if tokenizer is None else load_image_tokenizer(tokenizer).model
    words = f"{CLIPS} clips of {dataroot or 'noise'}"
    figures, page = {}, {"title": str(checkpoint), "words": words, "model": None, "codebook": None}
    if model is not None:
        batch, tokens = _examples(model, dataroot, version, codes)
        seen = inspect_model(model, batch, tokens)
        figures |= seen.figures()
        page["model"] = _drawn(seen, model)
        images = batch.images[batch.image_mask]
    else:
        images = _images(codes, dataroot, version)
    if codes is not None:
        counts = code_counts(codes, images)
        report = check_on(codes, images)
        found = {"used": report.used, "perplexity": report.perplexity, "dead": report.dead, "psnr_db": report.psnr_db}
        figures |= {f"codebook.{name}": float(value) for name, value in found.items()}
        page["codebook"] = {"report": report, **_sorted_bars(counts)}
    return Looked(figures, page)


def write_inspection(looked: Looked, path: Path) -> Path:
    """The page, one file that needs nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_page(path, "inspection.html.j2", **looked.page)
    except OSError as error:
        raise InputError("--out", "file", f"{path} ({error.strerror})", "a file that can be written") from None


def _examples(
    model: DrivingModel, dataroot: Path | None, version: str, codes: ImageTokenizer | None
) -> tuple[Batch, torch.Tensor]:
    """(batch, plans) to look at."""
    c = model.config
    if c.image_input != "patches" and codes is None:
        raise InputError("--tokenizer", "checkpoint", "nothing", f"one, since image_input is {c.image_input}")

    reads = None if c.image_input == "patches" else codes
    if dataroot is None:
        batch = to_batch([noise_clip(c, seed) for seed in range(CLIPS)], c, reads)
        return batch, model.decode(batch).tokens.clone()
    source = open_source(dataroot, version, c.steps, image_size(c))
    examples = TrainingSet([(source, source.scenes)], ActionTokenizer(c), c)
    chosen = np.unique(np.linspace(0, len(examples) - 1, CLIPS).round().astype(int))
    examples = [examples[int(k)] for k in chosen]
    return to_batch([e.clip for e in examples], c, reads), torch.from_numpy(np.stack([e.tokens for e in examples]))


def _images(codes: ImageTokenizer, dataroot: Path | None, version: str) -> torch.Tensor:
    """uint8 [M, H, W, 3] to look at."""
    c = codes.config
    if dataroot is None:
        generator = torch.Generator().manual_seed(0)
        shape = (CLIPS, c.image_height, c.image_width, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    source = open_source(dataroot, version, 1, (c.image_width, c.image_height))
    return images_of(source, source.scenes, MOST_CHECKED).pixels


# What the page draws: numbers and strings, no markup -------------------------------------------------


def _drawn(seen: Inspection, model: DrivingModel) -> dict[str, object]:
    rows, columns = model.config.patch_grid
    most = float(seen.gradient.max()) or 1.0
    return {
        "names": seen.names,
        "counts": seen.tokens.tolist(),
        "attention": [
            *({"name": f"layer {i}", "parts": _stacked(layer[-1].tolist())} for i, layer in enumerate(seen.attention)),
            {"name": "if all were alike", "parts": _stacked(seen.even[-1].tolist())},
        ],
        "matrix": seen.attention.mean(dim=0).tolist(),
        "gradient": [
            {"name": name, "value": float(value), "width": BAR * float(value) / most}
            for name, value in zip(seen.names, seen.gradient, strict=True)
        ],
        "cameras": [
            {"cells": cells, "rows": rows, "columns": columns} for cells in _coloured(seen.rays.numpy(), columns)
        ],
        "rays_share": seen.rays_share.tolist(),
        "times": [_line(seen.times[:, k].numpy(), seen.times.abs().max().item()) for k in range(seen.times.shape[1])],
        "times_share": seen.times_share.tolist(),
        "span_s": TIME_SPAN_S,
        "load": [
            _bars(load.tolist(), 1.0 / len(load)) | {"busiest": float(load.max() * len(load))} for load in seen.load
        ],
        "experts": seen.load.shape[1],
    }


def _stacked(shares: list[float]) -> list[dict[str, float]]:
    """Parts of one bar, one behind the other."""
    ends = np.cumsum([0.0, *shares]) * BAR
    return [{"x": float(ends[k]), "width": BAR * share, "share": share} for k, share in enumerate(shares)]


def _bars(values: list[float], even: float) -> dict[str, object]:
    """Upright bars over the whole width, in a drawing 100 high, and where `even` is; the highest fills it."""
    wide, top = BAR / len(values), max(*values, 2 * even)
    heights = [100.0 * value / top for value in values]
    bars = [
        {"x": wide * k, "width": 0.9 * wide, "y": 100.0 - height, "height": height, "value": value}
        for k, (height, value) in enumerate(zip(heights, values, strict=True))
    ]
    return {"bars": bars, "even": 100.0 - 100.0 * even / top}


def _sorted_bars(counts: torch.Tensor) -> dict[str, object]:
    """Use of the codes, from the most to the least used, in at most BINS bars."""
    share = counts.sort(descending=True).values.double() / counts.sum().clamp(min=1)
    return _bars([part.mean().item() for part in share.tensor_split(min(BINS, len(share)))], 1.0 / len(share))


def _coloured(places: np.ndarray, columns: int) -> list[list[dict[str, object]]]:
    """Patches of each camera, coloured by their first three components from the least (0) to the most (255)."""
    low, high = places.min(axis=(0, 1)), places.max(axis=(0, 1))
    colours = np.round(255 * (places - low) / np.maximum(high - low, 1e-12)).astype(int)
    return [
        [
            {"x": CELL * (p % columns), "y": CELL * (p // columns), "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
            for p, colour in enumerate(camera.tolist())
        ]
        for camera in colours
    ]


def _line(values: np.ndarray, reach: float) -> str:
    """Points of a polyline over the whole width; +-reach fills the height (200)."""
    x = np.linspace(0, BAR, len(values))
    return " ".join(f"{a:.1f},{100 - 95 * b / max(reach, 1e-12):.1f}" for a, b in zip(x, values, strict=True))
