"""Mixtures fitted by EM: against closed forms, brute-force Bayes, and the asymptotic laws of maximum likelihood."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from theory.icl.mixtures import (
    Mixture,
    Pool,
    divergences,
    draw_mixture,
    draw_pool,
    draw_tokens,
    fit,
    log_likelihood,
    merged,
    predictive,
)

SEEDS = list(range(8))


def exponent(sizes, values: torch.Tensor) -> float:
    """Slope of log mean value against log size, values [len(sizes), K]."""
    return float(np.polyfit(np.log(sizes), np.log(values.mean(1).numpy()), 1)[0])


def test_true_tables_keep_their_floor_and_the_dirichlet_moments():
    """Of (1 − R c₀) Dirichlet(α) + c₀: mean 1/R, variance (1 − R c₀)² (R − 1)/(R² (R α + 1))."""
    mixture = draw_mixture(4000, 3, 0.05, 0.5, [1])
    tables = mixture.tables[0]
    assert float(tables.min()) >= 0.05
    torch.testing.assert_close(tables.sum(1), torch.ones(4000).double())
    variance = 0.85**2 * 2 / (9 * 2.5)
    assert float(tables[:, 0].mean()) == pytest.approx(1 / 3, abs=5 * (variance / 4000) ** 0.5)
    assert float(tables[:, 0].var()) == pytest.approx(variance, rel=0.1)
    torch.testing.assert_close(mixture.weights, torch.full((1, 4000), 1 / 4000).double())


def test_pools_are_the_sequences_counted():
    mixture = draw_mixture(3, 4, 0.02, 1.0, SEEDS[:3])
    pool = draw_pool(mixture, [50, 400, 7], 6, SEEDS[:3])
    torch.testing.assert_close(pool.multiplicity.sum(1), torch.tensor([50.0, 400.0, 7.0]).double())
    used = pool.multiplicity > 0
    torch.testing.assert_close(pool.counts.sum(2)[used], torch.full((int(used.sum()),), 6.0).double())
    assert float(pool.counts[~used].abs().sum()) == 0
    assert pool.counts.shape[1] <= math.comb(6 + 3, 3)  # no more than there are count vectors


def test_tokens_have_the_law_of_the_mixture():
    """One concept per sequence: pairs of tokens have the law Σ_z π_z P_z(r) P_z(s), which is not the product of means."""
    weights = torch.tensor([[0.25, 0.75]]).double()
    tables = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]]).double()
    tokens = draw_tokens(Mixture(weights, tables), 40_000, 2, [3])[0]
    seen = torch.zeros(9).double().scatter_add_(0, tokens @ torch.tensor([3, 1]), torch.ones(40_000).double()) / 40_000
    expected = torch.einsum("m,mr,ms->rs", weights[0], tables[0], tables[0]).flatten()
    assert bool(((seen - expected).abs() < 5 * (expected / 40_000).sqrt()).all())


def test_predictions_are_bayes_by_enumeration_of_sequences():
    """p(next | prefix) = P(prefix, next)/P(prefix), each a sum over concepts of products over tokens."""
    mixture = draw_mixture(3, 2, 0.05, 0.7, [5])
    weights, tables = mixture.weights[0], mixture.tables[0]

    def probability(sequence) -> float:
        return float((weights * torch.stack([tables[:, r] for r in sequence]).prod(0)).sum())

    for prefix in itertools.product(range(2), repeat=4):
        counts = torch.tensor([[[prefix.count(0), prefix.count(1)]]])
        expected = [probability((*prefix, r)) / probability(prefix) for r in range(2)]
        np.testing.assert_allclose(predictive(mixture, counts)[0, 0].numpy(), expected, rtol=1e-12)
    total = sum(probability(sequence) for sequence in itertools.product(range(2), repeat=5))
    assert total == pytest.approx(1, rel=1e-12)


def test_likelihood_is_the_product_over_sequences():
    mixture = draw_mixture(2, 3, 0.02, 1.0, [0])
    pool = Pool(torch.tensor([[[2.0, 1, 0], [0, 0, 3], [0, 0, 0]]]).double(), torch.tensor([[4.0, 1, 0]]).double())
    P = mixture.tables[0]
    first, second = (P[:, 0] ** 2 * P[:, 1]).mean(), (P[:, 2] ** 3).mean()
    assert float(log_likelihood(mixture, pool)) == pytest.approx(float(4 * first.log() + second.log()), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 1e-3])
def test_the_objective_never_falls_and_the_fit_beats_the_truth_on_its_own_data(smoothing):
    true = draw_mixture(3, 4, 0.02, 1.0, SEEDS)
    pool = draw_pool(true, [64, 256] * 4, 12, SEEDS)
    learnt = fit(pool, true, iterations=40, smoothing=smoothing)
    assert learnt.objective.shape == (8, 41)
    rounding = 1e-12 * learnt.objective[:, :1].abs()
    assert bool((learnt.objective.diff(dim=1) >= -rounding).all())
    assert bool((log_likelihood(learnt.mixture, pool) > log_likelihood(true, pool)).all())
    if smoothing == 0:
        torch.testing.assert_close(learnt.objective[:, 0], log_likelihood(true, pool), rtol=1e-14, atol=0)
    torch.testing.assert_close(learnt.mixture.tables.sum(2), torch.ones(8, 3).double())
    torch.testing.assert_close(learnt.mixture.weights.sum(1), torch.ones(8).double())


def test_one_component_is_fitted_by_smoothed_frequencies_in_one_step():
    true = draw_mixture(1, 4, 0.02, 1.0, SEEDS[:2])
    pool = draw_pool(true, [30, 90], 8, SEEDS[:2])
    learnt = fit(pool, true, iterations=1, smoothing=0.5).mixture
    totals = (pool.counts * pool.multiplicity.unsqueeze(2)).sum(1)
    torch.testing.assert_close(
        learnt.tables[:, 0], (totals + 0.5) / (totals.sum(1, keepdim=True) + 2), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(learnt.weights, torch.ones(2, 1).double())


def test_em_ends_where_the_gradient_of_its_objective_vanishes():
    """In coordinates without constraints (logits) the objective log-likelihood + ε Σ log is flat at the fixed point."""
    true, eps = draw_mixture(2, 3, 0.05, 0.5, [2]), 0.01
    pool = draw_pool(true, [300], 10, [2])
    learnt = fit(pool, true, iterations=2000, smoothing=eps).mixture
    logits = [learnt.weights.log().requires_grad_(), learnt.tables.log().requires_grad_()]
    here = Mixture(logits[0].softmax(-1), logits[1].softmax(-1))
    objective = log_likelihood(here, pool).sum() + eps * (here.tables.log().sum() + here.weights.log().sum())
    for gradient in torch.autograd.grad(objective, logits):
        assert float(gradient.abs().max()) < 1e-6  # of terms as large as the pool, 300


def test_distances_vanish_for_the_same_law_whatever_the_order_of_components():
    true = draw_mixture(3, 4, 0.02, 1.0, SEEDS[:2])
    shuffled = Mixture(true.weights[:, [2, 0, 1]], true.tables[:, [2, 0, 1]])
    found = divergences(true, shuffled, draw_tokens(true, 50, 6, SEEDS[:2]))
    assert found.tv.shape == found.kl.shape == (2, 6)
    assert float(found.tv.max()) < 1e-14
    assert float(found.kl.abs().max()) < 1e-14


def test_distances_are_those_of_the_definition():
    """One component each, so the same at every prefix: TV = |p − q| and KL of two coins; and Pinsker's inequality."""
    p, q = 0.3, 0.45
    coins = [Mixture(torch.ones(1, 1).double(), torch.tensor([[[x, 1 - x]]], dtype=torch.float64)) for x in (p, q)]
    found = divergences(*coins, draw_tokens(coins[0], 5, 3, [0]))
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(found.tv.numpy(), abs(p - q), rtol=1e-12)
    np.testing.assert_allclose(found.kl.numpy(), kl, rtol=1e-12)
    true, other = draw_mixture(3, 4, 0.02, 1.0, SEEDS), draw_mixture(3, 4, 0.02, 1.0, [seed + 50 for seed in SEEDS])
    found = divergences(true, other, draw_tokens(true, 60, 8, SEEDS))
    assert bool((found.tv <= (found.kl / 2).sqrt()).all())
    # at the first position nothing is seen: prior means Σ_z π_z P_z are compared
    gap = (true.tables.mean(1) - other.tables.mean(1)).abs().sum(1) / 2
    torch.testing.assert_close(found.tv[:, 0], gap)


def test_a_prefix_counts_only_the_tokens_before_it():
    true = draw_mixture(2, 3, 0.02, 0.5, [0])
    other = draw_mixture(2, 3, 0.02, 0.5, [1])
    tokens = draw_tokens(true, 30, 6, [0])
    changed = tokens.clone()
    changed[:, :, -1] = (changed[:, :, -1] + 1) % 3  # the last token is never seen by a prediction
    torch.testing.assert_close(
        divergences(true, other, tokens).tv, divergences(true, other, changed).tv, rtol=0, atol=0
    )
    changed[:, :, 0] = (changed[:, :, 0] + 1) % 3
    differs = (divergences(true, other, tokens).tv != divergences(true, other, changed).tv)[0]
    assert differs.tolist() == [False] + [True] * 5


def test_one_table_is_learnt_at_the_rates_of_multinomial_maximum_likelihood():
    """E KL → (R − 1)/(2 N_p T_p) and E TV → ½ Σ_r √(2 p_r (1 − p_r)/(π N_p T_p))."""
    seeds, N, T, R = list(range(200)), 40, 50, 4
    true = draw_mixture(1, R, 0.05, 1.0, seeds)
    learnt = fit(draw_pool(true, [N] * 200, T, seeds), true, iterations=1, smoothing=0.0).mixture
    found = divergences(true, learnt, draw_tokens(true, 1, 1, seeds))
    p = true.tables[:, 0]
    tv = (2 * p * (1 - p) / (math.pi * N * T)).sqrt().sum(1).mean() / 2
    assert float(found.kl.mean()) == pytest.approx((R - 1) / (2 * N * T), rel=0.25)  # ± 2.5 standard errors and more
    assert float(found.tv.mean()) == pytest.approx(float(tv), rel=0.12)


def test_the_error_falls_as_the_root_of_sequences_unless_a_component_is_missing():
    sizes = [128, 512, 2048]
    true = draw_mixture(3, 4, 0.02, 1.0, SEEDS)
    test = draw_tokens(true, 300, 12, SEEDS)
    tv, kl, missing = [], [], []
    for size in sizes:
        pool = draw_pool(true, [size] * 8, 12, SEEDS)
        found = divergences(true, fit(pool, true).mixture, test)
        tv.append(found.tv.mean(1))
        kl.append(found.kl.mean(1))
        missing.append(divergences(true, fit(pool, merged(true)).mixture, test).tv.mean(1))
    assert exponent(sizes, torch.stack(tv)) == pytest.approx(-0.5, abs=0.12)
    assert exponent(sizes, torch.stack(kl)) == pytest.approx(-1.0, abs=0.24)
    assert -0.2 < exponent(sizes, torch.stack(missing)) < 0.05


def test_merging_keeps_the_mean_table():
    mixture = Mixture(torch.tensor([[0.2, 0.3, 0.5]]).double(), draw_mixture(3, 4, 0.0, 1.0, [0]).tables)
    fewer = merged(mixture)
    assert fewer.tables.shape == (1, 2, 4)
    torch.testing.assert_close(fewer.weights, torch.tensor([[0.2, 0.8]]).double())
    blank = torch.zeros(1, 1, 4)  # no token seen: the mean table
    torch.testing.assert_close(predictive(fewer, blank), predictive(mixture, blank))


def test_a_member_alone_agrees_with_the_stack():
    """Also beside a larger pool, whose padding it then carries."""
    true = draw_mixture(3, 4, 0.02, 1.0, SEEDS)
    sizes = [32, 64, 700, 16, 64, 128, 256, 64]
    test = draw_tokens(true, 40, 10, SEEDS)
    stacked = divergences(true, fit(draw_pool(true, sizes, 10, SEEDS), true).mixture, test)
    for k in (0, 2, 5):
        alone = draw_mixture(3, 4, 0.02, 1.0, [SEEDS[k]])
        learnt = fit(draw_pool(alone, [sizes[k]], 10, [SEEDS[k]]), alone).mixture
        found = divergences(alone, learnt, draw_tokens(alone, 40, 10, [SEEDS[k]]))
        torch.testing.assert_close(found.tv[0], stacked.tv[k], rtol=1e-10, atol=0)
        torch.testing.assert_close(found.kl[0], stacked.kl[k], rtol=1e-9, atol=1e-15)


def test_bad_input_is_named():
    true = draw_mixture(2, 3, 0.02, 1.0, [0, 1])
    pool = draw_pool(true, [5, 6], 4, [0, 1])
    with pytest.raises(ValueError, match=r"c0 = 0\.4 must lie in \[0, 1/R\)"):
        draw_mixture(2, 3, 0.4, 1.0, [0])
    with pytest.raises(ValueError, match="got M = 0, R = 3"):
        draw_mixture(0, 3, 0.0, 1.0, [0])
    with pytest.raises(ValueError, match="pass 2 seeds and 2 positive pool sizes, got 1"):
        draw_pool(true, [5, 6], 4, [0])
    with pytest.raises(ValueError, match="sizes 0 × 3"):
        draw_tokens(true, 0, 3, [0, 1])
    with pytest.raises(ValueError, match=r"tables \[1, 2, 3\], but the pool has counts \[2,"):
        fit(pool, draw_mixture(2, 3, 0.02, 1.0, [0]))
    with pytest.raises(ValueError, match=r"smoothing = -1\.0 must not be negative"):
        fit(pool, true, smoothing=-1.0)
    with pytest.raises(ValueError, match="at least 2 components, got 1"):
        merged(draw_mixture(1, 3, 0.02, 1.0, [0]))
    with pytest.raises(ValueError, match=r"do not fit: .*\[2, 2, 4\]"):
        divergences(true, draw_mixture(2, 4, 0.02, 1.0, [0, 1]), draw_tokens(true, 3, 3, [0, 1]))
    with pytest.raises(ValueError, match=r"weights must be \[K, M\].*got \[2, 3\]"):
        Mixture(torch.ones(2, 3), true.tables)
    with pytest.raises(TypeError, match=r"float64, got torch\.float64 and torch\.float32"):
        Mixture(true.weights, true.tables.float())
