from __future__ import annotations

import math

import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from sklearn.linear_model import BayesianRidge
from torch import Tensor

from theory.icl import tasks
from theory.icl.regression import (
    cme_attention,
    cme_variance,
    difference,
    dmmse,
    expected_regret,
    information_gain,
    information_limit,
    kalman,
    linear_kernel,
    posterior,
    ridge,
    sampled_regret,
)
from theory.icl.tasks import linear_prompts, pool_prompts, pool_tasks

LAM, SIGMA2, D = 2.0, 0.25, 3


def close(a: Tensor, b: Tensor | float, tolerance: float = 1e-10) -> bool:
    return float((a - b).abs().max()) <= tolerance


@pytest.fixture(scope="module")
def prompts() -> tuple[Tensor, Tensor, Tensor]:
    return linear_prompts([1, 2], 20, 12, D, LAM, SIGMA2)


Prompts = tuple[Tensor, Tensor, Tensor]


def rbf(a: Tensor, b: Tensor) -> Tensor:
    return (-torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / 2).exp()


# Attention and posterior ------------------------------------------------------------------------------------------


def test_attention_is_the_posterior_mean_at_the_ridge_of_noise_over_prior(prompts: Prompts) -> None:
    X, y, _ = prompts
    q = linear_prompts([7, 8], 20, 5, D, LAM, SIGMA2)[0]
    mean, cov = posterior(X, y, LAM, SIGMA2)
    found = cme_attention(q, X, y.unsqueeze(-1), SIGMA2 / LAM).squeeze(-1)
    expected = (q @ mean.unsqueeze(-1)).squeeze(-1)
    assert close(found, expected)
    variance = SIGMA2 + (q @ cov * q).sum(-1)
    assert close(cme_variance(q, X, LAM, SIGMA2), variance)
    # Other ridges are not: the paper's λ, and no scaling at all.
    for rho in (LAM, SIGMA2):
        wrong = cme_attention(q, X, y.unsqueeze(-1), rho).squeeze(-1)
        assert not close(wrong, expected, 0.01)


def test_attention_treats_coordinates_of_values_alike(prompts: Prompts) -> None:
    X, y, _ = prompts
    both = cme_attention(X, X, torch.stack([y, 3 * y], -1), 0.5)
    assert close(both[..., 1], 3 * both[..., 0])
    assert close(both[..., :1], cme_attention(X, X, y.unsqueeze(-1), 0.5))


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_attention_agrees_with_gaussian_processes_of_scikit_learn(kernel: str, prompts: Prompts) -> None:
    X, y, _ = (part[0, 0] for part in prompts)
    q = linear_prompts([7], 1, 6, D, LAM, SIGMA2)[0][0, 0]
    theirs = {"linear": DotProduct(0.0, "fixed"), "rbf": RBF(1.0, "fixed")}[kernel]
    prior = ConstantKernel(LAM, "fixed") * theirs + WhiteKernel(SIGMA2, "fixed")
    process = GaussianProcessRegressor(prior, alpha=0.0, optimizer=None).fit(X.numpy(), y.numpy())
    mean, std = process.predict(q.numpy(), return_std=True)
    ours = {"linear": linear_kernel, "rbf": rbf}[kernel]
    assert close(cme_attention(q, X, y.unsqueeze(-1), SIGMA2 / LAM, ours)[:, 0], torch.from_numpy(mean), 1e-9)
    assert close(cme_variance(q, X, LAM, SIGMA2, ours), torch.from_numpy(std**2), 1e-9)


def test_posterior_agrees_with_bayesian_ridge_of_scikit_learn(prompts: Prompts) -> None:
    """At the precisions that it chooses."""
    X, y, _ = (part[0, 0] for part in prompts)
    model = BayesianRidge(fit_intercept=False).fit(X.numpy(), y.numpy())
    mean, cov = posterior(X, y, float(1 / model.lambda_), float(1 / model.alpha_))
    assert close(mean, torch.from_numpy(model.coef_), 1e-9)
    assert close(cov, torch.from_numpy(model.sigma_), 1e-9)


def test_limits_of_attention(prompts: Prompts) -> None:
    """Minimum-norm least squares without noise or with a wide prior; zero when all is noise."""
    X, _, w = prompts
    for T in (2, D, 8):  # fewer, as many and more pairs than dimensions
        keys = X[:, :, :T]
        values = keys @ w.unsqueeze(-1)
        least = X @ torch.linalg.pinv(keys) @ values
        assert close(cme_attention(X, keys, values, 0.0), least, 1e-9)
        assert close(cme_attention(X, keys, values, 1e-9), least, 1e-3)
        gap = [float((cme_attention(X, keys, values, rho) - least).abs().max()) for rho in (1e-2, 1e-4, 1e-6)]
        assert gap[0] > 10 * gap[1] > 100 * gap[2]
        assert close(cme_attention(X, keys, values, 1e12), 0.0, 1e-9)


# One pair at a time -----------------------------------------------------------------------------------------------


def test_kalman_is_the_batch_posterior_of_every_prefix(prompts: Prompts) -> None:
    X, y, _ = prompts
    seen = kalman(X, y, LAM, SIGMA2)
    assert close(seen.prediction[..., 0], 0.0, 0.0)
    assert close(seen.spread[..., 0], LAM * X[..., 0, :].square().sum(-1))
    for t in range(1, X.shape[2]):
        mean, cov = posterior(X[:, :, :t], y[..., :t], LAM, SIGMA2)
        x = X[:, :, t]
        assert close(seen.prediction[..., t], (mean * x).sum(-1))
        assert close(seen.spread[..., t], (x.unsqueeze(2) @ cov @ x.unsqueeze(3)).flatten(1))


def test_increments_add_up_to_the_log_determinant(prompts: Prompts) -> None:
    X, y, _ = prompts
    seen = kalman(X, y, LAM, SIGMA2)
    gained = information_gain(X, LAM, SIGMA2)
    assert close((torch.log1p(seen.spread / SIGMA2) / 2).cumsum(-1), gained)
    whole = torch.eye(12, dtype=torch.float64) + LAM / SIGMA2 * X @ X.mT
    assert close(gained[..., -1], torch.linalg.slogdet(whole).logabsdet / 2)


def test_regret_is_the_log_ratio_of_densities_of_all_responses(prompts: Prompts) -> None:
    """Σ log p(y_t | w) − log N(y; 0, λXXᵀ + σ²I): the chain rule, against the marginal of the whole prompt."""
    X, y, w = prompts
    T = X.shape[2]
    cov = LAM * X @ X.mT + SIGMA2 * torch.eye(T, dtype=torch.float64)
    marginal = torch.distributions.MultivariateNormal(torch.zeros(T, dtype=torch.float64), cov).log_prob(y)
    means = (X @ w.unsqueeze(-1)).squeeze(-1)
    own = torch.distributions.Normal(means, math.sqrt(SIGMA2)).log_prob(y).sum(-1)
    assert close(sampled_regret(X, y, w, LAM, SIGMA2)[..., -1], own - marginal)


def test_averaged_steps_are_divergences_of_normals(prompts: Prompts) -> None:
    X, y, w = prompts
    seen = kalman(X, y, LAM, SIGMA2)
    true = torch.distributions.Normal((X @ w.unsqueeze(-1)).squeeze(-1), math.sqrt(SIGMA2))
    found = torch.distributions.Normal(seen.prediction, (seen.spread + SIGMA2).sqrt())
    steps = torch.distributions.kl_divergence(true, found)
    assert close(expected_regret(X, y, w, LAM, SIGMA2), steps.cumsum(-1))


def test_regret_has_the_mean_of_the_information_and_grows_by_half_a_dimension_per_log() -> None:
    n, T, d = 2000, 256, 3
    X, y, w = linear_prompts([5], n, T, d, LAM, SIGMA2)
    gained = information_gain(X, LAM, SIGMA2)[0]
    sampled, averaged = (f(X, y, w, LAM, SIGMA2)[0] for f in (sampled_regret, expected_regret))
    for regret in (sampled, averaged):
        excess = regret - gained
        assert bool((excess.mean(0).abs() <= 5 * excess.std(0) / n**0.5).all())
    assert float(sampled[:, -1].std()) < float(averaged[:, -1].std())
    t = torch.tensor([32.0, 256.0], dtype=torch.float64)
    ends = gained.mean(0)[t.long() - 1]
    # E log det − log det E is −d(d + 1)/(2t) to first order: 0.19 and 0.02, halved.
    limit = information_limit(t, d, LAM, SIGMA2)
    assert bool(((limit - ends).abs() <= d * (d + 1) / (4 * t) + 5 * gained.std(0)[t.long() - 1] / n**0.5).all())
    slope = float((ends[1] - ends[0]) / math.log(8))
    assert slope == pytest.approx(d / 2, rel=0.05)


# Point predictors -------------------------------------------------------------------------------------------------


def test_ridge_is_attention_to_every_prefix(prompts: Prompts) -> None:
    X, y, _ = prompts
    rho = 0.7
    found = ridge(X, y, rho)
    assert close(found[..., 0], 0.0, 0.0)
    for t in range(1, X.shape[2]):
        q = X[:, :, t : t + 1]
        assert close(found[..., t], cme_attention(q, X[:, :, :t], y[..., :t, None], rho)[..., 0, 0])
    assert close(ridge(X, y, SIGMA2 / LAM), kalman(X, y, LAM, SIGMA2).prediction)


@pytest.mark.parametrize("d", [1, 3, 8])
def test_ridge_without_noise_is_minimum_norm_least_squares(d: int) -> None:
    X, y, _ = linear_prompts([1], 20, 14, d, 1.0, 0.0)
    X[:, :, 1] = 2 * X[:, :, 0]  # a pair that teaches nothing
    y[:, :, 1] = 2 * y[:, :, 0]
    found = ridge(X, y, 0.0)
    for t in range(1, 14):
        w = torch.linalg.pinv(X[:, :, :t]) @ y[..., :t, None]
        assert close(found[..., t], (X[:, :, t : t + 1] @ w)[..., 0, 0], 1e-8)
    assert close(found[..., d + 1 :], y[..., d + 1 :], 1e-8)


def test_dmmse_by_its_definition(prompts: Prompts) -> None:
    X, y, _ = prompts
    pool = pool_tasks([5, 6], 7, D)
    found = dmmse(pool, X, y, SIGMA2)
    values = torch.einsum("kntd,kmd->kntm", X, pool)
    for t in range(X.shape[2]):
        fit = -(y[..., :t, None] - values[:, :, :t]).square().sum(2) / (2 * SIGMA2)
        assert close(found[..., t], (fit.softmax(-1) * values[:, :, t]).sum(-1))


def test_dmmse_in_blocks(prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, _ = prompts
    pool = pool_tasks([5, 6], 70, D)
    whole = dmmse(pool, X, y, SIGMA2)
    monkeypatch.setattr("theory.icl.regression.entries", lambda device: 2000)
    monkeypatch.setattr(tasks, "entries", lambda device: 2000)
    assert close(dmmse(pool, X, y, SIGMA2), whole)
    assert close(dmmse(pool[1:], X[1:], y[1:], SIGMA2), whole[1:])


def test_limits_of_dmmse(prompts: Prompts) -> None:
    X, y, _ = prompts
    single = pool_tasks([5, 6], 1, D)
    assert close(dmmse(single, X, y, SIGMA2), torch.einsum("kntd,kmd->knt", X, single))
    # A pool that covers the prior: ridge with ρ = σ²/λ. The error is that of importance sampling, and falls.
    X, y, _ = linear_prompts([1], 50, 4, 2, 1.0, 0.5)
    target = ridge(X, y, 0.5)
    errors = []
    for M in (100, 2500, 62500):
        errors.append(float(difference(dmmse(pool_tasks([9], M, 2), X, y, 0.5), target, 2).mean()) ** 0.5)
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.02


def test_dmmse_is_best_on_its_pool_and_ridge_on_new_tasks() -> None:
    pool = pool_tasks([1], 4, D)
    own = pool_prompts(pool, 400, 10, SIGMA2, [2])[:2]
    new = linear_prompts([2], 400, 10, D, 1.0, SIGMA2)[:2]
    for (X, y), better in ((own, 1), (new, -1)):
        errors = [float(difference(p, y, D).mean()) for p in (ridge(X, y, SIGMA2), dmmse(pool, X, y, SIGMA2))]
        assert better * (errors[0] - errors[1]) > 0.05


def test_difference_by_hand() -> None:
    a, b = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[0.0, 2.0], [1.0, 1.0]]])
    assert difference(a, b, 2).tolist() == [[(1 + 4) / 2 / 2, 9 / 2 / 2]]


# Errors -----------------------------------------------------------------------------------------------------------


def test_errors_say_what_was_wrong(prompts: Prompts) -> None:
    X, y, w = prompts
    with pytest.raises(ValueError, match=r"rho = -1.0"):
        cme_attention(X, X, y.unsqueeze(-1), -1.0)
    with pytest.raises(ValueError, match=r"queries \[2, 20, 12, 3\], keys .* do not fit"):
        cme_attention(X, X, y[..., 1:, None], 1.0)
    with pytest.raises(ValueError, match=r"lam = 0.0: the variance of the prior must be positive"):
        kalman(X, y, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"sigma2 = -1.0: the variance of the noise must not be negative"):
        kalman(X, y, 1.0, -1.0)
    for needs_noise in (
        lambda: posterior(X, y, 1.0, 0.0),
        lambda: information_gain(X, 1.0, 0.0),
        lambda: information_limit(torch.ones(1), D, 1.0, 0.0),
        lambda: sampled_regret(X, y, w, 1.0, 0.0),
        lambda: expected_regret(X, y, w, 1.0, 0.0),
        lambda: dmmse(w, X, y, 0.0),
    ):
        with pytest.raises(ValueError, match=r"sigma2 = 0.0: the variance of the noise must be positive"):
            needs_noise()
    with pytest.raises(ValueError, match=r"X must be \[..., T, d\] and y \[..., T\]"):
        kalman(X, y[..., 1:], 1.0, 1.0)
    with pytest.raises(ValueError, match=r"pool \[2, 20, 2\] must be \[K, M, d\]"):
        dmmse(w[..., :2], X, y, 1.0)
    with pytest.raises(ValueError, match="one shape"):
        difference(y, y[..., 1:], D)
