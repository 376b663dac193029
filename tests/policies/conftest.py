"""What the tests of this folder share: an untrained checkpoint, a small recording by the expert."""

import pytest
import torch
from small_recording import SCENE_STEPS, SCENES, SMALL_IMAGE

from policies.record import record
from policies.runs import Run
from policies.shoot import Recording
from vla.checkpoint import save
from vla.config import ModelConfig
from vla.model import DrivingModel


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models as small as these are not worth a second thread, and on a busy machine each waits for the other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save(path, DrivingModel(ModelConfig.tiny()))
    return path


@pytest.fixture(scope="session")
def course_dataroot(tmp_path_factory):
    """Three scenes of twelve keyframes at 64 x 32 px in nuScenes format, courses 1000 to 1002."""
    dataroot = tmp_path_factory.mktemp("recording") / "course"
    run = Run.create("record", dataroot, {}, [1000])
    recording = Recording(dataroot, "v1.0-mini", image_size=SMALL_IMAGE, keyframes=SCENE_STEPS)
    record(run, recording, SCENES * SCENE_STEPS, 1000, progress=False)
    assert run.whole
    return dataroot
