"""Spawned processes that share the work of a run, each on a core of its own."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import threadpoolctl
import torch

from sensors.errors import InputError

TRIES = 4  # of a call whose worker is lost


@contextmanager
def processes(count: int) -> Iterator[Executor | None]:
    """Spawned processes that end with this one, whatever ends it; None for one.

    If one is lost all are begun again, and so are the calls that were under way, which have to be repeatable: what each
    returns comes once. A call that has lost its worker TRIES times is an InputError.
    """
    with nullcontext() if count == 1 else _Processes(count) as executor:
        yield executor


class _Processes(Executor):
    """One thread here waits for each call there."""

    def __init__(self, count: int):
        self._count, self._spawn = count, multiprocessing.get_context("spawn")
        # Its other end is told by being closed: an event waits for those who wait for it, also if they were killed.
        self._enough, self._until = self._spawn.Pipe(duplex=False)
        self._renewing = threading.Lock()
        self._threads, self._pool = ThreadPoolExecutor(count), self._begun(count)

    def submit(self, function: Callable, /, *arguments: object) -> Future:
        return self._threads.submit(self._result, function, arguments)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def __exit__(self, *error: object) -> None:
        self._until.close()
        self.shutdown(cancel_futures=True)
        self._enough.close()

    def _begun(self, count: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(count, self._spawn, _begin_process, (self._spawn.Value("i", 0), self._enough))

    def _result(self, function: Callable, arguments: tuple) -> object:
        pool = self._pool
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            if self._until.closed:
                raise
        with self._renewing:
            if self._pool is pool:  # and nobody else was faster
                self._pool = self._begun(self._count)
        for left in reversed(range(TRIES - 1)):  # alone: who died ended the others of its pool, and would again
            with self._begun(1) as alone:
                try:
                    return alone.submit(function, *arguments).result()
                except BrokenProcessPool as error:
                    if self._until.closed:
                        raise
                    if not left:
                        raise lost(function, error) from error
        raise AssertionError


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
        except InputError as error:
            if not others:
                raise
            raise of_worker(0, count, error) from error
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
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        said.put((rank, no_memory(error)))
        sys.exit(1)


def of_worker(rank: int, count: int, error: InputError) -> InputError:
    """The error, with the worker that had it."""
    return InputError(f"worker {rank} of {count}: {error.where}", error.field, error.came, error.expected, error.fix)


def died(rank: int, count: int, how: str) -> InputError:
    """A worker that is no longer there."""
    fix = "Was it killed, perhaps for its memory? The same command goes on from the last checkpoint."
    return InputError("--workers", f"worker {rank} of {count}", f"an end with {how}", "all to work to the end", fix)


class LostWorker(InputError):
    """A call that has lost its worker each time."""


def lost(function: Callable, error: BaseException) -> LostWorker:
    name, came = getattr(function, "__name__", str(function)), f"a worker that died {TRIES} times ({first_line(error)})"
    return LostWorker("workers", name, came, "a worker that returns", "Does it need more memory than a worker has?")


def first_line(error: BaseException) -> str:
    """What an error says, but for what follows."""
    return str(error).strip().partition("\n")[0]


def out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python had no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def no_memory(error: BaseException) -> InputError:
    """What an error that is `out_of_memory` says to a user."""
    came = str(error).strip().splitlines()[-1] if str(error) else "too little"
    fix = "Raise train.accumulate, set train.recompute=true, or divide the model (--workers, --shard, --experts-over)."
    return InputError("training", "memory", came, "enough for the model and its batch", fix)


def _begin_process(begun: Synchronized, enough: Connection) -> None:
    """The k-th process has the k-th core to itself: threads of its own, Mesa's too, would only be in the others' way.
    When there is enough, the scene under way is of no use any more."""
    with begun.get_lock():
        k, begun.value = begun.value, begun.value + 1
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[k % len(cores)]})
    keep_to_one_thread()
    work_alone()
    _end_when(partial(enough.poll, None))


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
