"""align, pretrain, instruct: a small model goes through all three; what a stage freezes stays as it is to the bit."""

import torch
from test_train import SMALL, weights

import vla.image_tokens
from policies.freezing import freeze
from policies.recipes import load_recipe
from policies.train import Trainer
from vla.checkpoint import save
from vla.image_tokens import ImageTokenizer, ImageTokenizerConfig
from vla.model import DrivingModel

TOKENIZER = ImageTokenizerConfig(image_width=64, image_height=32, codes=32, channels=8)
FEW = ["train.steps=3", "train.spike=0", "train.motion_dropout=0.3"]


def test_each_stage_learns_from_the_one_before_but_for_what_it_freezes(course_dataroot, tmp_path, monkeypatch):
    for name in ("LEAST_USED", "LEAST_PERPLEXITY", "LEAST_PSNR_DB"):  # a real tokenizer takes minutes
        monkeypatch.setattr(vla.image_tokens, name, 0.0)
    save(tmp_path / "codes", ImageTokenizer(TOKENIZER, 1))
    before, start_from = None, []
    for stage in ("align", "pretrain", "instruct"):
        codes = [f"data.image_tokenizer={tmp_path / 'codes'}"] if stage == "pretrain" else []
        recipe = load_recipe(stage, [*SMALL, *FEW, f"data.dataroot={course_dataroot}", *codes, *start_from])
        (tmp_path / stage).mkdir()
        Trainer(recipe, tmp_path / stage).run(progress=False)
        model = DrivingModel(recipe.model, recipe.seed)
        before, after = before or model.state_dict(), weights(tmp_path / stage)
        freeze(model, recipe.train.freeze, stage)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        frozen |= {name for name in before if name.endswith("mlp.bias") and f"{name[:-4]}router.weight" in frozen}
        same = {name for name in before if torch.equal(before[name], after[name])}
        assert frozen <= same
        assert same - frozen <= {"vehicle.signals.0.missing"}, stage  # no clip lacks its speed
        before, start_from = after, [f"train.start_from={tmp_path / stage / 'checkpoint'}"]
