from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from theory.icl import tasks
from theory.icl.bayes import (
    averaged_regret,
    bma,
    by_marginals,
    context_counts,
    covariate_regret,
    drift,
    expected_regret,
    hindsight_regret,
    information,
    kl,
    log_likelihoods,
    log_loss,
    log_posterior_at,
    log_posteriors,
    pair_divergence,
    plug_in,
    prior_average,
    regret_bound,
    sampled_regret,
    truth,
    tv,
)
from theory.icl.tasks import (
    chain_pairs,
    concept_tables,
    corrupt,
    corrupted_laws,
    covariate_laws,
    markov_tables,
    sample_chains,
    sample_pairs,
    word_laws,
)

SEEDS = [3, 4]
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
M, C, R, T = 4, 3, 3, 40


def uniform(size: int) -> Tensor:
    return torch.full((size,), 1 / size, dtype=torch.float64)


def close(a: Tensor, b: Tensor | float, tolerance: float = 1e-11) -> bool:
    return float((a - b).abs().max()) <= tolerance


def within(found: Tensor, expected: Tensor | float) -> bool:
    """Tell whether the mean of n prompts [K, n, ...] is within five standard errors of what is expected."""
    error = found.std(1) / found.shape[1] ** 0.5
    return bool(((found.mean(1) - expected).abs() <= 5 * error + 1e-12).all())


@pytest.fixture(scope="module")
def tables() -> Tensor:
    return concept_tables(SEEDS, M, C, R, 0.02, 0.5)


@pytest.fixture(scope="module")
def prompts(tables: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return sample_pairs(tables, PRIOR, 300, T, [1, 2])


@pytest.fixture(scope="module")
def laws() -> Tensor:
    return covariate_laws(SEEDS, M, C, 0.05)


Prompts = tuple[Tensor, Tensor, Tensor]


# Averaging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("informative", [False, True])
def test_two_computations_of_the_average_agree(
    tables: Tensor, prompts: Prompts, laws: Tensor, informative: bool
) -> None:
    _, c, r = prompts
    given = laws if informative else None
    found = bma(tables, PRIOR, c, r, laws=given)
    assert close(found.sum(-1), 1.0)
    assert close(found, by_marginals(tables, PRIOR, c, r, laws=given))
    assert informative != close(found, bma(tables, PRIOR, c, r), 0.01)


def test_the_average_by_hand(tables: Tensor, laws: Tensor) -> None:
    """Marginals of whole prompts, term by term in plain numbers: covariates that depend on the concept included."""
    _, c, r = sample_pairs(tables, PRIOR, 2, 5, [1, 2], laws=laws)
    found = bma(tables, PRIOR, c, r, laws=laws)
    for k, i, t in itertools.product(range(2), range(2), range(5)):
        joint = []
        for m in range(M):
            p = float(PRIOR[m]) * float(laws[k, m, c[k, i, t]])
            for s in range(t):
                p *= float(laws[k, m, c[k, i, s]]) * float(tables[k, m, c[k, i, s], r[k, i, s]])
            joint.append(p)
        for v in range(R):
            expected = sum(p * float(tables[k, m, c[k, i, t], v]) for m, p in enumerate(joint)) / sum(joint)
            assert float(found[k, i, t, v]) == pytest.approx(expected, rel=1e-12)


def test_chunks_and_members_do_not_matter(
    tables: Tensor, prompts: Prompts, laws: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, c, r = (part[:, :40] for part in prompts)

    def everything(k: slice) -> list[Tensor]:
        args = tables[k], PRIOR, c[k], r[k]
        p = bma(*args, laws=laws[k])
        return [
            p,
            by_marginals(*args),
            plug_in(*args),
            context_counts(c[k], r[k], C, R),
            information(*args),
            log_posterior_at(*args, z[k]),
            hindsight_regret(p, tables[k], c[k], r[k]),
            covariate_regret(*args, z[k], laws[k]),
        ]

    whole, alone = everything(slice(0, 2)), everything(slice(1, 2))
    monkeypatch.setattr(tasks, "entries", lambda device: 5000)
    for a, b, chunked in zip(whole, alone, everything(slice(0, 2)), strict=True):
        assert close(a[1:], b)
        assert close(a, chunked)


def test_losses_telescope_to_the_marginal_of_the_prompt(tables: Tensor, prompts: Prompts) -> None:
    """−Σ_t log p_t(r_t) = −log Σ_z P_Z(z) Π_t P(r_t | c_t, z)."""
    _, c, r = prompts
    whole = (log_likelihoods(tables, c, r).sum(2) + PRIOR.log()).logsumexp(-1)
    assert close(log_loss(bma(tables, PRIOR, c, r), r).sum(-1), -whole)


def test_order_changes_the_steps_but_not_the_end(tables: Tensor, prompts: Prompts) -> None:
    z, c, r = prompts
    order = torch.arange(T).flip(0)
    one, two = (log_posterior_at(tables, PRIOR, a, b, z) for a, b in ((c, r), (c[..., order], r[..., order])))
    assert close(one[..., -1], two[..., -1])
    assert not close(one[..., T // 2], two[..., T // 2], 0.01)
    first, second = (log_loss(bma(tables, PRIOR, a, b), b) for a, b in ((c, r), (c[..., order], r[..., order])))
    assert close(first.sum(-1), second.sum(-1))
    assert not close(first, second[..., order], 0.01)


# Regret -----------------------------------------------------------------------------------------------------------


def test_regret_is_the_log_of_what_the_posterior_gained(tables: Tensor, prompts: Prompts) -> None:
    z, c, r = prompts
    regret = sampled_regret(bma(tables, PRIOR, c, r), truth(tables, z, c), r)
    log_w = log_posterior_at(tables, PRIOR, c, r, z)
    assert close(log_w[..., 0], PRIOR.log()[z])
    assert close(regret, log_w[..., 1:] - log_w[..., :1])
    bound = regret_bound(PRIOR, z).unsqueeze(-1)
    assert close(bound, -PRIOR[z].log().unsqueeze(-1))
    assert float((regret - bound).max()) <= 1e-11
    certain = log_w[..., -1] > math.log(1 - 1e-6)
    assert float(certain.double().mean()) > 0.5
    assert close((regret - bound)[..., -1][certain], 0.0, 2e-6)


def test_covariates_that_tell_the_concept_take_their_part_of_the_regret(tables: Tensor, laws: Tensor) -> None:
    z, c, r = sample_pairs(tables, PRIOR, 300, T, [1, 2], laws=laws)
    args = tables, PRIOR, c, r
    regret = sampled_regret(bma(*args, laws=laws), truth(tables, z, c), r)
    covariates = covariate_regret(*args, z, laws)
    log_w = log_posterior_at(*args, z, laws=laws)
    assert close(regret + covariates, log_w[..., 1:] - log_w[..., :1])
    # The responses alone break the bound on some paths, but not on average.
    over = regret - regret_bound(PRIOR, z).unsqueeze(-1)
    assert float(over.max()) > 0.1
    assert float(over.mean(1).max()) < 0
    # With equation (4.2) as printed, which leaves c_{t+1} out, the identity does not hold.
    printed = bma(tables, PRIOR, c, r)
    assert not close(sampled_regret(printed, truth(tables, z, c), r) + covariates, log_w[..., 1:] - log_w[..., :1], 0.1)


def test_hindsight_is_harder_and_bounded_by_the_log_of_the_number_of_concepts(tables: Tensor, prompts: Prompts) -> None:
    z, c, r = prompts
    p = bma(tables, uniform(M), c, r)
    best = hindsight_regret(p, tables, c, r)
    assert float((best - sampled_regret(p, truth(tables, z, c), r)).min()) >= -1e-11
    assert float(best.max()) <= math.log(M) + 1e-11
    assert float(best.min()) >= -1e-11


def test_estimators_of_expected_regret_agree(tables: Tensor) -> None:
    """Averaging over concepts never varies more than sampling; averaging steps ends up varying more than either."""
    z, c, r = sample_pairs(tables, PRIOR, 2000, T, [1, 2])
    args = tables, PRIOR, c, r
    p, true = bma(*args), truth(tables, z, c)
    gained = information(*args)
    assert close(gained[..., 0], 0.0)
    sampled, single, averaged = sampled_regret(p, true, r), expected_regret(p, true), gained[..., 1:]
    assert within(sampled - single, 0.0)
    assert within(sampled - averaged, 0.0)
    assert bool((averaged.std(1) < sampled.std(1)).all())
    assert bool((averaged.std(1) < single.std(1))[:, -1].all())
    assert bool((sampled.std(1) < single.std(1))[:, -1].all())
    steps = slice(None), slice(0, 8)  # later ones are rare jumps, too few to compare their spreads
    assert bool((single.diff().std(1) < sampled.diff().std(1))[steps].all())
    # Any other predictor: KL(average ‖ predictor) on top. Sampled responses and the decomposition agree.
    for other in (context_counts(c, r, C, R), plug_in(*args), prior_average(tables, PRIOR, c)):
        decomposed = averaged_regret(gained, p, other)
        assert within(sampled_regret(other, true, r) - decomposed, 0.0)
        assert within(expected_regret(other, true) - decomposed, 0.0)
        assert float((decomposed - averaged).min()) >= -1e-11


def test_two_coins_by_enumeration_over_counts() -> None:
    """Σ_z P_Z(z) Σ_k Binomial(k; t, p_z) log(P(k | z)/P(k)): the mutual information, over binomial sums."""
    heads, prior, t = (0.3, 0.6), (0.25, 0.75), 10
    tables = torch.tensor([[[[1 - p, p]] for p in heads]], dtype=torch.float64)
    expected = 0.0
    for k in range(t + 1):
        likelihoods = [math.comb(t, k) * p**k * (1 - p) ** (t - k) for p in heads]
        marginal = sum(w * q for w, q in zip(prior, likelihoods, strict=True))
        expected += sum(w * q * math.log(q / marginal) for w, q in zip(prior, likelihoods, strict=True))
    r = torch.tensor(list(itertools.product((0, 1), repeat=t))).unsqueeze(0)  # all sequences
    c = torch.zeros_like(r)
    law = torch.tensor(prior, dtype=torch.float64)
    p = bma(tables, law, c, r)
    by_gain, by_sample, by_step = torch.zeros(3, dtype=torch.float64)
    for z in range(2):
        concept = torch.full(r.shape[:2], z)
        true = truth(tables, concept, c)
        weight = law[z] * (-log_loss(true, r).sum(-1)).exp()  # P(z, sequence)
        by_sample += (weight * sampled_regret(p, true, r)[..., -1]).sum()
        by_step += (weight * expected_regret(p, true)[..., -1]).sum()
        by_gain += (weight * information(tables, law, c, r)[..., -1]).sum()
    for found in (by_gain, by_sample, by_step):
        assert float(found) == pytest.approx(expected, abs=1e-12)
    entropy = -sum(w * math.log(w) for w in prior)
    assert 0 < expected < entropy


@pytest.mark.parametrize("T", [3, 8])
def test_markov_concepts_by_all_sequences(T: int) -> None:
    """Information gained over all V^(T + 1) chains, each weighed by its marginal, against I(z; x) from the definition."""
    V, M = 2, 3
    tables = markov_tables([0], M, V, 0.05)
    prior = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    x = torch.tensor(list(itertools.product(range(V), repeat=T + 1))).unsqueeze(0)
    c, r = chain_pairs(x)
    likelihood = torch.ones(1, x.shape[1], M, dtype=torch.float64) / V
    for t in range(T):
        for m in range(M):
            likelihood[0, :, m] *= tables[0, m, x[0, :, t], x[0, :, t + 1]]
    marginal = likelihood @ prior
    assert float(marginal.sum()) == pytest.approx(1, abs=1e-12)
    mutual = (prior * likelihood * (likelihood / marginal.unsqueeze(-1)).log()).sum()
    gained = information(tables, prior, c, r)
    assert float((marginal * gained[..., -1]).sum()) == pytest.approx(float(mutual), abs=1e-12)
    # The predictive is the ratio of marginals of a chain and of its first T tokens.
    pairs = marginal.view(-1, V)
    last = bma(tables, prior, c, r)[0, :, -1].view(-1, V, V)[:, 0]
    assert close(last, pairs / pairs.sum(1, keepdim=True))


def test_long_chains_obey_the_bound() -> None:
    tables = markov_tables(SEEDS, 5, 4, 0.02, 0.3)
    z, x = sample_chains(tables, uniform(5), 100, 200, [1, 2])
    c, r = chain_pairs(x)
    regret = sampled_regret(bma(tables, uniform(5), c, r), truth(tables, z, c), r)
    assert float(regret.max()) <= math.log(5) + 1e-11
    assert close(regret[..., -1], math.log(5), 1e-3)


# Nothing to learn -------------------------------------------------------------------------------------------------


def test_no_regret_with_one_concept_or_a_certain_prior_or_equal_tables(tables: Tensor, prompts: Prompts) -> None:
    z, c, r = prompts
    one = tables[:, :1]
    assert close(sampled_regret(bma(one, uniform(1), c, r), truth(one, torch.zeros_like(z), c), r), 0.0)
    certain = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    true = truth(tables, torch.full_like(z, 2), c)
    assert close(bma(tables, certain, c, r), true, 1e-14)
    assert close(information(tables, certain, c, r), 0.0)
    equal = one.expand(-1, M, -1, -1)
    for regret in (
        sampled_regret(bma(equal, PRIOR, c, r), truth(equal, z, c), r),
        expected_regret(bma(equal, PRIOR, c, r), truth(equal, z, c)),
        hindsight_regret(bma(equal, PRIOR, c, r), equal, c, r),
        information(equal, PRIOR, c, r),
    ):
        assert close(regret, 0.0)


def test_copies_of_a_concept_count_once(tables: Tensor, prompts: Prompts) -> None:
    """Four concepts, each listed three times: the regret levels off at log 4, not log 12."""
    z, c, r = sample_pairs(tables, uniform(M), 100, 400, [1, 2])
    thrice = tables.repeat(1, 3, 1, 1)
    regret = sampled_regret(bma(thrice, uniform(3 * M), c, r), truth(tables, z, c), r)
    assert close(regret[..., -1], math.log(M), 1e-6)


# Broken on purpose ------------------------------------------------------------------------------------------------


def test_a_leak_gains_what_no_predictor_can(tables: Tensor, prompts: Prompts, laws: Tensor) -> None:
    z, c, r = prompts
    honest, leaking = (bma(tables, PRIOR, c, r, leak=leak) for leak in (False, True))
    true = truth(tables, z, c)
    regret = sampled_regret(leaking, true, r)
    assert float(regret.mean(1).max()) < 0
    assert float((sampled_regret(honest, true, r) - regret).mean(1).min()) > 0.1
    by_concept = torch.stack([truth(tables, torch.full_like(z, m), c) for m in range(M)], 3)
    for given in (None, laws):
        weights = log_posteriors(PRIOR, log_likelihoods(tables, c, r, laws=given))[:, :, 1:].exp()  # having seen r_t
        expected = (weights.unsqueeze(-1) * by_concept).sum(3)
        assert close(bma(tables, PRIOR, c, r, leak=True, laws=given), expected)


def test_half_the_likelihood_and_a_wrong_prior_break_the_identity(tables: Tensor, prompts: Prompts) -> None:
    z, c, r = prompts
    true = truth(tables, z, c)
    log_w = log_posterior_at(tables, PRIOR, c, r, z)
    gained = log_w[..., 1:] - log_w[..., :1]
    halved = sampled_regret(bma(tables, PRIOR, c, r, power=0.5), true, r)
    assert not close(halved, gained, 0.1)
    assert float((halved - gained).mean(1)[:, -1].min()) > 0.1
    ranks = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    wrong = sampled_regret(bma(tables, ranks, c, r), true, r)
    excess = wrong - regret_bound(PRIOR, z).unsqueeze(-1)
    assert float(excess.max()) > 0.5  # up to log 4 for the first concept
    assert float((wrong - regret_bound(ranks, z).unsqueeze(-1)).max()) <= 1e-11


def test_powers_interpolate_between_prior_and_posterior(tables: Tensor, prompts: Prompts, laws: Tensor) -> None:
    _, c, r = prompts
    args = tables, PRIOR, c, r
    assert close(bma(*args, power=1.0), bma(*args), 0.0)
    for given in (None, laws):
        assert close(bma(*args, power=0.0, laws=given), prior_average(tables, PRIOR, c, laws=given))
    expected = torch.einsum("m,kmcr->kcr", PRIOR, tables)
    for k in range(2):
        assert close(prior_average(tables, PRIOR, c)[k], expected[k, c[k]])
    weights = PRIOR[:, None] * laws  # P(z, c), [K, M, C]
    given_c = torch.einsum("kmc,kmcr->kcr", weights / weights.sum(1, keepdim=True), tables)
    for k in range(2):
        assert close(prior_average(tables, PRIOR, c, laws=laws)[k], given_c[k, c[k]])


# Rivals -----------------------------------------------------------------------------------------------------------


def test_plug_in_is_the_table_of_the_likeliest_concept(tables: Tensor, prompts: Prompts) -> None:
    _, c, r = prompts
    best = log_posteriors(PRIOR, log_likelihoods(tables, c, r))[:, :, :-1].argmax(-1)
    assert bool((best[..., 0] == 0).all())  # the prior's favourite
    found = plug_in(tables, PRIOR, c, r)
    for k in range(2):
        assert torch.equal(found[k], tables[k][best[k], c[k]])


def test_counts_of_the_prompt_by_hand(tables: Tensor, prompts: Prompts) -> None:
    _, c, r = (part[:, :3] for part in prompts)
    found = context_counts(c, r, C, R, smoothing=0.5)
    for k, i, t, v in itertools.product(range(2), range(3), (0, 1, 7, T - 1), range(R)):
        seen = [int(r[k, i, s]) for s in range(t) if c[k, i, s] == c[k, i, t]]
        assert float(found[k, i, t, v]) == pytest.approx((seen.count(v) + 0.5) / (len(seen) + 0.5 * R), rel=1e-12)


def test_distances() -> None:
    p, q = (concept_tables([seed], 2, 3, 4, 0.01) for seed in (0, 1))
    by_hand = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p[0, 0, 0], q[0, 0, 0], strict=True))
    assert float(kl(p, q)[0, 0, 0]) == pytest.approx(by_hand, rel=1e-12)
    assert close(tv(p, q), (p - q).clamp_min(0).sum(-1))
    assert bool((2 * tv(p, q).square() <= kl(p, q)).all())  # Pinsker
    assert close(kl(p, p), 0.0)
    sure, other = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(kl(sure, other)) == math.inf
    assert float(kl(sure, torch.tensor([0.25, 0.75]))) == pytest.approx(math.log(4))
    assert float(tv(sure, other)) == 1


# Drift ------------------------------------------------------------------------------------------------------------


def test_drift_by_its_definition(tables: Tensor, laws: Tensor) -> None:
    shown = corrupted_laws(tables, "least likely")
    for given in (None, laws):
        found = drift(tables, shown, laws=given)
        for k, z, other in itertools.product(range(2), range(M), range(M)):
            expected = 0.0
            for c in range(C):
                weight = 1 / C if given is None else float(given[k, z, c])
                if given is not None:
                    expected += weight * math.log(weight / float(given[k, other, c]))
                for v in range(R):
                    ratio = float(tables[k, z, c, v]) / float(tables[k, other, c, v])
                    expected += weight * float(shown[k, z, c, v]) * math.log(ratio)
            assert float(found[k, z, other]) == pytest.approx(expected, abs=1e-12)


def test_correct_responses_drift_by_the_divergence_of_pairs(tables: Tensor, laws: Tensor) -> None:
    found = pair_divergence(tables, laws=laws)
    joint = (laws.unsqueeze(-1) * tables).flatten(2)  # P(c, r | z)
    assert close(found, kl(joint.unsqueeze(2), joint.unsqueeze(1)))
    assert close(found.diagonal(dim1=1, dim2=2), 0.0, 0.0)
    assert float((found + torch.eye(M)).min()) > 0


@pytest.mark.parametrize("length", [2, 3])
def test_words_add_their_tokens_to_the_drift(length: int) -> None:
    """When the responses say nothing, drift is l · KL(P_in(· | z*) ‖ P_in(· | z))."""
    tokens = covariate_laws(SEEDS, M, 2, 0.05)
    words = word_laws(tokens, length)
    same = concept_tables(SEEDS, 1, 2**length, R, 0.05).expand(-1, M, -1, -1)
    found = pair_divergence(same, laws=words)
    assert close(found, length * kl(tokens.unsqueeze(2), tokens.unsqueeze(1)))


def test_no_family_with_short_covariates_meets_the_papers_condition() -> None:
    """KL_pair ≤ (l + 1) log(1/c₀), so that KL_pair > 2 log(1/c₀) needs l > 1."""
    c0 = 0.05
    tables, laws = concept_tables(range(20), 4, 2, 4, c0, 0.02), covariate_laws(range(20), 4, 2, c0, 0.02)
    found = pair_divergence(tables, laws=laws)
    assert float(found.max()) > math.log(1 / c0)
    assert float(found.max()) <= 2 * math.log(1 / c0)


@pytest.mark.parametrize("informative", [False, True])
@pytest.mark.parametrize("mode", ["correct", "random", "least likely"])
def test_the_sign_of_the_drift_decides_where_the_posterior_goes(mode: str, informative: bool) -> None:
    """log(P(z* | S_t)/P(z | S_t))/t → drift(z), so z* survives if and only if all its drifts are positive."""
    M, C, R, n, T = 3, 4, 4, 200, 800
    tables = concept_tables([36], M, C, R, 0.05)
    laws = covariate_laws([36], M, C, 0.02, 0.3) if informative else None
    z, c, r = sample_pairs(tables, uniform(M), n, T, [1], laws=laws)
    shown = corrupt(tables, z, c, r, mode, [1])
    log_w = log_posteriors(uniform(M), log_likelihoods(tables, c, shown, laws=laws))[0, :, -1]
    expected = drift(tables, corrupted_laws(tables, mode), laws=laws)[0]
    for m in range(M):
        rate = (log_w[z[0] == m][:, m : m + 1] - log_w[z[0] == m]) / T
        assert within(rate.unsqueeze(0), expected[m])
        others = expected[m][torch.arange(M) != m]
        assert float(others.abs().min()) > 0.02  # far enough from zero to tell after T pairs
        survives = float(log_w[z[0] == m][:, m].exp().mean())
        assert survives == pytest.approx(float(others.min() > 0), abs=0.01)


# Errors -----------------------------------------------------------------------------------------------------------


def test_errors_say_what_was_wrong(tables: Tensor, prompts: Prompts) -> None:
    z, c, r = prompts
    with pytest.raises(ValueError, match=r"r must lie in 0..2, got 1..3"):
        bma(tables, PRIOR, c, r + 1)
    with pytest.raises(ValueError, match=r"c must lie in 0..2, got -1..1"):
        log_likelihoods(tables, c - 1, r)
    with pytest.raises(ValueError, match=r"c and r must both be \[K, n, T\]"):
        bma(tables, PRIOR, c, r[..., 1:])
    with pytest.raises(ValueError, match=r"prompts of 2 members for tables of 1"):
        bma(tables[:1], PRIOR, c, r)
    with pytest.raises(ValueError, match="add up to 1"):
        bma(tables, PRIOR / 2, c, r)
    with pytest.raises(ValueError, match=r"tables must be positive .* least entry of 0.0"):
        bma(tables.round(), PRIOR, c, r)
    with pytest.raises(ValueError, match=r"laws of covariates must be positive"):
        bma(tables, PRIOR, c, r, laws=torch.zeros(2, M, C))
    with pytest.raises(ValueError, match=r"laws must be \[K, M, C\]"):
        drift(tables, tables, laws=uniform(C))
    with pytest.raises(ValueError, match=r"shown must be \[2, 4, 3, 3\]"):
        drift(tables, tables[..., :2])
    with pytest.raises(ValueError, match=r"z must be \[2, 300\] numbers in 0..3"):
        truth(tables, z + 1, c)
    with pytest.raises(ValueError, match="smoothing = 0 must be positive"):
        context_counts(c, r, C, R, smoothing=0)
