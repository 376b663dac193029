"""Training of the driving model: clips of recorded scenes, the expert's action tokens. See `policies.training_loop`."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from policies.data import recorded_sets, split_scenes
from policies.descent import part_of
from policies.distributed import supervise
from policies.freezing import freeze
from policies.loader import Draws, Feed, HeldOut, Made, in_parts, looks
from policies.prepared import PreparedDraws, is_prepared, open_prepared
from policies.recipes import Recipe
from policies.runs import Run
from policies.split import Learned
from policies.train_images import MOST_CHECKED, check_on, images_of
from policies.train_log import curves, happened
from policies.training_loop import TrainingLoop
from policies.transforms import image_size, plan_at_speed, without_motion
from policies.vla_policy import tokenizer_beside
from policies.workers import companions
from sensors.collate import Batch
from sensors.errors import InputError
from sensors.pack_source import open_source
from sensors.reasons import parse_reason
from sim.report.page import write_report
from vla.action_tokens import ActionTokenizer
from vla.auxiliary import AuxiliaryLosses
from vla.checkpoint import Loaded, load, load_image_tokenizer, load_to_start_from, save
from vla.encoder import with_codes
from vla.image_tokens import ImageTokenizer
from vla.losses import WHOLE, Counted, Loss
from vla.model import DrivingModel
from vla.moe import CollapseMonitor
from vla.parallel import Replicas
from vla.precision import Precision, compute_dtype, scaling_state, use_precision
from vla.recompute import recompute_layers
from vla.sentences import sentences_of
from vla.sharding import Division, Shards


@dataclass(frozen=True)
class Workers:
    """Who trains: so many processes, over which the model may be divided. reshard: also where a run's shards are those
    of another arrangement."""

    count: int = 1
    division: Division = field(default_factory=Division)
    reshard: bool = False

    def require_fits(self, recipe: Recipe) -> None:
        """An InputError if they cannot train this recipe."""
        self.division.require_fits(recipe.model, self.count)
        if self.division.divides and recipe.train.precision != "torch":
            fix = "Leave out --shard and --experts-over, or say train.precision=torch."
            raise InputError("vla train", "train.precision", recipe.train.precision, "torch for a divided model", fix)

    def join(self, rank: int, meeting: Path | str, device: str) -> Replicas:
        """Meet the others, see `Replicas.join`."""
        if self.count == 1:
            return Replicas()
        replicas = Replicas.join(rank, self.count, meeting, device)
        return Shards.of(replicas, self.division, device) if self.division.divides else replicas


@dataclass(frozen=True)
class Part:
    """What is learned from at a time: clips, their action tokens, their reasons and surroundings where losses ask."""

    batch: Batch
    tokens: Tensor
    told: Tensor | None
    around: tuple[Tensor, ...] | None
    count: Counted = WHOLE


class Trainer(TrainingLoop):
    """Model, optimizer and data of one recipe; `run` trains to the recipe's last step."""

    def __init__(self, recipe: Recipe, path: Path, replicas: Replicas | None = None, reshard: bool = False):
        self.device, self.prepared = device_of(recipe.name, recipe.train.device), is_prepared(recipe.data.dataroot)
        self.tokenizer, self.codes = ActionTokenizer(recipe.model), None
        if self.prepared:
            self.train_set, self.val_set = open_prepared(recipe, self.device)
        else:
            self.train_set, self.val_set = recorded_sets(recipe)
        self.learned = self.train_set.learned
        if recipe.data.image_tokenizer:
            self.codes, of_codes = _image_tokenizer(recipe)
            self.learned |= of_codes
        self.auxiliary = None
        if recipe.losses.any:
            images = self.codes.config if recipe.losses.codes else None
            self.auxiliary = AuxiliaryLosses(recipe.losses, recipe.model, images, recipe.seed).to(self.device)
        model = DrivingModel(recipe.model, recipe.seed)
        if recipe.train.start_from:
            begun = load_to_start_from(Path(recipe.train.start_from), recipe.model)
            model.load_state_dict(begun.model.state_dict())
            self.learned |= Learned.from_json(begun.extra.get("learned", []))
        self.learned.require_apart(self.val_set.learned, recipe.data.dataroot)
        freeze(model, recipe.train.freeze, recipe.name)
        if recipe.train.recompute:
            recompute_layers(model)
        model.to(self.device)
        super().__init__(recipe, path, model, len(self.train_set), self.auxiliary, replicas, reshard)
        self.feed = Feed((PreparedDraws if self.prepared else Draws)(self.train_set, recipe, self.replicas))
        self.extra["learned"] = self.learned.to_json()
        why = "the model is divided" if self.replicas.divided else "its layers are computed again"
        self.precision = Precision("torch", why)
        if not (self.replicas.divided or recipe.train.recompute):
            self.precision = use_precision(model.backbone, recipe.train.precision, recipe.train.fp8_recipe)
        self.scaling = scaling_state(model.backbone)
        self._kept |= {f"scaling.{name}": history for name, history in self.scaling.items()}
        self.dtype = compute_dtype(recipe.train.dtype, self.device)
        self.monitor = CollapseMonitor(recipe.model)
        self._sentences = sentences_of(recipe.model) if recipe.model.reason_places else None
        if self.codes is not None:
            self.codes.to(self.device)

    def _load(self, path: Path) -> Loaded:
        return load(path, self.recipe.model)

    def _blank(self) -> DrivingModel:
        return DrivingModel(self.recipe.model, self.recipe.seed).to(self.device)

    def _part_of(self, name: str) -> str:
        return part_of(name)

    def run(self, progress: bool = True) -> list[dict]:
        if self.codes is not None and self.writes:
            save(tokenizer_beside(self.checkpoint_path), self.codes)
        return super().run(progress)

    def _looked(self) -> dict:
        every = self.recipe.train.validate_every
        model = self.whole() if every and self.step % every == 0 else None
        if model is None or not self.writes:
            return {}
        return {name: value for name, value in self.validate(model).items() if isinstance(value, float)}  # no counts

    def validate(self, model: DrivingModel) -> dict[str, float]:
        """Loss and plan error of a `whole` model on the held-out scenes, decoding greedily as at run time."""
        batch_size = 128 if self.device.type == "cuda" else 8  # a GPU takes as long for one as for many
        model.eval()
        losses, errors, reasons = [], [], []
        graph = self._sentences.reason_graph.to(self.device) if self._sentences and self.val_set.has_reasons else None
        with torch.inference_mode():
            made = (
                self.val_set.looks(batch_size) if self.prepared else looks(self.val_set, self.recipe.model, batch_size)
            )
            for look in made:
                batch, tokens = self._read(look.made.batch), look.made.tokens.to(self.device)
                loss, _ = model.loss(batch, tokens)
                losses += [loss.item()] * len(tokens)
                decoded = model.decode(batch, reasons=graph)
                if graph is not None:
                    said = (
                        map(self._sentences.reason_text, each.tolist())
                        for each in (decoded.reason.tokens, look.made.told)
                    )
                    reasons += [pair for pair in zip(*said, strict=True) if pair[1]]
                for row, speed_mps, plan in zip(decoded.tokens.cpu().numpy(), look.speed_mps, look.plans, strict=True):
                    found = plan_at_speed(row, speed_mps, self.tokenizer).xyyaw_in_ego
                    errors.append(np.linalg.norm((found - plan)[:, :2], axis=1))
        self.model.train()
        if not losses:
            expected = "at least one held-out example whose files are whole"
            raise InputError(self.recipe.data.dataroot, "files", f"{len(self.val_set)} broken ones", expected)
        within = self.tokenizer.dt_s * np.arange(1, self.tokenizer.steps + 1) <= 3.0
        ade = float(np.mean([error[within].mean() for error in errors]))
        figures = {"val.loss": float(np.mean(losses)), "val.ade_3s_m": ade, "val.keyframes": len(losses)}
        figures["val.broken"] = len(self.val_set) - len(losses)
        return figures | _reason_figures(reasons)

    def _held_out(self, size: int) -> Iterator[HeldOut]:
        return self.val_set.looks(size) if self.prepared else looks(self.val_set, self.recipe.model, size)

    def _parts(self) -> list[Part]:
        shown = in_parts(self._motion_shown(), self.recipe.train.accumulate)
        pairs = zip(self.feed.parts(self.draw), shown, strict=True)
        self._scaling_before = {name: history.clone() for name, history in self.scaling.items()}
        return self._counted([self._part(*pair) for pair in pairs])

    def _loss(self, part: Part) -> Loss:
        # Every part drops the same experts, and so learns what the whole batch would.
        dropped = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.draw)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype.name == "bf16"):
            return self.model.loss(
                part.batch,
                part.tokens,
                part.told,
                generator=dropped,
                auxiliary=self.auxiliary,
                around=part.around,
                count=part.count,
            )

    def _after(self, taken: bool) -> dict:
        self.replicas.total(layer.mlp.load for layer in self.model.backbone.layers if layer.routed)
        if taken:
            self.replicas.largest(self.scaling.values())
            loads = self.model.rebalance()
            self.monitor.require_spread(loads, f"{self.path} step {self.step}")
        else:  # as if it had not been
            loads = self.model.rebalance(0.0)
            for name, history in self._scaling_before.items():
                self.scaling[name].copy_(history)
        busiest = {f"expert_load_{layer}": float(load.max() / load.mean()) for layer, load in loads.items()}
        passed = {"broken": self.feed.skipped} if self.feed.skipped else {}
        return {"busiest_expert": max(busiest.values(), default=1.0), **busiest, **passed}

    def _part(self, made: Made, motion_shown: Tensor) -> Part:
        batch = _hide_motion(self._read(made.batch), motion_shown.to(self.device))
        told = None if made.told is None else made.told.to(self.device)
        around = None if made.around is None else tuple(each.to(self.device) for each in made.around)
        return Part(batch, made.tokens.to(self.device), told, around)

    def _counted(self, parts: list[Part]) -> list[Part]:
        """The parts with how much each counts beside the mean part of all replicas."""
        pad = self.model.pad_token
        counts = torch.tensor(
            [
                [0 if p.told is None else int((p.told != pad).sum()), 0 if p.around is None else int(p.around[1].sum())]
                for p in parts
            ],
            dtype=torch.float64,
        )
        mean = counts.sum(dim=0)
        self.replicas.total([mean])
        mean /= len(parts) * self.replicas.count
        weights = torch.where(mean > 0, counts / mean, 1.0).tolist()
        return [replace(part, count=Counted(*row)) for part, row in zip(parts, weights, strict=True)]

    def _read(self, batch: Batch) -> Batch:
        """The batch on the device, with the codes of its images where the model reads them."""
        batch = batch.to(self.device)
        return batch if self.codes is None else with_codes(batch, self.codes)

    def _motion_shown(self) -> Tensor:
        """bool [B] of this replica's clips: all but `motion_dropout` of them show the car's own motion."""
        draws = np.random.default_rng([self.recipe.seed, self.draw, 1]).random(self.recipe.train.batch_size)
        return torch.from_numpy(self.replicas.share(draws) >= self.recipe.train.motion_dropout)


def device_of(recipe: str, device: str) -> torch.device:
    """The device that a recipe's train.device names; one that is not here is an InputError."""
    if device == "cuda" and not torch.cuda.is_available():
        fix = "Say train.device=cpu, or ask vla doctor what is missing."
        raise InputError(f"recipe {recipe}", "train.device", "cuda", "a GPU that torch can use", fix)
    return torch.device(device)


def _hide_motion(batch: Batch, shown: Tensor) -> Batch:
    """The batch with those of its clips that are not shown, bool [B], told only their speed of their motion: what was
    seen earlier, and from where, tells it too."""
    last = torch.arange(batch.image_mask.shape[1], device=shown.device) == batch.image_mask.shape[1] - 1
    batch = without_motion(batch, ~shown)
    return replace(batch, image_mask=batch.image_mask & (shown[:, None] | last)[..., None])


def _reason_figures(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """Of reasons, each as it was said and as it was meant: how often the action is right, and the cause too."""
    if not pairs:
        return {}
    said, meant = ([parse_reason(text) for text in texts] for texts in zip(*pairs, strict=True))
    action = np.mean([a.action == b.action for a, b in zip(said, meant, strict=True)])
    cause = np.mean([(a.action, a.cause) == (b.action, b.cause) for a, b in zip(said, meant, strict=True)])
    return {"val.reason_action": float(action), "val.reason_cause": float(cause), "val.reasons": len(pairs)}


def _image_tokenizer(recipe: Recipe) -> tuple[ImageTokenizer, Learned]:
    """The recipe's, and what it learned from; a codebook that says nothing of these scenes is an InputError."""
    given, data = Path(recipe.data.image_tokenizer), recipe.data
    loaded = load_image_tokenizer(given)
    size = loaded.model.config.image_width, loaded.model.config.image_height
    source = open_source(data.dataroot, data.version, recipe.model.steps, image_size(recipe.model))
    scenes, _ = split_scenes(source.scenes, data)
    check_on(loaded.model, images_of(source, scenes, MOST_CHECKED, size).pixels).require_usable(given)
    return loaded.model, Learned.from_json(loaded.extra.get("learned", []))


def train(
    recipe: Recipe, out: Path, progress: bool = True, workers: Workers | int = 1, address: str | None = None
) -> Path:
    """Train a recipe in a run directory, new or begun, to its last step; returns the path of its report.

    Several workers share each batch; the order of the data does not depend on how many there are. With an address they
    are those of a Ray cluster, and begin again by themselves when one is lost.
    """
    workers = workers if isinstance(workers, Workers) else Workers(workers)
    workers.require_fits(recipe)
    run = Run.create("train", out, recipe.to_dict(), [recipe.seed], resume=True)
    if address is not None:
        work, gpus = (workers, recipe, out, progress), recipe.train.device == "cuda"
        told, run.summary["restarts"] = supervise(address, workers.count, train_one, *work, gpus=gpus, talks=progress)
        run.summary |= told
    else:
        with companions(workers.count, train_one, workers, recipe, out, False) as meeting:
            run.summary |= train_one(0, meeting, workers, recipe, out, progress)
    run.summary["scenes"] = {"asked": 1, "finished": 1, "failed": 0}
    run.save()
    return write_report(out)


def train_one(rank: int, meeting: Path | str, workers: Workers, recipe: Recipe, out: Path, progress: bool) -> dict:
    """One replica, from its start or from where the run was interrupted to the last step; what the first one has to
    tell of it, in the words of a run's summary."""
    replicas, model = workers.join(rank, meeting, recipe.train.device), None
    try:
        trainer = Trainer(recipe, out, replicas, workers.reshard)
        progress = progress and trainer.writes
        if progress:
            for taken in (trainer.precision, trainer.dtype):
                print(f"{taken.name}: {taken.why}")
        if trainer.resume() and progress:
            print(f"resuming at step {trainer.step} of {recipe.train.steps}")
        records = trainer.run(progress)
        model = trainer.whole()
    finally:
        replicas.leave()
    if not trainer.writes:
        return {}
    trainer.export(model)
    last = [record for record in records if record["loss"] is not None][-50:]
    metrics = {
        "train.loss": float(np.mean([record["loss"] for record in last])),
        "train.step_s": float(np.median([record["step_s"] for record in records])),
        "train.minutes": sum(record["step_s"] for record in records) / 60,
        "train.examples": len(trainer.train_set),
        "train.broken": sum(record.get("broken", 0) for record in records),
        **trainer.validate(model),
    }
    return {
        "numbers": {"precision": asdict(trainer.precision), "dtype": asdict(trainer.dtype)},
        "curves": curves(records),
        "events": happened(records, trainer.guard.events),
        "situations": trainer.train_set.situations(),
        "metrics": metrics,
    }
