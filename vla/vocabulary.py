"""One vocabulary for all that the model reads and writes, and where each kind of token stands in it.

    special   [0, SPECIAL)         SPECIAL_TOKENS by name, then route commands, then free places
    text      the next `text`      byte-level BPE, see vla.text_tokens
    action    the next `action`    of one action tokenizer, see vla.action_tokens and vla.action_codes
    image     the next `image`     codes of one image tokenizer, see vla.image_tokens
    audio     the next `audio`     reserved

A kind's own index i is the token `offset + i`. Text never makes a special token: "<plan>" in a sentence is six letters.
"""

from dataclasses import asdict, dataclass

import numpy as np

from sensors.clip import ROUTE_COMMANDS
from sensors.errors import InputError

SPECIAL = 64
SPECIAL_TOKENS = (
    "<pad>",
    "<end>",
    "<plan>",
    "<reason>",
    "<instruction>",
    "<image>",
    "<row_end>",
    "<image_end>",
    "<mask>",
)
SPECIAL_TOKENS += tuple(f"<command:{name}>" for name in ROUTE_COMMANDS)
KINDS = ("special", "text", "action", "image", "audio")


@dataclass(frozen=True)
class Vocabulary:
    """How many tokens each kind has; 0: the kind is not used."""

    text: int = 0
    action: int = 0
    image: int = 0
    audio: int = 0

    @property
    def size(self) -> int:
        return SPECIAL + self.text + self.action + self.image + self.audio

    def range_of(self, kind: str) -> range:
        """The tokens of one of KINDS."""
        if kind not in KINDS:
            raise InputError("vocabulary", "kind", kind, f"one of {', '.join(KINDS)}")
        sizes = {"special": SPECIAL, **{name: getattr(self, name) for name in KINDS[1:]}}
        first = sum(sizes[name] for name in KINDS[: KINDS.index(kind)])
        return range(first, first + sizes[kind])

    def special(self, name: str) -> int:
        """The token of one of SPECIAL_TOKENS."""
        if name not in SPECIAL_TOKENS:
            raise InputError("vocabulary", "special token", name, f"one of {', '.join(SPECIAL_TOKENS)}")
        return SPECIAL_TOKENS.index(name)

    def command(self, command: str) -> int:
        """The token of one of sensors.clip.ROUTE_COMMANDS."""
        return self.special(f"<command:{command}>")

    def tokens(self, kind: str, index) -> np.ndarray:
        """Tokens int64 of a kind's own indices; one that the kind does not have is an InputError."""
        index, of = np.asarray(index, np.int64), self.range_of(kind)
        if index.size and not 0 <= index.min() <= index.max() < len(of):
            came = f"{index.min()} .. {index.max()}"
            raise InputError("vocabulary", f"{kind} index", came, f"0 .. {len(of) - 1}", f"Change vocabulary.{kind}.")
        return index + of.start

    def indices(self, kind: str, tokens) -> np.ndarray:
        """The inverse of `tokens`; one of another kind is an InputError."""
        tokens, of = np.asarray(tokens, np.int64), self.range_of(kind)
        if tokens.size and not of.start <= tokens.min() <= tokens.max() < of.stop:
            came = f"{tokens.min()} .. {tokens.max()}"
            raise InputError("vocabulary", f"{kind} tokens", came, f"{of.start} .. {of.stop - 1}")
        return tokens - of.start

    def to_dict(self) -> dict:
        """The whole layout, as it stands in JSON."""
        return {"special": list(SPECIAL_TOKENS)} | asdict(self)

    def validate(self, where: object = "vocabulary") -> "Vocabulary":
        """Self, or an InputError that names the size to change."""
        for name in KINDS[1:]:
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise InputError(where, name, repr(value), "a whole number of at least 0")
        return self


def image_rows(codes: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Tokens int64 [..., h (w + 1)] of code indices [..., h, w]: row by row, each closed by <row_end>."""
    tokens = vocabulary.tokens("image", codes)
    end = np.full((*tokens.shape[:-1], 1), vocabulary.special("<row_end>"))
    return np.concatenate([tokens, end], axis=-1).reshape(*tokens.shape[:-2], -1)


def image_codes(tokens: np.ndarray, rows: int, vocabulary: Vocabulary) -> np.ndarray:
    """The inverse of `image_rows` for an image of `rows` rows; what is not such rows is an InputError."""
    tokens = np.asarray(tokens, np.int64)
    if tokens.shape[-1] % rows:
        raise InputError("image tokens", "length", tokens.shape[-1], f"a multiple of {rows} rows")
    grid = tokens.reshape(*tokens.shape[:-1], rows, -1)
    if (grid[..., -1] != vocabulary.special("<row_end>")).any():
        raise InputError("image tokens", "row ends", "another token", f"<row_end> at the end of each of {rows} rows")
    return vocabulary.indices("image", grid[..., :-1])
