"""Instructions and reasons as the tokens of one model, and back.

    instruction   <instruction> text ... <pad> ...    all <pad> if empty; what is too long is cut at its end
    reason        text ... <end> <pad> ...            all <pad> if there is none

`reason_graph` has every sentence of the grammar of `sensors.reasons` up to MOST_M: what a model may say.
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache

import torch

from sensors.errors import InputError
from sensors.reasons import REASONS, WITH_DISTANCE, Reason
from vla.config import ModelConfig
from vla.decode import SentenceGraph
from vla.text_tokens import TextTokenizer, shipped_text

MOST_M = 199


class Sentences:
    """Of a model of this config; text: its text tokens, those that are shipped unless given."""

    def __init__(self, config: ModelConfig, text: TextTokenizer | None = None):
        self.config, self.text = config, shipped_text() if text is None else text
        if self.text.size > config.text_tokens:
            expected = f"at least {self.text.size}, as many as the text tokens"
            raise InputError("model config", "text_tokens", config.text_tokens, expected, "Change text_tokens.")
        v = config.vocabulary
        self.first = v.range_of("text").start
        self.pad, self.end, self.marker = (v.special(name) for name in ("<pad>", "<end>", "<instruction>"))

    def instruction(self, text: str) -> list[int]:
        """Tokens of an instruction, `instruction_places` of them."""
        places, codes = self.config.instruction_places, self.text.encode(text)
        tokens = [self.marker, *(self.first + code for code in codes)] if codes else []
        return [*tokens[:places], *[self.pad] * (places - len(tokens))]

    def reason(self, text: str) -> list[int]:
        """Tokens of a reason, `reason_places` of them; one that is too long is an InputError."""
        places, codes = self.config.reason_places, self.text.encode(text)
        if len(codes) >= places:
            came, expected = f"{len(codes)} tokens of {text!r}", f"at most reason_tokens = {places - 1}"
            raise InputError("reason", "text", came, expected, "Change reason_tokens.")
        tokens = [*(self.first + code for code in codes), self.end] if codes else []
        return [*tokens, *[self.pad] * (places - len(tokens))]

    def reason_text(self, tokens: Sequence[int]) -> str:
        """The inverse of `reason`."""
        said = [token for token in tokens if token not in (self.pad, self.end)]
        return self.text.decode([token - self.first for token in said])

    @cached_property
    def reason_graph(self) -> SentenceGraph:
        """Every reason up to MOST_M. What says how far is the same for all, and stands in the graph once."""
        graph: list[dict[int, int]] = [{}, {}, {}]  # of the sentence, of " m" and before, and the end
        begin, far, done = range(3)
        over = self.text.size
        graph[done][over] = done
        for distance_m in range(MOST_M + 1):
            self._grow(graph, far, f", {distance_m} m")[over] = done
        for action, causes in REASONS.items():
            for cause in causes:
                last = self._grow(graph, begin, Reason(action, cause).text)
                last.update(graph[far] if action in WITH_DISTANCE else {over: done})
        following = torch.full((len(graph), over + 1), -1)
        for node, row in enumerate(graph):
            following[node, list(row)] = torch.tensor(list(row.values()))
        words = torch.cat([self.first + torch.arange(over), torch.tensor([self.end])])
        made = SentenceGraph(words, following, begin, done)
        if made.longest > self.config.reason_places:
            expected = f"at least {made.longest - 1}, the longest reason"
            raise InputError("model config", "reason_tokens", self.config.reason_tokens, expected)
        return made

    def _grow(self, graph: list[dict[int, int]], node: int, text: str) -> dict[int, int]:
        """Ways for a text from a node on; returns where they lead from its last node."""
        for code in self.text.encode(text):
            if code not in graph[node]:
                graph[node][code] = len(graph)
                graph.append({})
            node = graph[node][code]
        return graph[node]


@lru_cache(maxsize=8)
def sentences_of(config: ModelConfig) -> Sentences:
    """Of a config, made once."""
    return Sentences(config)
