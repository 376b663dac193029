"""What the whole model promises: exactness of its shortcuts, and what may and may not influence a plan."""

import time
from dataclasses import replace

import pytest
import torch

from sensors.clip import VehicleState
from sensors.errors import InputError
from vla.config import ModelConfig
from vla.model import DrivingModel


@pytest.fixture(scope="module")
def model(small):
    return DrivingModel(small, seed=1).eval()


@torch.no_grad()
def logits(model, batch, tokens, allow_blind=False):
    """[B, 2K, V] of every action position, teacher-forced."""
    return model.head(model.hidden(batch, tokens, allow_blind))


def test_tiny_has_the_size_it_claims():
    parameters = sum(p.numel() for p in DrivingModel(ModelConfig.tiny()).parameters())
    assert 2_000_000 <= parameters <= 5_000_000


def test_same_seed_same_model_and_loss(small, make_batch, make_tokens):
    batch, tokens = make_batch(small, 0, 1), make_tokens(small, 2)
    state = torch.random.get_rng_state()
    first, second, other = DrivingModel(small, 3), DrivingModel(small, 3), DrivingModel(small, 4)
    assert torch.equal(state, torch.random.get_rng_state()), "building a model moved torch's global generator"
    losses = []
    for model in (first, second):
        loss, _ = model.loss(batch, tokens)
        loss.backward()
        losses.append(loss.detach())
    assert torch.equal(*losses)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_every_parameter_is_initialised_and_trained(small, make_batch, make_tokens):
    model = DrivingModel(small)
    seen = make_batch(small, 0, 1, 2, 3)
    seen.imu_mask[0], seen.vehicle_mask[1:] = False, True  # what stands for something missing is trained where it is
    seen.vehicle_mask[0] = False
    loss, _ = model.loss(seen, make_tokens(small, 4))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_decode_with_cache_equals_recomputing_everything(model, small, make_batch):
    batch = make_batch(small, 0, 1)
    decoded = model.decode(batch)
    tokens = torch.zeros_like(decoded.tokens)
    for i in range(small.action_tokens):  # the slow twin: the whole sequence again for each token
        slot = model.slots[i % 2]
        tokens[:, i] = logits(model, batch, tokens)[:, i, slot].argmax(dim=-1) + slot.start
    assert torch.equal(decoded.tokens, tokens)


def test_cached_hidden_states_equal_uncached(model, small, make_batch, make_tokens):
    batch, tokens = make_batch(small, 0, 1), make_tokens(small, 2)
    with torch.no_grad():
        plan = model.embedding(torch.full((2, 1), model.plan_token))
        x = torch.cat([model.prefix(batch), plan, model.embedding(tokens[:, :-1])], dim=1)
        layout, prefix = model.layout(), x.shape[1] - small.action_tokens
        whole = model.backbone(x, layout)
        cache = model.backbone.cache(2, x.shape[1], x)
        pieces = [model.backbone(x[:, :prefix], layout[:prefix], cache)]
        for i in range(prefix, x.shape[1]):
            pieces.append(model.backbone(x[:, i : i + 1], layout[i : i + 1], cache))
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=0)


def test_logprob_is_the_likelihood_that_the_loss_measures(model, small, make_batch):
    batch = make_batch(small, 0)
    decoded = model.decode(batch)
    with torch.no_grad():
        _, scalars = model.loss(batch, decoded.tokens)
    assert decoded.logprob.item() == pytest.approx(-small.action_tokens * scalars["loss_action"].item(), abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_decoded_tokens_are_legal(model, small, make_batch, temperature):
    tokens = model.decode(make_batch(small, 0, 1, 2), torch.Generator().manual_seed(0), temperature).tokens
    for first, slot in enumerate(model.slots):
        assert (tokens[:, first::2] >= slot.start).all()
        assert (tokens[:, first::2] < slot.stop).all()


def test_sampling_follows_its_generator(model, small, make_batch):
    batch = make_batch(small, 0)
    first, again, other = (model.decode(batch, torch.Generator().manual_seed(s), 1.0).tokens for s in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_batch_equals_batches_of_one(model, small, make_clip, make_tokens, collate_clips):
    clips, tokens = [make_clip(small, seed) for seed in range(4)], make_tokens(small, 4)
    whole = logits(model, collate_clips(clips, small), tokens)
    single = torch.cat([logits(model, collate_clips([c], small), tokens[i : i + 1]) for i, c in enumerate(clips)])
    torch.testing.assert_close(whole, single, atol=1e-5, rtol=0)


def test_masked_camera_changes_nothing(model, small, make_batch, make_tokens):
    tokens, batch = make_tokens(small, 1), make_batch(small, 0)
    mask = batch.image_mask.clone()
    mask[:, :, 1] = False
    clean = replace(batch, image_mask=mask)
    images, T, time_s = clean.images.clone(), clean.T_ego_now_from_cam.clone(), clean.time_s.clone()
    images[:, :, 1] = torch.randint(0, 256, images[:, :, 1].shape, dtype=torch.uint8)
    T[:, :, 1, :3, 3] += 5.0
    time_s[:, :, 1] -= 0.1
    garbage = replace(clean, images=images, T_ego_now_from_cam=T, time_s=time_s)
    torch.testing.assert_close(logits(model, garbage, tokens), logits(model, clean, tokens), atol=1e-6, rtol=0)
    assert not torch.allclose(
        logits(model, replace(garbage, image_mask=batch.image_mask), tokens), logits(model, batch, tokens), atol=1e-4
    )


def test_patch_without_a_ray_changes_the_scene_only_through_its_image(model, small, make_batch):
    batch = make_batch(small, 0)
    ray_mask = batch.ray_mask.clone()
    ray_mask[:, 0, 0] = False
    rays = batch.rays_in_cam.clone()
    rays[:, 0, 0] = 0.3  # what stands where no ray is must not matter
    with torch.no_grad():
        one = model.encoder(replace(batch, ray_mask=ray_mask))
        two = model.encoder(replace(batch, ray_mask=ray_mask, rays_in_cam=rays))
    assert torch.equal(one, two)


def test_permuting_cameras_with_their_calibration_changes_nothing(model, small, make_clip, make_tokens, collate_clips):
    clip, tokens, order = make_clip(small), make_tokens(small, 1), [2, 0, 1]
    permuted = replace(
        clip,
        cameras=tuple(clip.cameras[n] for n in order),
        images=clip.images[:, order],
        image_mask=clip.image_mask[:, order],
        time_us=clip.time_us[:, order],
        T_world_from_ego=clip.T_world_from_ego[:, order],
    ).validate()
    swapped = replace(clip, images=clip.images[:, order])
    base = logits(model, collate_clips([clip], small), tokens)
    torch.testing.assert_close(logits(model, collate_clips([permuted], small), tokens), base, atol=1e-5, rtol=0)
    assert (logits(model, collate_clips([swapped], small), tokens) - base).abs().max() > 1e-4


def test_scene_tokens_are_causal_in_time(model, small, make_batch):
    batch = make_batch(small, 0)
    images, time_s, T = batch.images.clone(), batch.time_s.clone(), batch.T_ego_now_from_cam.clone()
    images[:, 1], time_s[:, 1], T[:, 1, :, :3, 3] = 255 - images[:, 1], -0.02, 3.0
    with torch.no_grad():
        before = model.encoder(batch)
        after = model.encoder(replace(batch, images=images, time_s=time_s, T_ego_now_from_cam=T))
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1], atol=1e-3)
    images = batch.images.clone()
    images[:, 0] = 255 - images[:, 0]
    with torch.no_grad():
        after = model.encoder(replace(batch, images=images))
    assert not torch.allclose(before[:, 1], after[:, 1], atol=1e-4), "the present does not see the past"


def test_hidden_states_are_block_causal(model, small, make_batch, make_tokens):
    """The prefix is blind to actions, an action to later ones; inside the last step all tokens see each other."""
    with torch.no_grad():
        x = torch.cat([model.prefix(make_batch(small, 0)), model.embedding(make_tokens(small, 1))], dim=1)
        layout = model.layout()
        base = model.backbone(x, layout)

        def changed(position):
            other = x.clone()
            other[:, position] += 1.0
            return ((model.backbone(other, layout) - base).abs().amax(dim=(0, 2)) > 1e-6).tolist()

        blocks = (layout.step + layout.phase).tolist()
        for position in (0, small.scene_tokens, len(blocks) - small.action_tokens - 1, len(blocks) - 3):
            assert changed(position) == [block >= blocks[position] for block in blocks]


@pytest.mark.parametrize("what", ["images", "imu", "vehicle", "command", "instruction", "missing"])
def test_every_input_reaches_the_plan(model, small, make_clip, make_tokens, what, collate_clips):
    clip, tokens = make_clip(small), make_tokens(small, 1)
    other = {
        "images": {"images": 255 - clip.images},
        "imu": {"imu": replace(clip.imu, gyro_radps=clip.imu.gyro_radps + 1.0)},
        "vehicle": {"vehicle": VehicleState(1.0, 0.01)},
        "command": {"command": "left"},
        "instruction": {"instruction": "Stop behind the bus."},
        "missing": {"vehicle": VehicleState()},
    }[what]
    base = logits(model, collate_clips([clip], small), tokens)
    assert (logits(model, collate_clips([replace(clip, **other)], small), tokens) - base).abs().max() > 1e-4


def test_bf16_is_near_fp32_and_keeps_its_parameters(small, make_batch, make_tokens):
    """8 bits of every operand and of every layer's output; a loss, a mean of many, is right to 1 %."""
    batch, tokens, losses, gradients = make_batch(small, 0, 1), make_tokens(small, 2), {}, {}
    for bf16 in (False, True):
        model = DrivingModel(small)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, _ = model.loss(batch, tokens)
        loss.backward()
        losses[bf16] = loss.item()
        gradients[bf16] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        assert all(p.dtype is torch.float32 for p in model.parameters())
    assert 0 < abs(losses[True] - losses[False]) < 0.01 * losses[False]
    assert torch.cosine_similarity(gradients[True], gradients[False], dim=0) > 0.95  # some tokens take another expert


def test_overfits_four_clips(small, make_batch, make_tokens):
    model, batch, tokens = DrivingModel(small), make_batch(small, 0, 1, 2, 3), make_tokens(small, 4)
    optimizer, start = torch.optim.AdamW(model.parameters(), lr=2e-3), time.perf_counter()
    for step in range(150):  # noqa: B007
        loss, scalars = model.loss(batch, tokens)
        if loss < 0.05:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.rebalance()
    took = time.perf_counter() - start
    print(f"loss {loss.item():.3f} after {step} steps in {took:.1f} s")
    assert loss < 0.1
    assert scalars["accuracy_accel"] == scalars["accuracy_curvature"] == 1
    assert took < 20
    assert torch.equal(model.eval().decode(batch).tokens, tokens), "the model does not decode what it has learned"


def test_model_rejects_blind_clips_unless_asked(model, small, make_batch, make_tokens):
    batch, tokens = make_batch(small, 0, 1), make_tokens(small, 2)
    mask = batch.image_mask.clone()
    mask[1] = False
    blind = replace(batch, image_mask=mask)
    for call in (
        lambda **k: model.decode(blind, **k),
        lambda **k: model.loss(blind, tokens, **k),
        lambda **k: model.prefix(blind, **k),
    ):
        with pytest.raises(InputError, match="clip 1: came every camera masked"):
            call()
        call(allow_blind=True)
    assert torch.isfinite(logits(model, blind, tokens, allow_blind=True)).all()


def test_model_rejects_images_that_could_be_nan(model, small, make_batch):
    batch = make_batch(small, 0)
    with pytest.raises(InputError, match=r"images: came torch\.float32, expected torch\.uint8"):
        model.prefix(replace(batch, images=batch.images.float()))


@pytest.mark.parametrize("name", ["time_s", "T_ego_now_from_cam", "rays_in_cam", "imu", "imu_time_s", "vehicle"])
def test_model_rejects_nan(model, small, make_batch, name):
    batch = make_batch(small, 0, 1)
    value = getattr(batch, name).clone()
    value[1].view(-1)[0] = float("nan")
    with pytest.raises(InputError, match=f"{name} of clip 1"):
        model.prefix(replace(batch, **{name: value}))


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("images", {"steps": 1}),
        ("images", {"image_width": 80}),
        ("rays_in_cam", {"patch_px": 8}),
        ("imu", {"imu_samples": 10}),
        ("instruction", {"instruction_tokens": 7}),
        ("instruction", {"text_tokens": 0}),
    ],
)
def test_model_rejects_batches_of_another_shape(model, small, make_batch, field, change):
    with pytest.raises(InputError, match=f"batch: {field}: "):
        model.prefix(make_batch(replace(small, **change), 0))


def test_loss_rejects_tokens(model, small, make_batch, make_tokens):
    batch, tokens = make_batch(small, 0), make_tokens(small, 1)
    for bad in (tokens.int(), tokens[:, :-1], tokens.roll(1, dims=1), tokens.clamp(max=0)):
        with pytest.raises(InputError, match="action_tokens"):
            model.loss(batch, bad)
