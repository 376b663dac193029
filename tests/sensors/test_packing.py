"""Recordings as packs: what goes in comes out, near and from afar, and what is broken is said."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from made_up_drive import VERSION, record

from sensors import shards
from sensors.errors import BrokenFile, InputError
from sensors.nuscenes_source import NuscenesSource
from sensors.pack_source import PackSource, open_source
from sensors.packing import pack, statistics, verify
from sensors.shards import MANIFEST, Shards, is_pack, read_pack
from sensors.source import check_source

SCENES = 4


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    """Four scenes of three keyframes; one image is missing."""
    path = tmp_path_factory.mktemp("recorded") / "root"
    for number in range(1, SCENES + 1):
        record(path, f"scene-{number:04d}", can=number == 1)
    sorted((path / "samples" / "CAM_BACK").glob("*.jpg"))[1].unlink()
    return path


@pytest.fixture(scope="module")
def packed(dataroot, tmp_path_factory):
    """A shard a scene."""
    path = tmp_path_factory.mktemp("packed") / "pack"
    pack(dataroot, VERSION, path, shard_bytes=1)
    return path


@pytest.fixture
def afar(packed):
    """The same behind a URL."""
    memory = fsspec.filesystem("memory")
    for path in packed.iterdir():
        memory.pipe_file(f"/bucket/pack/{path.name}", path.read_bytes())
    yield "memory://bucket/pack"
    memory.rm("/bucket", recursive=True)


def assert_same_clips(some, others):
    assert some.scenes == others.scenes
    for scene in some.scenes:
        assert np.array_equal(some.frame_times_us(scene), others.frame_times_us(scene))
        for frame in range(len(some.frame_times_us(scene))):
            a, b = some.clip(scene, frame), others.clip(scene, frame)
            for field in ("images", "image_mask", "time_us", "T_world_from_ego", "T_world_from_ego_now"):
                assert np.array_equal(getattr(a, field), getattr(b, field)), field
            assert np.array_equal(a.imu.accel_mps2, b.imu.accel_mps2)
            futures = (source.future(scene, frame).T_world_from_ego for source in (some, others))
            assert np.array_equal(*futures)


def test_clips_of_a_pack_are_those_of_the_dataroot(dataroot, packed):
    source = open_source(packed, VERSION, 2)
    assert isinstance(source, PackSource)
    assert check_source(source) == 3 * SCENES
    assert_same_clips(NuscenesSource(dataroot, VERSION), source)
    assert not source.clip("scene-0001", 1).image_mask.all()  # the missing one is masked, as ever
    assert type(open_source(dataroot, VERSION, 2)) is NuscenesSource


def test_clips_from_afar_are_fetched_once(dataroot, afar, monkeypatch):
    assert is_pack(afar)
    assert_same_clips(NuscenesSource(dataroot, VERSION), open_source(afar, VERSION, 2))
    monkeypatch.setattr(shards, "fetch", None)  # all is near now
    assert_same_clips(NuscenesSource(dataroot, VERSION), open_source(afar, VERSION, 2))


def test_the_nearest_shards_are_kept(afar, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CACHED_BYTES", 2 * read_pack(afar).shards[0].bytes)
    source = open_source(afar, VERSION, 1)
    for scene in source.scenes:
        source.clip(scene, 0)
    kept = {path.stem for path in (tmp_path / "cache" / "vla-drive" / "nuscenes" / "shards").glob("*.tar")}
    assert kept <= {shard.sha256 for shard in source.shards.pack.shards[-2:]}
    assert kept


def test_the_same_recording_gives_the_same_bytes(dataroot, packed, tmp_path):
    again = tmp_path / "again"
    pack(shutil.copytree(dataroot, tmp_path / "moved"), VERSION, again, shard_bytes=1)
    for path in packed.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_unpacked_it_is_a_dataroot_again(dataroot, packed, tmp_path):
    for path in packed.glob("*.tar"):
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "unpacked", filter="data")
    assert_same_clips(NuscenesSource(dataroot, VERSION), NuscenesSource(tmp_path / "unpacked", VERSION))


@pytest.mark.slow
def test_the_devkit_reads_what_was_unpacked(packed, tmp_path):
    for path in packed.glob("*.tar"):
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "unpacked", filter="data")
    devkit = pytest.importorskip("nuscenes.nuscenes").NuScenes(VERSION, str(tmp_path / "unpacked"), verbose=False)
    assert len(devkit.scene) == SCENES
    assert Path(devkit.get_sample_data_path(devkit.sample[0]["data"]["CAM_FRONT"])).is_file()


def test_whole_scenes_lie_in_shards_of_about_the_size_asked_for(dataroot, tmp_path):
    one = pack(dataroot, VERSION, tmp_path / "one")
    assert [list(shard.scenes) for shard in one.shards] == [[f"scene-{n:04d}" for n in range(1, SCENES + 1)]]
    two = pack(dataroot, VERSION, tmp_path / "two", shard_bytes=one.shards[0].bytes // 2 + 1)
    assert len(two.shards) == 2
    assert sum(shard.images for shard in two.shards) == one.shards[0].images == 6 * 3 * SCENES - 1
    figures = statistics(tmp_path / "two").figures
    assert (figures["scenes"], figures["keyframes"], figures["shards"]) == (SCENES, 3 * SCENES, 2)
    assert figures["hours"] == pytest.approx(SCENES * 1.0 / 3600)


def test_verify_names_what_is_broken(packed, tmp_path):
    assert {problem for _, problem in verify(packed)} == {""}
    bad = shutil.copytree(packed, tmp_path / "bad")
    flip(bad / "images-00002.tar", 700)
    (bad / "images-00003.tar").unlink()
    with (bad / "images-00001.tar").open("ab") as stream:
        stream.write(b"more")
    flip(bad / "tables.tar", 2000)
    problems = dict(verify(bad))
    assert [name for name, problem in problems.items() if not problem] == ["images-00000.tar"]
    assert "checksum: came" in problems["images-00002.tar"]
    assert "bad/images-00003.tar: file" in problems["images-00003.tar"]
    assert "bad/tables.tar: checksum" in problems["tables.tar"]


def test_verify_finds_an_image_that_was_packed_broken(dataroot, tmp_path):
    root = shutil.copytree(dataroot, tmp_path / "root")
    path = min((root / "samples" / "CAM_FRONT").glob("*.jpg"))
    path.write_bytes(path.read_bytes()[:-50])
    pack(root, VERSION, tmp_path / "pack")
    assert f"{path.name}: image: came not whole" in dict(verify(tmp_path / "pack"))["images-00000.tar"]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_broken_shard_is_a_broken_file_each_time_and_the_others_are_read(packed, tmp_path):
    bad = shutil.copytree(packed, tmp_path / "bad")
    flip(bad / "images-00001.tar", 700)
    source = open_source(bad, VERSION, 1)
    for _ in range(2):
        with pytest.raises(BrokenFile, match=r"images-00001\.tar: checksum"):
            source.clip("scene-0002", 0)
    assert source.clip("scene-0003", 0).image_mask.any()


def test_what_fails_on_the_way_is_tried_again(afar, monkeypatch):
    source, real, failures = open_source(afar, VERSION, 1), shards.fetch, [OSError("line cut"), None]

    def fails_once(pack, piece, path):
        if failures.pop(0):
            raise BrokenFile(pack.where(piece), "file", "line cut", "a file that can be read")
        return real(pack, piece, path)

    monkeypatch.setattr(shards, "fetch", fails_once)
    assert source.clip("scene-0001", 0).image_mask.any()
    assert failures == []


def test_a_cached_shard_that_rots_is_fetched_again(afar, tmp_path):
    open_source(afar, VERSION, 1).clip("scene-0001", 0)
    [cached] = (tmp_path / "cache" / "vla-drive" / "nuscenes" / "shards").glob("*.tar")
    flip(cached, 700)
    assert open_source(afar, VERSION, 1).clip("scene-0001", 0).image_mask.any()
    cached = read_pack(afar).shards[0]
    assert Shards(read_pack(afar)).open(cached).names


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: m | {"format": "other"}, "format: came other"),
        (lambda m: {k: v for k, v in m.items() if k != "shards"}, "KeyError: 'shards'"),
        (lambda m: m | {"tables": m["tables"] | {"name": "../tables.tar"}}, "name: came '../tables.tar'"),
        (lambda m: m | {"tables": m["tables"] | {"sha256": "../../x"}}, r"SHA-256 \.\./\.\./x"),
        (lambda m: m | {"tables": m["tables"] | {"more": 1}}, "TypeError"),
        (lambda m: [], "TypeError"),
    ],
)
def test_a_bad_manifest_is_refused(packed, tmp_path, change, complaint):
    bad = shutil.copytree(packed, tmp_path / "bad")
    (bad / MANIFEST).write_text(json.dumps(change(json.loads((bad / MANIFEST).read_text()))))
    with pytest.raises(InputError, match=complaint):
        read_pack(bad)


def test_tables_may_not_lead_out_of_the_cache(packed, tmp_path):
    bad = shutil.copytree(packed, tmp_path / "bad")
    with tarfile.open(bad / "tables.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../../escaped"))
    manifest = json.loads((bad / MANIFEST).read_text())
    digest = hashlib.sha256((bad / "tables.tar").read_bytes()).hexdigest()
    manifest["tables"] |= {"sha256": digest, "bytes": (bad / "tables.tar").stat().st_size}
    (bad / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"tables\.tar: content"):
        open_source(bad, VERSION, 1)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("place", ["no/such/pack", "memory://nothing", "unheard-of://x"])
def test_a_pack_that_is_not_there_is_refused(place):
    with pytest.raises(InputError, match=place):
        read_pack(place)


def test_packing_refuses(dataroot, packed, tmp_path):
    with pytest.raises(InputError, match="a pack is there already"):
        pack(dataroot, VERSION, packed)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a folder to pack into"):
        pack(dataroot, VERSION, tmp_path / "file")
    with pytest.raises(InputError, match=r"version: came v1\.0-trainval"):
        open_source(packed, "v1.0-trainval", 1)
    with pytest.raises(InputError, match="dataroot: came a pack"):
        NuscenesSource(packed, VERSION)
    with pytest.raises(InputError, match="scene: came scene-9999"):
        open_source(packed, VERSION, 1).shards.of("scene-9999")


KILLED = """
import os, signal, sys
from pathlib import Path
from sensors import packing
dataroot, version, out, at = *sys.argv[1:4], int(sys.argv[4])
sync, calls = packing._sync, []
def kill_at(path):
    calls.append(path)
    if len(calls) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)
packing._sync = kill_at
packing.pack(Path(dataroot), version, Path(out), shard_bytes=1)
"""


@pytest.mark.parametrize("at", [2, SCENES + 2])
def test_a_kill_leaves_no_pack_and_the_next_one_is_whole(dataroot, packed, tmp_path, at):
    out = tmp_path / "pack"
    command = [sys.executable, "-c", KILLED, str(dataroot), VERSION, str(out), str(at)]
    process = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
    assert process.returncode == -signal.SIGKILL
    assert not is_pack(out)
    (out / "images-00077.tar").write_bytes(b"of another size")
    pack(dataroot, VERSION, out, shard_bytes=1)
    assert (out / MANIFEST).read_bytes() == (packed / MANIFEST).read_bytes()
    assert not (out / "images-00077.tar").exists()
