"""Rows that diverged or cannot be used, data that is wrong, and declarations that make no sense."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from assay.verdict import (
    Assessment,
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
from tests.platform.planted import INF, NAN, SEED, around, one_row_per_seed, power_law, sole

# What diverged, and what cannot be judged


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "kind",
    [
        Bound(upper=9),
        Bound(lower=-9),
        Bound(upper=9, every_row=True),
        Ordering("less"),
        Ordering("greater"),
        NonInferiority(9),
    ],
)
def test_a_diverged_row_is_the_worst_for_the_claim(kind: Kind, bad: float) -> None:
    value, reference = around(0.0), np.zeros(8)
    if isinstance(kind, Ordering):
        value += -5 if kind.direction == "less" else 5
    assert assess(kind, one_row_per_seed(value, reference=reference), SEED).outcome == "supported"
    value[3] = bad
    found = sole(assess(kind, one_row_per_seed(value, reference=reference), SEED))
    assert (found.outcome, found.diverged, found.rows) == ("refuted", 1, 8)
    assert found.reason == "1 of 8 rows diverged, which counts as the worst for the claim"


@pytest.mark.parametrize("kind", [Equality(9.0), Slope(-0.5), Slope(-0.5, log=False, band=9.0), Trend("decreasing")])
def test_a_diverged_row_leaves_a_two_sided_claim_open(kind: Kind) -> None:
    frame = power_law(np.full(8, -0.5)).assign(value=lambda f: f["value"] / np.exp(f["seed"]))
    assert assess(kind, frame, SEED).outcome == "supported"
    frame.loc[[3, 7], "value"] = NAN
    found = sole(assess(kind, frame, SEED))
    assert (found.outcome, found.diverged) == ("inconclusive", 2)
    assert found.reason == "2 of 32 rows diverged"
    assert math.isnan(found.low)


def test_a_broken_identity_is_refuted_even_beside_diverged_rows() -> None:
    kind = Equality(1e-9, every_row=True)
    assert assess(kind, one_row_per_seed([0.0, NAN]), SEED).outcome == "inconclusive"
    assert assess(kind, one_row_per_seed([1.0, NAN]), SEED).outcome == "refuted"


@pytest.mark.parametrize("kind", [Ordering("less"), Ordering("greater"), NonInferiority(1.0)])
def test_a_diverged_reference_decides_nothing(kind: Kind) -> None:
    frame = one_row_per_seed(around(0.0), reference=[0.0] * 7 + [INF])
    found = sole(assess(kind, frame, SEED))
    assert (found.outcome, found.diverged) == ("inconclusive", 1)
    assert found.reason == "1 of 8 rows have no finite reference"


def test_a_diverged_row_is_a_failure() -> None:
    frame = one_row_per_seed([1.0] * 15 + [NAN] * 5)
    low = sole(assess(Proportion(at_least=0.5), frame, SEED))
    high = sole(assess(Proportion(at_most=0.5), frame, SEED))
    assert (low.estimate, low.diverged) == (0.75, 5)
    assert (high.estimate, high.diverged) == (1.0, 5)


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        (Slope(-0.5), {"value": 0.0}, "1 of 32 rows have zero or negative value: no logarithm"),
        (Slope(-0.5), {"value": -1.0}, "1 of 32 rows have zero or negative value: no logarithm"),
        (Slope(-0.5), {"x": 0.0}, "1 of 32 rows have zero or negative x: no logarithm"),
        (Slope(-0.5), {"x": NAN}, "1 of 32 rows have no finite x"),
        (Slope(), {"prediction": NAN}, "the prediction is not a finite number"),
        (Ordering("less", log=True), {"value": 0.0}, "1 of 32 rows have zero or negative value: no logarithm"),
        (Ordering("less", log=True), {"reference": -1.0}, "1 of 32 rows have zero or negative reference: no logarithm"),
        (Equality(9.0), {"prediction": INF}, "1 of 32 rows have no finite prediction"),
        (Bound(upper=9.0), {"limit": NAN}, "1 of 32 rows have no finite limit"),
        (Bound(upper=9.0, every_row=True), {"limit": NAN}, "1 of 32 rows have no finite limit"),
        (Trend("decreasing"), {"x": INF}, "1 of 32 rows have no finite x"),
    ],
)  # fmt: skip
def test_unusable_rows_leave_the_case_open(kind: Kind, change: dict[str, float], reason: str) -> None:
    frame = power_law(np.full(8, -0.5)).assign(value=lambda f: f["value"] / np.exp(f["seed"]))
    frame = frame.assign(prediction=-0.5, reference=1.0, limit=1.0)
    assert assess(kind, frame, SEED).outcome == "supported"
    for column, value in change.items():
        frame.loc[5, column] = value
    assert (lambda found: (found.outcome, found.reason))(sole(assess(kind, frame, SEED))) == ("inconclusive", reason)


@pytest.mark.parametrize(
    "kind",
    [Equality(9.0), Bound(upper=9.0), Ordering("less"), Slope(-0.5), Trend("decreasing"), Proportion(at_least=0.1)],
)
@pytest.mark.parametrize(("seeds", "reason"), [(1, "only 1 independent unit"), (2, "only 2 independent units")])
def test_too_few_units(kind: Kind, seeds: int, reason: str) -> None:
    frame = power_law(np.full(seeds, -0.5)).assign(reference=99.0)
    if isinstance(kind, Proportion):
        frame["value"] = 1.0
    found = assess(kind, frame, SEED)
    assert (found.outcome, found.reason) == ("inconclusive", reason)


def test_one_x_gives_no_slope_and_no_trend() -> None:
    frame = power_law(np.zeros(5), widths=(64,))
    assert "a slope needs two values of x" in assess(Slope(0.0), frame, SEED).reason
    assert assess(Trend("increasing"), frame, SEED).reason == "5 of 5 units have a single x: they show no trend"


def test_no_rows() -> None:
    assert assess(Slope(0.0), pd.DataFrame(), SEED) == Assessment("inconclusive", "no rows")


@pytest.mark.parametrize(
    ("kind", "frame", "message"),
    [
        (Slope(0), one_row_per_seed([1.0]), r"'x' is missing: this slope claim needs x, value, seed; the frame has seed"),
        (Ordering("less"), one_row_per_seed([1.0]), r"column 'reference' is missing"),
        (Equality(1.0), pd.DataFrame({"value": [1.0]}), r"column 'seed' is missing"),
        (Equality(1.0), one_row_per_seed(["1.0"]), r"column 'value' must hold numbers; found '1.0'"),
        (Equality(1.0), one_row_per_seed([[1.0, 2.0]]), r"column 'value' must hold numbers"),
        (Equality(1.0), one_row_per_seed(pd.to_datetime(["2020-01-01"])), r"must hold numbers; found datetime64"),
        (Proportion(at_least=0.5), one_row_per_seed([0.3]), r"column 'value' must hold 0, 1, true or false; found 0.3"),
    ],
)  # fmt: skip
def test_wrong_data_is_named(kind: Kind, frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assess(kind, frame, SEED)


def test_a_claim_without_units_is_refused() -> None:
    with pytest.raises(ValueError, match="name at least one unit column"):
        assess(Bound(upper=1), one_row_per_seed([1.0]), ())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Equality(-1), "Equality: tolerance must not be negative; got -1"),
        (lambda: Equality(NAN), "Equality: tolerance must be a finite number; got nan"),
        (lambda: Equality("0.1"), "Equality: tolerance must be a finite number; got '0.1'"),  # type: ignore[arg-type]
        (lambda: Equality(0), "tolerance 0 can hold for every row only"),
        (lambda: Equality(0.1, prediction=INF), "Equality: prediction must be a finite number; got inf"),
        (lambda: Equality(0.1, prediction=0, relative=True), "needs a prediction other than 0"),
        (lambda: Slope(NAN), "Slope: prediction must be a finite number; got nan"),
        (lambda: Slope(0, band=-0.1), "band must be a number or"),
        (lambda: Slope(0, band=(0.1, 0.1, 0.1)), "band must be a number or"),  # type: ignore[arg-type]
        (lambda: Slope(0, band=0), "band 0 leaves nothing to test"),
        (lambda: Slope(0, band=(INF, INF)), "leaves nothing to test"),
        (lambda: Bound(), "Bound: give exactly one of upper and lower; got 0"),
        (lambda: Bound(upper=1, lower=0), "Bound: give exactly one of upper and lower; got 2"),
        (lambda: Bound(upper=INF), "Bound: upper must be a finite number; got inf"),
        (lambda: Ordering("fewer"), "Ordering: direction must be 'less' or 'greater'; got 'fewer'"),  # type: ignore[arg-type]
        (lambda: Ordering("less", margin=-1), "Ordering: margin must not be negative; got -1"),
        (lambda: NonInferiority(-0.1), "NonInferiority: margin must not be negative; got -0.1"),
        (lambda: Trend("up"), "Trend: direction must be 'increasing' or 'decreasing'; got 'up'"),  # type: ignore[arg-type]
        (lambda: Trend("increasing", at_least=1), "Trend: at_least must be below 1"),
        (lambda: Proportion(), "Proportion: give exactly one of at_least and at_most; got 0"),
        (lambda: Proportion(at_least=1.1), "Proportion: at_least must lie between 0 and 1; got 1.1"),
        (lambda: Proportion(at_most=True), "Proportion: at_most must lie between 0 and 1; got True"),
    ],
)
def test_a_kind_that_makes_no_sense_is_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_columns_of_any_numeric_type() -> None:
    values = np.array([0, 1, 1, 1, 0, 1, 1, 1])
    plain = sole(assess(Proportion(at_least=0.2), one_row_per_seed(values), SEED))
    for column in (values.astype(bool), pd.array(values, dtype="boolean"), pd.array(values, dtype="Int64"),
                   values.astype(np.float32), values.astype(object)):  # fmt: skip
        assert sole(assess(Proportion(at_least=0.2), one_row_per_seed(column), SEED)) == plain
    missing = one_row_per_seed(pd.array([True, None, True, True], dtype="boolean"))
    assert sole(assess(Proportion(at_least=0.2), missing, SEED)).diverged == 1


def test_missing_labels_and_indexes_lose_no_row() -> None:
    frame = one_row_per_seed(around(0.0)).assign(case=pd.Categorical(["a"] * 8, categories=["a", "b"]))
    frame.loc[0, "seed"] = NAN
    frame.loc[0, "case"] = NAN
    found = assess(Equality(1.0), frame.set_index("seed", drop=False), SEED, ("case",))
    assert [case.rows for case in found.cases] == [1, 7]
    assert found.cases[0].case == "case=nan"


def test_order_of_rows_changes_nothing() -> None:
    frame = power_law(around(-0.5, 0.05), noise=0.1)
    shuffled = frame.sample(frac=1.0, random_state=1)
    for kind in (Slope(-0.5), Trend("decreasing"), Bound(upper=1e9)):
        one, other = sole(assess(kind, frame, SEED)), sole(assess(kind, shuffled, SEED))
        assert (one.estimate, one.low, one.high) == pytest.approx((other.estimate, other.low, other.high), rel=1e-12)
