from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from theory.curvature.outliers import (
    FLOOR,
    Bootstrap,
    above,
    bootstrap_counts,
    bulk_fraction,
    class_edge,
    consensus,
    detect,
    elbow,
    gap,
    k_gap,
    marchenko_pastur_edge,
    negative_fraction,
    ratio,
    reweighted_spectra,
    search_window,
    zero_fraction,
)
from theory.curvature.tiers import class_directions
from theory.ensemble import normal

M = 300
WINDOW = search_window(20, M)  # one window for every number of classes below
DETECTORS: dict[str, Callable[..., np.ndarray]] = {"gap": gap, "ratio": ratio, "elbow": elbow}
named = pytest.mark.parametrize("name", DETECTORS)


def planted(k: int, bulk: float = 1e-3) -> np.ndarray:
    """Return k outliers between 2 and 1.5 over a bulk that decays by a third of a per cent from one to the next."""
    return np.concatenate([np.linspace(2, 1.5, k), bulk * 0.997 ** np.arange(M - k)])


def random_spectra(count: int = 50) -> np.ndarray:
    """Positive spectra over five decades, [count, M], descending."""
    return np.sort(10 ** np.random.default_rng(0).uniform(-5, 0, (count, M)))[:, ::-1]


# Detectors --------------------------------------------------------------------------------------------------------


@named
@pytest.mark.parametrize("k", [1, 2, 5, 10, 20])
def test_detectors_find_planted_outliers_of_any_number_in_one_window(name: str, k: int) -> None:
    assert DETECTORS[name](planted(k), WINDOW) == k


def test_all_at_once_with_the_edge() -> None:
    assert detect(planted(5), WINDOW, 0.5) == {"gap": 5, "ratio": 5, "elbow": 5, "class_edge": 5}


def test_the_gap_and_the_ratio_can_disagree() -> None:
    """λ_1 far above a pair of outliers: the gap sees one, the ratio three. Here 10 − 1 > 0.9 − 1e-3, 10 < 900."""
    spectrum = np.concatenate([[10.0, 1.0, 0.9], 1e-3 * 0.99 ** np.arange(M - 3)])
    assert gap(spectrum, WINDOW) == 1
    assert ratio(spectrum, WINDOW) == 3
    assert math.isnan(consensus(1, ratio(spectrum, WINDOW)))


@pytest.mark.parametrize("zero", [0.0, 1e-16, -1e-16])
def test_exact_zeros_do_not_win(zero: float) -> None:
    """A bulk of 12 and then zeros to rounding: without a floor the first zero makes the largest ratio."""
    spectrum = np.concatenate([[5.0, 4.0, 3.0], 1e-3 * 0.9 ** np.arange(12), np.full(M - 15, zero)])
    with np.errstate(divide="ignore", invalid="ignore"):
        naive = np.nanargmax(np.abs(spectrum[:WINDOW] / spectrum[1 : WINDOW + 1])) + 1
    assert naive == 15
    assert ratio(spectrum, WINDOW) == 3
    assert elbow(spectrum, WINDOW) == 3


@named
def test_nothing_stands_out_of_a_flat_or_empty_spectrum(name: str) -> None:
    assert DETECTORS[name](np.ones(M), WINDOW) == 0
    assert DETECTORS[name](np.zeros(M), WINDOW) == 0


def test_nothing_stands_out_of_one_eigenvalue_or_a_straight_scree_plot() -> None:
    assert ratio(np.eye(1, M)[0], WINDOW) == 0
    assert elbow(np.eye(1, M)[0], WINDOW) == 0
    assert elbow(0.7 ** np.arange(M), 40) == 0


@named
def test_the_window_bounds_the_search(name: str) -> None:
    """Beyond the window nothing counts: the same first window + 1 eigenvalues give the same answer."""
    spectrum = planted(20)
    assert DETECTORS[name](spectrum, 10) <= 10
    changed = np.concatenate([spectrum[:41], np.zeros(M - 41)])
    assert DETECTORS[name](changed, 40) == DETECTORS[name](spectrum, 40) == 20


@pytest.mark.parametrize("factor", [2.0**-40, 1e-12, 3.0, 1e9])
def test_counts_do_not_depend_on_the_scale(factor: float) -> None:
    spectra = random_spectra()
    spectra[:, -100:] = 0
    scaled = factor * spectra
    for name, detector in DETECTORS.items():
        np.testing.assert_array_equal(detector(scaled, WINDOW), detector(spectra, WINDOW), err_msg=name)
    for tau in (1e-1, 1e-3):
        np.testing.assert_array_equal(above(scaled, tau), above(spectra, tau))
        np.testing.assert_array_equal(bulk_fraction(scaled, M, tau), bulk_fraction(spectra, M, tau))
        np.testing.assert_array_equal(zero_fraction(scaled, M, tau), zero_fraction(spectra, M, tau))
        np.testing.assert_array_equal(
            negative_fraction(-scaled[:, ::-1], M, tau), negative_fraction(-spectra[:, ::-1], M, tau)
        )
    np.testing.assert_allclose(k_gap(scaled, 10), k_gap(spectra, 10), atol=1e-13)
    np.testing.assert_array_equal(class_edge(scaled, factor * spectra[:, 7]), 7)
    np.testing.assert_allclose(
        marchenko_pastur_edge(scaled, 0.5), factor * marchenko_pastur_edge(spectra, 0.5), rtol=1e-12
    )


def test_many_spectra_at_once_are_each_on_its_own() -> None:
    spectra = random_spectra(6).reshape(2, 3, M)
    edges = spectra[..., 4] * 0.99
    together = detect(spectra, WINDOW, edges) | {"k_gap": k_gap(spectra, 3), "above": above(spectra, 0.1)}
    for i, j in np.ndindex(2, 3):
        alone = detect(spectra[i, j], WINDOW, edges[i, j])
        alone |= {"k_gap": k_gap(spectra[i, j], 3), "above": above(spectra[i, j], 0.1)}
        for name, value in alone.items():
            assert isinstance(value, np.generic)
            assert together[name].shape == (2, 3)
            assert together[name][i, j] == value, name


# Counts -----------------------------------------------------------------------------------------------------------


def test_fractions_by_their_definition() -> None:
    values = np.sort(np.random.default_rng(1).standard_normal(M))[::-1]
    values[100:180] *= 1e-4
    values = np.sort(values)[::-1]
    top = values[0]
    for epsilon in (0.0, 1e-6, 1e-3, 0.3):
        assert above(values, epsilon) == sum(v > epsilon * top for v in values)
        assert bulk_fraction(values, M, epsilon) == pytest.approx(1 - sum(v > epsilon * top for v in values) / M)
        assert negative_fraction(values, M, epsilon) == sum(v < -epsilon * top for v in values) / M
        assert zero_fraction(values, M, epsilon) == pytest.approx(sum(abs(v) <= epsilon * top for v in values) / M)


def test_eigenvalues_left_out_of_a_dual_spectrum_are_zeros() -> None:
    dual = planted(5)[:40]
    full = np.concatenate([dual, np.zeros(M - 40)])
    for tau in (1e-8, 1e-3, 0.1):
        assert zero_fraction(dual, M, tau) == zero_fraction(full, M, tau) > 0
        assert bulk_fraction(dual, M, tau) == bulk_fraction(full, M, tau)


def test_a_spectrum_of_zeros_is_all_bulk() -> None:
    zeros = np.zeros(M)
    assert above(zeros, 0.01) == 0
    assert bulk_fraction(zeros, M, 0.01) == zero_fraction(zeros, M, 0.01) == 1
    assert negative_fraction(zeros, M, 0.01) == k_gap(zeros, 3) == 0


def test_k_gap_is_the_log_ratio_and_bounded_by_the_floor() -> None:
    assert k_gap(planted(5), 5) == pytest.approx(math.log(1.5 / 1e-3), rel=1e-12)
    assert k_gap([2.0, 1.0, 0.0, -1.0], 2) == pytest.approx(math.log(0.5 / FLOOR), rel=1e-12)
    assert k_gap([2.0, 0.0, 0.0, -1.0], 2) == 0


def test_consensus() -> None:
    found = consensus([10, 10, 11, 0, 19], [10, 9, 12, 0, 14])
    np.testing.assert_array_equal(found, [10, 10, 11, 0, np.nan])


@pytest.mark.parametrize(
    ("k_max", "size", "expected"), [(10, 4000, 40), (50, 5510, 160), (10, 100, 25), (None, 4000, 200), (None, 162, 40)]
)
def test_search_window(k_max: int | None, size: int, expected: int) -> None:
    assert search_window(k_max, size) == expected


# The class edge ---------------------------------------------------------------------------------------------------


def test_class_edge_never_counts_more_than_the_rank_of_what_was_removed() -> None:
    """Weyl: at most rank(A) eigenvalues of H lie above λ_1(H − A), and all of those of a strong A do."""
    draws = np.random.default_rng(2)
    counts = []
    for strength in np.repeat([0.1, 1.0, 100.0], 20):
        noise, factors = draws.standard_normal((30, 30)), draws.standard_normal((30, 4))
        bulk = noise + noise.T
        H = bulk + strength * factors @ factors.T
        counts.append(int(class_edge(np.linalg.eigvalsh(H)[::-1], np.linalg.eigvalsh(bulk)[-1])))
    assert max(counts) == 4
    assert min(counts[:20]) < 4
    assert counts[40:] == [4] * 20


def test_eigenvalues_on_the_edge_do_not_count() -> None:
    """What G_class leaves alone sits on the edge up to rounding, above or below."""
    edge = 0.1
    spectrum = np.sort(np.concatenate([[1.0, 0.9], edge + 1e-16 * np.arange(-3, 4), np.zeros(5)]))[::-1]
    assert (spectrum > edge).sum() > 2
    assert class_edge(spectrum, edge) == 2
    assert class_edge(spectrum, edge, tolerance=0.0) == (spectrum > edge).sum()


# Marchenko–Pastur -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "samples"), [(200, 800), (400, 400), (600, 200)])
@pytest.mark.parametrize("sigma", [1.0, 0.2])
def test_marchenko_pastur_edge_of_white_data_and_planted_spikes(rows: int, samples: int, sigma: float) -> None:
    alpha = rows / samples
    x = sigma * np.random.default_rng(3).standard_normal((rows, samples))
    x[:3] *= 10  # ℓ = 100, far above 1 + √α
    values = np.linalg.eigvalsh(x @ x.T / samples)[::-1]
    edge = marchenko_pastur_edge(values, alpha)
    # Relative fluctuations of a bulk's median are O(1/rows); three spikes shift its rank by 1.5 of `rows`.
    assert edge == pytest.approx(sigma**2 * (1 + math.sqrt(alpha)) ** 2, rel=0.04)
    assert class_edge(values, 1.05 * edge) == 3


def test_marchenko_pastur_edge_over_counts_on_a_heavy_tailed_bulk() -> None:
    """Three outliers over a bulk ∝ j^-2: the median of the bulk is far below its tail, so many of it lie above."""
    bulk = 0.1 * np.arange(1, M + 1) ** -2.0
    values = np.concatenate([[3.0, 2.5, 2.0], bulk])
    assert ratio(values, WINDOW) == 3
    assert class_edge(values, marchenko_pastur_edge(values, 0.5)) > 10 * 3


# Bootstrap over examples ------------------------------------------------------------------------------------------

K_CLASSES, DIM = 3, 5


def softmax_regression(N: int, *, seed: int = 0, empty: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows B [N·k, k·d], p [N, k] and labels of a linear softmax on three clusters with their means as weights."""
    labels = np.arange(N) % K_CLASSES
    if empty is not None:
        labels[labels == empty] = (empty + 1) % K_CLASSES
    means = 2 * np.eye(K_CLASSES, DIM)
    x = means[labels] + 0.7 * normal((N, DIM), "bootstrap test", seed, N).numpy()
    p = torch.from_numpy(x @ means.T).softmax(-1).numpy()
    g = np.einsum("nab,nd->nabd", np.eye(K_CLASSES) - p[:, None, :], x).reshape(N, K_CLASSES, -1)
    return (np.sqrt(p / N)[:, :, None] * g).reshape(N * K_CLASSES, -1), p, labels


def class_edge_of(rows: np.ndarray, p: np.ndarray, labels: np.ndarray) -> float:
    """λ_1(G − G_class) through the matrices."""
    factors = rows.T @ class_directions(torch.from_numpy(p)[None], torch.from_numpy(labels))[0].numpy()
    return np.linalg.eigvalsh(rows.T @ rows - factors @ factors.T)[-1]


@pytest.mark.parametrize("empty", [None, 1])
def test_weights_of_one_give_back_the_spectrum_and_the_edge(empty: int | None) -> None:
    rows, p, labels = softmax_regression(40, empty=empty)
    spectra, edges = reweighted_spectra(rows @ rows.T, p, labels, np.ones((1, 40)), window=20, accuracy=1e-9)
    expected = np.linalg.eigvalsh(rows.T @ rows)[::-1]  # 15 numbers, of rank 10: softmax is invariant to shifts
    np.testing.assert_allclose(spectra[0, :15], expected, rtol=0, atol=1e-10 * expected[0])
    assert not spectra[0, 15:].any()
    assert edges[0] == pytest.approx(class_edge_of(rows, p, labels), rel=1e-8)


@pytest.mark.parametrize("loss", ["xent", "mse"])
def test_weights_are_repetitions_of_examples(loss: str) -> None:
    """Against the data set with every example written down as often as it was drawn, up to the 1/N of the mean."""
    N = 30
    rows, p, labels = softmax_regression(N)
    if loss == "mse":
        rows, p = normal((N * K_CLASSES, 12), "rows").numpy(), np.ones_like(p)
    weights = np.random.default_rng(0).multinomial(N, np.full(N, 1 / N), size=3)
    assert (weights == 0).any()
    assert (weights > 1).any()
    spectra, edges = reweighted_spectra(rows @ rows.T, p, labels, weights, window=9, accuracy=1e-9)
    for draw, w in enumerate(weights):
        copies = np.repeat(np.arange(N), w)
        drawn = rows.reshape(N, K_CLASSES, -1)[copies].reshape(N * K_CLASSES, -1)
        expected = np.linalg.eigvalsh(drawn.T @ drawn)[::-1][:10]
        np.testing.assert_allclose(spectra[draw], expected, rtol=0, atol=1e-8 * expected[0])
        assert edges[draw] == pytest.approx(class_edge_of(drawn, p[copies], labels[copies]), rel=1e-8)


def test_a_truncated_basis_only_lowers_eigenvalues_and_by_little() -> None:
    """A bulk that decays slowly: the leading eigenvectors stand for it, with errors that `accuracy` controls."""
    N, size = 100, 250
    rows = normal((N * K_CLASSES, size), "rows").numpy() * 0.98 ** np.arange(size)
    p, labels = np.full((N, K_CLASSES), 1 / 3), np.arange(N) % K_CLASSES
    weights = np.random.default_rng(0).multinomial(N, np.full(N, 1 / N), size=4)
    found = {
        accuracy: reweighted_spectra(rows @ rows.T, p, labels, weights, window=20, accuracy=accuracy)[0]
        for accuracy in (1e-9, 0.01, 0.1)
    }
    errors = {accuracy: (found[1e-9] - found[accuracy]) / found[1e-9] for accuracy in (0.01, 0.1)}
    assert min(error.min() for error in errors.values()) > -1e-9
    assert errors[0.1].max() > errors[0.01].max() > 1e-6  # the truncation is at work
    assert errors[0.1].max() < 0.1
    assert errors[0.01].max() < 0.01


def test_the_basis_reaches_the_last_eigenvalue_of_a_steep_window() -> None:
    """Six decades within the window: what is negligible beside λ_1 is not beside λ_{window+1}."""
    N, size = 20, 30
    basis = np.linalg.qr(normal((N * K_CLASSES, size), "steep").numpy())[0]
    values = 10 ** (-0.3 * np.arange(size))
    p, labels = np.full((N, K_CLASSES), 1 / 3), np.arange(N) % K_CLASSES
    found = reweighted_spectra((basis * values) @ basis.T, p, labels, np.ones((1, N)), window=20)[0]
    assert values[20] == pytest.approx(1e-6)
    np.testing.assert_allclose(found[0], values[:21], rtol=0.01)  # the default accuracy


def bootstrap(N: int, **options: Any) -> Bootstrap:
    rows, p, labels = softmax_regression(N)
    return bootstrap_counts(rows @ rows.T, p, labels, **{"draws": 40, "seed": 0, "window": 8} | options)


def test_bootstrap_depends_on_the_seed_alone() -> None:
    one, again, more, other = bootstrap(30), bootstrap(30), bootstrap(30, draws=50), bootstrap(30, seed=1)
    assert one.counts.keys() == {"gap", "ratio", "elbow", "class_edge"}
    np.testing.assert_array_equal(one.k_gap, again.k_gap)
    np.testing.assert_array_equal(one.k_gap, more.k_gap[:40])
    assert not np.isin(one.k_gap, other.k_gap).any()
    for name, counts in one.counts.items():
        assert counts.shape == (40,)
        np.testing.assert_array_equal(counts, again.counts[name])
        np.testing.assert_array_equal(counts, more.counts[name][:40])


def test_bootstrap_width_shrinks_with_the_number_of_examples() -> None:
    """The deviation falls like 1/√N, fourfold from 40 to 640; 40 draws know each deviation to about 11 %."""
    small, large = bootstrap(40).k_gap.std(), bootstrap(640).k_gap.std()
    assert 4 / 1.6 < small / large < 4 * 1.6


# Errors -----------------------------------------------------------------------------------------------------------

FINE = planted(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gap(FINE[::-1], 20), "must be descending along the last axis: reverse what eigvalsh returns"),
        (lambda: above([1.0, math.nan, 0.5], 0.1), "must be finite"),
        (lambda: ratio(FINE, 1), "window = 1 is too small"),
        (lambda: elbow(FINE[:20], 20), r"21 eigenvalues are needed along the last axis, got the shape \(20,\)"),
        (lambda: above(1.0, 0.1), "1 eigenvalues are needed"),
        (lambda: above(FINE, -0.1), r"tau = -0.1 is relative to λ_1: it must lie in \[0, 1\)"),
        (lambda: bulk_fraction(FINE, M, 1.0), "tau = 1.0"),
        (lambda: negative_fraction(FINE, M, -1e-6), "epsilon = -1e-06"),
        (lambda: zero_fraction(FINE, M, math.nan), "epsilon = nan"),
        (lambda: zero_fraction(FINE, M - 1, 0.1), f"M = {M - 1} is less than the {M} eigenvalues given"),
        (lambda: class_edge(FINE, math.nan), "edge must be one finite number per spectrum"),
        (lambda: class_edge(FINE, [0.1, 0.2]), "edge must be one finite number per spectrum"),
        (lambda: class_edge(FINE, 0.1, tolerance=-1.0), "tolerance = -1.0"),
        (lambda: marchenko_pastur_edge(FINE, 0.0), "alpha = 0.0"),
        (lambda: k_gap(FINE, 0), "k = 0 must be at least 1"),
        (lambda: k_gap(FINE, M), f"{M + 1} eigenvalues are needed"),
        (lambda: search_window(10, 7), "M = 7 leave a window of 1"),
        (lambda: search_window(-3, 100), "k_max = -3"),
        (lambda: bootstrap(30, draws=0), "draws = 0 must be at least 1"),
        (lambda: bootstrap(30, window=2), "window = 2 must reach the number of classes, 3"),
        (lambda: bootstrap(30, window=90), r"window = 90 must lie in 2\.\.89"),
        (lambda: bootstrap(30, accuracy=0.0), r"accuracy = 0.0 must lie in \(0, 1\)"),
    ],
)
def test_bad_arguments(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gram": np.eye(80)}, r"do not fit together: \(80, 80\), \(30, 3\), \(30,\)"),
        ({"labels": np.arange(29) % 3}, "do not fit together"),
        ({"labels": np.arange(30) % 4}, r"labels must be integers in 0\.\.2 and p not negative"),
        ({"labels": np.zeros(30)}, "labels must be integers"),
        ({"p": np.full((30, 3), -0.1)}, "p not negative"),
        ({"weights": np.ones((1, 29))}, r"weights must be finite, not negative, and \[draws, 30\], got \(1, 29\)"),
        ({"weights": -np.ones((1, 30))}, "weights must be finite, not negative"),
        ({"gram": np.zeros((90, 90))}, "without curvature has no outliers"),
    ],
)
def test_bad_reweighting(changed: dict[str, Any], message: str) -> None:
    rows, p, labels = softmax_regression(30)
    fine: dict[str, Any] = {"gram": rows @ rows.T, "p": p, "labels": labels, "weights": np.ones((1, 30)), "window": 8}
    reweighted_spectra(**fine)
    with pytest.raises(ValueError, match=message):
        reweighted_spectra(**fine | changed)
