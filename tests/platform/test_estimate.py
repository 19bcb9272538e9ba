"""Every kind of claim on planted data: estimates, intervals, and what each outcome takes."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from assay.intervals import kendall_tau, pooled_slope
from assay.verdict import (
    Bound,
    Equality,
    Kind,
    NonInferiority,
    Ordering,
    Proportion,
    Slope,
    Trend,
    assess,
)
from tests.platform.planted import INF, SEED, around, one_row_per_seed, power_law, sole

# The means: Equality, Bound, Ordering, NonInferiority


@pytest.mark.parametrize(
    ("kind", "mean", "outcome"),
    [
        (Equality(0.2, prediction=1.0), 1.05, "supported"),
        (Equality(0.2, prediction=1.0), 1.15, "inconclusive"),
        (Equality(0.2, prediction=1.0), 1.30, "refuted"),
        (Equality(0.2, prediction=1.0), 0.70, "refuted"),
        (Bound(upper=1.0), 0.9, "supported"),
        (Bound(upper=1.0), 1.0, "inconclusive"),
        (Bound(upper=1.0), 1.1, "refuted"),
        (Bound(lower=1.0), 1.1, "supported"),
        (Bound(lower=1.0), 0.9, "refuted"),
    ],
)
def test_interval_of_a_mean_decides(kind: Kind, mean: float, outcome: str) -> None:
    sd, n = 0.1, 8
    found = sole(assess(kind, one_row_per_seed(around(mean, sd, n)), SEED))
    half = stats.t.ppf(0.975, n - 1) * sd / math.sqrt(n)
    assert found.outcome == outcome
    assert (found.estimate, found.low, found.high) == pytest.approx((mean, mean - half, mean + half))
    assert (found.prediction, found.n, found.rows, found.diverged) == (1.0, n, n, 0)


@pytest.mark.parametrize(
    ("kind", "difference", "outcome"),
    [
        (Ordering("less"), -0.3, "supported"),
        (Ordering("less"), 0.0, "inconclusive"),
        (Ordering("less"), 0.3, "refuted"),
        (Ordering("less", margin=0.5), -0.3, "refuted"),
        (Ordering("greater", margin=0.1), 0.3, "supported"),
        (Ordering("greater", margin=0.5), 0.3, "refuted"),
        (NonInferiority(0.2), -0.1, "supported"),
        (NonInferiority(0.2), -0.2, "inconclusive"),
        (NonInferiority(0.2), -0.4, "refuted"),
    ],
)
def test_pairs_are_compared_by_their_differences(kind: Kind, difference: float, outcome: str) -> None:
    reference = np.linspace(-50, 50, 8)  # unpaired, this spread would drown every difference
    frame = one_row_per_seed(reference + around(difference), reference=reference)
    found = sole(assess(kind, frame, SEED))
    assert found.outcome == outcome
    assert found.estimate == pytest.approx(difference)


def test_log_ordering_is_free_of_scale() -> None:
    reference = np.geomspace(1e-6, 1e6, 8)
    frame = one_row_per_seed(reference * np.exp(around(-0.5)), reference=reference)
    found = sole(assess(Ordering("less", margin=math.log(1.2), log=True), frame, SEED))
    assert found.outcome == "supported"
    assert found.estimate == pytest.approx(-0.5)
    assert found.prediction == -math.log(1.2)


def test_rows_of_a_unit_count_once() -> None:
    few = one_row_per_seed(around(0.0))
    many = pd.concat([few] * 100)
    once, often = (sole(assess(Equality(1.0), frame, SEED)) for frame in (few, many))
    assert (once.low, once.high, once.n) == pytest.approx((often.low, often.high, often.n))
    assert often.rows == 100 * once.rows


def test_unit_of_two_columns() -> None:
    frame = pd.DataFrame({"init": [0, 0, 1, 1], "data": [0, 1, 0, 1], "value": [1.0, 2.0, 3.0, 4.0]})
    assert sole(assess(Bound(upper=9), frame, ("init",))).n == 2
    assert sole(assess(Bound(upper=9), frame, ("init", "data"))).n == 4


def test_per_row_prediction_is_subtracted_row_by_row() -> None:
    covariate = np.geomspace(1, 1e4, 8)
    frame = one_row_per_seed(covariate + around(0.0), prediction=covariate)
    found = sole(assess(Equality(0.2), frame, SEED))
    assert found.outcome == "supported"
    assert (found.prediction, found.estimate) == pytest.approx((0.0, 0.0), abs=1e-9)
    explicit = sole(assess(Equality(0.2, prediction=1.0), frame, SEED))  # a number outranks the column
    assert explicit.estimate == pytest.approx(covariate.mean())


def test_relative_difference() -> None:
    prediction = np.array([1.0, 10.0, 100.0, -1000.0])
    frame = one_row_per_seed(prediction + np.abs(prediction) * around(0.01, 0.001, 4), prediction=prediction)
    found = sole(assess(Equality(0.02, relative=True), frame, SEED))
    assert found.outcome == "supported"
    assert found.estimate == pytest.approx(0.01)
    frame.loc[2, "prediction"] = 0.0
    undefined = sole(assess(Equality(0.02, relative=True), frame, SEED))
    assert undefined.outcome == "inconclusive"
    assert "1 of 4 rows predict 0" in undefined.reason


def test_bound_per_row() -> None:
    limit = np.array([1.0, 5.0, 9.0, 13.0])
    frame = one_row_per_seed(limit + around(-1.0, n=4), limit=limit)
    assert sole(assess(Bound(upper=0), frame, SEED)).outcome == "supported"
    assert sole(assess(Bound(lower=0), frame, SEED)).outcome == "refuted"
    assert sole(assess(Bound(upper=0), frame, SEED)).estimate == pytest.approx(-1.0)


# Exact statements


def test_identity_holds_for_every_row_or_not_at_all() -> None:
    value = np.array([0.0, 3e-12, -8e-12, 1e-13])
    frame = pd.DataFrame({"seed": 0, "value": value})
    found = sole(assess(Equality(1e-11, every_row=True), frame, SEED))  # one seed is enough for an identity
    assert found.outcome == "supported"
    assert found.estimate == found.low == found.high == -8e-12
    assert sole(assess(Equality(1e-12, every_row=True), frame, SEED)).outcome == "refuted"
    integers = pd.DataFrame({"seed": 0, "value": [12, 20], "prediction": [12, 20]})
    assert sole(assess(Equality(0, every_row=True), integers, SEED)).outcome == "supported"


def test_one_row_beyond_the_bound_refutes_it() -> None:
    value = np.zeros(1000)
    value[17] = 1.5
    frame = pd.DataFrame({"seed": np.arange(1000) % 8, "value": value})
    assert sole(assess(Bound(upper=1.0), frame, SEED)).outcome == "supported"
    found = sole(assess(Bound(upper=1.0, every_row=True), frame, SEED))
    assert (found.outcome, found.estimate) == ("refuted", 1.5)
    assert found.reason == "largest value 1.5 is above 1"
    assert sole(assess(Bound(lower=0.0, every_row=True), frame, SEED)).outcome == "supported"
    assert sole(assess(Bound(lower=0.1, every_row=True), frame, SEED)).outcome == "refuted"


# Slopes


def test_slope_of_exact_power_laws() -> None:
    exponents = around(-0.5, 0.02)
    found = sole(assess(Slope(-0.5), power_law(exponents), SEED))
    half = stats.t.ppf(0.975, 7) * 0.02 / math.sqrt(8)
    assert found.outcome == "supported"
    assert (found.estimate, found.low, found.high) == pytest.approx((-0.5, -0.5 - half, -0.5 + half))
    assert found.method == "t interval over unit slopes"
    assert found.detail["local_slope"] == pytest.approx(-0.5)
    assert (found.detail["local_from"], found.detail["local_to"]) == (256, 512)


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        (Slope(-0.5, band=0.05), "supported"),
        (Slope(-0.4, band=0.10), "inconclusive"),
        (Slope(0.0), "refuted"),
        (Slope(-0.4, band=(INF, 0)), "supported"),
        (Slope(-0.5, band=(INF, 0)), "inconclusive"),
        (Slope(-0.6, band=(INF, 0)), "refuted"),
        (Slope(0.0, band=(0, INF)), "refuted"),
        (Slope(-0.6, band=(0, INF)), "supported"),
        (Slope(-0.5, band=(0.02, 0.2)), "supported"),
        (Slope(-0.5, band=(0.2, 0.0)), "inconclusive"),
    ],
)
def test_bands_of_a_slope(kind: Kind, outcome: str) -> None:
    assert assess(kind, power_law(around(-0.5, 0.02)), SEED).outcome == outcome


def test_slope_agrees_with_ordinary_regression_per_seed() -> None:
    frame = power_law(np.zeros(6), noise=1.0).sample(frac=0.8, random_state=0)  # unequal grids, rows in any order
    assert frame.groupby("seed").size().nunique() > 1
    slopes = [stats.linregress(np.log(part["x"]), np.log(part["value"])).slope for _, part in frame.groupby("seed")]
    found = sole(assess(Slope(0.0), frame, SEED))
    low, high = stats.t.interval(0.95, 5, np.mean(slopes), stats.sem(slopes))
    assert (found.estimate, found.low, found.high) == pytest.approx((np.mean(slopes), low, high))


def test_rows_at_one_x_are_averaged_before_the_logarithm() -> None:
    frame = power_law(around(-1.0, 0.02))
    low, high = frame.assign(value=frame["value"] * 0.1), frame.assign(value=frame["value"] * 1.9)
    assert sole(assess(Slope(-1.0), pd.concat([low, high]), SEED)).estimate == pytest.approx(-1.0)
    lopsided = pd.concat([frame, frame[frame["x"] == 64].assign(value=0.01)])  # a logarithm would weigh this heavily
    averaged = lopsided.groupby(["seed", "x"], as_index=False)["value"].mean()
    expected = sole(assess(Slope(-1.0), averaged, SEED))
    assert sole(assess(Slope(-1.0), lopsided, SEED)).estimate == pytest.approx(expected.estimate)


def test_linear_slope() -> None:
    frame = power_law(np.zeros(5)).assign(value=lambda f: 3 - 2 * f["x"] + f["seed"])
    found = sole(assess(Slope(-2.0, log=False), frame, SEED))
    assert (found.outcome, found.estimate) == ("supported", pytest.approx(-2.0))


def test_local_slope_shows_a_law_that_bends() -> None:
    x = np.array([64.0, 128.0, 256.0, 512.0])
    bent = pd.concat([pd.DataFrame({"seed": s, "x": x, "value": 1 / x + 1 / 512}) for s in range(5)])
    found = sole(assess(Slope(-1.0), bent, SEED))
    expected = math.log((1 / 512 + 1 / 512) / (1 / 256 + 1 / 512)) / math.log(2)
    assert found.detail["local_slope"] == pytest.approx(expected)


def test_independent_replicates_get_a_cluster_robust_interval() -> None:
    rng = np.random.default_rng(3)
    x = np.repeat([64.0, 128.0, 256.0, 512.0], 10)
    frame = pd.DataFrame({"seed": np.arange(40), "x": x, "value": x**-0.5 * np.exp(0.05 * rng.normal(size=40))})
    found = sole(assess(Slope(-0.5), frame, SEED))
    assert (found.outcome, found.n) == ("supported", 40)
    assert "CR2" in found.method
    assert found.estimate == pytest.approx(stats.linregress(np.log(x), np.log(frame["value"])).slope)


@pytest.mark.parametrize("sizes", [(1,) * 12, (1, 1, 4, 3, 1, 5), (3, 3, 3)])
def test_pooled_slope_agrees_with_the_full_matrices(sizes: tuple[int, ...]) -> None:
    """CR2 and Bell-McCaffrey written out with N×N matrices, as in the papers."""
    rng = np.random.default_rng(sum(sizes))
    unit = np.repeat(np.arange(len(sizes)), sizes)
    x, y = rng.normal(size=len(unit)), rng.normal(size=len(unit))
    X = np.column_stack([np.ones_like(x), x])
    bread = np.linalg.inv(X.T @ X)
    annihilator = np.eye(len(x)) - X @ bread @ X.T
    residual = annihilator @ y
    variance, columns = 0.0, []
    for s in range(len(sizes)):
        mine = unit == s
        size, axes = np.linalg.eigh(annihilator[np.ix_(mine, mine)])
        adjust = (axes / np.sqrt(size)) @ axes.T
        weight = adjust @ X[mine] @ bread[1]
        variance += (weight @ residual[mine]) ** 2
        columns.append(annihilator[:, mine] @ weight)
    covariance = np.array(columns) @ np.array(columns).T
    dof = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    slope, interval, found = pooled_slope(unit, x, y)
    half = stats.t.ppf(0.975, dof) * math.sqrt(variance)
    assert slope == pytest.approx(np.polyfit(x, y, 1)[0])
    assert found == pytest.approx(dof)
    assert interval(0.95) == pytest.approx((slope - half, slope + half))


def test_predicted_slope_per_case() -> None:
    parts = [
        power_law(around(exponent, 0.02)).assign(spec=spec, prediction=exponent)
        for spec, exponent in (("NTP", -0.5), ("μP", 0.0))
    ]
    found = assess(Slope(), pd.concat(parts), SEED, ("spec",))
    assert found.outcome == "supported"
    assert [(case.case, case.prediction) for case in found.cases] == [("spec=NTP", -0.5), ("spec=μP", 0.0)]
    with pytest.raises(ValueError, match=r"'prediction' must be constant within a case; it runs from -0.5 to 0"):
        assess(Slope(), pd.concat(parts), SEED)
    with pytest.raises(ValueError, match=r"no prediction: give one, or a column 'prediction'"):
        assess(Slope(), parts[0].drop(columns="prediction"), SEED)


def test_the_estimator_refutes_a_wrong_exponent_and_admits_ignorance() -> None:
    near = power_law(np.full(8, -0.4), noise=0.05)
    assert assess(Slope(-0.5, band=0.05), near, SEED).outcome == "refuted"
    assert assess(Slope(-0.4, band=0.05), near, SEED).outcome == "supported"
    assert assess(Slope(-0.5, band=0.05), power_law(np.full(3, -0.4), noise=2.0), SEED).outcome == "inconclusive"


# Trends and shares


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        (Trend("increasing"), "supported"),
        (Trend("increasing", at_least=0.8), "supported"),
        (Trend("decreasing"), "refuted"),
        (Trend("decreasing", at_least=0.8), "refuted"),
    ],
)
def test_monotone_trend(kind: Kind, outcome: str) -> None:
    found = sole(assess(kind, power_law(np.full(8, 0.3)), SEED))
    assert found.outcome == outcome
    assert found.estimate == 1.0
    assert found.low < 1.0  # eight perfect seeds do not make a certainty


def test_a_trend_that_changes_sign_between_seeds_is_none() -> None:
    assert assess(Trend("increasing"), power_law([0.3, -0.3] * 4), SEED).outcome == "inconclusive"
    found = sole(assess(Trend("increasing", at_least=0.9), power_law([0.3, -0.3] * 4), SEED))
    assert (found.outcome, found.estimate) == ("refuted", 0.0)


def test_tau_within_the_unit_not_across() -> None:
    falling = power_law(np.full(6, -0.3), widths=(64, 128))  # each seed falls, though later seeds are larger
    drifting = falling.assign(x=falling["x"] + 1000 * falling["seed"])
    assert stats.kendalltau(drifting["x"], drifting["value"]).statistic > 0.5
    assert sole(assess(Trend("decreasing"), drifting, SEED)).estimate == -1.0


@pytest.mark.parametrize("n", [2, 3, 9, 256, 257, 1000])
def test_tau_b_agrees_with_scipy(n: int) -> None:
    y = np.random.default_rng(n).integers(0, n // 2 + 1, size=n).astype(float)
    assert kendall_tau(y) == pytest.approx(stats.kendalltau(np.arange(n), y).statistic)


def test_constant_values_are_no_trend() -> None:
    frame = power_law(np.zeros(5)).assign(value=1.0)
    assert sole(assess(Trend("increasing", at_least=0.9), frame, SEED)).estimate == 0.0


@pytest.mark.parametrize(
    ("kind", "hits", "outcome"),
    [
        (Proportion(at_least=0.5), 19, "supported"),
        (Proportion(at_least=0.9), 17, "inconclusive"),
        (Proportion(at_least=0.9), 5, "refuted"),
        (Proportion(at_most=0.2), 0, "supported"),
        (Proportion(at_most=0.2), 2, "inconclusive"),
        (Proportion(at_most=0.2), 12, "refuted"),
    ],
)
def test_proportion_is_wilsons(kind: Kind, hits: int, outcome: str) -> None:
    found = sole(assess(kind, one_row_per_seed(np.arange(20) < hits), SEED))
    wilson = stats.binomtest(hits, 20).proportion_ci(method="wilson")
    assert found.outcome == outcome
    assert (found.estimate, found.low, found.high) == pytest.approx((hits / 20, wilson.low, wilson.high))


@pytest.mark.parametrize(
    ("true", "unclear", "outcome"),
    [(20, 0, "supported"), (16, 4, "supported"), (10, 10, "inconclusive"), (0, 20, "inconclusive"), (0, 3, "refuted")],
)
def test_unclear_rows_count_against_the_claim_and_for_it(true: int, unclear: int, outcome: str) -> None:
    rows = one_row_per_seed(np.arange(20) < true, unclear=(np.arange(20) >= true) & (np.arange(20) < true + unclear))
    found = sole(assess(Proportion(at_least=0.5), rows, SEED))
    assert found.outcome == outcome
    ends = [stats.binomtest(hits, 20).proportion_ci(method="wilson") for hits in (true, true + unclear)]
    assert (found.low, found.high) == pytest.approx((ends[0].low, ends[1].high))
    assert found.estimate == pytest.approx((2 * true + unclear) / 40)
    # What an unclear row holds does not matter, also where the claim is "at most".
    other = sole(assess(Proportion(at_most=0.5), rows.assign(value=rows["value"] | rows["unclear"]), SEED))
    assert (other.low, other.high) == pytest.approx((found.low, found.high))


def test_clustered_proportion_counts_units_not_rows() -> None:
    hits = np.arange(10) < 7
    single = sole(assess(Proportion(at_least=0.3), one_row_per_seed(hits), SEED))
    copied = pd.concat([one_row_per_seed(hits)] * 50)
    found = sole(assess(Proportion(at_least=0.3), copied, SEED))
    assert (found.low, found.high) == pytest.approx((single.low, single.high))
    all_rows = sole(assess(Proportion(at_least=0.3), copied.assign(seed=np.arange(500)), SEED))
    spread = pd.DataFrame({"seed": np.arange(500) % 10, "value": np.arange(500) // 10 % 10 < 7})  # 70 % in every seed
    assert (all_rows.low, all_rows.high) == pytest.approx(
        (lambda case: (case.low, case.high))(sole(assess(Proportion(at_least=0.3), spread, SEED)))
    )
