"""Checkpoints of a model that no worker has all of: every worker writes its own shards, while the training goes on.

`step-00000040/` is a folder of safetensors, one file a worker, which say which part of which tensor they hold
(torch's distributed checkpoint, DCP, in its safetensors form), and a `checkpoint.json` as `vla.manifest` has it. It is
written under a name with a dot and renamed when all is on the disk, so whatever is killed when, the last one is whole.
Any number of workers reads it: each takes from all files what it holds, and one alone takes all.
"""

import hashlib
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import Tensor, distributed
from torch.distributed import checkpoint as dcp

from sensors.errors import InputError
from vla.manifest import FORMAT, MANIFEST, read_manifest, sealed, sync_folder, write_file
from vla.parallel import Replicas

PIECE = 1 << 24  # bytes read at a time for a checksum


class ShardWriter:
    """Writes one checkpoint after the other into a folder that all workers see; all call alike.

    manifest: what `checkpoint.json` is to say beside its files.
    """

    def __init__(self, folder: Path, replicas: Replicas):
        self.folder, self._first = folder, replicas.rank == 0
        self._group = distributed.new_group(backend="gloo")  # the training goes on in its own meanwhile
        self._thread = ThreadPoolExecutor(1)
        self._under_way: Future | None = None

    def write(self, step: int, tensors: dict[str, Tensor], manifest: dict) -> None:
        """Copy the tensors (DTensors or alike on all workers) now, write them in the background."""
        self.finish()
        partial = self.folder / f".{_name(step)}.partial"
        if self._first:  # nobody writes before it has planned with the others
            shutil.rmtree(partial, ignore_errors=True)
        writer = dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True)
        written = dcp.async_save(
            {name: t.detach().reshape(1) if t.ndim == 0 else t.detach() for name, t in tensors.items()},
            storage_writer=writer,
            process_group=self._group,
        )
        self._under_way = self._thread.submit(self._complete, written, partial, step, manifest)

    def finish(self) -> None:
        """Wait until the last one is on the disk; what could not be written is an InputError."""
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return
        try:
            under_way.result()
        except (OSError, dcp.api.CheckpointException) as error:
            came = str(error).strip().splitlines()[-1]
            fix = "Is the disk full? Do all workers see the folder?"
            raise InputError(self.folder, "checkpoint", came, "a place that can be written", fix) from error

    def _complete(self, written: Future, partial: Path, step: int, manifest: dict) -> None:
        """When all have written, the first one makes it the newest and removes those before."""
        written.result()
        if not self._first:
            return
        files = sorted(partial.glob("*.safetensors"))
        entries = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256_of_file(file)} for file in files}
        write_file(partial / MANIFEST, sealed({"format": FORMAT, **manifest, "files": entries}))
        sync_folder(partial)
        older = _all(self.folder)
        partial.rename(self.folder / _name(step))
        sync_folder(self.folder)
        for path in older:
            if path.name != _name(step):
                shutil.rmtree(path, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step in a folder, if there is one."""
    return max(_all(folder), default=None)


def read_shards(path: Path, into: dict[str, Tensor], replicas: Replicas) -> None:
    """Read tensors in place, of each what this worker holds; all call alike. A file that is not as it was written, or a
    tensor of another shape, is an InputError."""
    files = read_manifest(path / MANIFEST)["files"]
    for name in sorted(files)[replicas.rank :: replicas.count]:  # each worker checks some of them
        _check_file(path / name, files[name])
    reader = dcp.HuggingFaceStorageReader(str(path))
    there = reader.read_metadata().state_dict_metadata
    for name, tensor in into.items():
        came = list(there[name].size) if name in there else "nothing"
        if came != list(tensor.shape):
            raise InputError(path, name, came, list(tensor.shape), "It is of another model.")
    with warnings.catch_warnings():  # that there is one process is meant
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        dcp.load(into, storage_reader=reader, no_dist=replicas.count == 1)


def require_mesh(path: Path, came: dict, mine: dict) -> None:
    """An InputError if a checkpoint was written by another arrangement of workers."""
    if came != mine:
        words = [", ".join(f"{key} {value}" for key, value in mesh.items()) for mesh in (came, mine)]
        fix = "Say --reshard to divide it anew; losses then agree to rounding, no longer to the bit."
        raise InputError(path, "mesh", words[0], words[1], fix)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _all(folder: Path) -> Sequence[Path]:
    return sorted(path.parent for path in folder.glob(f"step-*/{MANIFEST}"))


def _check_file(path: Path, entry: dict) -> None:
    try:
        size, digest = path.stat().st_size, None
        if size == entry["bytes"]:
            digest = _sha256_of_file(path)
    except OSError as error:
        raise InputError(path, "file", error.strerror, "a readable file, as checkpoint.json says") from error
    if digest is None:
        raise InputError(
            path, "size", f"{size} bytes", f"{entry['bytes']} bytes", "Copy it again, or begin in a new --out folder."
        )
    if digest != entry["sha256"]:
        raise InputError(path, "sha256", digest, entry["sha256"], "Copy it again, or begin in a new --out folder.")


def _sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()
