"""Each loss against a naive twin that is written out in loops or over the whole vocabulary."""

import math

import pytest
import torch
from torch.nn import functional as F

from sensors.errors import InputError
from vla.losses import (
    ROWS,
    head_z_loss,
    info_nce,
    linear_cross_entropy,
    masked_loss,
    masked_tokens,
    siglip,
    token_loss,
    world_loss,
)

SLOT = slice(10, 26)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def tokens_of(generator, *shape):
    return torch.randint(SLOT.start, SLOT.stop, shape, generator=generator)


def test_sliced_head_equals_a_masked_softmax_over_everything(generator):
    hidden, head = (torch.randn(*shape, generator=generator) for shape in ((3, 7, 8), (40, 8)))
    tokens, scored = tokens_of(generator, 3, 7), torch.rand(3, 7, generator=generator) < 0.5
    results = []
    for sliced in (True, False):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        if sliced:
            loss, scalars = token_loss(h, w, tokens, scored, SLOT, "vq")
        else:
            logits = (h @ w.T).masked_fill(
                (torch.arange(40) < SLOT.start) | (torch.arange(40) >= SLOT.stop), -torch.inf
            )
            loss = F.cross_entropy(logits.flatten(0, 1), tokens.masked_fill(~scored, -100).flatten())
        loss.backward()
        results.append((loss.detach(), h.grad, w.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert set(scalars) == {"loss_vq", "accuracy_vq", "z_vq"}


def test_linear_cross_entropy_in_pieces_equals_the_whole(generator):
    hidden, head = torch.randn(ROWS + 40, 8, generator=generator), torch.randn(30, 8, generator=generator)
    targets = torch.randint(0, 30, (ROWS + 40,), generator=generator)
    results = []
    for ours in (True, False):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        logits = (h @ w.T).detach()
        loss, z, accuracy = linear_cross_entropy(h, w, targets) if ours else (F.cross_entropy(h @ w.T, targets), 0, 0)
        (3 * loss).backward()
        results.append((loss.detach(), h.grad, w.grad))
        if ours:
            torch.testing.assert_close(z, logits.logsumexp(1).square().mean())
            torch.testing.assert_close(accuracy, (logits.argmax(1) == targets).float().mean())
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_nothing_scored_is_no_loss(generator):
    hidden, head = torch.randn(1, 4, 8, generator=generator, requires_grad=True), torch.randn(40, 8)
    loss, _ = token_loss(hidden, head, tokens_of(generator, 1, 4), torch.zeros(1, 4, dtype=torch.bool), SLOT, "vq")
    loss.backward()
    assert loss == 0
    assert (hidden.grad == 0).all()


def test_tokens_of_another_layout_are_rejected(generator):
    hidden, head, scored = torch.randn(1, 4, 8), torch.randn(40, 8), torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(InputError, match="vq loss: tokens: came 26"):
        token_loss(hidden, head, torch.full((1, 4), 26), scored, SLOT, "vq")


def test_world_loss_looks_one_frame_ahead(generator):
    B, T, P = 2, 4, 3
    hidden, head = (torch.randn(*shape, generator=generator) for shape in ((B, T, P, 8), (40, 8)))
    codes, seen = tokens_of(generator, B, T, P), torch.rand(B, T, P, generator=generator) < 0.8
    codes[0, 1] = codes[0, 0]
    losses, same = [], []
    for b in range(B):
        for t in range(T - 1):
            for p in range(P):
                if seen[b, t, p] and seen[b, t + 1, p]:
                    logits = torch.stack([hidden[b, t, p] @ head[v] for v in range(SLOT.start, SLOT.stop)])
                    losses.append(-logits.log_softmax(0)[codes[b, t + 1, p] - SLOT.start])
                    same.append(float(codes[b, t, p] == codes[b, t + 1, p]))
    loss, scalars = world_loss(hidden[:, :-1], head, codes, seen, SLOT)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    assert scalars["copied_world"].item() == pytest.approx(sum(same) / len(same))
    with pytest.raises(InputError, match="at least 2"):
        world_loss(hidden[:, :0], head, codes[:, :1], seen[:, :1], SLOT)


def test_head_z_loss_equals_its_definition(generator):
    hidden, head = torch.randn(5, 8, generator=generator), torch.randn(40, 8, generator=generator)
    expected = sum((hidden[i] @ head[SLOT].T).exp().sum().log() ** 2 for i in range(5)) / 5
    torch.testing.assert_close(head_z_loss(hidden, head, SLOT)[0], expected)


def test_contrastive_losses_equal_their_pairs(generator):
    a, b = torch.randn(4, 8, generator=generator), torch.randn(4, 8, generator=generator)
    cosine = [[float(torch.cosine_similarity(x, y, dim=0)) for y in b] for x in a]
    nce = pairs = 0.0
    for i in range(4):
        row, column = ([math.exp(5 * v) for v in line] for line in (cosine[i], [cosine[j][i] for j in range(4)]))
        nce -= (math.log(row[i] / sum(row)) + math.log(column[i] / sum(column))) / 8
        for j in range(4):
            z = 1 if i == j else -1
            pairs += math.log1p(math.exp(-z * (5 * cosine[i][j] - 2))) / 4
    assert info_nce(a, b, 5.0, "scene_text")[0].item() == pytest.approx(nce, abs=1e-5)
    assert siglip(a, b, 5.0, -2.0, "scene_text")[0].item() == pytest.approx(pairs, abs=1e-5)
    same, scalars = info_nce(a, a, 100.0, "scene_text")
    assert same < 1e-3
    assert scalars["found_scene_text"] == 1
    with pytest.raises(InputError, match="pairs"):
        info_nce(a, b[:3], 1.0, "scene_text")


def test_masks_follow_the_cosine_and_score_what_they_hide(generator):
    tokens = tokens_of(generator, 4000, 20)
    hidden_tokens, masked = masked_tokens(tokens, 0, generator)
    assert torch.equal(hidden_tokens == 0, masked)
    assert torch.equal(hidden_tokens[~masked], tokens[~masked])
    assert masked.any(dim=1).all()
    assert masked.float().mean().item() == pytest.approx(
        2 / math.pi + 0.025, abs=0.01
    )  # rounded up: half a token of 20
    head, hidden = torch.randn(40, 8), torch.randn(4000, 20, 8)
    expected = F.cross_entropy((hidden[masked] @ head[SLOT].T), tokens[masked] - SLOT.start)
    torch.testing.assert_close(masked_loss(hidden, head, tokens, masked, SLOT)[0], expected)
