"""A reader follows an image to the loss through at most nine files."""

import sys
from pathlib import Path

import torch

from sensors import collate as collate_module
from vla.model import DrivingModel
from vla.sentences import sentences_of

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("sensors", "vla", "sim", "policies")


def test_image_to_loss_in_at_most_nine_files(small, make_clip, make_tokens):
    model, clip, tokens = DrivingModel(small), make_clip(small), make_tokens(small, 1)
    collate_module._patch_rays.cache_clear()  # the first clip of a camera takes the whole way
    words, files = sentences_of(small).instruction(clip.instruction), set()  # words have a way of their own

    def seen(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in FOLDERS:
            files.add(str(path.relative_to(ROOT)))

    threads, before = torch.get_num_threads(), sys.getprofile()
    sys.setprofile(seen)
    try:
        window = small.imu_samples, small.imu_rate_hz
        batch = collate_module.collate([clip], small.patch_px, *window, instruct=lambda _: words)
        loss, _ = model.loss(batch, tokens)
    finally:
        sys.setprofile(before)
    print(f"{len(files)} files: {', '.join(sorted(files))}")
    assert loss.isfinite()
    assert torch.get_num_threads() == threads
    assert {"sensors/collate.py", "sensors/camera.py", "vla/model.py"} <= files, "the trace saw too little"
    assert len(files) <= 9
