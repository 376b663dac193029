"""What the tests of this folder share, as fixtures; `small_clips` has what they are made of."""

from dataclasses import replace

import pytest
import torch
from small_clips import SMALL, clip_of, collated

from vla.config import ModelConfig


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors as small as these are not worth a second thread, and on a busy machine each waits for the other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def small() -> ModelConfig:
    return SMALL.validate()


@pytest.fixture(scope="session")
def make_clip():
    return clip_of


@pytest.fixture(scope="session")
def collate_clips():
    return collated


@pytest.fixture(scope="session")
def make_batch():
    """(config, seeds) to a batch collated as the config says; keyword arguments replace fields of the clips."""

    def make(config: ModelConfig, *seeds: int, **changes):
        return collated([replace(clip_of(config, seed), **changes) for seed in seeds], config)

    return make


@pytest.fixture(scope="session")
def make_tokens():
    """Random legal action tokens [B, 2K]."""

    def make(config: ModelConfig, batch: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, config.plan_steps)
        pairs = [torch.randint(slot.start, slot.stop, shape, generator=generator) for slot in config.action_slots]
        return torch.stack(pairs, dim=-1).flatten(1)

    return make
