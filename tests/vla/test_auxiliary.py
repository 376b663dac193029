"""Each auxiliary loss end to end: on it goes, the encoder feels it, and it falls; and off, nothing of it is there."""

from dataclasses import fields, replace

import pytest
import torch
from torch.nn import functional as F

from sensors.errors import InputError
from sensors.surroundings import COLUMNS, IN_IMAGES, LAYERS, ROWS
from vla.auxiliary import AuxiliaryLosses, CodeReader, LossConfig, SurroundingsReader, TextTower
from vla.encoder import with_codes
from vla.image_tokens import ImageTokenizer, ImageTokenizerConfig
from vla.losses import RARE_WEIGHT, surroundings_loss
from vla.model import DrivingModel

IMAGES = ImageTokenizerConfig(image_width=64, image_height=32, codes=16, channels=8)
SCALARS = {  # what falls, by loss
    "world": "loss_world",
    "masked": "loss_masked",
    "scene_trajectory_nce": "loss_nce_scene_trajectory",
    "scene_trajectory_siglip": "loss_siglip_scene_trajectory",
    "scene_text_nce": "loss_nce_scene_text",
    "scene_text_siglip": "loss_siglip_scene_text",
    "surroundings": "loss_surroundings",
    "shown": "loss_shown",
    "head_z": "loss_head_z",
}


@pytest.fixture(scope="module")
def examples(small, make_batch, make_tokens):
    return with_codes(make_batch(small, 0, 1, 2, 3), ImageTokenizer(IMAGES, 1)), make_tokens(small, 4)


def some_surroundings(clips, small):
    generator = torch.Generator().manual_seed(3)
    there = torch.rand(clips, len(LAYERS), ROWS, COLUMNS, generator=generator) < 0.1
    shown = torch.rand(clips, small.cameras, len(IN_IMAGES), *small.patch_grid, generator=generator) < 0.2
    known = (torch.ones(clips, len(kinds), dtype=torch.bool) for kinds in (LAYERS, IN_IMAGES))
    return there, next(known), shown, next(known)


@pytest.mark.parametrize("name", SCALARS)
def test_a_loss_reaches_the_encoder_and_falls(small, examples, name):
    (batch, tokens), weights = examples, LossConfig(**{name: 0.5})
    model, heads = DrivingModel(small), AuxiliaryLosses(weights, small, IMAGES)
    around = some_surroundings(len(tokens), small)

    def losses():
        generator = torch.Generator().manual_seed(0)  # the same camera and the same masks each time
        return model.loss(batch, tokens, generator=generator, auxiliary=heads, around=around)

    (loss, scalars), plain = losses(), model.loss(batch, tokens)[0]
    first = float(scalars[SCALARS[name]])
    assert (loss - plain).item() == pytest.approx(0.5 * first, rel=1e-3)
    (felt,) = torch.autograd.grad(loss - plain, next(model.encoder.stem.parameters()))
    assert felt.abs().max() > 1e-6
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=2e-3)
    for _ in range(10):
        loss, scalars = losses()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())
    assert 0 < float(scalars[SCALARS[name]]) < 0.95 * first


def test_what_is_off_has_no_parameters_and_changes_nothing(small, examples):
    batch, tokens = examples
    heads, model = AuxiliaryLosses(LossConfig(), small, None), DrivingModel(small)
    assert not list(heads.parameters())
    assert not LossConfig().any
    loss, scalars = model.loss(batch, tokens)
    same, named = model.loss(batch, tokens, generator=torch.Generator(), auxiliary=heads)
    torch.testing.assert_close(same, loss, atol=1e-4, rtol=1e-4)  # routers of the last layer see all tokens, not some
    assert named.keys() == scalars.keys()
    for field in fields(LossConfig):
        alone = AuxiliaryLosses(LossConfig(**{field.name: 1.0}), small, IMAGES)
        assert bool(list(alone.parameters())) == (field.name != "head_z")


@pytest.mark.parametrize("kind", ["nce", "siglip"])
def test_clips_without_text_and_with_the_same_do_not_count(small, examples, kind):
    batch, tokens = examples  # the texts of the four are none, one, another, none
    heads = AuxiliaryLosses(LossConfig(**{f"scene_text_{kind}": 1.0}), small, None)
    name = f"loss_{kind}_scene_text"

    def loss_of(words, scene):
        pairs = heads.words
        return pairs(scene, words, pairs.other.are_words(words).any(dim=1))

    model = DrivingModel(small)
    scene = torch.randn(4, small.scene_tokens, small.width, generator=torch.Generator().manual_seed(0))
    loss, named = loss_of(batch.instruction, scene)
    assert loss > 0
    assert loss_of(batch.instruction[1:3], scene[1:3])[0] == loss
    twice = torch.cat([batch.instruction, batch.instruction])
    assert loss_of(twice, torch.cat([scene, 1 - scene]))[0] == loss  # the first of the same text counts
    none, zeros = loss_of(batch.instruction[:2], scene[:2])
    assert none == zeros[name] == 0
    none.backward()
    assert all(parameter.grad is not None for parameter in heads.words.parameters())
    assert zeros.keys() == named.keys()
    reason = torch.full((4, small.reason_places), model.pad_token)
    reason[:, 0], reason[:, 1] = small.vocabulary.range_of("text").start + torch.arange(4), model.end_token
    with_reasons = model.loss(batch, tokens, reason, generator=torch.Generator(), auxiliary=heads)[1]
    assert with_reasons[name] != model.loss(batch, tokens, generator=torch.Generator(), auxiliary=heads)[1][name]


def test_words_may_stand_in_any_order_and_nothing_else_is_one(small):
    tower, text = TextTower(small), small.vocabulary.range_of("text")
    pad = small.vocabulary.special("<pad>")
    a = torch.tensor([[text[3], text[5], pad, pad]])
    b = torch.tensor([[pad, text[5], text[3], small.vocabulary.special("<end>")]])
    torch.testing.assert_close(tower(a), tower(b))
    assert not torch.allclose(tower(a), tower(torch.tensor([[text[3], text[6], pad, pad]])))


def test_the_next_frame_is_read_from_the_step_before_it_alone(small, examples):
    batch, tokens = examples
    heads, model = AuxiliaryLosses(LossConfig(world=1.0), small, IMAGES), DrivingModel(small).eval()

    def world(changed):
        scalars = model.loss(changed, tokens, generator=torch.Generator().manual_seed(0), auxiliary=heads)[1]
        return scalars["loss_world"], scalars["copied_world"]

    now, before = batch.images.clone(), batch.images.clone()
    now[:, -1] = 255 - now[:, -1]
    before[:, 0] = 255 - before[:, 0]
    assert world(replace(batch, images=now)) == world(batch)  # what is to be predicted is not seen
    assert world(replace(batch, images=before)) != world(batch)
    half = batch.image_mask.clone()
    half[:, -1] = False
    assert world(replace(batch, image_mask=half)) == (0, 0)  # nothing delivered, nothing scored


def test_places_stand_row_by_row_and_each_asks_along_its_patch_ray(small):
    reader = CodeReader(small, 16, 8)
    rows, columns, side = *small.patch_grid, 2
    rays = F.normalize(torch.randn(1, rows * columns, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    with torch.no_grad():
        shown = torch.arange(rows * columns * side**2)[None] % 16
        patches = reader.ray(torch.eye(4)[None], rays, torch.ones(1, rows * columns, dtype=torch.bool))[0]
        naive = []
        for row in range(rows * side):
            for column in range(columns * side):
                place = (row % side) * side + column % side
                naive.append(patches[(row // side) * columns + column // side] + reader.place.weight[place])
        asked = torch.stack(naive)[None] + reader.codes(shown)
        states = torch.randn(1, small.scene_tokens, small.width, generator=torch.Generator().manual_seed(1))
        expected = reader.norm(reader.local(reader.look(asked, reader.memory(states), None), None))
        came = reader(states, shown, torch.eye(4)[None], rays, torch.ones(1, rows * columns, dtype=torch.bool))
    torch.testing.assert_close(came, expected)


def test_losses_reject_what_they_cannot_use(small, examples):
    batch, tokens = examples
    with pytest.raises(InputError, match=r"losses\.world: came -1"):
        LossConfig(world=-1.0).validate()
    with pytest.raises(InputError, match="image tokenizer: came none"):
        AuxiliaryLosses(LossConfig(masked=1.0), small, None)
    with pytest.raises(InputError, match="128 x 32 px"):
        AuxiliaryLosses(LossConfig(masked=1.0), small, replace(IMAGES, image_width=128))
    heads = AuxiliaryLosses(LossConfig(scene_trajectory_nce=1.0), small, None)
    one = type(batch)(*(getattr(batch, field.name)[:1] for field in fields(batch)))
    with pytest.raises(InputError, match="at least 2"):
        DrivingModel(small).loss(one, tokens[:1], generator=torch.Generator(), auxiliary=heads)


def test_layers_that_are_not_known_are_not_asked_for(small):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, len(LAYERS), ROWS, COLUMNS, generator=generator)
    there = some_surroundings(2, small)[0]
    known = torch.tensor([[True] * len(LAYERS), [True, True, False, False, False]])
    loss, scalars = surroundings_loss(logits, there, known, "around")
    total, found, count = 0.0, 0, 0
    for b in range(2):
        for c in range(len(LAYERS)):
            if known[b, c]:
                p = logits[b, c].sigmoid()
                hit = there[b, c]
                total -= RARE_WEIGHT * p[hit].log().sum() + (1 - p[~hit]).log().sum()
                found, count = found + int((p[hit] > 0.5).sum()), count + int(hit.sum())
    torch.testing.assert_close(loss, total / (int(known.sum()) * ROWS * COLUMNS))
    assert float(scalars["found_around"]) == pytest.approx(found / count)


def test_surroundings_are_read_in_bf16_without_a_warning(small):
    reader = SurroundingsReader(small)
    scene = torch.randn(2, small.scene_tokens, small.width, generator=torch.Generator().manual_seed(0))
    wanted = reader(scene)
    with torch.autocast("cpu", torch.bfloat16):
        got = reader(scene)
    assert torch.allclose(got.float(), wanted, atol=0.1)
