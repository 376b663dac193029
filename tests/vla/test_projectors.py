import pytest
import torch
from torch import nn

from sensors.errors import InputError
from vla.projectors import PROJECTORS, Queries, TokenWise, Unshuffle

C, D, ROWS, COLUMNS = 5, 16, 4, 6
ARGUMENTS = {
    "linear": {},
    "mlp": {},
    "unshuffle": {"rows": ROWS, "columns": COLUMNS, "factor": 2},
    "resampler": {"count": 3},
    "q_former": {"count": 3},
}
TOKENS = {"linear": 24, "mlp": 24, "unshuffle": 6, "resampler": 3, "q_former": 3}


def made(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PROJECTORS[name](C, D, **ARGUMENTS[name])


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, ROWS * COLUMNS, C, generator=generator)
    return x, torch.rand(2, ROWS * COLUMNS, generator=generator) > 0.3


@pytest.mark.parametrize("name", PROJECTORS)
def test_counts(name):
    projector, (x, mask) = made(name), inputs()
    tokens = projector(x, mask)
    assert tokens.shape == (2, TOKENS[name], D)
    assert projector.tokens(x.shape[1]) == TOKENS[name]


@pytest.mark.parametrize("name", PROJECTORS)
def test_what_is_masked_changes_nothing(name):
    projector, (x, mask) = made(name), inputs()
    other = torch.where(mask[..., None], x, torch.full_like(x, float("nan")))
    assert torch.equal(projector(other, mask), projector(x, mask))


@pytest.mark.parametrize("name", PROJECTORS)
def test_nothing_known_is_finite_and_the_same_for_all(name):
    projector, (x, mask) = made(name), inputs()
    tokens = projector(x, torch.zeros_like(mask))
    assert tokens.isfinite().all()
    torch.testing.assert_close(tokens[0], tokens[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", PROJECTORS)
def test_a_batch_is_its_clips(name):
    projector, (x, mask) = made(name), inputs()
    alone = torch.cat([projector(x[k : k + 1], mask[k : k + 1]) for k in range(2)])
    torch.testing.assert_close(projector(x, mask), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["resampler", "q_former"])
def test_queries_read_a_set(name):
    projector, (x, mask) = made(name), inputs()
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(projector(x[:, order], mask[:, order]), projector(x, mask), rtol=0, atol=1e-5)
    assert (projector(x, mask)[:, 0] - projector(x, mask)[:, 1]).abs().max() > 1e-3


def test_linear_and_mlp_are_their_formulas():
    x, mask = inputs()
    linear = TokenWise(C, D)
    naive = x @ linear.net[0].weight.T + linear.net[0].bias
    torch.testing.assert_close(linear(x, torch.ones_like(mask)), naive)
    mlp = TokenWise(C, D, hidden=7)
    inner = nn.functional.gelu(x @ mlp.net[0].weight.T + mlp.net[0].bias)
    torch.testing.assert_close(mlp(x, torch.ones_like(mask)), inner @ mlp.net[2].weight.T + mlp.net[2].bias)


def test_unshuffle_keeps_every_number_and_neighbours_together():
    projector = Unshuffle(1, D, ROWS, COLUMNS, 2)
    x = torch.arange(ROWS * COLUMNS).float().view(1, -1, 1)
    squares = projector.squares(x)
    assert squares[0, 0].tolist() == [0, 1, COLUMNS, COLUMNS + 1]
    assert squares[0, 4].tolist() == [14, 15, 20, 21]
    images = torch.randn(2, 3, ROWS, COLUMNS)
    ours = Unshuffle(3, D, ROWS, COLUMNS, 2).squares(images.flatten(2).mT)
    theirs = nn.functional.pixel_unshuffle(images, 2).flatten(2).mT.unflatten(2, (3, 4)).mT.flatten(2)
    assert torch.equal(ours, theirs)


def test_parameters_are_as_many_as_the_formulas_have():
    count = {name: sum(p.numel() for p in made(name).parameters()) for name in PROJECTORS}
    read = 2 * D + 4 * D * D + 3 * D * 2 * D  # two norms, q k v out, SwiGLU
    queries = C * D + D + D + 4 * D + D  # input and its bias and norm, queries and nothing, last norm
    assert count == {
        "linear": C * D + D + D,
        "mlp": C * D + D + D * D + D + D,
        "unshuffle": 4 * (C + 1) * D + D,
        "resampler": queries + 2 * read,
        "q_former": queries + 2 * (read + D + 4 * D * D),
    }


def test_projectors_reject():
    with pytest.raises(InputError, match="divisor of the grid"):
        Unshuffle(C, D, 4, 6, 4)
    with pytest.raises(InputError, match="4 x 6"):
        made("unshuffle")(torch.zeros(1, 23, C), torch.ones(1, 23, dtype=torch.bool))
    with pytest.raises(InputError, match="heads"):
        Queries(C, D, 3, heads=3, layers=1, talks=True)
