"""Measurements in processes of their own, each on one core.

A job is a function of a module that is run as a program: it gets `ready`, which it may call once when it is warm, and
keyword arguments, and returns what JSON can hold. Jobs that run together start to measure together.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from sensors.errors import InputError

LIMIT_S = 600
# One thread each for linear algebra, OpenCV's loops and Mesa's rasteriser: what is measured is one core.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}


def run_pinned(module: str, jobs: Sequence[tuple[str, dict]]) -> list:
    """Results of jobs (name, arguments) of a module, all at the same time, the k-th alone on the k-th core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(jobs) > len(cores):
        raise InputError("bench", "cores", len(cores), f"{len(jobs)}, one for each process")
    children = []
    try:
        for core, (name, arguments) in zip(cores, jobs, strict=False):
            words = [sys.executable, "-m", module, str(core), name, json.dumps(arguments)]
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            children.append(subprocess.Popen(words, text=True, env=os.environ | ONE_THREAD, **pipes))
        if len(children) > 1:
            for child in children:
                child.stdout.readline()  # says that it is ready, or is at its end
        return [_result(child, name) for child, (name, _) in zip(_released(children), jobs, strict=True)]
    finally:
        for child in children:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout, child.stderr):
                pipe.close()


def serve(jobs: dict[str, Callable]) -> None:
    """The program's main: one job on one core, its result as the last line of the output."""
    core, name, arguments = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})

    def ready() -> None:
        print("ready", flush=True)
        sys.stdin.readline()

    print(json.dumps(jobs[name](ready=ready, **json.loads(arguments))), flush=True)


def _released(children: list[subprocess.Popen]) -> list[subprocess.Popen]:
    for child in children:
        try:
            child.stdin.write("go\n")
            child.stdin.flush()
        except BrokenPipeError:
            pass  # it has failed; its result says why
    return children


def _result(child: subprocess.Popen, name: str):
    out, err = child.communicate(timeout=LIMIT_S)
    if child.returncode:
        raise RuntimeError(f"the measurement {name} failed:\n{err.strip()[-2000:]}")
    return json.loads(out.strip().splitlines()[-1])
