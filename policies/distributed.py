"""The work of a run on a Ray cluster: episodes as tasks, a training as workers that are watched and begun again.

The only place that knows Ray, and only its core: tasks, actors, placement groups. Ray Train would bring its own
processes, checkpoints and order of data beside those that `policies.training_loop` has, and three more packages.

A cluster's machines need this package in the version that runs here, and a file system on which the run directory and
the data are the same for all. What is sent to them is pickled by this program and unpickled by it alone.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

from policies.workers import (
    TRIES,
    died,
    first_line,
    keep_to_one_thread,
    lost,
    no_memory,
    of_worker,
    out_of_memory,
    processes,
)
from sensors.errors import InputError

LOCAL = "local"
ADDRESSES = f'"{LOCAL}" (this machine, for this command), "auto", HOST:PORT, or ray://HOST:PORT'
MOST_RESTARTS = 3  # of a training
REACH_S, PLACE_S, LAST_WORDS_S = 5.0, 60.0, 5.0
STARTS = 3  # tried on a busy machine
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5)  # and settings, none
SETTINGS = b"\4"  # the type of a frame
STORE_BYTES = 128 << 20  # of a cluster of this machine; rows and recipes are small


@contextmanager
def cluster(address: str, workers: int, talks: bool = False) -> Iterator[ModuleType]:
    """Ray, connected. "local" has room for so many workers, however many cores there are; it ends with the block.

    talks: whether what workers print is printed here.
    """
    ray = _ray()
    try:
        _connect(ray, address, workers, talks)
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: ModuleType, address: str, workers: int, talks: bool) -> None:
    how = {"log_to_driver": talks, "logging_level": "ERROR", "configure_logging": False}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        how |= {"num_cpus": workers, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    else:
        _reach(address)
        if address.startswith("ray://"):
            _require_client()
    for left in reversed(range(STARTS if address == LOCAL else 1)):
        try:
            ray.init(address=address, **how)
            return
        except Exception as error:  # Ray raises this very class when a busy machine does not start it in half a minute
            ray.shutdown()
            if not left:
                came = f"{address} ({first_line(error)})"
                fix = "Is it up, and of the same Ray? Where it asks for a token, set RAY_AUTH_MODE=token."
                raise InputError("ray", "--address", came, ADDRESSES, fix) from error


def _ray() -> ModuleType:
    if find_spec("ray") is None:
        fix = "Install it: pip install -c constraints.txt -e '.[ray]', here and on the cluster's machines."
        raise InputError("ray", "package", "none", "ray, for --address", fix)
    import ray

    return ray


def _require_client() -> None:
    if find_spec("grpc") is None:
        fix = "Install it: pip install -c constraints.txt -e '.[ray]'; or give HOST:PORT, on a machine of the cluster."
        raise InputError("ray", "package", "no grpcio", "grpcio, for an --address ray://HOST:PORT", fix)


def _reach(address: str) -> None:
    """An InputError if nobody listens at HOST:PORT, or who does is no gRPC server: Ray would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not colon or not port.isdigit():
        raise InputError("ray", "--address", address, ADDRESSES)
    try:
        with socket.create_connection((host, int(port)), REACH_S) as there:
            if os.environ.get("RAY_USE_TLS", "0") != "1":
                _require_grpc(there)
    except OSError as error:
        fix = "Is the cluster up? `ray start --head` begins one; ray:// takes the port of its client server, 10001."
        raise InputError("ray", "--address", f"{address} ({error})", "a cluster that can be reached", fix) from error


def _require_grpc(there: socket.socket) -> None:
    """An OSError unless HTTP/2's greeting is answered by its settings, as gRPC does."""
    there.sendall(GREETING)
    if there.recv(4)[3:] != SETTINGS:
        raise OSError("it does not answer as Ray does")


# Episodes ----------------------------------------------------------------------------------------


@contextmanager
def sharing(workers: int, address: str | None = None) -> Iterator[Executor | None]:
    """Who shares calls: with an address so many processes of a cluster, else `policies.workers.processes`.

    A call whose process is lost is made again elsewhere, so calls have to be repeatable; what each returns comes once.
    """
    if address is None:
        with processes(workers) as executor:
            yield executor
    else:
        with cluster(address, workers) as ray, _Tasks(ray, workers) as executor:
            yield executor


class _Tasks(Executor):
    """One thread here waits for each task there: as many are under way as there are workers, and nothing piles up."""

    def __init__(self, ray: ModuleType, workers: int):
        self._ray, self._threads = ray, ThreadPoolExecutor(workers)
        self._task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_call)

    def submit(self, function: Callable, /, *arguments: object) -> Future:
        return self._threads.submit(self._result, function, arguments)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)

    def __exit__(self, *error: object) -> None:
        self.shutdown(cancel_futures=True)

    def _result(self, function: Callable, arguments: tuple) -> object:
        errors = self._ray.exceptions
        try:
            return self._ray.get(self._task.remote(function, arguments))
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.OutOfMemoryError as error:
            raise no_memory(error) from error
        except errors.WorkerCrashedError as error:
            raise lost(function, error) from error


def _call(function: Callable, arguments: tuple) -> object:
    keep_to_one_thread()
    return function(*arguments)


# A training --------------------------------------------------------------------------------------


def supervise(
    address: str, workers: int, work: Callable, *arguments: object, gpus: bool = False, talks: bool = False
) -> tuple[dict, list[dict]]:
    """`work(rank, meeting, *arguments)` in so many processes of a cluster, all at once.

    Returns what the first one returned, and why they had to be begun again: if one is lost all are, at most
    MOST_RESTARTS times, and `work` is expected to go on from its last checkpoint. What a worker has against its input,
    or memory that does not suffice, is an InputError that names it.
    """
    restarts: list[dict] = []
    with cluster(address, workers, talks) as ray:
        group = _placed(ray, address, workers, gpus)
        while True:
            members = _members(ray, group, workers, gpus)
            try:
                return _all_of(ray, members, work, arguments), restarts
            except _Lost as one:
                if len(restarts) == MOST_RESTARTS:
                    raise died(one.rank, workers, f"{one.how}, after {MOST_RESTARTS} restarts") from one
                restarts.append({"worker": one.rank, "how": one.how})
                print(f"worker {one.rank} of {workers} is lost ({one.how}): all begin again", file=sys.stderr)
            finally:
                for member in members:
                    ray.kill(member)


class _Lost(Exception):
    def __init__(self, rank: int, how: str):
        super().__init__(rank, how)
        self.rank, self.how = rank, how


class _Member:
    """One of the processes that train together."""

    def meeting(self) -> str:
        """Where the others find this one."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{_own_address()}:{free.getsockname()[1]}"

    def run(self, rank: int, meeting: str, work: Callable, arguments: tuple) -> object:
        keep_to_one_thread()
        return work(rank, meeting, *arguments)


def _own_address() -> str:
    import ray

    return ray.util.get_node_ip_address()


def _placed(ray: ModuleType, address: str, workers: int, gpus: bool) -> object:
    """Room for all workers; a cluster without is an InputError."""
    bundle = {"CPU": 1} | ({"GPU": 1} if gpus else {})
    group = ray.util.placement_group([bundle] * workers)
    if not group.wait(PLACE_S):
        there = ray.cluster_resources()
        what = "GPU" if gpus else "CPU"
        came, expected = f"{there.get(what, 0):g} {what}s", f"{workers}, one a worker"
        raise InputError("ray", address, came, expected, "Add machines, or ask for fewer --workers.")
    return group


def _members(ray: ModuleType, group: object, workers: int, gpus: bool) -> list:
    member = ray.remote(num_cpus=1, num_gpus=int(gpus), max_restarts=0)(_Member)
    strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
    return [
        member.options(scheduling_strategy=strategy(group, placement_group_bundle_index=rank)).remote()
        for rank in range(workers)
    ]


def _all_of(ray: ModuleType, members: list, work: Callable, arguments: tuple) -> dict:
    """What the first of the members returns, once all have. The first error that explains the others is raised: a
    process that is lost makes those that wait for it fail as well."""
    errors = ray.exceptions
    try:
        meeting = ray.get(members[0].meeting.remote())
    except errors.RayActorError as error:
        raise _Lost(0, first_line(error)) from error
    waiting = {m.run.remote(rank, meeting, work, arguments): rank for rank, m in enumerate(members)}
    result, failed, until = {}, None, None
    while waiting and (until is None or time.monotonic() < until):
        for done in ray.wait(list(waiting), timeout=1.0)[0]:
            rank = waiting.pop(done)
            try:
                returned = ray.get(done)
                result = returned if rank == 0 else result
            except errors.RayActorError as error:
                raise _Lost(rank, first_line(error)) from error
            except errors.RayTaskError as error:
                if isinstance(error.cause, InputError):
                    raise of_worker(rank, len(members), error.cause) from error
                if out_of_memory(error.cause):
                    raise of_worker(rank, len(members), no_memory(error.cause)) from error
                failed, until = failed or error, until or time.monotonic() + LAST_WORDS_S
    if failed is not None:
        raise failed
    return result
