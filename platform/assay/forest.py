"""A claim's cases as a forest plot: each estimate against its prediction and the region the claim allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from assay import charts
from assay.kinds import Equality, Slope

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from assay.kinds import Kind
    from assay.study import Claim
    from assay.verdict import Estimate


def forest(claim: Claim, cases: Sequence[Estimate]) -> alt.TopLevelMixin:
    """Draw all cases of a claim; AssayError if none has a finite estimate."""
    frame, order = _cases(claim.kind, cases)
    return charts.intervals(frame, title=claim.id, subtitle=order, x_title=f"estimate ({claim.kind.name})")


def _cases(kind: Kind, cases: Sequence[Estimate]) -> tuple[pd.DataFrame, str]:
    """Cases as `charts.intervals` draws them: sorted, and labelled by values alone where all have the same columns."""
    import pandas as pd

    frame = pd.DataFrame([asdict(case) for case in cases])
    frame[["region_low", "region_high"]] = [region(kind, case.prediction) for case in cases]
    pairs = [[part.partition("=") for part in case.case.split(", ")] for case in cases]
    columns = {tuple(name for name, _, _ in parts) for parts in pairs}
    if len(columns) > 1 or not all(equals for parts in pairs for _, equals, _ in parts):
        return frame, ""
    values = [[value for _, _, value in parts] for parts in pairs]
    frame["case"] = [" · ".join(row) for row in values]
    order = sorted(range(len(values)), key=lambda index: [_natural(value) for value in values[index]])
    return frame.iloc[order], f"Cases: {' · '.join(columns.pop())}."


def _natural(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return math.inf, text


def region(kind: Kind, prediction: float) -> tuple[float, float]:
    """Estimates that a claim allows around its prediction, which is the edge itself where the claim is one-sided."""
    match kind:
        case Equality():
            return prediction - kind.tolerance, prediction + kind.tolerance
        case Slope():
            below, above = kind.sides
            return prediction - below, prediction + above
    words = ("upper", "at_most")
    at_most = any(getattr(kind, word, None) is not None for word in words)
    at_most = at_most or getattr(kind, "direction", "") in ("less", "decreasing")
    return (-math.inf, prediction) if at_most else (prediction, math.inf)
