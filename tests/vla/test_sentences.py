"""Instructions and reasons as tokens, and in the model: learned, legal, beside the plan, the same when streaming."""

from dataclasses import replace

import pytest
import torch

from sensors.collate import join_steps
from sensors.errors import InputError
from sensors.reasons import REASONS, WITH_DISTANCE, Reason, parse_reason
from vla.attention import visible
from vla.model import DrivingModel
from vla.sentences import MOST_M, sentences_of
from vla.stream import Stream

SAID = (
    "stop: red light, 12 m",
    "drive: free road",
    "give way: vehicle from the left, 104 m",
    "change lane: to the right",
)


def reasons_of(config, *texts):
    return torch.tensor([sentences_of(config).reason(text) for text in texts])


@pytest.fixture(scope="module", params=["autoregressive", "parallel"])
def model(request, small):
    return DrivingModel(replace(small, action_decoding=request.param), seed=1).eval()


# Tokens --------------------------------------------------------------------------------------------


def test_instruction_fills_its_places(small):
    sentences, v = sentences_of(small), small.vocabulary
    pad, marker = v.special("<pad>"), v.special("<instruction>")
    assert sentences.instruction("") == [pad] * 6
    short, long = sentences.instruction("Turn left."), sentences.instruction("In 50 metres, turn left at the junction.")
    assert (short[0], short[-1], len(short)) == (marker, pad, 6)
    assert (long[0], len(long)) == (marker, 6)
    codes = sentences.text.encode("In 50 metres, turn left at the junction.")
    assert v.indices("text", long[1:]).tolist() == codes[:5]


def test_reason_round_trip_and_its_end(small):
    sentences = sentences_of(small)
    for text in SAID:
        tokens = sentences.reason(text)
        assert len(tokens) == small.reason_places
        assert small.vocabulary.special("<end>") in tokens
        assert sentences.reason_text(tokens) == text
    assert set(sentences.reason("")) == {small.vocabulary.special("<pad>")}
    assert sentences.reason_text(sentences.reason("")) == ""
    with pytest.raises(InputError, match="Change reason_tokens"):
        sentences.reason("stop: " + "very " * 12 + "red light, 3 m")
    with pytest.raises(InputError, match="text_tokens: came 300, expected at least 640"):
        sentences_of(replace(small, text_tokens=300))
    with pytest.raises(InputError, match="reason_tokens: came 8, expected at least"):
        _ = sentences_of(replace(small, reason_tokens=8)).reason_graph


def test_graph_has_every_reason_and_nothing_else(small):
    sentences = sentences_of(small)
    graph = sentences.reason_graph
    known = {
        Reason(action, cause, distance_m).text
        for action, causes in REASONS.items()
        for cause in causes
        for distance_m in (range(MOST_M + 1) if action in WITH_DISTANCE else (None,))
    }
    found, open_ways = [], [((), graph.begin)]
    while open_ways:
        tokens, node = open_ways.pop()
        for index in (graph.following[node] >= 0).nonzero()[:, 0].tolist():
            after, longer = int(graph.following[node, index]), (*tokens, int(graph.words[index]))
            if after == graph.done:
                found.append(longer)
            else:
                open_ways.append((longer, after))
    assert {sentences.reason_text(tokens) for tokens in found} == known
    assert len(found) == len(known) == 29 * (MOST_M + 1) + 4
    assert max(len(tokens) for tokens in found) == graph.longest <= small.reason_places
    assert all(sentences.reason(sentences.reason_text(tokens))[: len(tokens)] == list(tokens) for tokens in found[::50])


# In the model --------------------------------------------------------------------------------------


def test_plan_never_sees_the_reason_and_later_steps_neither(model):
    layout, c = model.layout(reason=True), model.config
    end = len(layout) - c.reason_places
    assert len(model.layout()) == end
    seen = visible(layout, layout)
    assert not seen[:end, end:].any()
    assert seen[end:, end - c.action_tokens : end].all()
    assert torch.equal(seen[end:, end:], torch.ones(c.reason_places, c.reason_places, dtype=torch.bool).tril())
    assert not layout.lasting[end - c.action_tokens - c.now_tokens :].any()


def test_reason_is_scored_beside_the_plan_and_only_where_there_is_one(model, make_batch, make_tokens):
    config = model.config
    batch, tokens = make_batch(config, 0, 1, 2), make_tokens(config, 3)
    with torch.no_grad():
        plain, without = model.loss(batch, tokens)
        both, scalars = model.loss(batch, tokens, reasons_of(config, SAID[0], "", SAID[1]))
        unsaid, silent = model.loss(batch, tokens, reasons_of(config, "", "", ""))
        hidden = model.hidden(batch, tokens, reason_tokens=reasons_of(config, SAID[0], "", SAID[1]))
    assert "loss_reason" not in without
    assert silent["loss_reason"] == 0
    for said in (silent, scalars):
        torch.testing.assert_close(said["loss_action"], without["loss_action"], atol=1e-6, rtol=0)
    torch.testing.assert_close(plain, unsaid, atol=1e-4, rtol=0)  # but for the routers' own loss, which counts all
    assert both > plain
    loss = []  # the twin: a softmax over text and <end> at each token that is not <pad>
    for row, target in zip(hidden[:, config.action_tokens :], reasons_of(config, SAID[0], "", SAID[1]), strict=True):
        allowed = torch.zeros(config.vocabulary.size, dtype=torch.bool)
        allowed[list(config.vocabulary.range_of("text"))] = allowed[config.vocabulary.special("<end>")] = True
        logits = model.head(row).masked_fill(~allowed, -torch.inf).log_softmax(-1)
        loss += [-logits[i, t] for i, t in enumerate(target) if t != config.vocabulary.special("<pad>")]
    torch.testing.assert_close(scalars["loss_reason"], torch.stack(loss).mean(), atol=1e-5, rtol=0)


def test_untrained_models_say_nothing_but_reasons_and_the_plan_stays(model, make_batch):
    config, sentences = model.config, sentences_of(model.config)
    batch = make_batch(config, 0, 1, 2, 3)
    alone, asked = model.decode(batch), model.decode(batch, reasons=sentences.reason_graph)
    assert alone.reason is None
    assert torch.equal(alone.tokens, asked.tokens)
    assert torch.equal(alone.logprob, asked.logprob)
    for row in asked.reason.tokens.tolist():
        text = sentences.reason_text(row)
        assert parse_reason(text).text == text
        assert sentences.reason(text) == row
    assert asked.reason.valid.all()
    single = [model.decode(make_batch(config, k), reasons=sentences.reason_graph).reason for k in range(4)]
    assert torch.equal(torch.cat([one.tokens for one in single]), asked.reason.tokens)
    torch.testing.assert_close(torch.cat([one.logprob for one in single]), asked.reason.logprob, atol=1e-4, rtol=0)


def test_reason_logprob_is_that_of_the_sentence_among_the_legal_ones(model, make_batch):
    """The slow twin: everything again for each token."""
    config, graph = model.config, sentences_of(model.config).reason_graph
    batch = make_batch(config, 0)
    plan = model.decode(batch, reasons=graph)
    node, total = graph.begin, 0.0
    with torch.no_grad():
        hidden = model.hidden(batch, plan.tokens, reason_tokens=plan.reason.tokens)[0, config.action_tokens :]
        for i, token in enumerate(plan.reason.tokens[0].tolist()):
            if node == graph.done:
                break
            legal = graph.following[node] >= 0
            logprobs = model.head(hidden[i])[graph.words].masked_fill(~legal, -torch.inf).log_softmax(-1)
            assert graph.words[logprobs.argmax()] == token
            total, node = total + logprobs.max(), graph.following[node, logprobs.argmax()]
    torch.testing.assert_close(plan.reason.logprob[0], total, atol=1e-4, rtol=0)


def test_not_a_number_is_labelled_in_reasons_too(small, make_batch):
    model, sentences = DrivingModel(small).eval(), sentences_of(small)
    with torch.no_grad():
        model.head.weight[small.vocabulary.range_of("text").start + 100] = float("nan")
    said = model.decode(make_batch(small, 0), reasons=sentences.reason_graph)
    assert said.valid.tolist() == [True]
    assert said.reason.valid.tolist() == [False]
    assert said.reason.logprob.item() == -torch.inf
    parse_reason(sentences.reason_text(said.reason.tokens[0].tolist()))


def test_reasons_and_instructions_are_learned(small, make_batch, make_tokens):
    """The pictures are the same: what is driven and said hangs on the instruction, its order included."""
    words = ("Turn left.", "Turn right.", "left Turn.", "")
    model, sentences = DrivingModel(small), sentences_of(small)
    batches = [make_batch(small, 0, instruction=text) for text in words]
    batch = replace(batches[0], **{n: torch.cat([getattr(b, n) for b in batches]) for n in vars(batches[0])})
    tokens, reasons = make_tokens(small, 4), reasons_of(small, *SAID)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(70):
        loss, scalars = model.loss(batch, tokens, reasons)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print({name: round(float(value), 3) for name, value in scalars.items()})
    assert scalars["accuracy_reason"] == 1
    decode = model.eval().decode(batch, reasons=sentences.reason_graph)
    assert torch.equal(decode.tokens, tokens)
    assert [sentences.reason_text(row) for row in decode.reason.tokens.tolist()] == list(SAID)


@pytest.mark.parametrize("decoding", ["autoregressive", "parallel"])
def test_tick_with_its_reason_equals_recomputing_everything(small, make_batch, decoding):
    config = replace(small, steps=3, fusion_reach="step", action_decoding=decoding)
    model, graph = DrivingModel(config, seed=2).eval(), sentences_of(config).reason_graph
    steps = [make_batch(replace(config, steps=1), seed) for seed in range(4)]
    for best in (1, 4):
        stream = Stream(model)
        for batch in steps[:3]:
            tick = stream.tick(batch, 0.0, None, best, reasons=graph)
        whole = model.decode(join_steps(steps[:3]), reasons=graph)
        assert torch.equal(tick.decode.tokens, whole.tokens)
        assert torch.equal(tick.decode.reason.tokens, whole.reason.tokens)
        torch.testing.assert_close(tick.decode.reason.logprob, whole.reason.logprob, atol=1e-4, rtol=0)
        assert "tell" in tick.latency_ms
    other = stream.tick(steps[3], reasons=graph).decode.reason
    assert (other.logprob - tick.decode.reason.logprob).abs() > 1e-4, "the reason hangs on nothing"


@pytest.mark.parametrize("bad", [torch.zeros(1, 13), torch.zeros(1, 12, dtype=torch.int64), torch.full((1, 13), 5)])
def test_loss_rejects_reasons(small, make_batch, make_tokens, bad):
    with pytest.raises(InputError, match="reason"):
        DrivingModel(small).loss(make_batch(small, 0), make_tokens(small, 1), bad)


def test_model_rejects_instructions_of_another_vocabulary(small, make_batch):
    batch = make_batch(small, 0)
    with pytest.raises(InputError, match=r"instruction: .*another vocabulary layout"):
        DrivingModel(small).prefix(replace(batch, instruction=batch.instruction + 704))


def test_a_model_without_text_has_neither(small, make_batch, make_tokens):
    config = replace(small, text_tokens=0)
    model = DrivingModel(config).eval()
    assert (config.instruction_places, config.reason_places) == (0, 0)
    assert not any("instruction" in name for name, _ in model.named_parameters())
    batch = make_batch(config, 1)
    assert batch.instruction.shape == (1, 0)
    assert model.decode(batch).valid.all()
    with pytest.raises(InputError, match="Has the model text_tokens"):
        model.loss(batch, make_tokens(config, 1), torch.zeros(1, 13, dtype=torch.int64))
