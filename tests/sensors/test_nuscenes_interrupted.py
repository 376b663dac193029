"""What an interrupted recording leaves: complete scenes, and nothing that a later run would take for whole."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_drive import START_US, VERSION, bus, keyframe, mask, record, rig
from nuscenes.nuscenes import NuScenes

from sensors import nuscenes_recorder
from sensors.errors import InputError
from sensors.nuscenes_index import NuscenesIndex
from sensors.nuscenes_source import NuscenesSource
from sensors.nuscenes_writer import NuscenesWriter, map_png
from sensors.source import check_source


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    dataroot = tmp_path_factory.mktemp("undisturbed")
    record(dataroot, "scene-0001", keyframes=2)
    record(dataroot, "scene-0002", keyframes=2)
    return dataroot


def contents(dataroot):
    return {str(p.relative_to(dataroot)): p.read_bytes() for p in dataroot.rglob("*") if p.is_file()}


def load(dataroot):
    return NuScenes(VERSION, str(dataroot), verbose=False)


def test_a_second_recorder_is_rejected(tmp_path):
    writer = NuscenesWriter(tmp_path, VERSION)
    with writer.scene("scene-0001", "", rig(), "testtown", mask()) as scene:
        with pytest.raises(InputError, match="another recording"):
            record(tmp_path, "scene-0002")
        scene.keyframe(*keyframe(0))
    assert writer.scenes == ("scene-0001",)


def test_an_error_in_the_block_discards_the_scene(tmp_path):
    record(tmp_path, "scene-0001", keyframes=1)
    before = contents(tmp_path)
    with (  # noqa: PT012 - the recorder is closed by the error
        pytest.raises(RuntimeError, match="engine"),
        NuscenesWriter(tmp_path, VERSION).scene("scene-0002", "", rig(), "testtown", mask()) as scene,
    ):
        scene.keyframe(*keyframe(0, START_US + 1))
        raise RuntimeError("engine")
    assert contents(tmp_path) == before


def test_a_scene_that_a_killed_process_began_is_taken_anew(tmp_path, undisturbed):
    writer = NuscenesWriter(tmp_path, VERSION)
    with writer.session():
        for images in (1, 2):  # who is killed after one keyframe comes to no end, and leaves its files
            scene = writer.recorder("scene-0001", rig())
            for k in range(images):
                scene.keyframe(*keyframe(k))
        scene.can(*bus(2))
        writer.commit([scene.finish("a left curve", "testtown", map_png(mask()))])
    record(tmp_path, "scene-0002", keyframes=2)
    assert contents(tmp_path) == contents(undisturbed)


def count_writes(tmp_path, monkeypatch):
    """How many times recording one scene of two keyframes writes to a file (each is a place to fail)."""
    calls = []
    real = os.write
    monkeypatch.setattr(nuscenes_recorder.os, "write", lambda *file: (calls.append(file), real(*file))[1])
    record(tmp_path, "scene-0001", keyframes=2)
    monkeypatch.setattr(nuscenes_recorder.os, "write", real)
    return len(calls)


def test_a_full_disk_leaves_only_complete_scenes(tmp_path, monkeypatch):
    """The disk fills at the first, the second, ... and the last write of a scene; each time we make room and go on."""
    real, total = os.write, count_writes(tmp_path / "count", monkeypatch)
    dataroot = tmp_path / "data"
    record(dataroot, "scene-0001", keyframes=2)
    assert total > 30
    kept = 0
    for fail_at in range(0, total, 3):
        before, scenes = contents(dataroot), NuscenesWriter(dataroot, VERSION).scenes
        calls = iter(range(10**6))

        def full(handle, content, calls=calls, fail_at=fail_at):
            if next(calls) == fail_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(handle, content)

        monkeypatch.setattr(nuscenes_recorder.os, "write", full)
        with pytest.raises(InputError, match=r"No space left on device, expected room to write it\. scene-0002 was"):
            record(dataroot, "scene-0002", keyframes=2)
        monkeypatch.setattr(nuscenes_recorder.os, "write", real)
        if NuscenesWriter(dataroot, VERSION).scenes == scenes:
            assert contents(dataroot) == before
            kept += 1
    assert kept >= total // 3
    if "scene-0002" not in NuscenesWriter(dataroot, VERSION).scenes:
        record(dataroot, "scene-0002", keyframes=2)
    assert check_source(NuscenesSource(dataroot, VERSION)) == 4
    assert len(load(dataroot).sample) == 4


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import made_up_drive
name, at, real, calls = {name!r}, {at!r}, getattr(os, {name!r}), iter(range(10**6))
def kill(*arguments):
    if next(calls) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(os, name, kill)
made_up_drive.record(Path({dataroot!r}), "scene-0002", keyframes=2)
"""


@pytest.mark.parametrize(
    ("name", "at"),
    [("write", 5), ("replace", 0), ("replace", 9), ("write", 25), ("replace", 18), ("replace", 10**6)],
    ids=["keyframe", "before moving", "while moving", "tables", "before the link is turned", "not at all"],
)
def test_a_kill_leaves_only_complete_scenes(undisturbed, tmp_path, name, at):
    record(tmp_path, "scene-0001", keyframes=2)
    before = contents(tmp_path)
    paths = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]
    code = KILLED.format(paths=paths, name=name, at=at, dataroot=str(tmp_path))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, capture_output=True, text=True)
    survived = at == 10**6
    assert done.returncode == (0 if survived else -signal.SIGKILL), done.stderr
    scenes = ("scene-0001", "scene-0002") if survived else ("scene-0001",)
    assert NuscenesIndex(tmp_path, VERSION).scenes == scenes
    assert check_source(NuscenesSource(tmp_path, VERSION)) == 2 * len(scenes)
    devkit = load(tmp_path)
    assert len(devkit.sample) == 2 * len(scenes)
    if survived:
        return
    tables = {path: content for path, content in contents(tmp_path).items() if path.startswith(f".{VERSION}.000001")}
    assert tables == {path: content for path, content in before.items() if path in tables}
    assert NuscenesWriter(tmp_path, VERSION).free_scene_name() == "scene-0002"
    # A later run clears what was left and appends; the result is that of a run nothing happened to.
    record(tmp_path, "scene-0002", keyframes=2)
    assert contents(tmp_path) == contents(undisturbed)
    assert check_source(NuscenesSource(tmp_path, VERSION)) == 4
    assert not list(tmp_path.glob(f".{VERSION}.staging*"))
