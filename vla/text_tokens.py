"""Text as codes and back: byte-level byte pair encoding (Sennrich et al. 2016; bytes as in GPT-2), by `tokenizers`.

Any text comes back as it was, byte for byte. There are no special tokens here: those stand outside the text's range of
the vocabulary, so that no sentence can make one.

The shipped tokens are made of what a town's routes and its expert say, and of free instructions:
`vla train text-tokens`.
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sensors.errors import InputError

BYTES = 256
SHIPPED = Path(__file__).with_name("text_tokens.json")


class TextTokenizer:
    """`size` codes: the bytes, and pairs of what stands often together."""

    def __init__(self, bpe: Tokenizer):
        self._bpe, self.size = bpe, bpe.get_vocab_size()

    @classmethod
    def trained(cls, corpus: Iterable[str], size: int = 2048) -> "TextTokenizer":
        """On the sentences of a corpus; fewer codes than `size` where it has fewer pairs that occur twice."""
        if size < BYTES:
            raise InputError("TextTokenizer", "size", size, f"at least {BYTES}, one for each byte")
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, min_frequency=2, show_progress=False)
        bpe.train_from_iterator(corpus, trainer)
        return cls(bpe)

    def encode(self, text: str) -> list[int]:
        """Codes of a text; none for an empty one."""
        return self._bpe.encode(text).ids

    def decode(self, codes: Sequence[int]) -> str:
        """The text of codes; bytes that are no UTF-8 become U+FFFD; a code that there is not is an InputError."""
        wrong = [code for code in codes if not 0 <= code < self.size]
        if wrong:
            raise InputError("TextTokenizer", "codes", wrong[0], f"0 .. {self.size - 1}")
        return self._bpe.decode(list(codes), skip_special_tokens=False)

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(json.loads(self._bpe.to_str()), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "TextTokenizer":
        """What `save` wrote; anything else is an InputError."""
        try:
            return cls(Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(path, "text tokens", error, "a file that TextTokenizer.save wrote") from error
        except Exception as error:  # the library raises Exception itself on what is not its JSON
            raise InputError(path, "text tokens", error, "a file that TextTokenizer.save wrote") from error


@lru_cache(maxsize=1)
def shipped_text() -> TextTokenizer:
    """The tokens that come with the package."""
    return TextTokenizer.load(SHIPPED)
