"""Episodes and trainings on a Ray cluster: the same figures as without, whoever is killed.

One cluster, of this machine, serves all slow tests; a worker is killed by itself, once, at a time that is known.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_train import small_recipe, weights

from policies import distributed
from policies.baselines import ConstantVelocity
from policies.cli import main
from policies.distributed import sharing, supervise
from policies.rollout import drive
from policies.runs import Run
from policies.train import Trainer, Workers, train, train_one
from policies.workers import LostWorker, companions
from sensors.errors import InputError
from vla.parallel import Replicas
from vla.sharding import Division


@pytest.fixture(scope="module", autouse=True)
def token():
    """Of the cluster below, for nobody else; Ray looks for one when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_that_nobody_answers_is_refused(address):
    pytest.importorskip("ray", reason="needs the [ray] extra")
    with (
        pytest.raises(InputError, match=rf"--address: came {address} \(.*refused\), expected a cluster"),
        sharing(2, address),
    ):
        pass


@pytest.mark.parametrize("says", [b"", b"SSH-2.0-a server of another kind"])
def test_a_port_that_is_not_rays_is_refused_within_seconds(says, monkeypatch):
    pytest.importorskip("ray", reason="needs the [ray] extra")
    monkeypatch.setattr(distributed, "REACH_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        threading.Thread(target=_says, args=(server, says), daemon=True).start()
        why = "timed out" if not says else "it does not answer as Ray does"
        with pytest.raises(InputError, match=rf"--address: came {address} \({why}\)"), sharing(2, address):
            pass


def _says(server: socket.socket, words: bytes) -> None:
    client, _ = server.accept()
    with client:
        client.sendall(words)
        time.sleep(2)


def test_the_client_of_ray_needs_grpc(monkeypatch):
    monkeypatch.setattr(distributed, "_reach", lambda address: None)
    monkeypatch.setattr(distributed, "find_spec", lambda name: None if name == "grpc" else name)
    monkeypatch.setattr(distributed, "_ray", lambda: SimpleNamespace(shutdown=lambda: None))
    with pytest.raises(InputError, match=r"package: came no grpcio, .*\[ray\]"), sharing(2, "ray://127.0.0.1:10001"):
        pass


def test_what_is_no_address_is_refused():
    pytest.importorskip("ray", reason="needs the [ray] extra")
    with pytest.raises(InputError, match='--address: came somewhere, expected "local"'), sharing(2, "somewhere"):
        pass


def test_ray_that_is_not_installed_is_asked_for(monkeypatch):
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"package: came none, expected ray, .*\[ray\]"), sharing(2, "local"):
        pass


def _has_no_memory(rank, meeting):
    replicas = Replicas.join(rank, 2, meeting)
    try:
        if rank == 1:
            raise MemoryError("9.9 GB")
        replicas.average([torch.ones(1)])
    finally:
        replicas.leave()


@pytest.mark.timeout(120)
def test_a_worker_without_memory_is_named():
    with (
        pytest.raises(InputError, match=r"worker 1 of 2: training: memory: came 9\.9 GB.*--shard"),
        companions(2, _has_no_memory) as meeting,
    ):
        _has_no_memory(0, meeting)


@pytest.mark.timeout(120)
def test_a_call_whose_process_is_killed_is_made_again_and_comes_once(tmp_path):
    with sharing(2) as executor:
        calls = [executor.submit(_dies_once, tmp_path, k) for k in range(6)]
        with pytest.raises(InputError, match="call: number: came 5"):
            calls[5].result()
        assert [call.result() for call in calls[:5]] == [0, 1, 2, 3, 4]


def _dies(k: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _takes_its_time(k: int) -> int:
    time.sleep(1.0)
    return k


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_call_that_always_loses_its_process_says_so_and_costs_no_other():
    with sharing(2) as executor:
        first, dies, *others = (executor.submit(_dies if k == 1 else _takes_its_time, k) for k in range(4))
        with pytest.raises(LostWorker, match=r"_dies: came a worker that died 4 times \(.*memory"):
            dies.result()
        assert [call.result() for call in (first, *others)] == [0, 2, 3]


class DiesIn(ConstantVelocity):
    """Takes its process with it in one episode, as a simulator might."""

    def reset(self, seed: int) -> None:
        if seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_episode_that_ends_its_process_fails_and_the_others_are_kept(tmp_path):
    run = Run.create("drive", tmp_path / "run", {}, [0, 1, 2])
    drive(run, [DiesIn()], [0, 1, 2], 1.0, (64, 36), videos=0, progress=False, workers=2)
    assert [bool(row["log"]) for row in run.summary["episodes"]] == [True, False, True]
    assert run.summary["scenes"] == {"asked": 3, "finished": 2, "failed": 1}
    assert "a worker that died 4 times" in run.summary["episodes"][1]["error"]


def _refuses(rank, meeting, who):
    replicas = Replicas.join(rank, 2, meeting)
    try:
        if rank == who:
            raise InputError("pack", "checksum", "ab", "cd")
        replicas.average([torch.ones(1)])
    finally:
        replicas.leave()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("who", [0, 1])
def test_a_worker_that_is_given_what_it_cannot_use_is_named(who, capfd):
    with (
        pytest.raises(InputError, match=f"worker {who} of 2: pack: checksum: came ab, expected cd"),
        companions(2, _refuses, who) as meeting,
    ):
        _refuses(0, meeting, who)
    assert "InputError" not in capfd.readouterr().err  # said once, by who hears of it


# On a cluster ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address():
    """A cluster of eight CPUs, however many there are. Told its ports, Ray does not give up where starting is slow."""
    pytest.importorskip("ray", reason="needs the [ray] extra")
    for _ in range(3):
        node, port = _node()
        if any("Ray runtime started" in line for line in node.stdout):
            break
        node.wait()
    yield f"127.0.0.1:{port}"
    node.terminate()
    node.communicate(timeout=60)


def _node() -> tuple[subprocess.Popen, int]:
    names = ("port", "dashboard-agent-grpc-port", "dashboard-agent-listen-port", "metrics-export-port")
    names = (*names, "runtime-env-agent-port")
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in names]
        for probe in probes:
            probe.bind(("", 0))
        ports = [probe.getsockname()[1] for probe in probes]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=8"]
    command += [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    command += ["--include-dashboard=false", "--disable-usage-stats", f"--object-store-memory={128 << 20}"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}  # what is called there stands here
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env), ports[0]


def _dies_once(folder: Path, k: int) -> int:
    here = folder / f"{k}.tried"
    first = not here.exists()
    here.touch()
    if k == 3 and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if k == 5:
        raise InputError("call", "number", k, "another")
    return k


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_call_whose_worker_is_killed_is_made_again_and_comes_once(address, tmp_path):
    with sharing(2, address) as executor:
        calls = [executor.submit(_dies_once, tmp_path, k) for k in range(8)]
        with pytest.raises(InputError, match="call: number: came 5"):
            calls[5].result()
        assert [call.result() for k, call in enumerate(calls) if k != 5] == [0, 1, 2, 3, 4, 6, 7]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_drive_on_a_cluster_has_the_scores_of_one_process(address, tmp_path):
    arguments = ["drive", "--policy", "town-expert", "--suite", "town-smoke", "--episodes", "3", "--seconds", "8"]
    arguments += ["--videos", "0", "--clips", "0"]
    for name, more in (("one", ["--workers", "1"]), ("ray", ["--workers", "2", "--address", address])):
        assert main([*arguments, "--image-size", "64x32", "--quiet", *more, "--out", str(tmp_path / name)]) == 0
    one, ray = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "ray"))
    assert one["metrics"] == ray["metrics"]
    assert [row["name"] for row in one["episodes"]] == [row["name"] for row in ray["episodes"]]


def _killed(rank: int, meeting: str, marker: Path, *arguments: object) -> dict:
    """A training in which worker 1 is killed in step 7, the first time."""
    one_step = Trainer._one_step

    def deadly(self):
        if rank == 1 and self.step == 7 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return one_step(self)

    Trainer._one_step = deadly
    try:
        return train_one(rank, meeting, *arguments)
    finally:
        Trainer._one_step = one_step


def _losses(path: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (path / "train.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("division", [Division(), Division(shard=True, experts=2)], ids=["replicas", "divided"])
def test_a_training_whose_worker_is_killed_ends_as_if_it_had_not_been(address, course_dataroot, tmp_path, division):
    recipe = small_recipe(course_dataroot, "train.steps=10", "train.checkpoint_every=4", "train.ema=0.9")
    workers = Workers(2, division)
    train(recipe, tmp_path / "whole", progress=False, workers=workers)
    (tmp_path / "killed").mkdir()
    arguments = (tmp_path / "marker", workers, recipe, tmp_path / "killed", False)
    told, restarts = supervise(address, 2, _killed, *arguments)
    assert [restart["worker"] for restart in restarts] == [1]
    assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")
    assert (
        told["metrics"]["val.loss"]
        == json.loads((tmp_path / "whole" / "summary.json").read_text())["metrics"]["val.loss"]
    )
    mine, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert all(mine[name].equal(theirs[name]) for name in theirs)


def _has_none_left(rank, meeting):
    if rank == 1:
        raise MemoryError("9.9 GB")
    time.sleep(600)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_of_a_cluster_without_memory_is_named(address):
    with pytest.raises(InputError, match=r"worker 1 of 2: training: memory: came 9\.9 GB"):
        supervise(address, 2, _has_none_left)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_eight_workers_go_through_three_stages(address, course_dataroot, tmp_path):
    """Each begins with what the one before has learned; batches of eight, a clip each; weights and experts divided."""
    more, before = ["train.batch_size=8", "train.steps=2", "train.motion_dropout=0.3"], []
    for stage, frozen in (("align", "[encoder.]"), ("pretrain", "[]"), ("instruct", "[embedding.]")):
        recipe = [*more, *before, f"train.freeze={frozen}"]
        recipe = small_recipe(course_dataroot, *recipe)
        report = train(recipe, tmp_path / stage, False, Workers(8, Division(shard=True, experts=4)), address)
        assert report.is_file()
        before = [f"train.start_from={tmp_path / stage / 'checkpoint'}"]
    assert len(_losses(tmp_path / "instruct")) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_shards_are_gone_on_from_by_another_arrangement_if_asked(course_dataroot, tmp_path):
    """A training of two workers that share every weight, its end undone, goes on in one process."""
    recipe = small_recipe(course_dataroot, "train.steps=4", "train.checkpoint_every=2")
    train(recipe, tmp_path, progress=False, workers=Workers(2, Division(shard=True)))
    expected = weights(tmp_path)
    for file in (tmp_path / "checkpoint").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"mesh: came workers 2, shard True, .* expected workers 1, .*--reshard"):
        train(recipe, tmp_path, progress=False)
    train(recipe, tmp_path, progress=False, workers=Workers(reshard=True))
    trainer = Trainer(recipe, tmp_path, reshard=True)
    assert trainer.resume()
    assert trainer.step == 4
    assert all(tensor.equal(expected[name]) for name, tensor in trainer.model.state_dict().items())
