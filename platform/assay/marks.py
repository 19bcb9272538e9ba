"""From frames to the layers of a chart: rows with fixed field names, and the marks that draw them.

Every chart has the same fields: `x`, `y`, `low`, `high`, `n`, `diverged`, `series`, `panel`, and `kind`, which is
`experiment` (points and interval rules), `theory` (a line in the colour of its series) or `reference` (a grey line).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from assay.errors import AssayError
from assay.theme import DASHES, LABEL_SIZE, SHAPES

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

Row = dict[str, Any]

TICKS = 9
"""Up to so many distinct measured values are ticks of the axis; with more, the axis chooses its own."""


def require(title: str, frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """AssayError naming the figure when a column is missing or there is no row."""
    for column in columns:
        if column not in frame.columns:
            raise AssayError(f"figure {title!r}: no column {column!r} among {[str(name) for name in frame.columns]}")
    if not len(frame):
        raise AssayError(f"figure {title!r}: there are no rows to draw")


def finite(value: Any) -> float | None:
    """A number that JSON can hold, or None."""
    return float(value) if value is not None and math.isfinite(value) else None


def levels(title: str, column: pd.Series) -> list[Any]:
    """Distinct values: sorted, or in the column's own order where it is categorical; AssayError if one is missing."""
    if column.isna().any():
        raise AssayError(f"figure {title!r}: column {column.name!r} has {int(column.isna().sum())} missing values")
    present = list(dict.fromkeys(column.tolist()))
    if hasattr(column, "cat"):
        return [level for level in column.cat.categories.tolist() if level in present]
    return sorted(present, key=lambda level: (isinstance(level, str), level))


def label(level: Any, name: str) -> str:
    """What a reader sees of a level: a string as it is, a number with its name."""
    if isinstance(level, str):
        return level
    return f"{name} = {level:g}" if isinstance(level, float) else f"{name} = {level}"


def row(kind: str, x: Any, y: Any, low: Any = None, high: Any = None, series: str | None = None) -> Row:
    """One row of a chart."""
    return {"kind": kind, "x": finite(x), "y": finite(y), "low": finite(low), "high": finite(high), "series": series}


def rows(
    title: str, frame: pd.DataFrame, kind: str, names: Mapping[str, str | None]
) -> tuple[list[Row], dict[str, list[str]]]:
    """Rows of a frame, and the labels of its series and panels; `names` maps x, y, series and panel to columns."""
    require(title, frame, [name for name in names.values() if name])
    found: dict[str, list[str]] = {"series": [], "panel": []}
    columns: dict[str, Iterable[Any]] = {key: frame[names[key]] for key in ("x", "y")}
    for key in ("low", "high", "n", "diverged"):
        columns[key] = frame[key] if key in frame.columns else [None] * len(frame)
    for key in found:
        name = names[key]
        columns[key] = [None if kind == "reference" and key == "series" else ""] * len(frame)
        if name:
            found[key] = [label(level, name) for level in levels(title, frame[name])]
            columns[key] = [label(level, name) for level in frame[name].tolist()]
    made = []
    for x, y, low, high, n, diverged, series, panel in zip(*columns.values(), strict=True):
        made.append(row(kind, x, y, low, high, series) | {"n": finite(n), "diverged": finite(diverged), "panel": panel})
    return made, found


def drawable(title: str, given: list[Row], log_x: bool, log_y: bool) -> tuple[list[Row], str]:
    """Leave out what an axis cannot show, and say how much that is; AssayError when no point is left."""

    def off(number: float | None, log: bool) -> bool:
        return number is not None and log and number <= 0

    points = [item for item in given if item["kind"] == "experiment"]
    missing = sum(item["x"] is None or item["y"] is None for item in points)
    negative = sum(off(item["x"], log_x) or off(item["y"], log_y) for item in given)
    kept = [
        item
        for item in given
        if None not in (item["x"], item["y"]) and not off(item["x"], log_x) and not off(item["y"], log_y)
    ]
    if not any(item["kind"] == "experiment" for item in kept):
        raise AssayError(f"figure {title!r}: none of its {len(points)} points has a value that its axes can show")
    cut = sum(off(item["low"], log_y) for item in kept)
    shown = [item[key] for item in kept for key in ("y", "low", "high") if item[key] is not None]
    floor = min(number for number in shown if not off(number, log_y))
    kept = [item | {"low": floor} if off(item["low"], log_y) else item for item in kept]
    diverged = sum(item["diverged"] or 0 for item in points)
    notes = {
        "Measurements that diverged, not in the means": diverged,
        "Points without a finite value, not drawn": missing,
        "Values that are not positive, not drawn on a logarithmic axis": negative,
        "Intervals that reach zero, cut at the smallest value drawn": cut,
    }
    return kept, " ".join(f"{words}: {count:g}." for words, count in notes.items() if count)


def key(drawn: list[Row]) -> str:
    """One line that says which marks are measured and which are theory."""
    points = [item for item in drawn if item["kind"] == "experiment"]
    whiskers = any(item["low"] is not None for item in points)
    parts = ["Points: measured" + (", with 95 % intervals" if whiskers else "")]
    return "; ".join(parts + (["lines: theory"] if len(drawn) > len(points) else [])) + "."


def scale(log: bool, base: float = 10, domain: Sequence[float] | None = None, padding: int = 10) -> alt.Scale:
    """Scale of an axis that ends near the data, without stretching to round numbers or to zero."""
    import altair as alt

    ends: dict[str, Any] = {"padding": padding} | ({} if domain is None else {"domain": list(domain)})
    return alt.Scale(type="log", base=base, nice=False, **ends) if log else alt.Scale(zero=False, nice=False, **ends)


def axis(values: Sequence[float] = (), **options: Any) -> alt.Axis:
    """Axis with a tick at each of a few measured values, else ticks of its own choice."""
    import altair as alt

    if 0 < len(values) <= TICKS:
        return alt.Axis(values=list(values), format=".6~g" if max(map(abs, values)) < 1e5 else ".3~s", **options)
    return alt.Axis(**options)


def log_axis(values: Sequence[float], **options: Any) -> alt.Axis:
    """Logarithmic axis over positive values: ticks at powers of ten, or at 1, 2 and 5 where those are too few."""
    import altair as alt

    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    decades = math.log10(max(values) / min(values))
    stride = max(1, math.ceil(decades / 7))
    digits = (1, 2, 5) if decades < 2 else (1,)
    if decades < 0.5:
        return alt.Axis(tickCount=5, format=".3~g", **options)
    ticks = [digit * 10.0**power for power in range(first, last + 1, stride) for digit in digits]
    return alt.Axis(values=ticks, format=".3~g" if decades < 5 else ".0e", **options)


def layers(drawn: list[Row], x: alt.X, y: alt.Y, series: list[str], legend: str) -> list[alt.Chart]:
    """Bands, lines, interval rules and points, as far as there are rows for them."""
    import altair as alt

    picked = alt.selection_point(fields=["series"], bind="legend")
    domain = series or [""]
    shown: Any = alt.Legend(title=legend or None, symbolOpacity=1, symbolStrokeWidth=0) if series else None
    color = alt.Color("series:N", scale=alt.Scale(domain=domain), sort=domain, legend=shown)
    shapes = list(islice(cycle(SHAPES), len(domain)))
    dashes = [list(dash) for dash in islice(cycle(DASHES), len(domain))]
    shape = alt.Shape("series:N", scale=alt.Scale(domain=domain, range=shapes), sort=domain, legend=shown)
    dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=domain, range=dashes), sort=domain, legend=shown)
    faded: dict[str, Any] = {}
    if series:
        faded["opacity"] = alt.when(picked).then(alt.value(1)).otherwise(alt.value(0.12))
    tips = [alt.Tooltip("series:N", title=legend or "series")] if series else []
    tips += [
        alt.Tooltip(f"{field}:Q", title=title, format=".3g")
        for field, title in (("x", x["title"]), ("y", y["title"]), ("low", "95 % from"), ("high", "to"), ("n", "n"))
    ]

    def part(test: str) -> alt.Chart:
        return alt.Chart().transform_filter(test).encode(x=x)

    def has(kind: str, interval: bool) -> bool:
        return any(item["kind"] == kind and (not interval or item["low"] is not None) for item in drawn)

    spans = {"y": alt.Y("low:Q", title=y["title"], scale=y["scale"], axis=y["axis"]), "y2": "high:Q"}
    made: list[alt.Chart] = []
    if has("reference", True):
        band = part("datum.kind === 'reference' && isValid(datum.low)").mark_area(style="region", clip=True)
        made.append(band.encode(**spans))
    if has("theory", True):
        band = part("datum.kind === 'theory' && isValid(datum.low)").mark_area(opacity=0.15)
        made.append(band.encode(color=color, **spans))
    if has("reference", False):
        made.append(part("datum.kind === 'reference'").mark_line(style="theory").encode(y=y))
    if has("theory", False):
        line = part("datum.kind === 'theory'").mark_line(strokeWidth=2)
        made.append(line.encode(y=y, color=color, strokeDash=dash, **faded))
    if has("experiment", True):
        rule = part("datum.kind === 'experiment' && isValid(datum.low)").mark_rule(strokeWidth=1.5)
        made.append(rule.encode(color=color, **faded, **spans))
    points = part("datum.kind === 'experiment'").mark_point(filled=True, size=60, opacity=1)
    made.append(points.encode(y=y, color=color, shape=shape, tooltip=tips, **faded))
    if series:
        made[-1] = made[-1].add_params(picked)
    return made


class Side(NamedTuple):
    """One axis of a plane of cells: where each level lies, and how to place centres and cells."""

    at: Mapping[Any, Row]
    centre: dict[str, Any]
    span: dict[str, Any]
    tip: alt.Tooltip
    numeric: bool


def side(figure: str, name: str, column: pd.Series, log: bool, title: str) -> Side:
    """Place the levels of a column along x or y: numbers to scale, cells meeting half-way; strings in equal steps."""
    import altair as alt

    channel: Any = alt.X if name == "x" else alt.Y
    known = levels(figure, column)
    if any(isinstance(level, str) for level in known):
        order = known if name == "x" else known[::-1]
        angle = 0 if name == "y" or sum(map(len, order)) <= 64 else -40
        look = alt.Axis(labelAngle=angle)
        place = {name: channel(f"{name}:N", title=title, sort=order, scale=alt.Scale(padding=0), axis=look)}
        tip = alt.Tooltip(f"{name}:N", title=title)
        return Side({level: {name: level} for level in known}, place, place, tip, False)
    ruler = [math.log(level) if log else float(level) for level in known]
    middle = [(a + b) / 2 for a, b in pairwise(ruler)]
    first, last = (middle[0], middle[-1]) if middle else (ruler[0] + 0.5, ruler[0] - 0.5)
    edges = [2 * ruler[0] - first, *middle, 2 * ruler[-1] - last]
    edges = [math.exp(edge) for edge in edges] if log else edges
    at = {
        level: {name: float(level), f"{name}0": low, f"{name}1": high}
        for level, low, high in zip(known, edges[:-1], edges[1:], strict=True)
    }
    options = {
        "title": title,
        "scale": scale(log, domain=[edges[0], edges[-1]], padding=0),
        "axis": axis([float(level) for level in known], grid=False),
    }
    span = {name: channel(f"{name}0:Q", **options), f"{name}2": f"{name}1:Q"}
    tip = alt.Tooltip(f"{name}:Q", title=title, format=".6~g")
    return Side(at, {name: channel(f"{name}:Q", **options)}, span, tip, True)


def finish(chart: Any, title: str, caption: Sequence[str], width: int) -> alt.TopLevelMixin:
    """Give a chart its title, the lines under it and the description that a screen reader speaks."""
    import altair as alt

    letters = max(24, int(width / (0.5 * LABEL_SIZE)))
    sentences = [text if text.endswith((".", "!", "?")) else f"{text}." for text in caption if text]
    lines = [line for text in sentences for line in textwrap.wrap(text, letters)]
    head = textwrap.wrap(title, max(20, int(letters * 0.8))) or [title]
    return chart.properties(
        title=alt.TitleParams(text=head if len(head) > 1 else title, subtitle=lines),
        description=" ".join([title.rstrip(".") + ".", *lines]),
    )
