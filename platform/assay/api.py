"""The Python API: run a study, read its tables and verdicts with pandas, draw its figures, ask in SQL."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from assay.registry import available, load
from assay.results import Results, largest_scale, verdict_frame
from assay.store import Store

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from assay.sweep import Sweep

Root = str | os.PathLike[str] | None


def results_root(root: Root = None) -> str:
    """Where results live: the argument, else the ASSAY_RESULTS variable, else ./results; a folder or a URI."""
    return os.fspath(root or os.environ.get("ASSAY_RESULTS") or "results")


def open_results(study: str, scale: str | None = None, results: Root = None) -> Results:
    """Open what is stored of a study; the scale defaults to the largest one that has stored parts."""
    declared = load(study)
    store = Store(results_root(results))
    return Results(declared, scale or largest_scale(store, declared.name), store)


def run(
    study: str,
    scale: str = "smoke",
    *,
    results: Root = None,
    address: str | None = None,
    workers: int | None = None,
    retry_failed: bool = False,
) -> Sweep:
    """Measure what is not stored yet of a study, on an embedded local Ray or on the cluster at `address`."""
    from assay import sweep

    root = results_root(results)
    return sweep.run(study, scale, root, address=address, workers=workers, retry_failed=retry_failed)


def table(
    study: str,
    name: str | None = None,
    *,
    scale: str | None = None,
    results: Root = None,
    columns: list[str] | None = None,
    filters: Any = None,
) -> pd.DataFrame:
    """Read one table of a study (default: its primary one) as a DataFrame; only the columns and rows asked for.

    `filters` is a `pyarrow.compute` expression or a list of tuples such as [("width", ">=", 512)].
    """
    opened = open_results(study, scale, results)
    return opened.read(name or opened.study.tables[0].name, columns, filters).to_pandas()


def verdicts(study: str, *, scale: str | None = None, results: Root = None) -> pd.DataFrame:
    """Judge every claim of a study: one row per claim."""
    opened = open_results(study, scale, results)
    return verdict_frame(opened.study, opened.verdicts())


def figure(study: str, name: str, *, scale: str | None = None, results: Root = None) -> alt.TopLevelMixin:
    """Draw one figure of a study from what is stored, as an Altair chart."""
    from assay.report import figure as draw

    return draw(open_results(study, scale, results), name)


def query(statement: str, *, scale: str | None = None, results: Root = None) -> pd.DataFrame:
    """Run SQL over the stored tables.

    Each study's primary table goes by the study's name, any other as `study.table`, its packs as `study.runs`.
    """
    from assay.query import Source, sql
    from assay.rows import schema

    store = Store(results_root(results))
    sources = []
    for name in store.studies():
        if scale is not None and scale not in store.scales(name):
            continue
        at = scale or largest_scale(store, name)
        if name in available():
            study = load(name)
            tables = {table.name: schema(study.trial_of(table.name), table) for table in study.tables}
            sources.append(Source(store, name, at, study.version, tables))
        else:  # of a study file, or of one no longer installed: its parts say what they hold
            sources.append(Source.undeclared(store, name, at))
    return sql(sources, statement)
