"""Examples made ready once, for a training that asks for them faster than files can be read, as one on a GPU does.

`prepare` makes of each example of a recipe what `policies.loader` would: numbers in arrays, and the images of all its
cameras and steps as tiles of one picture, at the size that the model takes. A folder of such parts stands in a recipe
where a dataroot would (`data.dataroot`, `data.more_dataroots`). On a GPU its pictures are decoded once, into the GPU's
memory, where light is then varied and cameras are lost as the recipe has it; on a CPU those of a draw when it is made.

    begun.json      what is being prepared, until that is done
    prepared.json   what the examples are of, and of which shapes; written last
    part-00000.npz  up to PART examples; a picture's bytes are pictures[ends[k - 1] : ends[k]]
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from policies.data import Kind, TrainingSet, chances, recorded_sets, situations
from policies.loader import Draws, HeldOut, Made, require_few
from policies.recipes import DataConfig, Recipe
from policies.runs import write_json
from policies.split import Learned
from policies.transforms import speed_at_now, to_batch
from policies.workers import processes
from sensors.augment import BIAS, GAIN
from sensors.collate import Batch
from sensors.errors import BrokenFile, InputError
from sim.rollout_log import atomic_path
from vla.config import ModelConfig
from vla.sentences import sentences_of

MANIFEST, BEGUN, FORMAT = "prepared.json", "begun.json", 1
PART = 1_500  # examples of one file: some 50 MB of small images
QUALITY = 75  # of JPEG, with all of its colour: a lamp is a pixel or two
OF_BATCH = tuple(field.name for field in fields(Batch) if field.name != "images")
AROUND = ("around", "around_known", "shown", "shown_known")
OF_KIND = ("dataset", "has_reason", "has_imu", "situation")
SHAPES = (  # of a model's config: what the numbers of an example depend on
    *("image_width", "image_height", "patch_px", "cameras", "fovea", "steps", "image_input", "fusion_reach"),
    *("own_motion", "imu_samples", "imu_rate_hz", "plan_steps", "plan_dt_s", "accel_min_mps2", "accel_max_mps2"),
    *("accel_fine_mps2", "accel_bins", "curvature_max_1pm", "curvature_fine_1pm", "curvature_bins", "commands"),
    *("text_tokens", "instruction_tokens", "reason_tokens"),
)
UNVARIED = ("data.crop", "data.calibration_jitter_deg", "data.calibration_jitter_m", "data.time_jitter_ms")
NOT_HERE = (*UNVARIED, "data.shuffle", "data.image_tokenizer", "train.mirror", "train.loader_workers")


def is_prepared(place: str | Path) -> bool:
    return (Path(place) / MANIFEST).is_file()


def prepare(recipe: Recipe, out: Path, quality: int = QUALITY, workers: int = 1, progress: bool = True) -> int:
    """Make a folder of all examples of a recipe's dataroots whose files are whole, on so many processes; returns how
    many there are. If more than MOST_BROKEN are broken it is an InputError. The same command goes on where it was."""
    if is_prepared(out):
        raise InputError(out, MANIFEST, "examples are there already", "another folder", "Or delete it.")
    _require_plain(recipe)
    sets = _recorded_sets(recipe)
    kinds = [kind for each in sets for kind in each.kinds()]
    datasets = list(dict.fromkeys(kind.dataset for kind in kinds))
    cases = list(dict.fromkeys(kind.situation for kind in kinds))
    spans = [(k, at, min(at + PART, len(each))) for k, each in enumerate(sets) for at in range(0, len(each), PART)]
    _begin(out, {"recipe": recipe.to_dict(), "quality": quality, "examples": len(kinds)})
    work = partial(_write_part, recipe, out, quality, datasets, cases)
    digests, broken = {}, {}
    bar = tqdm(total=len(kinds), unit="example", desc="prepare", disable=not progress)
    with processes(workers) as pool, bar:
        for name, digest, lost in (pool.map if pool else map)(work, range(len(spans)), spans):
            digests |= {name: digest} if digest else {}
            broken |= lost
            require_few(broken, len(kinds), ", ".join(datasets))
            bar.update(min(PART, len(kinds) - bar.n))
    manifest = {
        "format": FORMAT,
        "shapes": _shapes(recipe.model),
        "learned": sets[0].learned.to_json(),
        "held_out": sets[1].learned.to_json(),
        "datasets": datasets,
        "situations": cases,
        "broken": list(broken.values()),
        "sha256": digests,
    }
    write_json(out / MANIFEST, manifest)
    (out / BEGUN).unlink()
    return len(kinds) - len(broken)


def _begin(out: Path, what: dict) -> None:
    """An InputError if another preparation was begun in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    begun = out / BEGUN
    if begun.exists() and json.loads(begun.read_bytes()) != json.loads(json.dumps(what)):
        raise InputError(out, BEGUN, "another recipe, or another recording, begun here", "another folder")
    write_json(begun, what)


def _write_part(
    recipe: Recipe, out: Path, quality: int, datasets: list, cases: list, number: int, span: tuple[int, int, int]
) -> tuple[str, str, dict[int, str]]:
    """(name, SHA-256, {example: file} of those left out as a file is broken) of the part of number `number`, which is a
    span (set, first, end) of the recorded sets; one that is there stays, and of none that is whole there is no file and
    no SHA-256."""
    path, (which, first, end) = out / f"part-{number:05d}.npz", span
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            return path.name, _sha256(path), dict(json.loads(str(file["broken"])))
    examples, rows, pictures, broken = _recorded_sets(recipe)[which], [], [], {}
    for index in range(first, end):
        try:
            example = examples.recorded(index, asked_around=True)
        except BrokenFile as error:
            broken[number * PART + index - first] = error.where
            continue
        kind, batch = examples.kind(index), to_batch([example.clip], recipe.model)
        row = {name: getattr(batch, name)[0].numpy() for name in OF_BATCH}
        row |= dict(zip(AROUND, example.around, strict=True))
        row["tokens"], row["plan"], row["speed_mps"] = example.tokens, example.plan, speed_at_now(example.clip)
        row["told"] = sentences_of(recipe.model).reason(example.reason if recipe.model.reason_places else "")
        row["dataset"], row["situation"] = datasets.index(kind.dataset), cases.index(kind.situation)
        row["has_reason"], row["has_imu"] = kind.modality
        row["held_out"] = bool(which)
        rows.append(row)
        pictures.append(_picture(batch.images[0].numpy(), quality))
    if not rows:
        return path.name, "", broken
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    arrays |= {"pictures": np.concatenate(pictures), "ends": np.cumsum([len(each) for each in pictures])}
    arrays["broken"] = np.array(json.dumps(list(broken.items())))
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    return path.name, _sha256(path), broken


@lru_cache(maxsize=1)
def _recorded_sets(recipe: Recipe) -> tuple[TrainingSet, TrainingSet]:
    return recorded_sets(recipe)


def _picture(images: np.ndarray, quality: int) -> np.ndarray:
    """Images uint8 [T, N, H, W, 3] as the bytes of one JPEG: a column of tiles for each step."""
    T, N, H, W, _ = images.shape
    tiles = np.ascontiguousarray(images[..., ::-1].transpose(1, 2, 0, 3, 4).reshape(N * H, T * W, 3))
    colours = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    return cv2.imencode(".jpg", tiles, [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1, *colours])[1]


class Pictures:
    """The images of examples, decoded from their pictures: on a GPU all at once, else those that are asked for."""

    def __init__(self, pictures: list[np.ndarray], model: ModelConfig, device: torch.device):
        self._pictures, self._device = pictures, device
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        self._shape = model.steps, model.cameras, model.image_height, model.image_width, 3
        self._held = None
        if device.type == "cuda":
            self._held = torch.empty((len(pictures), *self._shape), dtype=torch.uint8, device=device)
            for at in range(0, len(pictures), PART):
                self._held[at : at + PART] = self._decoded(pictures[at : at + PART])

    def __call__(self, indices: Tensor) -> Tensor:
        """uint8 [B, T, N, H, W, 3] on the device."""
        if self._held is not None:
            return self._held[indices.to(self._device)]
        return self._decoded([self._pictures[k] for k in indices.tolist()])

    def _decoded(self, pictures: list[np.ndarray]) -> Tensor:
        """The inverse of `_picture`, but for what JPEG loses, of many: threads decode, the device sorts the tiles."""
        (T, N, H, W, _), count = self._shape, len(pictures)
        tiles = np.empty((count, N * H, T * W, 3), np.uint8)

        def decode(k: int) -> None:
            tiles[k] = cv2.imdecode(pictures[k], cv2.IMREAD_COLOR)

        list(self._threads.map(decode, range(count)))
        images = torch.from_numpy(tiles).to(self._device).view(count, N, H, T, W, 3)
        return images.permute(0, 3, 1, 2, 4, 5).flip(-1)  # OpenCV's colours are the other way round


class PreparedSet:
    """Examples of prepared folders, as `policies.data.TrainingSet` has recorded ones."""

    def __init__(self, numbers: dict[str, Tensor], images: Pictures, kinds: list[Kind], learned: Learned):
        self._numbers, self._images, self._kinds, self.learned = numbers, images, kinds, learned
        self.has_reasons = any(kind.modality[0] for kind in kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def chances(self, data: DataConfig) -> np.ndarray | None:
        return chances(lambda name: [getattr(kind, name) for kind in self._kinds], data)

    def situations(self) -> dict[str, int]:
        return situations([kind.situation for kind in self._kinds])

    def numbers(self, name: str, indices: Tensor) -> Tensor:
        found = self._numbers[name]
        return found[indices.to(found.device)]

    def made(self, indices: Tensor, told: bool, around: bool) -> Made:
        """Of these examples, not varied."""
        of_batch = {name: self.numbers(name, indices) for name in OF_BATCH}
        batch = Batch(images=self._images(self.numbers("number", indices)), **of_batch)
        said = self.numbers("told", indices) if told else None
        stands = tuple(self.numbers(name, indices) for name in AROUND) if around else None
        return Made(batch, self.numbers("tokens", indices), said, stands, ())

    def looks(self, size: int) -> Iterator[HeldOut]:
        """All of them, so many at a time."""
        for at in range(0, len(self), size):
            indices = torch.arange(at, min(at + size, len(self)))
            plans, speeds = (self.numbers(name, indices).cpu().numpy() for name in ("plan", "speed_mps"))
            yield HeldOut(self.made(indices, self.has_reasons, around=False), plans, speeds)


def open_prepared(recipe: Recipe, device: torch.device) -> tuple[PreparedSet, PreparedSet]:
    """(examples to learn from, those held out) of the folders that a recipe names; what it asks for that prepared
    examples do not have is an InputError."""
    _require_plain(recipe)
    rows: dict[str, list[np.ndarray]] = {}
    pictures, kinds, known = [], [], [Learned({}), Learned({})]
    for root in (recipe.data.dataroot, *recipe.data.more_dataroots):
        manifest = _manifest(Path(root), recipe.model)
        for k, name in enumerate(("learned", "held_out")):
            known[k] |= Learned.from_json(manifest[name])
        cases, digests = [tuple(case) for case in manifest["situations"]], manifest["sha256"]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            parts = list(threads.map(_read_part, (Path(root) / name for name in digests), digests.values()))
        for arrays in parts:
            pictures += np.split(arrays.pop("pictures"), arrays.pop("ends")[:-1])
            kinds += [
                Kind(manifest["datasets"][dataset], (bool(reason), bool(imu)), cases[case])
                for dataset, reason, imu, case in zip(*(arrays.pop(key) for key in OF_KIND), strict=True)
            ]
            for key, values in arrays.items():
                rows.setdefault(key, []).append(values)
    held_out = np.concatenate(rows.pop("held_out"))
    images, sets = Pictures(pictures, recipe.model, device), []
    for chosen in (np.flatnonzero(~held_out), np.flatnonzero(held_out)):
        numbers = {key: torch.from_numpy(np.concatenate(values)[chosen]).to(device) for key, values in rows.items()}
        numbers["number"] = torch.from_numpy(chosen)
        sets.append(PreparedSet(numbers, images, [kinds[k] for k in chosen], known[len(sets)]))
    if not len(sets[0]):
        raise InputError(recipe.data.dataroot, "examples", "none", "at least one to learn from")
    return sets[0], sets[1]


class PreparedDraws(Draws):
    """Draws of prepared examples, in another light and without some of their cameras as the recipe has it."""

    def _made(self, draw: int, share: Sequence[tuple[int, int]]) -> Made:
        places, indices = (torch.tensor(numbers) for numbers in zip(*share, strict=True))
        told = bool(self.recipe.model.reason_places) and self.examples.has_reasons
        made = self.examples.made(indices, told, self.recipe.losses.around)
        return replace(made, batch=self._varied(made.batch, draw, places))

    def _varied(self, batch: Batch, draw: int, places: Tensor) -> Batch:
        """As `sensors.augment` does: `photometric`, `drop_cameras`."""
        train, rng = self.recipe.train, np.random.default_rng([self.recipe.seed, draw, 0])
        shape = train.batch_size, self.recipe.model.cameras
        gain, bias = 1 + rng.uniform(-GAIN, GAIN, shape), rng.uniform(-BIAS, BIAS, shape)
        shown = rng.random(shape) >= train.camera_dropout
        shown[:, 0] = True
        device = batch.images.device
        gain, bias = (
            torch.from_numpy(each).float()[places].to(device)[:, None, :, None, None, None] for each in (gain, bias)
        )
        mask = batch.image_mask & torch.from_numpy(shown)[places].to(device)[:, None]
        images = ((batch.images - 127.5) * gain + (127.5 + bias)).clamp(0, 255).round().to(torch.uint8)
        return replace(batch, images=images * mask[..., None, None, None], image_mask=mask)


def _require_plain(recipe: Recipe) -> None:
    """An InputError if a recipe asks for what prepared examples do not have."""
    values = recipe.to_dict()
    for key in NOT_HERE:
        section, name = key.split(".")
        if values[section][name]:
            raise InputError(recipe.data.dataroot, key, values[section][name], "none of it where examples are prepared")


def _shapes(model: ModelConfig) -> dict:
    return {name: value for name, value in model.to_dict().items() if name in SHAPES}


def _manifest(root: Path, model: ModelConfig) -> dict:
    """Of a folder whose examples the model can read."""
    path = root / MANIFEST
    if not path.is_file():
        fix = "Prepare it too (vla data prepare)."
        raise InputError(root, MANIFEST, "none there", "prepared examples, as in the other folders", fix)
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(path, "content", "no JSON", "what vla data prepare writes", "Prepare it again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(path, "format", "another one", FORMAT, "Prepare it again.")
    for name, here in json.loads(json.dumps(_shapes(model))).items():
        if manifest["shapes"].get(name) != here:
            fix = "Prepare it for this recipe."
            raise InputError(path, f"model.{name}", here, f"{manifest['shapes'].get(name)}, as it was prepared", fix)
    return manifest


def _read_part(path: Path, digest: str) -> dict[str, np.ndarray]:
    """A part's arrays; one that is not as it was written is an InputError."""
    if not path.is_file():
        raise InputError(path, "file", "not there", "a part of prepared examples", "Copy or prepare it again.")
    if _sha256(path) != digest:
        raise InputError(path, "sha256", "another one", digest, "Copy or prepare it again.")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name != "broken"}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
