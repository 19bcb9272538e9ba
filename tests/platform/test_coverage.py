"""Do the intervals keep their promise? Simulations with a known truth, all judged by `assess` itself.

Each repeat is one case of one frame, so that a thousand experiments are judged in one call. Seeds are fixed; with 1000
repeats the standard error of a coverage of 95 % is 0.7 %.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pandas as pd
import pytest

from assay.verdict import Assessment, Bound, Equality, Kind, NonInferiority, Ordering, Proportion, Slope, Trend, assess

UNITS = (5, 8, 20)
REPEATS = 1000
WIDTHS = np.array([64.0, 128.0, 256.0, 512.0, 1024.0])
INF = math.inf


def experiments(kind: Kind, *, unit: np.ndarray | None = None, **columns: np.ndarray) -> Assessment:
    """Judge columns of shape (repeats, units, rows per unit), or those that broadcast to it, repeat by repeat."""
    shape = columns["value"].shape
    labels = np.arange(shape[1])[:, None] if unit is None else unit
    frame = {"repeat": np.arange(shape[0])[:, None, None], "seed": labels, **columns}
    flat = {name: np.broadcast_to(column, shape).ravel() for name, column in frame.items()}
    return assess(kind, pd.DataFrame(flat), ("seed",), ("repeat",))


def coverage(found: Assessment, truth: float) -> float:
    return float(np.mean([case.low <= truth <= case.high for case in found.cases]))


def share(found: Assessment, outcome: str) -> float:
    return float(np.mean([case.outcome == outcome for case in found.cases]))


def noisy_rows(rng: np.random.Generator, units: int, rows: int = 6, repeats: int = REPEATS) -> np.ndarray:
    """Zero-mean rows: a shared effect of the unit, and row noise whose size varies thirtyfold within the unit."""
    effect = rng.normal(size=(repeats, units, 1))
    return effect + np.geomspace(0.1, 3.0, rows) * rng.normal(size=(repeats, units, rows))


def power_laws(rng: np.random.Generator, exponent: float, units: int, repeats: int = REPEATS) -> np.ndarray:
    """Units with their own constant and exponent, and noise that falls with the width."""
    constant, own = rng.normal(size=(repeats, units, 1)), 0.05 * rng.normal(size=(repeats, units, 1))
    noise = 0.5 * (WIDTHS / 64) ** -0.5 * rng.normal(size=(repeats, units, len(WIDTHS)))
    return np.exp(constant + (exponent + own) * np.log(WIDTHS) + noise)


def replicates(rng: np.random.Generator, exponent: float, units: int, repeats: int = REPEATS):
    """One width per unit, noise skewed like the logarithm of a mean of four squares, falling with the width."""
    x = np.resize(WIDTHS[:4], units)[:, None]
    log_chi_square = np.log(rng.chisquare(4, size=(repeats, units, 1))) - (math.log(2) + 1 - np.euler_gamma)
    return x, x**exponent * np.exp(log_chi_square * (x / 64) ** -0.3)


def noisy_trends(rng: np.random.Generator, rise: float, units: int, repeats: int = REPEATS) -> np.ndarray:
    """Eight points per unit that rise by `rise` standard deviations of the noise every 1.6 steps."""
    return rise * np.arange(8) / 1.6 + rng.normal(size=(repeats, units, 8))


@cache
def expected_tau(rise: float) -> float:
    """E[tau] without ties: the mean over pairs of 2 P(later > earlier) - 1, exact for Gaussian noise."""
    first, second = np.triu_indices(8, 1)
    return float(np.mean([math.erf(rise * gap / 1.6 / 2) for gap in second - first]))


def hits(rng: np.random.Generator, p: float, units: int, rows: int, rho: float, repeats: int = REPEATS) -> np.ndarray:
    """Rows that succeed with probability p, correlated by rho within a unit (beta-binomial)."""
    a = (1 - rho) / rho if rho else INF
    own = rng.beta(p * a, (1 - p) * a, size=(repeats, units, 1)) if rho else np.full((repeats, units, 1), p)
    return (rng.random((repeats, units, rows)) < own).astype(float)


# 95 % intervals cover the truth


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize(
    "kind",
    [Equality(0.1), Bound(upper=0.0), Ordering("less", log=True), NonInferiority(0.1)],
    ids=lambda kind: kind.name,
)
def test_means_cover(kind: Kind, units: int) -> None:
    rng = np.random.default_rng([units, len(kind.name)])
    value, covariate = noisy_rows(rng, units), rng.normal(size=(REPEATS, units, 6))
    if isinstance(kind, Ordering):
        found = experiments(kind, value=np.exp(covariate + value), reference=np.exp(covariate))
    elif isinstance(kind, NonInferiority):
        found = experiments(kind, value=covariate + value, reference=covariate)
    elif isinstance(kind, Equality):
        found = experiments(kind, value=covariate + value, prediction=covariate)
    else:
        found = experiments(kind, value=covariate + value, limit=covariate)
    assert 0.90 <= coverage(found, 0.0) <= 0.98


@pytest.mark.parametrize("units", UNITS)
def test_slopes_over_units_that_span_the_axis_cover(units: int) -> None:
    value = power_laws(np.random.default_rng(units), -0.5, units)
    found = experiments(Slope(-0.5), value=value, x=WIDTHS)
    assert {case.method for case in found.cases} == {"t interval over unit slopes"}
    assert 0.90 <= coverage(found, -0.5) <= 0.98


@pytest.mark.parametrize("units", [*UNITS, 40])
def test_slopes_over_independent_replicates_cover(units: int) -> None:
    x, value = replicates(np.random.default_rng(units), -0.5, units)
    found = experiments(Slope(-0.5), value=value, x=x)
    assert all("CR2" in case.method for case in found.cases)
    assert 0.90 <= coverage(found, -0.5) <= 0.98


@pytest.mark.parametrize("units", UNITS)
def test_slopes_with_missing_cells_cover(units: int) -> None:
    """Every second unit has one width only."""
    rng = np.random.default_rng(units)
    x = np.tile(WIDTHS, (units, 1))
    lone = np.arange(units) % 2 == 1
    x[lone] = np.resize(WIDTHS, lone.sum())[:, None]
    noise = rng.normal(size=(REPEATS, units, 1)) + (x / 64) ** -0.5 * rng.normal(size=(REPEATS, units, len(WIDTHS)))
    noise[:, lone] = noise[:, lone, :1]
    found = experiments(Slope(-0.5), value=x**-0.5 * np.exp(0.3 * noise), x=x)
    assert all("CR2" in case.method for case in found.cases)
    assert 0.90 <= coverage(found, -0.5) <= 0.98


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("rise", [0.0, 0.3, 1.0])
def test_trends_cover(rise: float, units: int) -> None:
    found = experiments(
        Trend("increasing"), value=noisy_trends(np.random.default_rng(units), rise, units), x=np.arange(8)
    )
    assert 0.90 <= coverage(found, expected_tau(rise)) <= 0.98


@pytest.mark.parametrize("units", UNITS)
def test_nearly_perfect_trends_cover(units: int) -> None:
    """Many experiments show perfect order in every unit, where a t interval would be the single point 1."""
    value = noisy_trends(np.random.default_rng(units), 5.0, units)
    found = experiments(Trend("increasing"), value=value, x=np.arange(8))
    perfect = np.mean([case.estimate == 1.0 for case in found.cases])
    assert perfect > (0.1 if units == 20 else 0.4)
    assert 0.90 <= coverage(found, expected_tau(5.0)) <= 0.98


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize(("rows", "rho"), [(1, 0.0), (10, 0.0), (10, 0.1), (10, 0.2)])
@pytest.mark.parametrize("p", [0.5, 0.8, 0.95])
def test_proportions_cover(p: float, rows: int, rho: float, units: int) -> None:
    found = experiments(Proportion(at_least=0.5), value=hits(np.random.default_rng(units), p, units, rows, rho))
    assert 0.90 <= coverage(found, p) <= 0.98


@pytest.mark.parametrize("units", UNITS)
def test_rare_failures_of_whole_units_are_the_known_weak_spot(units: int) -> None:
    """Few units show any failure: `effective_size` says so."""
    found = experiments(Proportion(at_least=0.5), value=hits(np.random.default_rng(units), 0.95, units, 40, 0.3))
    assert 0.80 <= coverage(found, 0.95) <= 0.90


# The simulator can tell a wrong interval from a right one


@pytest.mark.parametrize("units", UNITS)
def test_intervals_over_rows_would_not_cover(units: int) -> None:
    """Negative control: the same data, each row passed off as independent."""
    rng = np.random.default_rng(units)
    rows = np.arange(units * 20).reshape(units, 20)
    mean = experiments(Equality(0.1), unit=rows, value=noisy_rows(rng, units, rows=20))
    slope = experiments(
        Slope(0.0),
        unit=np.arange(units * 5).reshape(units, 5),
        x=WIDTHS,
        value=(WIDTHS / 256) ** rng.normal(size=(REPEATS, units, 1))
        * np.exp(0.1 * rng.normal(size=(REPEATS, units, 5))),
    )
    proportion = experiments(Proportion(at_least=0.5), unit=rows, value=hits(rng, 0.8, units, 20, 0.3))
    assert coverage(mean, 0.0) < 0.80
    assert coverage(slope, 0.0) < 0.80
    assert coverage(proportion, 0.8) < 0.80


# Verdicts at the edge of the region


def at_the_edge(name: str, units: int, rng: np.random.Generator, repeats: int = REPEATS) -> Assessment:
    """Experiments whose truth is exactly the last value the claim allows."""
    rows = noisy_rows(rng, units, repeats=repeats)
    match name:
        case "equality":
            return experiments(Equality(3.0, prediction=-3.0), value=rows)
        case "bound":
            return experiments(Bound(lower=0.0), value=rows)
        case "ordering":
            return experiments(Ordering("less", margin=1.0), value=rows, reference=np.array(1.0))
        case "noninferiority":
            return experiments(NonInferiority(0.5), value=rows, reference=np.array(0.5))
        case "slope":
            return experiments(Slope(0.0, band=1.0), value=power_laws(rng, 1.0, units, repeats), x=WIDTHS)
        case "replicates":
            x, alone = replicates(rng, 9.0, units, repeats)
            return experiments(Slope(0.0, band=9.0), value=alone, x=x)
        case "trend":
            value = noisy_trends(rng, 1.0, units, repeats)
            return experiments(Trend("increasing", at_least=expected_tau(1.0)), value=value, x=np.arange(8))
        case "nearly perfect trend":
            value = noisy_trends(rng, 5.0, units, repeats)
            return experiments(Trend("increasing", at_least=expected_tau(5.0)), value=value, x=np.arange(8))
        case "proportion 0.8":
            return experiments(Proportion(at_least=0.8), value=hits(rng, 0.8, units, 1, 0, repeats))
        case "proportion 0.95":
            return experiments(Proportion(at_least=0.95), value=hits(rng, 0.95, units, 1, 0, repeats))
        case "clustered proportion 0.95":
            return experiments(Proportion(at_least=0.95), value=hits(rng, 0.95, units, 10, 0.2, repeats))
    return experiments(Proportion(at_most=0.2), value=hits(rng, 0.2, units, 10, 0.1, repeats))


EDGES = (
    "equality", "bound", "ordering", "noninferiority", "slope", "replicates", "trend", "nearly perfect trend",
    "proportion 0.8", "proportion 0.95", "clustered proportion", "clustered proportion 0.95",
)  # fmt: skip


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("name", EDGES)
def test_support_at_the_edge_is_rare(name: str, units: int) -> None:
    rare = 0.06 if name == "clustered proportion 0.95" else 0.05  # the weak spot above: 5.5 % with 20 units
    assert share(at_the_edge(name, units, np.random.default_rng(units)), "supported") <= rare


@pytest.mark.parametrize("name", EDGES)
def test_ten_true_cases_are_rarely_refuted(name: str) -> None:
    """Claims of ten cases, each of them just true; judging each at its own 95 % would refute four times as many."""
    rng = np.random.default_rng(8)
    refuted = [at_the_edge(name, 8, rng, repeats=10).outcome == "refuted" for _ in range(300)]
    assert np.mean(refuted) <= 0.05


def test_without_the_correction_ten_true_cases_are_often_refuted() -> None:
    """Negative control: some case of a true claim lies outside its region by its own interval, 22 % of the time."""
    found = at_the_edge("slope", 8, np.random.default_rng(0), repeats=4000).cases
    outside = np.array([case.low > 1.0 or case.high < -1.0 for case in found]).reshape(-1, 10)
    assert outside.any(axis=1).mean() > 0.15
