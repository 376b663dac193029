from dataclasses import dataclass

import pytest

from policies.recipes import MOST, SHIPPED, load_recipe
from sensors.errors import InputError
from vla.config import build

SHIPPED_NAMES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_shipped_recipes_load_and_say_their_cost(name):
    recipe = load_recipe(name, [])
    assert recipe.name == name
    header = (SHIPPED / f"{name}.yaml").read_text().splitlines()[:8]
    assert any("minutes" in line for line in header if line.startswith("#"))


def test_overrides_replace_one_value():
    recipe = load_recipe("tiny", ["train.steps=7", "train.learning_rate=3e-4", "data.dataroot=/x"])
    assert (recipe.train.steps, recipe.train.learning_rate, recipe.data.dataroot) == (7, 3e-4, "/x")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stepz=7", "Did you mean train.steps?"),
        ("model.widht=7", "Did you mean model.width?"),
        ("train.steps=many", "train.steps: came 'many' (str), expected int"),
        ("train.steps=true", "train.steps: came True (bool), expected int"),
        ("train.steps", "expected KEY=VALUE"),
        ("train=3", "train: came 3"),
        ("train.steps.more=3", "steps is a value"),
        ("train.learning_rate=2", "train.learning_rate: came 2.0"),
        ("train.motion_dropout=-0.1", "train.motion_dropout"),
        ("train.clip_norm=0", "train.clip_norm"),
        ("train.steps=0", "train.steps: came 0, expected at least 1"),
        ("data.val_scenes=0", "data.val_scenes"),
        ("train.precision=fp8sim", "train.precision: came fp8sim, expected one of torch, fp8-sim, te, auto. Did you"),
        ("train.fp8_recipe=mx", "train.fp8_recipe: came mx, expected one of current, delayed, block"),
        ("train.dtype=fp16", "train.dtype: came fp16"),
        ("train.device=tpu", "train.device: came tpu"),
        ("losses.worlds=1", "Did you mean losses.world?"),
        ("losses.head_z=-1", "losses.head_z: came -1.0, expected a weight of at least 0"),
        ("losses.masked=1", "data.image_tokenizer: came nothing, expected a checkpoint"),
    ],
)
def test_override_rejects(override, words):
    with pytest.raises(InputError) as error:
        load_recipe("tiny", [override])
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["losses.world=1", "data.image_tokenizer=x", "model.steps=1"], "model.steps: came 1, expected at least 2"),
        (["losses.scene_trajectory_nce=1", "train.batch_size=1"], "train.batch_size: came 1, expected at least 2"),
        (["losses.scene_text_nce=1", "model.text_tokens=0"], "model.text_tokens: came 0"),
    ],
)
def test_losses_reject_a_recipe_that_lacks_what_they_need(overrides, words):
    with pytest.raises(InputError) as error:
        load_recipe("tiny", overrides)
    assert words in str(error.value)


def test_unknown_recipe_names_the_shipped_ones():
    with pytest.raises(InputError, match="tiny"):
        load_recipe("tyni", [])


@pytest.mark.parametrize("key", MOST)
def test_what_goes_too_far_is_rejected(key):
    assert getattr(load_recipe("tiny", [f"data.{key}={MOST[key]}"]).data, key) == MOST[key]
    for value in (-0.1, 1.01 * MOST[key], ".nan"):
        with pytest.raises(InputError, match=rf"data\.{key}"):
            load_recipe("tiny", [f"data.{key}={value}"])


def test_files_reject_what_is_no_mapping(tmp_path):
    for text in ("[1, 2]", "a: [", "3"):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(InputError, match=r"bad\.yaml"):
            load_recipe(str(path), [])


@dataclass(frozen=True)
class Inner:
    rate: float
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    name: str


def test_build_makes_nested_dataclasses_and_names_what_is_missing():
    made = build(Outer, {"inner": {"rate": 1, "sizes": [3]}, "name": "x"}, "file")
    assert made == Outer(Inner(1.0, (3,)), "x")
    with pytest.raises(InputError, match=r"inner\.rate: came nothing"):
        build(Outer, {"inner": {}, "name": "x"}, "file")
    with pytest.raises(InputError, match=r"inner\.sizes\[0\]"):
        build(Outer, {"inner": {"rate": 1, "sizes": ["a"]}, "name": "x"}, "file")
