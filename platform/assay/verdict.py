"""From estimates to verdicts: decision by interval against a region, over cases, with controls and gates.

A case is supported when its 95 % interval lies inside the claim's region, refuted when it lies outside, and otherwise
undecided. A claim over several cases is supported when every case is (intersection-union: no correction needed), and
refuted when some case is at the Bonferroni level of all its cases, so that a true claim is falsely refuted at most one
time in twenty however many cases it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from assay.estimate import Fit, fit
from assay.intervals import Floats, Ints
from assay.kinds import Bound, Equality, Kind, NonInferiority, Ordering, Proportion, Slope, Trend

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Assessment", "Bound", "ControlCase", "ControlResult", "Equality", "Estimate", "GateCase", "GateResult", "Kind",
    "NonInferiority", "Ordering", "Proportion", "Slope", "Trend", "Verdict", "assess", "judge",
]  # fmt: skip

LEVEL = 0.95

Outcome = Literal["supported", "refuted", "inconclusive"]


@dataclass(frozen=True)
class Estimate:
    """What the table says in one case of a claim.

    `low` and `high` end the two-sided 95 % interval (NaN where there is none); `n` counts independent units, `rows` and
    `diverged` rows. `prediction` is what theory says the estimate is, or the bound it must keep to.
    """

    case: str
    prediction: float
    estimate: float
    low: float
    high: float
    n: int
    rows: int
    diverged: int
    outcome: Outcome
    reason: str
    method: str
    detail: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Assessment:
    """What the data says of one claim, control or gate: the outcome, the case that decided it, and all cases."""

    outcome: Outcome
    reason: str
    estimate: Estimate | None = None
    cases: tuple[Estimate, ...] = ()


@dataclass(frozen=True)
class ControlCase:
    """A control to be judged by the claim's unit and cases; see `assay.study.Control`."""

    name: str
    why: str
    kind: Kind
    frame: pd.DataFrame
    trivial: bool = False


@dataclass(frozen=True)
class GateCase:
    """A gate to be judged; see `assay.study.Gate`."""

    name: str
    kind: Kind
    unit: tuple[str, ...]
    cases: tuple[str, ...]
    frame: pd.DataFrame


@dataclass(frozen=True)
class ControlResult:
    """A control and what became of it."""

    name: str
    why: str
    trivial: bool
    assessment: Assessment


@dataclass(frozen=True)
class GateResult:
    """A gate and what became of it."""

    name: str
    assessment: Assessment


@dataclass(frozen=True)
class Verdict:
    """The last word on a claim; `void` means that its data cannot decide it, for the reason given."""

    claim: str
    outcome: Literal["supported", "refuted", "inconclusive", "void"]
    reason: str
    assessment: Assessment | None = None
    controls: tuple[ControlResult, ...] = ()
    gates: tuple[GateResult, ...] = ()

    @classmethod
    def unmeasured(cls, claim: str, reason: str) -> Verdict:
        """The verdict on a claim whose data is not there: inconclusive."""
        return cls(claim, "inconclusive", reason)


def assess(kind: Kind, frame: pd.DataFrame, unit: Sequence[str], cases: Sequence[str] = ()) -> Assessment:
    """Judge one claim on its data, without controls or gates.

    `unit` names the columns that identify a sampling unit, `cases` those whose combinations are judged separately.
    ValueError if a column is missing or not numeric, or contradicts the kind.
    """
    if not len(frame):
        return Assessment("inconclusive", "no rows")
    if not unit:
        raise ValueError("name at least one unit column: without a sampling unit no row is known to be independent")
    needed = tuple(dict.fromkeys((*kind.required, *unit, *cases)))
    for column in needed:
        if column not in frame:
            raise ValueError(
                f"column {column!r} is missing: this {kind.name} claim needs {', '.join(needed)}; "
                f"the frame has {', '.join(map(str, frame.columns)) or 'none'}"
            )
    data = {name: _numbers(frame, name) for name in (*kind.required, *kind.optional) if name in frame}
    units, _ = _codes(frame, unit)
    where, first = _codes(frame, cases)
    order = np.argsort(where, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(where))[:-1])
    slack: list[float] = []
    estimates: list[Estimate] = []
    for rows, row in zip(parts, first, strict=True):
        label = ", ".join(f"{name}={_show(frame[name].iloc[row])}" for name in cases)
        _, own = np.unique(units[rows], return_inverse=True)
        case = {name: column[rows] for name, column in data.items()}
        fitted = fit(kind, case, own)
        estimates.append(_estimate(fitted, case, own, label, len(parts)))
        slack.append(_slack(fitted, estimates[-1]))
    return _combine(estimates, slack)


def judge(
    claim: str,
    kind: Kind,
    unit: Sequence[str],
    cases: Sequence[str],
    frame: pd.DataFrame,
    *,
    controls: Sequence[ControlCase] = (),
    gates: Sequence[GateCase] = (),
    planned: int = 0,
    failed: int = 0,
    pending: int = 0,
) -> Verdict:
    """Judge a claim: first its gates, then its controls, then the claim itself.

    `planned` cells lie behind the data, of which `failed` raised an error and `pending` have not run. While some are
    lacking a claim cannot be supported, and a gate or control they leave open voids nothing; a refutation stands.
    ValueError as in `assess`, naming the claim and the gate or control.
    """
    with _naming(f"claim {claim}"):
        assessment = assess(kind, frame, unit, cases)
    gated, tried = [], []
    for gate in gates:
        with _naming(f"claim {claim}, gate {gate.name!r}"):
            gated.append(GateResult(gate.name, assess(gate.kind, gate.frame, gate.unit, gate.cases)))
    for control in controls:
        with _naming(f"claim {claim}, control {control.name!r}"):
            found = assess(control.kind, control.frame, unit, cases)
        tried.append(ControlResult(control.name, control.why, control.trivial, found))
    lacking = _lacking(planned, failed, pending)

    def verdict(outcome: Literal["supported", "refuted", "inconclusive", "void"], reason: str) -> Verdict:
        return Verdict(claim, outcome, reason, assessment, tuple(tried), tuple(gated))

    obstacles = [
        (gate.assessment, f"assumption not met: {gate.name}: {gate.assessment.reason}")
        for gate in gated
        if gate.assessment.outcome != "supported"
    ] + [
        (
            control.assessment,
            f"passing would mean nothing: trivial control {control.name} is supported too: {control.assessment.reason}"
            if control.trivial
            else f"control {control.name} was not refuted: {control.assessment.reason}",
        )
        for control in tried
        if (control.assessment.outcome == "supported" if control.trivial else control.assessment.outcome != "refuted")
    ]
    final = [reason for obstacle, reason in obstacles if not lacking or obstacle.outcome != "inconclusive"]
    if final:
        return verdict("void", final[0])
    if obstacles:
        return verdict("inconclusive", f"{lacking}; {obstacles[0][1]}")
    if lacking and assessment.outcome == "supported":
        return verdict("inconclusive", f"{lacking}; what there is supports the claim: {assessment.reason}")
    return verdict(assessment.outcome, f"{assessment.reason} ({lacking})" if lacking else assessment.reason)


def _estimate(fitted: Fit, case: Mapping[str, Floats], unit: Ints, label: str, cases: int) -> Estimate:
    """Decide one of a claim's cases."""
    low, high = math.nan, math.nan
    if fitted.interval and not fitted.problem:
        low, high = fitted.interval(LEVEL)
    units, rows = int(unit.max()) + 1, len(unit)
    bad = ~np.isfinite(case["value"])
    diverged = int(np.sum(bad | ~np.isfinite(case.get("reference", np.zeros(rows)))))
    outcome, finding = _decide(fitted, low, high, cases)
    if fitted.problem:
        reason = fitted.problem
    elif math.isinf(fitted.estimate):
        reason = f"{np.sum(bad)} of {rows} rows diverged, which counts as the worst for the claim"
    elif fitted.method == "every row":
        reason = f"{fitted.quantity} {fitted.estimate:.3g} {finding}"
    else:
        interval = f"95 % interval {low:.3g} to {high:.3g}, {units} units"
        reason = f"{fitted.quantity} {fitted.estimate:.3g} ({interval}) {finding}"
    return Estimate(
        label,
        fitted.prediction,
        fitted.estimate + fitted.offset,
        low + fitted.offset,
        high + fitted.offset,
        units,
        rows,
        diverged,
        outcome,
        reason,
        fitted.method,
        fitted.detail,
    )


def _decide(fitted: Fit, low: float, high: float, cases: int) -> tuple[Outcome, str]:
    """Compare a case's interval with the claim's region: what follows, and how to say it."""
    floor, ceiling = fitted.region
    if math.isinf(floor):
        region, beyond, allowed = f"{ceiling:.3g}", "above", "at most"
    elif math.isinf(ceiling):
        region, beyond, allowed = f"{floor:.3g}", "below", "at least"
    else:
        region, beyond, allowed = f"[{floor:.3g}, {ceiling:.3g}]", "outside", "inside"
    if floor <= low and high <= ceiling:
        return "supported", f"is {allowed} {region}"
    if (low > ceiling or high < floor) and fitted.interval:
        level = 1 - (1 - LEVEL) / cases
        low, high = (fitted.exact or fitted.interval)(level)
        if low > ceiling or high < floor:
            return "refuted", f"is {beyond} {region}"
        needed = (
            f"at the {100 * level:.3g} % level that {cases} cases call for" if cases > 1 else "by an exact interval"
        )
        return "inconclusive", f"is {beyond} {region}, but not {needed}"
    return "inconclusive", f"reaches {beyond} {region}"


def _slack(fitted: Fit, estimate: Estimate) -> float:
    """How far inside its region a case's interval lies, in widths of the region where it has one; -inf if unknown."""
    floor, ceiling = fitted.region
    low, high = estimate.low - fitted.offset, estimate.high - fitted.offset
    if math.isnan(low) or math.isnan(high):
        return -math.inf
    # A refuted case is the clearer the farther its near end lies outside; any other is measured by its far end.
    inside, outside = min(low - floor, ceiling - high), max(floor - high, low - ceiling)
    distance = -outside if estimate.outcome == "refuted" else inside
    width = ceiling - floor
    return distance / width if 0 < width < math.inf else distance


def _combine(estimates: list[Estimate], slack: list[float]) -> Assessment:
    """Put the cases of a claim together; the case with the least slack among those that matter decides."""
    outcomes = [estimate.outcome for estimate in estimates]
    outcome: Outcome = next((one for one in ("refuted", "inconclusive") if one in outcomes), "supported")
    index = min((i for i, one in enumerate(outcomes) if one == outcome), key=lambda i: slack[i])
    deciding, count = estimates[index], len(estimates)
    if count == 1:
        reason = f"{deciding.case}: {deciding.reason}" if deciding.case else deciding.reason
    else:
        word = {"supported": "nearest the edge", "refuted": "most clearly", "inconclusive": "least decided"}[outcome]
        many = {"inconclusive": "undecided"}.get(outcome, outcome)
        reason = f"{outcomes.count(outcome)} of {count} cases {many}; {word}: {deciding.case}: {deciding.reason}"
    return Assessment(outcome, reason, deciding, tuple(estimates))


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Say whose data a ValueError is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _lacking(planned: int, failed: int, pending: int) -> str:
    parts = [f"{failed} of {planned} cells failed"] if failed else []
    if pending:
        parts.append(f"{pending} not run" if failed else f"{pending} of {planned} cells not run")
    return ", ".join(parts)


def _numbers(frame: pd.DataFrame, name: str) -> Floats:
    """A column as float64, missing entries as NaN; ValueError if it holds anything but numbers."""
    column = frame[name]
    culprit: object = column.dtype
    if column.dtype.kind == "O":
        culprit = next((repr(value) for value in column if isinstance(value, str | bytes)), "")
    if not culprit or column.dtype.kind in "biuf":
        try:
            return column.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
        except (TypeError, ValueError) as error:
            culprit = error
    raise ValueError(f"column {name!r} must hold numbers; found {culprit}")


def _codes(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[Ints, Ints]:
    """Number the combinations of some columns in order of appearance; also the first row of each."""
    if not columns:
        return np.zeros(len(frame), dtype=np.intp), np.zeros(1, dtype=np.intp)
    groups = frame.reset_index(drop=True).groupby(list(columns), sort=False, dropna=False, observed=True)
    codes: Ints = np.asarray(groups.ngroup(), dtype=np.intp)
    _, first = np.unique(codes, return_index=True)
    return codes, first.astype(np.intp)


def _show(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
