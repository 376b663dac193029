"""The policy is built to look: pictures matter from the first step on."""

from dataclasses import replace

import numpy as np
import torch

from vla.config import ModelConfig
from vla.encoder import anchor_directions
from vla.model import DrivingModel


def test_anchor_directions_are_unit_and_all_round():
    directions = anchor_directions(32)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(32))
    azimuth = torch.atan2(directions[:, 1], directions[:, 0]).sort().values
    assert azimuth.diff().max() < 0.6
    assert azimuth[0] + 2 * torch.pi - azimuth[-1] < 0.6
    elevation = torch.rad2deg(torch.asin(directions[:, 2]))
    assert -35 <= elevation.min() < -30
    assert 0 < elevation.max() <= 5


def test_pictures_move_the_scene_tokens_from_the_start(make_batch):
    config = ModelConfig.tiny()
    batch = make_batch(config, *[0] * 8)
    generator = torch.Generator().manual_seed(0)
    # Flat pictures of different colour: the least that a picture can say.
    colours = torch.randint(0, 256, (8, 1, 1, 1, 1, 3), generator=generator, dtype=torch.uint8)
    batch = replace(batch, images=colours.expand_as(batch.images).contiguous())
    with torch.no_grad():
        scene = DrivingModel(config).encoder(batch)
    moved = scene.std(dim=0).square().mean().sqrt() / scene.square().mean().sqrt()
    assert moved > 0.1


def test_masked_images_are_not_computed(small, make_batch):
    mask = np.ones((small.steps, small.cameras), bool)
    mask[0] = False
    batch = make_batch(small, 0, image_mask=mask)
    model, images = DrivingModel(small), []
    model.encoder.stem.register_forward_pre_hook(lambda _, arguments: images.append(len(arguments[0])))
    model.encoder(batch)
    assert images == [small.cameras * (small.steps - 1)]
