"""Spawned processes that share the work of a run, each on a core of its own."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing.queues import SimpleQueue
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import threadpoolctl
import torch

from sensors.errors import InputError


@contextmanager
def processes(count: int) -> Iterator[Executor | None]:
    """A pool of spawned processes that end with this one, whatever ends it; None for one."""
    if count == 1:
        with nullcontext() as none:
            yield none
        return
    spawn = multiprocessing.get_context("spawn")
    enough = spawn.Event()
    pool = ProcessPoolExecutor(count, spawn, _begin_process, (spawn.Value("i", 0), enough))
    try:
        yield pool
    finally:
        enough.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def companions(count: int, work: Callable[..., None], *arguments: object) -> Iterator[Path]:
    """`work(rank, meeting, *arguments)` in count - 1 spawned processes beside this one, which is rank 0.

    Yields `meeting`, a path that all can write. Each has its share of the cores. They end with this process, whatever
    ends it; one that fails ends the others, and is an InputError that says which.
    """
    spawn, share = multiprocessing.get_context("spawn"), max(1, len(os.sched_getaffinity(0)) // count)
    said = spawn.SimpleQueue()
    with TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        others = [
            # No daemons: those may not have processes of their own.
            spawn.Process(target=_accompany, args=(share, said, work, rank, meeting, *arguments))
            for rank in range(1, count)
        ]
        for other in others:
            other.start()
        before = torch.get_num_threads()
        try:
            if others:
                torch.set_num_threads(share)
            yield meeting
            for other in others:
                other.join()
        except (MemoryError, RuntimeError) as error:  # of torch.distributed, when one of them is no longer there
            if out_of_memory(error):
                raise of_worker(0, count, no_memory(error)) from error
            for other in others:
                other.join(5.0)
            dead = [(k + 1, other.exitcode) for k, other in enumerate(others) if other.exitcode]
            if not said.empty():
                rank, why = said.get()
                raise of_worker(rank, count, why) from error
            if not dead:
                raise
            raise died(dead[0][0], count, f"exit status {dead[0][1]}") from error
        finally:
            torch.set_num_threads(before)
            for other in others:
                other.terminate()


def _accompany(share: int, said: SimpleQueue, work: Callable[..., None], rank: int, *arguments: object) -> None:
    torch.set_num_threads(share)
    work_alone()
    try:
        work(rank, *arguments)
    except InputError as error:
        said.put((rank, error))
        raise
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            said.put((rank, no_memory(error)))
        raise


def of_worker(rank: int, count: int, error: InputError) -> InputError:
    """The error, with the worker that had it."""
    return InputError(f"worker {rank} of {count}: {error.where}", error.field, error.came, error.expected, error.fix)


def died(rank: int, count: int, how: str) -> InputError:
    """A worker that is no longer there."""
    fix = "Was it killed, perhaps for its memory? The same command goes on from the last checkpoint."
    return InputError("--workers", f"worker {rank} of {count}", f"an end with {how}", "all to work to the end", fix)


def out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python had no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def no_memory(error: BaseException) -> InputError:
    """What an error that is `out_of_memory` says to a user."""
    came = str(error).strip().splitlines()[-1] if str(error) else "too little"
    fix = "Divide the model over more workers (--shard, --experts-over), or raise train.accumulate."
    return InputError("training", "memory", came, "enough for the model and its batch", fix)


def _begin_process(begun: Synchronized, enough: Event) -> None:
    """The k-th process has the k-th core to itself: threads of its own, Mesa's too, would only be in the others' way.
    When there is enough, the scene under way is of no use any more."""
    with begun.get_lock():
        k, begun.value = begun.value, begun.value + 1
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[k % len(cores)]})
    keep_to_one_thread()
    work_alone()
    _end_when(enough.wait)


def keep_to_one_thread() -> None:
    """Torch, Mesa, OpenCV and NumPy, of a process that has one core: with the sums of any other such process."""
    os.environ["LP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1, "blas")


def work_alone() -> None:
    """What a spawned process begins with: OpenCV and NumPy keep to one thread, an interrupt is the parent's to answer,
    and when the parent is gone, whatever ended it, so is this process."""
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1, "blas")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_when(multiprocessing.parent_process().join)


def _end_when(over: Callable[[], object]) -> None:
    def wait() -> None:
        over()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
