"""The shipped text tokens come from the corpus in the tree, and no text makes anything but text."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.text_corpus import EXITS, FREE, MOST_INSTRUCTION_M, corpus, reasons
from sensors.reasons import parse_reason
from sim import town_words
from sim.road_network import network_path, shipped_towns
from sim.town_map import town_map
from sim.town_route import Route, instruction
from vla.config import ModelConfig
from vla.text_tokens import SHIPPED, shipped_text
from vla.vocabulary import SPECIAL, SPECIAL_TOKENS

CONFIG = ModelConfig.tiny()
TEXT = shipped_text()


MAKES = """
import sys
from pathlib import Path
from policies.text_corpus import corpus
from vla.text_tokens import TextTokenizer
TextTokenizer.trained(corpus(), int(sys.argv[2])).save(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("threads", ["1", "4"])
def test_the_shipped_file_is_made_to_the_byte_on_however_many_threads(tmp_path, threads):
    command = [sys.executable, "-c", MAKES, str(tmp_path / "text.json"), str(CONFIG.text_tokens)]
    subprocess.run(command, check=True, env=os.environ | {"RAYON_NUM_THREADS": threads})
    assert (tmp_path / "text.json").read_bytes() == SHIPPED.read_bytes()
    assert SHIPPED.stat().st_size <= 64_000


def test_the_model_has_room_for_the_shipped_text_and_no_more():
    assert TEXT.size == CONFIG.text_tokens


def test_a_word_or_number_of_a_reason_is_one_code():
    assert all(parse_reason(text).text == text for text in reasons())
    assert len(set(reasons())) == 29 * 61 + 4
    assert len(TEXT.encode("stop: red light, 12 m")) == 7
    assert max(len(TEXT.encode(text)) for text in reasons()) <= 10
    assert max(len(TEXT.encode(text)) for text in corpus()) <= 13


def test_every_instruction_of_the_towns_is_known_and_has_room():
    said, known = set(), set(town_words.every_sentence(MOST_INSTRUCTION_M, EXITS))
    for town in shipped_towns():
        network = town_map(network_path(town)).network
        for seed in range(3):
            rng = np.random.default_rng(seed)
            way = network.random_walk(rng, list(network.edges)[seed], 800.0)
            route = Route(network, way)
            lanes = [lane for edge in way for lane in network.edges[edge]]
            said |= {instruction(route, lane, s) for lane in lanes for s in np.arange(0.0, 200.0, 7.0)}
    assert len(said) > 50
    assert said <= known
    assert max(len(TEXT.encode(text)) for text in known) < CONFIG.instruction_tokens  # beside the marker
    plain = known & set(corpus())
    assert known - plain == {text for text in known if any(f"turn {degree} " in text for degree in town_words.DEGREES)}
    assert town_words.change_lane("left") in plain
    assert any(f"take exit {EXITS}." in text for text in known)


def test_free_instructions_are_of_every_kind():
    said = " ".join(FREE).lower()
    for words in ("left", "right", "straight", "stop behind the bus", "change lane", "slow down"):
        assert words in said


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text() | st.lists(st.sampled_from([*SPECIAL_TOKENS, "<", ">", " "])).map("".join))
def test_no_text_makes_a_special_token(text):
    tokens = CONFIG.vocabulary.tokens("text", TEXT.encode(text))
    assert (tokens >= SPECIAL).all()
    assert TEXT.decode(CONFIG.vocabulary.indices("text", tokens)) == text
