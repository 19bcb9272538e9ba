"""How many eigenvalues stand out of the bulk: detectors, relative counts, and their spread over resampled examples.

Spectra are arrays [..., J], descending along the last axis; results have the shape of the axes before it (scalars for one
spectrum). Counts do not change when a spectrum is multiplied by a positive number. All functions raise ValueError for a spectrum that is not
descending or not finite, and for arguments out of range.

A detector that searches a window must get the same window for every hypothesis it is to tell apart (`search_window`):
one that grows with the number of classes leaks the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.lapack import dpstrf

from theory.curvature.random_matrix import marchenko_pastur_edges
from theory.ensemble.seeding import stream

FLOOR = 1e-8  # relative to λ_1: eigenvalues below are zeros to the rounding of double precision
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def search_window(k_max: int | None, M: int) -> int:
    """Return the window J = min(3 k_max + 10, M/4), or min(200, M/4) without a largest number of classes.

    k_max is the largest k of a whole study and M the size of its smallest network. Raises ValueError if J < 2.
    """
    window = min(200 if k_max is None else 3 * k_max + 10, M // 4)
    if window < 2:
        raise ValueError(f"k_max = {k_max} and M = {M} leave a window of {window}: it takes M ≥ 8 and k_max ≥ 1")
    return window


def gap(eigenvalues: ArrayLike, window: int) -> Counts:
    """Return argmax over j ≤ window of λ_j − λ_{j+1}; 0 if they are all equal. Needs window + 1 eigenvalues."""
    spectrum = _windowed(eigenvalues, window)
    gaps = spectrum[..., :-1] - spectrum[..., 1:]
    return np.where(gaps.max(-1) > 0, gaps.argmax(-1) + 1, 0)[()]


def ratio(eigenvalues: ArrayLike, window: int) -> Counts:
    """Return argmax over j ≤ window of λ_j / λ_{j+1}, over j with λ_{j+1} > FLOOR · λ_1; 0 if no ratio exceeds 1.

    Without the floor the first exact zero would win. Needs window + 1 eigenvalues.
    """
    spectrum = _windowed(eigenvalues, window)
    upper, lower = spectrum[..., :-1], spectrum[..., 1:]
    fits = lower > FLOOR * _scale(spectrum)
    ratios = np.where(fits, upper / np.where(fits, lower, 1.0), 0.0)
    return np.where(ratios.max(-1) > 1, ratios.argmax(-1) + 1, 0)[()]


def elbow(eigenvalues: ArrayLike, window: int) -> Counts:
    """Return how many eigenvalues precede the elbow of the scree plot of log λ_j, j ≤ window + 1.

    The elbow is the point farthest below the chord from the first to the last point. Eigenvalues below FLOOR · λ_1 are
    left out. 0 if no point lies below the chord. Needs window + 1 eigenvalues.
    """
    spectrum = _windowed(eigenvalues, window)
    used = spectrum > FLOOR * _scale(spectrum)
    logs = np.log(np.where(used, spectrum, 1.0))
    last = np.maximum(used.sum(-1, keepdims=True) - 1, 1)
    span = logs[..., :1] - np.take_along_axis(logs, last, -1)
    depth = np.where(used, logs[..., :1] - span * np.arange(window + 1) / last - logs, -np.inf)
    # On a straight scree plot rounding alone puts points below the chord.
    return np.where(depth.max(-1) > 1e-9 * span[..., 0], depth.argmax(-1), 0)[()]


def above(eigenvalues: ArrayLike, tau: float) -> Counts:
    """Return #{λ_j > τ λ_1}, 0 ≤ τ < 1; 0 where λ_1 ≤ 0."""
    spectrum = _spectrum(eigenvalues)
    return (spectrum > _fraction("tau", tau) * _scale(spectrum)).sum(-1)


def class_edge(eigenvalues: ArrayLike, edge: ArrayLike, *, tolerance: float = 1e-9) -> Counts:
    """Return #{λ_j > edge} for an absolute edge [...], such as λ_1(H − G_class) (see `theory.curvature.tiers`).

    By Weyl's inequality that edge has at most rank(G_class) ≤ k eigenvalues of H above it: this count can show fewer
    than k outliers, never more. k + 1 eigenvalues are enough. Eigenvalues within tolerance · λ_1 of the edge do not
    count: ties are common, since eigenvalues that G_class leaves alone sit exactly on it.
    """
    spectrum = _spectrum(eigenvalues)
    edges = np.asarray(edge, dtype=np.float64)
    if edges.shape not in ((), spectrum.shape[:-1]) or not np.isfinite(edges).all():
        raise ValueError(f"edge must be one finite number per spectrum, {list(spectrum.shape[:-1])}, got {edges}")
    return (spectrum - edges[..., None] > _fraction("tolerance", tolerance) * _scale(spectrum)).sum(-1)


def marchenko_pastur_edge(eigenvalues: ArrayLike, alpha: float) -> Floats:
    """Return the upper edge σ² (1 + √α)² of the Marchenko–Pastur law whose median is that of the nonzero eigenvalues.

    `eigenvalues` is the full spectrum of a sample covariance of M variables and N samples, α = M/N; nonzero means
    above FLOOR · λ_1. The median hardly feels a few outliers. Count with `class_edge(eigenvalues, edge)`.

    On the Hessian of a network this over-counts: its bulk falls off over orders of magnitude, so the median is tiny and
    the heavy tail of the bulk lies above the edge of any Marchenko–Pastur law. It is here to show that.
    Source: Gavish & Donoho 2014, arXiv:1305.5870 (the scale of the noise from the median).
    """
    spectrum = _spectrum(eigenvalues)
    low, high = marchenko_pastur_edges(alpha)
    # With x = 1 + α + 2√α cos θ the law of the nonzero eigenvalues is smooth in θ: ∝ sin²θ / x. Midpoints avoid x = 0.
    angles = (np.arange(4096) + 0.5) * np.pi / 4096
    mass = np.cumsum(np.sin(angles) ** 2 / (1 + alpha + 2 * np.sqrt(alpha) * np.cos(angles)))
    middle = np.interp(0.5 * mass[-1], mass, angles + 0.5 * np.pi / 4096)
    median = (low + high) / 2 + (high - low) / 2 * np.cos(middle)
    kept = (spectrum > FLOOR * _scale(spectrum)).sum(-1, keepdims=True)  # they come first: the order is descending
    around = np.concatenate([np.maximum(kept - 1, 0) // 2, np.minimum(kept // 2, np.maximum(kept - 1, 0))], -1)
    return np.take_along_axis(spectrum, around, -1).mean(-1) * high / median


def bulk_fraction(eigenvalues: ArrayLike, M: int, tau: float) -> Floats:
    """Return 1 − #{λ_j > τ λ_1}/M. The eigenvalues left out of the list, if any, must lie below the threshold."""
    return 1 - above(eigenvalues, tau) / _parameters(eigenvalues, M)


def negative_fraction(eigenvalues: ArrayLike, M: int, epsilon: float) -> Floats:
    """Return #{λ_j < −ε λ_1}/M, 0 ≤ ε < 1. The eigenvalues left out of the list, if any, must not be among these."""
    spectrum = _spectrum(eigenvalues)
    return (spectrum < -_fraction("epsilon", epsilon) * _scale(spectrum)).sum(-1) / _parameters(spectrum, M)


def zero_fraction(eigenvalues: ArrayLike, M: int, epsilon: float) -> Floats:
    """Return #{|λ_j| ≤ ε λ_1}/M, 0 ≤ ε < 1. Eigenvalues left out of the list, as of a dual spectrum, are zeros."""
    spectrum = _spectrum(eigenvalues)
    other = (np.abs(spectrum) > _fraction("epsilon", epsilon) * _scale(spectrum)).sum(-1)
    return 1 - other / _parameters(spectrum, M)


def k_gap(eigenvalues: ArrayLike, k: int) -> Floats:
    """Return log(λ_k / λ_{k+1}), with eigenvalues below FLOOR · λ_1 raised to it, so at most log(1/FLOOR) = 18.4.

    0 where λ_1 ≤ 0. Needs k + 1 eigenvalues.
    """
    if k < 1:
        raise ValueError(f"k = {k} must be at least 1")
    spectrum = _spectrum(eigenvalues, k + 1)
    scale = _scale(spectrum)
    pair = np.maximum(spectrum[..., k - 1 : k + 1], FLOOR * scale)
    logs = np.log(np.where(scale > 0, pair, 1.0))
    return logs[..., 0] - logs[..., 1]


def consensus(ratio: ArrayLike, class_edge: ArrayLike) -> Floats:
    """Return the count of the ratio detector, which has no upper limit, where the class edge agrees within 1, else nan.

    nan says that there is no clear gap: the two detectors contradict each other.
    """
    by_ratio, by_edge = np.asarray(ratio, dtype=np.float64), np.asarray(class_edge, dtype=np.float64)
    return np.where(np.abs(by_ratio - by_edge) <= 1, by_ratio, np.nan)[()]


def detect(eigenvalues: ArrayLike, window: int, edge: ArrayLike) -> dict[str, Counts]:
    """Return the counts of `gap`, `ratio`, `elbow` and `class_edge` by name."""
    spectrum = _windowed(eigenvalues, window)
    return {
        "gap": gap(spectrum, window),
        "ratio": ratio(spectrum, window),
        "elbow": elbow(spectrum, window),
        "class_edge": class_edge(spectrum, edge),
    }


@dataclass(frozen=True)
class Bootstrap:
    """Counts by detector (see `detect`) and log(λ_k/λ_{k+1}), each [draws], over data sets drawn with replacement."""

    counts: Mapping[str, Counts]
    k_gap: Floats


def bootstrap_counts(
    gram: ArrayLike, p: ArrayLike, labels: ArrayLike, *, draws: int, seed: int, window: int, accuracy: float = 0.01
) -> Bootstrap:
    """Return the spread of the outlier counts of one network's Gauss–Newton matrix over resampled examples.

    Each draw weighs the N examples by multinomial counts; the network stays as it is. gram [N·k, N·k], p [N, k],
    labels [N] and `accuracy` as for `reweighted_spectra`. Draws depend on (seed, draw, N) alone, and their first ones
    not on `draws`. Raises ValueError unless draws ≥ 1 and window ≥ k.
    """
    N, k = np.shape(p)
    if draws < 1:
        raise ValueError(f"draws = {draws} must be at least 1")
    if window < k:
        raise ValueError(f"window = {window} must reach the number of classes, {k}")
    chosen = (torch.randint(N, (N,), generator=stream("bootstrap", seed, draw, N)) for draw in range(draws))
    weights = np.stack([np.bincount(examples.numpy(), minlength=N) for examples in chosen])
    spectra, edges = reweighted_spectra(gram, p, labels, weights, window=window, accuracy=accuracy)
    return Bootstrap(detect(spectra, window, edges), k_gap(spectra, k))


def reweighted_spectra(
    gram: ArrayLike, p: ArrayLike, labels: ArrayLike, weights: ArrayLike, *, window: int, accuracy: float = 0.01
) -> tuple[Floats, Floats]:
    """Return the top window + 1 eigenvalues of G [D, window + 1], and the class edge λ_1(G − G_class) [D], reweighted.

    gram     BBᵀ of one network, [N·k, N·k], rows in the order of `theory.curvature.tiers`
    p        weights of the rows, [N, k] (softmax outputs; ones for squared error), and labels [N] in 0..k−1
    weights  how often each example counts, [D, N], not negative; ones give back the spectrum of the Gram matrix

    G is represented on its leading eigenvectors, those with λ_r > accuracy · λ_{window+1}, once for all draws. What is
    left out can only lower the eigenvalues returned, in proportion to `accuracy` and the largest weight, and the last
    ones of the window most: for those, ask for a wider window or a smaller accuracy. Below FLOOR · λ_1 nothing is
    resolved. Rank deficient spectra end in exact zeros. Raises ValueError for shapes that do not fit, numbers out of
    range, and a Gram matrix of zeros.
    """
    gram, p = np.asarray(gram, dtype=np.float64), np.asarray(p, dtype=np.float64)
    labels, weights = np.asarray(labels), np.asarray(weights, dtype=np.float64)
    if p.ndim != 2 or gram.shape != (p.size, p.size) or labels.shape != p.shape[:1]:
        raise ValueError(
            f"gram [N·k, N·k], p [N, k] and labels [N] do not fit together: {gram.shape}, {p.shape}, {labels.shape}"
        )
    N, k = p.shape
    if labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < k or (p < 0).any():
        raise ValueError(f"labels must be integers in 0..{k - 1} and p not negative")
    if weights.ndim != 2 or weights.shape[1] != N or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"weights must be finite, not negative, and [draws, {N}], got {weights.shape}")
    if not 0 < accuracy < 1:
        raise ValueError(f"accuracy = {accuracy} must lie in (0, 1)")
    if not 2 <= window < N * k:
        raise ValueError(f"window = {window} must lie in 2..{N * k - 1}")
    basis = _leading(gram, window, accuracy).reshape(N, k, -1)  # [N, k, r]: G restricted is Σ_ia basis_ia basis_iaᵀ
    root = np.sqrt(p) * (np.arange(k) != labels[:, None])
    means = np.einsum("na,nar->nr", root, basis)
    members = (labels == np.arange(k)[:, None]).astype(np.float64)  # [k, N]
    r = basis.shape[2]
    spectra = np.zeros((len(weights), window + 1))
    edges = np.zeros(len(weights))
    for draw, w in enumerate(weights):
        seen = w > 0
        scaled = (basis[seen] * np.sqrt(w[seen])[:, None, None]).reshape(-1, r)
        matrix = scaled.T @ scaled
        size = members @ (w * (root**2).sum(1))  # N w_c
        factors = (members @ (w[:, None] * means))[size > 0] / np.sqrt(size[size > 0])[:, None]
        top = np.linalg.eigvalsh(matrix)[::-1][: window + 1]
        spectra[draw, : len(top)] = np.maximum(top, 0.0)
        rest = matrix - factors.T @ factors
        edges[draw] = scipy.linalg.eigh(rest, eigvals_only=True, subset_by_index=[r - 1, r - 1])[0]
    return spectra, edges


def _leading(gram: Floats, window: int, accuracy: float) -> Floats:
    """Return C [R, r] with C Cᵀ ≈ gram on its eigenvectors with λ > accuracy · λ_{window+1}.

    A pivoted Cholesky factor L first: it stops early and costs R r² where the eigenvectors of the Gram matrix would
    cost R³. gram − L Lᵀ is positive, so its trace bounds the change of every eigenvalue.
    """
    trace, top = np.trace(gram), gram.diagonal().max()
    if not np.isfinite(trace) or trace <= 0:
        raise ValueError(f"gram has the trace {trace}: the spectrum of a network without curvature has no outliers")
    stop = 1e-4
    while True:
        packed, pivots, rank, _ = dpstrf(gram, tol=stop * top, lower=1)
        factor = np.empty((len(gram), rank))
        factor[pivots - 1] = np.tril(packed[:, :rank])
        values, vectors = np.linalg.eigh(factor.T @ factor)
        edge = max(values[-window - 1] if rank > window else 0.0, FLOOR * values[-1])
        if trace - np.sum(factor**2) <= 10 * accuracy * edge or stop < 1e-13:
            return factor @ vectors[:, values > accuracy * edge][:, ::-1]
        stop /= 10


def _spectrum(eigenvalues: ArrayLike, needed: int = 1) -> Floats:
    spectrum = np.asarray(eigenvalues, dtype=np.float64)
    if spectrum.ndim < 1 or spectrum.shape[-1] < needed:
        raise ValueError(f"{needed} eigenvalues are needed along the last axis, got the shape {spectrum.shape}")
    if not np.isfinite(spectrum).all():
        raise ValueError("the eigenvalues must be finite")
    if (spectrum[..., 1:] > spectrum[..., :-1]).any():
        raise ValueError("the eigenvalues must be descending along the last axis: reverse what eigvalsh returns")
    return spectrum


def _windowed(eigenvalues: ArrayLike, window: int) -> Floats:
    """Return the first window + 1 eigenvalues."""
    if window < 2:
        raise ValueError(f"window = {window} is too small to compare anything: it must be at least 2")
    return _spectrum(eigenvalues, window + 1)[..., : window + 1]


def _scale(spectrum: Floats) -> Floats:
    """max(λ_1, 0), [..., 1]."""
    return np.maximum(spectrum[..., :1], 0.0)


def _fraction(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name} = {value} is relative to λ_1: it must lie in [0, 1)")
    return value


def _parameters(eigenvalues: ArrayLike, M: int) -> int:
    given = _spectrum(eigenvalues).shape[-1]
    if given > M:
        raise ValueError(f"M = {M} is less than the {given} eigenvalues given")
    return M
