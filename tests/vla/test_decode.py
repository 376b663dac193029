"""What is said is legal, or labelled: grammars, not-a-number, parallel plans."""

import itertools
from dataclasses import replace

import pytest
import torch

from sensors.errors import InputError
from vla.backbone import LanguageModel
from vla.config import BackboneConfig
from vla.decode import Grammar, Part, generate
from vla.model import DrivingModel

V = 30
REASON = Part(range(5, 15), 0, 4, end=2)
PLAN = Part(range(15, 20), 3, 3)


@pytest.fixture(scope="module")
def language():
    config = BackboneConfig(width=32, layers=2, heads=2, kv_heads=1, head_dim=16, dense_hidden=32, expert_hidden=16)
    model, generator = LanguageModel(config, V).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    return model


def test_grammar_accepts_its_sentences_and_no_other():
    grammar = Grammar([Part(range(2), 1, 2, end=3), Part(range(2, 3), 1, 1)], 4)
    accepted = [s for n in range(6) for s in itertools.product(range(4), repeat=n) if grammar.accepts(s)]
    words = [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
    assert sorted(accepted) == sorted((*word, 3, 2) for word in words)
    assert grammar.most == 4


@pytest.mark.parametrize("temperature", [0.0, 1.0, 20.0])
def test_every_sentence_is_of_the_grammar(language, temperature):
    grammar = Grammar([REASON, PLAN], V)
    lengths = set()
    for seed in range(15):
        said = generate(language, torch.tensor([1, 4]), grammar, temperature, torch.Generator().manual_seed(seed))
        assert grammar.accepts(said.tokens)
        assert said.valid
        lengths.add(len(said.tokens))
    assert temperature == 0 or len(lengths) > 1


def test_log_probability_is_that_of_the_legal_choices(language):
    grammar, prompt = Grammar([REASON, PLAN], V), torch.tensor([1, 4])
    said = generate(language, prompt, grammar, 1.0, torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = language(torch.tensor([[*prompt.tolist(), *said.tokens]]))[0, len(prompt) - 1 :]
    state, total = (0, 0), 0.0
    for row, token in zip(logits, said.tokens, strict=False):
        legal = sorted(t for of in grammar.allowed(state) for t in of)
        total += float(row[legal].log_softmax(0)[legal.index(token)])
        state = grammar.after(state, token)
    assert said.logprob == pytest.approx(total, abs=1e-4)


def test_not_a_number_is_labelled(language, small, make_batch):
    broken = LanguageModel(language.backbone.config, V).eval()
    broken.load_state_dict(language.state_dict())
    with torch.no_grad():
        broken.head.weight[17] = float("nan")
    grammar = Grammar([REASON, PLAN], V)
    said = generate(broken, torch.tensor([1]), grammar)
    assert grammar.accepts(said.tokens)
    assert not said.valid
    for decoding in ("autoregressive", "parallel"):
        model, batch = DrivingModel(replace(small, action_decoding=decoding)).eval(), make_batch(small, 0, 1)
        assert model.decode(batch).valid.tolist() == [True, True]
        with torch.no_grad():
            model.head.weight[small.action_slots[0].start + 2] = float("nan")
        decode = model.decode(batch)
        assert decode.valid.tolist() == [False, False]
        assert (decode.logprob == -torch.inf).all()
        for first, slot in enumerate(model.slots):
            assert ((decode.tokens[:, first::2] >= slot.start) & (decode.tokens[:, first::2] < slot.stop)).all()


def test_parallel_plan_learns_and_equals_the_forward_pass_of_training(small, make_batch, make_tokens):
    config = replace(small, action_decoding="parallel")
    model, batch, tokens = DrivingModel(config), make_batch(small, 0, 1, 2, 3), make_tokens(small, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss, scalars = model.loss(batch, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert scalars["accuracy_accel"] == scalars["accuracy_curvature"] == 1
    decode = model.eval().decode(batch)
    assert torch.equal(decode.tokens, tokens)
    with torch.no_grad():
        loss_action = model.loss(batch, decode.tokens)[1]["loss_action"]
    assert decode.logprob.mean().item() == pytest.approx(-config.action_tokens * loss_action.item(), abs=1e-4)


@pytest.mark.parametrize(
    "part",
    [
        Part(range(25, 31), 1, 1),
        Part(range(3, 3), 1, 1),
        Part(range(3), 2, 1, 5),
        Part(range(3), 0, 2),
        Part(range(3), 1, 1, 2),
    ],
)
def test_grammars_that_cannot_be_are_rejected(part):
    with pytest.raises(InputError, match="grammar part 0"):
        Grammar([part], V)


def test_prompts_that_do_not_fit_are_rejected(language):
    grammar = Grammar([PLAN], V)
    for prompt, said in ((torch.tensor([V]), "came 30 .. 30"), (torch.tensor([], dtype=int), "no tokens")):
        with pytest.raises(InputError, match=said):
            generate(language, prompt, grammar)
    with pytest.raises(InputError, match="language model: tokens"):
        language(torch.tensor([[V]]))
    with pytest.raises(InputError, match=r"4 \+ up to 3 tokens, expected at most 6"):
        generate(language, torch.zeros(4, dtype=int), grammar, room=6)
