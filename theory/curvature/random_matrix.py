"""The two laws of sample covariance matrices that Hessian spectra are compared with: Marchenko–Pastur and BBP.

X is [M, N] with independent columns, of covariance diag(ℓ, 1, ..., 1); the matrix is X X^T / N, and α = M/N. Without a
spike (ℓ = 1) its eigenvalues fill the Marchenko–Pastur bulk. A spike beyond 1 + √α pulls one eigenvalue out of it.
"""

from __future__ import annotations

import numpy as np
import torch

from theory.ensemble import normal

TRACY_WIDOM_MEAN = -1.2065335745820
"""Mean of the Tracy–Widom law of real matrices (β = 1). Source: Bornemann 2010, arXiv:0904.1581."""


def marchenko_pastur_edges(alpha: float) -> tuple[float, float]:
    """Return the ends (1 − √α)² and (1 + √α)² of the bulk of nonzero eigenvalues.

    Raises ValueError unless α > 0. Source: Marchenko & Pastur 1967.
    """
    root = np.sqrt(_ratio(alpha))
    return float((1 - root) ** 2), float((1 + root) ** 2)


def marchenko_pastur_atom(alpha: float) -> float:
    """Return the fraction of eigenvalues that are exactly 0, max(0, 1 − 1/α): XXᵀ has rank N at most."""
    return max(0.0, 1 - 1 / _ratio(alpha))


def marchenko_pastur_density(x: np.ndarray | float, alpha: float) -> np.ndarray:
    """Return the density √((x − x₋)(x₊ − x)) / (2π α x) of the eigenvalues at x, of the shape of x; 0 off the bulk.

    It integrates to 1 minus `marchenko_pastur_atom(alpha)`: the atom at 0 is not part of it. At α = 1 it has an
    integrable pole at 0. Raises ValueError unless α > 0. Source: Marchenko & Pastur 1967.
    """
    low, high = marchenko_pastur_edges(alpha)
    x = np.asarray(x, dtype=np.float64)
    inside = (x > low) & (x < high)
    at = np.where(inside, x, 1.0)
    return np.where(inside, np.sqrt(np.where(inside, (at - low) * (high - at), 0.0)) / (2 * np.pi * alpha * at), 0.0)


def bbp_critical(alpha: float) -> float:
    """Return 1 + √α, the spike above which the top eigenvalue leaves the bulk."""
    return float(1 + np.sqrt(_ratio(alpha)))


def bbp_eigenvalue(spike: float, alpha: float) -> float:
    """Return the limit of the top eigenvalue: ℓ (1 + α/(ℓ − 1)) if ℓ > 1 + √α, else the edge (1 + √α)².

    Raises ValueError unless α > 0 and ℓ > 0. Source: Baik, Ben Arous & Péché 2005, arXiv:math/0403022 (complex case);
    Baik & Silverstein 2006, arXiv:math/0408165 (real case); quoted by Sagun et al. 2017, arXiv:1706.04454, Theorem 1.
    """
    if spike > bbp_critical(alpha):
        return spike * (1 + alpha / (spike - 1))
    if not spike > 0:
        raise ValueError(f"spike = {spike} is a variance: it must be positive")
    return marchenko_pastur_edges(alpha)[1]


def edge_mean(M: int, N: int) -> float:
    """Return the mean top eigenvalue at finite size, without a spike: the edge, shifted by the Tracy–Widom mean.

    (μ − 1.2065 σ)/N with a = √(M − 1/2), b = √(N − 1/2), μ = (a + b)² and σ = (a + b)(1/a + 1/b)^(1/3). It lies below
    (1 + √α)² by O(N^(-2/3)), and so does the top eigenvalue of a spike well below the critical one.
    Raises ValueError unless M, N ≥ 2. Source: Johnstone 2001, Ann. Statist. 29(2); the halves, which make the error
    O(N^(-2/3)) of σ, are those of Ma 2012, Bernoulli 18(1), arXiv:0810.1329.
    """
    if min(M, N) < 2:
        raise ValueError(f"M = {M} and N = {N} must be at least 2")
    a, b = np.sqrt(M - 0.5), np.sqrt(N - 0.5)
    sigma = (a + b) * (1 / a + 1 / b) ** (1 / 3)
    return float(((a + b) ** 2 + TRACY_WIDOM_MEAN * sigma) / N)


def spiked_spectrum(M: int, N: int, spike: float, seed: int) -> np.ndarray:
    """Return the eigenvalues of X X^T / N for a Gaussian X [M, N], largest first, float64 [M]; for M > N the last are 0.

    X has independent columns of covariance diag(spike, 1, ..., 1). Its numbers depend on (M, N, seed) alone, so that
    spikes can be compared on the same draws. Raises ValueError for a spike that is not positive.
    """
    if not spike > 0:
        raise ValueError(f"spike = {spike} is a variance: it must be positive")
    x = normal((M, N), "spiked", seed, M, N)
    x[0] *= spike**0.5
    gram = x @ x.T if M <= N else x.T @ x  # equal nonzero eigenvalues
    spectrum = np.zeros(M)
    spectrum[: min(M, N)] = torch.linalg.eigvalsh(gram).flip(0).numpy() / N
    return spectrum


def _ratio(alpha: float) -> float:
    if not alpha > 0:
        raise ValueError(f"alpha = {alpha} is M/N: it must be positive")
    return alpha
