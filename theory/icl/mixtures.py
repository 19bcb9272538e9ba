"""A family where pretraining is maximum likelihood: mixtures of categorical tables, fitted by EM.

Nature draws a concept z with probability π_z and then T tokens, iid from the table P_z over R outcomes. A pretraining set
is N_p such sequences. The learner knows the number of concepts and nothing else, fits (π, P) by maximum likelihood, and
predicts the next token by Bayesian model averaging under what it learnt:

    p(r | prefix) = Σ_z w_z P_z(r),   w_z ∝ π_z Π_s P_z(s)^{c_s},   c = counts of the outcomes in the prefix.

The truth is in the family, so the distance between the learnt and the true predictive is generalisation error alone.
With one component too few there is an approximation error as well, which does not fall with N_p.

Everything is float64 and stacked over K members: π [K, M], P [K, M, R]. Members may differ in seed and in N_p, as pools
keep each distinct count vector once, with its multiplicity, padded by rows of multiplicity 0.

Source: Zhang et al. 2023, arXiv:2305.19420, Theorem 5.3 and Assumption 5.2; EM after Dempster, Laird and Rubin 1977.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import gammaincinv
from torch import Tensor
from torch.nn.functional import one_hot, pad

from theory.ensemble import stream

_FLOAT = torch.float64


@dataclass(frozen=True)
class Mixture:
    """K mixtures of M categorical tables: weights π [K, M] and tables P [K, M, R], rows summing to 1."""

    weights: Tensor
    tables: Tensor

    def __post_init__(self) -> None:
        if self.tables.dim() != 3 or self.weights.shape != self.tables.shape[:2]:
            raise ValueError(
                f"weights must be [K, M] and tables [K, M, R], got {list(self.weights.shape)}, {list(self.tables.shape)}"
            )
        if not self.weights.dtype == self.tables.dtype == _FLOAT:
            raise TypeError(f"weights and tables must be float64, got {self.weights.dtype} and {self.tables.dtype}")


@dataclass(frozen=True)
class Pool:
    """The pretraining sets of K members: distinct counts [K, U, R], and how many sequences have them, [K, U].

    Counts are all that matters to the likelihood of iid tokens. Rows of multiplicity 0 are padding.
    """

    counts: Tensor
    multiplicity: Tensor


@dataclass(frozen=True)
class Fit:
    """What EM found, and its objective before and after every iteration, [K, iterations + 1] (see `fit`)."""

    mixture: Mixture
    objective: Tensor


@dataclass(frozen=True)
class Divergences:
    """Distance of the learnt from the true predictive by prefix length 0..T−1, means over test sequences, each [K, T].

    tv is total variation, ½ the L1 distance; kl is KL(true ‖ learnt) in nats.
    """

    tv: Tensor
    kl: Tensor


def draw_mixture(
    M: int, R: int, c0: float, alpha: float, seeds: Sequence[int], device: torch.device | str = "cpu"
) -> Mixture:
    """Return one true mixture per seed: uniform weights and tables (1 − R c₀) Dirichlet(α, …, α) + c₀.

    So every probability is at least c₀, as Assumption 5.2 asks. Raises ValueError for M < 1, R < 2, c₀ outside
    [0, 1/R), α ≤ 0 and no seeds.
    """
    if M < 1 or R < 2 or not seeds:
        raise ValueError(f"a mixture needs M >= 1, R >= 2 and seeds, got M = {M}, R = {R}, {len(seeds)} seeds")
    if not (0 <= c0 < 1 / R and alpha > 0):
        raise ValueError(f"c0 = {c0} must lie in [0, 1/R) = [0, {1 / R:g}) and alpha = {alpha} be positive")
    uniform = torch.stack([_uniform((M, R), "tables", seed, M, R) for seed in seeds])
    gamma = torch.from_numpy(gammaincinv(alpha, uniform.numpy()))  # the quantile function of Gamma(α)
    tables = (1 - R * c0) * gamma / gamma.sum(-1, keepdim=True) + c0
    return Mixture(torch.full((len(seeds), M), 1 / M, dtype=_FLOAT, device=device), tables.to(device))


def merged(mixture: Mixture) -> Mixture:
    """Return the mixture with its last two components made one, of their joint weight and mean table: M − 1 are left.

    The start of a learner whose family is too small. Raises ValueError for M < 2.
    """
    M = mixture.weights.shape[1]
    if M < 2:
        raise ValueError(f"merging needs at least 2 components, got {M}")
    weights, tables = mixture.weights, mixture.tables
    joint = weights[:, -2:].sum(1, keepdim=True)
    mean = (weights[:, -2:].unsqueeze(2) * tables[:, -2:]).sum(1, keepdim=True) / joint.unsqueeze(2)
    return Mixture(torch.cat([weights[:, :-2], joint], 1), torch.cat([tables[:, :-2], mean], 1))


def draw_tokens(mixture: Mixture, sequences: int, length: int, seeds: Sequence[int], purpose: str = "test") -> Tensor:
    """Return sequences of tokens for every member, [K, sequences, length] of int64, each with a concept of its own.

    The uniform draws depend on `purpose`, the member's seed and the sizes. Raises ValueError unless there is one seed
    per member and at least one sequence and token.
    """
    K = mixture.weights.shape[0]
    if len(seeds) != K or min(sequences, length) < 1:
        raise ValueError(f"pass {K} seeds and positive sizes, got {len(seeds)} seeds, sizes {sequences} × {length}")
    return torch.stack(
        [_tokens(mixture, k, (sequences, length), ("mixture", purpose, seed)) for k, seed in enumerate(seeds)]
    )


def draw_pool(mixture: Mixture, sequences: Sequence[int], length: int, seeds: Sequence[int]) -> Pool:
    """Return a pretraining set per member, of `sequences[k]` = N_p sequences of `length` = T_p tokens.

    A member's data depend on its mixture, seed, N_p and T_p alone. Raises ValueError as `draw_tokens`.
    """
    K, _, R = mixture.tables.shape
    if len(seeds) != K or len(sequences) != K or min(*sequences, length) < 1:
        raise ValueError(f"pass {K} seeds and {K} positive pool sizes, got {len(seeds)} and {list(sequences)}")
    found = []
    for k, (size, seed) in enumerate(zip(sequences, seeds, strict=True)):
        tokens = _tokens(mixture, k, (size, length), ("mixture", "pool", seed))
        counts = torch.zeros(size, R, dtype=torch.int64, device=tokens.device)
        counts.scatter_add_(1, tokens, torch.ones_like(tokens))
        found.append(torch.unique(counts, dim=0, return_counts=True))
    rows = max(len(counts) for counts, _ in found)
    return Pool(
        torch.stack([pad(counts, (0, 0, 0, rows - len(counts))) for counts, _ in found]).to(_FLOAT),
        torch.stack([pad(times, (0, rows - len(times))) for _, times in found]).to(_FLOAT),
    )


def log_likelihood(mixture: Mixture, pool: Pool) -> Tensor:
    """Return the log-likelihood of every member's sequences (as ordered tokens), in nats, [K]."""
    return (pool.multiplicity * torch.logsumexp(_joint(mixture, pool.counts), dim=2)).sum(1)


def fit(pool: Pool, start: Mixture, iterations: int = 60, smoothing: float = 1e-3) -> Fit:
    """Return the maximum-likelihood mixture of every member, by EM from `start`.

    The number of components is that of `start`. Started at the truth, EM climbs to the maximum next to it: this is the
    estimator the theorem speaks of, without the search for it that a learner would face. `smoothing` ε is added to
    every expected count of the M step, of outcomes and of components, so that no probability vanishes; EM then
    maximises, and never lowers, log-likelihood + ε (Σ log P + Σ log π), which is the returned objective. Raises
    ValueError for shapes that do not fit and negative arguments.
    """
    K, U, R = pool.counts.shape
    if pool.multiplicity.shape != (K, U) or start.tables.shape[0] != K or start.tables.shape[2] != R:
        raise ValueError(f"start has tables {list(start.tables.shape)}, but the pool has counts {[K, U, R]}")
    if iterations < 0 or smoothing < 0:
        raise ValueError(f"iterations = {iterations} and smoothing = {smoothing} must not be negative")
    mixture, objective = start, []
    for _ in range(iterations):
        joint = _joint(mixture, pool.counts)
        evidence = torch.logsumexp(joint, dim=2, keepdim=True)
        objective.append((pool.multiplicity * evidence.squeeze(2)).sum(1) + _penalty(mixture, smoothing))
        resp = torch.exp(joint - evidence) * pool.multiplicity.unsqueeze(2)  # [K, U, M]
        mixture = Mixture(_normalised(resp.sum(1) + smoothing), _normalised(resp.mT @ pool.counts + smoothing))
    objective.append(log_likelihood(mixture, pool) + _penalty(mixture, smoothing))
    return Fit(mixture, torch.stack(objective, dim=1))


def predictive(mixture: Mixture, counts: Tensor) -> Tensor:
    """Return the law of the next token after prefixes with the given counts, [K, n, R] → [K, n, R]."""
    return torch.softmax(_joint(mixture, counts), dim=2) @ mixture.tables


def divergences(true: Mixture, learnt: Mixture, tokens: Tensor) -> Divergences:
    """Return TV and KL between the two predictives at every prefix of the test sequences, [K, n, T] of int64.

    Position t has seen the t tokens before it. Raises ValueError for members or outcomes that do not fit.
    """
    K, _, R = true.tables.shape
    if learnt.tables.shape[::2] != (K, R) or tokens.dim() != 3 or tokens.shape[0] != K:
        raise ValueError(
            f"true and learnt tables and tokens do not fit: "
            f"{list(true.tables.shape)}, {list(learnt.tables.shape)}, {list(tokens.shape)}"
        )
    hot = one_hot(tokens, R).to(_FLOAT)
    before = hot.cumsum(2) - hot  # [K, n, T, R]
    p, q = (predictive(which, before.flatten(1, 2)).view_as(before) for which in (true, learnt))
    kl = torch.xlogy(p, p) - torch.xlogy(p, q)
    return Divergences((p - q).abs().sum(3).mean(1) / 2, kl.sum(3).mean(1))


def _joint(mixture: Mixture, counts: Tensor) -> Tensor:
    """Return log π_m + Σ_r c_r log P_m(r), [K, U, M]."""
    # xlogy would be needed for 0 · log 0; a floor at the smallest number does the same by one product
    log_tables = mixture.tables.clamp(min=torch.finfo(_FLOAT).tiny).log()
    return counts.to(_FLOAT) @ log_tables.mT + mixture.weights.log().unsqueeze(1)


def _penalty(mixture: Mixture, smoothing: float) -> Tensor:
    if smoothing == 0:
        return torch.zeros_like(mixture.weights[:, 0])
    return smoothing * (mixture.tables.log().sum((1, 2)) + mixture.weights.log().sum(1))


def _normalised(counts: Tensor) -> Tensor:
    return counts / counts.sum(-1, keepdim=True)


def _tokens(mixture: Mixture, member: int, shape: tuple[int, int], name: tuple[str | int, ...]) -> Tensor:
    """Tokens [N, T] of one member, by inverting cumulative probabilities at uniform draws."""
    weights, tables = mixture.weights[member], mixture.tables[member]
    concept_draws = _uniform(shape[:1], *name, "concept", *shape).to(weights.device)
    token_draws = _uniform(shape, *name, "token", *shape).to(weights.device)
    concepts = (concept_draws.unsqueeze(1) > weights.cumsum(0)[:-1]).sum(1)
    edges = tables.cumsum(1)[concepts, :-1]  # [N, R - 1]
    return (token_draws.unsqueeze(2) > edges.unsqueeze(1)).sum(2)


def _uniform(shape: Sequence[int], *name: str | int) -> Tensor:
    return torch.rand(tuple(shape), generator=stream(*name), dtype=_FLOAT)
