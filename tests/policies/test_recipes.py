import re
from dataclasses import dataclass, replace

import pytest
import torch

from policies.dry_run import arithmetic
from policies.freezing import freeze
from policies.recipes import MOST, SHIPPED, load_recipe
from sensors.errors import InputError
from vla.config import ModelConfig, build
from vla.model import DrivingModel

SHIPPED_NAMES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_shipped_recipes_load_and_say_their_cost(name):
    recipe = load_recipe(name, [])
    assert recipe.name == name
    text = (SHIPPED / f"{name}.yaml").read_text()
    cost = next(line for line in text.splitlines() if line.startswith("# cost "))
    assert re.search("seconds|minutes|hours", cost)
    assert "\n# data " in text
    assert "\n# score " in text
    learned = hasattr(recipe, "train")  # codes of text and actions are counted, not learned
    if learned:
        assert load_recipe(name, ["train.steps=8"]).train.steps == 8
    with pytest.raises(InputError, match=r"Did you mean train\.steps" if learned else "an unknown key"):
        load_recipe(name, ["train.stepz=7"])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("align", 3.81e6),
        ("pretrain", 3.81e6),
        ("instruct", 3.81e6),
        ("town-300m", 304e6),
        ("nuscenes-300m", 304e6),
        ("moe-10b", 9.92e9),
    ],
)
def test_models_of_shipped_recipes_have_their_size_and_cost_what_the_header_says(name, parameters):
    recipe = load_recipe(name, [])
    with torch.device("meta"):  # nothing is allocated
        model = DrivingModel(recipe.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, rel=0.005)
    freeze(model, recipe.train.freeze, name)
    smaller = load_recipe(name, ["model.size=tiny"]).model
    assert (smaller.width, smaller.cameras) == (ModelConfig.tiny().width, recipe.model.cameras)
    if said := re.search(r"counts ([\d.e]+) FLOP", (SHIPPED / f"{name}.yaml").read_text()):
        clips = recipe.train.steps * recipe.train.batch_size
        assert float(said[1]) == pytest.approx(clips * arithmetic(recipe.model, model), rel=0.03)
    else:
        assert parameters < 1e7


def test_three_stages_are_of_one_model_and_only_align_and_instruct_freeze():
    align, pretrain, instruct = (load_recipe(name, []) for name in ("align", "pretrain", "instruct"))
    assert align.model == pretrain.model == instruct.model
    assert align.train.freeze == ("backbone.", "embedding.", "instruction_order", "head.")
    assert (pretrain.train.freeze, instruct.train.freeze) == ((), ("encoder.",))


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
        ("train.freeze=encoder.", "train.freeze: came 'encoder.' (str), expected a list"),
        ("train.freeze=[3]", "train.freeze[0]: came 3"),
        ("train.freeze=[*.weight]", "expected a value in YAML"),
        ("model.size=300M", "model.size: came 300M, expected one of tiny, 300m, 10b-a2.5b. Did you mean 300m?"),
        ("model.size=[300m]", "model.size: came ['300m']"),
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


def test_a_size_is_what_the_other_keys_of_the_model_differ_from():
    assert load_recipe("tiny", ["model.size=tiny"]) == load_recipe("tiny", [])
    larger = load_recipe("tiny", ["model.size=300m", "model.width=384", "model.heads=6", "model.kv_heads=2"]).model
    of_size = ModelConfig.of_size("300m")
    assert (larger.steps, of_size.steps) == (1, 4)  # the recipe's own
    assert replace(larger, steps=4, width=768, heads=12, kv_heads=4) == of_size


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
