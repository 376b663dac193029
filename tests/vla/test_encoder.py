"""What every option of the encoder keeps: causality in time, masks, batches, and what cameras may exchange."""

from dataclasses import fields, replace

import pytest
import torch

from sensors.collate import by_step, join_steps
from sensors.errors import InputError
from vla.attention import rotate
from vla.config import ModelConfig
from vla.encoder import CodedBatch, patch_angles
from vla.model import DrivingModel
from vla.stream import Stream

OPTIONS = {
    "plain": {},
    "codes": {"image_input": "codes", "image_codes": 40},
    "both": {"image_input": "both", "image_codes": 40},
    "patch_rope": {"patch_rope": True},
    "deepstack": {"deepstack": 2},
    "each_step": {"fusion_reach": "step", "deepstack": 1, "image_input": "both", "image_codes": 40},
    "identity": {"camera_identity_dropout": 0.5},
    "calibration": {"calibration_projector": "mlp"},
    "calibration_resampler": {"calibration_projector": "resampler"},
    **{f"image_{kind}": {"image_projector": kind} for kind in ("linear", "mlp", "unshuffle", "resampler", "q_former")},
    **{f"imu_{kind}": {"imu_projector": kind} for kind in ("linear", "resampler", "q_former")},
    **{f"vehicle_{kind}": {"vehicle_projector": kind} for kind in ("mlp", "resampler", "q_former")},
}
EXCHANGED = ("images", "image_mask", "time_s", "T_ego_now_from_cam", "codes")  # along [B, T, N]


def coded(batch, config: ModelConfig, seed: int = 0) -> CodedBatch:
    """The batch with codes of random images."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*batch.image_mask.shape, *config.code_grid)
    codes = torch.randint(0, config.image_codes, shape, generator=generator)
    return CodedBatch(**{field.name: getattr(batch, field.name) for field in fields(batch)}, codes=codes)


def permuted(batch, order: list[int], *names: str):
    """The batch with these fields' cameras in another order."""
    return replace(batch, **{name: getattr(batch, name).index_select(2, torch.tensor(order)) for name in names})


@pytest.fixture(params=OPTIONS, scope="module")
def made(request, small, make_batch):
    """(model, batch of two clips) of one option."""
    config = replace(small, **OPTIONS[request.param]).validate()
    batch = make_batch(config, 0, 1)
    if config.image_input != "patches":
        batch = coded(batch, config)
    return DrivingModel(config, seed=1).eval(), batch


@torch.no_grad()
def logits(model, batch):
    tokens = torch.tensor([model.slots[i % 2].start + i for i in range(model.config.action_tokens)])
    return model.head(model.hidden(batch, tokens.expand(len(batch.images), -1)))


def test_a_later_step_changes_no_earlier_scene_token(made):
    model, batch = made
    later = {
        "images": 255 - batch.images,
        "time_s": batch.time_s + 0.05,
        "T_ego_now_from_cam": batch.T_ego_now_from_cam.roll(1, dims=2),
        "image_mask": batch.image_mask & (torch.arange(batch.image_mask.shape[-1]) > 0),
    }
    if isinstance(batch, CodedBatch):
        later["codes"] = (batch.codes + 1) % model.config.image_codes
    now = torch.arange(batch.image_mask.shape[1]) == batch.image_mask.shape[1] - 1
    for name, value in later.items():
        old = getattr(batch, name)
        later[name] = torch.where(now.view(1, -1, *[1] * (old.ndim - 2)), value, old)
    with torch.no_grad():
        before, after = model.encoder(batch), model.encoder(replace(batch, **later))
    torch.testing.assert_close(after[:, :-1], before[:, :-1], atol=1e-6, rtol=0)
    assert (after[:, -1] - before[:, -1]).abs().max() > 1e-3


def test_masked_camera_changes_nothing_whatever_it_holds(made):
    model, batch = made
    mask = batch.image_mask.clone()
    mask[:, :, 1] = False
    clean = replace(batch, image_mask=mask)
    garbage = {"images": batch.images.clone(), "time_s": batch.time_s.clone()}
    garbage["images"][:, :, 1], garbage["time_s"][:, :, 1] = 7, -3.0
    garbage["T_ego_now_from_cam"] = batch.T_ego_now_from_cam.clone()
    garbage["T_ego_now_from_cam"][:, :, 1, :3, 3] += 5.0
    if isinstance(batch, CodedBatch):
        garbage["codes"] = batch.codes.clone()
        garbage["codes"][:, :, 1] = -1
    torch.testing.assert_close(logits(model, replace(clean, **garbage)), logits(model, clean), atol=1e-6, rtol=0)
    assert (logits(model, clean) - logits(model, batch)).abs().max() > 1e-5


def test_a_batch_is_its_clips(made):
    model, batch = made
    alone = [replace(batch, **{f.name: getattr(batch, f.name)[k : k + 1] for f in fields(batch)}) for k in range(2)]
    torch.testing.assert_close(
        logits(model, batch), torch.cat([logits(model, one) for one in alone]), atol=1e-5, rtol=0
    )


def test_cameras_exchange_places_with_all_that_is_theirs_and_not_with_less(made, request):
    model, batch = made
    order, names = [2, 0, 1], [name for name in EXCHANGED if hasattr(batch, name)]
    moved = permuted(batch, order, *names)
    moved = replace(moved, rays_in_cam=batch.rays_in_cam[:, order], ray_mask=batch.ray_mask[:, order])
    base, change = logits(model, batch), (logits(model, moved) - logits(model, batch)).abs().max()
    if model.encoder.identity is None:
        assert change < 1e-5
        assert torch.equal(model.decode(moved).tokens, model.decode(batch).tokens)
    else:
        assert change > 1e-4, "cameras are told apart by name"
    only_calibration = permuted(batch, order, "T_ego_now_from_cam")
    assert (logits(model, only_calibration) - base).abs().max() > 1e-4


def test_capture_time_and_lens_matter(made):
    model, batch = made
    base = logits(model, batch)
    assert (logits(model, replace(batch, time_s=batch.time_s - 0.1)) - base).abs().max() > 1e-5
    rays = batch.rays_in_cam.clone()
    rays[:, 1] = rays[:, 0]  # as if the second camera's lens did not distort
    assert (logits(model, replace(batch, rays_in_cam=rays)) - base).abs().max() > 1e-6


def test_every_option_trains(made, make_tokens):
    model, batch = made
    model = DrivingModel(model.config, seed=1).train()
    imu_mask, image_mask = batch.imu_mask.clone(), batch.image_mask.clone()
    imu_mask[0], image_mask[0, :, 0] = False, False  # what stands for something missing is trained where it is missing
    ray_mask, vehicle_mask = batch.ray_mask.clone(), torch.tensor([[False], [True]]).expand(2, 3)
    ray_mask[1, 0, 0] = False
    masks = {"imu_mask": imu_mask, "image_mask": image_mask, "ray_mask": ray_mask, "vehicle_mask": vehicle_mask}
    batch = replace(batch, **masks)
    tokens, losses = make_tokens(model.config, 2), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(3):
        loss, _ = model.loss(batch, tokens, generator=torch.Generator().manual_seed(3 * step))
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.abs().max() > 0, name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_stream_with_deepstack_and_codes_is_its_clips(small, make_batch):
    config = replace(small, **OPTIONS["each_step"])
    model = DrivingModel(config, seed=1).eval()
    steps = [coded(make_batch(replace(config, steps=1), seed), config, seed) for seed in range(config.steps)]
    stream = Stream(model)
    ticks = [stream.tick(step) for step in steps]
    whole = model.decode(join_steps(steps))
    assert torch.equal(ticks[-1].decode.tokens, whole.tokens)
    torch.testing.assert_close(ticks[-1].decode.logprob, whole.logprob, atol=1e-4, rtol=0)
    flat = by_step(join_steps(steps))
    assert torch.equal(flat.codes[:, 0], torch.cat([step.codes[:, 0] for step in steps]))


def test_patch_angles_depend_on_where_one_lies_from_the_other():
    rows, columns, d = 4, 6, 16
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, d, generator=generator).double()
    cos, sin = (part.double() for part in patch_angles(rows, columns, d))
    scores = rotate(q.expand(1, rows * columns, 1, d), (cos, sin))[0, :, 0] @ (
        rotate(k.expand(1, rows * columns, 1, d), (cos, sin))[0, :, 0].T
    )
    scores = scores.view(rows, columns, rows, columns)
    torch.testing.assert_close(scores[1:, 1:, 1:, 1:], scores[:-1, :-1, :-1, :-1], atol=1e-5, rtol=0)
    assert (scores[0, 0, 0, 1] - scores[0, 0, 1, 0]).abs() > 1e-3, "rows and columns are alike"
    assert (scores[0, 0, 0, 1] - scores[0, 1, 0, 0]).abs() > 1e-3, "right and left are alike"


def test_deepstack_adds_in_the_backbone_and_only_at_scene_tokens(small, make_batch):
    config = replace(small, deepstack=1)
    model = DrivingModel(config, seed=1).eval()
    with torch.no_grad():
        prefix, layout = model.prefix(make_batch(config, 0)), model.layout()
        said = torch.zeros(1, config.action_tokens, prefix.shape[-1])
        x, scene = torch.cat([prefix, said], dim=1), config.steps * config.scene_tokens
        plain, deep = x.split(config.width, dim=-1)
        assert deep[:, :scene].abs().max() > 0
        assert deep[:, scene:].abs().max() == 0
        by_hand, bias, angles = plain, None, model.backbone.angles(layout)
        captured = []
        handle = model.backbone.layers[0].register_forward_hook(lambda _, args, out: captured.append((args[1], out)))
        whole = model.backbone(x, layout)
        handle.remove()
        (bias, by_hand), *_ = captured
        by_hand = by_hand + deep
        for layer in model.backbone.layers[1:]:
            by_hand = layer(by_hand, bias, angles, None, None, None)
    torch.testing.assert_close(model.backbone.norm(by_hand), whole, atol=1e-6, rtol=0)


def test_identities_are_dropped_as_the_generator_says(small, make_batch, make_tokens):
    config = replace(small, camera_identity_dropout=0.5)
    model, batch, tokens = DrivingModel(config, seed=1), make_batch(config, 0, 1), make_tokens(config, 2)
    losses = [model.loss(batch, tokens, generator=torch.Generator().manual_seed(s))[0].item() for s in (0, 0, 1, 2, 3)]
    assert losses[0] == losses[1]
    assert len(set(losses)) > 1
    shares = model.encoder.told(4000, torch.Generator().manual_seed(0)).float().mean()
    assert shares == pytest.approx(0.5, abs=0.03)
    with pytest.raises(InputError, match="camera_identity_dropout draws"):
        model.loss(batch, tokens)
    assert model.eval().encoder.told(3, None).all()


def test_model_rejects_codes(small, make_batch):
    config = replace(small, image_input="codes", image_codes=40)
    model, batch = DrivingModel(config), coded(make_batch(config, 0), config)
    high = batch.codes.clone()
    high[0, 0, 0, 0, 0] = 40
    for bad, words in (
        (make_batch(config, 0), "codes: came none, expected a CodedBatch"),
        (replace(batch, codes=batch.codes[..., :-1]), "code_px"),
        (replace(batch, codes=batch.codes.int()), "torch.int32"),
        (replace(batch, codes=high), "came 0 .. 40, expected 0 .. 39. Change image_codes"),
    ):
        with pytest.raises(InputError, match=words):
            model.prefix(bad)


def test_model_rejects_images_and_commands(small, make_batch):
    model, batch = DrivingModel(small), make_batch(small, 0)
    images = batch.images.float()
    images[0, 0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"images: came torch\.float32, with NaN, expected torch\.uint8"):
        model.prefix(replace(batch, images=images))
    for command in (-1, len(small.commands)):
        with pytest.raises(InputError, match="command_id"):
            model.prefix(replace(batch, command_id=torch.tensor([command])))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"context": 20}, "context: came 20, expected at least the 49 tokens"),
        ({"image_input": "pixels"}, "image_input: came 'pixels', expected one of patches, codes, both"),
        ({"image_input": "codes", "code_px": 6}, "patch_px: came 16, expected a multiple of code_px"),
        ({"image_input": "both"}, "image_codes: came 0"),
        ({"imu_projector": "mpl"}, "Did you mean mlp"),
        ({"imu_projector": "unshuffle"}, "imu_projector"),
        ({"image_projector": "unshuffle", "image_width": 48}, "an even grid, not 2 x 3"),
        ({"camera_identity_dropout": 1.5}, "camera_identity_dropout"),
        ({"deepstack": 3}, "deepstack: came 3, expected at most encoder_layers = 2"),
        ({"patch_rope": True, "encoder_width": 12}, "encoder_heads"),
        ({"patch_rope": 1}, "patch_rope"),
    ],
)
def test_config_rejects_of_the_encoder(small, changes, field):
    with pytest.raises(InputError, match=field):
        replace(small, **changes).validate()
