import pytest
import torch

from sensors.errors import InputError
from vla.quantizers import QUANTIZERS, FiniteScalar, MovingAverage, fsq_levels

WIDTHS = {"ibq": 4, "fsq": 3, "ema": 4}


def made(name: str, codes: int = 64):
    torch.manual_seed(0)
    return QUANTIZERS[name](codes, WIDTHS[name])


def draws(name: str, count: int = 500, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, WIDTHS[name], generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_codes_vector_is_quantised_to_itself(name):
    quantizer = made(name).eval()
    codes = torch.arange(quantizer.codes)
    vectors = quantizer.lookup(codes)
    if name == "fsq":  # its input is bounded by tanh
        vectors = vectors.clamp(-1 + 1e-6, 1 - 1e-6).atanh()
    assert torch.equal(quantizer(vectors).indices, codes)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_vectors_are_those_of_the_indices(name):
    quantizer = made(name).eval()
    out = quantizer(draws(name).view(5, 100, -1))
    assert out.indices.shape == (5, 100)
    torch.testing.assert_close(out.vectors, quantizer.lookup(out.indices), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ibq", "ema"])
def test_the_nearest_code_is_chosen(name):
    quantizer = made(name).eval()
    quantizer.codebook.data.copy_(draws(name, 64, seed=2))
    z = draws(name)
    naive = torch.tensor([int((quantizer.codebook - row).square().sum(1).argmin()) for row in z])
    assert torch.equal(quantizer(z).indices, naive)


def test_fsq_counts_every_combination_once():
    quantizer = FiniteScalar((3, 4, 5))
    vectors = quantizer.lookup(torch.arange(60))
    assert len({tuple(row.tolist()) for row in vectors}) == 60
    assert vectors.min() == -1
    assert vectors.max() == 1


@pytest.mark.parametrize("name", QUANTIZERS)
def test_gradient_reaches_the_encoder(name):
    z = draws(name).requires_grad_()
    out = made(name)(z)
    (out.vectors.square().sum() + sum(out.losses.values(), torch.zeros(()))).backward()
    assert (z.grad != 0).any(dim=1).float().mean() > 0.9


def test_every_code_of_ibq_learns_from_one_batch():
    quantizer = made("ibq")
    quantizer(draws("ibq", 8)).vectors.square().sum().backward()
    assert (quantizer.codebook.grad != 0).any(dim=1).all()


def test_ema_codes_move_to_the_mean_of_what_they_stand_for():
    quantizer = MovingAverage(2, 1)
    quantizer.codebook.copy_(torch.tensor([[-1.0], [1.0]]))
    quantizer.sums.copy_(quantizer.codebook)
    z = torch.tensor([[-3.0], [-5.0], [2.0], [4.0]])
    for _ in range(1500):
        quantizer(z)
    torch.testing.assert_close(quantizer.codebook, torch.tensor([[-4.0], [3.0]]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["ibq", "ema"])
def test_dead_codes_are_found_and_live_again(name):
    quantizer = made(name)
    z = draws(name) + 5.0  # far from most codes
    for _ in range(400):
        with torch.no_grad():
            quantizer(z)
    before = len(quantizer(z).indices.unique())
    assert quantizer.resample(z, torch.Generator().manual_seed(0)) > 10
    assert len(quantizer.eval()(z).indices.unique()) > 2 * before


def test_evaluation_changes_nothing():
    quantizer = made("ema").eval()
    state = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer(draws("ema"))
    assert all(torch.equal(value, state[key]) for key, value in quantizer.state_dict().items())


def test_fsq_levels():
    assert fsq_levels(512, 3) == (8, 8, 8)
    assert sorted(fsq_levels(1000, 4)) == [5, 5, 5, 8]
    for codes, width in ((509, 3), (8, 1), (10**6, 3)):
        with pytest.raises(InputError, match="product"):
            fsq_levels(codes, width)
