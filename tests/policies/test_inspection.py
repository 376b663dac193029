"""The look inside, end to end: checkpoint in, one page out."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from policies.cli import main
from policies.noise import noise_clip
from policies.transforms import to_batch
from vla.checkpoint import is_image_tokenizer, save
from vla.config import ModelConfig
from vla.image_tokens import ImageTokenizer, ImageTokenizerConfig
from vla.model import DrivingModel

SMALL = ModelConfig(
    image_width=64,
    image_height=32,
    cameras=3,
    encoder_width=32,
    encoder_heads=2,
    encoder_hidden=32,
    scene_tokens=4,
    width=32,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=16,
    dense_hidden=32,
    experts=4,
    expert_hidden=16,
    plan_steps=4,
)
TOKENIZER = ImageTokenizerConfig(image_width=64, image_height=32, codes=32, channels=8)


class Outline(HTMLParser):
    """Headings, and how often each tag occurs; every tag is closed in its turn."""

    VOID = ("meta", "link", "br", "hr", "img", "input")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.headings, self.count = [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.open += [] if tag in self.VOID else [tag]

    def handle_startendtag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspection")
    save(folder / "model", DrivingModel(SMALL, 1))
    save(folder / "reader", DrivingModel(replace(SMALL, image_input="both", image_codes=32), 1))
    save(folder / "tokenizer", ImageTokenizer(TOKENIZER, 1))
    return folder


def test_a_driving_model_as_a_page(checkpoints, tmp_path, capsys):
    assert main(["inspect", str(checkpoints / "model"), "--out", str(tmp_path / "deep" / "page.html")]) == 0
    figures = dict(line.split() for line in capsys.readouterr().out.splitlines() if not line.startswith("page"))
    paid = [float(value) for name, value in figures.items() if name.startswith("attention.action.")]
    assert sum(paid) == pytest.approx(1, abs=0.01)
    text = (tmp_path / "deep" / "page.html").read_text()
    outline = Outline(text)
    assert not outline.open
    assert [h.split(":")[0] for h in outline.headings] == [
        "Attention of the plan",
        "Gradient",
        "Pose",
        "Time",
        "Experts",
    ]
    parts = len(("scene", "imu", "vehicle", "command", "instruction", "action"))
    bars = (SMALL.layers + 1) * parts + parts  # attention and gradient
    cells = SMALL.cameras * SMALL.patches
    assert outline.count["rect"] == bars + cells + (SMALL.layers - 1) * SMALL.experts
    assert outline.count["polyline"] == 3
    assert not re.search(r"(?:src|href)=\"(?!data:)|https?://|url\(", text), "the page needs something else"
    assert not re.search(r"\bnan\b", text)


def test_a_model_that_reads_codes_needs_its_tokenizer(checkpoints, tmp_path, capsys):
    reader, page = str(checkpoints / "reader"), tmp_path / "page.html"
    assert main(["inspect", reader, "--out", str(page)]) == 2
    assert "--tokenizer" in capsys.readouterr().err
    assert main(["inspect", reader, "--tokenizer", str(checkpoints / "tokenizer"), "--out", str(page)]) == 0
    assert "codebook.used" in capsys.readouterr().out
    assert Outline(page.read_text()).headings[-1] == "Codebook"


def test_an_image_tokenizer_as_a_page(checkpoints, tmp_path, capsys):
    assert is_image_tokenizer(checkpoints / "tokenizer")
    assert not is_image_tokenizer(checkpoints / "model")
    page = tmp_path / "page.html"
    assert main(["inspect", str(checkpoints / "tokenizer"), "--out", str(page)]) == 0
    outline = Outline(page.read_text())
    assert outline.headings == ["Codebook"]
    assert outline.count["rect"] == TOKENIZER.codes
    asked = ["inspect", str(checkpoints / "tokenizer"), "--tokenizer", str(checkpoints / "tokenizer")]
    assert main([*asked, "--out", str(page)]) == 2
    assert "is an image tokenizer" in capsys.readouterr().err


def test_recorded_clips_are_read(checkpoints, course_dataroot, tmp_path, capsys):
    model = DrivingModel(replace(SMALL, cameras=6), 1)
    save(tmp_path / "model", model)
    page = tmp_path / "page.html"
    assert main(["inspect", str(tmp_path / "model"), "--dataroot", str(course_dataroot), "--out", str(page)]) == 0
    assert str(course_dataroot) in page.read_text()
    assert main(["inspect", str(tmp_path / "none"), "--out", str(page)]) == 2


@pytest.mark.parametrize("steps", [1, 3])
def test_noise_is_a_valid_clip(steps):
    config = replace(SMALL, steps=steps)
    clip, same, other = (noise_clip(config, seed) for seed in (0, 0, 1))
    assert (clip.images == same.images).all()
    assert (clip.images != other.images).any()
    batch = to_batch([clip, other], config)
    assert batch.imu_mask.all()
    assert batch.time_s.max() == 0
    assert batch.time_s.min() == pytest.approx(-0.5 * (steps - 1))
    DrivingModel(config).prefix(batch)
