"""Saying tokens one by one or all at once, never one that is not legal at its place.

Logits that are not numbers choose nothing: what is said then is the middle of each legal range, and `valid` says so. A
caller can brake; nothing passes for a plan that is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensors.errors import InputError
from vla.attention import Layout
from vla.backbone import Backbone, LanguageModel
from vla.cache import Cache
from vla.one_token import TokenSteps


@dataclass(frozen=True)
class ActionDecode:
    """tokens int64 [B, 2K], legal at every position; logprob float32 [B], of the whole plan at temperature 1.

    valid bool [B]: false where the model's logits were not finite; those tokens are a fallback, their logprob is -inf.
    reason: what it says about why, where it was asked.
    """

    tokens: Tensor
    logprob: Tensor
    valid: Tensor
    reason: "SentenceDecode | None" = None


def choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Index [B] into logits [B, V]: the largest at temperature 0, else drawn from softmax(logits / temperature)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]


def choose_valid(logits: Tensor, temperature: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """(index [B], log-probability [B]) of finite logits [B, V]; the middle of the range and -inf for other rows."""
    index, logprobs = None, logits.log_softmax(dim=-1)
    if not torch.isfinite(logprobs.sum()):  # one number tells of all
        finite = torch.isfinite(logprobs).all(dim=-1)
        index = choose(torch.where(finite[:, None], logits, 0.0), temperature, generator)
        index = torch.where(finite, index, logits.shape[-1] // 2)
        return index, logprobs.gather(-1, index[:, None])[:, 0].masked_fill(~finite, -torch.inf)
    index = choose(logits, temperature, generator)
    return index, logprobs.gather(-1, index[:, None])[:, 0]


def decode_actions(
    backbone: Backbone,
    embedding: nn.Embedding,
    head: Tensor,
    slots: tuple[slice, slice],
    plan_token: int,
    cache: Cache,
    layout: Layout,
    temperature: float,
    generator: torch.Generator | None,
) -> ActionDecode:
    """One token after the other behind what the cache holds; layout [2K] of the plan token and all actions but one."""
    B = cache.shape.batch
    cache.reserve(layout)
    cos, sin = backbone.angles(layout)
    x = embedding.weight[plan_token].expand(B, 1, -1)
    tokens, logprobs = [], []
    # Each token follows everything there is, so there is no mask.
    step = TokenSteps.of(backbone, cache) or partial(backbone.run, cache=cache)
    for i in range(len(layout)):
        hidden = step(x, (cos[i : i + 1], sin[i : i + 1]))
        slot = slots[i % 2]
        index, logprob = choose_valid(F.linear(hidden[:, -1], head[slot]).float(), temperature, generator)
        tokens.append(index + slot.start)
        logprobs.append(logprob)
        x = embedding(tokens[-1])[:, None]
    total = torch.stack(logprobs, dim=1).sum(dim=1)
    return ActionDecode(torch.stack(tokens, dim=1), total, torch.isfinite(total))


def choose_parallel(
    hidden: Tensor,
    head: Tensor,
    slots: tuple[slice, slice],
    temperature: float,
    generator: torch.Generator | None,
) -> ActionDecode:
    """All tokens at once from hidden states [B, 2K, D], each chosen without a look at the others."""
    tokens, total = torch.empty(hidden.shape[:2], dtype=torch.int64, device=hidden.device), 0.0
    for first, slot in enumerate(slots):
        logits = F.linear(hidden[:, first::2], head[slot]).float()
        index, logprob = choose_valid(logits.flatten(0, 1), temperature, generator)
        tokens[:, first::2] = index.view(len(hidden), -1) + slot.start
        total = total + logprob.view(len(hidden), -1).sum(dim=1)
    return ActionDecode(tokens, total, torch.isfinite(total))


def likeliest(said: ActionDecode) -> ActionDecode:
    """The most likely of B plans of one clip."""
    best = said.logprob.argmax().view(1)
    return ActionDecode(said.tokens[best], said.logprob[best], said.valid[best])


# Sentences out of a given set ----------------------------------------------------------------------


@dataclass(frozen=True)
class SentenceGraph:
    """Sentences as ways from `begin` to `done`.

    words      int64 [W]         the tokens that may be said; the last one ends a sentence
    following  int64 [nodes, W]  the node after each, -1 where it is not legal; from `done` only the end, to itself
    """

    words: Tensor
    following: Tensor
    begin: int
    done: int

    def to(self, device: torch.device | str) -> "SentenceGraph":
        return SentenceGraph(self.words.to(device), self.following.to(device), self.begin, self.done)

    @property
    def longest(self) -> int:
        """Tokens of the longest sentence, its end counted."""
        reached, length = {self.begin}, 0
        while reached != {self.done}:
            reached, length = set(self.following[sorted(reached)].unique().tolist()) - {-1}, length + 1
        return length


@dataclass(frozen=True)
class SentenceDecode:
    """tokens int64 [B, R], a legal sentence with its end, then `pad`; logprob float32 [B], of the sentence among those
    that are legal, at temperature 1; valid bool [B] as in `ActionDecode`."""

    tokens: Tensor
    logprob: Tensor
    valid: Tensor


def decode_sentence(
    backbone: Backbone,
    embedding: nn.Embedding,
    head: Tensor,
    graph: SentenceGraph,
    marker: int,
    pad: int,
    cache: Cache,
    layout: Layout,
    temperature: float,
    generator: torch.Generator | None,
) -> SentenceDecode:
    """One token after the other behind what the cache holds and the token `marker`; layout [R] of marker and sentence.

    Where the set leaves no choice nothing is computed: the backbone reads such tokens together with the next.
    """
    rows, B = head[graph.words], cache.shape.batch
    node = torch.full((B,), graph.begin, device=head.device)
    total, valid = head.new_zeros(B, dtype=torch.float32), torch.ones_like(node, dtype=torch.bool)
    tokens = torch.full((B, len(layout)), pad, device=head.device)
    unread, read = [embedding.weight[marker].expand(B, 1, -1)], 0
    steps = TokenSteps.of(backbone, cache)
    for i in range(len(layout)):
        legal = graph.following[node] >= 0
        if (legal.sum(dim=1) == 1).all():
            index = legal.int().argmax(dim=1)
        else:
            x, part = torch.cat(unread, dim=1), layout[read : read + len(unread)]
            if steps is None:
                hidden = backbone(x, part, cache, last=1)
            else:
                cache.reserve(part)
                hidden = steps(x, backbone.angles(part))
            logits = F.linear(hidden[:, -1], rows).float()
            unread, read = [], read + len(unread)
            finite = torch.isfinite(logits).all(dim=1)
            logprobs = torch.where(finite[:, None], logits, 0.0).masked_fill(~legal, -torch.inf).log_softmax(dim=-1)
            index = choose(logprobs, temperature, generator)
            total, valid = total + logprobs.gather(1, index[:, None])[:, 0], valid & finite
        token = graph.words[index]
        tokens[:, i] = torch.where(node == graph.done, pad, token)
        node = graph.following[node, index]
        if (node == graph.done).all():
            break
        unread.append(embedding(token)[:, None])
    return SentenceDecode(tokens, total.masked_fill(~valid, -torch.inf), valid)


# Free text between fixed forms --------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """`least` .. `most` tokens of `allowed`, closed by the token `end` if there is one (else by `most` = `least`)."""

    allowed: range
    least: int
    most: int
    end: int | None = None


class Grammar:
    """Parts in a row, such as  reason: text ... <end>  then  plan: 2K actions. A state is (part, tokens said in it)."""

    def __init__(self, parts: Sequence[Part], vocabulary: int):
        self.parts, self.vocabulary = tuple(parts), vocabulary
        for i, part in enumerate(parts):
            where, of = f"grammar part {i}", part.allowed
            if len(of) == 0 or of.start < 0 or of.stop > vocabulary:
                raise InputError(where, "allowed", of, f"tokens of 0 .. {vocabulary - 1}")
            if not 0 <= part.least <= part.most or (part.end is None and part.least != part.most) or not part.most:
                raise InputError(where, "least, most", (part.least, part.most), "least <= most, alike without an end")
            if part.end is not None and (part.end in of or not 0 <= part.end < vocabulary):
                raise InputError(where, "end", part.end, f"a token of the vocabulary outside {of}")

    @property
    def most(self) -> int:
        """Tokens of the longest sentence."""
        return sum(part.most + (part.end is not None) for part in self.parts)

    def allowed(self, state: tuple[int, int]) -> tuple[range, ...]:
        """What may come next: tokens of the part, its end, or both."""
        part, said = self.parts[state[0]], state[1]
        more = (part.allowed,) if said < part.most else ()
        return more if part.end is None or said < part.least else (*more, range(part.end, part.end + 1))

    def after(self, state: tuple[int, int], token: int) -> tuple[int, int]:
        """The state once `token` is said; (number of parts, 0) is the end of the sentence."""
        part, said = self.parts[state[0]], state[1] + 1
        over = token == part.end if part.end is not None else said == part.most
        return (state[0] + 1, 0) if over else (state[0], said)

    def accepts(self, tokens: Sequence[int]) -> bool:
        """Whether the tokens are a whole sentence."""
        state = (0, 0)
        for token in tokens:
            if state[0] == len(self.parts) or not any(token in of for of in self.allowed(state)):
                return False
            state = self.after(state, token)
        return state[0] == len(self.parts)


@dataclass(frozen=True)
class Said:
    """One sentence: tokens, its log-probability at temperature 1, and whether the model chose every token of it."""

    tokens: tuple[int, ...]
    logprob: float
    valid: bool


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompt: Tensor,
    grammar: Grammar,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    room: int | None = None,
) -> Said:
    """A sentence of the grammar after prompt int64 [P]; only legal tokens have logits.

    room: tokens of context that there are, P + grammar.most if None.
    """
    _check_prompt(prompt, len(model.embedding.weight), grammar, room)
    P, most, head = len(prompt), grammar.most, model.head.weight
    backbone, layout = model.backbone, Layout.causal(P + most, device=prompt.device)
    cache = backbone.cache(1, P + most, head)
    hidden = backbone(model.embedding(prompt[None]), layout[:P], cache, last=1)[:, -1]
    cache.reserve(layout[P:])
    cos, sin = backbone.angles(layout[P:])
    state, tokens, logprob = (0, 0), [], 0.0
    step = TokenSteps.of(backbone, cache) or partial(backbone.run, cache=cache)
    while True:
        ranges = grammar.allowed(state)
        logits = torch.cat([F.linear(hidden, head[of.start : of.stop]) for of in ranges], dim=-1).float()
        index, one = choose_valid(logits, temperature, generator)
        place = int(index)
        tokens.append(ranges[0][place] if place < len(ranges[0]) else ranges[1][place - len(ranges[0])])
        logprob += float(one)
        state = grammar.after(state, tokens[-1])
        if state[0] == len(grammar.parts):
            return Said(tuple(tokens), logprob, logprob > -torch.inf)
        i = len(tokens) - 1
        x = model.embedding.weight[tokens[-1]].view(1, 1, -1)
        hidden = step(x, (cos[i : i + 1], sin[i : i + 1]))[:, -1]


def _check_prompt(prompt: Tensor, vocabulary: int, grammar: Grammar, room: int | None) -> None:
    if len(prompt) == 0 or prompt.min() < 0 or prompt.max() >= vocabulary:
        came = "no tokens" if len(prompt) == 0 else f"{int(prompt.min())} .. {int(prompt.max())}"
        raise InputError("generate", "prompt", came, f"tokens of 0 .. {vocabulary - 1}", "Is it of this vocabulary?")
    if room is not None and len(prompt) + grammar.most > room:
        came = f"{len(prompt)} + up to {grammar.most} tokens"
        raise InputError("generate", "prompt", came, f"at most {room} in all", "Shorten the prompt or a part's `most`.")
