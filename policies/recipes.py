"""Recipes: a YAML file becomes frozen dataclasses; unknown keys and wrong types are errors, the command line overrides.

A recipe is one of the shipped names (`policies/recipes/*.yaml`) or a path. `vla train tiny train.steps=10` replaces one
value by its dotted key; the value is read as YAML. `model.size` names one of `vla.sizes`, from which the other keys of
`model` differ.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from policies.grpo_recipe import GrpoRecipe
from policies.loop_config import DEVICES, LoopConfig
from sensors.errors import InputError, unknown_name
from vla.action_codes import SINGLE_NUMBERS
from vla.auxiliary import LossConfig
from vla.config import ModelConfig, build
from vla.image_tokens import ImageTokenizerConfig
from vla.precision import DTYPES, FP8_RECIPES, PRECISIONS
from vla.sizes import SIZES
from vla.text_tokens import BYTES

SHIPPED = Path(__file__).parent / "recipes"
MOST = {  # of what DataConfig says how far it goes
    "balance": 1.0,
    "balance_datasets": 1.0,
    "balance_modalities": 1.0,
    "crop": 0.9,
    "calibration_jitter_deg": 30.0,
    "calibration_jitter_m": 1.0,
    "time_jitter_ms": 200.0,
}


@dataclass(frozen=True)
class DataConfig:
    """dataroot and version as the official devkit takes them, or the folder or URL of a pack (vla data pack);
    val_scenes: the last so many are held out.

    image_tokenizer: checkpoint of the frozen tokenizer whose codes the model reads, or a loss asks for.
    more_dataroots: others of the same version to learn from, all of their scenes.
    balance, balance_datasets, balance_modalities: 0 .. 1, how far rare situations, small dataroots, and rare kinds of
    clips (with or without reasons, IMU) are drawn more often than they were recorded, see `policies.data.chances`.
    shuffle: 0: each epoch is shuffled as a whole; else shards are read one after the other, and an example moves by at
    most so many places of its lane, see `policies.streams`. For packs that are larger than memory.
    Of `sensors.augment`, and how far each goes; 0 leaves it out:
    crop: largest share of width and height that is cut away.
    calibration_jitter_deg, calibration_jitter_m: standard deviations of errors in where cameras are told to be.
    time_jitter_ms: largest error of when they are told to have fired.
    """

    dataroot: str
    version: str = "v1.0-mini"
    val_scenes: int = 1
    image_tokenizer: str = ""
    more_dataroots: tuple[str, ...] = ()
    shuffle: int = 0
    balance: float = 0.0
    balance_datasets: float = 0.0
    balance_modalities: float = 0.0
    crop: float = 0.0
    calibration_jitter_deg: float = 0.0
    calibration_jitter_m: float = 0.0
    time_jitter_ms: float = 0.0

    def check(self, where: object) -> None:
        """An InputError if a value is of no use."""
        if self.val_scenes < 1:
            raise InputError(where, "data.val_scenes", self.val_scenes, "at least 1 scene held out")
        if self.shuffle < 0:
            raise InputError(where, "data.shuffle", self.shuffle, "at least 0 places")
        for key, most in MOST.items():
            if not 0 <= getattr(self, key) <= most:
                raise InputError(where, f"data.{key}", getattr(self, key), f"a number in [0, {most:g}]")


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """As LoopConfig, for batches of batch_size clips.

    camera_dropout: probability with which each camera but the one ahead is masked in a clip.
    mirror: share of clips that are shown as in a mirror, left and right exchanged.
    motion_dropout: share of clips in which all but the speed of what tells the car's own motion (yaw rate, steering,
    IMU, earlier images with their poses) is hidden. A car goes on turning as it turns, most of the time: a policy that
    sees its motion in every example learns to continue it and never looks at the road.
    validate_every: steps between looks at the held-out scenes, 0: only at the end.
    start_from: checkpoint of the same model, whose clips may have another length, whose weights it starts from, "" for
    none.
    loader_workers: processes that make batches ahead of the training, see `policies.loader`; 0: the training itself.
    freeze: names of parameters that stay as they are, see `policies.freezing`.
    device: "cpu", or "cuda".
    dtype: parameters are fp32; with "bf16" the products are not. "auto": what is faster, `vla.precision.compute_dtype`.
    recompute: keep of each layer its input only and compute the rest again for its gradients: `vla.recompute`.
    precision, fp8_recipe: in what numbers the backbone multiplies, and how 8 bits are scaled: `vla.precision`.
    """

    weight_decay: float = 0.05
    motion_dropout: float = 0.8
    camera_dropout: float = 0.0
    mirror: float = 0.0
    validate_every: int = 0
    start_from: str = ""
    loader_workers: int = 0
    freeze: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: str = "fp32"
    recompute: bool = False
    precision: str = "torch"
    fp8_recipe: str = "current"


@dataclass(frozen=True)
class Recipe:
    name: str
    seed: int
    data: DataConfig
    train: TrainConfig
    model: ModelConfig
    losses: LossConfig = field(default_factory=LossConfig)

    def validate(self, where: object = "recipe") -> "Recipe":
        self.model.validate()
        self.losses.validate(where)
        reads, given = self.model.image_input, self.data.image_tokenizer
        if (reads != "patches" or self.losses.codes) != bool(given):
            expected = "a checkpoint" if not given else "none"
            fix = f"model.image_input is {reads}, losses.world {self.losses.world}, losses.masked {self.losses.masked}."
            raise InputError(where, "data.image_tokenizer", given or "nothing", expected, fix)
        if self.losses.shown and (self.model.image_projector != "none" or self.data.crop):
            came = f"with model.image_projector {self.model.image_projector} and data.crop {self.data.crop}"
            raise InputError(where, "losses.shown", came, "none and 0: it asks of each patch of whole images")
        if self.losses.world and self.model.steps < 2:
            raise InputError(where, "model.steps", self.model.steps, "at least 2: losses.world predicts the next one")
        if self.losses.text and not self.model.text_tokens:
            raise InputError(where, "model.text_tokens", 0, "text, for losses.scene_text_nce and scene_text_siglip")
        if self.losses.pairs and self.train.batch_size < 2 * self.train.accumulate:
            expected = "at least 2 clips to tell apart in each micro-batch"
            raise InputError(where, "train.batch_size", self.train.batch_size, expected)
        for key, allowed in (
            ("device", DEVICES),
            ("dtype", DTYPES),
            ("precision", PRECISIONS),
            ("fp8_recipe", FP8_RECIPES),
        ):
            if getattr(self.train, key) not in allowed:
                raise unknown_name(where, f"train.{key}", getattr(self.train, key), allowed)
        if self.train.recompute and self.train.precision not in ("torch", "auto"):
            fix = "The scales of 8 bits are told each product once."
            expected = "torch or auto, with train.recompute"
            raise InputError(where, "train.precision", self.train.precision, expected, fix)
        self.train.check(where)
        self.data.check(where)
        for key in ("validate_every", "loader_workers"):
            if getattr(self.train, key) < 0:
                raise InputError(where, f"train.{key}", getattr(self.train, key), "at least 0")
        for key in ("motion_dropout", "camera_dropout", "mirror"):
            if not 0 <= getattr(self.train, key) <= 1:
                raise InputError(where, f"train.{key}", getattr(self.train, key), "a share in [0, 1]")
        return self

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class TokenizerTrainConfig(LoopConfig):
    """As LoopConfig, for batches of batch_size single images. Every resample_every steps of the first two thirds, dead
    codes are put where vectors lie."""

    resample_every: int = 20


@dataclass(frozen=True)
class TokenizerRecipe:
    """Of an image tokenizer: the recipe has `image_tokenizer` in the place of `model`."""

    name: str
    seed: int
    data: DataConfig
    train: TokenizerTrainConfig
    image_tokenizer: ImageTokenizerConfig

    def validate(self, where: object = "recipe") -> "TokenizerRecipe":
        self.image_tokenizer.validate(where)
        self.train.check(where)
        self.data.check(where)
        if self.data.shuffle:
            raise InputError(where, "data.shuffle", self.data.shuffle, "0: an image tokenizer has its images in memory")
        if self.train.resample_every < 1:
            raise InputError(where, "train.resample_every", self.train.resample_every, "at least 1")
        if self.image_tokenizer.temporal_layers:
            raise InputError(where, "image_tokenizer.temporal_layers", self.image_tokenizer.temporal_layers, "0 here")
        return self

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class TextConfig:
    """codes: how many, the 256 bytes among them; more_sentences: a file with one a line, beside those of the towns."""

    codes: int = 640
    more_sentences: str = ""


@dataclass(frozen=True)
class TextRecipe:
    """Of text tokens, see `policies.codebooks`: nothing about them is random."""

    name: str
    text: TextConfig

    def validate(self, where: object = "recipe") -> "TextRecipe":
        if self.text.codes < BYTES:
            raise InputError(where, "text.codes", self.text.codes, f"at least {BYTES}, one for each byte")
        return self

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class ActionConfig:
    """dct: codes of cosine transforms with byte pairs; segments: of pieces of path. A chunk of driving begins every
    `stride` tenths of a second."""

    dct: int = 2048
    segments: int = 512
    stride: int = 2


@dataclass(frozen=True)
class ActionRecipe:
    """Of codes for chunks of driving, see `policies.codebooks`."""

    name: str
    seed: int
    data: DataConfig
    actions: ActionConfig

    def validate(self, where: object = "recipe") -> "ActionRecipe":
        self.data.check(where)
        for key, low in (("dct", SINGLE_NUMBERS), ("segments", 2), ("stride", 1)):
            if getattr(self.actions, key) < low:
                raise InputError(where, f"actions.{key}", getattr(self.actions, key), f"at least {low}")
        return self

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


AnyRecipe = Recipe | TokenizerRecipe | TextRecipe | ActionRecipe | GrpoRecipe
KINDS = {  # by a key that only they have
    "image_tokenizer": TokenizerRecipe,
    "text": TextRecipe,
    "actions": ActionRecipe,
    "rollouts": GrpoRecipe,
}


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_recipe(name_or_path: str, overrides: list[str]) -> AnyRecipe:
    """The recipe, overridden and validated; one with a key of KINDS is of that kind."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = SHIPPED / f"{name_or_path}.yaml"
    if not path.is_file():
        raise InputError("recipe", "name", name_or_path, f"a YAML file or one of: {', '.join(shipped())}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(path, "YAML", str(error).replace("\n", " "), "a YAML mapping") from None
    if not isinstance(values, dict):
        raise InputError(path, "YAML", type(values).__name__, "a mapping of keys to values")
    for override in overrides:
        _override(values, override)
    if isinstance(values.get("model"), dict):
        values["model"] = _sized(values["model"], path)
    kind = next((kind for key, kind in KINDS.items() if key in values), Recipe)
    return build(kind, values, path).validate(path)


def _override(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise InputError("override", override, "no value", "KEY=VALUE, for example train.steps=100")
    *path, last = key.split(".")
    for name in path:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise InputError("override", key, f"{name} is a value", "a dotted path of mappings")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError("override", key, f"{text} ({str(error).splitlines()[0]})", "a value in YAML") from None


def _sized(model: dict, where: object) -> dict:
    """All keys of the size that it names, and its own instead where it has some."""
    own = dict(model)
    size = own.pop("size", "tiny")
    if size not in list(SIZES):
        raise unknown_name(where, "model.size", size, SIZES)
    return SIZES[size] | own
