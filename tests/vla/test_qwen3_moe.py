"""Our backbone against Hugging Face's Qwen3-MoE, on the same random weights."""

import pytest
import torch

from sensors.errors import InputError
from vla.checkpoint import config_from_hf_qwen3_moe, from_hf_qwen3_moe

transformers = pytest.importorskip("transformers", reason="Hugging Face Transformers, the reference, is not installed")

SHAPES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 80,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "mlp_only_layers": [0],
    "norm_topk_prob": True,
    "rope_theta": 1_000_000.0,
}


def reference(**changes):
    config = transformers.Qwen3MoeConfig(**SHAPES | changes)
    theirs = transformers.Qwen3MoeForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2, generator=generator)
    return theirs


def both(**changes):
    theirs = reference(**changes)
    return theirs, from_hf_qwen3_moe(theirs.state_dict(), theirs.config.to_dict())


def tokens_of(batch=2, length=23, seed=0):
    return torch.randint(0, SHAPES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_topk_prob": False},
        {"mlp_only_layers": []},
        {"num_key_value_heads": 6},
        {"tie_word_embeddings": True},
        {"num_experts_per_tok": 6},
    ],
    ids=lambda changes: next(iter(changes), "default"),
)
def test_logits_and_gradients_equal_the_reference(changes):
    theirs, ours = both(**changes)
    tokens = tokens_of()
    expected, logits = theirs(tokens).logits, ours(tokens)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    target = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * target).mean().backward()
    (logits * target).mean().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    if changes.get("tie_word_embeddings"):
        return  # theirs is the sum of two of ours
    converted = from_hf_qwen3_moe(gradients, theirs.config.to_dict()).state_dict()
    largest = max(g.abs().max() for g in gradients.values())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad / largest, converted[name] / largest, atol=1e-4, rtol=1e-4, msg=name)


def test_logits_equal_the_reference_with_a_cache():
    theirs, ours = both()
    tokens = tokens_of()
    with torch.inference_mode():
        expected = theirs(tokens).logits
        cache = ours.backbone.cache(2, tokens.shape[1], ours.embedding.weight)
        parts = [ours(part, cache) for part in tokens.split([9, 1, 1, 7, 5], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-5, rtol=1e-5)


def test_experts_one_by_one_as_they_stand_in_files():
    theirs, ours = both()
    files = {}
    for name, tensor in theirs.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            for e, both_halves in enumerate(tensor):
                gate, up = both_halves.chunk(2)
                stem = name.replace("gate_up_proj", str(e))
                files |= {f"{stem}.gate_proj.weight": gate, f"{stem}.up_proj.weight": up}
        elif name.endswith("experts.down_proj"):
            stem = name.removesuffix("down_proj")
            files |= {f"{stem}{e}.down_proj.weight": down for e, down in enumerate(tensor)}
        else:
            files[name] = tensor
    again = from_hf_qwen3_moe(files, config_from_hf_qwen3_moe(theirs.config.to_dict())).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("model.layers.1.mlp.gate.weight"), r"layers\.1\.mlp\.gate\.weight: came nothing"),
        (lambda w: w.update({"model.layers.9.mlp.gate.weight": torch.zeros(1)}), r"layers\.9.*no such tensor"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(3)}), r"norm\.weight .*came \[3\], expected \[48\]"),
    ],
)
def test_weights_that_do_not_fit_are_rejected(change, said):
    theirs = reference()
    weights = dict(theirs.state_dict())
    change(weights)
    with pytest.raises(InputError, match=said):
        from_hf_qwen3_moe(weights, theirs.config.to_dict())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("decoder_sparse_step", 2),
        ("mlp_only_layers", [1]),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
        ("num_experts", None),
    ],
)
def test_configs_that_the_backbone_has_not_are_rejected(name, value):
    values = transformers.Qwen3MoeConfig(**SHAPES).to_dict() | {name: value}
    with pytest.raises(InputError, match="Qwen3-MoE config"):
        config_from_hf_qwen3_moe(values)
