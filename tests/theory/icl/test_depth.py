"""The depth stack: exact spectra and risks against moments, simulation and a search; laws of decay against themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from theory.icl.depth import (
    Spectra,
    bayes_risk,
    constant_steps,
    decay_law,
    excess_risk,
    one_layer_risk,
    optimal_steps,
    run_stack,
    sampled_spectra,
    wishart_spectra,
)

D4, N16, NOISE = 4, 16, 0.25
RHO = NOISE / N16


def excess_at(spectra: Spectra, rho: float, depth: int) -> float:
    return float(excess_risk(spectra, rho, *optimal_steps(spectra, rho, depth)))


@pytest.mark.parametrize(
    ("d", "n"),
    [(1, 1), (1, 6), (2, 2), (2, 9), (3, 3), (3, 8), (4, 16), (5, 30), (7, 7), (8, 1000), (33, 60), (64, 64)],
)
def test_exact_spectra_have_the_moments_of_a_wishart_matrix(d, n):
    """E tr G = d, E tr G² = d(n + d + 1)/n, E tr G³ = d(n² + d² + 3nd + 3n + 3d + 4)/n², E tr G⁻¹ = dn/(n − d − 1)."""
    spectra = wishart_spectra([(d, n)])
    nodes, weights = spectra.nodes[0], spectra.weights[0]
    expected = [d, d, d * (n + d + 1) / n, d * (n**2 + d**2 + 3 * n * d + 3 * n + 3 * d + 4) / n**2]
    for power, value in enumerate(expected):
        assert float((weights * nodes**power).sum()) == pytest.approx(value, rel=1e-11)
    if n > d + 1:
        assert float((weights[1:] / nodes[1:]).sum()) == pytest.approx(d * n / (n - d - 1), rel=1e-11)
    # XᵀX and XXᵀ share their nonzero eigenvalues: (n, d) has those of (d, n) times n/d, and n − d zeros
    other = wishart_spectra([(n, d)]) if n > d else spectra
    torch.testing.assert_close(other.nodes[0] * d / n if n > d else other.nodes[0], nodes)
    assert float(other.weights[0, 0]) == n - d


def test_one_wishart_degree_of_freedom_is_a_chi_square():
    """D = 1: nG is χ²_n, so E exp(−s G) = (1 + 2s/n)^{−n/2}."""
    for n in (1, 2, 7):
        spectra = wishart_spectra([(1, n)])
        laplace = float((spectra.weights * torch.exp(-0.8 * spectra.nodes)).sum())
        assert laplace == pytest.approx((1 + 1.6 / n) ** (-n / 2), rel=1e-11)
        high = float((spectra.weights * (n * spectra.nodes) ** 24).sum())
        assert high == pytest.approx(float(np.prod(n + 2.0 * np.arange(24))), rel=1e-11)


def test_sampled_spectra_estimate_the_exact_ones():
    exact = wishart_spectra([(3, 5)])
    sampled = sampled_spectra(3, 5, 4000, [0, 1])
    assert sampled.nodes.shape == (2, 12_000)
    for function in (torch.sqrt, torch.square, lambda x: 1 / (x + 0.3), lambda x: (x > 1).double()):
        expected = float((exact.weights * function(exact.nodes)).sum())
        found = (sampled.weights * function(sampled.nodes)).sum(1)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0.04)
    lacking = sampled_spectra(5, 2, 10, [0]).nodes.view(10, 5)
    assert bool((lacking[:, :3] == 0).all())
    assert bool((lacking[:, 3:] > 0).all())


def test_risks_are_those_of_the_stack_on_simulated_tasks():
    """Run the layers on drawn tasks: the mean of ‖w_D − w‖² and of ‖w_D − ridge mean‖² are the two exact formulas."""
    S = 6000
    generator = torch.Generator().manual_seed(0)
    X, w, noise = (
        torch.randn(S, *shape, generator=generator, dtype=torch.float64) for shape in ((N16, D4), (D4,), (N16,))
    )
    y = (X @ w.unsqueeze(2)).squeeze(2) + NOISE**0.5 * noise
    G, b = X.mT @ X / N16, (X.mT @ y.unsqueeze(2)).squeeze(2) / N16
    eta = torch.tensor([[0.3, 0.7, 0.5]]).double()
    delta = torch.tensor([[0.02, 0.0, 0.1]]).double()
    last = run_stack(G.unsqueeze(0), b.unsqueeze(0), eta, delta)[0]
    ridge = torch.linalg.solve(G + RHO * torch.eye(D4).double(), b)
    spectra = wishart_spectra([(D4, N16)])
    excess, bayes = float(excess_risk(spectra, RHO, eta, delta)), float(bayes_risk(spectra, RHO))
    for samples, expected in (
        ((last - w).square().sum(1), excess + bayes),
        ((last - ridge).square().sum(1), excess),
        ((ridge - w).square().sum(1), bayes),
    ):
        assert float(samples.mean()) == pytest.approx(expected, abs=4 * float(samples.std()) / S**0.5)


def test_one_layer_has_its_closed_form():
    """The best single multiple of b is 1/(1 + (d + 1 + σ²)/n)."""
    for d, n, noise in ((4, 16, 0.25), (2, 5, 1.0), (8, 8, 0.1)):
        spectra = wishart_spectra([(d, n)])
        eta, delta = optimal_steps(spectra, noise / n, 1)
        assert float(eta) == pytest.approx(1 / (1 + (d + 1 + noise) / n), rel=1e-9)
        risk = float(excess_risk(spectra, noise / n, eta, delta) + bayes_risk(spectra, noise / n))
        assert risk == pytest.approx(one_layer_risk(d, n, noise), rel=1e-9)
    assert one_layer_risk(4, 16, 0.25) == pytest.approx(0.98824, abs=5e-6)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_no_search_over_both_scalars_of_every_layer_does_better(depth):
    """A quasi-Newton search of all 2D scalars from elsewhere comes down to the closed form and not below it."""
    spectra = wishart_spectra([(D4, N16)], points=120)
    best = excess_at(spectra, RHO, depth)

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        steps = torch.from_numpy(x).view(2, 1, depth).requires_grad_()
        value = excess_risk(spectra, RHO, steps[0], steps[1]).sum()
        return float(value.detach()), torch.autograd.grad(value, steps)[0].flatten().numpy()

    start = np.concatenate([np.linspace(0.3, 1.0, depth), np.full(depth, 0.01)])
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 3000, "ftol": 0, "gtol": 1e-10})
    assert found.fun == pytest.approx(best, rel=1e-5)
    assert found.fun >= best * (1 - 1e-9)
    at = np.concatenate([part.numpy().ravel() for part in optimal_steps(spectra, RHO, depth)])
    assert np.abs(objective(at)[1]).max() < 1e-9


def test_the_optimum_is_the_best_polynomial_of_its_degree():
    """Weighted least squares for p of degree D − 1, with weights λ(λ + ρ) and target 1/(λ + ρ): the same minimum."""
    spectra = wishart_spectra([(D4, N16)])
    nodes, weights = spectra.nodes[0].numpy(), spectra.weights[0].numpy()
    root = np.sqrt(weights * nodes * (nodes + RHO))
    for depth in (2, 5, 8):
        basis = np.polynomial.chebyshev.chebvander(nodes / 4 - 1, depth - 1)
        target = root / (nodes + RHO)
        residual = target - root[:, None] * basis @ np.linalg.lstsq(root[:, None] * basis, target, rcond=None)[0]
        assert excess_at(spectra, RHO, depth) == pytest.approx(float(residual @ residual), rel=1e-7)


def test_as_many_layers_as_eigenvalues_reach_the_ridge_mean():
    spectra = Spectra(torch.tensor([[0.0, 0.4, 1.1, 2.5]]).double(), torch.ones(1, 4).double())
    eta, delta = optimal_steps(spectra, 0.1, 3)
    assert float(excess_risk(spectra, 0.1, eta, delta)) < 1e-20
    torch.testing.assert_close(eta, 1 / (torch.tensor([[2.5, 1.1, 0.4]]).double() + 0.1))
    torch.testing.assert_close(delta, 0.1 * eta)
    assert excess_at(spectra, 0.1, 2) > 1e-3
    with pytest.raises(ValueError, match="depth = 4 exceeds the number of distinct positive eigenvalues, 3"):
        optimal_steps(spectra, 0.1, 4)


def test_steps_that_were_never_fitted_descend_as_powers():
    """η fixed and δ = 0: λp(λ) = 1 − (1 − ηλ)^D, the polynomial of gradient descent; for D → ∞ least squares is left."""
    spectra = wishart_spectra([(D4, N16)])
    nodes, weights = spectra.nodes, spectra.weights
    for depth in (1, 7):
        p = (1 - (1 - 0.05 * nodes[:, 1:]) ** depth) / nodes[:, 1:]
        gap = weights[:, 1:] * nodes[:, 1:] * (nodes[:, 1:] + RHO) * (p - 1 / (nodes[:, 1:] + RHO)) ** 2
        assert float(excess_risk(spectra, RHO, *constant_steps(1, depth, 0.05))) == pytest.approx(
            float(gap.sum()), rel=1e-9
        )
    # E‖least squares − w‖² = (σ²/n) E tr G⁻¹ = σ² d/(n − d − 1)
    last = float(excess_risk(spectra, RHO, *constant_steps(1, 5000, 0.05)) + bayes_risk(spectra, RHO))
    assert last == pytest.approx(NOISE * D4 / (N16 - D4 - 1), rel=0.01)
    assert all(
        excess_at(spectra, RHO, depth) < float(excess_risk(spectra, RHO, *constant_steps(1, depth, 0.05)))
        for depth in (1, 4, 8)
    )


def test_the_optimal_excess_decays_faster_than_any_power_and_slower_than_an_exponential():
    """The spectrum has Laguerre-like tails on [0, ∞), where orthogonal polynomials at −ρ grow as exp(c √D)."""
    spectra = wishart_spectra([(D4, N16)])
    depths = list(range(1, 13))
    errors = [excess_at(spectra, RHO, depth) for depth in depths]
    laws = decay_law(depths, errors)
    assert next(iter(laws)) == "exponential"
    assert 0.4 < laws["exponential"].power < 0.75
    local = -np.diff(np.log(errors))
    assert bool((np.diff(local) < 0).all())  # each further layer gains less
    assert bool((np.diff(local * depths[1:]) > 0).all())  # and yet the local power grows


def test_members_are_independent_of_the_stack():
    sizes, rho = [(4, 16), (2, 8), (8, 4)], torch.tensor([0.02, 0.1, 0.3]).double()
    stack = wishart_spectra(sizes)
    steps = optimal_steps(stack, rho, 4)
    excess, bayes = excess_risk(stack, rho, *steps), bayes_risk(stack, rho)
    for k, size in enumerate(sizes):
        alone = wishart_spectra([size])
        own = optimal_steps(alone, float(rho[k]), 4)
        torch.testing.assert_close(own[0][0], steps[0][k], rtol=1e-10, atol=0)
        torch.testing.assert_close(excess_risk(alone, float(rho[k]), *own)[0], excess[k], rtol=1e-9, atol=0)
        torch.testing.assert_close(bayes_risk(alone, float(rho[k]))[0], bayes[k], rtol=1e-10, atol=0)
    two, one = sampled_spectra(3, 6, 50, [7, 8]), sampled_spectra(3, 6, 50, [8])
    torch.testing.assert_close(two.nodes[1], one.nodes[0], rtol=0, atol=0)
    # one exact measure judges the steps of every member
    fitted = optimal_steps(sampled_spectra(4, 16, 500, [0, 1, 2]), RHO, 3)
    judged = excess_risk(wishart_spectra([(4, 16)]), RHO, *fitted)
    assert judged.shape == (3,)
    assert bool((judged > excess_at(wishart_spectra([(4, 16)]), RHO, 3)).all())


@pytest.mark.parametrize(
    ("name", "errors"),
    [
        ("exponential", lambda D: 3 * np.exp(-0.8 * D)),
        ("exponential", lambda D: 3 * np.exp(-2.5 * D**0.5)),
        ("power", lambda D: 0.7 * D**-2.0),
        ("constant", lambda D: np.full_like(D, 0.2)),
    ],
)
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_each_law_is_recognised_by_its_own_data(name, errors, noise):
    depths = np.arange(1.0, 13.0)
    seen = errors(depths) * np.exp(noise * np.random.default_rng(1).standard_normal(12))
    laws = decay_law(depths, seen)
    assert next(iter(laws)) == name
    assert [law.aicc for law in laws.values()] == sorted(law.aicc for law in laws.values())
    if noise:
        return
    law = laws[name]
    if name == "exponential":
        predicted = law.level - law.rate * depths**law.power
        np.testing.assert_allclose(predicted, np.log(seen), atol=1e-5)
        assert law.power == pytest.approx(1.0 if seen[1] / seen[0] > np.exp(-0.9) else 0.5, abs=1e-4)
    elif name == "power":
        assert (law.rate, law.level) == pytest.approx((2.0, np.log(0.7)))
    else:
        assert (law.rate, law.level) == pytest.approx((0.0, np.log(0.2)))


def test_the_criterion_is_that_of_its_formula():
    depths, errors = [1, 2, 3, 4, 5, 6, 8], [0.9, 0.29, 0.12, 0.05, 0.02, 0.012, 0.003]
    laws = decay_law(depths, errors)
    m, logs = 7, np.log(errors)
    assert laws["constant"].rss == pytest.approx(((logs - logs.mean()) ** 2).sum())
    slope, level = np.polyfit(np.log(depths), logs, 1)
    assert (laws["power"].rate, laws["power"].level) == pytest.approx((-slope, level))
    for law, k in ((laws["exponential"], 4), (laws["power"], 3), (laws["constant"], 2)):
        assert law.aicc == pytest.approx(m * np.log(law.rss / m) + 2 * k + 2 * k * (k + 1) / (m - k - 1))
    for p in (0.3, 0.6, 0.9, 1.0, 2.0):  # no other power fits better
        fit = np.polyfit(np.array(depths) ** p, logs, 1)
        assert laws["exponential"].rss <= ((np.polyval(fit, np.array(depths) ** p) - logs) ** 2).sum() + 1e-12


def test_bad_input_is_named():
    spectra = wishart_spectra([(2, 4)], points=20)
    one = torch.ones(1, 2).double()
    with pytest.raises(ValueError, match=r"pairs \(d, n\).*got \[\(0, 3\)\]"):
        wishart_spectra([(0, 3)])
    with pytest.raises(ValueError, match="tasks = 0 must be at least 1"):
        sampled_spectra(2, 4, 0, [0])
    with pytest.raises(ValueError, match="cannot be negative"):
        Spectra(-one, one)
    with pytest.raises(ValueError, match=r"got \[1, 2\] and \[1, 1\]"):
        Spectra(one, one[:, :1])
    with pytest.raises(ValueError, match="depth = 0 must be at least 1"):
        optimal_steps(spectra, 0.1, 0)
    with pytest.raises(ValueError, match=r"none negative, got -0\.1"):
        bayes_risk(spectra, -0.1)
    with pytest.raises(ValueError, match=r"1 or K = 3 members.*got 2"):
        excess_risk(wishart_spectra([(2, 4), (2, 5)]), 0.1, *constant_steps(3, 2, 0.05))
    with pytest.raises(ValueError, match=r"eta and delta.*\[1, 2\] and \[1, 1\]"):
        excess_risk(spectra, 0.1, one, one[:, :1])
    with pytest.raises(ValueError, match=r"G must be.*K = 1"):
        run_stack(torch.ones(2, 3, 2, 2), torch.ones(2, 3, 2), one, one)
    with pytest.raises(ValueError, match="at least 6 depths"):
        decay_law([1, 2, 3, 4, 5], [1.0] * 5)
    with pytest.raises(ValueError, match="errors positive"):
        decay_law(range(1, 7), [1, 1, 1, 1, 1, 0])
