"""What others measured of trainings on H100s, and how far the plan of the same training is from it.

Each says where it was published. What their way of training has and the plan has not is said beside it: such errors are
told, and none is tuned away.
"""

from dataclasses import dataclass

from policies.plan import GIB, GPUS, Plan, Spread, State, make_plan
from vla.config import BackboneConfig
from vla.cost import SequenceCost, cost_of_text

LLAMA_8B = BackboneConfig(
    width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, dense_layers=32, dense_hidden=14_336, shared_experts=0
)
LLAMA_WORDS = 128_256
QWEN_30B = BackboneConfig(
    **{"width": 2048, "layers": 48, "heads": 32, "kv_heads": 4, "head_dim": 128, "dense_layers": 0},
    **{"experts": 128, "experts_per_token": 8, "expert_hidden": 768, "shared_experts": 0, "router": "softmax"},
)
QWEN_WORDS = 151_936
IN_BF16 = State(weight=2, gradient=2, moments=4)  # weights loaded in bf16, and AdamW as it then is
TITAN = "github.com/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md"
AUTOMODEL = "github.com/NVIDIA-NeMo/Automodel/blob/main/docs/performance-summary.md"
BRIDGE = "github.com/NVIDIA-NeMo/Megatron-Bridge/blob/main/docs/performance-summary-archive.md"
BLOG = "huggingface.co/blog/nvidia/accelerating-fine-tuning-nvidia-nemo-automodel"


@dataclass(frozen=True)
class Published:
    """One training as it was measured: `flop_a_token` of the model as they count it, `memory_gib` of a GPU at its peak,
    `tokens_a_gpu_s`; each None where they do not say. otherwise: what they do that the plan does not know of."""

    name: str
    source: str
    model: BackboneConfig
    words: int
    tokens: int
    spread: Spread
    flop_a_token: float | None = None
    memory_gib: float | None = None
    tokens_a_gpu_s: float | None = None
    causal_half: bool = False
    otherwise: str = ""

    @property
    def cost(self) -> SequenceCost:
        return cost_of_text(self.model, self.words, self.tokens, self.causal_half)

    @property
    def plan(self) -> Plan:
        return make_plan(self.cost, self.spread, GPUS["h100"])

    def errors(self) -> dict[str, tuple[float, float, float]]:
        """(planned, measured, planned / measured - 1) by what was measured."""
        cost, plan = self.cost, self.plan
        pairs = {
            "flop_a_token": (cost.flop / cost.tokens, self.flop_a_token),
            "memory_gib": (plan.total_bytes / GIB, self.memory_gib),
            "tokens_a_gpu_s": (plan.tokens_a_gpu_s, self.tokens_a_gpu_s),
        }
        return {name: (ours, theirs, ours / theirs - 1) for name, (ours, theirs) in pairs.items() if theirs}


PUBLISHED = (
    Published(
        "qwen3-30b-a3b.automodel",
        AUTOMODEL,
        QWEN_30B,
        QWEN_WORDS,
        4096,
        Spread(8, at_once=4, accumulate=16, experts=8, recompute="layers"),
        flop_a_token=277e12 / 12_040,
        tokens_a_gpu_s=12_040,
        causal_half=True,
        otherwise="experts are balanced by force; fused kernels that send tokens while others are computed (DeepEP)",
    ),
    Published(
        "qwen3-30b-a3b.transformers",
        BLOG,
        QWEN_30B,
        QWEN_WORDS,
        4096,
        Spread(8, state=IN_BF16, whole_logits=QWEN_WORDS),
        memory_gib=68.2,
        tokens_a_gpu_s=3_075,
        causal_half=True,
        otherwise="products of experts that reach far less of the peak",
    ),
    Published(
        "qwen3-30b-a3b.automodel-blog",
        BLOG,
        QWEN_30B,
        QWEN_WORDS,
        4096,
        Spread(8, experts=8, state=IN_BF16, whole_logits=QWEN_WORDS),
        memory_gib=48.1,
        tokens_a_gpu_s=11_340,
        causal_half=True,
        otherwise="fused kernels (TransformerEngine, DeepEP) that keep fewer numbers for gradients",
    ),
    Published(
        "llama-3.1-8b.torchtitan",
        TITAN,
        LLAMA_8B,
        LLAMA_WORDS,
        8192,
        Spread(8, at_once=2),
        flop_a_token=0.39 * 989e12 / 6_667,
        tokens_a_gpu_s=6_667,
        otherwise="every second product is computed again; compiled; an H100 of 500 W",
    ),
    Published(
        "llama-3.1-8b.torchtitan-32k",
        TITAN,
        LLAMA_8B,
        LLAMA_WORDS,
        32_768,
        Spread(8, recompute="layers", whole_logits=LLAMA_WORDS),
        memory_gib=83.9,
        otherwise="memory as it was reserved, gaps counted; products in 8 bits, so no speed to compare",
    ),
    Published(
        "llama-3-8b.megatron-bridge",
        BRIDGE,
        LLAMA_8B,
        LLAMA_WORDS,
        8192,
        Spread(8, accumulate=16),
        flop_a_token=744e12 / 14_451,
        causal_half=True,
        otherwise="products in 8 bits, so no speed to compare",
    ),
)


def shared_out_gib() -> tuple[float, float, float]:
    """As `Published.errors`: by how much a GPU's memory shrinks where torchtitan spreads Llama-3.1-8B over 128 GPUs
    instead of 8, which is its share of weights, gradients and moments, without activations."""
    few, many = (make_plan(cost_of_text(LLAMA_8B, LLAMA_WORDS, 8192), Spread(n, 2), GPUS["h100"]) for n in (8, 128))
    ours, theirs = (few.total_bytes - many.total_bytes) / GIB, 77.0 - 62.0
    return ours, theirs, ours / theirs - 1
