"""Predictions for the stylised model: closed forms against quadrature, Monte Carlo and large networks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from theory.ensemble import normal
from theory.ntk_attention.predictions import (
    DRIFT,
    MOVEMENT,
    convergence_bound,
    drift,
    fluctuation,
    limit_kernel,
    movement,
    population,
    rate,
    residuals,
)  # fmt: skip
from theory.ntk_attention.stylised import descend, initial, kernel, output_scale, outputs

N, D = 3, 2


@pytest.fixture(scope="module")
def X():
    return 0.4 * normal((N, D), "test", "X")


def features(w: torch.Tensor, X: torch.Tensor, sigma: float) -> torch.Tensor:
    """∂F_il/∂w_r with the softmax's denominator at its limit and μ = 0, for a_r = 1: [r, n d, d]."""
    E = (w @ X.T - sigma**2 * X.square().sum(-1) / 2).exp()
    eye = torch.eye(X.shape[1], dtype=X.dtype)
    return (E[:, :, None, None] * (eye + w[:, None, :, None] * X[None, :, None, :])).flatten(1, 2)


def nodes(sigma: float, points: int = 70) -> tuple[torch.Tensor, torch.Tensor]:
    """A Gauss-Hermite rule for w ~ N(0, σ² I) in two dimensions, and its weights."""
    z, p = np.polynomial.hermite_e.hermegauss(points)
    w = torch.tensor(list(itertools.product(z, z)))
    return sigma * w, torch.tensor([a * b for a, b in itertools.product(p, p)]) / p.sum() ** 2


@pytest.mark.parametrize("sigma", [0.6, 1.0, 1.3])
def test_the_limit_of_the_kernel_is_an_expectation_over_one_vector(X, sigma):
    w, p = nodes(sigma)
    phi = features(w, X, sigma)
    expected = torch.einsum("r,rae,rbe->ab", p, phi, phi)
    torch.testing.assert_close(limit_kernel(X, sigma), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(limit_kernel(X, sigma), limit_kernel(sigma * X), rtol=1e-14, atol=0)


@pytest.mark.parametrize("init", ["iid", "sym"])
def test_large_networks_have_the_limit(X, init):
    """A Monte Carlo check by whole networks, signs and denominators included, where tails are light: |σx| = 0.36."""
    K, m, sigma = 100, 4096, 1.2
    x = 0.3 * X / X.norm(dim=-1, keepdim=True)
    W, a = initial([init] * K, range(K), m, D, sigma)
    drawn = kernel(W, a, x.expand(K, N, D))
    error = drawn.std(0) / K**0.5
    assert float(((drawn.mean(0) - limit_kernel(x, sigma)).abs() / error).max()) < 4
    assert float(error.max()) < 0.01


@pytest.mark.parametrize("sigma", [0.6, 1.3])
def test_the_constant_of_the_fluctuation_is_a_variance_over_one_vector(X, sigma):
    w, p = nodes(sigma)
    theta, phi = limit_kernel(X, sigma), features(w, X, sigma)
    E = (w @ X.T - sigma**2 * X.square().sum(-1) / 2).exp().repeat_interleave(D, 1)
    psi = torch.einsum("rae,rbe->rab", phi, phi) - theta * (E[:, :, None] + E[:, None] - 1)
    assert float(torch.einsum("r,rab->ab", p, psi).abs().max()) < 1e-9
    expected = float(p @ psi.square().sum((1, 2)) / theta.square().sum())
    assert fluctuation(X, sigma) == pytest.approx(expected, rel=1e-9)
    assert fluctuation(X, sigma, "sym") == pytest.approx(2 * expected, rel=1e-9)


@pytest.mark.parametrize("init", ["iid", "sym"])
def test_kernels_of_large_networks_fluctuate_so_much(X, init):
    K, m = 400, 1024
    x = 0.3 * X / X.norm(dim=-1, keepdim=True)
    W, a = initial([init] * K, range(K), m, D)
    theta = limit_kernel(x)
    found = m * (kernel(W, a, x.expand(K, N, D)) - theta).square().sum((1, 2)) / theta.square().sum()
    error = float(found.std()) / K**0.5
    expected = fluctuation(x, init=init)
    assert abs(float(found.mean()) - expected) < 4 * error
    assert error < 0.12 * expected


def test_the_limit_is_positive_definite_for_distinct_inputs_alone(X):
    values = torch.linalg.eigvalsh(limit_kernel(X))
    assert float(values[0]) > 1e-6 * float(values[-1])
    twice = torch.linalg.eigvalsh(limit_kernel(torch.cat([X, X[:1]])))
    assert float(twice[D - 1].abs()) < 1e-13 * float(twice[-1])  # D zeros
    assert float(twice[D]) > 1e-6 * float(twice[-1])


def test_trajectories_of_a_fixed_kernel(X):
    theta, start, lr = limit_kernel(X), normal((N * D,), "test", "start"), 0.1
    left, found = start, residuals(theta, start, lr, torch.arange(5))
    for t in range(5):
        torch.testing.assert_close(found[t], left, rtol=1e-12, atol=1e-12)
        left = left - lr * (theta @ left)
    values, vectors = torch.linalg.eigh(theta)
    along = residuals(theta, vectors[:, 2], lr, torch.tensor([0, 7])).norm(dim=-1)
    assert float((along[0] / along[1]).log() / 7) == pytest.approx(float(rate(lr, values)[2]), rel=1e-9)


def test_movement_is_that_of_a_sum_of_gradient_steps(X):
    """With a fixed kernel the movement is η c Jᵀ Σ_t r_t, of which √m |·| is a quadratic form in Θ."""
    theta, start, lr, c, m = limit_kernel(X), normal((N * D,), "test", "start"), 0.1, 0.5, 100
    total = residuals(theta, start, lr, torch.arange(30)).sum(0) * lr / (c * m)
    expected = math.sqrt(float(total @ theta @ total))
    assert movement(theta, start, c, m, lr, 30) == pytest.approx(expected, rel=1e-10)
    converged = math.sqrt(float(start @ torch.linalg.solve(theta, start))) / (c * m)
    assert movement(theta, start, c, m) == pytest.approx(converged, rel=1e-8)
    assert movement(theta, start, c, m, lr, 10**7) == pytest.approx(converged, rel=1e-8)


def test_nodes_of_a_population_are_a_rule_for_gaussian_vectors():
    W, a, mass = population(2, 6, sigma=1.5)
    assert W.shape == (1, 72, 2)
    assert float(mass.mean()) == pytest.approx(1, rel=1e-12)
    second = torch.einsum("r,ri,rj->ij", mass, W[0], W[0]) / len(mass)
    torch.testing.assert_close(second, 1.5**2 * torch.eye(2, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert float((a * mass).sum().abs()) < 1e-12
    theta = kernel(*population(2, 30)[:2], (x := normal((1, N, 2), "x") / 3), population(2, 30)[2])
    torch.testing.assert_close(theta[0], limit_kernel(x[0]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", ["paper", "ntk"])
def test_large_networks_move_and_change_as_infinite_ones(scale):
    """Within what is left at m = 65 536 of fluctuations of order m^(−1/2), larger for the fourth powers in the drift."""
    x, y, m, steps = 0.4 * torch.eye(D, dtype=torch.float64), normal((D, D), "test", "y") / 2, 2**16, 40
    c, theta = output_scale(scale, m), limit_kernel(x)
    lr = 0.5 / float(torch.linalg.eigvalsh(theta)[-1])
    changed, moved = drift(x, y, lr, steps, points=24)
    assert moved == pytest.approx(movement(theta, y.flatten(), 1.0, 1, lr, steps), rel=1e-6)
    assert drift(x, y, lr, steps, points=18)[0] == pytest.approx(changed, rel=1e-6)
    W, a = initial(["sym"], [0], m, D)
    one = torch.tensor([c], dtype=torch.float64)
    ended = descend(W, a, x[None], y[None], one, lr / (one * one * m), steps).W
    before, after = kernel(W, a, x[None]), kernel(ended, a, x[None])
    assert float((after - before).norm() / before.norm()) * (c * m) ** 2 == pytest.approx(changed, rel=0.1)
    assert float((ended - W).square().sum(-1).mean().sqrt()) * c * m == pytest.approx(moved, rel=0.02)


def test_derived_exponents_are_those_of_the_residual_over_the_size_of_the_readout():
    for (init, scale), exponent in MOVEMENT.items():
        c = math.log(output_scale(scale, 1000), 1000)
        start = 0.0 if init == "sym" else max(0.0, c + 0.5)
        assert exponent == pytest.approx(start - c - 1)
        assert DRIFT[init, scale] == 2 * exponent


def test_outputs_with_independent_signs_grow_as_the_root_of_m(X):
    """What the exponents under independent signs rest on."""
    found = {}
    for m in (256, 4096):
        W, a = initial(["iid"] * 100, range(100), m, D)
        found[m] = float(outputs(W, a, X.expand(100, N, D)).square().mean().sqrt())
    assert found[4096] / found[256] == pytest.approx(4, rel=0.25)


def test_the_bound_of_the_theorem():
    found = convergence_bound(0.1, 2.0, torch.tensor([0, 1, 10]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.9, 0.9**10], dtype=torch.float64))


def test_what_makes_no_sense_is_refused(X):
    with pytest.raises(ValueError, match=r"X must be a matrix \[n, d\], got shape \(3,\)"):
        limit_kernel(X[:, 0])
    with pytest.raises(ValueError, match=r"sigma = -1.0 must be positive"):
        fluctuation(X, -1.0)
    singular = limit_kernel(torch.cat([X, X[:1]]))
    with pytest.raises(ValueError, match="the kernel is singular: its smallest eigenvalue is"):
        movement(singular, torch.ones(len(singular), dtype=torch.float64), 1.0, 8)
    with pytest.raises(ValueError, match=r"10 points in each of 6 dimensions are 2 · 10\^6 nodes: too many"):
        population(6, 10)
