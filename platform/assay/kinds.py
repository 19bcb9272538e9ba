"""The kinds of sentence a claim can be: what is estimated, and the region it must lie in.

A kind is a frozen declaration. It names the columns its data must have (`required`) and carries the margins that were
decided before looking at the data. The statistics live in `assay.estimate`, the decisions in `assay.verdict`.

Columns
    value       what was measured, one row per measurement
    x           the axis of a `Slope` or a `Trend` (a width, a time)
    reference   the paired measurement an `Ordering` or `NonInferiority` compares with
    prediction  what theory says for this row (`Equality`), or for this case (`Slope`); optional
    limit       the bound theory gives for this row (`Bound`); optional
    unclear     whether this row cannot be told true from false (`Proportion`); optional
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Equality:
    """The mean of `value - prediction` lies within ±tolerance; or, with `every_row`, each row's difference does.

    `prediction`: a number, or None to take the column `prediction` where there is one and 0 where there is none.
    `relative`: the difference is divided by |prediction|.
    `every_row`: an exact identity; one row outside refutes it, and no interval is needed.
    """

    name: ClassVar[str] = "equality"
    required: ClassVar[tuple[str, ...]] = ("value",)
    optional: ClassVar[tuple[str, ...]] = ("prediction",)

    tolerance: float
    prediction: float | None = None
    relative: bool = False
    every_row: bool = False

    def __post_init__(self) -> None:
        _at_least_zero(self, "tolerance", self.tolerance)
        if self.tolerance == 0 and not self.every_row:
            raise ValueError("Equality: tolerance 0 can hold for every row only: give a tolerance or every_row=True")
        if self.prediction is not None:
            _finite(self, "prediction", self.prediction)
            if self.relative and self.prediction == 0:
                raise ValueError("Equality: a relative difference needs a prediction other than 0")


@dataclass(frozen=True)
class Slope:
    """The slope of log value against log x (of value against x with `log=False`) lies in a band around the prediction.

    `prediction`: a number, or None to take the column `prediction`, constant within a case.
    `band`: half-width of the region, or (below, above) with `math.inf` on one side for a one-sided claim:
    `Slope(-0.4, band=(math.inf, 0))` says "slope at most -0.4", `Slope(0, band=(0, math.inf))` says "slope at least 0".
    """

    name: ClassVar[str] = "slope"
    required: ClassVar[tuple[str, ...]] = ("x", "value")
    optional: ClassVar[tuple[str, ...]] = ("prediction",)

    prediction: float | None = None
    band: float | tuple[float, float] = 0.10
    log: bool = True

    def __post_init__(self) -> None:
        if self.prediction is not None:
            _finite(self, "prediction", self.prediction)
        sides = self.band if isinstance(self.band, tuple) else (self.band, self.band)
        if len(sides) != 2 or not all(_is_number(side) and side >= 0 for side in sides):
            raise ValueError(f"Slope: band must be a number or (below, above), neither negative; got {self.band!r}")
        if max(sides) == 0 or min(sides) == math.inf:
            raise ValueError(f"Slope: band {self.band!r} leaves nothing to test: widen a side, or bound one of them")

    @property
    def sides(self) -> tuple[float, float]:
        """How far below and above the prediction the slope may lie."""
        return self.band if isinstance(self.band, tuple) else (self.band, self.band)


@dataclass(frozen=True)
class Bound:
    """The mean of `value` is at most `upper`, or at least `lower`; with `every_row`, each row is.

    Exactly one of the two is given. Where the data has a column `limit`, it is `value - limit` that is bounded, so that
    `Bound(upper=0)` says "value is at most its row's limit".
    """

    name: ClassVar[str] = "bound"
    required: ClassVar[tuple[str, ...]] = ("value",)
    optional: ClassVar[tuple[str, ...]] = ("limit",)

    upper: float | None = None
    lower: float | None = None
    every_row: bool = False

    def __post_init__(self) -> None:
        _finite(self, *_one_of(self, upper=self.upper, lower=self.lower))

    @property
    def region(self) -> tuple[float, float]:
        """The values the claim allows."""
        return (-math.inf if self.lower is None else self.lower, math.inf if self.upper is None else self.upper)


@dataclass(frozen=True)
class Ordering:
    """The mean of `value - reference` is below -margin ("less") or above +margin ("greater"), row paired with row.

    `log`: compare log(value / reference); the margin is then in log units too.
    """

    name: ClassVar[str] = "ordering"
    required: ClassVar[tuple[str, ...]] = ("value", "reference")
    optional: ClassVar[tuple[str, ...]] = ()

    direction: Literal["less", "greater"]
    margin: float = 0.0
    log: bool = False

    def __post_init__(self) -> None:
        _one_word(self, "direction", self.direction, ("less", "greater"))
        _at_least_zero(self, "margin", self.margin)


@dataclass(frozen=True)
class NonInferiority:
    """The mean of `value` is at least that of `reference`, less a stated margin; larger is better."""

    name: ClassVar[str] = "noninferiority"
    required: ClassVar[tuple[str, ...]] = ("value", "reference")
    optional: ClassVar[tuple[str, ...]] = ()

    margin: float

    def __post_init__(self) -> None:
        _at_least_zero(self, "margin", self.margin)


@dataclass(frozen=True)
class Trend:
    """`value` rises (or falls) with `x` within each unit: the mean of Kendall's tau-b is at least `at_least`.

    For "decreasing" the mean tau must be at most -at_least.
    """

    name: ClassVar[str] = "trend"
    required: ClassVar[tuple[str, ...]] = ("x", "value")
    optional: ClassVar[tuple[str, ...]] = ()

    direction: Literal["increasing", "decreasing"]
    at_least: float = 0.0

    def __post_init__(self) -> None:
        _one_word(self, "direction", self.direction, ("increasing", "decreasing"))
        _at_least_zero(self, "at_least", self.at_least)
        if self.at_least >= 1:
            raise ValueError(f"Trend: at_least must be below 1, the largest tau there is; got {self.at_least!r}")


@dataclass(frozen=True)
class Proportion:
    """The share of rows whose `value` is true (1) is at least, or at most, a stated share; exactly one is given.

    A row that is `unclear` counts as false for the lower end of the interval and as true for the upper end, whatever
    its value: the claim is supported or refuted only if it is so either way.
    """

    name: ClassVar[str] = "proportion"
    required: ClassVar[tuple[str, ...]] = ("value",)
    optional: ClassVar[tuple[str, ...]] = ("unclear",)

    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        word, share = _one_of(self, at_least=self.at_least, at_most=self.at_most)
        if not (_is_number(share) and 0 <= share <= 1):
            raise ValueError(f"Proportion: {word} must lie between 0 and 1; got {share!r}")


Kind = Equality | Slope | Bound | Ordering | NonInferiority | Trend | Proportion


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _finite(kind: object, word: str, value: object) -> None:
    if not _is_number(value) or math.isinf(value):  # type: ignore[arg-type]
        raise ValueError(f"{type(kind).__name__}: {word} must be a finite number; got {value!r}")


def _at_least_zero(kind: object, word: str, value: float) -> None:
    _finite(kind, word, value)
    if value < 0:
        raise ValueError(f"{type(kind).__name__}: {word} must not be negative; got {value!r}")


def _one_of(kind: object, **choices: float | None) -> tuple[str, float]:
    given = [(word, value) for word, value in choices.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"{type(kind).__name__}: give exactly one of {' and '.join(choices)}; got {len(given)}")
    return given[0]


def _one_word(kind: object, word: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{type(kind).__name__}: {word} must be {' or '.join(map(repr, allowed))}; got {value!r}")
