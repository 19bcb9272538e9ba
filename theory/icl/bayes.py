"""Exact Bayesian model averaging over finitely many concepts, its regret, and the predictors it is compared to.

Tables [K, M, C, R] hold P(r | c, z), all entries positive; prompts are c, r [K, n, T], their concepts z* [K, n]; a prior
P_Z is [M] or [K, M]. Position t = 1..T of a predictive [K, n, T, R] is the law of r_t given S_{t−1} = (c_1, r_1, ..,
c_{t−1}, r_{t−1}) and c_t. With L_t(z) = log P_Z(z) + Σ_{i≤t} log P(r_i | c_i, z) it is

    p_t(r) = Σ_z w_{t−1}(z) P(r | c_t, z),     w_t = softmax_z L_t.                        (equation 4.2, Proposition 4.1)

That is right only if c_t tells nothing about z. Where the law of the covariates depends on the concept, `laws` [K, M, C]
of P(c | z) enters: L_t gains Σ log P(c_i | z), and w_{t−1}(z) becomes w_{t−1}(z) P(c_t | z), normalised.

Regret here is *cumulative*, in nats: the paper's regret_t is this number over t. All logarithms are natural.

Source: Zhang, Zhang, Yang and Wang 2023, arXiv:2305.19420: section 4.1, Corollary 4.2, appendix G. Every function raises
ValueError for shapes that do not fit together, indices out of range and laws that are not positive.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from theory.icl.tasks import checked_laws, checked_prior, sequence_chunks

# Beliefs ----------------------------------------------------------------------------------------------------------


def log_likelihoods(tables: Tensor, c: Tensor, r: Tensor, *, laws: Tensor | None = None) -> Tensor:
    """Return log P(r_t | c_t, z), plus log P(c_t | z) where covariates follow `laws`, [K, n, T, M]. Not chunked."""
    R = _checked(tables, c, r)[3]
    by_pair = tables.log()
    if laws is not None:
        by_pair = by_pair + _checked_laws(laws, tables).log().unsqueeze(-1)
    return _rows(by_pair.permute(0, 2, 3, 1).flatten(1, 2), c * R + r)


def log_posteriors(prior: Tensor, increments: Tensor) -> Tensor:
    """Return log P(z | S_t) for t = 0..T, [K, n, T + 1, M], from log-likelihoods [K, n, T, M]; t = 0 is the prior.

    The increments are those of `log_likelihoods`, or of `tasks.forward` for hidden Markov models. Not chunked.
    """
    K, _, _, M = increments.shape
    start = checked_prior(prior, K, M).log()[:, None, None, :].expand_as(increments[:, :, :1])
    return torch.cat([start, increments], 2).cumsum(2).log_softmax(-1)


def log_posterior_at(
    tables: Tensor, prior: Tensor, c: Tensor, r: Tensor, z: Tensor, *, laws: Tensor | None = None
) -> Tensor:
    """Return log P(z | S_t) of one concept per prompt, z [K, n], for t = 0..T: [K, n, T + 1]."""

    def one(part: slice) -> Tensor:
        log_w = log_posteriors(prior, log_likelihoods(tables, c[:, part], r[:, part], laws=laws))
        return log_w.gather(3, z[:, part, None, None].expand(-1, -1, log_w.shape[2], 1)).squeeze(3)

    return _by_chunks(one, tables, c)


def information(tables: Tensor, prior: Tensor, c: Tensor, r: Tensor, *, laws: Tensor | None = None) -> Tensor:
    """Return KL(P(z | S_t) ‖ P_Z) of each prompt for t = 0..T, [K, n, T + 1].

    Its mean over prompts with z* ~ P_Z is the mutual information I(z; S_t). Without `laws` that is the expected
    cumulative regret of `bma` against z*: this is `sampled_regret` averaged over z* given S_t, so it never varies more.
    """

    def one(part: slice) -> Tensor:
        log_w = log_posteriors(prior, log_likelihoods(tables, c[:, part], r[:, part], laws=laws))
        w = log_w.exp()
        return (torch.where(w > 0, w * (log_w - log_w[:, :, :1]), 0.0)).sum(-1)

    return _by_chunks(one, tables, c)


# Predictors -------------------------------------------------------------------------------------------------------


def bma(
    tables: Tensor,
    prior: Tensor,
    c: Tensor,
    r: Tensor,
    *,
    laws: Tensor | None = None,
    power: float = 1.0,
    leak: bool = False,
) -> Tensor:
    """Return the law of r_t under Bayesian model averaging, [K, n, T, R].

    Two ways to break it, for controls: `power` multiplies the log-likelihood of the context (1/2 is a tempered posterior,
    0 ignores the context), and `leak` lets the posterior see r_t itself before it predicts r_t.
    """
    return _predict(lambda log_w: log_w.softmax(-1), tables, prior, c, r, laws, power, leak)


def plug_in(tables: Tensor, prior: Tensor, c: Tensor, r: Tensor, *, laws: Tensor | None = None) -> Tensor:
    """Return the law of r_t under the one concept with the largest posterior (the first of several), [K, n, T, R]."""

    def best(log_w: Tensor) -> Tensor:
        return torch.zeros_like(log_w).scatter_(-1, log_w.argmax(-1, keepdim=True), 1.0)

    return _predict(best, tables, prior, c, r, laws, 1.0, False)


def prior_average(tables: Tensor, prior: Tensor, c: Tensor, *, laws: Tensor | None = None) -> Tensor:
    """Return Σ_z P(z | c_t) P(· | c_t, z), [K, n, T, R]: what is known without the context."""
    return bma(tables, prior, c, torch.zeros_like(c), laws=laws, power=0.0)


def context_counts(c: Tensor, r: Tensor, C: int, R: int, *, smoothing: float = 1.0) -> Tensor:
    """Return the frequency of each response among earlier pairs with the covariate c_t, [K, n, T, R].

    Laplace-smoothed: (N_{t−1}(c_t, r) + s) / (N_{t−1}(c_t) + s R). It knows no concepts, only the prompt.
    """
    if not smoothing > 0:
        raise ValueError(f"smoothing = {smoothing} must be positive: a response not seen yet would have probability 0")
    _check_prompts(c, r, C, R)

    def one(part: slice) -> Tensor:
        counts = _counts_before(c[:, part], r[:, part], C, R).double().unflatten(3, (C, R))
        found = counts.gather(3, c[:, part, :, None, None].expand(-1, -1, -1, 1, R)).squeeze(3) + smoothing
        return found / found.sum(-1, keepdim=True)

    K, n, T = c.shape
    return torch.cat([one(part) for part in sequence_chunks(n, K * T * C * R, c.device)], 1)


def by_marginals(tables: Tensor, prior: Tensor, c: Tensor, r: Tensor, *, laws: Tensor | None = None) -> Tensor:
    """Return p_t as a ratio of marginals, [K, n, T, R]: a second computation of `bma` that forms no posterior.

    p_t(r) = P(S_{t−1}, c_t, r) / Σ_r′ P(S_{t−1}, c_t, r′) with P(S) = Σ_z P_Z(z) Π P(pairs | z), where the product comes
    from how often each pair occurred. Slower than `bma` by a factor of about R.
    """
    K, M, C, R = _checked(tables, c, r)
    by_pair = tables.log() if laws is None else tables.log() + _checked_laws(laws, tables).log().unsqueeze(-1)
    log_prior = checked_prior(prior, K, M).log()[:, None, None, None, :]
    rows = by_pair.permute(0, 2, 3, 1).flatten(2)  # [K, C, R·M]

    def one(part: slice) -> Tensor:
        before = _counts_before(c[:, part], r[:, part], C, R).to(by_pair.dtype)  # [K, n, T, C·R]
        context = (before.flatten(1, 2) @ by_pair.flatten(2).mT).unflatten(1, before.shape[1:3])  # [K, n, T, M]
        joint = _rows(rows, c[:, part]).unflatten(3, (R, M)) + context.unsqueeze(3) + log_prior
        return joint.logsumexp(-1).softmax(-1)

    n, T = c.shape[1:]
    return torch.cat([one(part) for part in sequence_chunks(n, K * T * R * max(M, C), c.device)], 1)


def mix(prior: Tensor, increments: Tensor, predictives: Tensor) -> Tensor:
    """Return the average of the concepts' own predictives [K, n, T, M, R] under the posterior before t, [K, n, T, R].

    For concepts with memory, such as hidden Markov models: increments [K, n, T, M] and predictives are what
    `tasks.forward` returns. Not chunked.
    """
    weights = log_posteriors(prior, increments)[:, :, :-1].exp()
    return (weights.unsqueeze(-2) @ predictives).squeeze(-2)


def truth(tables: Tensor, z: Tensor, c: Tensor) -> Tensor:
    """Return P(· | c_t, z), [K, n, T, R], for concepts z [K, n]."""
    M, C, R = tables.shape[1:]
    _check_prompts(c, torch.zeros_like(c), C, R)
    if z.shape != c.shape[:2] or (z.numel() and not 0 <= int(z.min()) <= int(z.max()) < M):
        raise ValueError(f"z must be {list(c.shape[:2])} numbers in 0..{M - 1}, got {list(z.shape)}")
    return _rows(tables.flatten(1, 2), z.unsqueeze(-1) * C + c)


# Distances and regret ---------------------------------------------------------------------------------------------


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p ‖ q) = Σ p log(p / q) along the last axis, in nats; ∞ where q misses a part of p."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def tv(p: Tensor, q: Tensor) -> Tensor:
    """Return the total variation ½ Σ |p − q| along the last axis."""
    return (p - q).abs().sum(-1) / 2


def log_loss(predictive: Tensor, r: Tensor) -> Tensor:
    """Return −log p_t(r_t), [K, n, T], of predictives [K, n, T, R]."""
    return -predictive.gather(-1, r.unsqueeze(-1)).squeeze(-1).log()


def sampled_regret(predictive: Tensor, true: Tensor, r: Tensor) -> Tensor:
    """Return Σ_{i≤t} log P(r_i | c_i, z*) − log p_i(r_i) on each path, [K, n, T].

    For `bma` without `laws` it equals log P(z* | S_t) − log P_Z(z*), and is therefore never above `regret_bound`.
    """
    return (log_loss(predictive, r) - log_loss(true, r)).cumsum(-1)


def expected_regret(predictive: Tensor, true: Tensor) -> Tensor:
    """Return Σ_{i≤t} KL(P(· | c_i, z*) ‖ p_i), [K, n, T]: each step averaged over its own response.

    It has the expectation of `sampled_regret`. Each step varies less, but their sum need not: sampled steps cancel one
    another, until all of `sampled_regret` of `bma` is log(1/P_Z(z*)) on every path, while these sums keep their spread.
    Use differences of it for single steps, and `averaged_regret` for sums.
    """
    return kl(true, predictive).cumsum(-1)


def averaged_regret(gained: Tensor, average: Tensor, predictive: Tensor) -> Tensor:
    """Return KL(P(z | S_t) ‖ P_Z) + Σ_{i≤t} KL(BMA_i ‖ p_i), [K, n, T]: regret averaged over z* and single responses.

    `gained` is what `information` returns, [K, n, T + 1], and `average` what `bma` returns. For prompts with z* ~ P_Z
    its mean is the expected regret of any predictor: the decomposition behind Theorem 6.2, exact because r_i has the law
    BMA_i once z* is integrated out.
    """
    return gained[..., 1:] + kl(average, predictive).cumsum(-1)


def hindsight_regret(predictive: Tensor, tables: Tensor, c: Tensor, r: Tensor) -> Tensor:
    """Return sup_z Σ_{i≤t} log P(r_i | c_i, z) − Σ_{i≤t} log p_i(r_i), [K, n, T]; never below `sampled_regret`.

    Under a uniform prior `bma` without `laws` keeps it at or below log M.
    """

    def best(part: slice) -> Tensor:
        return log_likelihoods(tables, c[:, part], r[:, part]).cumsum(2).amax(-1)

    return _by_chunks(best, tables, c) + log_loss(predictive, r).cumsum(-1)


def covariate_regret(tables: Tensor, prior: Tensor, c: Tensor, r: Tensor, z: Tensor, laws: Tensor) -> Tensor:
    """Return Σ_{i≤t} log P(c_i | z) − log P(c_i | S_{i−1}), [K, n, T]: what averaging loses on the covariates.

    With `laws`, only the sum of this and `sampled_regret` is log P(z | S_t) − log P_Z(z): the regret of the responses alone
    obeys the bound in expectation, not on every path.
    """
    log_law = _checked_laws(laws, tables).log()

    def one(part: slice) -> Tensor:
        log_w = log_posteriors(prior, log_likelihoods(tables, c[:, part], r[:, part], laws=laws))[:, :, :-1]
        by_concept = _rows(log_law.mT, c[:, part])  # [K, n, T, M]
        own = by_concept.gather(3, z[:, part, None, None].expand(-1, -1, c.shape[2], 1)).squeeze(3)
        return (own - (log_w + by_concept).logsumexp(-1)).cumsum(-1)

    return _by_chunks(one, tables, c)


def regret_bound(prior: Tensor, z: Tensor) -> Tensor:
    """Return log(1 / P_Z(z*)), [K, n]: what the cumulative regret against z* never exceeds (Corollary 4.2)."""
    return -prior.expand(z.shape[0], -1).gather(1, z).log()


# Pairs of concepts ------------------------------------------------------------------------------------------------


def drift(tables: Tensor, shown: Tensor, *, laws: Tensor | None = None) -> Tensor:
    """Return how fast a prompt of concept z* speaks for z* against z, in nats per pair, [K, M (z*), M (z)].

    KL(P(c | z*) ‖ P(c | z)) + E_c E_{r′} [log P(r′ | c, z*) − log P(r′ | c, z)], with c from z* and r′ from `shown`
    [K, M, C, R], the law of the responses in the prompt (`tasks.corrupted_laws`). The posterior concentrates on z* if
    all other entries of row z* are positive, and leaves it if one is negative. Covariates are uniform without `laws`.
    """
    C = _checked_tables(tables)[2]
    if shown.shape != tables.shape:
        raise ValueError(f"shown must be {list(tables.shape)} as the tables are, got {list(shown.shape)}")
    weights = torch.full_like(tables[..., 0], 1 / C) if laws is None else _checked_laws(laws, tables)
    cross = (weights.unsqueeze(-1) * shown).flatten(2) @ tables.log().flatten(2).mT
    if laws is not None:
        cross = cross + weights @ weights.log().mT
    return cross.diagonal(dim1=1, dim2=2).unsqueeze(2) - cross


def pair_divergence(tables: Tensor, *, laws: Tensor | None = None) -> Tensor:
    """Return KL_pair(z* ‖ z) = E log P(c, r | z*) / P(c, r | z), [K, M (z*), M (z)]: the drift of correct responses.

    Proposition 6.3 asks for min_{z ≠ z*} KL_pair > 2 log(1 / c₀). For covariates of l tokens, all laws floored at c₀,
    KL_pair ≤ (l + 1) log(1 / c₀), so that no family with l ≤ 1 satisfies it.
    """
    return drift(tables, tables, laws=laws)


# Shared -----------------------------------------------------------------------------------------------------------


def _predict(
    weigh: Callable[[Tensor], Tensor],
    tables: Tensor,
    prior: Tensor,
    c: Tensor,
    r: Tensor,
    laws: Tensor | None,
    power: float,
    leak: bool,
) -> Tensor:
    """Average the tables with weights made of log-weights [K, n, T, M]."""
    K, M, C, R = _checked(tables, c, r)
    log_prior = checked_prior(prior, K, M).log()[:, None, None, :]
    by_covariate = None if laws is None else _checked_laws(laws, tables).log().mT

    def one(part: slice) -> Tensor:
        log_w = power * _sum_before(log_likelihoods(tables, c[:, part], r[:, part], laws=laws), leak) + log_prior
        if by_covariate is not None and not leak:
            log_w = log_w + _rows(by_covariate, c[:, part])
        # All covariates at once: one matrix product, where gathering rows of tables would copy M·R numbers each.
        mixed = weigh(log_w).flatten(1, 2) @ tables.flatten(2)  # [K, n·T, C·R]
        at = c[:, part].flatten(1)[..., None, None].expand(-1, -1, 1, R)
        return mixed.unflatten(2, (C, R)).gather(2, at).squeeze(2).unflatten(1, (-1, c.shape[2]))

    return _by_chunks(one, tables, c)


def _by_chunks(one: Callable[[slice], Tensor], tables: Tensor, c: Tensor) -> Tensor:
    """Return one(part) for parts of the prompts, joined: temporaries hold M or C·R numbers per position."""
    K, M, C, R = tables.shape
    n, T = c.shape[1:]
    return torch.cat([one(part) for part in sequence_chunks(n, K * T * max(M, C * R), c.device)], 1)


def _sum_before(increments: Tensor, inclusive: bool) -> Tensor:
    """Return Σ_{i<t}, or Σ_{i≤t}, along axis 2."""
    if inclusive:
        return increments.cumsum(2)
    return torch.cat([torch.zeros_like(increments[:, :, :1]), increments[:, :, :-1]], 2).cumsum(2)


def _counts_before(c: Tensor, r: Tensor, C: int, R: int) -> Tensor:
    """Return how often each pair occurred before t, [K, n, T, C·R] of int64."""
    return _sum_before(torch.nn.functional.one_hot(c * R + r, C * R), False)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Return rows of table [K, J, W] at index [K, n, T], [K, n, T, W]."""
    K, J, _ = table.shape
    first = torch.arange(K, device=table.device).view(K, 1, 1) * J
    return table.reshape(K * J, -1).index_select(0, (index + first).flatten()).unflatten(0, index.shape)


def _checked(tables: Tensor, c: Tensor, r: Tensor) -> tuple[int, int, int, int]:
    K, M, C, R = _checked_tables(tables)
    _check_prompts(c, r, C, R)
    if c.shape[0] != K:
        raise ValueError(f"prompts of {c.shape[0]} members for tables of {K}")
    return K, M, C, R


def _checked_tables(tables: Tensor) -> tuple[int, int, int, int]:
    if tables.dim() != 4 or not bool((tables > 0).all()):
        raise ValueError(
            f"tables must be positive and [K, M, C, R] (Assumption 5.2 asks for c₀ > 0), got "
            f"{list(tables.shape)} with a least entry of {float(tables.min())}"
        )
    K, M, C, R = tables.shape
    return K, M, C, R


def _checked_laws(laws: Tensor, tables: Tensor) -> Tensor:
    if not bool((checked_laws(laws, tables) > 0).all()):
        raise ValueError(f"laws of covariates must be positive, got a least entry of {float(laws.min())}")
    return laws


def _check_prompts(c: Tensor, r: Tensor, C: int, R: int) -> None:
    if c.dim() != 3 or c.shape != r.shape:
        raise ValueError(f"c and r must both be [K, n, T], got {list(c.shape)} and {list(r.shape)}")
    for name, index, size in (("c", c, C), ("r", r, R)):
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
            raise ValueError(f"{name} must lie in 0..{size - 1}, got {int(index.min())}..{int(index.max())}")
