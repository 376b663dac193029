"""Training of an image tokenizer on the images of recorded scenes, and whether its codebook is worth its name.

An image whose file is broken is passed over and counted; too many of them end it, as they end a policy's training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from policies.data import split_scenes
from policies.loader import in_parts, require_few
from policies.recipes import TokenizerRecipe
from policies.runs import Run
from policies.split import Learned, refuse_seen
from policies.train_log import curves, happened
from policies.training_loop import TrainingLoop
from sensors.errors import BrokenFile, InputError
from sensors.nuscenes_source import CAMERAS, NuscenesSource
from sensors.pack_source import open_source
from sim.report.page import write_report
from vla.checkpoint import Loaded, load_image_tokenizer
from vla.image_tokens import CodebookReport, ImageTokenizer, check_codebook
from vla.losses import Loss

RESAMPLED_SHARE = 2 / 3  # of the steps: later codes are left to settle
MOST_IMAGES, MOST_CHECKED = 12_000, 600  # kept in memory: to learn from, to check with
CHECK_BATCH = 24


@dataclass(frozen=True)
class Images:
    """pixels uint8 [M, H, W, 3]; broken: how many keyframes were passed over since a file of theirs is broken."""

    pixels: torch.Tensor
    broken: int


def images_of(source: NuscenesSource, scenes: Sequence[str], most: int, size: tuple[int, int] | None = None) -> Images:
    """What the cameras delivered at keyframes, evenly over the scenes, about `most` at most.

    size: (width, height) px that they are brought to; None: as the source has them.
    """
    frames = [(scene, frame) for scene in scenes for frame in range(len(source.frame_times_us(scene)))]
    taken = np.linspace(0, len(frames) - 1, min(len(frames), max(most // len(CAMERAS), 1))).round().astype(int)
    kept, broken = [], {}
    for k in taken.tolist():
        try:
            clip = source.clip(*frames[k])
        except BrokenFile as error:
            broken[k] = error.where
            continue
        clip = clip if size is None else clip.resize(*size)
        kept.append(clip.images[-1][clip.image_mask[-1]])
    require_few(broken, len(taken), source.name)
    if not sum(map(len, kept)):
        expected = "scenes with camera files"
        raise InputError(
            source.name, "images", f"none in {len(scenes)} scenes", expected, "vla doctor says what lacks."
        )
    return Images(torch.from_numpy(np.concatenate(kept)), len(broken))


class ImageTrainer(TrainingLoop):
    """The last `val_scenes` scenes are held out."""

    def __init__(self, recipe: TokenizerRecipe, path: Path):
        c = recipe.image_tokenizer
        source = _source(recipe.data.dataroot, recipe.data.version, c.image_width, c.image_height)
        learned, held_out = split_scenes(source.scenes, recipe.data)
        shown, asked = images_of(source, learned, MOST_IMAGES), images_of(source, held_out, MOST_CHECKED)
        self.images, self.held_out, self.broken = shown.pixels, asked.pixels, shown.broken + asked.broken
        super().__init__(recipe, path, ImageTokenizer(c, recipe.seed), len(self.images))
        self.extra["learned"] = Learned.of((source, scene) for scene in learned).to_json()

    def _load(self, path: Path) -> Loaded:
        return load_image_tokenizer(path, self.recipe.image_tokenizer)

    def _parts(self) -> list[torch.Tensor]:
        return in_parts(self.images[self._indices()][:, None], self.recipe.train.accumulate)

    def _loss(self, part: torch.Tensor) -> Loss:
        out = self.model(part)
        self._vectors = out.z
        return sum(out.losses.values()), {f"loss_{name}": value.detach() for name, value in out.losses.items()}

    def _after(self, taken: bool) -> dict:
        config, dead = self.recipe.train, 0
        if taken and (self.step + 1) % config.resample_every == 0 and self.step < RESAMPLED_SHARE * config.steps:
            generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.draw)
            dead = self.model.quantizer.resample(self._vectors, generator)
        return {"dead_codes": dead}


def train_images(recipe: TokenizerRecipe, out: Path, progress: bool = True) -> tuple[Path, CodebookReport]:
    """Train in a run directory, new or begun, to the last step; returns the path of its report, and what the codebook
    is worth on the scenes that are held out."""
    run = Run.create("train", out, recipe.to_dict(), [recipe.seed], resume=True)
    trainer = ImageTrainer(recipe, out)
    if trainer.resume():
        print(f"resuming at step {trainer.step} of {recipe.train.steps}")
    records = trainer.run(progress)
    run.summary["curves"] = curves(records)
    run.summary["events"] = happened(records, trainer.guard.events)
    report = check_on(trainer.result.eval(), trainer.held_out)
    run.summary["metrics"] = {
        "train.loss": float(np.mean([r["loss"] for r in records[-50:] if r["loss"] is not None])),
        "train.minutes": sum(record["step_s"] for record in records) / 60,
        "train.images": len(trainer.images),
        "train.broken": trainer.broken,
        **report_figures(report),
    }
    run.summary["wrong"] = list(report.wrong)
    run.summary["scenes"] = {"asked": 1, "finished": 1, "failed": 0}
    run.save()
    return write_report(out), report


def check_tokenizer(checkpoint: Path, dataroot: Path, version: str, allow_seen: bool = False) -> CodebookReport:
    """What a trained tokenizer's codebook is worth on a dataroot's images; on those it learned from only if allowed."""
    loaded = load_image_tokenizer(checkpoint)
    config = loaded.model.config
    source = _source(str(dataroot), version, config.image_width, config.image_height)
    refuse_seen(Learned.from_json(loaded.extra.get("learned", [])).seen_in(source), allow_seen, "vla check-tokenizer")
    return check_on(loaded.model, images_of(source, source.scenes, MOST_CHECKED).pixels)


def check_on(tokenizer: ImageTokenizer, images: torch.Tensor) -> CodebookReport:
    """What a codebook is worth on uint8 images [M, H, W, 3]."""
    return check_codebook(tokenizer, (part[:, None] for part in images.split(CHECK_BATCH)))


def report_figures(report: CodebookReport) -> dict[str, float]:
    """Flat, by name."""
    return {
        "codebook.psnr_db": report.psnr_db,
        "codebook.used": report.used,
        "codebook.perplexity": report.perplexity,
        "codebook.dead": report.dead,
        "codebook.images": report.images,
    }


def _source(dataroot: str, version: str, width: int, height: int) -> NuscenesSource:
    return open_source(dataroot, version, 1, (width, height))
