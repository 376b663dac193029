"""A running car computes nothing twice, and yet says what it would say if it did; caches and their horizons."""

from dataclasses import replace

import pytest
import torch

from sensors.collate import by_step, join_steps
from sensors.errors import InputError
from vla.attention import Horizon, Layout, rope, rotate, visible
from vla.backbone import Backbone
from vla.cache import quantise
from vla.config import BackboneConfig
from vla.model import DrivingModel
from vla.stream import Stream, at_once

TINY = BackboneConfig(width=32, layers=3, heads=4, kv_heads=2, head_dim=8, dense_hidden=48, experts=4, expert_hidden=16)


def streaming(small, **changes):
    return replace(small, steps=3, fusion_reach="step", **changes)


def backbone(config=TINY, seed=0):
    model, generator = Backbone(config).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    return model


def recomputed(config, steps):
    """(tokens, logprob) of the greedy plan, all steps of a drive at once, each token seeing config.steps back."""
    model = DrivingModel(replace(config, steps=len(steps)), seed=2).eval()
    x = model.sequence(join_steps(steps), torch.zeros(1, config.action_tokens, dtype=torch.int64))
    hidden = model.backbone(x, model.layout(), horizon=Horizon(config.steps), last=config.action_tokens)[0]
    logprobs = [(model.head.weight[model.slots[k % 2]] @ h).log_softmax(-1) for k, h in enumerate(hidden)]
    tokens = [int(row.argmax()) + model.slots[k % 2].start for k, row in enumerate(logprobs)]
    return torch.tensor([tokens]), sum(row.max() for row in logprobs)


@torch.inference_mode()
@pytest.mark.parametrize("deepstack", [0, 2])
@pytest.mark.parametrize("decoding", ["autoregressive", "parallel"])
def test_tick_equals_recomputing_everything(small, make_batch, decoding, deepstack):
    config = streaming(small, action_decoding=decoding, deepstack=deepstack)
    model = DrivingModel(config, seed=2).eval()
    steps = [make_batch(replace(config, steps=1), seed) for seed in range(6)]
    stream, brought = Stream(model), Stream(model)
    ticks = [stream.tick(batch).decode for batch in steps]
    clip = join_steps(steps[: config.steps])
    whole = model.decode(clip)
    for decode in (ticks[config.steps - 1], brought.tick(clip).decode):
        assert torch.equal(decode.tokens, whole.tokens)
        torch.testing.assert_close(decode.logprob, whole.logprob, atol=1e-4, rtol=0)
    alone = model.decode(join_steps([steps[config.steps - 1]] * config.steps))
    assert (alone.logprob - whole.logprob).abs() > 1e-4, "the past does not matter, so this test shows nothing"
    for last in range(config.steps, len(steps)):
        again = brought.tick(steps[last]).decode
        assert torch.equal(ticks[last].tokens, again.tokens)
        torch.testing.assert_close(ticks[last].logprob, again.logprob, atol=1e-4, rtol=0)
        if decoding == "parallel":  # also of steps that only what is remembered has seen
            tokens, logprob = recomputed(config, steps[: last + 1])
            assert torch.equal(ticks[last].tokens, tokens)
            torch.testing.assert_close(ticks[last].logprob[0], logprob, atol=1e-4, rtol=0)
    if deepstack:
        shallow = DrivingModel(replace(config, deepstack=0), seed=2).eval()
        shallow.load_state_dict(model.state_dict(), strict=False)
        assert (shallow.decode(clip).logprob - whole.logprob).abs() > 1e-4, "DeepStack adds nothing"
    with pytest.raises(InputError, match="2 steps, expected one"):
        brought.tick(join_steps(steps[:2]))


def test_a_whole_clip_is_timed_as_a_tick_is(small, make_batch):
    model, batch = DrivingModel(small, seed=2).eval(), make_batch(small, 0)
    tick, whole = at_once(model, batch), model.decode(batch)
    assert torch.equal(tick.decode.tokens, whole.tokens)
    assert all(span > 0 for span in tick.latency_ms.values())
    assert set(tick.latency_ms) == {"see", "think", "say"}
    with pytest.raises(InputError, match="one, behind which"):
        model.decode(make_batch(small, 0, 1), torch.Generator().manual_seed(0), 1.0, best=2)


def test_steps_join_and_part(small, make_batch):
    one = [make_batch(replace(small, steps=1), seed) for seed in (0, 1)]
    apart = by_step(join_steps(one))
    assert torch.equal(apart.images, torch.cat([b.images for b in one]))
    assert torch.equal(apart.time_s, torch.cat([b.time_s for b in one]))
    assert apart.imu.shape[0] == apart.rays_in_cam.shape[0] == 2


def test_angles_have_a_time_axis_and_may_have_one_of_order():
    layout = Layout(torch.tensor([0, 3]), torch.tensor([0, 2]), torch.tensor([4, 1]), torch.ones(2, dtype=torch.bool))
    cos, sin = rope(layout, 8, 100.0, order_pairs=1)
    turns = [[0, 0, 0, 4], [5, 5 * 100 ** (-1 / 3), 5 * 100 ** (-2 / 3), 1]]  # time is step + phase
    torch.testing.assert_close(cos[:, 0, :4], torch.tensor(turns).cos())
    torch.testing.assert_close(sin[:, 0], torch.cat([-torch.tensor(turns).sin(), torch.tensor(turns).sin()], dim=1))
    x = torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    a, b = x.chunk(2, dim=-1)
    c, s = cos[..., :4], sin[..., 4:]
    torch.testing.assert_close(rotate(x, (cos, sin)), torch.cat([a * c - b * s, b * c + a * s], dim=-1))


@pytest.mark.parametrize("horizon", [Horizon(2), Horizon(2, keyframe_every=3, keyframe_steps=7)])
def test_forgetting_equals_a_mask_over_everything(horizon):
    model, S, said, steps = backbone(), 3, 2, 9
    x = torch.randn(1, steps * (S + said), 32, generator=torch.Generator().manual_seed(1))
    step = torch.arange(steps).repeat_interleave(S + said)
    phase = torch.tensor([0] * S + [1, 2]).repeat(steps)
    layout = Layout(step, phase, torch.zeros_like(step), phase == 0)
    with torch.inference_mode():
        whole = model(x, layout, horizon=horizon)
        cache, most = model.cache(1, 40, x, horizon), 0
        for t in range(steps):
            part = slice(t * (S + said), (t + 1) * (S + said))
            cache.begin(t)
            torch.testing.assert_close(model(x[:, part], layout[part], cache), whole[:, part], atol=1e-5, rtol=1e-5)
            most = max(most, len(cache))
    assert most < steps * S
    unbounded = model(x, layout)
    assert not torch.allclose(unbounded[:, -1], whole[:, -1], atol=1e-4), "nothing was forgotten"


def test_what_was_said_is_not_seen_later():
    step, phase = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 0, 0])
    layout = Layout(step, phase, torch.zeros_like(step), torch.tensor([True, False, False, True, False]))
    assert visible(layout, layout).int().tolist() == [
        [1, 0, 0, 0, 0],  # what lasts sees what lasts
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],  # what is said sees all of its step before it
        [1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1],
    ]


def test_int8_cache_is_close_and_small():
    model = backbone()
    x = torch.randn(1, 60, 32, generator=torch.Generator().manual_seed(1))
    layout = Layout.causal(60)
    with torch.inference_mode():
        caches = [model.cache(1, 60, x, int8=int8) for int8 in (False, True)]
        halves = slice(0, 40), slice(40, 60)
        exact, close = (torch.cat([model(x[:, half], layout[half], c) for half in halves], dim=1) for c in caches)
    assert (close - exact).abs().mean() < 0.02 * exact.abs().mean()
    assert not torch.equal(close, exact)
    assert caches[1].bytes <= caches[0].bytes * (8 + 4) / (8 * 4)  # heads of 8 and a scale each
    values, scale = quantise(x)
    assert ((values * scale - x).abs() <= scale / 2 + 1e-6).all()


def test_best_of_many_takes_the_likeliest_of_a_shared_past(small, make_batch):
    config = streaming(small)
    model, batch = DrivingModel(config, seed=2).eval(), make_batch(replace(config, steps=1), 0)
    ones = [Stream(model).tick(batch, 1.0, torch.Generator().manual_seed(seed)).decode for seed in range(5)]
    one = sorted(ones, key=lambda decode: float(decode.logprob))[2]  # of a usual draw
    best = Stream(model).tick(batch, 1.0, torch.Generator().manual_seed(0), best=32).decode
    assert best.tokens.shape == one.tokens.shape
    assert best.logprob > one.logprob
    steps = model.layout()[(config.steps - 1) * config.scene_tokens :]
    with torch.inference_mode():  # its log-probability is that of its tokens
        said = torch.cat([torch.full((1, 1), model.plan_token), best.tokens[:, :-1]], dim=1)
        x = torch.cat([*model.perceive(batch, 1), model.embedding(said)], dim=1)
        hidden = model.backbone(x, steps)[:, -config.action_tokens :]
        logits = [hidden[:, i] @ model.head.weight[model.slots[i % 2]].T for i in range(config.action_tokens)]
        chosen = [best.tokens[0, i] - model.slots[i % 2].start for i in range(config.action_tokens)]
        logprob = sum(row.log_softmax(-1)[0, token] for row, token in zip(logits, chosen, strict=True))
    torch.testing.assert_close(best.logprob[0], logprob, atol=1e-4, rtol=0)


def test_what_cannot_stream_or_does_not_fit_is_said(small, make_batch):
    with pytest.raises(InputError, match="fusion_reach"):
        Stream(DrivingModel(small))
    with pytest.raises(InputError, match=r"horizon: came .* tokens to remember, expected at most context = 4096"):
        Stream(DrivingModel(streaming(small)), Horizon(1000))
    model = backbone()
    cache = model.cache(1, 4, torch.zeros(1))
    with pytest.raises(InputError, match="5 tokens after 0, expected at most 4"):
        model(torch.zeros(1, 5, 32), Layout.causal(5), cache)
