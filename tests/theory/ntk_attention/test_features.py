"""Feature maps: the kernels they stand for, by brute force and by their limits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from theory.ensemble import normal
from theory.ntk_attention.features import LARGEST, Elu1, FeatureMap, PositiveRandom, Taylor, _directions

X, Y = (normal((7, 3), "features", part) * 0.7 for part in "xy")


@pytest.mark.parametrize("degree", range(7))
@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_products_of_taylor_features_are_the_taylor_polynomial(d, degree):
    x, y = (normal((4, d), "taylor", part) for part in "xy")
    phi = Taylor(d, degree)
    t = x @ y.T
    expected = sum(t**j / math.factorial(j) for j in range(degree + 1))
    assert phi(x).shape == (4, phi.size) == (4, math.comb(d + degree, degree))
    torch.testing.assert_close(phi(x) @ phi(y).T, expected, rtol=1e-12, atol=1e-12)


def test_taylor_features_are_all_monomials_with_multinomial_weights():
    phi, x = Taylor(3, 4), torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
    expected = [
        math.prod(float(x[i]) ** n / math.sqrt(math.factorial(n)) for i, n in enumerate(powers))
        for powers in itertools.product(range(5), repeat=3)
        if sum(powers) <= 4
    ]
    torch.testing.assert_close(phi(x).sort().values, torch.tensor(expected, dtype=torch.float64).sort().values)


def test_products_of_the_published_map_are_those_of_its_formula():
    expected = torch.where(X > 0, X + 1, X.exp())
    torch.testing.assert_close(Elu1(3)(X), expected)
    torch.testing.assert_close(Elu1(3, calibrated=True)(X), expected / math.sqrt(3))
    zero = torch.zeros(3, dtype=torch.float64)
    assert float(Elu1(3)(zero) @ Elu1(3)(zero)) == pytest.approx(3)
    assert float(Elu1(3, calibrated=True)(zero) @ Elu1(3, calibrated=True)(zero)) == pytest.approx(1)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_positive_random_features_are_unbiased_for_exp(orthogonal):
    """Within five standard errors over independent maps."""
    maps = [PositiveRandom(3, 60, seed, orthogonal) for seed in range(400)]
    found = torch.stack([phi(X) @ phi(Y).T for phi in maps])
    error = found.std(0) / math.sqrt(len(maps))
    assert (found > 0).all()
    assert ((found.mean(0) - (X @ Y.T).exp()).abs() < 5 * error).all()


def test_orthogonal_directions_have_less_variance():
    def spread(orthogonal: bool) -> float:
        found = [PositiveRandom(3, 3, seed, orthogonal) for seed in range(1000)]
        return float(torch.stack([(phi(X) * phi(Y)).sum(-1) for phi in found]).var(0).mean())

    assert spread(True) < spread(False)


def test_directions_within_a_block_are_orthogonal():
    probe = torch.eye(5, dtype=torch.float64)
    phi = PositiveRandom(5, 12, seed=1)
    rows = (phi(probe) * math.sqrt(12)).log().T + 0.5  # w . e_i - 1/2 for every unit vector: the directions themselves
    for block in (rows[:5], rows[5:10]):
        gram = block @ block.T
        assert float((gram - gram.diag().diag()).abs().max()) < 1e-12


def test_maps_are_values_and_do_not_touch_their_argument():
    assert PositiveRandom(3, 8, 0) == PositiveRandom(3, 8, 0) != PositiveRandom(3, 8, 1)
    drawn = PositiveRandom(3, 8, 0)(X)
    _directions.cache_clear()  # drawn anew, not remembered
    torch.testing.assert_close(PositiveRandom(3, 8, 0)(X), drawn, rtol=0, atol=0)
    for phi in (Elu1(3), Taylor(3, 2), PositiveRandom(3, 8, 0)):
        before = X.clone()
        assert isinstance(phi, FeatureMap)
        assert phi(X.float()).dtype == torch.float32
        phi(X)
        assert torch.equal(X, before)
        leading = phi(X.view(7, 1, 1, 3))
        torch.testing.assert_close(leading.view(7, -1), phi(X))


@pytest.mark.parametrize("phi", [Elu1(3), Elu1(3, calibrated=True), Taylor(3, 3), PositiveRandom(3, 4, 0)], ids=repr)
def test_features_are_differentiable(phi):
    assert torch.autograd.gradcheck(phi, (X[:2].clone().requires_grad_(),))


def test_bad_sizes_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"degree = -1"):
        Taylor(3, -1)
    with pytest.raises(ValueError, match=r"features, more than 4194304: take a lower degree"):
        Taylor(128, 5)
    assert Taylor(64, 4).size <= LARGEST < math.comb(128 + 4, 4)
    for make in (lambda: Elu1(0), lambda: Taylor(0, 1), lambda: PositiveRandom(0, 1, 0)):
        with pytest.raises(ValueError, match=r"d = 0 must be positive"):
            make()
    with pytest.raises(ValueError, match=r"features = 0"):
        PositiveRandom(2, 0, 0)
    for phi in (Elu1(4), Taylor(4, 1), PositiveRandom(4, 2, 0)):
        with pytest.raises(ValueError, match=r"vectors of 4 entries, not of shape \(7, 3\)"):
            phi(X)
