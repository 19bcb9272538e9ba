"""Printing tables: aligned for a reader, or as CSV or JSON for a program."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assay.errors import unknown

if TYPE_CHECKING:
    import pandas as pd

    from assay.results import Results
    from assay.verdict import Verdict

FORMATS = ("table", "csv", "json")
_STYLES = {"supported": "green", "refuted": "red", "inconclusive": "yellow", "void": "magenta"}
_WIDTH = 160  # of a table that goes into a file or a pipe


def check_format(format: str) -> str:
    """Return `format` if it exists; AssayError naming the nearest one otherwise."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    return format


def rows(found: Sequence[Mapping[str, Any]], title: str | None = None, columns: Iterable[str] = ()) -> None:
    """Print rows as an aligned table; `columns` heads one without rows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column in found[0] if found else columns:
        table.add_column(column, overflow="fold")
    for row in found:
        table.add_row(*(Text(str(value), style=_STYLES.get(str(value), "")) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)


def frame(found: pd.DataFrame, format: str) -> None:
    """Print a DataFrame in one of the FORMATS. JSON is a list of records; NaN is null there, and empty in CSV."""
    if format == "csv":
        print(found.to_csv(index=False), end="")
    elif format == "json":
        print(found.to_json(orient="records", indent=2, double_precision=15))
    else:
        records = [{str(key): value for key, value in row.items()} for row in found.to_dict("records")]
        rows(records, columns=map(str, found.columns))


def verdicts(opened: Results, judged: list[Verdict]) -> None:
    """Print the verdict table of a study."""
    from assay.results import verdict_frame

    rows(
        [
            {
                "claim": row.claim,
                "verdict": row.verdict,
                "prediction": f"{row.prediction:.3g}",
                "estimate": f"{row.estimate:.3g} [{row.low:.3g}, {row.high:.3g}]",
                "n": row.n,
                "controls": f"{row.controls_refuted}/{row.controls} refuted",
                "reason": row.reason,
            }
            for row in verdict_frame(opened.study, judged).itertuples()
        ],
        title=f"{opened.study.title}, scale {opened.scale}",
    )
