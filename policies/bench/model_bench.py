"""The brain beside Hugging Face's Qwen3-MoE and beside itself: same process, same weights, interleaved, two threads.

hf_ratio.*    time of `Qwen3MoeForCausalLM` (its default experts and attention) over ours, fp32, the same work
ratio.*       time of the plain way over ours, both ours
parity.*      largest difference of logits, with and without a cache
tick_ms.*     a clip of one step to a plan, four steps remembered
bf16.*        time of a training step in fp32 over one in bf16, tiny, by clips in a batch (left out where quick)
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from policies.noise import noise_clip
from policies.transforms import plan_from_tokens, to_batch
from sensors.collate import join_steps
from sensors.errors import InputError
from vla.action_tokens import ActionTokenizer
from vla.attention import Layout
from vla.backbone import Backbone, LanguageModel
from vla.checkpoint import from_hf_qwen3_moe
from vla.config import BackboneConfig, ModelConfig
from vla.decode import Grammar, Part, choose_parallel, decode_actions, generate
from vla.losses import linear_cross_entropy
from vla.model import DrivingModel
from vla.precision import compute_dtype
from vla.stream import Stream

THREADS = 2
CONTEXT, SAID, PLAN = 768, 32, 20  # tokens of a prompt, of an answer, of an action chunk
TINY = {
    "vocab_size": 4096,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 384,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "mlp_only_layers": [0],
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
M44 = TINY | {
    "vocab_size": 8192,
    "hidden_size": 384,
    "num_hidden_layers": 8,
    "head_dim": 64,
    "intermediate_size": 1024,
    "num_experts": 16,
    "moe_intermediate_size": 256,
}
Work = Callable[[], object]


def model_figures(quick: bool, say: Callable[[str], None]) -> dict[str, float]:
    """All figures; quick: fewer rounds of the same measurements."""
    before, rounds = torch.get_num_threads(), 5 if quick else 25
    torch.set_num_threads(THREADS)
    try:
        figures = {}
        for part in (_beside_hf, _beside_ourselves, _tick, *([] if quick else [_bf16])):
            figures |= part(rounds, say)
        return figures
    finally:
        torch.set_num_threads(before)


def ratio_of(plain: Work, ours: Work, rounds: int) -> float:
    """Time of `plain` over time of `ours`: median of the rounds' own ratios, each way first in every second round."""
    plain(), ours()
    ratios = []
    for k in range(rounds):
        first, second = (plain, ours) if k % 2 else (ours, plain)
        spans = _seconds(first), _seconds(second)
        ratios.append(spans[0] / spans[1] if k % 2 else spans[1] / spans[0])
    return statistics.median(ratios)


def _seconds(work: Work) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


# Beside Hugging Face -------------------------------------------------------------------------------


def _beside_hf(rounds: int, say: Callable[[str], None]) -> dict[str, float]:
    try:
        import transformers
    except ImportError:
        fix = "Install it: pip install -c constraints.txt -e '.[dev]'."
        raise InputError("bench model", "transformers", "not installed", "the reference", fix) from None
    say(f"torch {torch.__version__}, transformers {transformers.__version__}, {THREADS} threads, fp32")
    figures, worst = {}, 0.0
    for name, shapes in (("tiny", TINY), ("44m", M44)):
        torch.manual_seed(0)
        theirs = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**shapes)).eval()
        ours = from_hf_qwen3_moe(theirs.state_dict(), theirs.config.to_dict())
        prompt = torch.randint(0, shapes["vocab_size"], (1, CONTEXT), generator=torch.Generator().manual_seed(0))
        worst = max(worst, *_differences(theirs, ours, prompt[:, :64], transformers.DynamicCache))
        works = {"decode": _decode_works(theirs, ours, prompt, transformers.DynamicCache)}
        if name == "tiny":
            works["generate"] = _generate_works(theirs, ours, prompt)
            works["train_step"] = _train_works(theirs, ours, shapes["vocab_size"])
            works["driving_loss"] = _driving_works(theirs, ours, shapes["vocab_size"])
        for work, pair in works.items():
            figures[f"hf_ratio.{work}.{name}"] = ratio_of(*pair, rounds)
            say(f"hf_ratio.{work}.{name} {figures[f'hf_ratio.{work}.{name}']:.2f}")
    return figures | {"parity.max_abs_logit": worst}


@torch.inference_mode()
def _differences(theirs, ours: LanguageModel, tokens: Tensor, new_cache: type) -> tuple[float, float]:
    """Largest difference of logits without and with a cache."""
    whole = (theirs(tokens).logits - ours(tokens)).abs().max()
    past, cache = new_cache(config=theirs.config), ours.backbone.cache(1, tokens.shape[1], ours.head.weight)
    parts = tokens.split([tokens.shape[1] - 3, 1, 1, 1], dim=1)
    cached = [(theirs(t, past_key_values=past, use_cache=True).logits - ours(t, cache)).abs().max() for t in parts]
    return float(whole), float(max(cached))


def _decode_works(theirs, ours: LanguageModel, prompt: Tensor, new_cache: type) -> tuple[Work, Work]:
    """One token at a time, the most likely one, behind a prompt that both have read."""
    past, cache = new_cache(config=theirs.config), ours.backbone.cache(1, CONTEXT + SAID, ours.head.weight)
    with torch.inference_mode():
        theirs(prompt, past_key_values=past, use_cache=True, logits_to_keep=1)
        ours(prompt, cache)
    layout = Layout.causal(SAID, CONTEXT)

    @torch.inference_mode()
    def plain() -> Tensor:
        token = prompt[:, -1:]
        for _ in range(SAID):
            logits = theirs(token, past_key_values=past, use_cache=True).logits
            token = logits[:, -1].argmax(dim=-1, keepdim=True)
        past.crop(-SAID)
        return token

    @torch.inference_mode()
    def mine() -> Tensor:
        token = prompt[:, -1:]
        cache.reserve(layout)
        cos, sin = ours.backbone.angles(layout)
        for i in range(SAID):
            hidden = ours.backbone.run(ours.embedding(token), (cos[i : i + 1], sin[i : i + 1]), None, cache)
            token = ours.head(hidden[:, -1]).argmax(dim=-1, keepdim=True)
        cache.truncate(CONTEXT)
        return token

    _same(plain(), mine(), "decode")
    return plain, mine


def _generate_works(theirs, ours: LanguageModel, prompt: Tensor) -> tuple[Work, Work]:
    """The whole call: read the prompt, say SAID tokens."""
    grammar = Grammar([Part(range(len(ours.embedding.weight)), SAID, SAID)], len(ours.embedding.weight))
    options = {"max_new_tokens": SAID, "min_new_tokens": SAID, "do_sample": False, "pad_token_id": 0}

    def plain() -> Tensor:
        return theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0, CONTEXT:]

    def mine() -> Tensor:
        return torch.tensor(generate(ours, prompt[0], grammar).tokens)

    _same(plain(), mine(), "generate")
    return plain, mine


def _train_works(theirs, ours: LanguageModel, vocabulary: int) -> tuple[Work, Work]:
    """Forward, backward and AdamW of next-token prediction."""
    tokens = torch.randint(0, vocabulary, (8, 128), generator=torch.Generator().manual_seed(1))

    layout = Layout.causal(tokens.shape[1] - 1)

    def our_loss() -> Tensor:
        hidden = ours.backbone(ours.embedding(tokens[:, :-1]), layout)
        return linear_cross_entropy(hidden.flatten(0, 1), ours.head.weight, tokens[:, 1:].flatten())[0]

    def their_loss() -> Tensor:
        return theirs(tokens, labels=tokens).loss

    with torch.no_grad():
        _close(their_loss(), our_loss(), "train_step")
    return _step(theirs, their_loss), _step(ours, our_loss)


def _driving_works(theirs, ours: LanguageModel, vocabulary: int) -> tuple[Work, Work]:
    """Forward and backward of the loss of a PLAN-token action chunk after a context; our head makes no other logits."""
    tokens = torch.randint(0, vocabulary, (4, 236 + PLAN), generator=torch.Generator().manual_seed(2))
    labels = tokens.masked_fill(torch.arange(tokens.shape[1]) < tokens.shape[1] - PLAN, -100)
    layout = Layout.causal(tokens.shape[1] - 1)

    def plain() -> Tensor:
        return theirs(tokens, labels=labels).loss

    def mine() -> Tensor:
        hidden = ours.backbone(ours.embedding(tokens[:, :-1]), layout, last=PLAN)
        return linear_cross_entropy(hidden.flatten(0, 1), ours.head.weight, tokens[:, -PLAN:].flatten())[0]

    with torch.no_grad():
        _close(plain(), mine(), "driving_loss")
    return (lambda: plain().backward()), (lambda: mine().backward())


def _step(model: nn.Module, loss_of: Callable[[], Tensor]) -> Work:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def work() -> None:
        optimizer.zero_grad()
        loss_of().backward()
        optimizer.step()

    return work


def _bf16(rounds: int, say: Callable[[str], None]) -> dict[str, float]:
    """What `train.dtype` bf16 brings on this machine; below 1 it costs."""
    say(f"train.dtype auto takes {compute_dtype('auto', torch.device('cpu'))}")
    figures = {f"bf16.train_step.{clips}": ratio_of(*_bf16_works(clips), rounds // 5) for clips in (16, 32)}
    for name, value in figures.items():
        say(f"{name} {value:.2f}")
    return figures


def _bf16_works(clips: int) -> tuple[Work, Work]:
    """Forward, backward and AdamW of tiny on clips of one step."""
    c = replace(ModelConfig.tiny(), steps=1)
    model, generator = DrivingModel(c), torch.Generator().manual_seed(0)
    batch = to_batch([noise_clip(c, seed) for seed in range(clips)], c)
    kinds = [torch.randint(s.start, s.stop, (clips, c.plan_steps), generator=generator) for s in c.action_slots]
    tokens = torch.stack(kinds, dim=-1).flatten(1)

    def loss(bf16: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model.loss(batch, tokens)[0]

    return _step(model, lambda: loss(False)), _step(model, lambda: loss(True))


def _same(theirs: Tensor, ours: Tensor, what: str) -> None:
    if not torch.equal(theirs.flatten(), ours.flatten()):
        raise RuntimeError(f"{what}: the two sides do not say the same")


def _close(theirs: Tensor, ours: Tensor, what: str) -> None:
    if not torch.allclose(theirs, ours, atol=1e-4):
        raise RuntimeError(f"{what}: the two losses differ: {theirs} and {ours}")


# Beside ourselves ----------------------------------------------------------------------------------


def _beside_ourselves(rounds: int, say: Callable[[str], None]) -> dict[str, float]:
    works = {
        "parallel_action": _parallel_works(),
        "streaming_tick": _streaming_works(),
        "asymmetric_encoder": _encoder_works(),
        "moe_dense": _moe_works(),
    }
    figures = {f"ratio.{name}": ratio_of(*pair, rounds) for name, pair in works.items()}
    for name, value in figures.items():
        say(f"{name} {value:.2f}")
    return figures


def _parallel_works() -> tuple[Work, Work]:
    """A chunk of PLAN action tokens behind 192 scene tokens: one by one, and from one pass."""
    c = ModelConfig.tiny()
    model = DrivingModel(c).eval()
    x = torch.randn(1, 192, c.width, generator=torch.Generator().manual_seed(0))
    queries, cache = x[:, :PLAN].clone(), model.backbone.cache(1, 192 + PLAN, x)
    one_by_one = Layout.causal(PLAN, 192)
    at_once = replace(one_by_one, step=torch.full((PLAN,), 192))
    with torch.inference_mode():
        model.backbone(x, Layout.causal(192), cache)

    @torch.inference_mode()
    def plain() -> None:
        parts = model.backbone, model.embedding, model.head.weight, model.slots, model.plan_token
        decode_actions(*parts, cache, one_by_one, 0.0, None)
        cache.truncate(192)

    @torch.inference_mode()
    def mine() -> None:
        hidden = model.backbone(queries, at_once, cache)
        choose_parallel(hidden, model.head.weight, model.slots, 0.0, None)
        cache.truncate(192)

    return plain, mine


def _streaming_works() -> tuple[Work, Work]:
    """A plan from four steps: all of them again, and the newest one appended."""
    model = _streaming_model()
    batch = to_batch([noise_clip(replace(model.config, steps=1), 0)], model.config)
    whole, stream = join_steps([batch] * model.config.steps), Stream(model)
    for _ in range(2 * model.config.steps):
        stream.tick(batch)
    return (lambda: model.decode(whole)), (lambda: stream.tick(batch))


def _encoder_works() -> tuple[Work, Work]:
    """Hidden states that a plan can be read from: attention over all patches, and over the scene tokens made of them.

    The plain way spends nothing on an encoder: the backbone reads the embedded patches themselves.
    """
    c = replace(ModelConfig.tiny(), steps=4, scene_tokens=48)
    model = DrivingModel(c).eval()
    batch = join_steps([to_batch([noise_clip(replace(c, steps=1), 0)], c)] * c.steps)
    patches = c.steps * c.cameras * c.patches
    step = torch.arange(c.steps).repeat_interleave(patches // c.steps)
    everything = replace(Layout.causal(patches), step=step)
    widen = nn.Linear(c.encoder_width, c.width, bias=False)
    b, t, n = batch.image_mask.nonzero(as_tuple=True)
    encoder = model.encoder

    @torch.inference_mode()
    def plain() -> None:
        x = encoder.stem(batch.images[b, t, n]) + encoder.time(batch.time_s[b, t, n])[:, None]
        x = x + encoder.ray(batch.T_ego_now_from_cam[b, t, n], batch.rays_in_cam[b, n], batch.ray_mask[b, n])
        model.backbone(widen(x).view(1, patches, c.width), everything)

    @torch.inference_mode()
    def mine() -> None:
        scene = model.scene(encoder(batch)).flatten(1, 2)
        model.backbone(scene, model.layout()[: scene.shape[1]])

    return plain, mine


def _moe_works() -> tuple[Work, Work]:
    """A training step of 2,048 tokens of a dense backbone, and of a routed one with as many active parameters."""
    routed = BackboneConfig()
    active = (routed.experts_per_token + routed.shared_experts) * routed.expert_hidden
    dense = replace(routed, dense_layers=routed.layers, dense_hidden=active)
    routed = replace(routed, dense_hidden=active)
    x = torch.randn(8, 256, routed.width, generator=torch.Generator().manual_seed(0))
    layout = Layout.causal(256)

    def work_of(config: BackboneConfig) -> Work:
        model, generator = Backbone(config), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name:
                    parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
        return _step(model, lambda: model(x, layout).square().mean())

    return work_of(dense), work_of(routed)


# A whole tick --------------------------------------------------------------------------------------


def _tick(rounds: int, say: Callable[[str], None]) -> dict[str, float]:
    """From a clip of six cameras to a plan, with four steps remembered; `rounds` times 40 ticks."""
    model = _streaming_model()
    config = replace(model.config, steps=1)
    clips, stream, tokenizer = [noise_clip(config, seed) for seed in range(8)], Stream(model), ActionTokenizer(config)
    spans = []
    for k in range(40 * rounds + 10):
        clip, begun = clips[k % len(clips)], time.perf_counter()
        tick = stream.tick(to_batch([clip], config))
        plan_from_tokens(tick.decode.tokens[0].numpy(), clip, tokenizer)
        spans.append(1e3 * (time.perf_counter() - begun))
    p50, p99 = np.percentile(spans[10:], (50, 99))
    say(f"tick: p50 {p50:.1f} ms, p99 {p99:.1f} ms of {len(spans) - 10}")
    return {"tick_ms.p50": float(p50), "tick_ms.p99": float(p99)}


def _streaming_model() -> DrivingModel:
    """Tiny with six cameras x four frames, 192 scene tokens."""
    changes = {"steps": 4, "scene_tokens": 48, "fusion_reach": "step", "action_decoding": "parallel"}
    return DrivingModel(replace(ModelConfig.tiny(), **changes)).eval()
