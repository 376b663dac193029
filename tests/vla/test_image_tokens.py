import pytest
import torch

from sensors.errors import InputError
from vla.image_tokens import CodebookReport, ImageTokenizer, ImageTokenizerConfig, check_codebook

SMALL = ImageTokenizerConfig(32, 16, codes=27, code_width=3, channels=8)


def images(frames: int = 1, count: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count * frames, 3, 2, 4), generator=generator).float()
    fine = torch.nn.functional.interpolate(coarse, (16, 32), mode="bilinear")
    return fine.movedim(1, -1).to(torch.uint8).view(count, frames, 16, 32, 3)


@pytest.mark.parametrize("quantizer", ["ibq", "fsq", "ema"])
@pytest.mark.parametrize("factor", [8, 16])
def test_shapes_and_determinism(quantizer, factor):
    config = ImageTokenizerConfig(32, 16, factor, 27, 3, quantizer, 8)
    first, second = (ImageTokenizer(config, seed=3).eval() for _ in range(2))
    codes = first.encode(images())
    assert codes.shape == (2, 1, 16 // factor, 32 // factor)
    assert torch.equal(codes, second.encode(images()))
    out = first.decode(codes)
    assert out.shape == images().shape
    assert out.dtype == torch.uint8


def test_seed_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    ImageTokenizer(SMALL)
    assert torch.equal(torch.rand(1), expected)


def test_training_learns_and_codes_are_used():
    model = ImageTokenizer(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch, generator, losses = images(count=8), torch.Generator().manual_seed(0), []
    for step in range(70):
        out = model(batch)
        loss = sum(out.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            model.quantizer.resample(out.z, generator)
        losses.append(float(out.losses["pixels"].detach()))
    assert losses[-1] < 0.6 * losses[0]
    report = check_codebook(model.eval(), [batch])
    assert report.used > 0.2
    assert report.psnr_db > 14


def test_decode_is_what_training_reconstructs():
    model = ImageTokenizer(SMALL).eval()
    out = model(images())
    decoded = model.decode(out.codes)
    assert torch.equal(out.codes, model.encode(images()))
    assert ((out.images.detach().clamp(0, 1) * 255).round() - decoded.float()).abs().max() <= 1


def test_temporal_mode_is_causal_and_not_blind_to_the_past():
    model = ImageTokenizer(ImageTokenizerConfig(32, 16, codes=27, code_width=3, channels=8, temporal_layers=2)).eval()
    for layer in (*model.before, *model.after):
        torch.nn.init.normal_(layer.mix.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    video = images(frames=5)
    later, earlier = video.clone(), video.clone()
    later[:, 3:] = images(frames=2, seed=9)
    earlier[:, :1] = images(frames=1, seed=9)
    target = video.movedim(-1, 2) / 255
    z, z_later, z_earlier = (model._latents(v.movedim(-1, 2) / 255) for v in (video, later, earlier))
    assert target.shape == (2, 5, 3, 16, 32)
    torch.testing.assert_close(z_later[:, :3], z[:, :3], rtol=0, atol=1e-6)
    assert (z_later[:, 3:] - z[:, 3:]).abs().max() > 1e-3
    assert (z_earlier[:, 1] - z[:, 1]).abs().max() > 1e-4
    codes = model.encode(video)
    changed = codes.clone()
    changed[:, 4] = (codes[:, 4] + 1) % 27
    assert torch.equal(model.decode(changed)[:, :4], model.decode(codes)[:, :4])


def test_first_frame_alone_is_the_first_frame_of_a_video():
    model = ImageTokenizer(ImageTokenizerConfig(32, 16, codes=27, code_width=3, channels=8, temporal_layers=1)).eval()
    video = images(frames=3)
    assert torch.equal(model.encode(video[:, :1]), model.encode(video)[:, :1])


def test_report_counts():
    model = ImageTokenizer(SMALL).eval()
    report = check_codebook(model, [images(), images(seed=1)])
    codes = torch.cat([model.encode(images()), model.encode(images(seed=1))]).flatten()
    share = torch.bincount(codes, minlength=27).double() / codes.numel()
    assert report.images == 4
    assert report.dead == int((share == 0).sum())
    assert report.used == pytest.approx(1 - report.dead / 27)
    present = share[share > 0]
    assert report.perplexity == pytest.approx(float(torch.exp(-(present * present.log()).sum())))


def test_a_collapsed_codebook_is_refused():
    good = CodebookReport(psnr_db=26.0, used=0.97, perplexity=300.0, dead=15, images=10, codes=512)
    assert good.require_usable("vq") is good
    for change in ({"used": 0.1}, {"perplexity": 3.0}, {"psnr_db": 9.0}):
        with pytest.raises(InputError, match="Train the tokenizer longer"):
            CodebookReport(**(vars(good) | change)).require_usable("vq")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"factor": 4}, "factor"),
        ({"image_width": 36}, "image_width"),
        ({"channels": 12}, "channels"),
        ({"quantizer": "vq"}, "quantizer"),
        ({"codes": 1}, "codes"),
        ({"blocks": 0}, "blocks"),
        ({"temporal_layers": -1}, "temporal_layers"),
    ],
)
def test_image_tokenizer_rejects(change, field):
    with pytest.raises(InputError, match=field):
        ImageTokenizerConfig(**change).validate()


def test_image_tokenizer_rejects_what_is_no_image_and_no_code():
    model = ImageTokenizer(SMALL).eval()
    with pytest.raises(InputError, match="images"):
        model.encode(images()[:, 0])
    with pytest.raises(InputError, match=r"0 \.\. 26"):
        model.decode(torch.full((1, 1, 2, 4), 27))
    with pytest.raises(InputError, match="codes"):
        model.decode(torch.zeros((1, 1, 4, 2), dtype=torch.int64))
    with pytest.raises(InputError, match="at least one"):
        check_codebook(model, [])
