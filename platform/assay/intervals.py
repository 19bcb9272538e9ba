"""Estimates over sampling units and their confidence intervals; no randomness anywhere.

Rows of one sampling unit (usually the seed) are never treated as independent. `unit` always numbers each row's unit
from 0, without gaps.

- Means of unit values get a t interval over units. It is the cluster-robust interval, and stays valid when the units'
  variances differ (Ibragimov & Müller, "t-statistic based correlation and heterogeneity robust inference", 2010).
- A slope over units that do not each span the axis gets the CR2 cluster-robust variance and the degrees of freedom of
  Bell & McCaffrey, "Bias reduction in standard errors for linear regression with multi-stage samples", 2002.
- Shares are bounded, and near 0 and 1 a t interval collapses onto them: they get Wilson's score interval with an
  effective sample size (Korn & Graubard, "Confidence intervals for proportions with small expected number of positive
  counts estimated from survey data", 1998). Its two sides err unequally there, so that a refutation, which may look at
  one side of many cases, takes the exact interval of Clopper & Pearson (1934) instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Interval = Callable[[float], tuple[float, float]]
"""Ends of an interval at a confidence level, as in `interval(0.95)`."""


def point(value: float) -> Interval:
    """Interval of a number that is known exactly."""
    return lambda level: (value, value)


def student(units: Floats) -> Interval:
    """The t interval of the mean of independent units."""
    mean = float(units.mean())
    error = float(units.std(ddof=1)) / math.sqrt(len(units)) if len(units) > 1 else math.nan

    def interval(level: float) -> tuple[float, float]:
        half = t_quantile(len(units) - 1, level) * error
        return mean - half, mean + half

    return interval


def unit_means(value: Floats, unit: Ints) -> Floats:
    """Mean of each unit's rows."""
    return np.bincount(unit, weights=value) / np.bincount(unit)


def unit_slopes(unit: Ints, x: Floats, y: Floats) -> Floats:
    """Least-squares slope of each unit; every unit has at least two values of x."""
    dx, dy = x - unit_means(x, unit)[unit], y - unit_means(y, unit)[unit]
    return np.bincount(unit, weights=dx * dy) / np.bincount(unit, weights=dx * dx)


def pooled_slope(unit: Ints, x: Floats, y: Floats) -> tuple[float, Interval, float]:
    """Least-squares slope over all rows with its CR2 interval and Bell-McCaffrey degrees of freedom.

    With orthonormal regressors U (N×2, X = U R) the slope is r·(U'y), r the last row of R^-1. CR2 replaces the
    residuals e_s of cluster s by (I - U_s U_s')^(-1/2) e_s; since U_s (I - U_s'U_s)^(-1/2) r needs only 2×2 matrices,
    no N×N matrix is formed. Degrees of freedom: (tr K)^2 / tr K^2, K the covariance of the clusters' scores were the
    errors independent and equally large.
    """
    U, R = np.linalg.qr(np.column_stack([np.ones_like(x), x]))
    r = np.linalg.inv(R)[1]
    residual = y - U @ (U.T @ y)
    clusters = int(unit.max()) + 1
    gram = np.zeros((clusters, 2, 2))
    np.add.at(gram, unit, U[:, :, None] * U[:, None, :])
    size, axes = np.linalg.eigh(gram)
    left = 1.0 - size  # 0 where a cluster alone determines a coefficient: its residual there is 0 as well
    root = np.where(left > 1e-9, 1.0 / np.sqrt(np.maximum(left, 1e-9)), 0.0)
    adjusted = np.einsum("sij,sj,skj,k->si", axes, root, axes, r)  # (I - U_s'U_s)^(-1/2) r
    weight = np.einsum("ni,ni->n", U, adjusted[unit])
    scores = np.bincount(unit, weights=weight * residual, minlength=clusters)
    error = math.sqrt(float(scores @ scores))
    # K = diag(d) - C C'
    d = np.bincount(unit, weights=weight * weight, minlength=clusters)
    C = np.einsum("sij,sj->si", gram, adjusted)
    trace = float(d.sum() - (C * C).sum())
    trace_sq = float((d * d).sum() - 2 * (d[:, None] * C * C).sum() + ((C.T @ C) ** 2).sum())
    dof = trace**2 / trace_sq if trace_sq > 0 else 1.0
    slope = float(r @ (U.T @ y))

    def interval(level: float) -> tuple[float, float]:
        half = t_quantile(dof, level) * error
        return slope - half, slope + half

    return slope, interval, dof


def kendall_tau(y: Floats) -> float:
    """Kendall's tau-b of values in the order of their (distinct) x; 0 where all are equal: no trend."""
    n, ordered, untied = len(y), 0.0, 0.0
    for start in range(0, n, 256):  # blocks of pairs (earlier, later): a long curve must not cost n x n memory
        sign = np.triu(np.sign(y - y[start : start + 256, None]), start + 1)
        ordered, untied = ordered + float(sign.sum()), untied + float(np.abs(sign).sum())
    return ordered / math.sqrt(n * (n - 1) / 2 * untied) if untied else 0.0


def share_intervals(share: float, variance: float, units: int, trials: int, at_end: int) -> tuple[Interval, Interval]:
    """Wilson's interval of a share of clustered trials, and the exact one; the arguments are `effective_size`'s."""

    def size(level: float) -> float:
        return effective_size(share, variance, units, trials, at_end, level)

    return lambda level: wilson(share, size(level), level), lambda level: clopper_pearson(share, size(level), level)


def effective_size(share: float, variance: float, units: int, trials: int, at_end: int, level: float) -> float:
    """How many independent trials a share of `trials`, clustered in units, is worth.

    Binomial variance over the share's estimated `variance`, less a price for estimating it from few units; never below
    the units nor above the trials. The price is z/t: Korn & Graubard (1998) ask for its square, which with five units
    covers up to 98.9 % where 95 % is meant; z/t covers 90 to 98 % in all settings that are tested but one. `at_end` is
    the answer for a share of 0 or 1, where no variance can be estimated. What it cannot mend: where failures are rare
    (5 %) and come by whole units (correlation 0.3 and more over 40 rows), few units show any, and the 95 % interval
    covers 82 to 88 % of the time.
    """
    binomial = share * (1 - share)
    if trials == units:
        return float(units)
    if binomial <= 0:
        return float(at_end)
    if variance <= 0:
        return float(trials)
    price = normal_quantile(level) / t_quantile(units - 1, level)
    return min(max(binomial / variance * price, units), trials)


def wilson(share: float, size: float, level: float) -> tuple[float, float]:
    """Wilson's score interval of a share of `size` trials: covers as it says on average over both sides."""
    z = normal_quantile(level)
    centre = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson(share: float, size: float, level: float) -> tuple[float, float]:
    """Exact interval of a share of `size` trials: wider than Wilson's, but neither side ever errs too often."""
    from scipy.special import betaincinv

    hits, tail = share * size, (1 - level) / 2
    low = float(betaincinv(hits, size - hits + 1, tail)) if share > 0 else 0.0
    high = float(betaincinv(hits + 1, size - hits, 1 - tail)) if share < 1 else 1.0
    return low, high


def normal_quantile(level: float) -> float:
    """How many standard errors a two-sided normal interval reaches."""
    from scipy.special import ndtri  # a third of a second to import: only for who judges

    return float(ndtri((1 + level) / 2))


def t_quantile(dof: float, level: float) -> float:
    """How many standard errors a two-sided t interval reaches."""
    from scipy.special import stdtrit

    return float(stdtrit(dof, (1 + level) / 2))
