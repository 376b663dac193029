import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.clip import ROUTE_COMMANDS
from sensors.errors import InputError
from vla.vocabulary import KINDS, SPECIAL, SPECIAL_TOKENS, Vocabulary, image_codes, image_rows

LAYOUT = Vocabulary(text=300, action=50, image=64, audio=8)


def test_kinds_follow_each_other_without_gap_or_overlap():
    ends = [(LAYOUT.range_of(kind).start, LAYOUT.range_of(kind).stop) for kind in KINDS]
    assert ends == [(0, 64), (64, 364), (364, 414), (414, 478), (478, 486)]
    assert LAYOUT.size == 486


def test_special_tokens_are_distinct_and_fit():
    assert len(set(SPECIAL_TOKENS)) == len(SPECIAL_TOKENS) <= SPECIAL
    commands = [LAYOUT.command(name) for name in ROUTE_COMMANDS]
    assert len(set(commands)) == len(ROUTE_COMMANDS)
    assert LAYOUT.special("<plan>") not in commands


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_indices_are_inverse(kind):
    index = np.arange(len(LAYOUT.range_of(kind)))
    assert np.array_equal(LAYOUT.indices(kind, LAYOUT.tokens(kind, index)), index)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_image_rows_round_trip(batch, rows, columns, seed):
    codes = np.random.default_rng(seed).integers(0, LAYOUT.image, (batch, rows, columns))
    tokens = image_rows(codes, LAYOUT)
    assert tokens.shape == (batch, rows * (columns + 1))
    assert (tokens[:, columns :: columns + 1] == LAYOUT.special("<row_end>")).all()
    assert np.array_equal(image_codes(tokens, rows, LAYOUT), codes)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: LAYOUT.tokens("action", [50]), "vocabulary.action"),
        (lambda: LAYOUT.tokens("image", [-1]), "vocabulary.image"),
        (lambda: LAYOUT.indices("text", [63]), "64 .. 363"),
        (lambda: LAYOUT.range_of("video"), "one of special"),
        (lambda: LAYOUT.special("<stop>"), "one of <pad>"),
        (lambda: Vocabulary(text=-1).validate(), "text"),
        (lambda: Vocabulary(action=1.5).validate(), "action"),
        (lambda: image_codes(np.full(6, 420), 2, LAYOUT), "row_end"),
        (lambda: image_codes(np.full(7, 420), 2, LAYOUT), "multiple of 2"),
    ],
)
def test_vocabulary_rejects(call, named):
    with pytest.raises(InputError, match=named):
        call()
