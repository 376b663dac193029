"""Spawned processes that share the work of a run, each on a core of its own."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event

import cv2
import threadpoolctl


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


def _begin_process(begun: Synchronized, enough: Event) -> None:
    """The k-th process has the k-th core to itself: threads of its own, Mesa's too, would only be in the others' way.
    An interrupt is the parent's to answer. When there is enough, or the parent was killed, the scene under way is of no
    use any more."""
    with begun.get_lock():
        k, begun.value = begun.value, begun.value + 1
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[k % len(cores)]})
    os.environ["LP_NUM_THREADS"] = "1"
    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1, "blas")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for over in (enough.wait, multiprocessing.parent_process().join):
        threading.Thread(target=_end_when, args=(over,), daemon=True).start()


def _end_when(over: Callable[[], object]) -> None:
    over()
    os._exit(0)
