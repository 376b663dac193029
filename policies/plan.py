"""What a training would take on many GPUs that are not here: memory of each, bytes between them, time, days.

Parameters, arithmetic and activations are `vla.cost`'s. They are spread out as torch's FSDP2 and expert parallelism do:

    routed experts   each GPU of an expert-parallel group holds its share of them; those that hold the same ones share
                     their numbers out among themselves
    all else         shared out over all GPUs

so every GPU holds 1 / gpus of weights, gradients and moments, gathers a layer before it is needed, forward and
backward, and passes gradients on to those who hold them. Tokens go to their experts and back, and so do their
gradients. A step takes

    seconds = accumulate (max(FLOP / (peak e), gathered bytes / (bandwidth b)) + all-to-all bytes / (bandwidth b))

since layers are gathered while others are computed, and tokens are waited for. e and b are what real trainings reach
of the peaks: `policies.published` compares all this with some.
"""

import math
from dataclasses import dataclass

from policies.freezing import freeze
from policies.recipes import Recipe
from policies.train_log import duration, short
from sensors.errors import InputError, unknown_name
from vla.cost import SequenceCost, cost_of_clip, on_paper

GIB = 1 << 30
DAY_S = 86_400
RECOMPUTE = ("none", "layers")
EFFICIENCY = 0.35  # torchtitan's Llama-3.1-8B reaches 0.33 to 0.39 of an H100
LINK_EFFICIENCY = 0.8  # of what a link could carry, NCCL's large messages
BF16, FP32 = 2, 4


@dataclass(frozen=True)
class Gpu:
    """memory_bytes: what torch finds free of it; flops: peak by type of number, dense; bytes per second in one
    direction that one GPU sends to others of its node, of `node_gpus`, and out of its node."""

    memory_bytes: int
    flops: dict[str, float]
    inside_Bps: float
    outside_Bps: float
    node_gpus: int = 8


_HOPPER = {"bf16": 989e12, "fp32": 67e12}  # NVIDIA's data sheets, SXM, without sparsity
_NVLINK, _400G = 450e9, 50e9
GPUS = {
    "h100": Gpu(79 * GIB, _HOPPER, _NVLINK, _400G),
    "h200": Gpu(139 * GIB, _HOPPER, _NVLINK, _400G),
}


@dataclass(frozen=True)
class State:
    """Bytes that a parameter takes where it is held: itself, its gradient, both its moments, its running average."""

    weight: int = FP32
    gradient: int = FP32
    moments: int = 2 * FP32
    average: int = 0


@dataclass(frozen=True)
class Spread:
    """How a step is spread out: each of `gpus` learns from `at_once` sequences, `accumulate` times.

    experts      GPUs that share out the routed experts, with one another's tokens between them
    recompute    "layers": of each only the input is kept, and it is computed again for its gradients: `vla.recompute`
    dtype        of products, gathered weights and activations
    whole_logits tokens of a vocabulary whose logits are made all at once, with their gradients; 0: in parts
    """

    gpus: int
    at_once: int = 1
    accumulate: int = 1
    experts: int = 1
    recompute: str = "none"
    dtype: str = "bf16"
    state: State = State()
    whole_logits: int = 0


@dataclass(frozen=True)
class Plan:
    """memory_bytes: of each GPU by what it is for, without `cache_bytes`, of one car that drives; sent_bytes: by each
    GPU in a step; seconds: of a step; flop: of a step on all GPUs, as the model has it, and as they compute it."""

    gpu: Gpu
    spread: Spread
    memory_bytes: dict[str, float]
    cache_bytes: int
    flop: tuple[int, int]
    sent_bytes: dict[str, float]
    seconds: dict[str, float]
    tokens_a_step: int

    @property
    def total_bytes(self) -> float:
        return sum(self.memory_bytes.values())

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.gpu.memory_bytes

    @property
    def step_s(self) -> float:
        return max(self.seconds["products"], self.seconds["gather and scatter"]) + self.seconds["all-to-all"]

    @property
    def tokens_a_gpu_s(self) -> float:
        return self.tokens_a_step / self.step_s / self.spread.gpus

    def days(self, tokens: float) -> float:
        """To learn from so many tokens."""
        return tokens / self.tokens_a_step * self.step_s / DAY_S


LOGIT_BYTES = BF16 + 3 * FP32  # itself, its logarithm of the softmax, the gradients of both


def make_plan(
    cost: SequenceCost,
    spread: Spread,
    gpu: Gpu,
    efficiency: float = EFFICIENCY,
    link_efficiency: float = LINK_EFFICIENCY,
) -> Plan:
    """The plan of a step whose sequences cost so much each."""
    products = cost.flop + (cost.flop_layers if spread.recompute == "layers" else 0)
    sent = _sent(cost, spread)
    inside, outside = gpu.inside_Bps * link_efficiency, gpu.outside_Bps * link_efficiency
    # A node takes in what all its GPUs gather only once, over all its links, and hands it on inside.
    gather_Bps = inside if spread.gpus <= gpu.node_gpus else min(inside, gpu.node_gpus * outside)
    seconds = {
        "products": spread.accumulate * spread.at_once * products / (gpu.flops[spread.dtype] * efficiency),
        "gather and scatter": (sent["all-gather"] + sent["reduce-scatter"]) / gather_Bps,
        "all-to-all": sent["all-to-all"] / (inside if spread.experts <= gpu.node_gpus else outside),
    }
    sequences = spread.gpus * spread.at_once * spread.accumulate
    flop = sequences * cost.flop, sequences * products
    cache = cost.cache * _size(spread)
    return Plan(gpu, spread, _memory(cost, spread), cache, flop, sent, seconds, sequences * cost.tokens)


def _size(spread: Spread) -> int:
    return BF16 if spread.dtype == "bf16" else FP32


def _memory(cost: SequenceCost, spread: Spread) -> dict[str, float]:
    """Bytes of one GPU when it needs most: in the backward pass of the last layer, or at the logits before it."""
    p, size, state = cost.parameters, _size(spread), spread.state
    held = {"weights": state.weight * p.total, "gradients": state.gradient * p.learn}
    held |= {"optimizer": state.moments * p.learn, "average": state.average * p.total}
    memory = {name: bytes_ / spread.gpus for name, bytes_ in held.items() if bytes_}
    again = spread.recompute == "layers"
    kept = cost.kept.recomputed if again else cost.kept.total
    largest = p.most[0] // spread.experts + p.most[1]
    in_layer = {"activations": spread.at_once * kept}
    at_logits = {"activations": in_layer["activations"] - (spread.at_once * cost.kept.largest if again else 0)}
    if spread.gpus > 1:  # a layer, the next one, and a layer's gradients, before and while they are summed
        in_layer["gathered"] = size * (p.root + 2 * largest) + (size + FP32) * largest
        at_logits["gathered"] = size * p.root
    elif spread.dtype == "bf16":
        memory["weights in bf16"] = BF16 * p.total
    at_logits["logits"] = LOGIT_BYTES * spread.at_once * cost.tokens * spread.whole_logits
    return memory | max(in_layer, at_logits, key=lambda part: sum(part.values()))


def _sent(cost: SequenceCost, spread: Spread) -> dict[str, float]:
    """Bytes that one GPU sends in a step."""
    p, size, passes = cost.parameters, _size(spread), 3 if spread.recompute == "layers" else 2
    apart = (spread.gpus - 1) / spread.gpus  # share of what it needs that others hold
    holders = spread.gpus // spread.experts
    experts = p.experts / spread.experts * (holders - 1) / holders
    once = {
        "all-gather": size * (2 * experts + apart * (2 * p.blocks + p.root)),
        "reduce-scatter": FP32 * (experts + apart * (p.blocks + p.root)),
        "all-to-all": size * passes * spread.at_once * cost.routed * (spread.experts - 1) / spread.experts,
    }
    return {name: spread.accumulate * bytes_ for name, bytes_ in once.items()}


# Of a recipe ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What `vla plan` is asked: of which GPUs how many, spread out how, reaching what. None: what suits."""

    gpus: int
    gpu: str = "h100"
    experts: int | None = None
    recompute: str | None = None
    efficiency: float = EFFICIENCY
    link_efficiency: float = LINK_EFFICIENCY
    tokens: float | None = None


@dataclass(frozen=True)
class RecipePlan:
    """A recipe's plan; tokens: the budget."""

    name: str
    asked: Asked
    cost: SequenceCost
    plan: Plan
    tokens: float

    def figures(self) -> dict[str, float]:
        """Flat, by name."""
        plan, p = self.plan, self.cost.parameters
        figures = {"parameters.total": p.total, "parameters.learn": p.learn, "parameters.active": p.active}
        figures |= {f"memory_bytes.{name}": value for name, value in plan.memory_bytes.items()}
        figures |= {"memory_bytes.total": plan.total_bytes, "memory_bytes.free": plan.gpu.memory_bytes}
        figures |= {"cache_bytes.car": plan.cache_bytes, "fits": float(plan.fits)}
        figures |= {"flop.clip": self.cost.flop, "flop.step": plan.flop[0], "flop.step_computed": plan.flop[1]}
        figures |= {f"sent_bytes.{name}": value for name, value in plan.sent_bytes.items()}
        figures |= {f"step_s.{name}": value for name, value in plan.seconds.items()}
        figures |= {"step_s.total": plan.step_s, "tokens.step": plan.tokens_a_step, "tokens.budget": self.tokens}
        figures |= {"tokens_a_gpu_s": plan.tokens_a_gpu_s, "days": plan.days(self.tokens)}
        return {name.replace(" ", "_"): value for name, value in figures.items()}

    def lines(self) -> list[str]:
        """As the terminal shows it."""
        plan, asked, spread, p = self.plan, self.asked, self.plan.spread, self.cost.parameters
        each = f"{spread.at_once} clip{'s' if spread.at_once > 1 else ''} at a time"
        lines = [
            f"{self.name} on {spread.gpus} {asked.gpu.upper()}: {each} on each, {spread.accumulate} times a step, "
            f"experts over {spread.experts}, {spread.dtype}, recompute {spread.recompute}",
            "",
            f"parameters            {short(p.total):>10}   {short(p.experts)} of routed experts; "
            f"{short(p.active)} of the backbone active for a token; {short(p.learn)} learn",
            "memory of each GPU",
        ]
        lines += [f"  {name:19} {short(round(value), 'B'):>10}" for name, value in plan.memory_bytes.items()]
        verdict = "fits" if plan.fits else "DOES NOT FIT"
        lines.append(
            f"  {'in all':19} {short(round(plan.total_bytes), 'B'):>10}   {verdict}: "
            f"{short(plan.gpu.memory_bytes, 'B')} are free{'' if plan.fits else self._way_out()}"
        )
        lines.append(f"  {'KV of a car':19} {short(plan.cache_bytes, 'B'):>10}   while it drives, beside the weights")
        lines.append("a step")
        lines.append(f"  {'tokens':19} {short(plan.tokens_a_step):>10}   {short(self.cost.tokens)} a clip")
        again = "" if plan.flop[0] == plan.flop[1] else f"; {plan.flop[1]:.3g} with what is computed again"
        lines.append(f"  {'FLOP':19} {plan.flop[0]:10.3g}   {self.cost.flop:.3g} a clip{again}")
        lines += [f"  {name:19} {short(round(v), 'B'):>10}   sent by each GPU" for name, v in plan.sent_bytes.items()]
        lines.append("seconds of a step")
        at = {
            "products": f"at {asked.efficiency:.0%} of {plan.gpu.flops[spread.dtype] / 1e12:.0f} TFLOP/s",
            "gather and scatter": f"at {asked.link_efficiency:.0%} of the links, beside the products",
            "all-to-all": f"at {asked.link_efficiency:.0%} of the links, waited for",
        }
        lines += [f"  {name:19} {value:8.3f} s   {at[name]}" for name, value in plan.seconds.items()]
        rate = f"{plan.tokens_a_gpu_s:,.0f} tokens a second on each GPU"
        lines.append(f"  {'in all':19} {plan.step_s:8.3f} s   {rate}")
        days, steps = plan.days(self.tokens), math.ceil(self.tokens / plan.tokens_a_step)
        lines.append(f"{short(round(self.tokens))} tokens: {days:.3g} days ({duration(days * DAY_S)}), {steps:,} steps")
        if spread.gpus > 1:
            divided = f"--workers {spread.gpus} --shard --experts-over {spread.experts}"
            again = " train.recompute=true" if spread.recompute == "layers" else ""
            lines.append(f"as it is spread out: vla train {self.name} {divided}{again}")
        return lines

    def _way_out(self) -> str:
        tried = [] if self.plan.spread.recompute == "layers" else ["--recompute layers"]
        tried += ["a larger train.accumulate"] if self.plan.spread.at_once > 1 else []
        return f". Try {', '.join([*tried, 'more GPUs', '--gpu h200'][:3])}"


def plan_recipe(recipe: Recipe, asked: Asked) -> RecipePlan:
    """The plan of a recipe; what cannot be spread out so is an InputError."""
    if asked.gpu not in GPUS:
        raise unknown_name("vla plan", "--gpu", asked.gpu, GPUS)
    train, c = recipe.train, recipe.model
    recompute = asked.recompute or RECOMPUTE[train.recompute]
    if recompute not in RECOMPUTE:
        raise unknown_name("vla plan", "--recompute", recompute, RECOMPUTE)
    at_once, over = divmod(train.batch_size, train.accumulate * asked.gpus)
    if over or not at_once:
        came = f"{train.batch_size} clips a step in {train.accumulate} parts"
        fix = "Change --gpus, train.batch_size or train.accumulate."
        raise InputError("vla plan", "--gpus", asked.gpus, f"a divisor of a part: {came}", fix)
    gpu, experts = GPUS[asked.gpu], asked.experts
    if experts is None:
        experts = math.gcd(c.experts, asked.gpus, gpu.node_gpus)
    c.experts_per_rank(experts)
    if asked.gpus % experts:
        raise InputError("vla plan", "--experts-over", experts, f"a divisor of --gpus {asked.gpus}")
    model = on_paper(c)
    freeze(model, train.freeze, recipe.name)
    dtype = "fp32" if train.dtype == "fp32" else "bf16"
    cost = cost_of_clip(model, recipe.losses, dtype)
    state = State(average=FP32 if train.ema else 0)
    spread = Spread(asked.gpus, at_once, train.accumulate, experts, recompute, dtype, state)
    made = make_plan(cost, spread, gpu, asked.efficiency, asked.link_efficiency)
    tokens = asked.tokens if asked.tokens is not None else float(made.tokens_a_step * train.steps)
    return RecipePlan(recipe.name, asked, cost, made, tokens)
