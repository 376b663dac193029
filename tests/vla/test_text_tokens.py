import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.errors import InputError
from vla.text_tokens import BYTES, TextTokenizer

CORPUS = [f"In {d} metres, turn {side} at the traffic lights." for d in range(10, 60, 10) for side in ("left", "right")]
CORPUS += [f"stop: red light, {d} m" for d in range(30)]
SMALL = TextTokenizer.trained(CORPUS, size=320)


@given(st.text())
def test_any_text_comes_back(text):
    assert SMALL.decode(SMALL.encode(text)) == text


def test_text_of_the_corpus_is_short():
    text = CORPUS[3]
    assert len(SMALL.encode(text)) < len(text) / 3
    assert BYTES < SMALL.size <= 320


def test_text_that_looks_like_a_special_token_is_bytes():
    codes = SMALL.encode("<plan><end>")
    assert len(codes) > 2
    assert SMALL.decode(codes) == "<plan><end>"


def test_empty_text_has_no_codes():
    assert SMALL.encode("") == []
    assert SMALL.decode([]) == ""


def test_saved_and_loaded_is_the_same(tmp_path):
    SMALL.save(tmp_path / "bpe.json")
    again = TextTokenizer.load(tmp_path / "bpe.json")
    assert [again.encode(text) for text in CORPUS] == [SMALL.encode(text) for text in CORPUS]
    assert again.size == SMALL.size


def test_text_tokenizer_rejects(tmp_path):
    with pytest.raises(InputError, match=f"at least {BYTES}"):
        TextTokenizer.trained(CORPUS, size=100)
    with pytest.raises(InputError, match=rf"0 \.\. {SMALL.size - 1}"):
        SMALL.decode([320])
    (tmp_path / "bad.json").write_text("{}")
    for name in ("bad.json", "absent.json"):
        with pytest.raises(InputError, match=name):
            TextTokenizer.load(tmp_path / name)
