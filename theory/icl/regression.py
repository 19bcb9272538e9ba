"""The Gaussian linear model as in-context learning: y_t = w·x_t + N(0, σ²), w ~ N(0, λI).

Prompts are X [..., T, d] and y [..., T], any leading shape. Position t = 1..T of a prediction is made from the t − 1
pairs before it and x_t. Regret is *cumulative*, in nats, against the true w. Everything is exact for σ² > 0; where
σ² = 0 is allowed the result is the limit σ² → 0, minimum-norm least squares.

Sources: Zhang et al. 2023, arXiv:2305.19420, equations (4.4)–(4.8), whose λ is both the variance of the prior and the
ridge: the ridge that makes (4.7) the posterior mean is ρ = σ²/λ. Raventós et al. 2023, arXiv:2306.15063, for dMMSE and
ridge over finite pools of tasks. All functions raise ValueError for shapes that do not fit and variances out of range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from theory.icl.tasks import entries, sequence_chunks

Kernel = Callable[[Tensor, Tensor], Tensor]  # [..., a, d], [..., b, d] -> [..., a, b]

_BLOCK = 1024  # tasks of a pool treated at a time
_SEEN = 1e-10  # share of |x|² below which a direction counts as seen when there is no noise

# Attention --------------------------------------------------------------------------------------------------------


def linear_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return a·b for all pairs, [..., a, b]."""
    return a @ b.mT


def cme_attention(q: Tensor, K: Tensor, V: Tensor, rho: float, kernel: Kernel = linear_kernel) -> Tensor:
    """Return attn†(q, K, V) = Vᵀ (𝔎(K, K) + ρI)⁻¹ 𝔎(K, q), the empirical conditional mean embedding, [..., Q, d_v].

    Queries q [..., Q, d_k], keys K [..., T, d_k], values V [..., T, d_v]. It is kernel ridge regression, and the
    posterior mean of the model with feature map φ, 𝔎 = φ·φ, at ρ = σ²/λ. ρ = 0 takes the pseudo-inverse: the limit.
    Equations (4.6)–(4.8).
    """
    if K.shape[:-1] != V.shape[:-1] or q.shape[-1] != K.shape[-1]:
        raise ValueError(f"queries {list(q.shape)}, keys {list(K.shape)} and values {list(V.shape)} do not fit")
    return kernel(q, K) @ _ridge_solve(kernel(K, K), V, rho)


def cme_variance(q: Tensor, K: Tensor, lam: float, sigma2: float, kernel: Kernel = linear_kernel) -> Tensor:
    """Return the variance of the predictive at each query, [..., Q]; that of every coordinate of a value.

    σ² + λ (𝔎(q, q) − 𝔎(q, K)(𝔎(K, K) + ρI)⁻¹𝔎(K, q)) with ρ = σ²/λ.
    """
    _check_variances(lam, sigma2)
    across = kernel(q, K)
    own = kernel(q.unsqueeze(-2), q.unsqueeze(-2)).flatten(-3)
    return sigma2 + lam * (own - (across * _ridge_solve(kernel(K, K), across.mT, sigma2 / lam).mT).sum(-1))


# Posterior --------------------------------------------------------------------------------------------------------


def posterior(X: Tensor, y: Tensor, lam: float, sigma2: float) -> tuple[Tensor, Tensor]:
    """Return mean [..., d] and covariance [..., d, d] of w given whole prompts; σ² > 0."""
    _check_variances(lam, sigma2, noisy=True)
    _check_prompts(X, y)
    identity = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    factor = torch.linalg.cholesky(X.mT @ X / sigma2 + identity / lam)
    mean = torch.cholesky_solve(X.mT @ y.unsqueeze(-1) / sigma2, factor).squeeze(-1)
    return mean, torch.cholesky_inverse(factor)


@dataclass(frozen=True)
class Filtered:
    """What the posterior says at each position before the response is seen: m·x_t and xᵀΣx, both [..., T]."""

    prediction: Tensor
    spread: Tensor


def kalman(X: Tensor, y: Tensor, lam: float, sigma2: float) -> Filtered:
    """Return the posterior predictive N(prediction, spread + σ²) at every position, by one update per pair.

    s_t = xᵀΣx, Σ ← Σ − Σx xᵀΣ/(s_t + σ²), m ← m + Σx (y − m·x)/(s_t + σ²). Without noise a pair whose direction has
    been seen teaches nothing and is skipped.
    """
    _check_variances(lam, sigma2)
    _check_prompts(X, y)
    *lead, T, d = X.shape
    mean = X.new_zeros(*lead, d, 1)
    cov = lam * torch.eye(d, dtype=X.dtype, device=X.device).expand(*lead, d, d)
    prediction, spread = torch.empty_like(y), torch.empty_like(y)
    for t in range(T):
        x = X[..., t, :, None]
        gain = cov @ x
        s = x.mT @ gain
        if sigma2 == 0:
            new = s > _SEEN * lam * (x.mT @ x)
            s = torch.where(new, s, 0.0)
            step = torch.where(new, gain / torch.where(new, s, 1.0), 0.0)
        else:
            step = gain / (s + sigma2)
        guess = x.mT @ mean
        prediction[..., t], spread[..., t] = guess[..., 0, 0], s[..., 0, 0]
        mean = mean + step * (y[..., t, None, None] - guess)
        cov = cov - step @ gain.mT
    return Filtered(prediction, spread)


# Regret -----------------------------------------------------------------------------------------------------------


def information_gain(X: Tensor, lam: float, sigma2: float) -> Tensor:
    """Return ½ log det(I + (λ/σ²) X_tᵀX_t) for every prefix, [..., T]: the mutual information I(w; y_1..y_t | X).

    It is the expected cumulative regret against w for fixed X, and the sum of ½ log(1 + s_i/σ²) over `kalman`'s
    spreads. σ² > 0.
    """
    _check_variances(lam, sigma2, noisy=True)
    *lead, T, d = X.shape
    flat = X.reshape(-1, T, d)
    identity = torch.eye(d, dtype=X.dtype, device=X.device)

    def one(x: Tensor) -> Tensor:
        grams = (x.unsqueeze(-1) * x.unsqueeze(-2)).cumsum(1)
        return torch.linalg.cholesky(identity + lam / sigma2 * grams).diagonal(dim1=-2, dim2=-1).log().sum(-1)

    return torch.cat([one(flat[part]) for part in sequence_chunks(len(flat), T * d * d, X.device)]).reshape(*lead, T)


def information_limit(t: Tensor, d: int, lam: float, sigma2: float) -> Tensor:
    """Return (d/2) log(1 + λt/σ²), which the expected regret for x ~ N(0, I) approaches as t grows."""
    _check_variances(lam, sigma2, noisy=True)
    return d / 2 * torch.log1p(lam / sigma2 * t)


def sampled_regret(X: Tensor, y: Tensor, w: Tensor, lam: float, sigma2: float) -> Tensor:
    """Return Σ_{i≤t} log N(y_i; w·x_i, σ²) − log N(y_i; m·x_i, s_i + σ²) on each path, [..., T]; σ² > 0."""
    _check_variances(lam, sigma2, noisy=True)
    seen = kalman(X, y, lam, sigma2)
    variance = seen.spread + sigma2
    miss, noise = y - seen.prediction, y - _values(X, w)
    return (((variance / sigma2).log() + miss.square() / variance - noise.square() / sigma2) / 2).cumsum(-1)


def expected_regret(X: Tensor, y: Tensor, w: Tensor, lam: float, sigma2: float) -> Tensor:
    """Return Σ_{i≤t} KL(N(w·x_i, σ²) ‖ N(m·x_i, s_i + σ²)), [..., T]: each step averaged over its own noise; σ² > 0.

    It has the expectation of `sampled_regret`. Each step varies less, but the sum more: sampled steps cancel one another.
    The mean over everything but X is `information_gain`.
    """
    _check_variances(lam, sigma2, noisy=True)
    seen = kalman(X, y, lam, sigma2)
    variance = seen.spread + sigma2
    error = (seen.prediction - _values(X, w)).square()
    return (((variance / sigma2).log() + (error - seen.spread) / variance) / 2).cumsum(-1)


# Point predictors -------------------------------------------------------------------------------------------------


def ridge(X: Tensor, y: Tensor, rho: float) -> Tensor:
    """Return the prediction of ridge regression at every position, [..., T]; 0 at the first, minimum-norm at ρ = 0.

    With ρ = σ²/λ it is the posterior mean under w ~ N(0, λI).
    """
    return kalman(X, y, 1.0, rho).prediction


def dmmse(pool: Tensor, X: Tensor, y: Tensor, sigma2: float) -> Tensor:
    """Return the posterior mean under tasks uniform over a pool [K, M, d] at every position, [K, n, T].

    Σ_m softmax_m(−Σ_{i<t} (y_i − w_m·x_i)²/(2σ²)) w_m·x_t for prompts X [K, n, T, d]; at t = 1 the mean task. σ² > 0.
    Source: Raventós et al. 2023.
    """
    _check_variances(1.0, sigma2, noisy=True)
    _check_prompts(X, y)
    if pool.dim() != 3 or X.dim() != 4 or pool.shape[0] != X.shape[0] or pool.shape[2] != X.shape[3]:
        raise ValueError(f"pool {list(pool.shape)} must be [K, M, d] and X {list(X.shape)} [K, n, T, d]")
    K, n, T, _ = X.shape
    M = pool.shape[1]
    found = []
    for part in sequence_chunks(n, K * T * min(M, _BLOCK), X.device):
        x, seen = X[:, part].flatten(1, 2), y[:, part]
        block = max(1, entries(X.device) // seen.numel())
        # A softmax over all M tasks, a block at a time: running maximum, weights and weighted sum.
        top = torch.full_like(seen, -torch.inf)
        total, weighted = torch.zeros_like(seen), torch.zeros_like(seen)
        for tasks in pool.split(block, 1):
            values = (x @ tasks.mT).unflatten(1, seen.shape[1:])  # [K, n, T, m]
            fit = (values - seen.unsqueeze(-1)).square_().mul_(-0.5 / sigma2).cumsum(2)
            fit = torch.cat([torch.zeros_like(fit[:, :, :1]), fit[:, :, :-1]], 2)
            higher = torch.maximum(top, fit.amax(-1))
            weights = (fit - higher.unsqueeze(-1)).exp_()
            kept = (top - higher).exp()
            total = total * kept + weights.sum(-1)
            weighted = weighted * kept + (weights * values).sum(-1)
            top = higher
        found.append(weighted / total)
    return torch.cat(found, 1)


def difference(a: Tensor, b: Tensor, d: int) -> Tensor:
    """Return Δ(a, b) = E (a − b)²/d at each position, [K, T], over the prompts of predictions a, b [K, n, T]."""
    if a.shape != b.shape:
        raise ValueError(f"predictions must have one shape, got {list(a.shape)} and {list(b.shape)}")
    return (a - b).square().mean(1) / d


# Shared -----------------------------------------------------------------------------------------------------------


def _ridge_solve(gram: Tensor, right: Tensor, rho: float) -> Tensor:
    """Return (G + ρI)⁻¹ B for a positive semidefinite G, or its pseudo-inverse times B at ρ = 0."""
    if rho < 0:
        raise ValueError(f"rho = {rho}: a ridge must not be negative")
    if rho == 0:
        return torch.linalg.pinv(gram, hermitian=True) @ right
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram + rho * identity))


def _values(X: Tensor, w: Tensor) -> Tensor:
    return (X @ w.unsqueeze(-1)).squeeze(-1)


def _check_variances(lam: float, sigma2: float, noisy: bool = False) -> None:
    if not lam > 0:
        raise ValueError(f"lam = {lam}: the variance of the prior must be positive")
    if not (sigma2 > 0 or (sigma2 == 0 and not noisy)):
        raise ValueError(
            f"sigma2 = {sigma2}: the variance of the noise must {'be positive' if noisy else 'not be negative'}"
        )


def _check_prompts(X: Tensor, y: Tensor) -> None:
    if X.dim() < 2 or X.shape[:-1] != y.shape:
        raise ValueError(f"X must be [..., T, d] and y [..., T], got {list(X.shape)} and {list(y.shape)}")
