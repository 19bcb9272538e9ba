"""What the rows of one case say about a claim: an estimate and its confidence interval, for each kind.

Rows that diverged are never dropped. Where a claim has a worst value (`Bound`, `Ordering`, `NonInferiority`,
`Proportion`) they take it; where it has none they leave the case undecided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from assay.intervals import (
    Floats,
    Interval,
    Ints,
    kendall_tau,
    point,
    pooled_slope,
    share_intervals,
    student,
    unit_means,
    unit_slopes,
)
from assay.kinds import Bound, Equality, Kind, NonInferiority, Ordering, Proportion, Slope, Trend

MIN_UNITS = 3


@dataclass(frozen=True)
class Fit:
    """An estimate, the interval it has at any confidence level, and the region its claim allows.

    `exact` is a wider interval that must lie outside the region too for a refutation. `offset` is added to the numbers
    shown: the fit of a difference from a constant prediction is shown on the scale of the value. A `problem` says why
    there is no interval; the case is then undecided whatever the estimate.
    """

    quantity: str
    estimate: float
    region: tuple[float, float]
    prediction: float
    method: str
    interval: Interval | None = None
    exact: Interval | None = None
    problem: str = ""
    offset: float = 0.0
    detail: dict[str, float] = field(default_factory=dict)


def fit(kind: Kind, data: Mapping[str, Floats], unit: Ints) -> Fit:
    """Estimate what a claim of this kind is about from the rows of one case, each column one array.

    `unit` numbers each row's sampling unit from 0. ValueError where the data contradicts the kind's declaration.
    """
    # Values near the largest float overflow to inf: the interval is then infinite and decides nothing.
    with np.errstate(over="ignore", invalid="ignore"):
        match kind:
            case Equality():
                return _equality(kind, data, unit)
            case Bound():
                return _bound(kind, data, unit)
            case Ordering() | NonInferiority():
                return _paired(kind, data, unit)
            case Slope():
                return _slope(kind, data, unit)
            case Trend():
                return _trend(kind, data, unit)
            case Proportion():
                return _proportion(kind, data, unit)


def _equality(kind: Equality, data: Mapping[str, Floats], unit: Ints) -> Fit:
    value = data["value"]
    prediction = np.full_like(value, kind.prediction or 0.0)
    if kind.prediction is None and "prediction" in data:
        prediction = data["prediction"]
    problem = _unusable("prediction", prediction) or _diverged(value)
    if kind.relative and not problem and not prediction.all():
        problem = f"{np.sum(prediction == 0)} of {len(value)} rows predict 0: a relative difference is undefined"
    with np.errstate(divide="ignore"):
        difference = (value - prediction) / (np.abs(prediction) if kind.relative else 1.0)
    difference[~np.isfinite(difference)] = math.nan
    region = (-kind.tolerance, kind.tolerance)
    word = "relative difference from the prediction" if kind.relative else "difference from the prediction"
    if kind.every_row:
        return _every_row(f"largest {word}", difference, np.abs(difference), region, 0.0, problem)
    constant = bool(np.ptp(prediction) == 0) and not kind.relative
    shown_from = float(prediction[0]) if constant else 0.0
    return _mean(f"mean {word}", difference, unit, region, shown_from, problem, offset=shown_from)


def _bound(kind: Bound, data: Mapping[str, Floats], unit: Ints) -> Fit:
    value, limit = data["value"], data.get("limit", np.zeros(len(unit)))
    problem = _unusable("limit", limit)
    word = "value - limit" if "limit" in data else "value"
    below = kind.upper is not None
    edge = kind.region[1] if below else kind.region[0]
    excess = np.where(np.isfinite(value), value - limit, math.inf if below else -math.inf)
    excess[~np.isfinite(limit)] = math.nan
    if kind.every_row:
        name = f"{'largest' if below else 'smallest'} {word}"
        return _every_row(name, excess, excess if below else -excess, kind.region, edge, problem)
    return _mean(f"mean {word}", excess, unit, kind.region, edge, problem)


def _paired(kind: Ordering | NonInferiority, data: Mapping[str, Floats], unit: Ints) -> Fit:
    value, reference = data["value"], data["reference"]
    less = isinstance(kind, Ordering) and kind.direction == "less"
    log = isinstance(kind, Ordering) and kind.log
    edge = kind.margin if isinstance(kind, Ordering) and not less else -kind.margin
    finite, paired = np.isfinite(value), np.isfinite(reference)
    # A reference that diverged says nothing against the value: it leaves the comparison open and never decides it.
    problem = _unusable("reference", reference)
    if log:
        paired &= (reference > 0) & ((value > 0) | ~finite)
        problem = problem or _not_positive("value", value[finite]) or _not_positive("reference", reference)
    with np.errstate(divide="ignore"):
        difference = np.log(value) - np.log(reference) if log else value - reference
    difference[~finite] = math.inf if less else -math.inf
    difference[~paired] = math.nan
    word = "mean log(value / reference)" if log else "mean value - reference"
    return _mean(word, difference, unit, (-math.inf, edge) if less else (edge, math.inf), edge, problem)


def _mean(
    quantity: str,
    value: Floats,
    unit: Ints,
    region: tuple[float, float],
    prediction: float,
    problem: str,
    offset: float = 0.0,
) -> Fit:
    """Mean over units of the units' means, with a t interval.

    An infinite row stands for one that diverged and is worst for the claim: it decides alone. NaN rows are those the
    `problem` speaks of.
    """
    infinite = value[np.isinf(value)]
    if len(infinite):
        estimate, interval, problem = float(infinite[0]), point(float(infinite[0])), ""
    else:
        means = unit_means(value, unit)
        estimate, interval = float(means.mean()), student(means)
    problem = problem or _too_few(int(unit.max()) + 1)
    return Fit(
        quantity, estimate, region, prediction, "t interval over unit means", interval, problem=problem, offset=offset
    )


def _every_row(
    quantity: str, value: Floats, badness: Floats, region: tuple[float, float], prediction: float, problem: str
) -> Fit:
    """The worst row, exactly: one that breaks the claim refutes it, whatever became of the others."""
    known = ~np.isnan(badness)
    worst = float(value[known][np.argmax(badness[known])]) if known.any() else math.nan
    broken = worst < region[0] or worst > region[1]
    return Fit(quantity, worst, region, prediction, "every row", point(worst), problem="" if broken else problem)


def _slope(kind: Slope, data: Mapping[str, Floats], unit: Ints) -> Fit:
    x, value = data["x"], data["value"]
    prediction = _case_prediction(kind, data)
    below, above = kind.sides
    region = (prediction - below, prediction + above)
    problem = _unusable("x", x) or _diverged(value)
    if kind.log and not problem:
        problem = _not_positive("x", x) or _not_positive("value", value)
    if not problem and np.ptp(x) == 0:
        problem = f"all rows have x = {x[0]:.3g}: a slope needs two values of x"
    if math.isnan(prediction):
        problem = "the prediction is not a finite number"
    if problem:
        return Fit("slope", math.nan, region, prediction, "not fitted", problem=problem)
    who, x, value = _mean_at_x(unit, x, value)
    near, far = np.unique(x)[-2:]
    ends = x == near, x == far
    if kind.log:
        x, value = np.log(x), np.log(value)
    # whether a power law still holds at the end of the axis
    local = float((value[ends[1]].mean() - value[ends[0]].mean()) / (x[ends[1]][0] - x[ends[0]][0]))
    detail = {"local_slope": local, "local_from": float(near), "local_to": float(far)}
    units = int(who.max()) + 1
    if np.bincount(who).min() >= 2:
        slopes = unit_slopes(who, x, value)
        estimate, interval, method = float(slopes.mean()), student(slopes), "t interval over unit slopes"
    else:
        estimate, interval, detail["dof"] = pooled_slope(who, x, value)
        method = "pooled slope, cluster-robust (CR2) t interval"
    return Fit("slope", estimate, region, prediction, method, interval, problem=_too_few(units), detail=detail)


def _case_prediction(kind: Slope, data: Mapping[str, Floats]) -> float:
    """The predicted slope; NaN if the data gives none that is finite; ValueError if it gives two for one case."""
    if kind.prediction is not None:
        return kind.prediction
    if "prediction" not in data:
        raise ValueError("Slope: no prediction: give one, or a column 'prediction' that is constant within a case")
    column = data["prediction"]
    if not np.isfinite(column).all():
        return math.nan
    if np.ptp(column) > 1e-12 * max(1.0, abs(float(column[0]))):
        raise ValueError(
            f"Slope: column 'prediction' must be constant within a case; it runs from {column.min():.3g} to "
            f"{column.max():.3g}: name in `cases` what it depends on"
        )
    return float(column[0])


def _mean_at_x(unit: Ints, x: Floats, value: Floats) -> tuple[Ints, Floats, Floats]:
    """One row per unit and x: the mean of the values there (before any logarithm)."""
    grid, at = np.unique(x, return_inverse=True)
    keys, where = np.unique(unit * len(grid) + at, return_inverse=True)
    means = np.bincount(where, weights=value) / np.bincount(where)
    return keys // len(grid), grid[keys % len(grid)], means


def _trend(kind: Trend, data: Mapping[str, Floats], unit: Ints) -> Fit:
    edge = kind.at_least if kind.direction == "increasing" else -kind.at_least
    region = (edge, math.inf) if kind.direction == "increasing" else (-math.inf, edge)
    problem = _unusable("x", data["x"]) or _diverged(data["value"])
    method = "Wilson score interval over unit taus"
    if problem:
        return Fit("mean Kendall tau", math.nan, region, edge, method, problem=problem)
    who, _, value = _mean_at_x(unit, data["x"], data["value"])  # sorted by unit, then x
    runs = np.split(value, np.flatnonzero(np.diff(who)) + 1)
    alone = sum(len(run) < 2 for run in runs)
    if alone:
        problem = f"{alone} of {len(runs)} units have a single x: they show no trend"
        return Fit("mean Kendall tau", math.nan, region, edge, method, problem=problem)
    taus = np.array([kendall_tau(run) for run in runs])
    pairs = sum(len(run) * (len(run) - 1) // 2 for run in runs)
    mean, spread = float(taus.mean()), float(taus.var(ddof=1)) / len(taus) if len(taus) > 1 else math.nan

    # (1 + tau) / 2 is the share of pairs in order. Perfect order in every unit counts by pairs: disorder comes from noise,
    # one pair at a time.
    likely, exact = share_intervals((1 + mean) / 2, spread / 4, len(taus), pairs, at_end=pairs)
    problem = _too_few(len(taus))
    return Fit("mean Kendall tau", mean, region, edge, method, _as_tau(likely), _as_tau(exact), problem)


def _as_tau(share: Interval) -> Interval:
    def interval(level: float) -> tuple[float, float]:
        low, high = share(level)
        return 2 * low - 1, 2 * high - 1

    return interval


def _proportion(kind: Proportion, data: Mapping[str, Floats], unit: Ints) -> Fit:
    value = data["value"]
    finite = np.isfinite(value)
    odd = value[finite & (value != 0) & (value != 1)]
    if len(odd):
        raise ValueError(f"Proportion: column 'value' must hold 0, 1, true or false; found {odd[0]:.3g}")
    edge = kind.at_least if kind.at_least is not None else kind.at_most
    assert edge is not None  # Proportion's own check
    region = (edge, math.inf) if kind.at_least is not None else (-math.inf, edge)
    hits = np.where(finite, value, 0.0 if kind.at_least is not None else 1.0)  # diverged is worst for the claim
    method = "Wilson score interval"
    if not data.get("unclear", np.zeros(1)).any():
        share, likely, exact = _share(hits, unit)
    else:  # bounds: the share lies between what it is if all of these are false and if all are true
        unclear = data["unclear"] != 0
        fewest, low, low_exact = _share(np.where(unclear, 0.0, hits), unit)
        most, high, high_exact = _share(np.where(unclear, 1.0, hits), unit)
        share, likely, exact = (fewest + most) / 2, _hull(low, high), _hull(low_exact, high_exact)
        method = f"Wilson score intervals, {int(unclear.sum())} of {len(hits)} rows unclear"
    units = int(unit.max()) + 1
    method += "" if len(hits) == units else ", effective sample size over units"
    return Fit("share of rows", share, region, edge, method, likely, exact, _too_few(units))


def _share(hits: Floats, unit: Ints) -> tuple[float, Interval, Interval]:
    """Share of rows that are true, with its Wilson and its exact interval."""
    per_unit, rows_of = np.bincount(unit, weights=hits), np.bincount(unit)
    units, rows = len(rows_of), len(hits)
    share = float(hits.mean())
    scores = per_unit - share * rows_of  # linearised: the ratio's variance is that of the sum of these
    spread = units / (units - 1) * float(scores @ scores) / rows**2 if units > 1 else math.nan

    # All rows alike says nothing about how a unit's rows hang together, and a bad seed fails in all its rows.
    return share, *share_intervals(share, spread, units, rows, at_end=units)


def _hull(low: Interval, high: Interval) -> Interval:
    """From the lower end of one interval to the upper end of another."""
    return lambda level: (low(level)[0], high(level)[1])


def _too_few(units: int) -> str:
    return "" if units >= MIN_UNITS else f"only {units} independent unit{'s' if units > 1 else ''}"


def _diverged(value: Floats) -> str:
    bad = int(np.sum(~np.isfinite(value)))
    return f"{bad} of {len(value)} rows diverged" if bad else ""


def _unusable(column: str, values: Floats) -> str:
    bad = int(np.sum(~np.isfinite(values)))
    return f"{bad} of {len(values)} rows have no finite {column}" if bad else ""


def _not_positive(column: str, values: Floats) -> str:
    bad = int(np.sum(values <= 0))
    return f"{bad} of {len(values)} rows have zero or negative {column}: no logarithm" if bad else ""
