"""Tests that need several processes: a function runs in each, and what it asserts fails the test."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import multiprocessing

from vla.parallel import Replicas


def in_workers(count: int, work: Callable[..., None], *arguments: object) -> None:
    """work(replicas, folder, *arguments) in so many spawned processes that share a folder."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_begin, (count, Path(folder), work, arguments), count)


def _begin(rank: int, count: int, folder: Path, work: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(1)
    replicas = Replicas.join(rank, count, folder / "meeting")
    work(replicas, folder, *arguments)
    replicas.leave()
