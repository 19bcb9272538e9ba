"""From what a trial returns to what the store keeps: the Arrow schema of a table and the check of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from assay.errors import AssayError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from assay.plan import Pack
    from assay.study import Table, Trial


def schema(trial: Trial, table: Table) -> pa.Schema:
    """Arrow schema of a table: `cell`, `status`, the trial's factors, then the measured columns."""
    import pyarrow as pa

    arrow: dict[Any, pa.DataType] = {
        bool: pa.bool_(),
        int: pa.int64(),
        float: pa.float64(),
        str: pa.string(),
        list[float]: pa.list_(pa.float64()),
    }
    fields = [("cell", pa.string()), ("status", pa.string())]
    fields += [(factor.name, arrow[factor.type]) for factor in trial.factors]
    fields += [(name, arrow[kind]) for name, kind in table.columns.items()]
    return pa.schema(fields)


def complete_rows(pack: Pack, trial: Trial, table: Table, frame: pd.DataFrame) -> pd.DataFrame:
    """Check a trial's rows against its declaration and put cell, status and factors in front.

    AssayError when a column is missing or undeclared, when a row belongs to no cell of the pack, or when a cell has
    no row at all in the trial's first table.
    """
    import numpy as np
    import pandas as pd

    where = f"trial {trial.name!r}, table {table.name!r}"
    if not isinstance(frame, pd.DataFrame):
        raise AssayError(f"{where}: expected a DataFrame (see Pack.frame), found {type(frame).__name__}")
    expected = {"cell", *table.columns}
    found = set(frame.columns) - {"status"}
    for column in sorted(expected - found):
        raise AssayError(f"{where}: column {column!r} is declared but was not returned")
    for column in sorted(found - expected):
        raise AssayError(f"{where}: column {column!r} was returned but is not declared")
    members = {cell.id: index for index, cell in enumerate(pack.cells)}
    index = frame["cell"].map(members)
    if index.isna().any():
        raise AssayError(
            f"{where}: a row belongs to cell {frame['cell'][index.isna()].iloc[0]!r}, which is not in the pack"
        )
    if table is trial.tables[0] and index.nunique() < len(pack):
        silent = next(cell for cell in pack.cells if cell.id not in set(frame["cell"]))
        raise AssayError(f"{where}: no row for cell {dict(silent.factors)!r}")
    columns: dict[str, Any] = {"cell": frame["cell"].to_numpy()}
    if "status" in frame:
        columns["status"] = frame["status"].to_numpy()
    else:
        finite = np.ones(len(frame), dtype=bool)
        for name, kind in table.columns.items():
            try:
                if kind is float:
                    finite &= np.isfinite(frame[name].to_numpy(dtype=np.float64))
                elif kind == list[float]:
                    finite &= np.array([bool(np.isfinite(value).all()) for value in frame[name]], dtype=bool)
            except (TypeError, ValueError) as error:
                raise AssayError(f"{where}: column {name!r} must hold numbers: {error}") from error
        columns["status"] = np.where(finite, "ok", "diverged")
    position = index.to_numpy(dtype=np.int64)
    for factor in trial.factors:
        columns[factor.name] = np.array(pack.column(factor.name))[position]
    for name in table.columns:
        columns[name] = frame[name].to_numpy()
    return pd.DataFrame(columns)
