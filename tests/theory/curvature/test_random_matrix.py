"""Laws of sample covariance matrices: against quadrature, limits and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from theory.curvature.random_matrix import (
    bbp_critical,
    bbp_eigenvalue,
    edge_mean,
    marchenko_pastur_atom,
    marchenko_pastur_density,
    marchenko_pastur_edges,
    spiked_spectrum,
)

ALPHAS = (0.1, 0.5, 0.9, 2.0, 7.0)


def moment(alpha: float, power: int) -> float:
    """∫ x^power of the bulk, in the variable that removes the square roots at both edges."""
    low, high = marchenko_pastur_edges(alpha)
    centre, half = (low + high) / 2, (high - low) / 2

    def integrand(angle: float) -> float:
        x = centre - half * np.cos(angle)
        return float(x**power * marchenko_pastur_density(x, alpha) * half * np.sin(angle))

    return quad(integrand, 0, np.pi)[0]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_bulk_holds_what_the_atom_does_not_and_has_the_known_moments(alpha):
    """E x = 1 and E x² = 1 + α for unit variance, atom included: it adds nothing to them."""
    assert moment(alpha, 0) == pytest.approx(1 - marchenko_pastur_atom(alpha), abs=1e-9)
    assert moment(alpha, 1) == pytest.approx(1, abs=1e-9)
    assert moment(alpha, 2) == pytest.approx(1 + alpha, abs=1e-9)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_exchanging_dimensions_and_examples_rescales_the_bulk(alpha):
    """XXᵀ/N and XᵀX/M share nonzero eigenvalues up to a factor α; their numbers differ by the same factor."""
    x = np.linspace(*marchenko_pastur_edges(alpha), 11)[1:-1]
    assert marchenko_pastur_edges(alpha) == pytest.approx([alpha * edge for edge in marchenko_pastur_edges(1 / alpha)])
    exchanged = marchenko_pastur_density(x / alpha, 1 / alpha) / alpha
    np.testing.assert_allclose(marchenko_pastur_density(x, alpha) * alpha, exchanged, rtol=1e-10)


def test_there_is_no_density_off_the_bulk_and_shapes_are_kept():
    low, high = marchenko_pastur_edges(0.25)
    assert (low, high) == (0.25, 2.25)
    at = np.array([[-1.0, 0.0, low], [1.0, high, 9.0]])
    np.testing.assert_array_equal(marchenko_pastur_density(at, 0.25) > 0, [[False] * 3, [True, False, False]])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_top_eigenvalue_leaves_the_edge_continuously_and_then_grows_with_the_spike(alpha):
    critical, edge = bbp_critical(alpha), marchenko_pastur_edges(alpha)[1]
    assert [bbp_eigenvalue(spike, alpha) for spike in (0.5, 1.0, critical)] == [edge] * 3
    assert bbp_eigenvalue(critical * (1 + 1e-9), alpha) == pytest.approx(edge, rel=1e-8)
    values = [bbp_eigenvalue(spike, alpha) for spike in np.linspace(critical, 10 * critical, 50)]
    assert (np.diff(values) > 0).all()
    assert bbp_eigenvalue(1e9, alpha) == pytest.approx(1e9 + alpha, abs=1e-3)  # ℓ(1 + α/(ℓ − 1)) → ℓ + α


@pytest.mark.parametrize(("M", "N", "spike"), [(400, 200, 5.0), (300, 600, 3.0), (100, 400, 6.0)])
def test_simulated_spikes_sit_where_the_law_puts_them(M, N, spike):
    tops = np.array([spiked_spectrum(M, N, spike, seed)[0] for seed in range(16)])
    error = tops.std(ddof=1) / 4
    assert abs(tops.mean() - bbp_eigenvalue(spike, M / N)) < 4 * error
    assert abs(tops.mean() - bbp_eigenvalue(spike, N / M)) > 10 * error  # the law with α upside down


@pytest.mark.parametrize(("M", "N"), [(400, 200), (200, 400), (100, 100), (60, 500)])
def test_without_a_spike_the_top_eigenvalue_is_at_the_shifted_edge_not_at_the_edge(M, N):
    tops = np.array([spiked_spectrum(M, N, 1.0, seed)[0] for seed in range(24)])
    error = tops.std(ddof=1) / 24**0.5
    assert abs(tops.mean() - edge_mean(M, N)) < 4 * error
    assert tops.mean() < marchenko_pastur_edges(M / N)[1] - 4 * error


def test_the_shift_of_the_edge_fades_like_size_to_minus_two_thirds():
    shifts = [marchenko_pastur_edges(2.0)[1] - edge_mean(2 * N, N) for N in (10**3, 10**6)]
    assert np.log(shifts[0] / shifts[1]) / np.log(10**3) == pytest.approx(2 / 3, abs=0.01)
    assert edge_mean(40, 70) * 70 == pytest.approx(edge_mean(70, 40) * 40)  # XXᵀ and XᵀX


@pytest.mark.parametrize(("M", "N"), [(30, 80), (80, 30)])
def test_a_spectrum_is_sorted_has_the_rank_of_the_data_and_depends_on_the_seed_alone(M, N):
    spectrum = spiked_spectrum(M, N, 3.0, seed=1)
    assert spectrum.shape == (M,)
    assert (np.diff(spectrum) <= 0).all()
    assert np.count_nonzero(spectrum > 1e-10) == min(M, N)
    np.testing.assert_array_equal(spectrum, spiked_spectrum(M, N, 3.0, seed=1))
    assert spectrum[0] != spiked_spectrum(M, N, 3.0, seed=2)[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: marchenko_pastur_edges(0.0), "alpha = 0.0 is M/N"),
        (lambda: bbp_critical(-1.0), "alpha = -1.0 is M/N"),
        (lambda: bbp_eigenvalue(0.0, 0.5), "spike = 0.0 is a variance"),
        (lambda: spiked_spectrum(4, 4, -2.0, 0), "spike = -2.0 is a variance"),
        (lambda: edge_mean(1, 5), "M = 1 and N = 5"),
    ],
)
def test_nonsense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
