"""Training examples: clips of recorded scenes with the action tokens of what the expert meant to do there.

Where a scene's extension holds the expert's plan of a keyframe, that is the example's plan: it knows only what could be
seen then, and it is right also where a student or noise was at the wheel. Elsewhere it is what was driven. The reason
for the plan, in the words of `sensors.reasons`, is the extension's too; "" where there is none.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from policies.recipes import DataConfig, Recipe
from policies.split import Learned
from policies.transforms import future_in_ego, image_size, looked_at, reaches, speed_at_now
from sensors.augment import (
    crop,
    drop_cameras,
    mirror,
    mirror_poses,
    misplace_cameras,
    photometric,
    shift_clocks,
    swap_sides,
)
from sensors.clip import Clip
from sensors.errors import InputError
from sensors.nuscenes_source import NuscenesSource
from sensors.pack_source import open_source
from sensors.surroundings import in_images, mirrored, surroundings
from vla.action_tokens import ActionTokenizer
from vla.config import ModelConfig

STANDS_MPS = 0.3


@dataclass(frozen=True)
class Example:
    """What a model is shown, and what it is to say.

    clip    as the model looks at it
    plan    float64 [K, 3]  x, y, yaw in the ego frame, at TrainingSet.time_s
    tokens  int64 [2K]      the action tokens of that
    reason  why, in the words of `sensors.reasons`; "" where nobody said
    around  the two of `sensors.surroundings.surroundings` and the two of `in_images`, for the model's patches; empty
            where no loss asks
    """

    clip: Clip
    plan: np.ndarray
    tokens: np.ndarray
    reason: str
    around: tuple[np.ndarray, ...] = ()


class Kind(NamedTuple):
    """What examples are balanced by: their dataroot, whether (reasons, an IMU) are known, and (what the route asks for,
    why the expert does what it does, whether the car stands)."""

    dataset: str
    modality: tuple[bool, bool]
    situation: tuple[str, str, bool]


class TrainingSet:
    """Indexable Examples over the frames of scenes for which there is a whole plan.

    parts        sources, each with those of its scenes that count
    has_reasons  whether any scene knows reasons
    learned      the scenes
    """

    def __init__(
        self, parts: Sequence[tuple[NuscenesSource, Sequence[str]]], tokenizer: ActionTokenizer, model: ModelConfig
    ):
        self._tokenizer, self._model = tokenizer, model
        self.time_s = tokenizer.dt_s * np.arange(1, tokenizer.steps + 1)
        places = [(source, scene) for source, scenes in parts for scene in scenes]
        self._items = [(source, scene, k) for source, scene in places for k in self._planned(source, scene)]
        if not self._items:
            expected, names = f"at least one frame with {self.time_s[-1]:g} s of future", [s.name for s, _ in parts]
            raise InputError(", ".join(names), "scenes", f"{len(places)} scenes without one", expected)
        self.learned = Learned.of(places)
        extensions = (source.extension(scene) for source, scene in places)
        self.has_reasons = any(extension is not None and extension.reasons for extension in extensions)

    def __len__(self) -> int:
        return len(self._items)

    def shards(self) -> np.ndarray:
        """int64 [examples]: the number of the shard that each lies in; of a dataroot every scene is one."""
        names = [(str(source.index.dataroot), source.shard(scene)) for source, scene, _ in self._items]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return np.array([numbers[name] for name in names])

    def situations(self) -> dict[str, int]:
        """How many examples there are of each situation, in words, the most frequent first."""
        return situations([_situation(*item) for item in self._items])

    def __getitem__(self, index: int) -> Example:
        return self.recorded(index)

    def recorded(self, index: int, asked_around: bool = False) -> Example:
        """The example as it was recorded, with what stands around if asked."""
        source, scene, frame = self._items[index]
        clip, extension = looked_at(source.clip(scene, frame), self._model), source.extension(scene)
        future, plan, reason = source.future(scene, frame), None, ""
        if extension is not None:
            plan, reason = extension.plan_at(clip.now_us), extension.reason_at(clip.now_us)
        if plan is None:
            plan = future_in_ego(clip, future, self.time_s)
        around = ()
        if asked_around:
            above = surroundings(clip.T_world_from_ego_now, future.boxes_now, extension, clip.now_us)
            around = (*above, *in_images(clip, future.boxes_now, extension, *self._model.patch_grid))
        return Example(clip, plan, self._tokens(clip, plan), reason, around)

    def varied(self, index: int, rng: np.random.Generator, recipe: Recipe) -> Example:
        """The example as the recipe varies it: in another light, mirrored, cropped, without some of its cameras, its
        calibration and clocks in error."""
        e, data = self.recorded(index, recipe.losses.around), recipe.data
        if rng.random() < recipe.train.mirror:
            clip, plan = mirror(e.clip), mirror_poses(e.plan)
            # Grids have two sides; which layers are known, one number each, has none.
            around = tuple(mirrored(each) if each.ndim > 1 else each for each in e.around)
            e = Example(clip, plan, self._tokens(clip, plan), swap_sides(e.reason), around)
        clip = drop_cameras(photometric(e.clip, rng), rng, recipe.train.camera_dropout)
        if data.crop:
            clip = crop(clip, rng, data.crop)
        if data.calibration_jitter_deg or data.calibration_jitter_m:
            angle_rad = np.radians(data.calibration_jitter_deg)
            clip = misplace_cameras(clip, rng, float(angle_rad), data.calibration_jitter_m)
        if data.time_jitter_ms:
            clip = shift_clocks(clip, rng, 1e3 * data.time_jitter_ms)
        return replace(e, clip=clip)

    def kinds(self) -> list[Kind]:
        """Of each example."""
        return [self.kind(index) for index in range(len(self))]

    def kind(self, index: int) -> Kind:
        return Kind(*(kind(*self._items[index]) for kind in KINDS.values()))

    def chances(self, data: DataConfig) -> np.ndarray | None:
        """How often each example is to be drawn, see the function of this name."""
        return chances(lambda name: [KINDS[name](*item) for item in self._items], data)

    def _planned(self, source: NuscenesSource, scene: str) -> list[int]:
        """Frames of a scene for which there is a whole plan."""
        times_us, extension = source.frame_times_us(scene), source.extension(scene)
        horizon_s = float(self.time_s[-1])
        known = set() if extension is None else set(extension.plan_time_us.tolist())
        if known and not np.array_equal(extension.plan_after_s, self.time_s):
            came, expected = extension.plan_after_s.tolist(), self.time_s.tolist()
            fix = "Change model.plan_steps and plan_dt_s."
            raise InputError(f"{source.name} {scene}", "plan_after_s", came, expected, fix)
        if known:
            return [k for k, now in enumerate(times_us) if now in known]
        return [k for k, now in enumerate(times_us) if reaches(now, times_us, horizon_s)]

    def _tokens(self, clip: Clip, plan: np.ndarray) -> np.ndarray:
        return self._tokenizer.encode(*self._tokenizer.labels(plan, speed_at_now(clip)))


def recorded_sets(recipe: Recipe) -> tuple[TrainingSet, TrainingSet]:
    """(examples to learn from, those held out) of the dataroots that a recipe names."""
    data, roots = recipe.data, (recipe.data.dataroot, *recipe.data.more_dataroots)
    source, *more = (open_source(root, data.version, recipe.model.steps, image_size(recipe.model)) for root in roots)
    learned, held_out = split_scenes(source.scenes, data)
    parts = [(source, learned), *((another, another.scenes) for another in more)]
    tokenizer = ActionTokenizer(recipe.model)
    return TrainingSet(parts, tokenizer, recipe.model), TrainingSet([(source, held_out)], tokenizer, recipe.model)


def split_scenes(scenes: tuple[str, ...], data: DataConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(scenes to learn from, the last `val_scenes`, which are held out); too few scenes are an InputError."""
    count = len(scenes) - data.val_scenes
    if count < 1:
        least = data.val_scenes + 1
        expected = f"at least {least}, {least - 1} of them held out"
        raise InputError(data.dataroot, "scenes", f"{len(scenes)} scenes", expected)
    return scenes[:count], scenes[count:]


def situations(found: Sequence[tuple[str, str, bool]]) -> dict[str, int]:
    """How many examples there are of each situation, in words, the most frequent first."""
    return {
        ", ".join(filter(None, (cue, reason, "standing" if stands else "under way"))): count
        for (cue, reason, stands), count in Counter(found).most_common()
    }


def chances(kinds: Callable[[str], list], data: DataConfig) -> np.ndarray | None:
    """How often each example is to be drawn [examples], sum 1; None: all alike, as they were recorded.

    The rule: examples are divided by dataroot, these parts by modality, these by situation; a division whose balance b
    is 0 is left out. A part of n examples has a share of what it is a part of in proportion to n ** (1 - b), a
    temperature of 1 / (1 - b). 0: as recorded; 1: every part as often as any other. Within the last parts all examples
    are alike. kinds: what a field of `Kind` is of each example; asked for where there is a balance.
    """
    balances = {"dataset": data.balance_datasets, "modality": data.balance_modalities, "situation": data.balance}
    divisions = [(balance, kinds(name)) for name, balance in balances.items() if balance]
    if not divisions:
        return None
    wholes: list[tuple] = [()] * len(divisions[0][1])
    found = np.ones(len(wholes))
    for balance, names in divisions:
        parts = [(*whole, name) for whole, name in zip(wholes, names, strict=True)]
        weights, sums = {part: n ** (1 - balance) for part, n in Counter(parts).items()}, Counter()
        for part, weight in weights.items():
            sums[part[:-1]] += weight
        found *= [weights[part] / sums[part[:-1]] for part in parts]
        wholes = parts
    strong = Counter(wholes)
    return found / [strong[whole] for whole in wholes]


def _dataset(source: NuscenesSource, scene: str, frame: int) -> str:
    return str(source.index.dataroot)


def _modality(source: NuscenesSource, scene: str, frame: int) -> tuple[bool, bool]:
    now_us, extension = int(source.frame_times_us(scene)[frame]), source.extension(scene)
    return extension is not None and bool(extension.reason_at(now_us)), bool(len(source.imu(scene, now_us)))


def _situation(source: NuscenesSource, scene: str, frame: int) -> tuple[str, str, bool]:
    now_us, extension = int(source.frame_times_us(scene)[frame]), source.extension(scene)
    stands = source.vehicle(scene, now_us).speed_mps < STANDS_MPS
    if extension is None:
        return "", "", stands
    return extension.cue_at(now_us)[0], extension.reason_at(now_us).partition(",")[0], stands


KINDS = {"dataset": _dataset, "modality": _modality, "situation": _situation}  # by the fields of Kind
