"""The limits of attention: against quadrature, closed forms, a variance law and regression by other means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import eval_gegenbauer, gammaln

from theory.icl.attention import (
    RIDGES,
    cme_attention,
    degree_one_prompts,
    funk_hecke,
    kernel_eigenvalue,
    limit_constant,
    linear_kernel,
    mixed_degree_prompts,
    predicted_constant,
    rbf_kernel,
    softmax_attention,
)

SEEDS = range(6)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zonal(d: int, degree: int, t: float) -> float:
    """The zonal harmonic of S^{d−1}, 1 at t = 1: Chebyshev on the circle, Gegenbauer above."""
    if d == 2:
        return float(np.cos(degree * np.arccos(t)))
    alpha = d / 2 - 1
    return float(eval_gegenbauer(degree, alpha, t) / eval_gegenbauer(degree, alpha, 1.0))


@pytest.mark.parametrize("d", [2, 3, 5, 20])
@pytest.mark.parametrize("degree", [0, 1, 2, 4])
@pytest.mark.parametrize("gamma", [0.1, 1.0, 30.0])
def test_the_kernel_acts_on_harmonics_as_quadrature_says(d, degree, gamma):
    """μ_ℓ = c_d ∫ exp((cos θ − 1)/γ) P_ℓ(cos θ) sin^{d−2}θ dθ with c_d the constant that gives mass 1."""
    log_mass = 0.5 * np.log(np.pi) + gammaln((d - 1) / 2) - gammaln(d / 2)  # ∫ sin^{d−2}

    def integrand(angle: float) -> float:
        t = np.cos(angle)
        return np.exp((t - 1) / gamma - log_mass) * zonal(d, degree, t) * np.sin(angle) ** (d - 2)

    mu = quad(integrand, 0, np.pi, epsabs=1e-14)[0]
    assert kernel_eigenvalue(d, gamma, degree) == pytest.approx(mu, rel=1e-9, abs=1e-13)
    assert funk_hecke(d, gamma, degree) == pytest.approx(
        kernel_eigenvalue(d, gamma, degree) / kernel_eigenvalue(d, gamma, 0), rel=1e-12
    )


def test_the_mean_resultant_length_has_its_closed_form_and_limits():
    """A_3(κ) = coth κ − 1/κ, A_d(κ) → κ/d at 0 and 1 − (d − 1)/2κ at infinity; A_d falls with d."""
    for kappa in (0.3, 1.0, 4.0, 30.0):
        assert funk_hecke(3, 1 / kappa, 1) == pytest.approx(1 / np.tanh(kappa) - 1 / kappa, rel=1e-12)
    for d in (2, 3, 8):
        assert funk_hecke(d, 1e6, 1) == pytest.approx(1e-6 / d, rel=1e-9)
        assert funk_hecke(d, 1e-6, 1) == pytest.approx(1 - (d - 1) / 2 * 1e-6, abs=1e-11)
        assert funk_hecke(d, 0.7, 0) == 1
    assert funk_hecke(2, 1, 1) > funk_hecke(3, 1, 1) > funk_hecke(8, 1, 1)


def test_softmax_attention_weighs_values_by_the_kernel_and_ignores_the_dimension():
    q, K, V = draw(2, 5, 3), draw(2, 7, 3, seed=1), draw(2, 7, 4, seed=2)
    K = K / K.norm(dim=-1, keepdim=True)  # unit keys: softmax weights are Gaussian kernel weights
    weights = rbf_kernel(0.6)(q, K)
    expected = (weights / weights.sum(-1, keepdim=True)) @ V
    torch.testing.assert_close(softmax_attention(q, K, V, 0.6), expected, rtol=1e-12, atol=1e-12)


def test_kernel_attention_solves_the_ridge_problem_and_has_the_known_limits():
    q, K, V = draw(3, 5, 4), draw(3, 9, 4, seed=1), draw(3, 9, 2, seed=2)
    primal = torch.linalg.solve(K.mT @ K + 0.3 * torch.eye(4).double(), K.mT @ V)  # ridge regression in R^4
    torch.testing.assert_close(cme_attention(q, K, V, linear_kernel, 0.3), q @ primal, rtol=1e-11, atol=1e-11)
    # ρ → 0: interpolation of the values at the keys; ρ → ∞: 𝔎(q, K) V / ρ → 0
    kernel = rbf_kernel(0.4)
    torch.testing.assert_close(cme_attention(K, K, V, kernel, 1e-9), V, rtol=0, atol=1e-5)
    large = cme_attention(q, K, V, kernel, 1e9)
    torch.testing.assert_close(1e9 * large, kernel(q, K) @ V, rtol=1e-7, atol=1e-7)
    # λ → ∞ in the Gaussian linear model, fewer examples than dimensions: the minimum-norm interpolant
    few, values = K[:, :3], V[:, :3]
    norm = q @ torch.linalg.pinv(few) @ values
    torch.testing.assert_close(cme_attention(q, few, values, linear_kernel, 1e-10), norm, rtol=1e-8, atol=1e-8)


def test_the_gaussian_kernel_is_one_at_distance_zero_and_the_exponential_of_distance_elsewhere():
    a, b = draw(6, 3), draw(4, 3, seed=1)
    expected = torch.exp(-torch.cdist(a, b).square() / (2 * 0.7))
    torch.testing.assert_close(rbf_kernel(0.7)(a, b), expected, rtol=1e-12, atol=0)
    assert bool((rbf_kernel(1e-3)(100 * a, 100 * a) <= 1).all())


@pytest.mark.parametrize(("d", "strength", "gamma"), [(3, 0.9, 1.0), (2, 0.5, 0.5)])
def test_softmax_attention_tends_to_the_shrunk_mean_as_one_over_root_t(d, strength, gamma):
    """T E‖attn − a E[v|q]‖² → E[𝔎²‖v − a E[v|q]‖²]/E[𝔎]² (delta method), and 𝔎² is the kernel of bandwidth γ/2.

    With a = a_1(γ) and ρ the strength that is μ_0(γ/2)/μ_0(γ)² · (1 − 2 a a_1(γ/2) ρ² + a²ρ²).
    """
    a = funk_hecke(d, gamma, 1)
    spread = kernel_eigenvalue(d, gamma / 2, 0) / kernel_eigenvalue(d, gamma, 0) ** 2
    limit = spread * (1 - 2 * a * funk_hecke(d, gamma / 2, 1) * strength**2 + (a * strength) ** 2)
    sizes, errors = (128, 512, 2048), []
    for T in sizes:
        prompt = degree_one_prompts(d, T, strength, range(24), queries=64)
        seen = softmax_attention(prompt.queries, prompt.keys, prompt.values, gamma)
        errors.append(float((seen - prompt.softmax_limit(gamma)).square().sum(-1).mean()))
    np.testing.assert_allclose(np.array(errors) * sizes, limit, rtol=0.25)
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] / 2 == pytest.approx(-0.5, abs=0.08)


@pytest.mark.parametrize("rule", sorted(RIDGES))
def test_the_fitted_constant_follows_its_prediction_for_both_ridges(rule):
    """Both rise to 1/a_1; with the paper's ridge T^{3/4} the constant is still at half of it for T = 1024."""
    T, gamma = 1024, 1.0
    prompt = degree_one_prompts(3, T, 0.9, SEEDS, queries=100)
    soft = softmax_attention(prompt.queries, prompt.keys, prompt.values, gamma)
    dagger = cme_attention(prompt.queries, prompt.keys, prompt.values, rbf_kernel(gamma), RIDGES[rule](T))
    fitted, residual = limit_constant(dagger, soft)
    predicted = predicted_constant(3, gamma, 1, T, RIDGES[rule](T))
    assert float(fitted.mean()) == pytest.approx(predicted, rel=0.04)
    assert float(residual.max()) < 0.2
    limit = 1 / funk_hecke(3, gamma, 1)
    assert predicted_constant(3, gamma, 1, 10**20, RIDGES[rule](10**20)) == pytest.approx(limit, rel=1e-4)
    # the distance to the limit falls by 2 when T grows by 2^4 with ρ = T^{3/4}, by 2 when T doubles with ρ fixed
    factor = {"paper": 16, "fixed": 2}[rule]
    gaps = [limit - predicted_constant(3, gamma, 1, n, RIDGES[rule](n)) for n in (10**16, factor * 10**16)]
    if rule == "paper":
        assert gaps[0] / gaps[1] == pytest.approx(2, rel=1e-2)
    else:
        assert RIDGES[rule](1) == RIDGES[rule](10**16) == 1


def test_no_single_constant_fits_targets_of_two_degrees():
    """Each coordinate has its own constant 1/a_ℓ, so the joint residual stays where one coordinate's would vanish."""
    gamma, T = 0.5, 1024
    prompt = mixed_degree_prompts(T, 0.9, SEEDS, queries=100)
    soft = softmax_attention(prompt.queries, prompt.keys, prompt.values, gamma)
    dagger = cme_attention(prompt.queries, prompt.keys, prompt.values, rbf_kernel(gamma), 1.0)
    for degree in (1, 2):
        part = slice(degree - 1, degree)
        constant, residual = limit_constant(dagger[..., part], soft[..., part])
        assert float(constant.mean()) == pytest.approx(predicted_constant(2, gamma, degree, T, 1.0), rel=0.12)
        assert float(residual.mean()) < 0.3
    a = np.array([funk_hecke(2, gamma, degree) for degree in (1, 2)])
    # of the limits themselves, both coordinates of equal power: Ĉ = Σ a_ℓ/Σ a_ℓ², ρ² = 1 − (Σ a_ℓ)²/(2 Σ a_ℓ²)
    constant, residual = limit_constant(dagger, soft)
    assert float(constant.mean()) == pytest.approx(a.sum() / (a**2).sum(), rel=0.08)
    assert float(residual.mean()) == pytest.approx(np.sqrt(1 - a.sum() ** 2 / (2 * (a**2).sum())), rel=0.15)


def test_the_prompts_have_the_stated_conditional_mean():
    """E[v ⊗ k] of degree one is ρZ/d; on the circle E[v_2 cos 2θ] = ρ/4 and the second coordinate is blind to cos θ."""
    prompt = degree_one_prompts(3, 40_000, 0.6, [4], queries=3)
    Z = torch.linalg.lstsq(prompt.queries[0], prompt.mean[0] / 0.6).solution.T
    torch.testing.assert_close(Z @ Z.T, torch.eye(3).double(), rtol=0, atol=1e-12)
    cross = prompt.values[0].T @ prompt.keys[0] / 40_000
    torch.testing.assert_close(cross, 0.6 * Z / 3, rtol=0, atol=5 * (1 / 3 / 40_000) ** 0.5)
    mixed = mixed_degree_prompts(40_000, 0.9, [4], queries=3)
    cosine = mixed.keys[0, :, 0]
    table = mixed.values[0].T @ torch.stack([cosine, 2 * cosine.square() - 1], dim=1) / 40_000
    torch.testing.assert_close(table, 0.9 / 4 * torch.eye(2).double(), rtol=0, atol=5 * (1 / 2 / 40_000) ** 0.5)
    asked = mixed.queries[..., 0]
    torch.testing.assert_close(mixed.mean, 0.45 * torch.stack([asked, 2 * asked.square() - 1], dim=-1))
    seen = softmax_attention(mixed.queries, mixed.keys, mixed.values, 0.5)
    torch.testing.assert_close(seen, mixed.softmax_limit(0.5), rtol=0, atol=0.03)  # 1/√T = 0.005
    for each in (prompt, mixed):
        for vectors in (each.keys, each.values, each.queries):
            torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:2]).double())


def test_the_constant_is_the_least_squares_one():
    plain, noise = draw(3, 5, 2), draw(3, 5, 2, seed=1)
    flat = plain.flatten(1)
    off = noise.flatten(1) - (noise.flatten(1) * flat).sum(1, keepdim=True) / flat.square().sum(1, keepdim=True) * flat
    dagger = 2.5 * plain + off.view_as(plain)
    constant, residual = limit_constant(dagger, plain)
    torch.testing.assert_close(constant, torch.full((3,), 2.5).double())
    torch.testing.assert_close(residual, off.norm(dim=1) / dagger.flatten(1).norm(dim=1))


def test_a_member_alone_agrees_with_the_stack():
    stack = degree_one_prompts(3, 64, 0.9, SEEDS, queries=10)
    alone = degree_one_prompts(3, 64, 0.9, [3], queries=10)
    for prompt in (stack, alone):
        assert prompt.keys.dtype == torch.float64
    torch.testing.assert_close(stack.values[3], alone.values[0], rtol=1e-12, atol=1e-12)
    for attend in (
        lambda p: softmax_attention(p.queries, p.keys, p.values, 0.8),
        lambda p: cme_attention(p.queries, p.keys, p.values, rbf_kernel(0.8), 1.0),
    ):
        torch.testing.assert_close(attend(stack)[3], attend(alone)[0], rtol=1e-10, atol=1e-12)


def test_bad_input_is_named():
    q, K, V = draw(5, 3), draw(7, 3), draw(7, 2)
    with pytest.raises(ValueError, match=r"share d.*got q \[5, 2\]"):
        softmax_attention(q[:, :2], K, V, 1.0)
    with pytest.raises(ValueError, match=r"share T.*V \[6, 2\]"):
        cme_attention(q, K, V[:6], linear_kernel, 1.0)
    with pytest.raises(ValueError, match=r"takes q \[\.\.\., n, d\].*got q \[3\]"):
        softmax_attention(q[0], K, V, 1.0)
    with pytest.raises(ValueError, match=r"ridge = 0\.0 must be positive"):
        cme_attention(q, K, V, linear_kernel, 0.0)
    with pytest.raises(ValueError, match=r"gamma = -1\.0 must be positive"):
        rbf_kernel(-1.0)
    with pytest.raises(ValueError, match="d = 1 must be at least 2"):
        funk_hecke(1, 1.0, 1)
    with pytest.raises(ValueError, match="underflows at d = 2000"):
        funk_hecke(2000, 1.0, 1)
    with pytest.raises(ValueError, match=r"strength = 1\.5 must lie in"):
        degree_one_prompts(3, 8, 1.5, [0], queries=2)
    with pytest.raises(ValueError, match="0 seeds"):
        mixed_degree_prompts(8, 0.5, [], queries=2)
    with pytest.raises(ValueError, match=r"got \[5, 3\] and \[7, 3\]"):
        limit_constant(q, K)
