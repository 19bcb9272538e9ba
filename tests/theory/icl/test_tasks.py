from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from theory.icl import tasks
from theory.icl.bayes import mix
from theory.icl.tasks import (
    CORRUPTIONS,
    HMM,
    chain_pairs,
    concept_tables,
    corrupt,
    corrupted_laws,
    covariate_laws,
    forward,
    ginc,
    linear_prompts,
    markov_tables,
    mixing_time,
    pool_prompts,
    pool_tasks,
    sample_chains,
    sample_hmm,
    sample_pairs,
    second_eigenvalue,
    stationary_law,
    word_laws,
)

SEEDS = [3, 4]


def uniform(M: int) -> Tensor:
    return torch.full((M,), 1 / M, dtype=torch.float64)


def close(a: Tensor, b: Tensor | float, tolerance: float = 1e-12) -> bool:
    return float((a - b).abs().max()) <= tolerance


def within(found: Tensor, expected: Tensor, trials: Tensor) -> bool:
    """Tell whether frequencies of `trials` draws are within five standard errors, and a count, of their laws."""
    error = (expected * (1 - expected) / trials).sqrt()
    return bool(((found - expected).abs() <= 5 * error + 1 / trials).all())


def frequencies(index: Tensor, size: int) -> Tensor:
    return torch.bincount(index, minlength=size).double()


# Tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.01, 0.3, 1.0, 50.0])
def test_rows_are_laws_above_the_floor_for_any_alpha(alpha: float) -> None:
    c0 = 0.02
    tables = concept_tables(SEEDS, 5, 4, 3, c0, alpha)
    assert tables.shape == (2, 5, 4, 3)
    assert tables.dtype == torch.float64
    assert close(tables.sum(-1), 1.0)
    assert float(tables.min()) >= c0 - 1e-15
    assert float(tables.max()) <= 1 - 2 * c0 + 1e-15


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_rows_have_the_moments_of_a_dirichlet(alpha: float) -> None:
    """Mean 1/R and variance (1 − R c₀)² (R − 1)/(R² (R α + 1)), over 12 000 rows."""
    R, c0 = 4, 0.05
    p = concept_tables([0], 200, 60, R, c0, alpha).flatten(0, 2)
    variance = (1 - R * c0) ** 2 * (R - 1) / (R**2 * (R * alpha + 1))
    assert close(p.mean(0), 1 / R, 5 * (variance / len(p)) ** 0.5)
    assert close(p.var(0) / variance, 1.0, 0.08)


def test_the_largest_floor_leaves_one_table() -> None:
    assert close(concept_tables(SEEDS, 3, 2, 4, 0.25), 0.25)


def test_concepts_depend_on_their_seed_alone_and_not_on_their_number() -> None:
    both = concept_tables(SEEDS, 5, 2, 3, 0.1)
    assert torch.equal(both[1], concept_tables([4], 5, 2, 3, 0.1)[0])
    assert torch.equal(both[:, :2], concept_tables(SEEDS, 2, 2, 3, 0.1))
    assert not torch.equal(both[0], both[1])


def test_tables_transitions_and_laws_of_one_seed_differ() -> None:
    square = concept_tables([0], 3, 4, 4, 0.0)
    assert not torch.equal(square, markov_tables([0], 3, 4, 0.0))
    assert not torch.equal(square[0, 0], covariate_laws([0], 4, 4, 0.0)[0])


def test_the_law_of_a_word_is_the_product_of_its_tokens() -> None:
    law = covariate_laws(SEEDS, 3, 4, 0.01)
    words = word_laws(law, 3)
    assert words.shape == (2, 3, 64)
    for number, word in enumerate(itertools.product(range(4), repeat=3)):
        assert close(words[..., number], law[..., list(word)].prod(-1))
    assert word_laws(law, 1) is law


# Pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_laws", [False, True])
def test_pairs_follow_prior_covariates_and_tables(with_laws: bool) -> None:
    K, M, C, R, n, T = 2, 3, 4, 3, 2000, 20
    tables = concept_tables(SEEDS, M, C, R, 0.05)
    laws = covariate_laws(SEEDS, M, C, 0.05) if with_laws else None
    prior = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    z, c, r = sample_pairs(tables, prior, n, T, [1, 2], laws=laws)
    for k in range(K):
        assert within(frequencies(z[k], M) / n, prior, torch.tensor(float(n)))
        for m in range(M):
            own = c[k, z[k] == m].flatten()
            law = uniform(C) if laws is None else laws[k, m]
            assert within(frequencies(own, C) / len(own), law, torch.tensor(float(len(own))))
            pairs = frequencies(own * R + r[k, z[k] == m].flatten(), C * R).view(C, R)
            seen = pairs.sum(1, keepdim=True)
            assert within(pairs / seen, tables[k, m], seen)


def test_prompts_depend_on_their_seed_alone_and_not_on_their_number_or_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = concept_tables(SEEDS, 3, 4, 3, 0.05)
    both = sample_pairs(tables, uniform(3), 50, 7, [1, 2])
    alone = sample_pairs(tables[1:], uniform(3), 50, 7, [2])
    fewer = sample_pairs(tables, uniform(3), 20, 7, [1, 2])
    monkeypatch.setattr(tasks, "entries", lambda device: 100)
    chunked = sample_pairs(tables, uniform(3), 50, 7, [1, 2])
    for a, b, c, d in zip(both, alone, fewer, chunked, strict=True):
        assert torch.equal(a[1:], b)
        assert torch.equal(a[:, :20], c)
        assert torch.equal(a, d)


def test_equal_seeds_share_covariates_across_tables() -> None:
    """Arms that differ in their concepts only are paired."""
    one = sample_pairs(concept_tables([0], 3, 4, 3, 0.05), uniform(3), 10, 9, [5])
    two = sample_pairs(concept_tables([1], 3, 4, 3, 0.05), uniform(3), 10, 9, [5])
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[2], two[2])


# Chains -----------------------------------------------------------------------------------------------------------


def test_chains_start_uniform_and_follow_their_transitions() -> None:
    V, n, T = 3, 3000, 12
    tables = markov_tables([0], 2, V, 0.05)
    z, x = sample_chains(tables, uniform(2), n, T, [1])
    assert within(frequencies(x[0, :, 0], V) / n, uniform(V), torch.tensor(float(n)))
    c, r = chain_pairs(x)
    assert torch.equal(c[..., 1:], r[..., :-1])
    for m in range(2):
        pairs = frequencies((c * V + r)[0, z[0] == m].flatten(), V * V).view(V, V)
        seen = pairs.sum(1, keepdim=True)
        assert within(pairs / seen, tables[0, m], seen)


def two_state(a: float, b: float) -> Tensor:
    return torch.tensor([[1 - a, a], [b, 1 - b]], dtype=torch.float64)


@pytest.mark.parametrize(("a", "b"), [(0.1, 0.3), (0.9, 0.8), (0.5, 0.5), (0.02, 0.01)])
def test_two_states_have_known_laws_eigenvalues_and_mixing_times(a: float, b: float) -> None:
    """π = (b, a)/(a + b), λ₂ = 1 − a − b and max_x TV(Pᵗ(x, ·), π) = |λ₂|ᵗ max(a, b)/(a + b)."""
    tables = two_state(a, b)
    expected = torch.tensor([b, a], dtype=torch.float64) / (a + b)
    assert close(stationary_law(tables), expected)
    assert close(second_eigenvalue(tables), abs(1 - a - b))
    far, rate = max(a, b) / (a + b), abs(1 - a - b)
    steps = next(t for t in range(1000) if far * rate**t <= 0.01)
    assert int(mixing_time(tables, 0.01)) == steps


def test_stationary_laws_and_mixing_times_of_many_chains() -> None:
    tables = markov_tables(SEEDS, 3, 5, 0.01, 0.3)
    pi = stationary_law(tables)
    assert close((pi.unsqueeze(-2) @ tables).squeeze(-2), pi)
    times = mixing_time(tables)
    assert times.shape == (2, 3)
    for k, m in itertools.product(range(2), range(3)):
        t = int(times[k, m])
        distance = [
            float((torch.linalg.matrix_power(tables[k, m], s) - pi[k, m]).abs().sum(-1).max() / 2) for s in (t - 1, t)
        ]
        assert distance[1] <= 0.25 < distance[0]


def test_a_chain_that_forgets_at_once_mixes_in_one_step() -> None:
    law = covariate_laws([0], 1, 4, 0.01)
    tables = law.unsqueeze(2).expand(1, 1, 4, 4)
    assert int(mixing_time(tables, 1e-9)) == 1
    assert close(second_eigenvalue(tables), 0.0, 1e-9)
    assert float(second_eigenvalue(torch.ones(1, 1, dtype=torch.float64))) == 0


def test_a_periodic_chain_never_mixes() -> None:
    with pytest.raises(ValueError, match="after 50 steps: is it periodic"):
        mixing_time(two_state(1.0, 1.0), limit=50)


# Wrong responses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", CORRUPTIONS)
def test_shown_responses_follow_their_law(mode: str) -> None:
    M, C, R, n, T = 2, 3, 4, 1500, 16
    tables = concept_tables([0], M, C, R, 0.05)
    z, c, r = sample_pairs(tables, uniform(M), n, T, [1])
    shown, laws = corrupt(tables, z, c, r, mode, [1]), corrupted_laws(tables, mode)
    assert close(laws.sum(-1), 1.0)
    for m in range(M):
        own = z[0] == m
        pairs = frequencies((c * R + shown)[0, own].flatten(), C * R).view(C, R)
        seen = pairs.sum(1, keepdim=True)
        assert within(pairs / seen, laws[0, m], seen)


def test_wrong_responses_ignore_the_right_ones() -> None:
    tables = concept_tables([0], 2, 3, 4, 0.05)
    z, c, r = sample_pairs(tables, uniform(2), 50, 20, [1])
    assert corrupt(tables, z, c, r, "correct", [1]) is r
    for mode in ("random", "least likely"):
        shown = corrupt(tables, z, c, r, mode, [1])
        assert torch.equal(shown, corrupt(tables, z, c, (r + 1) % 4, mode, [1]))
        assert not torch.equal(shown, r)
    # Independent of the responses although the seeds are equal: agreement is 1/4 of 20 000, within five deviations.
    z, c, r = sample_pairs(tables, uniform(2), 1000, 20, [1])
    same = (corrupt(tables, z, c, r, "random", [1]) == r).double().mean()
    assert abs(float(same) - 0.25) <= 5 * math.sqrt(0.25 * 0.75 / 20_000)


# Hidden Markov models ---------------------------------------------------------------------------------------------


def small_hmm(M: int = 2, S: int = 3, V: int = 2) -> HMM:
    return HMM(
        covariate_laws(SEEDS, M, S, 0.01), markov_tables(SEEDS, M, S, 0.01), concept_tables(SEEDS, M, S, V, 0.01)
    )


def enumerated(hmm: HMM, k: int, m: int, x: tuple[int, ...]) -> float:
    """P(x | z = m) as a sum over all paths of states."""
    total = 0.0
    for path in itertools.product(range(hmm.start.shape[2]), repeat=len(x)):
        p = float(hmm.start[k, m, path[0]])
        for before, after in itertools.pairwise(path):
            p *= float(hmm.transition[k, m, before, after])
        for state, token in zip(path, x, strict=True):
            p *= float(hmm.emission[k, m, state, token])
        total += p
    return total


def test_forward_sums_over_all_paths() -> None:
    hmm, T = small_hmm(), 4
    words = torch.tensor(list(itertools.product(range(2), repeat=T))).expand(2, -1, -1)
    steps, laws = forward(hmm, words)
    likelihood = steps.cumsum(2).exp()
    assert close(likelihood[:, :, -1].sum(1), 1.0)  # over all words
    assert close(laws.sum(-1), 1.0)
    assert close(laws.gather(4, words[:, :, :, None, None].expand(-1, -1, -1, 2, 1)).squeeze(4).log(), steps)
    for k, word, m in itertools.product(range(2), (0, 5, 11), range(2)):
        x = tuple(words[k, word].tolist())
        for t in range(1, T + 1):
            assert float(likelihood[k, word, t - 1, m]) == pytest.approx(enumerated(hmm, k, m, x[:t]), rel=1e-12)


def test_averaging_hidden_markov_models_is_a_ratio_of_marginals() -> None:
    hmm, prior = small_hmm(), torch.tensor([0.7, 0.3], dtype=torch.float64)
    x = (0, 1, 1, 0)
    found = mix(prior, *forward(hmm, torch.tensor([[x]] * 2)))
    for k, t, v in itertools.product(range(2), range(4), range(2)):
        longer, shorter = (
            sum(float(prior[m]) * enumerated(hmm, k, m, word) for m in range(2)) if word else 1.0
            for word in ((*x[:t], v), x[:t])
        )
        assert float(found[k, 0, t, v]) == pytest.approx(longer / shorter, rel=1e-12)


def test_documents_follow_their_model() -> None:
    """Frequencies of all words of three tokens against the forward algorithm."""
    hmm, n, T = small_hmm(), 6000, 3
    z, h, x = sample_hmm(hmm, uniform(2), n, T, [1, 2])
    words = torch.tensor(list(itertools.product(range(2), repeat=T))).expand(2, -1, -1)
    law = forward(hmm, words)[0].sum(2).exp()
    for k, m in itertools.product(range(2), range(2)):
        own = z[k] == m
        count = own.sum().double()
        number = (x[k, own] * torch.tensor([4, 2, 1])).sum(-1)
        assert within(frequencies(number, 8) / count, law[k, :, m], count)
        moves = frequencies((h[k, own, :-1] * 3 + h[k, own, 1:]).flatten(), 9).view(3, 3)
        assert within(moves / moves.sum(1, keepdim=True), hmm.transition[k, m], moves.sum(1, keepdim=True))


def test_a_concept_that_cannot_have_written_a_document_is_ruled_out() -> None:
    """One state each, one concept that only writes 0: after a 1 the other is certain."""
    ones = torch.ones(1, 2, 1, dtype=torch.float64)
    emission = torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]]], dtype=torch.float64)
    hmm = HMM(ones, ones.unsqueeze(3), emission)
    steps, laws = forward(hmm, torch.tensor([[[0, 1, 0]]]))
    assert steps[0, 0, :, 0].tolist() == [0.0, -math.inf, -math.inf]
    found = mix(uniform(2), steps, laws)[0, 0, :, 0]
    assert close(found, torch.tensor([3 / 4, (2 / 3) + (1 / 3) / 2, 1 / 2], dtype=torch.float64))


def test_ginc_shares_memory_and_value_moves_and_nothing_else() -> None:
    slots, values, V, M, stay = 4, 3, 9, 3, 0.9
    hmm = ginc(SEEDS, M, slots, values, V, stay=stay)
    assert close(hmm.transition.sum(-1), 1.0)
    assert close(hmm.transition.sum(-2), 1.0)  # mixtures of permutations
    assert close(hmm.start.sum(-1), 1.0)
    moves = hmm.transition.unflatten(3, (values, slots)).unflatten(2, (values, slots))  # [K, M, v, s, v', s']
    by_value, by_slot = moves.sum(-1).mean(3), moves.sum(-2).mean(2)
    assert close(by_value, by_value[:, :1])
    assert float(by_value.diagonal(dim1=2, dim2=3).min()) >= stay - 1e-12
    assert not close(by_slot, by_slot[:, :1], 1e-3)
    assert close(moves, torch.einsum("kmvw,kmst->kmvswt", by_value, by_slot))
    assert torch.equal(hmm.emission, hmm.emission[:, :1].expand_as(hmm.emission))
    memory = hmm.emission[:, 0].argmax(-1).unflatten(1, (values, slots))
    assert bool((memory[:, :, 0] == 0).all())
    assert bool((memory[:, :, 1:] > 0).all())
    z, h, x = sample_hmm(hmm, uniform(M), 5, 40, [1, 2])
    assert torch.equal((x == 0), (h % slots == 0))
    own = forward(hmm, x)[0].cumsum(2).gather(3, z[:, :, None, None].expand(-1, -1, 40, 1))
    assert bool(own.isfinite().all())
    alone = ginc(SEEDS[1:], M, slots, values, V)
    for name in ("start", "transition", "emission"):
        both = getattr(hmm, name)
        assert torch.equal(getattr(alone, name)[0], both[1])
        assert not torch.equal(both[0], both[1])


# Regression -------------------------------------------------------------------------------------------------------


def test_linear_prompts_have_their_variances_and_no_hidden_ties() -> None:
    n, T, d, lam, sigma2 = 4000, 3, 2, 2.0, 0.25
    X, y, w = linear_prompts(SEEDS, n, T, d, lam, sigma2)
    assert X.shape == (2, n, T, d)
    noise = y - (X @ w.unsqueeze(-1)).squeeze(-1)
    for values, variance in ((X, 1.0), (w, lam), (noise, sigma2)):
        flat = values.flatten(1)
        assert close(flat.mean(1), 0.0, 5 * (variance / flat.shape[1]) ** 0.5)
        assert close(flat.var(1) / variance, 1.0, 5 * (2 / flat.shape[1]) ** 0.5)
    correlation = (X[:, :, 0] * w).mean((1, 2)) / lam**0.5
    assert close(correlation, 0.0, 5 / (n * d) ** 0.5)
    alone = linear_prompts(SEEDS[1:], n, T, d, lam, sigma2)
    assert all(torch.equal(a[1:], b) for a, b in zip((X, y, w), alone, strict=True))


def test_prompts_of_a_pool_use_its_tasks_alike() -> None:
    M, n, T = 3, 3000, 2
    pool = pool_tasks(SEEDS, M, 2, lam=4.0)
    X, y, z = pool_prompts(pool, n, T, 0.0, [1, 2])
    for k in range(2):
        assert within(frequencies(z[k], M) / n, uniform(M), torch.tensor(float(n)))
        assert close(y[k], (X[k] @ pool[k, z[k]].unsqueeze(-1)).squeeze(-1), 0.0)
    # The covariates of prompts with tasks of their own: paired.
    assert torch.equal(X, linear_prompts([1, 2], n, T, 2, 1.0, 0.0)[0])


# Errors -----------------------------------------------------------------------------------------------------------


def test_errors_say_what_was_wrong() -> None:
    tables = concept_tables([0], 2, 3, 4, 0.05)
    with pytest.raises(ValueError, match=r"c0 = 0.3 must lie between 0 and 1/R = 0.25"):
        concept_tables([0], 2, 3, 4, 0.3)
    with pytest.raises(ValueError, match=r"alpha = 0 must be positive"):
        concept_tables([0], 2, 3, 4, 0.1, 0)
    with pytest.raises(ValueError, match=r"prior must be \[2\] or \[1, 2\], got \[3\]"):
        sample_pairs(tables, uniform(3), 2, 2, [0])
    with pytest.raises(ValueError, match="add up to 1"):
        sample_pairs(tables, 2 * uniform(2), 2, 2, [0])
    with pytest.raises(ValueError, match="2 seeds for concepts of 1 members"):
        sample_pairs(tables, uniform(2), 2, 2, [0, 1])
    with pytest.raises(ValueError, match=r"laws must be \[K, M, C\] = \[1, 2, 3\]"):
        sample_pairs(tables, uniform(2), 2, 2, [0], laws=tables)
    with pytest.raises(ValueError, match=r"transition matrices must be \[K, M, V, V\], got \[1, 2, 3, 4\]"):
        sample_chains(tables, uniform(2), 2, 2, [0])
    with pytest.raises(ValueError, match=r"mode = 'wrong': choose one of 'correct', 'random', 'least likely'"):
        corrupted_laws(tables, "wrong")
    with pytest.raises(ValueError, match="at least one token"):
        word_laws(tables, 0)
    with pytest.raises(ValueError, match=r"got \[1, 2, 3, 4\]"):
        HMM(tables[..., 0], tables, tables)
    with pytest.raises(ValueError, match="V = 1"):
        ginc([0], 2, V=1)
    with pytest.raises(ValueError, match=r"sigma2 = -1.0"):
        linear_prompts([0], 2, 2, 2, 1.0, -1.0)
    with pytest.raises(ValueError, match=r"lam = -1.0"):
        linear_prompts([0], 2, 2, 2, -1.0, 1.0)
    with pytest.raises(ValueError, match="M = 0"):
        pool_tasks([0], 0, 2)
